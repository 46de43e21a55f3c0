"""How fast a training step is: stock BasicSR's way against ours, and the share of each option.

    python scripts/benchmark_training.py --input BSD400 --output docs/records/benchmark_training_cpu.json

*stock* is BasicSR 1.4.2 as it is released: its ``SRModel``, its LMDB client, sampler, ``DataLoader`` with worker
processes and prefetcher, in fp32, with a dataset of a single patch a sample as BasicSR's own are. *ours* is
``DenoisingModel`` with every option that makes it faster (bf16 not on a CPU without such instructions). Between them,
*only X* has one option on and *without X* one off. Same network and first weights, same LMDB, batch, optimiser and
average of weights; every contestant has its own process, and they take turns. The first steps of a turn are not timed:
workers have read ahead while others ran. On a GPU ``compile`` (CUDA graphs) and ``dense_branches``
(``LightweightBlock.run_dense``) are options too, and ``keep_memory`` is none.

*Waiting for data* is the time in the loader's ``next``; on a GPU, which works while Python goes on, it is what a step
takes longer than one that is given a batch again.

Loss curves of *stock* and *ours* are compared over ``--curve-steps`` steps, by ``--curve-runs`` runs of each from as
many first weights. The two draw different patches and noise, and how soon a run learns differs by tenths of a dB from
one to the next: so mean losses of windows of 50 steps are compared, run by run. The curves agree if after the first
window the mean difference is never larger than the larger of 0.3 dB and two standard errors over the runs: as far as
they tell, which their error says.

The record is written after each round. ``scripts/make_tables.py`` makes the tables.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from interleave import (
    Contestant,
    begin_record,
    choose,
    compare,
    compile_all,
    positive,
    running,
    summarize,
    take_turns,
    write_record,
)
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hranet_arch import arithmetic
from hranet_arch.checkpoints import hash_params
from hranet_arch.errors import InputError
from hranet_arch.hranet import HRANet, LightweightBlock

FAST = {"degrade_on": "device", "channels_last": True, "precision": "bf16", "fused": True, "keep_memory": True}
PLAIN = {"degrade_on": "loader", "channels_last": False, "precision": "fp32", "fused": False, "keep_memory": False}
PATCH, SIGMA, WINDOW, KEPT = 48, 25, 50, 8


class Training:
    """A training loop as BasicSR's ``train_pipeline`` has it, one step at a time."""

    def __init__(self, settings: dict, options: dict | None) -> None:
        torch.set_num_threads(settings["threads"])
        torch.backends.cudnn.benchmark = True  # as train_pipeline does
        logging.disable(logging.WARNING)
        self.settings, self.options, self.device = settings, options, settings["device"]
        self.read_ahead = 2 * settings["workers"]  # batches that a DataLoader prepares while nobody asks for them
        if not (options or {}).get("dense_branches"):
            LightweightBlock.run_dense = run_separable  # in this process
        self.begin(0)

    def begin(self, seed: int) -> None:
        """A training from its beginning, with first weights, patches and noise of this seed."""
        self.model = self.sampler = self.prefetcher = None
        gc.collect()  # a recorded step holds its model, and that the recording; the next ones need their memory
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.iteration, self.epoch, self.losses = 0, 1000 * seed, []  # by the epoch the sampler orders the pictures
        settings = {**self.settings, "seed": seed}
        torch.manual_seed(seed)
        build = self._build_stock if self.options is None else self._build_ours
        self.model, self.sampler, loader = build(settings, self.options)
        self.sampler.set_epoch(self.epoch)
        from basicsr.data.prefetch_dataloader import CPUPrefetcher

        self.prefetcher = CPUPrefetcher(loader)

    def _build_stock(self, settings: dict, _: None) -> tuple:
        from hranet_arch.compat import make_importable

        make_importable()
        from basicsr.data import build_dataloader
        from basicsr.data.data_sampler import EnlargedSampler
        from basicsr.models.sr_model import SRModel
        from basicsr.utils.registry import ARCH_REGISTRY

        if "HRANet" not in ARCH_REGISTRY:
            ARCH_REGISTRY.register(HRANet)
        opt = _base_options(settings)
        dataset = _make_stock_dataset(settings["lmdb"])
        sampler = EnlargedSampler(dataset, 1, 0, _enlarge(len(dataset)))
        loader_opt = {"phase": "train", "batch_size_per_gpu": settings["batch"]}
        loader_opt["num_worker_per_gpu"] = settings["workers"]
        loader = build_dataloader(dataset, loader_opt, num_gpu=opt["num_gpu"], sampler=sampler, seed=settings["seed"])
        return SRModel(opt), sampler, loader

    def _build_ours(self, settings: dict, options: dict) -> tuple:
        if options["keep_memory"]:
            from hranet_arch.allocator import keep_freed_memory

            keep_freed_memory()
        from hranet_arch import pipeline, registration  # noqa: F401
        from hranet_arch.datasets import PictureStore
        from hranet_arch.model import DenoisingModel

        opt = _base_options(settings)
        opt["train"].update({key: options[key] for key in ("channels_last", "precision")})
        opt["train"]["compile"] = options.get("compile", False)
        opt["train"]["optim_g"]["fused"] = options["fused"]
        dataset = {"name": "train", "type": "GaussianDenoisingDataset", "phase": "train", "color": "gray"}
        dataset |= {"dataroot_gt": settings["lmdb"], "sigma": SIGMA, "gt_size": PATCH, "scale": 1}
        dataset |= {"degrade_on": options["degrade_on"], "num_worker_per_gpu": settings["workers"]}
        dataset |= {"batch_size_per_gpu": settings["batch"], "cache": None}
        dataset["dataset_enlarge_ratio"] = _enlarge(len(PictureStore(settings["lmdb"], "gray").keys))
        opt["datasets"] = {"train": dataset}
        model = DenoisingModel(opt)
        model._show_progress = lambda current_iter: None  # bars of many processes on one terminal
        loader, sampler, *_ = pipeline.create_train_val_dataloader(opt, logging.getLogger())
        return model, sampler, loader

    def describe_weights(self) -> str:
        """A hash of the first weights, in the order of the state dict."""
        return hash_params(self.model.get_bare_model(self.model.net_g).state_dict())

    def run_turn(self, steps: int) -> dict[str, float]:
        """Seconds of a step, and the part of them spent waiting for data."""
        self.run(self.read_ahead)
        seconds, waiting = self.run(steps)
        if self.device == "cuda":
            waiting = max(seconds - self.run_again(steps), 0.0)
            torch.cuda.empty_cache()  # for those who are next; the first steps of a turn, not timed, ask for it again
        return {"seconds": seconds, "waiting": waiting / seconds}

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds of a step, and those of them in which the loader was asked."""
        waiting = 0.0
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            data = self._next_batch()
            waiting += time.perf_counter() - asked
            self.losses.append(self._step(data))
        self._synchronize()
        return (time.perf_counter() - start) / max(steps, 1), waiting / max(steps, 1)

    def run_again(self, steps: int) -> float:
        """Seconds of a step on batches that are there already. What they train is put back as it was."""
        states = self.model.optimizer_g.state.values()
        values = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        for net in (self.model.net_g, self.model.net_g_ema):
            values += self.model.get_bare_model(net).state_dict().values()
        before = [value.clone() for value in values]
        batches = [self._next_batch() for _ in range(KEPT)]
        self._synchronize()
        start = time.perf_counter()
        for i in range(steps):
            self._step(batches[i % KEPT])
        self._synchronize()
        seconds = (time.perf_counter() - start) / steps
        for value, old in zip(values, before):
            value.detach().copy_(old)
        return seconds

    def _next_batch(self) -> dict:
        data = self.prefetcher.next()
        if data is None:
            self.epoch += 1
            self.sampler.set_epoch(self.epoch)
            self.prefetcher.reset()
            data = self.prefetcher.next()
        return data

    def _step(self, data: dict) -> Tensor:
        """Returns the loss, which may still be under way."""
        self.iteration += 1
        self.model.update_learning_rate(self.iteration, warmup_iter=-1)
        self.model.feed_data(data)
        self.model.optimize_parameters(self.iteration)
        unread = getattr(self.model, "unread", None)
        loss = unread[1]["l_pix"] if unread else self.model.log_dict["l_pix"]
        if self.iteration % 100 == 0:
            self.model.get_current_log()
        return loss

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def read_losses(self) -> list[float]:
        return [float(loss) for loss in self.losses]

    def profile(self, steps: int) -> list[dict]:
        """The operations that take most of a step, as shares of all operations' own time."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device == "cuda")
        with profile(activities=activities) as profiler:
            self.run(steps)
        key = f"self_{'device' if self.device == 'cuda' else 'cpu'}_time_total"
        events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
        if self.device == "cuda":  # operations are told of beside the kernels that they start; the kernels count
            events = [one for one in events if one.device_type == DeviceType.CUDA and not one.is_user_annotation]
        total = sum(getattr(event, key) for event in events)
        return [
            {"operation": event.key, "share": getattr(event, key) / total, "calls": event.count / steps}
            for event in events[:10]
        ]


def _base_options(settings: dict) -> dict:
    train = {"total_iter": 10**6, "ema_decay": 0.999, "optim_g": {"type": "Adam", "lr": 1e-3}}
    train |= {"scheduler": {"type": "MultiStepLR", "milestones": [10**6]}}
    train |= {"pixel_opt": {"type": "MSELoss", "loss_weight": 1.0, "reduction": "mean"}}
    network = {"type": "HRANet", "num_feat": settings["num_feat"]}
    return {
        "name": "benchmark", "num_gpu": int(settings["device"] == "cuda"), "is_train": True, "dist": False, "rank": 0,
        "world_size": 1, "manual_seed": settings["seed"], "scale": 1, "network_g": network, "path": {}, "train": train,
        "val": {}, "logger": {"print_freq": 100},
    }  # fmt: skip


def _enlarge(pictures: int) -> int:
    return -(-40_000 // pictures)  # epochs of 2,500 batches, as in the option files


def _make_stock_dataset(lmdb: str) -> torch.utils.data.Dataset:
    """Clean patches with new noise, from an LMDB, as BasicSR's own datasets read, cut and turn them."""
    from basicsr.data.transforms import augment, paired_random_crop
    from basicsr.utils import FileClient, imfrombytes, img2tensor

    class StockDataset(torch.utils.data.Dataset):
        def __init__(self) -> None:
            lines = Path(lmdb, "meta_info.txt").read_text().splitlines()
            self.keys = [line.split(".")[0] for line in lines]
            self.client = None

        def __len__(self) -> int:
            return len(self.keys)

        def __getitem__(self, index: int) -> dict:
            if self.client is None:
                self.client = FileClient("lmdb", db_paths=lmdb, client_keys="gt")
            image = imfrombytes(self.client.get(self.keys[index], "gt"), flag="grayscale", float32=True)[..., None]
            image, _ = paired_random_crop(image, image, PATCH, 1, self.keys[index])
            gt = img2tensor(np.ascontiguousarray(augment(image.copy(), True, True)), bgr2rgb=False, float32=True)
            return {"gt": gt, "lq": gt + torch.randn_like(gt) * (SIGMA / 255)}

    return StockDataset()


def run_separable(block: LightweightBlock, u: Tensor) -> Tensor:
    """The two branches as the method writes them."""
    return block.separable1(u) + block.separable2(u)


def list_contestants(device: str) -> dict[str, dict | None]:
    fast, plain = dict(FAST), dict(PLAIN)
    if device == "cuda":  # on the CPU it takes minutes to compile, and was slower; glibc's memory is the CPU's
        fast |= {"compile": True, "dense_branches": True, "keep_memory": False}
        plain |= {"compile": False, "dense_branches": False}
    if not arithmetic.is_fast("bf16", torch.device(device)):
        fast["precision"] = "fp32"
    contestants: dict[str, dict | None] = {"stock": None, "ours": fast, "ours, every option off": plain}
    for key in [key for key in fast if fast[key] != plain[key]]:
        contestants[f"only {key}"] = {**plain, key: fast[key]}
        contestants[f"without {key}"] = {**fast, key: plain[key]}
    return contestants


def compare_curves(stock: list[list[float]], ours: list[list[float]]) -> dict:
    """Mean losses of windows of steps, in dB, by runs of each, and whether they agree; see the top of this file."""
    windows, agree = [], True
    for start in range(0, len(stock[0]) - WINDOW + 1, WINDOW):
        losses = np.array([stock, ours])[:, :, start : start + WINDOW].mean(axis=2)
        first, second = decibels = -10 * np.log10(losses)
        difference, error = (second - first).mean(), (second - first).std(ddof=1) / len(first) ** 0.5
        means = dict(zip(("stock_db", "ours_db"), decibels.mean(axis=1).tolist()))
        windows.append({"from_step": start + 1, **means, "error_db": float(error)})
        agree &= start == 0 or abs(difference) <= max(0.3, 2 * error)
    return {"runs": len(stock), "windows": windows, "agree": bool(agree)}


def draw_curves(contestants: Mapping[str, Contestant], runs: int, steps: int) -> dict[str, list[list[float]]]:
    """The losses of each run of each contestant; in each run all begin with the same weights."""
    curves: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for seed in range(runs):
        for contestant in contestants.values():
            contestant.call("begin", seed)
        require_same_weights(contestants)
        for name, contestant in contestants.items():
            contestant.call("run", steps)
            curves[name].append(contestant.call("read_losses"))
        print(f"curves: run {seed + 1} of {runs} is done", file=sys.stderr, flush=True)
    return curves


def require_same_weights(contestants: Mapping[str, Contestant]) -> None:
    if len({contestant.call("describe_weights") for contestant in contestants.values()}) != 1:
        raise SystemExit("The contestants do not start from the same weights.")


def measure(settings: dict, arguments: argparse.Namespace) -> Iterator[dict]:
    """After each round, what has been measured up to then; at last with the curves and the profiles."""
    wanted = choose(list_contestants(settings["device"]), arguments.only)
    if settings["device"] == "cuda":
        from hranet_arch.model import find_compile_fault  # not above, where stock's process would import our fixes

        if fault := find_compile_fault(torch.device("cuda")):  # else a warning, in a log that nobody reads
            raise SystemExit(f"compile: {fault}.")
        compile_all(Training, settings, wanted, "run", 1)
    with running(Training, settings, wanted) as contestants:
        require_same_weights(contestants)
        list(take_turns(contestants, 1, "run", 3))  # kernels are chosen, by their times: each alone
        result: dict = {"profiles": {}, "curves": None}
        for answers in take_turns(contestants, arguments.rounds, "run_turn", arguments.steps):
            seconds = {name: [answer["seconds"] for answer in given] for name, given in answers.items()}
            result |= {"rounds": len(answers["stock"]), "contestants": compare(seconds, "stock")}
            for name, given in answers.items():
                waiting = summarize([answer["waiting"] for answer in given])
                result["contestants"][name] |= {"waiting": waiting, "options": wanted[name]}
            yield result
        compared = [name for name in ("stock", "ours") if name in contestants]
        for name in set(contestants) - set(compared):
            contestants.pop(name).close()
        result["profiles"] = {name: contestants[name].call("profile", 3) for name in compared}
        yield result
        if len(compared) == 2 and arguments.curve_steps:
            curves = draw_curves(contestants, arguments.curve_runs, arguments.curve_steps)
            result["curves"] = compare_curves(*curves.values())
            yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of clean pictures, e.g. BSD400")
    parser.add_argument("--output", type=Path, required=True, help="JSON record to write")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="torch's threads, in each process"
    )
    parser.add_argument("--num-feat", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--workers", type=int, default=None, help="of the DataLoader; default: 2, on a GPU BasicSR's 6")
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--steps", type=positive, default=None, help="timed steps of a turn; default: 10, on a GPU 200")
    parser.add_argument("--curve-steps", type=int, default=150, help="of a loss curve; 0 for none")
    parser.add_argument("--curve-runs", type=int, default=3, help="loss curves of stock, and of ours; at least 2")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contestants besides stock")
    parser.add_argument("--quick", action="store_true", help="a narrow network, few steps: does it run?")
    arguments = parser.parse_args()
    if arguments.curve_steps and arguments.curve_steps < 2 * WINDOW:
        parser.error(f"--curve-steps {arguments.curve_steps}: 0 for no curves, or at least {2 * WINDOW}.")
    if arguments.curve_steps and arguments.curve_runs < 2:
        parser.error(f"--curve-runs {arguments.curve_runs}: at least 2, to know how far runs differ.")
    if arguments.quick:
        arguments.num_feat, arguments.batch, arguments.rounds, arguments.steps = [4], 2, 2, 2
        arguments.curve_steps, arguments.curve_runs, arguments.only = 2 * WINDOW, 2, arguments.only or ["ours"]
    if arguments.steps is None:
        arguments.steps = 200 if arguments.device == "cuda" else 10
    if arguments.workers is None:
        arguments.workers = 6 if arguments.device == "cuda" else 2
    try:
        run(arguments)
    except InputError as error:
        parser.error(str(error))


def run(arguments: argparse.Namespace) -> None:
    from hranet_arch.prepare import prepare_lmdb

    shown = {**vars(arguments), "input": arguments.input.name, "output": arguments.output.name}
    shown |= {"patch": PATCH, "sigma": SIGMA}
    torch.backends.cudnn.benchmark = True  # as in the contestants' processes: the record tells of this one
    record = begin_record(shown, arguments.device) | {"networks": {}}
    with tempfile.TemporaryDirectory() as folder:
        lmdb = str(Path(folder, "train.lmdb"))
        prepare_lmdb(arguments.input, lmdb, gray=True)
        for num_feat in arguments.num_feat:
            settings = {"lmdb": lmdb, "num_feat": num_feat}
            settings |= {key: getattr(arguments, key) for key in ("device", "threads", "batch", "workers")}
            for result in measure(settings, arguments):
                record["networks"][f"HRANet num_feat={num_feat}"] = result
                write_record(arguments.output, record)
            for name, one in result["contestants"].items():
                speedup, waiting = one["speedup"]["median"], one["waiting"]["median"]
                print(f"{num_feat:4d}  {name:28s} {speedup:6.2f} x stock, {waiting:6.1%} waiting for data", flush=True)


if __name__ == "__main__":
    main()
