"""``basicsr denoise``, ``upscale``, ``dejpeg``: files, folders and patterns in, restored pictures out, each whole."""

from __future__ import annotations

import contextlib
import glob
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from hranet_arch import before_after, memory, networks, pictures, tiff
from hranet_arch.errors import InputError
from hranet_arch.files import require_writable
from hranet_arch.images import walk
from hranet_arch.noise_estimate import estimate_sigma
from hranet_arch.pictures import FORMATS, Header, Picture
from hranet_arch.restore import RESTORERS, Precision, Restoration, Restorer, check_arguments, enlarge_bicubic

logger = logging.getLogger(__name__)

Sigma = float | Literal["auto", "blind"]
UNWRITTEN = (".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pbm", ".pdf", ".pgm", ".ppm", ".svg", ".tga")
LONGEST_NAME = 255  # bytes, on all usual file systems
DEFAULT_SCALE = 2  # how many times pictures are enlarged if neither the user nor a model says it


@dataclass(frozen=True)
class Item:
    """A picture to restore: where it is, where the result goes, and the comparison if there is to be one."""

    source: Path
    target: Path
    compare: Path | None = None

    @property
    def targets(self) -> list[Path]:
        return [path for path in (self.target, self.compare) if path is not None]

    @property
    def is_done(self) -> bool:
        return all(path.exists() for path in self.targets)


@dataclass(frozen=True)
class Outcome:
    """What became of an item; ``text`` is one line for a person."""

    item: Item
    status: Literal["done", "skipped", "failed"]
    text: str


@dataclass
class Settings:
    """How pictures are restored; see ``basicsr denoise --help``.

    Attributes:
        task: what for.
        sigma: for denoising.
        scale: for super-resolution; None: as the model enlarges, or twice.
    """

    task: networks.Task
    model: str | Path | None = None
    sigma: Sigma = "auto"
    scale: int | None = None
    device: str = "auto"
    precision: Precision = "fp32"
    tile: int | None = None
    ensemble: bool = False
    backend: networks.Backend | None = None


# --- what goes where --------------------------------------------------------------------------------------------------


def plan(
    inputs: Sequence[str], output: str | Path, *, is_recursive: bool = False, has_compare: bool = False
) -> list[Item]:
    """Finds the pictures and names their results.

    Args:
        inputs: files, whatever they are called; folders, of which the files called as pictures are taken; patterns.
        output: a folder, in which the pictures of an input folder keep their subfolders; or, for one file, a file
            called as a picture.
        is_recursive: whether folders in folders are gone through.
        has_compare: whether each result has a comparison beside it.

    Raises:
        InputError: if an input is not there, if two pictures would have one result, or if a result would lie over one
            of the pictures.
    """
    is_file = _names_file(inputs, output)
    output = Path(output)
    found = [
        (source, output if is_file else output / name) for source, name in _find_pictures(inputs, output, is_recursive)
    ]
    stems = Counter(target.with_suffix("") for _, target in found)
    items = []
    for source, target in found:
        stem = target.name if stems[target.with_suffix("")] > 1 else target.stem  # of a.jpg and a.png two comparisons
        items.append(Item(source, target, target.with_name(f"{stem}_compare.png") if has_compare else None))
    if not items:
        raise InputError(
            f"{', '.join(inputs)}: no pictures. Read are {', '.join(FORMATS)}; other files are passed over, and "
            "folders in it without --recursive."
        )
    _check_targets(items)
    return items


def _names_file(inputs: Sequence[str], output: str | Path) -> bool:
    """Whether ``-o`` names a file, and not a folder; refuses what is neither."""
    if str(output) in ("", "-"):  # a folder called - is ./-
        raise InputError(f"-o {str(output)!r}: give a folder, or, for one picture, a file; standard output is neither.")
    output = Path(output)
    if output.is_dir():
        return False
    suffix = output.suffix.lower()
    if suffix in UNWRITTEN and len(inputs) == 1:
        kinds = ", ".join(FORMATS)
        raise InputError(f"{output}: {suffix[1:].upper()} is not written; {kinds} are. Give another name, or a folder.")
    is_file = suffix in FORMATS and len(inputs) == 1 and Path(inputs[0]).is_file()
    if not is_file and (output.exists() or suffix in FORMATS):
        raise InputError(f"{output}: -o must be a folder, unless there is one input and it is a file.")
    return is_file


def _find_pictures(inputs: Sequence[str], output: Path, is_recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Each picture once, with the name of its result in the output folder."""
    seen = set()
    for text in inputs:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            raise InputError(f"{text}: no such file or folder, and no file fits it as a pattern.")
        if text not in matches and _is_below(output, _find_root(text)):  # an earlier run's results may fit the pattern
            matches = [match for match in matches if not _is_inside(match, output)]
        for path in map(Path, matches):
            found = _list_folder(path, output, is_recursive) if path.is_dir() else [path]
            for source in found:
                if (name := os.path.abspath(source)) not in seen:  # of a file and a link to it both have a result
                    seen.add(name)
                    yield source, source.relative_to(path) if path.is_dir() else Path(source.name)


def _find_root(pattern: str) -> Path:
    """The folder that a pattern begins in."""
    parts = Path(pattern).parts
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether it is the folder, or in it."""
    return Path(_real(path)).is_relative_to(_real(folder))


def _is_below(path: str | Path, folder: str | Path) -> bool:
    """Whether it is in the folder, and not the folder itself."""
    return _real(path) != _real(folder) and _is_inside(path, folder)


def _list_folder(folder: Path, output: Path, is_recursive: bool) -> list[Path]:
    """The files called as pictures, sorted, through links; hidden ones and the output folder are passed over."""
    found = []
    for parent, _, files in walk(folder):
        if not (_is_below(output, folder) and _is_inside(parent, output)):
            found += [Path(parent, name) for name in files if name[0] != "." and Path(name).suffix.lower() in FORMATS]
        if not is_recursive:
            break
    return sorted(found)


def _real(path: str | Path) -> str:
    return os.path.realpath(path)


def _check_targets(items: Sequence[Item]) -> None:
    sources = {_real(item.source) for item in items}
    taken: dict[str, Path] = {}
    for item in items:
        for target in item.targets:
            if (length := len(os.fsencode(target.name))) > LONGEST_NAME:
                raise InputError(f"{target}: a name of {length} bytes; {LONGEST_NAME} are the most. Shorten it.")
            if _real(target) in sources:
                raise InputError(f"{target}: is one of the pictures, and would be replaced. Give another -o.")
            if _real(target) in taken:
                raise InputError(
                    f"{taken[_real(target)]} and {item.source} would both become {target}. "
                    "Give their folder as input, or do them in two runs."
                )
            taken[_real(target)] = item.source


# --- the run ----------------------------------------------------------------------------------------------------------


def run(items: Sequence[Item], settings: Settings, *, is_overwriting: bool = False) -> Iterator[Outcome]:
    """Restores one picture after the other, with a bar at a terminal: pictures, tiles, time left.

    A picture that fails is told of, and the rest goes on. Ctrl-C leaves no half-written file.

    Raises:
        InputError: if the network cannot be loaded, does not fit the settings, or nothing could be written.
    """
    worker = _Worker(settings)
    for folder in dict.fromkeys(item.target.parent for item in items if is_overwriting or not item.is_done):
        require_writable(folder)
    with _show_progress(items, is_overwriting) as progress:
        for number, item in enumerate(items, 1):
            progress.set_description(f"{number}/{len(items)} {item.source.name}", refresh=True)
            if item.is_done and not is_overwriting:
                outcome = Outcome(item, "skipped", f"{item.target}: is there already; --overwrite makes it anew")
            else:
                outcome = _try(item, worker, progress, is_overwriting)
            yield outcome


def _try(item: Item, worker: _Worker, progress: tqdm, is_overwriting: bool) -> Outcome:
    begin, before = time.monotonic(), progress.n

    def report(header: Header, done: float) -> None:
        progress.update(before + done * header.pixels - progress.n)

    try:
        is_kept = item.target.exists() and not is_overwriting
        if item.compare and item.compare.exists() and not (is_kept or is_overwriting):
            raise InputError(f"{item.compare}: is there already; give another -o, or replace it by --overwrite.")
        text = worker.compare(item) if is_kept else worker.restore(item, report)
    except InputError as error:
        text = str(error) if str(item.source) in str(error) else f"{item.source}: {error}"
    except OSError as error:
        text = f"{error.filename or item.source}: {error.strerror or error}."
    except Exception as error:  # whatever is wrong with one picture, the others are done
        text = f"{item.source}: {type(error).__name__}: {error}"
        if memory.is_out_of_memory(error):
            text = f"{item.source}: not enough memory. Give a smaller --tile, or close other programs."
        logger.debug("%s", item.source, exc_info=True)
    else:
        return Outcome(item, "done", f"{text}, {time.monotonic() - begin:.1f} s")
    return Outcome(item, "failed", text)


class _Worker:
    """Networks, each loaded when the first picture asks for it, and what is done with a picture."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.restorers: dict[str, Restorer] = {}
        self.released: Mapping[str, networks.Description] = {}
        if settings.model is None:
            check_arguments(settings.device, settings.precision, settings.tile, settings.backend)
            self.released = networks.list_released(settings.task)
            networks.require_any(self.released, settings.task)
            if settings.task == "sr":  # a scale that none has is said before the work
                networks.choose_upscaler(self.released, "rgb", self.scale)
        else:
            network = self._load(settings.model).network
            _check_sigma(network, settings.sigma)
            _check_scale(network, settings.scale)

    def restore(self, item: Item, report: Callable[[Header, float], None]) -> str:
        """Reads, restores, writes; returns a line about it."""
        header = pictures.read_header(item.source)
        pictures.check_size(header, self.scale)
        picture = pictures.read_picture(item.source)
        pictures.check_writable(picture, item.target, self.scale)
        is_denoising, sigma = self.settings.task == "denoise", self.settings.sigma
        estimated = estimate_sigma(picture.pixels) if is_denoising and isinstance(sigma, str) else None
        noise = _describe_noise(sigma, estimated) if is_denoising else None
        restorer = self._choose(picture, estimated)
        restoration = restorer.restore(
            picture.pixels, sigma=self._tell(restorer, estimated), report=lambda done: report(header, done)
        )
        item.target.parent.mkdir(parents=True, exist_ok=True)
        alpha = picture.alpha
        if self.scale > 1:
            if alpha is not None:
                alpha = enlarge_bicubic(alpha, self.scale).clip(alpha.min(), alpha.max())
            if picture.tags.keys() & set(tiff.GEOREFERENCE):
                picture.tags = {code: tag for code, tag in picture.tags.items() if code not in tiff.GEOREFERENCE}
                picture.notes.append("without its map reference, which is for the old pixels")
        restored = replace(picture, pixels=restoration.image, alpha=alpha)
        pictures.write_picture(restored, item.target)
        if item.compare:  # behind the result, of which a run that was stopped here makes it the next time
            _write_comparison(picture, restored, self.scale, item.compare)
        return _describe(item, picture, noise, restoration, restorer)

    def compare(self, item: Item) -> str:
        """The comparison of a result that is there already, and is kept; returns a line about it."""
        picture, restored = pictures.read_picture(item.source), pictures.read_picture(item.target)
        sizes = [pictures.turn_upright(one.pixels, one.orientation).shape[:2] for one in (picture, restored)]
        if sizes[1] != tuple(self.scale * side for side in sizes[0]):
            raise InputError(f"{item.target}: is there already, and not of its size; --overwrite makes it anew.")
        _write_comparison(picture, restored, self.scale, item.compare)
        return f"{item.compare}: of {item.source} and of {item.target}, which was there already"

    @property
    def scale(self) -> int:
        if self.settings.task != "sr":
            return 1
        if self.settings.model is not None:
            return self._load(self.settings.model).network.scale
        return self.settings.scale or DEFAULT_SCALE

    def _choose(self, picture: Picture, estimated: float | None) -> Restorer:
        settings, color = self.settings, "gray" if picture.is_gray else "rgb"
        if settings.model is not None:
            return self._load(settings.model)
        if settings.task == "sr":
            chosen = networks.choose_upscaler(self.released, color, self.scale)
        elif settings.task == "jpeg":
            chosen = networks.choose_deblocker(self.released, color)
        else:
            is_estimated = settings.sigma == "auto"
            sigma = estimated if is_estimated else settings.sigma
            chosen = networks.choose_denoiser(self.released, color, sigma, is_estimated=is_estimated)
        return self._load(chosen.path)

    def _load(self, weights: str | Path) -> Restorer:
        if str(weights) not in self.restorers:
            settings = self.settings
            # Where this processor lacks the precision, the first network says so, and the others take its choice.
            precision = next((first.precision for first in self.restorers.values()), settings.precision)
            self.restorers[str(weights)] = RESTORERS[settings.task](
                weights, device=settings.device, precision=precision, tile=settings.tile,
                ensemble=settings.ensemble, backend=settings.backend,
            )  # fmt: skip
        return self.restorers[str(weights)]

    def _tell(self, restorer: Restorer, estimated: float | None) -> float | None:
        """The noise level for a network that must be told."""
        if not restorer.network.takes_sigma:
            return None
        sigma = estimated if self.settings.sigma == "auto" else self.settings.sigma
        if sigma is None:
            raise InputError("the picture is too small for an estimate of its noise: give --sigma N.")
        return min(sigma, 255.0)


def _check_sigma(network: networks.LoadedNetwork, sigma: Sigma) -> None:
    if network.takes_sigma and sigma == "blind":
        raise InputError(f"--sigma blind: {network.name} must be told the noise level: give --sigma N or auto.")
    trained = network.description.sigma
    is_range = isinstance(trained, tuple)
    if network.takes_sigma or sigma == "auto" or (sigma == "blind" and (is_range or trained is None)):
        return
    if trained is None:
        levels = "a level that it does not say"
    else:
        lowest, highest = trained if is_range else (trained, trained)
        if sigma != "blind" and lowest <= sigma <= highest:
            return
        levels = f"{lowest:g} to {highest:g}" if is_range else f"{trained:g}"
    raise InputError(
        f"--sigma {sigma}: {network.name} was trained for {levels} and is not told the noise level. "
        "Leave --sigma out, or take another --model."
    )


def _check_scale(network: networks.LoadedNetwork, scale: int | None) -> None:
    if scale not in (None, network.scale):
        raise InputError(
            f"--scale {scale}: {network.name} enlarges {network.scale} times. Leave --scale out, or take another "
            "--model."
        )


def _write_comparison(picture: Picture, restored: Picture, scale: int, path: Path) -> None:
    """Before and after side by side, upright; before an enlargement is the bicubic one."""
    before = enlarge_bicubic(picture.pixels, scale) if scale > 1 else picture.pixels
    turned = [
        pictures.turn_upright(pixels, one.orientation)
        for pixels, one in ((before, picture), (restored.pixels, restored))
    ]
    pictures.write_picture(Picture(before_after.compose(*turned)), path)


def _describe_noise(sigma: Sigma, estimated: float | None) -> str:
    if not isinstance(sigma, str):
        return f"noise of {sigma:g}, as told"
    return "noise unknown (too small)" if estimated is None else f"noise about {estimated:.1f}"


def _describe(item: Item, picture: Picture, noise: str | None, restoration: Restoration, restorer: Restorer) -> str:
    sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (picture.pixels, restoration.image)]
    size = " -> ".join(dict.fromkeys(sizes))  # once where it stays
    kind = ("grey" if picture.is_gray else "colour") + (" and alpha" if picture.alpha is not None else "")
    parts = [f"{size} {kind} {picture.pixels.dtype}", noise, restorer.network.name, restoration.way, *picture.notes]
    return f"{item.source} -> {item.target}: " + ", ".join(filter(None, parts))


@contextlib.contextmanager
def _show_progress(items: Sequence[Item], is_overwriting: bool) -> Iterator[tqdm]:
    """A bar over the pixels of all pictures that are still to be restored, at a terminal only."""
    with tqdm(total=1, unit="px", unit_scale=True, disable=None, leave=False) as progress:
        if not progress.disable:
            progress.total = max(sum(_count(item) for item in items if is_overwriting or not item.is_done), 1)
        yield progress


def _count(item: Item) -> int:
    try:
        return pictures.read_header(item.source).pixels
    except (InputError, OSError):  # told of when its turn comes
        return 0
