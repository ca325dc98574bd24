"""How much better than nearest values the rounding search is, on targets of unit diagonal, n = 8.

Twelve random targets for each condition number. Raw: the board's own elements, negative ones among them, on a 4-bit
grid (multiples of a fifteenth of the largest element) and on two E series. Preconditioned by the factor of the target
of a step before: the couplings of a real board with banks of 4 bits, pads and switches there. Prints a JSON object for
each with medians and the time a search takes.
"""

import json
import time

import numpy as np

from circuits.board import Board, Program, RoundingCost
from circuits.synthesis.design import board_and_program
from circuits.synthesis.options import BoardOptions, BoardRequest
from circuits.synthesis.rounding import round_to_grid, round_to_series

TARGETS = 12
SIZE = 8
BITS = 4
GRIDS = ("4-bit grid", "E24", "E96", "4-bit banks, preconditioned")
DRIFT = 0.3  # spectral norm of the change, relative to the target, since the factor was taken


def target(condition: float, seed: int) -> np.ndarray:
    """Random eigenvectors, eigenvalues even in the logarithm, scaled to unit diagonal."""
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]
    P = Q * np.geomspace(1, 1 / condition, SIZE) @ Q.T
    d = np.diag(P) ** -0.5
    return d[:, None] * (P + P.T) / 2 * d


def stale_factor(P: np.ndarray, seed: int) -> np.ndarray:
    """T = L0⁻¹ of an older target L (I + E) Lᵀ, with E random, symmetric, of norm DRIFT."""
    E = np.random.default_rng(seed).normal(size=P.shape)
    E = E + E.T
    L = np.linalg.cholesky(P)
    older = L @ (np.eye(len(P)) + DRIFT * E / np.linalg.norm(E, 2)) @ L.T
    return np.linalg.inv(np.linalg.cholesky(older))


def rounded(P: np.ndarray, seed: int, grid: str, exact: tuple[Board, Program]) -> RoundingCost:
    """What the search and the nearest values cost."""
    if "banks" in grid:
        request = BoardRequest(options=BoardOptions(bank_bits=BITS))
        return board_and_program(P, stale_factor(P, seed), request)[1].rounding
    if grid[0] == "E":
        return round_to_series(*exact, grid, np.zeros_like(P)).rounding
    return round_to_grid(*exact, bank_grid(exact[1]), grid).cost


def bank_grid(program: Program) -> np.ndarray:
    """Four multiples of the bank's unit around every exact value, nearest first."""
    exact = np.array(list(program.values.values()))
    unit = np.abs(exact).max() / (2**BITS - 1)
    near = unit * (np.floor(exact / unit)[:, None] + np.array([-1, 0, 1, 2]))
    return np.take_along_axis(near, np.argsort(np.abs(near - exact[:, None]), axis=1, kind="stable"), axis=1)


def main() -> None:
    results = []
    for condition in (10, 30, 100):
        targets = {seed: target(condition, seed) for seed in range(1000, 1000 + TARGETS)}
        exact = {seed: board_and_program(P) for seed, P in targets.items()}
        for grid in GRIDS:
            start = time.perf_counter()
            found = [rounded(P, seed, grid, exact[seed]) for seed, P in targets.items()]
            seconds = (time.perf_counter() - start) / TARGETS
            nearest = [np.inf if cost.error_nearest is None else cost.error_nearest for cost in found]
            gain = float(np.median([n / cost.error for n, cost in zip(nearest, found, strict=True)]))
            row = {
                "condition": condition,
                "grid": grid,
                "median_gain": gain if np.isfinite(gain) else None,
                "nearest_not_definite": int(np.isinf(nearest).sum()),
                "median_error_nearest": float(np.median(nearest)) if np.isfinite(np.median(nearest)) else None,
                "median_error": float(np.median([cost.error for cost in found])),
                "seconds": round(seconds, 2),
            }
            results.append(row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
