"""Many small targets on the calibrated copies at once: programming and infinite-time inverse, batched in torch.

A tile is an n x n target for an n-cell differential board. It is programmed as on the bench: unit-diagonal scaling,
or scaling to dominance where that avoids negative elements, then elements by sign. The copy's gains make it M~, its
cell temperatures t the noise; with equal nominal conductance and inductance the modes m of M~ separate, and

    B_ab = 2 t~_ab / (m_a + m_b + Q² (m_a - m_b)²/2),   t~ = Vᵀ diag(t) V,   M~ = V diag(m) Vᵀ,

in the basis of V is c0 Cov(y)/(k kT): the solution of the Lyapunov equation, M~⁻¹ when all t are 1. What is left out
(the spread of conductance and inductance in the damping, not in the temperature) is of second order in the tolerance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.device import Device, by_pairs, draw_device, quality_factor
from circuits.elements import GROUND_MINIMUM
from circuits.errors import InputError
from circuits.ladder import SCALING_LIMIT, SLACK_MINIMUM


@dataclass(frozen=True, eq=False)
class TileBoard:
    """Relative errors of the copies of a differential board, as tensors; one row a copy."""

    straight: Tensor  # (copies, n, n), symmetric
    crossed: Tensor  # (copies, n, n), symmetric
    ground: Tensor  # (copies, n)
    negative: Tensor  # (copies, n)
    temperature: Tensor  # (copies, n)
    quality: float

    @property
    def size(self) -> int:
        """Cells n of the board."""
        return self.ground.shape[-1]

    @property
    def copies(self) -> int:
        """Number of copies."""
        return self.ground.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the board's arithmetic."""
        return self.ground.dtype

    def to(self, device: torch.device | str) -> "TileBoard":
        """The same copies on another device."""
        return TileBoard(*(field.to(device) for field in self._fields()), quality=self.quality)

    def turned(self, shift: int) -> "TileBoard":
        """The same copies, numbered from copy `shift` on."""
        return TileBoard(*(field.roll(-shift, dims=0) for field in self._fields()), quality=self.quality)

    def _fields(self) -> tuple[Tensor, ...]:
        return (self.straight, self.crossed, self.ground, self.negative, self.temperature)


@dataclass(frozen=True, eq=False)
class TileInverse:
    """Inverses B (tiles, n, n) of the targets as the copies give them, and what it took.

    `passive` (tiles,): no negative element was needed. `stable` (tiles,): the copy is positive definite; where it is
    not, there is no stationary state and B is zero.
    """

    inverse: Tensor
    passive: Tensor
    stable: Tensor


def tile_board(device: Device, seed: int = 0, dtype: torch.dtype = torch.float64) -> TileBoard:
    """The copies of a device, each drawn once from its estimates; InputError if the cells are not differential."""
    if device.board.kind != "differential":
        raise InputError(
            "tiles need differential cells, which hold both signs, but the device has plain cells; "
            "calibrate a board designed with --cells active"
        )
    if by_pairs(device.board):
        raise InputError(
            "tiles are of capacitive boards whose elements are single parts, but the device has "
            f"{'banks' if device.board.banks else 'resistive couplings'}; calibrate a board designed without"
        )
    drawn = draw_device(device, seed)
    n = len(device.board.cells)
    pairs = {kind: torch.ones(len(drawn.copies), n, n, dtype=dtype) for kind in ("straight", "crossed")}
    cells = {kind: torch.ones(len(drawn.copies), n, dtype=dtype) for kind in ("ground", "negative")}
    for k, copy in enumerate(drawn.copies):
        for element in device.board.elements:
            gain = copy.gains[element.name].value
            if element.kind in pairs:
                i, j = element.cells
                pairs[element.kind][k, i, j] = pairs[element.kind][k, j, i] = gain
            else:
                cells[element.kind][k, element.cells[0]] = gain
    temperature = [[estimate.value for estimate in copy.temperatures] for copy in drawn.copies]
    return TileBoard(
        pairs["straight"],
        pairs["crossed"],
        cells["ground"],
        cells["negative"],
        torch.tensor(temperature, dtype=dtype),
        quality_factor(device.board),
    )


def invert_tiles(board: TileBoard, targets: Tensor, copies: Tensor) -> TileInverse:
    """Invert targets (tiles, n, n), positive definite, tile k on copy copies[k] (tiles,), at infinite time."""
    scaling, passive = _scaling(targets)
    M = scaling[:, :, None] * targets * scaling[:, None, :]
    realised = _programmed(board, M, copies)
    m, V = torch.linalg.eigh(realised)
    stable = m[:, 0] > 0
    m = torch.where(stable[:, None], m, torch.ones_like(m))
    t = V.mT @ (board.temperature[copies][:, :, None] * V)
    a, b = m[:, :, None], m[:, None, :]
    B = V @ (2 * t / (a + b + board.quality**2 * (a - b) ** 2 / 2)) @ V.mT
    B = torch.where(stable[:, None, None], B, torch.zeros_like(B))
    return TileInverse(scaling[:, :, None] * B * scaling[:, None, :], passive, stable)


def _scaling(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scaling d (tiles, n) as in circuits.synthesis for differential cells, and whether it avoids negative elements."""
    diagonal = targets.diagonal(dim1=-2, dim2=-1)
    unit = diagonal.rsqrt()
    U = (unit[:, :, None] * targets * unit[:, None, :]).abs()
    n = U.shape[-1]
    eye = torch.eye(n, dtype=U.dtype, device=U.device)
    comparison = torch.where(eye.bool(), eye, -U)
    slack = comparison.sum(dim=-1).amin(dim=-1)
    weights, singular = torch.linalg.solve_ex(comparison, torch.ones_like(diagonal)[..., None])
    weights = weights[..., 0]
    # <U> w = 1 with w > 0 holds if and only if <U> is positive definite (it is a Z-matrix).
    dominated = (singular == 0) & (weights.amin(dim=-1) > 0) & (weights.amax(dim=-1) <= SCALING_LIMIT)
    already = slack >= SLACK_MINIMUM
    use = (dominated & ~already)[:, None]
    weights = torch.where(use, weights / weights.amax(dim=-1, keepdim=True), torch.ones_like(weights))
    return unit * weights, dominated | already


def _programmed(board: TileBoard, M: Tensor, copies: Tensor) -> Tensor:
    """M~ (tiles, n, n): M as the gains of the copies make it."""
    eye = torch.eye(board.size, dtype=torch.bool, device=M.device)
    off = M.masked_fill(eye, 0)
    gain = torch.where(off < 0, board.straight[copies], board.crossed[copies])
    slack = M.diagonal(dim1=-2, dim2=-1) - off.abs().sum(dim=-1)
    short = slack < SLACK_MINIMUM * 0.99
    ground = torch.where(short, torch.full_like(slack, GROUND_MINIMUM), slack)
    twice_negative = slack - ground
    real = off * gain
    diagonal = real.abs().sum(dim=-1) + ground * board.ground[copies] + twice_negative * board.negative[copies]
    return real + torch.diag_embed(diagonal)
