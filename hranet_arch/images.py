"""Pictures: files and bytes <-> arrays <-> tensors. Depth and grey are kept as the file has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from hranet_arch.errors import InputError, refuse_folder
from hranet_arch.files import whole_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

_FLAGS = {
    "gray": cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH,  # converted below: OpenCV's own way differs with the file's format
    "rgb": cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH,
    "y": cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH,
    "unchanged": cv2.IMREAD_UNCHANGED,
}


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 or uint16 pixels, ``(h, w)`` or BGR ``(h, w, 3)``, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".png", image)[1]
    with whole_file(path) as temporary:
        temporary.write_bytes(data.tobytes())


def list_pictures(folder: Path, *, skip_unlisted: bool = False) -> list[Path]:
    """Pictures in a folder and below, sorted; hidden files and folders are passed over, each folder is seen once.

    Raises:
        InputError: if there is no such folder, or, unless ``skip_unlisted``, one that cannot be listed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give a folder of pictures.")
    paths = []
    for parent, _, files in walk(folder, skip_unlisted):
        paths += [Path(parent, name) for name in files if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(paths)


def list_databases(folder: Path) -> list[Path]:
    """LMDBs in a folder and below, sorted; found as ``list_pictures`` finds pictures."""
    return sorted(Path(parent, name) for parent, names, _ in walk(folder) for name in names if name.endswith(".lmdb"))


def walk(folder: Path, skip_unlisted: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` through links, each folder once; neither into hidden folders nor into LMDBs."""
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=None if skip_unlisted else refuse_folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        names = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in names if not name.endswith(".lmdb")]
        yield parent, names, files


def decode_image(data: bytes, name: str, color: Literal["gray", "rgb", "y", "unchanged"] = "unchanged") -> np.ndarray:
    """Decodes the bytes of a picture file.

    Args:
        data: the file's bytes.
        name: what to call the picture in an error.
        color: ``'gray'`` and ``'rgb'`` convert (colour to grey by BT.601's full-range weights, alpha dropped);
            ``'y'`` gives the luma that super-resolution and JPEG are measured on (BT.601 in its studio range, 16 to
            235, rounded to the file's depth, as MATLAB's ``rgb2ycbcr``), and keeps a grey file as it is;
            ``'unchanged'`` keeps the channels of the file.

    Returns:
        uint8, uint16 or float array: ``(h, w)`` for grey, else ``(h, w, c)`` in OpenCV's BGR order.

    Raises:
        InputError: if the bytes are not a whole picture, or are a TIFF of a kind that OpenCV misreads.
        MemoryError: if memory runs out.
    """
    buffer = np.frombuffer(data, np.uint8)
    try:
        if bytes(data[:2]) in (b"II", b"MM"):
            from hranet_arch import tiff  # brings tifffile

            tiff.refuse_misread(data, name)
        image = decode(buffer, _FLAGS[color]) if buffer.size else None
        if image is None and buffer.size and color in ("gray", "rgb"):  # OpenCV 5 makes no colour of grey floats
            image = decode(buffer, _FLAGS["y"])
            image = np.dstack([image] * 3) if image is not None and image.ndim == 2 else image
    except cv2.error:  # a size beyond OpenCV's limit, among others
        image = None
    if image is None:
        raise InputError(f"{name}: not a picture that can be read ({len(data)} bytes; damaged, or not a picture).")
    if color == "y" and image.ndim == 3:
        return to_luma(image)
    if color == "gray" and image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"{name}: pixels of type {image.dtype}; 8-bit, 16-bit and float pictures can be used.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if color == "gray" else image


def decode(data: np.ndarray, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray | None:
    """A file's bytes, of any format, by OpenCV's ``imdecode``: by default with its channels and depth; None if damaged.

    Raises:
        MemoryError: if memory runs out.
        cv2.error: for what OpenCV refuses otherwise, such as a size beyond its limit.
    """
    try:
        return cv2.imdecode(data, flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        raise


def to_luma(image: np.ndarray) -> np.ndarray:
    """BT.601's luma in its studio range of a BGR picture ``(h, w, 3)``: 16 to 235 of 255.

    Whole numbers are rounded to whole numbers, as MATLAB's ``rgb2ycbcr`` does; floats in [0, 1] stay floats.
    """
    is_float = np.issubdtype(image.dtype, np.floating)
    white = 1 if is_float else np.iinfo(image.dtype).max
    luma = image.astype(np.float64) @ (np.array([24.966, 128.553, 65.481]) / 255) + 16 / 255 * white
    return (luma if is_float else luma.round()).astype(image.dtype)


def to_float(image: np.ndarray, name: str) -> np.ndarray:
    """Scales a picture to float32 in [0, 1] by its own depth: uint8 by 255, uint16 by 65535; float is kept."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    if image.dtype == np.uint16:
        return image.astype(np.float32) / 65535
    if np.issubdtype(image.dtype, np.floating):
        return image.astype(np.float32)
    raise InputError(f"{name}: pixels of type {image.dtype}; 8-bit, 16-bit and float pictures can be used.")


def to_tensor(image: np.ndarray) -> Tensor:
    """Array ``(h, w)``, ``(h, w, 1)`` or BGR ``(h, w, 3)`` to a tensor ``(1, h, w)`` or RGB ``(3, h, w)``."""
    return to_planes(image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image)


def to_planes(image: np.ndarray) -> Tensor:
    """Array ``(h, w)`` or ``(h, w, c)`` to a tensor ``(c, h, w)`` with the channels in their order; always a copy."""
    # Not ascontiguousarray: a single channel turned round is contiguous to NumPy, and nothing that torch takes.
    return torch.from_numpy(image.reshape(*image.shape[:2], -1).transpose(2, 0, 1).copy())


def to_8bit(image: np.ndarray) -> np.ndarray:
    """Float in [0, 1] to uint8: clipped and rounded, as a file would hold it."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def to_uint8(tensor: Tensor) -> np.ndarray:
    """Tensor ``(c, h, w)`` in [0, 1] to uint8 ``(h, w)`` or BGR ``(h, w, 3)``: clipped, rounded; the input is kept."""
    return to_8bit(to_array(tensor))


def to_array(tensor: Tensor) -> np.ndarray:
    """Tensor ``(c, h, w)`` to a float32 array ``(h, w)`` or BGR ``(h, w, 3)``, neither clipped nor rounded."""
    array = tensor.detach().float().cpu().numpy()
    return array[0] if array.shape[0] == 1 else np.ascontiguousarray(array[::-1].transpose(1, 2, 0))
