"""docs/extending.md does what it says: its own code blocks are installed, and train."""

import ast
import os
import re
import shlex
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import torch
import yaml

from hranet_arch import methods, registration
from hranet_arch.degradations import DEGRADATION_REGISTRY, Degradations
from tests.conftest import REPOSITORY, make_pictures

PAGE = (REPOSITORY / "docs" / "extending.md").read_text("utf-8")
FILES = dict(re.findall(r"^`([\w.]+)`[^\n]*:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
LIST, TRAIN, MISTYPED = re.findall(r"^basicsr (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)
REFUSAL = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]
SHORT = (
    "datasets:train:dataroot_gt=train", "datasets:val:dataroot_gt=val", "datasets:train:gt_size=16",
    "datasets:train:batch_size_per_gpu=2", "datasets:train:num_worker_per_gpu=0", "train:total_iter=4",
    "val:val_freq=2", "val:save_img=true", "num_gpu=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The page's package, built by its pyproject.toml and unpacked as pip does, beside small pictures."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "source").mkdir()
    for name in ("pyproject.toml", "salt_pepper.py"):
        (folder / "source" / name).write_text(FILES[name])
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=folder / "source", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(folder / "source" / built.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site")
    (folder / "salt_pepper.yml").write_text(FILES["salt_pepper.yml"])
    make_pictures(folder / "train", 3)
    make_pictures(folder / "val", 2, seed=1)
    return folder


def run_python(folder, *arguments):
    """In a process of its own, which finds the package as an installed one."""
    paths = [str(folder / "site"), str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)


def count_code_lines(code):
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    lines = {number for number, line in enumerate(code.splitlines(), 1) if line.split("#")[0].strip()}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_page_has_three_files_and_the_module_is_short():
    assert sorted(FILES) == ["pyproject.toml", "salt_pepper.py", "salt_pepper.yml"]
    assert count_code_lines(FILES["salt_pepper.py"]) <= 45
    assert max(map(len, FILES["salt_pepper.py"].splitlines())) <= 120


def test_it_trains_and_its_metric_is_the_mean_error_of_the_pictures(plugin):
    trained = run_python(plugin, "-m", "hranet_arch", *shlex.split(TRAIN), "--force_yml", *SHORT)
    assert trained.returncode == 0, trained.stderr
    run = plugin / "experiments" / "salt_pepper"
    (log,) = run.glob("train_*.log")
    rows = re.findall(r"# mae: (\S+)\tInput: (\S+)\tBest: (\S+) @ (\d) iter", log.read_text())
    scores = {iteration: float(row[0]) for iteration, row in zip((2, 4), rows, strict=True)}
    for iteration, score in scores.items():  # the oracle: the pictures that validation wrote, against the clean ones
        errors = [mean_error(plugin / "val" / f"{i}.png", run, i, iteration) for i in (0, 1)]
        assert score == pytest.approx(np.mean(errors), abs=6e-5)  # four decimals in the log
    _, noisy, best, best_iteration = rows[-1]
    assert float(best) == min(scores.values()) == scores[int(best_iteration)]  # better: lower
    # A tenth of the pixels is black or white, at even odds: the error of one of grey level x is x or 255 - x, in the
    # mean 127.5 whatever x is. Over 3520 pixels the mean has a deviation of 0.7.
    assert float(noisy) == pytest.approx(0.1 * 127.5, abs=2.1)


def mean_error(clean, run, number, iteration):
    restored = run / "visualization" / "sample_val" / str(number) / f"{number}_{iteration}.png"
    x = cv2.cvtColor(cv2.imread(str(clean)), cv2.COLOR_BGR2GRAY).astype(int)
    y = cv2.imread(str(restored), cv2.IMREAD_UNCHANGED).astype(int)
    assert x.shape == y.shape == (40, 44)
    return np.abs(x - y).sum() / x.size


@pytest.fixture(scope="module")
def examined(plugin):
    """One process that needs no run: the module imported alone, its network in tiles, and two lines of the page."""
    code = (
        "import salt_pepper, shlex, sys, torch\n"
        "from hranet_arch import cli, registration, tiling; torch.manual_seed(0)\n"
        "network, x = salt_pepper.PepperNet(num_feat=8).eval(), torch.rand(1, 1, 45, 61)\n"
        "with torch.inference_mode():\n"
        "    for halo in (network.halo, network.halo - 1):\n"
        "        network.halo = halo\n"
        "        print((tiling.restore(network, x, tile=16) - network(x)).abs().max().item())\n"
        "print(registration.load_plugins())\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n"
        "        cli.main(shlex.split(line))\n"
        "    except SystemExit as stop:\n"
        "        print('status', stop.code)\n"
    )
    ran = run_python(plugin, "-c", code, LIST, f"{MISTYPED} {shlex.join(SHORT)}")
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r"^status (\d)$", ran.stdout, re.MULTILINE) == ["0", "2"]
    return ran


def test_it_is_found_and_what_it_registers_is_listed(examined):
    assert "'salt_pepper': 'loaded'" in examined.stdout
    for name in ("PepperNet", "SaltPepperDataset", "calculate_mae"):
        assert f"\n  {name}  (salt_pepper)\n" in examined.stdout


def test_mistyped_keys_are_answered_as_the_page_says(examined):
    assert examined.stderr.endswith(REFUSAL)


def test_its_halo_makes_tiles_exact_and_is_no_larger_than_that_takes(examined):
    exact, seams = map(float, examined.stdout.split()[:2])
    assert exact < 1e-6 < seams


def test_a_degradation_of_the_page_is_a_step_of_an_option_file(recipe, run, monkeypatch, capsys):
    """A tenth of the pixels becomes black or white, at even odds; the picture is grey 1/2."""
    block = re.search(r"## A degradation\n.*?```python\n(.*?)```", PAGE, re.DOTALL)[1]
    step = re.search(r"`degradations: (\[.*?\])`", PAGE)[1]
    monkeypatch.setattr(DEGRADATION_REGISTRY, "_obj_map", dict(DEGRADATION_REGISTRY._obj_map))
    names = {"__name__": "salt_pepper_noise"}
    exec(block, names)  # noqa: S102 (the page's own code)
    noisy = Degradations(yaml.safe_load(step))(np.full((200, 200, 1), 0.5, np.float32), np.random.default_rng(0))
    assert [np.mean(noisy == value) for value in (0, 1)] == pytest.approx([0.05, 0.05], abs=0.005)
    assert np.mean(noisy == 0.5) == pytest.approx(0.9, abs=0.005)
    for dataset in recipe["datasets"].values():
        del dataset["sigma"]
        dataset.update(type="DegradationDataset", degradations=yaml.safe_load(step.replace("density", "densty")))
    assert run("train", recipe) == 2
    assert "datasets.train.degradations.0.densty: unknown key. Did you mean 'density'?" in capsys.readouterr().err


# --- the table of what a network may have -----------------------------------------------------------------------------


class OfferingNet(torch.nn.Module):
    """Has all of the table, and remembers how it was used."""

    halo, tile_multiple = 3, 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)
        self.sigma, self.is_folded = 25.0, False

    def forward(self, x, sigma=None):
        CALLS.append((tuple(x.shape), None if sigma is None else sigma.tolist()))
        return self.conv(x)

    def fold_batchnorm(self):
        self.is_folded = True


CALLS: list[tuple] = []


@pytest.fixture
def offering_net(monkeypatch):
    names = registration.ARCH_REGISTRY._obj_map
    monkeypatch.setitem(names, "OfferingNet", OfferingNet)
    CALLS.clear()


def test_a_registered_network_is_told_the_noise_level_and_cut_by_its_halo(offering_net, recipe, run):
    recipe["network_g"] = {"type": "OfferingNet"}
    recipe["datasets"]["train"]["sigma"] = [10, 20]
    recipe["val"] = {"val_freq": 2, "tile": 8}
    recipe["train"]["total_iter"] = 2
    assert run("train", recipe) == 0
    training = [levels for shape, levels in CALLS if shape == (2, 1, 16, 16)]
    assert len(training) == 2 and all(len(set(levels)) == 2 and 10 <= min(levels) for levels in training)
    tiles = {shape for shape, levels in CALLS if levels == [25]}
    # Tiles of 8 with 3 pixels around them, and from there on to the grid of 4: 16; at an edge of the picture 12; and 8
    # at the end of its 44 pixels, where 4 are left for the tile itself.
    assert {side for shape in tiles for side in shape[2:]} == {8, 12, 16}


def test_a_registered_network_is_folded_and_told_by_a_comparison(offering_net, tmp_path):
    torch.save({"params": OfferingNet().state_dict()}, tmp_path / "net.pth")
    task = methods.Task("denoise", "gray", 40.0, torch.device("cpu"), precision="fp32", tile=0)
    made = methods.make_method({"weights": "net.pth", "network_g": {"type": "OfferingNet"}}, task, tmp_path)
    assert made.network.is_folded and made.network.sigma == 40
