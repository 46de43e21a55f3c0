"""How fast whole pictures are denoised: HRANet as it stands against what makes it faster, and the share of each.

    python scripts/benchmark_inference.py --output docs/records/benchmark_inference_cpu.json

*stock* is the network as BasicSR runs it: eager, fp32, contiguous memory, BatchNorm not folded, glibc's allocator as it
is. *ours* has every option; *only X* has one of them on, *without X* one off. The options: ``fold`` (BatchNorm into the
convolutions), ``channels_last``, ``bf16`` (autocast; not on a CPU without such instructions); on a CPU, as ``basicsr
denoise`` has them, ``keep_memory`` (``allocator.keep_freed_memory``) and ``fuse`` (``fusion.fuse``, channels-last
itself: *without channels_last* lacks both); on a GPU ``compile`` (CUDA graphs). *ours in fp32* and, on a CPU, *ours in
int8* have the other precisions of ``basicsr denoise``. *merged branches* is ours with one 1x1
and one depthwise convolution in place of the two branches' of each lightweight block, *dense branches*, on a GPU, with
one dense convolution in place of all four, as in training there: equal, and measured here alone. *as one product* is no
network: as many multiplications as *ours* has, in its arithmetic, as one product of two large matrices, which is about
as fast as a processor multiplies. What it takes, no network of as many convolutions can be expected to beat.

Every contestant has its own process, and they take turns. The cost in quality is measured on noisy pictures (sigma
25): PSNR of stock's and of each contestant's output, and their largest difference. With random weights (no
``--weights``) the PSNR itself means nothing, and the difference is only an example. The record is written after each
round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from interleave import ask_all, begin_record, choose, compare, compile_all, positive, running, take_turns, write_record
from torch import Tensor, nn

from hranet_arch import arithmetic, checkpoints, fusion, noise
from hranet_arch.allocator import keep_freed_memory
from hranet_arch.complexity import count_macs
from hranet_arch.errors import InputError
from hranet_arch.hranet import HRANet, LightweightBlock
from hranet_arch.images import decode_image, list_pictures, to_float

SIGMA = 25
RANDOM = Path("random")  # instead of a checkpoint


class MergedBlock(nn.Module):
    """A lightweight block whose two branches are one: for measurements, in evaluation."""

    def __init__(self, block: LightweightBlock) -> None:
        super().__init__()
        self.norm, self.conv5x5, self.conv3x3, self.conv1x1 = block.norm, block.conv5x5, block.conv3x3, block.conv1x1
        self.pointwise, self.depthwise = (_stack(*pair) for pair in zip(block.separable1, block.separable2))

    def forward(self, z: Tensor) -> Tensor:
        first, second = self.depthwise(self.pointwise(self.norm(z))).chunk(2, dim=1)
        s = first + second
        return self.conv1x1(self.conv5x5(s) + self.conv3x3(s))


@torch.no_grad()
def _stack(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """One convolution with the output channels of two; depthwise ones take each input channel of both."""
    groups = first.groups + second.groups if first.groups > 1 else 1
    in_channels = first.in_channels * (2 if groups > 1 else 1)
    conv = nn.Conv2d(in_channels, 2 * first.out_channels, first.kernel_size, padding=first.padding, groups=groups)
    for parameter, *parts in zip(conv.parameters(), first.parameters(), second.parameters()):
        parameter.copy_(torch.cat(parts))
    return conv


def run_dense(block: LightweightBlock, z: Tensor) -> Tensor:
    """The forward pass of a lightweight block in evaluation as it is in training on a GPU."""
    s = block.run_dense(block.norm(z))
    return block.conv1x1(block.conv5x5(s) + block.conv3x3(s))


class MatrixProduct(nn.Module):
    """Multiplies as often as a network, once: two matrices, one with a row for each pixel. Returns its input."""

    def __init__(self, network: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        macs = count_macs(network, (1, 64, 64)) // 64**2
        self.right = torch.rand(1024, max(macs // 1024, 1), dtype=precision)
        self.left = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.shape[-2] * x.shape[-1]
        if len(self.left) != pixels:
            self.left, self.right = (
                one.to(x.device) for one in (torch.rand(pixels, 1024, dtype=self.right.dtype), self.right)
            )
        torch.mm(self.left, self.right)
        return x


class Inference:
    """A network and the pictures that it denoises, one by one."""

    def __init__(self, settings: dict, options: dict) -> None:
        torch.set_num_threads(settings["threads"])
        torch.backends.cudnn.benchmark = True
        if options["keep_memory"]:
            keep_freed_memory()
        self.device = torch.device(settings["device"])
        self.precision = next((name for name in ("int8", "bf16") if options[name]), "fp32")
        if options["dense"]:
            LightweightBlock.forward = run_dense  # in this process
        torch.manual_seed(0)
        network = HRANet(num_feat=settings["num_feat"]).eval()
        if settings["weights"]:
            network.load_state_dict(checkpoints.select_params(checkpoints.load_checkpoint(settings["weights"]))[0])
        if options["fold"]:
            network.fold_batchnorm()
        if options["merge"]:
            for block in network.coarse_denoising.blocks:
                block.lwb1, block.lwb2 = MergedBlock(block.lwb1), MergedBlock(block.lwb2)
        self.format = torch.channels_last if options["channels_last"] else torch.contiguous_format
        self.network = network.to(self.device, memory_format=self.format)
        if options["product"]:
            self.network = MatrixProduct(network, torch.bfloat16 if options["bf16"] else torch.float32)
        elif options["fuse"]:
            self.network = fusion.fuse(self.network, self.precision)
        if options["compile"]:
            self.network.compile(mode="reduce-overhead", dynamic=False)  # for each size anew

    @torch.inference_mode()
    def denoise(self, noisy: Tensor) -> Tensor:
        noisy = noisy.to(self.device, memory_format=self.format)
        with arithmetic.autocast(self.precision, self.device):
            return self.network(noisy).float()

    def prepare(self, size: tuple[int, int]) -> None:
        """A picture of this size, and three runs: kernels are chosen, memory settles."""
        self.noisy = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)).to(self.device)
        for _ in range(3):
            self.denoise(self.noisy)

    def time(self, block_time: float) -> float:
        """Seconds of a run: the mean of as many as fill ``block_time``, after one that is not timed."""
        self.denoise(self.noisy)
        self._synchronize()
        runs, start = 0, time.perf_counter()
        while True:
            self.denoise(self.noisy)
            runs += 1
            if runs % (10 if self.device.type == "cuda" else 1) == 0:
                self._synchronize()
                if time.perf_counter() - start >= block_time:
                    return (time.perf_counter() - start) / runs

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def restore(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        return [self.denoise(torch.from_numpy(picture)[None, None])[0, 0].cpu().numpy() for picture in pictures]


def list_contestants(device: str) -> dict[str, dict]:
    has_bf16 = arithmetic.is_fast("bf16", torch.device(device))
    keys = ["fold", "channels_last"] + ["bf16"] * has_bf16
    keys += ["compile"] if device == "cuda" else ["fuse", "keep_memory"]
    every = ["fold", "channels_last", "bf16", "int8", "fuse", "keep_memory", "compile", "dense", "merge", "product"]
    nothing = dict.fromkeys(every, False)
    everything = {**nothing, **dict.fromkeys(keys, True)}
    contestants = {"stock": nothing, "ours": everything}
    if has_bf16:
        contestants["ours in fp32"] = {**everything, "bf16": False}
    if arithmetic.is_fast("int8", torch.device(device)):
        contestants["ours in int8"] = {**everything, "int8": True}
    for key in keys:
        contestants[f"only {key}"] = {**nothing, key: True}
        if key != "bf16":
            contestants[f"without {key}"] = {**everything, key: False}
    contestants["without channels_last"]["fuse"] = False
    contestants["merged branches"] = {**everything, "merge": True}
    contestants["as one product"] = {**everything, "product": True, "compile": False}
    if device == "cuda":
        contestants["dense branches"] = {**everything, "dense": True}
    return contestants


def read_pictures(folder: Path | None) -> list[np.ndarray]:
    """Grey float pictures in [0, 1]: of a folder, or of the bundled sample's validation set."""
    if folder is not None:
        paths = list_pictures(folder)
        if not paths:
            raise SystemExit(f"--pictures {folder}: there are no pictures.")
        return [to_float(decode_image(path.read_bytes(), path.name, "gray"), path.name) for path in paths]
    from hranet_arch.datasets import PictureStore
    from hranet_arch.sample import prepare_sample

    with tempfile.TemporaryDirectory() as root:
        prepare_sample(root)
        store = PictureStore(str(Path(root, "val.lmdb")), "gray")
        return [store.read(key)[..., 0] for key in store.keys]


def psnr(output: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(output.clip(0, 1).astype(np.float64) - clean).mean()))


def measure(settings: dict, arguments: argparse.Namespace, pictures: list[np.ndarray]) -> Iterator[dict]:
    """After each round, what has been measured up to then; at last with the cost in quality."""
    wanted = choose(list_contestants(settings["device"]), arguments.only)
    result: dict = {"sizes": [], "quality": {}, "options": wanted}
    noisy = [noise.add_test_noise(picture, SIGMA) for picture in pictures]
    if settings["device"] == "cuda":
        for size in arguments.sizes:
            compile_all(Inference, settings, wanted, "prepare", size)
    with running(Inference, settings, wanted) as contestants:
        for height, width in arguments.sizes:
            list(take_turns(contestants, 1, "prepare", (height, width)))
            result["sizes"].append({"height": height, "width": width})
            for seconds in take_turns(contestants, arguments.rounds, "time", arguments.block_time):
                result["sizes"][-1] |= {"rounds": len(seconds["stock"]), "contestants": compare(seconds, "stock")}
                yield result
        for name in [name for name in contestants if wanted[name]["product"]]:
            contestants.pop(name).close()
        if settings["device"] == "cuda":  # the network is compiled for these sizes, too
            outputs = ask_all(contestants, "restore", noisy)
        else:
            outputs = {name: contestant.call("restore", noisy) for name, contestant in contestants.items()}
    result["quality"] = {
        name: {
            "psnr": float(np.mean([psnr(output, clean) for output, clean in zip(given, pictures)])),
            "largest_difference": float(max(np.abs(a - b).max() for a, b in zip(given, outputs["stock"]))),
        }
        for name, given in outputs.items()
    }
    yield result


def _size(text: str) -> tuple[int, int]:
    height, width = text.lower().split("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON record to write")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="torch's threads, in each process"
    )
    parser.add_argument("--num-feat", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--weights", type=Path, nargs="+", help="a checkpoint, or random, for each num-feat")
    parser.add_argument("--sizes", type=_size, nargs="+", default=[(256, 256), (321, 481), (512, 512)])
    parser.add_argument("--pictures", type=Path, help="clean pictures for the cost in dB; default: the sample's four")
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--block-time", type=float, default=1.0, help="seconds of a turn, at least")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contestants besides stock")
    parser.add_argument("--quick", action="store_true", help="a narrow network, small pictures: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.num_feat, arguments.sizes, arguments.rounds, arguments.block_time = [4], [(40, 56)], 2, 0.01
        arguments.only = arguments.only or ["ours", "merged branches"]
    if arguments.weights and len(arguments.weights) != len(arguments.num_feat):
        parser.error("--weights: one file for each of --num-feat")
    if missing := [str(path) for path in arguments.weights or [] if path != RANDOM and not path.is_file()]:
        parser.error(f"--weights: {', '.join(missing)}: there is no such file.")
    try:
        run(arguments)
    except InputError as error:
        parser.error(str(error))


def run(arguments: argparse.Namespace) -> None:
    pictures = read_pictures(arguments.pictures)
    named = [path.name for path in arguments.weights or [RANDOM]]
    shown = {**vars(arguments), "output": arguments.output.name, "weights": named, "sigma": SIGMA}
    shown["pictures"] = arguments.pictures.name if arguments.pictures else "sample"
    torch.backends.cudnn.benchmark = True  # as in the contestants' processes: the record tells of this one
    record = begin_record(shown, arguments.device) | {"networks": {}}
    for num_feat, weights in zip(arguments.num_feat, arguments.weights or [RANDOM] * len(arguments.num_feat)):
        settings = {"num_feat": num_feat, "weights": None if weights == RANDOM else str(weights)}
        settings |= {key: getattr(arguments, key) for key in ("device", "threads")}
        for result in measure(settings, arguments, pictures):
            record["networks"][f"HRANet num_feat={num_feat}"] = result
            write_record(arguments.output, record)
        for entry in result["sizes"]:
            for name, values in entry["contestants"].items():
                size, seconds = f"{entry['height']}x{entry['width']}", values["seconds"]["median"]
                print(
                    f"{num_feat:4d} {size:>9s} {name:24s} {seconds:8.4f} s {values['speedup']['median']:6.2f} x stock"
                )
        for name, values in result["quality"].items():
            print(f"{num_feat:4d} {name:34s} {values['psnr']:7.3f} dB, off by {values['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
