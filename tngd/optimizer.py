"""Thermodynamic natural gradient descent on tiles: 8 x 8 blocks of the curvature inverted by calibrated boards.

Per step, with the gradient g and the blocks P_k = (RᵀR + λI)_kk of the batch:

    T_k = L_k⁻¹, L_k L_kᵀ = the block of an older batch (refreshed every `refresh` steps)
    the copy holds T_k P_k T_kᵀ and answers B_k, its inverse under the copy's own errors
    θ_k ← θ_k - η T_kᵀ B_k T_k g_k

Preconditioned programming: T_k is exact digital work, P_k fresh, and the board sees a matrix close to I, which fits
its parts and does not magnify their errors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature import curvature_factor, evaluated, tile_blocks
from tngd.losses import CROSS_ENTROPY, Loss
from tngd.tiles import TileBoard, invert_tiles


@dataclass(frozen=True)
class TileStep:
    """What the boards did in one step.

    `unstable` tiles could not be held by their copy and took the step of the older factor alone; `passive` is the
    fraction that needed no negative element; `deviation` is the relative distance of the direction from that of exact
    inverses of the same tiles.
    """

    unstable: int
    passive: float
    deviation: float


class TNGD(torch.optim.Optimizer):
    """Natural gradient steps through analog tiles.

    Args:
        params: parameters to train, one group.
        board: the copies, from `tngd.tiles.tile_board`; tile k is time-shared on copy k modulo their number.
        lr: step size η > 0.
        damping: λ > 0.
        refresh: steps for which the digital factors T are kept; 1 uses the batch's own, 0 none at all (T = I).
        loss: what `step` differentiates.

    `step(closure)`: the closure returns (outputs, targets), outputs (b, d) still attached to their graph; the optimizer
    takes gradients itself. Returns the loss. Parameters without `requires_grad` are left alone. The factors T and
    their age are part of the state, so a resumed run goes on as an uninterrupted one.

    The curvature of a batch costs one backward pass a row, b·r of them through the whole batch: time grows with b².
    `last` holds what the boards did in the last step.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        board: TileBoard,
        lr: float = 0.05,
        damping: float = 1e-2,
        refresh: int = 10,
        loss: Loss = CROSS_ENTROPY,
    ):
        for name, value in (("lr", lr), ("damping", damping)):
            if not value > 0:
                raise InputError(f"{name} must be above 0, got {value}")
        if refresh < 0:
            raise InputError(f"refresh is a number of steps, 0 or more, got {refresh}")
        super().__init__(params, {"lr": lr, "damping": damping, "refresh": refresh})
        if len(self.param_groups) != 1:
            raise InputError(f"TNGD takes one parameter group, got {len(self.param_groups)}")
        trained = [p for p in self.param_groups[0]["params"] if p.requires_grad]
        if not trained:
            raise InputError("no parameter requires a gradient; unfreeze at least one")
        if len({(p.dtype, p.device) for p in trained}) > 1:
            raise InputError("all parameters must have one dtype and device")
        self.board = board.to(trained[0].device)
        self.loss = loss
        self.last: TileStep | None = None

    def step(self, closure: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        """One update; see the class."""
        group = self.param_groups[0]
        parameters = [p for p in group["params"] if p.requires_grad]
        with torch.enable_grad():
            outputs, targets = evaluated(closure)
            value = self.loss.value(outputs, targets)
            factor = curvature_factor(outputs, parameters, self.loss)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            gradient = torch.cat([g.reshape(-1) for g in gradients])
            # Small blocks, ill-conditioned ones among them: solved in the board's own double precision.
            direction = self._solve(factor.to(self.board.dtype), gradient.to(self.board.dtype), group)
            start = 0
            for parameter in parameters:
                step = direction[start : start + parameter.numel()]
                parameter.sub_(group["lr"] * step.view_as(parameter).to(parameter.dtype))
                start += parameter.numel()
        return value.detach()

    def _solve(self, factor: Tensor, gradient: Tensor, group: dict) -> Tensor:
        size = self.board.size
        P = tile_blocks(factor, size, group["damping"])
        T = self._preconditioner(P, group["refresh"])
        copies = torch.arange(len(P), device=P.device) % self.board.copies
        held = invert_tiles(self.board, T @ P @ T.mT, copies)
        eye = torch.eye(size, dtype=P.dtype, device=P.device)
        B = torch.where(held.stable[:, None, None], held.inverse, eye)
        g = torch.nn.functional.pad(gradient, (0, len(P) * size - len(gradient))).reshape(len(P), size, 1)
        direction = T.mT @ (B @ (T @ g))
        exact = torch.linalg.solve(P, g)
        self.last = TileStep(
            unstable=int((~held.stable).sum()),
            passive=float(held.passive.double().mean()),
            deviation=float((direction - exact).norm() / exact.norm()),
        )
        return direction.reshape(-1)[: len(gradient)]

    def _preconditioner(self, P: Tensor, refresh: int) -> Tensor:
        """T (tiles, n, n): L⁻¹ of the blocks of up to `refresh` steps ago, kept in the state; I for refresh 0."""
        eye = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
        if not refresh:
            return eye
        first = self.param_groups[0]["params"][0]
        kept = self.state[first]
        if "factors" not in kept or kept["age"] >= refresh:
            T = torch.linalg.solve_triangular(torch.linalg.cholesky(P), eye.expand_as(P), upper=False)
            # Loading a state casts it to the parameters' dtype; any T is exact, so the cast one is used from the start.
            kept["factors"], kept["age"] = T.to(first.dtype), 0
        kept["age"] += 1
        return kept["factors"].to(P.dtype)
