"""Tiles on boards of switched banks: what every code holds on every copy, and codes for many targets at once.

Bit b of a bank between cells i and j is open, straight or crossed, and adds to M_ii, M_jj and M_ij of its copy what
its part, switch and pads make of it (circuits.model.pairs): a switch is a wire on a capacitive board, a known resistance on a
resistive one. What is soldered, and the pads that stay on a cell, adds to M_ii always. Codes are coded as
circuits.synthesis.rounding does: the digital scaling d makes the row sums what is soldered,

    d_i (<U> d)_i = g_i,

by Newton steps, and couplings take the nearest code. What the pads load depends, a little, on the codes: a few passes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.board import GROUND, Board, Program
from circuits.model.device import Device
from circuits.model.fitted_copy import pairs_of, parameters_of
from circuits.model.pairs import Half, PairModel, half_of, part_gains
from tngd.device.small_matrices import apply, cholesky, solve_bordered

PASSES = 3
NEWTON_STEPS = 60
STATES = (0, 1, -1)  # open, straight, crossed


@dataclass(frozen=True, eq=False)
class TileBanks:
    """What codes hold, in units: `held` (copies, banks, codes, 3) of M_ii, M_jj, M_ij; `fixed` (copies, n) of M_ii.

    Code c is number c + 2^bits - 1; `cells` (banks, 2); the nominal board is one more copy, the last one.
    """

    cells: Tensor
    unit: Tensor  # (banks,), of bit 0
    bits: int
    held: Tensor
    fixed: Tensor

    def to(self, place: torch.device | str | torch.dtype) -> "TileBanks":
        """The same in another precision or on another device."""
        cells = self.cells if isinstance(place, torch.dtype) else self.cells.to(place)
        return TileBanks(cells, self.unit.to(place), self.bits, self.held.to(place), self.fixed.to(place))

    def turned(self, shift: int) -> "TileBanks":
        """The same with copy `shift` first; the nominal board stays the last one."""

        def turn(x: Tensor) -> Tensor:
            return torch.cat([x[:-1].roll(-shift, dims=0), x[-1:]])

        return TileBanks(self.cells, self.unit, self.bits, turn(self.held), turn(self.fixed))


def tile_banks(device: Device) -> TileBanks:
    """Tables of a device with banks, in double precision, from the gains of its copies."""
    board, model = device.board, pairs_of(device.board)
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
    """Codes (banks, tiles), scaling d (n, tiles), and which tiles (tiles,) passive cells hold within the banks' reach.

    Targets M (n, n, tiles) of unit diagonal.
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
    """M~ (n, n, tiles) that codes (banks, tiles) are on copies (tiles,)."""
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
    """d > 0, (n, tiles), with d_i (A d)_i = g_i for sums g (n, tiles) > 0; A as circuits.synthesis.rounding.row_sum_scaling."""
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
        # The root of `square` is the decrement; the next one is at most twice its square.
        rest = (2 * square > enough * least.sqrt()).nonzero()[:, 0]
        if 2 * len(rest) < len(least):  # do not drag along what is done
            if len(rest):
                d[:, rest] = row_sum_scalings(comparison[:, :, rest], sums[:, rest], d[:, rest])
            break
    return d


def _loads(banks: TileBanks, codes: Tensor) -> Tensor:
    """Row sums of <M~>, (n, tiles), on the nominal board: what leads to ground."""
    own, other, both = banks.held[-1].unbind(-1)
    place = codes + 2**banks.bits - 1
    found = banks.fixed[-1][:, None].repeat(1, codes.shape[1])
    for cells, table in zip(banks.cells.T, (own - both.abs(), other - both.abs()), strict=True):
        ends = torch.nn.functional.one_hot(cells, len(found)).T.to(table.dtype)
        found.addmm_(ends, table.gather(1, place))
    return found


def _contributions(board: Board, model: PairModel, theta: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """`fixed` (copies, n), and of every bit in one state (copies, banks, bits, 3) [F or S]."""
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
    """What the branches `at` one inner node are between the cells, (copies, n, n)."""
    closed, own = at[half.series[at]], at[alike[at]]
    stamps, sign = half.stamps[own], row[own]
    if wires and len(closed):  # the inner node is where its closed switch leads
        z = np.tile(-row[closed[0]] * half.stamps[closed[0]], (len(y), 1))
    else:
        z = -((y[:, own] * sign) @ stamps) / y[:, own].sum(1, keepdims=True)
    branch = stamps + sign[:, None] * z[:, None, :]
    return np.einsum("cb,cbi,cbj->cij", y[:, own], branch, branch)


def _all_bits(board: Board, sign: int) -> Program:
    """Every bank fully closed one way, or open."""
    n = len(board.cells)
    values = {bank.elements[0 if sign > 0 else 1]: bank.reach for bank in board.banks if sign}
    eye = np.eye(n)
    return Program("tiles", eye, eye, np.ones(n), "", "", values, 1.0, 1.0, 1.0)
