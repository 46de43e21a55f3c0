"""A training step as one CUDA graph: recorded once, then started at once, where Python would start each kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

WARM_UP = 3  # steps before it is recorded: networks are compiled, kernels chosen, optimisers' averages made


class StepGraph:
    """Runs a training step, and from the fourth time on its recording.

    What Python does in a step it does no more then. What changes from step to step must lie in tensors that stay where
    they are: the batch and the optimiser's rates are copied to where those of the recorded step lie.

    Args:
        step: runs a step on a batch, by name, and returns its losses; never waits for the GPU.
        optimizer: whose step is part of it; one that reads on the GPU whether it is lost (``found_inf``).
        warn: takes a sentence, where a step cannot be recorded; then all are run as the first ones.
    """

    def __init__(
        self,
        step: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        optimizer: Optimizer,
        warn: Callable[[str], None],
    ) -> None:
        self.step, self.optimizer, self.warn = step, optimizer, warn
        self.stream = torch.cuda.Stream()
        self.runs, self.is_possible = 0, True
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step; returns the losses, which may still be under way."""
        self.runs += 1
        if self.runs <= WARM_UP or not self.is_possible:
            return dict(self._run_beside(batch))
        if self.graph is None and not self._record(batch):
            return dict(self._run_beside(batch))
        if {name: value.shape for name, value in batch.items()} != self.shapes:
            return dict(self._run_beside(batch))
        for name, value in batch.items():
            self.batch[name].copy_(value, non_blocking=True)
        for rate, group in zip(self.rates, self.optimizer.param_groups):
            rate.fill_(group["lr"])
        self.graph.replay()
        return {name: value.clone() for name, value in self.losses.items()}  # the next step writes over them

    def _run_beside(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """On the stream of the recording, where autograd's nodes have to be from the beginning."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            losses = self.step(batch)
        current.wait_stream(self.stream)
        return losses

    def _record(self, batch: Mapping[str, Tensor]) -> bool:
        self.batch = {name: value.clone() for name, value in batch.items()}
        self.shapes = {name: value.shape for name, value in batch.items()}
        device = next(iter(batch.values())).device
        self.rates = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads, that of a loader which pins memory, go on as they are.
            recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
            with self._rates_on_device(), recording:
                self.losses = self.step(self.batch)
        except RuntimeError as error:  # something that is not ours waits for the GPU, as a loss that calls item()
            self.is_possible = False
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.warn(f"compile: this step cannot be recorded as a CUDA graph; it will be slower ({reason}).")
            return False
        finally:
            torch.cuda.set_stream(current)
        self.graph = graph
        return True

    @contextlib.contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The schedules set plain numbers, which the recording would keep for ever."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self.rates):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True  # torch's own optimisers ask for it
        try:
            yield
        finally:
            for group, values in zip(groups, before):
                group.update(values)
