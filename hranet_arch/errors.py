"""The errors that this package raises on purpose. The command line prints their message and no traceback."""

from typing import NoReturn


class InputError(ValueError):
    """What the user gave cannot be used: an option, a file, a picture. Says what, what is allowed, what to do.

    The command line ends with exit status 2.
    """


class TrainingError(RuntimeError):
    """A run that began well cannot go on: losses that are not finite, a disk that is full.

    The command line ends with exit status 1; checkpoints already written stay.
    """


class Interrupted(RuntimeError):
    """A run was asked to stop (Ctrl-C, SIGTERM) and has saved what it had, if it was given the time.

    The command line ends with exit status 130.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def refuse_folder(error: OSError) -> NoReturn:
    """``onerror`` of ``os.walk``, which passes over what it cannot list."""
    raise InputError(f"{error.filename}: cannot be listed: {error.strerror}.") from error
