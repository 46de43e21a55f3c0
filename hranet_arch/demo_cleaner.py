"""What ``basicsr demo`` does with a picture: a file's bytes in, previews and the clean file's bytes out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from hranet_arch import before_after, networks, pictures
from hranet_arch.errors import InputError
from hranet_arch.noise_estimate import estimate_sigma
from hranet_arch.pictures import FORMATS, Picture
from hranet_arch.restore import Denoiser, check_arguments

AUTOMATIC = "automatic"
LARGEST_UPLOAD = 64 * 2**20  # bytes
LARGEST_PICTURE = 48_000_000  # pixels
LARGEST_PREVIEW = 6_000_000  # pixels, about
BAND = 256  # rows that are blended at a time
SUFFIXES = {kind: suffix for suffix, kind in reversed(FORMATS.items())}

Report = Callable[[dict], None]


@dataclass(frozen=True)
class Limits:
    """How large a picture may be: bytes of its file, and pixels."""

    upload: int = LARGEST_UPLOAD
    pixels: int = LARGEST_PICTURE


class Cleaner:
    """The networks to choose from, each loaded when it is first asked for, and what is done with a picture.

    Args:
        models: names or files; none: the released networks, of which one is picked for each picture.
        device: as for ``Denoiser``.
        limits: how large a picture may be.
        folder: where a picture lies while it is cleaned; None: in the system's folder for temporary files.

    Raises:
        InputError: if a network cannot be loaded, or none is given and none is released.
    """

    def __init__(
        self,
        models: Sequence[str],
        device: str = "auto",
        limits: Limits | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.device = device
        self.limits = limits or Limits()
        self.folder = folder
        self.released = {} if models else networks.list_released("denoise")
        self._denoisers: dict[str, Denoiser] = {}
        check_arguments(device, "fp32", None, None)
        if not models:
            networks.require_any(self.released, "denoise")
        self.models = list(models) or [AUTOMATIC, *self.released]
        for model in models:
            self._load(model)

    def list_choices(self) -> list[dict]:
        """For the page: what each model is called, and whether it is told the noise level."""
        choices = []
        for number, model in enumerate(self.models):
            description = self._denoisers[model].network if model in self._denoisers else self.released.get(model)
            name = "Picked for the picture" if model == AUTOMATIC else description.name
            choices.append({"id": number, "name": name, "isTold": bool(description and description.takes_sigma)})
        return choices

    def clean(self, data: bytes, model: int, sigma: float | None, report: Report) -> list[bytes]:
        """Cleans a picture file.

        Args:
            data: the file's bytes.
            model: its number in ``list_choices``.
            sigma: noise level in grey levels; None: estimated.
            report: called with ``{"progress": part}``, and at the end with ``{"result": ...}``.

        Returns:
            Previews before and after, as PNG of 8 bits, and the result in the format and depth of the picture.

        Raises:
            InputError: if the picture cannot be used.
        """
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="basicsr-demo-", dir=self.folder) as folder:
            picture = self._read(data, Path(folder))
            estimated = estimate_sigma(picture.pixels)
            denoiser = self._choose(self.models[model], picture, sigma, estimated)
            told = None
            if denoiser.network.takes_sigma:
                told = estimated if sigma is None else sigma
                if told is None:
                    raise InputError("The picture is too small for an estimate of its noise: set the noise level.")
            report({"progress": 0})
            restoration = denoiser.restore(
                picture.pixels,
                sigma=None if told is None else min(told, 255.0),
                report=lambda part: report({"progress": round(part, 4)}),
            )
            result = replace(picture, pixels=restoration.image)
            parts = [_preview(picture), _preview(result), _write(result, Path(folder))]
        facts = _describe(picture, estimated, denoiser, restoration.way, time.monotonic() - begin)
        suffix = SUFFIXES[picture.format]
        report({"result": {"sizes": [len(part) for part in parts], "facts": facts, "suffix": suffix}})
        return parts

    def blend(self, before: bytes, after: bytes, strength: float) -> bytes:
        """A result that is weaker: of each pixel ``strength`` (0 to 1) of the way from before to after."""
        with tempfile.TemporaryDirectory(prefix="basicsr-demo-", dir=self.folder) as folder:
            noisy, clean = (self._read(data, Path(folder)) for data in (before, after))
            if noisy.pixels.shape != clean.pixels.shape or noisy.pixels.dtype != clean.pixels.dtype:
                raise InputError("These two pictures do not belong together.")
            return _write(replace(noisy, pixels=_blend(noisy.pixels, clean.pixels, strength)), Path(folder))

    def _read(self, data: bytes, folder: Path) -> Picture:
        path = folder / "picture"
        path.write_bytes(data)
        try:
            header = pictures.read_header(path)
            if header.pixels > self.limits.pixels:
                raise InputError(
                    f"The picture has {header.width:,} x {header.height:,} pixels; {self.limits.pixels:,} are the most "
                    "here. `basicsr denoise` takes larger ones."
                )
            return pictures.read_picture(path)
        except InputError as error:
            raise InputError(str(error).replace(f"{path}: ", "").replace(f" '{path}'", "")) from error

    def _choose(self, model: str, picture: Picture, sigma: float | None, estimated: float | None) -> Denoiser:
        if model == AUTOMATIC:
            color, level = "gray" if picture.is_gray else "rgb", estimated if sigma is None else sigma
            model = networks.choose_denoiser(self.released, color, level, is_estimated=sigma is None).name
        return self._load(model)

    def _load(self, model: str) -> Denoiser:
        if model not in self._denoisers:
            self._denoisers[model] = Denoiser(model, device=self.device)
        return self._denoisers[model]


def _preview(picture: Picture) -> bytes:
    """As a browser can show it: PNG of 8 bits, upright, without alpha, smaller where it is large."""
    pixels = pictures.turn_upright(picture.pixels, picture.orientation)
    height, width = pixels.shape[:2]
    pixels = before_after.shrink(pixels, (LARGEST_PREVIEW / (height * width)) ** 0.5)
    pixels = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    return cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _write(picture: Picture, folder: Path) -> bytes:
    path = folder / f"result{SUFFIXES[picture.format]}"
    pictures.write_picture(picture, path)
    return path.read_bytes()


def _blend(before: np.ndarray, after: np.ndarray, strength: float) -> np.ndarray:
    blended = np.empty_like(before)
    for top in range(0, before.shape[0], BAND):
        rows = slice(top, top + BAND)
        mixed = before[rows] + strength * (after[rows].astype(np.float64) - before[rows])
        blended[rows] = mixed if before.dtype.kind == "f" else mixed.round()
    return blended


def _describe(picture: Picture, estimated: float | None, denoiser: Denoiser, way: str, seconds: float) -> list[str]:
    height, width = picture.pixels.shape[:2]
    depth = {"uint8": "8 bits", "uint16": "16 bits"}.get(str(picture.pixels.dtype), str(picture.pixels.dtype))
    facts = [f"{width:,} × {height:,}, {'grey' if picture.is_gray else 'colour'}, {picture.format}, {depth}"]
    facts.append("too small to estimate its noise" if estimated is None else f"noise about {estimated:.1f} of 255")
    facts.append(denoiser.network.name + (f", {way}" if way else ""))
    return [*facts, f"{seconds:.1f} s", *picture.notes]
