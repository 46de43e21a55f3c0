"""The C library's allocator, told to keep the memory that networks give back."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# mallopt's parameters, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1
LARGEST_KEPT = 3 * 2**29  # bytes of the whole process
_is_kept = False


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process, for the rest of its life; on Linux with glibc, elsewhere nothing is done.

    By default glibc gives blocks of more than 32 MiB back to the system when they are freed, and the system hands out
    each page anew, zeroed, when it is next touched: a large part of the time of a large picture on the CPU
    (``docs/performance.md``). The price: memory once needed stays with the process until it ends. For programs that
    own their process, as the ``basicsr`` command does. Does nothing where the environment sets ``MALLOC_...``.

    Returns:
        Whether it was done.
    """
    global _is_kept
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    _is_kept = all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _LARGEST)])
    return _is_kept


def give_back_beyond(size: int = LARGEST_KEPT) -> None:
    """Gives freed memory to the system where it is kept and the process has more than ``size`` bytes.

    Called before each tile: blocks of many sizes leave holes, by which the process grows from tile to tile.
    """
    if _is_kept and int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > size:
        ctypes.CDLL(None).malloc_trim(0)
