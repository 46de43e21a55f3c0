"""Reading LMDBs: one shared environment a path, a whole file or a clear error."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import lmdb

from hranet_arch.errors import InputError


def open_lmdb(path: str | os.PathLike) -> lmdb.Environment:
    """Opens an LMDB folder for reading; one environment a real path and process, inherited by forked workers.

    Raises:
        InputError: if the folder is missing, is no LMDB, or its file is shorter than it says (reading on would kill
            the process).
    """
    return _open(os.path.realpath(path))


@functools.cache
def _open(name: str) -> lmdb.Environment:
    data = Path(name) / "data.mdb"
    if not data.is_file():
        raise InputError(f"{name}: no LMDB is there (no data.mdb). Make it with: basicsr prepare lmdb")
    try:
        environment = lmdb.open(name, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise InputError(
            f"{name}: not an LMDB that can be read ({error}). Make it anew: basicsr prepare lmdb"
        ) from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if data.stat().st_size < needed:
        environment.close()
        raise InputError(
            f"{name}: data.mdb is truncated ({data.stat().st_size} bytes, {needed} expected). "
            "Copy it again or make it anew: basicsr prepare lmdb"
        )
    return environment


def read_value(environment: lmdb.Environment, key: str, name: str) -> bytes:
    """Reads the bytes stored under a key; ``name`` is the LMDB's in the error for a key that is not there.

    Raises:
        InputError: if the key is not there, or the pages that lead to it are damaged.
    """
    try:
        with environment.begin() as transaction:
            value = transaction.get(key.encode())
    except lmdb.Error as error:
        raise InputError(f"{name}: reading '{key}' failed ({error}). Copy the LMDB again or make it anew.") from error
    if value is None:
        raise InputError(f"{name}: meta_info.txt names '{key}', but the LMDB has no such key. Make the LMDB anew.")
    return value


class LmdbBackend:
    """BasicSR's LMDB backend (``FileClient('lmdb', db_paths=..., client_keys=...)``) over shared environments.

    It can be pickled: a spawned worker opens its own.
    """

    def __init__(self, db_paths, client_keys="default", readonly=True, lock=False, readahead=False, **kwargs) -> None:
        keys = [client_keys] if isinstance(client_keys, str) else client_keys
        paths = [db_paths] if isinstance(db_paths, (str, os.PathLike)) else db_paths
        self.db_paths = dict(zip(keys, map(str, paths), strict=True))
        for path in self.db_paths.values():
            open_lmdb(path)

    def get(self, filepath: str, client_key: str) -> bytes:
        path = self.db_paths[client_key]
        return read_value(open_lmdb(path), str(filepath), path)


def read_meta_info(name: str | os.PathLike) -> dict[str, tuple[int, int]]:
    """Height and width by key, from BasicSR's list of an LMDB, ``meta_info.txt``: lines ``key.png (h,w,c) level``.

    Raises:
        InputError: if it is missing, or has a line of another kind.
    """
    path = Path(name) / "meta_info.txt"
    if not path.is_file():
        raise InputError(f"{path}: missing; BasicSR's LMDBs list their pictures there. Make the LMDB anew.")
    sizes = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"([^.]+)\.\w+ \((\d+),(\d+),\d+\) \d+", line.strip())
        if match:
            sizes[match[1]] = (int(match[2]), int(match[3]))
        elif line.strip():
            raise InputError(f"{path}: cannot understand the line {line!r}; expected e.g. 'baboon.png (120,125,3) 1'.")
    return sizes
