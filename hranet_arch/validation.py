"""Validation of any of BasicSR's models: metrics as the field publishes them, pictures, records.

``validate`` takes the place of BasicSR's ``nondist_validation`` (see ``fixes.validate_soundly``).
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hranet_arch.compat import RUN, make_importable

make_importable()

from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger
from basicsr.utils.registry import METRIC_REGISTRY

from hranet_arch.errors import InputError, first_line
from hranet_arch.images import to_array, to_uint8, write_png

logger = logging.getLogger(__name__)

OF_LOADING = (  # options of a set that change no value of it
    "phase", "cache", "io_backend", "batch_size_per_gpu", "num_worker_per_gpu", "prefetch_mode", "num_prefetch_queue",
    "pin_memory", "persistent_workers", "use_shuffle",
)  # fmt: skip


def validate(model, dataloader, current_iter: int | str, tb_logger, save_img: bool) -> dict[str, float] | None:
    """Runs a model over one validation or test set.

    Each metric is the mean over the pictures on which it is defined; the others (PSNR of equal pictures, SSIM below
    11 pixels) are named in a warning. One output that is not finite makes every mean NaN, which is never the best.
    The noisy input's own metrics are computed once a set, where it has the size of the ground truth. Of a set without
    clean pictures those metrics count that need none, such as NIQE.

    Args:
        model: a BasicSR model with ``feed_data``, ``test`` and ``get_current_visuals``.
        dataloader: batches of one picture: ``lq``, ``lq_path`` and perhaps ``gt``.
        current_iter: the iteration, or the run's name when testing.
        tb_logger: a SummaryWriter or None.
        save_img: whether to write the outputs as PNG.

    Returns:
        The mean of each metric; None where this set was validated at this iteration already (BasicSR validates once
        more when the training ends).
    """
    dataset_name = dataloader.dataset.opt["name"]
    if model.opt["is_train"]:
        current_iter = min(current_iter, int(model.opt["train"]["total_iter"]))
        if _validated(model).get(dataset_name) == current_iter:
            return None
        _validated(model)[dataset_name] = current_iter
    metrics = model.opt["val"].get("metrics") or {}
    rows, examples, names = [], [], set()
    hide_bar = None if model.opt["val"].get("pbar", True) else True
    for data in tqdm(dataloader, desc=f"Validate {dataset_name}", unit="image", leave=False, disable=hide_bar):
        images = _run(model, data)
        path = data["lq_path"][0]
        name = _name(dataloader.dataset.opt, path, names)
        names.add(name)
        if save_img:
            write_png(_picture_path(model, dataset_name, name, current_iter), to_uint8(images["result"]))
        if "gt" in images:
            if images["result"].shape != images["gt"].shape:
                raise InputError(
                    f"{data['lq_path'][0]}: the network makes {tuple(images['result'].shape)} of it, but its clean "
                    f"picture is {tuple(images['gt'].shape)}. Is it a pair? Is 'scale' right?"
                )
            rows.append({"name": name, "output": score(metrics, images["result"], images["gt"])})
            if images["lq"].shape == images["gt"].shape:
                rows[-1]["input"] = _input_score(model, metrics, dataset_name, path, images)
        else:
            metrics = {name: options for name, options in metrics.items() if not _takes_reference(options["type"])}
            rows.append({"name": name, "output": _score_alone(metrics, images["result"])})
        if tb_logger and len(examples) < model.opt["val"].get("tb_images", 4):
            examples.append((name, _side_by_side(images)))
        RUN.is_started = True  # there is something to keep now
    if not rows or not metrics:
        return {}
    means = {metric: _mean(rows, metric, dataset_name) for metric in metrics}
    _report(model, dataset_name, current_iter, means, rows, tb_logger, examples)
    return means


def has_validated_all(model, iteration: int) -> bool:
    """Whether each validation set has been run at an iteration, or is being run."""
    sets = [dataset["name"] for phase, dataset in model.opt["datasets"].items() if phase.startswith("val")]
    return all(_validated(model).get(name) == iteration for name in sets)


def _validated(model) -> dict[str, int]:
    return model.__dict__.setdefault("last_validated", {})


def _name(opt: dict, path: str, taken: set[str]) -> str:
    """A picture's path below its set's folder, as pictures in several folders may be called alike; without suffix, but
    for the second of ``a.jpg`` and ``a.png``. Of an LMDB BasicSR gives the key, which may have folders as well."""
    path = Path(path)
    roots = [root for root in (opt.get("dataroot_lq"), opt.get("dataroot_gt")) if root]
    is_inside = not path.is_absolute() and ".." not in path.parts
    below = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), path if is_inside else None)
    below = below or Path(path.name)
    name = below.with_suffix("").as_posix()
    return below.as_posix() if name in taken else name


def _run(model, data: dict) -> dict[str, Tensor]:
    """One picture through the model; ``(c, h, w)`` tensors on the CPU: lq, result and, where the set has it, gt."""
    if hasattr(model, "gt"):
        del model.gt  # the last training batch's: BasicSR would take it for this picture's
    model.feed_data(data)
    model.test()
    images = {key: value.squeeze(0) for key, value in model.get_current_visuals().items()}
    del model.lq, model.output
    return images


def is_known(metric: str) -> bool:
    """Whether it is BasicSR's or ours: what it refuses is the options' fault, not its own."""
    return METRIC_REGISTRY.get(metric).__module__.startswith(("basicsr.", "hranet_arch."))


def _takes_reference(metric: str) -> bool:
    return "img2" in inspect.signature(METRIC_REGISTRY.get(metric)).parameters


def score(metrics: dict, output: Tensor, gt: Tensor | None = None) -> dict[str, float]:
    """Metrics of one picture, ``(c, h, w)`` in [0, 1]: NaN where it is not finite, ``inf`` where one is not defined.

    Without ``gt``, the clean picture, metrics that need none.

    Raises:
        InputError: if a metric refuses its arguments, or the picture.
    """
    if not torch.isfinite(output).all():
        return dict.fromkeys(metrics, math.nan)
    scores = {}
    for name, options in metrics.items():
        options = {key: value for key, value in options.items() if key != "better"}
        takes_float = getattr(METRIC_REGISTRY.get(options["type"]), "takes_float", False)
        convert = to_array if takes_float else to_uint8
        pictures = {"img": output} if gt is None else {"img": output, "img2": gt}
        try:
            with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of a mean over nothing
                value = calculate_metric({key: convert(one) for key, one in pictures.items()}, options)
        except Exception as error:
            if not is_known(options["type"]):
                raise
            size = f"{output.shape[1]}x{output.shape[2]}"
            raise InputError(
                f"val.metrics.{name}: {options['type']} says of a picture of {size}: {first_line(error)}"
            ) from error
        # Undefined here means undefined for this pair of pictures, not a network that failed.
        scores[name] = float(value) if math.isfinite(value) else math.inf
    return scores


def _score_alone(metrics: dict, output: Tensor) -> dict[str, float]:
    """Without the clean picture: NIQE, among others, is not defined on small pictures and on even ones."""
    scores = {}
    for name, options in metrics.items():
        try:
            scores |= score({name: options}, output)
        except InputError:
            scores[name] = math.inf
    return scores


def _input_score(model, metrics: dict, dataset_name: str, path: str, images: dict) -> dict[str, float]:
    cache = model.__dict__.setdefault("input_scores", {}).setdefault(dataset_name, {})
    if path not in cache:
        cache[path] = score(metrics, images["lq"], images["gt"])
    return cache[path]


def _mean(rows: list[dict], metric: str, dataset_name: str, of: str = "output") -> float:
    values = [(row["name"], row[of][metric]) for row in rows if of in row]
    undefined = [name for name, value in values if math.isinf(value)]
    if len(undefined) == len(values) and of == "output":
        logger.warning("%s: %s is defined on none of the pictures; is crop_border too large?", dataset_name, metric)
    elif undefined and of == "output":
        logger.warning("%s: %s is not defined on %s; left out of the mean.", dataset_name, metric, ", ".join(undefined))
    defined = [value for _, value in values if not math.isinf(value)]
    return float(np.mean(defined)) if defined else math.nan


def _picture_path(model, dataset_name: str, name: str, current_iter: int | str) -> Path:
    folder = Path(model.opt["path"]["visualization"]) / dataset_name
    if model.opt["is_train"]:
        return folder / name / f"{Path(name).name}_{current_iter}.png"
    return folder / f"{name}_{model.opt['val'].get('suffix') or model.opt['name']}.png"


def _side_by_side(images: dict[str, Tensor]) -> Tensor:
    """Noisy | output | clean as one ``(c, h, w)`` picture, clipped for the screen; of equal height or left out."""
    parts = [images[key].float().clamp(0, 1) for key in ("lq", "result", "gt") if key in images]
    return torch.cat([part for part in parts if part.shape[-2] == images["result"].shape[-2]], dim=-1)


def _report(model, dataset_name, current_iter, means: dict, rows: list[dict], tb_logger, examples: list) -> None:
    model.metric_results = means
    best = note_best(model, dataset_name, means, current_iter)
    inputs = {metric: _mean(rows, metric, dataset_name, of="input") for metric in means if "input" in rows[0]}
    lines = [f"Validation {dataset_name} ({len(rows)} images)"]
    for metric, value in means.items():
        line = f"\t # {metric}: {value:.4f}"
        if metric in inputs:
            line += f"\tInput: {inputs[metric]:.4f}"
        if model.opt["is_train"]:
            line += f"\tBest: {best[metric]['val']:.4f} @ {best[metric]['iter']} iter"
        lines.append(line)
    get_root_logger().info("\n".join(lines))
    if any(math.isnan(row["output"][metric]) for row in rows for metric in means):
        get_root_logger().warning(f"{dataset_name}: the network's output is not finite; this never counts as the best.")
    if tb_logger:
        for metric, value in means.items():
            tb_logger.add_scalar(f"metrics/{dataset_name}/{metric}", value, current_iter)
        for name, picture in examples:
            tb_logger.add_image(f"{dataset_name}/{name}", picture, current_iter)
    if not model.opt["is_train"]:
        _write_record(model, dataset_name, means, inputs, rows)


def note_best(model, name: str, means: dict[str, float], current_iter: int | str) -> dict[str, dict]:
    """Keeps of each metric the best value of the set or sets ``name``, and its iteration; returns them."""
    model._initialize_best_metric_results(name)
    _add_new_metrics(model, name)
    for metric, value in means.items():
        model._update_best_metric_result(name, metric, value, current_iter)
    return model.best_metric_results[name]


def _add_new_metrics(model, name: str) -> None:
    """A resumed run's best results lack what its option file names since; those of something else count no more."""
    records = model.best_metric_results[name]
    for metric, options in model.opt["val"]["metrics"].items():
        better, measured = options.get("better", "higher"), describe_measure(model.opt, name.split(", "), metric)
        record = records.get(metric, {})
        if record.get("better") != better or record.get("of", measured) != measured:  # older states do not say of what
            records[metric] = {"better": better, "val": -math.inf if better == "higher" else math.inf, "iter": -1}
        records[metric]["of"] = measured


def describe_measure(opt: dict, sets: Sequence[str], metric: str) -> str:
    """A metric's options and those of the sets it is measured on, but for how these are loaded. Of paths the last part:
    a run may go on elsewhere."""
    data = [dataset for dataset in (opt.get("datasets") or {}).values() if dataset.get("name") in sets]
    data = [{key: _shorten(key, value) for key, value in one.items() if key not in OF_LOADING} for one in data]
    return json.dumps([metric, opt["val"]["metrics"][metric], data], sort_keys=True, default=str)


def _shorten(key: str, value: object) -> object:
    is_path = key.startswith(("dataroot", "meta_info")) and isinstance(value, (str, Path))
    return Path(value).name if is_path else value


def _write_record(model, dataset_name: str, means: dict, inputs: dict, rows: list[dict]) -> None:
    """Adds a set's metrics, means and each picture's, to ``metrics.json`` in the results folder."""
    path = Path(model.opt["path"]["results_root"]) / "metrics.json"
    record = json.loads(path.read_text("utf-8")) if path.exists() else {}
    images = [_as_json(row) for row in rows]
    record[dataset_name] = {"output": _as_json(means), "input": _as_json(inputs), "images": images}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _as_json(value: object) -> object:
    """JSON has no NaN and no infinity: null is in their place."""
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
