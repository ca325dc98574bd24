"""The law of averaging: the mean of three copies has an error smaller by sqrt(3), as a law over many triples.

Independent errors of first order average; common ones and those of second order do not. One triple proves nothing
(the mean beats a single copy in about three of four), so fresh triples are drawn and solved by the Lyapunov route.
"""

from dataclasses import dataclass

import numpy as np

from circuits.assembly import assemble_gains, is_stable
from circuits.board import ideal_conditions
from circuits.copies import draw_gains
from circuits.design import Design
from circuits.inversion import Inversion
from circuits.ou import reading_covariances

TRIPLES = 200
TRIPLE_SEED = 10_000_019  # added to the design's seed: never the copies themselves


@dataclass(frozen=True)
class Averaging:
    """Errors of single copies and of means of three, sorted, and what averaging gained.

    `gain` is rms(single)/rms(mean of three), with its standard error by the jackknife over triples; `gain_expected` is
    sqrt(3). Triples with a copy that is not positive definite are counted in `left_out`; with fewer than two triples
    left there are no errors and no gain.
    """

    triples: int
    left_out: int
    gain_expected: float
    single_median: float | None = None
    mean_of_three_median: float | None = None
    gain: float | None = None
    gain_standard_error: float | None = None
    single_errors: tuple[float, ...] = ()
    mean_of_three_errors: tuple[float, ...] = ()


def averaging_law(design: Design, rule: Inversion, triples: int = TRIPLES) -> Averaging:
    """Draw `triples` fresh triples of copies and compare their errors with those of their means: tolerance alone."""
    gains = draw_gains(design.board, design.seed + TRIPLE_SEED, 3 * triples)
    circuits = assemble_gains(design.board, design.program, gains, ideal_conditions(design.board))
    definite = is_stable(circuits).reshape(triples, 3).all(axis=1)
    count, left_out = int(definite.sum()), int((~definite).sum())
    if count < 2:
        return Averaging(count, left_out, float(np.sqrt(3)))
    kept = circuits[np.repeat(definite, 3)]
    inverses = rule.read(reading_covariances(kept)).reshape(-1, 3, *rule.inverse.shape)
    single, mean = rule.error(inverses), rule.error(inverses.mean(axis=1))
    gain, standard_error = _gain((single**2).mean(axis=1), mean**2)
    return Averaging(
        count,
        left_out,
        float(np.sqrt(3)),
        float(np.median(single)),
        float(np.median(mean)),
        gain,
        standard_error,
        tuple(np.sort(single.ravel()).tolist()),
        tuple(np.sort(mean).tolist()),
    )


def _gain(single: np.ndarray, mean: np.ndarray) -> tuple[float, float]:
    """Square root of the ratio of two sums over triples, and its standard error by leaving each triple out."""
    gain = np.sqrt(single.sum() / mean.sum())
    without = np.sqrt((single.sum() - single) / (mean.sum() - mean))
    count = len(single)
    return float(gain), float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))
