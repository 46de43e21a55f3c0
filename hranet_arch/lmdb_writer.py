"""Writing LMDBs in BasicSR's layout: under a temporary name, then all at once under their own.

Whoever writes holds the lock ``sibling(output, "lock")``: what lies under the other temporary names is then nobody's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import cv2
import lmdb
import numpy as np

FILES = {"data.mdb", "lock.mdb", "meta_info.txt", "manifest.json"}
_FIRST_MAP_SIZE = 16 * 2**20  # doubled when full: Windows allocates the whole map on disk, so a huge one is no way out
_BATCH = 16 * 2**20  # bytes of pictures that wait in memory for one LMDB transaction
Entry = tuple[str, bytes, tuple[int, int, int]]  # key, PNG, (h, w, c)


def sibling(output: Path, role: str) -> Path:
    """The hidden name beside an output for its lock, its temporary folder, or what it replaces."""
    return output.with_name(f".{output.name}.{role}")


def encode(key: str, image: np.ndarray) -> Entry:
    """A picture of 8 or 16 bits as a PNG, little compressed: it is read far more often than it is stored."""
    _, png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return key, png.tobytes(), (*image.shape[:2], 1 if image.ndim == 2 else image.shape[2])


class LMDBWriter:
    """An LMDB folder under its temporary name."""

    def __init__(self, output: Path) -> None:
        self.folder = sibling(output, "tmp")
        for rest in (self.folder, sibling(output, "old")):  # of a run that was killed: the lock is ours
            shutil.rmtree(rest, ignore_errors=True)
        self.folder.mkdir()
        self.env = lmdb.open(str(self.folder), map_size=_FIRST_MAP_SIZE, sync=False)  # synced once, in finish
        self.batch, self.batch_bytes, self.lines = [], 0, []

    def put(self, entries: list[Entry]) -> None:
        for key, png, (height, width, channels) in entries:
            self.batch.append((key.encode("ascii"), png))
            self.batch_bytes += len(png)
            self.lines.append(f"{key}.png ({height},{width},{channels}) 1\n")
        if self.batch_bytes >= _BATCH:
            self._commit()

    def finish(self, manifest: dict) -> None:
        self._commit()
        self.env.sync(True)
        self.close()
        manifest = {"data_bytes": os.path.getsize(self.folder / "data.mdb"), **manifest}
        texts = {"meta_info.txt": "".join(self.lines), "manifest.json": json.dumps(manifest, indent=1) + "\n"}
        for name, text in texts.items():
            with open(self.folder / name, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        self.env.close()

    def _commit(self) -> None:
        while True:
            try:
                with self.env.begin(write=True) as transaction:
                    for key, png in self.batch:
                        transaction.put(key, png)
                break
            except lmdb.MapFullError:  # the transaction has been undone
                self.env.set_mapsize(2 * self.env.info()["map_size"])
        self.batch, self.batch_bytes = [], 0


def recover(outputs: list[Path]) -> None:
    """Puts back what a run was about to replace when it was killed between the renames of ``publish``: all or none.

    Behind them nothing is put back, and what was replaced is deleted.
    """
    for output in outputs:
        shutil.rmtree(sibling(output, "doomed"), ignore_errors=True)
    replaced = [output for output in outputs if sibling(output, "old").exists()]
    is_whole = not any(sibling(output, "tmp").exists() for output in outputs)
    if is_whole and all(output.exists() for output in replaced):  # it was killed behind them
        for output in replaced:
            _discard(sibling(output, "old"))
        return
    for output in replaced:
        shutil.rmtree(output, ignore_errors=True)
        os.replace(sibling(output, "old"), output)


def publish(outputs: list[Path]) -> None:
    """Gives all outputs their final names, or none; what was there before is deleted."""
    moved = []
    try:
        for output in outputs:
            for source, target in ((output, sibling(output, "old")), (sibling(output, "tmp"), output)):
                if source.exists():
                    os.replace(source, target)
                    moved.append((source, target))
    except OSError:
        for source, target in reversed(moved):
            os.replace(target, source)
        raise
    for output in outputs:
        _discard(sibling(output, "old"))


def _discard(folder: Path) -> None:
    """Deletes a folder, under another name: half deleted, it must not be put back."""
    doomed = folder.with_suffix(".doomed")  # as in ``recover``
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
