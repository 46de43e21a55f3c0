"""Checkpoint files: written whole or not at all, read without running code, found again for a resume."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hranet_arch.errors import InputError, TrainingError, first_line
from hranet_arch.files import whole_file

logger = logging.getLogger(__name__)

PARAM_KEYS = ("params_ema", "params")


def save_atomically(content: object, path: str | os.PathLike) -> None:
    """``torch.save``; ``path`` is the old file or the new one, whole.

    Raises:
        TrainingError: if it cannot be written (disk full, no permission).
    """
    path = Path(path)
    try:
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
        raise TrainingError(
            f"Cannot write the checkpoint {path}: {error}. Earlier checkpoints are intact. "
            "Free some space or mend the permissions, then go on with --auto_resume."
        ) from error


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Reads a ``.pth``, ``.state`` or ``.safetensors`` file onto the CPU; runs no code from it (``weights_only``).

    Raises:
        InputError: if the file is missing, truncated, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint.")
    if path.suffix.lower() == ".onnx":
        raise InputError(f"{path}: an ONNX model; give the weights that it was made of.")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'torch.load' received a zip file")  # TorchScript: refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes end in struct.error, IndexError, AssertionError, SafetensorError, ...
        reason = first_line(error)
        if "TorchScript" in reason:
            raise InputError(f"{path}: a TorchScript file holds code; give the weights that it is made of.") from error
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to run the file's code
            reason = "holds something else than tensors and plain values."
        elif isinstance(error, LookupError):  # of an unpickler that met the bytes of something else
            reason = "damaged, or no weight file."
        raise InputError(f"{path}: not a whole checkpoint ({path.stat().st_size} bytes): {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; a checkpoint is a dictionary of tensors.")
    return content


def select_params(checkpoint: dict, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Finds the network's tensors: under ``key``, else ``params_ema``, ``params``, else the dictionary itself.

    A leading ``module.`` (DataParallel) is removed from the names.

    Returns:
        The tensors by name, and the key they were found under (``'bare'`` for the dictionary itself).

    Raises:
        InputError: if there are none, or some are not finite. (-inf is in the masks of some networks.)
    """
    found = next((k for k in (key, *PARAM_KEYS) if k is not None and isinstance(checkpoint.get(k), dict)), None)
    params = checkpoint if found is None else checkpoint[found]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in params.items()):
        raise InputError(f"The checkpoint holds no network; its keys are: {', '.join(map(str, checkpoint))}.")
    broken = [name for name, value in params.items() if value.is_floating_point() and not _is_below_infinity(value)]
    if broken:
        raise InputError(
            f"The checkpoint's network has values that are not finite, in {len(broken)} of {len(params)} tensors; the "
            f"first: {broken[0]}. Its training went astray, or the file is damaged: take an earlier one."
        )
    return {name.removeprefix("module."): value for name, value in params.items()}, found or "bare"


def _is_below_infinity(value: Tensor) -> bool:
    return bool((value.double() < math.inf).all())  # PyTorch compares no floats of 8 bits


def require_fit(network: nn.Module, params: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Raises InputError where a checkpoint's tensors are not the network's, no more and no fewer."""
    own = network.state_dict()
    problems = [f"{name} is missing" for name in own if name not in params]
    problems += [f"{name} is not the network's" for name in params if name not in own]
    problems += [_compare(name, params[name], own[name]) for name in own if name in params]
    problems = [problem for problem in problems if problem]
    if problems:
        raise InputError(
            f"{path} does not fit {type(network).__name__}, in {len(problems)} tensors; the first: {problems[0]}. "
            "Give the network the arguments that it was trained with."
        )


def _compare(name: str, given: Tensor, own: Tensor) -> str:
    return "" if given.shape == own.shape else f"{name} is {tuple(given.shape)}, the network's {tuple(own.shape)}"


def hash_params(params: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values: the same for a ``.pth`` file and a ``.safetensors`` made of it."""
    digest = hashlib.sha256()
    for name, value in sorted(params.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def find_resumable(states: str | os.PathLike, models: str | os.PathLike, networks: list[str]) -> Path | None:
    """Finds the newest training state that loads and whose networks (``net_{name}_{iter}.pth``) load too.

    Files that do not load are named in a warning and passed over.

    Returns:
        The path of the ``.state`` file, or None where the folder holds none.

    Raises:
        InputError: if there are states, but none of them can be used: starting anew would move the run aside.
    """
    paths = [path for path in Path(states).glob("*.state") if path.stem.isdecimal()]
    for path in sorted(paths, key=lambda path: int(path.stem), reverse=True):
        try:
            load_checkpoint(path)
            for name in networks:
                load_checkpoint(Path(models) / f"net_{name}_{path.stem}.pth")
            return path
        except InputError as error:
            logger.warning("Cannot resume from %s: %s", path.name, error)
    if paths:
        raise InputError(f"{states}: none of the {len(paths)} training states can be resumed (see above).")
    return None
