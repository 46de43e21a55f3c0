"""TIFF files at any depth: header, pixels, tags. tifffile reads and writes; OpenCV steps in for some compressions."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from hranet_arch.errors import InputError, first_line
from hranet_arch.images import decode

# What tifffile says of a damaged file is for programs that ask for it; the error here says it in one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

ORIENTATION = 274
RESOLUTION, RESOLUTION_UNIT = (282, 283), 296  # across and down
TEXTS = DESCRIPTION, SOFTWARE, DATETIME = 270, 305, 306
XMP = 700
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737)  # GeoTIFF's: where on a map which pixel lies
# Make, model, artist, copyright, XMP, and the tags of GeoTIFF and GDAL: written again as they were.
KEPT = (271, 272, 315, 33432, XMP, *GEOREFERENCE, 42112, 42113)
BYTE, ASCII, UNDEFINED = 1, 2, 7  # types of a tag whose values are of a byte each
MINISWHITE, MINISBLACK, RGB = 0, 1, 2
LOGARITHMIC = 32844, 32845  # floats as OpenCV itself may write them
CONTIGUOUS = 1  # the channels of a pixel lie side by side
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2  # a channel beyond the colours; the latter two are alpha


@dataclass(frozen=True)
class Header:
    """What a TIFF file says of its picture; ``tags`` by number, those that a copy should have."""

    width: int
    height: int
    channels: int
    dtype: np.dtype
    bits: int
    is_compressed: bool
    icc: bytes | None
    photometric: int
    is_premultiplied: bool  # whether the colours were stored multiplied by alpha
    tags: Mapping[int, object] = field(default_factory=dict)
    page: int = 0  # where the picture is in the file: a preview may come first

    @property
    def xmp(self) -> bytes:
        return self.tags[XMP][2] if XMP in self.tags else b""

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Pixels an inch, across and down; None where the file says nothing that makes sense."""
        unit = {2: 1, 3: 2.54}.get(self.tags.get(RESOLUTION_UNIT, 2), 0)  # inch or centimetre
        fractions = [self.tags.get(code, (0, 1)) for code in RESOLUTION]
        try:
            across, down = (unit * number / divisor for number, divisor in fractions)
        except (TypeError, ValueError, ZeroDivisionError):
            return None
        return (across, down) if 1 <= min(across, down) and max(across, down) < 65536 else None


def count_pages(data: bytes) -> int:
    """Pictures in a file's bytes; previews and masks are none, but for one that comes first: OpenCV would read it."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = _list_pages(file)
        return len(pages) + bool(pages and pages[0].index)


def refuse_misread(data: bytes, name: str) -> None:
    """Refuses what OpenCV takes for another picture, given a file's bytes.

    Of more than 8 bits: planes, negatives, and colours that are neither grey nor said to be RGB, which in 8 bits are
    wrong as well. And colours that are not opaque, where it gives them multiplied by alpha: in 8 bits all of them, in
    more those that are stored so.

    Raises:
        InputError: for a file of that kind; damaged ones are OpenCV's to refuse.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            is_gray, is_rgb = page.photometric == MINISBLACK, page.photometric == RGB
            channels, is_deep, extra = page.samplesperpixel, np.max(page.bitspersample) > 8, page.extrasamples
            is_planar = channels > 1 and page.planarconfig != CONTIGUOUS
            is_known = (is_gray and channels == 1) or (is_rgb and channels in (3, 4)) or page.photometric in LOGARITHMIC
    except Exception:  # as ``_open`` says, of many kinds
        return
    if (is_gray and channels > 2) or (is_deep and (is_planar or not is_known)):
        raise InputError(
            f"{name}: a TIFF that is neither grey (black is zero) nor said to be RGB, with a pixel's channels side by "
            "side. Save it so, or as a PNG."
        )
    if is_gray and channels == 2 and extra == (ASSOCIATED,):
        raise InputError(f"{name}: a grey TIFF multiplied by its alpha. Take alpha off, or save it as a PNG.")
    is_multiplied = extra == (ASSOCIATED,) or (extra == (UNASSOCIATED,) and not is_deep)
    if is_rgb and channels == 4 and is_multiplied and not _is_opaque(data):
        raise InputError(f"{name}: a TIFF with pixels that one sees through. Take alpha off, or save it as a PNG.")


def _is_opaque(data: bytes) -> bool:
    pixels = decode(np.frombuffer(data, np.uint8))
    white = 1 if pixels is None or pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
    return pixels is None or pixels.ndim < 3 or pixels[..., 3:].min(initial=white) >= white


def _list_pages(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    return [page for page in file.pages if not (page.is_reduced or page.is_mask)]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tifffile.TiffPage]:
    try:
        with tifffile.TiffFile(path) as file:
            pages = _list_pages(file)
            if len(pages) > 1:
                raise InputError(
                    f"{path}: holds {len(pages)} pages, and a result would hold one. Split it into files of one page."
                )
            yield pages[0]
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged bytes end in struct.error, KeyError, IndexError, zlib.error, ...
        raise InputError(f"{path}: not a whole TIFF: {first_line(error)}") from error


def read_header(path: Path) -> Header:
    """Reads everything but the pixels.

    Raises:
        InputError: if the file is damaged, or holds several pages, pixels of an unusual type, or channels that are
            neither colours nor alpha.
    """
    with _open(path) as page:
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        if page.dtype is None:
            raise InputError(f"{path}: {bits}-bit pixels of an unusual type; 8, 16 and 32 bits can be used.")
        channels, extra = page.samplesperpixel, page.extrasamples[-1:]
        if channels > 4 or (channels in (2, 4) and extra == (UNSPECIFIED,)):
            what = f"{channels} channels" if channels > 4 else f"{channels} channels, the last of which is not alpha"
            raise InputError(f"{path}: {what}; grey and RGB, each with alpha or not, can be used.")
        tags = {code: page.tags[code] for code in (*KEPT, *TEXTS) if code in page.tags}
        tags = {code: tag for code, tag in tags.items() if _is_bytes(tag) or code not in (*TEXTS, XMP)}
        kept = {code: (int(tag.dtype), tag.count, _read_value(page, tag)) for code, tag in tags.items()}
        for code in (ORIENTATION, *RESOLUTION, RESOLUTION_UNIT):
            if code in page.tags:
                kept[code] = page.tags[code].value
        return Header(
            page.imagewidth, page.imagelength, channels, page.dtype, bits, page.compression != 1,
            page.iccprofile, int(page.photometric), extra == (ASSOCIATED,), kept, page.index,
        )  # fmt: skip


def _read_value(page: tifffile.TiffPage, tag: tifffile.TiffTag) -> object:
    """A text as its bytes: tifffile guesses what they stand for, and would write another text."""
    if not _is_bytes(tag):
        return tag.value
    page.parent.filehandle.seek(tag.valueoffset)
    return page.parent.filehandle.read(tag.valuebytecount)


def _is_bytes(tag: tifffile.TiffTag) -> bool:
    return tag.dtype in (BYTE, ASCII, UNDEFINED)


def read_pixels(path: Path, header: Header) -> np.ndarray:
    """Reads a picture of 8 bits or more, or of floats: ``(h, w)`` or ``(h, w, c)``, in RGB order.

    Raises:
        InputError: if the file is damaged, or compressed in a way that nothing here reads.
    """
    with _open(path) as page:
        if page.photometric not in (MINISWHITE, MINISBLACK, RGB):
            colors = getattr(page.photometric, "name", page.photometric)
            raise InputError(f"{path}: {header.bits}-bit pixels in {colors}; deep pictures can be grey or RGB.")
        try:
            pixels = np.moveaxis(page.asarray(), 0, -1) if page.axes == "SYX" else page.asarray()
        except (KeyError, ValueError) as error:
            if "imagecodecs" not in str(error):
                raise
            pixels = _read_with_opencv(path, header, page)
            if pixels is None:
                raise InputError(f"{path}: {error}; with `pip install imagecodecs` it can be read.") from error
        if page.photometric == MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels if pixels.dtype.kind == "u" else 1 - pixels
        if header.channels in (2, 4) and header.is_premultiplied:
            pixels = _divide_by_alpha(pixels)
    return pixels.reshape(header.height, header.width, -1)[..., 0] if header.channels == 1 else pixels


def _divide_by_alpha(pixels: np.ndarray) -> np.ndarray:
    """Colours that were stored multiplied by alpha as they were before, as Pillow does it with 8 bits."""
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    colors, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:]
    colors = np.divide(colors * white, alpha, out=colors, where=alpha > 0)
    if pixels.dtype.kind == "u":
        colors = colors.clip(0, white).round()
    return np.concatenate([colors.astype(pixels.dtype), alpha], axis=-1)


def _read_with_opencv(path: Path, header: Header, page: tifffile.TiffPage) -> np.ndarray | None:
    """OpenCV brings libtiff's compressions, but reads two or five channels as one, takes planes for pixels, turns the
    picture as its tag says and may change the type."""
    if header.channels not in (1, 3, 4) or (header.channels > 1 and page.planarconfig != CONTIGUOUS):
        return None
    data = np.fromfile(path, np.uint8)
    if ORIENTATION in page.tags:  # as it is stored, here as everywhere; the tag is kept
        tag = page.tags[ORIENTATION]
        upright = np.frombuffer(struct.pack(page.parent.byteorder + {3: "H", 4: "I"}[int(tag.dtype)], 1), np.uint8)
        data[tag.valueoffset : tag.valueoffset + len(upright)] = upright
    pixels = decode(data)
    if pixels is None or pixels.dtype != header.dtype:
        return None
    return pixels[..., [2, 1, 0, 3][: header.channels]] if header.channels > 1 else pixels


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    has_alpha: bool,
    icc: bytes | None = None,
    tags: Mapping[int, object] | None = None,
    is_compressed: bool = True,
) -> None:
    """Writes a picture of one page, without loss.

    Args:
        path: the file.
        pixels: ``(h, w)`` or ``(h, w, c)`` in RGB order, alpha last; any of uint8, uint16 and the floats.
        has_alpha: whether the last channel is alpha.
        icc: the colour profile.
        tags: as in ``Header``.
        is_compressed: with Deflate; whole numbers as differences.
    """
    tags = dict(tags or {})
    resolution = {"resolution": tuple(map(tags.pop, RESOLUTION))} if {*RESOLUTION} <= tags.keys() else {}
    texts = {DESCRIPTION: "description", SOFTWARE: "software"}
    named = {name: tags.pop(code)[2].rstrip(b"\0") for code, name in texts.items() if code in tags}
    unit = tags.pop(RESOLUTION_UNIT, None)
    if unit is not None and resolution:  # "none" is 1, and false
        resolution["resolutionunit"] = unit
    # The date too: tifffile's own argument takes one form of it alone.
    extra = [(code, *tags[code]) for code in (*KEPT, DATETIME) if code in tags]
    if ORIENTATION in tags:
        extra.append((ORIENTATION, 3, 1, int(tags[ORIENTATION])))
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if has_alpha else None,
        compression="zlib" if is_compressed else None,
        predictor=is_compressed and pixels.dtype.kind == "u",
        metadata=None,
        iccprofile=icc,
        extratags=extra,
        **{"software": False, **named},
        **resolution,
    )
