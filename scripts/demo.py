"""``make demo``: trains a narrow HRANet for a few minutes on the sample, tests it, and draws what it does.

It runs the commands of the README, shortened by ``--force_yml``, then prints the numbers and the path of a picture:
noisy | HRANet | clean.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from hranet_arch.images import decode_image, to_8bit, to_float
from hranet_arch.lmdb_reader import open_lmdb, read_value
from hranet_arch.noise import add_test_noise

SAMPLE = Path("datasets/sample/val.lmdb")
SHOWN = "chelsea"
SIGMA = 25


def run(*arguments: str) -> None:
    """Runs ``basicsr`` as a person would; ends with its exit status if it fails."""
    print(f"$ basicsr {shlex.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", "hranet_arch", *arguments]).returncode
    if status:
        sys.exit(status)


def train_and_test(iterations: int) -> Path:
    """Trains and tests; returns the folder of the results."""
    short = [f"train:total_iter={iterations}", "train:ema_decay=0.99"]
    narrow = ["network_g:num_feat=32", "datasets:train:batch_size_per_gpu=8"]
    often = [f"val:val_freq={max(iterations // 4, 1)}", "logger:print_freq=50", "name=demo"]
    run("train", "-opt", "options/train_hranet.yml", "--force_yml", *short, *narrow, *often)
    weights = "path:pretrain_network_g=experiments/demo/models/net_g_latest.pth"
    run("test", "-opt", "options/test_hranet.yml", "--force_yml", "name=demo", "network_g:num_feat=32", weights)
    return Path("results/demo")


def print_table(record: dict) -> None:
    print(f"\n{'picture':12} {'noisy':>16} {'HRANet':>16}   (PSNR in dB / SSIM, sigma {SIGMA})")
    for row in [*record["images"], {"name": "mean", **record}]:
        cells = [f"{row[part]['psnr']:7.2f} / {row[part]['ssim']:.4f}" for part in ("input", "output")]
        print(f"{row['name']:12} {cells[0]:>16} {cells[1]:>16}")
    print(f"gain: {record['output']['psnr'] - record['input']['psnr']:.2f} dB")


def draw_comparison(results: Path, record: dict) -> Path:
    """Writes noisy | HRANet | clean, side by side, with the numbers above them."""
    scores = next(row for row in record["images"] if row["name"] == SHOWN)
    clean = decode_image(read_value(open_lmdb(SAMPLE), SHOWN, str(SAMPLE)), SHOWN, "gray")
    noisy = to_8bit(add_test_noise(to_float(clean, SHOWN), SIGMA))
    output = cv2.imread(str(results / "visualization" / "sample_val" / f"{SHOWN}_demo.png"), cv2.IMREAD_GRAYSCALE)
    titles = [
        f"noisy  {scores['input']['psnr']:.2f} dB / {scores['input']['ssim']:.3f}",
        f"HRANet  {scores['output']['psnr']:.2f} dB / {scores['output']['ssim']:.3f}",
        "clean",
    ]
    panels = [draw_title(picture, title) for picture, title in zip((noisy, output, clean), titles)]
    gap = np.full((panels[0].shape[0], 8), 255, np.uint8)
    path = results / "comparison.png"
    cv2.imwrite(str(path), np.hstack([panels[0], gap, panels[1], gap, panels[2]]))
    return path


def draw_title(picture: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((26, picture.shape[1]), 255, np.uint8)
    cv2.putText(bar, title, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 0, 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=500, help="training iterations (default: %(default)s)")
    results = train_and_test(parser.parse_args().iterations)
    record = json.loads((results / "metrics.json").read_text())["sample_val"]
    print_table(record)
    print("\nTensorBoard: tensorboard --logdir tb_logger/demo")
    print(f"noisy | HRANet | clean: {draw_comparison(results, record)}")


if __name__ == "__main__":
    main()
