"""What a comparison measures: the levels, the pictures of each test set, and what is wrong with some of them."""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hranet_arch import arithmetic, examples, fidelity, methods, provenance, record, schema, scores, testsets
from hranet_arch.errors import InputError
from hranet_arch.images import decode_image, list_pictures
from hranet_arch.journal import hash_modules, make_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture of a test set, at one level."""

    name: str
    number: int  # in its set, from 0
    gt: Path
    lq: Path | None
    sha256: str  # of the pixels it is made of
    size: tuple[int, int]


@dataclass
class Plan:
    """What will be measured. ``pictures`` by test set and level; ``methods`` as the option file has them."""

    opt: dict
    folder: Path
    device: torch.device
    commit: str
    machine: dict
    levels: list[float] = field(default_factory=list)
    pictures: dict[tuple[str, float], list[Picture]] = field(default_factory=dict)
    testsets: dict[str, record.TestSet] = field(default_factory=dict)
    failures: list[record.Failure] = field(default_factory=list)

    @functools.cached_property
    def context(self) -> str:
        """Changes with what the record says of all its numbers alike: the code, the machine, the versions."""
        return make_key(hash_modules(Path(__file__).parent), {**self.machine, "device": self.device.type})

    def task(self, level: float) -> methods.Task:
        opt = self.opt
        return methods.Task(opt["task"], opt["color"], level, self.device, opt["precision"], opt["tile"])

    @property
    def methods(self) -> dict[str, dict]:
        """The entries by name, the degraded pictures themselves first."""
        return {methods.INPUT_NAMES[self.opt["task"]]: {"method": "input"}, **self.opt["methods"]}

    @property
    def color(self) -> Literal["gray", "rgb", "y", "unchanged"]:
        """How pictures are read (``images.decode_image``): of super-resolution's, a grey one stays grey."""
        gray = {"jpeg": "y"}.get(self.opt["task"], "gray")
        return "unchanged" if self.opt["task"] == "sr" else gray if self.opt["color"] == "gray" else "rgb"

    @property
    def channel(self) -> Literal["gray", "rgb", "y"]:
        """What the metrics look at."""
        return "y" if self.opt["task"] == "sr" else self.color

    @property
    def metrics(self) -> dict[str, str]:
        return fidelity.describe_metrics(self.opt["task"])

    def border(self, level: float) -> int:
        """Pixels that the metrics leave out at each edge."""
        return int(level) if self.opt["task"] == "sr" else 0

    def name_level(self, level: Any) -> str:
        """``sigma 25``, ``scale 4`` or ``quality 10``."""
        text = f"{level:g}" if isinstance(level, float) else str(level)
        return f"{schema.LEVEL_KEYS[self.opt['task']]} {text}"

    def fail(self, reason: str, **place: str) -> None:
        places = {"method": None, "testset": None, "level": None, "picture": None, **place}
        failure = record.Failure(**places, reason=_make_utf8(reason))
        if failure not in self.failures:
            self.failures.append(failure)
            logger.error("%s", failure.describe())


def _require_matplotlib() -> None:
    """Now, and not when all has been measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the plots need matplotlib: pip install 'hranet-arch[compare]'")
    try:
        import matplotlib  # noqa: F401
    except ValueError as error:
        raise InputError(f"the plots need matplotlib, which refuses to load: MPLBACKEND: {error}") from None


def make_plan(opt: dict, folder: Path) -> Plan:
    """Finds the pictures; what cannot be used is in ``failures``.

    Raises:
        InputError: if no level or no test set can be used, there is no such device, or matplotlib is missing or broken.
    """
    taken = {examples.CLEAN: "clean", methods.INPUT_NAMES[opt["task"]].lower(): "given"}
    for name in opt["methods"]:
        if kind := taken.get(name.lower()):
            raise InputError(f"methods.{name}: this is what the {kind} pictures are called. Take another name.")
    named = [entry["published"] for entry in opt["methods"].values() if entry.get("published")]
    scores.check_published([*opt.get("published", []), *named], opt["task"], opt["color"])
    _require_matplotlib()
    device = _find_device(opt["device"])
    opt = {**opt, "precision": arithmetic.choose(opt["precision"], device, logger.warning)}
    plan = Plan(opt, folder, device, provenance.describe_commit(), provenance.describe_machine(device))
    for level in opt[schema.LEVEL_KEYS[opt["task"]]]:
        fault = _find_fault(opt["task"], level)
        if fault:
            plan.fail(fault, level=plan.name_level(level))
        elif float(level) not in plan.levels:
            plan.levels.append(float(level))
    for name, entry in plan.methods.items():
        if entry.get("levels") and not any(level in entry["levels"] for level in plan.levels):
            plan.fail(f"its levels, {entry['levels']}, are none of this comparison's", method=name)
    for name, folders in opt["testsets"].items():
        _add_testset(plan, name, folders)
    if not plan.pictures:
        raise InputError("no test set can be used. Above, each is named with its reason.")
    return plan


def _find_device(name: str) -> torch.device:
    """Of several processes each has a GPU of its own, and touches no other's."""
    if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return arithmetic.find_device(name)


def _find_fault(task: str, level: Any) -> str | None:
    is_number = schema.is_number(level) and math.isfinite(level)
    if task == "denoise":
        return None if is_number and 0 < level <= 255 else "sigma must be a number above 0, at most 255, in grey levels"
    if task == "jpeg":
        is_quality = is_number and level == int(level) and 1 <= level <= 100
        return None if is_quality else "quality must be a whole number from 1 to 100"
    return None if is_number and level in (2, 3, 4, 8) else "scale must be 2, 3, 4 or 8"


# --- test sets --------------------------------------------------------------------------------------------------------


def _add_testset(plan: Plan, name: str, folders: str | dict) -> None:
    """Adds a set at every level at which it has pictures."""
    hashes, statuses, count = {}, [], 0
    look = functools.cache(_hash_folder)  # for all levels once
    for level in plan.levels:
        try:
            pictures, ids, in_folder = _list_pictures(plan, name, folders, level, look)
        except InputError as error:
            is_same = plan.opt["task"] != "sr"
            plan.fail(str(error), testset=name, **({} if is_same else {"level": plan.name_level(level)}))
            continue
        if pictures:
            plan.pictures[name, level] = pictures
            count = max(count, in_folder)  # a result that lacks one of them is no result of the set
            hashes |= {key: value for key, (value, _) in ids.items()}
            statuses += [status for _, status in ids.values()]
    if count:
        order = ("differs", "unknown", "by name", "exact")  # one odd part makes the whole odd
        status = min(statuses, key=order.index)
        plan.testsets[name] = record.TestSet(pictures=count, sha256=hashes, status=status)


def _list_pictures(
    plan: Plan, name: str, folders: str | dict, level: float, look: Callable[[Path, str], dict[str, _File]]
) -> tuple[list[Picture], dict, int]:
    """The pictures that can be used; hash and status of each folder; how many there are. Faulty ones are failures."""
    if plan.opt["task"] != "sr":
        gt = look(Path(plan.opt["datasets_root"], folders), plan.color)
        lq, ids = {}, {"all": _identify(name, gt)}
    else:
        gt, lq = (
            look(Path(plan.opt["datasets_root"], folders[kind].replace("{scale}", f"{level:g}")), plan.color)
            for kind in ("gt", "lq")
        )
        ids = {f"x{level:g}/{kind}": _identify(f"{name}/x{level:g}/{kind}", found) for kind, found in
               (("gt", gt), ("lq", lq))}  # fmt: skip
    pictures = []
    for number, (stem, one) in enumerate(gt.items()):
        fault = one.fault or (_check_pair(one, lq.get(stem), int(level)) if plan.opt["task"] == "sr" else None)
        if fault:
            plan.fail(fault, testset=name, picture=stem)
            continue
        # Channels count: a grey picture is measured as it is, the same as RGB on its luma. Set14 has one of each
        # (img_003, img_010), and published tables are so.
        files = [(file.sha256, file.channels) for file in (one, *([lq[stem]] if lq else []))]
        sha256 = make_key("picture", files)
        pictures.append(Picture(stem, number, one.path, lq[stem].path if lq else None, sha256, one.size))
    return pictures, ids, len(gt)


@dataclass(frozen=True)
class _File:
    """A picture file: the hash of its pixels, height and width, its channels, and why it cannot be used."""

    path: Path
    sha256: str
    size: tuple[int, int]
    channels: int
    fault: str | None


def _hash_folder(folder: Path, color: str) -> dict[str, _File]:
    paths = list_pictures(folder)
    if not paths:
        raise InputError(f"{folder}: no pictures there. `basicsr prepare testsets --from DIR` lays test sets out.")
    names = [_name(path.relative_to(folder).with_suffix("")) for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{folder}: two pictures are called {twice[0]}. Keep one of them.")
    return dict(zip(names, testsets.map_in_threads(functools.partial(_look_at, color=color), paths)))


def _name(path: Path) -> str:
    return _make_utf8(path.as_posix())


def _make_utf8(text: str) -> str:
    """What a record can hold: a file name's bytes that are not UTF-8 as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _look_at(path: Path, color: str) -> _File:
    try:
        pixels = decode_image(data := path.read_bytes(), path.name)
        fault = _find_channel_fault(pixels, color)
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        read = pixels if fault else decode_image(data, path.name, color)  # turned as EXIF says
        return _File(path, testsets.hash_bytes(data, path.name), read.shape[:2], channels, fault)
    except (InputError, OSError) as error:
        return _File(path, "", (0, 0), 0, str(error))


def _find_channel_fault(pixels: np.ndarray, color: str) -> str | None:
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype != np.uint8:
        return f"pixels of type {pixels.dtype}; the field's test sets are 8-bit"
    is_gray = channels == 1 or (channels == 3 and (pixels == pixels[..., :1]).all())
    if color == "gray" and not is_gray:
        return f"{channels} channels, but the comparison is of grey pictures; turning colour to grey changes the scores"
    if color in ("y", "unchanged"):  # measured on the luma; Set14 has a grey picture
        return None if channels in (1, 3) else f"{channels} channels; grey and RGB pictures are compared"
    if color == "rgb" and channels != 3:
        return f"{channels} channel{'s' * (channels > 1)}, but the comparison is of RGB pictures, which have 3"
    return None


def _check_pair(gt: _File, lq: _File | None, scale: int) -> str | None:
    if lq is None:
        return "has no degraded picture of its name"
    if lq.fault:
        return f"its degraded picture: {lq.fault}"
    if gt.channels != lq.channels:
        return f"has {gt.channels} channels and its degraded picture {lq.channels}; save both alike, grey or as RGB"
    expected = tuple(side * scale for side in lq.size)
    return None if gt.size == expected else f"is {gt.size}, but its degraded picture is {lq.size} and the scale {scale}"


def _identify(name: str, files: dict[str, _File]) -> tuple[str, str]:
    """SHA-256 of a folder's pictures (``testsets.hash_set``'s), and what the catalogue says of it."""
    sha256 = testsets.combine_hashes(one.sha256 for one in files.values())
    known = next((known for known in testsets.read_catalogue() if known.name == name), None)
    if known is None:
        return sha256, "unknown"
    if known.sha256:
        return sha256, "exact" if known.sha256 == sha256 else "differs"
    is_alike = known.has_names(files) and all(known.has_size(one.size[::-1]) for one in files.values())
    return sha256, "by name" if is_alike else "differs"
