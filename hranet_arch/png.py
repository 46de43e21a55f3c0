"""PNG files as rows of bytes and chunks: written in strips, with metadata, at any depth; looked through for damage.

For what no library here does: Pillow writes no 16-bit colour, OpenCV no grey with alpha, and both keep few chunks.
The format: W3C, «Portable Network Graphics», third edition; section numbers are its.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from hranet_arch.errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey and alpha, RGB, RGB and alpha (section 11.2.1)
STRIP = 4 * 2**20  # bytes filtered and compressed at a time
KEPT = (b"cHRM", b"cICP", b"eXIf", b"gAMA", b"iCCP", b"iTXt", b"pHYs", b"sRGB", b"tEXt", b"tIME", b"zTXt")
LARGEST_KEPT = 16 * 2**20  # bytes of a chunk
PAETH = 4  # the filter for every row: for photographs the best single one


def write_png(file: BinaryIO, pixels: np.ndarray, chunks: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Writes a PNG file.

    Args:
        file: open for writing.
        pixels: uint8 or uint16, ``(h, w)`` or ``(h, w, c)``: grey, grey and alpha, RGB, RGB and alpha.
        chunks: metadata by chunk name, put before the pixels.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    file.write(SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, COLOR_TYPES[channels], 0, 0, 0))
    for name, data in chunks:
        _write_chunk(file, name, data)
    compressor = zlib.compressobj(6)
    for rows in _filter(pixels):
        if data := compressor.compress(rows):
            _write_chunk(file, b"IDAT", data)
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def make_resolution(dpi: tuple[float, float]) -> tuple[bytes, bytes]:
    """The chunk for a resolution in pixels an inch, across and down: in pixels a metre (section 11.3.4.3)."""
    across, down = (min(round(value / 0.0254), 2**31 - 1) for value in dpi)
    return b"pHYs", struct.pack(">IIB", across, down, 1)


def _write_chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def _filter(pixels: np.ndarray) -> Iterator[bytes]:
    """Rows in strips, each row led by its filter's number (sections 9.2 to 9.4)."""
    height, width, channels = pixels.shape
    step = channels * pixels.dtype.itemsize  # bytes from a sample to the same one of the pixel before
    count = max(STRIP // (width * step), 1)
    above = np.zeros((1, width * step), np.uint8)
    for top in range(0, height, count):
        strip = np.ascontiguousarray(pixels[top : top + count]).astype(pixels.dtype.newbyteorder(">"), copy=False)
        rows = strip.reshape(len(strip), -1).view(np.uint8)
        padded = np.pad(np.concatenate([above, rows]), ((0, 0), (step, 0)))
        left, up, corner = padded[1:, :-step], padded[:-1, step:], padded[:-1, :-step]
        filtered = np.empty((len(rows), 1 + width * step), np.uint8)
        filtered[:, 0] = PAETH
        np.subtract(rows, _predict(left, up, corner), out=filtered[:, 1:])
        above = rows[-1:]
        yield filtered.tobytes()


def _predict(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Paeth's predictor: the neighbour nearest to left + up - corner."""
    a, b, c = (part.astype(np.int16) for part in (left, up, corner))
    to_left, to_up, to_corner = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    nearer = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, nearer)


def iterate_chunks(file: BinaryIO, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Goes through a PNG file's chunks, checks each, and yields name and data of those that a copy should have.

    Args:
        file: open for reading, at its start.
        name: what to call the file in an error.

    Raises:
        InputError: where a chunk is cut off or altered.
    """
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise InputError(f"{name}: not a PNG file.")
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise InputError(f"{name}: the file is cut off: a PNG that does not end.")
        length, kind = struct.unpack(">I4s", head)
        data, checksum = _read_chunk(file, kind, length)
        if len(end := file.read(4)) < 4:
            raise InputError(f"{name}: the file is cut off in its part {kind.decode('latin-1')}.")
        if end != struct.pack(">I", checksum):
            raise InputError(f"{name}: the file is damaged in its part {kind.decode('latin-1')}: the checksum differs.")
        if kind in KEPT and length <= LARGEST_KEPT:
            yield kind, data


def _read_chunk(file: BinaryIO, kind: bytes, length: int) -> tuple[bytes, int]:
    parts, checksum = [], zlib.crc32(kind)
    is_kept = kind in KEPT and length <= LARGEST_KEPT
    while length > 0 and (part := file.read(min(length, STRIP))):
        checksum = zlib.crc32(part, checksum)
        length -= len(part)
        if is_kept:
            parts.append(part)
    return b"".join(parts), checksum
