"""Batches made at once: single crops against NumPy, their distribution against the dataset's, and exact resumes."""

import re

import cv2
import numpy as np
import pytest
import torch

from hranet_arch import pipeline
from hranet_arch.datasets import GaussianDenoisingDataset
from hranet_arch.device_batches import DeviceLoader, PictureBank, draw_batch, load_pictures
from tests.conftest import load_network, make_pictures

CPU = torch.device("cpu")


def train_set(root, **options):
    base = {"name": "set", "phase": "train", "color": "gray", "sigma": 25, "gt_size": 4, "dataroot_gt": str(root)}
    return GaussianDenoisingDataset({**base, **options})


def make_loader(dataset, *, batch_size=4, replicas=1, rank=0, ratio=4, seed=0):
    sampler = pipeline.ResumableSampler(dataset, replicas, rank, ratio, seed)
    return DeviceLoader(dataset, sampler, batch_size, CPU)


def draw(dataset, count, seed=0):
    """One batch of ``count`` samples of the first picture."""
    bank = PictureBank(load_pictures(dataset.store), CPU)
    return draw_batch(bank, torch.zeros(count, dtype=torch.int64), dataset.opt, torch.Generator().manual_seed(seed))


def turn(crop, symmetry):
    """BasicSR's ``augment``: left and right, then top and bottom, then rows and columns."""
    crop = crop[:, :, ::-1] if symmetry & 1 else crop
    crop = crop[:, ::-1] if symmetry & 2 else crop
    return crop.transpose(0, 2, 1) if symmetry & 4 else crop


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_pictures_of_any_size_are_numpys(channels):
    rng = np.random.default_rng(0)
    sizes = [(5, 9), (7, 5), (12, 6)]
    pictures = [rng.integers(0, 256, (channels, *size), dtype=np.uint8) for size in sizes]
    bank = PictureBank([torch.from_numpy(picture) for picture in pictures], CPU)
    for which, picture in enumerate(pictures):
        for symmetry in range(8):
            top, left = rng.integers(0, picture.shape[1] - 4), rng.integers(0, picture.shape[2] - 4)
            given = (torch.tensor([value, 0]) for value in (which, top, left, symmetry))
            actual = bank.cut(*given, size=5)[0].numpy()
            expected = turn(picture[:, top : top + 5, left : left + 5], symmetry).astype(np.float32) / 255
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_pixels_are_those_of_the_dataset(tmp_path, color, depth):
    """A crop as large as the picture, without flips, is the dataset's own; 8 bits of depth take a byte each."""
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, np.iinfo(depth).max, (6, 6, 3), dtype=depth))
    dataset = train_set(tmp_path, color=color, gt_size=6, use_hflip=False, use_rot=False)
    assert torch.equal(draw(dataset, 2)["gt"][1], dataset[0]["gt"])
    assert load_pictures(dataset.store)[0].dtype == (torch.uint8 if depth is np.uint8 else torch.float32)


def test_pictures_of_two_depths_are_one_bank(tmp_path):
    """51 / 255 = 13107 / 65535 = 0.2."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((6, 6), 51, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((6, 6), 13107, np.uint16))
    found = load_pictures(train_set(tmp_path).store)
    assert len(found) == 2 and all(torch.allclose(one, torch.full((1, 6, 6), 0.2)) for one in found)


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_crops_and_symmetries_are_uniform(tmp_path):
    """A 7x6 picture has 4 * 3 places for a 4x4 crop and 8 symmetries: 96 outcomes, told apart by their pixels.

    Chi-square with 95 degrees of freedom passes 147.0 in one of 2,000 fair draws, for both ways of drawing.
    """
    picture = np.arange(42, dtype=np.uint8).reshape(7, 6) * 6
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    outcomes = {
        turn(picture[None, top : top + 4, left : left + 4], symmetry).tobytes(): i
        for i, (top, left, symmetry) in enumerate(np.ndindex(4, 3, 8))
    }
    dataset = train_set(tmp_path, sigma=0)
    batch = (draw(dataset, 9600)["gt"].numpy() * 255).round().astype(np.uint8)
    assert chi_square(np.bincount([outcomes[crop.tobytes()] for crop in batch], minlength=96)) < 147
    torch.manual_seed(0)
    samples = [(dataset[0]["gt"].numpy() * 255).round().astype(np.uint8).tobytes() for _ in range(1920)]
    assert chi_square(np.bincount([outcomes[sample] for sample in samples], minlength=96)) < 147


@pytest.mark.parametrize(
    ("options", "symmetries"),
    [
        ({"use_hflip": False, "use_rot": False}, {0}),
        ({"use_rot": False}, {0, 1}),
        ({"use_hflip": False}, {0, 2, 4, 6}),
    ],
)
def test_flips_and_rotations_can_be_left_out(tmp_path, options, symmetries):
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    batch = (draw(train_set(tmp_path, sigma=0, **options), 100)["gt"].numpy() * 255).round().astype(np.uint8)
    seen = {crop.tobytes() for crop in batch}
    assert seen == {turn(picture[None], symmetry).tobytes() for symmetry in symmetries}


def test_noise_is_white_and_gaussian_with_the_level_asked_for(tmp_path):
    """Bounds are 4 standard errors of 64,000 draws: of the mean, variance, skewness, kurtosis, neighbours' product."""
    make_pictures(tmp_path / "a", 1)
    batch = draw(train_set(tmp_path / "a", gt_size=16, sigma=30), 250)
    noise = (batch["lq"] - batch["gt"]).double() * 255 / 30
    root = noise.numel() ** 0.5
    assert abs(noise.mean()) < 4 / root
    assert abs(noise.var() - 1) < 4 * 2**0.5 / root
    assert abs((noise**3).mean()) < 4 * 15**0.5 / root
    assert abs((noise**4).mean() - 3) < 4 * 96**0.5 / root
    assert abs((noise[..., 1:] * noise[..., :-1]).mean()) < 4 / root
    assert abs((noise[1:] * noise[:-1]).mean()) < 4 / root
    assert torch.equal(batch["sigma"], torch.full((250,), 30.0))
    assert batch["lq"].min() < 0 or batch["lq"].max() > 1  # neither clipped nor rounded


def test_the_level_is_in_255ths(tmp_path):
    """The deviation of a million values is known to 0.07 %; of 256 it would be 0.4 % less."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 40), 128, np.uint8))
    batch = draw(train_set(tmp_path, gt_size=40, sigma=50), 640)
    assert (batch["lq"] - batch["gt"]).std().item() * 255 == pytest.approx(50, rel=0.003)


def test_blind_levels_are_uniform_and_are_those_of_the_noise(tmp_path):
    make_pictures(tmp_path / "a", 1)
    batch = draw(train_set(tmp_path / "a", gt_size=32, sigma=[5, 55]), 2000)
    levels = batch["sigma"]
    # Kolmogorov and Smirnov: the largest distance passes 1.95 / sqrt(n) in one of 1,000 fair draws.
    distance = (((levels.sort().values - 5) / 50) - torch.linspace(0, 1, 2000)).abs().max()
    assert levels.min() >= 5 and levels.max() <= 55 and distance < 1.95 / 2000**0.5
    measured = (batch["lq"] - batch["gt"]).flatten(1).std(dim=1) * 255
    torch.testing.assert_close(measured, levels, rtol=0.12, atol=0)  # 5 standard errors of 1,024 pixels


def test_the_channels_of_a_colour_picture_have_noise_of_their_own(tmp_path):
    """The bound is 4 standard errors of 192,000 products of two channels' noises."""
    make_pictures(tmp_path / "a", 1)
    batch = draw(train_set(tmp_path / "a", color="rgb", gt_size=16, sigma=30), 250)
    noise = (batch["lq"] - batch["gt"]).double() * 255 / 30
    assert noise.shape == (250, 3, 16, 16)
    assert abs((noise * noise.roll(1, dims=1)).mean()) < 4 / noise.numel() ** 0.5


def test_a_blind_level_says_nothing_of_the_place_or_the_symmetry(tmp_path):
    """A pixel is ten times its row plus its column: a crop's mean tells its place, its steps tell its symmetry.

    Correlations are compared with 4 standard errors of 4,000 draws.
    """
    cv2.imwrite(str(tmp_path / "a.png"), np.add.outer(10 * np.arange(10), np.arange(10)).astype(np.uint8))
    batch = draw(train_set(tmp_path, sigma=[5, 55]), 4000)
    crops = (batch["gt"][:, 0].numpy() * 255).round()
    place = (crops.mean(axis=(1, 2)) - 16.5).round()  # the mean of the crop at the top left is 16.5
    down, right = crops[:, 1, 0] - crops[:, 0, 0], crops[:, 0, 1] - crops[:, 0, 0]
    drawn = np.stack([place // 10, place % 10, np.sign(down), np.sign(right), abs(down)])
    assert [len(np.unique(values)) for values in drawn] == [7, 7, 2, 2, 2]
    assert abs(np.corrcoef(batch["sigma"].numpy(), drawn)[0, 1:]).max() < 4 / 4000**0.5


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("quantize", [True, False])
def test_clip_and_quantize_make_what_an_8_bit_file_holds(tmp_path, clip, quantize):
    make_pictures(tmp_path / "a", 1)
    plain = draw(train_set(tmp_path / "a", sigma=100), 8)["lq"]
    file = draw(train_set(tmp_path / "a", sigma=100, clip=clip, quantize=quantize), 8)["lq"]
    expected = plain.clamp(0, 1) if clip else plain
    assert torch.equal(file, (expected * 255).round() / 255 if quantize else expected)


# ------------------------------------------------------------------------------------------------------- the loader


def test_every_batch_is_the_samplers_and_an_epoch_ends_with_the_last_whole_one(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"a/{i}.png"), np.full((4 + i, 9 - i, 3), 40 * i, np.uint8))
    loader = make_loader(train_set(tmp_path / "a"), batch_size=4, ratio=3)
    batches = list(loader)
    order = [index for _, index in loader.sampler.list_places()]
    assert len(order) == 18 and len(loader) == len(batches) == 4
    seen = [round(value * 255 / 40) for batch in batches for value in batch["gt"][:, 0, 0, 0].tolist()]
    assert seen == order[:16]


def assert_same(first, second):
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("lq", "gt"))


def test_batches_are_new_in_each_epoch_and_on_each_rank_and_the_same_in_each_run(tmp_path):
    dataset = train_set(make_pictures(tmp_path / "a", 4), sigma=[0, 55])
    loader = make_loader(dataset)
    first = list(loader)
    assert_same(first, list(make_loader(dataset)))
    loader.sampler.set_epoch(1)
    others = [list(loader), list(make_loader(dataset, seed=1))]
    others += [list(make_loader(dataset, replicas=2, rank=rank, ratio=8, seed=2)) for rank in (0, 1)]
    runs = [first, *others]
    noises = [(batch["lq"] - batch["gt"]).flatten() for run in runs for batch in run]
    assert len({tuple(noise[:3].tolist()) for noise in noises}) == len(noises)


def test_a_loader_that_begins_inside_an_epoch_goes_on_with_the_same_batches(tmp_path):
    dataset = train_set(make_pictures(tmp_path / "a", 4), sigma=[0, 55])
    whole, rest = make_loader(dataset), make_loader(dataset)
    rest.sampler.first = (0, 8)
    assert_same(list(whole)[2:], list(rest))
    for loader in (whole, rest):
        loader.sampler.set_epoch(1)
    assert_same(list(whole), list(rest))


def test_making_a_batch_leaves_the_networks_random_numbers_alone(tmp_path):
    loader = make_loader(train_set(make_pictures(tmp_path / "a", 4)))
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("dist", "size"), [(False, 6), (True, 3)])
def test_a_batch_is_for_all_gpus_of_one_process(dist, size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(pipeline, "DeviceLoader", lambda dataset, sampler, batch_size, device: batch_size)
    options = {"degrade_on": "device", "batch_size_per_gpu": 3}
    assert pipeline._build_loader(None, options, None, {"dist": dist, "num_gpu": 2}) == size


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def device_recipe(recipe):
    recipe["datasets"]["train"].update(degrade_on="device", sigma=[0, 55])
    return recipe


def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(device_recipe, run):
    """Epochs of 6 iterations, a state at 4; with and without workers asked for."""
    assert run("train", device_recipe, "--force_yml", "name=whole", "datasets:train:num_worker_per_gpu=3") == 0
    assert run("train", device_recipe, "--force_yml", "train:total_iter=4") == 0
    assert run("train", device_recipe, "--auto_resume") == 0
    for key in ("params", "params_ema"):
        whole, resumed = (load_network(f"experiments/{name}/models/net_g_8.pth", key) for name in ("whole", "tiny"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_other_models_train_on_it_too(device_recipe, run):
    device_recipe["model_type"] = "SRModel"
    device_recipe["train"]["pixel_opt"] = {"type": "MSELoss"}
    assert run("train", device_recipe) == 0


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("datasets:train:degrade_on", "gpu", "datasets.train.degrade_on: 'gpu': must be 'loader' or 'device'"),
        ("datasets:val:degrade_on", "device", "datasets.val.degrade_on: device is for training"),
        ("datasets:train:prefetch_mode", "cpu", "datasets.train.prefetch_mode: .*nothing to read ahead"),
        ("datasets:train:gt_size", "64", "datasets.train: train: 6 of 6 pictures are smaller than the patch, 64x64"),
    ],
)
def test_what_does_not_fit_is_refused(device_recipe, run, capsys, where, value, message):
    assert run("train", device_recipe, "--force_yml", f"{where}={value}") == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_damaged_picture_is_named(device_recipe, run, tmp_path, capsys):
    path = tmp_path / "train/3.png"
    path.write_bytes(path.read_bytes()[:60])
    device_recipe["datasets"]["train"]["gt_size"] = 8
    assert run("train", device_recipe) != 0
    assert "3.png" in capsys.readouterr().err
