"""HRANet against the equations of its source, written again in NumPy: loops over taps and cells, float64, weights by
name from the state dict. Nothing of the modules under test is used in the reference."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from hranet_arch.hranet import (
    HRAB,
    CNNDenoiser,
    CoarseDenoising,
    EnhancedChannelAttention,
    HRANet,
    LayerNorm2d,
    LightweightBlock,
)
from hranet_arch.resize import resize_bicubic
from hranet_arch.tiling import run_tiled
from tests.conftest import assert_same, evaluate, picture

EPS = 1e-5  # torch's default in LayerNorm and BatchNorm
POOLS = ["global", 1, 3, 8]
GATES = ["none", "sigmoid"]

# ---------------------------------------------------------------- the reference; ``p`` holds the weights of one module


def under(p, prefix):
    return {name.removeprefix(prefix + "."): value for name, value in p.items() if name.startswith(prefix + ".")}


def relu(x):
    return np.maximum(x, 0)


def conv(x, p, *, dilation=1, depthwise=False):
    weight, (height, width) = p["weight"], x.shape[2:]
    size = weight.shape[-1]
    border = dilation * (size // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    out = np.zeros((x.shape[0], weight.shape[0], height, width))
    for i in range(size):
        for j in range(size):
            window = padded[:, :, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
            if depthwise:
                out += window * weight[:, 0, i, j][:, None, None]
            else:
                out += np.einsum("oc,nchw->nohw", weight[:, :, i, j], window)
    return out + p["bias"][:, None, None] if "bias" in p else out


def layer_norm(x, p):
    mean = x.mean(axis=1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPS) * p["weight"][:, None, None] + p["bias"][:, None, None]


def batch_norm(x, p, training):
    mean, variance = p["running_mean"], p["running_var"]
    if training:
        mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    x = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + EPS)
    return x * p["weight"][:, None, None] + p["bias"][:, None, None]


def pool(x, stride):
    height, width = x.shape[2:]
    out = np.empty((*x.shape[:2], -(-height // stride), -(-width // stride)))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            cell = x[:, :, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
            out[:, :, i, j] = cell.mean(axis=(2, 3))
    return out


def enlarge(x, stride, size):
    """Linear interpolation between the centres of the cells, along both axes, cut to ``size``."""
    for axis, length in zip((2, 3), size, strict=True):
        cells = x.shape[axis]
        weights = np.zeros((length, cells))
        for i in range(length):
            at = min(max((i + 0.5) / stride - 0.5, 0), cells - 1)
            low = int(at)
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, cells - 1)] += at - low
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ weights.T, -1, axis)
    return x


def lwb(z, p):
    def separable(u, branch):
        return conv(conv(u, under(p, f"{branch}.0")), under(p, f"{branch}.1"), depthwise=True)

    u = layer_norm(z, under(p, "norm"))
    s = separable(u, "separable1") + separable(u, "separable2")
    t = relu(conv(s, under(p, "conv5x5"))) + relu(conv(s, under(p, "conv3x3")))
    return conv(t, under(p, "conv1x1"))


def eca(z, p, attention_pool, attention_gate):
    pooled = z.mean(axis=(2, 3), keepdims=True) if attention_pool == "global" else pool(z, attention_pool)
    a = conv(relu(conv(conv(pooled, under(p, "squeeze")), under(p, "dilated"), dilation=2)), under(p, "expand"))
    a = 1 / (1 + np.exp(-a)) if attention_gate == "sigmoid" else a
    return z * (a if attention_pool == "global" else enlarge(a, attention_pool, z.shape[2:]))


def hrab(z, p, *attention):
    shortcut = conv(z, under(p, "shortcut")) if "shortcut.weight" in p else z
    return shortcut + lwb(eca(lwb(z, under(p, "lwb1")), under(p, "eca"), *attention), under(p, "lwb2"))


def coarse(f0, p, num_block, *attention):
    f1 = f = hrab(f0, under(p, "blocks.0"), *attention)
    for i in range(1, num_block - 1):
        f = hrab(f, under(p, f"blocks.{i}"), *attention)
    return f1, hrab(np.concatenate([f0, f], axis=1), under(p, f"blocks.{num_block - 1}"), *attention)


def cnn_denoiser(x, p, training=False):
    for i in range(0, 15, 3):
        x = relu(batch_norm(conv(x, under(p, f"{i}")), under(p, f"{i + 1}"), training))
    return conv(x, under(p, "15"))


def hranet(x, p, num_block, *attention, training=False):
    f0 = relu(conv(x, under(p, "feature_extraction.0")))
    f1, f3 = coarse(f0, under(p, "coarse_denoising"), num_block, *attention)
    return x - cnn_denoiser(np.concatenate([f1, f3], axis=1), under(p, "detail_enhancement"), training)


# --------------------------------------------------------------------------------------------------- what tests share


def randomize(module, seed=0):
    """Weights of a network that has been trained, say: no bias, scale or running statistic at its first value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
            if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
                value.copy_(0.5 + noise)
            else:
                value.copy_((noise - 0.5) * 3 / max(1, value[0].numel()) ** 0.5)
    return module


def make(kind, **arguments):
    torch.manual_seed(0)
    return randomize(kind(**arguments)).double().eval()


def weights(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


# ---------------------------------------------------------------------------------------------- worked out by hand


def test_layer_norm_normalises_the_channels_of_each_pixel():
    norm = LayerNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0]))
    # Pixel (0, 4): mean 2, deviation 2, so (-1, 1), then times (2, 3) plus (1, -1). Pixel (7, 7): 0, so the bias.
    x = torch.tensor([[0.0, 7.0], [4.0, 7.0]]).reshape(1, 2, 1, 2)
    assert_same(evaluate(norm, x), np.reshape([[-1, 1], [2, -1]], (1, 2, 1, 2)), atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (2, 1), (1, 1)])
def test_dense_branches_compute_and_learn_the_same(size):
    """At the border too, where the depthwise taps see zeros, and not the bias of the pointwise convolution."""
    torch.manual_seed(0)
    block = LightweightBlock(num_in_ch=4, num_feat=8).double()
    u = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    outputs = block.run_dense(u), block.separable1(u) + block.separable2(u)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    used = [u, *block.separable1.parameters(), *block.separable2.parameters()]
    gradients = [torch.autograd.grad(output.square().sum(), used) for output in outputs]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def attention(num_feat, squeezed_to, **arguments):
    arguments = {"attention_pool": "global", "attention_gate": "none", **arguments}
    return EnhancedChannelAttention(num_feat=num_feat, squeeze_factor=num_feat // squeezed_to, **arguments)


def test_a_cell_that_the_border_cuts_is_the_mean_of_the_pixels_it_has():
    x = torch.tensor([[1.0, 3, 10], [5, 7, 20], [2, 4, 60]])[None, None]
    pooled = attention(1, 1, attention_pool=2).pool(x)
    assert pooled.tolist() == [[[[4, 15], [3, 60]]]]  # (1+3+5+7)/4, (10+20)/2, (2+4)/2, 60/1


def test_the_attention_map_is_enlarged_by_its_stride_and_then_cropped():
    eca_ = attention(1, 1, attention_pool=2)
    # Centres of the two cells at 0.5 and 2.5: pixel 1 lies a quarter of the way, pixel 2 three quarters.
    wide = eca_.unpool(torch.tensor([[[[0.0, 4.0]]]]), torch.empty(1, 1, 2, 4))
    assert wide.tolist() == [[[[0, 1, 3, 4], [0, 1, 3, 4]]]]
    cut = eca_.unpool(torch.tensor([[[[0.0, 4.0]]]]), torch.empty(1, 1, 1, 3))
    assert cut.tolist() == [[[[0, 1, 3]]]]


def fill(eca_, squeeze, dilated, expand, expand_bias):
    with torch.no_grad():
        for parameter, values in zip(
            (eca_.squeeze.weight, eca_.squeeze.bias, eca_.dilated.weight, eca_.dilated.bias),
            (squeeze, 0.0, dilated, 0.0),
            strict=True,
        ):
            parameter.fill_(values)
        eca_.expand.weight.copy_(torch.tensor(expand).reshape(-1, 1, 1, 1))
        eca_.expand.bias.copy_(torch.tensor(expand_bias))


@pytest.mark.parametrize(
    ("dilated", "gate", "expected"),
    [
        # 3 + 5 = 8, times 0.5 = 4, ReLU 4, times (2, -1) plus (0.5, 0) = (8.5, -4), times the input.
        (0.5, "none", (3 * 8.5, 5 * -4)),
        # 8 times -0.5 = -4, ReLU 0: the bias alone.
        (-0.5, "none", (3 * 0.5, 0)),
        (-0.5, "sigmoid", (3 / (1 + np.exp(-0.5)), 5 / 2)),
    ],
)
def test_global_attention_with_constant_weights(dilated, gate, expected):
    eca_ = attention(2, 1, attention_gate=gate)
    fill(eca_, 1.0, dilated, [2.0, -1.0], [0.5, 0.0])
    x = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 2)
    assert_same(evaluate(eca_, x), np.broadcast_to(np.reshape(expected, (1, 2, 1, 1)), (1, 2, 3, 2)), atol=1e-5)


def test_the_attention_looks_two_cells_away():
    eca_ = attention(1, 1, attention_pool=1)
    fill(eca_, 1.0, 1.0, [1.0], [0.0])
    # A picture of ones: each value counts the taps that fall on the 3x3 grid, two cells apart.
    assert evaluate(eca_, torch.ones(1, 1, 3, 3)).tolist() == [[[[4, 2, 4], [2, 1, 2], [4, 2, 4]]]]


def test_given_averages_end_with_an_error_too():
    eca_ = attention(4, 2)
    with pytest.raises(ZeroDivisionError), eca_.given(torch.zeros(1, 4, 1, 1)):
        raise ZeroDivisionError
    assert eca_.mean is None


# ------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
@pytest.mark.parametrize("num_in_ch", [4, 8])
def test_lightweight_block_equals_the_reference(num_in_ch, size):
    block = make(LightweightBlock, num_in_ch=num_in_ch, num_feat=4)
    x = picture(2, num_in_ch, *size)
    assert_same(evaluate(block, x), lwb(x.numpy(), weights(block)))


@pytest.mark.parametrize("size", [(19, 26), (3, 9), (1, 1)])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("attention_pool", POOLS)
def test_attention_equals_the_reference(attention_pool, gate, size):
    block = make(attention, num_feat=4, squeezed_to=2, attention_pool=attention_pool, attention_gate=gate)
    x = picture(2, 4, *size)
    assert_same(evaluate(block, x), eca(x.numpy(), weights(block), attention_pool, gate))


@pytest.mark.parametrize("num_in_ch", [4, 8])
def test_block_equals_the_reference_with_and_without_projection(num_in_ch):
    arguments = {"squeeze_factor": 2, "attention_pool": 3, "attention_gate": "none"}
    block = make(HRAB, num_in_ch=num_in_ch, num_feat=4, **arguments)
    assert ("shortcut.weight" in block.state_dict()) == (num_in_ch != 4)
    x = picture(1, num_in_ch, 7, 5)
    assert_same(evaluate(block, x), hrab(x.numpy(), weights(block), 3, "none"))


@pytest.mark.parametrize("num_block", [3, 5])
def test_coarse_denoising_equals_the_reference(num_block):
    arguments = {"squeeze_factor": 2, "attention_pool": 3, "attention_gate": "sigmoid"}
    part = make(CoarseDenoising, num_feat=4, num_block=num_block, **arguments)
    f0 = picture(1, 4, 7, 5)
    expected = coarse(f0.numpy(), weights(part), num_block, 3, "sigmoid")
    for actual, output in zip(evaluate(part, f0), expected, strict=True):
        assert_same(actual, output)


@pytest.mark.parametrize("training", [False, True])
def test_cnn_denoiser_equals_the_reference(training):
    part = make(CNNDenoiser, num_in_ch=8, num_feat=4, num_out_ch=3).train(training)
    x = picture(2, 8, 5, 6)
    expected = cnn_denoiser(x.numpy(), weights(part), training)
    assert_same(evaluate(part, x), expected)


@pytest.mark.parametrize(
    ("colours", "num_block", "attention_pool", "gate", "training"),
    [(1, 3, 8, "none", False), (1, 3, "global", "sigmoid", False), (3, 5, 3, "none", False), (3, 3, 8, "none", True)],
)
def test_network_equals_the_reference(colours, num_block, attention_pool, gate, training):
    chosen = {"num_block": num_block, "attention_pool": attention_pool, "attention_gate": gate}
    net = make(HRANet, num_in_ch=colours, num_out_ch=colours, num_feat=8, **chosen).train(training)
    x = picture(2, colours, 21, 14)
    expected = hranet(x.numpy(), weights(net), num_block, attention_pool, gate, training=training)
    assert np.abs(expected - x.numpy()).mean() > 0.01  # there is a residual to compare
    assert_same(evaluate(net, x), expected, atol=1e-9)


def test_defaults_are_grey_64_channels_three_blocks_stride_8_without_gate():
    stated = {"num_in_ch": 1, "num_out_ch": 1, "num_feat": 64, "num_block": 3, "squeeze_factor": 4}
    torch.manual_seed(3)
    default = HRANet().eval()
    torch.manual_seed(3)
    same = HRANet(**stated, attention_pool=8, attention_gate="none").eval()
    x = picture(1, 1, 17, 9).float()
    assert torch.equal(evaluate(default, x), evaluate(same, x))


# --------------------------------------------------------------------------------------------- parameters, keys


def count_by_formula(colours, feat, num_block, squeeze_factor=4):
    """With C = feat, c = colours, m = C // squeeze_factor, weights and biases layer by layer:

    LWB from i channels: norm 2i; two branches 1x1 (iC + C) and depthwise (9C + C); 5x5 25C² + C; 3x3 9C² + C;
    1x1 C² + C. Together 35C² + 2iC + 2i + 25C.
    ECA: 1x1 Cm + m; 3x3 9m² + m; 1x1 mC + C.
    HRAB: LWB(i) + ECA + LWB(C); the last one has i = 2C and the projection 2C² + C.
    CR: 9cC + C. CD: 18C² and four times 9C², five BatchNorms of 2C, and 9cC + c.
    """
    c, C, m = colours, feat, feat // squeeze_factor

    def count_lwb(i):
        return 35 * C**2 + 2 * i * C + 2 * i + 25 * C

    count_eca = 9 * m**2 + 2 * C * m + 2 * m + C
    block = count_lwb(C) + count_eca + count_lwb(C)
    last = count_lwb(2 * C) + count_eca + count_lwb(C) + 2 * C**2 + C
    ends = (9 * c * C + C) + (18 + 36) * C**2 + 10 * C + 9 * c * C + c
    return ends + (num_block - 1) * block + last


@pytest.mark.parametrize(
    ("colours", "feat", "num_block", "known"),
    [(1, 64, 3, 1_172_641), (1, 32, 3, 296_337), (3, 64, 3, None), (3, 32, 5, None), (1, 64, 5, None), (1, 6, 3, None)],
)
def test_parameter_count_follows_the_formula(colours, feat, num_block, known):
    net = HRANet(num_in_ch=colours, num_out_ch=colours, num_feat=feat, num_block=num_block)
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == count_by_formula(colours, feat, num_block)
    assert known is None or count == known


def conv_shapes(name, weight, bias=True):
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def lwb_shapes(i):
    return {
        "norm.weight": (i,),
        "norm.bias": (i,),
        **conv_shapes("separable1.0", (8, i, 1, 1)),
        **conv_shapes("separable1.1", (8, 1, 3, 3)),
        **conv_shapes("separable2.0", (8, i, 1, 1)),
        **conv_shapes("separable2.1", (8, 1, 3, 3)),
        **conv_shapes("conv5x5", (8, 8, 5, 5)),
        **conv_shapes("conv3x3", (8, 8, 3, 3)),
        **conv_shapes("conv1x1", (8, 8, 1, 1)),
    }


def hrab_shapes(i):
    parts = {
        "lwb1": lwb_shapes(i),
        "eca": {
            **conv_shapes("squeeze", (2, 8, 1, 1)),
            **conv_shapes("dilated", (2, 2, 3, 3)),
            **conv_shapes("expand", (8, 2, 1, 1)),
        },
        "lwb2": lwb_shapes(8),
    }
    return {f"{part}.{name}": shape for part, names in parts.items() for name, shape in names.items()}


BATCH_NORM_SHAPES = {"weight": (8,), "bias": (8,), "running_mean": (8,), "running_var": (8,), "num_batches_tracked": ()}

# Every name of HRANet(num_feat=8). Checkpoints in the world hold these names: to rename one is to break them.
STATE_SHAPES = {
    **conv_shapes("feature_extraction.0", (8, 1, 3, 3)),
    **{f"coarse_denoising.blocks.0.{name}": shape for name, shape in hrab_shapes(8).items()},
    **{f"coarse_denoising.blocks.1.{name}": shape for name, shape in hrab_shapes(8).items()},
    **{f"coarse_denoising.blocks.2.{name}": shape for name, shape in hrab_shapes(16).items()},
    **conv_shapes("coarse_denoising.blocks.2.shortcut", (8, 16, 1, 1)),
    **conv_shapes("detail_enhancement.0", (8, 16, 3, 3), bias=False),
    **conv_shapes("detail_enhancement.3", (8, 8, 3, 3), bias=False),
    **conv_shapes("detail_enhancement.6", (8, 8, 3, 3), bias=False),
    **conv_shapes("detail_enhancement.9", (8, 8, 3, 3), bias=False),
    **conv_shapes("detail_enhancement.12", (8, 8, 3, 3), bias=False),
    **{f"detail_enhancement.{i}.{name}": shape for i in (1, 4, 7, 10, 13) for name, shape in BATCH_NORM_SHAPES.items()},
    **conv_shapes("detail_enhancement.15", (1, 8, 3, 3)),
}


def test_state_dict_keeps_its_names_and_shapes():
    actual = {name: tuple(value.shape) for name, value in HRANet(num_feat=8).state_dict().items()}
    assert sorted(actual.items()) == sorted(STATE_SHAPES.items())


@pytest.mark.parametrize(
    ("name", "value"), [("attention_pool", "global"), ("attention_pool", 3), ("attention_gate", "sigmoid")]
)
def test_pool_and_gate_leave_the_names_alone(name, value):
    assert set(HRANet(num_feat=8, **{name: value}).state_dict()) == set(STATE_SHAPES)


# ------------------------------------------------------------------------------------------------------ gradients


def gradients(**arguments):
    net = make(HRANet, num_feat=8, **arguments).train()
    (net(picture(2, 1, 33, 26)) - picture(2, 1, 33, 26, seed=2)).square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("attention_pool", POOLS)
def test_every_parameter_gets_a_gradient(attention_pool):
    missing = [n for n, g in gradients(attention_pool=attention_pool).items() if g is None or not g.abs().max() > 0]
    assert not missing, f"no gradient for {missing}"


def dilated_gradients(**arguments):
    found = [g for name, g in gradients(**arguments).items() if name.endswith("eca.dilated.weight")]
    assert len(found) == 3
    return found


def test_under_global_pooling_only_the_centre_tap_of_the_dilated_kernel_learns():
    """Eight ninths of the kernel are dead: the reason why the default pools by a stride."""
    off_centre = torch.ones(3, 3, dtype=torch.bool)
    off_centre[1, 1] = False
    for gradient in dilated_gradients(attention_pool="global"):
        assert gradient[..., off_centre].eq(0).all()
        assert gradient[..., 1, 1].abs().max() > 0


def test_under_strided_pooling_every_tap_of_the_dilated_kernel_learns():
    for gradient in dilated_gradients():
        assert gradient.abs().amax(dim=(0, 1)).gt(0).all()


# ------------------------------------------------------------------------------------------------ folded BatchNorms


@pytest.mark.parametrize("colours", [1, 3])
def test_folded_network_equals_the_unfolded(colours):
    torch.manual_seed(0)
    net = HRANet(num_in_ch=colours, num_out_ch=colours, num_feat=8)
    fresh = {name: value.clone() for name, value in net.named_buffers()}
    x = picture(2, colours, 19, 30).float()
    for step in range(3):  # in training mode: the running statistics move away from 0 and 1
        net(x * (step + 1))
    randomize_affine(net)
    moved = {name: value for name, value in net.named_buffers() if name.endswith(("running_mean", "running_var"))}
    assert len(moved) == 10
    assert not any(torch.allclose(value, fresh[name]) for name, value in moved.items())

    folded = copy.deepcopy(net).fold_batchnorm()
    assert_same(evaluate(folded, x), evaluate(net.eval(), x), atol=1e-5)
    assert (evaluate(folded, x) - x).abs().max() > 0.01  # there is a residual to compare
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert not list(folded.buffers())
    assert_same(evaluate(folded.fold_batchnorm(), x), evaluate(net, x), atol=1e-5)  # a second time: nothing left to do


def randomize_affine(net):
    generator = torch.Generator().manual_seed(4)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)


def test_folding_evaluates_and_returns_the_network_itself():
    net = HRANet(num_feat=4)
    assert net.training
    assert net.fold_batchnorm() is net
    assert not net.training


# -------------------------------------------------------------------------------------------- sizes, batches, tiles


@pytest.mark.parametrize("attention_pool", ["global", 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (17, 1), (7, 9), (8, 8), (33, 50)])
def test_any_size_is_kept_and_finite(size, attention_pool):
    net = make(HRANet, num_feat=4, attention_pool=attention_pool)
    x = picture(1, 1, *size)
    y = evaluate(net, x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert not torch.equal(x, y)


@pytest.mark.parametrize("attention_pool", ["global", 8])
def test_a_picture_alone_equals_itself_in_a_batch(attention_pool):
    net = make(HRANet, num_in_ch=3, num_out_ch=3, num_feat=8, attention_pool=attention_pool)
    batch = picture(3, 3, 13, 21)
    alone = torch.cat([evaluate(net, x[None]) for x in batch])
    assert_same(evaluate(net, batch), alone)


def standardise(conv_, _, output):
    deviation, mean = torch.std_mean(output, dim=(0, 2, 3))
    with torch.no_grad():
        conv_.weight.div_(deviation[:, None, None, None])
        conv_.bias.sub_(mean).div_(deviation)
    return (output - mean[:, None, None]) / deviation[:, None, None]


def make_far_sighted(**arguments):
    """Random weights, those of the attention scaled so that its values vary by 1 around 0 over a picture: what lies
    far away shows in the result, which it hardly does with weights as they are drawn."""
    net = make(HRANet, num_feat=8, **arguments)
    attentions = [block.eca for block in net.coarse_denoising.blocks]
    layers = [layer for eca_ in attentions for layer in (eca_.squeeze, eca_.dilated, eca_.expand)]
    hooks = [layer.register_forward_hook(standardise) for layer in layers]
    evaluate(net, picture(1, 1, 16, 300))
    for hook in hooks:
        hook.remove()
    return net


def run_in_tiles(net, x, tile, halo):
    with torch.no_grad():
        return run_tiled(net, x, tile=tile, halo=halo, multiple=net.tile_multiple)


@pytest.mark.parametrize(
    ("attention_pool", "num_block", "size", "tile"),
    [(8, 3, (37, 301), 64), (8, 5, (11, 400), 100), (3, 3, (71, 100), 32), (1, 3, (70, 83), 31), (8, 3, (5, 3), 64)],
)
def test_tiles_with_the_halo_equal_the_whole_picture(attention_pool, num_block, size, tile):
    net = make_far_sighted(attention_pool=attention_pool, num_block=num_block)
    x = picture(1, 1, *size)
    assert_same(run_in_tiles(net, x, tile, net.halo), evaluate(net, x))


def test_tiles_with_the_halo_equal_a_large_picture_in_single_precision():
    net = make(HRANet, num_feat=8).float()
    x = picture(1, 1, 300, 260).float()
    assert_same(run_in_tiles(net, x, 96, net.halo), evaluate(net, x), atol=1e-5)


@pytest.mark.parametrize("attention_pool", [1, 3, 8])
def test_tiles_with_half_the_halo_differ_from_the_whole_picture(attention_pool):
    net = make_far_sighted(attention_pool=attention_pool)
    x = picture(1, 1, 16, 300)
    assert (run_in_tiles(net, x, 64, net.halo // 2) - evaluate(net, x)).abs().max() > 1e-4


def test_tiles_off_the_attention_grid_differ_from_the_whole_picture():
    net = make_far_sighted()
    x = picture(1, 1, 16, 300)
    with torch.no_grad():
        off_grid = run_tiled(net, x, tile=60, halo=net.halo + 1)
    assert (off_grid - evaluate(net, x)).abs().max() > 1e-3


def test_a_pixel_depends_on_pixels_beyond_half_the_halo_and_on_none_beyond_the_halo():
    net = make_far_sighted()
    x = picture(1, 1, 5, 2 * net.halo + 17).requires_grad_()
    reach = []
    for column in range(net.halo, net.halo + 8):  # each place within a cell
        (gradient,) = torch.autograd.grad(net(x)[0, 0, 2, column], x)
        reached = gradient[0, 0].abs().sum(0).nonzero().flatten()
        reach += [column - reached.min().item(), reached.max().item() - column]
    assert net.halo // 2 < max(reach) <= net.halo


@pytest.mark.parametrize(("attention_pool", "multiple", "halo"), [(8, 8, 120), (16, 16, 224), (1, 1, 34)])
def test_halo_is_worked_out_from_the_layers(attention_pool, multiple, halo):
    # 1 (CR) + 3 blocks of two LWBs (1 + 2 each) and an attention (4 cells less a pixel) + 6 (CD), rounded up:
    # stride 8: 1 + 3 * (6 + 31) + 6 = 118; stride 16: 1 + 3 * (6 + 63) + 6 = 214; stride 1: 1 + 3 * (6 + 3) + 6 = 34.
    net = HRANet(num_feat=4, attention_pool=attention_pool)
    assert (net.tile_multiple, net.halo) == (multiple, halo)


def test_global_attention_has_no_halo():
    net = HRANet(num_feat=4, attention_pool="global")
    assert net.halo is None
    assert net.tile_multiple == 1


# --------------------------------------------------------------------------------------------------- super-resolution


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_enlarging_is_bicubic_minus_the_shuffled_residual(upscale):
    """With a last layer of zeros and the biases 0, 1, 2, ...: each small pixel's residual is a known little square."""
    net = HRANet(num_in_ch=3, num_out_ch=3, num_feat=4, upscale=upscale).eval()
    last = net.detail_enhancement[15]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.arange(3.0 * upscale**2)
    x = torch.rand(2, 3, 9, 11)
    residual = resize_bicubic(x, upscale) - net(x)
    expected = torch.arange(3.0 * upscale**2).reshape(3, upscale, upscale).repeat(1, 9, 11)
    assert torch.allclose(residual, expected.expand_as(residual), atol=1e-5)


def test_all_but_the_last_layer_of_an_enlarging_network_are_the_denoising_networks():
    denoiser, enlarger = (HRANet(num_feat=8, upscale=upscale).state_dict() for upscale in (1, 2))
    others = {name for name in enlarger if name not in denoiser or enlarger[name].shape != denoiser[name].shape}
    assert others == {"detail_enhancement.15.weight", "detail_enhancement.15.bias"}
    assert set(denoiser) == set(enlarger)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (33, 50)])
def test_any_size_is_enlarged(size):
    y = HRANet(num_feat=4, upscale=3).eval()(torch.rand(1, 1, *size))
    assert y.shape == (1, 1, 3 * size[0], 3 * size[1]) and torch.isfinite(y).all()


def test_tiles_of_an_enlarging_network_equal_the_whole_picture():
    net = HRANet(num_feat=4, upscale=2, attention_pool=3).double().eval()
    x = torch.rand(1, 1, 150, 131, dtype=torch.float64)
    with torch.no_grad():
        tiled = run_tiled(net, x, tile=30, halo=net.halo, multiple=net.tile_multiple)
        assert torch.allclose(tiled, net(x), atol=1e-12)


# ------------------------------------------------------------------------------------------------ arguments, imports


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_in_ch", 0),
        ("num_in_ch", -1),
        ("num_out_ch", 3),
        ("num_out_ch", 1.0),
        ("num_out_ch", True),
        ("num_feat", 0),
        ("num_feat", 3),
        ("num_block", 2),
        ("num_block", 0),
        ("squeeze_factor", 0),
        ("squeeze_factor", -4),
        ("attention_pool", 0),
        ("attention_pool", -8),
        ("attention_pool", True),
        ("attention_pool", 8.0),
        ("attention_pool", "8"),
        ("attention_pool", "Global"),
        ("attention_pool", None),
        ("attention_gate", "relu"),
        ("attention_gate", None),
        ("attention_gate", True),
        ("upscale", 0),
        ("upscale", 5),
        ("upscale", 2.0),
        ("num_feat", 8.0),
        ("num_feat", "64"),
        ("num_block", 3.5),
        ("squeeze_factor", True),
        ("num_in_ch", 1.0),
        ("upscale", True),
    ],
)
def test_a_bad_argument_is_named_with_its_value(name, value):
    arguments = {name: value, "num_out_ch": value} if name == "num_in_ch" else {name: value}
    with pytest.raises(ValueError, match=rf"\b{name}={value!r} is not allowed: it must be "):
        HRANet(**arguments)


@pytest.mark.parametrize("name", ["num_fea", "img_range"])
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(TypeError, match=name):
        HRANet(**{name: 1})


def test_importing_the_package_imports_neither_basicsr_nor_torchvision_nor_opencv():
    code = (
        "import sys, hranet_arch, hranet_arch.tiling, hranet_arch.noise, hranet_arch.checkpoints, hranet_arch.metrics\n"
        "print(sorted({'basicsr', 'torchvision', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
