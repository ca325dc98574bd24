"""How much better than nearest values the rounding search is, on targets of unit diagonal, n = 8.

Twelve random targets for each condition number; the board's own elements on the grid of a 4-bit bank (multiples of a
fifteenth of the largest element) and on two E series. Prints one JSON object with medians and the time a search takes.
"""

import json
import time

import numpy as np

from circuits.board import Program
from circuits.grids import round_to_series
from circuits.rounding import round_to_grid
from circuits.synthesis import design

TARGETS = 12
SIZE = 8
BITS = 4


def target(condition: float, seed: int) -> np.ndarray:
    """Random eigenvectors, eigenvalues even in the logarithm, scaled to unit diagonal."""
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))[0]
    P = Q * np.geomspace(1, 1 / condition, SIZE) @ Q.T
    d = np.diag(P) ** -0.5
    return d[:, None] * (P + P.T) / 2 * d


def bank_grid(program: Program) -> np.ndarray:
    """Four multiples of the bank's unit around every exact value, nearest first."""
    exact = np.array(list(program.values.values()))
    unit = np.abs(exact).max() / (2**BITS - 1)
    near = unit * (np.floor(exact / unit)[:, None] + np.array([-1, 0, 1, 2]))
    return np.take_along_axis(near, np.argsort(np.abs(near - exact[:, None]), axis=1, kind="stable"), axis=1)


def main() -> None:
    results = []
    for condition in (10, 30, 100):
        designs = [design(target(condition, 1000 + seed)) for seed in range(TARGETS)]
        for grid in ("4-bit bank", "E24", "E96"):
            start = time.perf_counter()
            found = [
                round_to_series(*pair, grid) if grid[0] == "E" else round_to_grid(*pair, bank_grid(pair[1]), grid)
                for pair in designs
            ]
            seconds = (time.perf_counter() - start) / TARGETS
            nearest = [np.inf if r.cost.error_nearest is None else r.cost.error_nearest for r in found]
            gain = float(np.median([n / r.cost.error for n, r in zip(nearest, found, strict=True)]))
            row = {
                "condition": condition,
                "grid": grid,
                "median_gain": gain if np.isfinite(gain) else None,
                "nearest_not_definite": int(np.isinf(nearest).sum()),
                "median_error_nearest": float(np.median(nearest)) if np.isfinite(np.median(nearest)) else None,
                "median_error": float(np.median([r.cost.error for r in found])),
                "seconds": round(seconds, 2),
            }
            results.append(row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
