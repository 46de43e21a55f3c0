"""Costs against formulas worked out by hand; nothing here asserts a time."""

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hranet_arch import HRANet, complexity, provenance, registration


class Wrap(nn.Module):
    """A function of the input as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def dncnn(depth=17, width=64):
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))


def swinir(**changes):
    options = dict(
        upscale=1, in_chans=1, img_size=16, window_size=8, mlp_ratio=2, upsampler="", resi_connection="1conv"
    )
    return registration.registries()["arch"]["SwinIR"](**options | changes)


# --- parameters and multiply-accumulates ------------------------------------------------------------------------------


def test_parameters_of_dncnn_by_hand():
    convolutions = 9 * 64 + 15 * 9 * 64 * 64 + 9 * 64
    biases_and_norms = 64 + 15 * 2 * 64 + 1
    assert complexity.count_parameters(dncnn()) == convolutions + biases_and_norms == 556_097


def test_shared_parameters_count_once_and_buffers_not():
    layer = nn.Conv2d(2, 2, 1, bias=False)
    assert complexity.count_parameters(nn.Sequential(layer, layer, nn.BatchNorm2d(2, affine=False))) == 4


def test_frozen_parameters_are_parameters():
    assert complexity.count_parameters(nn.Linear(3, 2).requires_grad_(False)) == 3 * 2 + 2


@pytest.mark.parametrize(
    ("module", "size", "macs"),
    [
        (nn.Conv2d(3, 8, 5, padding=2), (3, 6, 7), 6 * 7 * 25 * 3 * 8),
        (nn.Conv2d(3, 8, 3, stride=2, bias=False), (3, 9, 11), 4 * 5 * 9 * 3 * 8),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 5, 4), 5 * 4 * 9 * 6),
        (nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2), (6, 5, 4), 5 * 4 * 9 * 3 * 4),
        (nn.ConvTranspose2d(4, 2, 2, stride=2), (4, 5, 3), 5 * 3 * 4 * 4 * 2),
        (nn.Linear(10, 7), (3, 4, 10), 3 * 4 * 10 * 7),
        (Wrap(lambda x: torch.bmm(x[0], x[0].transpose(1, 2))), (3, 5, 7), 3 * 5 * 7 * 5),
        (Wrap(lambda x: torch.einsum("nchw,nchv->nwv", x, x)), (2, 3, 4), 2 * 3 * 4 * 4),
        (Wrap(lambda x: F.scaled_dot_product_attention(x, x, x)), (2, 9, 8), 2 * 2 * 9 * 9 * 8),
        (Wrap(lambda x: F.interpolate(F.relu(x) + x * x, scale_factor=2)), (1, 8, 8), 0),
        (nn.Sequential(nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.PixelShuffle(1)), (3, 8, 8), 0),
    ],
)
def test_macs_of_one_operation(module, size, macs):
    assert complexity.count_macs(module, size) == macs


def test_dncnn_is_554112_macs_a_pixel():
    assert complexity.count_macs(dncnn(), (1, 37, 41)) == 37 * 41 * (9 * 64 + 15 * 9 * 64**2 + 9 * 64)
    assert complexity.count_macs(dncnn(), (1, 40, 40)) == 40 * 40 * 554_112


def hranet_macs_per_pixel(c, squeeze=4, stride=8, channels=1):
    """Sums up the convolutions of the method, one by one; height and width are multiples of the stride."""

    def lightweight(width):  # two times 1x1 and depthwise 3x3, then 5x5, 3x3, 1x1
        return 2 * (width * c + 9 * c) + 25 * c * c + 9 * c * c + c * c

    s = c // squeeze
    attention = (c * s + 9 * s * s + s * c) / stride**2
    blocks = 2 * (lightweight(c) + attention + lightweight(c))
    last_block = lightweight(2 * c) + attention + lightweight(c) + 2 * c * c  # and the projected shortcut
    return 9 * channels * c + blocks + last_block + 9 * 2 * c * c + 4 * 9 * c * c + 9 * c * channels


@pytest.mark.parametrize(("width", "channels", "published"), [(64, 1, 1_155_148), (32, 1, 290_803), (64, 3, None)])
def test_hranet_by_hand(width, channels, published):
    expected = hranet_macs_per_pixel(width, channels=channels)
    assert published in (None, expected)
    network = HRANet(num_in_ch=channels, num_out_ch=channels, num_feat=width)
    assert complexity.count_macs(network, (channels, 64, 48)) == 64 * 48 * expected


def swinir_macs_per_pixel(d, blocks, groups, window=8, mlp_ratio=2):
    linear = 3 * d * d + d * d + 2 * mlp_ratio * d * d  # qkv, projection, MLP
    attention = 2 * window**2 * d  # queries with keys, weights with values: each with the window's pixels
    return blocks * (linear + attention) + groups * 9 * d * d + 9 * d * d + 2 * 9 * d


@pytest.mark.parametrize("size", [(16, 16), (24, 32)])
def test_swinir_with_its_attention_by_hand(size):
    network = swinir(depths=[2, 1], num_heads=[3, 3], embed_dim=12)
    height, width = size
    expected = height * width * swinir_macs_per_pixel(12, blocks=3, groups=2)
    assert complexity.count_macs(network, (1, height, width)) == expected
    # The window's attention has no layer of its own: it must be the WindowAttention's.
    rows = [row for row in complexity.profile_layers(network, (1, height, width)) if row.type == "WindowAttention"]
    assert [row.macs for row in rows] == [height * width * 2 * 64 * 12] * 3


def test_swinir_m_is_11_5_million_parameters_and_200_gmac():
    network = swinir(img_size=128, depths=[6] * 6, num_heads=[6] * 6, embed_dim=180)
    assert complexity.count_parameters(network) == pytest.approx(11.5e6, rel=0.01)
    macs = complexity.count_macs(network, (1, 128, 128))
    assert macs == 128 * 128 * swinir_macs_per_pixel(180, blocks=36, groups=6)
    assert macs == pytest.approx(200e9, rel=0.001)


def test_multihead_attention_is_counted_where_values_are_looked_at():
    """A module that asks for values cannot run on meta tensors; on the CPU, fused attention would count as nothing."""

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            assert x.sum().item() == 0
            return self.attention(x[0], x[0], x[0], need_weights=False)

    macs = 3 * 5 * (3 * 8 * 8 + 8 * 8 + 2 * 5 * 8)
    assert complexity.count_macs(Branching(), (3, 5, 8)) == macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_are_counted_where_arrays_are_taken():
    class ByNumpy(nn.Conv2d):
        def forward(self, x):
            return super().forward(torch.from_numpy(x.numpy()))

    assert complexity.count_macs(ByNumpy(1, 2, 3), (1, 5, 5)) == 3 * 3 * 2 * 9


def test_a_wrong_size_is_an_error():
    with pytest.raises(RuntimeError, match="channels"):
        complexity.count_macs(dncnn(), (3, 8, 8))


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layers_add_up_to_the_network():
    network = HRANet(num_feat=8)
    rows = complexity.profile_layers(network, (1, 16, 24))
    assert sum(row.parameters for row in rows) == complexity.count_parameters(network)
    assert sum(row.macs for row in rows) == complexity.count_macs(network, (1, 16, 24))
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.name for row in rows] == [
        name for name, module in network.named_modules() if list(module.parameters(False))
    ]
    first = rows[0]
    assert asdict(first) == {
        "name": "feature_extraction.0", "type": "Conv2d", "parameters": 80, "macs": 16 * 24 * 72,
        "share": first.macs / complexity.count_macs(network, (1, 16, 24)),
    }  # fmt: skip


def test_layers_can_be_taken_together():
    network = HRANet(num_feat=8)
    rows = complexity.profile_layers(network, (1, 16, 16), depth=1)
    assert [(row.name, row.type) for row in rows] == [
        ("feature_extraction", "Sequential"),
        ("coarse_denoising", "CoarseDenoising"),
        ("detail_enhancement", "CNNDenoiser"),
    ]
    assert sum(row.macs for row in rows) == complexity.count_macs(network, (1, 16, 16))
    assert sum(row.parameters for row in rows) == complexity.count_parameters(network)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_head_of_an_enlarging_network_by_hand(scale):
    """Per pixel of the input: 5 x 5 taps for each of the scale^2 new pixels; 3 x 3 taps from each feature to each."""
    network = HRANet(num_in_ch=3, num_out_ch=3, num_feat=8, upscale=scale)
    rows = {row.name: row for row in complexity.profile_layers(network, (3, 10, 12))}
    assert (rows["enlargement"].parameters, rows["enlargement"].macs) == (0, 120 * 25 * 3 * scale**2)
    last = rows["detail_enhancement.15"]
    assert last.parameters == 3 * scale**2 * (9 * 8 + 1) and last.macs == 120 * 9 * 8 * 3 * scale**2
    plain = HRANet(num_in_ch=3, num_out_ch=3, num_feat=8)
    more = 120 * 3 * (25 * scale**2 + 9 * 8 * (scale**2 - 1))
    assert complexity.count_macs(network, (3, 10, 12)) - complexity.count_macs(plain, (3, 10, 12)) == more


def test_a_layer_used_twice_computes_twice_and_has_its_parameters_once():
    layer = nn.Conv2d(2, 2, 1, bias=False)
    rows = complexity.profile_layers(nn.Sequential(layer, nn.ReLU(), layer), (2, 3, 3))
    assert [(row.name, row.parameters, row.macs) for row in rows] == [("0", 4, 2 * 9 * 4)]


def test_a_network_without_multiplications_has_no_shares():
    (row,) = complexity.profile_layers(nn.BatchNorm2d(3), (3, 4, 4))
    assert (row.name, row.parameters, row.macs, row.share) == ("(itself)", 6, 0, 0)
    assert "0.0%" in complexity.format_layers([row])


def test_the_table_is_aligned_and_ends_in_the_sum():
    text = complexity.format_layers(complexity.profile_layers(HRANet(num_feat=8), (1, 16, 16)))
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["layer", "type", "parameters", "MACs", "share"]
    assert re.fullmatch(r"total +[\d,]+ +[\d,]+ +100\.0%", lines[-1])


# --- the module stays as it is ----------------------------------------------------------------------------------------


class Careless(nn.Module):
    """Changes itself when it runs, as BasicSR's SwinIR does with its mean."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(1)
        self.norm = nn.BatchNorm2d(1)
        self.convolution = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        return self.convolution(self.norm(x) - self.mean)


def test_measuring_changes_nothing():
    module = Careless().train()
    module.convolution.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    complexity.profile_layers(module, (1, 8, 8))
    complexity.measure_latency({"it": module}, [(1, 8, 8)], rounds=1, block_time=0)
    assert module.training and module.norm.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.mean.device.type == "cpu" and not module.mean.is_inference()
    assert all(p.device.type == "cpu" and not p.is_inference() for p in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [True, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    module(torch.rand(2, 1, 8, 8)).sum().backward()


# --- latency ----------------------------------------------------------------------------------------------------------


def test_networks_take_turns_back_and_forth():
    calls = []
    networks = {name: lambda x, name=name: calls.append(name) for name in "ab"}
    (a, b) = complexity.measure_latency(networks, [(1, 2, 2)], rounds=3, block_time=0)
    warm_up = ["a"] * 3 + ["b"] * 3
    turns = [name for turn in ("ba", "ab", "ba") for name in turn for _ in range(2)]  # one to warm up, one measured
    assert calls == warm_up + turns
    assert (a.model, a.runs, a.blocks, a.rounds) == ("a", 3, 3, 3)
    assert (b.model, b.runs) == ("b", 3)


def test_latency_is_a_record():
    threads = torch.get_num_threads()
    results = complexity.measure_latency(
        {"small": HRANet(num_feat=4), "function": torch.relu},
        [(1, 8, 8), (1, 12, 8)],
        rounds=2,
        block_time=0.01,
        threads=1,
    )
    assert [(r.model, r.size) for r in results] == [
        ("small", (1, 8, 8)), ("function", (1, 8, 8)), ("small", (1, 12, 8)), ("function", (1, 12, 8)),
    ]  # fmt: skip
    for result in results:
        assert 0 < result.lower_quartile <= result.median <= result.upper_quartile
        assert result.runs >= result.blocks >= 2
        assert (result.threads, result.device) == (1, "cpu")
        assert json.loads(json.dumps(asdict(result)))["median"] == result.median
    assert torch.get_num_threads() == threads


def test_networks_run_in_inference_mode_and_evaluation_mode():
    class Observer(nn.Module):
        def forward(self, x):
            assert torch.is_inference_mode_enabled() and not self.training and x.shape == (1, 3, 4, 5)
            assert 0 <= x.min() and x.max() <= 1 and x.std() > 0.1

    complexity.measure_latency({"observer": Observer().train()}, [(3, 4, 5)], rounds=1, block_time=0)


def test_a_network_that_fails_is_left_out_where_somebody_listens():
    def fail(x):
        if x.shape[-1] > 8:
            raise RuntimeError("out of memory")

    failures = []
    results = complexity.measure_latency(
        {"fails": fail, "works": torch.relu}, [(1, 8, 8), (1, 16, 16)], rounds=1, block_time=0,
        on_failure=lambda name, size, error: failures.append((name, size, str(error))),
    )  # fmt: skip
    assert [(r.model, r.size) for r in results] == [("fails", (1, 8, 8)), ("works", (1, 8, 8)), ("works", (1, 16, 16))]
    assert failures == [("fails", (1, 16, 16), "out of memory")]
    with pytest.raises(RuntimeError, match="out of memory"):
        complexity.measure_latency({"fails": fail}, [(1, 16, 16)], rounds=1, block_time=0)


# --- peak memory ------------------------------------------------------------------------------------------------------

on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="resident memory is read from Linux's /proc")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Stacking(nn.Module):
    """Holds eight maps and their stack at the same time, then their sum: 16 or 9 maps, 16 at most."""

    def forward(self, x):
        return torch.stack([x + i for i in range(8)]).sum(0)


@on_linux
def test_memory_of_the_cpu_by_hand():
    memory = complexity.measure_peak_memory(Stacking(), (1, 512, 512))
    picture = 512 * 512 * 4
    assert memory.growth == pytest.approx(16 * picture, rel=0.05)
    assert (memory.weights, memory.peak) == (0, memory.growth + picture)
    assert json.loads(json.dumps(asdict(memory)))["device"] == "cpu"


@pytest.mark.slow
@on_linux
def test_memory_of_the_cpu_grows_with_the_picture_not_with_what_is_loaded():
    network = HRANet(num_feat=8)
    small, large = (complexity.measure_peak_memory(network, (1, size, size)) for size in (256, 512))
    picture = 8 * 256 * 256 * 4  # of one feature map
    assert 6 * picture < small.growth < 24 * picture
    assert large.growth == pytest.approx(4 * small.growth, rel=0.2)
    assert small.weights == large.weights == sum(t.nbytes for t in network.state_dict().values())
    assert network.training


@pytest.mark.slow
@on_linux
def test_memory_of_a_network_of_basicsr():
    """It can be unpickled in the child process only after compat has repaired BasicSR there."""
    memory = complexity.measure_peak_memory(swinir(depths=[1], num_heads=[2], embed_dim=8), (1, 256, 256))
    assert memory.growth > 0


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("no way")


@pytest.mark.slow
@on_linux
def test_a_network_that_fails_in_the_child_process_says_why():
    with pytest.raises(RuntimeError, match=r"Failing at \(1, 8, 8\): its process failed: ValueError: no way"):
        complexity.measure_peak_memory(Failing(), (1, 8, 8))


def test_memory_of_other_devices_is_refused():
    with pytest.raises(NotImplementedError, match="meta"):
        complexity.measure_peak_memory(Stacking(), (1, 8, 8), "meta")


@on_cuda
def test_memory_and_latency_on_cuda():
    memory = complexity.measure_peak_memory(Stacking(), (1, 512, 512), "cuda")
    assert memory.growth == pytest.approx(16 * 512 * 512 * 4, rel=0.05)
    (result,) = complexity.measure_latency({"hranet": HRANet(num_feat=8)}, [(1, 64, 64)], "cuda", rounds=2)
    assert 0 < result.lower_quartile <= result.median <= result.upper_quartile
    assert provenance.describe_machine("cuda")["device_name"] == torch.cuda.get_device_name()


# --- the machine ------------------------------------------------------------------------------------------------------


def test_the_machine_is_described_without_names_and_paths():
    machine = provenance.describe_machine()
    text = json.dumps(machine)
    assert (
        machine["versions"]["torch"] == torch.__version__ and machine["versions"]["python"] == platform.python_version()
    )
    assert machine["threads"] == torch.get_num_threads() and machine["device"] == "cpu" and machine["device_name"]
    assert {"dtype", "cuda_matmul", "cudnn_conv", "deterministic"} <= set(machine["precision"])
    assert not re.search(rf'"{re.escape(platform.node())}"', text)
    assert os.getcwd() not in text and os.path.expanduser("~") not in text


def test_changes_of_the_package_and_of_what_is_named_show_in_the_commit(tmp_path, monkeypatch):
    for name in ("package/provenance.py", "package/weights/a.txt", "scripts/measure.py", "docs/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package" / "provenance.py"))
    commit = provenance.describe_commit("scripts")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    for name in ("docs/a.md", "package/weights/a.txt"):
        (tmp_path / name).write_text("b")
        assert provenance.describe_commit("scripts") == commit
    (tmp_path / "scripts" / "measure.py").write_text("b")
    assert provenance.describe_commit() == commit
    assert provenance.describe_commit("scripts") == f"{commit}+changes"
    subprocess.run([*git, "checkout", "-q", "scripts"], check=True)
    (tmp_path / "package" / "provenance.py").write_text("b")
    assert provenance.describe_commit("scripts") == provenance.describe_commit() == f"{commit}+changes"
