"""The model classes: one training step, validation, checkpoints. What BasicSR's ``SRModel`` lacks, and no more."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
import shutil
import sys
import sysconfig
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hranet_arch.compat import RUN, apply_fixes

apply_fixes()

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from hranet_arch import arithmetic, checkpoints, tiling
from hranet_arch.errors import TrainingError
from hranet_arch.fixes import pair_with_average
from hranet_arch.networks import load_network
from hranet_arch.step_graph import StepGraph
from hranet_arch.validation import describe_measure, has_validated_all, note_best, validate

MOST_OVERFLOWS = 40  # of fp16's gradients in a row: the scale is 2 ** 16 at first, and seldom over 2 ** 24


class RestorationModel(SRModel):
    """BasicSR's ``SRModel`` with mixed precision, clipping, accumulation, a guard against NaN, tiles, exact resume.

    Options beyond those of ``SRModel``, all with defaults, in ``train:``: ``precision`` (``fp32``, ``bf16``, ``fp16``;
    on a CPU without such arithmetic fp32, with a warning), ``channels_last``, ``compile`` (true, or a mode of
    ``torch.compile``; true also records the step as a CUDA graph where that can be, see ``StepGraph``; left out, with
    a warning, on a CPU and without a C compiler), ``accumulate`` (parts that a batch is cut into; their gradients are
    added), ``grad_clip`` (largest gradient norm), ``max_skipped`` (iterations in a row that may be lost to losses that
    are not finite), ``teacher`` (a released network's name or a weight file: its results, and not the clean pictures,
    are what is learnt; ``docs/recipes.md`` has what that is worth). In ``val:``: ``tile`` (pictures larger than
    a tile with its halo are run in tiles; 0: none is), ``halo``, ``best_on`` (the validation set whose first metric
    picks ``net_g_best.pth``, or several sets, for the metric's mean; the first one with clean pictures where it is
    not given, ``~`` for none).

    A step never waits for a GPU: whether it is lost is decided there, and read when the log is printed.
    """

    BATCH: tuple[str, ...] = ("lq", "gt")  # what a step reads of what feed_data has set

    def __init__(self, opt: dict) -> None:
        train_opt = opt.get("train") or {}
        self.memory_format = torch.channels_last if train_opt.get("channels_last") else torch.contiguous_format
        self.skipped = self.skipped_in_a_row = 0
        self.unread: tuple[int, OrderedDict[str, Tensor]] | None = None
        self.listed_for: torch.nn.Module | None = None
        self.ranked: dict[str, float] = {}  # of this iteration, the sets of best_on that have been run
        self.picked: dict = {}  # what net_g_best.pth is: its value, its iteration, and what the value is of
        self.progress: tqdm | None = None
        self.at_terminal = ExitStack()
        super().__init__(opt)

    def init_training_settings(self) -> None:
        super().init_training_settings()
        train_opt = self.opt["train"]
        self.accumulate = train_opt.get("accumulate", 1)
        self.max_norm = train_opt.get("grad_clip") or float("inf")
        self.max_skipped = train_opt.get("max_skipped", 100)
        self.precision = self._choose_precision(train_opt.get("precision", "fp32"))
        arithmetic.norm_in_fp32(self.net_g, self.precision, self.device)
        self.teacher = self._load_teacher(train_opt.get("teacher"))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if self.ema_decay > 0:
            self.net_g_ema.to(memory_format=self.memory_format)
            self.paired_for = None  # its tensors lie elsewhere now (fixes.average_ema_with_buffers)
        self.graph: StepGraph | None = None
        if train_opt.get("compile"):
            self._compile(train_opt["compile"])
        self.average_weight = torch.zeros((), device=self.device)  # of the newest network, in the average
        # How many iterations are lost in all, and in a row; kept where they are counted.
        self.lost_counts = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.overflows = torch.zeros((), dtype=torch.int64, device=self.device)  # of the gradients, in a row
        every = min(self.opt.get("logger", {}).get("print_freq", 100), self.max_skipped)
        self.read_every = every if self.device.type == "cuda" and self._takes_flag() else 1

    def model_to_device(self, net: torch.nn.Module) -> torch.nn.Module:
        """In the memory format before DistributedDataParallel lays out buckets for the gradients, which follow it."""
        return super().model_to_device(net.to(memory_format=self.memory_format))

    def _choose_precision(self, wanted: str) -> str:
        warn = get_root_logger().warning
        if wanted == "bf16" and isinstance(self.net_g, DataParallel):  # its threads know autocast, not its type
            warn("precision bf16: not with several GPUs in one process; fp32 is used. Start one for each: torchrun.")
            return "fp32"
        return arithmetic.choose(wanted, self.device, warn)

    def _load_teacher(self, weights: str | None) -> torch.nn.Module | None:
        if weights is None:
            return None
        get_root_logger().info(f"What {weights} makes of the noisy pictures is learnt, not the clean pictures.")
        return load_network(weights).module.to(self.device, memory_format=self.memory_format)

    def _compile(self, mode: bool | str) -> None:
        fault = find_compile_fault(self.device)
        if isinstance(self.net_g, DataParallel):  # copies take the compiled call along, and with it the first's weights
            fault = "not with several GPUs in one process; start one for each, with torchrun"
        if fault:
            get_root_logger().warning(f"compile: {fault}; left out.")
            return
        if mode is True:
            mode = "default"
            if fault := self._find_recording_fault():
                get_root_logger().info(f"compile: the network alone, and not the step as one CUDA graph: {fault}.")
            else:
                self.graph = StepGraph(self._run_step, self.optimizer_g)
        self.get_bare_model(self.net_g).compile(mode=mode)  # in place: the keys of the state dict stay

    def _find_recording_fault(self) -> str | None:
        """Why a step is not the same each time for Python, but for the tensors of BATCH."""
        if self.opt["dist"]:
            return "there are several processes"
        if type(self) not in (RestorationModel, DenoisingModel):
            return f"what {type(self).__name__} does in a step is not known"
        if self.scaler.is_enabled():
            return "fp16's scale is Python's"
        if not self._takes_flag():
            return f"{type(self.optimizer_g).__name__} is asked before each step whether it is lost"
        return None

    def get_optimizer(self, optim_type: str, params, lr: float, **kwargs) -> torch.optim.Optimizer:
        """One kernel for all weights by Adam and AdamW, where the options do not say otherwise.

        Not by torch's others: SGD's momentum would begin as whatever is in memory where the first step is lost.
        """
        if optim_type in ("Adam", "AdamW") and not {"fused", "foreach", "differentiable"} & set(kwargs):
            kwargs["fused"] = True
        return super().get_optimizer(optim_type, params, lr, **kwargs)

    # --- one training step ---

    def feed_data(self, data: dict) -> None:
        self.lq = data["lq"].to(self.device, non_blocking=True, memory_format=self.memory_format)
        if "gt" in data:
            self.gt = data["gt"].to(self.device, non_blocking=True)

    def optimize_parameters(self, current_iter: int) -> None:
        self._list_tensors()
        # Young averages forget faster: with a fixed decay the random start would weigh on short runs.
        self.average_weight.fill_(1 - min(self.ema_decay, (1 + current_iter) / (10 + current_iter)))
        batch = {name: value for name in self.BATCH if (value := getattr(self, name, None)) is not None}
        losses = self.graph.run(batch) if self.graph else self._run_step(batch)
        self.unread = (current_iter, losses)
        if current_iter % self.read_every == 0:
            self._read_log()
        self._show_progress(current_iter)

    def _run_step(self, batch: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """All of a step that a CUDA graph holds."""
        for name, value in batch.items():
            setattr(self, name, value)
        self.optimizer_g.zero_grad()
        before = [buffer.clone() for buffer in self.buffers]
        losses = self._backward()
        total = self._add_up(losses)
        self.scaler.unscale_(self.optimizer_g)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        is_lost = self._is_lost(total, norm)
        self._step(is_lost)
        for buffer, value in zip(self.buffers, before):
            torch.where(is_lost, value, buffer, out=buffer)  # BatchNorm's statistics without this batch
        if self.ema_decay > 0:
            self._average(self.average_weight * ~is_lost)
        self.lost_counts[0] += is_lost
        self.lost_counts[1] = (self.lost_counts[1] + 1) * is_lost
        return losses

    def _list_tensors(self) -> None:
        """Once for a network, in the first step, which waits for it: what is averaged must be finite. Walking through
        the modules in each step would take longer than what a GPU then computes."""
        if self.listed_for is self.net_g:
            return
        self.listed_for = self.net_g
        self.parameters, self.buffers = list(self.net_g.parameters()), list(self.net_g.buffers())
        if self.ema_decay > 0:
            pairs = pair_with_average(self.get_bare_model(self.net_g), self.net_g_ema)
            (self.averages, self.averaged), (self.copies, self.copied) = pairs

    def _backward(self) -> OrderedDict[str, Tensor]:
        """Adds up the gradients of the batch, part by part; returns the batch's mean of each loss."""
        size = -(-len(self.lq) // self.accumulate)
        parts = [slice(start, start + size) for start in range(0, len(self.lq), size)]
        means: OrderedDict[str, Tensor] = OrderedDict()
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1
            is_distributed = isinstance(self.net_g, DistributedDataParallel)
            with self.net_g.no_sync() if is_distributed and not is_last else nullcontext():
                with arithmetic.autocast(self.precision, self.device):
                    output = self.run_network(self.net_g, self.lq[part], part)
                    target = self._find_target(part)
                losses = self._losses(output.float(), target.float())
                weight = len(output) / len(self.lq)
                self.scaler.scale(sum(losses.values()) * weight).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() * weight
        return means

    def _find_target(self, part: slice) -> Tensor:
        """What the network is to make of the samples ``part``: the clean pictures, or the teacher's results."""
        if self.teacher is None:
            return self.gt[part]
        with torch.no_grad():
            return self.run_network(self.teacher, self.lq[part], part)

    def run_network(self, net: torch.nn.Module, lq: Tensor, part: slice) -> Tensor:
        """Runs the network on ``lq``, which is cut from the samples ``part`` of the batch."""
        return net(lq)

    def _losses(self, output: Tensor, gt: Tensor) -> OrderedDict[str, Tensor]:
        losses: OrderedDict[str, Tensor] = OrderedDict()
        if self.cri_pix:
            losses["l_pix"] = self.cri_pix(output, gt)
        if self.cri_perceptual:
            for name, loss in zip(("l_percep", "l_style"), self.cri_perceptual(output, gt)):
                if loss is not None:
                    losses[name] = loss
        return losses

    def _add_up(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses, of all ranks: they must decide alike whether it is finite."""
        total = sum(losses.values())
        if self.opt["dist"]:
            torch.distributed.all_reduce(total)
        if self.scaler.is_enabled():  # which looks at gradients alone; those of an infinite loss may be finite (L1's)
            next(one.grad for one in self.parameters if one.grad is not None).add_(total * 0)
        return total

    def _is_lost(self, total: Tensor, norm: Tensor) -> Tensor:
        """Whether the loss or its gradient is not finite; on the device, where nobody waits for the answer."""
        if not self.scaler.is_enabled():
            return ~torch.isfinite(total + norm)
        # fp16's scaler tries scales that overflow the gradients on purpose, leaves out those steps itself and halves
        # the scale: after so many in a row it is not the scale.
        self.overflows.add_(1).mul_(~torch.isfinite(norm))
        return ~torch.isfinite(total) | (self.overflows > MOST_OVERFLOWS)

    def _takes_flag(self) -> bool:
        """Whether the optimiser's step reads on the device that it must change nothing; torch's fused ones do."""
        return getattr(self.optimizer_g, "_step_supports_amp_scaling", False)

    def _step(self, is_lost: Tensor) -> None:
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
        elif self._takes_flag():
            self.optimizer_g.found_inf = is_lost.float()  # as torch's GradScaler hands it over
            self.optimizer_g.step()
            del self.optimizer_g.found_inf
        elif not is_lost:
            self.optimizer_g.step()

    @torch.no_grad()
    def _average(self, weight: Tensor) -> None:
        """Moves the averaged network towards the trained one, all tensors at once."""
        steps = torch._foreach_sub(self.averaged, self.averages)
        torch._foreach_mul_(steps, weight)
        torch._foreach_add_(self.averages, steps)
        for copy, original in zip(self.copies, self.copied):
            copy.copy_(original)

    def get_current_log(self) -> OrderedDict:
        self._read_log()
        return self.log_dict

    def _read_log(self) -> None:
        """Waits for the device: the losses of the last iteration, and how many were lost since the last reading."""
        if self.unread is None:
            return
        (current_iter, losses), self.unread = self.unread, None
        before, (self.skipped, self.skipped_in_a_row) = self.skipped, self.lost_counts.tolist()
        is_lost = self.skipped_in_a_row > 0
        self.log_dict = OrderedDict(skipped=self.skipped) if is_lost else self.reduce_loss_dict(losses)
        self.log_dict["learning_rate"] = self.get_current_learning_rate()[0]
        if self.skipped == before:
            return
        get_root_logger().warning(
            f"Iteration {current_iter}: the loss or its gradient is not finite; skipped "
            f"({self.skipped - before} of the last {self.read_every}, {self.skipped} in all)."
        )
        if self.skipped_in_a_row >= self.max_skipped:
            raise TrainingError(
                f"The loss was not finite in {self.skipped_in_a_row} iterations in a row, up to {current_iter}. Lower "
                "train.optim_g.lr, set train.grad_clip, or use train.precision fp32 or bf16, and "
                f"{self._advise_start(current_iter)}."
            )

    def _advise_start(self, current_iter: int) -> str:
        """The last iteration with a loss has made the weights that have none: what is sound is older."""
        last = current_iter - max(self.skipped_in_a_row, int(self.overflows))
        folder = Path(self.opt["path"]["training_states"])
        states = [int(path.stem) for path in folder.glob("*.state") if path.stem.isdecimal()]
        sound = max((number for number in states if number < last), default=None)
        if sound is None:
            return "begin anew: no checkpoint is from before"
        return f"go on from before, not by --auto_resume: --force_yml path:resume_state={folder / f'{sound}.state'}"

    @master_only
    def _show_progress(self, current_iter: int) -> None:
        if self.progress is None:
            total = int(self.opt["train"]["total_iter"])
            # A bar for a person at a terminal, below the lines of the log; a file gets the log alone.
            bar = tqdm(total=total, initial=current_iter - 1, unit="iter", disable=None, leave=False)
            self.progress = self.at_terminal.enter_context(bar)
            if not bar.disable:
                loggers = [get_root_logger(), logging.getLogger("hranet_arch")]
                self.at_terminal.enter_context(logging_redirect_tqdm(loggers))
        self.progress.update()
        if self.progress.n >= self.progress.total:
            self.at_terminal.close()

    # --- validation ---

    def test(self) -> None:
        """Runs the network (its average, where there is one) on ``self.lq``; padded as it asks, in tiles if large."""
        net = getattr(self, "net_g_ema", self.net_g)
        net.eval()
        # Nothing is compiled: pictures have many sizes, and each would be compiled anew where there is no average.
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            self.output = self._restore(self.get_bare_model(net), self.lq)
        if self.is_train and net is self.net_g:
            net.train()

    def _restore(self, net: torch.nn.Module, lq: Tensor) -> Tensor:
        val_opt = self.opt.get("val") or {}
        return tiling.restore(
            net,
            lq,
            run=partial(self.run_network, net, part=slice(None)),
            tile=val_opt.get("tile", 1024) or None,
            halo=val_opt.get("halo", 32),
            window=tiling.find_window(self.opt["network_g"]),
        )

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        means = validate(self, dataloader, current_iter, tb_logger, save_img)
        if means is None or not self.is_train:
            return
        name = dataloader.dataset.opt["name"]
        metric = next(iter(self.opt["val"].get("metrics") or {}), None)
        if metric in means and self._is_best(name, means, current_iter):
            self._save_networks("best")
        elif metric not in means and name in (self.opt["val"].get("best_on") or []):  # the options can't know
            get_root_logger().warning(f"{name}: val.best_on names it, but it has no clean pictures to pick by.")
        if not self._owes_validation():
            self._complete_state()

    def _is_best(self, dataset_name: str, means: dict[str, float], current_iter: int) -> bool:
        """By the first metric: its mean over the sets that ``best_on`` names, once the last of them has been run."""
        sets = self.opt["val"].get("best_on") or []
        if dataset_name not in sets:
            return False
        metric = next(iter(means))
        self.ranked[dataset_name] = means[metric]
        if len(self.ranked) < len(sets):
            return False
        value, self.ranked = float(np.mean(list(self.ranked.values()))), {}
        name = ", ".join(sets)
        iteration = min(current_iter, int(self.opt["train"]["total_iter"]))
        if len(sets) > 1:
            best = note_best(self, name, {metric: value}, iteration)[metric]
            said = f"Mean of {name}\n\t # {metric}: {value:.4f}"
            get_root_logger().info(f"{said}\tBest: {best['val']:.4f} @ {best['iter']} iter")
        measured = describe_measure(self.opt, sets, metric)
        if self.picked.get("of", measured) != measured:  # older states do not say of what
            get_root_logger().warning(
                "val.best_on, its metric or its sets are not those that net_g_best.pth was picked by so far: it is "
                "picked anew."
            )
            self.picked = {}
        sign = -1 if self.opt["val"]["metrics"][metric].get("better", "higher") == "lower" else 1
        if not sign * value >= sign * self.picked.get("val", -sign * np.inf):  # nor where it is not a number
            return False
        self.picked = {"val": value, "iter": iteration, "of": measured}
        return True

    # --- checkpoints ---

    @master_only
    def _complete_state(self) -> None:
        """What validation found, into the state of this iteration, which was saved before: a resume must know it."""
        path = Path(self.opt["path"]["training_states"]) / f"{RUN.iteration}.state"  # BasicSR ends one too high
        if path.is_file():
            state, found = checkpoints.load_checkpoint(path), self._describe_validation()
            if any(state.get(key) != value for key, value in found.items()):
                checkpoints.save_atomically({**state, **found}, path)

    def _describe_validation(self) -> dict:
        best = getattr(self, "best_metric_results", {})
        return {"best": best, "picked": self.picked, "owes_validation": self._owes_validation()}

    def _owes_validation(self) -> bool:
        """Whether a set is still to be run at this iteration, at which sets are run."""
        val_opt, iteration = self.opt.get("val"), RUN.iteration
        is_last = iteration == int(self.opt["train"]["total_iter"])
        is_due = bool(val_opt) and (is_last or iteration % val_opt["val_freq"] == 0)
        return is_due and not has_validated_all(self, iteration)

    def _save_networks(self, label: str | int) -> None:
        nets = {"params": self.net_g, "params_ema": getattr(self, "net_g_ema", None)}
        nets = {key: net for key, net in nets.items() if net is not None}
        self.save_network(list(nets.values()), "net_g", label, param_key=list(nets))

    def extra_training_state(self) -> dict:
        """What a resume needs beyond what every model's state has (``fixes.save_or_raise``): values and tensors."""
        return {
            "precision": self.precision,
            "scaler": self.scaler.state_dict(),
            "skipped": int(self.lost_counts[0]),
            **self._describe_validation(),
        }

    def resume_training(self, resume_state: dict) -> None:
        super().resume_training(resume_state)
        if resume_state.get("scaler"):
            self.scaler.load_state_dict(resume_state["scaler"])
        self.skipped = self.lost_counts[0] = resume_state.get("skipped", 0)
        if resume_state.get("best"):
            self.best_metric_results = resume_state["best"]
        val_opt = self.opt.get("val") or {}
        sets, metric = val_opt.get("best_on") or [], next(iter(val_opt.get("metrics") or {}), None)
        best = resume_state.get("best", {}).get(", ".join(sets), {}).get(metric, {})
        self.picked = resume_state.get("picked", best)  # older states do not say it


class DenoisingModel(RestorationModel):
    """The denoising model: ``RestorationModel`` with the method's loss (claim 7, mean squared error) by default.

    A network whose ``forward`` takes ``sigma`` (FFDNet) is told each sample's noise level, where the dataset knows it.
    """

    BATCH = ("lq", "gt", "sigma")
    sigma: Tensor | None = None

    def feed_data(self, data: dict) -> None:
        super().feed_data(data)
        self.sigma = data["sigma"].to(self.device, non_blocking=True) if "sigma" in data else None

    def run_network(self, net: torch.nn.Module, lq: Tensor, part: slice) -> Tensor:
        takes_sigma = self.sigma is not None and _takes_sigma(type(self.get_bare_model(net)))
        return net(lq, self.sigma[part]) if takes_sigma else net(lq)

    def init_training_settings(self) -> None:
        train_opt = self.opt["train"]
        if not train_opt.get("pixel_opt") and not train_opt.get("perceptual_opt"):
            # The mean over all values instead of the source's 1/(2N) sum: the same minimiser.
            train_opt["pixel_opt"] = {"type": "MSELoss", "loss_weight": 1.0, "reduction": "mean"}
        super().init_training_settings()


def find_compile_fault(device: torch.device) -> str | None:
    """Why ``torch.compile`` is of no use here, or would break off in the first step."""
    if device.type == "cpu":
        return "on a CPU it takes minutes, and steps are slower"
    if device.type != "cuda":
        return None
    if importlib.util.find_spec("triton") is None:
        return "for a GPU it takes Triton, and there is none (pip install triton; on Windows triton-windows)"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
        return "it takes a GPU of compute capability 7.0 (Volta) or newer"
    if sys.platform != "linux":
        return None
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"for a GPU it takes a C compiler, and there is no {' and no '.join(compilers)} (CC can name another)"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return f"for a GPU it takes Python's headers, and {headers} has no Python.h (python3-dev, on Debian)"
    return None


@functools.cache
def _takes_sigma(network: type[torch.nn.Module]) -> bool:
    return "sigma" in inspect.signature(network.forward).parameters
