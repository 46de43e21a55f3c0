"""Small pictures, a small recipe, and a way to run the command line inside the test process."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks: more threads would only wait for each other

import shutil
import signal
from contextlib import closing, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync"]  # fmt: skip


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (40, 44), seed: int = 0) -> Path:
    """Writes smooth colour PNGs ``0.png``, ``1.png``, ...: something that a network can learn in a few steps."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        picture = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    return folder


def picture(*shape, seed=1):
    """Float64 in [0, 1], the same each time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluate(net, *inputs):
    with torch.no_grad():
        return net(*inputs)


def assert_same(actual, expected, atol=1e-10):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=atol)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Options of a run that takes seconds: a narrow HRANet on six small pictures; the test's folder is the root."""
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "train", 6)
    make_pictures(tmp_path / "val", 2, seed=1)
    noisy = {"type": "GaussianDenoisingDataset", "color": "gray", "sigma": 25}
    return {
        "name": "tiny",
        "model_type": "DenoisingModel",
        "num_gpu": 0,
        "manual_seed": 1,
        "datasets": {
            "train": {
                "name": "train", "dataroot_gt": "train", "gt_size": 16, "batch_size_per_gpu": 2,
                "num_worker_per_gpu": 0, "dataset_enlarge_ratio": 2, **noisy,
            },
            "val": {"name": "val", "dataroot_gt": "val", **noisy},
        },
        "network_g": {"type": "HRANet", "num_feat": 8},
        "train": {
            "total_iter": 8,
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3},
            "scheduler": {"type": "MultiStepLR", "milestones": [6], "gamma": 0.5},
        },
        "val": {
            "val_freq": 4,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0},
                        "ssim": {"type": "calculate_ssim", "crop_border": 0}},
        },
        "logger": {"print_freq": 2, "save_checkpoint_freq": 4},
    }  # fmt: skip


@pytest.fixture
def any_precision(monkeypatch):
    """Precisions are those that are asked for, though this processor may compute them slowly."""
    monkeypatch.setattr("hranet_arch.arithmetic.choose", lambda precision, device, warn: precision)


@pytest.fixture
def hangup_heard():
    """SIGHUP is not ignored, as it is where the tests run under nohup; processes that are started inherit it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium or Chrome of this machine; tests that need one are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    with playwright.sync_playwright() as started:
        # In the C locale it finds no files whose names are not ASCII.
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        chromium = started.chromium.launch(executable_path=BROWSER, args=BROWSER_FLAGS, env=environment)
        yield chromium
        chromium.close()


@contextmanager
def watch_page(browser, address: str, width: int = 1200, height: int = 900, **context):
    """Opens ``address``; gives the page, what it says on the console, and the addresses that it asks for."""
    with closing(browser.new_page(viewport={"width": width, "height": height}, **context)) as page:
        messages, requests = [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        yield page, messages, requests


def check_dark_and_light(open_page) -> None:
    """A page is dark on light, or light on dark, as its reader's system has it."""
    brightness = {}
    for scheme in ("light", "dark"):
        with open_page(color_scheme=scheme) as page:
            colors = page.evaluate("[getComputedStyle(document.body).backgroundColor, "
                                   "getComputedStyle(document.body).color]")  # fmt: skip
            brightness[scheme] = [sum(map(int, color[4:-1].split(","))) / 3 for color in colors]
    assert brightness["light"][0] > 240 > 60 > brightness["light"][1]
    assert brightness["dark"][0] < 60 < 200 < brightness["dark"][1]


def run_cli(*arguments: str) -> int:
    """Runs ``basicsr`` in this process; returns the exit status."""
    from hranet_arch import cli

    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments])
    return stop.value.code


@pytest.fixture
def run():
    """Returns ``run(verb, options, *flags)``: writes the options to a file, runs ``basicsr``, gives the exit status."""

    def run_command(verb: str, options: dict, *flags: str) -> int:
        Path("options.yml").write_text(yaml.safe_dump(options))
        return run_cli(verb, "-opt", "options.yml", *flags)

    return run_command


def load_network(path: str | Path, key: str = "params") -> dict:
    """The tensors of a checkpoint that BasicSR's layout keeps under ``key``."""
    return torch.load(path, weights_only=True)[key]
