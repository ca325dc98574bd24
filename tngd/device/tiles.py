"""Many small targets on the calibrated copies at once: what every copy makes of its tile, batched in torch.

A tile is an n x n target for an n-cell differential board. It is programmed as on the bench: unit-diagonal scaling,
or scaling to dominance where that avoids negative elements, then elements by sign; on boards with banks the nearest
codes (tngd.tile_banks). The copy's gains make it M~. On a capacitive board the cell temperatures t are the noise; with
equal nominal conductance and inductance the modes m of M~ separate, and

    B_ab = 2 t~_ab / (m_a + m_b + Q² (m_a - m_b)²/2),   t~ = Vᵀ diag(t) V,   M~ = V diag(m) Vᵀ,

in the basis of V is c0 Cov(y)/(k kT): the solution of the Lyapunov equation, M~⁻¹ when all t are 1. What is left out
(the spread of conductance and inductance in the damping, not in the temperature) is of second order in the tolerance;
switches behind capacitors change the inverse by 2e-5 (tests/test_tile_boards.py). On a resistive board the mean of the
readings is M~⁻¹ b, exactly. tngd.device.tile_solve needs no eigenvectors.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.model.converters import IDEAL, Interface
from circuits.model.device import Device, checked, draw_device, quality_factor, readout_of
from circuits.model.fitted_copy import by_pairs, pairs_of, parameters_of
from circuits.model.pairs import part_gains
from circuits.synthesis.cells import SCALING_LIMIT, SLACK_MINIMUM
from circuits.synthesis.elements import GROUND_MINIMUM
from tngd.device.small_matrices import cholesky, cholesky_solve, lower_inverse
from tngd.tile_banks import TileBanks, code_tiles, held_tiles, tile_banks


@dataclass(frozen=True, eq=False)
class TileBoard:
    """Relative errors of the copies of a differential board, as tensors; one row a copy.

    `storage` and `power` are the cells' capacitors and noise powers, 1 on a capacitive board, where `temperature` and
    `quality` count. With `averaged` every tile is solved on all copies and the answers are averaged.
    """

    straight: Tensor  # (copies, n, n), symmetric
    crossed: Tensor  # (copies, n, n), symmetric
    ground: Tensor  # (copies, n)
    negative: Tensor  # (copies, n)
    temperature: Tensor  # (copies, n)
    storage: Tensor  # (copies, n)
    power: Tensor  # (copies, n)
    readout: Tensor  # (copies, n), gains of the readings
    offset: Tensor  # (copies, n), of the readings, in the largest rms of the board
    quality: float
    coupling: str = "capacitive"
    banks: TileBanks | None = None
    interface: Interface = IDEAL
    averaged: bool = False

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
        banks = None if self.banks is None else self.banks.to(device)
        return replace(self, banks=banks, **{name: x.to(device) for name, x in self._tensors().items()})

    def turned(self, shift: int) -> "TileBoard":
        """The same copies, numbered from copy `shift` on."""
        banks = None if self.banks is None else self.banks.turned(-shift)
        return replace(self, banks=banks, **{name: x.roll(-shift, dims=0) for name, x in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, eq=False)
class HeldTiles:
    """What the copies hold: M~ (n, n, tiles), with the digital scaling d (n, tiles).

    `passive` (tiles,): no negative element is needed. `possible` (tiles,): the board has the elements, or the codes.
    `variance` (tiles,): the largest one of a reading on the nominal board, (M⁻¹)_ii, which the noise level is set by;
    only for a capacitive board whose ADC has bits or noise.
    """

    matrix: Tensor
    scaling: Tensor
    passive: Tensor
    possible: Tensor
    variance: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TileInverse:
    """Inverses B (tiles, n, n) of the targets as the copies give them, and what it took.

    `passive` (tiles,): no negative element was needed. `stable` (tiles,): the copy is positive definite; where it is
    not, or cannot hold the tile at all, there is no stationary state and B is zero.
    """

    inverse: Tensor
    passive: Tensor
    stable: Tensor


def tile_board(
    device: Device,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    *,
    averaged: bool = False,
    interface: Interface | None = None,
) -> TileBoard:
    """The copies of a device, each drawn once from its estimates; InputError if the cells are not differential.

    `interface` takes the place of the device's own. Readings have their gains; their offsets are subtracted, and only
    move the full scale of an ADC that reads a covariance.
    """
    board = checked(device).board
    if board.kind != "differential":
        raise InputError(
            "tiles need differential cells, which hold both signs, but the device has plain cells; "
            "calibrate a board designed with --cells active"
        )
    drawn = draw_device(device, seed)
    capacitive = board.coupling == "capacitive"
    found = (_by_pairs if by_pairs(board) else _by_elements)(drawn)
    shown = [readout_of(drawn, k) for k in range(len(drawn.copies))]
    found["readout"] = np.array([gains for gains, _ in shown])
    found["offset"] = np.array([offsets for _, offsets in shown]) / board.limits.reading_rms
    return TileBoard(
        **{name: torch.tensor(value, dtype=dtype) for name, value in found.items()},
        quality=quality_factor(board) if capacitive else 0.0,
        coupling=board.coupling,
        banks=tile_banks(drawn).to(dtype) if board.banks else None,
        interface=interface or device.interface,
        averaged=averaged,
    )


def hold_tiles(board: TileBoard, targets: Tensor, copies: Tensor) -> HeldTiles:
    """Program targets (n, n, tiles), positive definite, tile k on copy copies[k] (tiles,)."""
    unit = targets.diagonal(dim1=0, dim2=1).movedim(-1, 0).rsqrt()
    U = unit[:, None] * targets * unit
    if board.banks is not None:
        codes, d, passive = code_tiles(board.banks, U)
        variance = None
        if _has_level(board):  # the nominal board is the copy after the last
            variance = _largest_variance(held_tiles(board.banks, codes, torch.full_like(copies, board.copies)))
        return HeldTiles(held_tiles(board.banks, codes, copies), unit * d, passive, passive, variance)
    sums = U.abs().sum(1)
    d, passive = _scaling(U, sums)
    if d is not None:
        U, unit = d[:, None] * U * d, unit * d
        sums = U.abs().sum(1)
    variance = _largest_variance(U) if _has_level(board) else None
    return HeldTiles(_realised(board, U, sums, copies), unit, passive, torch.ones_like(passive), variance)


def has_full_scale(board: TileBoard) -> bool:
    """Whether the readings whose covariance is the answer go through an ADC that rounds and clips."""
    return board.coupling == "capacitive" and board.interface.adc.bits is not None


def invert_tiles(board: TileBoard, targets: Tensor, copies: Tensor) -> TileInverse:
    """Invert targets (tiles, n, n), positive definite, tile k on copy copies[k] (tiles,), at infinite time.

    By eigenvectors, tile by tile: exact for every one. Converters are left out.
    """
    held = hold_tiles(board, targets.movedim(0, -1).contiguous(), copies)
    B, stable = covariances(board, held, copies)
    d = held.scaling.T * board.readout[copies]
    back = d if board.coupling == "capacitive" else held.scaling.T
    return TileInverse(d[:, :, None] * B * back[:, None, :], held.passive, stable)


def covariances(board: TileBoard, held: HeldTiles, copies: Tensor) -> tuple[Tensor, Tensor]:
    """B (tiles, n, n) by eigenvectors, before the readout, and which tiles are stable (tiles,); B is 0 elsewhere."""
    m, V = torch.linalg.eigh(held.matrix.movedim(-1, 0))
    stable = (m[:, 0] > 0) & held.possible
    m = torch.where(stable[:, None], m, torch.ones_like(m))
    t = V.mT @ (board.temperature[copies][:, :, None] * V)
    a, b = m[:, :, None], m[:, None, :]
    B = V @ (2 * t / (a + b + board.quality**2 * (a - b) ** 2 / 2)) @ V.mT
    return torch.where(stable[:, None, None], B, torch.zeros_like(B)), stable


def spread_over(values: Tensor, copies: Tensor) -> Tensor:
    """What every tile's copy has, (…, tiles), of values (copies, …)."""
    # A product with rows of zeros and a one takes copies exactly, and an eighth of the time of looking them up.
    chosen = (torch.arange(len(values), device=copies.device)[:, None] == copies).to(values.dtype)
    return (values.movedim(0, -1).reshape(-1, len(values)) @ chosen).view(*values.shape[1:], -1)


def _has_level(board: TileBoard) -> bool:
    """Whether something of the ADC goes by the size of the readings."""
    return has_full_scale(board) or (board.coupling == "capacitive" and board.interface.adc.noise > 0)


def _largest_variance(M: Tensor) -> Tensor:
    return lower_inverse(cholesky(M)[0]).square().sum(0).amax(0)


def _scaling(U: Tensor, sums: Tensor) -> tuple[Tensor | None, Tensor]:
    """Weights (n, tiles) as circuits.synthesis.cells for differential cells, None for 1, and which tiles need nothing negative.

    U (n, n, tiles) of unit diagonal, with the sums of sizes in its rows (n, tiles).
    """
    already = 2 - sums.amax(0) >= SLACK_MINIMUM
    if bool(already.all()):
        return None, already
    comparison = -U.abs()
    comparison.diagonal(dim1=0, dim2=1).fill_(1)
    # <U> w = 1 with w > 0 holds if and only if <U> is positive definite (it is a Z-matrix).
    L, definite = cholesky(comparison)
    weights = cholesky_solve(L, torch.ones_like(U[0]))
    dominated = definite & (weights.amin(0) > 0) & (weights.amax(0) <= SCALING_LIMIT)
    weights = torch.where(dominated & ~already, weights / weights.amax(0), 1)
    return weights, dominated | already


def _realised(board: TileBoard, M: Tensor, sums: Tensor, copies: Tensor) -> Tensor:
    """M~ (n, n, tiles): M, with the sums of sizes in its rows (n, tiles), as the gains of the copies make it."""
    # Crossed elements, and where M is negative straight ones.
    real, work = spread_over(board.crossed, copies).mul_(M), M.clamp(max=0)
    real += work.mul_(spread_over(board.straight - board.crossed, copies))
    slack = 2 * M.diagonal(dim1=0, dim2=1).movedim(-1, 0) - sums
    short = slack < SLACK_MINIMUM * 0.99
    real.diagonal(dim1=0, dim2=1).zero_()
    ground = torch.where(short, GROUND_MINIMUM, slack)
    total = torch.abs(real, out=work).sum(1) + ground * spread_over(board.ground, copies)
    if bool(short.any()):
        total += (slack - ground) * spread_over(board.negative, copies)
    real.diagonal(dim1=0, dim2=1).copy_(total.movedim(0, -1))
    return real


def _by_elements(device: Device) -> dict[str, np.ndarray]:
    """Relative values by the gain of every element and the cells' temperatures."""
    rows = [{name: estimate.value for name, estimate in copy.gains.items()} for copy in device.copies]
    found = _elements(device, rows)
    found["temperature"] = np.array([[estimate.value for estimate in copy.temperatures] for copy in device.copies])
    return found


def _by_pairs(device: Device) -> dict[str, np.ndarray]:
    """Relative admittances of the parts of every element, capacitors, and powers, by pairs of parts."""
    board, model = device.board, pairs_of(device.board)
    first = [board.parts[members[0]] for members in model.pairs]
    theta = [parameters_of(model, copy) for copy in device.copies]
    gains = np.array([part_gains(model.exponents, row) for row in theta])
    names = [part.element or part.name for part in first]
    found = _elements(device, [dict(zip(names, row, strict=True)) for row in gains])
    found["power"] = np.array([part_gains(model.powers, row) for row in theta])
    if board.coupling == "capacitive":
        found["temperature"] = np.array([[e.value for e in copy.temperatures] for copy in device.copies])
        return found
    found["storage"] = np.zeros_like(found["storage"])
    for k, part in enumerate(first):
        cell = next((i for i, cell in enumerate(board.cells) if part.nodes[0] in cell.nodes), None)
        if part.kind == "C" and cell is not None:
            found["storage"][:, cell] += gains[:, k] * part.nominal / board.capacitance
        elif part.role == "pad":  # behind a switch; half of a bank's bits is what the board counts on
            for i in next(bank.cells for bank in board.banks if part.name.startswith(f"CP{bank.name[5:]}")):
                found["storage"][:, i] += gains[:, k] * part.nominal / board.capacitance / 2
    return found


def _elements(device: Device, rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Gains (copies, …) of every kind of element, 1 where the board has none; two in parallel hold half each."""
    copies, n = len(rows), len(device.board.cells)
    found = {kind: np.ones((copies, n, n)) for kind in ("straight", "crossed")}
    found |= {kind: np.ones((copies, n)) for kind in ("ground", "negative", "temperature", "storage", "power")}
    for element in device.board.elements if not device.board.banks else ():
        gain = np.array([row[element.name] for row in rows])
        places = {element.cells, element.cells[::-1]}
        for place in places:
            old = found[element.kind][(slice(None), *place)]
            found[element.kind][(slice(None), *place)] = (old + gain) / 2 if element.second else gain
    return found
