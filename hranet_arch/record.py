"""The record of a comparison: everything that a number in a table needs beside it to be believed, as one JSON file.

The classes here are its schema: a record that lacks the commit, the device, a hash or a version does not load.
``docs/records/compare.schema.json`` is the same as JSON Schema, for other programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hranet_arch.errors import InputError
from hranet_arch.files import write_text

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Score = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = tuple[Count, Count, Count]  # channels, height, width
Metric = Literal["psnr", "psnr_float", "ssim", "psnrb"]


class Part(BaseModel):
    """A part of a record: nothing may be missing, nothing unknown may be there."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- how it was measured ----------------------------------------------------------------------------------------------


class Machine(Part):
    """As ``provenance.describe_machine`` gives it."""

    system: Text
    versions: Annotated[dict[str, str | int], Field(min_length=3)]
    device: Text
    device_name: Text
    threads: Count
    cpu_capability: Text
    precision: dict[str, str | bool]

    @model_validator(mode="after")
    def _require_versions(self) -> Machine:
        missing = {"hranet-arch", "python", "torch", "numpy"} - self.versions.keys()
        if missing:
            raise ValueError(f"versions lack {', '.join(sorted(missing))}")
        return self


class Noise(Part):
    """The test noise: which function of ``noise`` made it, and what that does."""

    name: Literal["gaussian", "gaussian_clipped_8bit"]
    generator: Text
    seed: Text
    description: Text


class Protocol(Part):
    """What is measured: ``denoise`` at noise levels (sigma, 0-255), ``sr`` at scales, ``jpeg`` at qualities."""

    task: Literal["denoise", "sr", "jpeg"]
    color: Literal["gray", "rgb"]
    levels: Annotated[list[float], Field(min_length=1)]
    noise: Noise | None  # None: the task has none
    compression: Text | None = None  # of task jpeg: what wrote the files
    metrics: Annotated[dict[Metric, str], Field(min_length=3)]  # what each is
    channel: Literal["gray", "rgb", "y"]  # what the metrics look at
    crop_border: Literal["0", "scale"]
    precision: Literal["fp32", "bf16", "fp16"]
    tile: Annotated[int, Field(ge=0)]  # pictures larger than a tile with its halo were run in tiles; 0: never


class TestSet(Part):
    """A test set. ``status`` is what the catalogue (``testsets.json``) says of its pixels: ``exact``, ``by name``
    (names, number and sizes are those published), ``differs`` (a known name, other pictures) or ``unknown``."""

    __test__ = False  # no test case, whatever pytest thinks of its name
    pictures: Count
    sha256: dict[str, Sha256]  # by level where each has files of its own, else under 'all'
    status: Literal["exact", "by name", "differs", "unknown"]


# --- who was measured -------------------------------------------------------------------------------------------------


class Weights(Part):
    file: Text  # its name, without folders
    sha256: Sha256  # of the tensors (``checkpoints.hash_params``)


class LatencyRecord(Part):
    """Seconds of one forward pass (``complexity.Latency``)."""

    size: Size
    median: Seconds
    lower_quartile: Seconds
    upper_quartile: Seconds
    blocks: Count
    runs: Count
    rounds: Count
    threads: Count
    device: Text


class MemoryRecord(Part):
    """Bytes at the height of a forward pass (``complexity.PeakMemory``)."""

    size: Size
    peak: Count
    weights: int
    growth: int
    device: Text
    method: Text


class Cost(Part):
    """What a method costs; for super-resolution at each scale. Classical methods have no parameters and no MACs."""

    level: float | None
    parameters: int | None
    macs: int | None
    macs_size: Size | None  # of the network's input
    latency: list[LatencyRecord]
    memory: list[MemoryRecord]


class Method(Part):
    """A method: a network with its weights, or a classical one. ``weights`` are by level, or under ``all``."""

    kind: Literal["network", "classical", "input"]
    type: Text  # the architecture's name, or the classical method's
    arguments: dict[str, Any]
    weights: dict[str, Weights]
    enlarge_first: bool = False  # the network takes the bicubically enlarged picture
    channel: Literal["all", "y"] = "all"  # y: the network takes the luma alone
    ensemble: bool = False  # the mean over the picture's eight symmetries; costs are of all eight
    training: str | None  # the training set, as the option file says
    published: str | None  # its name in published.json
    costs: list[Cost]


# --- what was measured ------------------------------------------------------------------------------------------------


class PictureScore(Part):
    """``psnr``, ``ssim`` and ``psnrb`` of the 8-bit output, ``psnr_float`` of the unrounded one; None: not defined
    (equal pictures, or one too small for SSIM's window). ``psnrb`` is there where the protocol names it."""

    name: Text
    size: tuple[Count, Count]
    psnr: Score | None
    psnr_float: Score | None
    ssim: Score | None
    psnrb: Score | None = None


class Result(Part):
    """A method on a test set at a level: each picture, and the means over those where the metric is defined."""

    method: Text
    testset: Text
    level: float
    psnr: Score | None
    psnr_float: Score | None
    ssim: Score | None
    psnrb: Score | None = None
    pictures: Annotated[list[PictureScore], Field(min_length=1)]

    @model_validator(mode="after")
    def _require_true_means(self) -> Result:
        for name in get_args(Metric):
            mean = average(getattr(picture, name) for picture in self.pictures)
            given = getattr(self, name)
            if (mean is None) != (given is None) or (mean is not None and abs(mean - given) > 1e-6):
                raise ValueError(f"{name} is {given}, but the mean of its pictures is {mean}")
        return self


class Failure(Part):
    """Something that could not be measured, and why. What does not apply is None."""

    method: str | None
    testset: str | None
    level: str | None
    picture: str | None
    reason: Text

    def describe(self) -> str:
        places = [self.method, self.testset, self.level, self.picture]
        return f"{', '.join(place for place in places if place)}: {self.reason}"


class Record(Part):
    """A whole comparison. ``methods`` and ``testsets`` are in the order of the option file."""

    format: Literal["hranet-arch comparison 1"]
    name: Text
    started: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]  # UTC
    commit: Annotated[str, Field(min_length=7)]  # of the package's repository; '+changes' if files differ from it
    machine: Machine
    protocol: Protocol
    testsets: dict[str, TestSet]
    methods: dict[str, Method]
    results: list[Result]
    failures: list[Failure]
    published: list[Text] = []  # methods of published.json whose values stand beside, not measured

    @model_validator(mode="after")
    def _require_known_names(self) -> Record:
        for result in self.results:
            if result.method not in self.methods or result.testset not in self.testsets:
                raise ValueError(f"a result of {result.method} on {result.testset}, which the record does not describe")
            if self.testsets[result.testset].pictures < len(result.pictures):
                raise ValueError(f"{result.method} has more pictures on {result.testset} than the set")
        if self.protocol.task == "denoise" and self.protocol.noise is None:
            raise ValueError("protocol.noise is missing")
        if self.protocol.task == "jpeg" and self.protocol.compression is None:
            raise ValueError("protocol.compression is missing")
        for result in self.results:
            if any(("psnrb" in self.protocol.metrics) != ("psnrb" in part.model_fields_set)
                   for part in (result, *result.pictures)):  # fmt: skip
                raise ValueError(f"{result.method} on {result.testset}: psnrb must be there if protocol.metrics has it")
        return self

    def find(self, method: str, testset: str, level: float) -> Result | None:
        """The result of a method on a set at a level; None where it was not measured."""
        wanted = (method, testset, level)
        return next((r for r in self.results if (r.method, r.testset, r.level) == wanted), None)


# --- values -----------------------------------------------------------------------------------------------------------


def average(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None if there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


# --- files ------------------------------------------------------------------------------------------------------------


def read_record(path: str | Path) -> Record:
    """Reads a record.

    Raises:
        InputError: if it is missing, no JSON, or does not hold what a record must; each fault is named.
    """
    path = Path(path)
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Give the record.json of a comparison.") from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'record'}: {fault['msg']}" for fault in error.errors()]
        raise InputError("\n".join(f"{path}: {fault}" for fault in faults)) from error


def write_record(record: Record, path: str | Path) -> None:
    """Writes a record; ``path`` is the old file or the new one, whole."""
    written = record.model_dump(mode="json", exclude_unset=True)  # without what the task does not have
    write_text(Path(path), json.dumps(written, indent=1) + "\n")


def write_schema(path: str | Path) -> None:
    """Writes the JSON Schema of a record."""
    write_text(Path(path), json.dumps(Record.model_json_schema(), indent=1) + "\n")
