"""Each fix of ``compat``: a test that fails without it, with BasicSR's own models and datasets where it can."""

import copy
import inspect
import json
import math
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from hranet_arch import compat, fixes, registration
from hranet_arch.errors import InputError, TrainingError
from tests.conftest import REPOSITORY, load_network, make_pictures


def run_python(code, *arguments, cwd=REPOSITORY):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


# --- the import ---


def test_torchvision_of_another_build_is_repaired_after_its_import_failed(tmp_path):
    """A stand-in that fails as the mismatched build does: its operators are looked up while it is imported.

    torchvision looks up `nms` alone; from 0.29 on two, the first of which it then registers again, as torch now allows.
    """
    allows_again = "allow_override" in inspect.signature(torch.library.register_fake).parameters
    names = ("nms", "roi_align", "invented") if allows_again else ("nms",)
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\n__version__ = '0'\n"
        f"for name in {names}:\n"
        "    torch.library.register_fake(f'torchvision::{name}')(lambda *a: None)\n"
    )
    code = """
        import sys; sys.path.insert(0, sys.argv[1])
        from hranet_arch import compat
        assert compat._repair_torchvision() is True
        import torchvision
        assert torchvision.__file__.startswith(sys.argv[1])
        assert compat._repair_torchvision() is False, 'acts on a torchvision that imports'
    """
    result = run_python(code, str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_torchvision_that_matches_is_left_alone(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"
        "library.define('nms(Tensor a) -> Tensor')\n"
    )
    code = """
        import sys; sys.path.insert(0, sys.argv[1])
        from hranet_arch import compat
        assert compat._repair_torchvision() is False and not compat._operators
    """
    result = run_python(code, str(tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "alias", "function"),
    [
        ("torchvision.transforms.functional_tensor", compat._alias_functional_tensor, "rgb_to_grayscale"),
        ("scipy.ndimage.filters", compat._alias_scipy_filters, "convolve"),
    ],
)
def test_modules_that_are_gone_are_aliased(monkeypatch, name, alias, function):
    monkeypatch.setitem(sys.modules, name, None)  # what an import finds when a module was removed
    assert alias() is True
    assert callable(getattr(sys.modules[name], function))
    assert alias() is False


def test_a_spawned_worker_can_unpickle_basicsr_datasets(tmp_path):
    """It reads a damaged picture there, so that the fixes show too: without them it is an AttributeError."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "damaged.png").write_bytes(b"junk")
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import sys; sys.path.insert(0, sys.argv[1])
        if __name__ == '__main__':
            from hranet_arch import registration
            from basicsr.data import build_dataset
            import torch
            opt = dict(name='a', type='PairedImageDataset', dataroot_gt='a', dataroot_lq='a', phase='val', scale=1,
                       io_backend=dict(type='disk'))
            from hranet_arch.pipeline import ResumableSampler, SeededDataset
            dataset = build_dataset(opt)
            loader = torch.utils.data.DataLoader(
                SeededDataset(dataset), sampler=ResumableSampler(dataset, 1, 0, 1, seed=0),
                num_workers=1, multiprocessing_context='spawn')
            try:
                list(loader)
            except Exception as error:
                assert 'InputError' in str(error) and 'not a picture' in str(error), error
            else:
                raise SystemExit('the fixes are not there in the worker')
    """)
    )
    command = [sys.executable, "script.py", str(REPOSITORY)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


# --- models ---


class TinyNet(torch.nn.Module):
    """Convolution, BatchNorm, convolution: what BasicSR's average of the weights breaks."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 4, 3, padding=1),
            torch.nn.BatchNorm2d(4),
            torch.nn.Conv2d(4, channels, 3, padding=1),
        )

    def forward(self, x):
        return x - self.layers(x)


class PoisonedNet(TinyNet):
    """Learns like the other, and puts out NaN when it is evaluated."""

    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else math.nan)


class DrawingDataset(torch.utils.data.Dataset):
    """Draws from all three generators, as BasicSR's datasets do."""

    def __init__(self, opt):
        self.opt = opt

    def __len__(self):
        return 4

    def __getitem__(self, index):
        drawn = torch.tensor([random.random(), float(np.random.rand()), float(torch.rand(()))])
        image = torch.full((3, 16, 16), 0.5)
        return {"lq": image, "gt": image, "lq_path": str(index), "gt_path": str(index), "drawn": drawn}


@pytest.fixture(autouse=True, scope="module")
def registered():
    registration.ARCH_REGISTRY.register(TinyNet)
    registration.ARCH_REGISTRY.register(PoisonedNet)
    registration.DATASET_REGISTRY.register(DrawingDataset)
    yield
    for registry, cls in (("ARCH", TinyNet), ("ARCH", PoisonedNet), ("DATASET", DrawingDataset)):
        del getattr(registration, f"{registry}_REGISTRY")._obj_map[cls.__name__]


@pytest.fixture
def stock(recipe):
    """The small recipe with BasicSR's own model class and pairs, in colour."""
    recipe["model_type"] = "SRModel"
    recipe["network_g"] = {"type": "TinyNet"}
    recipe["train"]["pixel_opt"] = {"type": "L1Loss"}
    for dataset in recipe["datasets"].values():
        del dataset["sigma"], dataset["color"]
        dataset.update(type="PairedImageDataset", dataroot_lq=dataset["dataroot_gt"])
    return recipe


def test_the_average_has_the_statistics_of_batchnorm(stock, run):
    assert run("train", stock) == 0
    file = "experiments/tiny/models/net_g_8.pth"
    live, average = load_network(file), load_network(file, "params_ema")
    for name, start in (("running_mean", 0), ("running_var", 1)):
        moved = (average[f"layers.1.{name}"] - start) / (live[f"layers.1.{name}"] - start)
        assert (moved > 0.2).all() and (moved < 1).all()
    assert average["layers.1.num_batches_tracked"] == live["layers.1.num_batches_tracked"] == 8


def test_the_average_of_weights_is_basicsrs():
    from basicsr.models.base_model import BaseModel

    model = BaseModel.__new__(BaseModel)
    model.net_g, model.net_g_ema = TinyNet(), TinyNet()
    model.net_g(torch.rand(2, 3, 8, 8))  # BatchNorm's statistics move
    before = copy.deepcopy(model.net_g_ema.state_dict())
    model.model_ema(decay=0.75)
    for name, value in model.net_g.state_dict().items():
        expected = 0.75 * before[name] + 0.25 * value if value.is_floating_point() else value
        torch.testing.assert_close(model.net_g_ema.state_dict()[name], expected)


class SharedNet(torch.nn.Sequential):
    """A layer with three names, and a mask of -inf."""

    def __init__(self) -> None:
        layer = torch.nn.Conv2d(1, 1, 1)
        super().__init__(layer, layer, layer)
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))


@pytest.mark.parametrize("is_ours", [False, True])
def test_what_has_several_names_is_averaged_once_and_a_mask_stays(is_ours, tmp_path):
    from basicsr.models.sr_model import SRModel

    from hranet_arch.model import DenoisingModel

    kind = DenoisingModel if is_ours else SRModel
    model = kind.__new__(kind)
    model.net_g, model.net_g_ema, model.ema_decay, model.listed_for = SharedNet(), SharedNet(), 0.75, None
    model.opt = {"path": {"models": str(tmp_path)}, "network_g": {}, "rank": 0}
    before, weight = model.net_g_ema[0].weight.clone(), model.net_g[0].weight
    if is_ours:
        model._list_tensors()
        model._average(torch.tensor(0.25))
    else:
        model.model_ema(decay=0.75)
    torch.testing.assert_close(model.net_g_ema[0].weight, 0.75 * before + 0.25 * weight)
    assert torch.equal(model.net_g_ema.mask, model.net_g.mask)
    model.save_network([model.net_g, model.net_g_ema], "net_g", 1, param_key=["params", "params_ema"])
    assert torch.equal(load_network(tmp_path / "net_g_1.pth", "params_ema")["mask"], model.net_g.mask)
    model.net_g_ema.mask.fill_(math.nan)
    with pytest.raises(TrainingError, match="net_g_2 holds values that are not finite"):
        model.save_network([model.net_g, model.net_g_ema], "net_g", 2, param_key=["params", "params_ema"])


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"type": "MultiStepLR", "milestones": [3, 6], "gamma": 0.5}, [0.25, 0.5, 0.75, 0.5, 0.5, 0.5, 0.25]),
        ({"type": "MultiStepLR", "milestones": [100]}, [0.25, 0.5, 0.75, 1, 1, 1, 1]),
    ],
)
def test_the_warm_up_reaches_the_rate_and_keeps_milestones(scheduler, expected):
    """Four iterations of warm-up to a rate of 1; the milestone at 3 acts from iteration 4 on, when 3 are done."""
    from basicsr.models.base_model import BaseModel

    model = BaseModel({"num_gpu": 0, "is_train": True, "train": {"scheduler": dict(scheduler)}})
    model.optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)]
    model.setup_schedulers()
    rates = []
    for iteration in range(1, 8):
        model.update_learning_rate(iteration, warmup_iter=4)
        rates += model.get_current_learning_rate()
        model.optimizers[0].step()
    assert rates == pytest.approx(expected)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(stock, run, monkeypatch, capsys):
    from hranet_arch import checkpoints

    def fail(content, path):
        raise TrainingError(f"Cannot write the checkpoint {path}: disk full.")

    monkeypatch.setattr(checkpoints, "save_atomically", fail)
    assert run("train", stock) == 1
    assert "net_g_4.pth: disk full" in capsys.readouterr().err


def test_a_network_that_became_nan_is_not_saved(stock, run, capsys):
    """A rate that destroys the network between the checkpoints of iterations 4 and 8."""
    stock["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [4], "gamma": 1e30}
    assert run("train", stock) == 1
    assert "net_g_8 holds values that are not finite" in capsys.readouterr().err
    assert all(torch.isfinite(value).all() for value in load_network("experiments/tiny/models/net_g_4.pth").values())


def test_options_changed_for_a_resume_win(stock, run):
    assert run("train", stock, "--force_yml", "train:total_iter=4") == 0
    stock["train"]["optim_g"]["lr"] = 0.01
    stock["train"]["scheduler"].update(milestones=[2, 6], gamma=0.1)
    assert run("train", stock, "--auto_resume") == 0
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    assert state["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(0.01 * 0.1 * 0.1)


def test_a_state_of_another_scheduler_is_not_loaded_into_this_one(stock, run):
    assert run("train", stock, "--force_yml", "train:total_iter=4") == 0
    stock["train"]["scheduler"] = {"type": "CosineAnnealingRestartLR", "periods": [8], "eta_min": 0}
    assert run("train", stock, "--auto_resume") == 0
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    # Iteration 8 uses the rate after 7 steps of the cosine over 8.
    expected = 1e-3 * 0.5 * (1 + math.cos(math.pi * 7 / 8))
    assert state["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"type": "Adam", "lr": 1e-3}, {"type": "MuonAdam", "lr": 2e-3}),
        ({"type": "MuonAdam", "lr": 1e-3}, {"type": "Adam", "lr": 2e-3}),
        ({"type": "Adam", "lr": 1e-3}, {"type": "Adam", "lr": 1e-3, "amsgrad": True}),
    ],
)
def test_another_optimiser_begins_anew_on_a_resume(stock, run, capfd, first, second):
    stock["train"]["optim_g"] = first
    assert run("train", stock, "--force_yml", "train:total_iter=4") == 0
    stock["train"]["optim_g"] = second
    assert run("train", stock, "--auto_resume") == 0
    assert capfd.readouterr().err.count("its averages start anew") == 1
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    assert state["optimizer_types"] == [second["type"]]
    steps = {int(one["step"]) for one in state["optimizers"][0]["state"].values() if "step" in one}
    assert steps <= {4}  # of the second alone


def test_without_momentum_an_optimiser_keeps_other_averages():
    assert fixes._list_averages("SGD", [{"momentum": 0}]) != fixes._list_averages("SGD", [{"momentum": 0.9}])


def test_a_resume_takes_new_metrics_and_those_turned_round(stock, run):
    stock["model_type"] = "RestorationModel"  # whose states know the best
    assert run("train", stock, "--force_yml", "train:total_iter=4") == 0
    stock["val"]["metrics"]["psnr"]["better"] = "lower"
    stock["val"]["metrics"]["late"] = {"type": "calculate_ssim", "crop_border": 2}
    assert run("train", stock, "--auto_resume") == 0
    best = torch.load("experiments/tiny/training_states/8.state", weights_only=True)["best"]["val"]
    assert best["psnr"]["better"] == "lower" and best["psnr"]["iter"] == best["late"]["iter"] == 8


def test_any_optimizer_of_torch_can_be_named(stock, run):
    stock["train"]["optim_g"] = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1}
    assert run("train", stock) == 0
    state = torch.load("experiments/tiny/training_states/8.state", weights_only=True)
    assert state["optimizers"][0]["param_groups"][0]["weight_decay"] == 0.1


def test_nan_output_never_is_the_best(stock, run, capfd):
    stock["network_g"]["type"] = "PoisonedNet"
    assert run("train", stock) == 0
    log = capfd.readouterr().err
    assert "# psnr: nan" in log and "Best: -inf" in log and "not finite" in log


def test_sets_with_equal_picture_names_keep_their_own_pictures(stock, run):
    stock["datasets"]["val_2"] = {
        **stock["datasets"]["val"],
        "name": "second",
        "dataroot_gt": "train",
        "dataroot_lq": "train",
    }
    stock["val"]["save_img"] = True
    assert run("train", stock) == 0
    first = cv2.imread("experiments/tiny/visualization/val/0/0_8.png")
    second = cv2.imread("experiments/tiny/visualization/second/0/0_8.png")
    assert first is not None and second is not None and not np.array_equal(first, second)


def test_pictures_of_one_name_in_several_folders_all_count(stock, run):
    for part, seed in (("a", 1), ("b", 2)):
        make_pictures(Path("parts", part), 1, seed=seed)
    test = {key: stock[key] for key in ("model_type", "num_gpu", "network_g", "val")}
    test |= {"name": "tested", "datasets": {"test": {**stock["datasets"]["val"], "dataroot_gt": "parts"}}}
    test["datasets"]["test"].update(dataroot_lq="parts", type="PairedDenoisingDataset", color="rgb")
    torch.save({"params": TinyNet().state_dict()}, "weights.pth")
    test |= {"path": {"pretrain_network_g": "weights.pth"}, "val": {**stock["val"], "save_img": True}}
    assert run("test", test) == 0
    record = json.loads(Path("results/tested/metrics.json").read_text())["val"]
    psnr = [row["output"]["psnr"] for row in record["images"]]
    assert [row["name"] for row in record["images"]] == ["a/0", "b/0"] and psnr[0] != psnr[1]
    assert record["output"]["psnr"] == pytest.approx(sum(psnr) / 2)
    written = Path("results/tested/visualization/val")
    assert {path.relative_to(written).as_posix() for path in written.rglob("*.png")} == {
        "a/0_tested.png", "b/0_tested.png"
    }  # fmt: skip


def test_pictures_that_differ_in_suffix_alone_have_a_result_each(recipe, run):
    cv2.imwrite("val/0.bmp", 255 - cv2.imread("val/0.png"))
    recipe["val"]["save_img"] = True
    assert run("train", recipe) == 0
    results = list(Path("experiments/tiny/visualization/val").rglob("*_8.png"))
    assert len(results) == 3 and len({path.read_bytes() for path in results}) == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_goes_on_with_all_its_random_numbers_at_the_first_step(rank, monkeypatch):
    from basicsr.models.base_model import BaseModel

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    model = BaseModel({"num_gpu": 0, "is_train": True, "rank": rank})
    state = {"iter": 4, "random": copy.deepcopy(fixes._get_random_state())}
    monkeypatch.setattr(fixes.RUN, "resume_state", state)
    kept = draw()
    after = fixes._get_random_state()
    model.update_learning_rate(5)
    assert (draw() == kept) is (rank == 0)
    fixes._set_random_state(after)
    going_on = draw()
    fixes._set_random_state(after)
    model.update_learning_rate(6)  # once only
    assert draw() == going_on


def test_a_training_runs_all_its_iterations(stock, run):
    """Three pictures, batches of two: an epoch is one iteration, which upstream counts as two and stops at half."""
    make_pictures(Path("three"), 3)
    stock["datasets"]["train"].update(dataroot_gt="three", dataroot_lq="three", dataset_enlarge_ratio=1)
    assert run("train", stock) == 0
    assert torch.load("experiments/tiny/training_states/8.state", weights_only=True)["iter"] == 8


@pytest.mark.parametrize(("iteration", "left"), [(8, "0:00:00"), (6, "0:00:20")])
def test_the_time_that_is_left_is_that_of_the_iterations_left(iteration, left, caplog, monkeypatch):
    """Ten seconds for each of eight."""
    import basicsr.train
    from basicsr.utils import get_root_logger

    monkeypatch.setattr(get_root_logger(), "propagate", True)
    opt = {"name": "run", "logger": {"print_freq": 1, "use_tb_logger": False}, "train": {"total_iter": 8}}
    log = basicsr.train.MessageLogger(opt, 1)
    log.start_time = time.time() - 10 * iteration
    with caplog.at_level("INFO", "basicsr"):
        log({"epoch": 0, "iter": iteration, "lrs": [1e-3], "time": 10.0, "data_time": 0.0})
    assert f"[eta: {left}, " in caplog.text


def test_an_epoch_without_a_batch_is_refused(stock, run, capsys):
    stock["datasets"]["train"].update(batch_size_per_gpu=32)
    assert run("train", stock) == 2
    assert "do not fill one batch of 32" in capsys.readouterr().err


def test_a_batch_copied_ahead_is_kept_for_the_stream_that_uses_it(monkeypatch):
    """Told to the allocator before the next one is copied; ``test_cuda.py`` has the real thing."""
    from basicsr.data.prefetch_dataloader import CUDAPrefetcher

    told = []
    stream = SimpleNamespace(wait_stream=lambda other: told.append(other))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, one: told.append((self.item(), one)))
    prefetcher = CUDAPrefetcher.__new__(CUDAPrefetcher)
    prefetcher.stream, prefetcher.batch = "its own", {"lq": torch.tensor(1), "lq_path": ["a.png"]}
    prefetcher.preload = lambda: (told.append("next"), setattr(prefetcher, "batch", None))
    assert prefetcher.next()["lq"] == 1
    assert told == ["its own", (1, stream), "next"]
    assert prefetcher.next() is None


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_draw_anew_whatever_the_workers(workers):
    """Upstream's workers draw the same from NumPy and ``random`` in every epoch; here their number does not matter."""
    from hranet_arch.pipeline import ResumableSampler, SeededDataset

    dataset = DrawingDataset({"name": "drawing"})
    sampler = ResumableSampler(dataset, 1, 0, 1, seed=3)
    loader = torch.utils.data.DataLoader(SeededDataset(dataset), batch_size=4, sampler=sampler, num_workers=workers)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs += [batch["drawn"] for batch in loader]
    assert len(torch.unique(torch.cat(epochs))) == 2 * 4 * 3
    if workers:
        sampler.set_epoch(0)
        alone = torch.utils.data.DataLoader(SeededDataset(dataset), batch_size=4, sampler=sampler)
        torch.testing.assert_close(next(iter(alone))["drawn"], epochs[0])


def test_a_worker_is_started_by_its_own_number(monkeypatch):
    """BasicSR seeds each by it."""
    from hranet_arch import pipeline

    for name in ("signal", "pthread_sigmask"):
        monkeypatch.setattr(pipeline.signal, name, lambda *arguments: None)
    monkeypatch.setattr(pipeline.threading.Thread, "start", lambda thread: None)
    started = []
    for worker in range(3):
        pipeline._start_worker(started.append, worker)
    assert started == [0, 1, 2]


def test_a_sample_leaves_every_generator_alone():
    from hranet_arch.pipeline import SeededDataset

    def describe():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = describe()
    SeededDataset(DrawingDataset({"name": "drawing"}))[0, 5]
    assert describe() == before


# --- data ---


def test_one_lmdb_can_serve_several_sets(recipe, run):
    from hranet_arch import prepare

    prepare.prepare_lmdb("val", "val.lmdb")
    for sigma, phase in ((15, "val"), (50, "val_2")):
        recipe["datasets"][phase] = {**recipe["datasets"]["val"], "name": f"s{sigma}", "sigma": sigma}
        recipe["datasets"][phase]["dataroot_gt"] = "val.lmdb"
    recipe["datasets"]["train"]["dataroot_gt"] = "val.lmdb"
    assert run("train", recipe) == 0


def test_basicsrs_paired_dataset_reads_16_bit(tmp_path):
    from basicsr.data import build_dataset

    picture = np.full((16, 16, 3), 257, np.uint16)  # 1/255 of full scale; cut to 8 bits it is 1
    picture[0, 0] = 300
    (tmp_path / "deep").mkdir()
    cv2.imwrite(str(tmp_path / "deep" / "a.png"), picture)
    opt = {"name": "deep", "type": "PairedImageDataset", "phase": "val", "scale": 1, "io_backend": {"type": "disk"}}
    dataset = build_dataset({**opt, "dataroot_gt": str(tmp_path / "deep"), "dataroot_lq": str(tmp_path / "deep")})
    assert dataset[0]["gt"][0, 0, 0].item() == pytest.approx(300 / 65535, abs=1e-7)
    assert dataset[0]["gt"][0, 1, 1].item() == pytest.approx(1 / 255, abs=1e-7)


def test_basicsrs_single_pictures_have_the_luma_of_its_pairs(tmp_path):
    """Of red it is 65.481 + 16 by BT.601; with red for blue it would be 24.966 + 16."""
    from basicsr.data import build_dataset

    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite(str(tmp_path / "red.png"), red)
    opt = {"name": "red", "type": "SingleImageDataset", "phase": "val", "io_backend": {"type": "disk"}, "color": "y"}
    dataset = build_dataset({**opt, "dataroot_lq": str(tmp_path)})
    assert dataset[0]["lq"][0, 0, 0].item() * 255 == pytest.approx(65.481 + 16, abs=1e-3)


def test_basicsrs_datasets_name_what_they_cannot_read(tmp_path):
    from basicsr.utils import imfrombytes

    with pytest.raises(InputError, match="not a picture"):
        imfrombytes(b"junk")


# --- folders ---


def test_a_launch_that_fails_leaves_the_earlier_run(stock, run, tmp_path):
    assert run("train", stock) == 0
    before = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/tiny/**/*") if p.is_file())
    stock["datasets"]["train"]["batch_size_per_gpu"] = 32  # found only after BasicSR has moved the folder
    assert run("train", stock) == 2
    after = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/tiny/**/*") if p.is_file())
    assert after == before and not list(tmp_path.glob("*/*_archived_*"))


def test_a_first_launch_that_fails_leaves_no_folder(stock, run):
    stock["datasets"]["train"]["batch_size_per_gpu"] = 32  # found only after BasicSR has made the folder
    assert run("train", stock) == 2
    assert not Path("experiments/tiny").exists()


def test_a_first_step_that_fails_leaves_the_earlier_run(stock, run, tmp_path, monkeypatch):
    """As out of memory does."""
    assert run("train", stock) == 0
    before = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/tiny/**/*") if p.is_file())

    def run_out_of_memory(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(registration.registries()["model"]["SRModel"], "optimize_parameters", run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run("train", stock)
    after = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/tiny/**/*") if p.is_file())
    assert after == before and not list(tmp_path.glob("*/*_archived_*"))


def test_launching_again_archives_even_within_a_second(stock, run, tmp_path):
    for _ in range(3):
        assert run("train", stock, "--force_yml", "train:total_iter=2") == 0
    assert len(list(tmp_path.glob("experiments/tiny_archived_*"))) == 2


def test_one_run_in_a_folder(stock, run, capsys, tmp_path):
    from filelock import FileLock

    (tmp_path / "experiments").mkdir()
    with FileLock("experiments/.tiny.lock"):
        assert run("train", stock) == 2
    assert "in use by another run" in capsys.readouterr().err
