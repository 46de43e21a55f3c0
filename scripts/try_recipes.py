"""Trains an option file in several variants, for recipes chosen by experiment, and records PSNR against steps and time.

    python scripts/try_recipes.py --group base --output docs/records/recipes.json
    python scripts/try_recipes.py --group found --output docs/records/recipes_found.json
    python scripts/try_recipes.py --group tuned --output docs/records/recipes_tuned.json
    python scripts/try_recipes.py --group continued --output docs/records/recipes_continued.json \
        --iterations 5500 --seeds 1 0 2
    python scripts/try_recipes.py --group control --output docs/records/control.json
    python scripts/try_recipes.py --group control --output docs/records/control.json \
        --trials DnCNN --iterations 1000                              # and for as many seconds
    python scripts/try_recipes.py --group taught --output docs/records/recipes_taught.json
    python scripts/try_recipes.py --group taught --output docs/records/recipes_taught.json \
        --trials HRANet-S --iterations 3000                           # and for as many seconds

Each variant is a `basicsr train` of its own, one after the other, with the option file's schedule squeezed into the
iterations. PSNR is of the option file's validation set (``val.best_on``), cut from training pictures. What a record
holds already is not trained again, and a run that was broken off is resumed: seeds, variants, lengths are added later.
``scripts/make_tables.py`` makes tables from the record, ``scripts/plot_curves.py`` a picture.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from interleave import summarize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hranet_arch import option_files, provenance
from hranet_arch.errors import InputError
from hranet_arch.files import write_text
from hranet_arch.journal import make_key
from hranet_arch.options import list_best_on

PRINT_EVERY = 50  # iterations; a step's time is measured between two lines of the log
OPTION_FILE = Path("options/released/train_hranet_s_gray_s25.yml")
OPTION_FILES = {"continued": Path("options/released/train_hranet_s_gray_s25_continued.yml")}  # by group
TRAINED = "experiments/hranet_s_gray_s25_dda8715.safetensors"  # made by OPTION_FILE; the file above says how to get it
BASE = {"grad_clip": None, "optim_g": {"type": "Adam", "lr": 1e-3}}  # where the experiments began
CLIPPING = {"grad_clip": 0.05}  # near the median norm of the gradient
FOUND = {"grad_clip": 0.05, "optim_g": {"type": "Adam", "lr": 2e-3}}  # by the variants of BASE
MUON = {"grad_clip": 0.05, "optim_g": {"type": "MuonAdam", "lr": 5e-3}}  # by the variants of FOUND
TEACHER = "hranet_gray_s25"
L1 = {"pixel_opt": {"type": "L1Loss"}}
DNCNN = {"network_g": {"type": "DnCNN", "num_in_ch": 1, "num_out_ch": 1}}


def list_trials(group: str, iterations: int) -> dict[str, dict]:
    """What each variant changes of the option file; the first is what the others of its group stand beside."""
    if group == "base":
        return {name: _train(BASE, changes) for name, changes in _vary_base(iterations).items()}
    if group == "found":
        variants = {name: _train(FOUND, changes) for name, changes in _vary_found(iterations).items()}
        # As many pixels as 8 patches of 48.
        return variants | {
            f"{count} patches of {size}": _train(FOUND) | _patches(size, count) for size, count in ((24, 32), (68, 4))
        }
    if group == "tuned":  # from trained weights on, at a lower rate
        start = {"path": {"pretrain_network_g": TRAINED}}
        tuned = start | _train(CLIPPING, {"optim_g": {"lr": 3e-4}})
        return {
            f"{count} patches of {size}": tuned | _patches(size, count) for size, count in ((48, 8), (68, 4), (96, 2))
        }
    if group == "continued":  # its option file begins with trained weights
        return {"MuonAdam": {}, "Adam": _train({"optim_g": {"type": "Adam", "lr": 1e-3}})}
    if group == "taught":
        return {"HRANet-S": _train(MUON), "HRANet-S, taught": _train(MUON, {"teacher": TEACHER})}
    recipes = {"": FOUND, ", MuonAdam": MUON, ", base": BASE}
    trials = {f"HRANet-S{name}": _train(recipe) for name, recipe in recipes.items()}
    return trials | {f"DnCNN{name}": DNCNN | _train(recipe) for name, recipe in recipes.items()}


def _vary_base(iterations: int) -> dict[str, dict]:
    clipped_l1 = L1 | {"grad_clip": 0.6}  # near the median norm of its gradient
    return {
        "base": {},
        "L1": L1,
        "rate 5e-4": {"optim_g": {"lr": 5e-4}},
        "rate 2e-3": {"optim_g": {"lr": 2e-3}},
        "warm-up": {"warmup_iter": iterations // 10},
        "clipping": CLIPPING,
        "no average": {"ema_decay": 0},
        "clipping, rate 2e-3": FOUND,
        "clipping, rate 4e-3": CLIPPING | {"optim_g": {"lr": 4e-3}},
        "L1, clipping": clipped_l1,
        "L1, rate 2e-3": L1 | {"optim_g": {"lr": 2e-3}},
        "L1, clipping, rate 2e-3": clipped_l1 | {"optim_g": {"lr": 2e-3}},
    }


def _vary_found(iterations: int) -> dict[str, dict]:
    milestones = [iterations * part // 20 for part in (10, 15, 18)]
    return {
        "found": {},
        "MuonAdam": MUON,
        "MuonAdam, rate 2e-3": {"optim_g": {"type": "MuonAdam", "lr": 2e-3}},
        "MuonAdam, rate 1e-2": {"optim_g": {"type": "MuonAdam", "lr": 1e-2}},
        "MuonAdam, no clipping": MUON | {"grad_clip": None},
        "clipping at 0.02": {"grad_clip": 0.02},
        "Charbonnier": {"pixel_opt": {"type": "CharbonnierLoss", "eps": 1e-6}, "grad_clip": 0.6},
        "AdamW": {"optim_g": {"type": "AdamW", "lr": 2e-3, "weight_decay": 1e-2}},
        "steps": {"scheduler": {"type": "MultiStepLR", "milestones": milestones, "gamma": 0.3}},
        "fast average": {"ema_decay": 0.99},
        "fp32": {"precision": "fp32"},
    }


def _train(*changes: dict) -> dict:
    merged: dict = {}
    for change in changes:
        merged = option_files.merge(merged, change)
    return {"train": merged}


def _patches(size: int, count: int) -> dict:
    return {"datasets": {"train": {"gt_size": size, "batch_size_per_gpu": count}}}


def squeeze(name: str, seed: int, iterations: int, every: int) -> dict:
    """What all variants change: the run's length."""
    return {
        "name": name,
        "manual_seed": seed,
        "train": {"total_iter": iterations},
        "val": {"val_freq": every},
        "logger": {"print_freq": PRINT_EVERY, "save_checkpoint_freq": every},
    }


def train(opt: Path, changes: list[dict]) -> dict:
    """Runs ``basicsr train``; returns the options that it ran with.

    Raises:
        InputError: if it failed.
    """
    options = option_files.read_options(opt)
    for change in changes:
        options = option_files.merge(options, change)
    path = Path("experiments") / f"{options['name']}.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "hranet_arch", "train", "--auto_resume", "-opt", str(path)]
    if status := subprocess.run(command).returncode:
        raise InputError(f"{path}: its training ended with status {status}, as said above.")
    return options


def read_curve(options: dict) -> dict:
    """PSNR by iteration (of several sets the mean), and seconds a step, from what the run wrote for TensorBoard."""
    events = EventAccumulator(str(Path("tb_logger") / options["name"])).Reload()
    sets = list_best_on(options["val"]["best_on"])
    validations = [{row.step: row.value for row in events.Scalars(f"metrics/{name}/psnr")} for name in sets]
    validated = set().union(*validations)
    psnr = {  # a run that was broken off between two sets has the second's values of a step alone, or the first's
        step: round(float(np.mean([values[step] for values in validations])), 4)
        for step in sorted(validated)
        if all(step in values for values in validations)
    }
    lines = [(one.step, one.wall_time) for one in events.Scalars("losses/l_pix")]
    seconds = [
        (after - before) / PRINT_EVERY
        for (first, before), (second, after) in zip(lines, lines[1:])
        # A validation comes after its iteration's line.
        if second - first == PRINT_EVERY and not any(first <= step < second for step in validated)
    ]
    return {"psnr": psnr, "step_seconds": summarize(seconds)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=["base", "found", "tuned", "continued", "control", "taught"], required=True)
    parser.add_argument("--opt", type=Path, metavar="FILE", help="to vary; default: the group's, in options/released")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON record: new, or to go on with")
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--validate-every", type=int, metavar="N", default=500, help="iterations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of all variants; default: what each names")
    parser.add_argument("--trials", nargs="+", metavar="NAME", help="default: all of the group")
    arguments = parser.parse_args()
    try:
        try_all(arguments)
    except InputError as error:
        print(f"try_recipes: {error}", file=sys.stderr)
        return 1
    return 0


def try_all(arguments: argparse.Namespace) -> None:
    trials = list_trials(arguments.group, arguments.iterations)
    if arguments.precision:
        same = _train({"precision": arguments.precision})
        trials = {name: option_files.merge(changes, same) for name, changes in trials.items()}
    names = arguments.trials or list(trials)
    if unknown := set(names) - set(trials):
        raise InputError(f"--trials {', '.join(sorted(unknown))}: there are {', '.join(trials)}.")
    length, seeds = arguments.iterations, arguments.seeds
    opt = arguments.opt or OPTION_FILES.get(arguments.group, OPTION_FILE)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    record = read_record(arguments.output, {"option_file": opt.as_posix()})
    for one in record["results"]:
        if one["trial"] in names and one["iterations"] == length and one["changes"] != trials[one["trial"]]:
            said = f"{one['trial']}, seed {one['seed']}, was trained with {one['changes']}, and is not trained again"
            print(f"try_recipes: {arguments.output}: {said}.", file=sys.stderr)
    if min(length, arguments.validate_every) < 2 * PRINT_EVERY:
        raise InputError(f"--iterations, --validate-every: at least {2 * PRINT_EVERY}, so that steps can be timed.")
    if not list_best_on((option_files.read_options(opt).get("val") or {}).get("best_on")):
        raise InputError(f"{opt}: val.best_on is missing; it says on which set the variants are compared.")
    done = {(one["trial"], one["iterations"], one["seed"]) for one in record["results"]}
    for name, seed in [(name, seed) for seed in seeds for name in names if (name, length, seed) not in done]:
        # By its changes, too: a run that lies there from a variant that was called alike is not gone on with.
        run = f"{arguments.output.stem}_{name.replace(' ', '_')}_{length}_{seed}_{make_key(trials[name])[:8]}"
        commit = provenance.describe_commit("scripts", "options")  # of this one: a record may grow over commits
        options = train(opt, [squeeze(run, seed, length, arguments.validate_every), trials[name]])
        result = {"trial": name, "iterations": length, "seed": seed, "changes": trials[name]}
        result |= {"commit": commit, **read_curve(options)}
        print(f"{name}, seed {seed}: {list(result['psnr'].values())[-1]:.3f} dB", flush=True)
        record["results"].append(result)
        write_text(arguments.output, json.dumps(record, indent=1) + "\n")


def read_record(path: Path, settings: dict) -> dict:
    """The record to go on with; a new one where there is none.

    Raises:
        InputError: if the record there is of another option file, or not whole.
    """
    if not path.is_file():
        machine = provenance.describe_machine()
        commit = provenance.describe_commit("scripts", "options")
        return {"commit": commit, "machine": machine, "settings": settings, "results": []}
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not a whole record ({error}); give another --output.") from error
    if record["settings"] != settings:
        raise InputError(f"{path}: is of {record['settings']}, not of {settings}; give another --output.")
    return record


if __name__ == "__main__":
    sys.exit(main())
