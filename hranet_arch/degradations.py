"""What makes a good picture bad: the steps of a dataset's ``degradations:``, done one after the other.

A picture is float32 ``(h, w, c)``, grey or RGB, [0, 1]; noise may go beyond. Where a step takes ``[lowest, highest]``,
each training sample draws its own value. Whatever is random comes from the generator that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from hranet_arch.compat import make_importable
from hranet_arch.images import to_8bit, to_planes
from hranet_arch.resize import resize_bicubic

make_importable()

from basicsr.utils.registry import Registry

DEGRADATION_REGISTRY = Registry("degradation")  # filled by registration.py, and by plug-ins

Random = np.random.RandomState | np.random.Generator
Range = float | Sequence[float]


class Degradation(Protocol):
    """A step. ``scale``, ``margin`` and ``has_range`` may be left out where they are as here."""

    scale: int = 1  # how many times smaller the picture becomes
    margin: int = 0  # pixels at each border of a crop that would be other ones in the whole picture
    has_range: bool = False  # whether samples differ by more than their noise: not for tests

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray: ...


class GaussianNoise(Degradation):
    """Additive white Gaussian noise, neither clipped nor rounded.

    Args:
        sigma: standard deviation in grey levels.
    """

    def __init__(self, *, sigma: Range) -> None:
        self.sigma = _check_range("GaussianNoise", "sigma", sigma, 0, 255)
        self.has_range = self.sigma[0] < self.sigma[1]

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray:
        noise = random.normal(0, _draw(self.sigma, random) / 255, picture.shape)
        return (picture + noise).astype(np.float32)


class PoissonGaussianNoise(Degradation):
    """The noise of a sensor: photons that are counted, and the reading of the count.

    A value x becomes ``Poisson(x * photons) / photons`` plus Gaussian noise, of variance ``x / photons + sigma^2`` (A.
    Foi et al., «Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data», IEEE TIP 17(10),
    2008). Strong in the light and weak in the dark, before a camera's gamma turns that round.

    Args:
        photons: counted at white; drawn evenly from the logarithms, as exposures differ by stops.
        sigma: standard deviation of the reading in grey levels.
        gamma: of the picture; the noise is added to light, ``x ** gamma``. 1: the picture is taken for light itself.
    """

    def __init__(self, *, photons: Range, sigma: Range = 0, gamma: float = 1) -> None:
        name = "PoissonGaussianNoise"
        self.photons = _check_range(name, "photons", photons, 1, 1e6)
        self.sigma = _check_range(name, "sigma", sigma, 0, 255)
        self.gamma = gamma
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 1 <= gamma <= 4:
            raise ValueError(f"{name}: gamma={gamma!r} is not allowed: it must be a number from 1 to 4.")
        self.has_range = self.photons[0] < self.photons[1] or self.sigma[0] < self.sigma[1]

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray:
        photons = math.exp(_draw(tuple(map(math.log, self.photons)), random))
        light = picture.clip(0, 1).astype(np.float64) ** self.gamma
        light = random.poisson(light * photons) / photons
        light += random.normal(0, _draw(self.sigma, random) / 255, picture.shape)
        if self.gamma != 1:
            light = light.clip(0) ** (1 / self.gamma)
        return light.astype(np.float32)


class JPEGCompression(Degradation):
    """Written as an 8-bit JPEG file and read again (OpenCV's libjpeg; colour at half the resolution, 4:2:0).

    Args:
        quality: 1 (worst) to 100, whole numbers; of a range each is as likely.
    """

    def __init__(self, *, quality: Range) -> None:
        self.quality = _check_range("JPEGCompression", "quality", quality, 1, 100)
        if any(one != int(one) for one in self.quality):
            raise ValueError(f"JPEGCompression: quality={quality!r} is not allowed: it must be whole numbers.")
        self.has_range = self.quality[0] < self.quality[1]

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray:
        low, high = map(int, self.quality)
        quality = min(math.floor(_draw((low, high + 1), random)), high) if self.has_range else low
        pixels = np.ascontiguousarray(to_8bit(picture)[..., ::-1])
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED).reshape(picture.shape)
        return pixels[..., ::-1].astype(np.float32) / 255


class BicubicDownsampling(Degradation):
    """Made smaller as MATLAB's ``imresize`` does it with 8-bit pictures: the input of super-resolution's benchmarks.

    Args:
        scale: how many times smaller: a whole number of 2 to 8, or, with ``enlarge``, several to choose from.
        enlarge: brought back to the old size in the same way, as networks need it that do not enlarge.
    """

    def __init__(self, *, scale: int | Sequence[int], enlarge: bool = False) -> None:
        self.scales = list(scale) if isinstance(scale, (list, tuple)) else [scale]
        if not self.scales or not all(type(one) is int and 2 <= one <= 8 for one in self.scales):
            raise ValueError(f"BicubicDownsampling: scale={scale!r} is not allowed: it must be 2 to 8.")
        if len(self.scales) > 1 and not enlarge:
            raise ValueError(f"BicubicDownsampling: scale={scale!r} is not allowed: several need enlarge: true.")
        self.enlarge = enlarge
        self.has_range = len(self.scales) > 1
        self.scale = 1 if enlarge else self.scales[0]
        self.margin = (4 if enlarge else 2) * max(self.scales)  # the kernel reaches 2 small pixels, each time

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray:
        scale = self.scales[int(random.uniform(0, len(self.scales)))] if self.has_range else self.scales[0]
        planes = resize_bicubic(to_planes(picture), 1 / scale, is_8bit=True)
        if self.enlarge:
            planes = resize_bicubic(planes, scale, is_8bit=True)[:, : picture.shape[0], : picture.shape[1]]
        return np.ascontiguousarray(planes.numpy().transpose(1, 2, 0))


class Quantization(Degradation):
    """Clipped to [0, 1] and rounded to the 256 grey levels of an 8-bit file."""

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray:
        return to_8bit(picture) / np.float32(255)


class OneOf(Degradation):
    """One of several lists of steps, each as likely: one network for several tasks.

    Args:
        branches: lists as ``degradations:`` has them; an empty one leaves the picture as it is.
    """

    has_range = True

    def __init__(self, *, branches: Sequence[Sequence[dict]]) -> None:
        self.branches = [Degradations(steps) for steps in branches]
        scales = {branch.scale for branch in self.branches}
        if len(scales) != 1:
            raise ValueError(f"OneOf: branches that make pictures {sorted(scales)} times smaller do not go together.")
        self.scale = scales.pop()
        self.margin = max(branch.margin for branch in self.branches)

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray:
        return self.branches[int(random.uniform(0, len(self.branches)))](picture, random)


class Degradations(Degradation):
    """The steps of a list, each ``{type: NAME, argument: value, ...}``, in their order.

    Raises:
        ValueError: if they are no list, or a step is not registered, or refuses its arguments.
    """

    def __init__(self, steps: Sequence[dict]) -> None:
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, dict) for step in steps):
            raise ValueError(f"{steps!r} is no list of steps, each {{type: NAME, argument: value, ...}}.")
        self.steps: list[Degradation] = []
        for step in steps:
            arguments = {key: value for key, value in step.items() if key != "type"}
            if step.get("type") not in DEGRADATION_REGISTRY:
                known = ", ".join(sorted(name for name, _ in DEGRADATION_REGISTRY))
                raise ValueError(f"there is no degradation {step.get('type')!r}. Known: {known}.")
            self.steps.append(DEGRADATION_REGISTRY.get(step["type"])(**arguments))
        for step in self.steps:
            self.margin += getattr(step, "margin", 0) * self.scale
            self.scale *= getattr(step, "scale", 1)
        self.margin = -(-self.margin // self.scale) * self.scale  # so that it can be cut off the small picture
        self.has_range = any(getattr(step, "has_range", False) for step in self.steps)

    def __call__(self, picture: np.ndarray, random: Random) -> np.ndarray:
        for step in self.steps:
            picture = step(picture, random)
        return picture


def _check_range(step: str, name: str, value: Range, lowest: float, highest: float) -> tuple[float, float]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    are_numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)
    if len(values) != 2 or not are_numbers or not lowest <= values[0] <= values[1] <= highest:
        raise ValueError(
            f"{step}: {name}={value!r} is not allowed: it must be a number from {lowest:g} to {highest:g}, or "
            "[lowest, highest] of such numbers."
        )
    return float(values[0]), float(values[1])


def _draw(bounds: tuple[float, float], random: Random) -> float:
    """Uniformly; draws nothing where there is nothing to choose, so that a test's noise is the field's."""
    return float(random.uniform(*bounds)) if bounds[0] < bounds[1] else bounds[0]
