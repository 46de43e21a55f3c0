"""When a step is recorded and what it is given then; what a real GPU records, in test_cuda.py."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from hranet_arch.errors import TrainingError
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
        except RuntimeError:
            raise RuntimeError("the end of a recording that failed fails, too") from None
        finally:
            self.is_recording = False

    def replay(self):
        self.replays += 1
        self.recorded()


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


def make(recorder):
    """A step whose loss is the batch's value times the rate."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(()))], lr=1.0)

    def step(batch):
        rate = optimizer.param_groups[0]["lr"]
        loss = batch["lq"] * rate
        if recorder.is_recording:
            assert optimizer.param_groups[0]["capturable"]
            recorder.recorded = lambda: torch.mul(batch["lq"], rate, out=loss)
        return {"l_pix": loss}

    return StepGraph(step, optimizer), optimizer


def test_from_the_fourth_on_steps_are_replayed_with_their_own_batch_and_rate(recorder):
    graph, optimizer = make(recorder)
    losses = []
    for i in range(1, 7):
        optimizer.param_groups[0]["lr"] = 10.0**i
        losses.append(graph.run({"lq": torch.tensor([float(i)])})["l_pix"])
    assert recorder.replays == 3
    assert [loss.item() for loss in losses] == [i * 10.0**i for i in range(1, 7)]
    assert optimizer.param_groups[0]["lr"] == 1e6 and not optimizer.param_groups[0]["capturable"]


def test_a_batch_of_another_size_is_run_by_itself(recorder):
    graph, _ = make(recorder)
    for _ in range(4):
        graph.run({"lq": torch.ones(2)})
    assert graph.run({"lq": torch.tensor([3.0])})["l_pix"].tolist() == [3.0]
    assert graph.run({"lq": torch.tensor([3.0, 4.0])})["l_pix"].tolist() == [3.0, 4.0]
    assert recorder.replays == 2


def test_only_what_has_been_run_before_is_recorded(recorder):
    """Kernels for another size would be chosen while recording."""
    graph, _ = make(recorder)
    for size in (2, 2, 2, 3, 3, 3):
        graph.run({"lq": torch.ones(size)})
    assert graph.graph is None
    graph.run({"lq": torch.ones(3)})
    assert graph.graph is not None and recorder.replays == 1


def test_what_cannot_be_recorded_ends_the_run_and_says_why(recorder):
    graph, optimizer = make(recorder)
    inner = graph.step

    def step(batch):
        if recorder.is_recording:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return inner(batch)

    graph.step = step
    for _ in range(3):
        graph.run({"lq": torch.ones(1)})
    with pytest.raises(TrainingError, match="cannot be: operation not permitted when stream is capturing. Write compi"):
        graph.run({"lq": torch.ones(1)})
    assert optimizer.param_groups[0]["lr"] == 1.0
