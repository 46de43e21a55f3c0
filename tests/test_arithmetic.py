"""Which precision is computed: the one asked for, where the processor has it; else fp32, and nobody is left unsaid."""

import logging
import re

import cv2
import numpy as np
import pytest
import torch

from hranet_arch import Denoiser, arithmetic
from hranet_arch.checkpoints import load_checkpoint
from hranet_arch.errors import InputError
from tests.conftest import run_cli

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=["bf16", "fp16"])
def precision(request):
    return request.param


@pytest.fixture
def without_16_bits(monkeypatch):
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: False, raising=False)


@pytest.mark.parametrize("answer", [True, False])
def test_a_cpu_is_fast_where_onednn_says_so(precision, answer, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: answer, raising=False)
    assert arithmetic.is_fast(precision, CPU) is answer
    assert arithmetic.is_fast("fp32", CPU)


@pytest.mark.parametrize(("capability", "has_bf16"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_bf16_from_ampere_on(capability, has_bf16, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert arithmetic.is_fast("bf16", GPU) is has_bf16
    monkeypatch.setattr(torch.version, "hip", "6.0")  # AMD's, whose capability is another count
    assert arithmetic.is_fast("bf16", GPU)
    assert arithmetic.is_fast("fp16", GPU) and arithmetic.is_fast("fp32", GPU)


def test_without_onednn_fp32_alone_is_fast(precision, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not arithmetic.is_fast(precision, CPU) and arithmetic.is_fast("fp32", CPU)


def test_fp32_stands_in_with_a_warning(precision, without_16_bits):
    warnings = []
    assert arithmetic.choose(precision, CPU, warnings.append) == "fp32"
    assert len(warnings) == 1 and warnings[0].startswith(f"precision {precision}: this processor has no instructions")
    assert arithmetic.choose("fp16", GPU, warnings.append) == "fp16"
    assert arithmetic.choose("fp32", CPU, warnings.append) == "fp32"
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("device", "has_bf16", "instead"), [(CPU, True, "bf16"), (CPU, False, "fp32"), (GPU, True, "bf16")]
)
def test_16_bits_or_fp32_stand_in_for_8(device, has_bf16, instead, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("hranet_arch.eight_bits.count_weight_levels", lambda: 0 if device == CPU else 127)
    warnings = []
    assert arithmetic.choose("int8", device, warnings.append) == instead
    assert len(warnings) == 1 and "precision int8" in warnings[0] and f"{instead} is used" in warnings[0]
    monkeypatch.setattr("hranet_arch.eight_bits.count_weight_levels", lambda: 63)
    assert arithmetic.choose("int8", CPU, warnings.append) == "int8" and len(warnings) == 1
    assert arithmetic.without_8_bits("int8", CPU) == ("bf16" if has_bf16 else "fp32")


def test_a_denoiser_falls_back_to_exactly_fp32(without_16_bits, caplog):
    x = torch.rand(1, 20, 24)
    with caplog.at_level(logging.WARNING, "hranet_arch"):
        denoiser = Denoiser("hranet_s_gray_s25", device="cpu", precision="bf16")
    assert denoiser.precision == "fp32" and "precision bf16" in caplog.text
    assert torch.equal(denoiser(x), Denoiser("hranet_s_gray_s25", device="cpu")(x))


def test_a_folder_is_warned_of_once_though_it_takes_several_networks(without_16_bits, tmp_path, capsys):
    for level in (15, 50):
        noisy = np.random.default_rng(0).normal(128, level, (64, 64)).clip(0, 255).astype(np.uint8)
        (tmp_path / "noisy").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"noisy/{level}.png"), noisy)
    command = ["denoise", str(tmp_path / "noisy"), "-o", str(tmp_path / "clean"), "--device", "cpu"]
    status = run_cli(*command, "--precision", "bf16")
    output = "".join(capsys.readouterr())
    assert status == 0 and output.count("precision bf16: this processor has no instructions") == 1
    assert len(set(re.findall(r"hranet_\w+", output))) == 2


def test_a_training_falls_back_and_its_state_says_so(recipe, run, without_16_bits, capfd):
    recipe["train"]["precision"] = "bf16"
    assert run("train", recipe) == 0
    output = capfd.readouterr()
    assert (output.out + output.err).count("precision bf16: this processor has no instructions") == 1
    assert load_checkpoint("experiments/tiny/training_states/8.state")["precision"] == "fp32"


@pytest.mark.parametrize("outer", ["fp32", "bf16"])
def test_autocast_holds_inside_of_another(outer):
    a = torch.rand(2, 2)
    with arithmetic.autocast(outer, CPU):
        for name, dtype in arithmetic.DTYPES.items():
            with arithmetic.autocast(name, CPU):
                assert (a @ a).dtype is dtype


def test_full_precision_on_gpus_ends_with_the_block():
    cudnn = torch.backends.cudnn
    place = (cudnn.conv, "fp32_precision") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32")
    before, described = getattr(*place), arithmetic.describe()
    with arithmetic.full_float32(GPU):
        assert getattr(*place) in ("ieee", False)
        assert arithmetic.describe()["cudnn_conv"] == arithmetic.describe()["cuda_matmul"] == "ieee"
    assert getattr(*place) == before
    with pytest.raises(ZeroDivisionError), arithmetic.full_float32(GPU):
        raise ZeroDivisionError
    assert arithmetic.describe() == described
    with arithmetic.full_float32(CPU):
        assert arithmetic.describe() == described


def test_full_precision_on_gpus_lasts_until_the_last_thread_has_left():
    """Two that overlap, as two threads' do: the first to leave must not give TF32 back to the other, nor keep it."""
    before, first, second = arithmetic.describe(), arithmetic.full_float32(GPU), arithmetic.full_float32(GPU)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert arithmetic.describe()["cudnn_conv"] == "ieee"
    second.__exit__(None, None, None)
    assert arithmetic.describe() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_device():
    with pytest.raises(InputError, match="device='cuda' cannot be used: .* Here 'auto' and 'cpu' can be"):
        arithmetic.find_device("cuda")


def test_a_gpu_by_its_number_is_that_one(monkeypatch):
    ones, tried = torch.ones, []
    monkeypatch.setattr(torch, "ones", lambda *shape, device: tried.append(device) or ones(*shape))
    assert arithmetic.find_device("cuda:1") == torch.device("cuda", 1)
    assert tried == [torch.device("cuda", 1)]


@pytest.fixture
def with_a_gpu_too_old(monkeypatch):
    """Memory it has; of kernels this torch has none for it."""
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))

    def convolve(*arguments):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)


def test_a_gpu_that_cannot_compute_is_no_device(with_a_gpu_too_old, caplog):
    with pytest.raises(InputError, match="device='cuda' cannot be used: CUDA error: no kernel image.* device\\. Here"):
        arithmetic.find_device("cuda")
    with caplog.at_level(logging.WARNING, "hranet_arch"):
        assert arithmetic.find_device("auto") == CPU
    assert "no kernel image" in caplog.text and "The CPU is used." in caplog.text


def test_doctor_tells_of_a_gpu_that_cannot_compute(with_a_gpu_too_old):
    from hranet_arch.doctor import _train_briefly

    problems = _train_briefly()
    assert len(problems) == 1 and "no kernel image" in problems[0]


def test_doctor_tells_of_a_step_that_fails(monkeypatch):
    from hranet_arch.doctor import _train_briefly
    from hranet_arch.hranet import HRANet

    def fail(network, x):
        raise RuntimeError("could not create a primitive\nmore")

    monkeypatch.setattr(HRANet, "forward", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _train_briefly() == ["a training step on cpu failed: RuntimeError: could not create a primitive"]
