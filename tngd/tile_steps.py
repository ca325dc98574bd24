"""One step on tiles: 8 x 8 blocks of the curvature inverted by calibrated boards.

With the gradient g and the blocks P_k = (RᵀR + λI)_kk of the batch:

    T_k = L_k⁻¹, L_k L_kᵀ = the block of an older batch (refreshed every `refresh` steps)
    the copy holds T_k P_k T_kᵀ and answers B_k, its inverse under the copy's own errors
    x_k = T_kᵀ B_k T_k g_k

Preconditioned programming: T_k is exact digital work, P_k fresh, and the board sees a matrix close to I, which fits
its parts and does not magnify their errors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class TileFactors:
    """The digital factors T (tiles, n, n) and the number of steps they have served."""

    factors: Tensor
    age: int


def tile_factors(P: Tensor, kept: TileFactors | None, refresh: int) -> TileFactors | None:
    """T for this step: L⁻¹ of blocks P (tiles, n, n) of up to `refresh` steps ago; None for refresh 0 (T = I)."""
    if not refresh:
        return None
    if kept is not None and kept.age < refresh:
        return TileFactors(kept.factors, kept.age + 1)
    eye = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    return TileFactors(torch.linalg.solve_triangular(torch.linalg.cholesky(P), eye.expand_as(P), upper=False), 1)


def tile_direction(board: TileBoard, P: Tensor, gradient: Tensor, kept: TileFactors | None) -> tuple[Tensor, TileStep]:
    """Direction (N,) from blocks P (tiles, n, n), gradient (N,) and factors; tile k on copy k modulo their number."""
    size = board.size
    eye = torch.eye(size, dtype=P.dtype, device=P.device)
    T = eye if kept is None else kept.factors
    copies = torch.arange(len(P), device=P.device) % board.copies
    held = invert_tiles(board, T @ P @ T.mT, copies)
    B = torch.where(held.stable[:, None, None], held.inverse, eye)
    g = torch.nn.functional.pad(gradient, (0, len(P) * size - len(gradient))).reshape(len(P), size, 1)
    direction = T.mT @ (B @ (T @ g))
    exact = torch.linalg.solve(P, g)
    step = TileStep(
        unstable=int((~held.stable).sum()),
        passive=float(held.passive.double().mean()),
        deviation=float((direction - exact).norm() / exact.norm()),
    )
    return direction.reshape(-1)[: len(gradient)], step
