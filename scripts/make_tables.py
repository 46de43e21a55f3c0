"""Writes the tables of ``docs/performance.md`` and ``docs/recipes.md`` from the records of the scripts.

    python scripts/make_tables.py

A table stands between ``<!-- NAME.json -->`` and ``<!-- end -->``; its record is ``docs/records/NAME.json``. Nothing
between the two lines is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "performance.md", DOCS / "recipes.md")
BLOCK = re.compile(r"(<!-- (\w+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str, records: Path) -> str:
    """The page with each table made anew."""
    return BLOCK.sub(lambda match: match[1] + _make_tables(records / match[2]) + match[3], text)


def _make_tables(path: Path) -> str:
    if not path.is_file():
        return "\nNot measured yet.\n\n"
    record = json.loads(path.read_text())
    machine, settings = record["machine"], record["settings"]
    threads = settings["threads"] if "threads" in settings else machine["threads"]
    processor = f" ({machine['cpu_capability']})" if machine["device"] == "cpu" else ""
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "onnxruntime")
                         if name in machine["versions"])  # fmt: skip
    lines = [
        "",
        f"{machine['device_name']}{processor}, {threads} thread{'s' * (threads != 1)}, {versions}, commit "
        f"{record['commit'][:12]}{'+changes' if record['commit'].endswith('+changes') else ''}; "
        f"[record](records/{path.name}).{_describe_settings(record)}",
        "",
    ]
    if "results" in record:
        make = _make_trials if "option_file" in settings else _make_sizes if "sizes" in path.name else _make_onnx
        lines += [*make(record["results"]), ""]
    for network, result in record.get("networks", {}).items():
        make = _make_training if "training" in path.name else _make_inference
        lines += [f"**{network}**{_say_what_is_missing(result, settings)}", "", *make(result), ""]
    return "\n".join(lines) + "\n"


def _describe_settings(record: dict) -> str:
    settings = record["settings"]
    if "rounds" not in settings:
        return f" Variants of `{settings['option_file']}`."
    done = {result.get("rounds", settings["rounds"]) for result in record.get("networks", {}).values()}
    return " One round." if done == {1} else f" Median and quartiles of {settings['rounds']} rounds."


def _say_what_is_missing(result: dict, settings: dict) -> str:
    """Of a benchmark that was cut off; whole ones, and the records from before this was said, have nothing to say."""
    done = [one.get("rounds", settings["rounds"]) for one in (result, *result.get("sizes", []))]
    return f" (cut off after {min(done)} of {settings['rounds']} rounds)" if min(done) < settings["rounds"] else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _header(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def _spread(values: dict, digits: int, factor: float = 1.0) -> str:
    median, lower, upper = (values[key] * factor for key in ("median", "lower_quartile", "upper_quartile"))
    return f"{median:.{digits}f} ({lower:.{digits}f}–{upper:.{digits}f})"


def _make_training(result: dict) -> list[str]:
    lines = _header("", "ms a step", "times stock", "waiting for data")
    for name, values in result["contestants"].items():
        waiting = f"{values['waiting']['median']:.1%}"
        lines.append(_row(name, _spread(values["seconds"], 1, 1000), _spread(values["speedup"], 2), waiting))
    curves = result["curves"]
    if curves and curves["windows"]:
        shown = curves["windows"][-1:] if curves["agree"] else curves["windows"][1:]
        parts = [
            f"in the window from step {one['from_step']}, {one['stock_db']:.2f} dB (stock) and {one['ours_db']:.2f} dB "
            f"(ours), standard error of the difference {one['error_db']:.2f} dB"
            for one in shown
        ]
        runs = f"over {curves['runs']} runs" if "runs" in curves else "within one run"  # before 2026-11-27
        lines += ["", f"Loss curves {'agree' if curves['agree'] else 'do not agree'}, {runs}: {'; '.join(parts)}."]
    if result["profiles"]:
        lines += ["", *_make_profile(result["profiles"])]
    return lines


def _make_profile(profiles: dict[str, list[dict]]) -> list[str]:
    """The operations that take most of a step, side by side."""
    lines = _header(*(part for name in profiles for part in (f"{name}: operation", "share", "calls")))
    for rows in zip(*profiles.values()):
        cells = []
        for row in rows:
            cells += [f"`{row['operation'][:48]}`", f"{row['share']:.1%}", f"{row['calls']:.0f}"]
        lines.append(_row(*cells))
    return lines


def _make_inference(result: dict) -> list[str]:
    sizes = [f"{entry['height']}x{entry['width']}" for entry in result["sizes"]]
    lines = _header("", *(f"{size}: ms | times stock" for size in sizes), "PSNR, dB", "largest difference")
    lines[1] = "|" + "---|" * (1 + 2 * len(sizes) + 2)
    for name in result["sizes"][0]["contestants"]:
        cells = []
        for entry in result["sizes"]:
            values = entry["contestants"][name]
            cells += [f"{values['seconds']['median'] * 1000:.1f}", _spread(values["speedup"], 2)]
        quality = result["quality"].get(name)  # measured last
        costs = [f"{quality['psnr']:.3f}", f"{quality['largest_difference']:.1e}"] if quality else ["", ""]
        lines.append(_row(name, *cells, *costs))
    return lines


def _make_sizes(results: list[dict]) -> list[str]:
    lines = _header("", "parameters", "MACs a pixel", "256x256: ms", "memory", "training step: ms", "recipe")
    for one in results:
        cells = [f"{one['parameters']:,}", f"{one['macs_per_pixel'] / 1e6:.3f} million"]
        cells += [_spread(_quartiles(one["forward"]), 0, 1000), f"{one['memory']['growth'] / 1e6:.0f} MB"]
        cells += [_spread(_quartiles(one["training_step"]), 0, 1000), f"`options/{one['option_file']}`"]
        lines.append(_row(one["network"], *cells))
    return lines


def _make_onnx(results: list[dict]) -> list[str]:
    lines = _header("", "picture", "PyTorch: ms", "ONNX Runtime: ms", "times PyTorch")
    ways = {(one["network"], tuple(one["size"]), one["backend"]): one for one in results}
    for (network, size, backend), one in ways.items():
        if backend == "torch":
            other = ways[network, size, "onnxruntime"]
            cells = [_spread(_quartiles(way), 0, 1000) for way in (one, other)]
            ratio = f"{one['median'] / other['median']:.2f}"
            lines.append(_row(network, f"{size[1]}x{size[2]}", *cells, ratio))
    return lines


def _make_trials(results: list[dict]) -> list[str]:
    """A row for each variant and length, beside the record's first variant: less what that gave, seed by seed."""
    first = results[0]["trial"]
    last = {(one["trial"], one["iterations"], one["seed"]): list(one["psnr"].values())[-1] for one in results}
    lines = _header("", "iterations", "minutes", "seeds", "PSNR, dB", f"beside *{first}*")
    for trial, length in dict.fromkeys((one["trial"], one["iterations"]) for one in results):
        runs = [one for one in results if (one["trial"], one["iterations"]) == (trial, length)]
        minutes = length * np.median([one["step_seconds"]["median"] for one in runs]) / 60
        psnr = {one["seed"]: last[trial, length, one["seed"]] for one in runs}
        base = {seed: last[first, length, seed] for seed in psnr if (first, length, seed) in last}
        beside = [f"{psnr[seed] - base[seed]:+.2f}" for seed in base if trial != first]
        mean = np.mean(list(psnr.values()))
        lines.append(_row(trial, f"{length:,}", f"{minutes:.1f}", str(len(runs)), f"{mean:.2f}", ", ".join(beside)))
    return lines


def _quartiles(latency: dict) -> dict:
    return {key: latency[key] for key in ("median", "lower_quartile", "upper_quartile")}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page in PAGES:
        page.write_text(render(page.read_text("utf-8"), DOCS / "records"), "utf-8")


if __name__ == "__main__":
    main()
