"""Folders of pictures -> LMDB folders in BasicSR's layout, each with a manifest of what it was made from.

An LMDB folder holds ``data.mdb``, ``lock.mdb``, ``meta_info.txt`` (a line ``key.png (h,w,c) 1`` for each entry, whose
value is the bytes of a PNG) and ``manifest.json``: settings, and for each source file its name, size, SHA-256 and the
keys made from it. It is written as ``.X.lmdb.tmp`` beside ``X.lmdb`` and renamed at the end, under a lock (the hidden
file ``.X.lmdb.lock``, which stays): an interrupted run leaves nothing under the final name, the next run removes what
it left, and of two runs at once the second waits, then finds the work done.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import lmdb
import numpy as np
from PIL import Image
from tqdm import tqdm

from hranet_arch import tiff
from hranet_arch.errors import InputError
from hranet_arch.images import SUFFIXES, decode_image, list_pictures
from hranet_arch.lmdb_writer import FILES, Entry, LMDBWriter, encode, publish, recover, sibling

FORMAT = 1  # of the manifest; a change of what is written for the same pictures and settings raises it


@dataclass(frozen=True)
class _Settings:
    """How pictures are made into entries."""

    crop_size: int | None
    step: int | None
    gray: bool = False
    scale: int = 1
    filename_tmpl: str = "{}"


@dataclass(frozen=True)
class _Side:
    """One folder of pictures and its LMDB. A pair has two, and ``divisor`` is by what its pictures are smaller."""

    label: str
    folder: Path
    output: Path
    divisor: int = 1


@dataclass(frozen=True)
class _Recipe:
    """All that is to be done. An item is a key, with a file's name (relative, with ``/``) for each side."""

    settings: _Settings
    sides: tuple[_Side, ...]
    items: list[tuple[str, tuple[str, ...]]]


def prepare_lmdb(
    input_dir: str | Path,
    output: str | Path,
    *,
    crop_size: int | None = None,
    step: int | None = None,
    gray: bool = False,
    workers: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> dict:
    """Makes one LMDB of all pictures under a folder, by ``images.list_pictures``.

    Depth (8 or 16 bit) and grey stay as the files have them; palettes and grey with alpha become colours, alpha is
    dropped, EXIF's orientation is applied. A key is the file's relative path without suffix, separators as ``_``, if
    that is plain ASCII (letters, digits, ``_``, ``-``), short and unique; else it is made safe and gets a hash of the
    name. Animations and TIFFs of several pages cannot be used.

    Args:
        input_dir: folder with pictures, searched with its subfolders.
        output: the LMDB's folder, ``*.lmdb``.
        crop_size: cut sub-images of this height and width, with keys ``..._s001`` and so on, row by row; the last
            row and column are moved to end at the border. ``None`` keeps the pictures whole.
        step: distance of neighbouring sub-images; ``crop_size`` by default.
        gray: convert colour to one channel (BT.601, full range).
        workers: pictures read at a time; the number of processors by default, at most 8.
        skip_bad: leave out pictures that cannot be read or are smaller than ``crop_size``.
        overwrite: make the LMDB anew where one is there already.

    Returns:
        ``path`` (str), ``pictures`` used and ``entries`` written (int), ``left_out`` (a reason for each picture) and
        ``unchanged``: True if the output was there, made from the same pictures with the same settings.

    Raises:
        InputError: for folders, arguments and pictures that cannot be used, with the name of every such picture; for
            an output that is there but was made from other pictures or settings.
    """
    settings = _Settings(crop_size, crop_size if step is None else step, gray)
    side = _Side("path", Path(input_dir), _follow(output))
    items = [(key, (name,)) for name, key in _make_keys(_scan(side.folder)).items()]
    return _prepare(_Recipe(settings, (side,), items), workers, skip_bad, overwrite)


def prepare_pairs(
    lq_dir: str | Path,
    gt_dir: str | Path,
    lq_output: str | Path,
    gt_output: str | Path,
    *,
    filename_tmpl: str = "{}",
    scale: int = 1,
    crop_size: int | None = None,
    step: int | None = None,
    gray: bool = False,
    workers: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> dict:
    """Makes two LMDBs with equal keys of degraded pictures (lq) and their clean ones (gt), as ``prepare_lmdb`` does.

    Args:
        lq_dir, gt_dir: folders of pictures. The clean ones' names make the keys.
        lq_output, gt_output: the LMDBs' folders. Both appear together.
        filename_tmpl: BasicSR's template: the degraded picture's stem is ``filename_tmpl.format(clean stem)``, in the
            same subfolder, with any suffix.
        scale: a clean picture must be so many times as high and wide as its degraded one.
        crop_size, step: of clean sub-images, multiples of ``scale``; degraded ones are cut at the same places.
        gray, workers, skip_bad, overwrite: as in ``prepare_lmdb``; a bad picture takes its partner with it.

    Returns:
        As ``prepare_lmdb``, with ``lq_path`` and ``gt_path`` in the place of ``path``.

    Raises:
        InputError: also for partners that are missing, on either side, and for pairs of unequal size.
    """
    settings = _Settings(crop_size, crop_size if step is None else step, gray, scale, filename_tmpl)
    lq = _Side("lq_path", Path(lq_dir), _follow(lq_output), scale)
    gt = _Side("gt_path", Path(gt_dir), _follow(gt_output))
    return _prepare(_Recipe(settings, (lq, gt), _match_pairs(lq, gt, filename_tmpl)), workers, skip_bad, overwrite)


def _follow(output: str | Path) -> Path:
    return Path(output).resolve() if os.path.islink(output) else Path(output)  # a link to another disk stays one


def _scan(folder: Path) -> list[str]:
    """Sorted names, relative to the folder and with ``/``, of the pictures in it and below."""
    names = [path.relative_to(folder).as_posix() for path in list_pictures(folder)]
    if not names:
        raise InputError(f"{folder}: no pictures in it. Read are {', '.join(SUFFIXES)}.")
    return sorted(names)


def _make_keys(names: list[str]) -> dict[str, str]:
    """File names to LMDB keys. BasicSR cuts a key at its first dot and encodes it as ASCII; LMDB takes 511 bytes."""
    stems = {name: posixpath.splitext(name)[0].replace("/", "_") for name in names}
    count = Counter(stems.values())
    keys = {}
    for name, stem in stems.items():
        if re.fullmatch(r"[A-Za-z0-9_-]{1,200}", stem) and count[stem] == 1:
            keys[name] = stem
        else:  # of the whole name: a.png and a.jpg differ
            digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
            keys[name] = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[:100]}-{digest}"
    return keys


def _match_pairs(lq: _Side, gt: _Side, template: str) -> list[tuple[str, tuple[str, str]]]:
    """Items of the pairs, or an error that names every picture without a partner of its own."""
    try:
        if template.format("a") == template.format("b"):
            raise ValueError
    except (ValueError, IndexError, KeyError, AttributeError):
        raise InputError(f"filename_tmpl {template!r}: must hold {{}}, for the clean picture's stem.") from None
    found, wanted = {}, {}  # path of a degraded picture without suffix -> names
    for name in _scan(lq.folder):
        found.setdefault(posixpath.splitext(name)[0], []).append(name)
    for name in _scan(gt.folder):
        parent, stem = posixpath.split(posixpath.splitext(name)[0])
        wanted.setdefault(posixpath.join(parent, template.format(stem)), []).append(name)
    problems = [f"{gt.folder / wanted[stem][0]}: no {lq.folder / stem}.*" for stem in wanted if stem not in found]
    problems += [f"{lq.folder / found[stem][0]}: no clean picture" for stem in found if stem not in wanted]
    for folder, groups in ((lq.folder, found), (gt.folder, wanted)):
        problems += [f"{folder}: {', '.join(names)} differ in suffix only" for names in groups.values() if names[1:]]
    if problems:
        raise InputError(f"Pictures without a partner (filename_tmpl {template!r}):{_list(problems, 40)}")
    keys = _make_keys([name for (name,) in wanted.values()])
    return [(keys[name], (found[stem][0], name)) for stem, (name,) in wanted.items()]


def _prepare(recipe: _Recipe, workers: int | None, skip_bad: bool, overwrite: bool) -> dict:
    """Carries a recipe out, unless its outputs are there already, and returns the summary."""
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    _check_recipe(recipe, workers)
    outputs = [side.output for side in recipe.sides]
    with contextlib.ExitStack() as stack:
        try:
            for output in sorted(outputs):  # in one order, so that two runs never wait for each other
                output.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(filelock.FileLock(sibling(output, "lock")))
                stack.callback(shutil.rmtree, sibling(output, "tmp"), ignore_errors=True)  # ours, while the lock is
            recover(outputs)
            existing = [side for side in recipe.sides if side.output.exists()]
            records = [_check_existing(recipe, side, workers, skip_bad, overwrite) for side in existing]
            unchanged = len(existing) == len(outputs) and not overwrite
            if not unchanged:
                records = _write_outputs(recipe, workers, skip_bad)
                publish(outputs)
        except (OSError, lmdb.Error) as error:
            raise InputError(f"{', '.join(map(str, outputs))}: cannot be written: {error}.") from error
    reasons = [record["left_out"] for record in records[0] if "left_out" in record]
    return {
        **{side.label: str(side.output) for side in recipe.sides},
        "pictures": len(recipe.items) - len(reasons),
        "entries": sum(len(record["keys"]) for record in records[0]),
        "left_out": reasons,
        "unchanged": unchanged,
    }


def _check_recipe(recipe: _Recipe, workers: int) -> None:
    settings = recipe.settings
    numbers = {"crop_size": settings.crop_size, "step": settings.step, "scale": settings.scale, "workers": workers}
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name} {value!r}: must be a whole number from 1 on.")
    if settings.step is not None and settings.crop_size is None:
        raise InputError(f"step {settings.step}: only together with crop_size.")
    for name in ("crop_size", "step"):
        if numbers[name] is not None and numbers[name] % settings.scale:
            raise InputError(f"{name} {numbers[name]}: must be a multiple of scale, {settings.scale}.")
    for side in recipe.sides:
        if side.output.suffix != ".lmdb":
            raise InputError(f"{side.output}: the name of an LMDB folder must end in .lmdb, for BasicSR to read it.")
        if side.output.resolve() in [other.folder.resolve() for other in recipe.sides]:
            raise InputError(f"{side.output}: is the folder of the pictures too. Give another output.")
    if len({side.output.resolve() for side in recipe.sides}) < len(recipe.sides):
        raise InputError(f"{recipe.sides[0].output}: given for both outputs. Give two.")


def _check_existing(recipe: _Recipe, side: _Side, workers: int, skip_bad: bool, overwrite: bool) -> list[dict]:
    """Refuses an output that may not be replaced or is not what the recipe makes; returns its manifest's records."""
    foreign = set(os.listdir(side.output)) - FILES if side.output.is_dir() else {"it is no folder"}
    if foreign:
        found = ", ".join(sorted(foreign)[:5])
        raise InputError(f"{side.output}: is there already and is no LMDB folder ({found}). Give another output.")
    if overwrite:
        return []
    try:
        manifest = json.loads((side.output / "manifest.json").read_text(encoding="utf-8"))
        differences = _find_differences(manifest, recipe, side, workers)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        differences = ["no whole manifest.json and data.mdb that tell how it was made"]
    if differences:
        raise InputError(
            f"{side.output}: is there already, but not as this run would make it:{_list(differences, 40)}\n"
            "Give another output, or --overwrite to replace it."
        )
    _check_left_out(manifest["pictures"], skip_bad)
    return manifest["pictures"]


def _find_differences(manifest: dict, recipe: _Recipe, side: _Side, workers: int) -> list[str]:
    size = os.path.getsize(side.output / "data.mdb")
    now = {"format": FORMAT, **asdict(recipe.settings), "bytes of data.mdb": size}
    then = {"format": manifest["format"], **manifest["settings"], "bytes of data.mdb": manifest["data_bytes"]}
    differences = [f"{name} is {now[name]!r}, was {then.get(name)!r}" for name in now if now[name] != then.get(name)]
    if not (side.output / "meta_info.txt").is_file():
        differences.append("meta_info.txt is gone")
    position = recipe.sides.index(side)
    files = [(side.folder / names[position], names[position], key) for key, names in recipe.items]
    pictures = {record["name"]: record for record, _ in _map_in_order(_fingerprint, files, workers)}
    recorded = {record["name"]: record for record in manifest["pictures"]}
    for name in sorted(pictures.keys() | recorded.keys()):
        if name not in pictures or name not in recorded:
            differences.append(f"{name} is {'gone' if name in recorded else 'new'}")
        elif not pictures[name].items() <= recorded[name].items():
            differences.append(f"{name} has changed")
    return differences


def _check_left_out(records: list[dict], skip_bad: bool) -> None:
    reasons = [record["left_out"] for record in records if "left_out" in record]
    if reasons and not (skip_bad and len(reasons) < len(records)):
        raise InputError(f"Pictures that cannot be used:{_list(reasons)}\nMend them, or leave them out by --skip-bad.")


def _list(problems: list[str], limit: int | None = None) -> str:
    rest = len(problems[limit:]) if limit else 0
    return "".join(f"\n  {problem}" for problem in problems[:limit]) + (f"\n  and {rest} more" if rest else "")


def _fingerprint(path: Path, name: str, key: str) -> tuple[dict, bytes]:
    """What the manifest says of a source file, and its bytes. A file that cannot be opened has no hash."""
    try:
        data = path.read_bytes()
    except OSError:
        return {"name": name, "key": key, "bytes": None, "sha256": None}, b""
    return {"name": name, "key": key, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, data


def _map_in_order(function: Callable, arguments: Iterable[tuple], workers: int) -> Iterator:
    """Yields ``function(*a)`` in the order of ``arguments``. In threads: OpenCV and hashlib run beside each other."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for values in arguments:
            waiting.append(pool.submit(function, *values))
            if len(waiting) >= 2 * workers:  # bounds the memory that finished results take
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_outputs(recipe: _Recipe, workers: int, skip_bad: bool) -> list[list[dict]]:
    """Writes every side under its temporary name; returns each side's records for the manifest."""
    records = [[] for _ in recipe.sides]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(contextlib.closing(LMDBWriter(side.output))) for side in recipe.sides]
        results = _map_in_order(_convert, ((recipe, key, names) for key, names in recipe.items), workers)
        for result in tqdm(results, recipe.sides[-1].output.name, len(recipe.items), unit="picture", disable=None):
            for writer, kept, (record, entries) in zip(writers, records, result):
                kept.append({**record, "keys": [key for key, _, _ in entries]})
                writer.put(entries)
        _check_left_out(records[0], skip_bad)
        for writer, kept in zip(writers, records):
            writer.finish({"format": FORMAT, "settings": asdict(recipe.settings), "pictures": kept})
    return records


def _convert(recipe: _Recipe, key: str, names: tuple[str, ...]) -> list[tuple[dict, list[Entry]]]:
    """Reads, checks, cuts and encodes one picture: for each side, its record for the manifest and its entries."""
    paths = [side.folder / name for side, name in zip(recipe.sides, names)]
    records, contents = zip(*(_fingerprint(path, name, key) for path, name in zip(paths, names)))
    try:
        images = [_decode(data, str(path), recipe.settings.gray) for data, path in zip(contents, paths)]
        return list(zip(records, _cut(recipe, key, paths, images)))
    except InputError as error:
        return [({**record, "left_out": str(error)}, []) for record in records]


def _decode(data: bytes, name: str, gray: bool) -> np.ndarray:
    image = decode_image(data, name)
    if (count := _count_frames(data)) > 1:
        raise InputError(f"{name}: holds {count} pictures. Split it into files of one.")
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name}: pixels of type {image.dtype}; an LMDB's PNGs hold 8 or 16 bits.")
    # 'unchanged' tells grey from colour but keeps alpha and ignores EXIF's orientation, which readers of folders apply.
    return decode_image(data, name, "gray" if gray or image.ndim == 2 else "rgb")


def _count_frames(data: bytes) -> int:
    """Pictures of an animation or a TIFF; a JPEG's others are previews."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, count = image.format, getattr(image, "n_frames", 1)
        return tiff.count_pages(data) if kind == "TIFF" else 1 if kind in ("JPEG", "MPO") else count
    except Exception:  # damage and odd headers end in many kinds of errors; OpenCV has read it, which counts
        return 1


def _cut(recipe: _Recipe, key: str, paths: list[Path], images: list[np.ndarray]) -> list[list[Entry]]:
    """Entries of each side, cut at corresponding places."""
    divisors = [side.divisor for side in recipe.sides]
    sizes = [(image.shape[0] * divisor, image.shape[1] * divisor) for image, divisor in zip(images, divisors)]
    if len(set(sizes)) > 1:
        (lq_path, gt_path), (lq, gt) = paths, (f"{image.shape[0]}x{image.shape[1]}" for image in images)
        raise InputError(f"{gt_path}: {gt} pixels (h x w), not {recipe.settings.scale} times {lq_path}, {lq}.")
    crop = recipe.settings.crop_size
    if crop is None:
        return [[encode(key, image)] for image in images]
    if min(sizes[0]) < crop:
        raise InputError(f"{paths[-1]}: {sizes[0][0]}x{sizes[0][1]} pixels (h x w), smaller than crop_size {crop}.")
    places = _list_places(*sizes[0], recipe.settings)
    return [
        [encode(key + end, image[y // n : (y + crop) // n, x // n : (x + crop) // n]) for end, y, x in places]
        for image, n in zip(images, divisors)
    ]


def _list_places(height: int, width: int, settings: _Settings) -> list[tuple[str, int, int]]:
    """The end of the key and the top left corner of each sub-image."""
    down, right = height - settings.crop_size, width - settings.crop_size
    rows, columns = ([*range(0, last, settings.step), last] for last in (down, right))
    return [(f"_s{number:03d}", y, x) for number, (y, x) in enumerate(itertools.product(rows, columns), 1)]
