"""Measures how far ``--sigma auto`` is off on BSD68, beside scikit-image's wavelet estimator; writes the JSON record.

    python scripts/benchmark_noise_estimate.py DIR/BSD68 --output docs/records/noise_estimate.json

The field's test noise at each level, as it is (unclipped) and as an 8-bit file has it (clipped, rounded). scikit-image
needs PyWavelets for its estimator; without it, ours is measured alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from hranet_arch.images import decode_image, list_pictures, to_8bit
from hranet_arch.noise import add_test_noise
from hranet_arch.noise_estimate import estimate_sigma
from hranet_arch.provenance import describe_commit, describe_machine
from hranet_arch.testsets import hash_set

SIGMAS = (5, 10, 15, 25, 35, 50, 75)


def find_estimators() -> dict:
    estimators = {"hranet_arch.noise_estimate.estimate_sigma": estimate_sigma}
    try:
        import pywt  # noqa: F401
        from skimage.restoration import estimate_sigma as estimate_by_wavelets

        estimators["skimage.restoration.estimate_sigma"] = lambda x: 255 * estimate_by_wavelets(x / white_of(x))
    except ImportError:
        print("PyWavelets is not installed: scikit-image's estimator is left out")
    return estimators


def white_of(image: np.ndarray) -> float:
    return 255.0 if image.dtype == np.uint8 else 1.0


def measure(pictures: list[np.ndarray]) -> list[dict]:
    rows = []
    for name, estimate in find_estimators().items():
        for kind in ("float", "uint8"):
            for sigma in SIGMAS:
                noisy = [add_test_noise(clean, sigma) for clean in pictures]
                if kind == "uint8":
                    noisy = [to_8bit(one) for one in noisy]
                errors = np.array([estimate(one) - sigma for one in noisy])
                row = {"estimator": name, "pictures": kind, "sigma": sigma, "mean_error": errors.mean(),
                       "mean_absolute_error": np.abs(errors).mean(), "largest_error": np.abs(errors).max()}  # fmt: skip
                rows.append({key: round(float(v), 3) if key.endswith("error") else v for key, v in row.items()})
                print(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of pictures: BSD68's for the record in docs/")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON record to write")
    arguments = parser.parse_args()
    paths = list_pictures(arguments.folder)
    if not paths:
        parser.error(f"{arguments.folder}: there are no pictures.")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    pictures = [decode_image(path.read_bytes(), str(path), "gray") / 255 for path in paths]
    record = {
        "commit": describe_commit("scripts"),
        "what": "error of estimated noise levels, in grey levels, on the pictures of a folder",
        "folder": arguments.folder.name,
        "pictures": len(paths),
        "sha256_of_set": hash_set(paths),
        "machine": describe_machine(),
        "results": measure(pictures),
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
