"""MuonAdam, against torch's Muon and Adam; and which optimisers an option file may name."""

import copy

import pytest
import torch
from torch import nn

from hranet_arch.optimizers import MuonAdam, is_matrix, list_optimizers, orthogonalize


def make_network(memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    return nn.Sequential(*layers, nn.Conv2d(8, 1, 1)).to(memory_format=memory_format)


def learn(network, optimizer, steps=3):
    for i in range(steps):
        optimizer.zero_grad()
        batch = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(i))
        network(batch).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(2, 8, 72), (1, 16, 8), (1, 8, 8)])
def test_orthogonalize_keeps_singular_vectors_and_levels_the_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    assert values.amax() / values.amin() > 1.5
    diagonal = left.mT @ orthogonalize(matrices) @ right.mT
    levelled = torch.diagonal(diagonal, dim1=1, dim2=2)
    assert 0.65 < levelled.min() and levelled.max() < 1.25
    torch.testing.assert_close(diagonal, torch.diag_embed(levelled), atol=1e-12, rtol=0)


def test_orthogonalize_by_hand():
    """A 1x1 matrix goes through x -> a x + b x^3 + c x^5 five times, from 1."""
    x = 1.0
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    one = torch.tensor([[[3.0]]], dtype=torch.float64)
    assert orthogonalize(one).item() == pytest.approx(x, rel=1e-5)
    assert torch.equal(orthogonalize(torch.zeros(1, 8, 9)), torch.zeros(1, 8, 9))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_take_torchs_muon_steps_and_the_rest_adams(memory_format):
    network = make_network(memory_format)
    reference = copy.deepcopy(network)
    rate = 0.01
    optimizer = MuonAdam(network.parameters(), lr=rate)
    matrices = [parameter for parameter in reference.parameters() if is_matrix(parameter)]
    rest = [parameter for parameter in reference.parameters() if not is_matrix(parameter)]
    assert [tuple(matrix.shape) for matrix in matrices] == [(16, 8, 3, 3), (8, 16, 3, 3)]
    adam = torch.optim.Adam(rest, lr=rate)
    flat = [nn.Parameter(matrix.detach().flatten(1).clone()) for matrix in matrices]
    muon = torch.optim.Muon(flat, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for i in range(4):
        learn(network, optimizer, steps=1)
        for parameter, other in zip(reference.parameters(), network.parameters()):
            parameter.grad = other.grad.clone()  # the very gradients: rounding alone may differ
        for parameter, matrix in zip(flat, matrices):
            parameter.grad = matrix.grad.flatten(1)
        adam.step()
        muon.step()
        for one, other in zip(network.parameters(), reference.parameters()):
            if not is_matrix(one):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
        ours = [parameter for parameter in network.parameters() if is_matrix(parameter)]
        for one, other in zip(ours, flat):  # torch's products are of bfloat16: 3 % of a step
            step = rate * 0.2 * max(other.shape) ** 0.5
            assert (one.flatten(1) - other).norm() < 0.05 * (i + 1) * step * min(other.shape) ** 0.5


def test_momentum_betas_and_eps_are_those_that_are_given():
    """Muon's part by its equations: an average of the gradients, and the step along it as Nesterov's; Adam's by torch.

    The matrix has 9 columns: a step is 0.1 * 0.2 * sqrt(9).
    """
    generator = torch.Generator().manual_seed(0)
    matrix, vector = (torch.randn(size, generator=generator) for size in ((8, 9), (5,)))
    ours, adams = [nn.Parameter(matrix.clone()), nn.Parameter(vector.clone())], nn.Parameter(vector.clone())
    optimizer = MuonAdam(ours, lr=0.1, momentum=0.3, betas=(0.5, 0.6), eps=0.4)
    adam = torch.optim.Adam([adams], lr=0.1, betas=(0.5, 0.6), eps=0.4)
    average = torch.zeros_like(matrix)
    for _ in range(3):
        for parameter in ours:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        adams.grad = ours[1].grad.clone()
        optimizer.step()
        adam.step()
        average = 0.3 * average + 0.7 * ours[0].grad
        matrix -= 0.06 * orthogonalize((0.3 * average + 0.7 * ours[0].grad)[None])[0]
    torch.testing.assert_close(ours[0].detach(), matrix, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[1], adams, rtol=1e-6, atol=1e-7)


def test_parameters_that_muon_leaves_to_adam():
    sizes = [(64, 64, 3, 3), (8, 8, 1, 1), (96, 96), (64, 1, 3, 3), (1, 64, 3, 3), (64, 3, 3, 3), (225, 6), (64, 64, 3)]
    sizes += [(64,), (1,)]
    taken = [size for size in sizes if is_matrix(torch.empty(size))]
    assert taken == [(64, 64, 3, 3), (8, 8, 1, 1), (96, 96)]


def test_a_lost_step_changes_nothing():
    """As torch's fused optimisers: the gradients are not finite, and ``found_inf`` says so on the device."""
    network = make_network()
    optimizer = MuonAdam(network.parameters(), lr=0.1)
    learn(network, optimizer)
    before = copy.deepcopy([network.state_dict(), optimizer.state_dict()["state"]])
    for parameter in network.parameters():
        parameter.grad.fill_(float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    torch.testing.assert_close([network.state_dict(), optimizer.state_dict()["state"]], before, rtol=0, atol=0)
    other = make_network()
    learn(other, plain := MuonAdam(other.parameters(), lr=0.1))
    optimizer.found_inf = torch.tensor(0.0)
    for one, last in ((network, optimizer), (other, plain)):
        learn(one, last)
    torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_scaled_gradients_are_divided_and_infinite_ones_left_out():
    """GradScaler's way without ``unscale_``: the steps are those of gradients that were never scaled."""
    network, plain = make_network(), make_network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, reference = (MuonAdam(one.parameters(), lr=0.01) for one in (network, plain))
    batch = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, float("inf"), 2.0):
        optimizer.zero_grad()
        scaler.scale((network(batch) * factor).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor < float("inf"):
            reference.zero_grad()
            (plain(batch) * factor).square().mean().backward()
            reference.step()
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


def test_a_saved_state_goes_on_where_it_was():
    whole = make_network()
    learn(whole, first := MuonAdam(whole.parameters(), lr=0.01))
    half = copy.deepcopy(whole)
    second = MuonAdam(half.parameters(), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(whole, first)
    learn(half, second)
    torch.testing.assert_close(half.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_closure_and_parameters_without_gradients():
    network = make_network()
    optimizer = MuonAdam(network.parameters(), lr=0.1)
    before = copy.deepcopy(network.state_dict())
    assert optimizer.step(lambda: torch.tensor(3.0)).item() == 3.0
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_a_closure_may_compute_gradients():
    """Adam's first step is the rate, whatever the gradient: from 1 to 0.9."""
    parameter = nn.Parameter(torch.ones(3))

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert MuonAdam([parameter], lr=0.1).step(closure).item() == 3
    assert parameter.tolist() == pytest.approx([0.9] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"MuonAdam: lr=-1.0 is not allowed: it must be at least 0"),
        ({"momentum": 1.0}, r"momentum=1.0 .* in \[0, 1\)"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\]=1.5 .* in \[0, 1\)"),
        ({"eps": 0}, "eps=0 is not allowed"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MuonAdam([nn.Parameter(torch.zeros(1))], **options)


def test_optimisers_that_an_option_file_may_name():
    """torch's own Muon takes no biases, and so no network here."""
    known = list_optimizers()
    assert known["Adam"] is torch.optim.Adam and known["MuonAdam"] is MuonAdam
    assert not {"Muon", "LBFGS", "SparseAdam", "Optimizer"} & set(known)
