"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the name of a hidden file beside ``path`` to write to, and renames it to ``path`` at the end.

    After an error nothing is left; after a power failure or SIGKILL the hidden file is, and ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")  # a name may have 255 bytes, and no more
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it has been renamed, or was not even made
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
