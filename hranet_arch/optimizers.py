"""The optimisers an option file may name: torch's, and ``MuonAdam``, Muon for convolutions and Adam for the rest."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's: large at zero, so that these steps are enough
NEWTON_SCHULZ_STEPS = 5
SMALLEST_MATRIX = 8  # channels; what has fewer, in or out, is left to Adam: a network's ends, depthwise convolutions


class MuonAdam(Optimizer):
    """Muon for the weights of convolutions and linear layers, Adam for all other parameters.

    Muon takes a weight as a matrix, ``(out, in * kh * kw)``, and steps along its momentum with all singular values
    brought near 1: no direction of the matrix waits for another. A step is ``lr * 0.2 * sqrt(larger side)``, of the
    size of Adam's, so that both share one rate. What it is worth here is measured in ``docs/recipes.md``.

    Sources: Jordan et al., «Muon: an optimizer for hidden layers in neural networks» (2024); the size of the step from
    Liu et al., «Muon is scalable for LLM training» (arXiv 2502.16982). ``torch.optim.Muon`` takes matrices alone.

    Like torch's fused optimisers it works with ``torch.amp.GradScaler`` without waiting for the device: it divides by
    ``grad_scale`` itself, and a step with ``found_inf`` 1 changes nothing.

    Args:
        params: parameters or groups of them, all float32.
        lr: the rate, of both.
        momentum: Muon's, in [0, 1).
        betas: Adam's.
        eps: Adam's.

    Raises:
        ValueError: for a value outside of its range.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if lr < 0:
            raise ValueError(f"MuonAdam: lr={lr!r} is not allowed: it must be at least 0.")
        if not eps > 0:
            raise ValueError(f"MuonAdam: eps={eps!r} is not allowed: it must be more than 0.")
        for name, value in (("momentum", momentum), ("betas[0]", betas[0]), ("betas[1]", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"MuonAdam: {name}={value!r} is not allowed: it must be in [0, 1).")
        # `fused` is torch's word for counting steps on the parameter's device, where a loaded state has to go.
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            matrices: dict[tuple, list[Tensor]] = defaultdict(list)
            for parameter in parameters:
                if is_matrix(parameter):
                    matrices[parameter.shape].append(parameter)
            for alike in matrices.values():  # one call for all of a shape
                self._step_muon(alike, group)
            self._step_adam([parameter for parameter in parameters if not is_matrix(parameter)], group)
        return loss

    def _step_muon(self, weights: list[Tensor], group: dict) -> None:
        """Of one shape, stacked: a GPU would wait for Python's calls for each weight."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        averages, gradients = torch.stack(buffers), torch.stack([weight.grad for weight in weights])
        rate = group["lr"] * 0.2 * max(weights[0].flatten(1).shape) ** 0.5
        scale, is_lost = self._read_scaler()
        if scale is not None:
            gradients = gradients / scale
        if is_lost is not None:
            gradients = torch.where(is_lost.bool(), averages, gradients)  # which leaves the averages as they are
            rate = rate * (1 - is_lost)
        averages = averages.lerp(gradients, 1 - group["momentum"])
        updates = gradients.lerp(averages, group["momentum"])  # as Nesterov
        steps = orthogonalize(updates.flatten(2)).reshape(updates.shape) * rate
        torch._foreach_copy_(buffers, list(averages))
        torch._foreach_sub_(weights, list(steps))

    def _step_adam(self, parameters: list[Tensor], group: dict) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                averages = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": step, **averages}
        states = [self.state[parameter] for parameter in parameters]
        scale, is_lost = self._read_scaler()
        adam(
            parameters,
            [parameter.grad for parameter in parameters],
            *[[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq")],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=True,
            grad_scale=scale,
            found_inf=is_lost,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def _read_scaler(self) -> tuple[Tensor | None, Tensor | None]:
        return getattr(self, "grad_scale", None), getattr(self, "found_inf", None)


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon takes it: two or four dimensions, as the weights of convolutions and linear layers that mix enough
    channels have; a table of that form, such as SwinIR's of relative positions, cannot be told from them."""
    return parameter.ndim in (2, 4) and min(parameter.shape[:2]) >= SMALLEST_MATRIX


def orthogonalize(matrices: Tensor) -> Tensor:
    """``(n, rows, columns)`` with singular values brought to 0.7 to 1.2 by Newton-Schulz steps, vectors kept."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices  # the product of the shorter sides is the smaller one
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def list_optimizers() -> dict[str, type[Optimizer]]:
    """What ``train.optim_g.type`` may name.

    Left out are torch's that need a closure, sparse gradients, matrices alone (``Muon``) or no rate.
    """
    found = inspect.getmembers(torch.optim, lambda o: inspect.isclass(o) and issubclass(o, Optimizer))
    kept = {name: cls for name, cls in found if name not in ("LBFGS", "SparseAdam", "Muon")}
    kept = {name: cls for name, cls in kept.items() if "lr" in inspect.signature(cls).parameters}
    return kept | {"MuonAdam": MuonAdam}
