"""OpenEXR files, where OpenCV was built with OpenEXR: size and depth from the header, pixels through OpenCV."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from hranet_arch.errors import InputError
from hranet_arch.images import decode

MAGIC = b"\x76\x2f\x31\x01"
HALF = 1  # the number of 16-bit floats as the type of a channel
LONGEST_TEXT = 256


class Header(NamedTuple):
    """Size in pixels, names of the channels, and whether their values are 16-bit floats."""

    width: int
    height: int
    channels: tuple[str, ...]
    is_half: bool


def check_support(path: Path) -> None:
    """Turns OpenEXR on in OpenCV, where it is off unless asked for.

    Raises:
        InputError: if this OpenCV was built without it.
    """
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # read when the first EXR is
    lines = [line for line in cv2.getBuildInformation().splitlines() if "OpenEXR:" in line]
    if not lines or lines[0].split(":", 1)[1].split()[:1] == ["NO"]:
        raise InputError(
            f"{path}: OpenCV {cv2.__version__} here was built without OpenEXR: EXR files cannot be used. "
            "Convert to float TIFF, or install an OpenCV that has it."
        )


def read_header(path: Path) -> Header:
    """Reads size and channels.

    Raises:
        InputError: if the header is damaged, or has several parts.
    """
    try:
        with open(path, "rb") as file:
            magic, version = struct.unpack("<4sI", file.read(8))
            if magic != MAGIC or version & 0x1800:
                raise InputError(f"{path}: an EXR of several or deep parts; flat EXRs of one part can be used.")
            attributes = dict(iter(lambda: _read_attribute(file), None))
        left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
        channels = _read_channels(attributes["channels"])
    except (KeyError, ValueError, struct.error) as error:
        raise InputError(f"{path}: a damaged EXR header.") from error
    is_half = all(kind == HALF for kind in channels.values())
    return Header(right - left + 1, bottom - top + 1, tuple(channels), is_half)


def _read_attribute(file: BinaryIO) -> tuple[str, bytes] | None:
    name = _read_text(file)
    if not name:
        return None
    _read_text(file)  # the type
    (length,) = struct.unpack("<I", file.read(4))
    if name not in ("channels", "dataWindow"):
        file.seek(length, os.SEEK_CUR)  # a preview may be large
        return name, b""
    data = file.read(min(length, 2**20))
    if len(data) < length:
        raise ValueError("cut off")
    return name, data


def _read_text(file: BinaryIO) -> str:
    text = b""
    while (byte := file.read(1)) not in (b"", b"\0"):
        text += byte
        if len(text) > LONGEST_TEXT:
            raise ValueError("not a name")
    return text.decode("latin-1")


def _read_channels(data: bytes) -> dict[str, int]:
    channels = {}
    while data[:1] not in (b"", b"\0"):
        name, _, data = data.partition(b"\0")
        channels[name.decode("latin-1")] = struct.unpack("<i", data[:4])[0]
        data = data[16:]  # type, linearity and padding, sampling in x and y
    return channels


def read_pixels(path: Path) -> np.ndarray:
    """Reads the pixels: float32, ``(h, w)``, or ``(h, w, 3)`` or ``(h, w, 4)`` in RGB order.

    Raises:
        InputError: if the file is damaged, or OpenCV cannot read it.
    """
    check_support(path)
    pixels = decode(np.fromfile(path, np.uint8))
    if pixels is None:
        raise InputError(f"{path}: not a whole EXR.")
    orders = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, orders[pixels.shape[2]])


def write_exr(path: Path, pixels: np.ndarray) -> None:
    """Writes float16 as 16-bit, float32 as 32-bit floats; ``(h, w)``, ``(h, w, 3)`` or ``(h, w, 4)`` in RGB order."""
    check_support(path)
    kind = cv2.IMWRITE_EXR_TYPE_HALF if pixels.dtype == np.float16 else cv2.IMWRITE_EXR_TYPE_FLOAT
    pixels = pixels.astype(np.float32)
    orders = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, orders[pixels.shape[2]])
    _, data = cv2.imencode(".exr", pixels, [cv2.IMWRITE_EXR_TYPE, kind])
    path.write_bytes(data)
