"""The two errors this package raises on purpose. The command line prints their message and no traceback."""


class InputError(ValueError):
    """What the user gave cannot be used: an option, a file, a picture. Says what, what is allowed, what to do.

    The command line ends with exit status 2.
    """


class TrainingError(RuntimeError):
    """A run that began well cannot go on: losses that are not finite, a disk that is full.

    The command line ends with exit status 1; checkpoints already written stay.
    """


class Interrupted(RuntimeError):
    """A run was asked to stop (Ctrl-C, SIGTERM) and has saved what it had.

    The command line ends with exit status 130.
    """
