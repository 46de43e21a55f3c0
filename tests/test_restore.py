"""From weights and a noisy picture to a clean one: any layout; tiles as the whole picture; networks by name, file."""

import copy
import itertools
import json
import math
import pickle
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hranet_arch import HRANet, arithmetic, memory, networks, restore, tiling
from hranet_arch.baselines import ADNet, DnCNN, FFDNet
from hranet_arch.errors import InputError
from hranet_arch.restore import Denoiser
from hranet_arch.symmetries import SYMMETRIES, Box
from tests.conftest import REPOSITORY


def make(network=HRANet, **arguments):
    """A small network in which what goes in comes out: signals keep their size from layer to layer, attention varies.

    As drawn, the weights of a network this narrow let next to nothing through, and any tiles would do.
    """
    torch.manual_seed(5)
    net = network(**arguments).eval()
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("eca.expand.bias"):
                value.fill_(1)  # around it attention varies
            elif value.ndim == 4:
                torch.nn.init.kaiming_normal_(value).mul_(0.3 if "eca.expand" in name else 1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                value.normal_(0, 0.2)
        last = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        x = torch.rand(1, arguments.get("num_in_ch", 1), 64, 64)
        start = net.enlargement(x) if network is HRANet else x
        last.weight.mul_(25 / 255 / (net(x) - start).std())  # a residual as large as that of noise of 25
    return net


def load(net, channels=1, *, name="net", sigma=None, network_g=None):
    description = networks.Description(name, name, network_g, sigma=sigma)
    return networks.LoadedNetwork(net, channels, isinstance(net, FFDNet), description)


def picture(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def evaluate(net, x, *args):
    """The network on an ``(h, w)`` array, whole."""
    with torch.no_grad():
        return net(torch.from_numpy(x)[None, None], *args)[0, 0].numpy()


@pytest.mark.parametrize("precision", restore.PRECISIONS)
@pytest.mark.parametrize("make_other", [copy.deepcopy, lambda denoiser: pickle.loads(pickle.dumps(denoiser))])
def test_a_copy_and_another_process_give_the_same(precision, make_other, any_precision):
    """What oneDNN has packed for 8 bits cannot be copied."""
    denoiser, x = Denoiser(load(make(num_feat=8)), device="cpu", precision=precision, tile=16), picture(40, 40)
    other = make_other(denoiser)
    assert other.module is not denoiser.module
    assert np.array_equal(other(x), denoiser(x))


def test_a_process_elsewhere_takes_the_precision_that_it_has(any_precision, monkeypatch):
    pickled = pickle.dumps(Denoiser(load(make(num_feat=8)), device="cpu", precision="bf16"))
    monkeypatch.setattr(arithmetic, "choose", lambda precision, device, warn: "fp32")
    assert pickle.loads(pickled).precision == "fp32"


def test_a_network_stays_where_it_is(monkeypatch):
    """Other restorers of it may run elsewhere."""
    network = load(HRANet(num_feat=4))
    Denoiser(network, device="meta")
    assert all(value.device.type == "cpu" for value in network.module.parameters())
    assert Denoiser(network, device="cpu")(picture(8, 8)).shape == (8, 8)


# --- symmetries -------------------------------------------------------------------------------------------------------


def test_symmetries_are_the_eight_of_the_square():
    x = torch.arange(12).reshape(3, 4)
    turned = [np.rot90(y, k) for k in range(4) for y in (x.numpy(), x.numpy()[:, ::-1])]
    assert {str(y.tolist()) for y in turned} == {str(symmetry.apply(x).tolist()) for symmetry in SYMMETRIES}
    assert len(SYMMETRIES) == 8
    for symmetry in SYMMETRIES:
        assert torch.equal(symmetry.undo(symmetry.apply(x)), x)
        assert symmetry.turn_size(3, 4) == tuple(symmetry.apply(x).shape)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_an_area_is_found_in_the_turned_picture(symmetry):
    x = torch.arange(7 * 9).reshape(7, 9)
    box = Box(1, 4, 2, 8)
    turned = symmetry.turn(box, 7, 9)
    assert torch.equal(symmetry.apply(x)[turned.slices()], symmetry.apply(x[box.slices()]))
    assert symmetry.turn_back(turned, 7, 9) == box


def test_boxes_are_enlarged_to_the_grid_inside_the_picture():
    assert Box(20, 30, 8, 16).enlarge(5, 8, 100, 100) == Box(8, 40, 0, 24)
    assert Box(20, 30, 8, 16).enlarge(5, 8, 33, 20) == Box(8, 33, 0, 20)
    assert list(Box(0, 5, 0, 3).divide(3)) == [Box(0, 3, 0, 3), Box(3, 5, 0, 3)]


# --- tiles ------------------------------------------------------------------------------------------------------------

NETWORKS = [
    (HRANet, {"num_feat": 8}), (HRANet, {"num_feat": 8, "attention_pool": 3, "attention_gate": "sigmoid"}),
    (HRANet, {"num_feat": 8, "attention_pool": "global"}), (DnCNN, {"num_feat": 8}), (FFDNet, {"num_feat": 8}),
    (ADNet, {"num_feat": 8}),
]  # fmt: skip


def compare_tiles(net, x, tile, **settings):
    """The largest difference of tiles from the whole picture; and that there were tiles."""
    sizes = []
    hook = net.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[0].shape[-2:].numel()))
    sigma = 30.0 if isinstance(net, FFDNet) else None
    tiled = Denoiser(load(net), tile=tile, **settings)(x, sigma=sigma)
    hook.remove()
    assert len(sizes) > 1
    return np.abs(tiled - evaluate(net, x, *[sigma] * isinstance(net, FFDNet))).max()


@pytest.mark.parametrize(("network", "arguments"), NETWORKS)
@pytest.mark.parametrize("is_flat", [False, True])
def test_tiles_equal_the_whole_picture(network, arguments, is_flat):
    net = make(network, **arguments)
    reach = tiling.Reach.of(net)
    size = 2 * reach.halo + 64 + 21
    x = np.full((size, size + 8), 0.4, np.float32) if is_flat else picture(size, size + 8)
    assert compare_tiles(net, x, 64) < 1e-5


@pytest.mark.slow
def test_tiles_equal_the_whole_picture_at_50_random_sizes_and_tile_sizes():
    rng = np.random.default_rng(1)
    for number in range(50):
        network, arguments = NETWORKS[number % len(NETWORKS)]
        net = make(network, **arguments)
        tile = int(rng.integers(48, 160))
        least = (tile + 2 * tiling.Reach.of(net).halo) ** 2
        height = int(rng.integers(1, 400))
        width = least // height + int(rng.integers(1, 100))
        assert compare_tiles(net, picture(height, width, seed=number), tile) < 1e-5, (network, arguments, height, width)


def test_global_attention_sees_the_whole_picture_in_tiles():
    """A picture dark on the left and light on the right: averages of tiles are far from the whole's."""
    net = make(num_feat=8, attention_pool="global")
    x = np.sqrt(np.linspace(0, 1, 300, dtype=np.float32)) * np.ones((150, 1), np.float32)
    assert compare_tiles(net, x, 64) < 1e-5
    double, done = net.double(), []
    with torch.no_grad():
        whole = torch.from_numpy(x)[None, None].double()
        exact = tiling.restore(double, whole, tile=64, report=done.append) - double(whole)
    assert exact.abs().max() < 1e-11
    assert done[-1] == 1 and done == sorted(set(done))
    net.float()
    with torch.no_grad():
        naive = tiling.run_tiled(net, torch.from_numpy(x)[None, None], tile=64, halo=net.local_halo)[0, 0].numpy()
    assert np.abs(naive - evaluate(net, x)).max() > 1e-3
    assert all(attention.mean is None for attention in net.global_attentions)


def test_a_picture_no_larger_than_a_tile_with_its_halo_is_run_whole():
    net, sizes = make(DnCNN, num_feat=4), []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    side = 32 + 2 * net.halo
    tiling.restore(net, torch.zeros(1, 1, side, side), tile=32)
    assert sizes == [(side, side)]


def test_a_long_picture_with_no_more_pixels_than_that_is_run_whole_too():
    net = Limited(10**6, MemoryError())
    tiling.restore(net, torch.zeros(1, 1, 10, 140), tile=32)
    assert net.sizes == [1400]  # of (32 + 2 * 3) ** 2 = 1444


def test_pictures_of_a_batch_keep_their_own_averages_in_tiles_and_these_have_double_precision(monkeypatch):
    net, means, gather = make(num_feat=8, attention_pool="global"), [], tiling._gather_mean
    monkeypatch.setattr(tiling, "_gather_mean", lambda *args: means.append(gather(*args)) or means[-1])
    x = torch.from_numpy(picture(2, 1, 100, 140)) * torch.tensor([1, 0.2]).view(2, 1, 1, 1)
    with torch.no_grad():
        assert (tiling.restore(net, x, tile=32) - net(x)).abs().max() < 1e-5
    assert means and {(mean.dtype, mean.shape[2:]) for mean in means} == {(torch.float64, (1, 1))}


def test_tiles_lie_on_the_grid_of_network_and_windows():
    assert tiling.Reach.of(HRANet(num_feat=4, attention_pool=3), window=8).multiple == 24
    assert tiling.Reach.of(HRANet(num_feat=4, attention_pool=8), window=8).multiple == 8
    flatten = nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=4))  # each window of 4x4 becomes its mean
    x = torch.rand(1, 1, 42, 61)
    whole, tiled = (tiling.restore(flatten, x, tile=tile, halo=3, window=4) for tile in (None, 18))
    assert torch.allclose(tiled, whole)


@pytest.mark.parametrize(("window", "multiple"), [(8, 8), (0, 1), (-8, 1), (None, 1), ([8, 8], 1)])
def test_windows_are_those_that_the_arguments_name(window, multiple):
    assert tiling.find_window({"window_size": window}) == multiple


def test_a_network_that_names_no_halo_has_one_of_32():
    torch.manual_seed(0)
    net, x = nn.Conv2d(1, 1, 9, padding=4), torch.rand(1, 1, 100, 120)
    assert tiling.Reach.of(net).halo == 32
    with torch.no_grad():
        assert torch.allclose(tiling.restore(net, x, tile=16), net(x), atol=1e-6)


def test_the_halo_beside_given_averages_is_worked_out_from_the_layers():
    # 1 (CR) + 3 blocks of two LWBs (1 + 2 each) + 6 (CD)
    assert HRANet(num_feat=4, attention_pool="global").local_halo == 25
    assert HRANet(num_feat=4).local_halo == HRANet(num_feat=4).halo == 120
    assert tiling.Reach.of(HRANet(num_feat=4, attention_pool="global", num_block=5)).halo == 37


@pytest.mark.parametrize("attention_pool", [3, "global"])
@pytest.mark.parametrize("tile", [None, 64])
def test_the_ensemble_is_the_mean_over_the_turned_pictures(attention_pool, tile):
    net = make(num_feat=8, attention_pool=attention_pool)
    side = 2 * tiling.Reach.of(net).halo + 70
    x = picture(side + 5, side)
    turns = [(k, flip) for k in range(4) for flip in (False, True)]
    expected = 0
    for k, flip in turns:
        turned = np.rot90(x[:, ::-1] if flip else x, k)
        result = np.rot90(evaluate(net, np.ascontiguousarray(turned)), -k)
        expected = expected + (result[:, ::-1] if flip else result) / 8
    actual = Denoiser(load(net), ensemble=True, tile=tile)(x)
    assert np.abs(actual - expected).max() < 1e-5
    done = []
    with torch.no_grad():
        tiling.restore(net, torch.from_numpy(x)[None, None], tile=tile, symmetries=SYMMETRIES[:2], report=done.append)
    assert done[-1] == 1 and done == sorted(done)
    assert np.abs(actual - evaluate(net, x)).max() > 1e-3


class Limited(torch.nn.Module):
    """Doubles the picture; runs out of memory on more pixels than it has room for."""

    halo, tile_multiple = 3, 1

    def __init__(self, room, error):
        super().__init__()
        self.room, self.error, self.sizes = room, error, []

    def forward(self, x):
        self.sizes.append(x.shape[-2:].numel())
        if self.sizes[-1] > self.room:
            raise self.error
        return x * 2


OUT_OF_MEMORY = [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
]  # fmt: skip


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("tile", [None, 100])
def test_tiles_are_halved_where_memory_runs_out(error, tile):
    net = Limited(40 * 40, error)
    x = torch.rand(1, 1, 130, 90)
    done = []
    assert torch.equal(tiling.restore(net, x, tile=tile, report=done.append), 2 * x)
    assert len([size for size in net.sizes if size > net.room]) <= 3  # not once for every tile
    assert done[-1] == 1 and done == sorted(done)


def test_global_attention_too_goes_on_in_smaller_tiles():
    net = make(num_feat=8, attention_pool="global")
    x = picture(120, 130)

    def run(part):
        if part.shape[-2:].numel() > 90 * 90:
            raise MemoryError
        return net(part)

    with torch.no_grad():
        result = tiling.restore(net, torch.from_numpy(x)[None, None], tile=None, run=run)
    assert np.abs(result[0, 0].numpy() - evaluate(net, x)).max() < 1e-5


def test_a_long_picture_is_divided_where_memory_runs_out():
    x = torch.rand(1, 1, 8, 900)
    assert torch.equal(tiling.restore(Limited(1600, MemoryError()), x, tile=None), 2 * x)


def test_halving_begins_at_the_picture_and_ends_at_the_smallest_tile():
    net, x = Limited(40 * 40, MemoryError()), torch.rand(1, 1, 60, 60)
    assert torch.equal(tiling.restore(net, x, tile=4096), 2 * x)
    assert [size for size in net.sizes if size > net.room] == [60 * 60]  # then tiles of 30
    net, x = Limited(22 * 22, MemoryError()), torch.rand(1, 1, 100, 100)  # 100, 50, 25, and then 16 instead of 12
    assert torch.equal(tiling.restore(net, x, tile=None), 2 * x)
    assert max(size for size in net.sizes if size <= net.room) == (tiling.SMALLEST_TILE + 2 * net.halo) ** 2


def test_memory_that_is_never_enough_is_an_error():
    with pytest.raises(MemoryError):
        tiling.restore(Limited(9, MemoryError()), torch.rand(1, 1, 100, 100), tile=None)
    for side in (1, 40):
        net, x = HRANet(num_feat=4, attention_pool="global"), torch.rand(1, 1, side, side)
        with pytest.raises(MemoryError):
            tiling.restore(net, x, tile=None, run=Limited(0, MemoryError()))


def test_another_error_is_not_tried_again_in_tiles():
    net = Limited(9, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        tiling.restore(net, torch.rand(1, 1, 100, 100), tile=None)
    assert len(net.sizes) == 1


def test_an_attention_that_is_not_run_is_told_of():
    net = HRANet(num_feat=4, attention_pool="global").eval()
    with pytest.raises(RuntimeError, match="EnhancedChannelAttention is not part"):
        tiling.restore(net, torch.rand(1, 1, 70, 90), tile=16, run=lambda part: part)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_torchs_own_failure_to_allocate_is_known():
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(failure.value)
    for text in (
        "CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "FIND was unable to find an engine to execute this computation",
    ):  # fmt: skip
        assert memory.is_out_of_memory(RuntimeError(text))
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_device_without_memory_for_the_network_is_told_of(monkeypatch):
    def refuse(self, device):
        raise RuntimeError("CUDA error: out of memory")

    denoiser = Denoiser("hranet_s_gray_s25", device="cpu")
    denoiser.device = torch.device("cuda")
    monkeypatch.setattr(torch.nn.Module, "to", refuse)
    with pytest.raises(InputError, match="device='cuda' has no memory left for hranet_s_gray_s25"):
        denoiser._prepare()


def test_bytes_per_pixel_follow_from_the_layers():
    # 16 channels in and 16 out of a convolution in fp32; the picture itself is not counted, the result is 1 channel.
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 1))
    assert memory.count_bytes_per_pixel(net, 1) == pytest.approx(memory.OVERHEAD * 4 * (16 + 16), abs=8)
    net.extend(torch.nn.Conv2d(16, 16, 1) for _ in range(3))  # what no layer reads any more is given back
    assert memory.count_bytes_per_pixel(net, 1) == pytest.approx(memory.OVERHEAD * 4 * (16 + 16), abs=8)


def test_the_limit_of_a_group_counts_and_the_file_cache_is_free(tmp_path):
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    for folder, limit in ((group, "max"), (tmp_path / "a", "1000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("700")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert list(memory._measure_cgroup(tmp_path, "/a/b", "memory.max", "memory.current")) == [450]
    assert 0 < memory.measure_free() < 2**50


def test_memory_is_free_that_the_system_and_the_first_version_of_groups_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert memory.measure_free() == memory.UNKNOWN  # a system that says nothing
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 5000 kB\n")
    assert memory.measure_free() == 5000 * 1024
    (tmp_path / "proc" / "self" / "cgroup").write_text("7:cpu,cpuacct:/\n4:hugetlb,memory:/a\n")
    group = tmp_path / "sys" / "fs" / "cgroup" / "memory" / "a"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("4000000")
    (group / "memory.usage_in_bytes").write_text("3000000")
    (group / "memory.stat").write_text("cache 9\ninactive_file 500000\n")
    assert memory.measure_free() == 1_500_000


def test_tiles_follow_from_the_free_memory(monkeypatch):
    denoiser = Denoiser(load(make(DnCNN, num_feat=4)))
    denoiser._bytes_per_pixel = 1000.0
    x = torch.zeros(1, 1, 5000, 5000, dtype=torch.uint8)
    monkeypatch.setattr(memory, "measure_free", lambda device: 2_000_000_000)
    assert denoiser._count_pixels(x) == 1_000_000  # half of it
    assert denoiser._fit_tile(x, 1_000_000) == 1000 - 2 * 17 - 6  # halo 17, down to a multiple of 8
    monkeypatch.setattr(memory, "measure_free", lambda device: 10**12)
    assert denoiser._count_pixels(x) == (restore.CPU_BUDGET - 50_000_000) // 1000  # the process stays under 4 GB
    huge = torch.zeros(1, dtype=torch.uint8).expand(1, 1, 60_000, 60_000)  # which alone takes more
    assert denoiser._count_pixels(huge) == restore.SMALLEST_BUDGET // 1000
    assert denoiser._fit_tile(x, 10**9) == restore.LARGEST_TILE
    assert denoiser._fit_tile(x, 0) == tiling.SMALLEST_TILE


@pytest.mark.parametrize("shape", [(5000, 4000, 3), (3, 5000, 4000, 1)])
def test_all_that_was_given_counts_in_the_budget_of_each_tile(monkeypatch, shape):
    """60 MB come in and 60 go out, though a grey network takes a third of them at a time."""
    denoiser = Denoiser(load(make(DnCNN, num_feat=4)), device="cpu")
    denoiser._bytes_per_pixel = 1000.0
    monkeypatch.setattr(memory, "measure_free", lambda device: 10**12)
    monkeypatch.setattr(restore, "CPU_BUDGET", 1_000_000_000)
    tiles = []
    monkeypatch.setattr(tiling, "restore", lambda *args, tile, **settings: tiles.append(tile))
    denoiser(np.broadcast_to(np.uint8(7), shape))
    assert tiles == [938 - 2 * 17] * 3  # 938 is the root of 880 MB in pixels, rounded down


def test_a_batch_goes_through_in_parts_that_fit():
    """450 pixels are two pictures of 10 x 20; a grey network takes their channels one by one."""
    x = torch.zeros(5, 3, 10, 20)
    assert [tuple(source.shape[:2]) for source, _ in restore._divide(x, x, 3, 450)] == [(2, 3), (2, 3), (1, 3)]
    assert [tuple(source.shape[:2]) for source, _ in restore._divide(x, x, 1, 1)] == [(1, 1)] * 15


# --- layouts and types ------------------------------------------------------------------------------------------------


def test_a_grey_picture_of_each_depth():
    net = make(num_feat=8)
    denoiser = Denoiser(load(net))
    for dtype, white in (("uint8", 255), ("uint16", 65535)):
        noisy = (picture(21, 34) * white).astype(dtype)
        expected = (evaluate(net, (noisy / np.float32(white)).astype(np.float32)).clip(0, 1) * white).round()
        clean = denoiser(noisy)
        assert clean.dtype == dtype and np.abs(clean - expected).max() <= 1
        assert (clean != expected).mean() < 0.01  # the last bit of fp32 may turn a rounding
    for dtype in ("float16", "float32", "float64"):
        noisy = (picture(21, 34) * 1.2 - 0.1).astype(dtype)
        clean = denoiser(noisy)
        expected = evaluate(net, noisy.astype(np.float32))
        assert clean.dtype == dtype and expected.min() < 0  # neither clipped nor rounded
        assert np.abs(clean.astype(np.float64) - expected).max() < (2e-3 if dtype == "float16" else 1e-5)


def test_every_layout_comes_back_as_it_went_in():
    net, x = make(num_feat=8), picture(2, 3, 19, 30)
    denoiser = Denoiser(load(net))
    expected = np.stack([[evaluate(net, plane) for plane in one] for one in x])
    hwc, clean = np.moveaxis(x, 1, 3), np.moveaxis(expected, 1, 3)
    field = np.zeros((19, 30), [("mask", "u1"), ("value", "f4")])["value"]  # every fifth byte
    field[:] = x[0, 0]
    cases = [
        (x[0, 0], expected[0, 0]), (hwc[0, ..., :1], clean[0, ..., :1]), (hwc[0], clean[0]), (hwc, clean),
        (hwc[..., :1], clean[..., :1]), (hwc[0, ..., ::-1], clean[0, ..., ::-1]),
        (np.asfortranarray(hwc[0]), clean[0]), (hwc[0].astype(">f4"), clean[0]), (field, clean[0, ..., 0]),
    ]  # fmt: skip
    for (noisy, wanted), is_writeable in itertools.product(cases, (True, False)):
        noisy.flags.writeable = is_writeable
        result = denoiser(noisy)
        assert result.shape == noisy.shape and result.dtype == np.float32 and np.abs(result - wanted).max() < 1e-5
    for noisy, wanted in ((x, expected), (x[0], expected[0]), (x[:, :1], expected[:, :1])):
        result = denoiser(torch.from_numpy(noisy).requires_grad_())
        assert isinstance(result, torch.Tensor) and np.abs(result.numpy() - wanted).max() < 1e-5
    assert np.array_equal(denoiser(x[0, 0]), Denoiser(load(net), tile=64)(x[0, 0]))


def test_a_colour_network_takes_rgb_as_it_is_and_says_no_to_grey():
    net = make(num_feat=8, num_in_ch=3, num_out_ch=3)
    denoiser = Denoiser(load(net, 3))
    x = picture(18, 25, 3)
    with torch.no_grad():
        expected = net(torch.from_numpy(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    restoration = denoiser.restore(x)
    assert np.abs(restoration.image - expected).max() < 1e-6 and not restoration.way
    with pytest.raises(InputError, match="1 channel .*takes 3. Take a network for grey"):
        denoiser(x[..., 0])


def test_colour_through_a_grey_network_is_told_of(caplog):
    denoiser = Denoiser(load(make(num_feat=8)))
    with caplog.at_level("INFO", logger="hranet_arch"):
        denoiser(picture(9, 9))
        assert not caplog.text
        assert denoiser.restore(picture(9, 9, 3)).way
        denoiser(picture(9, 9, 3))
    assert "channel by channel" in caplog.text


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_what_is_not_finite_is_no_picture(dtype):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)).requires_grad_(False)
    net[0].weight.fill_(3e38)
    net[1].weight.fill_(3e38)
    with pytest.raises(InputError, match="net gives values that are not finite"):
        Denoiser(load(net))(np.ones((4, 5), dtype))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    params = make(num_feat=4).state_dict()
    params["coarse_denoising.blocks.0.lwb1.norm.weight"][1] = math.nan  # of which a fused ReLU makes 0
    torch.save({"params": params}, tmp_path / "net.pth")
    with pytest.raises(InputError, match="not finite, in 1 of"):
        Denoiser(tmp_path / "net.pth")


def test_bf16_is_near_fp32(any_precision):
    net, x = make(num_feat=8), picture(40, 40)
    difference = np.abs(Denoiser(load(net), precision="bf16")(x) - evaluate(net, x))
    assert 0 < difference.mean() < 0.01


def test_what_bf16_gives_is_scaled_to_the_depth_in_full_precision(any_precision):
    net, x = torch.nn.Conv2d(1, 1, 1).requires_grad_(False), (picture(32, 32) * 65535).astype(np.uint16)
    net.weight.fill_(0.5)
    net.bias.fill_(0.25)
    with arithmetic.autocast("bf16", torch.device("cpu")):
        output = net(torch.from_numpy(x / np.float32(65535))[None, None])
    assert output.dtype == torch.bfloat16
    clean = Denoiser(load(net), device="cpu", precision="bf16")(x)
    assert np.array_equal(clean, (output[0, 0].float() * 65535).round().numpy())


def test_fp32_is_not_tf32_while_a_picture_is_restored(monkeypatch):
    seen = []
    monkeypatch.setattr(arithmetic, "full_float32", lambda device: seen.append(device) or nullcontext())
    Denoiser(load(make(num_feat=4)), device="cpu")(picture(8, 8))
    assert seen == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), "4 channels .* alpha"),
        (np.zeros((4, 4, 2), np.uint8), "2 channels"),
        (np.zeros((4, 0), np.uint8), "at least one pixel"),
        (np.zeros(4, np.uint8), r"\(4,\).*allowed are"),
        (np.zeros((4, 4), np.int32), "int32.*uint8, uint16"),
        (np.zeros((4, 4), bool), "bool.*uint8, uint16"),
        (np.zeros((4, 4), complex), "complex128"),
        (torch.zeros(4, 4), r"Tensor \(4, 4\).*\(c, h, w\)"),
        (torch.zeros(1, 4, 4, dtype=torch.bfloat16), "bfloat16"),
        (np.full((4, 4), 255.0), "from 255 to 255 .*Divide by the value of white"),
        (np.full((4, 4), np.nan), r"from nan.*\[0, 1\] is allowed"),
        (np.full((4, 4), -np.inf), "from -inf"),
        ([[0.0]], "list .*NumPy array or a torch tensor"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        Denoiser(load(make(num_feat=8)))(image)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp16"}, {"tile": 0}, {"tile": 15}, {"tile": True}, {"tile": 64.0}, {"tile": np.float32(64)},
        {"device": "tpu"}, {"backend": "onnx"},
    ],
)  # fmt: skip
def test_settings_that_are_not_allowed_are_refused(settings):
    with pytest.raises(InputError, match=str(next(iter(settings)))):
        Denoiser(load(make(num_feat=8)), **settings)


def test_a_tile_may_be_numpys_number():
    tile = Denoiser(load(make(num_feat=4)), tile=np.int64(64)).tile
    assert tile == 64 and type(tile) is int


def test_the_noise_level_goes_to_networks_that_take_it():
    net = make(FFDNet, num_feat=8)
    denoiser = Denoiser(load(net))
    x = (0.5 + 20 / 255 * np.random.default_rng(0).normal(size=(256, 256))).astype(np.float32)
    assert np.abs(denoiser(x, sigma=40) - evaluate(net, x, 40)).max() < 1e-6
    assert denoiser.restore(x, sigma="auto").sigma == pytest.approx(20, abs=1)
    for number in (np.int64(40), np.float32(40)):
        assert np.array_equal(denoiser(x, sigma=number), denoiser(x, sigma=40))
    for sigma, message in ((None, "must be told"), (-1, "-1"), (300, "300"), ("25", "'25'"), (True, "True"),
                           (np.float32(300), "300"), (np.True_, "True")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            denoiser(x, sigma=sigma)
    with pytest.raises(InputError, match="not told the noise level"):
        Denoiser(load(make(num_feat=8)))(x, sigma=25)


def test_the_noise_of_a_batch_is_estimated_from_all_of_it():
    """The variance is the mean of both: sqrt((10^2 + 30^2) / 2)."""
    rng = np.random.default_rng(0)
    x = np.stack([0.5 + sigma / 255 * rng.normal(size=(128, 128, 1)) for sigma in (10, 30)]).astype(np.float32)
    found = Denoiser(load(make(FFDNet, num_feat=8))).restore(x, sigma="auto").sigma
    assert found == pytest.approx(500**0.5, rel=0.06)


# --- networks from files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["params", "params_ema", "bare", "module."])
def test_checkpoints_of_every_layout_are_loaded_with_batchnorms_folded(tmp_path, layout):
    net, other = make(num_feat=8, num_block=4), HRANet(num_feat=8, num_block=4)
    tensors = {("module." if layout == "module." else "") + name: value for name, value in net.state_dict().items()}
    content = {layout: tensors} if layout.startswith("params") else tensors
    if layout == "params_ema":
        content["params"] = other.state_dict()
    torch.save(content, tmp_path / "a.pth")
    loaded = networks.load_network(tmp_path / "a.pth")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert (loaded.name, loaded.channels, loaded.takes_sigma) == ("a", 1, False)
    x = picture(20, 20)
    assert np.abs(evaluate(loaded.module, x) - evaluate(net, x)).max() < 1e-5


def test_weights_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert networks.find_weights("~/a.pth") == tmp_path / "a.pth"


def release(folder, name, net, **texts):
    """A weight file as the release script writes it."""
    folder.mkdir(exist_ok=True)
    save_file(net.state_dict(), folder / f"{name}.safetensors", {"task": "denoise", **texts})


def test_released_networks_are_known_by_name_and_say_what_they_are(tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    monkeypatch.setattr(networks, "WEIGHTS", weights)
    assert networks.list_released() == {}
    with pytest.raises(InputError, match="None are released yet"):
        networks.load_network("hranet_gray_s25")
    net = make(num_feat=8, attention_pool="global", num_in_ch=3, num_out_ch=3).fold_batchnorm()
    arguments = {"num_feat": 8, "attention_pool": "global", "num_in_ch": 3, "num_out_ch": 3}
    network_g = json.dumps({"type": "HRANet", **arguments})
    release(weights, "hranet_color_blind", net, network_g=network_g, color="rgb", sigma="[0, 55]", card='{"psnr": 31}')
    released = networks.list_released()
    description = released["hranet_color_blind"]
    assert (description.color, description.sigma, description.is_blind) == ("rgb", (0, 55), True)
    assert description.card == {"psnr": 31}
    loaded = networks.load_network("hranet_color_blind")
    assert loaded.channels == 3 and loaded.module.attention_pool == "global"
    with pytest.raises(InputError, match="Did you mean 'hranet_color_blind'"):
        networks.load_network("hranet_colour_blind")


def test_a_checkpoint_of_ours_says_what_leaves_no_trace_in_its_shapes(tmp_path):
    net = make(num_feat=8, attention_pool="global")
    network_g = {"type": "HRANet", "num_feat": 8, "attention_pool": "global"}
    torch.save({"params": net.state_dict(), "network_g": json.dumps(network_g)}, tmp_path / "a.pth")
    assert networks.load_network(tmp_path / "a.pth").module.attention_pool == "global"
    torch.save({"params": net.state_dict()}, tmp_path / "b.pth")
    assert networks.load_network(tmp_path / "b.pth").module.attention_pool == 8
    assert networks.load_network(tmp_path / "b.pth", network_g).module.attention_pool == "global"


def test_a_trained_checkpoint_says_its_network(recipe, run, tmp_path):
    recipe["network_g"]["attention_pool"] = "global"
    recipe["datasets"]["train"]["sigma"] = [5, 25]
    assert run("train", recipe) == 0
    network = networks.load_network("experiments/tiny/models/net_g_8.pth")
    assert network.module.attention_pool == "global"
    assert (network.description.sigma, network.description.task) == ((5, 25), "denoise")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"network_g": "{"}, "'network_g' is not JSON"),
        ({"network_g": "[1]"}, "must be a dictionary"),
        ({"network_g": '{"type": "SwinIR"}'}, "'SwinIR' is not one of .* `basicsr compare` run every"),
        ({"network_g": '{"type": "HRANet", "num_feat": 5}'}, "do not fit"),
        ({"network_g": '{"type": "HRANet", "num_fea": 4}'}, "num_fea"),
        ({"sigma": "[25, 5]"}, "'sigma' is"),
        ({"sigma": '"25"'}, "'sigma' is"),
        ({"color": "blue"}, "'gray' or 'rgb'"),
    ],
)
def test_weights_that_say_what_cannot_be_are_refused_by_name(tmp_path, texts, message):
    release(tmp_path, "a", make(num_feat=8), **texts)
    with pytest.raises(InputError, match=message) as refusal:
        networks.load_network(tmp_path / "a.safetensors")
    assert str(tmp_path / "a.safetensors") in str(refusal.value)


def test_suffixes_in_capitals_are_known(tmp_path):
    source = networks.list_released()["hranet_s_gray_s25"].path
    (tmp_path / "net.SAFETENSORS").write_bytes(source.read_bytes())
    assert networks.load_network(tmp_path / "net.SAFETENSORS").description.sigma == 25
    assert str(networks.find_weights("~nobody-here/net.pth")) == "~nobody-here/net.pth"


def test_files_that_hold_no_network_are_refused(tmp_path):
    torch.save({"params": {"weight": torch.zeros(3)}}, tmp_path / "a.pth")
    for name in ("a.pth", "b.pth", "c.safetensors"):
        (tmp_path / "c.safetensors").write_bytes(b"x" * 20)
        with pytest.raises(InputError, match=name):
            networks.load_network(tmp_path / name)


# --- which of the released --------------------------------------------------------------------------------------------


def catalogue(*names):
    """``gray_25``, ``rgb_0-55``, ``gray_told``, ``rgb_photo`` ...: colour and noise level by name; of the last none."""
    found = {}
    for name in names:
        color, level = name.split("_")
        known = {"told": (0, 75), "photo": None}
        sigma = known[level] if level in known else tuple(map(float, level.split("-")))
        sigma = sigma[0] if sigma and len(sigma) == 1 else sigma
        network_g = {"type": "FFDNet" if level == "told" else "HRANet"}
        found[name] = networks.Description(name, name, network_g, color, sigma)
    return found


@pytest.mark.parametrize(
    ("names", "color", "sigma", "chosen"),
    [
        (["gray_15", "gray_25", "gray_50", "gray_0-55"], "gray", 24.0, "gray_25"),
        (["gray_15", "gray_25", "gray_50", "gray_0-55"], "gray", 35.0, "gray_0-55"),
        (["gray_15", "gray_25", "gray_50", "gray_0-55"], "gray", 70.0, "gray_0-55"),  # 70 / 55 < 70 / 50
        (["gray_15", "gray_25", "gray_50"], "gray", 90.0, "gray_50"),
        (["gray_15", "gray_25", "gray_50"], "gray", 0.0, "gray_15"),
        (["gray_15", "gray_0-55"], "gray", "blind", "gray_0-55"),
        (["gray_15", "gray_0-55"], "gray", None, "gray_0-55"),
        (["gray_15", "gray_told"], "gray", 60.0, "gray_told"),
        (["gray_25", "rgb_15"], "rgb", 25.0, "rgb_15"),
        (["gray_25", "gray_15"], "rgb", 25.0, "gray_25"),
        (["gray_25", "gray_15", "gray_told"], "gray", None, "gray_15"),
        (["rgb_25", "rgb_photo"], "rgb", 24.0, "rgb_25"),
        (["rgb_25", "rgb_photo"], "rgb", 3.0, "rgb_photo"),
        (["gray_25", "rgb_photo"], "rgb", "blind", "rgb_photo"),
        (["rgb_photo", "rgb_0-55"], "rgb", 3.0, "rgb_0-55"),
    ],
)
def test_the_network_that_fits_the_picture_is_chosen(names, color, sigma, chosen):
    assert networks.choose_denoiser(catalogue(*names), color, sigma).name == chosen


@pytest.mark.parametrize(("sigma", "chosen"), [(24.0, "wide"), (35.0, "wide blind"), ("blind", "wide blind")])
def test_of_networks_that_fit_alike_the_widest_is_taken(sigma, chosen):
    levels = {"narrow": 25.0, "wide": 25.0, "narrow blind": (0.0, 55.0), "wide blind": (0.0, 55.0)}
    released = {
        name: networks.Description(
            name, name, {"type": "HRANet", "num_feat": 64 if "wide" in name else 32}, "gray", level
        )
        for name, level in levels.items()
    }
    assert networks.choose_denoiser(released, "gray", sigma).name == chosen


@pytest.mark.parametrize(
    ("names", "sigma", "chosen"),
    [
        (["rgb_25", "rgb_photo", "rgb_0-55"], 24.0, "rgb_photo"),
        (["rgb_25", "rgb_photo", "rgb_0-55"], None, "rgb_photo"),
        (["rgb_15", "rgb_25", "gray_photo"], 24.0, "rgb_25"),
    ],
)
def test_an_estimate_does_not_say_that_noise_is_white(names, sigma, chosen):
    assert networks.choose_denoiser(catalogue(*names), "rgb", sigma, is_estimated=True).name == chosen


@pytest.mark.parametrize(
    ("names", "color", "sigma", "message"),
    [
        ([], "gray", 25.0, "No network that takes noise out of pictures is released yet. .*--model FILE"),
        (["rgb_25"], "gray", 25.0, "sigma 25, grey. Released: rgb_25"),
        (["gray_25"], "gray", "blind", "a blind network"),
        (["gray_told"], "gray", None, "a blind network"),
    ],
)
def test_no_network_that_fits_is_an_error(names, color, sigma, message):
    with pytest.raises(InputError, match=message):
        networks.choose_denoiser(catalogue(*names), color, sigma)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_denoiser_brings_neither_basicsr_nor_torchvision():
    code = "from hranet_arch import Denoiser; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"basicsr", "torchvision", "skimage", "cv2", "PIL", "tifffile", "torch._dynamo"}
    code = "from hranet_arch import HRANet; import sys; print('hranet_arch.restore' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_product_of_settings_runs_together(any_precision):
    x = (picture(30, 30, 3) * 255).astype(np.uint8)
    net = load(make(num_feat=8))
    for precision, tile, ensemble in itertools.product(restore.PRECISIONS, (None, 16), (False, True)):
        assert Denoiser(net, precision=precision, tile=tile, ensemble=ensemble)(x).shape == x.shape
