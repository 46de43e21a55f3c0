"""A training step as one CUDA graph: recorded once, then started at once, where Python would start each kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from hranet_arch.errors import TrainingError, first_line

WARM_UP = 3  # steps before it is recorded: networks are compiled, kernels chosen, optimisers' averages made


class StepGraph:
    """Runs a training step, and after ``WARM_UP`` batches of one size its recording.

    What Python does in a step it does no more then. What changes from step to step must lie in tensors that stay where
    they are: the batch and the optimiser's rates are copied to where those of the recorded step lie.

    Args:
        step: runs a step on a batch, by name, and returns its losses; never waits for the GPU.
        optimizer: whose step is part of it; one that reads on the GPU whether it is lost (``found_inf``).
    """

    def __init__(self, step: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], optimizer: Optimizer) -> None:
        self.step, self.optimizer = step, optimizer
        self.stream = torch.cuda.Stream()
        self.shapes: dict[str, torch.Size] = {}
        self.runs = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step; returns the losses, which may still be under way.

        Raises:
            TrainingError: for a step that cannot be recorded. Its random numbers and memory are not to be trusted then.
        """
        shapes = {name: value.shape for name, value in batch.items()}
        if self.graph is None and shapes != self.shapes:
            self.shapes, self.runs = shapes, 0
        self.runs += 1
        if self.graph is None and self.runs > WARM_UP:
            self._record(batch)
        if self.graph is None or shapes != self.shapes:
            return self._run_beside(batch)
        for name, value in batch.items():
            self.batch[name].copy_(value, non_blocking=True)
        for rate, group in zip(self.rates, self.optimizer.param_groups):
            rate.fill_(group["lr"])
        self.graph.replay()
        return {name: value.clone() for name, value in self.losses.items()}  # the next step writes over them

    def _run_beside(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the stream of the recording, where autograd's nodes have to be from the beginning."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            losses = self.step(batch)
        current.wait_stream(self.stream)
        return dict(losses)

    def _record(self, batch: Mapping[str, Tensor]) -> None:
        self.batch = {name: value.clone() for name, value in batch.items()}
        device = next(iter(batch.values())).device
        self.rates = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, that of a loader which pins memory, go on as they are.
            recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
            with self._rates_on_device(), recording:
                self.losses = self.step(self.batch)
        except RuntimeError as error:  # a loss that calls item(), say
            while error.__context__ is not None:  # the end of the recording fails, too
                error = error.__context__
            raise TrainingError(
                "train.compile: true records the training step as a CUDA graph, which this one cannot be: "
                f"{first_line(error)}. "
                "Write compile: default, which compiles the network alone."
            ) from error
        self.graph = graph

    @contextlib.contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The schedules set plain numbers, which the recording would keep for ever."""
        groups = self.optimizer.param_groups
        before = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in groups]
        for group, rate in zip(groups, self.rates):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True  # torch's own optimisers ask for it
        try:
            yield
        finally:
            for group, values in zip(groups, before):
                group.update(values)
