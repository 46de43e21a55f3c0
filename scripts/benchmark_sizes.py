"""What each size of HRANet costs, beside DnCNN: parameters, multiply-accumulates, time, memory.

    python scripts/benchmark_sizes.py --output docs/records/benchmark_sizes.json

The sizes are those of the option files in ``options/bsd400``. Networks take turns; times are of one picture of 256x256
(BatchNorms folded) and of one training step in fp32 on 16 patches of 48x48. Writes one JSON record, from which
``scripts/make_tables.py`` makes a table.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from interleave import begin_record, positive, write_record
from torch import Tensor, nn
from torch.nn import functional as F

from hranet_arch import complexity, option_files
from hranet_arch.allocator import keep_freed_memory
from hranet_arch.baselines import DnCNN
from hranet_arch.hranet import HRANet

OPTIONS = Path(__file__).resolve().parent.parent / "options"
FILES = {
    "HRANet-S": "bsd400/train_hranet_s_gray_s25.yml",
    "HRANet": "bsd400/train_hranet_gray_s25.yml",
    "HRANet-L": "bsd400/train_hranet_l_gray_s25.yml",
    "DnCNN": "baselines/train_dncnn_gray_s25.yml",
}
NETWORKS = {"HRANet": HRANet, "DnCNN": DnCNN}
PICTURE, PATCH, BATCH = (1, 256, 256), 48, 16


def build(file: str) -> nn.Module:
    arguments = dict(option_files.read_options(OPTIONS / file)["network_g"])
    return NETWORKS[arguments.pop("type")](**arguments)


def make_step(network: nn.Module) -> Callable[[Tensor], None]:
    """A training step of its own copy, on a batch that is always the same."""
    network = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    clean = torch.rand(BATCH, 1, PATCH, PATCH).to(memory_format=torch.channels_last)

    def step(_: Tensor) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer.zero_grad()
            F.mse_loss(network(clean + 0.1 * torch.randn_like(clean)), clean).backward()
            optimizer.step()

    return step


def measure(networks: dict[str, nn.Module], rounds: int) -> list[dict]:
    steps = {name: make_step(network) for name, network in networks.items()}
    training = {one.model: one for one in complexity.measure_latency(steps, [(1, PATCH, PATCH)], rounds=rounds)}
    parameters = {name: complexity.count_parameters(network) for name, network in networks.items()}
    folded = {name: network.eval().fold_batchnorm() for name, network in networks.items()}
    forward = {one.model: one for one in complexity.measure_latency(folded, [PICTURE], rounds=rounds)}
    results = []
    for name, network in folded.items():
        macs = complexity.count_macs(network, PICTURE) / (PICTURE[1] * PICTURE[2])
        memory = complexity.measure_peak_memory(network, PICTURE)
        costs = {"parameters": parameters[name], "macs_per_pixel": macs, "memory": asdict(memory)}
        times = {"forward": asdict(forward[name]), "training_step": asdict(training[name])}
        results.append({"network": name, "option_file": FILES[name]} | costs | times)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=positive, default=6, help="how often each has its turn")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="record to write")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    settings = {"rounds": arguments.rounds, "threads": arguments.threads}
    record = begin_record(settings | {"picture": PICTURE, "patch": PATCH, "batch": BATCH}, "cpu")
    results = measure({name: build(file) for name, file in FILES.items()}, arguments.rounds)
    write_record(arguments.output, record | {"results": results})


if __name__ == "__main__":
    main()
