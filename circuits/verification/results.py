"""Results of this stage, route by route: inverses from sampled readings, from AC runs, and from means.

Sampled readings: errors against samples, the law of the estimate, an interval for the error, a joint χ². The law comes
from the drawn values of the copy, never from a fit: lagged covariances under the noise of the recipe. Without sampling:
the inverse from the covariance of AC runs, and on a resistive board from the mean of the readings.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import Conditions, Design
from circuits.files import ArrayField
from circuits.nodal import Circuit, nominal_circuit
from circuits.ou import (
    lagged_covariances,
    nominal_hold_correction,
    predicted_columns,
    predicted_settling,
    reading_covariance,
)
from circuits.simulation.noise import NoiseRun
from circuits.simulation.runs import Run
from circuits.simulation.transient import chunks_lags, chunks_law
from circuits.statistics.equilibrium import Equilibrium, judge_equilibrium, pairs_of_records
from circuits.statistics.estimators import EstimateLaw, effective_samples, joint_chi_square
from circuits.statistics.inversion import Inversion, solved_inverse
from circuits.statistics.moments import Moments, chunk_sizes, running
from circuits.statistics.recorded import Recorded, recorded_law
from circuits.verification.budget import total_interval

CURVE_POINTS = 40


@dataclass(frozen=True)
class Curve:
    """Relative error of an inverse, and root mean square error of its law, against samples per copy."""

    samples: tuple[int, ...]
    relative_error: tuple[float, ...]
    expected_error: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class SampledResult:
    """An inverse (n, n) read from `samples` readings; the last six fields exist for single copies only.

    `expected_error` is the root mean square error of the law, `expected_floor` its limit for endless samples,
    `statistical_error` the part due to sampling; in 95 of 100 records the error is within `interval`.
    `effective_samples` counts independent samples in the slowest direction; if there are too few, χ² is None.
    `residuals` (n, n) are the entries of the covariance less the mean of their law, in standard deviations of the law;
    `equilibrium` holds the tests of kurtosis and detailed balance.
    """

    relative_error: float
    scale_free_error: float
    expected_error: float
    expected_floor: float
    statistical_error: float
    interval: tuple[float, float]
    samples: int
    inverse: ArrayField
    curve: Curve
    effective_samples: float | None = None
    chi_square: float | None = None
    degrees_of_freedom: int | None = None
    p_value: float | None = None
    residuals: ArrayField | None = None
    equilibrium: Equilibrium | None = None


@dataclass(frozen=True, eq=False)
class RecordEstimate:
    """Second moments of a record, the law of their mean, and the `correction` [V²] (n, n) added before inversion."""

    moments: Moments
    law: EstimateLaw
    correction: np.ndarray
    equilibrium: Equilibrium | None = None


def estimates(design: Design, circuits: list[Circuit], runs: list[Run]) -> list[RecordEstimate]:
    """Estimates of all copies, and last the estimate of their mean, by the law of independent copies."""
    recipe, period = runs[0].recipe, design.program.period
    if recipe.stepped:
        correction = np.zeros((len(design.board.cells),) * 2)
    else:
        correction = nominal_hold_correction(nominal_circuit(design.board, design.program), period)
    laws = [
        chunks_law(recipe, circuit, period, run.moments.samples) for circuit, run in zip(circuits, runs, strict=True)
    ]
    found = [
        RecordEstimate(run.moments, law, correction, _equilibrium(circuit, run, period, law))
        for circuit, run, law in zip(circuits, runs, laws, strict=True)
    ]
    return [*found, mean_estimate(found)]


def recorded_estimate(design: Design, recorded: Recorded) -> RecordEstimate:
    """Estimate of a physical board, by the law of the nominal board; its correction is V, lost to the sample mean."""
    moments, law, balance = Moments(recorded.block_readings, recorded.moments), recorded_law(design, recorded), None
    if recorded.sums:
        circuit = nominal_circuit(design.board, design.program, Conditions(recorded.summary.ambient))
        rho = lagged_covariances(circuit, recorded.summary.period_s, held=False)
        pairs = (recorded.pairs, recorded.sums_pairs)
        balance = judge_equilibrium(recorded.sums, recorded.covariance, rho, pairs, effective_samples(law))
    return RecordEstimate(moments, law, recorded.mean_covariance, balance)


def mean_estimate(found: list[RecordEstimate]) -> RecordEstimate:
    """Mean of the estimates of independent copies; one block if their records differ in length."""
    lengths = {tuple(each.moments.readings) for each in found}
    moments = Moments(
        found[0].moments.readings if len(lengths) == 1 else np.array([min(each.moments.samples for each in found)]),
        np.mean([each.moments.means if len(lengths) == 1 else each.moments.mean[None] for each in found], axis=0),
    )
    law = EstimateLaw(
        np.mean([each.law.mean for each in found], axis=0),
        np.sum([each.law.covariance for each in found], axis=0) / len(found) ** 2,
        found[0].law.samples,
    )
    return RecordEstimate(moments, law, np.mean([each.correction for each in found], axis=0))


def sampled_result(rule: Inversion, estimate: RecordEstimate, of_mean: int | None = None) -> SampledResult:
    """Result of an estimate: of a single copy, with a joint χ², or of a mean that took `of_mean` readings in all."""
    moments, law, correction = estimate.moments, estimate.law, estimate.correction
    samples, partial = running(moments, CURVE_POINTS)
    B = rule.read(partial + correction)
    expected = rule.read(law.mean + correction)
    floor, spread = float(rule.error(expected)), rule.spread(law)
    return SampledResult(
        relative_error=float(rule.error(B[-1])),
        scale_free_error=rule.scale_free_error(B[-1]),
        expected_error=float(np.hypot(floor, spread)),
        expected_floor=floor,
        statistical_error=spread,
        interval=total_interval(rule, expected, law),
        samples=of_mean or moments.samples,
        inverse=B[-1],
        curve=Curve(
            tuple(samples.tolist()),
            tuple(rule.error(B).tolist()),
            tuple(np.hypot(floor, spread * np.sqrt(moments.samples / samples)).tolist()),
        ),
        **({} if of_mean else _of_copy(moments.mean, law) | {"equilibrium": estimate.equilibrium}),
    )


def _equilibrium(circuit: Circuit, run: Run, period: float, law: EstimateLaw) -> Equilibrium | None:
    if run.sums is None:
        return None
    rho = chunks_lags(run.recipe, circuit, period)
    pairs = pairs_of_records(len(rho), run.sums.lag, np.array(chunk_sizes(run.moments.samples)))
    return judge_equilibrium(run.sums, run.moments.mean, rho, pairs, effective_samples(law))


def _of_copy(covariance: np.ndarray, law: EstimateLaw) -> dict[str, object]:
    """Effective samples, χ² (if the record is long enough) and residuals of a single copy."""
    chi_square, degrees, p = joint_chi_square(covariance, law)
    i, j = np.triu_indices(len(covariance))
    residuals = np.empty_like(covariance)
    residuals[i, j] = residuals[j, i] = (covariance - law.mean)[i, j] / np.sqrt(np.diag(law.covariance))
    found = {"effective_samples": effective_samples(law), "residuals": residuals}
    if p is not None:
        found |= {"chi_square": chi_square, "degrees_of_freedom": degrees, "p_value": p}
    return found


@dataclass(frozen=True, eq=False)
class ExactResult:
    """An inverse (n, n) read without sampling; the last four fields exist for single copies only.

    `difference_to_noise` is the largest relative difference of a few variances to those of ngspice's noise analysis.
    """

    relative_error: float
    scale_free_error: float
    inverse: ArrayField
    predicted_error: float | None = None
    difference_to_lyapunov: float | None = None
    difference_to_noise: float | None = None
    integration_error: float | None = None


@dataclass(frozen=True, eq=False)
class SolveResult:
    """An inverse (n, n) read column by column from the mean of a resistive board.

    Only for single copies: `difference_to_law` is the relative difference of the columns to H G⁻¹ of the copy,
    `settling_difference` the largest relative difference of the settling to (I - e^{-At}) G⁻¹ of the copy.
    """

    relative_error: float
    inverse: ArrayField
    difference_to_law: float | None = None
    settling_difference: float | None = None


def exact_results(rule: Inversion, circuits: list[Circuit], runs: list[Run]) -> list[ExactResult]:
    """Results of all copies by AC runs, and last the result of their mean covariance."""
    results = []
    for circuit, run in zip(circuits, runs, strict=True):
        found, predicted = run.exact.covariance, reading_covariance(circuit)
        results.append(
            exact_result(
                rule,
                found,
                predicted_error=float(rule.error(rule.read(predicted))),
                difference_to_lyapunov=float(np.linalg.norm(found - predicted) / np.linalg.norm(predicted)),
                difference_to_noise=run.noise and _off_noise(run.noise, found),
                integration_error=run.exact.integration_error,
            )
        )
    return [*results, exact_result(rule, np.mean([run.exact.covariance for run in runs], axis=0))]


def solve_results(design: Design, rule: Inversion, circuits: list[Circuit], runs: list[Run]) -> list[SolveResult]:
    """Results of all copies of a resistive board by their means, and last the result of the mean over copies."""
    results = []
    for circuit, run in zip(circuits, runs, strict=True):
        found = run.solve
        law = predicted_columns(design.board, circuit, found.bias)
        settling = predicted_settling(design.board, circuit, found.bias, found.times)
        results.append(
            solve_result(
                design,
                rule,
                found.columns,
                found.bias,
                difference_to_law=float(np.linalg.norm(found.columns - law) / np.linalg.norm(law)),
                settling_difference=float(np.abs(found.settling - settling).max() / np.abs(settling).max()),
            )
        )
    mean = np.mean([run.solve.columns for run in runs], axis=0)
    return [*results, solve_result(design, rule, mean, runs[0].solve.bias)]


def solve_result(design: Design, rule: Inversion, columns: np.ndarray, bias: float, **of_copy: float) -> SolveResult:
    """Result of columns (n, n) [V] of readings for a bias [A] into each cell."""
    B = solved_inverse(design.board, design.program, columns, bias)
    return SolveResult(float(rule.error(B)), B, **of_copy)


def exact_result(rule: Inversion, covariance: np.ndarray, **of_copy: float) -> ExactResult:
    """Result of a covariance (n, n) [V²] found without sampling."""
    B = rule.read(covariance)
    return ExactResult(float(rule.error(B)), rule.scale_free_error(B), B, **of_copy)


def _off_noise(noise: NoiseRun, covariance: np.ndarray) -> float:
    return float(np.abs(noise.variances / np.diag(covariance)[list(noise.outputs)] - 1).max())
