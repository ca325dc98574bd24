"""Rounding element values to what can be bought, as an optimisation of the error of the *inverse*.

An element e off by Δ_e moves M by Δ_e/c0 s sᵀ (s its stamp on the cells) and the inverse, to first order, by
-Δ_e/c0 w wᵀ with w = Xᵀ M⁻¹ s. The digital scaling X is free, exact and costs nothing: X → diag(x) X after rounding
takes up a part of that error. So the best rounding is the point of a grid closest to the exact values in the metric of
the columns w wᵀ, projected orthogonally to the directions that a scaling reaches: a closest-vector problem, in which
errors that look large part by part cancel where the inverse is sensitive.

The problem is solved as sphere decoders do: a QR decomposition with the weakest columns first, then a beam search over
partial choices, last column to first, keeping those of the smallest partial distance. The best of the beam and the
nearest values are compared by the exact error with fitted scaling, and the winner is improved by exchanging one or two
elements while that lowers the error. The result is therefore never worse than the nearest values.

E series: the grid of an element holds the values near the exact one, of one part or of two in parallel.

Codes of switched banks: the ground elements are soldered for good, and the scaling d is chosen to suit them. With U the
target of unit diagonal as programmed and <U> its comparison matrix, the row sums of diag(d) <U> diag(d) are to be the
loads g,

    d_i (<U> d)_i = g_i,   the one minimum of ½ dᵀ <U> d - Σ g_i log d_i,   convex if <U> is positive definite.

Every target that passive cells hold therefore goes on the same board, and only couplings are switched. Their codes are
found by the same closest-vector search. The load of the pads depends weakly on the codes, so the search is repeated a
few times.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import eseries
import numpy as np

from circuits.board import Bank, Board, Program, RoundingCost
from circuits.errors import CoarseBankError
from circuits.synthesis.cells import comparison_matrix, unit_diagonal
from circuits.synthesis.elements import element_stamps, element_values, static_load
from circuits.synthesis.options import MOST_RANGE, SMALLEST_PART, BoardError, two_digits

BEAM = 2048  # partial choices kept
FINALISTS = 64  # of the beam, compared by the exact error
REGULARISATION = 1e-3  # of the largest column: keeps the problem definite where elements can stand for each other
MOST_PAIRS = 50  # elements up to which pairs are exchanged; beyond, single elements
FIT_STEPS = 4  # of Gauss-Newton for the scaling

HEADROOM = 2.0  # of the largest coupling of the first target: others will need more
NEAR_CODES = 4  # codes that are considered for a coupling
PASSES = 4
MOST_ERROR = 0.1  # of the nominal inverse: beyond it the target is lost
NEWTON_STEPS = 200

NEAR_VALUES = 4  # values of the grid that are considered for an element


@dataclass(frozen=True, eq=False)
class Rounding:
    """Values from a grid [F or S] by element, the scaling d (n,) fitted to them, and the cost of rounding."""

    values: dict[str, float]
    scaling: np.ndarray
    cost: RoundingCost


@dataclass(frozen=True, eq=False)
class _Problem:
    """Arrays of one rounding: stamps (elements, n) with M = load + Σ value s sᵀ, X, P⁻¹, and its upper triangle."""

    stamps: np.ndarray
    load: np.ndarray  # (n, n), in units, of everything but the elements
    mapping: np.ndarray
    inverse: np.ndarray
    upper: tuple[np.ndarray, np.ndarray]
    weight: np.ndarray  # √2 off the diagonal: the norm of the triangle is that of the matrix


def round_to_grid(
    board: Board, program: Program, grid: np.ndarray, name: str, load: np.ndarray | None = None
) -> Rounding:
    """Choose from grid (elements, choices) [F or S], nearest first, for the populated elements in their order.

    `load` (n, n) [F or S] is the static load besides the elements (None: zero).
    """
    problem = _problem(board, program, np.zeros((len(board.cells),) * 2) if load is None else load)
    exact = np.array(list(program.values.values()))
    picks = _beam(_columns(problem, program), grid - exact[:, None])
    values = np.take_along_axis(grid[None], picks[:, :, None], axis=2)[:, :, 0]
    candidates = np.concatenate([grid[None, :, 0], values])
    best = _exchanged(problem, grid, candidates[_fitted(problem, candidates)[0].argmin()])
    nearest = float(_fitted(problem, grid[None, :, 0], steps=0)[0][0])
    errors, factors = _fitted(problem, best[None], steps=4 * FIT_STEPS)
    return Rounding(
        dict(zip(program.values, best.tolist(), strict=True)),
        program.scaling * factors[0],
        RoundingCost(name, nearest if np.isfinite(nearest) else None, float(errors[0])),
    )


def refitted(board: Board, program: Program, load: np.ndarray) -> Rounding:
    """The same values with the scaling that fits best under this load (n, n) [F or S]."""
    values = np.array(list(program.values.values()))
    errors, factors = _fitted(_problem(board, program, load), values[None], steps=4 * FIT_STEPS)
    cost = replace(program.rounding, error=float(errors[0]))
    return Rounding(program.values, program.scaling * factors[0], cost)


def _problem(board: Board, program: Program, load: np.ndarray) -> _Problem:
    i, j = np.triu_indices(len(board.cells))
    weight = np.where(i == j, 1.0, np.sqrt(2))
    stamps = element_stamps(board, program.values) / np.sqrt(board.unit)
    return _Problem(stamps, load / board.unit, program.mapping, np.linalg.inv(program.target), (i, j), weight)


def _columns(problem: _Problem, program: Program) -> np.ndarray:
    """First-order change of the inverse for each element, (n (n + 1)/2, elements), orthogonal to that of a scaling."""
    i, j = problem.upper
    K = np.linalg.inv(program.matrix)
    w = problem.mapping.T @ K @ problem.stamps.T
    columns = problem.weight[:, None] * w[i] * w[j]
    reached = np.linalg.qr(_scaling_columns(problem, K[None])[0].T)[0]
    return columns - reached @ (reached.T @ columns)


def _scaling_columns(problem: _Problem, K: np.ndarray) -> np.ndarray:
    """Change of Xᵀ K X for each log x_a, (…, n, n (n + 1)/2)."""
    i, j = problem.upper
    J = np.einsum("ai,...aj->...aij", problem.mapping, K @ problem.mapping)
    return (J[..., i, j] + J[..., j, i]) * problem.weight


def _fitted(problem: _Problem, values: np.ndarray, steps: int = FIT_STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Relative error of the inverse and scaling factors (…, n) for values (…, elements), by Gauss-Newton steps.

    The error is infinite where M is not positive definite.
    """
    i, j = problem.upper
    M = np.einsum("...e,ea,eb->...ab", values, problem.stamps, problem.stamps, optimize=True)
    M = M + problem.load
    definite = np.linalg.eigvalsh(M)[..., 0] > 0
    K0 = np.linalg.inv(np.where(definite[..., None, None], M, np.eye(M.shape[-1])))
    log = np.zeros(M.shape[:-1])
    best, kept = np.full(log.shape[:-1], np.inf), log
    for step in range(steps + 1):
        x = np.exp(log)
        K = x[..., :, None] * K0 * x[..., None, :]
        misfit = (problem.mapping.T @ K @ problem.mapping - problem.inverse)[..., i, j] * problem.weight
        error = np.linalg.norm(misfit, axis=-1) / np.linalg.norm(problem.inverse)
        kept = np.where((error < best)[..., None], log, kept)
        best = np.minimum(best, error)
        if step < steps:
            J = _scaling_columns(problem, K)
            normal = J @ np.swapaxes(J, -1, -2)
            log = log - np.clip(np.linalg.solve(normal, (J @ misfit[..., None]))[..., 0], -0.5, 0.5)
    return np.where(definite, best, np.inf), np.exp(kept)


def _beam(columns: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Picks (FINALISTS, elements) into offsets (elements, choices) with small ||columns @ offset||."""
    count = len(offsets)
    A = np.vstack([columns, REGULARISATION * np.linalg.norm(columns, axis=0).max(initial=0.0) * np.eye(count)])
    order = _weakest_first(A)
    R = np.linalg.qr(A[:, order], mode="r")
    ordered = offsets[order]
    picks = np.zeros((1, count), dtype=np.int64)
    cost, residual = np.zeros(1), np.zeros((1, count))  # residual: R[:, decided] @ offsets so far
    for k in range(count - 1, -1, -1):
        step = cost[:, None] + (residual[:, k : k + 1] + R[k, k] * ordered[k]) ** 2  # (beam, choices)
        kept = np.argsort(step, axis=None, kind="stable")[:BEAM]
        parent, choice = np.unravel_index(kept, step.shape)
        picks, cost = picks[parent], step[parent, choice]
        picks[:, k] = choice
        residual = residual[parent] + ordered[k][choice][:, None] * R[:, k]
    found = np.empty_like(picks)
    found[:, order] = picks
    return found[:FINALISTS]


def _weakest_first(A: np.ndarray) -> np.ndarray:
    """Order of the columns in which each next one has the least left orthogonal to those before (sorted QR)."""
    rest, order = A.copy(), []
    left = list(range(A.shape[1]))
    while left:
        norms = (rest[:, left] ** 2).sum(axis=0)
        k = left.pop(int(norms.argmin()))
        order.append(k)
        q = rest[:, k] / (np.linalg.norm(rest[:, k]) or 1.0)
        rest[:, left] -= np.outer(q, q @ rest[:, left])
    return np.array(order, dtype=np.int64)


def _exchanged(problem: _Problem, grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Change one or two elements to other values of the grid while the exact error falls."""
    best, error = values, float(_fitted(problem, values[None])[0][0])
    count, choices = grid.shape
    element = np.repeat(np.arange(count), choices)
    singles = np.arange(count * choices)
    pairs = list(combinations(singles, 2)) if count <= MOST_PAIRS else []
    moves = np.array([*zip(singles, singles, strict=True), *pairs])
    rows = np.arange(len(moves))
    while len(moves):  # a diagonal target on banks has nothing to round
        trials = np.repeat(best[None], len(moves), axis=0)
        for side in moves.T:
            trials[rows, element[side]] = grid.reshape(-1)[side]
        errors = _fitted(problem, trials, steps=2)[0]
        if not errors.min() < error * (1 - 1e-9):
            break
        best, error = trials[errors.argmin()], float(errors.min())
    return best


def coded(board: Board, draft: Program) -> Program:
    """The draft with codes, and with the scaling fitted to them in place of its own, of which only the signs are kept.

    CoarseBankError if no codes near the target hold its inverse better than MOST_ERROR, BoardError beyond a bank's
    reach. Every code gives a positive definite matrix: the ground elements are there, and nothing is negative.
    """
    load = static_load(board, replace(draft, values={}))
    for _ in range(PASSES):
        exact = _within_reach(board, scale_to_row_sums(board, draft, np.diag(load) / board.unit))
        found = _rounded(board, exact, load)
        before, load = load, static_load(board, found)
        if np.allclose(before, load, rtol=1e-12, atol=0):
            return found
    last = refitted(board, found, load)
    return replace(found, scaling=last.scaling, rounding=last.cost)


def needed_range(matrix: np.ndarray) -> float:
    """HEADROOM times the largest coupling of a target as programmed, in units, every ground element being one unit.

    For a target without couplings one unit. BoardError if it would be beyond MOST_RANGE.
    """
    U = np.abs(unit_diagonal(matrix)[1])
    d = row_sum_scaling(comparison_matrix(U), np.ones(len(U)))
    largest = np.abs(d[:, None] * (U - np.diag(np.diag(U))) * d).max()
    if largest == 0:
        return 1.0
    if largest > MOST_RANGE:
        words = f"banks reach at most {MOST_RANGE:g} units, the target needs {largest:.3g}"
        raise BoardError(words, otherwise="a --precondition")
    return two_digits(min(max(HEADROOM * float(largest), 2.0**-10), MOST_RANGE), up=True)


def row_sum_scaling(comparison: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """d > 0, (n,), with d_i (A d)_i = g_i for a positive definite A with non-positive off-diagonals, by Newton steps.

    >>> A, g = np.array([[1.0, -0.9], [-0.9, 1.0]]), np.array([1.0, 2.0])
    >>> d = row_sum_scaling(A, g)
    >>> bool(np.abs(d * (A @ d) - g).max() < 1e-14)
    True
    """
    d = np.sqrt(sums / np.diag(comparison))
    for _ in range(NEWTON_STEPS):
        gradient = comparison @ d - sums / d
        step = np.linalg.solve(comparison + np.diag(sums / d**2), gradient)
        decrement = np.sqrt(max(gradient @ step, 0.0))
        d = d - step / (1 + decrement / np.sqrt(sums.min()))  # damped: the function is self-concordant
        if decrement < 1e-15 * np.sqrt(sums.sum()):
            break
    return d


def scale_to_row_sums(board: Board, draft: Program, sums: np.ndarray) -> Program:
    """The draft with the scaling (n,) that makes the row sums `sums` (n,) [units], and its exact couplings."""
    unit, U = unit_diagonal(draft.congruence @ draft.target @ draft.congruence.T)
    scaling = np.sign(draft.scaling) * unit * row_sum_scaling(comparison_matrix(U), sums)
    scaled = replace(draft, scaling=scaling)
    return replace(scaled, values=element_values(board, scaled.matrix))


def _within_reach(board: Board, exact: Program) -> Program:
    """Return the program, or raise BoardError for a coupling beyond the reach of its bank."""
    values = exact.values
    for name, bank in _banks(board).items():
        if values.get(name, 0.0) > bank.reach + bank.unit / 2:
            raise BoardError(
                f"coupling {name} needs {values[name]:.3g} {board.element_unit}, its bank reaches {bank.reach:.3g}",
                {"bank_range": two_digits(values[name] / board.unit, up=True)},
                otherwise="a --precondition",
            )
    return exact


def _rounded(board: Board, exact: Program, load: np.ndarray) -> Program:
    banks = _banks(board)
    grid = [_near(value / banks[e].unit, 2 ** banks[e].bits - 1) * banks[e].unit for e, value in exact.values.items()]
    bits = board.banks[0].bits
    name = f"banks of {bits} bit{'s' * (bits != 1)}"
    rounding = round_to_grid(board, exact, np.array(grid).reshape(len(grid), NEAR_CODES), name, load)
    if not rounding.cost.error < MOST_ERROR:
        raise CoarseBankError(
            f"{name} are too coarse for the target: the nominal inverse would be off by {rounding.cost.error:.0%}"
        )
    values = {element: value for element, value in rounding.values.items() if value}
    return replace(exact, values=values, scaling=rounding.scaling, rounding=rounding.cost)


def _banks(board: Board) -> dict[str, Bank]:
    """The bank of every element."""
    return {name: bank for bank in board.banks for name in bank.elements}


def _near(exact: float, most: int) -> np.ndarray:
    """The NEAR whole numbers from 0 to `most` nearest to `exact`, nearest first; some twice if there are fewer."""
    start = int(np.clip(np.floor(exact) - 1, 0, max(most - NEAR_CODES + 1, 0)))
    near = np.arange(start, start + NEAR_CODES).clip(max=most)
    return near[np.argsort(np.abs(near - exact), kind="stable")]


def round_to_series(board: Board, program: Program, series: str, load: np.ndarray) -> Program:
    """The program with every populated element held by parts of an E series, one or two in parallel."""
    exact = list(program.values.values())
    parallel = any(element.second for element in board.elements)
    resistive = board.coupling == "resistive"
    floor = board.limits.smallest or SMALLEST_PART[board.element_unit]
    near = [_splits(value, series, resistive, parallel and value > 0, floor) for value in exact]
    grid = np.array([[first + second for first, second in choices] for choices in near])
    rounding = round_to_grid(board, program, grid, series, load)
    values: dict[str, float] = {}
    for (name, total), choices in zip(rounding.values.items(), near, strict=True):
        first, second = next(pair for pair in choices if sum(pair) == total)
        values |= ({name: first} if first else {}) | ({f"{name}b": second} if second else {})
    return replace(program, values=values, scaling=rounding.scaling, rounding=rounding.cost)


def halved(values: dict[str, float]) -> dict[str, float]:
    """Every element but the negative ones as two equal parts in parallel."""
    halves: dict[str, float] = {}
    for name, value in values.items():
        halves |= {name: value / 2, f"{name}b": value / 2} if value > 0 else {name: value}
    return halves


def round_fixed(board: Board, series: str) -> Board:
    """The board with its resistors, inductors and storage capacitors at the nearest values of a series.

    They move no nominal inverse. The noise is set for the resistors as they are.
    """
    parts = tuple(
        part if part.nominal is None else replace(part, nominal=float(series_near(part.nominal, series)[0]))
        for part in board.parts
    )
    if board.coupling == "resistive":
        capacitance = next(part.nominal for part in parts if part.role == "storage")
        return replace(board, parts=parts, capacitance=capacitance)
    conductance = 1 / next(part.nominal for part in parts if part.role == "damping")
    sources = tuple(replace(source, conductance=conductance) for source in board.sources)
    return replace(board, parts=parts, sources=sources)


def series_near(value: float, series: str) -> np.ndarray:
    """The NEAR values of a series closest to `value`, closest first, with its sign.

    >>> (series_near(4.87e-11, "E24") * 1e12).round(6).tolist()
    [47.0, 51.0, 43.0, 56.0]
    """
    candidates = _decades(value, series, 1)
    near = candidates[np.argsort(np.abs(candidates - abs(value)), kind="stable")[:NEAR_VALUES]]
    return np.sign(value) * near


def _decades(value: float, series: str, away: int) -> np.ndarray:
    """All values of a series from `away` decades below that of `value` to as many above."""
    base = eseries.series(eseries.ESeries[series])  # one decade, from 10 to below 100
    decade = int(np.floor(np.log10(abs(value)))) - 1
    return np.array([float(f"{b}e{decade + step}") for step in range(-away, away + 1) for b in base])


def _splits(value: float, series: str, resistive: bool, parallel: bool, floor: float) -> list[tuple[float, float]]:
    """The NEAR closest ways to hold an element [F or S], closest first: one part, or two in parallel, or none.

    No part is smaller than `floor`, an element below it may be left out.
    """
    decades = 2 if parallel else 1
    size = max(abs(value), floor)
    one = 1 / _decades(1 / size, series, decades) if resistive else _decades(size, series, decades)
    one = np.sort(one[one >= floor * (1 - 1e-12)])
    second = np.concatenate([[0.0], one]) if parallel else np.zeros(1)
    first = np.concatenate([[0.0], one]) if abs(value) < one[0] else one
    off = np.abs(first[:, None] + second - abs(value))
    found: dict[float, tuple[float, float]] = {}
    for k in np.argsort(off, axis=None, kind="stable"):
        i, j = np.unravel_index(k, off.shape)
        smaller, larger = sorted((float(first[i]), float(second[j])))
        found.setdefault(round((larger + smaller) / size, 12), (np.sign(value) * larger, np.sign(value) * smaller))
        if len(found) == NEAR_VALUES:
            break
    return [(float(larger), float(smaller)) for larger, smaller in found.values()]
