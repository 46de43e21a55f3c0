"""On the field's real data, where it lies beside the project; skipped elsewhere."""

import json
import shutil

import cv2
import pytest
import torch

from hranet_arch import Denoiser, Upscaler, checkpoints, fidelity, networks, noise, registration
from hranet_arch.prepare import prepare_lmdb
from hranet_arch.resize import resize_bicubic
from tests.conftest import REPOSITORY, run_cli

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
    return run_cli(*list(arguments))


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


# The set that is checked, how many of its pictures, the set for the floor, and BM3D's PSNR there as published.
FLOORS = {
    "Set12": (4, "Set12", {"15": 32.37, "25": 29.97, "50": 26.72}),
    "Kodak24": (2, "CBSD68", {"15": 33.52, "25": 30.71, "50": 27.38}),
}


@pytest.mark.parametrize(
    ("name", "testset", "sigma"),
    [
        (name, testset, sigma)
        for name, released in networks.list_released("denoise").items()
        for testset in FLOORS
        for sigma in released.card["results"].get(testset, ())
    ],
)
def test_released_denoisers_clean_as_recorded(name, testset, sigma):
    """The first pictures, to 0.01 dB; cards say what was recorded, and better than BM3D, the floor of a release."""
    count, floor_set, floor = FLOORS[testset]
    released, denoiser = networks.list_released()[name], Denoiser(name)
    recorded = find_result(checkpoints.hash_params(checkpoints.load_checkpoint(released.path)), testset, float(sigma))
    assert released.card["results"][testset][sigma]["psnr"] == round(recorded["psnr"], 4)
    assert released.card["results"][floor_set][sigma]["psnr"] > floor[sigma]
    for one in recorded["pictures"][:count]:
        clean = cv2.imread(str(next((DATASETS / testset).glob(f"{one['name']}.*"))), cv2.IMREAD_UNCHANGED)
        clean = clean if clean.ndim == 2 else clean[..., ::-1]
        output = denoiser(noise.add_test_noise(clean / 255, float(sigma)))
        assert fidelity.score_picture(output, clean, "denoise")["psnr"] == pytest.approx(one["psnr"], abs=0.01)


def find_result(weights, testset, level):
    """What a committed comparison measured with the weights of this hash."""
    for path in (REPOSITORY / "docs/records").glob("compare_*.json"):
        record = json.loads(path.read_text())
        for one in record.get("results", []):
            own = record["methods"][one["method"]]["weights"]
            sha256 = own.get(f"{level:g}", own.get("all", {})).get("sha256")
            if (sha256, one["testset"], one["level"]) == (weights, testset, level):
                return one
    raise AssertionError(f"no committed comparison has these weights on {testset} at {level:g}")
