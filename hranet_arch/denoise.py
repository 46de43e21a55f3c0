"""``basicsr denoise``: files, folders and patterns in, clean pictures out; one after the other, each whole or not."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from hranet_arch import before_after, memory, networks, pictures
from hranet_arch.errors import InputError
from hranet_arch.noise import estimate_sigma
from hranet_arch.pictures import FORMATS, Header, Picture
from hranet_arch.restore import Denoiser, Restoration

logger = logging.getLogger(__name__)

Sigma = float | Literal["auto", "blind"]


@dataclass(frozen=True)
class Task:
    """A picture to clean: where it is, where the result goes, and the comparison if there is to be one."""

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
    """What became of a task; ``text`` is one line for a person."""

    task: Task
    status: Literal["done", "skipped", "failed"]
    text: str


@dataclass
class Settings:
    """How pictures are cleaned; see ``basicsr denoise --help``."""

    model: str | Path | None = None
    sigma: Sigma = "auto"
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    tile: int | None = None
    ensemble: bool = False
    backend: networks.Backend | None = None
    released: Mapping[str, networks.Description] = field(default_factory=networks.list_released)


# --- what goes where --------------------------------------------------------------------------------------------------


def plan(
    inputs: Sequence[str], output: str | Path, *, is_recursive: bool = False, has_compare: bool = False
) -> list[Task]:
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
    output = Path(output)
    is_file = len(inputs) == 1 and Path(inputs[0]).is_file() and output.suffix.lower() in FORMATS
    if not is_file and not output.is_dir() and (output.exists() or output.suffix.lower() in FORMATS):
        raise InputError(f"{output}: -o must be a folder, unless there is one input and it is a file.")
    tasks = []
    for source, name in _find_pictures(inputs, output, is_recursive):
        target = output if is_file and not output.is_dir() else output / name
        compare = target.with_name(f"{target.stem}_compare.png") if has_compare else None
        tasks.append(Task(source, target, compare))
    if not tasks:
        raise InputError(f"{', '.join(inputs)}: no pictures ({', '.join(FORMATS)}). Subfolders: --recursive.")
    _check_targets(tasks)
    return tasks


def _find_pictures(inputs: Sequence[str], output: Path, is_recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Each picture once, with the name of its result in the output folder."""
    seen = set()
    for text in inputs:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            raise InputError(f"{text}: no such file or folder, and no file fits it as a pattern.")
        for path in map(Path, matches):
            found = _list_folder(path, output, is_recursive) if path.is_dir() else [path]
            for source in found:
                if (real := os.path.realpath(source)) not in seen:
                    seen.add(real)
                    yield source, source.relative_to(path) if path.is_dir() else Path(source.name)


def _list_folder(folder: Path, output: Path, is_recursive: bool) -> list[Path]:
    """The files called as pictures, sorted; hidden ones and the output folder are passed over."""
    found = []
    for parent, folders, files in os.walk(folder):
        kept = [name for name in folders if name[0] != "." and os.path.realpath(Path(parent, name)) != _real(output)]
        folders[:] = sorted(kept) if is_recursive else []
        found += [Path(parent, name) for name in files if name[0] != "." and Path(name).suffix.lower() in FORMATS]
    return sorted(found)


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _check_targets(tasks: Sequence[Task]) -> None:
    sources = {_real(task.source) for task in tasks}
    taken: dict[str, Path] = {}
    for task in tasks:
        for target in task.targets:
            if _real(target) in sources:
                raise InputError(f"{target}: is one of the pictures, and would be replaced. Give another -o.")
            if _real(target) in taken:
                raise InputError(
                    f"{taken[_real(target)]} and {task.source} would both become {target}. "
                    "Give their folder as input, or clean them in two runs."
                )
            taken[_real(target)] = task.source


# --- the run ----------------------------------------------------------------------------------------------------------


def run(tasks: Sequence[Task], settings: Settings, *, is_overwriting: bool = False) -> Iterator[Outcome]:
    """Cleans one picture after the other, with a bar at a terminal: pictures, tiles, time left.

    A picture that fails is told of, and the rest goes on. Ctrl-C and SIGTERM end the run between two steps and leave
    no half-written file.

    Raises:
        InputError: if the network cannot be loaded, or does not fit the settings.
        KeyboardInterrupt: at a signal.
    """
    cleaner = _Cleaner(settings)
    with _stop_on_sigterm(), _show_progress(tasks, is_overwriting) as progress:
        for number, task in enumerate(tasks, 1):
            progress.set_description(f"{number}/{len(tasks)} {task.source.name}", refresh=True)
            if task.is_done and not is_overwriting:
                outcome = Outcome(task, "skipped", f"{task.target}: is there already; --overwrite makes it anew")
            else:
                outcome = _try(task, cleaner, progress)
            yield outcome


def _try(task: Task, cleaner: _Cleaner, progress: tqdm) -> Outcome:
    begin, before = time.monotonic(), progress.n
    try:
        text = cleaner.clean(task, lambda header, done: progress.update(before + done * header.pixels - progress.n))
    except (InputError, OSError) as error:
        text = str(error) if str(task.source) in str(error) else f"{task.source}: {error}"
    except Exception as error:  # whatever is wrong with one picture, the others are cleaned
        text = f"{task.source}: {type(error).__name__}: {error}"
        if memory.is_out_of_memory(error):
            text = f"{task.source}: not enough memory. Give a smaller --tile, or close other programs."
        logger.debug("%s", task.source, exc_info=True)
    else:
        return Outcome(task, "done", f"{text}, {time.monotonic() - begin:.1f} s")
    return Outcome(task, "failed", text)


class _Cleaner:
    """Networks, each loaded when the first picture asks for it, and what is done with a picture."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.denoisers: dict[str, Denoiser] = {}
        if settings.model is None:
            if not settings.released:
                networks.choose_released(settings.released, "gray", None)  # raises, and says what to do
        else:
            self._check_sigma(self._load(settings.model))

    def clean(self, task: Task, report: Callable[[Header, float], None]) -> str:
        """Reads, cleans, writes; returns a line about it."""
        header = pictures.read_header(task.source)
        picture = pictures.read_picture(task.source)
        pictures.check_writable(picture, task.target)
        estimated = estimate_sigma(picture.pixels)
        denoiser = self._choose(picture, estimated)
        restoration = denoiser.restore(
            picture.pixels, sigma=self._tell(denoiser, estimated), report=lambda done: report(header, done)
        )
        task.target.parent.mkdir(parents=True, exist_ok=True)
        if task.compare:
            turned = [
                pictures.turn_upright(pixels, picture.orientation) for pixels in (picture.pixels, restoration.image)
            ]
            pictures.write_picture(Picture(before_after.compose(*turned), icc=None), task.compare)
        # Last: its presence says that all is done.
        pictures.write_picture(replace(picture, pixels=restoration.image), task.target)
        return _describe(task, picture, estimated, restoration, denoiser)

    def _choose(self, picture: Picture, estimated: float | None) -> Denoiser:
        if self.settings.model is not None:
            return self._load(self.settings.model)
        sigma = estimated if self.settings.sigma == "auto" else self.settings.sigma
        chosen = networks.choose_released(self.settings.released, "gray" if picture.is_gray else "rgb", sigma)
        return self._load(chosen.path)

    def _load(self, weights: str | Path) -> Denoiser:
        if str(weights) not in self.denoisers:
            settings = self.settings
            self.denoisers[str(weights)] = Denoiser(
                weights, device=settings.device, precision=settings.precision, tile=settings.tile,
                ensemble=settings.ensemble, backend=settings.backend,
            )  # fmt: skip
        return self.denoisers[str(weights)]

    def _check_sigma(self, denoiser: Denoiser) -> None:
        network, sigma = denoiser.network, self.settings.sigma
        if network.takes_sigma and sigma == "blind":
            raise InputError(f"--sigma blind: {network.name} must be told the noise level: give --sigma N or auto.")
        trained = network.description.sigma
        if sigma != "auto" and isinstance(trained, (int, float)) and trained != sigma:
            raise InputError(
                f"--sigma {sigma}: {network.name} was trained for {trained:g} and is not told the noise level. "
                "Leave --sigma out, or take another --model."
            )

    def _tell(self, denoiser: Denoiser, estimated: float | None) -> float | None:
        """The noise level for a network that must be told."""
        if not denoiser.network.takes_sigma:
            return None
        sigma = estimated if self.settings.sigma == "auto" else self.settings.sigma
        if sigma is None:
            raise InputError("the picture is too small for an estimate of its noise: give --sigma N.")
        return min(sigma, 255.0)


def _describe(
    task: Task, picture: Picture, estimated: float | None, restoration: Restoration, denoiser: Denoiser
) -> str:
    height, width = picture.pixels.shape[:2]
    kind = ("grey" if picture.is_gray else "colour") + (" and alpha" if picture.alpha is not None else "")
    level = "noise unknown (too small)" if estimated is None else f"noise about {estimated:.1f}"
    parts = [f"{width} x {height} {kind} {picture.pixels.dtype}", level, denoiser.network.name]
    if restoration.is_by_channel:
        parts.append("channel by channel (a grey network)")
    return f"{task.source} -> {task.target}: " + ", ".join([*parts, *picture.notes])


@contextlib.contextmanager
def _show_progress(tasks: Sequence[Task], is_overwriting: bool) -> Iterator[tqdm]:
    """A bar over the pixels of all pictures that are still to be cleaned, at a terminal only."""
    with tqdm(total=1, unit="px", unit_scale=True, disable=None, leave=False) as progress:
        if not progress.disable:
            progress.total = max(sum(_count(task) for task in tasks if is_overwriting or not task.is_done), 1)
        yield progress


def _count(task: Task) -> int:
    try:
        return pictures.read_header(task.source).pixels
    except (InputError, OSError):  # told of when its turn comes
        return 0


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM does as Ctrl-C: what is open is closed, and no half-written file stays."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
