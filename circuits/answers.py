"""What the routes without sampling say of an inverse: the covariance of AC runs, and the mean of a resistive board."""

from dataclasses import dataclass

import numpy as np

from circuits.board import Design
from circuits.files import Array
from circuits.nodal import Circuit
from circuits.ou import predicted_columns, predicted_settling, reading_covariance
from circuits.simulation.noise import NoiseRun
from circuits.simulation.runs import Run
from circuits.statistics.inversion import Inversion, solved_inverse


@dataclass(frozen=True, eq=False)
class ExactResult:
    """An inverse (n, n) read without sampling; the last four are of single copies only.

    `difference_to_noise` is the largest relative one of a few variances from those of ngspice's own noise analysis.
    """

    relative_error: float
    scale_free_error: float
    inverse: Array
    predicted_error: float | None = None
    difference_to_lyapunov: float | None = None
    difference_to_noise: float | None = None
    integration_error: float | None = None


@dataclass(frozen=True, eq=False)
class SolveResult:
    """An inverse (n, n) read column by column from the mean of a resistive board; the last two are of boards only.

    `difference_to_law` is that of the columns from H G⁻¹ of the copy's own values, `settling_difference` the largest
    of the settling from (I - e^{-At}) G⁻¹, both relative.
    """

    relative_error: float
    inverse: Array
    difference_to_law: float | None = None
    settling_difference: float | None = None


def exact_results(rule: Inversion, circuits: list[Circuit], runs: list[Run]) -> list[ExactResult]:
    """One result a copy, and last that of their mean."""
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
    """One result a copy of a resistive board, and last that of their mean."""
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
    """The inverse that columns (n, n) [V] of readings for a bias [A] say."""
    B = solved_inverse(design.board, design.program, columns, bias)
    return SolveResult(float(rule.error(B)), B, **of_copy)


def exact_result(rule: Inversion, covariance: np.ndarray, **of_copy: float) -> ExactResult:
    """The inverse that a covariance (n, n) [V²] says."""
    B = rule.read(covariance)
    return ExactResult(float(rule.error(B)), rule.scale_free_error(B), B, **of_copy)


def _off_noise(noise: NoiseRun, covariance: np.ndarray) -> float:
    return float(np.abs(noise.variances / np.diag(covariance)[list(noise.outputs)] - 1).max())
