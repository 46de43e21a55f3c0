"""What has been measured, a line each, safe from the moment it is written: how a stopped comparison goes on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """The values by key; each process adds to a file of its own, and all are read.

    Keys are hashes of everything a value depends on: a line is either right for what is asked or not found.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{rank}.jsonl"
        self.values: dict[str, Any] = {}
        # Cut off in the middle of a line, when the run was killed?
        self.is_cut = self.path.exists() and not (self.path.read_bytes() or b"\n").endswith(b"\n")
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                try:
                    key, value = json.loads(line)
                    self.values[key] = value
                except (ValueError, TypeError):  # cut off, or damaged
                    continue

    def write(self, key: str, value: Any) -> Any:
        """Adds a value; returns it as it will be read again."""
        text = json.dumps([key, value])
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(("\n" if self.is_cut else "") + text + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.is_cut = False
        self.values[key] = json.loads(text)[1]
        return self.values[key]


def hash_modules(folder: Path) -> str:
    """SHA-256 over a package's modules: the same after a commit that changes none, another after an edit of one."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()} {make_key(path.read_text('utf-8'))}\n".encode())
    return digest.hexdigest()


def make_key(*parts: Any) -> str:
    """SHA-256 over the parts, as JSON."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
