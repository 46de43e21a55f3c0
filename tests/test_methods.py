"""The compared methods: networks from their weights alone, the classical ones, super-resolution."""

import importlib.util
import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from hranet_arch import arithmetic, complexity, fidelity, methods, noise, registration
from hranet_arch.errors import InputError
from tests.conftest import REPOSITORY

SET5 = REPOSITORY.parent / "shared" / "datasets" / "Set5"

needs_spandrel = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None, reason="needs spandrel: the extra [compare]"
)


def make_task(name="denoise", color="gray", level=25.0, **others):
    return methods.Task(name, color, level, torch.device("cpu"), **{"precision": "fp32", "tile": 0, **others})


def build(name, **arguments):
    torch.manual_seed(0)
    return registration.ARCH_REGISTRY.get(name)(**arguments).eval()


def smooth(shape):
    """Slow waves: what every denoiser can clean."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    gray = (0.5 + 0.3 * np.sin(y / 9) * np.cos(x / 11)).astype(np.float32)
    return gray if len(shape) == 2 else np.stack([gray, gray * 0.8, gray**2], axis=-1)


# --- networks ---------------------------------------------------------------------------------------------------------

SWINIR = {
    "upscale": 1, "img_size": 16, "window_size": 8, "img_range": 1.0, "depths": [2], "embed_dim": 12, "num_heads": [2],
    "mlp_ratio": 2, "upsampler": "", "resi_connection": "1conv",
}  # fmt: skip


def test_weights_may_lie_beside_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "experiments").mkdir()
    torch.save({"params": build("HRANet", num_feat=8).state_dict()}, tmp_path / "experiments" / "net.pth")
    method = methods.make_method({"weights": "../experiments/net.pth"}, make_task(), tmp_path / "weights")
    assert method.arguments["num_feat"] == 8
    (tmp_path / "elsewhere" / "weights").mkdir(parents=True)
    (tmp_path / "weights").symlink_to(tmp_path / "elsewhere" / "weights")
    (tmp_path / "experiments").rename(tmp_path / "elsewhere" / "experiments")
    assert methods.make_method({"weights": "../experiments/net.pth"}, make_task(), tmp_path / "weights")


@needs_spandrel
@pytest.mark.parametrize(("color", "shape"), [("gray", (37, 41)), ("rgb", (16, 23, 3))])
def test_spandrel_recognises_swinir_from_weights_alone(tmp_path, color, shape):
    """The same output as BasicSR's own SwinIR with its arguments given; padded to whole windows, and not clipped."""
    network = build("SwinIR", in_chans=1 if color == "gray" else 3, **SWINIR)
    torch.save({"params": network.state_dict()}, tmp_path / "swinir.pth")
    arguments = {"type": "SwinIR", "in_chans": 1 if color == "gray" else 3, **SWINIR}
    picture = smooth(shape) * 2 - 0.5  # beyond [0, 1]
    outputs = [
        methods.make_method(entry, make_task(color=color), tmp_path)(picture)
        for entry in ({"weights": "swinir.pth"}, {"weights": "swinir.pth", "network_g": arguments})
    ]
    assert outputs[0].shape == shape and outputs[0].max() > 1
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


def test_arguments_that_the_weights_shapes_do_not_show_must_be_the_files(tmp_path):
    given = {"type": "HRANet", "num_feat": 4}
    network = build(**{"name": "HRANet", "num_feat": 4, "attention_pool": "global"})
    stored = json.dumps({**given, "attention_pool": "global"})
    torch.save({"params": network.state_dict(), "network_g": stored}, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"attention_pool: 'global' \(in network_g 8\).*or leave it out"):
        methods.make_method({"weights": "net.pth", "network_g": given}, make_task(), tmp_path)
    assert methods.make_method({"weights": "net.pth"}, make_task(), tmp_path).arguments["attention_pool"] == "global"


@needs_spandrel
@pytest.mark.parametrize(("task", "level", "scale"), [("sr", 2.0, 2), ("jpeg", 10.0, 1)])
def test_networks_of_spandrel_that_are_told_nothing_do_other_tasks(tmp_path, task, level, scale):
    upsampler = {"upscale": 2, "upsampler": "pixelshuffledirect"} if scale == 2 else {}
    network = build("SwinIR", in_chans=3, **SWINIR | upsampler)
    torch.save({"params": network.state_dict()}, tmp_path / "swinir.pth")
    method = methods.make_method({"weights": "swinir.pth"}, make_task(task, "rgb", level), tmp_path)
    picture = smooth((16, 24, 3))
    with torch.inference_mode():
        expected = network(torch.from_numpy(picture).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(method(picture), expected, atol=1e-5)


@needs_spandrel
def test_drunet_is_told_the_noise_level(tmp_path):
    """spandrel itself would fill the map with 15 whatever the noise."""
    from spandrel.architectures.DRUNet import DRUNet

    torch.manual_seed(0)
    network = DRUNet(in_nc=2, out_nc=1, nc=[4, 4, 4, 4], nb=2).eval()
    torch.save(network.state_dict(), tmp_path / "drunet.pth")
    picture = smooth((16, 24))
    for sigma in (15.0, 50.0):
        output = methods.make_method({"weights": "drunet.pth"}, make_task(level=sigma), tmp_path)(picture)
        given = np.stack([picture, np.full_like(picture, sigma / 255)])[None]
        with torch.inference_mode():
            expected = network(torch.from_numpy(given))[0, 0].numpy()
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_weights_that_are_missing_or_for_others_are_named(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"a model")
    for weights, message in (
        ("hranet_gray_s52", "Put them there, or set weights_root. Did you mean 'hranet_gray_s15'"),
        ("net.onnx", "net.onnx: an ONNX model; give the weights that it was made of."),
    ):
        with pytest.raises(InputError, match=message):
            methods.make_method({"weights": weights}, make_task(), tmp_path)


@needs_spandrel
def test_weights_of_nobody_are_refused(tmp_path):
    torch.save({"params": {"a.weight": torch.zeros(3)}}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd.pth: spandrel does not recognise these weights. Name 'network_g'"):
        methods.make_method({"weights": "odd.pth"}, make_task(), tmp_path)


def test_without_spandrel_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    torch.save({"params": {"a.weight": torch.zeros(3)}}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"not the weights of HRANet.*pip install 'hranet-arch\[compare\]'"):
        methods.make_method({"weights": "odd.pth"}, make_task(), tmp_path)


NETWORKS = {
    "RIDNet": {"in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1, "img_range": 1.0},
    "EDSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 1, "img_range": 1.0},
    "RCAN": {
        "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 1, "num_block": 1, "squeeze_factor": 4,
        "upscale": 1, "img_range": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_basicsr_are_built_by_their_arguments(tmp_path, name):
    torch.save({"params_ema": build(name, **NETWORKS[name]).state_dict()}, tmp_path / "x.pth")
    entry = {"weights": "x.pth", "network_g": {"type": name, **NETWORKS[name]}}
    method = methods.make_method(entry, make_task(color="rgb"), tmp_path)
    assert method(smooth((20, 24, 3))).shape == (20, 24, 3) and method.type == name
    with pytest.raises(InputError, match=rf"{name} (does not take grey pictures|makes \(48, 48, 3\) of \(48, 48\))"):
        methods.make_method(entry, make_task(), tmp_path)


def test_large_pictures_run_in_tiles_and_give_the_same(tmp_path):
    network = build("DnCNN", num_feat=4, num_conv=3, bn=False)
    torch.save({"params": network.state_dict()}, tmp_path / "x.pth")
    picture = smooth((70, 83))
    whole, tiled = (methods.make_method({"weights": "x.pth"}, make_task(tile=tile), tmp_path) for tile in (0, 32))
    np.testing.assert_allclose(tiled(picture), whole(picture), atol=1e-6)
    assert whole.fingerprint != tiled.fingerprint


def test_whatever_changes_a_method_changes_its_fingerprint(tmp_path):
    method = methods.make_method({"method": "non_local_means"}, make_task(), tmp_path)
    changes = [{}, {"enlarge_first": True}, {"channel": "y"}, {"ensemble": True}, {"versions": {"x": "2"}}]
    assert len({replace(method, **change).fingerprint for change in changes}) == 5


@pytest.mark.parametrize("tile", (0, 32))
def test_an_ensemble_is_the_mean_over_the_turned_and_mirrored_pictures(tmp_path, tile):
    torch.save({"params": build("DnCNN", num_feat=4, num_conv=3, bn=False).state_dict()}, tmp_path / "x.pth")
    alone = methods.make_method({"weights": "x.pth"}, make_task(), tmp_path)
    together = methods.make_method({"weights": "x.pth", "ensemble": True}, make_task(tile=tile), tmp_path)
    picture = smooth((70, 83))
    turned = [np.rot90(alone(np.rot90(picture, turns).copy()), -turns) for turns in range(4)]
    turned += [np.rot90(alone(np.rot90(picture.T, turns).copy()), -turns).T for turns in range(4)]
    assert abs(together(picture) - alone(picture)).max() > 1e-4
    np.testing.assert_allclose(together(picture), np.mean(turned, axis=0), atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_operations_are_counted_without_computing_in_another_precision(precision, tmp_path, monkeypatch):
    """As in fp32: 9 * 12 pixels * 9 * (4 + 4 * 4 + 4)."""
    monkeypatch.setattr(arithmetic, "autocast", None)
    network = methods._cast(build("DnCNN", num_feat=4, num_conv=3, bn=False), precision)
    assert complexity.count_macs(network, (1, 9, 12)) == 9 * 12 * 9 * (4 + 4 * 4 + 4)


def test_an_ensemble_costs_eight_times_its_network(tmp_path):
    torch.save({"params": build("DnCNN", num_feat=4, num_conv=3, bn=False).state_dict()}, tmp_path / "x.pth")
    method = methods.make_method({"weights": "x.pth", "ensemble": True}, make_task(), tmp_path)
    size = (1, 9, 12)
    assert complexity.count_macs(method.costed, size) == 8 * complexity.count_macs(method.network, size)
    x = torch.from_numpy(smooth((9, 12)))[None, None]
    with torch.inference_mode():
        np.testing.assert_allclose(method.costed(x)[0, 0], method(smooth((9, 12))), atol=1e-6)


def test_costs_of_a_network_of_windows_are_those_of_whole_windows(tmp_path):
    options = {
        "upscale": 1, "in_chans": 3, "img_size": 16, "window_size": 8, "img_range": 1.0, "depths": [1], "embed_dim": 8,
        "num_heads": [2], "mlp_ratio": 1, "upsampler": "", "resi_connection": "1conv",
    }  # fmt: skip
    torch.save({"params": build("SwinIR", **options).state_dict()}, tmp_path / "x.pth")
    entry = {"weights": "x.pth", "network_g": {"type": "SwinIR", **options}}
    method = methods.make_method(entry, make_task(color="rgb"), tmp_path)
    odd, whole = (3, 13, 16), (3, 16, 16)
    assert complexity.count_macs(method.costed, odd) == complexity.count_macs(method.network, whole) > 0
    with torch.inference_mode():
        assert method.costed(torch.rand(1, *odd)).shape == (1, *odd)


def test_a_network_edited_in_a_checkout_of_basicsr_is_another(tmp_path, monkeypatch):
    assert methods._hash_code(torch.nn.Conv2d(1, 1, 1)) is None
    source = tmp_path / "x_arch.py"
    Own = type("Own", (torch.nn.Conv2d,), {"__module__": "basicsr.archs.x_arch"})
    monkeypatch.setattr(methods.inspect, "getsourcefile", lambda _: str(source))
    hashes = [source.write_text(text) and methods._hash_code(Own(1, 1, 1)) for text in ("a = 1", "a = 2")]
    assert None not in hashes and hashes[0] != hashes[1]


def test_a_classical_method_has_no_ensemble(tmp_path):
    entry = {"method": "non_local_means", "ensemble": True}
    with pytest.raises(InputError, match="non_local_means cannot have ensemble: true; networks can. Leave it out."):
        methods.make_method(entry, make_task(), tmp_path)


def test_bf16_is_close_to_fp32_and_measured_apart(tmp_path):
    torch.save({"params": build("DnCNN", num_feat=4, num_conv=3, bn=False).state_dict()}, tmp_path / "x.pth")
    exact, rough = (
        methods.make_method({"weights": "x.pth"}, make_task(precision=precision), tmp_path)
        for precision in ("fp32", "bf16")
    )
    picture = smooth((20, 20))
    difference = abs(exact(picture) - rough(picture)).max()
    assert 0 < difference < 0.02 and rough(picture).dtype == np.float32
    assert exact.fingerprint != rough.fingerprint


def test_a_network_in_bf16_gives_float32_and_says_how_it_may_be_cut():
    network = build("HRANet", num_feat=4, attention_pool="global")
    cast = methods._cast(network, "bf16")
    assert cast(torch.rand(1, 1, 9, 9)).dtype is torch.float32
    assert (cast.local_halo, cast.tile_multiple) == (network.local_halo, network.tile_multiple)
    assert list(cast.global_attentions) == network.global_attentions


# --- super-resolution -------------------------------------------------------------------------------------------------


def test_bicubic_keeps_a_slope_and_enlarges(tmp_path):
    """A plane is reproduced by cubic interpolation, away from the border."""
    small = np.add.outer(np.arange(12), 2 * np.arange(10)).astype(np.float32) / 40
    large = methods.make_method({"method": "input"}, make_task("sr", "gray", 2.0), tmp_path)(small)
    expected = np.add.outer((np.arange(24) - 0.5) / 2, 2 * (np.arange(20) - 0.5) / 2) / 40
    assert large.shape == (24, 20)
    np.testing.assert_allclose(large[6:-6, 6:-6], expected[6:-6, 6:-6], atol=1e-6)


PUBLISHED_BICUBIC = {2: (33.66, 0.9299), 3: (30.39, 0.8682), 4: (28.42, 0.8104)}


@pytest.mark.skipif(not SET5.is_dir(), reason="needs Set5 in ../shared/datasets")
@pytest.mark.parametrize("scale", PUBLISHED_BICUBIC)
def test_bicubic_on_set5_is_what_is_published(tmp_path, scale):
    method = methods.make_method({"method": "input"}, make_task("sr", "rgb", float(scale)), tmp_path)
    scores = []
    for path in sorted((SET5 / f"x{scale}/gt").iterdir()):
        clean, small = (cv2.imread(str(one))[..., ::-1] for one in (path, SET5 / f"x{scale}/lq" / path.name))
        score = fidelity.score_picture(method(small / np.float32(255)), clean, "sr", scale)
        scores.append((score["psnr"], score["ssim"]))
    psnr, ssim = np.mean(scores, axis=0)
    assert len(scores) == 5
    assert (psnr, ssim) == (pytest.approx(PUBLISHED_BICUBIC[scale][0], abs=0.02),
                            pytest.approx(PUBLISHED_BICUBIC[scale][1], abs=0.0005))  # fmt: skip


def test_a_network_on_the_luma_leaves_the_colours_to_bicubic(tmp_path):
    """A DnCNN that finds no noise: what comes out is the bicubic picture."""
    network = build("DnCNN", num_feat=4, num_conv=3, bn=False)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    torch.save({"params": network.state_dict()}, tmp_path / "x.pth")
    task = make_task("sr", "rgb", 3.0)
    entry = {"weights": "x.pth", "enlarge_first": True, "channel": "y"}
    method = methods.make_method(entry, task, tmp_path)
    picture = smooth((16, 20, 3))
    bicubic = methods.make_method({"method": "input"}, task, tmp_path)(picture)
    np.testing.assert_allclose(method(picture), bicubic, atol=1e-4)
    assert method.input_size(90, 120) == (1, 90, 120)


def test_a_grey_picture_stays_grey_and_reaches_a_network_on_the_luma_as_it_is(tmp_path):
    """A network that sees all colours gets it as three equal channels; grey in, the same grey out."""
    network = build("DnCNN", num_feat=4, num_conv=3, bn=False)
    torch.save({"params": network.state_dict()}, tmp_path / "luma.pth")
    entry = {"weights": "luma.pth", "enlarge_first": True, "channel": "y"}
    task, picture = make_task("sr", "rgb", 2.0), smooth((16, 20))
    with torch.inference_mode():
        expected = network(torch.from_numpy(methods.enlarge(picture, 2))[None, None])[0, 0].numpy()
    np.testing.assert_allclose(methods.make_method(entry, task, tmp_path)(picture), expected, atol=1e-6)
    color = build("DnCNN", num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=3, bn=False)
    for parameter in color.parameters():
        torch.nn.init.zeros_(parameter)
    torch.save({"params": color.state_dict()}, tmp_path / "color.pth")
    unchanged = methods.make_method({"weights": "color.pth", "enlarge_first": True}, task, tmp_path)(picture)
    np.testing.assert_allclose(unchanged, methods.enlarge(picture, 2), atol=1e-6)


def test_grey_out_of_a_colour_network_is_its_luma(monkeypatch, tmp_path):
    """BT.601: of pure red 65.481 / 219."""
    network = build("DnCNN", num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=3)
    torch.save({"params": network.state_dict()}, tmp_path / "x.pth")
    method = methods.make_method({"weights": "x.pth"}, make_task(color="rgb"), tmp_path)
    monkeypatch.setattr(methods.Method, "_run_network", lambda self, picture: picture * np.float32([1, 0, 0]))
    np.testing.assert_allclose(method(np.ones((4, 5), np.float32)), 65.481 / 219, rtol=1e-5)


def test_a_network_that_must_be_told_the_noise_denoises_only(tmp_path):
    torch.save({"params": build("FFDNet", num_feat=4, num_conv=3).state_dict()}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="FFDNet must be told a noise level; this comparison's task, jpeg, has none"):
        methods.make_method({"weights": "x.pth"}, make_task("jpeg", "gray", 10.0), tmp_path)


def test_a_network_that_enlarges_is_given_the_small_picture(tmp_path):
    arguments = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
    torch.save({"params": build("MSRResNet", **arguments).state_dict()}, tmp_path / "x.pth")
    entry = {"weights": "x.pth", "network_g": {"type": "MSRResNet", **arguments}}
    method = methods.make_method(entry, make_task("sr", "rgb", 2.0), tmp_path)
    assert method(smooth((10, 12, 3))).shape == (20, 24, 3) and method.input_size(90, 120) == (3, 45, 60)
    with pytest.raises(InputError, match=r"makes \(96, 96, 3\) of \(48, 48, 3\); \(192, 192, 3\) is due"):
        methods.make_method(entry, make_task("sr", "rgb", 4.0), tmp_path)


# --- classical methods ------------------------------------------------------------------------------------------------

PACKAGES = {"bm3d": "bm3d", "wavelet": "pywt", "non_local_means": "skimage"}


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 3)], ids=["gray", "rgb"])
@pytest.mark.parametrize("name", methods.CLASSICAL)
@pytest.mark.filterwarnings("default")  # of packages that are not ours
def test_classical_methods_take_most_of_the_noise_away(tmp_path, name, shape):
    """Noise of 25 is 20.17 dB; on slow waves each gains 5 dB at least, in colour too."""
    if importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"needs the package {PACKAGES[name]}")
    clean = smooth(shape)
    noisy = noise.add_test_noise(clean, 25)
    method = methods.make_method({"method": name}, make_task(color="gray" if len(shape) == 2 else "rgb"), tmp_path)
    before, after = (-10 * math.log10(np.mean((one - clean) ** 2)) for one in (noisy, method(noisy)))
    assert before == pytest.approx(20.17, abs=0.3) and after > before + 5
    assert method(noisy).dtype == np.float32


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    def find_nothing(name):
        raise methods.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(methods.metadata, "version", find_nothing)
    with pytest.raises(InputError, match=r"bm3d needs the package bm3d: pip install 'hranet-arch\[bm3d\]'"):
        methods.make_method({"method": "bm3d"}, make_task(), tmp_path)
    with pytest.raises(InputError, match=r"wavelet denoises; this comparison's task is sr"):
        methods.make_method({"method": "wavelet"}, make_task("sr", "rgb", 2.0), tmp_path)
