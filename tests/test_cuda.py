"""What only a GPU shows: that it computes what the CPU does, and that a step does not wait for it."""

import copy
import math
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch

from hranet_arch import arithmetic, pipeline, registration  # noqa: F401
from hranet_arch.datasets import GaussianDenoisingDataset
from hranet_arch.device_batches import DeviceLoader, PictureBank, draw_batch, load_pictures
from hranet_arch.errors import TrainingError
from hranet_arch.hranet import HRANet
from hranet_arch.model import DenoisingModel
from tests.conftest import load_network, make_pictures, run_cli

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # Of torch's own code, where torch.compile runs it: in 2.11 an import of its own, and how Dynamo makes an
    # autograd.Function. Outside of pytest nobody makes errors of them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
GPU = torch.device("cuda")


def make_model(num_gpu, **train):
    torch.manual_seed(0)
    options = {
        "num_gpu": num_gpu, "is_train": True, "dist": False, "rank": 0, "scale": 1, "name": "model",
        "network_g": {"type": "HRANet", "num_feat": 8},
        "path": {"models": ".", "training_states": "."},
        "train": {"total_iter": 10, "ema_decay": 0.9, "scheduler": {"type": "MultiStepLR", "milestones": [100]},
                  **copy.deepcopy(train)},
        "val": {},
        "logger": {"print_freq": 100},
    }  # fmt: skip
    return DenoisingModel(options)


def make_batches(count):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(count, 4, 1, 16, 16, generator=generator)
    return [{"lq": one + 0.1 * torch.randn(one.shape, generator=generator), "gt": one} for one in clean]


@pytest.mark.parametrize("size", [(48, 48), (21, 34), (1, 1)])
def test_a_network_computes_what_it_computes_on_the_cpu(size):
    torch.manual_seed(0)
    network = HRANet(num_feat=16).eval()
    x = torch.rand(2, 1, *size)
    with torch.inference_mode(), arithmetic.full_float32(GPU):
        expected, actual = network(x), network.to(GPU)(x.to(GPU)).cpu()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_the_device_is_asked_often_enough_to_stop_in_time():
    """At the latest when as many iterations may be lost as end a run; RMSprop's step asks whether it is lost."""
    assert make_model(1, optim_g={"type": "Adam", "lr": 1e-3}).read_every == 100
    assert make_model(1, optim_g={"type": "Adam", "lr": 1e-3}, max_skipped=3).read_every == 3
    assert make_model(1, optim_g={"type": "RMSprop", "lr": 1e-3}).read_every == 1


def test_a_batch_copied_ahead_is_not_overwritten_before_it_is_used():
    """Python lets go of each batch while the GPU, kept busy, has not begun to read it."""
    from basicsr.data.prefetch_dataloader import CUDAPrefetcher

    batches = [{"lq": torch.full((1 << 20,), float(i)).pin_memory()} for i in range(20)]
    prefetcher, sums = CUDAPrefetcher(batches, {"num_gpu": 1}), []
    while (batch := prefetcher.next()) is not None:
        torch.cuda._sleep(20_000_000)
        sums.append(batch["lq"].mean())
    assert [float(value) for value in sums] == list(range(20))


@pytest.mark.parametrize("optimizer", ["Adam", "MuonAdam"])
def test_training_steps_are_those_of_the_cpu(optimizer):
    options = {"optim_g": {"type": optimizer, "lr": 1e-3}, "grad_clip": 0.05}
    on_cpu, on_gpu = make_model(0, **options), make_model(1, **options)
    with arithmetic.full_float32(GPU):
        for iteration, batch in enumerate(make_batches(3), 1):
            for model in (on_cpu, on_gpu):
                model.feed_data(batch)
                model.optimize_parameters(iteration)
    for net in ("net_g", "net_g_ema"):
        expected, actual = (getattr(model, net).state_dict() for model in (on_cpu, on_gpu))
        for name in expected:
            torch.testing.assert_close(actual[name].cpu(), expected[name], rtol=1e-2, atol=2e-5, msg=name)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "MuonAdam"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_waits_for_nothing(optimizer, precision):
    """CUDA itself refuses to be waited for. Losses that are lost change nothing."""
    model = make_model(1, optim_g={"type": optimizer, "lr": 1e-3}, grad_clip=0.05, precision=precision)
    batches = [{key: value.to(GPU) for key, value in batch.items()} for batch in make_batches(4)]
    model.feed_data(batches[0])
    model.optimize_parameters(1)
    model.get_current_log()
    before = copy.deepcopy(model.net_g.state_dict())
    for iteration, batch in enumerate(batches[1:3], 2):
        model.feed_data({**batch, "lq": batch["lq"] * math.nan})
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.optimize_parameters(iteration)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(value, before[name]) for name, value in model.net_g.state_dict().items())
    assert model.extra_training_state()["skipped"] == 2


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "MuonAdam"])
def test_recorded_steps_are_those_that_python_starts(optimizer, monkeypatch):
    """With a rate that changes, batches that do, and one that is lost; nothing waits. Then one of another size."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: None)
    monkeypatch.setattr("hranet_arch.model.find_compile_fault", lambda device: None)
    options = {"optim_g": {"type": optimizer, "lr": 1e-3}, "grad_clip": 0.05}
    plain, recorded = make_model(1, **options), make_model(1, compile=True, **options)
    batches = [{key: value.to(GPU) for key, value in batch.items()} for batch in make_batches(9)]
    batches[6]["lq"] *= math.nan
    batches[8] = {key: value[:2] for key, value in batches[8].items()}
    losses = []
    with arithmetic.full_float32(GPU):
        for iteration, batch in enumerate(batches, 1):
            for model in (plain, recorded):
                model.update_learning_rate(iteration, warmup_iter=10)
                model.feed_data(batch)
                torch.cuda.set_sync_debug_mode("error" if 4 < iteration < 9 else "default")
                try:
                    model.optimize_parameters(iteration)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                losses.append(model.unread[1]["l_pix"])
    assert recorded.graph.graph is not None and plain.graph is None
    assert recorded.extra_training_state()["skipped"] == 1
    torch.testing.assert_close(losses[1::2], losses[::2], rtol=1e-3, atol=0, equal_nan=True)
    for net in ("net_g", "net_g_ema"):
        expected, actual = (getattr(model, net).state_dict() for model in (plain, recorded))
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-2, atol=2e-5, msg=name)


def test_a_step_that_cannot_be_recorded_ends_the_run(monkeypatch):
    """A loss that waits for the GPU."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: None)
    monkeypatch.setattr("hranet_arch.model.find_compile_fault", lambda device: None)
    model = make_model(1, optim_g={"type": "Adam", "lr": 1e-3}, compile=True)
    inner = model.cri_pix
    model.cri_pix = lambda output, gt: inner(output, gt) * (1 + 0 * output.mean().item())
    batches = make_batches(4)
    for iteration, batch in enumerate(batches, 1):
        model.feed_data(batch)
        with pytest.raises(TrainingError, match="stream is capturing") if iteration == 4 else nullcontext():
            model.optimize_parameters(iteration)


def test_batches_drawn_there_are_crops_with_noise(tmp_path):
    """Without noise a batch is the pictures' own pixels; with it, its strength is right to 2 %."""
    options = {"name": "set", "phase": "train", "color": "gray", "gt_size": 32, "sigma": 25}
    dataset = GaussianDenoisingDataset({**options, "dataroot_gt": str(make_pictures(tmp_path / "p", 2))})
    bank = PictureBank(load_pictures(dataset.store), GPU)
    batch = draw_batch(bank, torch.zeros(64, dtype=torch.int64, device=GPU), dataset.opt, torch.Generator(GPU))
    noise = (batch["lq"] - batch["gt"]) * 255
    assert noise.std().item() == pytest.approx(25, rel=0.02) and abs(noise.mean().item()) < 0.5
    levels = set(np.unique(dataset.store.decode(dataset.store.keys[0])))
    assert set((batch["gt"] * 255).round().unique().tolist()) <= levels


def test_batches_made_ahead_are_those_made_in_turn(tmp_path):
    """Python lets go of each batch while the GPU, kept busy, has not begun to read it; nothing waits."""
    options = {"name": "set", "phase": "train", "color": "gray", "gt_size": 32, "sigma": [0, 55]}
    dataset = GaussianDenoisingDataset({**options, "dataroot_gt": str(make_pictures(tmp_path / "p", 2))})
    loader = DeviceLoader(dataset, pipeline.ResumableSampler(dataset, 1, 0, 160, 0), 16, GPU)
    expected = [batch["lq"].clone() for batch in loader.draw_batches()]
    batches, seen = iter(loader), []
    for _ in expected:
        torch.cuda.set_sync_debug_mode("error" if seen else "default")  # the pictures' places are sent at first
        try:
            batch = next(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda._sleep(20_000_000)
        seen.append(batch["lq"].clone())
    assert len(expected) == 20 and next(batches, None) is None
    assert all(map(torch.equal, seen, expected))


@pytest.mark.slow
@pytest.mark.parametrize("compile_mode", [False, True])
def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(recipe, run, compile_mode):
    recipe |= {"num_gpu": 1}
    recipe["datasets"]["train"]["degrade_on"] = "device"
    recipe["train"] |= {"precision": "bf16", "channels_last": True, "compile": compile_mode}
    flags = [] if compile_mode else ["train:optim_g:type=MuonAdam"]
    assert run("train", recipe, "--force_yml", "name=whole", *flags) == 0
    assert run("train", recipe, "--force_yml", "train:total_iter=4", *flags) == 0
    assert run("train", recipe, "--auto_resume", *(["--force_yml", *flags] if flags else [])) == 0
    whole, resumed = (load_network(f"experiments/{name}/models/net_g_8.pth") for name in ("whole", "tiny"))
    for name in whole:  # sums of gradients have no fixed order there
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=2e-3, msg=name)


def test_a_picture_is_denoised_as_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "in", 1, size=(60, 70))
    for device in ("cpu", "cuda"):
        assert run_cli("denoise", "in", "--output", device, "--sigma", "25", "--device", device) == 0
    pictures = [cv2.imread(str(tmp_path / device / "0.png")).astype(int) for device in ("cpu", "cuda")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
