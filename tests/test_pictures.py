"""Picture files of every format, depth and layout: read and written back as they were; bad ones refused by name."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from hranet_arch import exr, images, pictures, png, tiff
from hranet_arch.errors import InputError

ICC = b"profile " * 40


def values(dtype, *shape):
    rng = np.random.default_rng(3)
    if dtype.startswith("float"):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def round_trip(path, name=None):
    """Reads, writes, reads again: both pictures."""
    first = pictures.read_picture(path)
    target = path.parent / "out" / (name or path.name)
    target.parent.mkdir(exist_ok=True)
    pictures.write_picture(first, target)
    assert not [p for p in target.parent.iterdir() if p.name.endswith(".tmp")]
    return first, pictures.read_picture(target)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_a_picture_is_in_memory_once_beside_pillows(tmp_path, mode):
    """The largest that are let in would take over 4 GB otherwise; their bytes alone are 1.5 GiB."""
    image = Image.effect_noise((1500, 2000), 50).convert(mode)
    image.save(tmp_path / "a.png", compress_level=1)
    tracemalloc.start()
    try:
        picture = pictures.read_picture(tmp_path / "a.png")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = len(mode) * 1500 * 2000
    assert size < peak < (1.4 if "A" not in mode else 2.4) * size  # alpha is taken apart
    read = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    assert np.array_equal(read, np.array(image))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tiffs_preview_is_not_its_picture(tmp_path, dtype):
    pixels = values(dtype, 20, 30)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values(dtype, 4, 6), subfiletype=1)
        file.write(pixels)
    assert np.array_equal(pictures.read_picture(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_tiffs_of_numbers_below_zero_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-42, 5, -1]], dtype))
    with pytest.raises(InputError, match=f"pixels of type {dtype}"):
        pictures.read_picture(tmp_path / "a.tif")


def test_texts_of_a_tiff_may_have_any_letters(tmp_path):
    texts = {270: "Käfer", 305: "Söft", 315: "Jörg Müller", 33432: "© 2020 漢字"}
    extra = [(code, 2, 0, text.encode() + b"\0", True) for code, text in texts.items() if code > 305]
    named = {"description": texts[270].encode(), "software": texts[305].encode(), "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 4, 5), extratags=extra, **named)
    round_trip(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as file:
        assert {code: file.pages[0].tags[code].value for code in texts} == texts


def test_a_resolution_without_a_unit_has_none_later(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 4, 5), resolution=(3, 2), resolutionunit=1)
    assert [picture.dpi for picture in round_trip(tmp_path / "a.tif")] == [None, None]


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    cv2.imwrite(str(tmp_path / "a.png"), values("uint8", 4, 7))
    data = (tmp_path / "a.png").read_bytes()
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert pictures.read_picture(tmp_path / "a.png").orientation == 6


def test_a_resolution_beyond_a_pngs_is_the_largest_it_has():
    assert png.make_resolution((4294967295, 254)) == (b"pHYs", struct.pack(">IIB", 2**31 - 1, 10000, 1))


def test_jpeg_holds_65500_pixels_a_side(tmp_path):
    picture = pictures.Picture(np.zeros((1, 65500), np.uint8))
    pictures.write_picture(picture, tmp_path / "a.jpg")
    picture.pixels = np.zeros((1, 65501), np.uint8)
    with pytest.raises(InputError, match="JPEG does not hold pictures of this size"):
        pictures.check_writable(picture, tmp_path / "a.jpg")


def test_a_name_without_an_end_in_an_exr_is_given_up_soon():
    file = io.BytesIO(b"a" * 10_000)
    with pytest.raises(ValueError, match="not a name"):
        exr._read_text(file)
    assert file.tell() < 1000


# --- depth and layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 1), (61, 47)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pngs_are_read_by_other_libraries_as_they_were_written(tmp_path, dtype, channels, size):
    pixels = values(dtype, *size, channels)
    with open(tmp_path / "a.png", "wb") as file:
        png.write_png(file, pixels)
    read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).reshape(*size, -1)
    order = {1: [0], 2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    assert read.dtype == dtype and np.array_equal(read[..., order], pixels)
    if dtype == "uint8":
        with Image.open(tmp_path / "a.png") as image:
            assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    first, second = round_trip(tmp_path / "a.png")
    for picture in (first, second):
        assert np.array_equal(picture.stack().reshape(pixels.shape), pixels)
        assert (picture.alpha is None) == (channels in (1, 3)) and picture.is_gray == (channels < 3)


def test_a_png_of_several_strips_is_read_by_pillow_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(png, "STRIP", 1000)
    pixels = values("uint8", 40, 200, 3)
    with open(tmp_path / "a.png", "wb") as file:
        png.write_png(file, pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_tiffs_keep_depth_and_layout(tmp_path, dtype, channels, compression):
    pixels = values(dtype, 9, 14, channels)[..., 0 if channels == 1 else slice(None)]
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb" if channels > 2 else "minisblack", compression=compression,
        planarconfig="contig" if channels > 1 else None, extrasamples=["unassalpha"] * (channels in (2, 4)) or None,
    )  # fmt: skip
    first, second = round_trip(tmp_path / "a.tif")
    for picture in (first, second):
        assert picture.pixels.dtype == dtype and np.array_equal(picture.stack(), pixels)
    with tifffile.TiffFile(tmp_path / "out/a.tif") as file:
        assert (file.pages[0].compression == 1) == (compression is None)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiffs_compressed_with_lzw_are_read(tmp_path, dtype):
    pixels = values(dtype, 9, 14, 3)
    cv2.imwrite(str(tmp_path / "a.tif"), pixels[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].compression == 5
    assert np.array_equal(round_trip(tmp_path / "a.tif")[1].pixels, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_that_opencv_reads_are_turned_once(tmp_path, orientation):
    """By the tag, which is kept; OpenCV, which reads LZW here, would turn the pixels too."""
    pixels = values("uint16", 9, 14)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={274: orientation})
    first, second = round_trip(tmp_path / "a.tif")
    assert first.orientation == orientation == second.orientation
    assert np.array_equal(first.pixels, pixels) and np.array_equal(second.pixels, pixels)


def test_opencv_is_not_asked_for_planes(tmp_path):
    """It takes them for pixels that lie one after the other."""
    planes = np.moveaxis(values("uint16", 9, 14, 3), 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    header = tiff.read_header(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert tiff._read_with_opencv(tmp_path / "a.tif", header, file.pages[0]) is None


def test_planar_and_inverted_tiffs_are_read(tmp_path):
    pixels = values("uint16", 9, 14, 3)
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate")
    assert np.array_equal(round_trip(tmp_path / "planar.tif")[1].pixels, pixels)
    for dtype, white in (("uint8", 255), ("uint16", 65535)):
        tifffile.imwrite(tmp_path / "inverted.tif", values(dtype, 9, 14), photometric="miniswhite")
        assert np.array_equal(pictures.read_picture(tmp_path / "inverted.tif").pixels, white - values(dtype, 9, 14))
    tifffile.imwrite(tmp_path / "inverted.tif", values("float32", 9, 14), photometric="miniswhite")
    assert np.array_equal(pictures.read_picture(tmp_path / "inverted.tif").pixels, 1 - values("float32", 9, 14))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pillows_modes_are_read_as_pillow_shows_them(tmp_path, mode):
    image = Image.fromarray(values("uint8", 12, 10, 4)).convert(mode)
    image.save(tmp_path / "a.tif")
    shown = np.asarray(image.convert({"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)))
    first, second = round_trip(tmp_path / "a.tif")
    assert np.array_equal(first.stack(), shown) and np.array_equal(second.stack(), shown)
    assert first.notes == (["CMYK converted to RGB, without its profile"] if mode == "CMYK" else [])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_pngs_of_few_bits_fill_the_range(tmp_path, bits):
    row = np.packbits(np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8))  # 1 bit: 4 black, 4 white; 4 bits: 0 and 15
    data = zlib.compress(b"\0" + row.tobytes())
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    with open(tmp_path / "a.png", "wb") as file:
        file.write(png.SIGNATURE)
        for chunk in chunks:
            png._write_chunk(file, *chunk)
    half = 4 // bits
    assert round_trip(tmp_path / "a.png")[1].pixels.tolist() == [[0] * half + [255] * half]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palettes_become_colour_and_grey_ones_grey(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / f"colour.{suffix}")
    expected = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert round_trip(tmp_path / f"colour.{suffix}")[1].pixels.tolist() == expected
    image.putpalette([9, 9, 9, 5, 5, 5, 200, 200, 200])
    image.save(tmp_path / f"grey.{suffix}")
    assert round_trip(tmp_path / f"grey.{suffix}")[1].pixels.tolist() == [[9, 5, 200]]


def test_transparent_colours_become_alpha(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "palette.png", transparency=1)
    first, second = round_trip(tmp_path / "palette.png")
    assert first.alpha.tolist() == second.alpha.tolist() == [[255, 0, 255]]
    Image.fromarray(np.array([[7, 8]], np.uint8)).save(tmp_path / "grey.png", transparency=8)
    assert round_trip(tmp_path / "grey.png")[1].alpha.tolist() == [[255, 0]]


@pytest.mark.parametrize(("name", "mode"), [("a.webp", "RGB"), ("a.webp", "RGBA"), ("a.bmp", "L"), ("a.bmp", "RGB")])
def test_webp_and_bmp_are_kept_bit_by_bit(tmp_path, name, mode):
    image = Image.fromarray(values("uint8", 17, 23, 4)).convert(mode)
    image.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    first, second = round_trip(tmp_path / name)
    assert np.array_equal(first.stack(), np.asarray(image)) and np.array_equal(second.stack(), np.asarray(image))


def test_bmp_with_alpha_is_kept(tmp_path):
    pixels = values("uint8", 5, 6, 4)
    cv2.imwrite(str(tmp_path / "a.bmp"), pixels[..., [2, 1, 0, 3]])
    first, second = round_trip(tmp_path / "a.bmp")
    assert np.array_equal(first.stack(), pixels) and np.array_equal(second.stack(), pixels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpegs_are_written_fine_and_with_full_colour_resolution(tmp_path, mode):
    smooth = cv2.resize(values("uint8", 5, 6, 3), (90, 70), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).convert(mode).save(tmp_path / "a.jpg", quality=90)
    first, second = round_trip(tmp_path / "a.jpg")
    assert first.pixels.shape == second.pixels.shape
    assert np.abs(first.pixels.astype(int) - second.pixels).mean() < 1
    with Image.open(tmp_path / "out/a.jpg") as image:
        assert image.mode == mode and max(image.quantization[0]) <= 12  # quality 95
        assert all(layer[1:3] == (1, 1) for layer in image.layer)


# --- metadata ---------------------------------------------------------------------------------------------------------


def exif_of(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    exif[271] = "Maker"
    return exif


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_exif_icc_and_resolution_are_kept_and_pixels_stay_as_stored(tmp_path, name):
    image = Image.fromarray(values("uint8", 8, 20, 3))
    image.save(tmp_path / name, exif=exif_of(6), icc_profile=ICC, dpi=(300, 300))
    first, _ = round_trip(tmp_path / name)
    with Image.open(tmp_path / name) as before, Image.open(tmp_path / "out" / name) as after:
        assert after.size == before.size == ((8, 20) if name == "a.tif" else (20, 8))  # Pillow turns TIFFs
        assert after.info["icc_profile"] == ICC
        assert after.getexif()[274] == 6 and after.getexif()[271] == "Maker"
        assert after.info.get("dpi") == before.info.get("dpi")
        if name != "a.tif":
            assert after.info["exif"] == before.info["exif"]
    assert first.orientation == 6


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.png"])
@pytest.mark.parametrize("target", ["b.jpg", "b.tif", "b.png"])
def test_resolution_goes_into_other_formats(tmp_path, name, target):
    Image.fromarray(values("uint8", 8, 20, 3)).save(tmp_path / name, dpi=(300, 150))
    round_trip(tmp_path / name, target)
    with Image.open(tmp_path / "out" / target) as image:
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.02)  # a PNG's are whole numbers a metre


def test_a_resolution_beyond_a_jpegs_16_bits_is_left_out(tmp_path):
    Image.fromarray(values("uint8", 8, 20, 3)).save(tmp_path / "a.png", dpi=(254000, 254000))
    round_trip(tmp_path / "a.png", "b.jpg")
    with Image.open(tmp_path / "out/b.jpg") as image:
        assert "dpi" not in image.info


def test_a_tiffs_resolution_in_centimetres(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 8, 20), resolution=(100, 50), resolutionunit=3)
    _, second = round_trip(tmp_path / "a.tif", "a.png")
    assert second.dpi == pytest.approx((254, 127))
    tifffile.imwrite(tmp_path / "b.tif", values("uint16", 8, 20), resolution=(100, 50), resolutionunit=1)  # a ratio
    assert round_trip(tmp_path / "b.tif", "b.png")[1].dpi is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, orientation):
    pixels = values("uint8", 8, 20, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif_of(orientation))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(pictures.turn_upright(pixels, orientation), np.asarray(ImageOps.exif_transpose(image)))
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(274, 3, 1, orientation, True)])
    first, _ = round_trip(tmp_path / "a.tif")
    assert first.orientation == orientation and np.array_equal(first.pixels, pixels)
    with tifffile.TiffFile(tmp_path / "out/a.tif") as file:
        assert np.array_equal(file.asarray(), pixels) and file.pages[0].tags[274].value == orientation


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_turned_tiffs_stay_as_stored(tmp_path, mode, compression):
    image = Image.fromarray(values("uint8", 8, 20, 4)).convert(mode)
    image.save(tmp_path / "a.tif", exif=exif_of(6), compression=compression)
    shown = np.asarray(image.convert({"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)))
    first, second = round_trip(tmp_path / "a.tif")
    assert first.orientation == second.orientation == 6
    assert np.array_equal(first.stack(), shown) and np.array_equal(second.stack(), shown)


@pytest.mark.parametrize("source", ["a.png", "a.jpg", "a.webp", "a.tif"])
@pytest.mark.parametrize("target", ["b.png", "b.jpg", "b.webp", "b.tif"])
def test_metadata_goes_along_into_other_formats(tmp_path, source, target):
    Image.fromarray(values("uint8", 8, 20, 3)).save(tmp_path / source, exif=exif_of(8), icc_profile=ICC)
    round_trip(tmp_path / source, target)
    with Image.open(tmp_path / "out" / target) as image:
        assert image.getexif()[274] == 8 and image.info["icc_profile"] == ICC
        assert image.size == ((8, 20) if target == "b.tif" else (20, 8))  # Pillow turns TIFFs


def test_16_bit_pngs_keep_their_chunks(tmp_path):
    chunks = [(b"gAMA", struct.pack(">I", 100000)), (b"iCCP", b"p\0\0" + zlib.compress(ICC)), (b"tEXt", b"Title\0dots")]
    with open(tmp_path / "a.png", "wb") as file:
        png.write_png(file, values("uint16", 3, 4, 3), [*chunks, (b"prIV", b"private")])
    first, _ = round_trip(tmp_path / "a.png")
    with open(tmp_path / "out/a.png", "rb") as file:
        assert list(png.iterate_chunks(file, "a.png")) == chunks
    assert first.icc == ICC


@pytest.mark.parametrize("name", ["a.bmp"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_formats_without_orientation_are_written_upright(tmp_path, name, orientation):
    pixels = values("uint8", 5, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif_of(orientation))
    _, second = round_trip(tmp_path / "a.png", name)
    assert np.array_equal(second.stack(), pictures.turn_upright(pixels, orientation))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_grey_of_few_bits_becomes_alpha(tmp_path, bits):
    """The lowest value and the highest, the highest being transparent; bits are packed from the left."""
    white = 2**bits - 1
    row = bytes([white << (8 - 2 * bits)])
    with open(tmp_path / "a.png", "wb") as file:
        file.write(png.SIGNATURE)
        png._write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0))
        png._write_chunk(file, b"tRNS", struct.pack(">H", white))
        png._write_chunk(file, b"IDAT", zlib.compress(b"\0" + row))
        png._write_chunk(file, b"IEND", b"")
    first, second = round_trip(tmp_path / "a.png")
    for picture in (first, second):
        assert picture.pixels.tolist() == [[0, 255]] and picture.alpha.tolist() == [[255, 0]]


def test_a_transparent_grey_of_16_bits_becomes_alpha(tmp_path):
    pixels = np.array([[0, 1000], [1000, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=1000)
    first, second = round_trip(tmp_path / "a.png")
    for picture in (first, second):
        assert np.array_equal(picture.alpha, [[65535, 0], [0, 65535]]) and np.array_equal(picture.pixels, pixels)


@pytest.mark.parametrize(("dtype", "white"), [("uint16", 65535), ("float32", 1)])
def test_colours_multiplied_by_alpha_are_divided_again(tmp_path, dtype, white):
    """40000 at half of alpha is stored as 20000; where alpha is nothing, the colour is what is stored."""
    stored = np.zeros((1, 2, 4), dtype)
    stored[0, 0] = [20000 * white / 65535] * 3 + [white / 2]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    first, second = round_trip(tmp_path / "a.tif")
    for picture in (first, second):
        assert picture.pixels[0, 0] * (65535 / white) == pytest.approx(np.full(3, 40000), abs=2)
        assert not picture.pixels[0, 1].any()


def test_divided_colours_are_rounded_and_stay_white(tmp_path):
    """20001 of 30000 is 43692.2 of 65535, 20003 is 43696.6; 30001 is more than white; by nothing nothing is divided."""
    stored = np.array([[[20001, 20003, 30001, 30000], [700, 0, 800, 0]]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    assert pictures.read_picture(tmp_path / "a.tif").pixels.tolist() == [[[43692, 43697, 65535], [700, 0, 800]]]
    arguments = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["assocalpha"]}
    tifffile.imwrite(tmp_path / "gray.tif", stored[..., [1, 3]], **arguments)
    assert pictures.read_picture(tmp_path / "gray.tif").pixels.ravel().tolist() == [43697, 0]


def test_grey_multiplied_by_alpha_is_divided_in_8_bits_too(tmp_path):
    arguments = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["assocalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", np.array([[[50, 100], [7, 0]]], np.uint8), **arguments)
    picture = pictures.read_picture(tmp_path / "a.tif")
    assert picture.pixels.tolist() == [[128, 7]] and picture.alpha.tolist() == [[100, 0]]  # 127.5, rounded to even


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_three_bands_are_red_green_and_blue_and_a_fourth_is_alpha_if_it_says_so(tmp_path, dtype):
    """As GDAL writes deep pictures: the photometric tag does not say that they are RGB."""
    pixels, arguments = values(dtype, 7, 9, 4), {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "rgb.tif", pixels[..., :3], **arguments, extrasamples=["unspecified"] * 2)
    assert np.array_equal(pictures.read_picture(tmp_path / "rgb.tif").pixels, pixels[..., :3])
    extra = ["unspecified", "unspecified", "unassalpha"]
    tifffile.imwrite(tmp_path / "rgba.tif", pixels, **arguments, extrasamples=extra)
    picture = pictures.read_picture(tmp_path / "rgba.tif")
    assert np.array_equal(picture.pixels, pixels[..., :3]) and np.array_equal(picture.alpha, pixels[..., 3])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("photometric", "channels", "message"),
    [
        ("rgb", 4, "4 channels, the last of which is not alpha; grey and RGB, each with alpha or not, can be used"),
        ("minisblack", 4, "4 channels, the last of which is not alpha"),
        ("minisblack", 2, "2 channels, the last of which is not alpha"),
        ("rgb", 5, "5 channels; grey and RGB"),
        ("minisblack", 6, "6 channels; grey and RGB"),
    ],
)
def test_channels_that_are_neither_colours_nor_alpha_are_refused(tmp_path, dtype, photometric, channels, message):
    """An infrared or a radar's second channel would come out as alpha, or be left out without a word."""
    extra = ["unspecified"] * (channels - (3 if photometric == "rgb" else 1))
    arguments = {"photometric": photometric, "planarconfig": "contig", "extrasamples": extra}
    tifffile.imwrite(tmp_path / "a.tif", values(dtype, 7, 9, channels), **arguments)
    assert message in refuse(tmp_path / "a.tif")


@pytest.mark.parametrize(("photometric", "channels"), [("separated", 4), ("cielab", 3)])
def test_deep_tiffs_of_other_colours_are_refused(tmp_path, photometric, channels):
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 7, 9, channels), photometric=photometric)
    with pytest.raises(InputError, match=f"16-bit pixels in {photometric.upper()}; deep pictures can be grey or RGB"):
        pictures.read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("date", ["2026:01:02 03:04:05", "2026-01-02"])
def test_a_date_is_kept_as_it_stands(tmp_path, date):
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 4, 5), extratags=[(306, 2, len(date) + 1, date, True)])
    round_trip(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "out/a.tif") as file:
        assert file.pages[0].tags[306].value == date


def test_names_may_be_as_long_as_the_system_takes_them(tmp_path):
    name = "n" * 251 + ".png"
    Image.fromarray(values("uint8", 3, 4)).save(tmp_path / name)
    round_trip(tmp_path / name)


def test_tags_of_tiffs_are_kept(tmp_path):
    extra = [(42113, "s", 0, "-9999", True), (33550, "d", 3, (1.0, 2.0, 0.0), True), (315, "s", 0, "me", True)]
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 4, 5), extratags=extra, description="cells", metadata=None)
    round_trip(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "out/a.tif") as file:
        tags = file.pages[0].tags
        found = [tags[code].value for code in (42113, 33550, 315, 270)]
    assert found == ["-9999", (1.0, 2.0, 0.0), "me", "cells"]


@pytest.mark.parametrize("kind", [1, 2, 7])  # numbers of a byte, ASCII, anything
@pytest.mark.parametrize("text", ["cells é", "中国科学院", "写真"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "shift-jis"])
def test_texts_of_tiffs_are_kept_byte_by_byte(tmp_path, kind, text, encoding):
    """In whatever encoding; of some tifffile gives other characters, of some bytes in the place of a string."""
    stored = text.encode(encoding, "replace")
    extra = [(code, kind, len(stored) + 1, stored + b"\0", True) for code in (270, 305, 306, 315)]
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 4, 5), extratags=extra, metadata=None, software=False)
    round_trip(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "out/a.tif") as file:
        for code in (270, 305, 306, 315):
            tag = file.pages[0].tags[code]
            file.filehandle.seek(tag.valueoffset)
            assert file.filehandle.read(tag.valuebytecount) == stored + b"\0"


@pytest.mark.parametrize("target", ["out.jpg", "out.webp", "out.png", "out.tif"])
@pytest.mark.parametrize("source", ["a.jpg", "a.webp", "a.png", "a.tif"])
def test_xmp_is_kept(tmp_path, source, target):
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>mine</x:xmpmeta>"
    pixels = values("uint8", 6, 8, 3)
    if source == "a.tif":
        tifffile.imwrite(tmp_path / source, pixels, photometric="rgb", extratags=[(700, 1, len(packet), packet, True)])
    elif source == "a.png":
        chunks = [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)]
        with open(tmp_path / source, "wb") as file:
            png.write_png(file, pixels, chunks)
    else:
        Image.fromarray(pixels).save(tmp_path / source, xmp=packet)
    first, second = round_trip(tmp_path / source, target)
    assert first.xmp == second.xmp == packet
    with Image.open(tmp_path / "out" / target) as image:
        assert image.info["xmp"] == packet


def test_xmp_that_no_jpeg_holds_is_left_out_of_one(tmp_path):
    picture = pictures.Picture(values("uint8", 6, 8), xmp=b"x" * (pictures.JPEG_XMP + 1))
    pictures.write_picture(picture, tmp_path / "a.jpg")
    assert pictures.read_picture(tmp_path / "a.jpg").xmp == b""
    picture.xmp = picture.xmp[:-1]
    pictures.write_picture(picture, tmp_path / "b.jpg")
    assert pictures.read_picture(tmp_path / "b.jpg").xmp == picture.xmp


# --- what is refused --------------------------------------------------------------------------------------------------


def refuse(path):
    with pytest.raises(InputError, match=str(path)) as refusal:
        pictures.read_picture(path)
    return str(refusal.value)


def write_all(folder):
    """One whole file of each format, of 16 and 8 bits."""
    image, deep = Image.fromarray(values("uint8", 60, 70, 3)), values("uint16", 60, 70, 3)
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"):
        image.save(folder / name)
    cv2.imwrite(str(folder / "deep.png"), deep)
    cv2.imwrite(str(folder / "lzw.tif"), deep, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    tifffile.imwrite(folder / "deep.tif", deep, photometric="rgb")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.97])
def test_truncated_files_are_refused_by_name(tmp_path, part):
    for path in write_all(tmp_path):
        data = path.read_bytes()
        path.write_bytes(data[: int(part * len(data))])
        assert refuse(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "deep.png", "deep.tif", "lzw.tif", "a.exr"])
def test_memory_that_runs_out_is_no_damage(tmp_path, monkeypatch, name):
    write_all(tmp_path)
    (tmp_path / "a.exr").write_bytes(exr_header(70, 60, [b"Y"], 2))
    monkeypatch.setattr(exr, "check_support", lambda path: None)

    def fail(*arguments, **settings):
        raise MemoryError("Unable to allocate")

    def fail_in_opencv(*arguments):
        error = cv2.error("Insufficient memory (Failed to allocate 99 bytes)")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(pictures, "_to_array", fail)
    monkeypatch.setattr(cv2, "imdecode", fail_in_opencv)
    if name == "deep.tif":
        monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(MemoryError):
        pictures.read_picture(tmp_path / name)
    with pytest.raises(MemoryError):
        images.decode_image((tmp_path / name).read_bytes(), name)


def test_a_png_with_one_bit_turned_is_refused(tmp_path):
    Image.fromarray(values("uint8", 60, 70, 3)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a.png").write_bytes(data)
    assert "damaged" in refuse(tmp_path / "a.png")


def test_files_are_known_by_content(tmp_path):
    Image.fromarray(values("uint8", 6, 7, 3)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "is_jpeg.png")
    first, second = round_trip(tmp_path / "is_jpeg.png")
    assert first.format == "JPEG" and second.format == "PNG" and np.array_equal(first.pixels, second.pixels)
    first, second = round_trip(tmp_path / "is_jpeg.png", "no_suffix")
    assert second.format == "JPEG"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"GIF89a\1\0\1\0", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"%PDF-1.7"]
)
def test_what_is_no_picture_is_refused(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert refuse(path)


def bomb(path, width, height):
    """A PNG of a few bytes whose header announces more."""
    with open(path, "wb") as file:
        file.write(png.SIGNATURE)
        for chunk in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99)),
            (b"IEND", b""),
        ):  # fmt: skip
            png._write_chunk(file, *chunk)


def test_pictures_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path):
    bomb(tmp_path / "bomb.png", 65535, 65535)
    assert "65,535 x 65,535 pixels" in refuse(tmp_path / "bomb.png")
    bomb(tmp_path / "within.png", 12000, 9000)
    assert pictures.read_header(tmp_path / "within.png").pixels == 108_000_000
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((7, 7), np.uint8), description="x" * 100)
    with tifffile.TiffFile(tmp_path / "bomb.tif", mode="r+") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(60000)
    assert "60,000 x 60,000 pixels" in refuse(tmp_path / "bomb.tif")


def test_several_pages_and_animations_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 3, 5, 6), photometric="minisblack")
    assert "3 pages" in refuse(tmp_path / "a.tif")
    frames = [Image.fromarray(values("uint8", 5, 6, 3) // n) for n in (1, 2)]
    for name in ("a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "animation of 2" in refuse(tmp_path / name)


@pytest.mark.parametrize("dtype", ["uint32", "int16", "complex64"])
def test_other_types_of_pixels_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 4), dtype))
    assert dtype in refuse(tmp_path / "a.tif")


def test_pixels_that_are_no_numbers_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0.5, np.nan]], np.float32))
    assert "no numbers" in refuse(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "channels", "name", "hint"),
    [("uint16", 3, "a.jpg", "PNG and TIFF"), ("float32", 3, "a.png", "TIFF"), ("uint8", 4, "a.jpg", "alpha"),
     ("float32", 1, "a.webp", "TIFF"), ("float64", 3, "a.exr", "TIFF"), ("uint8", 3, "a.exr", "PNG and TIFF")],
)  # fmt: skip
def test_names_whose_format_cannot_hold_the_picture_are_refused(tmp_path, dtype, channels, name, hint):
    pixels = values(dtype, 4, 4, channels)
    picture = pictures.Picture(pixels[..., :3], pixels[..., 3] if channels == 4 else None)
    with pytest.raises(InputError, match=hint):
        pictures.check_writable(picture, tmp_path / name)


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_failure_in_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(picture, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setitem(pictures._WRITERS, "PNG", fail)
    with pytest.raises(OSError, match="No space"):
        pictures.write_picture(pictures.Picture(values("uint8", 4, 4)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# --- EXR --------------------------------------------------------------------------------------------------------------


def attribute(name, type_name, data):
    return name + b"\0" + type_name + b"\0" + struct.pack("<I", len(data)) + data


def exr_header(width, height, channels, kind):
    listed = b"".join(name + b"\0" + struct.pack("<iBxxxii", kind, 0, 1, 1) for name in channels) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    return (
        exr.MAGIC + struct.pack("<I", 2) + attribute(b"channels", b"chlist", listed)
        + attribute(b"dataWindow", b"box2i", window) + b"\0"
    )  # fmt: skip


def test_the_header_of_an_exr_says_size_and_depth(tmp_path, monkeypatch):
    (tmp_path / "a.exr").write_bytes(exr_header(70, 60, [b"B", b"G", b"R"], 1))
    assert exr.read_header(tmp_path / "a.exr") == exr.Header(70, 60, ("B", "G", "R"), True)
    (tmp_path / "a.exr").write_bytes(exr_header(70, 60, [b"Y"], 2))
    assert exr.read_header(tmp_path / "a.exr") == exr.Header(70, 60, ("Y",), False)
    preview = struct.pack("<II", 512, 512) + bytes(4 * 512**2)  # over a mebibyte
    data = exr_header(70, 60, [b"Y"], 2)
    (tmp_path / "a.exr").write_bytes(data[:8] + attribute(b"preview", b"preview", preview) + data[8:])
    assert exr.read_header(tmp_path / "a.exr") == exr.Header(70, 60, ("Y",), False)
    (tmp_path / "a.exr").write_bytes(exr_header(99999, 99999, [b"Y"], 2))
    monkeypatch.setattr(exr, "check_support", lambda path: None)
    assert "too large" in refuse(tmp_path / "a.exr")
    (tmp_path / "a.exr").write_bytes(exr_header(70, 60, [b"Y"], 2)[:30])
    assert "damaged EXR header" in refuse(tmp_path / "a.exr")


def has_openexr():
    try:
        exr.check_support("a.exr")
    except InputError:
        return False
    return True


def test_without_openexr_an_exr_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "    OpenEXR:                     NO\n")
    (tmp_path / "a.exr").write_bytes(exr_header(70, 60, [b"Y"], 2))
    assert "built without OpenEXR" in refuse(tmp_path / "a.exr")


@pytest.mark.skipif(not has_openexr(), reason="this OpenCV was built without OpenEXR")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3), (5, 6, 4)])
def test_exrs_keep_depth_and_channels(tmp_path, dtype, shape):
    pixels = values(dtype, *shape)
    exr.write_exr(tmp_path / "a.exr", pixels)
    first, second = round_trip(tmp_path / "a.exr")
    for picture in (first, second):
        assert picture.pixels.dtype == dtype and np.array_equal(picture.stack(), pixels)
