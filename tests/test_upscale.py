"""``basicsr upscale`` and ``dejpeg``, and their Python classes: what enlarging and JPEGs add to denoising's tests."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from hranet_arch import HRANet, memory, networks, pictures, restore, tiling
from hranet_arch.errors import InputError
from hranet_arch.resize import resize_bicubic
from hranet_arch.restore import Deblocker, Denoiser, Upscaler
from tests.conftest import run_cli
from tests.test_restore import load, make, picture

RGB = {"num_in_ch": 3, "num_out_ch": 3}


def make_bicubic(scale, **arguments):
    """A network whose residual is zero: its result is the bicubic enlargement."""
    net = HRANet(num_feat=4, upscale=scale, **arguments).eval()
    torch.nn.init.zeros_(net.detail_enhancement[-1].weight)
    torch.nn.init.zeros_(net.detail_enhancement[-1].bias)
    return net


def enlarge(pixels, scale, white=1.0):
    """The oracle: ``(h, w)`` or ``(h, w, c)`` in float64, not rounded."""
    planes = torch.from_numpy(np.atleast_3d(pixels) / white).double().permute(2, 0, 1)
    large = resize_bicubic(planes, scale).permute(1, 2, 0).numpy() * white
    return large.reshape(*large.shape[:2], *pixels.shape[2:])


def evaluate(net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x)[None, None])[0, 0].numpy()


def assert_nearest(found, exact, white=255):
    """The nearest whole numbers, but for what lies within fp32's rounding of the middle of two."""
    is_tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-5 * white
    assert found.shape == exact.shape and is_tie.mean() < 0.05
    assert np.array_equal(found[~is_tie], exact.clip(0, white).round()[~is_tie])


# --- from Python ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_without_a_residual_the_result_is_bicubic_in_every_layout(scale):
    upscaler = Upscaler(load(make_bicubic(scale)))
    x = picture(2, 9, 14, 3)
    exact = np.stack([enlarge(one, scale) for one in x])
    cases = [(x[0, ..., 0], exact[0, ..., 0]), (x[0, ..., :1], exact[0, ..., :1]), (x[0], exact[0]), (x, exact)]
    for given, wanted in cases:
        found = upscaler(given)
        assert found.shape == wanted.shape and found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-6
    for given, wanted in ((x, exact), (x[0], exact[0])):
        found = upscaler(torch.from_numpy(np.moveaxis(given, -1, -3)).double())
        assert found.dtype == torch.float64 and found.is_contiguous()
        assert np.abs(np.moveaxis(found.numpy(), -3, -1) - wanted).max() < 1e-6


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535)])
def test_whole_numbers_are_the_nearest(dtype, white):
    x = (picture(31, 20, 3) * white).astype(dtype)
    exact = enlarge(x.astype(np.float64), 2, white)
    found = Upscaler(load(make_bicubic(2, **RGB), 3))(x)
    if dtype == "uint8":
        assert_nearest(found, exact)
    assert found.dtype == dtype and np.abs(found - exact.clip(0, white)).max() < 0.51


def test_the_package_has_them_by_name():
    import hranet_arch

    assert (hranet_arch.Upscaler, hranet_arch.Deblocker, hranet_arch.Denoiser) == (Upscaler, Deblocker, Denoiser)
    with pytest.raises(AttributeError, match="no attribute 'Upscaller'"):
        _ = hranet_arch.Upscaller
    assert {*hranet_arch.__all__} <= {*dir(hranet_arch)}


def test_bicubic_enlargement_takes_any_depth_and_layout():
    x = picture(7, 5, 3)
    assert np.abs(restore.enlarge_bicubic(x, 3) - enlarge(x, 3)).max() < 1e-6
    alpha = (x[..., 0] * 255).astype(np.uint8)
    assert_nearest(restore.enlarge_bicubic(alpha, 4), enlarge(alpha.astype(np.float64), 4))


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("arguments", [{}, {"attention_pool": 3}, {"attention_pool": "global"}])
def test_tiles_equal_the_whole_picture(scale, arguments):
    net = make(num_feat=8, upscale=scale, **arguments)
    size = 2 * tiling.Reach.of(net).halo + 64 + 21
    x = picture(size, size + 8)
    shapes = []
    hook = net.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    tiled = Upscaler(load(net), tile=64)(x)
    hook.remove()
    whole = evaluate(net, x)
    assert len(shapes) > 1 and tiled.shape == whole.shape and np.abs(tiled - whole).max() < 1e-5
    assert np.abs(whole - enlarge(x, scale)).max() > 1e-2  # the network does something


@pytest.mark.parametrize("tile", [None, 64])
def test_the_ensemble_is_the_mean_over_the_turned_pictures(tile):
    net = make(num_feat=8, upscale=2, attention_pool=3)
    side = 2 * tiling.Reach.of(net).halo + 70
    x = picture(side + 5, side)
    expected = 0
    for turn in range(8):
        turned = np.rot90(x[:, ::-1] if turn % 2 else x, turn // 2)
        result = np.rot90(evaluate(net, np.ascontiguousarray(turned)), -(turn // 2))
        expected = expected + (result[:, ::-1] if turn % 2 else result) / 8
    assert np.abs(Upscaler(load(net), ensemble=True, tile=tile)(x) - expected).max() < 1e-5


def test_the_enlarged_result_counts_in_the_budget(monkeypatch):
    upscaler = Upscaler(load(make_bicubic(3)))
    upscaler._bytes_per_pixel = 1000.0
    monkeypatch.setattr(memory, "measure_free", lambda device: 10**12)
    x = torch.zeros(1, 1, 5000, 5000, dtype=torch.uint8)
    assert upscaler._count_pixels(x) == (restore.CPU_BUDGET - 10 * 25_000_000) // 1000
    # The last convolution's result, 4 x 4 values for a pixel, is in what a network takes for each pixel.
    small, large = (memory.count_bytes_per_pixel(make_bicubic(scale), 1) for scale in (2, 4))
    assert large >= small + 4 * (16 - 4)


def test_a_grey_picture_goes_through_a_colour_network_as_three_equal_channels(caplog):
    for upscale, kind in ((2, Upscaler), (1, Deblocker)):
        net = make(num_feat=4, upscale=upscale, **RGB)
        x = picture(18, 25)
        with torch.no_grad():
            expected = net(torch.from_numpy(x).expand(1, 3, -1, -1))[0].mean(0).numpy()
        restoration = kind(load(net, 3)).restore(x)
        assert np.abs(restoration.image - expected).max() < 1e-5
        assert restoration.way == "as grey in red, green and blue (a colour network)"
    with pytest.raises(InputError, match="Take a network for grey"):
        Denoiser(load(net, 3))(x)
    with caplog.at_level("INFO", logger="hranet_arch"):
        Upscaler(load(make_bicubic(2)))(picture(5, 5, 3))
    assert "the picture went channel by channel" in caplog.text


def test_a_network_of_another_task_is_refused_with_its_verb():
    def describe(net, task):
        return networks.LoadedNetwork(net, 1, False, networks.Description("net", Path("net"), task=task))

    plain, large = HRANet(num_feat=4), make_bicubic(2)
    for kind, net, task, message in (
        (Denoiser, large, None, "net enlarges pictures: it is for `basicsr upscale`, in Python Upscaler, not"),
        (Denoiser, plain, "jpeg", "blocks out of pictures: it is for `basicsr dejpeg`.*not for `basicsr denoise`"),
        (Deblocker, plain, "denoise", "net takes noise out of pictures: it is for `basicsr denoise`"),
        (Deblocker, large, None, "basicsr upscale"),
        (Upscaler, plain, None, "does not enlarge pictures"),
        (Upscaler, plain, "denoise", "basicsr denoise"),
    ):
        with pytest.raises(InputError, match=message):
            kind(describe(net, task))
    assert Deblocker(describe(plain, None)) and Denoiser(describe(plain, "denoise"))


# --- which of the released --------------------------------------------------------------------------------------------


def test_the_network_for_the_scale_and_the_colour_is_chosen():
    released = {
        f"{color}_{scale}": networks.Description(f"{color}_{scale}", Path(), {"upscale": scale}, color, task="sr")
        for color, scale in (("gray", 2), ("rgb", 2), ("rgb", 4), ("gray", 3))
    }
    for color, scale, name in (("gray", 2, "gray_2"), ("rgb", 2, "rgb_2"), ("gray", 4, "rgb_4"), ("rgb", 3, "gray_3")):
        assert networks.choose_upscaler(released, color, scale).name == name
    with pytest.raises(InputError, match=r"enlarges 8 times. Released: gray_2, rgb_2.* --scale, or .* --model"):
        networks.choose_upscaler(released, "rgb", 8)
    with pytest.raises(InputError, match="No network that enlarges pictures is released yet.*--model FILE"):
        networks.choose_upscaler({}, "rgb", 2)


def test_of_networks_for_the_same_the_widest_is_chosen():
    released = {
        f"{color}_{width}": networks.Description(
            f"{color}_{width}", Path(), {"upscale": 2, "num_feat": width}, color, quality=(10, 40)
        )
        for color, width in (("gray", 96), ("rgb", 32), ("rgb", 64), ("rgb", 48))
    }
    assert networks.choose_upscaler(released, "rgb", 2).name == "rgb_64"
    assert networks.choose_deblocker(released, "rgb").name == "rgb_64"


def test_the_deblocker_for_the_colour_and_most_qualities_is_chosen():
    def catalogue(*names):
        ranges = {"10": 10, "low": (10, 40), "all": (5, 95)}
        return {
            name: networks.Description(name, Path(), color=name.split("_")[0], quality=ranges[name.split("_")[1]])
            for name in names
        }

    released = catalogue("gray_10", "gray_low", "gray_all", "rgb_10")
    assert networks.choose_deblocker(released, "gray").name == "gray_all"
    assert networks.choose_deblocker(released, "rgb").name == "rgb_10"
    assert networks.choose_deblocker(catalogue("rgb_low"), "gray").name == "rgb_low"
    with pytest.raises(InputError, match="JPEG's blocks out of pictures is released yet"):
        networks.choose_deblocker({}, "gray")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"task": "sharpen"}, "'task' is 'sharpen'; it must be 'denoise', 'sr', 'jpeg'"),
        ({"quality": "[40, 10]"}, "'quality' is .*it must be a quality of JPEG, 1 to 100, or the least and most"),
        ({"network_g": '{"upscale": "2"}'}, "'network_g: upscale' is '2'"),
    ],
)
def test_entries_that_cannot_be_are_refused(texts, message):
    with pytest.raises(InputError, match=message):
        networks.Description.read("a.safetensors", texts)


def test_the_task_follows_from_what_a_file_says():
    def read(**texts):
        return networks.Description.read("a.pth", texts)

    assert read(network_g='{"type": "HRANet", "upscale": 3}').task == "sr"
    assert read(network_g='{"type": "HRANet", "upscale": 3}').scale == 3
    assert read(sigma="25").task == "denoise" and read(quality="[10, 40]").task == "jpeg"
    assert read(quality="[10, 40]").quality == (10, 40)
    assert read(network_g='{"type": "HRANet"}').task is None and read(task="jpeg").task == "jpeg"


# --- from the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of its own, with an enlarging network in ``x2.pth`` and no released ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path / "released")
    torch.save({"params": make_bicubic(2, **RGB).state_dict()}, "x2.pth")
    torch.save({"params": HRANet(num_feat=4).state_dict()}, "plain.pth")
    return tmp_path


def release(name, net, **texts):
    Path("released").mkdir(exist_ok=True)
    network_g = {"type": "HRANet", "num_feat": 4, "upscale": net.upscale}
    channels = net.feature_extraction[0].in_channels
    network_g |= {"num_in_ch": channels, "num_out_ch": channels}
    save_file(net.state_dict(), f"released/{name}.safetensors", {"network_g": json.dumps(network_g), **texts})


def write(path, *shape, dtype="uint8", seed=0, **extra):
    white = np.iinfo(dtype).max if dtype[0] == "u" else 1
    alpha = (picture(*shape[:2], seed=9) * white).astype(dtype) if extra.pop("has_alpha", False) else None
    made = pictures.Picture((picture(*shape, seed=seed) * white).astype(dtype), alpha, **extra)
    pictures.write_picture(made, path)
    return made


def run(*arguments):
    return run_cli(*list(arguments))


def test_files_are_enlarged_with_their_alpha_orientation_and_profile(folder, capsys):
    exif = Image.Exif()
    exif[274] = 6
    made = write("a.png", 21, 30, 3, has_alpha=True, format="BMP", exif=exif.tobytes()[6:], icc=b"profile")
    assert run("upscale", "a.png", "-o", "b.png", "--model", "x2.pth") == 0
    line = capsys.readouterr().out
    assert line.startswith("a.png -> b.png: 30 x 21 -> 60 x 42 colour and alpha uint8, x2, ") and "noise" not in line
    found = pictures.read_picture("b.png")
    assert_nearest(found.pixels, enlarge(made.pixels.astype(np.float64), 2, 255))
    alpha = enlarge(made.alpha.astype(np.float64), 2, 255)
    assert_nearest(found.alpha, alpha.clip(made.alpha.min(), made.alpha.max()))
    assert found.orientation == 6 and found.icc == b"profile"
    write("deep.tif", 9, 8, dtype="uint16")
    assert run("upscale", "deep.tif", "-o", "large", "--model", "x2.pth", "--ensemble", "--tile", "16") == 0
    assert "8 x 9 -> 16 x 18 grey uint16, x2, as grey in red, green and blue" in capsys.readouterr().out
    assert pictures.read_picture("large/deep.tif").pixels.shape == (18, 16)


def test_the_comparison_has_the_bicubic_enlargement_beside_the_result(folder):
    write("a.png", 40, 50, 3)
    assert run("upscale", "a.png", "-o", "b.png", "--model", "x2.pth", "--compare") == 0
    composed = pictures.read_picture("b_compare.png").pixels.astype(int)
    assert composed.shape == (80 + 8 + 100, 100 + 8 + 100, 3)
    assert np.abs(composed[:, :100] - composed[:, 108:]).max() <= 1  # this network's result is the bicubic one
    exact = enlarge(pictures.read_picture("a.png").pixels.astype(float), 2, 255)
    assert_nearest(composed[66:80, 66:95], exact[66:, 66:95])  # beside the mark


def test_the_released_network_of_the_scale_is_taken(folder, capsys):
    write("a.png", 9, 8, 3)
    assert run("upscale", "a.png", "-o", "out") == 2
    assert "No network that enlarges pictures is released yet" in capsys.readouterr().err
    for scale in (2, 3):
        release(f"net_x{scale}", make_bicubic(scale, **RGB), task="sr", color="rgb")
    release("noise", HRANet(num_feat=4), task="denoise", color="gray", sigma="25")
    for flags, name, size in (([], "net_x2", "16 x 18"), (["--scale", "3"], "net_x3", "24 x 27")):
        assert run("upscale", "a.png", "-o", "out", *flags, "--overwrite") == 0
        assert f"-> {size} colour uint8, {name}, " in capsys.readouterr().out
    assert run("upscale", "a.png", "-o", "out4", "--scale", "4") == 2
    assert "No released network enlarges 4 times. Released: net_x2, net_x3." in capsys.readouterr().err
    assert (
        run("denoise", "a.png", "-o", "clean", "--sigma", "25") == 0
        and "noise, channel by channel" in capsys.readouterr().out
    )


def test_what_cannot_be_enlarged_is_said_in_a_line(folder, capsys):
    write("a.png", 9, 8, 3)
    release("noise", HRANet(num_feat=4), task="denoise", color="gray", sigma="25")
    for verb, model, flags, message in (
        ("upscale", "noise", [], "noise takes noise out of pictures: it is for `basicsr denoise`"),
        ("upscale", "plain.pth", [], "plain does not enlarge pictures"),
        ("upscale", "x2.pth", ["--scale", "3"], "--scale 3: x2 enlarges 2 times. Leave --scale out"),
        ("denoise", "x2.pth", [], "x2 enlarges pictures: it is for `basicsr upscale`"),
        ("dejpeg", "x2.pth", [], "x2 enlarges pictures: it is for `basicsr upscale`"),
        ("dejpeg", "noise", [], "basicsr denoise"),
    ):
        assert run(verb, "a.png", "-o", "out", "--model", model, *flags) == 2
        assert message in capsys.readouterr().err and not Path("out").exists()
    assert run("upscale", "a.png", "-o", "out", "--scale", "5") == 2
    assert run("upscale", "a.png", "-o", "out", "--sigma", "5") == 2
    write("wide.webp", 1, 8200, 3)
    assert run("upscale", "wide.webp", "-o", "out", "--model", "x2.pth") == 1
    assert "WebP does not hold pictures of this size" in capsys.readouterr().err


def test_a_result_that_is_too_large_is_refused_before_anything_is_decoded(folder, capsys, monkeypatch):
    write("a.png", 100, 100)
    monkeypatch.setattr(pictures, "LARGEST_PICTURE", 39_999)
    monkeypatch.setattr(pictures, "read_picture", None)
    assert run("upscale", "a.png", "-o", "out", "--model", "x2.pth") == 1
    assert "a.png: 200 x 200 pixels once enlarged 2 times, 40,000 bytes once decoded" in capsys.readouterr().err


def test_blocks_are_taken_out_of_jpegs_and_their_metadata_stay(folder, capsys):
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    small = Image.fromarray((picture(24, 32, 3) * 255).astype(np.uint8))
    small.save("a.jpg", quality=10, exif=exif, icc_profile=b"profile")
    small.convert("L").save("grey.jpg", quality=10)
    assert run("dejpeg", "a.jpg", "-o", "out") == 2
    assert "No network that takes JPEG's blocks out of pictures is released yet" in capsys.readouterr().err
    net = make(num_feat=4, **RGB)
    release("color_jpeg", net, task="jpeg", color="rgb", quality="[10, 40]")
    assert run("dejpeg", "a.jpg", "grey.jpg", "-o", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a.jpg -> out/a.jpg: 32 x 24 colour uint8, color_jpeg, ")
    assert "32 x 24 grey uint8, color_jpeg, as grey in red, green and blue (a colour network), " in lines[1]
    with Image.open("out/a.jpg") as result:
        assert result.getexif()[271] == "a camera" and result.info["icc_profile"] == b"profile"
    assert run("dejpeg", "a.jpg", "-o", "a.png", "--compare") == 0
    before, after = pictures.read_picture("a.jpg"), pictures.read_picture("a.png")
    assert np.array_equal(after.pixels, Deblocker("released/color_jpeg.safetensors")(before.pixels))
    assert after.orientation == 6 and Path("a_compare.png").is_file()


def test_help_says_what_each_verb_takes(capsys):
    for verb, has, lacks in (("denoise", "--sigma", "--scale"), ("upscale", "--scale", "--sigma"),
                             ("dejpeg", "--model", "--sigma")):  # fmt: skip
        assert run(verb, "--help") == 0
        text = capsys.readouterr().out
        assert has in text and lacks not in text and f"example:\n  basicsr {verb} " in text


def test_a_map_reference_for_the_old_pixels_is_left_out(tmp_path, monkeypatch, capsys):
    """Ten metres a pixel would be wrong of pixels half as large; the artist stays."""
    monkeypatch.chdir(tmp_path)
    save_file(
        make_bicubic(2).state_dict(),
        "net.safetensors",
        {"network_g": json.dumps({"type": "HRANet", "num_feat": 4, "upscale": 2})},
    )
    extra = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (34735, 3, 4, (1, 1, 0, 0), True), (315, 2, 0, "Ann", True)]
    tifffile.imwrite("a.tif", np.zeros((9, 14), np.uint16), extratags=extra)
    assert run_cli("upscale", "a.tif", "-o", "b.tif", "--model", "net.safetensors") == 0
    assert "without its map reference" in capsys.readouterr().out
    with tifffile.TiffFile("b.tif") as file:
        assert {33550, 34735}.isdisjoint(file.pages[0].tags) and file.pages[0].tags[315].value == "Ann"
