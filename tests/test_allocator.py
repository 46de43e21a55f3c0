"""What the system counts of the pages it hands out."""

import os
import resource
import subprocess
import sys

import pytest

from hranet_arch import allocator
from tests.conftest import REPOSITORY, run_cli

CODE = """
import resource, sys, torch
from hranet_arch.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
for i in range(26):
    if i == 16:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(10 * 2**20)  # 40 MiB, written and freed
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(how, **environment):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, "-c", CODE, how]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    """Ten times 40 MiB are 102,400 pages of 4 KiB; kept memory is touched once, and settles after some rounds."""
    (default,) = run("default")
    done, kept = run("keep")
    assert done == "True"
    assert int(default) > 100_000 * 4096 // resource.getpagesize()
    assert int(kept) < int(default) / 4


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_is_kept_beyond_a_size_is_given_back():
    code = """
import torch
from hranet_arch import allocator
def measure():
    return int(open("/proc/self/statm").read().split()[1])
allocator.keep_freed_memory()
torch.ones(50 * 2**20)  # 200 MiB, written and freed
sizes = [measure()]
for size in (2**40, 2**20):
    allocator.give_back_beyond(size)
    sizes.append(measure())
print(*sizes)
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, still, given = (int(size) * resource.getpagesize() for size in result.stdout.split())
    assert still > kept - 2**24 and given < kept - 180 * 2**20


@pytest.mark.parametrize("verb", ["denoise", "upscale", "dejpeg"])
def test_the_verbs_keep_freed_memory(verb, monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: kept.append(verb))
    assert run_cli(verb, str(tmp_path / "nothing.png"), "-o", str(tmp_path)) == 2
    assert kept == [verb]


def test_settings_of_the_environment_are_left_alone():
    assert run("keep", MALLOC_ARENA_MAX="2")[0] == "False"
