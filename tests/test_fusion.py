"""Convolutions with their ReLUs in one pass: what is computed stays; in 8 bits, nearly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hranet_arch import Denoiser, HRANet, arithmetic, eight_bits, fusion, methods, networks
from hranet_arch.baselines import ADNet, DnCNN, FFDNet
from hranet_arch.eight_bits import QuantizedConvReLU, quantize
from hranet_arch.fusion import EightBitBlock, FusedConvReLU
from hranet_arch.hranet import ConvReLU, LightweightBlock

needs_operator = pytest.mark.skipif(not fusion.is_available(), reason="this PyTorch has no oneDNN with the operator")
needs_int8 = pytest.mark.skipif(eight_bits.count_weight_levels() == 0, reason="no convolutions of 8 bits here")
needs_bf16 = pytest.mark.skipif(not fusion.is_available("bf16"), reason="this processor has no bf16 by oneDNN")

NETWORKS = {  # and how many ReLUs follow a convolution in each: HRANet's CR, 2 x 2 x 3 branches and CD; all of DnCNN's
    "HRANet": (lambda: HRANet(num_feat=8), 1 + 12 + 5),
    "HRANet x2": (lambda: HRANet(num_feat=8, upscale=2), 1 + 12 + 5),
    "DnCNN": (lambda: DnCNN(num_feat=8, num_conv=6), 5),
    "FFDNet": (lambda: FFDNet(num_feat=8, num_conv=5), 4),
    "ADNet": (lambda: ADNet(num_feat=8), 15),
}


def make(name):
    torch.manual_seed(0)
    network = NETWORKS[name][0]().eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2)
    if hasattr(network, "fold_batchnorm"):
        network.fold_batchnorm()
    return network


@torch.inference_mode()
def run(network, x, precision="fp32"):
    sigma = [torch.full((len(x),), 25.0)] if isinstance(network, FFDNet) else []
    with arithmetic.autocast(precision, torch.device("cpu")):
        return network(x, *sigma).float()


@needs_operator
@pytest.mark.parametrize("size", [(40, 56), (17, 31), (1, 1), (1, 9)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fused_network_computes_the_same(name, size):
    network, x = make(name), torch.rand(2, 1, *size)
    fused = fusion.fuse(network)
    assert torch.allclose(run(fused, x), run(network, x), atol=1e-5)


@needs_operator
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_relu_follows_is_fused_in_a_copy(name):
    network = make(name)
    before = network.state_dict()
    fused = fusion.fuse(network)
    assert sum(isinstance(module, FusedConvReLU) for module in fused.modules()) == NETWORKS[name][1]
    assert not any(isinstance(module, FusedConvReLU) for module in network.modules())
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_fused_network_is_channels_last():
    weights = [
        module.weight
        for module in fusion.fuse(make("HRANet")).modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.groups == 1
    ]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@needs_operator
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_convolutions_have_the_precision_asked_for(precision, monkeypatch):
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: True)
    fused = fusion.fuse(nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU()).eval(), precision)
    assert fused[0].weight.dtype is fused[0].bias.dtype is arithmetic.DTYPES[precision]


@needs_bf16
@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_not_rounded_to_16_bits(channels):
    conv, x = nn.Conv2d(channels, 8, 3, padding=1), torch.rand(1, channels, 9, 12)
    fused = fusion.fuse(nn.Sequential(conv, nn.ReLU()).eval(), "bf16")
    assert torch.equal(run(fused, x, "bf16"), run(fusion.fuse(nn.Sequential(conv, nn.ReLU())), x).bfloat16().float())


def test_nothing_is_fused_in_a_precision_that_the_processor_lacks(monkeypatch):
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: precision == "fp32")
    assert not fusion.is_available("bf16")
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: True)
    fused = fusion.fuse(make("HRANet"), "fp16")  # the operator has none
    assert not any(isinstance(module, FusedConvReLU) for module in fused.modules())


@needs_bf16
@pytest.mark.parametrize("name", ["HRANet", "DnCNN"])
def test_in_bf16_it_is_as_close_to_fp32_as_autocast_alone(name):
    network, x = make(name), torch.rand(1, 1, 64, 48)
    exact = run(network, x)
    residual = (exact - x).abs().max()
    error = (run(fusion.fuse(network, "bf16"), x, "bf16") - exact).abs().max()
    assert 0 < error < 0.03 * residual
    assert error < 3 * (run(network, x, "bf16") - exact).abs().max()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_the_operator_a_denoiser_gives_the_same(precision, monkeypatch):
    x = torch.rand(1, 45, 52)
    fused = Denoiser("hranet_s_gray_s25", precision=precision)(x)
    monkeypatch.setattr(fusion, "is_available", lambda precision: False)
    plain = Denoiser("hranet_s_gray_s25", precision=precision)
    assert not any(isinstance(module, FusedConvReLU) for module in plain.module.modules())
    assert torch.allclose(fused, plain(x), atol=1e-5 if precision == "fp32" else 0.02)


@needs_operator
def test_denoisers_on_the_cpu_are_fused_and_leave_the_loaded_network_alone():
    loaded = networks.load_network("hranet_s_gray_s25")
    denoiser = Denoiser(loaded, device="cpu")
    assert any(isinstance(module, FusedConvReLU) for module in denoiser.module.modules())
    assert not any(isinstance(module, FusedConvReLU) for module in loaded.module.modules())


@needs_operator
@pytest.mark.parametrize("padding", [{"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}])
def test_convolutions_that_pad_otherwise_stay(padding):
    network, x = nn.Sequential(nn.Conv2d(1, 2, 3, **padding), nn.ReLU()).eval(), torch.rand(1, 1, 9, 12)
    fused = fusion.fuse(network)
    assert not any(isinstance(module, FusedConvReLU) for module in fused.modules())
    assert torch.allclose(run(fused, x), run(network, x), atol=1e-6)  # in channels-last memory, which rounds otherwise


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@needs_operator
@pytest.mark.parametrize(
    "layers",
    [
        (ConvReLU(1, 2, 3, padding=1, padding_mode="reflect"),), (Doubled(1, 2, 3), nn.ReLU()),
        (nn.Conv2d(1, 2, 3), nn.LeakyReLU()), (nn.Conv2d(1, 2, 3), nn.PReLU()),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_more_than_a_convolution_and_a_relu_stays(layers):
    network, x = nn.Sequential(*layers).eval(), torch.randn(1, 1, 9, 12)
    fused = fusion.fuse(network)
    assert not any(isinstance(module, FusedConvReLU) for module in fused.modules())
    assert torch.allclose(run(fused, x), run(network, x), atol=1e-6)


def test_without_the_operator_nothing_is_fused(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not fusion.is_available()
    assert not any(isinstance(module, FusedConvReLU) for module in fusion.fuse(make("DnCNN")).modules())


@needs_operator
@pytest.mark.parametrize(
    "geometry",
    [{"stride": 2}, {"stride": (1, 3)}, {"groups": 2}, {"dilation": (2, 1)}, {"padding": (0, 2)}, {"bias": False}],
    ids=str,
)
def test_a_fused_convolution_keeps_its_geometry(geometry):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(4, 6, 3, **geometry), nn.ReLU()).eval(), torch.randn(2, 4, 11, 14)
    fused = fusion.fuse(network)
    assert isinstance(fused[0], FusedConvReLU)
    torch.testing.assert_close(run(fused, x), run(network, x), rtol=0, atol=1e-5)


@needs_operator
def test_a_comparison_restores_with_the_fused_network_and_measures_the_other():
    task = methods.Task("denoise", "gray", 25.0, torch.device("cpu"), "fp32", 0)
    method = methods.make_method({"weights": "hranet_s_gray_s25"}, task, Path())
    picture = np.random.default_rng(0).random((40, 50), np.float32)
    assert isinstance(method.runner.feature_extraction[0], FusedConvReLU)
    assert not any(isinstance(module, FusedConvReLU) for module in method.network.modules())
    expected = run(method.network, torch.from_numpy(picture)[None, None])[0, 0].numpy()
    assert np.abs(method(picture) - expected).max() < 1e-5


# --- 8 bits -----------------------------------------------------------------------------------------------------------


def test_levels_are_counted_in_steps_of_the_largest_value():
    x = torch.tensor([-1.27, 0, 0.004, 0.006, 0.634, 0.636]).view(1, 2, 1, 3)
    levels, step = quantize(x.contiguous(memory_format=torch.channels_last))
    assert step == pytest.approx(0.01) and levels.dtype is torch.uint8
    assert levels.flatten().tolist() == [1, 128, 128, 129, 191, 192]
    assert levels.is_contiguous(memory_format=torch.channels_last)
    levels, step = quantize(torch.zeros(1, 1, 2, 2))
    assert step > 0 and levels.eq(128).all()


def convolve_levels(conv, levels, step, weight_levels):
    """By the definition, of whole numbers: exact in double precision."""
    steps = conv.weight.abs().amax((1, 2, 3), keepdim=True) / weight_levels
    whole = (conv.weight / steps).round().double()
    sums = nn.functional.conv2d(
        levels.double() - 128, whole, None, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    sums = sums * steps.view(-1, 1, 1) * step
    return (sums if conv.bias is None else sums + conv.bias[:, None, None]).clamp(min=0).float()


@needs_int8
def test_levels_are_counted_whatever_the_arithmetic_around():
    levels = eight_bits.count_weight_levels()
    with torch.autocast("cpu", torch.bfloat16):
        assert eight_bits.count_weight_levels.__wrapped__() == levels


GEOMETRIES = [{"kernel_size": 5, "padding": 2}, {"kernel_size": 3, "stride": 2}, {"kernel_size": 3, "bias": False},
              {"kernel_size": 3, "groups": 2, "padding": 1}, {"kernel_size": 1}]  # fmt: skip


@needs_int8
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", [(6, 9), (5, 5)])
@torch.no_grad()
def test_a_convolution_of_8_bits_adds_up_its_levels(geometry, size):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(32, 16, **geometry), torch.randn(2, 32, *size)
    conv.weight[3] = 0
    weight_levels = eight_bits.count_weight_levels()
    given = quantize(x)
    expected = convolve_levels(conv, *given, weight_levels).nan_to_num()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-8)):
        result = QuantizedConvReLU(conv, weight_levels)(*given, dtype)
        assert result.dtype is dtype
        rest = [i for i in range(16) if i != 3]
        torch.testing.assert_close(result.float()[:, rest], expected[:, rest], rtol=tolerance, atol=1e-5)
        bias = 0 if conv.bias is None else conv.bias[3].clamp(min=0)
        assert (result[:, 3] - bias).abs().max() < 1e-3


@needs_int8
def test_processors_that_add_in_16_bits_take_weights_of_7():
    """As oneDNN treats one with AVX2 alone; of weights of 127 levels the sums would be too small there."""
    code = """
import torch
from torch import nn
from hranet_arch.eight_bits import LEVELS, QuantizedConvReLU, count_weight_levels, quantize
from tests.test_fusion import convolve_levels
torch.manual_seed(0)
conv, x = nn.Conv2d(16, 16, 3).requires_grad_(False), torch.rand(1, 16, 9, 9) + 9
conv.weight.abs_()
errors = []
for levels in (count_weight_levels(), LEVELS):
    given = quantize(x)
    exact = convolve_levels(conv, *given, levels)
    errors.append(float((QuantizedConvReLU(conv, levels)(*given, torch.float32) / exact - 1).abs().max()))
print(count_weight_levels(), errors[0] < 1e-5, errors[1] > 0.1)
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["63", "True", "True"]


@needs_int8
@pytest.mark.parametrize("name", ["HRANet", "HRANet x2"])
def test_the_large_convolutions_of_lightweight_blocks_are_of_8_bits_in_a_copy(name):
    network, x = make(name), torch.rand(1, 1, 24, 31)
    fused = fusion.fuse(network, "int8")
    kinds = [type(module) for module in fused.modules()]
    assert (kinds.count(EightBitBlock), kinds.count(QuantizedConvReLU), kinds.count(LightweightBlock)) == (6, 12, 0)
    assert kinds.count(FusedConvReLU) == (NETWORKS[name][1] - 12) * fusion.is_available("fp32")
    assert not any(isinstance(module, EightBitBlock) for module in network.modules())
    exact = run(network, x)
    assert 0 < (run(fused, x, "int8") - exact).abs().max() < 0.03 * (exact - exact.mean()).abs().max()


@needs_int8
def test_in_8_bits_hranet_is_as_close_to_fp32_as_in_16():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 1, 96).expand(96, 96) * torch.linspace(0.2, 1, 96)[:, None]
    noisy = (smooth + 25 / 255 * torch.randn(96, 96, generator=generator))[None]
    exact, rough, rougher = (
        Denoiser("hranet_s_gray_s25", device="cpu", precision=precision)(noisy)
        for precision in ("fp32", "bf16", "int8")
    )
    error = (rougher - exact).square().mean().sqrt()
    assert 0 < error < 0.1 * (exact - smooth).square().mean().sqrt()  # of what the network leaves
    assert error < 1.5 * max((rough - exact).square().mean().sqrt(), 2e-4)


@needs_int8
@pytest.mark.parametrize("has_bf16", [pytest.param(True, marks=needs_bf16), False])
def test_between_convolutions_of_8_bits_is_what_the_processor_has(has_bf16, monkeypatch):
    monkeypatch.setattr(arithmetic, "is_fast", lambda precision, device: has_bf16 or precision != "bf16")
    seen, forward = [], QuantizedConvReLU.forward
    monkeypatch.setattr(
        QuantizedConvReLU, "forward", lambda self, *given: seen.append(given[2]) or forward(self, *given)
    )
    Denoiser("hranet_s_gray_s25", device="cpu", precision="int8")(torch.rand(1, 20, 20))
    assert seen == [torch.bfloat16 if has_bf16 else torch.float32] * 12


@pytest.mark.parametrize("lack", ["operators", "x86", "onednn", "signature"])
def test_without_right_operators_there_are_no_8_bits(lack, monkeypatch):
    if lack == "operators":
        monkeypatch.setattr(torch.ops, "onednn", object())
    elif lack == "x86":
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
    elif lack == "onednn":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:

        def prepack(*arguments):
            raise RuntimeError("onednn::qconv_prepack() is missing value for argument 'x_zp'.")

        monkeypatch.setattr(torch.ops.onednn, "qconv_prepack", prepack, raising=False)
    assert eight_bits.count_weight_levels.__wrapped__() == 0
