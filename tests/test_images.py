"""Pictures and files around the network: tiling, noise, images, metrics, checkpoints, LMDBs, each against a number
worked out by hand or a second implementation."""

import math
import os
import pickle
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import skimage.metrics
import tifffile
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from hranet_arch import images, noise
from hranet_arch.checkpoints import (
    find_resumable,
    load_checkpoint,
    require_fit,
    save_atomically,
    select_params,
)
from hranet_arch.errors import InputError, TrainingError
from hranet_arch.images import decode_image, to_array, to_float, to_planes, to_tensor, to_uint8
from hranet_arch.lmdb_reader import LmdbBackend, open_lmdb, read_value
from hranet_arch.metrics import calculate_psnr_float, calculate_psnrb
from hranet_arch.tiling import pad_to_multiple, run_tiled

SHARED = Path(__file__).resolve().parents[2] / "shared"


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------- tiling


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)[None, None]


@pytest.mark.parametrize(
    ("picture", "multiple", "padded"),
    [
        (rows([1, 2, 3]), 5, rows(*[[1, 2, 3, 3, 3]] * 5)),  # one row: nothing to reflect
        (rows([1, 2, 3], [4, 5, 6]), 4, rows(*[[1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6], [4, 5, 6, 6]])),
        (rows([1, 2, 3], [4, 5, 6], [7, 8, 9]), 4, rows([1, 2, 3, 2], [4, 5, 6, 5], [7, 8, 9, 8], [4, 5, 6, 5])),
        (rows([1, 2], [4, 5]), 3, rows([1, 2, 1], [4, 5, 4], [1, 2, 1])),
        (rows([1, 2, 3]).mT.expand(1, 1, 3, 5), 5, rows(*[[row] * 5 for row in (1, 2, 3, 2, 1)])),
        (rows([7]), 2, rows([7, 7], [7, 7])),
    ],
)
def test_padding_to_a_multiple_reflects_right_and_bottom(picture, multiple, padded):
    assert torch.equal(pad_to_multiple(picture, multiple), padded)


@pytest.mark.parametrize("size", [(1, 1), (8, 3), (5, 16)])
def test_padding_gives_the_next_multiple_and_keeps_the_picture(size):
    x = uniform(2, 3, *size)
    padded = pad_to_multiple(x, 8)
    assert padded.shape == (2, 3, *(8 * math.ceil(side / 8) for side in size))
    assert torch.equal(padded[..., : size[0], : size[1]], x)


def test_a_picture_of_the_right_size_is_not_padded():
    x = uniform(1, 1, 8, 16)
    assert pad_to_multiple(x, 8) is x


def box_filter(x):
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=1)


def flatten_cells_of_4(x):
    """Each 4x4 cell of a grid that starts at the corner of what it is given becomes its mean."""
    cells = F.avg_pool2d(x, 4, ceil_mode=True)
    return F.interpolate(cells, scale_factor=4.0)[..., : x.shape[2], : x.shape[3]]


def enlarge_twice(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


TILED_SIZES = pytest.mark.parametrize("size", [(1, 1), (1, 17), (5, 5), (6, 11), (20, 13)])


@TILED_SIZES
@pytest.mark.parametrize("halo", [0, 1, 3])
def test_tiles_of_the_identity_give_the_picture(size, halo):
    x = uniform(2, 3, *size)
    assert torch.equal(run_tiled(lambda part: part, x, tile=5, halo=halo), x)


@TILED_SIZES
@pytest.mark.parametrize("halo", [0, 2])
def test_tiles_of_an_upscaling_network_are_placed_at_its_scale(size, halo):
    x = uniform(1, 2, *size)
    assert torch.equal(run_tiled(enlarge_twice, x, tile=5, halo=halo), enlarge_twice(x))


@TILED_SIZES
def test_tiles_of_a_3x3_filter_equal_the_whole_with_a_halo_of_1_and_not_without(size):
    x = uniform(1, 1, *size) + 1
    assert torch.allclose(run_tiled(box_filter, x, tile=5, halo=1), box_filter(x), atol=1e-6)
    if max(size) > 5:
        assert not torch.allclose(run_tiled(box_filter, x, tile=5, halo=0), box_filter(x), atol=1e-2)


@TILED_SIZES
def test_tiles_keep_to_the_grid_of_the_network(size):
    x = uniform(1, 1, *size)
    for tile, halo in [(5, 0), (5, 1), (8, 3), (3, 9)]:
        assert torch.allclose(run_tiled(flatten_cells_of_4, x, tile=tile, halo=halo, multiple=4), flatten_cells_of_4(x))
    if max(size) > 5:
        assert not torch.allclose(run_tiled(flatten_cells_of_4, x, tile=5, halo=1), flatten_cells_of_4(x))


def test_a_tile_is_seen_with_its_halo_as_far_as_the_picture_goes():
    seen = []

    def note(part):
        seen.append(part[0, 0, 0].tolist())
        return part

    run_tiled(note, rows([0, 1, 2, 3, 4, 5, 6]), tile=3, halo=2)
    assert seen == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [4, 5, 6]]


def test_tiles_may_change_the_number_of_channels():
    def double(part):
        return torch.cat([part, -part], dim=1)

    x = uniform(2, 1, 7, 9)
    assert torch.equal(run_tiled(double, x, tile=4, halo=1), double(x))


# ---------------------------------------------------------------------------------------------------------- noise


@pytest.fixture
def legacy_generator():
    """NumPy's global generator, as it was before."""
    state = np.random.get_state()
    yield np.random
    np.random.set_state(state)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_test_noise_is_that_of_numpys_generator_seeded_0(shape, dtype, legacy_generator):
    clean = np.random.default_rng(1).random(shape).astype(dtype)
    legacy_generator.seed(0)
    expected = (clean + legacy_generator.normal(0, 25 / 255, shape)).astype(np.float32)
    legacy_generator.seed(5)  # the state that the caller left does not matter
    noisy = noise.add_test_noise(clean, 25)
    assert noisy.dtype == np.float32
    assert np.array_equal(noisy, expected)
    assert np.array_equal(noise.add_test_noise(clean, 25), expected)  # each picture gets the seed anew


def test_test_noise_begins_with_a_known_number():
    # The first two normal numbers of np.random.seed(0) are 1.764052... and 0.400157...
    noisy = noise.add_test_noise(np.full((1, 2), 0.5), 51)
    assert noisy == pytest.approx(np.array([[0.5 + 1.7640523 / 5, 0.5 + 0.4001572 / 5]]), abs=1e-6)


def test_test_noise_leaves_numpys_generator_alone(legacy_generator):
    legacy_generator.seed(3)
    expected = legacy_generator.random(4)
    legacy_generator.seed(3)
    noise.add_test_noise(np.zeros((4, 4)), 25)
    assert np.array_equal(legacy_generator.random(4), expected)


@pytest.mark.parametrize("name", noise.TEST_NOISES)
def test_every_test_noise_takes_a_seed(name):
    first, second = (noise.TEST_NOISES[name](np.full((8, 8), 0.5, np.float32), 25, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_training_noise_has_mean_0_and_the_stated_deviation():
    torch.manual_seed(0)
    clean = torch.full((3, 200, 200), 0.02)
    added = (noise.add_gaussian_noise(clean, 25) - clean) * 255
    # 120,000 numbers: the mean is known to 25 / sqrt(120,000) = 0.07, the deviation to 0.05; four of each.
    assert abs(added.mean().item()) < 0.3
    assert abs(added.std().item() - 25) < 0.2
    assert ((added**4).mean() / added.var() ** 2).item() == pytest.approx(3, abs=0.06)  # normal: 3; clipped: less
    assert abs((added[:, 1:] * added[:, :-1]).mean().item()) < 625 * 0.012  # white: neighbours know nothing


def test_training_noise_is_torchs_normal_noise_times_sigma_in_grey_levels():
    clean = uniform(2, 3, 5, 7)
    torch.manual_seed(1)
    noisy = noise.add_gaussian_noise(clean, 51)
    torch.manual_seed(1)
    assert torch.allclose(noisy, clean + 0.2 * torch.randn(2, 3, 5, 7), rtol=0, atol=1e-6)


def test_training_noise_is_neither_clipped_nor_rounded_nor_in_place():
    torch.manual_seed(0)
    clean = torch.zeros(1, 50, 50)
    noisy = noise.add_gaussian_noise(clean, 25)
    assert noisy.min() < 0
    assert not torch.allclose(noisy * 255, (noisy * 255).round(), atol=1e-2)
    assert torch.equal(clean, torch.zeros(1, 50, 50))
    assert torch.equal(noise.add_gaussian_noise(clean, 0), clean)


def test_blind_noise_levels_fill_their_range_evenly():
    torch.manual_seed(0)
    drawn = np.array([noise.draw_sigma((5, 55)) for _ in range(2000)])
    assert 5 <= drawn.min() < 5.5
    assert 54.5 < drawn.max() <= 55
    assert drawn.mean() == pytest.approx(30, abs=4 * 50 / math.sqrt(12 * 2000))
    assert noise.draw_sigma((25, 25)) == 25


def test_quantizing_rounds_to_grey_levels_and_clips_nothing():
    levels = torch.tensor([-3.4, -0.4, 0.4, 99.6, 254.7, 300.2])
    assert (noise.quantize(levels / 255) * 255).tolist() == pytest.approx([-3, 0, 0, 100, 255, 300], abs=1e-4)


# --------------------------------------------------------------------------------------------------------- images


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, np.asarray(image))[1].tobytes()


BGR = (10, 20, 30)  # blue, green, red


def test_the_red_of_a_file_is_the_first_channel_of_the_tensor():
    image = decode_image(encode(np.full((1, 1, 3), BGR, np.uint8)), "dot.png")
    assert image[0, 0].tolist() == [10, 20, 30]
    tensor = to_tensor(to_float(image, "dot.png"))
    assert (tensor * 255).flatten().tolist() == pytest.approx([30, 20, 10])
    assert to_uint8(tensor)[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("dtype", "scale", "gray"),
    # 0.114 * 10 + 0.587 * 20 + 0.299 * 30 = 21.85
    [(np.uint8, 1, 22), (np.uint16, 100, 2185)],
)
def test_colour_is_made_grey_and_grey_colour_at_the_depth_of_the_file(dtype, scale, gray):
    data = encode(np.full((2, 3, 3), np.multiply(BGR, scale), dtype))
    image = decode_image(data, "x", "gray")
    assert (image.shape, image.dtype) == ((2, 3), dtype)
    assert np.all(np.abs(image.astype(int) - gray) <= (scale > 1))
    again = decode_image(encode(image), "x", "rgb")
    assert (again.shape, again.dtype) == ((2, 3, 3), dtype)
    assert np.array_equal(again, np.repeat(image[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (5, 7, 3), (5, 7, 4)])
def test_unchanged_keeps_every_bit_of_the_file(shape, dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    assert np.array_equal(decode_image(encode(image), "x"), image)
    if len(shape) == 3:
        assert np.array_equal(decode_image(encode(image), "x", "rgb"), image[..., :3])  # alpha is dropped


@pytest.mark.parametrize("color", ["gray", "rgb", "unchanged"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_damaged_bytes_are_refused_by_name(suffix, color):
    whole = encode(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), suffix)
    assert decode_image(whole, "x", color).shape[:2] == (20, 30)
    for data in (b"", b"not a picture", whole[: len(whole) // 2], whole[:20], bytes(len(whole))):
        with pytest.raises(InputError, match=rf"^key_s001: not a picture .*\({len(data)} bytes"):
            decode_image(data, "key_s001", color)


@pytest.mark.parametrize("color", ["gray", "rgb", "y", "unchanged"])
def test_grey_floats_are_read(color):
    pixels = uniform(5, 7).numpy().astype(np.float32)
    image = decode_image(encode(pixels, ".tiff"), "a.tiff", color)
    expected = np.dstack([pixels] * 3) if color == "rgb" else pixels
    assert image.dtype == np.float32 and image.shape == expected.shape
    assert np.abs(image - expected).max() < 1e-6


@pytest.mark.parametrize("color", ["gray", "rgb", "y", "unchanged"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((3, 5, 7), {"photometric": "rgb", "planarconfig": "separate"}),
        ((5, 7), {"photometric": "miniswhite"}),
        ((5, 7, 2), {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}),
        ((5, 7, 3), {"photometric": "minisblack", "planarconfig": "contig"}),
        ((5, 7, 5), {"photometric": "rgb", "planarconfig": "contig"}),
        ((5, 7, 4), {"photometric": "separated", "planarconfig": "contig"}),
    ],
)
def test_deep_tiffs_that_opencv_misreads_are_refused(tmp_path, shape, arguments, dtype, color):
    """Of planes it gives other pixels with each call, of negatives the negative."""
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, dtype), **arguments)
    with pytest.raises(InputError, match="a.tif: a TIFF that is neither grey .* nor said to be RGB"):
        decode_image((tmp_path / "a.tif").read_bytes(), "a.tif", color)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("shape", "photometric"), [((5, 7), "minisblack"), ((5, 7, 3), "rgb"), ((5, 7, 4), "rgb")])
def test_other_tiffs_are_read(tmp_path, shape, photometric, dtype, compression):
    white = 1 if dtype == "float32" else np.iinfo(dtype).max
    pixels = (uniform(*shape).numpy() * white).astype(dtype)
    pixels[..., 3:] = white
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, compression=compression)
    image = decode_image((tmp_path / "a.tif").read_bytes(), "a.tif")
    assert np.array_equal(to_planes(image), to_planes(pixels)[[2, 1, 0, 3][: shape[2]]] if len(shape) > 2 else [pixels])


@pytest.mark.parametrize("channels", [3, 4])
def test_tiffs_whose_colours_opencv_takes_for_grey_are_refused(tmp_path, channels):
    pixels = np.ones((5, 7, channels), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match="a.tif: a TIFF that is neither grey"):
        decode_image((tmp_path / "a.tif").read_bytes(), "a.tif")


@pytest.mark.parametrize(
    ("dtype", "alpha"), [("uint8", "assocalpha"), ("uint8", "unassalpha"), ("uint16", "assocalpha")]
)
def test_tiffs_whose_colours_come_multiplied_by_alpha_are_refused(tmp_path, alpha, dtype):
    """Of 200 at half of alpha OpenCV gives 100 in 8 bits, and what was stored multiplied at any depth."""
    pixels = np.full((5, 7, 4), 200, dtype)
    pixels[..., 3] = np.iinfo(dtype).max // 2
    deep = pixels.astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(decode_image((tmp_path / "deep.tif").read_bytes(), "deep.tif", "rgb"), deep[..., :3])
    gray = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["assocalpha"]}
    tifffile.imwrite(tmp_path / "gray.tif", pixels[..., 2:].astype(np.uint8), **gray)
    with pytest.raises(InputError, match="gray.tif: a grey TIFF multiplied by its alpha"):
        decode_image((tmp_path / "gray.tif").read_bytes(), "gray.tif")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[alpha])
    with pytest.raises(InputError, match="a.tif: a TIFF with pixels that one sees through. Take alpha off"):
        decode_image((tmp_path / "a.tif").read_bytes(), "a.tif")


def test_whole_numbers_with_signs_are_refused_as_grey():
    with pytest.raises(InputError, match="a.tiff: pixels of type int16"):
        decode_image(encode(np.full((4, 5, 3), -3, np.int16), ".tiff"), "a.tiff", "gray")


def test_pictures_are_scaled_by_their_own_depth():
    assert to_float(np.array([0, 51, 255], np.uint8), "x").tolist() == pytest.approx([0, 0.2, 1])
    assert to_float(np.array([0, 13107, 65535], np.uint16), "x").tolist() == pytest.approx([0, 0.2, 1])
    assert to_float(np.array([-0.5, 0.2, 1.5]), "x").tolist() == pytest.approx([-0.5, 0.2, 1.5])
    assert {to_float(np.zeros(1, dtype), "x").dtype for dtype in "BHfd"} == {np.dtype(np.float32)}


def test_pictures_of_another_pixel_type_are_refused_by_name():
    with pytest.raises(InputError, match="^x.tif: pixels of type int32"):
        to_float(np.zeros((2, 2), np.int32), "x.tif")


def test_8_bits_are_clipped_and_rounded_and_the_tensor_is_kept():
    # In grey levels: 0.4 -> 0, 0.6 -> 1, 99.4 -> 99, 254.6 -> 255; outside of [0, 1]: to the ends.
    tensor = torch.tensor([[[0.4 / 255, 0.6 / 255, 99.4 / 255, 254.6 / 255, -0.1, 1.2]]])
    before = tensor.clone()
    image = to_uint8(tensor)
    assert image.dtype == np.uint8
    assert image.tolist() == [[0, 1, 99, 255, 0, 255]]
    assert torch.equal(tensor, before)
    colour = before.repeat(3, 1, 1)
    assert to_uint8(colour).tolist() == [[[level] * 3 for level in (0, 1, 99, 255, 0, 255)]]
    assert torch.equal(colour, before.repeat(3, 1, 1))


def test_every_8_bit_level_survives_the_way_to_a_tensor_and_back():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(to_uint8(to_tensor(to_float(image, "x"))), image)


@pytest.mark.parametrize("shape", [(1, 1), (4, 7), (4, 7, 3), (1, 1, 3)])
def test_array_and_tensor_are_inverse(shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)  # outside of [0, 1] too
    tensor = to_tensor(array)
    assert tensor.shape == (3 if len(shape) == 3 else 1, *shape[:2])
    assert np.array_equal(to_array(tensor), array)
    assert torch.equal(to_tensor(to_array(tensor)), tensor)


def test_a_grey_array_may_have_its_channel():
    array = np.ones((4, 7, 1), np.float32)
    assert to_tensor(array).shape == (1, 4, 7)


def test_an_array_is_made_of_any_tensor():
    tensor = torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert to_array(tensor).dtype == np.float32
    assert to_array(tensor).tolist() == [[0.5, 0.5], [0.5, 0.5]]


# -------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_psnr_equals_scikit_images(shape, dtype):
    rng = np.random.default_rng(0)
    img, img2 = rng.normal(0.5, 0.4, (2, *shape)).astype(dtype)
    expected = skimage.metrics.peak_signal_noise_ratio(img.astype(np.float64), img2.astype(np.float64), data_range=1)
    assert calculate_psnr_float(img, img2) == pytest.approx(expected, abs=1e-9)


def test_float_psnr_of_a_tenth_is_20_db_inside_the_border():
    img = np.zeros((5, 6), np.float32)
    img2 = np.full((5, 6), 9.0, np.float32)
    img2[2:-2, 2:-2] = 0.1
    assert calculate_psnr_float(img, img2, crop_border=2) == pytest.approx(20, abs=1e-6)
    assert calculate_psnr_float(img, img2, crop_border=0) < 0
    assert calculate_psnr_float(img, img) == float("inf")


@pytest.mark.parametrize(("shape", "border"), [((8, 9, 1), 0), ((8, 8), 0), ((8, 9), 4), ((8, 9), 5)])
def test_float_psnr_refuses_other_shapes_and_borders_that_leave_nothing(shape, border):
    with pytest.raises(ValueError, match=f"crop_border={border}"):
        calculate_psnr_float(np.zeros((8, 9)), np.ones(shape), crop_border=border)


@pytest.mark.parametrize(("dtype", "white"), [("uint16", 65535), ("float32", 1)])
def test_luma_at_every_depth(dtype, white):
    """Of white 235, of blue 16 + 24.966 (each of 255)."""
    image = (np.array([[[1, 1, 1], [1, 0, 0]]]) * white).astype(dtype)
    luma = images.to_luma(image)
    assert luma.dtype == dtype
    np.testing.assert_allclose(luma / white, [[235 / 255, 40.966 / 255]], rtol=0, atol=1e-5)


def test_psnrb_by_hand():
    """A step of 10 in the middle of 16 x 16 pixels: an error of 50; at borders of blocks 100 / 2 on average and
    elsewhere 0, so that 50 * log2(8) / log2(16) = 37.5 are added. Two columns beside the border nothing is."""
    original = np.zeros((16, 16))
    at_border, beside = original.copy(), original.copy()
    at_border[:, 8:] = beside[:, 6:] = 10
    assert calculate_psnrb(at_border, original) == pytest.approx(10 * np.log10(255**2 / 87.5))
    assert calculate_psnrb(beside, original) == pytest.approx(10 * np.log10(255**2 / 62.5))
    assert calculate_psnrb(original, original) == float("inf")


def test_psnrb_of_colour_and_inside_a_border():
    """The 87.5 of above: in three channels alike, and inside a border of 8 where the two pictures differ by 99."""
    original, restored = np.zeros((16, 16)), np.zeros((16, 16))
    restored[:, 8:] = 10
    expected = pytest.approx(10 * np.log10(255**2 / 87.5))
    assert calculate_psnrb(np.dstack([restored] * 3), np.dstack([original] * 3)) == expected
    assert calculate_psnrb(np.pad(restored, 8, constant_values=99), np.pad(original, 8), crop_border=8) == expected


def test_psnrb_equals_its_authors_loops():
    """Yim and Bovik's equations, step by step; 27 x 21 pixels, whose last blocks are cut."""
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (27, 21)).astype(np.float64)
    restored = (cv2.blur(original, (9, 9)) + np.kron(rng.normal(0, 20, (4, 3)), np.ones((8, 8)))[:27, :21]).round()
    borders, others = [], []
    for i in range(27):
        for j in range(21):
            if j < 20:
                (borders if j % 8 == 7 else others).append((restored[i, j] - restored[i, j + 1]) ** 2)
            if i < 26:
                (borders if i % 8 == 7 else others).append((restored[i, j] - restored[i + 1, j]) ** 2)
    blocking = np.log2(8) / np.log2(21) * (np.mean(borders) - np.mean(others))
    assert blocking > 0
    expected = 10 * np.log10(255**2 / (np.mean((restored - original) ** 2) + blocking))
    assert calculate_psnrb(restored, original) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 20), (20, 1), (1, 1)])
def test_pictures_one_pixel_high_or_wide_have_no_blocks(shape):
    """An error of 1 everywhere: 255^2 = 48.13 dB."""
    restored = np.zeros(shape)
    restored[8:] = restored[:, 8:] = 2
    assert calculate_psnrb(restored, np.ones(shape)) == pytest.approx(20 * np.log10(255))


@pytest.mark.parametrize(("shape", "border"), [((8, 9, 1), 0), ((8, 8), 0), ((8, 9), 4), ((8, 9), 5)])
def test_psnrb_refuses_other_shapes_and_borders_that_leave_nothing(shape, border):
    with pytest.raises(ValueError, match="calculate_psnrb: "):
        calculate_psnrb(np.zeros((8, 9)), np.ones(shape), crop_border=border)


def test_noisy_bsd68_has_the_psnr_of_the_published_convention():
    folder = SHARED / "datasets" / "BSD68"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    unrounded, rounded = [], []
    for path in sorted(folder.glob("*.png")):
        clean = to_float(decode_image(path.read_bytes(), path.name, "gray"), path.name)
        noisy = noise.add_test_noise(clean, 25)
        unrounded.append(calculate_psnr_float(noisy, clean))
        levels = to_uint8(to_tensor(noisy)), to_uint8(to_tensor(clean))
        rounded.append(calculate_psnr_float(*(to_float(image, path.name) for image in levels)))
    assert len(unrounded) == 68
    assert np.mean(unrounded) == pytest.approx(20.194, abs=0.005)
    assert np.mean(rounded) == pytest.approx(20.498, abs=0.005)


# ---------------------------------------------------------------------------------------------------- checkpoints


def tensors(value=1.0):
    return {"conv.weight": torch.full((2, 3), value), "conv.bias": torch.full((2,), value)}


def assert_params(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_saved_checkpoint_reads_back(tmp_path):
    path = tmp_path / "net_g_8.pth"
    save_atomically({"params": tensors(1.0)}, path)
    save_atomically({"params": tensors(2.0), "iter": 8, "best": {"psnr": 29.5}, "betas": (0.9, 0.99)}, path)
    content = load_checkpoint(path)
    assert_params(content.pop("params"), tensors(2.0))
    assert content == {"iter": 8, "best": {"psnr": 29.5}, "betas": (0.9, 0.99)}
    assert os.listdir(tmp_path) == [path.name]


def test_a_save_replaces_the_old_file_and_never_writes_into_it(tmp_path):
    path, second_name = tmp_path / "net_g_8.pth", tmp_path / "kept.pth"
    save_atomically({"params": tensors(1.0)}, path)
    os.link(path, second_name)
    save_atomically({"params": tensors(2.0)}, path)
    assert_params(load_checkpoint(second_name)["params"], tensors(1.0))
    assert_params(load_checkpoint(path)["params"], tensors(2.0))


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 64 vs 0"), OSError(28, "No space left on device")])
def test_a_save_that_fails_half_way_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "net_g_8.pth"
    save_atomically({"params": tensors()}, path)
    before = path.read_bytes()

    def write_half(content, file):
        file.write(before[: len(before) // 2])
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(TrainingError, match="net_g_8.pth") as failure:
        save_atomically({"params": tensors(2.0)}, path)
    assert str(error) in str(failure.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_that_grows_too_large_is_a_failed_save(tmp_path):
    """No stand-in: the system refuses to write more, as it does on a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "net_g_8.pth"
    save_atomically({"params": tensors()}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(TrainingError, match="net_g_8.pth"):
            save_atomically({"params": {"weight": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_none_is_a_failed_save(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        with pytest.raises(TrainingError, match="net_g_8.pth"):
            save_atomically(tensors(), tmp_path / folder / "net_g_8.pth")
    assert os.listdir(tmp_path) == ["file"]


class RunsCode:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def make_unusable(kind, tmp_path):
    path = tmp_path / f"{kind}.pth"
    whole = tmp_path / "whole.pth"
    torch.save({"params": tensors()}, whole)
    size = whole.stat().st_size
    if kind.startswith("truncated"):
        left = {"truncated_early": 30, "truncated": size // 2, "truncated_late": size - 20}[kind]
        path.write_bytes(whole.read_bytes()[:left])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "garbage":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "half_a_pickle":
        path.write_bytes(pickle.dumps({"params": list(range(50))}, protocol=2)[:40])
    elif kind == "code":
        path.write_bytes(pickle.dumps({"params": RunsCode(tmp_path / "made")}, protocol=2))
    elif kind == "code_in_a_zip":
        torch.save({"params": RunsCode(tmp_path / "made")}, path)
    elif kind == "module":
        torch.save(torch.nn.Conv2d(1, 1, 1), path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "tensor":
        torch.save(torch.zeros(1), path)
    elif kind == "folder":
        path.mkdir()
    return path


UNUSABLE = ["truncated_early", "truncated", "truncated_late", "empty", "text", "garbage", "half_a_pickle"]
UNUSABLE += ["code", "code_in_a_zip", "module", "list", "tensor", "folder", "missing"]


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_checkpoint_is_refused_by_path_and_runs_no_code(kind, tmp_path):
    path = make_unusable(kind, tmp_path)
    with pytest.raises(InputError) as failure:
        load_checkpoint(path)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_a_checkpoint_with_damaged_bytes_loads_or_is_refused_by_path(layout, tmp_path):
    path = tmp_path / ("damaged.safetensors" if layout == "safetensors" else "damaged.pth")
    if layout == "safetensors":
        save_file(tensors(), path)
    else:
        torch.save({"params": tensors()}, path, _use_new_zipfile_serialization=layout == "zip")
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(80):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[: rng.integers(len(whole))] if rng.random() < 0.3 else damaged)
        try:
            assert isinstance(load_checkpoint(path), dict)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


def test_safetensors_are_read(tmp_path):
    save_file(tensors(), tmp_path / "net.safetensors")
    assert_params(load_checkpoint(tmp_path / "net.safetensors"), tensors())


@pytest.mark.parametrize(
    ("checkpoint", "key", "value", "found"),
    [
        ({"params": tensors(1.0), "params_ema": tensors(2.0)}, None, 2.0, "params_ema"),
        ({"params": tensors(1.0), "params_ema": tensors(2.0)}, "params", 1.0, "params"),
        ({"params": tensors(1.0)}, None, 1.0, "params"),
        ({"params": tensors(1.0)}, "params_ema", 1.0, "params"),  # not there: the next best
        ({"state_dict": tensors(3.0), "params": tensors(1.0)}, "state_dict", 3.0, "state_dict"),
        (tensors(4.0), None, 4.0, "bare"),
        ({f"module.{name}": value for name, value in tensors(5.0).items()}, None, 5.0, "bare"),
        ({"params": {f"module.{name}": value for name, value in tensors(6.0).items()}}, None, 6.0, "params"),
    ],
)
def test_the_network_is_found_in_a_checkpoint(checkpoint, key, value, found):
    params, where = select_params(checkpoint, key)
    assert_params(params, tensors(value))
    assert where == found


def test_module_is_removed_only_at_the_start_of_a_name():
    params, _ = select_params({"module.a.module.b": torch.zeros(1), "my_module.c": torch.zeros(1)})
    assert set(params) == {"a.module.b", "my_module.c"}


def test_tensors_without_names_are_no_network():
    with pytest.raises(InputError, match="holds no network; its keys are: 0."):
        select_params({0: torch.ones(1)})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_with_values_that_are_not_finite_is_refused(value):
    with pytest.raises(InputError, match="not finite, in 1 of 4 tensors; the first: b.bias"):
        mask = {"mask": torch.tensor([0, -math.inf]), "batches": torch.tensor(3)}
        select_params({"a": torch.ones(2), "b.bias": torch.tensor([1, value]), **mask})


def test_a_training_state_is_no_network():
    with pytest.raises(InputError, match="its keys are: epoch, iter, optimizers"):
        select_params({"epoch": 0, "iter": 8, "optimizers": []})


def test_tensors_that_are_not_the_networks_are_named():
    network = torch.nn.Linear(1, 1)
    require_fit(network, network.state_dict(), "net.pth")
    with pytest.raises(
        InputError, match="net.pth does not fit Linear, in 1 tensors; the first: more is not the network's"
    ):
        require_fit(network, {**network.state_dict(), "more": torch.zeros(1)}, "net.pth")


@pytest.fixture
def experiment(tmp_path):
    """Returns ``save(iteration)``, which writes a training state and its two networks, and the two folders."""
    states, models = tmp_path / "training_states", tmp_path / "models"
    states.mkdir()
    models.mkdir()

    def save(iteration):
        torch.save({"iter": 0}, states / f"{iteration}.state")
        for name in ("g", "d"):
            torch.save({"params": tensors()}, models / f"net_{name}_{iteration}.pth")

    return save, states, models


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def test_the_newest_state_is_found_by_number(experiment):
    save, states, models = experiment
    for iteration in (900, 1000, 20):  # by name, 900 comes last
        save(iteration)
    assert find_resumable(states, models, ["g", "d"]) == states / "1000.state"


def test_states_that_do_not_load_are_passed_over_and_named(experiment, caplog):
    save, states, models = experiment
    for iteration in (10, 20, 30, 40, "latest", "50_backup"):
        save(iteration)
    cut(states / "40.state")
    cut(models / "net_d_30.pth")
    assert find_resumable(states, models, ["g", "d"]) == states / "20.state"
    assert find_resumable(states, models, ["g"]) == states / "30.state"
    (models / "net_g_20.pth").unlink()
    caplog.clear()
    assert find_resumable(states, models, ["g", "d"]) == states / "10.state"
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in messages] == [f"Cannot resume from {i}.state" for i in (40, 30, 20)]
    for message, file in zip(messages, ("40.state", "net_d_30.pth", "net_g_20.pth"), strict=True):
        assert file in message.split(":", 1)[1]


def test_states_of_which_none_can_be_used_are_an_error(experiment):
    save, states, models = experiment
    save(10)
    save(20)
    cut(states / "20.state")
    cut(models / "net_g_10.pth")
    with pytest.raises(InputError, match="none of the 2 training states"):
        find_resumable(states, models, ["g"])


def test_without_states_there_is_nothing_to_resume(experiment, tmp_path):
    save, states, models = experiment
    save("latest")
    assert find_resumable(states, models, ["g"]) is None
    assert find_resumable(tmp_path / "missing", models, ["g"]) is None


# ---------------------------------------------------------------------------------------------------------- LMDBs


def make_lmdb(folder, count=10):
    """Values of three pages each under k0, k1, ...: ``bytes([i]) * 9000``."""
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**22) as environment, environment.begin(write=True) as transaction:
        for i in range(count):
            transaction.put(f"k{i}".encode(), bytes([i]) * 9000)
    return folder


def test_an_lmdb_is_opened_once_by_whatever_name(tmp_path, monkeypatch):
    folder = make_lmdb(tmp_path / "a.lmdb")
    (tmp_path / "link.lmdb").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names = [folder, str(folder), f"{folder}/", "a.lmdb", "link.lmdb", tmp_path / "." / "a.lmdb"]
    environment = open_lmdb(folder)
    assert all(open_lmdb(name) is environment for name in names)
    assert open_lmdb(make_lmdb(tmp_path / "b.lmdb")) is not environment


def test_values_are_read_through_basicsrs_backend_interface(tmp_path):
    lq, gt = make_lmdb(tmp_path / "lq.lmdb"), make_lmdb(tmp_path / "gt.lmdb", count=3)
    pair = LmdbBackend([str(lq), gt], client_keys=["lq", "gt"])
    assert pair.get("k7", "lq") == bytes([7]) * 9000
    assert pair.get("k2", "gt") == bytes([2]) * 9000
    with pytest.raises(InputError, match="gt.lmdb: .*'k7'"):
        pair.get("k7", "gt")
    alone = pickle.loads(pickle.dumps(LmdbBackend(str(lq), "lq")))  # as a spawned worker gets it
    assert alone.get("k7", "lq") == bytes([7]) * 9000


def test_a_missing_key_is_named(tmp_path):
    environment = open_lmdb(make_lmdb(tmp_path / "a.lmdb"))
    with pytest.raises(InputError, match="^a.lmdb: .*'k10'"):
        read_value(environment, "k10", "a.lmdb")


@pytest.mark.parametrize("left", [0, 1, 4096, 8192, 0.5, -4096, -1])
def test_a_truncated_lmdb_is_refused_before_a_read_can_kill_the_process(tmp_path, left):
    folder = make_lmdb(tmp_path / "a.lmdb")
    data = folder / "data.mdb"
    size = data.stat().st_size
    os.truncate(data, int(size * left) if left == 0.5 else left if left >= 0 else size + left)
    for _ in range(2):  # the failure is not remembered as an environment
        with pytest.raises(InputError, match="a.lmdb: .*basicsr prepare lmdb"):
            open_lmdb(folder)
    with pytest.raises(InputError):
        LmdbBackend(str(folder))


def test_an_lmdb_can_be_opened_after_it_was_mended(tmp_path):
    folder = make_lmdb(tmp_path / "a.lmdb")
    whole = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(whole[:-1])
    with pytest.raises(InputError):
        open_lmdb(folder)
    (folder / "data.mdb").write_bytes(whole)
    assert read_value(open_lmdb(folder), "k3", "a.lmdb") == bytes([3]) * 9000


@pytest.mark.parametrize("kind", ["missing", "no_data", "garbage", "zeros", "folder"])
def test_what_is_no_lmdb_is_refused(tmp_path, kind):
    folder = tmp_path / "a.lmdb"
    if kind != "missing":
        folder.mkdir()
    if kind == "garbage":
        (folder / "data.mdb").write_bytes(np.random.default_rng(0).bytes(50_000))
    elif kind == "zeros":
        (folder / "data.mdb").write_bytes(bytes(50_000))
    elif kind == "folder":
        (folder / "data.mdb").mkdir()
    with pytest.raises(InputError, match="a.lmdb: .*basicsr prepare lmdb"):
        open_lmdb(folder)


def test_damaged_pages_of_an_lmdb_are_an_error_with_its_name(tmp_path):
    folder = make_lmdb(tmp_path / "a.lmdb")
    data = bytearray((folder / "data.mdb").read_bytes())
    page = data.index(b"k7") // 4096 * 4096  # the page with the keys
    data[page + 10 : page + 12] = b"\xff\xff"  # its type
    (folder / "data.mdb").write_bytes(data)
    with pytest.raises(InputError, match="^a.lmdb: .*'k7'"):
        read_value(open_lmdb(folder), "k7", "a.lmdb")
