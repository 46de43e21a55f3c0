"""The command line: bad input ends in one message, status 2 and an untouched folder; help, list, doctor, plug-ins."""

import errno
import importlib.metadata
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import cv2
import lmdb
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from hranet_arch import cli, pipeline, registration
from hranet_arch.checkpoints import load_checkpoint
from hranet_arch.errors import InputError
from hranet_arch.prepare import prepare_lmdb
from tests.conftest import REPOSITORY, make_pictures, run_cli

VERBS = [
    "",
    "train",
    "test",
    "prepare",
    "prepare lmdb",
    "prepare pairs",
    "prepare sample",
    "prepare testsets",
    "profile",
    "list",
    "doctor",
    "compare",
    "denoise",
    "upscale",
    "dejpeg",
    "export",
    "demo",
]


def snapshot():
    """Every file of the runs' folders with its content. Locks, which stay, are no results."""
    files = [path for name in ("experiments", "tb_logger", "results") for path in Path(name).rglob("*")]
    return {str(path): path.read_bytes() if path.is_file() else None for path in files if path.suffix != ".lock"}


@pytest.fixture
def refuse(run, capfd):
    """Returns ``refuse(options, verb, *flags)``: runs, checks how it is refused, gives the message."""

    def run_and_check(options, verb="train", *flags):
        for folder in ("experiments", "tb_logger", "results"):
            if not Path(folder).exists():
                Path(folder, "tiny", "models").mkdir(parents=True)
                Path(folder, "tiny", "models", "earlier").write_text("the good run")
        before = snapshot()
        capfd.readouterr()
        status = run(verb, options, *flags)
        out, err = capfd.readouterr()
        messages = re.findall("basicsr: .*", err)  # a worker's libpng may be in the middle of a line of its own
        assert "Traceback" not in err + out, err
        assert status == 2, err
        assert len(messages) == 1, err
        assert snapshot() == before
        return err[err.index("basicsr: ") :]

    return run_and_check


def make_lmdb(name="train"):
    prepare_lmdb(name, f"{name}.lmdb", workers=1)
    return f"{name}.lmdb"


def change_lmdb(path, change):
    """Passes each value of an LMDB through ``change``."""
    with lmdb.open(path) as environment, environment.begin(write=True) as transaction:
        for key, value in list(transaction.cursor()):
            transaction.put(key, change(value))


def damage(value):
    middle = len(value) // 2
    return value[:middle] + bytes(255 - byte for byte in value[middle : middle + 40]) + value[middle + 40 :]


# --- bad input: options -----------------------------------------------------------------------------------------------


def test_wrong_keys_and_names_come_in_one_message(recipe, refuse):
    recipe["network_g"]["num_fea"] = 8
    recipe["model_type"] = "DenoiseModel"
    message = refuse(recipe)
    assert "basicsr: options.yml: " in message
    assert "options.yml: network_g.num_fea: unknown key. Did you mean 'num_feat'?" in message
    assert "options.yml: model_type: there is no model 'DenoiseModel'. Did you mean 'DenoisingModel'" in message


def test_forced_options_are_checked_too(recipe, refuse):
    message = refuse(recipe, "train", "--force_yml", "train:total_itr=4", "--force_yml", "val:val_frq=2", "name=tiny")
    assert "train.total_itr: unknown key" in message and "val.val_frq: unknown key" in message


@pytest.mark.parametrize(
    "text", ["", "a: [", "a:\n\tb: 1", "a: 1\na: 2", "name: !!python/object/apply:os.system [ls]", "- a"]
)
def test_files_that_are_no_options(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("options.yml").write_text(text)
    status = run_cli("train", "-opt", "options.yml")
    message = capsys.readouterr().err
    assert status == 2
    assert message.startswith("basicsr: options.yml: ") and len(message.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpus_that_are_not_there(recipe, refuse):
    assert "num_gpu: 1, but torch" in refuse({**recipe, "num_gpu": 1})
    recipe["datasets"]["train"].update(prefetch_mode="cuda", pin_memory=True)
    assert "datasets.train.prefetch_mode: 'cuda' needs a GPU" in refuse(recipe)


@pytest.mark.parametrize(
    ("given", "seen", "expected"),
    [({"SLURM_LOCALID": "3"}, 4, "3"), ({}, 4, "1"), ({"SLURM_LOCALID": "3", "SLURM_GPUS_PER_TASK": "1"}, 1, "0")],
)
def test_slurm_says_which_gpu_is_whose(given, seen, expected, monkeypatch):
    """With --gpus-per-task each task sees its own alone, as number 0."""
    names = ("SLURM_LOCALID", "SLURM_GPUS_PER_TASK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    for name, value in {"PROCID": "5", "NTASKS": "8", "NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout="n1\nn2\n"))
    pipeline._read_slurm(None)
    found = [os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")]
    assert found == ["n1", "29500", "5", "8", expected]


def test_a_gpu_that_cannot_compute_is_refused_before_a_run(recipe, refuse, monkeypatch):
    def fail(device):
        raise InputError(f"device={device!r} cannot be used: no kernel image.")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("hranet_arch.arithmetic.find_device", fail)
    recipe["num_gpu"] = "auto"
    assert "device='cuda' cannot be used: no kernel image" in refuse(recipe)


@pytest.mark.parametrize("launcher", ["pytorch", "slurm"])
def test_a_launcher_without_its_program(recipe, refuse, monkeypatch, launcher):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    message = refuse(recipe, "train", "--launcher", launcher)
    assert ("torchrun" if launcher == "pytorch" else "srun") in message


# --- bad input: networks ----------------------------------------------------------------------------------------------


RIDNET = {"type": "RIDNet", "in_channels": 1, "mid_channels": 16, "out_channels": 1, "num_block": 1, "img_range": 1.0}
SMALL = {"num_in_ch": 1, "num_out_ch": 1, "num_feat": 8}


@pytest.mark.parametrize(
    "network",
    [
        RIDNET,
        {**RIDNET, "in_channels": 3, "out_channels": 3},
        {"type": "EDSR", "num_block": 1, "upscale": 1, **SMALL},
        {"type": "RCAN", "num_group": 1, "num_block": 1, "upscale": 1, "squeeze_factor": 4, **SMALL},
    ],
    ids=lambda network: f"{network['type']}-{network.get('in_channels', 1)}",
)
def test_grey_pictures_and_networks_for_rgb(recipe, refuse, network):
    message = refuse({**recipe, "network_g": network})
    assert f"BasicSR's {network['type']} is made for RGB pictures." in message and "grey pictures" in message


@pytest.mark.parametrize(
    "network", [{"type": "HRANet", "num_feat": 8}, {"type": "SRVGGNetCompact", "num_conv": 1, "upscale": 1, **SMALL}]
)
def test_colour_pictures_and_a_network_for_grey(recipe, refuse, network):
    for dataset in recipe["datasets"].values():
        dataset["color"] = "rgb"
    message = refuse({**recipe, "network_g": network})
    assert "datasets.train gives RGB pictures (3 channels)" in message and network["type"] in message


@pytest.mark.parametrize("upscale", [1, 4])
def test_msrresnet_at_scale_one(recipe, refuse, upscale):
    recipe["network_g"] = {"type": "MSRResNet", "num_block": 1, "upscale": upscale, **SMALL}
    assert "BasicSR's MSRResNet has upscale 2, 3 and 4 only." in refuse(recipe)


SWINIR = {
    "type": "SwinIR", "upscale": 1, "in_chans": 1, "img_size": 16, "window_size": 8, "img_range": 1.0, "depths": [2],
    "embed_dim": 12, "num_heads": [2], "mlp_ratio": 1, "upsampler": "", "resi_connection": "1conv",
}  # fmt: skip


@pytest.mark.parametrize("size", [20, 132])
def test_patches_that_are_no_whole_windows(recipe, refuse, size):
    """Training pads nothing. 132 is more than what is tried."""
    recipe["datasets"]["train"]["gt_size"] = size
    message = refuse({**recipe, "network_g": SWINIR})
    assert "Its windows are of 8: make datasets.train.gt_size a multiple of 8." in message


def test_large_patches_of_whole_windows_are_taken(recipe):
    """144 is 3 windows of 48; 128 pixels, which would be tried of smaller windows, are not."""
    from hranet_arch.preflight import _probe, build_network

    opt = {**recipe, "scale": 1, "network_g": {**SWINIR, "window_size": 48, "img_size": 48}}
    opt["datasets"]["train"]["gt_size"] = 144
    _probe(build_network("network_g", opt["network_g"]), opt, "train")


class ListNet(torch.nn.Conv2d):
    """For grey pictures; says its channels by a name of its own, and gives a list."""

    def __init__(self, shades: int = 1) -> None:
        super().__init__(shades, shades, 1)

    def forward(self, x):
        return [super().forward(x)]


class GreyLoss(torch.nn.Module):
    def forward(self, output, gt):
        return (output - gt.expand(-1, 1, -1, -1)).abs().mean()


def test_a_network_that_gives_no_tensor(recipe, refuse, capfd, monkeypatch):
    monkeypatch.setitem(registration.ARCH_REGISTRY._obj_map, "ListNet", ListNet)
    recipe["network_g"] = {"type": "ListNet"}
    assert "network_g: ListNet gives no tensor but a list, which DenoisingModel cannot use" in refuse(recipe)
    Path("options.yml").write_text(yaml.safe_dump(recipe))
    assert run_cli("profile", "-opt", "options.yml", "--size", "8x8") == 0
    assert "at 1 x 8 x 8" in capfd.readouterr().out


def test_a_strangers_loss_may_want_grey_pictures_alone(recipe, run, monkeypatch):
    from basicsr.utils.registry import LOSS_REGISTRY

    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "GreyLoss", GreyLoss)
    recipe["train"]["pixel_opt"] = {"type": "GreyLoss"}
    assert run("train", recipe, "--force_yml", "train:total_iter=2") == 0


# --- bad input: checkpoints -------------------------------------------------------------------------------------------


def save_network(num_feat, path="weights.pth"):
    network = registration.registries()["arch"]["HRANet"](num_feat=num_feat)
    torch.save({"params": network.state_dict()}, path)
    return path


@pytest.mark.parametrize("verb", ["train", "test"])
@pytest.mark.parametrize("model_type", ["DenoisingModel", "SRModel"])
def test_checkpoints_that_cannot_be_used(recipe, refuse, verb, model_type):
    recipe["model_type"] = model_type
    recipe["train"]["pixel_opt"] = {"type": "MSELoss"}
    if verb == "test":
        recipe["datasets"].pop("train")
    path = recipe.setdefault("path", {})["pretrain_network_g"] = save_network(16)
    message = refuse(recipe, verb)
    assert "weights.pth does not fit HRANet, in " in message and "(16, 1, 3, 3), the network's (8, 1, 3, 3)" in message
    whole = Path(path).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        Path(path).write_bytes(content)
        assert "path.pretrain_network_g: weights.pth: not a whole checkpoint" in refuse(recipe, verb)
    torch.save({"params": {"a": 1}}, path)
    assert "holds no network" in refuse(recipe, verb)


def test_what_the_weights_shapes_do_not_show_is_compared(recipe, run, capsys):
    """A test is refused, a training is told: from such weights on, and resumed."""
    said = "net_g_8.pth is of a HRANet with attention_pool: 'global' (in network_g 8), which the weights' shapes do not"
    assert run("train", recipe, "--force_yml", "network_g:attention_pool=global") == 0
    weights = {"path": {"pretrain_network_g": "experiments/tiny/models/net_g_8.pth"}}
    test = {**recipe, **weights, "datasets": {"test": recipe["datasets"]["val"]}}
    del test["train"]
    capsys.readouterr()
    assert run("test", test) == 2
    assert said in (message := capsys.readouterr().err) and "Write in network_g what the file has." in message
    assert run("test", test, "--force_yml", "network_g:attention_pool=global") == 0
    assert "weights' shapes" not in capsys.readouterr().err
    assert run("train", {**recipe, **weights, "name": "on"}) == 0
    assert said in capsys.readouterr().err
    assert run("train", recipe, "--auto_resume", "--force_yml", "train:total_iter=9") == 0
    assert said in capsys.readouterr().err


def test_a_test_needs_weights(recipe, refuse):
    recipe["datasets"].pop("train")
    assert "path.pretrain_network_g: is missing" in refuse(recipe, "test")


def test_resume_states_that_cannot_be_used(recipe, refuse):
    recipe["path"] = {"resume_state": "4.state"}
    assert "path.resume_state: 4.state is not there" in refuse(recipe)
    Path("4.state").write_bytes(b"")
    assert "4.state: not a whole checkpoint" in refuse(recipe)
    recipe["path"] = {"resume_state": save_network(8)}
    assert "path.resume_state: weights.pth is no training state" in refuse(recipe)
    torch.save({"params": {}, "iter": 4}, "weights.pth")  # as a run saves it
    assert "path.resume_state: weights.pth is no training state" in refuse(recipe)


def test_a_resume_with_a_wider_network_is_refused_in_one_line(recipe, run, capfd):
    assert run("train", recipe, "--force_yml", "train:total_iter=2") == 0
    capfd.readouterr()
    assert run("train", recipe, "--auto_resume", "--force_yml", "network_g:num_feat=16") == 2
    (message,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("basicsr: ")]
    assert "net_g_2.pth does not fit HRANet, in " in message
    assert "is (8, 1, 3, 3), the network's (16, 1, 3, 3)" in message


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (
            "pixel_opt",
            {"type": "L1Loss", "reduction": "none"},
            "train.pixel_opt: L1Loss refuses its arguments: it gives 768 numbers",
        ),
        ("pixel_opt", {"type": "L1Loss", "loss_weight": "1,0"}, "train.pixel_opt: L1Loss "),
        (
            "perceptual_opt",
            {"type": "PerceptualLoss", "layer_weights": {"conv9_9": 1}},
            "train.perceptual_opt: PerceptualLoss refuses its arguments: 'conv9_9' is not in list.",
        ),
        (
            "optim_g",
            {"type": "MuonAdam", "lr": 1e-3, "eps": -1},
            "MuonAdam refuses its arguments: eps=-1 is not allowed",
        ),
        ("optim_g", {"type": "MuonAdam", "lr": 1e-3, "eps": "tiny"}, "train.optim_g: MuonAdam refuses its arguments"),
        ("optim_g", {"type": "Adam", "lr": 1e-3, "differentiable": True}, "train.optim_g: Adam refuses its arguments"),
    ],
)
def test_losses_and_optimisers_are_tried_before_the_run(recipe, refuse, section, options, message):
    recipe["train"][section] = options
    assert message in refuse(recipe)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"type": "calculate_psnr", "crop_border": 0, "input_order": "CWH"}, "val.metrics.mine: calculate_psnr says"),
        (
            {"type": "calculate_ssim", "crop_border": 128},
            "val.metrics.mine: calculate_ssim says of a picture of 256x256",
        ),
    ],
)
def test_metrics_are_tried_before_the_run(recipe, refuse, metric, message):
    recipe["val"]["metrics"]["mine"] = metric
    assert message in refuse(recipe)


def test_a_metric_that_refuses_a_set_is_named(recipe, run, capfd):
    """SSIM has nothing to average where as much is cut off as there is."""
    recipe["val"]["metrics"]["ssim"]["crop_border"] = 20
    assert run("train", recipe) == 2
    error = capfd.readouterr().err
    assert (
        "basicsr: val.metrics.ssim: calculate_ssim says of a picture of 40x44: " in error and "Traceback" not in error
    )


def test_a_metric_without_pixels_is_no_network_that_failed(recipe, run, capfd):
    recipe["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "crop_border": 20}}
    assert run("train", recipe) == 0
    error = capfd.readouterr().err
    assert "val: psnr is defined on none of the pictures; is crop_border too large?" in error
    assert "not finite" not in error


@pytest.mark.parametrize("model_type", ["DenoisingModel", "SRModel"])
def test_checkpoints_of_other_forms_are_loaded(recipe, run, model_type):
    recipe["model_type"] = model_type
    recipe["train"].update(total_iter=1, pixel_opt={"type": "MSELoss"})
    tensors = registration.registries()["arch"]["HRANet"](num_feat=8).state_dict()
    torch.save(tensors, "bare.pth")
    safetensors.torch.save_file(tensors, "weights.safetensors")
    torch.save({"params_ema": tensors}, "average.pth")
    for path in ("bare.pth", "weights.safetensors", "average.pth"):
        assert run("train", {**recipe, "path": {"pretrain_network_g": path}}) == 0
    torch.save({"mine": tensors}, "mine.pth")
    own = {"pretrain_network_g": "mine.pth", "param_key_g": "mine"}
    recipe["train"]["total_iter"] = 2
    assert run("train", {**recipe, "path": own}) == 0
    recipe["train"]["total_iter"] = 4  # the run's own checkpoints have other keys
    assert run("train", {**recipe, "path": own}, "--auto_resume") == 0


# --- bad input: data --------------------------------------------------------------------------------------------------


def test_a_missing_lmdb(recipe, refuse):
    recipe["datasets"]["train"]["dataroot_gt"] = "datasets/mine.lmdb"
    message = refuse(recipe)
    assert (
        "datasets/mine.lmdb is not there. Make it with: basicsr prepare lmdb --input FOLDER --output datasets/mine.lmdb"
        in message
    )


def test_an_entry_of_an_lmdb_that_is_no_picture(recipe, refuse):
    recipe["datasets"]["train"]["dataroot_gt"] = make_lmdb()
    change_lmdb("train.lmdb", lambda value: b"no picture at all")
    assert ": not a picture that can be read (17 bytes; damaged, or not a picture)" in refuse(recipe)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_entry_of_an_lmdb(recipe, refuse, workers):
    recipe["datasets"]["train"].update(dataroot_gt=make_lmdb(), num_worker_per_gpu=workers)
    change_lmdb("train.lmdb", damage)
    assert "train.lmdb/" in refuse(recipe)


def test_damage_that_the_prefetching_thread_finds(recipe):
    """In a process of its own: stock BasicSR waits for ever."""
    recipe["datasets"]["train"].update(prefetch_mode="cpu", num_worker_per_gpu=1)
    for path in Path("train").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    Path("options.yml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "hranet_arch", "train", "-opt", "options.yml"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (message,) = re.findall("basicsr: .*", result.stderr)  # as above
    assert ".png: not a picture that can be read" in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_verb_as_ctrl_c_does(number, hangup_heard, monkeypatch, capsys):
    from hranet_arch import doctor

    before = signal.getsignal(number)
    monkeypatch.setattr(doctor, "examine", lambda: signal.raise_signal(number))
    status = run_cli("doctor")
    assert status == 130 and capsys.readouterr().err == "basicsr: stopped.\n"
    assert signal.getsignal(number) is before


def test_under_nohup_the_end_of_the_terminal_stops_nothing(hangup_heard, monkeypatch):
    from hranet_arch import doctor

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(doctor, "examine", lambda: signal.raise_signal(signal.SIGHUP))
    assert run_cli("doctor") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_test_stops_at_once(number, recipe, run, capsys, monkeypatch, request):
    """It has nothing to save."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert run("train", recipe) == 0
    monkeypatch.setattr("basicsr.test.test_pipeline", lambda root: signal.raise_signal(number))
    recipe["path"] = {"pretrain_network_g": "experiments/tiny/models/net_g_8.pth"}
    recipe["datasets"] = {"test": recipe["datasets"]["val"]}
    capsys.readouterr()
    assert run("test", recipe) == 130
    assert capsys.readouterr().err.endswith("basicsr: stopped.\n")


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_torchscript_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.trace(torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 8, 8)).save(path)
    with pytest.raises(InputError, match="net.pt: a TorchScript file holds code; give the weights"):
        load_checkpoint(path)


def test_a_truncated_lmdb(recipe, refuse):
    recipe["datasets"]["train"]["dataroot_gt"] = make_lmdb()
    data = Path("train.lmdb/data.mdb")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    assert "data.mdb is truncated" in refuse(recipe)
    data.write_bytes(b"garbage" * 5000)
    assert "train.lmdb: not an LMDB that can be read" in refuse(recipe)
    data.write_bytes(b"")
    assert "train.lmdb" in refuse(recipe)
    data.unlink()
    assert "train.lmdb: no LMDB is there" in refuse(recipe)


def test_an_lmdb_whose_list_is_wrong(recipe, refuse):
    recipe["datasets"]["train"]["dataroot_gt"] = make_lmdb()
    listing = Path("train.lmdb/meta_info.txt")
    listing.write_text("ghost.png (40,44,3) 1\n")
    assert "'ghost'" in refuse(recipe)
    listing.write_text("0.png forty\n")
    assert "meta_info.txt: cannot understand the line '0.png forty'" in refuse(recipe)
    listing.unlink()
    assert "meta_info.txt: missing" in refuse(recipe)


def make_pairs(recipe, kind="PairedDenoisingDataset"):
    make_pictures(Path("noisy"), 6)
    own = {"color": "gray"} if kind == "PairedDenoisingDataset" else {"color": "y"}
    recipe["datasets"]["train"] = {
        "name": "train", "type": kind, "dataroot_gt": "train", "dataroot_lq": "noisy", "gt_size": 16,
        "batch_size_per_gpu": 2, "num_worker_per_gpu": 0, **own,
    }  # fmt: skip


def shrink_all(folder, size=(20, 20)):
    for path in Path(folder).iterdir():
        cv2.imwrite(str(path), np.zeros((*size, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PairedDenoisingDataset", "PairedImageDataset"])
def test_pairs_that_are_none(recipe, refuse, kind):
    make_pairs(recipe, kind)
    shrink_all("noisy")
    assert "(20, 20)" in refuse(recipe)
    Path("noisy/5.png").rename("noisy/other.png")
    assert "5.png" in refuse(recipe)
    Path("noisy/other.png").unlink()
    message = refuse(recipe)
    assert "datasets.train: " in message and ("5.png" in message or "different number of images: 5, 6" in message)


@pytest.mark.parametrize("kind", ["PairedDenoisingDataset", "PairedImageDataset"])
def test_patches_that_are_no_multiple_of_the_scale(recipe, refuse, kind):
    make_pairs(recipe, kind)
    recipe["datasets"]["train"]["gt_size"] = 17
    del recipe["datasets"]["val"]
    recipe.update(scale=2, network_g={"type": "HRANet", "num_feat": 8, "upscale": 2})
    assert "datasets.train.gt_size: 17 must be a multiple of the scale, 2" in refuse(recipe)


@pytest.mark.parametrize("phase", ["train", "val"])
def test_noisy_pictures_as_large_as_the_clean_ones_are_no_super_resolution(recipe, refuse, phase):
    noisy = recipe["datasets"].pop(phase)
    make_pairs(recipe)
    recipe["datasets"] = {"train": recipe["datasets"]["train"], phase: noisy}
    recipe.update(scale=2, network_g={"type": "HRANet", "num_feat": 8, "upscale": 2})
    assert f"datasets.{phase}: a GaussianDenoisingDataset's noisy pictures are as large as the clean" in refuse(recipe)


@pytest.mark.parametrize(
    ("kind", "workers"), [("PairedDenoisingDataset", 0), ("PairedImageDataset", 0), ("PairedImageDataset", 1)]
)
def test_pairs_smaller_than_the_crop(recipe, refuse, kind, workers):
    make_pairs(recipe, kind)
    recipe["datasets"]["train"].update(gt_size=48, num_worker_per_gpu=workers)
    message = refuse(recipe)
    assert "48" in message and "(40, 44)" in message


def test_pictures_smaller_than_the_crop_are_named(recipe, refuse):
    recipe["datasets"]["train"]["gt_size"] = 41
    message = refuse(recipe)
    assert "6 of 6 pictures are smaller than the patch, 41x41: 0.png (40, 44), 1.png (40, 44)" in message


def test_a_damaged_picture_in_a_folder(recipe, refuse):
    for path in Path("train").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert "train/" in refuse(recipe)


@pytest.mark.parametrize("is_listed", [True, False])
def test_pictures_of_a_validation_set_are_looked_at_before_the_run(recipe, refuse, is_listed):
    if is_listed:
        Path("list.txt").write_text("0.png\ngone.png\n")
        recipe["datasets"]["val"]["meta_info_file"] = "list.txt"
        assert "datasets.val: val/gone.png: cannot be read (No such file or directory)." in refuse(recipe)
    else:
        Path("val/1.png").write_bytes(b"no picture")
        assert "val/1.png: not a picture that can be read" in refuse(recipe)


def test_a_folder_without_pictures(recipe, refuse):
    Path("empty").mkdir()
    recipe["datasets"]["val"]["dataroot_gt"] = "empty"
    assert "datasets.val: empty: no pictures there" in refuse(recipe)


def test_bad_data_of_a_test(recipe, refuse):
    recipe["datasets"].pop("train")
    recipe["path"] = {"pretrain_network_g": save_network(8)}
    for path in Path("val").iterdir():
        path.write_bytes(b"")
    assert "val/0.png" in refuse(recipe, "test")
    recipe["datasets"]["val"] = {
        "name": "val", "type": "PairedDenoisingDataset", "color": "gray", "dataroot_gt": "train", "dataroot_lq": "val",
    }  # fmt: skip
    assert "val: pictures without a partner: 4 in train (2.png, 3.png, 4.png, 5.png), 0 in val" in refuse(
        recipe, "test"
    )
    recipe["datasets"]["val"].update(type="PairedImageDataset", color="y")
    message = refuse(recipe, "test")
    assert "datasets.val: PairedImageDataset says: " in message and "different number of images: 2, 6" in message
    Path("empty").mkdir()
    recipe["datasets"]["test_2"] = {
        "name": "none",
        "type": "SingleImageDataset",
        "dataroot_lq": "empty",
        "color": "y",
    }
    assert "datasets.test_2: SingleImageDataset finds no pictures." in refuse(recipe, "test")
    del recipe["datasets"]["test_2"]
    make_pictures(Path("small"), 2, (20, 20))
    recipe["datasets"]["val"].update(type="PairedImageDataset", dataroot_gt="small", dataroot_lq="train", color="y")
    for i in range(2, 6):
        Path(f"train/{i}.png").unlink()
    message = refuse(recipe, "test")
    assert "train/0.png" in message and "(1, 40, 44)" in message and "(1, 20, 20)" in message


# --- bad input: places to write ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["experiments", "tb_logger", "experiments/tiny"])
def test_folders_that_are_files(recipe, refuse, folder):
    Path(folder).parent.mkdir(exist_ok=True)
    Path(folder).write_text("a file")
    message = refuse(recipe)
    assert "cannot be written to" in message and f"{folder} is a file" in message


# --- help, list, doctor -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, capsys):
    assert run_cli(*verb.split(), "--help") == 0
    text = capsys.readouterr().out
    assert "example" in text and f"\n  basicsr {verb}" in text


@pytest.mark.parametrize("words", ["--help", "train -opt missing.yml", "compare -opt missing.yml"])
def test_help_and_a_missing_option_file_do_not_wait_for_torch(words):
    code = (
        "import sys; from hranet_arch.cli import main\ntry: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *words.split()]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout.endswith("False\n")
    assert result.stdout.startswith("usage: basicsr") or "missing.yml: cannot be read" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["trian"],
        ["test", "-opt", "x.yml", "--auto_resume"],
        ["prepare"],
        ["list", "colours"],
        ["--verbose"],
        [],
    ],
    ids=" ".join,
)
def test_words_that_are_no_command(words, capsys):
    assert run_cli(*words) == 2
    assert capsys.readouterr().err.startswith("usage: basicsr")


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "hranet_arch", "train", "-opt", "missing.yml"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "basicsr: missing.yml: cannot be read: No such file or directory.\n"


def test_a_current_folder_that_is_gone_is_told_of(tmp_path):
    code = (
        "import os, sys; from hranet_arch.cli import main\nos.chdir(sys.argv[1]), os.rmdir(sys.argv[1]), main(['list'])"
    )
    command = [sys.executable, "-c", code, tmp_path]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "basicsr: The current folder has been deleted; go to another one by cd.\n"


def test_names_that_the_terminal_cannot_show_end_nothing(monkeypatch):
    from hranet_arch import doctor

    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "utf-8", errors="strict"))
    monkeypatch.setattr(doctor, "examine", lambda: print("日本 \udcff.png", flush=True))
    assert run_cli("doctor") == 0
    assert buffer.getvalue().split() == ["日本".encode(), b"\\udcff.png"]


@pytest.mark.parametrize("error", [URLError("no such host"), ConnectionResetError("no such host"), TimeoutError("no")])
def test_a_download_that_fails_gets_a_line(error, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr(cli, "_doctor", fail)
    assert run_cli("doctor") == 1
    line = capsys.readouterr().err
    assert line.startswith("basicsr: a connection failed: ") and "no" in line and "its VGG's weights" in line


def test_memory_that_runs_out_gets_a_line(monkeypatch, capsys):
    def fail(arguments):
        raise MemoryError

    monkeypatch.setattr(cli, "_doctor", fail)
    assert run_cli("doctor") == 1
    assert capsys.readouterr().err.startswith("basicsr: not enough memory.")


def test_a_full_disk_is_no_fault_of_ours(monkeypatch, capsys):
    """A write tells no file's name, as ``flush`` does."""

    def fail(arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "_doctor", fail)
    assert run_cli("doctor") == 2
    assert capsys.readouterr().err == "basicsr: the disk: No space left on device.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_gets_a_line():
    """What Python holds back until the end would otherwise be missed after the last line that could say so."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "hranet_arch", "list", "arch"], stdout=full, stderr=subprocess.PIPE
        )
    assert ended.returncode == 2
    assert ended.stderr.decode().splitlines()[-1] == "basicsr: the disk: No space left on device."


def test_a_command_without_an_output_is_none_the_worse(monkeypatch):
    """Of a process whose output is closed (``>&-``) Python's ``sys.stdout`` is None."""
    monkeypatch.setattr(sys, "stdout", None)
    assert run_cli("list", "metric") == 0


@pytest.mark.parametrize("port", ["80000", "-1", "x"])
def test_a_port_that_there_is_not_is_refused(port, capsys):
    status = run_cli("demo", f"--port={port}")
    assert status == 2 and f"'{port}' is no port: 0 to 65535" in capsys.readouterr().err


def test_every_kind_that_is_listed_can_be_asked_for(capsys):
    kinds = [line[:-1] for line in listed(capsys).splitlines() if not line.startswith(" ")]
    assert "degradation" in kinds
    assert "".join(listed(capsys, kind) for kind in kinds) == listed(capsys)


def test_released_weights_are_listed_with_what_they_are_for(capsys):
    lines = listed(capsys, "weights").splitlines()
    assert "  hranet_gray_s25: for grey pictures with white Gaussian noise of sigma 25 (grey levels)" in lines
    assert "  hranet_s_x4: enlarges colour pictures 4 times that MATLAB's bicubic `imresize` made small" in lines
    assert len(lines) == 1 + len(list((REPOSITORY / "hranet_arch" / "weights").glob("*.safetensors")))


def listed(capsys, *words):
    assert run_cli("list", *words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--arch", "HRANet"), ("1,172,641", "1,155,148 MACs for each pixel", "at 1 x 256 x 256")),
        (
            ("--arch", "HRANet", "--force_yml", "network_g:num_feat=32", "--size", "64x64"),
            ("296,337", "at 1 x 64 x 64"),
        ),
        (
            ("-opt", str(REPOSITORY / "options/cbsd432/train_hranet_color_s25.yml"), "--depth", "1"),
            ("at 3 x 256 x 256",),
        ),
        (("--arch", "HRANet", "--force_yml", "datasets=[a]"), ("at 1 x 256 x 256",)),
        (("--arch", "HRANet", "--force_yml", "datasets={train: {color: [gray]}}"), ("at 1 x 256 x 256",)),
    ],
)
def test_profile(capsys, flags, expected):
    status = run_cli("profile", *flags)
    output = capsys.readouterr().out
    assert status == 0 and all(text in output for text in expected), output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--arch", "HRANt"), "there is no arch 'HRANt'. Did you mean 'HRANet'?"),
        (("--arch", "HRANet", "--force_yml", "datasets=[a]", "network_g:num_block=1"), "num_block=1 is not allowed"),
        (("--arch", "HRANet", "--force_yml", "network_g:num_fea=8"), "Did you mean 'num_feat'?"),
        (("--arch", "HRANet", "--force_yml", "network_g:num_block=1"), "num_block=1 is not allowed"),
        (("--arch", "HRANet", "--size", "12"), "'12' is not HEIGHTxWIDTH"),
        (("--arch", "HRANet", "--depth", "-1"), "'-1' is no number of names: 1 or more"),
        (("--arch", ""), "there is no arch ''"),
        (("--arch", "HRANet", "--force_yml", "network_g=3"), "--force_yml: network_g: is missing, or names no type"),
        (("--arch", "HRANet", "--force_yml", "network_g:type=5"), "--force_yml: network_g: is missing"),
        (("--arch", "EDVR", "--size", "16x16"), "EDVR does not take one picture of 3 x 16 x 16"),
    ],
)
def test_profile_names_what_it_cannot_use(capsys, flags, message):
    status = run_cli("profile", *flags)
    assert status == 2 and message in capsys.readouterr().err


def test_list(capsys):
    everything = listed(capsys)
    for name in (
        "HRANet", "SwinIR", "DenoisingModel", "SRModel", "GaussianDenoisingDataset", "PairedImageDataset", "MSELoss",
        "calculate_psnr", "Adam", "MultiStepLR",
    ):  # fmt: skip
        assert f"\n  {name}" in everything
    architectures = listed(capsys, "arch")
    assert "  HRANet  (hranet_arch.hranet)\n" in architectures and "  RIDNet\n" in architectures
    assert "SRModel" not in architectures


def test_doctor(capsys, monkeypatch):
    status = run_cli("doctor")
    text = capsys.readouterr().out
    assert status == 0 and "All is well." in text
    assert "average_ema_with_buffers" in text and f"torch           {importlib.metadata.version('torch')}" in text
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")  # tensorboard and tb-nightly side by side
    status = run_cli("doctor")
    text = capsys.readouterr().out
    assert status == 1 and "PROBLEM: tensorboard and tb-nightly" in text


# --- plug-ins ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An installed package with four entry points: one that registers a network, and three that fail."""
    package = tmp_path / "site"
    (package / "restoration_zoo-1.0.dist-info").mkdir(parents=True)
    (package / "restoration_zoo-1.0.dist-info" / "METADATA").write_text("Name: restoration-zoo\nVersion: 1.0\n")
    (package / "restoration_zoo-1.0.dist-info" / "entry_points.txt").write_text(
        "[basicsr.plugins]\nzoo = restoration_zoo\nbroken = restoration_zoo.broken\ngone = not_installed\n"
        "leaving = restoration_zoo.leaving\n"
    )
    (package / "restoration_zoo").mkdir()
    (package / "restoration_zoo" / "__init__.py").write_text(
        "import torch\nfrom basicsr.utils.registry import ARCH_REGISTRY\n\n"
        "@ARCH_REGISTRY.register()\nclass ZooNet(torch.nn.Conv2d):\n"
        "    def __init__(self, width):\n        super().__init__(1, 1, width, padding='same')\n"
    )
    (package / "restoration_zoo" / "broken.py").write_text("raise RuntimeError('no zoo today')\n")
    (package / "restoration_zoo" / "leaving.py").write_text("import sys\nsys.exit('goodbye')\n")
    monkeypatch.syspath_prepend(package)
    registration.load_plugins.cache_clear()
    yield
    registration.load_plugins.cache_clear()
    from basicsr.utils.registry import ARCH_REGISTRY

    ARCH_REGISTRY._obj_map.pop("ZooNet", None)
    for name in [name for name in sys.modules if name.startswith("restoration_zoo")]:
        del sys.modules[name]


def test_plug_ins(plugins, recipe, run, refuse, capfd):
    assert "  ZooNet  (restoration_zoo)\n" in listed(capfd, "arch")
    states = registration.load_plugins()
    assert states["zoo"] == "loaded" and states["broken"] == "RuntimeError: no zoo today"
    assert states["gone"].startswith("ModuleNotFoundError: ") and states["leaving"] == "SystemExit: goodbye"
    assert run_cli("doctor") == 1
    assert "PROBLEM: plug-in broken: RuntimeError: no zoo today" in capfd.readouterr().out
    assert "network_g.width: is missing; ZooNet needs it." in refuse({**recipe, "network_g": {"type": "ZooNet"}})
    assert run("train", {**recipe, "name": "zoo", "network_g": {"type": "ZooNet", "width": 3}}) == 0
    assert Path("experiments/zoo/models/net_g_latest.pth").is_file()


def test_a_broken_plug_in_is_named_once(plugins, capsys):
    run_cli("list")
    warnings = capsys.readouterr().err
    assert warnings.count("Plug-in 'broken' (restoration_zoo.broken) is skipped: no zoo today") == 1


def test_yaml_of_the_recipe_is_plain(recipe):
    """The tests above write options with ``yaml.safe_dump``: what they refuse is not the way of writing."""
    assert yaml.safe_load(yaml.safe_dump(recipe)) == recipe
