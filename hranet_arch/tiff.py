"""TIFF files at any depth: header, pixels, tags. tifffile reads and writes; OpenCV steps in for some compressions."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import tifffile

from hranet_arch.errors import InputError, first_line

# What tifffile says of a damaged file is for programs that ask for it; the error here says it in one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

ORIENTATION = 274
RESOLUTION, RESOLUTION_UNIT = (282, 283), 296  # across and down
DESCRIPTION, SOFTWARE, DATETIME = 270, 305, 306
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737)  # GeoTIFF's: where on a map which pixel lies
# Make, model, artist, copyright, XMP, and the tags of GeoTIFF and GDAL: written again as they were.
KEPT = (271, 272, 315, 33432, 700, *GEOREFERENCE, 42112, 42113)
MINISWHITE, MINISBLACK, RGB = 0, 1, 2
ASSOCIATED = 1


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
    tags: Mapping[int, object] = field(default_factory=dict)
    page: int = 0  # where the picture is in the file: a preview may come first

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
    except InputError:
        raise
    except Exception as error:  # damaged bytes end in struct.error, KeyError, IndexError, zlib.error, ...
        raise InputError(f"{path}: not a whole TIFF: {first_line(error)}") from error


def read_header(path: Path) -> Header:
    """Reads everything but the pixels.

    Raises:
        InputError: if the file is damaged, or holds several pages or pixels of an unusual type.
    """
    with _open(path) as page:
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        if page.dtype is None:
            raise InputError(f"{path}: {bits}-bit pixels of an unusual type; 8, 16 and 32 bits can be used.")
        tags = {code: page.tags[code] for code in (*KEPT, DESCRIPTION, SOFTWARE, DATETIME) if code in page.tags}
        kept = {code: (int(tag.dtype), tag.count, tag.value) for code, tag in tags.items()}
        for code in (ORIENTATION, *RESOLUTION, RESOLUTION_UNIT):
            if code in page.tags:
                kept[code] = page.tags[code].value
        return Header(
            page.imagewidth, page.imagelength, page.samplesperpixel, page.dtype, bits, page.compression != 1,
            page.iccprofile, kept, page.index,
        )  # fmt: skip


def read_pixels(path: Path, header: Header) -> np.ndarray:
    """Reads a picture of 16 bits or more, or of floats: ``(h, w)`` or ``(h, w, c)``, in RGB order.

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
        if header.channels in (2, 4) and page.extrasamples[:1] == (ASSOCIATED,):
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
    if header.channels not in (1, 3, 4) or (header.channels > 1 and page.planarconfig != 1):
        return None
    data = np.fromfile(path, np.uint8)
    if ORIENTATION in page.tags:  # as it is stored, here as everywhere; the tag is kept
        tag = page.tags[ORIENTATION]
        upright = np.frombuffer(struct.pack(page.parent.byteorder + {3: "H", 4: "I"}[int(tag.dtype)], 1), np.uint8)
        data[tag.valueoffset : tag.valueoffset + len(upright)] = upright
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != header.dtype:
        return None
    return pixels[..., [2, 1, 0, 3][: header.channels]] if header.channels > 1 else pixels


def _encode(dtype: int, count: int, value: object) -> tuple[int, int, object]:
    """A text as bytes in UTF-8, as most programs write it: of a string tifffile takes ASCII alone."""
    return (dtype, 0, value.encode() + b"\0") if isinstance(value, str) else (dtype, count, value)


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
    named = {name: tags.pop(code)[2].encode() for code, name in texts.items() if code in tags}
    unit = tags.pop(RESOLUTION_UNIT, None)
    if unit is not None and resolution:  # "none" is 1, and false
        resolution["resolutionunit"] = unit
    # The date too: tifffile's own argument takes one form of it alone.
    extra = [(code, *_encode(*tags[code])) for code in (*KEPT, DATETIME) if code in tags]
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
