"""When a step is recorded and what it is given then; what a real GPU records, in test_cuda.py."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from hranet_arch.step_graph import StepGraph


class Recorder:
    """Stands for ``torch.cuda``: a graph runs the step that was recorded, on the tensors that it was recorded on."""

    def __init__(self, monkeypatch):
        self.is_recording, self.replays = False, 0
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Stream": lambda: stream, "current_stream": lambda: stream, "set_stream": lambda stream: None,
            "stream": lambda stream: contextlib.nullcontext(), "CUDAGraph": lambda: self, "graph": self.record,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    @contextlib.contextmanager
    def record(self, graph, **options):
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = False

    def replay(self):
        self.replays += 1
        self.recorded()


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


def make(recorder, warnings):
    """A step whose loss is the batch's value times the rate."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(()))], lr=1.0)

    def step(batch):
        rate = optimizer.param_groups[0]["lr"]
        loss = batch["lq"] * rate
        if recorder.is_recording:
            assert optimizer.param_groups[0]["capturable"]
            recorder.recorded = lambda: torch.mul(batch["lq"], rate, out=loss)
        return {"l_pix": loss}

    return StepGraph(step, optimizer, warnings.append), optimizer


def test_from_the_fourth_on_steps_are_replayed_with_their_own_batch_and_rate(recorder):
    graph, optimizer = make(recorder, [])
    losses = []
    for i in range(1, 7):
        optimizer.param_groups[0]["lr"] = 10.0**i
        losses.append(graph.run({"lq": torch.tensor([float(i)])})["l_pix"])
    assert recorder.replays == 3
    assert [loss.item() for loss in losses] == [i * 10.0**i for i in range(1, 7)]
    assert optimizer.param_groups[0]["lr"] == 1e6 and not optimizer.param_groups[0]["capturable"]


def test_a_batch_of_another_size_is_run_by_itself(recorder):
    graph, _ = make(recorder, [])
    for _ in range(4):
        graph.run({"lq": torch.ones(2)})
    assert graph.run({"lq": torch.tensor([3.0])})["l_pix"].tolist() == [3.0]
    assert graph.run({"lq": torch.tensor([3.0, 4.0])})["l_pix"].tolist() == [3.0, 4.0]
    assert recorder.replays == 2


def test_what_cannot_be_recorded_is_run_and_said_once(recorder):
    warnings = []
    graph, optimizer = make(recorder, warnings)
    inner = graph.step

    def step(batch):
        if recorder.is_recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        return inner(batch)

    graph.step = step
    losses = [graph.run({"lq": torch.tensor([float(i)])})["l_pix"].item() for i in range(6)]
    assert losses == [0, 1, 2, 3, 4, 5] and recorder.replays == 0
    assert len(warnings) == 1 and "not permitted" in warnings[0]
    assert optimizer.param_groups[0]["lr"] == 1.0
