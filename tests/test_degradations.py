"""Each degradation against its formula or the library that defines it; lists of them, and the dataset they feed."""

import cv2
import numpy as np
import pytest
import torch

from hranet_arch import registration  # noqa: F401 (fills the registry)
from hranet_arch.datasets import DegradationDataset
from hranet_arch.degradations import (
    BicubicDownsampling,
    Degradations,
    GaussianNoise,
    JPEGCompression,
    OneOf,
    PoissonGaussianNoise,
    Quantization,
)
from hranet_arch.errors import InputError
from hranet_arch.noise import add_test_noise
from hranet_arch.resize import resize_bicubic
from tests.conftest import make_pictures

X4 = [{"type": "BicubicDownsampling", "scale": 4}]


def random(seed=0):
    return np.random.default_rng(seed)


def planes(picture):
    return torch.from_numpy(picture.transpose(2, 0, 1))


@pytest.fixture
def picture():
    return cv2.resize(random().random((6, 7, 3), np.float32), (56, 48), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def test_gaussian_noise_of_a_test_is_the_fields(picture):
    noisy = GaussianNoise(sigma=25)(picture, np.random.RandomState(0))
    np.testing.assert_array_equal(noisy, add_test_noise(picture, 25))


def test_a_range_is_drawn_from_anew_each_time():
    flat, generator, step = np.full((64, 64, 1), 0.5, np.float32), random(), GaussianNoise(sigma=[0, 50])
    levels = np.array([step(flat, generator).std() * 255 for _ in range(200)])
    assert levels.min() < 3 and levels.max() > 47
    assert levels.mean() == pytest.approx(25, abs=3)


@pytest.mark.parametrize("light", [0.1, 0.5, 1.0])
def test_poisson_gaussian_noise_has_the_mean_and_variance_of_its_formula(light):
    """x / photons + sigma^2: at x = 0.5, 100 photons, 5 grey levels 0.005 + 0.000384 = 0.005384."""
    flat = np.full((400, 400, 1), light, np.float32)
    noisy = PoissonGaussianNoise(photons=100, sigma=5)(flat, random())
    assert noisy.mean() == pytest.approx(light, abs=2e-3)
    assert noisy.var() == pytest.approx(light / 100 + (5 / 255) ** 2, rel=0.02)


def test_gamma_makes_the_noise_of_the_dark_the_stronger_one():
    """Light is x^2.2; the noise's deviation sqrt(x^2.2 / photons) is divided by the slope, 2.2 x^1.2."""
    for value in (0.2, 0.8):
        noisy = PoissonGaussianNoise(photons=10000, gamma=2.2)(np.full((300, 300, 1), value, np.float32), random())
        expected = np.sqrt(value**2.2 / 10000) / (2.2 * value**1.2)
        assert noisy.std() == pytest.approx(expected, rel=0.03)


def test_noise_of_white_goes_beyond_white_with_a_gamma_too():
    noisy = PoissonGaussianNoise(photons=100, gamma=2.2)(np.ones((64, 64, 1), np.float32), random())
    assert noisy.max() > 1.05


def test_light_beyond_0_to_1_is_clipped_before_photons_are_counted():
    noisy = PoissonGaussianNoise(photons=1e6)(np.array([[[-0.5], [1.5]]], np.float32), random())
    np.testing.assert_allclose(noisy.ravel(), [0, 1], atol=0.01)


def test_exposures_differ_by_stops():
    """Half of the draws from 10 to 1000 photons lie below 100, the middle of the logarithms."""
    flat, generator, step = np.full((100, 100, 1), 1, np.float32), random(), PoissonGaussianNoise(photons=[10, 1000])
    photons = np.array([1 / step(flat, generator).var() for _ in range(300)])
    assert np.mean(photons < 100) == pytest.approx(0.5, abs=0.08)
    assert step.has_range and PoissonGaussianNoise(photons=9, sigma=[0, 5]).has_range


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_opencvs(picture, channels):
    picture = np.ascontiguousarray(picture[..., :channels])
    pixels = (picture * 255).round().astype(np.uint8)
    data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 20])[1]
    expected = cv2.imdecode(data, -1).reshape(picture.shape)[..., ::-1]
    found = JPEGCompression(quality=20)(picture, random())
    np.testing.assert_array_equal((found * 255).round().astype(np.uint8), expected)


def test_jpegs_quality_is_drawn_from_its_range(picture):
    step, generator = JPEGCompression(quality=[10, 12]), random()
    known = [JPEGCompression(quality=quality)(picture, random()) for quality in (10, 11, 12)]
    found = [step(picture, generator) for _ in range(900)]
    hits = [sum(np.array_equal(one, other) for other in found) for one in known]
    assert sum(hits) == 900 and 250 < min(hits) and max(hits) < 350  # each is as likely, the ends too


def test_bicubic_downsampling_is_matlabs_and_can_enlarge_again(picture):
    small = BicubicDownsampling(scale=4)(picture, random())
    expected = resize_bicubic(planes(picture), 1 / 4, is_8bit=True)
    np.testing.assert_allclose(small, expected.permute(1, 2, 0), atol=1e-6)
    again = BicubicDownsampling(scale=[4], enlarge=True)(picture[:46], random())
    assert again.shape == (46, 56, 3)
    bottom = resize_bicubic(resize_bicubic(planes(picture[:46]), 1 / 4, is_8bit=True), 4, is_8bit=True)[:, :46]
    np.testing.assert_allclose(again, bottom.permute(1, 2, 0), atol=1e-6)


def test_each_of_several_scales_is_drawn(picture):
    step, generator = BicubicDownsampling(scale=[2, 3, 4], enlarge=True), random()
    known = [BicubicDownsampling(scale=[scale], enlarge=True)(picture, random()) for scale in (2, 3, 4)]
    found = [step(picture, generator) for _ in range(30)]
    hits = [sum(np.array_equal(one, other) for other in found) for one in known]
    assert sum(hits) == 30 and min(hits) > 0


def test_a_grey_view_that_is_turned_round_is_taken(picture):
    """Its one channel reversed, a grey picture counts as contiguous for NumPy; torch refuses the negative stride."""
    gray, step = picture[..., :1], BicubicDownsampling(scale=[2], enlarge=True)
    np.testing.assert_array_equal(step(gray.copy()[..., ::-1], random()), step(gray, random()))


def test_quantization_is_an_8_bit_file():
    found = Quantization()(np.array([[[-0.2], [0.5], [0.7004], [1.3]]], np.float32), random())
    np.testing.assert_allclose(found.ravel() * 255, [0, 128, 179, 255], atol=1e-5)


def test_one_of_takes_each_branch_as_often(picture):
    step = OneOf(branches=[[], [{"type": "Quantization"}], [{"type": "JPEGCompression", "quality": 10}]])
    generator, results = random(), [b(picture, random()) for b in step.branches]
    found = [step(picture, generator) for _ in range(300)]
    for result in results:
        assert sum(np.array_equal(one, result) for one in found) == pytest.approx(100, abs=25)


def test_steps_run_in_their_order_and_add_up():
    steps = Degradations([
        {"type": "GaussianNoise", "sigma": 5},
        {"type": "BicubicDownsampling", "scale": 2},
        {"type": "BicubicDownsampling", "scale": 3, "enlarge": True},
        {"type": "BicubicDownsampling", "scale": 2},
    ])  # fmt: skip
    # 2 * 2 of the first, 4 * 3 of the second behind a half, 2 * 2 of the third behind a half: 4 + 24 + 8.
    assert (steps.scale, steps.margin, steps.has_range) == (4, 36, False)


def test_margins_are_whole_pixels_of_the_small_picture_and_those_of_the_widest_branch():
    enlarged = {"type": "BicubicDownsampling", "scale": 2, "enlarge": True}
    assert Degradations([enlarged, {"type": "BicubicDownsampling", "scale": 3}]).margin == 15  # 8 + 6, a multiple of 3
    assert OneOf(branches=[[], [{**enlarged, "scale": [4]}], [enlarged]]).margin == 16


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "GaussianNoise", "sigma": [50, 5]}, r"sigma=\[50, 5\] is not allowed: it must be a number from 0"),
        ({"type": "GaussianNoise", "sigma": "25"}, "sigma='25' is not allowed"),
        ({"type": "JPEGCompression", "quality": 0}, "quality=0 is not allowed: it must be a number from 1 to 100"),
        ({"type": "JPEGCompression", "quality": [10, 40.5]}, "it must be whole numbers"),
        ({"type": "PoissonGaussianNoise", "photons": 0}, "photons=0 is not allowed"),
        ({"type": "PoissonGaussianNoise", "photons": 9, "gamma": [1, 2]}, r"gamma=\[1, 2\] is not allowed"),
        ({"type": "BicubicDownsampling", "scale": 1}, "scale=1 is not allowed"),
        ({"type": "BicubicDownsampling", "scale": 2.0}, "scale=2.0 is not allowed: it must be 2 to 8"),
        ({"type": "BicubicDownsampling", "scale": [2, 3]}, "several need enlarge: true"),
        ({"type": "OneOf", "branches": [[], X4]}, "do not go together"),
        ({"type": "OneOf", "branches": X4}, "'scale': 4} is no list of steps, each {type: NAME"),
        ({"type": "Blur"}, "there is no degradation 'Blur'. Known: BicubicDownsampling, GaussianNoise"),
    ],
)
def test_a_bad_step_is_named_with_its_value(step, message):
    with pytest.raises(ValueError, match=message):
        Degradations([step])


# ------------------------------------------------------------------------------------------------ the dataset


def degraded_set(root, steps, **options):
    base = {"name": "set", "phase": "val", "color": "rgb", "dataroot_gt": str(root), "degradations": steps}
    return DegradationDataset({**base, **options})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", 2, size=(75, 90))


def test_a_grey_crop_that_is_not_turned_is_a_sample(pictures):
    item = degraded_set(pictures, [{"type": "Quantization"}], color="y", phase="train", gt_size=16)[0]
    assert item["gt"].shape == item["lq"].shape == (1, 16, 16)


def test_a_test_picture_smaller_than_the_scale_is_named(tmp_path):
    make_pictures(tmp_path / "tiny", 1, size=(3, 40))
    with pytest.raises(
        InputError, match=r"1 of 1 pictures are smaller than one pixel made 4 times smaller, 4x4: 0.png"
    ):
        degraded_set(tmp_path / "tiny", X4)


def test_a_test_picture_is_cut_to_the_scale_and_degraded_whole(pictures):
    item = degraded_set(pictures, X4)[1]
    clean = cv2.imread(str(pictures / "1.png"))[:72, :88, ::-1]
    assert torch.equal(item["gt"], torch.from_numpy(clean.copy()).permute(2, 0, 1).float() / 255)
    assert torch.equal(item["lq"], resize_bicubic(item["gt"], 1 / 4, is_8bit=True))
    assert item["lq_path"] == item["gt_path"] == str(pictures / "1.png")


def test_noise_of_a_test_is_the_fields_for_each_picture(pictures):
    dataset = degraded_set(pictures, [{"type": "GaussianNoise", "sigma": 25}], cache="ram")
    for i in range(2):
        gt, lq = (dataset[i][key].permute(1, 2, 0).numpy() for key in ("gt", "lq"))
        np.testing.assert_array_equal(lq, add_test_noise(gt, 25))
    assert list(dataset.store.cache) == ["0.png", "1.png"]


def test_a_crop_is_what_the_whole_picture_would_give(tmp_path):
    """Beyond its border the crop's small picture knows the rest of the picture."""
    cv2.imwrite(str(tmp_path / "noise.png"), random().integers(0, 256, (75, 90, 3), np.uint8))
    dataset = degraded_set(tmp_path, X4, phase="train", gt_size=48, use_hflip=True, use_rot=True)
    torch.manual_seed(0)
    item = dataset[0]
    assert item["gt"].shape == (3, 48, 48) and item["lq"].shape == (3, 12, 12)
    alone = resize_bicubic(item["gt"], 1 / 4, is_8bit=True)  # where the crop's outermost pixels are repeated
    # Turned pictures may round a half the other way.
    assert torch.allclose(item["lq"][:, 2:-2, 2:-2], alone[:, 2:-2, 2:-2], atol=1.01 / 255)
    assert (item["lq"] - alone)[:, [0, -1]].abs().mean() > 2 / 255


def test_a_sample_is_new_each_time_and_fixed_by_torchs_seed(pictures):
    dataset = degraded_set(pictures, [{"type": "GaussianNoise", "sigma": 20}], phase="train", gt_size=75,
                           use_hflip=False, use_rot=False)  # fmt: skip

    def draw():
        item = dataset[0]
        return item["lq"] - item["gt"]  # crops are drawn from Python's generator, as BasicSR draws them

    torch.manual_seed(0)
    first, second = draw(), draw()
    torch.manual_seed(0)
    assert torch.allclose(first, draw(), atol=1e-6) and not torch.allclose(first, second, atol=1e-2)


def test_a_picture_without_room_for_the_margin_is_refused(pictures):
    with pytest.raises(InputError, match="patch with the margin of 8 that its degradations need, 76x76"):
        degraded_set(pictures, X4, phase="train", gt_size=60)


def test_luma_is_what_super_resolution_is_measured_on(pictures, tmp_path):
    """BasicSR's own: 16 + (65.481 R + 128.553 G + 24.966 B) / 255; a grey file stays as it is."""
    from basicsr.utils.color_util import bgr2ycbcr

    color = cv2.imread(str(pictures / "0.png"))
    item = degraded_set(pictures, [{"type": "Quantization"}], color="y")[0]
    expected = bgr2ycbcr(color.astype(np.float32) / 255, y_only=True) * 255
    np.testing.assert_allclose(item["gt"][0].numpy() * 255, expected.round(), atol=1e-4)
    cv2.imwrite(str(tmp_path / "grey.png"), color[..., 1])
    grey = degraded_set(tmp_path, [{"type": "Quantization"}], color="y")[0]["gt"]
    np.testing.assert_allclose(grey[0].numpy() * 255, color[..., 1], atol=1e-4)


# ------------------------------------------------------------------------------------------------ a run


@pytest.fixture
def enlarging(recipe):
    """The small recipe for twice the size; ``train/`` has pictures of 40 x 44."""
    steps = [{"type": "BicubicDownsampling", "scale": 2}]
    for phase in ("train", "val"):
        dataset = recipe["datasets"][phase]
        del dataset["sigma"]
        dataset.update(type="DegradationDataset", color="rgb", degradations=steps)
    recipe.update(scale=2, model_type="RestorationModel")
    recipe["network_g"].update(num_in_ch=3, num_out_ch=3, upscale=2)
    recipe["train"]["pixel_opt"] = {"type": "L1Loss"}
    return recipe


def test_an_enlarging_network_trains_and_validates(enlarging, run, capsys):
    assert run("train", enlarging) == 0
    log = capsys.readouterr().err
    assert "Validation val (2 images)" in log and "psnr" in log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["datasets"]["train"]["degradations"][0].update(scale=3), "make pictures 3 times smaller"),
        (lambda o: o["datasets"]["train"].update(gt_size=17), "17 must be a multiple of the scale, 2"),
        (lambda o: o["network_g"].update(upscale=3), "Mend the channels, 'upscale' or 'scale'"),
        (
            lambda o: o["datasets"]["val"]["degradations"].append({"type": "JPEGCompression", "quality": [10, 40]}),
            "datasets.val.degradations: hold a choice or a range",
        ),
        (
            lambda o: o["datasets"]["val"]["degradations"].append({"type": "JPEGCompression", "qualty": 10}),
            "datasets.val.degradations.1.qualty: unknown key. Did you mean 'quality'?",
        ),
        (
            lambda o: o["datasets"]["val"]["degradations"].append({"type": "JPEGCompresion", "quality": 10}),
            "there is no degradation 'JPEGCompresion'. Did you mean",
        ),
        (
            lambda o: o["datasets"]["val"]["degradations"].append({"type": "OneOf", "branches": [[{"type": "Blr"}]]}),
            "datasets.val.degradations.1.branches.0.0.type: there is no degradation 'Blr'",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_runs(enlarging, run, capsys, change, message):
    import copy

    enlarging["datasets"] = copy.deepcopy(enlarging["datasets"])
    change(enlarging)
    assert run("train", enlarging) != 0
    assert message in capsys.readouterr().err


def test_a_denoising_network_is_the_start_of_an_enlarging_one(enlarging, run):
    from hranet_arch.hranet import HRANet
    from tests.conftest import load_network

    denoiser = HRANet(num_in_ch=3, num_out_ch=3, num_feat=8)
    torch.save({"params": denoiser.state_dict()}, "denoiser.pth")
    enlarging["path"] = {"pretrain_network_g": "denoiser.pth", "param_key_g": "params", "strict_load_g": False}
    enlarging["train"]["total_iter"], enlarging["train"]["optim_g"]["lr"] = 1, 1e-12
    assert run("train", enlarging) == 0
    trained = load_network("experiments/tiny/models/net_g_latest.pth")
    for name, value in denoiser.state_dict().items():
        if "detail_enhancement.15" not in name and "running" not in name and "tracked" not in name:
            assert torch.allclose(trained[name], value, atol=1e-6), name
