"""Picture files, read and written with nothing lost but what the format cannot hold: depth, alpha, EXIF, XMP, profile.

PNG, JPEG, TIFF, WebP, BMP, and EXR where OpenCV has it. A file is known by its content, whatever it is called, and
its size is checked before any pixel is decoded. Pillow decodes 8 bits; deeper PNGs are OpenCV's, deeper TIFFs
``tiff.py``'s; ``png.py`` writes PNGs. Pixels stay as stored, with EXIF's orientation as the tag it is; BMP and
EXR, which have no place for it, get them turned upright.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from hranet_arch import exr, png, tiff
from hranet_arch.errors import InputError, first_line
from hranet_arch.files import whole_file
from hranet_arch.images import decode

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP", ".bmp": "BMP",
    ".exr": "EXR",
}  # fmt: skip
KINDS = {"PNG": "iu", "JPEG": "u", "TIFF": "uf", "WebP": "u", "BMP": "u", "EXR": "f"}
LARGEST_PICTURE = 2**28  # pixels: 16,384 x 16,384
LARGEST_DECODED = 3 * 2**29  # bytes of pixels: with the result and a tile, the process stays under 4 GB
LARGEST_FILE = 2**31  # bytes
EXIF_PREFIX = b"Exif\0\0"
BAND = 256  # rows that are taken from Pillow at a time
JPEG_XMP = 65504  # bytes: what one of its segments holds of XMP
JPEG_QUALITY = 95  # with full colour resolution (4:4:4)
_PILLOW_LIMIT = threading.Lock()


@dataclass
class Header:
    """What a file says of its picture before any pixel is decoded."""

    path: Path
    format: str
    width: int
    height: int
    decoded: int  # bytes

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass
class Picture:
    """A picture in memory.

    Attributes:
        pixels: ``(h, w)`` grey or ``(h, w, 3)`` RGB; uint8, uint16 or float.
        alpha: ``(h, w)`` of the same type, or None.
        format: of the file it came from.
        exif: the EXIF block, without JPEG's prefix; empty if there is none.
        icc: the colour profile.
        xmp: the XMP packet; empty if there is none.
        dpi: pixels an inch.
        chunks: a PNG's metadata, as it was.
        tags: a TIFF's, as in ``tiff.Header``.
        is_compressed: whether a TIFF was.
        notes: what was changed in reading, in words.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    exif: bytes = b""
    icc: bytes | None = None
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)
    tags: dict[int, object] = field(default_factory=dict)
    is_compressed: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def is_gray(self) -> bool:
        return self.pixels.ndim == 2

    @property
    def orientation(self) -> int:
        """How a viewer turns the picture, as EXIF counts: 1 (not at all) to 8."""
        if tiff.ORIENTATION in self.tags:
            return int(self.tags[tiff.ORIENTATION])
        exif = Image.Exif()
        with contextlib.suppress(Exception), warnings.catch_warnings():  # a damaged block says nothing
            warnings.simplefilter("ignore")
            exif.load(EXIF_PREFIX + self.exif)
            return int(exif.get(tiff.ORIENTATION, 1))
        return 1

    def stack(self) -> np.ndarray:
        """Pixels and alpha in one array: ``(h, w)`` or ``(h, w, c)``."""
        return self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])


# --- reading ----------------------------------------------------------------------------------------------------------


def read_header(path: str | Path) -> Header:
    """Finds format and size of a picture, and refuses one that is too large to be decoded.

    Raises:
        InputError: if it is no picture that can be used, damaged in its header, or larger than ``LARGEST_PICTURE``
            pixels or ``LARGEST_DECODED`` bytes.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise InputError(f"{path}: a file of {size:,} bytes; at most {LARGEST_FILE:,} are read.")
    kind = _find_format(path)
    if kind == "TIFF":
        found = tiff.read_header(path)
        width, height, decoded = found.width, found.height, found.channels * max(found.dtype.itemsize, 1)
    elif kind == "EXR":
        exr.check_support(path)
        found = exr.read_header(path)
        width, height, decoded = found.width, found.height, 4 * len(found.channels)
    else:
        with _open(path) as image:
            (width, height), decoded = image.size, len(image.getbands()) * (2 if _read_bits(path, kind) == 16 else 1)
    header = Header(path, kind, width, height, decoded * width * height)
    check_size(header)
    if header.pixels < 1:
        raise InputError(f"{path}: a picture without pixels.")
    return header


def check_size(header: Header, scale: int = 1) -> None:
    """Whether a picture, and what it becomes ``scale`` times as large, can be held in memory.

    Raises:
        InputError: if it has more than ``LARGEST_PICTURE`` pixels or ``LARGEST_DECODED`` bytes.
    """
    width, height, decoded = header.width * scale, header.height * scale, header.decoded * scale**2
    if width * height > LARGEST_PICTURE or decoded > LARGEST_DECODED:
        enlarged = f" once enlarged {scale} times" if scale > 1 else ""
        raise InputError(
            f"{header.path}: {width:,} x {height:,} pixels{enlarged}, {decoded:,} bytes once decoded: too large. At "
            f"most {LARGEST_PICTURE:,} pixels and {LARGEST_DECODED:,} bytes are possible: cut it into pieces."
        )


def read_picture(path: str | Path) -> Picture:
    """Reads a picture with its metadata.

    Raises:
        InputError: as ``read_header``; if it is cut off or damaged, animated or of several pages, or of a kind of
            pixels that cannot be used.
    """
    header = read_header(path)
    path = header.path
    if header.format == "EXR":
        picture = _from_stack(exr.read_pixels(path))
        if exr.read_header(path).is_half:
            picture.pixels = picture.pixels.astype(np.float16)
            picture.alpha = None if picture.alpha is None else picture.alpha.astype(np.float16)
    elif header.format == "TIFF":
        picture = _read_tiff(path)
    else:
        picture = _read_with_pillow(path, header.format)
    picture.format = header.format
    if picture.pixels.dtype.kind == "f" and not np.isfinite(picture.pixels.sum(dtype=np.float64)):
        raise InputError(f"{path}: has pixels that are no numbers (NaN or infinite).")
    return picture


def _find_format(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        raise InputError(f"{path}: the file is empty.")
    starts = {
        png.SIGNATURE: "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
        b"MM\0+": "TIFF", b"BM": "BMP", exr.MAGIC: "EXR",
    }  # fmt: skip
    for signature, kind in starts.items():
        if start.startswith(signature):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    raise InputError(f"{path}: not a picture that can be used: {', '.join(dict.fromkeys(FORMATS.values()))}.")


def _read_bits(path: Path, kind: str) -> int:
    """Bits of a sample: of a PNG the byte after width and height, of the others' 8."""
    if kind != "PNG":
        return 8
    with open(path, "rb") as file:
        return int.from_bytes(file.read(25)[24:], "big")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Pillow's view of a file, header only; its own limit of pixels, lower than ours, is off meanwhile."""
    with _PILLOW_LIMIT, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF, which is carried over as it is
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            # Given a path, Pillow maps some TIFFs into memory, and forgets to turn those as it turns the others.
            with open(path, "rb") as file, Image.open(file) as image:
                yield image
        except (InputError, MemoryError):
            raise
        except UnidentifiedImageError as error:  # its own words are an object's
            raise InputError(f"{path}: not a whole picture: the file is cut off or damaged.") from error
        except Exception as error:  # damaged bytes end in OSError, SyntaxError, struct.error, ValueError, ...
            raise InputError(f"{path}: not a whole picture: {first_line(error).rstrip('.')}.") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read_with_pillow(path: Path, kind: str) -> Picture:
    chunks = []
    if kind == "PNG":
        with open(path, "rb") as file:
            chunks = list(png.iterate_chunks(file, str(path)))
    with _open(path) as image:
        # Of a JPEG's several pictures the first is the photograph, the others its preview and gain map.
        if getattr(image, "n_frames", 1) > 1 and kind != "JPEG":
            raise InputError(f"{path}: an animation of {image.n_frames} pictures; a result would hold one.")
        icc, exif = image.info.get("icc_profile"), image.info.get("exif", b"")
        bits, clear = _read_bits(path, kind), image.info.get("transparency")
        if bits == 16:
            pixels = _decode_deep_png(path)
            if pixels.ndim == 2 and clear is not None:  # OpenCV leaves it out
                pixels = np.dstack([pixels, np.where(pixels == clear, 0, 65535).astype(np.uint16)])
            picture = _from_stack(pixels)
        else:
            if image.mode == "L" and clear is not None:  # Pillow makes 8 bits of the pixels' 2 or 4, not of this one's
                image.info["transparency"] = clear * 255 // (2**bits - 1)
            picture = _convert(image, icc is not None)
    if not picture.notes:  # else the colours are others than the profile speaks of
        picture.icc = icc
    picture.exif = exif.removeprefix(EXIF_PREFIX) or dict(chunks).get(b"eXIf", b"")  # behind a PNG's pixels, too
    picture.xmp = image.info.get("xmp", b"")
    picture.dpi = image.info.get("dpi")
    picture.chunks = chunks
    return picture


def _convert(image: Image.Image, has_profile: bool) -> Picture:
    """A picture of Pillow's as grey or RGB, with or without alpha."""
    has_alpha = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
    is_gray = image.mode in ("1", "L", "LA")
    if image.mode == "P" and not has_profile:
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
        is_gray = bool((palette == palette[:, :1]).all())
    notes = []
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        notes.append(f"{image.mode} converted to RGB, without its profile")
    if image.mode == "P" and is_gray:
        image = image.convert("RGBA" if has_alpha else "RGB")
    mode = ("L" if is_gray else "RGB") + ("A" if has_alpha else "")
    picture = _from_stack(_to_array(image if image.mode == mode else image.convert(mode)))
    picture.notes = notes
    return picture


def _to_array(image: Image.Image) -> np.ndarray:
    """Band by band: of the whole picture Pillow's rows, their bytes and NumPy's copy would be there at once."""
    channels = len(image.getbands())
    pixels = np.empty((image.height, image.width) if channels == 1 else (image.height, image.width, channels), np.uint8)
    for top in range(0, image.height, BAND):
        bottom = min(top + BAND, image.height)
        pixels[top:bottom] = image.crop((0, top, image.width, bottom))
    return pixels


def _decode_deep_png(path: Path) -> np.ndarray:
    pixels = decode(np.fromfile(path, np.uint8))
    if pixels is None or pixels.dtype != np.uint16:
        raise InputError(f"{path}: not a whole picture: a damaged 16-bit PNG.")
    if pixels.ndim == 2:
        return pixels
    with open(path, "rb") as file:
        is_gray = file.read(26)[25] in (0, 4)  # the colour type
    if is_gray:
        return pixels[..., [0, 3]] if pixels.shape[2] == 4 else pixels[..., 0]
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _read_tiff(path: Path) -> Picture:
    header = tiff.read_header(path)
    # Pillow knows neither grey multiplied by alpha nor colours that are not said to be RGB.
    is_odd = header.photometric == tiff.MINISBLACK and (header.channels > 2 or header.is_premultiplied)
    if header.bits <= 8 and header.dtype.kind != "i" and not is_odd:
        with _open(path) as image:
            image.seek(header.page)
            picture = _convert(image, header.icc is not None)
        orientation = int(header.tags.get(tiff.ORIENTATION, 1))
        # Pillow turns TIFFs, and TIFFs alone. Orientations other than these two undo themselves.
        undo = {6: 8, 8: 6}.get(orientation, orientation)
        picture.pixels = turn_upright(picture.pixels, undo)
        picture.alpha = None if picture.alpha is None else turn_upright(picture.alpha, undo)
    else:
        is_usable = header.dtype in (np.uint8, np.uint16, np.float16, np.float32, np.float64)
        if not is_usable or header.bits != 8 * header.dtype.itemsize:
            raise InputError(
                f"{path}: {header.bits}-bit pixels of type {header.dtype}; 8 and 16 bits and floats can be used."
            )
        picture = _from_stack(tiff.read_pixels(path, header))
    picture.icc = None if picture.notes else header.icc
    picture.tags, picture.is_compressed, picture.dpi = dict(header.tags), header.is_compressed, header.dpi
    picture.xmp = header.xmp
    return picture


def _from_stack(stack: np.ndarray) -> Picture:
    """``(h, w)`` or ``(h, w, c)`` in RGB order, two or four channels having alpha last."""
    if stack.ndim == 3 and stack.shape[2] in (2, 4):
        colors = np.ascontiguousarray(stack[..., :-1])
        return Picture(colors[..., 0] if colors.shape[2] == 1 else colors, np.ascontiguousarray(stack[..., -1]))
    return Picture(stack[..., 0] if stack.ndim == 3 and stack.shape[2] == 1 else stack)


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns ``(h, w)`` or ``(h, w, c)`` pixels as a viewer does for an EXIF orientation (EXIF 2.32, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(pixels, flips))


# --- writing ----------------------------------------------------------------------------------------------------------


def check_writable(picture: Picture, path: str | Path, scale: int = 1) -> None:
    """Whether a file of this name can hold the picture, ``scale`` times as large: its depth, its alpha, its size.

    Raises:
        InputError: if not, with the formats that can.
    """
    kind = FORMATS.get(Path(path).suffix.lower(), picture.format)
    dtype = picture.pixels.dtype
    if dtype.kind not in KINDS[kind] or (dtype.itemsize > 1 and kind in ("JPEG", "WebP", "BMP")):
        others = "TIFF" if dtype.kind == "f" else "PNG and TIFF"
        raise InputError(f"{path}: {kind} does not hold pixels of type {dtype}; {others} can. Give another name.")
    if kind == "EXR" and dtype == np.float64:
        raise InputError(f"{path}: EXR does not hold pixels of type float64; TIFF can. Give another name.")
    if kind == "EXR":
        exr.check_support(Path(path))
    if kind == "EXR" and picture.alpha is not None and picture.is_gray:
        raise InputError(f"{path}: EXR is not written with grey and alpha here; TIFF can. Give another name.")
    if picture.alpha is not None and kind == "JPEG":
        raise InputError(f"{path}: JPEG holds no alpha channel; PNG, TIFF and WebP do. Give another name.")
    if max(picture.pixels.shape[:2]) * scale > {"WebP": 16383, "JPEG": 65500}.get(kind, math.inf):
        raise InputError(f"{path}: {kind} does not hold pictures of this size. Give another name.")


def write_picture(picture: Picture, path: str | Path) -> None:
    """Writes a picture; under its name is the old file or the new one, whole.

    The format is the name's, or the one the picture was read from if the name has none that is known. JPEG is
    written at quality 95 with full colour resolution, WebP and all others without loss.

    Raises:
        InputError: as ``check_writable``, or if the metadata does not go into the format.
    """
    path = Path(path)
    check_writable(picture, path)
    kind = FORMATS.get(path.suffix.lower(), picture.format)
    with whole_file(path) as temporary:
        try:
            _WRITERS[kind](picture, temporary)
        except (ValueError, cv2.error) as error:
            raise InputError(f"{path}: cannot be written as {kind}: {error}") from error


def _write_png(picture: Picture, path: Path) -> None:
    chunks = picture.chunks
    if picture.format != "PNG":
        chunks = []
        if picture.icc:
            chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
        if exif := _write_exif(picture):
            chunks.append((b"eXIf", exif))
        if picture.xmp:
            chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp))
        if picture.dpi:
            chunks.append(png.make_resolution(picture.dpi))
    with open(path, "wb") as file:
        png.write_png(file, picture.stack(), chunks)


def _write_exif(picture: Picture) -> bytes:
    """The EXIF block; of a TIFF, which has its orientation among its tags, one with that alone."""
    if picture.exif or picture.orientation == 1:
        return picture.exif
    exif = Image.Exif()
    exif[tiff.ORIENTATION] = picture.orientation
    return exif.tobytes().removeprefix(EXIF_PREFIX)


def _write_jpeg(picture: Picture, path: Path) -> None:
    dpi = picture.dpi or (0, 0)
    dpi = dpi if all(round(one) < 2**16 for one in dpi) else (0, 0)  # its numbers have 16 bits
    settings = {"quality": JPEG_QUALITY, "subsampling": 0, "icc_profile": picture.icc, "dpi": dpi}
    if exif := _write_exif(picture):
        settings["exif"] = EXIF_PREFIX + exif
    if len(picture.xmp) <= JPEG_XMP:
        settings["xmp"] = picture.xmp
    Image.fromarray(picture.stack()).save(path, "JPEG", **settings)


def _write_webp(picture: Picture, path: Path) -> None:
    exif = _write_exif(picture)
    settings = {"lossless": True, "exact": True, "exif": EXIF_PREFIX + exif if exif else b"", "xmp": picture.xmp}
    Image.fromarray(picture.stack()).save(path, "WEBP", icc_profile=picture.icc or b"", **settings)


def _write_bmp(picture: Picture, path: Path) -> None:
    stack = turn_upright(picture.stack(), picture.orientation)  # which a BMP has no entry for
    stack = np.dstack([stack[..., :1]] * 3 + [stack[..., 1:]]) if stack.ndim == 3 and stack.shape[2] == 2 else stack
    if stack.ndim == 3:
        stack = cv2.cvtColor(stack, cv2.COLOR_RGB2BGR if stack.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    _, data = cv2.imencode(".bmp", stack)
    data.tofile(path)


def _write_tiff(picture: Picture, path: Path) -> None:
    tags = dict(picture.tags)
    if picture.orientation != 1:
        tags[tiff.ORIENTATION] = picture.orientation
    if picture.xmp and tiff.XMP not in tags:
        tags[tiff.XMP] = (tiff.BYTE, len(picture.xmp), picture.xmp)
    if picture.dpi and not tags.keys() & set(tiff.RESOLUTION):
        tags |= dict(zip(tiff.RESOLUTION, picture.dpi)) | {tiff.RESOLUTION_UNIT: 2}
    tiff.write_tiff(
        path, picture.stack(), has_alpha=picture.alpha is not None, icc=picture.icc, tags=tags,
        is_compressed=picture.is_compressed,
    )  # fmt: skip


def _write_exr(picture: Picture, path: Path) -> None:
    exr.write_exr(path, turn_upright(picture.stack(), picture.orientation))


_WRITERS = {
    "PNG": _write_png, "JPEG": _write_jpeg, "TIFF": _write_tiff, "WebP": _write_webp, "BMP": _write_bmp,
    "EXR": _write_exr,
}  # fmt: skip
