"""Bicubic interpolation against BasicSR's MATLAB one, against numbers by hand, and against MATLAB's own pictures."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hranet_arch.compat import make_importable
from hranet_arch.resize import BicubicEnlargement, BilinearEnlargement, cubic, enlarge_bilinear, resize_bicubic
from tests.conftest import REPOSITORY

make_importable()

from basicsr.utils.matlab_functions import imresize

DATASETS = REPOSITORY.parent / "shared" / "datasets"


def test_the_kernel_by_hand():
    """a = -1/2: at 1/2 it is 1.5/8 - 2.5/4 + 1 = 0.5625, at 3/2 -0.5 * 27/8 + 2.5 * 9/4 - 6 + 2 = -0.0625."""
    found = cubic(torch.tensor([0.0, 0.5, -0.5, 1.0, 1.5, 2.0, 2.5]))
    assert found.tolist() == [1, 0.5625, 0.5625, 0, -0.0625, 0, 0]


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 2, 3, 4])
@pytest.mark.parametrize("size", [(48, 60), (49, 62)])
def test_it_equals_basicsrs_inside_the_border(scale, size):
    """There BasicSR mirrors, as newer MATLABs do; a padded picture shows what repeating the outermost pixel gives."""
    torch.manual_seed(0)
    picture = torch.rand(3, *size)
    wide = round(12 * max(1, 1 / scale))
    padded = F.pad(picture[None], (wide,) * 4, mode="replicate")[0]
    found, start = resize_bicubic(picture, scale), round(wide * scale)
    expected = imresize(padded, scale)[:, start : start + found.shape[1], start : start + found.shape[2]]
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.shape[1:] == (math.ceil(size[0] * scale), math.ceil(size[1] * scale))


@pytest.mark.parametrize("scale", [1 / 4, 3])
def test_a_picture_smaller_than_the_kernel(scale):
    assert torch.allclose(resize_bicubic(torch.full((1, 1, 2), 0.3), scale), torch.tensor(0.3))


@pytest.mark.parametrize("is_8bit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_stays(is_8bit, dtype):
    assert resize_bicubic(torch.rand(1, 8, 8, dtype=dtype), 1 / 2, is_8bit=is_8bit).dtype is dtype


def test_whole_numbers_are_rounded_after_each_direction():
    """By a half, columns first: 1/256 * (-3, -9, 29, 111, 111, 29, -9, -3) at the middle of 0 ... 0 255 0 ... 0."""
    picture = torch.zeros(1, 16, 16)
    picture[0, 7] = 1
    picture[0, 7, 8:] = 0.5
    found = resize_bicubic(picture, 1 / 2, is_8bit=True) * 255
    weights = torch.tensor([-3.0, -9, 29, 111, 111, 29, -9, -3]) / 256  # around the border of two old pixels
    line = picture[0, 7].double() * 255
    column = torch.stack([(weights[k] * line).clamp(0, 255).add(0.5).floor() for k in (6, 4, 2)])  # of rows 2, 3, 4
    expected = (column[:, 1:9] * weights).sum(1).clamp(0, 255).add(0.5).floor()
    assert torch.allclose(found[0, 2:5, 2].double(), expected)


@pytest.mark.parametrize(("pair", "expected"), [((0.0, 1.0), 1.0), ((2.0, 3.0), 3.0)])
def test_halves_are_rounded_upwards(pair, expected):
    """By symmetry the mean of the two: 0.5 and 2.5, which torch's own rounding takes to 0 and 2."""
    found = resize_bicubic(torch.tensor([[pair]]) / 255, 1 / 2, is_8bit=True) * 255
    assert found.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_convolution_equals_it(scale):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 13)
    enlarge = BicubicEnlargement(scale)
    assert torch.allclose(enlarge(x), resize_bicubic(x, scale), atol=1e-6)
    assert torch.allclose(enlarge(torch.full((1, 1, 1, 1), 0.7)), torch.tensor(0.7))


def test_the_convolution_stays_in_float32_under_autocast_and_is_no_part_of_the_weights():
    x, enlarge = torch.rand(1, 1, 8, 8), BicubicEnlargement(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(enlarge(x), BicubicEnlargement(2)(x))
        assert enlarge(x).dtype == torch.float32
    assert not enlarge.state_dict()


@pytest.mark.skipif(not DATASETS.is_dir(), reason="needs Set5 and Set14 in ../shared/datasets")
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_matlabs_pictures_are_made_again(name, scale):
    """All pixels of all pictures."""
    for path in sorted((DATASETS / name / f"x{scale}" / "gt").iterdir()):
        gt, lq = (cv2.imread(str(path.parents[1] / kind / path.name), -1) for kind in ("gt", "lq"))
        planes = torch.from_numpy(gt.reshape(*gt.shape[:2], -1).astype(np.float32) / 255).permute(2, 0, 1)
        made = resize_bicubic(planes, 1 / scale, is_8bit=True).permute(1, 2, 0).numpy().reshape(lq.shape)
        np.testing.assert_array_equal((made * 255).round(), lq, err_msg=path.name)


@pytest.mark.parametrize("scale", [2, 3, 8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bilinear_enlargement_is_torchs_and_its_gradient_too(layout, scale):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    theirs = F.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)
    ours = BilinearEnlargement.apply(x, scale)
    assert torch.equal(ours, theirs) and torch.equal(enlarge_bilinear(x, scale), theirs)
    wanted = torch.randn_like(ours)
    gradients = [torch.autograd.grad(y, x, wanted)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_bilinear_enlargement_by_hand():
    """Pixel 1 of 4 lies a quarter of the way between two: of its gradient three quarters go to the first."""
    x = torch.tensor([[[[0.0, 4.0]]]], requires_grad=True)
    y = BilinearEnlargement.apply(x, 2)
    assert y.tolist() == [[[[0, 1, 3, 4], [0, 1, 3, 4]]]]
    y[0, 0, 0, 1].backward()
    assert x.grad.tolist() == [[[[0.75, 0.25]]]]


def test_the_gradient_has_the_type_of_what_was_enlarged():
    x = torch.randn(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    BilinearEnlargement.apply(x, 2).float().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.tolist() == [[[[4, 4], [4, 4]]]]
