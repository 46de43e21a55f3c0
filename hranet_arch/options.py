"""What option files say (``option_files`` has read it), checked as a whole and completed.

``schema`` says which keys there are. Names of architectures, datasets and so on are looked up in the registries that
the caller hands in: this module never imports BasicSR.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hranet_arch import networks, schema
from hranet_arch.errors import InputError
from hranet_arch.schema import suggest

logger = logging.getLogger(__name__)

# 'arch', 'dataset', 'degradation', 'loss', 'metric', 'model', 'optimizer', 'scheduler'
Registries = Mapping[str, Mapping[str, Any]]

# Of comparisons, as the field has them.
LEVELS = {"sigma": "15, 25, 50", "scale": "2, 3, 4", "quality": "10, 20, 30, 40"}


def check_options(options: dict, registries: Registries, *, is_train: bool) -> dict:
    """Checks options as a whole and fills in the defaults.

    Args:
        options: what ``read_options`` and ``override`` gave. A section or a set given as null is taken for absent.
        registries: the names that may be used, by kind.
        is_train: whether they are to be trained or tested with.

    Returns:
        The complete options, as plain values.

    Raises:
        InputError: with every mistake, a line each.
    """
    errors: list[str] = []
    options = _with_periods(_without_absent(options))
    section, is_open = _find_section(options, registries)
    checked = schema.validate(section, options, "", errors, is_open)
    errors += _check_phases(_items(options, "datasets"), is_train)
    datasets = {}
    for phase, dataset in _items(options, "datasets").items():
        if not isinstance(dataset, dict):
            continue  # the schema has said so
        kind = str(dataset.get("type"))
        section = schema.DATASETS.get(kind, schema.OtherDataset)
        complete = schema.validate(section, dataset, f"datasets.{phase}.", errors, kind not in schema.DATASETS)
        if complete:
            errors += _check_dataset(f"datasets.{phase}", complete, phase)
            datasets[phase] = complete
    errors += _check_names(options, registries)
    errors += _check_paths(_items(options, "path"))
    if checked and len(datasets) == len(checked["datasets"]):
        checked["datasets"] = datasets
        errors += _check_together(checked, is_train)
    if errors:
        raise InputError("\n".join(dict.fromkeys(errors)))
    return checked


def _items(options: Any, key: str) -> dict:
    """The mapping under a key; empty where there is none, or something else that the schema complains about."""
    value = options.get(key) if isinstance(options, dict) else None
    return value if isinstance(value, dict) else {}


def _without_absent(options: dict) -> dict:
    options = {key: value for key, value in options.items() if value is not None}
    if _items(options, "datasets"):
        options["datasets"] = {phase: dataset for phase, dataset in options["datasets"].items() if dataset is not None}
    if _items(_items(options, "val"), "metrics"):
        metrics = {name: metric for name, metric in options["val"]["metrics"].items() if metric is not None}
        options["val"] = {**options["val"], "metrics": metrics}
    return options


def _with_periods(options: dict) -> dict:
    """BasicSR's cosine wants its length said; it is that of the training where the file says none."""
    train = _items(options, "train")
    scheduler = {"periods": [train.get("total_iter")], **_items(train, "scheduler")}
    is_cosine = scheduler.get("type") == "CosineAnnealingRestartLR"
    return {**options, "train": {**train, "scheduler": scheduler}} if is_cosine else options


def _find_section(options: dict, registries: Registries) -> tuple[type[schema.Options], bool]:
    """The schema for the model, or for the one that a mistyped name means; and whether it may have keys of its own."""
    name = str(options.get("model_type"))
    name = next(iter(difflib.get_close_matches(name, registries["model"], n=1)), name)
    model = registries["model"].get(name)
    bases = [cls.__name__ for cls in inspect.getmro(model)] if inspect.isclass(model) else []
    section = schema.MODELS.get(name, schema.RestorationOptions if "RestorationModel" in bases else schema.Options)
    return section, name not in schema.MODELS


def _check_phases(datasets: dict, is_train: bool) -> list[str]:
    errors = []
    allowed = r"train|val(_\w+)?" if is_train else r"(test|val)(_\w+)?"
    names = "train, val, val_2, ..." if is_train else "test, test_2, ... (or val)"
    for phase in datasets:
        if not re.fullmatch(allowed, str(phase)):
            errors.append(f"datasets.{phase}: {'training' if is_train else 'a test'} has sets named {names}.")
    if is_train and "train" not in datasets:
        errors.append("datasets.train: is missing: there is nothing to train on.")
    if not is_train and not datasets:
        errors.append("datasets: are missing: there is nothing to test on.")
    sets = [str(value.get("name")) for phase, value in datasets.items() if phase != "train" and isinstance(value, dict)]
    twice = sorted({name for name in sets if sets.count(name) > 1})
    return errors + [f"datasets: two sets are named '{name}'; each needs a name of its own." for name in twice]


def _check_names(options: dict, registries: Registries) -> list[str]:
    """Every ``type`` against its registry, and the arguments against the signature of what it names."""
    train = _items(options, "train")
    named = [("model", "model_type", {"type": options.get("model_type")}, None)]
    named += [("arch", key, value, ()) for key, value in options.items() if str(key).startswith("network_")]
    named += [("dataset", f"datasets.{key}", value, None) for key, value in _items(options, "datasets").items()]
    for phase, dataset in _items(options, "datasets").items():
        steps = dataset.get("degradations") if isinstance(dataset, dict) else None
        named += [("degradation", *step, ()) for step in _list_steps(steps, f"datasets.{phase}.degradations")]
    named += [("loss", f"train.{key}", value, ()) for key, value in train.items() if str(key).endswith("_opt")]
    optimizers = {key: value for key, value in train.items() if str(key).startswith("optim_")}
    named += [("optimizer", f"train.{key}", value, ("params",)) for key, value in optimizers.items()]
    named += [("scheduler", "train.scheduler", train.get("scheduler"), ("optimizer",))]
    metrics = _items(_items(options, "val"), "metrics")
    named += [("metric", f"val.metrics.{key}", value, ("img", "img2", "better")) for key, value in metrics.items()]
    errors = []
    for kind, where, value, given in named:
        name = value.get("type") if isinstance(value, dict) else None
        if not isinstance(name, str):
            continue  # the schema has said so
        entry = registries[kind].get(name, registries[kind].get(f"{name}_basicsr"))
        if entry is None:
            label = where if kind == "model" else f"{where}.type"
            known = [other.removesuffix("_basicsr") for other in registries[kind]]
            errors.append(f"{label}: there is no {kind} '{name}'.{suggest(name, known)}")
        elif given is not None:
            errors += _check_arguments(entry, where, value, given)
    return errors


def _list_steps(steps: Any, where: str) -> list[tuple[str, Any]]:
    """The steps of a list of degradations by their place, with those in the branches of a ``OneOf``."""
    found = []
    for i, step in enumerate(steps if isinstance(steps, list) else []):
        found.append((f"{where}.{i}", step))
        branches = step.get("branches") if isinstance(step, dict) else None
        for j, branch in enumerate(branches if isinstance(branches, list) else []):
            found += _list_steps(branch, f"{where}.{i}.branches.{j}")
    return found


def check_comparison(options: dict, registries: Registries) -> dict:
    """Checks the options of a comparison and fills in the defaults; as ``check_options`` does for a run.

    Sets, weights and levels that cannot be used are no mistakes here: ``compare`` names them and measures the rest.
    """
    errors: list[str] = []
    options = {key: value for key, value in options.items() if value is not None}
    for key in ("methods", "testsets"):  # null takes out one of the base's
        if _items(options, key):
            options[key] = {name: entry for name, entry in options[key].items() if entry is not None}
    checked = schema.validate(schema.Comparison, options, "", errors)
    methods = _items(options, "methods")
    for name, entry in methods.items():
        if not isinstance(entry, dict):
            continue  # the schema has said so
        if entry.get("method") is None and entry.get("weights") is None and entry.get("network_g") is None:
            errors.append(f"methods.{name}: names neither weights, nor network_g, nor method.")
        elif entry.get("method") is not None and (entry.get("weights") or entry.get("network_g")):
            errors.append(f"methods.{name}: has a method and a network; keep one of them.")
        if entry.get("method") is not None and entry.get("channel") == "y":
            errors.append(f"methods.{name}.channel: a classical method takes all channels. Leave it out.")
        if entry.get("enlarge_first") and options.get("task") != "sr":
            errors.append(f"methods.{name}.enlarge_first: goes with task sr alone. Leave it out.")
        if entry.get("channel") == "y" and options.get("color") == "gray":
            errors.append(f"methods.{name}.channel: grey pictures have one channel. Leave it out.")
        faults = _check_names({"network_g": entry.get("network_g")}, registries)
        errors += [f"methods.{name}.{fault}" for fault in faults]
    if checked:
        errors += _check_levels(checked)
    if errors:
        raise InputError("\n".join(dict.fromkeys(errors)))
    return _expand_home(checked)


def _expand_home(comparison: dict) -> dict:
    """``~`` at the beginning of folders, as a training's data may have it."""
    expand = os.path.expanduser
    roots = {key: expand(comparison[key]) for key in ("datasets_root", "weights_root")}
    sets = {
        name: {kind: expand(one) for kind, one in folder.items()} if isinstance(folder, dict) else expand(folder)
        for name, folder in comparison["testsets"].items()
    }
    return {**comparison, **roots, "testsets": sets}


def _check_levels(comparison: dict) -> list[str]:
    task = comparison["task"]
    wanted, errors = schema.LEVEL_KEYS[task], []
    if not comparison.get(wanted):
        errors.append(f"{wanted}: is missing; task {task} needs a list, such as [{LEVELS[wanted]}].")
    for other in schema.LEVEL_KEYS.values():
        if other != wanted and comparison.get(other):
            errors.append(f"{other}: does not go with task {task}; it has {wanted}.")
    if task == "sr" and comparison["color"] == "gray":
        errors.append("color: task sr takes rgb, and is measured on the luma. A network for it has channel: y.")
    for key in ("noise", "noise_seed"):
        if task != "denoise" and comparison[key] != schema.Comparison.model_fields[key].default:
            errors.append(f"{key}: does not go with task {task}. Leave it out.")
    for name, folder in comparison["testsets"].items():
        if isinstance(folder, dict) != (task == "sr"):
            layout = "a folder" if task != "sr" else "two folders, {gt: ..., lq: ...}"
            errors.append(f"testsets.{name}: task {task} takes {layout}.")
    return errors


def check_network(network: dict, registries: Registries) -> None:
    """Raises InputError where a ``network_g`` alone names what is not registered, or arguments it does not take."""
    errors = _check_names({"network_g": network}, registries)
    if errors:
        raise InputError("\n".join(errors))


def _check_arguments(entry: Any, where: str, value: dict, given: tuple[str, ...]) -> list[str]:
    """Unknown and missing arguments; ``given`` are those that do not come from the file."""
    parameters = inspect.signature(entry).parameters
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and n not in given}
    own = {str(key) for key in value if key != "type" and key not in given}
    missing = [n for n, p in named.items() if p.default is p.empty and n not in own]
    errors = [f"{where}.{name}: is missing; {value['type']} needs it." for name in missing]
    # BasicSR's SwinIR and metrics have **kwargs only to swallow what they do not know; elsewhere it may be passed on.
    swallows = entry.__module__.startswith(("basicsr.", "hranet_arch."))
    if swallows or not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        errors += [f"{where}.{key}: unknown key.{suggest(key, named)}" for key in sorted(own - set(named))]
    return errors


def _check_dataset(where: str, dataset: dict, phase: str) -> list[str]:
    errors = []
    roots = {key: value for key, value in dataset.items() if key.startswith("dataroot_") and isinstance(value, str)}
    # os.path's: pathlib's fails where there is no such user.
    roots = {key: str(Path(os.path.expanduser(root))) for key, root in roots.items()}
    dataset.update(roots)
    for key in roots:
        if not Path(dataset[key]).exists():
            errors.append(f"{where}.{key}: {dataset[key]} is not there. {_how_to_make(key, dataset)}")
    is_lmdb = bool(roots) and all(root.endswith(".lmdb") for root in roots.values())
    backend = dataset.setdefault("io_backend", {"type": "lmdb" if is_lmdb else "disk"})
    if roots and (backend["type"] == "lmdb") != is_lmdb:
        found = f"'{backend['type']}' does not fit {', '.join(roots.values())}"
        errors.append(f"{where}.io_backend.type: {found}; LMDBs, and they alone, end in .lmdb.")
    listing = dataset.get("meta_info_file")
    if listing:
        dataset["meta_info_file"] = listing = os.path.expanduser(listing)
    if listing and is_lmdb and dataset["type"] in schema.DATASETS:
        errors.append(f"{where}.meta_info_file: LMDBs have a list of their own. Make one of these pictures alone.")
    elif listing and not Path(listing).is_file():
        errors.append(f"{where}.meta_info_file: {listing} is not there. Without this line all pictures are used.")
    if dataset["persistent_workers"] and (phase != "train" or dataset["num_worker_per_gpu"] == 0):
        why = "validation has no workers" if phase != "train" else "num_worker_per_gpu is 0"
        errors.append(f"{where}.persistent_workers: true, but {why}; remove it.")
    if dataset.get("prefetch_mode") == "cpu" and (dataset["num_worker_per_gpu"] == 0 or dataset["persistent_workers"]):
        # Its thread would draw from the network's generators, or read from workers that another thread reads from.
        errors.append(f"{where}.prefetch_mode: 'cpu' needs num_worker_per_gpu > 0, and no persistent_workers.")
    if dataset.get("prefetch_mode") == "cuda" and not dataset["pin_memory"]:
        errors.append(f"{where}.prefetch_mode: 'cuda' needs pin_memory: true.")
    if dataset.get("degrade_on") == "device":
        errors += _check_degraded_on_device(where, dataset, phase)
    if isinstance(dataset.get("sigma"), list) and phase != "train":
        errors.append(f"{where}.sigma: {dataset['sigma']} is a range; a test has one level. Name a set for each level.")
    return errors


def _check_degraded_on_device(where: str, dataset: dict, phase: str) -> list[str]:
    if phase != "train":
        return [f"{where}.degrade_on: device is for training; tests have the field's fixed noise. Remove it."]
    if dataset.get("prefetch_mode"):
        return [f"{where}.prefetch_mode: with degrade_on: device there is nothing to read ahead; remove it."]
    return []


def _how_to_make(key: str, dataset: dict) -> str:
    root = dataset[key]
    if not root.endswith(".lmdb"):
        return "Give the folder of your pictures."
    if "dataroot_lq" not in dataset or "dataroot_gt" not in dataset:
        return f"Make it with: basicsr prepare lmdb --input FOLDER --output {root}"
    outputs = f"--output-lq {dataset['dataroot_lq']} --output-gt {dataset['dataroot_gt']}"
    return f"Make it with: basicsr prepare pairs --input-lq NOISY --input-gt CLEAN {outputs}"


def _check_paths(paths: dict) -> list[str]:
    """Files to read; ``~`` is the home folder, as in BasicSR."""
    errors = []
    for key, value in paths.items():
        if str(key).startswith(("pretrain_network", "resume_state")) and isinstance(value, str):
            try:
                path = _find_file(key, value)
            except InputError as error:
                errors.append(f"path.{key}: {error}")
                continue
            if not path.is_file():
                others = sorted(other.name for other in path.parent.glob(f"*{path.suffix}"))
                there = f" There are {', '.join(others)}." if others else ""
                errors.append(f"path.{key}: {value} is not there.{there}")
    return errors


def _find_file(key: str, value: str) -> Path:
    """A file; for weights, a released network's name will do."""
    return Path(os.path.expanduser(value)) if key == "resume_state" else networks.find_weights(value)


def _check_together(options: dict, is_train: bool) -> list[str]:
    """What one key says of another; completes what depends on others."""
    errors = _check_validation(options) if is_train else []
    dataset = options["datasets"].get("train", {})
    if dataset.get("type") == "SingleImageDataset" and options["model_type"] in schema.MODELS:
        why = "SingleImageDataset has no clean pictures and cuts no patches"
        instead = "PairedDenoisingDataset; for a train.teacher its dataroot_gt may be the noisy pictures, too"
        errors.append(f"datasets.train.type: {why}. Take {instead}.")
    if options["model_type"] == "SwinIRModel" and "window_size" not in options["network_g"]:
        errors.append("model_type: SwinIRModel needs network_g.window_size; for other networks write RestorationModel.")
    for phase, dataset in options["datasets"].items():
        if dataset.setdefault("scale", options["scale"]) != options["scale"]:
            errors.append(f"datasets.{phase}.scale: {dataset['scale']}, but the file's scale is {options['scale']}.")
    wandb = options["logger"].get("wandb", {})
    if wandb.get("project") and importlib.util.find_spec("wandb") is None:
        errors.append("logger.wandb.project: wandb is not installed. Run: pip install wandb, or write project: ~")
    if wandb.get("project") and not options["logger"]["use_tb_logger"]:
        errors.append("logger.wandb.project: needs use_tb_logger: true.")
    for key, value in options["path"].items():
        if isinstance(value, str) and key.startswith(("pretrain_network", "resume_state")):
            with contextlib.suppress(InputError):  # which has been told of
                options["path"][key] = str(_find_file(key, value))
    if is_train:
        return errors + _check_training(options)
    # Training validates the average of the weights; so does a test, unless told otherwise.
    options["path"].setdefault("param_key_g", "params_ema")
    return errors


def list_best_on(best_on: str | list[str] | None) -> list[str]:
    """The validation sets that pick the best network, by their mean; in whichever order, the same."""
    return [best_on] if isinstance(best_on, str) else sorted(best_on or [])


def _check_validation(options: dict) -> list[str]:
    datasets = [dataset for phase, dataset in options["datasets"].items() if phase != "train"]
    sets = [dataset["name"] for dataset in datasets]
    noisy_alone = [dataset["name"] for dataset in datasets if dataset["type"] == "SingleImageDataset"]
    best_on = options["val"].get("best_on")
    is_upstreams = options["model_type"] in ("SRModel", "SwinIRModel")
    has_metrics = bool(options["val"].get("metrics"))
    if best_on == "first":
        best_on = [name for name in sets if name not in noisy_alone][:1] if has_metrics else []
    elif best_on and is_upstreams:
        logger.warning("val.best_on: %s keeps no best checkpoint; RestorationModel does.", options["model_type"])
    for key in ("tile", "halo"):
        if is_upstreams and options["val"].get(key, default := schema.Val.model_fields[key].default) != default:
            logger.warning("val.%s: %s runs whole pictures; RestorationModel has tiles.", key, options["model_type"])
    options["val"]["best_on"] = best_on = list_best_on(best_on)
    unknown = [name for name in best_on if name not in sets]
    twice = {name for name in best_on if best_on.count(name) > 1}
    pick_nothing = [name for name in best_on if name in noisy_alone]
    if best_on and not has_metrics:
        return ["val.best_on: needs val.metrics, the first of which picks the best network."]
    return [
        *(f"val.best_on: no validation set is named '{name}'.{suggest(name, sets)}" for name in unknown),
        *(f"val.best_on: names '{name}' twice." for name in twice),
        *(
            f"val.best_on: '{name}' has no clean pictures to measure by; name sets that have some, or write best_on: ~"
            for name in pick_nothing
        ),
    ]


def _check_training(options: dict) -> list[str]:
    train = options.get("train")
    if train is None:
        return ["train: is missing."]
    errors = _check_schedule(train["scheduler"], train["total_iter"])
    has_loss = train.get("pixel_opt") or train.get("perceptual_opt")
    if options["model_type"] in schema.MODELS and options["model_type"] != "DenoisingModel" and not has_loss:
        errors.append(f"train.pixel_opt: is missing; {options['model_type']} needs a loss, such as {{type: L1Loss}}.")
    batch = options["datasets"].get("train", {}).get("batch_size_per_gpu", 1)
    if train.get("accumulate", 1) > batch:
        errors.append(f"train.accumulate: {train['accumulate']} parts of a batch of {batch}; at most {batch}.")
    if train.get("accumulate", 1) > 1 and (train.get("pixel_opt") or {}).get("reduction") == "sum":
        errors.append("train.accumulate: adds up means of parts, but train.pixel_opt.reduction is sum; make it mean.")
    if train.get("accumulate", 1) > 1 and train.get("compile") in ("reduce-overhead", "max-autotune"):
        errors.append(
            f"train.accumulate: the CUDA graphs of train.compile: {train['compile']} overwrite the gradients of the "
            "part before; write compile: true."
        )
    return errors


def _check_schedule(scheduler: dict, total_iter: int) -> list[str]:
    errors = []
    for key in ("milestones", "periods", "restarts", "restart_weights"):
        values = scheduler.get(key, [])
        if isinstance(values, str) or (isinstance(values, list) and not all(map(schema.is_number, values))):
            errors.append(f"train.scheduler.{key}: {values!r} must be a list of numbers.")
    for key in ("gamma", "eta_min"):
        if not (schema.is_number(scheduler.get(key, 0)) and scheduler.get(key, 0) >= 0):
            errors.append(f"train.scheduler.{key}: {scheduler[key]!r} must be a number, 0 or more: rates are.")
    if errors:
        return errors
    weights = scheduler.get("restart_weights", [1])
    if isinstance(weights, list) and any(weight < 0 for weight in weights):
        errors.append(f"train.scheduler.restart_weights: {weights} must be 0 or more: rates are.")
    for key in ("periods", "restarts"):
        values = scheduler.get(key, [total_iter])
        if not isinstance(values, list) or not isinstance(weights, list):
            errors.append(f"train.scheduler.{key}: {key} and restart_weights are lists, e.g. [{total_iter}] and [1].")
        elif key in scheduler and len(values) != len(weights):
            errors.append(f"train.scheduler.restart_weights: {weights} must have a weight for each of {key} {values}.")
        elif key == "periods" and sum(values) < total_iter:
            errors.append(f"train.scheduler.periods: {values} end before train.total_iter ({total_iter}).")
    return errors


# --- completing -------------------------------------------------------------------------------------------------------


def complete_options(
    options: dict, root: Path, *, is_train: bool, debug: bool = False, auto_resume: bool = False
) -> None:
    """Adds, in place, what BasicSR's own ``parse_options`` adds: phases, folders under ``root``, debug frequencies."""
    options["is_train"], options["auto_resume"] = is_train, auto_resume
    if debug:
        options["name"] = f"debug_{options['name'].removeprefix('debug_')}"
        options["val"]["val_freq"] = options["logger"]["save_checkpoint_freq"] = 8
        options["logger"]["print_freq"] = 1
    for phase, dataset in options["datasets"].items():
        dataset["phase"] = phase.split("_")[0]
    path = options["path"]
    if is_train:
        run = root / "experiments" / options["name"]
        path["experiments_root"] = path["log"] = str(run)
        path.update(models=str(run / "models"), training_states=str(run / "training_states"))
    else:
        run = root / "results" / options["name"]
        path["results_root"] = path["log"] = str(run)
    path["visualization"] = str(run / "visualization")
