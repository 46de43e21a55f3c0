"""What networks cost, against formulas worked out by hand."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from hranet_arch import HRANet, complexity
from hranet_arch.baselines import DnCNN


def lightweight(c_in, c):
    """MACs a pixel of an LWB: two 1x1 and depthwise 3x3, a 5x5, a 3x3, a 1x1."""
    return 2 * (c_in * c + 9 * c) + 25 * c * c + 9 * c * c + c * c


def hranet(c, stride=8, squeeze=4):
    """MACs a pixel of the grey HRANet at a size that the stride divides; the attention runs on the grid."""
    attention = (2 * c * (c // squeeze) + 9 * (c // squeeze) ** 2) / stride**2
    blocks = 2 * (2 * lightweight(c, c) + attention) + lightweight(2 * c, c) + lightweight(c, c) + attention + 2 * c * c
    return 9 * c + blocks + 9 * (2 * c * c + 4 * c * c) + 9 * c


@pytest.mark.parametrize("num_feat", [32, 64])
def test_macs_of_hranet(num_feat):
    assert complexity.count_macs(HRANet(num_feat=num_feat), (1, 64, 48)) == pytest.approx(hranet(num_feat) * 64 * 48)


def test_macs_and_parameters_of_dncnn():
    """17 convolutions of 3x3: 1 to 64, fifteen times 64 to 64, 64 to 1. Parameters: those, BatchNorm's, two biases."""
    network = DnCNN(num_conv=17, bn=True)
    macs = 9 * (64 + 15 * 64 * 64 + 64)
    assert complexity.count_macs(network, (1, 40, 50)) == macs * 40 * 50 == 554_112 * 2000
    assert complexity.count_parameters(network) == macs + 15 * 128 + 64 + 1


class Attention(nn.Module):
    """Tokens of 8 values, two heads; every layer that the counter must know beside convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)  # (1, h * w, 8)
        q, k, v = self.qkv(tokens).reshape(1, -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


def test_macs_of_attention():
    """n tokens: n * 8 * 24 for q, k, v; n * n * 8 twice, for scores and sums; n * 8 * 8 for the way out."""
    n = 6 * 5
    assert complexity.count_macs(Attention(), (8, 6, 5)) == n * 8 * 24 + 2 * n * n * 8 + n * 8 * 8


def test_macs_and_parameters_of_swinir():
    """SwinIR-M in colour: 11.5 million parameters and 200 billion MACs at 128x128, as its authors say.

    A block costs a pixel 4 c^2 for q, k, v and the way out, 2 * 64 c for attention among a window's 64, and 4 c^2 for
    its MLP of width 2 c; there are 36 of them, 7 convolutions of c to c, and one at each end.
    """
    from hranet_arch.registration import ARCH_REGISTRY

    network = ARCH_REGISTRY.get("SwinIR")(
        upscale=1, in_chans=3, img_size=128, window_size=8, img_range=1.0, depths=[6] * 6, embed_dim=180,
        num_heads=[6] * 6, mlp_ratio=2, upsampler="", resi_connection="1conv",
    )  # fmt: skip
    c = 180
    a_pixel = 36 * (4 * c * c + 2 * 64 * c + 4 * c * c) + 7 * 9 * c * c + 2 * 9 * 3 * c
    assert complexity.count_macs(network, (3, 128, 128)) == a_pixel * 128 * 128
    assert a_pixel * 128 * 128 == pytest.approx(200e9, rel=0.001)
    assert complexity.count_parameters(network) == pytest.approx(11.5e6, rel=0.001)


def test_layers_sum_to_the_whole_and_nothing_is_changed():
    network = HRANet(num_feat=8).train()
    before = copy.deepcopy(network.state_dict())
    rows = complexity.profile_layers(network, (1, 16, 24))
    assert sum(row.parameters for row in rows) == complexity.count_parameters(network)
    assert sum(row.macs for row in rows) == complexity.count_macs(network, (1, 16, 24))
    assert sum(row.share for row in rows) == pytest.approx(1)
    parts = complexity.profile_layers(network, (1, 16, 24), depth=1)
    assert [row.name for row in parts] == ["feature_extraction", "coarse_denoising", "detail_enhancement"]
    assert sum(row.macs for row in parts) == sum(row.macs for row in rows)
    assert network.training and all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert "feature_extraction" in complexity.format_layers(parts) and "100.0%" in complexity.format_layers(parts)


def test_networks_are_timed_in_turn():
    calls = []
    networks = {name: lambda x, name=name: calls.append(name) or x for name in ("a", "b")}
    results = complexity.measure_latency(networks, [(1, 4, 4)], rounds=3, block_time=1e-4)
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    # Warm-up a, b; then b, a; a, b; b, a: each round begins where the last one ended.
    assert turns == ["a", "b", "a", "b", "a"]
    for result in results:
        assert 0 < result.lower_quartile <= result.median <= result.upper_quartile
        assert result.size == (1, 4, 4) and result.runs >= result.blocks >= 3 and result.rounds == 3
    json.dumps([asdict(result) for result in results])


def test_a_network_that_fails_is_left_out_and_named():
    def fail(x):
        raise RuntimeError("out of memory")

    failures = []
    networks = {"good": lambda x: x, "bad": fail}
    results = complexity.measure_latency(
        networks, [(1, 4, 4)], rounds=1, block_time=1e-4, on_failure=lambda *what: failures.append(what[:2])
    )
    assert [result.model for result in results] == ["good"] and failures == [("bad", (1, 4, 4))]


@pytest.mark.slow
def test_peak_memory_grows_with_the_picture():
    """A layer that makes 64 channels of one: its output alone takes 256 bytes a pixel."""
    network = nn.Conv2d(1, 64, 3, padding=1)
    try:
        small, large = (complexity.measure_peak_memory(network, (1, side, side)) for side in (64, 512))
    except NotImplementedError as error:
        pytest.skip(str(error))
    output = 256 * 512 * 512
    assert output * 0.9 < large.growth < output * 4 and small.growth < output / 10
    assert large.peak == large.weights + 4 * 512 * 512 + large.growth and large.weights == 4 * (64 * 9 + 64)


def test_a_machine_is_described_without_its_name_or_paths():
    import os
    import socket

    text = json.dumps(complexity.describe_machine())
    assert torch.__version__ in text and "threads" in text and "precision" in text
    assert socket.gethostname() not in text.split('"') and os.getcwd() not in text
