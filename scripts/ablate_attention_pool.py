"""Ablation behind HRANet's default ``attention_pool``: global pooling against a fixed stride.

Same pictures, steps, patches, noise and seeds for each setting. Pictures are read as grey, shuffled with a fixed seed
and split into training and validation; no test set is touched. Writes one JSON record:

    python scripts/ablate_attention_pool.py --input BSDS500 --list BSDS500_cbsd432.txt --output record.json

For each run: PSNR on whole validation pictures; PSNR of the same pixels when each 48x48 piece is denoised alone, as in
training (the difference shows what whole pictures change); and the largest difference between the whole picture's
result and that of tiles with a halo.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from hranet_arch import HRANet, arithmetic, provenance
from hranet_arch.metrics import calculate_psnr_float
from hranet_arch.noise import add_gaussian_noise, add_test_noise

PATCH = 48
BATCH = 16
SIGMA = 25
HALO = 120


def read_pictures(folder: Path, names: Path | None) -> list[np.ndarray]:
    """Reads grey uint8 pictures: the names listed in a file, or all of the folder."""
    if names is None:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".png", ".jpg", ".bmp", ".tif"})
    else:
        paths = [folder / line.strip() for line in names.read_text().splitlines() if line.strip()]
    pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    missing = [str(path) for path, picture in zip(paths, pictures) if picture is None]
    if missing or not pictures:
        raise SystemExit(f"Cannot read pictures: {missing or folder}. Give a folder of pictures with --input.")
    return pictures


def draw_batch(pictures: list[np.ndarray], rng: random.Random) -> Tensor:
    """Draws ``(BATCH, 1, PATCH, PATCH)`` clean patches in [0, 1], flipped and turned at random."""
    patches = []
    for _ in range(BATCH):
        picture = rng.choice(pictures)
        top, left = (rng.randint(0, size - PATCH) for size in picture.shape)
        patch = np.rot90(picture[top : top + PATCH, left : left + PATCH], rng.randint(0, 3))
        patches.append(patch[:, ::-1] if rng.random() < 0.5 else patch)
    return torch.from_numpy(np.stack(patches).astype(np.float32) / 255).unsqueeze(1)


def train(pictures: list[np.ndarray], attention_pool: str | int, seed: int, args: argparse.Namespace) -> HRANet:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    network = HRANet(num_feat=args.num_feat, attention_pool=attention_pool)
    arithmetic.norm_in_fp32(network, args.precision, torch.device("cpu"))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    for _ in range(args.steps):
        clean = draw_batch(pictures, rng)
        noisy = add_gaussian_noise(clean, SIGMA)
        with arithmetic.autocast(args.precision, torch.device("cpu")):
            output = network(noisy)
        loss = torch.nn.functional.mse_loss(output.float(), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def psnr(output: Tensor, clean: np.ndarray) -> float:
    return calculate_psnr_float(output[0, 0].clamp(0, 1).numpy(), clean)


def denoise_pieces(network: HRANet, noisy: Tensor) -> Tensor:
    """Denoises each PATCH x PATCH piece alone. noisy: ``(1, 1, h, w)``, h and w multiples of PATCH."""
    rows, columns = noisy.shape[2] // PATCH, noisy.shape[3] // PATCH
    pieces = noisy.reshape(rows, PATCH, columns, PATCH).permute(0, 2, 1, 3).reshape(-1, 1, PATCH, PATCH)
    return network(pieces).reshape(rows, columns, PATCH, PATCH).permute(0, 2, 1, 3).reshape(noisy.shape)


def tiling_error(network: HRANet, noisy: Tensor, whole: Tensor) -> float:
    """Largest difference in the left half when it is denoised with only HALO more pixels to its right."""
    half = noisy.shape[3] // 2 // 8 * 8
    return (network(noisy[..., : half + HALO])[..., :half] - whole[..., :half]).abs().max().item()


@torch.inference_mode()
def evaluate(network: HRANet, pictures: list[np.ndarray]) -> dict[str, float]:
    rows = []
    for i, picture in enumerate(pictures):
        height, width = (size // PATCH * PATCH for size in picture.shape)
        clean = picture[:height, :width].astype(np.float32) / 255
        noisy = torch.from_numpy(add_test_noise(clean, SIGMA, seed=i))[None, None]
        whole = network(noisy)
        rows.append(
            (psnr(whole, clean), psnr(denoise_pieces(network, noisy), clean), tiling_error(network, noisy, whole))
        )
    whole_psnr, pieces_psnr, error = zip(*rows)
    return {
        "psnr_whole": float(np.mean(whole_psnr)),
        "psnr_pieces": float(np.mean(pieces_psnr)),
        "tiling_error": max(error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of clean pictures (not a test set)")
    parser.add_argument("--list", type=Path, help="file with one picture name a line; default: the whole folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON record to write")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-feat", type=int, default=32)
    parser.add_argument("--val-pictures", type=int, default=24)
    parser.add_argument("--pools", nargs="+", default=["global", "8"], help="'global' or strides")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.precision = arithmetic.choose(args.precision, torch.device("cpu"), print)

    pictures = read_pictures(args.input, args.list)
    if len(pictures) <= args.val_pictures:
        parser.error(f"--val-pictures {args.val_pictures}: of {len(pictures)} pictures none would be left to train on.")
    random.Random(0).shuffle(pictures)
    validation, training = pictures[: args.val_pictures], pictures[args.val_pictures :]
    record = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "patch": PATCH, "batch": BATCH, "sigma": SIGMA, "halo": HALO, "training_pictures": len(training),
        "commit": provenance.describe_commit("scripts"), "machine": provenance.describe_machine(), "runs": [],
    }  # fmt: skip
    for seed in args.seeds:
        for pool in args.pools:
            start = time.perf_counter()
            network = train(training, pool if pool == "global" else int(pool), seed, args)
            run = {"attention_pool": pool, "seed": seed, **evaluate(network, validation)}
            run["seconds"] = round(time.perf_counter() - start, 1)
            record["runs"].append(run)
            print(json.dumps(run), flush=True)
            args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
