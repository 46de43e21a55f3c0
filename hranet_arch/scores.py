"""A record's numbers as tables show them: their names, their rounding, the published values beside, the ranks."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hranet_arch.errors import InputError
from hranet_arch.record import Cost, Record, Result
from hranet_arch.schema import suggest

MISSING, DIFFERENT, NOTED, PARTIAL = "—", "≠", "‡", "†"
TOLERANCE = 3  # hundredths of a dB between the measured and the published PSNR, both rounded; more is marked
COST_NOTE = "Latency: median [quartiles] of one forward pass. MB: a million bytes."

Group = tuple[str, float]  # a test set and a level: a column of the tables, a panel of the plots


# --- names and numbers ------------------------------------------------------------------------------------------------


def list_groups(record: Record) -> list[Group]:
    """The test sets and levels with at least one result, in the record's order."""
    measured = {(result.testset, result.level) for result in record.results}
    return [group for testset in record.testsets for level in record.protocol.levels
            if (group := (testset, level)) in measured]  # fmt: skip


def name_set(testset: str) -> str:
    """A test set's published name: without the folder of a scale (``Set5/x2``)."""
    return re.sub(r"/x[\d.]+$", "", testset)


def name_level(record: Record, level: float) -> str:
    return {"denoise": f"σ {level:g}", "sr": f"×{level:g}", "jpeg": f"quality {level:g}"}[record.protocol.task]


def name_group(record: Record, group: Group) -> str:
    return f"{name_set(group[0])} {name_level(record, group[1])}"


def name_size(size: Sequence[int]) -> str:
    return "×".join(map(str, size))


def format_psnr(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def format_ssim(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def format_milliseconds(seconds: float) -> str:
    """Three digits, as far as the point allows: 0.512, 5.12, 51.2, 512."""
    value = seconds * 1e3
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def subtract_rounded(measured: float, published: float) -> int:
    """Measured minus published, both as printed, in hundredths of a dB: 32.89 and 32.86 are exactly 3 apart."""
    return round(float(f"{measured:.2f}") * 100) - round(float(f"{published:.2f}") * 100)


# --- published values -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A published value. ``is_reproducible`` is False where a note on the set says why another number may come out."""

    psnr: float
    ssim: float | None
    psnrb: float | None
    source: str
    note: str | None
    is_reproducible: bool = True


@functools.cache
def read_published() -> dict:
    return json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


def name_section(task: str, color: str) -> str:
    """Where ``published.json`` has a task: ``sr``, ``denoise/gray``, ``jpeg/gray``, ..."""
    return "sr" if task == "sr" else f"{task}/{'color' if color == 'rgb' else 'gray'}"


def check_published(names: Sequence[str], task: str, color: str) -> None:
    """Raises InputError where nothing is published of a method."""
    known = read_published().get(name_section(task, color), {})
    faults = [f"published: nothing of '{name}' for this task.{suggest(name, known)}" for name in names
              if name not in known]  # fmt: skip
    if faults:
        raise InputError("\n".join(faults))


def find_published(record: Record, result: Result) -> Published | None:
    """The published value that may stand beside a result.

    Returns:
        None where nothing is published, and where the numbers cannot be compared: another protocol than the field's,
        a test set whose pictures differ or are unknown, or a result that lacks some of them.
    """
    if is_partial(record, result):
        return None
    return _look_up(record, record.methods[result.method].published, (result.testset, result.level))


def _look_up(record: Record, method: str | None, group: Group) -> Published | None:
    """The value that is published of a method for a set at a level, if the record's own numbers may be compared."""
    testset, name = record.testsets[group[0]], name_set(group[0])
    if testset.status not in ("exact", "by name") or not follows_field(record):
        return None
    published, section = read_published(), name_section(record.protocol.task, record.protocol.color)
    if name in published.get("apart", {}).get(section, {}):
        return None
    entry = published.get(section, {}).get(method, {})
    value = entry.get("values", {}).get(name, {}).get(f"{group[1]:g}")
    if value is None:
        return None
    psnr, ssim, psnrb, *_ = [*value, None, None] if isinstance(value, list) else (value, None, None)
    sources = [published["sources"][key] for key in entry["source"]]
    set_note = entry.get("notes", {}).get(name)
    training = f"trained on {entry['training']}" if "training" in entry else None
    notes = [note for note in (entry.get("note"), training, set_note) if note]
    source = "; ".join(f"{source['repository']}: {source['where']}" for source in sources)
    return Published(psnr, ssim, psnrb, source, "; ".join(notes) or None, set_note is None)


def follows_field(record: Record) -> bool:
    """Whether noise, channel and border are those of the published tables. (Of JPEG, the encoder is only near.)"""
    protocol = record.protocol
    if protocol.task == "sr":
        return (protocol.channel, protocol.crop_border, protocol.noise) == ("y", "scale", None)
    if protocol.task == "jpeg":
        return (protocol.channel, protocol.crop_border) == ("rgb" if protocol.color == "rgb" else "y", "0")
    return (protocol.channel, protocol.crop_border, protocol.noise.name) == (protocol.color, "0", "gaussian")


def is_partial(record: Record, result: Result) -> bool:
    """Whether the mean PSNR lacks pictures of the set: it cannot be compared with a mean over all of them."""
    defined = sum(picture.psnr is not None for picture in result.pictures)
    return defined < record.testsets[result.testset].pictures


# --- what the tables hold ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """A result as a table shows it. Ranks: 1 is the best of its column, 2 the second, 0 any other."""

    result: Result
    published: Published | None
    difference: float | None  # dB, between the rounded values
    is_partial: bool
    psnr_rank: int
    ssim_rank: int
    psnrb_rank: int

    @property
    def mark(self) -> str:
        """What stands at a published value that was not met; another mark where a note may explain it."""
        if self.published is None or abs(round(self.difference * 100)) <= TOLERANCE:
            return ""
        return DIFFERENT if self.published.is_reproducible else NOTED


def score_results(record: Record) -> dict[tuple[str, Group], Score]:
    """Every result by method and group."""
    scores = {}
    for group in list_groups(record):
        results = {m: result for m in record.methods if (result := record.find(m, *group))}
        whole = {m: result for m, result in results.items() if not is_partial(record, result)}
        psnr_ranks = _rank({m: format_psnr(result.psnr) for m, result in whole.items()})
        ssim_ranks = _rank({m: format_ssim(result.ssim) for m, result in whole.items()})
        psnrb_ranks = _rank({m: format_psnr(result.psnrb) for m, result in whole.items()})
        for m, result in results.items():
            published = find_published(record, result)
            difference = subtract_rounded(result.psnr, published.psnr) / 100 if published else None
            ranks = [ranks.get(m, 0) for ranks in (psnr_ranks, ssim_ranks, psnrb_ranks)]
            scores[m, group] = Score(result, published, difference, m not in whole, *ranks)
    return scores


def _rank(texts: dict[str, str]) -> dict[str, int]:
    """Rank 1 and 2 of the printed values; equal prints share a rank. A single method is not the best of anything."""
    values = {method: float(text) for method, text in texts.items() if text != MISSING}
    highest = sorted(set(values.values()), reverse=True)[:2]
    return {m: highest.index(value) + 1 for m, value in values.items() if value in highest} if len(values) > 1 else {}


def list_published(record: Record) -> dict[str, dict[Group, Published]]:
    """What is published of the methods that the record names beside its own, by method and group."""
    rows = {name: {group: value for group in list_groups(record) if (value := _look_up(record, name, group))}
            for name in record.published}  # fmt: skip
    return {name: values for name, values in rows.items() if values}


def find_training(record: Record, name: str) -> str | None:
    """What a published method was trained on, as far as its table says."""
    section = read_published().get(name_section(record.protocol.task, record.protocol.color), {})
    return section.get(name, {}).get("training")


def find_cost(record: Record, method: str, level: float | None) -> Cost | None:
    """What a method costs at a level; where costs do not depend on the level, what it costs."""
    costs = {cost.level: cost for cost in record.methods[method].costs}
    return costs.get(level, costs.get(None))


@dataclass(frozen=True)
class CostTable:
    """Costs at a level (None: at all); a cell is the text and the number to sort by."""

    title: str
    columns: list[str]
    rows: dict[str, list[tuple[str, float | None]]]


def list_cost_tables(record: Record) -> list[CostTable]:
    levels = sorted({cost.level for method in record.methods.values() for cost in method.costs} - {None})
    tables = []
    for level in levels or [None]:
        costs = {name: cost for name in record.methods if (cost := find_cost(record, name, level))}
        columns = _list_cost_columns(costs.values())
        rows = {name: [read(cost) for _, read in columns] for name, cost in costs.items()}
        title = "Cost" if level is None else f"Cost at {name_level(record, level)}"
        if rows:
            tables.append(CostTable(title, [column for column, _ in columns], rows))
    return tables


def _list_cost_columns(costs: Iterable[Cost]) -> list[tuple[str, Callable[[Cost], tuple[str, float | None]]]]:
    """A column's head and what reads its cell. Each size of input has columns of its own."""
    costs = list(costs)
    missing = (MISSING, None)

    def read_parameters(cost: Cost):
        return missing if cost.parameters is None else (f"{cost.parameters / 1e6:.3f}", cost.parameters)

    def read_macs(cost: Cost, size):
        return (f"{cost.macs / 1e9:.2f}", cost.macs) if cost.macs is not None and cost.macs_size == size else missing

    def read_latency(cost: Cost, size):
        found = next((latency for latency in cost.latency if latency.size == size), None)
        if found is None:
            return missing
        median, low, high = map(format_milliseconds, (found.median, found.lower_quartile, found.upper_quartile))
        return f"{median} [{low}, {high}]", found.median

    def read_memory(cost: Cost, size):
        found = next((memory for memory in cost.memory if memory.size == size), None)
        return missing if found is None else (f"{found.peak / 1e6:.1f}", found.peak)

    def spread(head: str, read, sizes: Iterable):
        ordered = sorted({size for size in sizes if size}, key=lambda size: (size[1] * size[2], size))
        return [(f"{head} at {name_size(size)}", functools.partial(read, size=size)) for size in ordered]

    columns = [("parameters, M", read_parameters)] if any(c.parameters is not None for c in costs) else []
    columns += spread("MACs, G", read_macs, (c.macs_size for c in costs if c.macs is not None))
    columns += spread("latency, ms", read_latency, (latency.size for c in costs for latency in c.latency))
    return columns + spread("peak memory, MB", read_memory, (memory.size for c in costs for memory in c.memory))
