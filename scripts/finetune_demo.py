"""Fine-tuning on one's own pairs, from end to end: a camera that does not exist, the sample's scenes, one command.

    python scripts/finetune_demo.py --record finetune.json --picture real.png --real real_hubble.png

Makes pairs of the sample's pictures with one camera's noise (photons, reading, gamma, JPEG: ``CAMERA``), in folders of
their own; fine-tunes by ``options/paired/finetune_hranet.yml``; cleans the validation scenes with the network for white
Gaussian noise, the two for photographs and the fine-tuned one; prints and records their PSNR. And cleans a part of a
picture whose noise is real, the Hubble deep field, which scikit-image ships, with the first two.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from demo import draw_title, run

from hranet_arch import Denoiser, provenance, sample
from hranet_arch.degradations import JPEGCompression, PoissonGaussianNoise
from hranet_arch.files import write_text
from hranet_arch.images import to_8bit
from hranet_arch.lmdb_reader import open_lmdb, read_meta_info, read_value

PAIRS = Path("datasets/finetune_demo")  # not datasets/pairs, where a person's own pairs lie
PARTS = ("train", "val")
RECIPE = "options/paired/finetune_hranet.yml"
CAMERA = {"photons": 250, "sigma": 3, "gamma": 2.2, "jpeg_quality": 75}
SHOWN, TOP, LEFT, SIDE = "coffee", 60, 20, 160  # the part of a validation picture that is drawn
HUBBLE = np.s_[300:500, 400:600]
METHODS = {
    "white noise of 25": "hranet_s_gray_s25",
    "photographs": "hranet_color_real",
    "photographs, small": "hranet_s_color_real",
    "fine-tuned": "experiments/finetune_hranet/models/net_g_best.pth",
}


def photograph(scene: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What the camera makes of a scene; both uint8 BGR ``(h, w, 3)``."""
    light = {key: value for key, value in CAMERA.items() if key != "jpeg_quality"}
    picture = PoissonGaussianNoise(**light)(scene[..., ::-1].astype(np.float32) / 255, random)
    picture = JPEGCompression(quality=CAMERA["jpeg_quality"])(picture, random)
    return to_8bit(picture[..., ::-1])


def make_pairs() -> None:
    """``PAIRS/{train,val}_{noisy,clean}/NAME.png``, the same each time."""
    sample.prepare_sample()
    random = np.random.default_rng(0)
    for part in PARTS:
        root = Path(sample.ROOT) / f"{part}.lmdb"
        folders = [PAIRS / f"{part}_{kind}" for kind in ("noisy", "clean")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for key in read_meta_info(root):
            clean = cv2.imdecode(np.frombuffer(read_value(open_lmdb(root), key, str(root)), np.uint8), cv2.IMREAD_COLOR)
            for folder, picture in zip(folders, (photograph(clean, random), clean)):
                cv2.imwrite(str(folder / f"{key}.png"), picture)


def clean_all() -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """PSNR in dB by method and picture, the noisy ones' own first; and the shown part of each method's result."""
    scores: dict[str, dict[str, float]] = {}
    shown: dict[str, np.ndarray] = {}
    for name, weights in {"noisy": None, **METHODS, "clean": None}.items():
        denoiser = Denoiser(weights) if weights else None
        for path in sorted((PAIRS / "val_clean").iterdir()):
            noisy, clean = (cv2.imread(str(folder / path.name)) for folder in (PAIRS / "val_noisy", path.parent))
            output = denoiser(noisy[..., ::-1])[..., ::-1] if denoiser else {"noisy": noisy, "clean": clean}[name]
            if name != "clean":
                scores.setdefault(name, {})[path.stem] = round(cv2.PSNR(np.ascontiguousarray(output), clean), 4)
            if path.stem == SHOWN:
                shown[name] = output[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    return scores, shown


def draw(scores: dict[str, dict[str, float]], shown: dict[str, np.ndarray], path: Path) -> None:
    titles = {name: f"{name}  {scores[name][SHOWN]:.2f} dB" if name in scores else name for name in shown}
    cv2.imwrite(str(path), np.hstack([draw_panel(part, titles[name]) for name, part in shown.items()]))


def draw_panel(part: np.ndarray, title: str) -> np.ndarray:
    large = cv2.resize(np.ascontiguousarray(part), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_NEAREST)
    return np.dstack([draw_title(large[..., i], title) for i in range(3)])


def draw_real(path: Path) -> None:
    """As it is | for white Gaussian noise | for photographs."""
    picture = skimage.data.hubble_deep_field()[HUBBLE]
    panels = [draw_panel(picture[..., ::-1], "as it is")]
    for name in list(METHODS)[:2]:
        panels.append(draw_panel(Denoiser(METHODS[name])(picture)[..., ::-1], name))
    cv2.imwrite(str(path), np.hstack(panels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON with the scores, machine and versions")
    parser.add_argument("--picture", type=Path, default=Path("finetune.png"), metavar="FILE")
    parser.add_argument("--real", type=Path, default=Path("real_hubble.png"), metavar="FILE")
    arguments = parser.parse_args()
    for path in filter(None, (arguments.record, arguments.picture, arguments.real)):
        path.parent.mkdir(parents=True, exist_ok=True)
    commit = provenance.describe_commit("scripts", "options")
    make_pairs()
    kinds = {"lq": "noisy", "gt": "clean"}
    places = [f"{part}:dataroot_{key}={PAIRS}/{part}_{kind}" for part in PARTS for key, kind in kinds.items()]
    run("train", "-opt", RECIPE, "--force_yml", *[f"datasets:{place}" for place in places])
    scores, shown = clean_all()
    means = {name: float(np.mean(list(values.values()))) for name, values in scores.items()}
    for name, mean in means.items():
        print(f"{name:22} {mean:6.2f} dB")
    draw(scores, shown, arguments.picture)
    draw_real(arguments.real)
    if arguments.record:
        machine = provenance.describe_machine("cpu")
        record = {"commit": commit, "machine": machine, "camera": CAMERA, "recipe": RECIPE,
                  "methods": METHODS, "psnr": scores, "mean": means}  # fmt: skip
        write_text(arguments.record, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
