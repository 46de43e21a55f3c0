"""Training batches made at once, where the network runs: crops, flips, rotations, noise levels and noise.

``degrade_on: device`` of ``GaussianDenoisingDataset``. All pictures are decoded once and stay in one tensor on the
device, so that nothing is read, decoded, sent or waited for while the network trains. What is drawn has the
distribution of the dataset's own samples; ``docs/performance.md`` says what it gains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hranet_arch import noise
from hranet_arch.images import to_float, to_tensor

if TYPE_CHECKING:
    from hranet_arch.datasets import GaussianDenoisingDataset, PictureStore
    from hranet_arch.pipeline import ResumableSampler


class PictureBank:
    """The pictures of a training set in one tensor on a device, of any sizes; cuts the crops of a batch at once.

    Args:
        pictures: ``(c, h, w)`` tensors with equal ``c``: uint8, or float in [0, 1].
        device: where they stay, and where crops are cut.
    """

    def __init__(self, pictures: Sequence[Tensor], device: torch.device) -> None:
        self.device = device
        self.channels = len(pictures[0])
        starts = np.cumsum([0] + [picture.numel() for picture in pictures[:-1]])
        self.starts, self.heights, self.widths = (
            torch.tensor(values, device=device)
            for values in (starts.tolist(), [p.shape[1] for p in pictures], [p.shape[2] for p in pictures])
        )
        self.pixels = torch.cat([picture.flatten() for picture in pictures]).to(device)

    def cut(self, indices: Tensor, top: Tensor, left: Tensor, symmetry: Tensor, size: int) -> Tensor:
        """Cuts a square from each named picture and turns it.

        Args:
            indices: ``(n,)``, which pictures.
            top, left: ``(n,)``, where in them.
            symmetry: ``(n,)``, 0 to 7: bit 0 swaps left and right, bit 1 top and bottom, then bit 2 rows and columns;
                BasicSR's ``augment`` has these three, in this order.
            size: side of the squares.

        Returns:
            float32 ``(n, c, size, size)`` in [0, 1].
        """
        indices, top, left, symmetry = (values[:, None, None] for values in (indices, top, left, symmetry))
        line = torch.arange(size, device=self.device)
        rows, columns = line[:, None], line[None, :]
        rows, columns = torch.where(symmetry >= 4, columns, rows), torch.where(symmetry >= 4, rows, columns)
        rows = torch.where(symmetry & 2 > 0, size - 1 - rows, rows)
        columns = torch.where(symmetry & 1 > 0, size - 1 - columns, columns)  # (n, size, size)
        heights, widths = self.heights[indices], self.widths[indices]
        places = self.starts[indices] + (top + rows) * widths + left + columns
        planes = torch.arange(self.channels, device=self.device)[:, None, None] * (heights * widths)[:, None]
        pixels = self.pixels[places[:, None] + planes]  # (n, c, size, size)
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def load_pictures(store: PictureStore) -> list[Tensor]:
    """Decodes a store's pictures: uint8 ``(c, h, w)`` where all of them are 8-bit, else float32 in [0, 1]."""
    arrays = [store.decode(key) for key in store.keys]
    if any(array.dtype != np.uint8 for array in arrays):
        arrays = [to_float(array, store.path(key)) for array, key in zip(arrays, store.keys)]
    return [to_tensor(array) for array in arrays]


def draw_batch(bank: PictureBank, indices: Tensor, opt: dict, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws a training batch as ``GaussianDenoisingDataset`` draws samples (claim 2).

    Args:
        bank: the pictures.
        indices: ``(n,)``, the picture of each sample.
        opt: the dataset's ``gt_size``, ``sigma``, ``use_hflip``, ``use_rot``, ``clip``, ``quantize``.
        generator: of the bank's device; whatever is random comes from it.

    Returns:
        ``lq``, ``gt``: ``(n, c, gt_size, gt_size)``; ``sigma``: ``(n,)`` in grey levels.
    """
    size, sigma = opt["gt_size"], opt["sigma"]
    draws = torch.rand(6, len(indices), generator=generator, device=bank.device, dtype=torch.float64)
    top = (draws[0] * (bank.heights[indices] - size + 1)).long()
    left = (draws[1] * (bank.widths[indices] - size + 1)).long()
    flips = (draws[2:5] < 0.5).long()
    symmetry = flips[0] * bool(opt.get("use_hflip", True)) + (flips[1] * 2 + flips[2] * 4) * bool(
        opt.get("use_rot", True)
    )
    gt = bank.cut(indices, top, left, symmetry, size)
    lowest, highest = sigma if isinstance(sigma, (list, tuple)) else (sigma, sigma)
    levels = (lowest + (highest - lowest) * draws[5]).float()
    lq = gt + torch.randn(gt.shape, generator=generator, device=bank.device) * (levels / 255)[:, None, None, None]
    if opt.get("clip"):
        lq = lq.clamp(0, 1)
    if opt.get("quantize"):
        lq = noise.quantize(lq)
    return {"lq": lq, "gt": gt, "sigma": levels}


class DeviceLoader:
    """Takes the place of a ``DataLoader``: yields batches that ``draw_batch`` makes.

    Batches are seeded by run, epoch, rank and place, as single samples are elsewhere: a resumed run draws those that
    one never stopped would have drawn (on one kind of device), and two ranks never draw alike.

    Args:
        dataset: in training phase; says what to draw.
        sampler: which pictures, in which order, and seeds.
        batch_size: samples a batch; what does not fill one at an epoch's end is left out.
        device: where batches are made and stay.
    """

    def __init__(
        self, dataset: GaussianDenoisingDataset, sampler: ResumableSampler, batch_size: int, device: torch.device
    ) -> None:
        self.dataset, self.sampler, self.batch_size = dataset, sampler, batch_size
        self.bank = PictureBank(load_pictures(dataset.store), device)
        self.generator = torch.Generator(device)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = self.draw_batches()
        return make_ahead(batches) if self.bank.device.type == "cuda" else batches

    def draw_batches(self) -> Iterator[dict[str, Tensor]]:
        """What is left of the epoch."""
        places = self.sampler.list_places()
        # All at once: sending each batch's own would wait for the device each time.
        indices = torch.tensor([index for _, index in places], dtype=torch.int64, device=self.bank.device)
        for start in range(0, len(places) - self.batch_size + 1, self.batch_size):
            self.generator.manual_seed(self.sampler.make_seed(places[start][0]))
            yield draw_batch(self.bank, indices[start : start + self.batch_size], self.dataset.opt, self.generator)


def make_ahead(batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yields each batch while a CUDA stream of its own makes the next, beside the step that Python then starts."""
    stream = torch.cuda.Stream()

    def make() -> tuple[dict[str, Tensor] | None, torch.cuda.Event]:
        # Behind all steps that have been started: the new batch may take the memory of theirs.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            return next(batches, None), stream.record_event()

    batch, made = make()
    while batch is not None:
        following = make()
        torch.cuda.current_stream().wait_event(made)
        yield batch
        batch, made = following
