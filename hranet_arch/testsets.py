"""Benchmark sets: found under any folder by their pixels or names, and laid out by name.

``testsets.json`` is the catalogue. A set whose pictures were at hand is known by a SHA-256 of the decoded pixels of
each (``hash_picture``), whatever its files are called and however they are compressed; the others by file names,
number and sizes. Nothing is downloaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from hranet_arch.errors import InputError
from hranet_arch.files import whole_file
from hranet_arch.images import decode_image, list_pictures

WORKERS = min(8, os.cpu_count() or 1)


# --- hashes -----------------------------------------------------------------------------------------------------------


def hash_picture(path: str | Path) -> str:
    """SHA-256 of a picture's size, depth and decoded pixels; grey, and grey as three equal channels, have the same."""
    return hash_bytes(Path(path).read_bytes(), str(path))


def hash_set(paths: Iterable[str | Path]) -> str:
    """SHA-256 of a set: over the sorted hashes of its pictures. Names, order and compression do not change it."""
    return combine_hashes(map_in_threads(hash_picture, list(paths)))


def combine_hashes(hashes: Iterable[str]) -> str:
    """``hash_set`` of pictures whose hashes are known."""
    return hashlib.sha256("".join(f"{value}\n" for value in sorted(hashes)).encode()).hexdigest()


def hash_bytes(data: bytes, name: str) -> str:
    """``hash_picture`` of a picture file's bytes; ``name`` is what to call it in an error."""
    pixels = decode_image(data, name)
    if pixels.ndim == 3:
        pixels = decode_image(data, name, "rgb")[..., ::-1]
        if (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
    pixels = np.ascontiguousarray(pixels)
    return hashlib.sha256(f"{pixels.shape} {pixels.dtype}\n".encode() + pixels.tobytes()).hexdigest()


def map_in_threads(function: Callable, items: Sequence, title: str | None = None) -> list:
    """The function of each item, in threads (OpenCV, NumPy and hashlib run beside each other); ``title``: of a bar."""
    with ThreadPoolExecutor(WORKERS) as pool:
        results = pool.map(function, items)
        return list(tqdm(results, title, len(items), unit="picture", disable=None) if title else results)


# --- finding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownSet:
    """An entry of the catalogue. ``pictures`` are hashes by published stem; where it is empty, ``stems`` are names, or
    ``pattern`` is what they look like, with the picture's number in its group; ``longest_side``: its least and most."""

    name: str  # where it lies under ``datasets``
    count: int
    source: str
    licence: str
    pictures: Mapping[str, str]
    sizes: Sequence[Sequence[int]] = ()  # (width, height), either way round
    pattern: str = ""
    stems: Sequence[str] = ()
    longest_side: Sequence[int] = (0, 1 << 30)
    sha256: str = ""

    def has_names(self, stems: Iterable[str]) -> bool:
        """Whether these are its names: all of them, and no others."""
        names = [int(match[1]) if (match := re.fullmatch(self.pattern, stem)) else stem for stem in stems]
        return len(names) == self.count and set(names) == set(self.stems or self.pictures or range(1, self.count + 1))

    def has_size(self, size: tuple[int, int]) -> bool:
        is_listed = not self.sizes or sorted(size) in [sorted(s) for s in self.sizes]
        return is_listed and self.longest_side[0] <= max(size) <= self.longest_side[1]


@dataclass(frozen=True)
class FoundSet:
    """A set of the catalogue on this disk.

    ``exact``: all pictures, pixel for pixel. ``by name``: names, number and sizes are right, the pixels are not known
    here. ``incomplete``: at least half of the pictures. ``differs``: a folder called so, with these names, but other
    pixels (a lossy copy, say, or colour turned to grey in another way): its results are not comparable.
    """

    name: str
    status: Literal["exact", "by name", "incomplete", "differs"]
    files: dict[str, Path]  # by published stem
    missing: list[str]

    @property
    def is_usable(self) -> bool:
        return self.status in ("exact", "by name")


@functools.cache
def read_catalogue() -> tuple[KnownSet, ...]:
    """The sets this package knows, by ``testsets.json``."""
    entries = json.loads(Path(__file__).with_name("testsets.json").read_text("utf-8"))
    return tuple(KnownSet(name, **{"pictures": {}, **entry}) for name, entry in entries.items())


def find_testsets(folder: str | Path, catalogue: Sequence[KnownSet] | None = None) -> list[FoundSet]:
    """Finds the catalogue's sets anywhere under a folder, in the order of the catalogue; links are followed.

    Raises:
        InputError: if there is no such folder.
    """
    catalogue = read_catalogue() if catalogue is None else catalogue
    sizes = {path: size for path in list_pictures(Path(folder), skip_unlisted=True) if (size := _read_size(path))}
    exact = [known for known in catalogue if known.pictures]
    candidates = [path for path, size in sizes.items() if any(known.has_size(size) for known in exact)]
    hashes = dict(zip(candidates, map_in_threads(_try_to_hash, candidates, "looking for test sets")))
    known_pixels = {value for known in exact for value in known.pictures.values()}
    unknown = {path: size for path, size in sizes.items() if hashes.get(path) not in known_pixels}
    # Sets that are known by their stems share classic pictures (lena, ...) with sets that are known by their pixels.
    found = [_find_by_pixels(known, hashes) or _find_by_names(known, sizes if known.stems else unknown)
             for known in catalogue]  # fmt: skip
    found = [one for one in found if one]
    taken = {path for one in found if one.status != "differs" for path in one.files.values()}
    return [one for one in found if one.status != "differs" or not taken & set(one.files.values())]


def list_missing(found: Sequence[FoundSet], catalogue: Sequence[KnownSet] | None = None) -> list[str]:
    """For each set of which no usable copy was found, a line: what is wrong, and where its authors publish it."""
    states = {one.name: one for one in found}
    lines = []
    for known in read_catalogue() if catalogue is None else catalogue:
        one = states.get(known.name)
        if one and one.is_usable:
            continue
        problem = "not found"
        if one:
            fault = "have other pixels than published" if one.status == "differs" else "are missing"
            folder = next(iter(one.files.values())).parent
            problem = f"{folder} is not it: {len(one.missing)} of {known.count} pictures {fault}"
        lines.append(f"{known.name}: {problem}. {known.count} pictures; published at {known.source} ({known.licence})")
    return lines


def _read_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:  # the header alone
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _try_to_hash(path: Path) -> str:
    try:
        return hash_picture(path)
    except (InputError, OSError):  # damaged: then its set is incomplete
        return ""


def _find_by_pixels(known: KnownSet, hashes: Mapping[Path, str]) -> FoundSet | None:
    stems = {value: stem for stem, value in known.pictures.items()}
    places = defaultdict(list)
    for path, value in hashes.items():
        if value in stems:
            places[stems[value]].append(path)
    if 2 * len(places) < known.count or not places:
        return None
    counts = Counter(path.parent for paths in places.values() for path in paths)

    def rank(path: Path) -> tuple:  # all from one folder, if there is one; from the one called so, if there are two
        return -counts[path.parent], not path.parent.as_posix().endswith(known.name), path

    files = {stem: min(places[stem], key=rank) for stem in known.pictures if stem in places}
    missing = [stem for stem in known.pictures if stem not in files]
    return FoundSet(known.name, "incomplete" if missing else "exact", files, missing)


def _find_by_names(known: KnownSet, sizes: Mapping[Path, tuple[int, int]]) -> FoundSet | None:
    """Of a set without hashes, a folder with its names and sizes; of one with hashes, one called so with its names."""
    folders = defaultdict(dict)  # folder -> number or stem -> file
    for path, size in sizes.items():
        match = re.fullmatch(known.pattern, path.stem) if known.pattern else None
        if match and known.has_size(size):
            folders[path.parent].setdefault(int(match[1]), path)
        elif path.stem in known.stems and known.has_size(size):
            folders[path.parent][path.stem] = path
        elif path.stem in known.pictures and f"/{path.parent.as_posix()}".lower().endswith(f"/{known.name}".lower()):
            folders[path.parent][path.stem] = path
    names = list(known.pictures) or list(known.stems) or list(range(1, known.count + 1))
    whole = [files for files in folders.values() if files.keys() <= set(names)]  # numbers beyond: something larger
    files = max(whole, key=len, default={})
    if 2 * len(files) < known.count:
        return None
    if known.pictures:
        return FoundSet(known.name, "differs", files, list(files))
    missing = [str(name) for name in names if name not in files]
    files = {files[name].stem: files[name] for name in names if name in files}
    return FoundSet(known.name, "incomplete" if missing else "by name", files, missing)


# --- laying out -------------------------------------------------------------------------------------------------------


def link_or_copy(found: FoundSet, output: str | Path = "datasets", *, link: bool = False) -> Path:
    """Makes ``output/<name>/`` of a set that was found: its files, byte for byte, under their published stems.

    A picture that is there already with the same pixels stays as it is.

    Args:
        found: a set that is ``exact`` or there ``by name``.
        output: where the set's folder goes.
        link: make symbolic links to the files in the place of copies.

    Returns:
        The set's folder.

    Raises:
        InputError: if the set is incomplete or differs, or if the folder holds something else; nothing is overwritten.
    """
    folder = Path(output, found.name)
    if not found.is_usable:
        raise InputError(f"{found.name}: {found.status}; {len(found.missing)} pictures are not as published.")
    there = [path for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    stems = Counter(path.stem for path in there)
    others = [path.name for path in there if stems[path.stem] > 1 or not _is_equal(path, found.files.get(path.stem))]
    if others:
        names = ", ".join(sorted(others)[:5])
        raise InputError(f"{folder}: holds something else than {found.name}: {names}. Move it away.")
    folder.mkdir(parents=True, exist_ok=True)
    for stem, path in found.files.items():
        target = folder / f"{stem}{path.suffix}"
        if stem in stems:
            continue
        if link:
            target.symlink_to(path.resolve())
        else:
            with whole_file(target) as temporary:
                shutil.copyfile(path, temporary)
    return folder


def _is_equal(one: Path, other: Path | None) -> bool:
    if other is None or not one.is_file():
        return False
    return one.samefile(other) or hash_picture(one) == hash_picture(other)
