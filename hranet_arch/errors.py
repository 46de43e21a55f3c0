"""The errors that this package raises on purpose, and the signals that are behind one of them.

The command line prints their message and no traceback.
"""

import signal
from typing import NoReturn


class InputError(ValueError):
    """What the user gave cannot be used: an option, a file, a picture. Says what, what is allowed, what to do.

    The command line ends with exit status 2.
    """


class TrainingError(RuntimeError):
    """A run that began well cannot go on: losses that are not finite, a disk that is full.

    The command line ends with exit status 1; checkpoints already written stay.
    """


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop (Ctrl-C, SIGTERM, a closed terminal) and has saved what it had, if it was given the time.

    No ``Exception``: what guards a metric or a file must not take it for a fault of these. The command line ends with
    exit status 130.
    """


def list_stops() -> list[signal.Signals]:
    """The signals beside Ctrl-C's by which a process is asked to stop: SIGTERM, and SIGHUP when its terminal closes.

    The second not where it is ignored, as under nohup, nor on Windows, which has none.
    """
    hangup = getattr(signal, "SIGHUP", None)
    is_heard = hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
    return [signal.SIGTERM, hangup] if is_heard else [signal.SIGTERM]


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def refuse_folder(error: OSError) -> NoReturn:
    """``onerror`` of ``os.walk``, which passes over what it cannot list."""
    raise InputError(f"{error.filename}: cannot be listed: {error.strerror}.") from error
