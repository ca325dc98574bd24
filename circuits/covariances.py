"""What a sampled or recorded covariance says of the parts of a copy: its entries, weighted by the estimate's law.

    data = triangle(S),   model(θ) = r_i r_j Σ_ij(θ) + bias,   errors of the covariance that the law of S has.

Σ is the covariance under white noise; `bias` is what a hold, or taking S about its own mean, does to the nominal board:
some per cent of Σ, so that its change with the parts is far below what sampling leaves. r are relative gains of the
readout, parameters of their own where the data are voltages that somebody recorded. Data and model are whitened, so
that their errors are independent and of size 1.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular

from circuits.board import Program
from circuits.calibration.discrepancy import Draws, delayed_leavings
from circuits.model.pairs import Half, PairModel, half_circuit, half_of
from circuits.model.response import covariance_and_slopes
from circuits.ou import reading_covariance
from circuits.statistics.estimators import EstimateLaw


@dataclass(frozen=True, eq=False)
class CovarianceEvidence:
    """One record: its circuit, the lower factor of the law (q, q) [V²], and the model's leavings (draws, q).

    `bias` (n, n) [V²] is added to the model's covariance; `readout` are the n parameters that are gains of the readout.
    """

    half: Half
    factor: np.ndarray
    bias: np.ndarray
    leavings: np.ndarray
    readout: slice | None = None

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation (q,) of the independent errors of the data."""
        return np.ones(len(self.factor))

    def at(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Data (q,) that the model gives at θ, and their derivatives (q, parameters)."""
        S, J = covariance_and_slopes(self.half, theta)
        if self.readout is not None:
            r = theta[self.readout]
            across = np.outer(r, r)
            own = np.eye(len(r)) / r
            J = J * across[..., None]
            J[..., self.readout] += (S * across)[..., None] * (own[:, None] + own)
            S = S * across
        i, j = np.triu_indices(len(S))
        return self.whitened((S + self.bias)[i, j]), self.whitened(J[i, j])

    def data(self, covariance: np.ndarray) -> np.ndarray:
        """The data (q,) of a measured covariance (n, n) [V²]."""
        return self.whitened(covariance[np.triu_indices(len(covariance))])

    def whitened(self, entries: np.ndarray) -> np.ndarray:
        """Entries (q, …) of the triangle, in independent units of their errors."""
        return solve_triangular(self.factor, entries, lower=True)


def covariance_evidence(
    model: PairModel,
    program: Program,
    law: EstimateLaw,
    draws: Draws,
    readout: slice | None = None,
) -> CovarianceEvidence:
    """What to expect of a record of a program, with the law that the nominal board gives it."""
    half = half_of(model, program)
    white = reading_covariance(half_circuit(half, np.ones(len(model.names))))
    factor = np.linalg.cholesky(law.covariance)
    blank = CovarianceEvidence(half, factor, law.mean - white, np.zeros((0, len(factor))), readout)
    left = delayed_leavings(half, draws)[0][(slice(None), *np.triu_indices(len(white)))]
    return replace(blank, leavings=blank.whitened(left.T).T)


def with_readout(model: PairModel, tolerance: float) -> tuple[PairModel, slice]:
    """The model with a gain of the readout of every cell, uniform within ±tolerance before any data; and where."""
    n = len(model.board.cells)
    names = tuple(f"readout_{i}" for i in range(1, n + 1))
    known = len(model.names)
    wider = replace(
        model,
        names=(*model.names, *names),
        spreads=np.concatenate([model.spreads, np.full(n, tolerance / np.sqrt(3))]),
        exponents=np.pad(model.exponents, ((0, 0), (0, n))),
        powers=np.pad(model.powers, ((0, 0), (0, n))),
    )
    return wider, slice(known, known + n)
