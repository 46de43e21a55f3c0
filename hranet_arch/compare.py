"""``basicsr compare``: methods x test sets x levels, each picture scored once, written down as it is measured.

The way of the data: ``plan`` finds the pictures and says what cannot be used; ``measure`` runs each of the ``methods``
on each picture and appends its scores to the ``journal``; ``collect`` makes the ``record`` of the journal; ``report``
draws it. What the journal has already, by the hashes of everything that could change it, is not measured again.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Container, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hranet_arch import complexity, degradations, examples, fidelity, methods, noise, record, report
from hranet_arch.errors import InputError, first_line
from hranet_arch.images import decode_image, to_8bit, write_png
from hranet_arch.journal import Journal, make_key
from hranet_arch.plan import Picture, Plan, make_plan

logger = logging.getLogger(__name__)

COMPRESSION = "OpenCV's libjpeg, of the clean 8-bit picture; of colour its chroma at half the resolution (4:2:0)"


def run_compare(opt: dict, folder: Path, rank: int = 0, world_size: int = 1) -> record.Record | None:
    """Measures what is not measured yet and writes record, tables, plots, crops and page.

    Args:
        opt: checked options (``options.check_comparison``).
        folder: where the results go, and those of an earlier, stopped run are.
        rank: this process's number; process 0 measures costs and writes the results.
        world_size: number of processes; the pictures are shared out among them.

    Returns:
        The record, whose ``failures`` name what could not be measured; None in processes other than 0.

    Raises:
        InputError: if nothing at all can be measured.
    """
    plan = make_plan(opt, folder)
    _require_like_machines(plan)
    journal = Journal(folder / "journal", rank)
    _share(plan)  # nobody writes before all have read
    if rank == 0 and _start_key(plan) not in journal.values:
        journal.write(_start_key(plan), _now())
    made = measure(plan, journal, rank, world_size)
    _share(plan)
    if rank == 0:
        journal = Journal(folder / "journal", rank)
        costs = measure_costs(plan, journal)
        result = collect(plan, journal, made, costs)
        record.write_record(result, folder / "record.json")
        report.write_report(result, folder)
    _share(plan)  # the others leave when all is done
    return None if rank else result


def _require_like_machines(plan: Plan) -> None:
    """A record has one machine; and process 0 finds the others' scores only under a context like its own."""
    everyone = _gather((plan.context, {**plan.machine, "device": plan.device.type}))
    context, first = everyone[0]
    other = next((machine for own, machine in everyone if own != context), None)
    if other is not None:
        unlike = [f"{key} {value!r} and {other.get(key)!r}" for key, value in first.items() if value != other.get(key)]
        differing = ", ".join(unlike) or "versions of this package's code"
        raise InputError(f"The processes are on unlike machines: {differing}. Compare in one process, or on like ones.")


def _share(plan: Plan) -> None:
    """Waits for all processes; each then knows what failed in the others."""
    for failures in _gather(plan.failures):
        plan.failures += [one for one in failures if one not in plan.failures]


def _gather(value: Any) -> list:
    """Each process's value, in the order of ranks, in all of them."""
    if not torch.distributed.is_initialized():
        return [value]
    everyone: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


# --- scores -----------------------------------------------------------------------------------------------------------


def measure(plan: Plan, journal: Journal, rank: int, world_size: int) -> dict[tuple[str, float], methods.Method]:
    """Runs every method on this process's share of the pictures; returns the methods that could be made, by level.

    Picture by picture and not method by method: each picture is read and made noisy once, and the time left that the
    bar shows holds from the beginning.
    """
    made: dict[tuple[str, float], methods.Method] = {}
    total = sum(len(pictures[rank::world_size]) for pictures in plan.pictures.values()) * len(plan.methods)
    with tqdm(total=total, desc="Compare", unit="picture", disable=True if rank else None) as bar:
        for level in plan.levels:
            ready = _make_methods(plan, level)
            # Their descriptions: the networks of one level go before those of the next come.
            made |= {(name, level): replace(method, network=None) for name, method in ready.items()}
            for (testset, at), pictures in plan.pictures.items():
                if at != level:
                    continue
                place = f"{testset}, {plan.name_level(level)}"
                logger.info("%s: %d methods on %d pictures", place, len(ready), len(pictures))
                for picture in pictures[rank::world_size]:
                    bar.set_postfix_str(f"{testset} {level:g} {picture.name}")
                    _measure_picture(plan, journal, ready, testset, level, picture)
                    bar.update(len(plan.methods))
    return made


def _make_methods(plan: Plan, level: float, without: Container[str] = ()) -> dict[str, methods.Method]:
    ready = {}
    for name, entry in plan.methods.items():
        if name in without or level not in (entry.get("levels") or [level]):
            continue
        try:
            ready[name] = methods.make_method(entry, plan.task(level), Path(plan.opt["weights_root"]))
        except InputError as error:
            plan.fail(str(error), method=name, level=plan.name_level(level))
    return ready


def _measure_picture(
    plan: Plan, journal: Journal, ready: dict[str, methods.Method], testset: str, level: float, picture: Picture
) -> None:
    files = {name: examples.picture_path(plan.folder, testset, level, name, picture.name) for name in ready}
    keys = {name: _score_key(plan, method, picture) for name, method in ready.items()}
    missing = [name for name in ready if keys[name] not in journal.values
               or journal.values.get(make_key("picture", keys[name])) != _hash_file(files[name])]  # fmt: skip
    clean_file = examples.picture_path(plan.folder, testset, level, examples.CLEAN, picture.name)
    clean_key = make_key("clean", picture.sha256, plan.color)
    has_clean = journal.values.get(clean_key, "") == _hash_file(clean_file)
    if not missing and has_clean:
        return
    clean = _read(picture.gt, plan.color)
    if not has_clean:
        _write_picture(clean_file, clean)
        journal.write(clean_key, _hash_file(clean_file))
    given = _read(picture.lq, plan.color) / np.float32(255) if picture.lq else _degrade(plan, clean, level, picture)
    for name in missing:
        try:
            output = ready[name](given)
            scores = fidelity.score_picture(output, clean, plan.opt["task"], plan.border(level))
        except Exception as error:  # out of memory, among others: the other methods go on
            reason = first_line(error)
            plan.fail(reason, method=name, testset=testset, level=plan.name_level(level), picture=picture.name)
            continue
        _write_picture(files[name], to_8bit(output))
        journal.write(make_key("picture", keys[name]), _hash_file(files[name]))
        journal.write(keys[name], scores)


def _score_key(plan: Plan, method: methods.Method, picture: Picture) -> str:
    protocol = [plan.opt["noise"], _find_seed(plan, picture), noise.TEST_GENERATOR, plan.metrics]
    return make_key("score", plan.context, method.fingerprint, picture.sha256, protocol)


def _read(path: Path, color: str) -> np.ndarray:
    pixels = decode_image(path.read_bytes(), str(path), color)
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels


def _degrade(plan: Plan, clean: np.ndarray, level: float, picture: Picture) -> np.ndarray:
    """The picture that the methods are given, made of the clean one."""
    if plan.opt["task"] == "jpeg":
        whole = clean.reshape(*clean.shape[:2], -1) / np.float32(255)
        compress = degradations.JPEGCompression(quality=level)
        return compress(whole, np.random.RandomState(0)).reshape(clean.shape)
    return noise.TEST_NOISES[plan.opt["noise"]](clean.astype(np.float32) / 255, level, _find_seed(plan, picture))


def _find_seed(plan: Plan, picture: Picture) -> int:
    return picture.number if plan.opt["noise_seed"] == "number" else 0


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    write_png(path, pixels if pixels.ndim == 2 else pixels[..., ::-1])


def _hash_file(path: Path) -> str | None:
    """By which a picture is known to be these scores' own, not that of other weights or options under its name."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


# --- costs ------------------------------------------------------------------------------------------------------------


def measure_costs(plan: Plan, journal: Journal) -> dict[str, list[record.Cost]]:
    """Costs of each method: of one level's weights, or for super-resolution at each scale; all timed in turn."""
    costs: dict[str, list[record.Cost]] = {}
    for level, ready in _list_costed(plan):
        latency = _measure_latency(plan, journal, ready, level)
        for name, method in tqdm(ready.items(), "Memory", unit="method", leave=False, disable=None):
            memory = _measure_memory(plan, journal, name, method)
            size = method.input_size(*plan.opt["costs"]["macs_size"])
            try:
                macs = complexity.count_macs(method.costed, size) if method.network else None
            except Exception as error:
                plan.fail(f"MACs at {size}: {first_line(error)}", method=name)
                macs = None
            costs.setdefault(name, []).append(
                record.Cost(
                    level=level, parameters=method.parameters, macs=macs,
                    macs_size=size if macs is not None else None, latency=latency.get(name, []), memory=memory,
                )
            )  # fmt: skip
    return costs


def _list_costed(plan: Plan) -> Iterator[tuple[float | None, dict[str, methods.Method]]]:
    """The methods that are timed together: those of each scale, or (level None) each with its first level's weights."""
    first: dict[str, methods.Method] = {}
    for level in plan.levels:
        made = _make_methods(plan, level, without=first)
        ready = {name: method for name, method in made.items() if method.kind != "input"}
        if plan.opt["task"] != "sr":
            first |= ready
        elif ready:
            yield level, ready
    if first:
        yield None, first


def _measure_latency(
    plan: Plan, journal: Journal, ready: dict[str, methods.Method], level: float | None
) -> dict[str, list[dict]]:
    """Latency by method, at each size; the methods take turns."""
    results: dict[str, list[dict]] = {}
    rounds = plan.opt["costs"]["rounds"]
    for side in tqdm(plan.opt["costs"]["sizes"], "Latency", unit="size", leave=False, disable=None):
        prints = {name: method.fingerprint for name, method in ready.items()}
        key = make_key("latency", plan.context, prints, side, rounds, level)
        latencies = journal.values.get(key)
        if latencies is None:
            timed = {name: _Timed(method, side) for name, method in ready.items()}
            largest = tuple(max(sizes) for sizes in zip(*(one.size for one in timed.values())))
            measured = complexity.measure_latency(
                timed, [largest], plan.device, rounds=rounds,
                on_failure=lambda name, size, error: plan.fail(
                    f"latency at {size[1:]}: {first_line(error)}", method=name
                ),
            )  # fmt: skip
            latencies = {one.model: {**asdict(one), "size": timed[one.model].size} for one in measured}
            if len(measured) == len(timed):  # else what failed is tried and told of again by the next run
                latencies = journal.write(key, latencies)
        for name, one in latencies.items():
            one = {name: value for name, value in one.items() if name != "model"}
            results.setdefault(name, []).append(one)
    return results


class _Timed:
    """A method as what is timed: its network on the device, or all of a classical one, on a picture of its size."""

    def __init__(self, method: methods.Method, side: list[int]) -> None:
        self.size = method.input_size(*side)
        self.method = method
        self.x: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> object:
        if self.x is None:
            channels, height, width = self.size
            self.x = x[:, :channels, :height, :width].contiguous()
        if self.method.costed is not None:
            return self.method.costed(self.x)
        picture = self.x[0].permute(1, 2, 0).cpu().numpy()
        return self.method.run_classical(picture[..., 0] if picture.shape[2] == 1 else picture)


def _measure_memory(plan: Plan, journal: Journal, name: str, method: methods.Method) -> list[dict]:
    results = []
    for side in plan.opt["costs"]["sizes"] if method.network else []:
        size = method.input_size(*side)
        key = make_key("memory", plan.context, method.fingerprint, size)
        if key not in journal.values:
            try:
                journal.write(key, asdict(complexity.measure_peak_memory(method.costed, size, plan.device)))
            except Exception as error:  # on a GPU the network's own, of every kind
                plan.fail(first_line(error), method=name)
                continue
        results.append(journal.values[key])
    return results


# --- the record -------------------------------------------------------------------------------------------------------


def collect(
    plan: Plan, journal: Journal, made: dict[tuple[str, float], methods.Method], costs: dict[str, list[record.Cost]]
) -> record.Record:
    """Makes the record of what the journal holds for this plan."""
    opt = plan.opt
    results = list(_collect_results(plan, journal, made))
    described = {}
    for name, entry in plan.methods.items():
        own = {level: method for (other, level), method in made.items() if other == name}
        if own:
            described[name] = _describe_method(name, entry, own, costs.get(name, []))
            if opt["task"] != "sr" and len({(one.type, one.parameters) for one in own.values()}) > 1:
                plan.fail("its levels have different networks; arguments and costs are the first's", method=name)
    return record.Record(
        format="hranet-arch comparison 1",
        name=opt["name"],
        started=journal.values[_start_key(plan)],
        commit=plan.commit,
        machine=record.Machine(**plan.machine),
        protocol=_describe_protocol(plan),
        testsets=plan.testsets,
        methods=described,
        results=results,
        failures=plan.failures,
        **({"published": opt["published"]} if opt.get("published") else {}),
    )


def _start_key(plan: Plan) -> str:
    return make_key("started", plan.context)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _collect_results(plan: Plan, journal: Journal, made: dict) -> Iterator[record.Result]:
    for name in plan.methods:
        for (testset, level), pictures in plan.pictures.items():
            method = made.get((name, level))
            scores = [journal.values.get(_score_key(plan, method, picture)) for picture in pictures] if method else []
            if not scores or None in scores:  # a mean over some of a set is no result
                continue
            rows = [record.PictureScore(name=p.name, size=p.size, **score) for p, score in zip(pictures, scores)]
            means = {metric: record.average(getattr(row, metric) for row in rows) for metric in plan.metrics}
            yield record.Result(method=name, testset=testset, level=level, **means, pictures=rows)


def _describe_method(name: str, entry: dict, own: dict[float, methods.Method], costs: list) -> record.Method:
    first = next(iter(own.values()))
    files = {f"{level:g}": m for level, m in own.items() if m.weights is not None}
    if len({(m.weights, m.weights_sha256) for m in files.values()}) == 1 and len(files) == len(own):
        files = {"all": first}
    return record.Method(
        kind=first.kind,
        type=first.type,
        arguments={**first.arguments, **first.versions},
        weights={key: record.Weights(file=m.weights.name, sha256=m.weights_sha256) for key, m in files.items()},
        enlarge_first=first.enlarge_first,
        channel=first.channel,
        ensemble=first.ensemble,
        training=entry.get("training"),
        published=entry.get("published", name),
        costs=costs,
    )  # fmt: skip


def _describe_protocol(plan: Plan) -> record.Protocol:
    opt = plan.opt
    described = None
    if opt["task"] == "denoise":
        text = " ".join(noise.TEST_NOISES[opt["noise"]].__doc__.split("\n\n")[0].split())
        described = record.Noise(
            name=opt["noise"],
            generator=noise.TEST_GENERATOR,
            seed=noise.TEST_SEEDS[opt["noise_seed"]],
            description=text,
        )
    return record.Protocol(
        task=opt["task"],
        color=opt["color"],
        levels=plan.levels,
        noise=described,
        metrics=plan.metrics,
        channel=plan.channel,
        crop_border="scale" if opt["task"] == "sr" else "0",
        precision=opt["precision"],
        tile=opt["tile"],
        **({"compression": COMPRESSION} if opt["task"] == "jpeg" else {}),
    )
