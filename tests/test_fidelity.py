"""Scores against scikit-image's and against luma worked out by hand."""

import cv2
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hranet_arch import fidelity, record

LUMA = np.array([65.481, 128.553, 24.966]) / 255


@pytest.mark.parametrize("border", [0, 3])
@pytest.mark.parametrize("shape", [(31, 47), (31, 47, 3)])
@pytest.mark.parametrize("task", ["denoise", "sr", "jpeg"])
def test_psnr_and_ssim_agree_with_scikit_image_to_1e_6(task, shape, border):
    """Grey as it is in every task; of RGB, super-resolution looks at the luma: the clean one's alone is rounded."""
    rng = np.random.default_rng(0)
    clean = cv2.GaussianBlur(rng.integers(0, 256, shape, dtype=np.uint8), (5, 5), 0)
    output = (clean / 255 + rng.normal(0, 0.05, shape)).astype(np.float32)
    scores = fidelity.score_picture(output, clean, task, border)
    pair = [clean.astype(np.float64), (output.clip(0, 1) * 255).round()]
    exact = [clean / 255, output.astype(np.float64)]
    if task == "sr" and len(shape) == 3:
        luma = np.round(pair[0] @ LUMA + 16)
        pair, exact = [luma, pair[1] @ LUMA + 16], [luma / 255, exact[1] @ LUMA + 16 / 255]
    inner = np.s_[border : shape[0] - border, border : shape[1] - border]
    pair, exact = [one[inner] for one in pair], [one[inner] for one in exact]
    ssim = structural_similarity(
        *pair, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        channel_axis=-1 if pair[0].ndim == 3 else None,
    )  # fmt: skip
    assert scores["psnr"] == pytest.approx(peak_signal_noise_ratio(*pair, data_range=255), abs=1e-6)
    assert scores["psnr_float"] == pytest.approx(peak_signal_noise_ratio(*exact, data_range=1), abs=1e-4)
    assert scores["ssim"] == pytest.approx(ssim, abs=1e-6)
    assert set(scores) == set(fidelity.describe_metrics(task)) and ("psnrb" in scores) == (task == "jpeg")


def test_undefined_scores_are_left_out():
    flat = np.full((8, 30), 128, np.uint8)
    scores = fidelity.score_picture(flat / np.float32(255), flat, "denoise")
    assert scores == {"psnr": None, "psnr_float": None, "ssim": None}
    output = np.random.default_rng(0).random((12, 14, 3))
    scores = fidelity.score_picture(output, (output * 250).astype(np.uint8), "sr", border=2)
    assert scores["ssim"] is None and scores["psnr"] > 20  # inside of the border the window of 11 has 8 pixels
    assert record.average([None, 1.0, 3.0]) == 2 and record.average([None]) is None


def test_outputs_that_cannot_be_scored_are_refused():
    clean = np.zeros((8, 9), np.uint8)
    with pytest.raises(ValueError, match=r"made \(9, 8\) of it; \(8, 9\) is due"):
        fidelity.score_picture(np.zeros((9, 8), np.float32), clean, "denoise")
    with pytest.raises(ValueError, match="not finite"):
        fidelity.score_picture(np.full((8, 9), np.nan, np.float32), clean, "denoise")
