"""Large pictures in pieces: pad, cut, run, put together, crop. Pictures are ``(n, c, h, w)`` tensors.

``restore`` is the way in: it runs a picture whole where it is small enough, else in tiles that give the whole
picture's result, with global attention too.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hranet_arch.memory import is_out_of_memory
from hranet_arch.symmetries import IDENTITY, Box, Symmetry

SMALLEST_TILE = 16  # below, a tile is nearly all halo, and halving it once more frees nothing

Run = Callable[[Tensor], Tensor]
Report = Callable[[float], None]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pads right and bottom to multiples of ``multiple``, by reflection where the picture is large enough for it."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode)


def run_padded(run: Run, x: Tensor, multiple: int) -> Tensor:
    """Runs a network that takes multiples of ``multiple`` pixels only, and crops its result."""
    padded = pad_to_multiple(x, multiple)
    output = run(padded)
    scale = output.shape[-2] // padded.shape[-2]
    return output[..., : x.shape[-2] * scale, : x.shape[-1] * scale]


@dataclass(frozen=True)
class Reach:
    """How far around a pixel its result depends on the picture: ``halo`` pixels, on a grid of ``multiple``."""

    halo: int
    multiple: int = 1

    @classmethod
    def of(cls, network: object, *, halo: int = 32, window: int = 1) -> Reach:
        """What a network says of itself; ``halo`` for one that does not say, ``window`` as for ``restore``."""
        own = getattr(network, "local_halo", None) or getattr(network, "halo", None)
        return cls(own or halo, math.lcm(getattr(network, "tile_multiple", 1), window))

    def fits(self, tile: int | None, height: int, width: int) -> bool:
        """Whether a picture is no larger than a tile with its halo."""
        return tile is None or height * width <= (tile + 2 * self.halo) ** 2


def find_window(network_g: Mapping[str, object]) -> int:
    """What pictures must be multiples of, by a network's arguments: SwinIR and its kin take whole windows."""
    window = network_g.get("window_size")
    return window if isinstance(window, int) and window > 0 else 1


def restore(
    network: nn.Module,
    x: Tensor,
    *,
    tile: int | None,
    run: Run | None = None,
    halo: int = 32,
    window: int = 1,
    symmetries: Sequence[Symmetry] = (IDENTITY,),
    output: Tensor | None = None,
    report: Report = lambda done: None,
) -> Tensor:
    """Runs a network on a picture, whole or in tiles; the result is the whole picture's.

    The network says how far a pixel's result reaches (``halo``), on which grid tiles start (``tile_multiple``), and
    which modules average over the whole picture (``global_attentions``): their averages are gathered tile by tile
    first, in a pass for each, and with them the rest is local (``local_halo``). Where memory runs out, tiles are
    halved, down to ``SMALLEST_TILE``.

    Args:
        network: its attributes are read, and its forward pass is run if ``run`` is None.
        x: the picture, or something else with a ``shape`` whose slices are tensors.
        tile: side of a tile's own area in pixels. A picture no larger than a tile with its halo is run whole; None:
            so is every picture.
        run: runs the network on a part of ``x``.
        halo: of a network that does not say; an approximation.
        window: the network takes multiples of this many pixels only.
        symmetries: the result is the mean over the picture turned and mirrored in these ways.
        output: where to write; made if None.
        report: called with the part of the work that is done, in [0, 1].

    Returns:
        ``(n, c', h * scale, w * scale)``: ``output``.
    """
    padded = partial(run_padded, run or network, multiple=window)
    attentions = list(getattr(network, "global_attentions", ()))
    reach = Reach.of(network, halo=halo, window=window)
    height, width = x.shape[-2:]
    job = _Job(x, tile or max(height, width), reach, symmetries, output, report)
    if not attentions:
        return job.run([padded] * len(symmetries), is_whole=reach.fits(tile, height, width))
    if reach.fits(tile, height, width):
        with contextlib.suppress(_TooLarge):
            return job.run([padded] * len(symmetries), is_whole=True, is_divisible=False)
    return _restore_globally(job, attentions, padded)


def run_tiled(network: Run, x: Tensor, *, tile: int, halo: int, multiple: int = 1) -> Tensor:
    """Runs a network tile by tile; each tile sees at least ``halo`` more pixels on every side that the picture has.

    Equal to ``network(x)`` where the network is local, ``halo`` covers its reach, and ``multiple`` is its grid's: a
    tile with its halo starts and ends there.

    Args:
        network: maps ``(n, c, h, w)`` to ``(n, c', h * scale, w * scale)`` with one integer scale.
        x: the picture.
        tile: side of a tile's own area in pixels.
        halo: in pixels.
        multiple: in pixels.
    """
    return _Job(x, tile, Reach(halo, multiple)).run([network])


# --- tiles ------------------------------------------------------------------------------------------------------------


class _TooLarge(RuntimeError):
    """Memory ran out on a picture that may not be divided."""


@dataclass
class _Job:
    """A picture, and how to go through it."""

    x: Tensor
    tile: int
    reach: Reach
    symmetries: Sequence[Symmetry] = (IDENTITY,)
    output: Tensor | None = None
    report: Report = lambda done: None

    def run(self, runs: Sequence[Run], *, is_whole: bool = False, is_divisible: bool = True) -> Tensor:
        """Writes the mean of the symmetries' results into ``output``; ``runs`` has one way to run for each."""
        height, width = self.x.shape[-2:]

        def write(box: Box) -> None:
            result, scale = self._average(runs, box)
            if self.output is None:
                self.output = result.new_empty(*result.shape[:2], height * scale, width * scale)
            self.output[box.slices(scale)] = result

        self.for_each_box(write, is_whole=is_whole, is_divisible=is_divisible)
        return self.output

    def for_each_box(self, work: Callable[[Box], None], *, is_whole: bool = False, is_divisible: bool = True) -> None:
        """Calls ``work`` for the picture or its tiles; where memory runs out, divides what is left more finely."""
        height, width = self.x.shape[-2:]
        whole = Box(0, height, 0, width)
        boxes = deque([whole] if is_whole else whole.divide(self.tile))
        done = 0
        while boxes:
            box = boxes.popleft()
            try:
                work(box)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not is_divisible:
                    raise _TooLarge from error
                self.tile = self._halve(box, error)
            else:
                done += (box.bottom - box.top) * (box.right - box.left)
                self.report(done / (height * width))
                continue
            _release_memory()  # here: inside of `except` the error's traceback still holds the tensors
            boxes = deque(part for whole in (box, *boxes) for part in whole.divide(self.tile))

    def _halve(self, box: Box, error: Exception) -> int:
        side = min(self.tile, max(box.bottom - box.top, box.right - box.left))
        if side <= SMALLEST_TILE:
            raise error
        return max(side // 2, SMALLEST_TILE)

    def _average(self, runs: Sequence[Run], box: Box) -> tuple[Tensor, int]:
        total = None
        for symmetry, run in zip(self.symmetries, runs, strict=True):
            result, scale = self.run_box(run, box, symmetry)
            total = result if total is None else total + result
        return (total / len(runs) if len(runs) > 1 else total), scale

    def run_box(self, run: Run, box: Box, symmetry: Symmetry) -> tuple[Tensor, int]:
        """The result for one area, from the turned picture; and its scale."""
        height, width = self.x.shape[-2:]
        core = symmetry.turn(box, height, width)
        outer = core.enlarge(self.reach.halo, self.reach.multiple, *symmetry.turn_size(height, width))
        part = symmetry.apply(self.x[symmetry.turn_back(outer, height, width).slices()])
        result = run(part)
        inner = Box(core.top - outer.top, core.bottom - outer.top, core.left - outer.left, core.right - outer.left)
        scale = result.shape[-2] // part.shape[-2]
        return symmetry.undo(result[inner.slices(scale)]), scale


def _release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- global attention -------------------------------------------------------------------------------------------------


def _restore_globally(job: _Job, attentions: Sequence[nn.Module], run: Run) -> Tensor:
    """In tiles, with the attentions' averages over the whole picture gathered before, one after the other."""
    passes = len(job.symmetries) * len(attentions) + 1
    report, begun = job.report, 0
    runs = []
    for symmetry in job.symmetries:
        means: list[Tensor] = []
        for attention in attentions:
            job.report = partial(_report_pass, report, begun, passes)
            means.append(_gather_mean(job, attention, partial(_run_given, attentions, tuple(means), run), symmetry))
            begun += 1
        runs.append(partial(_run_given, attentions, means, run))
    job.report = partial(_report_pass, report, begun, passes)
    return job.run(runs)


def _report_pass(report: Report, begun: int, passes: int, done: float) -> None:
    report((begun + done) / passes)


def _gather_mean(job: _Job, attention: nn.Module, run: Run, symmetry: Symmetry) -> Tensor:
    """The mean over the whole picture of what comes into an attention: float64 ``(n, c, 1, 1)``."""
    total: Tensor | float = 0.0

    def add(box: Box) -> None:
        nonlocal total
        features, _ = job.run_box(partial(_run_until, attention, run), box, symmetry)
        total = total + features.sum((-2, -1), keepdim=True, dtype=torch.float64)

    job.for_each_box(add)
    height, width = job.x.shape[-2:]
    return total / (height * width)


class _Reached(Exception):
    """Ends a forward pass at the module that is asked about."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _run_until(module: nn.Module, run: Run, part: Tensor) -> Tensor:
    """What comes into a module; the rest of the network is not run."""

    def stop(module: nn.Module, inputs: tuple[Tensor]) -> None:
        raise _Reached(inputs[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        run(part)
    except _Reached as reached:
        return reached.features
    finally:
        handle.remove()
    raise RuntimeError(f"{type(module).__name__} is not part of the network's forward pass.")


def _run_given(attentions: Sequence[nn.Module], means: Sequence[Tensor], run: Run, part: Tensor) -> Tensor:
    """Runs a network whose first attentions use averages of the whole picture in the place of the part's."""
    with contextlib.ExitStack() as stack:
        for attention, mean in zip(attentions, means):
            stack.enter_context(attention.given(mean))
        return run(part)
