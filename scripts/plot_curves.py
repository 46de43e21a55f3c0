"""Draws a record of ``scripts/try_recipes.py``: PSNR against iterations, and against seconds of training.

    python scripts/plot_curves.py --record docs/records/control.json --output docs/control.png

Seconds are iterations times the variant's median time of a step; validation is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the choice of a back end without a screen


def draw(record: dict, output: Path) -> None:
    figure, (by_iteration, by_time) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    names = {id(one): f"{one['trial']}, {one['iterations']:,} iterations" for one in record["results"]}
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(names.values()))}
    for one in record["results"]:
        iterations = [int(key) for key in one["psnr"]]
        minutes = [iteration * one["step_seconds"]["median"] / 60 for iteration in iterations]
        for axes, places in ((by_iteration, iterations), (by_time, minutes)):
            name = names[id(one)]
            axes.plot(places, list(one["psnr"].values()), ".-", color=colors[name], label=name)
    by_iteration.set(xlabel="iterations", ylabel="PSNR on the validation pictures, dB")
    by_time.set(xlabel="minutes of training")
    for axes in (by_iteration, by_time):
        axes.grid(alpha=0.3)
    handles = dict(zip(*reversed(by_time.get_legend_handles_labels())))  # one for the seeds of a variant
    by_time.legend(handles.values(), handles.keys(), loc="lower right")
    figure.savefig(output, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="picture to write: png, svg or pdf")
    arguments = parser.parse_args()
    draw(json.loads(arguments.record.read_text("utf-8")), arguments.output)


if __name__ == "__main__":
    main()
