"""The model classes: one training step, validation, checkpoints. What BasicSR's ``SRModel`` lacks, and no more."""

from __future__ import annotations

import inspect
import random
from collections import OrderedDict
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hranet_arch.compat import apply_fixes

apply_fixes()

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from hranet_arch import tiling
from hranet_arch.errors import TrainingError
from hranet_arch.validation import validate

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class RestorationModel(SRModel):
    """BasicSR's ``SRModel`` with mixed precision, clipping, accumulation, a guard against NaN, tiles, exact resume.

    Options beyond those of ``SRModel``, all with defaults, in ``train:``: ``precision`` (``fp32``, ``bf16``,
    ``fp16``), ``channels_last``, ``compile``, ``accumulate`` (parts that a batch is cut into; their gradients are
    added), ``grad_clip`` (largest gradient norm), ``max_skipped`` (iterations in a row that may be lost to losses that
    are not finite). In ``val:``: ``tile`` (pictures of more pixels than ``tile * tile`` are run in tiles), ``halo``,
    ``best_on`` (the validation set whose first metric picks ``net_g_best.pth``; ``none`` for no set).
    """

    def __init__(self, opt: dict) -> None:
        train_opt = opt.get("train") or {}
        self.autocast_dtype = AUTOCAST[train_opt.get("precision", "fp32")]
        self.memory_format = torch.channels_last if train_opt.get("channels_last") else torch.contiguous_format
        self.skipped = self.skipped_in_a_row = 0
        self.pending_random_state: dict | None = None
        self.progress: tqdm | None = None
        super().__init__(opt)

    def init_training_settings(self) -> None:
        super().init_training_settings()
        train_opt = self.opt["train"]
        self.accumulate = train_opt.get("accumulate", 1)
        self.max_norm = train_opt.get("grad_clip") or float("inf")
        self.max_skipped = train_opt.get("max_skipped", 100)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)
        net = self.get_bare_model(self.net_g).to(memory_format=self.memory_format)
        if train_opt.get("compile"):
            net.compile()  # in place: the keys of the state dict stay

    # --- one training step ---

    def feed_data(self, data: dict) -> None:
        super().feed_data(data)
        self.lq = self.lq.contiguous(memory_format=self.memory_format)

    def optimize_parameters(self, current_iter: int) -> None:
        self._restore_random_state()
        self.optimizer_g.zero_grad()
        buffers = [buffer.clone() for buffer in self.net_g.buffers()]
        losses = self._backward()
        self.scaler.unscale_(self.optimizer_g)
        norm = torch.nn.utils.clip_grad_norm_(self.net_g.parameters(), self.max_norm)
        if self._is_finite(losses, norm):
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
            self.skipped_in_a_row = 0
            self.log_dict = self.reduce_loss_dict(losses)
            if self.ema_decay > 0:
                # Young averages forget faster: with a fixed decay the random start would weigh on short runs.
                self.model_ema(decay=min(self.ema_decay, (1 + current_iter) / (10 + current_iter)))
        else:
            self._skip(current_iter, buffers)
        self.log_dict["learning_rate"] = self.get_current_learning_rate()[0]
        self._show_progress(current_iter)

    def _backward(self) -> OrderedDict[str, Tensor]:
        """Adds up the gradients of the batch, part by part; returns the batch's mean of each loss."""
        size = -(-len(self.lq) // self.accumulate)
        parts = [slice(start, start + size) for start in range(0, len(self.lq), size)]
        means: OrderedDict[str, Tensor] = OrderedDict()
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1
            is_distributed = isinstance(self.net_g, DistributedDataParallel)
            with self.net_g.no_sync() if is_distributed and not is_last else nullcontext():
                with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    output = self.run_network(self.net_g, self.lq[part], part)
                losses = self._losses(output.float(), self.gt[part])
                weight = len(output) / len(self.lq)
                self.scaler.scale(sum(losses.values()) * weight).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() * weight
        return means

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

    def _is_finite(self, losses: dict[str, Tensor], norm: Tensor) -> bool:
        total = sum(losses.values())
        if self.opt["dist"]:
            torch.distributed.all_reduce(total)  # every rank must decide alike
        # fp16's scaler tries scales that overflow the gradients on purpose, and leaves out those steps itself.
        return bool(torch.isfinite(total)) and (self.scaler.is_enabled() or bool(torch.isfinite(norm)))

    def _skip(self, current_iter: int, buffers: list[Tensor]) -> None:
        """Leaves the network as it was: no step, and BatchNorm's statistics without this batch."""
        for buffer, before in zip(self.net_g.buffers(), buffers):
            buffer.copy_(before)
        if self.scaler.is_enabled():
            self.scaler.update()
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.log_dict = OrderedDict(skipped=self.skipped)
        get_root_logger().warning(f"Iteration {current_iter}: the loss or its gradient is not finite; skipped.")
        if self.skipped_in_a_row >= self.max_skipped:
            raise TrainingError(
                f"The loss was not finite in {self.skipped_in_a_row} iterations in a row, up to {current_iter}. "
                f"The last checkpoint in {self.opt['path']['models']} is from before. "
                "Lower train.optim_g.lr, set train.grad_clip, or use train.precision fp32 or bf16."
            )

    @master_only
    def _show_progress(self, current_iter: int) -> None:
        if self.progress is None:
            total = int(self.opt["train"]["total_iter"])
            # A bar for a person at a terminal, below the lines of the log; a file gets the log alone.
            self.progress = tqdm(total=total, initial=current_iter - 1, unit="iter", disable=None, leave=False)
            if not self.progress.disable:
                logging_redirect_tqdm([get_root_logger()]).__enter__()
        self.progress.update()

    # --- validation ---

    def test(self) -> None:
        """Runs the network (its average, where there is one) on ``self.lq``; padded as it asks, in tiles if large."""
        net = getattr(self, "net_g_ema", self.net_g)
        net.eval()
        with torch.inference_mode():
            self.output = self._restore(self.get_bare_model(net), self.lq)
        if self.is_train and net is self.net_g:
            net.train()

    def _restore(self, net: torch.nn.Module, lq: Tensor) -> Tensor:
        val_opt = self.opt.get("val") or {}
        window = self.opt["network_g"].get("window_size", 1)  # SwinIR and its kin take whole windows only
        return tiling.restore(
            net,
            lq,
            run=partial(self.run_network, net, part=slice(None)),
            tile=val_opt.get("tile", 1024) or None,
            halo=val_opt.get("halo", 32),
            window=window if isinstance(window, int) else 1,
        )

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img) -> None:
        means = validate(self, dataloader, current_iter, tb_logger, save_img)
        if not means or not self.is_train:
            return
        metric = next(iter(means))
        record = self.best_metric_results[dataloader.dataset.opt["name"]][metric]
        if dataloader.dataset.opt["name"] == self.opt["val"].get("best_on") and record["val"] == means[metric]:
            self._save_networks("best")

    # --- checkpoints ---

    def _save_networks(self, label: str | int) -> None:
        nets = {"params": self.net_g, "params_ema": getattr(self, "net_g_ema", None)}
        nets = {key: net for key, net in nets.items() if net is not None}
        self.save_network(list(nets.values()), "net_g", label, param_key=list(nets))

    def extra_training_state(self) -> dict:
        """What a resume needs beyond BasicSR's optimisers and schedules; plain values and tensors only."""
        version, keys, *rest = np.random.get_state()
        return {
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "best": getattr(self, "best_metric_results", {}),
            "random": {
                "python": random.getstate(),
                "numpy": (version, keys.tolist(), *rest),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def resume_training(self, resume_state: dict) -> None:
        super().resume_training(resume_state)
        if resume_state.get("scaler"):
            self.scaler.load_state_dict(resume_state["scaler"])
        self.skipped = resume_state.get("skipped", 0)
        if resume_state.get("best"):
            self.best_metric_results = resume_state["best"]
        self.pending_random_state = resume_state.get("random")

    def _restore_random_state(self) -> None:
        """Only now, at the first step: what happens before it (building, loading) may draw."""
        state, self.pending_random_state = self.pending_random_state, None
        if state is None or self.opt["rank"] != 0:
            return
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


class DenoisingModel(RestorationModel):
    """The denoising model: ``RestorationModel`` with the method's loss (claim 7, mean squared error) by default.

    A network whose ``forward`` takes ``sigma`` (FFDNet) is told each sample's noise level, where the dataset knows it.
    """

    sigma: Tensor | None = None

    def feed_data(self, data: dict) -> None:
        super().feed_data(data)
        self.sigma = data["sigma"].to(self.device) if "sigma" in data else None

    def run_network(self, net: torch.nn.Module, lq: Tensor, part: slice) -> Tensor:
        takes_sigma = "sigma" in inspect.signature(self.get_bare_model(net).forward).parameters
        return net(lq, self.sigma[part]) if takes_sigma and self.sigma is not None else net(lq)

    def init_training_settings(self) -> None:
        train_opt = self.opt["train"]
        if not train_opt.get("pixel_opt") and not train_opt.get("perceptual_opt"):
            # The mean over all values instead of the source's 1/(2N) sum: the same minimiser.
            train_opt["pixel_opt"] = {"type": "MSELoss", "loss_weight": 1.0, "reduction": "mean"}
        super().init_training_settings()
