"""Discrepancy of the pair model: unequal pairs, and strays that only one side of a cell has.

The values of a pair are μ (1 ± δ), of capacitances, of conductances, of inverse inductances, of series resistances.
With x and c of circuits.model.pairs the whole board is Y = [[Y_xx, Y_xc], [Y_cx, Y_cc]]; the pair model is Y_xx at δ =
0. A stray between two cells is one part: it is on one side, δ = 1, where the pair model has half of it on either side.
The discrepancy of a statistic s is s(μ, δ) - s(μ, 0); its law comes from copies (μ, δ) drawn from the tolerances. All
programs share the same draws, because one copy has one mismatch, so the discrepancies of different programs keep their
correlation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from circuits.board import Part
from circuits.copies import draw_gains
from circuits.model.pairs import Half, PairModel
from circuits.model.response import ROUGH, nodes_and_weights

DRAWS = 128
MORE_DRAWS = 192  # where many programs together determine the discrepancies
FEW_DRAWS = 32  # where the noise of sampling is larger than the discrepancies
DISCREPANCY_SEED = 20_000_003  # added to the design's seed, so that the copies themselves are never drawn again
STRAYS = "strays"  # the cause of capacitances between neighbouring cells
FREQUENCIES_AT_ONCE = 16  # frequencies at a time


@dataclass(frozen=True, eq=False)
class DrawnPairs:
    """Drawn copies: `means` μ and `mismatch` δ (draws, pairs) of values; the sources by cell, (draws, n).

    A source at p has the relative power `powers` + `power_mismatch`, one at n `powers` - `power_mismatch`.
    """

    means: np.ndarray
    mismatch: np.ndarray
    powers: np.ndarray
    power_mismatch: np.ndarray

    @property
    def matched(self) -> "DrawnPairs":
        """The same copies with equal pairs."""
        return replace(self, mismatch=0 * self.mismatch, power_mismatch=0 * self.power_mismatch)

    def __getitem__(self, which: slice) -> "DrawnPairs":
        """Some of the copies."""
        return DrawnPairs(self.means[which], self.mismatch[which], self.powers[which], self.power_mismatch[which])


def draw_pairs(model: PairModel, seed: int, draws: int = DRAWS) -> DrawnPairs:
    """Draw copies from the tolerances of a board; none for plain cells, which are no pairs."""
    board = model.board
    draws = draws if board.nodes_per_cell == 2 else 0
    gains = draw_gains(board, seed + DISCREPANCY_SEED, max(draws, 1))[:draws]
    first = [board.parts[members[0]] for members in model.pairs]
    ends = np.array([(members[0], members[-1]) for members in model.pairs])
    linear = np.array([_linear(part) for part in first])
    one, two = (np.where(linear, gains[:, k], 1 / gains[:, k]) for k in ends.T)
    means = (one + two) / 2
    single = np.array([part.cause == STRAYS for part in first])
    powers = gains[:, len(board.parts) :].reshape(draws, len(board.cells), board.nodes_per_cell)
    return DrawnPairs(
        means,
        np.where(single, 1.0, (one - two) / (2 * means)),
        powers.mean(axis=2),
        (powers[..., 0] - powers[..., -1]) / 2,
    )


def drawn_spectra(half: Half, draws: DrawnPairs, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one-sided spectra (draws, f, n, n) [V²/Hz] of the readings, and impedances (draws, f, n, n) [ohm]."""
    n = len(half.power)
    if not len(draws.means):
        return (np.zeros((0, len(frequencies), n, n), dtype=complex),) * 2
    Z = np.linalg.inv(_admittance(half, draws, 2j * np.pi * frequencies))
    if Z.shape[-1] == n:
        return 4 * (Z * (half.power * draws.powers)[:, None, None, :]) @ np.conj(np.swapaxes(Z, -1, -2)), Z
    own, other = Z[..., :n, :n], Z[..., :n, n:]
    Q, between = ((half.power * powers)[:, None, None, :] for powers in (draws.powers, draws.power_mismatch))
    cross = (own * between) @ np.conj(np.swapaxes(other, -1, -2))
    S = sum((part * Q) @ np.conj(np.swapaxes(part, -1, -2)) for part in (own, other))
    return 4 * (S + cross + np.conj(np.swapaxes(cross, -1, -2))), own


def delayed_discrepancies(half: Half, draws: DrawnPairs, delays: Sequence[float] = (0.0,)) -> np.ndarray:
    """Return discrepancies of K(τ) (circuits.calibration.held_out), (delays, draws, n, n) [V²]; K(0) is Cov(y)."""
    frequency, weights = nodes_and_weights(half, ROUGH)
    return _summed(half, draws, frequency, np.array([weights * low_pass(frequency, delay) for delay in delays]))


def lagged_discrepancies(half: Half, draws: DrawnPairs, lags: Sequence[float]) -> np.ndarray:
    """Return discrepancies of ρ(τ) = ∫ Re S e^{2πifτ} df, (lags, draws, n, n) [V²], at lags (t,) [s].

    The sum over few frequencies is accurate to some per cent of the discrepancy of the covariance.
    """
    frequency, weights = nodes_and_weights(half, ROUGH)
    return _summed(half, draws, frequency, np.array([weights * np.exp(2j * np.pi * frequency * lag) for lag in lags]))


def low_pass(frequency: np.ndarray, delay: float) -> np.ndarray:
    """Return the weights 1/(1 + (2π f τ)²), (f,), of a mean delay τ [s]."""
    return 1 / (1 + (2 * np.pi * frequency * delay) ** 2)


def _summed(half: Half, draws: DrawnPairs, frequency: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Σ Re weight · (discrepancy of S), (w, draws, n, n), for weights (w, f)."""
    total = np.zeros((len(weights), len(draws.means), len(half.power), len(half.power)))
    for piece in np.array_split(np.arange(len(frequency)), max(1, len(frequency) // FREQUENCIES_AT_ONCE)):
        S = drawn_spectra(half, draws, frequency[piece])[0] - drawn_spectra(half, draws.matched, frequency[piece])[0]
        total += np.einsum("wf,dfij->wdij", weights[:, piece], S, optimize=True).real
    return total


def _linear(part: Part) -> bool:
    """Tell whether values of a pair are averaged (capacitances, series resistances), rather than inverse values."""
    return part.kind == "C" or part.wire or part.cause == "winding"


def _admittance(half: Half, draws: DrawnPairs, s: np.ndarray) -> np.ndarray:
    """Return Y (draws, f, 2n, 2n) of x (first n) and c: either part of each pair with inner nodes of its own.

    The side of sign ±1 has the stamps (±x, c): the mean of both sides is in Y_xx and Y_cc, their difference in Y_xc.
    Without mismatch Y_xc is zero, and Y_xx (draws, f, n, n) alone is returned.
    """
    n, mesh = half.stamps.shape[1], _mesh(half)
    x, c = mesh.stamps[:, :n], mesh.stamps[:, n:]
    one, coil = _side(half, mesh, draws, 1, s), _coils(half, draws, 1, s)
    if not draws.mismatch.any():
        return _stamped(one, x, x) + coil
    two, other = _side(half, mesh, draws, -1, s), _coils(half, draws, -1, s)
    both, between, shared = (one + two) / 2, (one - two) / 2, (coil + other) / 2
    Y = np.empty((*both.shape[:2], 2 * n, 2 * n), dtype=complex)
    Y[..., :n, :n], Y[..., n:, n:] = _stamped(both, x, x) + shared, _stamped(both, c, c) + shared
    Y[..., :n, n:] = _stamped(between, x, c) + (coil - other) / 2
    Y[..., n:, :n] = np.swapaxes(Y[..., :n, n:], -1, -2)
    return Y


def _stamped(y: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Σ y left rightᵀ, (draws, f, n, n), of admittances (draws, f, b) with stamps (b, n)."""
    every = (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)
    flat, total = y.reshape(-1, y.shape[-1]), np.empty((y.shape[0] * y.shape[1], every.shape[1]), dtype=complex)
    total.real, total.imag = (np.ascontiguousarray(part) @ every for part in (flat.real, flat.imag))
    return total.reshape(*y.shape[:2], left.shape[1], right.shape[1])


def _coils(half: Half, draws: DrawnPairs, sign: int, s: np.ndarray) -> np.ndarray | float:
    """Return the admittance (draws, f, n, n) of one side's coils with their mutual inductances; 0 without coils."""
    if not half.coils.shape[1]:
        return 0.0
    stiffness = draws.means[:, half.coil_pairs] * (1 + sign * draws.mismatch[:, half.coil_pairs])
    root = np.sqrt(half.inductance / stiffness)
    L = root[:, :, None] * half.coupling * root[:, None, :]
    behind = half.winding_pairs
    R = half.winding * draws.means[:, behind] * (1 + sign * draws.mismatch[:, behind])
    W = np.linalg.inv(s[:, None, None] * L[:, None] + (R[:, :, None] * np.eye(R.shape[1]))[:, None])
    return half.coils @ W @ half.coils.T


@dataclass(frozen=True, eq=False)
class _Mesh:
    """The network without inner nodes: a star of y_k at an inner node is the mesh of y_k y_l / Σ y between its ends.

    Branches `direct` stay; the others are pairs `one`, `two` at the inner nodes `node`. `stamps` (b', 2n) are on x, c.
    """

    direct: np.ndarray
    node: np.ndarray
    one: np.ndarray
    two: np.ndarray
    stamps: np.ndarray


def _mesh(half: Half) -> _Mesh:
    own, signed = np.concatenate([half.stamps, half.common], axis=1), half.inner.tocoo()
    at: dict[int, list[tuple[int, float]]] = {}
    for node, branch, sign in zip(signed.row, signed.col, signed.data, strict=True):
        at.setdefault(int(node), []).append((int(branch), sign))
    ends = [(node, k, j, a, b) for node in at for (k, a), (j, b) in combinations(at[node], 2)]
    direct = np.flatnonzero(abs(half.inner).sum(axis=0) == 0) if at else np.arange(len(own))
    node, one, two = (np.array([end[i] for end in ends], dtype=int) for i in range(3))
    a, b = (np.array([end[i] for end in ends], dtype=float)[:, None] for i in (3, 4))
    return _Mesh(direct, node, one, two, np.concatenate([own[direct], own[one] * a - own[two] * b]))


def _side(half: Half, mesh: _Mesh, draws: DrawnPairs, sign: int, s: np.ndarray) -> np.ndarray:
    """Return admittances (draws, f, b') of the part of every pair that is on one side."""
    value = draws.means[:, half.pairs] * (1 + sign * draws.mismatch[:, half.pairs])
    gain = np.divide(1, value, out=value.copy(), where=half.series)
    y = (half.weights * gain)[:, None] * np.where(half.capacitive, s[:, None], 1.0)  # (draws, f, b)
    if not len(mesh.node):
        return y[..., mesh.direct]
    total = (abs(half.inner) @ y.reshape(-1, y.shape[-1]).T).T.reshape(*y.shape[:-1], -1)
    star = y[..., mesh.one] * y[..., mesh.two] / total[..., mesh.node]
    return np.concatenate([y[..., mesh.direct], star], axis=-1)
