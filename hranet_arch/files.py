"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from hranet_arch.errors import InputError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives the name of a hidden file beside ``path`` to write to, and renames it to ``path`` at the end.

    After an error nothing is left; after a power failure or SIGKILL the hidden file is, and ``path`` is as it was. An
    error in writing is one about ``path``.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")  # a name may have 255 bytes, and no more
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        is_numpys = "written" in str(error)  # which says only that it could not write all
        if error.filename not in (None, str(temporary)) or not (error.errno or is_numpys):  # of another file or kind
            raise
        number = error.errno or errno.ENOSPC
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # it has been renamed, or was not even made
            temporary.unlink()


def require_writable(folder: Path) -> None:
    """Raises InputError where a folder, which may not be there yet, could not be written to: before the work."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fault = "may not be written to" if there.is_dir() else "is a file"
        raise InputError(f"{folder}: cannot be written to: {there} {fault}. Mend that, or give another folder.")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
