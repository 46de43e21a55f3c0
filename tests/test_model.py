"""The model classes: the training step against hand-made ones, the guards, validation, what a checkpoint holds."""

import copy
import json
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hranet_arch import arithmetic, checkpoints, registration, validation
from hranet_arch import model as model_module
from hranet_arch.errors import Interrupted, TrainingError
from hranet_arch.hranet import LayerNorm2d
from hranet_arch.model import DenoisingModel, find_compile_fault, get_root_logger
from tests.conftest import load_network, make_pictures


class ScaleNet(torch.nn.Module):
    """One number: the output is ``weight * x``. Gradients can be worked out by hand."""

    def __init__(self, value: float = 0.5) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(value))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += x.detach().mean()
        return self.weight * x


class ConvNet(torch.nn.Conv2d):
    """One convolution, of a weight that has two memory formats."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)


class NormNet(torch.nn.Sequential):
    """A layer norm of what a convolution gives, which autocast makes of 16 bits."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(1, 8, 1), LayerNorm2d(8))


NETWORKS = (ScaleNet, ConvNet, NormNet)


@pytest.fixture(autouse=True, scope="module")
def registered():
    for network in NETWORKS:
        registration.ARCH_REGISTRY.register(network)
    yield
    for network in NETWORKS:
        del registration.ARCH_REGISTRY._obj_map[network.__name__]


def make_model(cls=DenoisingModel, network_g=None, **train):
    options = {
        "num_gpu": 0, "is_train": True, "dist": False, "rank": 0, "scale": 1, "name": "model",
        "network_g": network_g or {"type": "ScaleNet"},
        "path": {"models": ".", "training_states": "."},
        "train": {"total_iter": 10, "optim_g": {"type": "SGD", "lr": 1.0},
                  "scheduler": {"type": "MultiStepLR", "milestones": [100]}, **copy.deepcopy(train)},
        "val": {},
    }  # fmt: skip
    return cls(options)


def step(model, lq, gt, iteration=1):
    model.feed_data({"lq": lq, "gt": gt})
    model.optimize_parameters(iteration)
    return model.net_g.weight.item()


def test_the_loss_of_a_denoiser_is_the_mean_squared_error():
    """(0.5 * 2 - 3)^2 = 4; its derivative by the weight is 2 * (0.5 * 2 - 3) * 2 = -8, so SGD at rate 1 goes to 8.5."""
    model = make_model()
    assert step(model, torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0)) == pytest.approx(8.5)
    assert model.log_dict["l_pix"] == pytest.approx(4.0)
    assert model.log_dict["learning_rate"] == 1.0


def test_another_registered_loss_can_be_named():
    """|0.5 * 2 - 3| = 2; its derivative by the weight is -2."""
    model = make_model(pixel_opt={"type": "L1Loss"})
    assert step(model, torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0)) == pytest.approx(2.5)


@pytest.mark.parametrize("accumulate", (1, 2))
def test_a_teacher_s_results_are_learnt_in_the_place_of_clean_pictures(monkeypatch, accumulate):
    """Of 2 it makes 3 * 2 = 6: (0.5 * 2 - 6)^2 = 25, its derivative is 2 * (0.5 * 2 - 6) * 2 = -20, so 20.5."""
    teacher = ScaleNet(3.0).eval().requires_grad_(False)
    released = {"hranet_gray_s25": SimpleNamespace(module=teacher)}
    monkeypatch.setattr(model_module, "load_network", released.__getitem__)
    model = make_model(teacher="hranet_gray_s25", accumulate=accumulate)
    assert step(model, torch.full((2, 1, 2, 2), 2.0), torch.full((2, 1, 2, 2), 99.0)) == pytest.approx(20.5)
    assert model.log_dict["l_pix"] == pytest.approx(25.0)
    assert (teacher.weight.item(), teacher.seen.item()) == (3.0, 0.0)


def test_a_teacher_that_must_be_told_the_noise_is_told_each_sample_s(monkeypatch):
    class ToldNet(ScaleNet):
        def forward(self, x, sigma):
            return x * sigma.view(-1, 1, 1, 1)

    monkeypatch.setattr(model_module, "load_network", lambda name: SimpleNamespace(module=ToldNet()))
    model = make_model(teacher="ffdnet.pth", accumulate=2)
    x = torch.ones(2, 1, 2, 2)
    model.feed_data({"lq": x, "gt": x, "sigma": torch.tensor([10.0, 30.0])})
    model.optimize_parameters(1)
    assert model.log_dict["l_pix"] == pytest.approx(((10 - 0.5) ** 2 + (30 - 0.5) ** 2) / 2)


def test_a_perceptual_loss_without_style_is_one_loss():
    model = make_model()
    model.cri_perceptual = lambda output, gt: ((output - gt).abs().mean(), None)
    step(model, torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0))
    assert list(model.log_dict) == ["l_pix", "l_percep", "learning_rate"]
    assert model.log_dict["l_percep"] == pytest.approx(2)


def test_lines_of_the_log_stand_above_the_bar_at_a_terminal(monkeypatch, capsys):
    """From the first step to the last the console's handlers are tqdm's; the bar is gone at the end."""
    logger = get_root_logger()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logger, "handlers", [console])
    model = make_model(total_iter=2, optim_g={"type": "SGD", "lr": 0.0})
    data = torch.ones(1, 1, 2, 2)
    step(model, data, data)
    assert console not in logger.handlers
    logger.warning("a line")
    step(model, data, data, iteration=2)
    assert logger.handlers == [console]
    assert "\ra line" in capsys.readouterr().err.replace(" ", "").replace("aline", "a line")


def test_the_gradient_norm_is_clipped():
    model = make_model(grad_clip=0.25)
    assert step(model, torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0)) == pytest.approx(0.75)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_gradient_of_a_layer_norm_is_a_sum_in_fp32(precision, any_precision):
    """Of 64 patches PyTorch's own sum in bf16 has next to nothing of the bias's gradient; the sums of rounded values in
    fp32 differ by far less. fp16's gradients are scaled, and unscaled before they are compared."""
    torch.manual_seed(0)
    lq, gt = torch.rand(64, 1, 48, 48), torch.rand(64, 8, 48, 48)
    models = {}
    for name in ("fp32", precision):
        torch.manual_seed(1)
        models[name] = make_model(network_g={"type": "NormNet"}, precision=name, optim_g={"type": "Adam", "lr": 0.0})
        models[name].feed_data({"lq": lq, "gt": gt})
        models[name].optimize_parameters(1)
    for parameter in ("weight", "bias"):
        exact, ours = (getattr(model.net_g[1], parameter).grad for model in models.values())
        assert (ours - exact).norm() < 0.02 * exact.norm()


def test_behind_a_layer_norm_the_type_is_that_of_before_it(any_precision):
    net = make_model(network_g={"type": "NormNet"}, precision="bf16").net_g
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.rand(1, 1, 4, 4)).dtype is torch.bfloat16
    assert net(torch.rand(1, 1, 4, 4)).dtype is torch.float32  # in validation


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_batch_in_parts_steps_like_the_whole(parts):
    torch.manual_seed(0)
    lq, gt = torch.rand(5, 1, 4, 4), torch.rand(5, 1, 4, 4)
    whole, cut = make_model(), make_model(accumulate=parts)
    assert step(cut, lq, gt) == pytest.approx(step(whole, lq, gt), abs=1e-6)
    assert cut.log_dict["l_pix"] == pytest.approx(whole.log_dict["l_pix"], abs=1e-6)


def test_a_loss_that_is_not_finite_changes_nothing():
    model = make_model(ema_decay=0.5)
    before = copy.deepcopy((model.net_g.state_dict(), model.net_g_ema.state_dict()))
    step(model, torch.full((1, 1, 2, 2), math.nan), torch.zeros(1, 1, 2, 2))
    for old, net in zip(before, (model.net_g, model.net_g_ema)):
        assert all(torch.equal(old[name], value) for name, value in net.state_dict().items())
    assert model.log_dict["skipped"] == 1
    assert math.isfinite(step(model, torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 2))
    assert model.skipped_in_a_row == 0 and model.skipped == 1


def test_too_many_of_them_end_the_run(tmp_path):
    """Iterations 7, 8 and 9 are lost: those of 6 and later are the weights that have no loss."""
    model = make_model(max_skipped=3)
    model.opt["path"]["training_states"] = str(tmp_path)
    for name in (2, 5, 6, 7, "x"):
        (tmp_path / f"{name}.state").touch()
    poison = torch.full((1, 1, 2, 2), math.inf)
    for iteration in (7, 8):
        step(model, poison, torch.zeros(1, 1, 2, 2), iteration)
    with pytest.raises(TrainingError, match="3 iterations in a row, up to 9.*resume_state=.*5.state"):
        step(model, poison, torch.zeros(1, 1, 2, 2), 9)
    for name in (2, 5):
        (tmp_path / f"{name}.state").unlink()
    assert "begin anew: no checkpoint is from before" in model._advise_start(9)
    for name in (3, 4):
        (tmp_path / f"{name}.state").touch()
    assert "4.state" in model._advise_start(9)
    model.overflows.fill_(5)  # of fp16's gradients, before iterations are lost: since the 5th
    assert "3.state" in model._advise_start(9)


def test_an_average_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model(ema_decay=0.5)
    model.net_g_ema.weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="not finite"):
        model._save_networks("best")
    assert not list(tmp_path.iterdir())


class RefuseWaiting(TorchDispatchMode):
    """Fails where a value of a tensor is asked for: on a GPU, the place where the step would wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        return func(*args, **(kwargs or {}))


ADAM = {"type": "Adam", "lr": 0.1}
POISON = torch.full((1, 1, 2, 2), math.nan)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "MuonAdam"])
@pytest.mark.parametrize("train", [{}, {"grad_clip": 0.1, "accumulate": 1}])
def test_a_step_waits_for_nothing(train, optimizer):
    """As on a GPU, where the log is read later; a lost step in between changes nothing, whichever optimiser."""
    train = {**train, "optim_g": {**ADAM, "type": optimizer}}
    model, healthy = make_model(ema_decay=0.9, **train), make_model(ema_decay=0.9, **train)
    model.read_every = 100
    model._list_tensors()  # waits, once for a network
    clean = torch.ones(1, 1, 2, 2)
    for i, lq in enumerate([clean, POISON, clean * 2, POISON]):
        model.feed_data({"lq": lq, "gt": clean})
        with RefuseWaiting():
            model.optimize_parameters(5)
        if i % 2 == 0:
            step(healthy, lq, clean, iteration=5)
    for net in ("net_g", "net_g_ema"):
        values, expected = (getattr(m, net).state_dict() for m in (model, healthy))
        assert all(torch.equal(values[name], expected[name]) for name in expected)
    state, expected = (m.optimizer_g.state_dict()["state"] for m in (model, healthy))
    assert str(state) == str(expected)  # moments and number of steps
    assert model.skipped == 0  # not read yet
    assert model.extra_training_state()["skipped"] == 2
    assert model.get_current_log() == {"skipped": 2, "learning_rate": ADAM["lr"]}
    assert (model.skipped, model.skipped_in_a_row) == (2, 1)


def test_a_log_read_late_has_the_last_losses_and_ends_a_lost_run():
    model = make_model(max_skipped=2)
    model.read_every = 100
    step(model, torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0))
    assert model.get_current_log()["l_pix"] == pytest.approx(4.0)
    for iteration in (2, 3):
        step(model, POISON, torch.zeros(1, 1, 2, 2), iteration)
    with pytest.raises(TrainingError, match="2 iterations in a row, up to 3"):
        model.get_current_log()


@pytest.mark.parametrize(
    ("options", "is_fused"), [({}, True), ({"foreach": True}, None), ({"fused": False}, False), (None, None)]
)
def test_optimisers_are_fused_where_they_can_be(options, is_fused):
    """And step alike. torch has no fused RMSprop: that one is asked whether the loss is finite before each step."""
    options = {"type": "RMSprop", "lr": 0.1} if options is None else {**ADAM, **options}
    model = make_model(optim_g=options)
    assert model.optimizer_g.defaults.get("fused") is is_fused
    reference = ScaleNet()
    optimizer = getattr(torch.optim, options["type"])(reference.parameters(), lr=0.1)
    for i, lq in enumerate([torch.ones(1, 1, 2, 2), POISON, torch.ones(1, 1, 2, 2) * 2]):
        weight = step(model, lq, torch.ones(1, 1, 2, 2), i + 1)
        if i != 1:
            optimizer.zero_grad()
            (reference(lq) - 1).square().mean().backward()
            optimizer.step()
    assert weight == pytest.approx(reference.weight.item(), rel=1e-6)


def test_a_state_saved_by_an_optimiser_that_was_not_fused_is_resumed():
    first = make_model(optim_g={**ADAM, "fused": False})
    second = make_model(optim_g=ADAM)
    picture = torch.ones(1, 1, 2, 2)
    step(first, picture, picture)
    second.net_g.load_state_dict(first.net_g.state_dict())
    states = {"optimizers": [first.optimizer_g.state_dict()], "schedulers": [first.schedulers[0].state_dict()]}
    second.resume_training(copy.deepcopy({**states, "iter": 1}))
    assert second.optimizer_g.param_groups[0]["fused"] is True
    assert step(second, picture, picture, 2) == pytest.approx(step(first, picture, picture, 2), rel=1e-6)


def test_the_average_of_all_tensors_at_once_is_that_of_each():
    model = make_model(ema_decay=0.9)
    torch.manual_seed(0)
    for name in ("net_g", "net_g_ema"):
        setattr(model, name, torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3)))
        for value in getattr(model, name).state_dict().values():
            value.copy_(torch.rand(value.shape) * 10)
    values, before = (copy.deepcopy(getattr(model, name).state_dict()) for name in ("net_g", "net_g_ema"))
    model._list_tensors()
    model._average(torch.tensor(0.1))
    expected = {k: v if v.dtype == torch.int64 else 0.9 * before[k] + 0.1 * v for k, v in values.items()}
    for name, value in model.net_g_ema.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    model.model_ema(0)  # BasicSR's way to copy
    assert all(torch.equal(value, values[name]) for name, value in model.net_g_ema.state_dict().items())


def test_a_young_average_forgets_its_random_start():
    """After the first step the average has moved by 1 - 2/11 of the way, not by 1 - 0.999."""
    model = make_model(ema_decay=0.999)
    weight = step(model, torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0))
    assert model.net_g_ema.weight.item() == pytest.approx(0.5 + (1 - 2 / 11) * (weight - 0.5))
    step(model, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), iteration=100_000)
    assert model.net_g_ema.weight.item() == pytest.approx(0.5 + (1 - 2 / 11) * (weight - 0.5), rel=0.01)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_full_does(precision, any_precision):
    torch.manual_seed(0)
    lq = torch.rand(2, 1, 8, 8)
    half = make_model(precision=precision)
    full = make_model()
    half.net_g, full.net_g = torch.nn.Conv2d(1, 1, 3), torch.nn.Conv2d(1, 1, 3)
    full.net_g.load_state_dict(half.net_g.state_dict())
    assert half.scaler.is_enabled() is (precision == "fp16")
    # The scaler's first scales overflow on purpose; this one does not.
    half.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=half.scaler.is_enabled())
    for model in (half, full):
        model.optimizer_g = torch.optim.SGD(model.net_g.parameters(), lr=0.1)
        model.optimizers = [model.optimizer_g]
        model.feed_data({"lq": lq, "gt": torch.ones(2, 1, 6, 6)})
        model.optimize_parameters(1)
    torch.testing.assert_close(half.net_g.weight, full.net_g.weight, atol=5e-3, rtol=0)
    assert not torch.equal(half.net_g.weight, full.net_g.weight)


def test_losses_are_computed_in_full_precision(any_precision):
    model = make_model(precision="bf16")
    model.net_g, seen = torch.nn.Conv2d(1, 1, 1), []
    model.cri_pix = lambda output, gt: (seen.append(output.dtype), (output - gt).square().mean())[1]
    model.feed_data({"lq": torch.rand(1, 1, 8, 8), "gt": torch.rand(1, 1, 8, 8)})
    model.optimize_parameters(1)
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    "optim_g", [{"type": "SGD", "lr": 1.0}, {"type": "Adam", "lr": 0.1}, {"type": "RMSprop", "lr": 0.1}]
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_infinite_loss_of_finite_gradient_is_lost_too(precision, optim_g, any_precision):
    """L1 of an infinite target: its gradient is -2, whatever the distance."""
    model = make_model(precision=precision, pixel_opt={"type": "L1Loss"}, optim_g=optim_g)
    lq, gt = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), math.inf)
    assert step(model, lq, gt) == 0.5 and model.log_dict["skipped"] == 1


def test_the_scaler_of_fp16_is_undone_before_the_gradient_is_clipped(any_precision):
    model = make_model(precision="fp16", grad_clip=0.25)
    model.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    assert step(model, torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0)) == pytest.approx(0.75)


def test_overflows_of_fp16_lower_the_scale_and_count_only_where_that_does_not_help(any_precision):
    """The gradient's 8 overflows at a scale of 2 ** 127 and no more at 2 ** 124; NaN stays whatever the scale."""
    model = make_model(precision="fp16", max_skipped=3)
    model.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    lq, gt = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 3.0)
    values = [step(model, lq, gt, iteration) for iteration in range(1, 7)]
    assert values[0] == 0.5 != values[-1] and model.skipped == 0
    assert model.extra_training_state()["scaler"]["scale"] < 2.0**127

    model.net_g.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match="3 iterations in a row"):
        for iteration in range(7, 60):
            step(model, lq, gt, iteration)


def test_overflows_count_only_in_a_row(any_precision, monkeypatch):
    monkeypatch.setattr("hranet_arch.model.MOST_OVERFLOWS", 2)
    model = make_model(precision="fp16")
    factors = [math.nan, math.nan, 1, math.nan, math.nan, math.nan]
    model.net_g.weight.register_hook(lambda gradient: gradient * factors[iteration])
    lost = []
    for iteration in range(6):
        step(model, torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), iteration + 1)
        lost.append(model.skipped)
    assert lost == [0, 0, 0, 0, 0, 1]


def test_a_finite_loss_of_infinite_gradient_is_lost():
    model = make_model()
    model.net_g.weight.register_hook(lambda gradient: gradient * math.inf)
    assert step(model, torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)) == 0.5 and model.skipped == 1


def test_a_resume_knows_the_scale_and_what_was_skipped(any_precision):
    model = make_model(precision="fp16")
    step(model, torch.full((1, 1, 2, 2), math.nan), torch.zeros(1, 1, 2, 2))
    state = {"iter": 1, "optimizers": [model.optimizer_g.state_dict()], "optimizer_types": ["SGD"]}
    state |= {"schedulers": [model.schedulers[0].state_dict()], **model.extra_training_state()}
    resumed = make_model(precision="fp16")
    resumed.resume_training(copy.deepcopy(state))
    assert resumed.skipped == 1 and resumed.scaler.get_scale() == model.scaler.get_scale() == 2.0**15
    assert resumed.extra_training_state()["skipped"] == 1


def test_channels_last_reaches_network_and_data():
    model = make_model(channels_last=True)
    model.feed_data({"lq": torch.rand(2, 3, 4, 4), "gt": torch.rand(2, 3, 4, 4)})
    assert model.lq.is_contiguous(memory_format=torch.channels_last)
    model = make_model(channels_last=True, ema_decay=0.9, network_g={"type": "HRANet", "num_feat": 8})
    for net in (model.net_g, model.net_g_ema):
        weight = net.detail_enhancement[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_basicsrs_average_follows_a_network_in_channels_last():
    """A model of somebody's own calls ``model_ema`` in its step: (1 - 0.9) * 1 of each new weight is in the average."""
    model = make_model(channels_last=True, ema_decay=0.9, network_g={"type": "HRANet", "num_feat": 8})
    before = {name: value.clone() for name, value in model.net_g_ema.named_parameters()}
    with torch.no_grad():
        for value in model.net_g.parameters():
            value += 1
    model.model_ema(0.9)
    for name, value in model.net_g_ema.named_parameters():
        assert torch.allclose(value, before[name] + 0.1, atol=1e-6), name


def test_one_process_takes_as_many_gpus_as_it_was_given(monkeypatch):
    model, seen = make_model(), []
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", lambda self, net, device_ids: seen.append(device_ids))
    model.opt["num_gpu"] = 2
    model.model_to_device(model.net_g)
    assert seen == [[0, 1]]


def test_a_gpu_compiles_the_network_and_a_cpu_says_that_it_does_not(monkeypatch):
    calls, warnings = [], []
    monkeypatch.setattr(get_root_logger(), "warning", warnings.append)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: calls.append((type(self).__name__, mode)))
    model = make_model(compile=True)
    assert not calls and len(warnings) == 1 and warnings[0].startswith("compile: on a CPU")
    monkeypatch.setattr("hranet_arch.model.find_compile_fault", lambda device: None)  # as on a GPU
    monkeypatch.setattr("hranet_arch.model.StepGraph", lambda step, optimizer: "graph")
    adam = {"type": "Adam", "lr": 1.0}
    assert make_model(compile=True, optim_g=adam).graph == "graph"
    assert make_model(compile="max-autotune", optim_g=adam).graph is None
    assert calls == [("ScaleNet", "default"), ("ScaleNet", "max-autotune")]
    assert list(model.net_g.state_dict()) == ["weight", "seen"]
    model.net_g = torch.nn.DataParallel(model.net_g)  # whose copies would take the first one's compiled call along
    model._compile(True)
    assert len(calls) == 2 and "torchrun" in warnings[-1]


def test_only_steps_that_are_the_same_each_time_are_recorded():
    class Other(DenoisingModel):
        pass

    adam = {"type": "Adam", "lr": 1.0}
    assert make_model(optim_g=adam)._find_recording_fault() is None
    assert "SGD is asked" in make_model()._find_recording_fault()
    assert "what Other does" in make_model(Other, optim_g=adam)._find_recording_fault()
    model = make_model(optim_g=adam)
    model.scaler = torch.amp.GradScaler("cpu", enabled=True)
    assert "fp16" in model._find_recording_fault()
    model = make_model(optim_g=adam)
    model.opt["dist"] = True
    assert "several processes" in model._find_recording_fault()


@pytest.mark.parametrize(
    ("named", "there", "has_headers", "said"),
    [
        ("", "gcc", True, None), ("", "clang", True, None), ("nvc", "nvc", True, None),
        ("", "nvc", True, "no gcc and no clang"), ("nvc", "gcc", True, "no nvc"), ("", "gcc", False, "no Python.h"),
    ],
)  # fmt: skip
def test_what_compiling_for_a_gpu_lacks_is_said_before_the_first_step(
    named, there, has_headers, said, monkeypatch, tmp_path
):
    """Triton builds a C extension, with the compiler that CC names, where it names one."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr("shutil.which", lambda name: name == there)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", named)
    if has_headers:
        (tmp_path / "Python.h").touch()
    fault = find_compile_fault(torch.device("cuda"))
    assert fault is None if said is None else said in fault
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "capability 7.0" in find_compile_fault(torch.device("cuda"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Triton" in find_compile_fault(torch.device("cuda"))


def test_several_gpus_in_one_process_do_not_compute_in_bf16(monkeypatch):
    """The threads of DataParallel are told that autocast is on, and not its type: they would compute in fp16."""
    warnings = []
    monkeypatch.setattr(get_root_logger(), "warning", warnings.append)
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: True)
    model = make_model()
    assert [model._choose_precision(name) for name in ("bf16", "fp16")] == ["bf16", "fp16"]
    model.net_g = torch.nn.DataParallel(model.net_g)
    assert [model._choose_precision(name) for name in ("bf16", "fp16")] == ["fp32", "fp16"]
    assert len(warnings) == 1 and "torchrun" in warnings[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_momentum_begins_at_nothing_where_the_first_step_is_lost(precision, monkeypatch):
    """torch's fused SGD would begin it as whatever is in memory."""
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: True)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(1e3))
    model = make_model(optim_g={"type": "SGD", "lr": 0.1, "momentum": 0.9}, precision=precision)
    start = step(model, POISON, torch.ones(1, 1, 2, 2))
    weight = step(model, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 2)
    assert weight == pytest.approx(start - 0.1 * 2 * (start - 1), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["Adam", "MuonAdam"])
@pytest.mark.parametrize("was_last", [False, True])
def test_a_resume_may_change_the_memory_format(was_last, optimizer):
    """Fused optimisers pair weights and averages in the order of memory, which is another one then."""
    first, second = (
        make_model(network_g={"type": "ConvNet"}, optim_g={"type": optimizer, "lr": 0.1}, channels_last=is_last)
        for is_last in (was_last, not was_last)
    )
    lq, gt = torch.rand(2, 1, 4, 8, 8)

    def train(model, iteration):
        model.feed_data({"lq": lq, "gt": gt})
        model.optimize_parameters(iteration)

    train(first, 1)
    second.net_g.load_state_dict(first.net_g.state_dict())
    states = {"optimizers": [first.optimizer_g.state_dict()], "schedulers": [first.schedulers[0].state_dict()]}
    second.resume_training(copy.deepcopy({**states, "iter": 1}))
    train(first, 2)
    train(second, 2)
    torch.testing.assert_close(second.net_g.weight, first.net_g.weight, rtol=1e-4, atol=1e-4)


def test_a_network_that_takes_the_noise_level_is_told_each_samples():
    class Told(ScaleNet):
        def forward(self, x, sigma=None):
            return super().forward(x) * 0 + sigma.reshape(-1, 1, 1, 1)

    model = make_model(accumulate=2)
    model.net_g = Told()
    model.cri_pix = lambda output, gt: (output - gt).abs().max() + 0 * model.net_g.weight
    levels = torch.tensor([5.0, 7.0, 9.0])
    model.feed_data({"lq": torch.rand(3, 1, 2, 2), "gt": torch.zeros(3, 1, 2, 2), "sigma": levels})
    model.optimize_parameters(1)  # parts of two and one: their losses are 7 and 9
    assert model.log_dict["l_pix"] == pytest.approx((2 * 7 + 1 * 9) / 3)
    model.feed_data({"lq": torch.rand(1, 1, 2, 2), "sigma": torch.tensor([15.0])})
    model.test()
    assert torch.equal(model.output, torch.full((1, 1, 2, 2), 15.0))
    model.feed_data({"lq": torch.rand(1, 1, 2, 2)})
    assert model.sigma is None  # that of the batch before is forgotten


def test_large_pictures_are_validated_in_tiles():
    model = make_model()
    sizes = []
    model.net_g.forward = lambda x: (sizes.append(tuple(x.shape[-2:])), x * 2)[1]
    model.opt["val"] = {"tile": 32, "halo": 4}
    picture = torch.rand(1, 1, 40, 70)
    model.feed_data({"lq": picture})
    model.test()
    assert torch.equal(model.output, picture * 2)
    assert len(sizes) == 6 and max(max(size) for size in sizes) == 32 + 2 * 4
    sizes.clear()
    model.opt["val"] = {"tile": 0, "halo": 4}
    model.feed_data({"lq": picture})
    model.test()
    assert sizes == [(40, 70)]


def test_pictures_are_padded_to_whole_windows():
    model = make_model()
    model.opt["network_g"]["window_size"] = 8
    sizes = []
    enlarge = torch.nn.Upsample(scale_factor=2)
    model.net_g.forward = lambda x: (sizes.append(tuple(x.shape[-2:])), enlarge(x))[1]
    picture = torch.rand(1, 1, 13, 3)
    model.feed_data({"lq": picture})
    model.test()
    assert sizes == [(16, 8)]
    assert torch.equal(model.output, enlarge(picture))


def test_a_network_without_an_average_trains_on_after_a_validation():
    """BatchNorm would go on with the averages of before, and dropout drop nothing."""
    model = make_model()
    model.feed_data({"lq": torch.rand(1, 1, 4, 4)})
    model.test()
    assert model.net_g.training


def test_a_picture_without_a_clean_one_is_not_given_that_of_the_batch_before():
    model, x = make_model(), torch.rand(1, 1, 4, 4)
    model.feed_data({"lq": x, "gt": x})
    assert set(validation._run(model, {"lq": x, "lq_path": ["a.png"]})) == {"lq", "result"}


def test_a_metric_of_floats_sees_them_as_they_are():
    """20 log10(1 / 0.1) = 20 dB of what is below black, 80 dB of a step that 8 bits do not have."""
    gt, metrics = torch.zeros(1, 16, 16), {"p": {"type": "calculate_psnr_float", "crop_border": 0}}
    assert validation.score(metrics, gt - 0.1, gt)["p"] == pytest.approx(20, abs=1e-4)
    assert validation.score(metrics, gt + 1e-4, gt)["p"] == pytest.approx(80, abs=1e-3)


@pytest.mark.parametrize("score", [validation.score, validation._score_alone])
def test_a_stop_is_no_fault_of_a_metric(monkeypatch, score):
    monkeypatch.setattr(validation, "calculate_metric", Mock(side_effect=Interrupted("Stopped at once")))
    with pytest.raises(Interrupted):
        score({"niqe": {"type": "calculate_niqe", "crop_border": 0}}, torch.zeros(1, 8, 8))


def test_a_stop_is_no_fault_of_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", Mock(side_effect=Interrupted("Stopped at once")))
    with pytest.raises(Interrupted):
        checkpoints.save_atomically({}, tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())


def test_a_set_is_the_same_where_it_lies_elsewhere_and_is_loaded_otherwise():
    def describe(**options):
        sets = {"train": {"name": "train"}, "val": {"name": "val", "dataroot_gt": "a/val", "sigma": 25, **options}}
        return validation.describe_measure({"datasets": sets, "val": {"metrics": {"psnr": {}}}}, ["val"], "psnr")

    assert describe() == describe(dataroot_gt=Path("/b/val"), cache="ram", num_worker_per_gpu=4)
    others = {describe(**options) for options in ({"sigma": 50}, {"dataroot_gt": "a/other"}, {"dataroot_x": ["a", 1]})}
    assert len(others) == 3 and describe() not in others


def test_one_picture_that_is_not_finite_makes_the_mean_nan():
    rows = [{"name": str(value), "output": {"psnr": value}} for value in (30.0, math.nan, math.inf)]
    assert math.isnan(validation._mean(rows, "psnr", "val"))
    assert validation._mean(rows[::2], "psnr", "val") == 30


def test_the_best_network_is_kept_by_name(recipe, run):
    """At a rate of 100 the second half of the run destroys what the first had: the best is iteration 4's."""
    recipe["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [4], "gamma": 1e5}
    assert run("train", recipe) == 0
    best, fourth, last = (load_network(f"experiments/tiny/models/net_g_{label}.pth") for label in ("best", 4, 8))
    assert all(torch.equal(best[name], fourth[name]) for name in best)
    assert not all(torch.equal(best[name], last[name]) for name in best)
    state = torch.load("experiments/tiny/training_states/4.state", weights_only=True)
    assert state["best"]["val"]["psnr"]["iter"] == 4  # a resume from there knows it, though it was validated later


def test_the_last_state_knows_the_best_of_the_validation_that_ends_a_training(recipe, run):
    recipe["val"]["val_freq"] = 1000  # so that there is no other
    assert run("train", recipe) == 0
    best = torch.load("experiments/tiny/models/net_g_best.pth", weights_only=True)
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    assert best["iter"] == 8 == state["best"]["val"]["psnr"]["iter"]


def test_several_sets_pick_the_best_network_by_their_mean(monkeypatch):
    """Means 30, 29.5 and 30.25: at iteration 2 the first set alone would have picked another."""
    psnr = {"weak": {1: 30, 2: 31, 3: 30}, "other": {1: 40, 2: 41, 3: 42}, "strong": {1: 30, 2: 28, 3: 30.5}}
    model, saved = make_model(), []
    model.opt["val"] = {"metrics": {"psnr": {"type": "calculate_psnr"}}, "best_on": ["weak", "strong"], "val_freq": 1}
    model.opt["datasets"] = {f"val_{name}": {"name": name} for name in psnr}

    def validate(model, loader, current_iter, *_):
        means = {"psnr": psnr[loader.dataset.opt["name"]][current_iter]}
        validation.note_best(model, loader.dataset.opt["name"], means, current_iter)
        return means

    monkeypatch.setattr("hranet_arch.model.validate", validate)
    monkeypatch.setattr(model, "_save_networks", lambda label: saved.append((label, name, iteration)))
    for iteration in (1, 2, 3):
        for name in psnr:
            loader = SimpleNamespace(dataset=SimpleNamespace(opt={"name": name}))
            model.nondist_validation(loader, iteration, None, False)
    assert saved == [("best", "strong", 1), ("best", "strong", 3)]
    best = model.best_metric_results["weak, strong"]["psnr"]
    assert (best["better"], best["val"], best["iter"]) == ("higher", 30.25, 3)
    assert model.best_metric_results["weak"]["psnr"]["iter"] == 2


def test_two_sets_are_validated_and_nothing_is_said_against_it(recipe, run, capsys):
    recipe["datasets"]["val_2"] = {**recipe["datasets"]["val"], "name": "strong", "sigma": 50}
    recipe["val"]["best_on"] = ["val", "strong"]
    assert run("train", recipe) == 0
    log = capsys.readouterr().err
    assert "Mean of strong, val" in log and "Saving models" in log  # what BasicSR says is there
    assert "WARNING" not in log


def test_a_set_that_turns_out_to_have_no_clean_pictures_does_not_fail_to_pick_in_silence(monkeypatch):
    model, warnings = make_model(), []
    monkeypatch.setattr(get_root_logger(), "warning", warnings.append)
    model.opt["val"] = {"metrics": {"psnr": {"type": "calculate_psnr"}}, "best_on": ["noisy"], "val_freq": 1}
    model.opt["datasets"] = {"val": {"name": "other"}, "val_2": {"name": "noisy"}}
    monkeypatch.setattr("hranet_arch.model.validate", lambda *_: {})
    for name in ("other", "noisy"):
        model.nondist_validation(SimpleNamespace(dataset=SimpleNamespace(opt={"name": name})), 1, None, False)
    assert warnings == ["noisy: val.best_on names it, but it has no clean pictures to pick by."]


def test_no_checkpoint_is_picked_where_none_is_asked_for(recipe, run, tmp_path):
    recipe["val"]["best_on"] = None
    assert run("train", recipe) == 0
    assert not (tmp_path / "experiments/tiny/models/net_g_best.pth").exists()


def test_tensorboard_has_metrics_rates_and_pictures(recipe, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("train", recipe) == 0
    events = EventAccumulator("tb_logger/tiny").Reload()
    assert [event.step for event in events.Scalars("metrics/val/psnr")] == [4, 8]
    assert events.Scalars("learning_rate")[-1].value == pytest.approx(5e-4)
    assert {"metrics/val/ssim", "losses/l_pix"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["val/0", "val/1"]


def test_the_final_validation_has_the_last_iterations_number(recipe, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("train", recipe, "--force_yml", "val:val_freq=5", "val:tb_images=1") == 0
    events = EventAccumulator("tb_logger/tiny").Reload()
    assert [event.step for event in events.Scalars("metrics/val/psnr")] == [5, 8]
    assert events.Tags()["images"] == ["val/0"]


def test_testing_writes_pictures_and_each_pictures_numbers(recipe, run, tmp_path):
    from skimage.metrics import peak_signal_noise_ratio

    assert run("train", recipe) == 0
    val = recipe["datasets"]["val"]
    test = {key: recipe[key] for key in ("model_type", "num_gpu", "network_g", "val")}
    test |= {"name": "tested", "datasets": {"test_1": val, "test_2": {**val, "name": "other", "sigma": 50}}}
    test["path"] = {"pretrain_network_g": "experiments/tiny/models/net_g_8.pth"}
    test["val"] = {**recipe["val"], "save_img": True}
    assert run("test", test) == 0
    records = json.loads((tmp_path / "results/tested/metrics.json").read_text())
    assert list(records) == ["val", "other"]  # whose noise is 6 dB stronger, and is clipped
    assert records["val"]["input"]["psnr"] > records["other"]["input"]["psnr"] + 4
    record = records["val"]
    output = cv2.imread(str(tmp_path / "results/tested/visualization/val/1_tested.png"), cv2.IMREAD_GRAYSCALE)
    clean = cv2.cvtColor(cv2.imread(str(tmp_path / "val/1.png")), cv2.COLOR_BGR2GRAY)
    assert record["images"][1]["output"]["psnr"] == pytest.approx(peak_signal_noise_ratio(clean, output), abs=1e-6)
    assert record["output"]["psnr"] == pytest.approx(np.mean([row["output"]["psnr"] for row in record["images"]]))
    assert record["input"]["psnr"] == pytest.approx(20.2, abs=1)


def test_pictures_without_clean_ones_are_scored_by_what_needs_none(recipe, run, tmp_path):
    from basicsr.metrics import calculate_niqe

    make_pictures(Path("large"), 2, (200, 210))
    torch.save(
        {"params": registration.ARCH_REGISTRY.get("HRANet")(num_in_ch=3, num_out_ch=3, num_feat=8).state_dict()},
        "net.pth",
    )
    test = {"name": "tested", "model_type": "DenoisingModel", "num_gpu": 0, "path": {"pretrain_network_g": "net.pth"}}
    test["network_g"] = {"type": "HRANet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8}
    test["datasets"] = {"test": {"name": "real", "type": "SingleImageDataset", "dataroot_lq": "large"}}
    niqe = {"type": "calculate_niqe", "crop_border": 4, "better": "lower"}
    test["val"] = {"save_img": True, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}, "niqe": niqe}}
    assert run("test", test) == 0
    record = json.loads((tmp_path / "results/tested/metrics.json").read_text())["real"]
    assert set(record["output"]) == {"niqe"}
    output = cv2.imread("results/tested/visualization/real/1_tested.png")
    assert record["images"][1]["output"]["niqe"] == pytest.approx(calculate_niqe(output, 4))
    cv2.imwrite("large/0.png", np.zeros((64, 64, 3), np.uint8))  # too small for its blocks of 96
    assert run("test", test) == 0
    record = json.loads((tmp_path / "results/tested/metrics.json").read_text())["real"]
    assert [one["output"]["niqe"] is None for one in record["images"]] == [True, False]
    assert record["output"]["niqe"] == pytest.approx(calculate_niqe(output, 4))


def test_a_test_that_breaks_off_keeps_what_it_had(recipe, run, capsys):
    """The second picture is smaller than the metric's border; pictures are named as ``suffix`` says."""
    params = registration.ARCH_REGISTRY.get("HRANet")(num_feat=8).state_dict()
    torch.save({"params": params}, "net.pth")
    cv2.imwrite("val/1.png", np.zeros((8, 9), np.uint8))
    test = {key: recipe[key] for key in ("model_type", "num_gpu", "network_g")}
    test |= {"name": "tested", "datasets": {"test": recipe["datasets"]["val"]}}
    test["path"] = {"pretrain_network_g": "net.pth"}
    metrics = {"psnr": {"type": "calculate_psnr_float", "crop_border": 4}}
    assert run("test", {**test, "val": {"metrics": metrics, "save_img": True, "suffix": "clean"}}) == 2
    assert "says of a picture of 8x9" in capsys.readouterr().err
    assert Path("results/tested/visualization/val/0_clean.png").is_file()


def test_a_picture_that_cannot_be_written_is_named(recipe, run, capsys):
    """A name that with its suffix is longer than a file system takes; a full disk is told in the same way."""
    Path("val/0.png").rename(f"val/{'n' * 251}.png")
    recipe["val"]["save_img"] = True
    assert run("train", recipe) == 2
    assert f"{'n' * 251}_4.png: File name too long." in capsys.readouterr().err


def test_a_tests_record_is_json_where_nothing_finite_comes_out(recipe, run, tmp_path):
    assert run("train", recipe) == 0
    weights = torch.load("experiments/tiny/models/net_g_8.pth", weights_only=True)
    for params in weights.values():
        if isinstance(params, dict):
            next(iter(params.values())).fill_(3e38)  # which overflows
    torch.save(weights, "large.pth")
    test = {key: recipe[key] for key in ("model_type", "num_gpu", "network_g", "val")}
    test |= {"name": "tested", "datasets": {"test": recipe["datasets"]["val"]}}
    assert run("test", {**test, "path": {"pretrain_network_g": "large.pth"}}) == 0

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    text = (tmp_path / "results/tested/metrics.json").read_text()
    record = json.loads(text, parse_constant=refuse)["val"]
    assert record["output"]["psnr"] is None and record["images"][0]["output"]["psnr"] is None
    assert record["input"]["psnr"] == pytest.approx(20.2, abs=1)


def test_a_test_uses_the_averaged_weights(recipe, run, tmp_path):
    """The network that training validated is the one that a test loads."""
    assert run("train", recipe) == 0
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    live, average = (load_network("experiments/tiny/models/net_g_8.pth", key) for key in ("params", "params_ema"))
    assert any(not torch.equal(live[name], average[name]) for name in live)
    test = {key: recipe[key] for key in ("model_type", "num_gpu", "network_g", "val")}
    test |= {"name": "tested", "datasets": {"test": recipe["datasets"]["val"]}}
    test["path"] = {"pretrain_network_g": "experiments/tiny/models/net_g_best.pth"}
    assert run("test", test) == 0
    measured = json.loads((tmp_path / "results/tested/metrics.json").read_text())["val"]["output"]["psnr"]
    assert measured == pytest.approx(state["best"]["val"]["psnr"]["val"], abs=1e-6)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("noisy/a/0.png", "a/0"), ("clean/b/0.png", "b/0"), ("a/0", "a/0"), ("0", "0"), ("/etc/0", "0"), ("../../0", "0")],
)
def test_pictures_of_several_folders_and_keys_of_lmdbs_have_names_of_their_own(path, expected):
    assert validation._name({"dataroot_lq": "noisy", "dataroot_gt": "clean"}, path, set()) == expected


def test_the_first_metric_picks_the_best_network():
    model = make_model()
    model.opt["val"] = {"best_on": ["val"], "metrics": {"psnr": {}, "ssim": {}}}
    for iteration, (psnr, ssim, is_best) in enumerate([(30.0, 0.8, True), (29.0, 0.9, False), (31.0, 0.7, True)]):
        means = {"psnr": psnr, "ssim": ssim}
        validation.note_best(model, "val", means, iteration)
        assert model._is_best("val", means, iteration) == is_best


def test_a_network_without_an_average_is_validated_as_it_is_used():
    """ScaleNet counts what it sees in training mode."""
    model = make_model()
    model.feed_data({"lq": torch.ones(1, 1, 4, 4)})
    model.test()
    assert model.net_g.seen == 0
