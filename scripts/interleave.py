"""What the benchmark scripts share: contestants that take turns, each in a process of its own; their records.

A process each, because some of what is compared holds for a whole process (the allocator, BasicSR with and without
its repairs). Turns, because a machine's speed drifts: every round asks each contestant once, every second round
backwards, and only the one whose turn it is runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from hranet_arch import provenance


class Contestant:
    """One process, in which ``make(**arguments)`` builds an object whose methods are called from here.

    Several build at once; ``take_turns`` begins when all are done.
    """

    def __init__(self, name: str, make: Callable[..., Any], **arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make, arguments))
        self.process.start()
        other.close()
        self.is_built = False

    def wait(self) -> None:
        """Until the object is built."""
        if not self.is_built:
            self.answer()
            self.is_built = True

    def call(self, method: str, *arguments: Any) -> Any:
        self.ask(method, *arguments)
        return self.answer()

    def ask(self, method: str, *arguments: Any) -> None:
        """Calls a method without waiting for it."""
        self.wait()
        try:
            self.pipe.send((method, arguments))
        except ConnectionError:
            raise self._gone() from None

    def answer(self) -> Any:
        try:
            is_done, answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise self._gone() from None
        if not is_done:
            raise SystemExit(f"{self.name} failed:\n{answer}")
        return answer

    def _gone(self) -> SystemExit:
        return SystemExit(f"{self.name}: its process ended (out of memory, perhaps).")

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: dict) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of data loaders' workers; spawn was for this process alone
    try:
        contestant = make(**arguments)
        pipe.send((True, None))
        while True:
            method, values = pipe.recv()
            pipe.send((True, getattr(contestant, method)(*values)))
    except EOFError:
        os._exit(0)  # data loaders' workers would keep the process waiting
    except Exception:
        pipe.send((False, traceback.format_exc()))


@contextlib.contextmanager
def running(make: Callable[..., Any], settings: dict, wanted: Mapping[str, Any]) -> Iterator[dict[str, Contestant]]:
    """A contestant for each of the wanted options, by name; at the end, whatever it is, all are closed."""
    contestants = {name: Contestant(name, make, settings=settings, options=wanted[name]) for name in wanted}
    try:
        yield contestants
    finally:
        for contestant in contestants.values():
            contestant.close()


def choose(contestants: Mapping[str, Any], only: list[str] | None) -> dict[str, Any]:
    """Those that take part: all, or *stock* and those that ``--only`` names."""
    if unknown := set(only or ()) - set(contestants):
        raise SystemExit(f"--only {', '.join(sorted(unknown))}: there are {', '.join(contestants)}.")
    return {name: one for name, one in contestants.items() if not only or name in ("stock", *only)}


def ask_all(contestants: Mapping[str, Contestant], method: str, *arguments: Any) -> dict[str, Any]:
    """Calls a method of all contestants at once: one that compiles, which takes each a processor for a minute."""
    for contestant in contestants.values():
        contestant.ask(method, *arguments)
    answers = {name: contestant.answer() for name, contestant in contestants.items()}
    print(f"{method}: all are done", file=sys.stderr, flush=True)
    return answers


def compile_all(
    make: Callable[..., Any], settings: dict, wanted: Mapping[str, Any], method: str, *arguments: Any
) -> None:
    """Runs a method in processes that pass, all at once: what they compile stays on the disk for those that are timed.

    These then choose kernels by their times alone. Who fails here, for want of memory beside the others, says so.
    """
    with running(make, settings, wanted) as contestants:
        try:
            ask_all(contestants, method, *arguments)
        except SystemExit as error:
            print(f"compiling beside the others: {error}", file=sys.stderr, flush=True)


def take_turns(
    contestants: Mapping[str, Contestant], rounds: int, method: str, *arguments: Any
) -> Iterator[dict[str, list]]:
    """After each round, what each contestant's method has answered up to then."""
    for contestant in contestants.values():
        contestant.wait()
    answers: dict[str, list] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants)[:: -1 if turn % 2 else 1]:
            answers[name].append(contestants[name].call(method, *arguments))
        print(f"{method}: round {turn + 1} of {rounds} is done", file=sys.stderr, flush=True)
        yield answers


def summarize(values: list[float]) -> dict[str, float]:
    lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def compare(seconds: Mapping[str, list[float]], stock: str) -> dict[str, dict]:
    """Seconds of each contestant, and how many times as fast as ``stock`` it is: the median over rounds of the ratio.

    The ratio of one round is of two measurements close in time, which a drift hits alike.
    """
    return {
        name: {
            "seconds": summarize(values),
            "speedup": summarize([slow / fast for slow, fast in zip(seconds[stock], values, strict=True)]),
        }
        for name, values in seconds.items()
    }


def begin_record(settings: dict, device: str) -> dict:
    """Where and how a benchmark's record is made: as it is now, when the contestants are about to load their code."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    machine = provenance.describe_machine(device) | {"threads": settings["threads"]}  # theirs
    return {"commit": provenance.describe_commit("scripts"), "machine": machine, "settings": plain}


def write_record(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def positive(text: str) -> int:
    """A whole number from 1 on, for ``argparse``."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: 1 or more")
    return int(text)
