"""Tiles: many small targets inverted at once on the calibrated copies of a board, batched in torch.

A tile is an n x n target for an n-cell differential board. Programming follows the bench: unit-diagonal scaling, or
scaling to diagonal dominance where that avoids negative elements, then elements by sign, or on boards with banks the
nearest codes. The gains of the copy turn the target into M~. On a capacitive board the cell temperatures t are the
noise; with equal nominal conductance and inductance the modes m of M~ separate, and

    B_ab = 2 t~_ab / (m_a + m_b + Q² (m_a - m_b)²/2),   t~ = Vᵀ diag(t) V,   M~ = V diag(m) Vᵀ,

in the basis of V, is c0 Cov(y)/(k kT): the solution of the Lyapunov equation, and M~⁻¹ when all t are 1. The law
neglects the spread of conductance and inductance in the damping (not in the temperature), which is of second order in
the tolerance; switches behind capacitors change the inverse by 2e-5 (tests/tngd/device/test_tile_boards.py). On a
resistive board the mean of the readings is M~⁻¹ b, exactly. tngd.device.tile_solve gives products with B without its
eigenvectors.

Banks. Bit b of a bank between cells i and j is open, straight or crossed, and adds to M_ii, M_jj and M_ij of its copy
the contribution of its part, switch and pads (circuits.model.pairs): a switch is a wire on a capacitive board, a known
resistance on a resistive one. Soldered parts, and pads that stay on a cell, always add to M_ii. Codes are chosen as in
circuits.synthesis.rounding: the digital scaling d makes the row sums equal to the soldered admittances g,

    d_i (<U> d)_i = g_i,

by Newton steps, with <U> the comparison matrix of U, and couplings take the nearest code. The load of the pads depends
weakly on the codes, so scaling and codes are found in PASSES passes.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from circuits.board import GROUND, Board, Program
from circuits.errors import InputError
from circuits.model.converters import IDEAL, Interface
from circuits.model.device import Device, checked, draw_device, quality_factor
from circuits.model.fitted_copy import by_pairs, parameters_of, readout_of
from circuits.model.pairs import Half, PairModel, half_of, pair_model, part_gains
from circuits.synthesis.cells import SCALING_LIMIT, SLACK_MINIMUM
from circuits.synthesis.elements import GROUND_MINIMUM
from tngd.device.small_matrices import apply, cholesky, cholesky_solve, lower_inverse, solve_bordered

PASSES = 3
NEWTON_STEPS = 60
STATES = (0, 1, -1)  # open, straight, crossed


@dataclass(frozen=True, eq=False)
class TileBanks:
    """Contributions of the codes to M, in units of the board.

    `held` (copies, banks, codes, 3) to M_ii, M_jj and M_ij; `fixed` (copies, n) to M_ii. Code c has the index c +
    2^bits - 1; `cells` (banks, 2); the last copy, one more, is the nominal board.
    """

    cells: Tensor
    unit: Tensor  # (banks,), of bit 0
    bits: int
    held: Tensor
    fixed: Tensor

    def to(self, place: torch.device | str | torch.dtype) -> "TileBanks":
        """The same tables in another precision or on another device."""
        cells = self.cells if isinstance(place, torch.dtype) else self.cells.to(place)
        return TileBanks(cells, self.unit.to(place), self.bits, self.held.to(place), self.fixed.to(place))

    def turned(self, shift: int) -> "TileBanks":
        """The same tables with copy `shift` first; the nominal board stays last."""

        def turn(x: Tensor) -> Tensor:
            return torch.cat([x[:-1].roll(-shift, dims=0), x[-1:]])

        return TileBanks(self.cells, self.unit, self.bits, turn(self.held), turn(self.fixed))


@dataclass(frozen=True, eq=False)
class TileBoard:
    """Relative errors of the copies of a differential board, as tensors; one row a copy.

    `storage` and `power` are the cells' capacitors and noise powers: 1 on a capacitive board, whose noise follows from
    `temperature` and `quality`. With `averaged` every tile is solved on all copies and the answers are averaged.
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
    """Tiles as programmed on the copies: M~ (n, n, tiles), with the digital scaling d (n, tiles).

    `passive` (tiles,): no negative element is needed. `possible` (tiles,): the board has the elements, or the codes.
    `variance` (tiles,): the largest variance of a reading on the nominal board, max (M⁻¹)_ii, which sets the noise
    level; only for a capacitive board whose ADC has bits or noise.
    """

    matrix: Tensor
    scaling: Tensor
    passive: Tensor
    possible: Tensor
    variance: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TileInverse:
    """Inverses B (tiles, n, n) of the targets as the copies give them.

    `passive` (tiles,): no negative element was needed. `stable` (tiles,): M~ is positive definite and the board has the
    elements or codes of the tile; elsewhere there is no stationary state and B is zero.
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
    """Draw the copies of a device, each once, from their estimates; InputError if the cells are not differential.

    `interface` replaces the interface of the device. The gains of the readout act on the readings; offsets are
    subtracted, so that they only shift readings against the full scale of an ADC that reads a covariance.
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
    shown = [readout_of(copy, len(board.cells)) for copy in drawn.copies]
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

    By eigenvectors of every tile, exactly. Converters are not modelled here.
    """
    held = hold_tiles(board, targets.movedim(0, -1).contiguous(), copies)
    B, stable = covariances(board, held, copies)
    d = held.scaling.T * board.readout[copies]
    back = d if board.coupling == "capacitive" else held.scaling.T
    return TileInverse(d[:, :, None] * B * back[:, None, :], held.passive, stable)


def covariances(board: TileBoard, held: HeldTiles, copies: Tensor) -> tuple[Tensor, Tensor]:
    """B (tiles, n, n) by eigenvectors, before the readout, with the mask of stable tiles (tiles,); B is 0 elsewhere."""
    m, V = torch.linalg.eigh(held.matrix.movedim(-1, 0))
    stable = (m[:, 0] > 0) & held.possible
    m = torch.where(stable[:, None], m, torch.ones_like(m))
    t = V.mT @ (board.temperature[copies][:, :, None] * V)
    B = V @ (2 * t / mode_rate(m, board.quality)) @ V.mT
    return torch.where(stable[:, None, None], B, torch.zeros_like(B)), stable


def mode_rate(m: Tensor, quality: float) -> Tensor:
    """m_a + m_b + Q² (m_a - m_b)²/2 (tiles, n, n), the denominator of B, for eigenvalues m (tiles, n) of M~."""
    a, b = m[:, :, None], m[:, None, :]
    return a + b + quality**2 * (a - b) ** 2 / 2


def spread_over(values: Tensor, copies: Tensor) -> Tensor:
    """Values of the copy of every tile, (…, tiles), from the values of all copies (copies, …)."""
    # A product with a one-hot matrix selects copies exactly, in an eighth of the time of indexing.
    chosen = (torch.arange(len(values), device=copies.device)[:, None] == copies).to(values.dtype)
    return (values.movedim(0, -1).reshape(-1, len(values)) @ chosen).view(*values.shape[1:], -1)


def _has_level(board: TileBoard) -> bool:
    """Whether the full scale or the noise of the ADC depends on the size of the readings."""
    return has_full_scale(board) or (board.coupling == "capacitive" and board.interface.adc.noise > 0)


def _largest_variance(M: Tensor) -> Tensor:
    return lower_inverse(cholesky(M)[0]).square().sum(0).amax(0)


def _scaling(U: Tensor, sums: Tensor) -> tuple[Tensor | None, Tensor]:
    """Weights (n, tiles), as in circuits.synthesis.cells for differential cells, or None for 1; mask of passive tiles.

    Passive tiles need no negative element. U (n, n, tiles) has a unit diagonal; `sums` (n, tiles) the row sums of |U|.
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
    """M~ (n, n, tiles): M with the gains of the copies; `sums` (n, tiles) are the row sums of |M|."""
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
    board, model = device.board, pair_model(device.board)
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
        elif part.role == "pad":  # behind a switch; the board assumes that half of the bits of a bank are closed
            for i in next(bank.cells for bank in board.banks if part.name.startswith(f"CP{bank.name[5:]}")):
                found["storage"][:, i] += gains[:, k] * part.nominal / board.capacitance / 2
    return found


def _elements(device: Device, rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """Gains (copies, …) of every kind of element, 1 where the board has none; the mean gain of two in parallel."""
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


def tile_banks(device: Device) -> TileBanks:
    """Tables of a device with banks, in double precision, from the gains of its copies."""
    board, model = device.board, pair_model(device.board)
    theta = np.array([parameters_of(model, copy) for copy in device.copies] + [np.ones(len(model.names))])
    bits = board.banks[0].bits
    table = np.zeros((len(theta), len(board.banks), len(STATES), bits, 3))
    for state, sign in enumerate(STATES):
        fixed, table[:, :, state] = _contributions(board, model, theta, sign)
    closed = np.arange(2**bits)[:, None] >> np.arange(bits) & 1  # (codes, bits)
    way = {s: np.einsum("cb,kmbx->kmcx", closed, table[:, :, s] - table[:, :, 0]) for s in (1, 2)}
    open_ = table[:, :, 0].sum(2)[:, :, None]
    held = np.concatenate([way[2][:, :, :0:-1], way[1]], axis=2) + open_
    return TileBanks(
        torch.tensor([bank.cells for bank in board.banks]),
        torch.tensor([bank.unit / board.unit for bank in board.banks]),
        bits,
        torch.from_numpy(held / board.unit),
        torch.from_numpy(fixed / board.unit),
    )


def code_tiles(banks: TileBanks, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (banks, tiles), scaling d (n, tiles), and the mask of tiles (tiles,) that passive cells realise within the
    range of the banks.

    The targets M (n, n, tiles) have a unit diagonal.
    """
    i, j = banks.cells.T
    comparison = -M.abs()
    comparison.diagonal(dim1=0, dim2=1).fill_(1)
    dominated = cholesky(comparison)[1]
    comparison[:, :, ~dominated] = torch.eye(len(M), dtype=M.dtype, device=M.device)[..., None]
    most = 2**banks.bits - 1
    codes = torch.zeros(len(i), *M.shape[2:], dtype=torch.long, device=M.device)
    d = None
    for _ in range(PASSES):
        d = row_sum_scalings(comparison, _loads(banks, codes), d)
        wanted = d[i] * M[i, j] * d[j] / banks.unit[:, None]
        codes = -wanted.round().clamp(-most, most).long()
    within = (wanted.abs() <= most + 0.5).all(0)
    return codes, row_sum_scalings(comparison, _loads(banks, codes), d), dominated & within


def held_tiles(banks: TileBanks, codes: Tensor, copies: Tensor) -> Tensor:
    """M~ (n, n, tiles) of codes (banks, tiles) on copies (tiles,)."""
    count, many = banks.held.shape[1:3]
    place = (copies * count + torch.arange(count, device=codes.device)[:, None]) * many + codes + 2**banks.bits - 1
    own, other, both = banks.held.reshape(-1, 3)[place].unbind(-1)  # each (banks, tiles)
    n = banks.fixed.shape[1]
    i, j = banks.cells.T
    M = own.new_zeros(n, n, *codes.shape[1:])
    M[i, j] = M[j, i] = both
    M.diagonal(dim1=0, dim2=1).copy_(
        banks.fixed[copies] + torch.zeros(n, *codes.shape[1:], dtype=own.dtype, device=own.device)
        .index_add_(0, i, own).index_add_(0, j, other).movedim(0, -1)
    )  # fmt: skip
    return M


def row_sum_scalings(comparison: Tensor, sums: Tensor, start: Tensor | None = None) -> Tensor:
    """d > 0 (n, tiles) with d_i (A d)_i = g_i for row sums g > 0 (n, tiles) and comparison matrices A (n, n, tiles).

    The batched form of circuits.synthesis.rounding.row_sum_scaling.
    """
    n = len(sums)
    d = (sums / comparison.diagonal(dim1=0, dim2=1).movedim(-1, 0)).sqrt() if start is None else start
    least, enough = sums.amin(0), 8 * torch.finfo(d.dtype).eps * sums.sum(0).sqrt()
    bordered = sums.new_empty(n + 1, *comparison.shape[1:])
    for _ in range(NEWTON_STEPS):
        share = sums / d
        bordered[:n] = comparison
        bordered[:n].diagonal(dim1=0, dim2=1).add_((share / d).movedim(0, -1))
        torch.sub(apply(comparison, d), share, out=bordered[n])
        step, square = solve_bordered(bordered)
        d = d - step / (1 + (square / least).sqrt())  # damped: the function is self-concordant
        # The root of `square` is the Newton decrement; the next decrement is at most twice its square.
        rest = (2 * square > enough * least.sqrt()).nonzero()[:, 0]
        if 2 * len(rest) < len(least):  # go on with the tiles that have not converged
            if len(rest):
                d[:, rest] = row_sum_scalings(comparison[:, :, rest], sums[:, rest], d[:, rest])
            break
    return d


def _loads(banks: TileBanks, codes: Tensor) -> Tensor:
    """Row sums of <M~> (n, tiles) on the nominal board: the admittances to ground."""
    own, other, both = banks.held[-1].unbind(-1)
    place = codes + 2**banks.bits - 1
    found = banks.fixed[-1][:, None].repeat(1, codes.shape[1])
    for cells, table in zip(banks.cells.T, (own - both.abs(), other - both.abs()), strict=True):
        ends = torch.nn.functional.one_hot(cells, len(found)).T.to(table.dtype)
        found.addmm_(ends, table.gather(1, place))
    return found


def _contributions(board: Board, model: PairModel, theta: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """`fixed` (copies, n), and the contributions of every bit in one state (copies, banks, bits, 3) [F or S]."""
    half = half_of(model, _all_bits(board, sign))
    y = half.weights * np.array([part_gains(half.exponents, row) for row in theta])  # (copies, b)
    inner = half.inner.toarray()
    alike = half.capacitive == (board.coupling == "capacitive")
    soldered = alike & ~inner.any(axis=0)
    fixed = np.einsum("cb,bi->ci", y[:, soldered], half.stamps[soldered] ** 2)
    found = np.zeros((len(theta), len(board.banks), board.banks[0].bits, 3))
    places = {
        f"x{bank.name[5:]}{board.cells[bank.cells[0]].nodes[0]}b{number}": (k, number)
        for k, bank in enumerate(board.banks)
        for number in range(bank.bits)
    }
    for row in inner:
        at = np.flatnonzero(row)
        nodes = board.parts[model.pairs[half.pairs[at[0]]][0]].nodes
        k, number = places[next(node for node in nodes if node not in (*board.nodes, GROUND))]
        star = _star(half, y, row, at, alike, board.coupling == "capacitive")
        i, j = board.banks[k].cells
        found[:, k, number] = np.stack([star[:, i, i], star[:, j, j], star[:, i, j]], axis=-1)
    return fixed, found


def _star(half: Half, y: np.ndarray, row: np.ndarray, at: np.ndarray, alike: np.ndarray, wires: bool) -> np.ndarray:
    """Admittances between the cells (copies, n, n) of the branches `at` one inner node, which is eliminated."""
    closed, own = at[half.series[at]], at[alike[at]]
    stamps, sign = half.stamps[own], row[own]
    if wires and len(closed):  # the closed switch fixes the voltage of the inner node
        z = np.tile(-row[closed[0]] * half.stamps[closed[0]], (len(y), 1))
    else:
        z = -((y[:, own] * sign) @ stamps) / y[:, own].sum(1, keepdims=True)
    branch = stamps + sign[:, None] * z[:, None, :]
    return np.einsum("cb,cbi,cbj->cij", y[:, own], branch, branch)


def _all_bits(board: Board, sign: int) -> Program:
    """The program with every bank fully closed, straight or crossed by the sign, or open."""
    n = len(board.cells)
    values = {bank.elements[0 if sign > 0 else 1]: bank.reach for bank in board.banks if sign}
    eye = np.eye(n)
    return Program("tiles", eye, eye, np.ones(n), "", "", values, 1.0, 1.0, 1.0)
