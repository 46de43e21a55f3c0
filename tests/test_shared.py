"""On the field's real data, where it lies beside the project; skipped elsewhere."""

import json
import shutil

import cv2
import pytest
import torch

from hranet_arch import Denoiser, Upscaler, checkpoints, cli, fidelity, networks, noise, registration
from hranet_arch.prepare import prepare_lmdb
from hranet_arch.resize import resize_bicubic
from tests.conftest import REPOSITORY

DATASETS = REPOSITORY.parent / "shared" / "datasets"

pytestmark = pytest.mark.skipif(not DATASETS.is_dir(), reason="needs BSD400, BSD68 and Set12 in ../shared/datasets")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder as a user's: ``options/`` and ``datasets/`` under the names that the option files give."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "options", "options")
    (tmp_path / "datasets").mkdir()
    for name in ("Set12", "BSD68"):
        (tmp_path / "datasets" / name).symlink_to(DATASETS / name)
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code


@pytest.mark.slow
def test_bsd400_trains_and_is_watched_on_set12_and_bsd68(workplace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    prepare_lmdb(DATASETS / "BSD400", "datasets/BSD400.lmdb")
    short = ["train:total_iter=2", "network_g:num_feat=4", "datasets:train:batch_size_per_gpu=2"]
    assert run("train", "-opt", "options/bsd400/train_hranet_gray_s25.yml", "--force_yml", *short) == 0
    tags = EventAccumulator("tb_logger/hranet_bsd400_gray_s25").Reload().Tags()["scalars"]
    assert {"metrics/Set12/psnr", "metrics/BSD68/psnr"} <= set(tags)
    assert not (workplace / "experiments/hranet_bsd400_gray_s25/models/net_g_best.pth").exists()


class ReturnInput(torch.nn.Module):
    def forward(self, x):
        return x


def test_a_network_that_returns_its_input_scores_what_the_field_says(workplace):
    """BSD68 at sigma 25: 20.194 dB in float, 20.498 dB clipped and rounded to 8 bits."""
    registration.ARCH_REGISTRY.register(ReturnInput)
    try:
        changes = ["network_g={type: ReturnInput}", "path={}", "datasets:test:dataroot_gt=datasets/BSD68", "name=noisy"]
        status = run("test", "-opt", "options/test_hranet.yml", "--force_yml", *changes, "val:save_img=false")
    finally:
        del registration.ARCH_REGISTRY._obj_map["ReturnInput"]
    assert status == 0
    record = json.loads((workplace / "results/noisy/metrics.json").read_text())["sample_val"]
    assert len(record["images"]) == 68
    assert record["output"]["psnr_float"] == pytest.approx(20.194, abs=0.005)
    assert record["output"]["psnr"] == pytest.approx(20.498, abs=0.005)


def test_test_sets_are_laid_out_and_kept_out_of_training(workplace, capsys):
    """A crop of a picture of Set12, mirrored, among training pictures of another kind."""
    flags = ["--from", str(DATASETS / "Set12"), "--output", "found"]
    assert run("prepare", "testsets", *flags) == 0
    output = capsys.readouterr().out
    assert "Set12, exact" in output and "Urban100: not found" in output
    assert len(list((workplace / "found/Set12").iterdir())) == 12
    (workplace / "training").mkdir()
    shutil.copy(DATASETS / "BSD400" / "test_001.png", "training/other.png")
    assert run("prepare", "testsets", *flags, "--training", "training") == 0
    picture = cv2.imread(str(DATASETS / "Set12" / "01.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite("training/stolen.png", picture[40:220, 250:60:-1])
    assert run("prepare", "testsets", *flags, "--training", "training") == 2
    assert "stolen.png: Set12/01.png" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_released_networks_enlarge_set5_as_their_cards_say(scale):
    """To 0.01 dB, and 2 dB better than bicubic at the least."""
    released = networks.list_released()[f"hranet_s_x{scale}"]
    upscaler, scores = Upscaler(released.name), {"network": [], "bicubic": []}
    for path in sorted((DATASETS / f"Set5/x{scale}/gt").iterdir()):
        gt, lq = (cv2.imread(str(path.parents[1] / kind / path.name))[..., ::-1] for kind in ("gt", "lq"))
        small = torch.from_numpy(lq.copy()).permute(2, 0, 1) / 255
        for name, large in (("network", upscaler(small)), ("bicubic", resize_bicubic(small, scale))):
            score = fidelity.score_picture(large.permute(1, 2, 0).numpy(), gt, "sr", border=scale)
            scores[name].append(score["psnr"])
    mean = {name: sum(values) / 5 for name, values in scores.items()}
    assert mean["network"] == pytest.approx(released.card["results"]["Set5"][str(scale)]["psnr"], abs=0.01)
    assert mean["network"] > mean["bicubic"] + 2


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        (name, sigma)
        for name, released in networks.list_released("denoise").items()
        for sigma in released.card["results"].get("Set12", ())
    ],
)
def test_released_denoisers_clean_set12_as_their_cards_say(name, sigma):
    """To 0.01 dB, and better than BM3D, the floor of a release: 32.37, 29.97, 26.72 dB as published."""
    denoiser, scores = Denoiser(name), []
    for path in sorted((DATASETS / "Set12").iterdir()):
        clean = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        noisy = torch.from_numpy(noise.add_test_noise(clean / 255, float(sigma)))
        output = denoiser(noisy[None])[0].numpy()
        scores.append(fidelity.score_picture(output, clean, "denoise")["psnr"])
    mean = sum(scores) / 12
    assert mean == pytest.approx(networks.list_released()[name].card["results"]["Set12"][sigma]["psnr"], abs=0.01)
    assert mean > {"15": 32.37, "25": 29.97, "50": 26.72}[sigma]


COLOR_DENOISERS = [
    (name, float(level))
    for name, released in networks.list_released("denoise").items()
    for level in released.card["results"].get("Kodak24", ())
]


@pytest.mark.parametrize(("name", "sigma"), COLOR_DENOISERS)
def test_released_denoisers_clean_colour_as_recorded(name, sigma):
    """Four pictures of Kodak24, to 0.01 dB, and on CBSD68 in the mean better than CBM3D: 33.52, 30.71, 27.38 dB."""
    released = networks.list_released()[name]
    assert released.card["results"]["CBSD68"][f"{sigma:g}"]["psnr"] > {15: 33.52, 25: 30.71, 50: 27.38}[sigma]
    weights, denoiser = checkpoints.hash_params(checkpoints.load_checkpoint(released.path)), Denoiser(name)
    for one in find_result(weights, "Kodak24", sigma)["pictures"][:4]:
        clean = cv2.imread(str(next((DATASETS / "Kodak24").glob(f"{one['name']}.*"))))[..., ::-1]
        noisy = torch.from_numpy(noise.add_test_noise(clean / 255, sigma)).permute(2, 0, 1)
        output = denoiser(noisy).permute(1, 2, 0).numpy()
        assert fidelity.score_picture(output, clean, "denoise")["psnr"] == pytest.approx(one["psnr"], abs=0.01)


def find_result(weights, testset, level):
    """What a committed comparison measured with the weights of this hash."""
    for path in (REPOSITORY / "docs/records").glob("compare_*color*.json"):
        record = json.loads(path.read_text())
        for one in record["results"]:
            own = record["methods"][one["method"]]["weights"]
            sha256 = own.get(f"{level:g}", own.get("all", {})).get("sha256")
            if (sha256, one["testset"], one["level"]) == (weights, testset, level):
                return one
    raise AssertionError(f"no committed comparison has these weights on {testset} at {level:g}")
