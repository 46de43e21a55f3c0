"""How close a restored picture is to the clean one, by the conventions of each task's published tables."""

from __future__ import annotations

import math

import numpy as np

from hranet_arch.compat import make_importable
from hranet_arch.images import to_8bit, to_luma
from hranet_arch.metrics import calculate_psnr_float, calculate_psnrb

make_importable()

from basicsr.metrics import calculate_psnr, calculate_ssim

METRICS = {
    "psnr": "PSNR in dB of the output clipped and rounded to 8 bits (basicsr.metrics.calculate_psnr)",
    "psnr_float": "PSNR in dB of the output itself (hranet_arch.metrics.calculate_psnr_float)",
    "ssim": "SSIM of the 8-bit output, MATLAB's form: Gaussian window 11x11 of 1.5, borders left out, mean over "
    "channels (basicsr.metrics.calculate_ssim)",
}
PSNRB = "PSNR-B in dB of the 8-bit output, blocks of 8x8 (hranet_arch.metrics.calculate_psnrb)"
LUMA = "of BT.601's studio-range luma: the clean picture's rounded to 8 bits, the output's not; a grey picture as it is"
SSIM_WINDOW = 11


def describe_metrics(task: str) -> dict[str, str]:
    """What each metric of a task ('denoise', 'sr', 'jpeg') is; the names are those of ``score_picture``."""
    if task == "sr":
        return {name: f"{text}; {LUMA}" for name, text in METRICS.items()}
    return {**METRICS, "psnrb": PSNRB} if task == "jpeg" else METRICS


def score_picture(output: np.ndarray, clean: np.ndarray, task: str, border: int = 0) -> dict[str, float | None]:
    """Scores an output.

    Args:
        output: float, ``(h, w)`` or RGB ``(h, w, 3)`` in [0, 1]; it may go beyond.
        clean: uint8 of the same shape.
        task: 'denoise', 'sr' or 'jpeg'.
        border: pixels left out at each edge.

    Returns:
        By metric; None where it is not defined (equal pictures, or one too small for SSIM's window).

    Raises:
        ValueError: for another shape, or an output that is not finite.
    """
    if output.shape != clean.shape:
        raise ValueError(f"made {output.shape} of it; {clean.shape} is due")
    if not np.isfinite(output).all():
        raise ValueError("its output is not finite")
    pair, exact = [to_8bit(output), clean], [output.astype(np.float32), clean.astype(np.float32) / 255]
    if clean.ndim == 3:
        pair, exact = ([np.ascontiguousarray(one[..., ::-1]) for one in both] for both in (pair, exact))  # BGR
    if clean.ndim == 3 and task == "sr":
        luma = to_luma(pair[1])  # rounded, as MATLAB's rgb2ycbcr has it of an 8-bit picture
        pair = [to_luma(pair[0] / 255) * 255, luma]
        exact = [to_luma(exact[0]), luma / 255]
    with np.errstate(divide="ignore"):
        scores = {
            "psnr": calculate_psnr(*pair, crop_border=border),
            "psnr_float": calculate_psnr_float(*exact, crop_border=border),
        }
    is_large = min(clean.shape[:2]) - 2 * border >= SSIM_WINDOW
    scores["ssim"] = calculate_ssim(*pair, crop_border=border) if is_large else math.nan
    if task == "jpeg":
        scores["psnrb"] = calculate_psnrb(*pair, crop_border=border)
    return {name: float(value) if math.isfinite(value) else None for name, value in scores.items()}
