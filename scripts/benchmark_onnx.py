"""PyTorch against ONNX Runtime on this processor: the same network, BatchNorm folded, fp32, in turns.

    python scripts/benchmark_onnx.py --output docs/records/benchmark_onnx.json

Without ``--model`` the networks have the sizes of the released ones and random weights, which take as long.
The ONNX models are checked against PyTorch before they are timed. Writes one JSON record.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

from hranet_arch import HRANet, complexity, fusion, provenance
from hranet_arch.allocator import keep_freed_memory
from hranet_arch.networks import Description, LoadedNetwork, load_network
from hranet_arch.onnx_network import convert

WIDTHS = {"HRANet-S": 32, "HRANet": 64}  # num_feat
SIZES = [128, 256, 512]  # sides of square pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", metavar="NAME|FILE", help="networks to time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="sides of square pictures")
    parser.add_argument("--rounds", type=int, default=6, help="how often each has its turn")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="record to write")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    commit = provenance.describe_commit("scripts")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the command does
    networks = [load_network(name) for name in arguments.model] if arguments.model else make_networks()
    results = [one for network in networks for one in measure(network, arguments.sizes, arguments.rounds)]
    record = {
        "what": "seconds of one forward pass, fp32: PyTorch as `basicsr denoise` runs it, and ONNX Runtime",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit,
        "machine": describe_machine(),
        "settings": {
            "rounds": arguments.rounds,
            "threads": arguments.threads,
            "weights": [network.name for network in networks] if arguments.model else "random",
        },
        "results": results,
    }
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


def make_networks() -> list[LoadedNetwork]:
    networks = []
    for name, num_feat in WIDTHS.items():
        torch.manual_seed(0)
        module = HRANet(num_feat=num_feat).fold_batchnorm().requires_grad_(False)
        networks.append(LoadedNetwork(module, 1, False, Description(name, Path(name))))
    return networks


def measure(network: LoadedNetwork, sides: list[int], rounds: int) -> list[dict]:
    """Times a network both ways at each size, and says how many times faster ONNX Runtime is."""
    ways = {"torch": fusion.fuse(network.module), "onnxruntime": convert(network).module.forward}
    sizes = [(network.channels, side, side) for side in sides]
    latencies = complexity.measure_latency(ways, sizes, rounds=rounds)
    results = []
    for size in sizes:
        of_size = {one.model: one for one in latencies if one.size == size}
        ratio = of_size["torch"].median / of_size["onnxruntime"].median
        print(f"{network.name} {size[1]} x {size[2]}: ", end="")
        print(", ".join(f"{name} {one.median * 1000:.1f} ms" for name, one in of_size.items()), f"({ratio:.2f} times)")
        results += [
            {"network": network.name, "backend": name} | {k: v for k, v in asdict(one).items() if k != "model"}
            for name, one in of_size.items()
        ]
    return results


def describe_machine() -> dict:
    machine = provenance.describe_machine()
    machine["versions"] |= {name: metadata.version(name) for name in ("onnx", "onnxruntime", "onnxscript")}
    return machine


if __name__ == "__main__":
    main()
