"""Makes released weight files of finished runs: ``hranet_arch/weights/NAME.safetensors`` and its card, ``NAME.md``.

    python scripts/release_weights.py --run experiments/NAME --opt options/released/train_NAME.yml
    basicsr compare -opt options/compare_gray.yml                      # measures released weights by their names
    python scripts/release_weights.py --record results/compare_gray/record.json           # what it says into cards

The weights are the run's ``net_g_best.pth``, which a validation set has picked. What they are for, denoising,
super-resolution or JPEG's blocks, follows from how the run's training pictures were made bad. Their results on test
sets come from a comparison of that task that measured these very tensors. Networks for several steps at once, such as
the noise of photographs, have no comparison: their validation is all that is said. Weights that validate no better than
those that are there already do not replace them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from hranet_arch import complexity, networks, option_files, options, provenance, testsets
from hranet_arch.checkpoints import hash_params, load_checkpoint, select_params
from hranet_arch.errors import InputError
from hranet_arch.files import whole_file, write_text
from hranet_arch.hranet import HRANet
from hranet_arch.images import list_pictures
from hranet_arch.record import Record, read_record
from hranet_arch.scores import is_partial
from hranet_arch.validation import describe_measure

WEIGHTS = Path(__file__).resolve().parent.parent / "hranet_arch" / "weights"
LARGEST = 5_000_000  # bytes
STEPS = {  # of a DegradationDataset: the task, the step's argument that says how bad, and what it is called in a card
    "GaussianNoise": ("denoise", "sigma"),
    "BicubicDownsampling": ("sr", "scale"),
    "JPEGCompression": ("jpeg", "quality"),
}
NOISES = ("GaussianNoise", "PoissonGaussianNoise")
LEVELS = {**dict(STEPS.values()), None: "degradations"}  # by task; which of them a card has says its task


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="DIR", help="experiments/NAME: its weights are released")
    what.add_argument("--record", type=Path, metavar="FILE", help="record.json of a comparison: goes into the cards")
    parser.add_argument("--opt", type=Path, metavar="FILE", help="with --run: its option file in the repository")
    parser.add_argument("--output", type=Path, default=WEIGHTS, metavar="DIR", help="where released weights lie")
    arguments = parser.parse_args(argv)
    if (arguments.run is None) != (arguments.opt is None):
        parser.error("--run and --opt go together.")
    try:
        if arguments.run:
            print(release(arguments.run, arguments.opt, arguments.output))
        else:
            print(*update_cards(read_record(arguments.record), arguments.output), sep="\n")
    except InputError as error:
        print(f"release_weights: {error}", file=sys.stderr)
        return 1
    return 0


def release(run: Path, recipe: Path, output: Path) -> str:
    """Writes weights and card; returns a line that says what was done.

    Raises:
        InputError: if the option file is another training's, or the weights are too large, no better than others there,
            or not those that the run's newest training state speaks of.
    """
    # The newest: a run that was resumed by another file has several.
    newest = max(run.glob("*.y*ml"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise InputError(
            f"{run}: is no training's folder: it holds no option file. It has the name that is in {recipe}."
        )
    opt = option_files.read_options(newest)
    if "network_g" not in opt:
        raise InputError(f"{newest}: is not the option file of a training, and newer than that of {run}. Move it away.")
    if (name := option_files.read_options(recipe).get("name")) != opt["name"]:
        raise InputError(f"{recipe}: trains {name}, and {run} is of {opt['name']}. Give the option file that made it.")
    if opt["network_g"]["type"] != "HRANet":
        raise InputError(f"{run}: trains {opt['network_g']['type']}; what is released here are HRANets.")
    checkpoint = load_checkpoint(run / "models" / "net_g_best.pth")
    params = select_params(checkpoint)[0]
    arguments = {key: value for key, value in opt["network_g"].items() if key != "type"}
    network = HRANet(**arguments)
    network.load_state_dict(params)
    task, level = read_degradation(opt["datasets"]["train"])
    card = describe(run, recipe, opt, network)
    card |= {"results": {}, "commit": provenance.describe_commit("scripts", "options")}
    best = card["validation"]["iteration"]
    if checkpoint.get("iter", best) != best:  # absent before 2026-11-26
        raise InputError(
            f"{run}: net_g_best.pth is of iteration {checkpoint['iter']}, and for the newest training state {best} is "
            "the best: the run ended between its checkpoints. Go on with --auto_resume to the next."
        )
    path = output / f"{opt['name']}.safetensors"
    require_better(card, path)
    metadata = {
        "network_g": json.dumps(opt["network_g"]),
        "color": card["color"],
        LEVELS[task]: json.dumps(card[LEVELS[task]]),
    }
    if task or level[0]["type"] in NOISES:  # noise and then JPEG is for denoising; one of several is for any
        metadata["task"] = task or "denoise"
    write(path, params, metadata, card)
    return f"{path}: validates at {card['validation']['psnr']:.4f} dB"


def update_cards(record: Record, folder: Path) -> list[str]:
    """Puts what a comparison measured into the released files that it measured; returns a line about each.

    Raises:
        InputError: if it measured none of them.
    """
    lines = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "card" not in metadata:  # not released from here
            continue
        card, params = json.loads(metadata["card"]), load_checkpoint(path)
        is_of_task = LEVELS[record.protocol.task] in card
        if is_of_task and (results := find_results(record, hash_params(params))):
            require_all(card.get("results", {}), results, path)
            card |= {
                "results": results,
                **describe_protocol(record),
                "testsets": {name: one.sha256.get("all", one.sha256) for name, one in record.testsets.items()},
                "commit": record.commit,
                "machine": record.machine.device_name,
            }
            write(path, params, metadata, card)
            lines.append(f"{path}: measured on {', '.join(results)}")
    if not lines:
        raise InputError(f"the record measured none of the weights in {folder}. Name them in its option file.")
    return lines


def require_all(old: dict, new: dict, path: Path) -> None:
    """Raises InputError where a card would lose a test set or a level: all of its scores are of one comparison."""
    lost = [f"{testset} at {level}" for testset, levels in old.items() for level in levels
            if level not in new.get(testset, {})]  # fmt: skip
    if lost:
        raise InputError(f"{path}: has scores of {', '.join(lost)}, which the record has not. Compare on these, too.")


def write(path: Path, params: dict[str, Tensor], metadata: dict[str, str], card: dict) -> None:
    """The file, whole, and its card."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in params.items()}
    with whole_file(path) as temporary:
        temporary.write_bytes(save(tensors, {**metadata, "card": json.dumps(card)}))
        if temporary.stat().st_size > LARGEST:
            raise InputError(f"{path}: larger than {LARGEST} bytes; it is not released.")
    write_text(path.with_suffix(".md"), format_card(card))


def read_degradation(dataset: dict) -> tuple[str | None, object]:
    """The task that a dataset's pictures are made bad for, and how bad: its sigma, scale or quality.

    Where it takes several steps: None, and the steps.
    """
    steps = list_steps(dataset)
    if len(steps) != 1 or steps[0]["type"] not in STEPS:
        return None, steps
    task, argument = STEPS[steps[0]["type"]]
    return task, steps[0][argument]


def list_steps(dataset: dict) -> list[dict]:
    """How a dataset's pictures are made bad, in the words of a ``DegradationDataset``."""
    if dataset["type"] == "GaussianDenoisingDataset":
        return [{"type": "GaussianNoise", "sigma": dataset["sigma"]}]
    if "degradations" not in dataset:
        raise InputError(f"{dataset['name']}: a card says how pictures were made bad; its pictures came as they are.")
    return dataset["degradations"]


def find_results(record: Record, sha256: str) -> dict[str, dict[str, dict]]:
    """PSNR and SSIM by test set and level (sigma, scale or quality), of the weights with this hash, alone."""
    results: dict[str, dict[str, dict]] = {}
    for one in record.results:
        level, method = f"{one.level:g}", record.methods[one.method]
        measured = method.weights.get(level, method.weights.get("all"))
        is_own = measured and measured.sha256 == sha256 and not method.ensemble
        if is_own and None not in (one.psnr, one.ssim) and not is_partial(record, one):
            scores = {"psnr": round(one.psnr, 4), "ssim": round(one.ssim, 6), "pictures": len(one.pictures)}
            results.setdefault(one.testset, {})[level] = scores
    return results


def describe(run: Path, recipe: Path, opt: dict, network: HRANet) -> dict:
    train, names = opt["datasets"]["train"], options.list_best_on(opt["val"]["best_on"])
    by_name = {one["name"]: one for one in opt["datasets"].values() if one is not train}
    vals = [by_name[name] for name in names]
    task, level = read_degradation(train)
    # From the recipe: the options of a run that was resumed name a checkpoint of its own.
    own = option_files.read_options(recipe)
    start, teacher = (own.get("path") or {}).get("pretrain_network_g"), (own.get("train") or {}).get("teacher")
    state = load_newest_state(run)
    metric, chosen = next(iter(opt["val"]["metrics"].items()))  # it has picked the best
    if chosen["type"] != "calculate_psnr":
        raise InputError(
            f"{run}: its best weights were picked by {chosen['type']}; a card says by which PSNR. Train with "
            "calculate_psnr as the first of val.metrics."
        )
    key = ", ".join(names)  # of the sets' mean, where there are several
    if key not in state["best"]:
        raise InputError(f"{run}: its newest training state knows no best by val.best_on: [{key}].")
    best = state.get("picked") or state["best"][key][metric]  # the second before 2026-11-29
    if best.get("of", measured := describe_measure(opt, names, metric)) != measured:
        raise InputError(
            f"{run}: net_g_best.pth was picked by other sets, or another metric, than val.best_on: [{key}] and "
            f"{metric}. Go on with --auto_resume to the next validation."
        )
    return {
        "name": opt["name"],
        "network": opt["network_g"],
        "parameters": complexity.count_parameters(network),
        "color": "rgb" if train["color"] == "rgb" else "gray",  # y is the grey of colour pictures
        LEVELS[task]: level,
        "training": {
            "option_file": recipe.as_posix(),
            "set": train["name"],
            "data_sha256": hash_data(train),
            "pictures": len(list_files(train)),
            "iterations": state["iter"],
            "scheduled": opt["train"]["total_iter"],
            "batch": train["batch_size_per_gpu"],
            "patch": train["gt_size"],
            "precision": state.get("precision", opt["train"]["precision"]),  # absent before 2026-11-25
            "seed": opt["manual_seed"],
            **(describe_weights("start", start) if start else {}),
            **(describe_weights("teacher", teacher) if teacher else {}),
        },
        "validation": {
            "set": key,
            "data_sha256": _unpack([hash_data(val) for val in vals]),
            LEVELS[task]: _unpack([read_degradation(val)[1] if task else list_steps(val) for val in vals]),
            "psnr": round(best["val"], 4),
            "iteration": best["iter"],
        },
        "licence": "Trained on pictures of the Berkeley segmentation data sets, which are for non-commercial research "
        "and education.",
    }


def _unpack(values: list) -> object:
    """The one, where there is one: of several sets a card has lists."""
    return values[0] if len(values) == 1 else values


def describe_weights(key: str, weights: str) -> dict:
    """What a training began with, or learnt from: a file's weights, or those of a released network as they are now."""
    params, _ = networks.read_weights(networks.find_weights(weights))
    return {key: Path(weights).stem, f"{key}_sha256": hash_params(params)}


def describe_protocol(record: Record) -> dict:
    """How the pictures were measured, as far as the tasks differ in it."""
    protocol = record.protocol.model_dump()
    if record.protocol.task == "denoise":
        return {"noise": protocol["noise"]}
    names = ("channel", "crop_border", "compression", "metrics")
    return {"protocol": {name: protocol[name] for name in names if protocol.get(name) is not None}}


def load_newest_state(run: Path) -> dict:
    states = sorted((run / "training_states").glob("*.state"), key=lambda path: int(path.stem))
    if not states:
        raise InputError(f"{run}: holds no training state; is it a finished run?")
    return load_checkpoint(states[-1])


def list_files(dataset: dict) -> list[Path]:
    """The files of a folder, or those that its list names."""
    root = Path(dataset["dataroot_gt"])
    if not root.is_dir() or root.suffix == ".lmdb":
        raise InputError(f"{root}: a released recipe trains on a folder of pictures, whose pixels can be hashed.")
    listed = dataset.get("meta_info_file")
    if listed is None:
        return list_pictures(root)
    return [root / line.split(" ")[0] for line in Path(listed).read_text().splitlines() if line.strip()]


def hash_data(dataset: dict) -> str:
    """SHA-256 over the sorted hashes of the pictures' pixels."""
    return testsets.hash_set(list_files(dataset))


def require_better(card: dict, path: Path) -> None:
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        old = json.loads(file.metadata()["card"])
    if any(old["validation"].get(key) != card["validation"].get(key) for key in ("data_sha256", *LEVELS.values())):
        fault = "validated on another set, or at other levels"
        raise InputError(f"{path}: {fault}; the two cannot be compared. Move it away first.")
    if old["validation"]["psnr"] >= card["validation"]["psnr"]:
        better, worse = old["validation"]["psnr"], card["validation"]["psnr"]
        raise InputError(f"{path}: validates at {better} dB, the new weights at {worse}: they stay as they are.")


def format_results(card: dict) -> list[str]:
    if not card["results"] and "degradations" not in card:
        return ["Not compared yet."]
    if not card["results"]:
        several = "No comparison is of pictures made bad in several ways"
        return [f"{several}; what comparisons of one say of it stands in `docs/results.md`."]
    rows = [
        f"| {testset} | {level} | {scores['psnr']:.2f} | {scores['ssim']:.4f} |"
        for testset, levels in card["results"].items()
        for level, scores in levels.items()
    ]
    name = next(name for name in LEVELS.values() if name in card)
    measured = f"{format_protocol(card)} Measured on {card['machine']}, commit {card['commit'][:12]}."
    return [f"| test set | {name} | PSNR, dB | SSIM |", "|---|---|---|---|", *rows, "", measured]


def format_protocol(card: dict) -> str:
    """How the test sets were measured."""
    if "noise" in card:
        return f"Noise: {card['noise']['name']}, seed: {card['noise']['seed']}."
    protocol = card["protocol"]
    channel = {"gray": "the grey level", "rgb": "red, green and blue", "y": "the luma"}[protocol["channel"]]
    border = ", without a border of as many pixels as the scale" if protocol["crop_border"] == "scale" else ""
    written = f"JPEGs: {protocol['compression'].rstrip('.')}. " if "compression" in protocol else ""
    return f"{written}PSNR and SSIM of {channel}{border}."


def _name_level(card: dict) -> str:
    """The validation's level or levels, where the network is for several."""
    key = next((key for key in LEVELS.values() if key in card), None)
    level = card["validation"].get(key)
    if isinstance(card["validation"]["data_sha256"], list):  # of several sets
        levels = "" if key in (None, "degradations") else f" at {key} {', '.join(map(str, level))}"
        return f", the mean{levels},"
    is_one = isinstance(level, (int, float)) and level != card[key]
    return f" at {key} {level:g}," if is_one else ""


def format_card(card: dict) -> str:
    training, validation = card["training"], card["validation"]
    arguments = ", ".join(f"{key}={value}" for key, value in card["network"].items() if key != "type")
    start = f", from the layers that it shares with {training['start']}" if "start" in training else ""
    taught = f", taught by {training['teacher']}" if "teacher" in training else ""
    return "\n".join([
        f"# {card['name']}",
        "",
        f"`HRANet({arguments})`, {card['parameters']:,} parameters; {networks.describe_purpose(card)}. Made by "
        "`scripts/release_weights.py`; do not edit.",
        "",
        *format_results(card),
        "",
        f"- Training: `basicsr train -opt {training['option_file']}`: {training['iterations']:,} of "
        f"{training['scheduled']:,} batches of {training['batch']} patches of {training['patch']}x{training['patch']}, "
        f"{training['precision']}, seed {training['seed']}, on {training['pictures']} pictures of {training['set']} "
        f"(SHA-256 {training['data_sha256'][:12]}){start}{taught}.",
        f"- Picked by {validation['set']} (not a test set): {validation['psnr']:.2f} dB{_name_level(card)} "
        f"at iteration {validation['iteration']:,}.",
        f"- {card['licence']}",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
