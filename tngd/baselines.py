"""The digital natural gradient that TNGD is measured against: the exact damped step, by Woodbury.

(λI + RᵀR)⁻¹ g = (g - Rᵀ (λI + R Rᵀ)⁻¹ R g) / λ
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature import curvature_factor, evaluated
from tngd.losses import CROSS_ENTROPY, Loss


class ExactNGD(torch.optim.Optimizer):
    """Natural gradient with the whole curvature of the batch; same closure convention as TNGD."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, damping: float = 1e-2, loss: Loss = CROSS_ENTROPY):
        for name, value in (("lr", lr), ("damping", damping)):
            if not value > 0:
                raise InputError(f"{name} must be above 0, got {value}")
        super().__init__(params, {"lr": lr, "damping": damping})
        self.loss = loss

    def step(self, closure: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        """One update; returns the loss before it."""
        group = self.param_groups[0]
        with torch.enable_grad():
            outputs, targets = evaluated(closure)
            value = self.loss.value(outputs, targets)
            R = curvature_factor(outputs, group["params"], self.loss)
            g = torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(value, group["params"])])
        with torch.no_grad():
            direction = woodbury(R, g, group["damping"])
            torch.nn.utils.vector_to_parameters(
                torch.nn.utils.parameters_to_vector(group["params"]) - group["lr"] * direction, group["params"]
            )
        return value.detach()


def woodbury(factor: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """(λI + RᵀR)⁻¹ g, (N,), from R (r, N) and g (N,)."""
    K = factor @ factor.T + damping * torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return (gradient - factor.T @ torch.linalg.solve(K, factor @ gradient)) / damping
