"""The pictures worth looking at: best and worst by gain, a region where the methods differ, crops, the page's pictures.

Pictures are uint8, grey ``(h, w)`` or BGR ``(h, w, 3)``. Only the functions that draw import matplotlib.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from hranet_arch.images import decode_image
from hranet_arch.plots import INK, PAPER, default_style
from hranet_arch.record import Record, Result
from hranet_arch.scores import format_psnr, list_groups, name_group, name_level, name_set

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = "clean"  # stands in a picture's path where a method's name stands otherwise: the ground truth
REGION = 96  # pixels, height and width of a crop
SMALL = 60_000  # bytes; a picture of the page that takes more is compressed with loss
QUALITY = 92  # of those
PAGE_CHARACTERS = 8_000_000  # of the whole pictures, as base64; crops in colour may take 3.5 million more
WINDOWS = (640, 512, 384, 256, 128)  # pixels; what the page shows of a picture: the largest that PAGE_CHARACTERS allows

Region = tuple[int, int, int, int]  # top, left, height, width


def picture_path(folder: Path, testset: str, level: float, method: str, name: str) -> Path:
    """Where a results folder keeps an 8-bit picture: a method's output, its input or, under ``CLEAN``, the truth."""
    return folder / "pictures" / testset / f"{level:g}" / method / f"{name}.png"


# --- pictures worth looking at ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """The picture of a set at a level where ``method`` gains most or least over ``reference`` (None: over 0 dB)."""

    testset: str
    level: float
    name: str
    role: Literal["best", "worst"]
    method: str
    reference: str | None
    gain: float


@dataclass(frozen=True)
class LoadedExample:
    """An example with the clean picture (``CLEAN``, first) and all methods' by name, and the region of its crops."""

    example: Example
    pictures: dict[str, np.ndarray]
    psnr: dict[str, float | None]
    region: Region

    @property
    def crops(self) -> dict[str, np.ndarray]:
        top, left, height, width = self.region
        return {name: p[top : top + height, left : left + width] for name, p in self.pictures.items()}


def choose_examples(record: Record) -> list[Example]:
    """For each set and level the picture where the first network gains most over the input, and where least.

    Without an input, the gain is that over the method with the lowest mean PSNR; without a network, that of the first
    other method. Of equal gains the first picture is taken; a single picture is one example.
    """
    examples = []
    for group in list_groups(record):
        results = [result for m in record.methods if (result := record.find(m, *group)) and result.psnr is not None]
        if not results:
            continue
        method, reference = _choose_pair(record, results)
        base = {picture.name: picture.psnr for picture in reference.pictures} if reference else {}
        gains = {
            picture.name: round(picture.psnr - base.get(picture.name, 0), 6)  # what floats add is no difference
            for picture in method.pictures
            if picture.psnr is not None and (not reference or base.get(picture.name) is not None)
        }
        names = (method.method, reference.method if reference else None)
        best, worst = (choose(gains, key=gains.get, default=None) for choose in (max, min))
        roles = {"best": best, "worst": worst if worst != best else None}
        examples += [Example(*group, n, role, *names, gains[n]) for role, n in roles.items() if n is not None]
    return examples


def _choose_pair(record: Record, results: list[Result]) -> tuple[Result, Result | None]:
    """Whose gain over whom."""
    order = ("network", "classical", "input")
    method = min(results, key=lambda result: order.index(record.methods[result.method].kind))
    others = [result for result in results if result is not method]
    inputs = [result for result in others if record.methods[result.method].kind == "input"]
    return method, (inputs or sorted(others, key=lambda result: result.psnr) or [None])[0]


def choose_region(pictures: Sequence[np.ndarray], size: int = REGION) -> Region:
    """The window in which pictures differ most among themselves: the greatest sum of their variance over methods.

    Args:
        pictures: uint8 arrays of one shape.
        size: height and width of the window; of the picture, where that is smaller.

    Returns:
        Top, left, height, width; of equal windows the first, row by row.
    """
    stack = np.stack(pictures).astype(np.int64)
    variance = len(stack) * (stack**2).sum(0) - stack.sum(0) ** 2  # times a constant, but exact: ties stay ties
    variance = variance.reshape(*variance.shape[:2], -1).sum(2)
    height, width = min(size, variance.shape[0]), min(size, variance.shape[1])
    integral = np.pad(variance.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = integral[height:, width:] - integral[:-height, width:] - integral[height:, :-width]
    sums = sums + integral[:-height, :-width]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left), height, width


def load_examples(record: Record, folder: Path) -> list[LoadedExample]:
    """The examples whose pictures are all there, of one shape."""
    loaded = []
    for example in choose_examples(record):
        group = (example.testset, example.level)
        psnr = {}
        for name in sorted(record.methods, key=lambda name: record.methods[name].kind != "input"):  # the input first
            result = record.find(name, *group)
            scores = {picture.name: picture.psnr for picture in result.pictures} if result else {}
            if example.name in scores:
                psnr[name] = scores[example.name]
        paths = {name: picture_path(folder, *group, name, example.name) for name in (CLEAN, *psnr)}
        if not all(path.is_file() for path in paths.values()):
            continue
        pictures = {name: decode_image(path.read_bytes(), str(path)) for name, path in paths.items()}
        if len({picture.shape for picture in pictures.values()}) > 1:
            continue
        outputs = [pictures[name] for name in psnr if record.methods[name].kind != "input"]
        compared = outputs if len(outputs) > 1 else list(pictures.values())  # one output differs from nothing
        loaded.append(LoadedExample(example, pictures, psnr, choose_region(compared)))
    return loaded


@default_style()
def write_crops(record: Record, examples: Sequence[LoadedExample], folder: Path) -> None:
    """Writes a PNG of side-by-side crops for each example, enlarged twice without smoothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):  # an earlier record's best and worst
        old.unlink()
    for loaded in examples:
        example = loaded.example
        title = f"{name_group(record, (example.testset, example.level))}, {example.name}"
        captions = [f"{format_psnr(loaded.psnr[name])} dB" if name in loaded.psnr else "" for name in loaded.crops]
        figure = _draw_crops(title, loaded.crops, captions)
        name = f"{example.testset}_{example.level:g}_{example.role}_{example.name[:50]}.png".replace("/", "_")
        figure.savefig(folder / name, dpi=100, metadata={"Software": None})


def _draw_crops(title: str, crops: dict[str, np.ndarray], captions: list[str]) -> Figure:
    """At most six in a row, as even as they go; a pixel of a crop is exactly 2 x 2 pixels of the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(crops) // 6)
    columns = -(-len(crops) // rows)
    tile_height, tile_width = (2 * length for length in next(iter(crops.values())).shape[:2])
    step_x, step_y, top = max(tile_width, 130) + 12, tile_height + 46, 34
    width, height = columns * step_x + 12, rows * step_y + top
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=PAPER)
    FigureCanvasAgg(figure)
    style = {"color": INK, "parse_math": False, "verticalalignment": "top"}
    figure.text(12 / width, 1 - 10 / height, title, fontsize=8.5, **style)
    for i, (name, crop) in enumerate(crops.items()):
        x, y = 12 + i % columns * step_x, height - top - i // columns * step_y  # y: the tile's upper edge, from below
        tile = (crop[..., ::-1] if crop.ndim == 3 else np.stack([crop] * 3, -1)).repeat(2, 0).repeat(2, 1)
        figure.figimage(tile, x, y - tile_height)
        name = name if len(name) <= 24 else f"{name[:23]}…"
        figure.text(x / width, (y - tile_height - 5) / height, name, fontsize=8, fontweight="bold", **style)
        figure.text(x / width, (y - tile_height - 22) / height, captions[i], fontsize=8, **style)
    return figure


# --- the page's pictures ----------------------------------------------------------------------------------------------


def encode_pictures(record: Record, examples: Sequence[LoadedExample]) -> dict:
    """What the page shows of the examples: data URIs, whole pictures each once, and what was done to them."""
    largest = max((max(loaded.pictures[CLEAN].shape[:2]) for loaded in examples), default=0)
    for window in WINDOWS:
        encoded = {}  # data URI and whether it lost anything -> its number: a clean picture is the same at all levels
        numbers = [{name: encoded.setdefault(_encode_picture(_cut_middle(picture, window)), len(encoded))
                    for name, picture in loaded.pictures.items()} for loaded in examples]  # fmt: skip
        if sum(len(uri) for uri, _ in encoded) < PAGE_CHARACTERS:
            break
    notes = []
    if largest > window:
        notes.append(f"Of larger pictures the middle {window} × {window} pixels are shown.")
    if any(is_lossy for _, is_lossy in encoded):
        notes.append(f"Some pictures here are slightly compressed (WebP, quality {QUALITY}); all crops are lossless.")
    return {
        "examples": [_describe_example(record, *pair) for pair in zip(examples, numbers)],
        "pictures": [uri for uri, _ in encoded],
        "pictureNotes": " ".join(notes),
    }


def _describe_example(record: Record, loaded: LoadedExample, numbers: dict[str, int]) -> dict:
    example = loaded.example
    extent = "largest" if example.role == "best" else "smallest"
    over = f" over {example.reference}" if example.reference else ""
    views = [{"name": name, "psnr": f"{format_psnr(loaded.psnr[name])} dB" if name in loaded.psnr else "ground truth",
              "picture": numbers[name], "crop": _encode_png(crop)} for name, crop in loaded.crops.items()]  # fmt: skip
    height, width = loaded.region[2:]
    return {
        "set": name_set(example.testset),
        "level": name_level(record, example.level),
        "name": example.name,
        "gain": f"{extent} gain of {example.method}{over}: {example.gain:.2f} dB",
        "crop": f"{width} × {height} pixels, enlarged twice: where the methods differ most",
        "views": views,
    }


def _cut_middle(picture: np.ndarray, window: int) -> np.ndarray:
    height, width = picture.shape[:2]
    top, left = max(0, (height - window) // 2), max(0, (width - window) // 2)
    return picture[top : top + window, left : left + window]


def _encode_picture(picture: np.ndarray) -> tuple[str, bool]:
    """A picture as a data URI, and whether it lost anything."""
    quality = cv2.IMWRITE_WEBP_QUALITY
    data = cv2.imencode(".webp", picture, [quality, 101])[1].tobytes()  # above 100: lossless
    is_lossy = len(data) > SMALL
    if is_lossy:
        data = cv2.imencode(".webp", picture, [quality, QUALITY])[1].tobytes()
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}", is_lossy


def _encode_png(picture: np.ndarray) -> str:
    data = cv2.imencode(".png", np.ascontiguousarray(picture), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
