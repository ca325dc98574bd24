"""Rounding element values to what can be bought, as an optimisation of the error of the *inverse*.

An element e off by Δ_e moves M by Δ_e/c0 s sᵀ (s its stamp on the cells) and the inverse, to first order, by
-Δ_e/c0 w wᵀ with w = Xᵀ M⁻¹ s. The digital scaling X is free, exact and costs nothing: X → diag(x) X after rounding
takes up what it can. So the best rounding is the point of a grid closest to the exact values in the metric of the
columns w wᵀ, those directions left out that a scaling reaches: a closest-vector problem, in which errors that look
large part by part cancel where the inverse is sensitive.

Solved as sphere decoders do: a QR decomposition with the weakest columns first, then a beam over partial choices, last
column to first, keeping those of the smallest partial distance. The best of the beam and the plain nearest values are
compared by the exact error with fitted scaling, and the winner improved by exchanging one or two elements while that
helps. It is therefore never worse than the nearest values.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from circuits.board import Board, Program, RoundingCost
from circuits.synthesis.elements import element_stamps

BEAM = 2048  # partial choices kept
FINALISTS = 64  # of the beam, compared by the exact error
REGULARISATION = 1e-3  # of the largest column: keeps the problem definite where elements can stand for each other
MOST_PAIRS = 50  # elements up to which pairs are exchanged; beyond, single elements
FIT_STEPS = 4  # of Gauss-Newton for the scaling


@dataclass(frozen=True, eq=False)
class Rounding:
    """Values from a grid [F or S] by element, the scaling d (n,) that goes with them, and what rounding costs."""

    values: dict[str, float]
    scaling: np.ndarray
    cost: RoundingCost


@dataclass(frozen=True, eq=False)
class _Problem:
    """Arrays of one rounding: stamps (elements, n) with M = load + Σ value s sᵀ, X, P⁻¹, and its upper triangle."""

    stamps: np.ndarray
    load: np.ndarray  # (n, n), in units, what is not the elements'
    mapping: np.ndarray
    inverse: np.ndarray
    upper: tuple[np.ndarray, np.ndarray]
    weight: np.ndarray  # √2 off the diagonal: the norm of the triangle is that of the matrix


def round_to_grid(
    board: Board, program: Program, grid: np.ndarray, name: str, load: np.ndarray | None = None
) -> Rounding:
    """Choose from grid (elements, choices) [F or S], nearest first, for the populated elements in their order.

    `load` (n, n) [F or S] is what the readings see besides the elements (None: nothing).
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
    """The values as they are, with the scaling that suits them best under this load."""
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
    """First-order change of the inverse for each element, (n (n + 1)/2, elements), without what a scaling takes up."""
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
