"""The digital natural gradients that TNGD is measured against: the exact damped step, by Woodbury,

    (λI + RᵀR)⁻¹ g = (g - Rᵀ (λI + R Rᵀ)⁻¹ R g) / λ,

and a few steps of conjugate gradients on the same system, each with one product Jᵀ(H (J v)).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.curvatures import curvature_cotangents, curvature_factor, evaluated
from tngd.curvature.losses import CROSS_ENTROPY, Loss


class ExactNGD(torch.optim.Optimizer):
    """Natural gradient with the whole curvature of the batch; same closure convention as TNGD."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, damping: float = 1e-2, loss: Loss = CROSS_ENTROPY):
        check_positive(lr=lr, damping=damping)
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


class ConjugateNGD(torch.optim.Optimizer):
    """Natural gradient by a fixed number of conjugate-gradient steps from zero; same closure convention as TNGD."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        damping: float = 1e-2,
        iterations: int = 10,
        loss: Loss = CROSS_ENTROPY,
    ):
        check_positive(lr=lr, damping=damping, iterations=iterations)
        super().__init__(params, {"lr": lr, "damping": damping, "iterations": iterations})
        self.loss = loss

    def step(self, closure: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        """One update; returns the loss before it."""
        group = self.param_groups[0]
        with torch.enable_grad():
            outputs, targets = evaluated(closure)
            value = self.loss.value(outputs, targets)
            found = torch.autograd.grad(value, group["params"], retain_graph=True)
            S = curvature_cotangents("ggn", outputs, targets, self.loss, None, None)
            product = ggn_product(outputs, group["params"], S, group["damping"])
        direction = conjugate_gradients(product, [g.detach() for g in found], group["iterations"])
        with torch.no_grad():
            for parameter, part in zip(group["params"], direction, strict=True):
                parameter.sub_(part, alpha=group["lr"])
        return value.detach()


def check_positive(**settings: float) -> None:
    """Raise InputError unless every setting is above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise InputError(f"{name} must be above 0, got {value}")


def conjugate_gradients(
    product: Callable[[list[Tensor]], list[Tensor]], right: list[Tensor], iterations: int
) -> list[Tensor]:
    """Approximate A⁻¹ b for a symmetric positive definite A, given as its product, and b in parts; from zero."""
    x = [torch.zeros_like(part) for part in right]
    residual, search = [part.clone() for part in right], [part.clone() for part in right]
    energy = _dot(residual, residual)
    for _ in range(iterations):
        if energy == 0:
            break
        image = product(search)
        rate = energy / _dot(search, image)
        x = torch._foreach_add(x, torch._foreach_mul(search, rate))
        residual = torch._foreach_sub(residual, torch._foreach_mul(image, rate))
        before, energy = energy, _dot(residual, residual)
        search = torch._foreach_add(residual, torch._foreach_mul(search, energy / before))
    return x


def ggn_product(
    outputs: Tensor, parameters: list[Tensor], S: Tensor, damping: float
) -> Callable[[list[Tensor]], list[Tensor]]:
    """v ↦ Jᵀ SᵀS J v + λ v, by parameters, from cotangents S (b, q, d).

    J v is the derivative of Jᵀ w by w, whose graph is built once.
    """
    w = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, parameters, grad_outputs=w, create_graph=True)

    def product(vectors: list[Tensor]) -> list[Tensor]:
        (pushed,) = torch.autograd.grad(pulled, w, grad_outputs=vectors, retain_graph=True)
        weighted = (S.mT @ (S @ pushed[:, :, None]))[:, :, 0]
        image = torch.autograd.grad(outputs, parameters, grad_outputs=weighted, retain_graph=True)
        return torch._foreach_add(image, torch._foreach_mul(vectors, damping))

    return product


def _dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
