"""The super-resolution recipes: as they stand, with other networks in their place, and with BasicSR's own data."""

import re
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from hranet_arch.prepare import prepare_pairs
from hranet_arch.resize import resize_bicubic
from tests.conftest import REPOSITORY, make_pictures, run_cli

RECIPE = REPOSITORY / "options" / "sr" / "train_hranet_x4.yml"
# One iteration of one small patch; 32x32 before it is enlarged, which SwinIR's windows of 8 divide.
SHORT = ["train:total_iter=1", "datasets:train:batch_size_per_gpu=1",
         "datasets:train:gt_size=128", "datasets:train:num_worker_per_gpu=0", "num_gpu=0"]  # fmt: skip


def train(recipe, *changes):
    return run_cli("train", "-opt", str(recipe), "--force_yml", *SHORT, *changes)


def read_networks():
    """The networks that the recipe's comments offer, as option files have them."""
    text = re.sub(r"^#", "", RECIPE.read_text().split("\nname:")[0], flags=re.MULTILINE)
    return {block["type"]: block for block in map(yaml.safe_load, re.findall(r"\{type.*?\}", text, re.DOTALL))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["HRANet", "EDSR", "SwinIR"])
def test_the_recipe_runs_on_the_sample_with_each_network(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    block = read_networks().get(name)
    changes = [f"network_g={yaml.safe_dump(block, default_flow_style=True, width=10000).strip()}"] if block else []
    assert train(RECIPE, *changes) == 0
    log = capsys.readouterr().err
    scores = [float(value) for value in re.findall(r"# psnr: ([\d.]+)", log)]
    assert "Validation sample_val (4 images)" in log and scores and scores[0] > 5
    assert f"Network [{name}] is created" in log


@pytest.mark.parametrize("backend", ["disk", "lmdb"])
def test_basicsrs_model_and_pairs_train_it_too(tmp_path, monkeypatch, backend):
    """``SRModel`` and ``PairedImageDataset`` on sub-pictures, whose small ones MATLAB's bicubic has made."""
    monkeypatch.chdir(tmp_path)
    for path in make_pictures(Path("gt"), 3, size=(96, 96)).iterdir():
        planes = torch.from_numpy(cv2.imread(str(path)) / 255.0).permute(2, 0, 1)
        small = resize_bicubic(planes, 1 / 2, is_8bit=True).permute(1, 2, 0).numpy() * 255
        Path("lq").mkdir(exist_ok=True)
        cv2.imwrite(f"lq/{path.name}", small.round())
    roots = {"dataroot_gt": "gt", "dataroot_lq": "lq"}
    if backend == "lmdb":
        prepare_pairs("lq", "gt", "lq.lmdb", "gt.lmdb", crop_size=48, scale=2, workers=1)
        roots = {key: f"{root}.lmdb" for key, root in roots.items()}
    dataset = {"type": "PairedImageDataset", "io_backend": {"type": backend}, "gt_size": 32, **roots}
    Path("recipe.yml").write_text(
        yaml.safe_dump({
            "name": "pairs", "model_type": "SRModel", "scale": 2, "num_gpu": 0, "manual_seed": 0,
            "datasets": {
                "train": {"name": "train", "batch_size_per_gpu": 2, "num_worker_per_gpu": 0, **dataset},
                "val": {"name": "val", **dataset},
            },
            "network_g": {"type": "HRANet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "upscale": 2},
            "train": {
                "total_iter": 1, "optim_g": {"type": "Adam", "lr": 1e-3}, "pixel_opt": {"type": "L1Loss"},
                "scheduler": {"type": "CosineAnnealingRestartLR"},
            },
            "val": {"val_freq": 1, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
        })
    )  # fmt: skip
    assert run_cli("train", "-opt", "recipe.yml") == 0
    assert Path("experiments/pairs/models/net_g_latest.pth").is_file()
