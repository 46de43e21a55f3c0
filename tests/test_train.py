"""Whole runs through the command: killed and resumed, stopped, in several processes, with BasicSR's own networks."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml

from hranet_arch.errors import TrainingError
from hranet_arch.hranet import HRANet
from hranet_arch.model import DenoisingModel, RestorationModel
from tests.conftest import REPOSITORY, load_network, run_cli


def start(options, *flags, launcher=("-m", "hranet_arch")):
    with open("options.yml", "w") as file:
        yaml.safe_dump(options, file)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *launcher, "train", "-opt", "options.yml", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def assert_equal_networks(first, second):
    for key in ("params", "params_ema"):
        a, b = load_network(first, key), load_network(second, key)
        assert a.keys() == b.keys()
        different = [name for name in a if not torch.equal(a[name], b[name])]
        assert not different, different


@pytest.fixture
def long_recipe(recipe):
    """Sixty iterations over epochs of 15, checkpoints in the middle of epochs, with a worker and a warm-up."""
    recipe["datasets"]["train"].update(dataset_enlarge_ratio=5, num_worker_per_gpu=1, sigma=[0, 55])
    recipe["train"].update(total_iter=60, warmup_iter=25)
    recipe["logger"].update(save_checkpoint_freq=20)
    recipe["val"]["val_freq"] = 30
    return recipe


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(long_recipe, run, tmp_path):
    assert run("train", long_recipe, "--force_yml", "name=whole") == 0
    process = start(long_recipe)
    wait_for(tmp_path / "experiments/tiny/training_states/20.state", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "experiments/tiny/training_states/41.state").write_bytes(b"cut off")  # what a kill leaves elsewhere
    assert run("train", long_recipe, "--auto_resume") == 0
    assert not list(tmp_path.glob("experiments/*_archived_*"))
    assert_equal_networks("experiments/whole/models/net_g_60.pth", "experiments/tiny/models/net_g_60.pth")
    states = (f"experiments/{name}/training_states/60.state" for name in ("whole", "tiny"))
    whole, resumed = (torch.load(state, weights_only=True) for state in states)
    assert resumed["best"] == whole["best"] and resumed["schedulers"] == whole["schedulers"]


def test_resuming_in_the_middle_is_exact_without_workers(recipe, run):
    """Epochs of 6 iterations, a state at 4: the resumed run must skip the epoch's first four batches."""
    assert run("train", recipe, "--force_yml", "name=whole") == 0
    assert run("train", recipe, "--force_yml", "train:total_iter=4") == 0
    assert run("train", recipe, "--auto_resume") == 0
    assert_equal_networks("experiments/whole/models/net_g_8.pth", "experiments/tiny/models/net_g_8.pth")


@pytest.mark.parametrize("broken", ["_save_networks", "_complete_state"])
def test_a_resumed_run_makes_up_for_the_validation_that_a_full_disk_broke_off(recipe, run, monkeypatch, broken):
    """The best is iteration 4's, of which the state of before the validation knows nothing."""
    recipe["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [4], "gamma": 1e5}
    assert run("train", recipe, "--force_yml", "name=whole") == 0
    full_disk = TrainingError("Cannot write the checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr(RestorationModel, broken, Mock(side_effect=full_disk))
        assert run("train", recipe) == 1
    state = torch.load("experiments/tiny/training_states/4.state", weights_only=True)
    assert state["owes_validation"] and not state["picked"]
    assert run("train", recipe, "--auto_resume") == 0
    assert_equal_networks("experiments/whole/models/net_g_best.pth", "experiments/tiny/models/net_g_best.pth")
    states = (f"experiments/{name}/training_states/{n}.state" for name in ("whole", "tiny") for n in (4, 8))
    states = [torch.load(state, weights_only=True) for state in states]
    assert all(state["picked"]["iter"] == 4 and not state["owes_validation"] for state in states)
    assert states[1]["best"] == states[3]["best"] and states[1]["picked"] == states[3]["picked"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["val:best_on=null"], ["val:best_on=val"]),
        ([], ["val:metrics:psnr:crop_border=1"]),
        ([], ["datasets:val:sigma=50", "datasets:val:dataroot_gt=elsewhere/val"]),
    ],
)
def test_what_picks_the_best_network_may_change_at_a_resume(recipe, run, capsys, before, after):
    """What another metric or set gave counts no more, though it was better: iteration 8 is bad, and the best now."""
    recipe["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [4], "gamma": 1e3}
    assert run("train", recipe, "--force_yml", "train:total_iter=4", *before) == 0
    best = Path("experiments/tiny/models/net_g_best.pth")
    assert best.exists() != bool(before)
    shutil.copytree("val", "elsewhere/val")
    capsys.readouterr()
    assert run("train", recipe, "--auto_resume", "--force_yml", *after) == 0
    assert torch.load(best, weights_only=True)["iter"] == 8
    assert ("it is picked anew" in capsys.readouterr().err) != bool(before)


def test_the_best_network_is_still_the_best_where_the_data_have_moved(recipe, run):
    """Nor is it forgotten by a part of the run that picked none."""
    recipe["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [4], "gamma": 1e3}
    assert run("train", recipe, "--force_yml", "train:total_iter=4") == 0
    assert run("train", recipe, "--auto_resume", "--force_yml", "train:total_iter=6", "val:best_on=null") == 0
    shutil.copytree("val", "elsewhere/val")
    assert run("train", recipe, "--auto_resume", "--force_yml", "datasets:val:dataroot_gt=elsewhere/val") == 0
    assert torch.load("experiments/tiny/models/net_g_best.pth", weights_only=True)["iter"] == 4


def test_the_validation_that_ends_a_training_is_made_up_for_too(recipe, run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(RestorationModel, "_complete_state", Mock(side_effect=TrainingError("Cannot write")))
        assert run("train", recipe, "--force_yml", "train:total_iter=6", "val:val_freq=1000") == 1
    capsys.readouterr()
    assert run("train", recipe, "--auto_resume", "--force_yml", "val:val_freq=1000") == 0
    state = torch.load("experiments/tiny/training_states/6.state", weights_only=True)
    assert state["picked"]["iter"] == 6 and not state["owes_validation"]
    assert "@ 6 iter" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "iteration"), [(40.0, 4), (0.0, 8)])
def test_states_of_before_they_said_what_is_picked_go_on(recipe, run, value, iteration):
    assert run("train", recipe, "--force_yml", "train:total_iter=4") == 0
    path = "experiments/tiny/training_states/4.state"
    state = torch.load(path, weights_only=True)
    del state["picked"], state["owes_validation"]
    for record in state["best"]["val"].values():
        del record["of"]
        record["val"] = value
    torch.save(state, path)
    assert run("train", recipe, "--auto_resume") == 0
    best = torch.load("experiments/tiny/models/net_g_best.pth", weights_only=True)["iter"]
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    assert best == state["picked"]["iter"] == state["best"]["val"]["psnr"]["iter"] == iteration


@pytest.mark.parametrize("model_type", ["DenoisingModel", "SRModel"])
def test_a_training_goes_on_from_its_end(recipe, run, model_type):
    """It ends between two checkpoints; upstream's next start would repeat what came after the last of them."""
    recipe["model_type"] = model_type
    recipe["train"]["pixel_opt"] = {"type": "MSELoss"}
    recipe["val"]["best_on"] = "val"
    assert run("train", recipe, "--force_yml", "name=whole") == 0
    assert run("train", recipe, "--force_yml", "train:total_iter=6") == 0
    assert_equal_networks("experiments/tiny/models/net_g_6.pth", "experiments/tiny/models/net_g_latest.pth")
    state = torch.load("experiments/tiny/training_states/6.state", weights_only=True)
    assert state["iter"] == 6
    if model_type == "DenoisingModel":  # BasicSR's own keeps no best
        best = state["best"]["val"]["psnr"]["iter"]
        assert_equal_networks("experiments/tiny/models/net_g_best.pth", f"experiments/tiny/models/net_g_{best}.pth")
    assert run("train", recipe, "--auto_resume") == 0
    logs = "".join(path.read_text() for path in Path("experiments/tiny").glob("*.log"))
    assert "Resuming training from epoch: 1, iter: 6" in logs
    assert_equal_networks("experiments/whole/models/net_g_8.pth", "experiments/tiny/models/net_g_8.pth")


def test_a_training_that_goes_on_stretches_its_cosine(recipe, run):
    """Half-way through eight batches the rate is half of the first; through four it had fallen to nothing."""
    recipe["train"]["scheduler"] = {"type": "CosineAnnealingRestartLR"}
    rates = {}
    for flags in (["--force_yml", "train:total_iter=4"], ["--auto_resume"]):
        assert run("train", recipe, *flags) == 0
        for log in Path("experiments/tiny").glob("*.log"):  # read each time: in the same second it is the same file
            rates |= dict(re.findall(r"iter: +(\d+), lr:\(([\d.e-]+),\)", log.read_text()))
    expected = {step: 5e-4 * (1 + math.cos(math.pi * (step - 1) / (4 if step <= 4 else 8))) for step in (2, 4, 6, 8)}
    assert {int(step): float(rate) for step, rate in rates.items()} == pytest.approx(expected, rel=1e-3)


def test_a_training_without_iterations_leaves_states_alone(recipe, run):
    """Started again once it has ended; with fewer iterations than it has had it is refused."""
    assert run("train", recipe) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("experiments/tiny/training_states").iterdir()}
    for total, status in ((8, 0), (2, 2)):
        assert run("train", recipe, "--auto_resume", "--force_yml", f"train:total_iter={total}") == status
    assert {path: path.stat().st_mtime_ns for path in Path("experiments/tiny/training_states").iterdir()} == before
    assert torch.load("experiments/tiny/models/net_g_latest.pth", weights_only=True)["iter"] == 8


def test_a_named_state_is_resumed_with_its_network_alone(recipe, run, capsys):
    assert run("train", recipe, "--force_yml", "name=whole") == 0
    assert run("train", recipe) == 0
    os.remove("experiments/tiny/models/net_g_8.pth")
    network, flags = Path("experiments/tiny/models/net_g_4.pth"), ("--force_yml",)
    flags += ("path:resume_state=experiments/tiny/training_states/4.state",)
    network.rename("moved.pth")
    assert run("train", recipe, *flags) == 2
    assert "net_g_4.pth is missing. Is 'name' (tiny) that of the run?" in capsys.readouterr().err
    Path("moved.pth").rename(network)
    assert run("train", recipe, *flags) == 0
    assert_equal_networks("experiments/whole/models/net_g_8.pth", "experiments/tiny/models/net_g_8.pth")


def test_the_options_kept_with_a_resumed_run_begin_it_anew(recipe, run):
    """Upstream's copy is the file that was given; ours has the overrides, and nothing of what a resume puts in."""
    recipe["path"] = {"pretrain_network_g": "start.pth"}
    torch.save({"params": HRANet(num_feat=8).state_dict()}, "start.pth")
    assert run("train", recipe, "--force_yml", "train:total_iter=4") == 0
    assert run("train", recipe, "--auto_resume") == 0
    copy = Path("experiments/tiny/options.yml")
    path = yaml.safe_load(copy.read_text())["path"]
    assert path["pretrain_network_g"] == "start.pth" and "resume_state" not in path
    copy.rename("again.yml")
    assert run_cli("train", "-opt", "again.yml") == 0
    old = next(Path("experiments").glob("tiny_archived_*"))
    assert_equal_networks(old / "models/net_g_8.pth", "experiments/tiny/models/net_g_8.pth")


def test_a_stop_before_the_first_step_of_a_resumed_run_leaves_its_state_alone(recipe, run, monkeypatch, capsys):
    """The random numbers to go on with have not been taken up by then."""
    assert run("train", recipe, "--force_yml", "train:total_iter=4") == 0
    state = Path("experiments/tiny/training_states/4.state")
    before = state.stat().st_mtime_ns
    monkeypatch.setattr(DenoisingModel, "resume_training", _resume_and_stop(DenoisingModel.resume_training))
    assert run("train", recipe, "--auto_resume") == 130
    assert "Stopped after iteration 4; its checkpoint is saved." in capsys.readouterr().err
    assert state.stat().st_mtime_ns == before


def _resume_and_stop(resume):
    def stop(self, state):
        resume(self, state)
        os.kill(os.getpid(), signal.SIGINT)

    return stop


@pytest.mark.parametrize("model_type", ["DenoisingModel", "SRModel"])
def test_dropout_is_drawn_alike_after_a_resume(recipe, run, model_type):
    """SwinIR's stochastic depth draws from torch's generator in the training process."""
    recipe["model_type"] = model_type
    recipe["train"]["pixel_opt"] = {"type": "MSELoss"}
    del recipe["val"], recipe["datasets"]["val"]  # BasicSR's own does not pad pictures to whole windows
    recipe["network_g"] = {
        "type": "SwinIR", "upscale": 1, "in_chans": 1, "img_size": 16, "window_size": 8, "img_range": 1.0,
        "depths": [2], "embed_dim": 12, "num_heads": [2], "mlp_ratio": 1, "upsampler": "", "resi_connection": "1conv",
        "drop_path_rate": 0.5, "drop_rate": 0.3,
    }  # fmt: skip
    assert run("train", recipe, "--force_yml", "name=whole") == 0
    assert run("train", recipe, "--force_yml", "train:total_iter=4") == 0
    assert run("train", recipe, "--auto_resume") == 0
    assert_equal_networks("experiments/whole/models/net_g_8.pth", "experiments/tiny/models/net_g_8.pth")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_saves_and_can_go_on(long_recipe, run, tmp_path, number, hangup_heard):
    long_recipe["train"]["total_iter"] = 100000
    process = start(long_recipe)
    wait_for(tmp_path / "experiments/tiny/training_states/20.state", process)
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: the loader's worker gets it, too
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert output.count("saving and stopping after this iteration") == 1
    iteration = int(re.search(r"Stopped after iteration (\d+)", output)[1])
    state = tmp_path / f"experiments/tiny/training_states/{iteration}.state"
    assert torch.load(state, weights_only=True)["iter"] == iteration
    flags = ("--auto_resume", "--force_yml", f"train:total_iter={iteration + 1}", "logger:save_checkpoint_freq=1")
    assert run("train", long_recipe, *flags) == 0
    assert (tmp_path / f"experiments/tiny/models/net_g_{iteration + 1}.pth").exists()


@pytest.mark.slow
def test_torchrun_starts_two_processes_on_the_cpu(recipe, run, tmp_path):
    """With batches made where the network runs; those of a loader, and what comes out, are of the tests below."""
    recipe["datasets"]["train"]["degrade_on"] = "device"
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "hranet_arch")
    for flags in ((), ("--auto_resume", "--force_yml", "train:total_iter=12")):
        process = start(recipe, "--launcher", "pytorch", *flags, launcher=launcher)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert "2 pictures" in output or "world_size: 2" in output
    assert torch.load("experiments/tiny/training_states/12.state", weights_only=True)["iter"] == 12
    assert all(torch.isfinite(value).all() for value in load_network("experiments/tiny/models/net_g_12.pth").values())
    logs = "".join(path.read_text() for path in tmp_path.glob("experiments/tiny/*.log"))
    assert "Resuming training from epoch" in logs and "psnr" in logs


@pytest.mark.parametrize(("backend", "leaves"), [("gloo", True), ("nccl", False)])
def test_a_process_that_failed_does_not_wait_for_the_others(recipe, run, monkeypatch, backend, leaves):
    """NCCL's group is left by all at once, and the others wait for this one's gradients."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))

    def fail(*arguments):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
        raise ZeroDivisionError

    monkeypatch.setattr(DenoisingModel, "optimize_parameters", fail)
    with pytest.raises(ZeroDivisionError):
        run("train", recipe, "--launcher", "pytorch")
    assert torch.distributed.is_initialized() != leaves
    if not leaves:
        torch.distributed.destroy_process_group()


def step_as_rank(rank, lq, gt, **train):
    """The weight of a one-weight network after a step of this rank, of two, and what its log says."""
    from tests.test_model import make_model

    model = make_model(**train)
    model.opt |= {"dist": True, "rank": rank, "world_size": 2}
    model.net_g = model.model_to_device(model.net_g)
    model.feed_data({"lq": torch.tensor(lq).reshape(-1, 1, 1, 1), "gt": torch.tensor(gt).reshape(-1, 1, 1, 1)})
    model.optimize_parameters(1)
    return model.get_bare_model(model.net_g).weight.item(), model.get_current_log()


def take_steps(rank, folder):
    """What a process of two does for the tests below: each rank has a batch of its own."""
    from hranet_arch import arithmetic, registration
    from tests.test_model import ScaleNet

    registration.ARCH_REGISTRY.register(ScaleNet)
    arithmetic.choose = lambda precision, device, warn: precision  # in this process
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=60)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, **meeting)
    lq, gt = [([1.0, 1.0], [1.0, 2.0]), ([2.0, 2.0], [1.0, 3.0])][rank]
    nan, inf = ([1.0, [1.0, float(value)][rank]] for value in ("nan", "inf"))
    steps = {
        "whole": step_as_rank(rank, lq, gt),
        "in parts": step_as_rank(rank, lq, gt, accumulate=2),
        "NaN": step_as_rank(rank, lq, nan),
        "infinite": step_as_rank(rank, lq, inf, pixel_opt={"type": "L1Loss"}),
        "infinite in fp16": step_as_rank(rank, lq, inf, pixel_opt={"type": "L1Loss"}, precision="fp16"),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(steps))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def steps_of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(take_steps, (str(folder),), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("batch", ["whole", "in parts"])
def test_two_processes_step_by_the_mean_of_their_gradients(steps_of_two, batch):
    """(w x - t)^2 at w = 0.5 has the derivatives -1, -3 for rank 0's samples, 0, -8 for rank 1's: -3 in the mean.

    SGD at rate 1 goes to 3.5 on both; one that never heard of the other, to 2.5 or 4.5. Losses: 0.25, 2.25; 0, 4.
    """
    (first, log), (second, _) = (steps[batch] for steps in steps_of_two)
    assert first == second == pytest.approx(3.5)
    assert log["l_pix"] == pytest.approx((0.25 + 2.25 + 0 + 4) / 4)


@pytest.mark.parametrize("loss", ["NaN", "infinite", "infinite in fp16"])
def test_a_loss_that_is_not_finite_in_one_process_is_lost_in_both(steps_of_two, loss):
    """An infinite absolute error has a finite derivative: the loss alone tells the other process."""
    for steps in steps_of_two:
        weight, log = steps[loss]
        assert weight == 0.5 and log["skipped"] == 1


def find_free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def train_as_rank(rank, runs):
    """Runs ``basicsr train`` once for each ``(port, flags)``, as ``torchrun`` starts it."""

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for port, flags in runs:
        os.environ["MASTER_PORT"] = str(port)
        assert run_cli("train", "-opt", "options.yml", "--launcher", "pytorch", *flags) == 0


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_an_epoch_to_the_same_weights(recipe):
    """Epochs of 3 iterations, a state at 4: both ranks must skip the first batch of the second epoch."""
    Path("options.yml").write_text(yaml.safe_dump(recipe))
    runs = [["--force_yml", "name=whole"], ["--force_yml", "train:total_iter=4"], ["--auto_resume"]]
    torch.multiprocessing.spawn(train_as_rank, (list(zip(find_free_ports(3), runs)),), nprocs=2)
    assert_equal_networks("experiments/whole/models/net_g_8.pth", "experiments/tiny/models/net_g_8.pth")


def test_two_processes_see_different_pictures():
    from hranet_arch.pipeline import ResumableSampler

    keys = [list(ResumableSampler(range(8), 2, rank, 1, seed=0)) for rank in (0, 1)]
    assert sorted(index for part in keys for index, _ in part) == list(range(8))
    assert not {seed for _, seed in keys[0]} & {seed for _, seed in keys[1]}


NETWORKS = {
    "SwinIR": {
        "upscale": 1, "in_chans": 3, "img_size": 16, "window_size": 8, "img_range": 1.0, "depths": [2],
        "embed_dim": 12, "num_heads": [2], "mlp_ratio": 1, "upsampler": "", "resi_connection": "1conv",
    },
    "RIDNet": {"in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1, "img_range": 1.0},
    "EDSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 1, "img_range": 1.0},
    "RCAN": {
        "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 1, "num_block": 1, "squeeze_factor": 4,
        "upscale": 1, "img_range": 1.0,
    },
    "SRVGGNetCompact": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 1, "upscale": 1},
}  # fmt: skip


@pytest.mark.parametrize("model_type", ["DenoisingModel", "SRModel"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_basicsr_train_resume_and_test(recipe, run, name, model_type, tmp_path):
    recipe["model_type"] = model_type
    recipe["network_g"] = {"type": name, **NETWORKS[name]}
    recipe["train"]["pixel_opt"] = {"type": "CharbonnierLoss"}
    if name == "SwinIR" and model_type == "SRModel":
        recipe["model_type"] = "SwinIRModel"  # BasicSR's own way to pad to whole windows
    for dataset in recipe["datasets"].values():
        dataset["color"] = "rgb"
    assert run("train", recipe, "--force_yml", "train:total_iter=4") == 0
    assert run("train", recipe, "--auto_resume") == 0
    test = {key: recipe[key] for key in ("model_type", "num_gpu", "network_g", "val")}
    test |= {"name": "tested", "datasets": {"test": recipe["datasets"]["val"]}}
    test["path"] = {"pretrain_network_g": "experiments/tiny/models/net_g_8.pth"}
    assert run("test", test) == 0
    assert (tmp_path / "results/tested/metrics.json").exists()


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormal numbers")
@pytest.mark.parametrize(("optimizer", "is_muon"), [("Adam", False), ("MuonAdam", True)])
def test_a_training_flushes_denormal_numbers(recipe, run, optimizer, is_muon):
    """They are what a CPU computes slowly: the averages of gradients that have become zero fade into them."""
    recipe["train"]["optim_g"] = {"type": optimizer, "lr": 1e-3}
    torch.set_flush_denormal(False)  # which a training before this one has left on
    assert (torch.tensor(1e-38) * 0.1).item() > 0
    try:
        assert run("train", recipe) == 0
        assert (torch.tensor(1e-38) * 0.1).item() == 0
    finally:
        torch.set_flush_denormal(False)
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    kept = {name for one in state["optimizers"][0]["state"].values() for name in one}
    assert ("momentum_buffer" in kept) == is_muon
