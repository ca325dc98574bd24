"""How well the copies of a board invert its matrix: against numpy, and against the law of their own drawn values.

Exact: the covariance of a copy equals the Lyapunov solution of its own values. Sampled: all entries of the estimate
agree jointly (χ²) with the held-noise law of its copy, which also says what error is to be expected and what floor
is left for endless samples.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from circuits.assembly import Circuit, assemble
from circuits.averaging import Averaging, averaging_law
from circuits.board import Conditions
from circuits.design import Design
from circuits.inversion import Inversion, hold_correction, inversion
from circuits.measurement import Run
from circuits.ou import EstimateLaw, effective_samples, estimate_law, joint_chi_square, reading_covariance
from circuits.sampled import BLOCK, CHUNK
from circuits.solve import predicted_columns, predicted_settling
from circuits.store import Array, sha256

SCHEMA = "tngd.verification/1"
CURVE_POINTS = 40
EXACT_AGREEMENT = 1e-6  # relative, of the exact covariance with the Lyapunov solution
SETTLING_AGREEMENT = 1e-4  # of a transient analysis with a hundred steps a time constant
FALSE_ALARM = 1e-5


@dataclass(frozen=True, eq=False)
class ExactResult:
    """An inverse (n, n) read without sampling; the last three are of single copies only."""

    relative_error: float
    scale_free_error: float
    inverse: Array
    predicted_error: float | None = None
    difference_to_lyapunov: float | None = None
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


@dataclass(frozen=True)
class Curve:
    """Error and expected error against samples per copy."""

    samples: tuple[int, ...]
    relative_error: tuple[float, ...]
    expected_error: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class SampledResult:
    """An inverse (n, n) read from `samples` readings; the last four are of single copies only.

    `expected_error` is the root mean square error of the law, `expected_floor` its limit for endless samples.
    `effective_samples` are the independent ones in the slowest direction; with too few there is no χ².
    """

    relative_error: float
    scale_free_error: float
    expected_error: float
    expected_floor: float
    samples: int
    inverse: Array
    curve: Curve
    effective_samples: float | None = None
    chi_square: float | None = None
    degrees_of_freedom: int | None = None
    p_value: float | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What one copy (or the nominal board, or the mean of the copies) answered by each route that was run.

    `agrees`, of single copies: the exact covariance equals the Lyapunov solution of the copy's own values to 1e-6, so
    do the solutions of a resistive board G⁻¹ (its settling to 1e-4), and the χ² of the sampled covariance is no rarer
    than FALSE_ALARM.
    """

    name: str
    exact: ExactResult | None = None
    solve: SolveResult | None = None
    sampled: SampledResult | None = None
    agrees: bool | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """The matrix, its inverse by numpy, and its condition number as it is and as programmed."""

    matrix: Array
    inverse: Array
    condition: float
    programmed_condition: float
    sha256: str


@dataclass(frozen=True, eq=False)
class Verification:
    """Everything a verification found."""

    name: str
    step: str
    target: Target
    nominal: Reading
    copies: tuple[Reading, ...]
    mean_of_copies: Reading
    averaging: Averaging


def verify(design: Design, runs: dict[str, Run]) -> Verification:
    """Compare the runs of a design, by copy name, with its target and with the law of each copy."""
    rule = inversion(design)
    own = [runs[copy.name] for copy in design.copies]
    circuits = [assemble(design.board, design.program, copy, Conditions()) for copy in design.copies]
    exact = _exact_copies(rule, circuits, own) if own[0].exact else [None] * (len(own) + 1)
    sampled = _sampled_copies(rule, circuits, own, design) if own[0].moments is not None else [None] * (len(own) + 1)
    names = [*(copy.name for copy in design.copies), "mean of copies"]
    solved = _solved_copies(design, circuits, own) if own[0].solve else [None] * (len(own) + 1)
    *copies, mean = (Reading(*found) for found in zip(names, exact, solved, sampled, strict=True))
    nominal = runs["nominal"].exact
    ideal = _solved(design, rule, runs["nominal"].solve.columns, runs["nominal"].solve.bias) if own[0].solve else None
    target = design.program.target
    return Verification(
        design.program.name,
        design.program.step,
        Target(
            target,
            rule.inverse,
            float(np.linalg.cond(target)),
            float(np.linalg.cond(design.program.matrix)),
            sha256(target),
        ),
        Reading("nominal", _exact(rule, nominal.covariance) if nominal else None, ideal),
        tuple(replace(copy, agrees=_agrees(copy)) for copy in copies),
        mean,
        averaging_law(design, rule),
    )


def describe_verification(verification: Verification) -> dict[str, Any]:
    """The content of verification.json, but for its provenance; what was not run is left out."""
    content = TypeAdapter(Verification).dump_python(verification, mode="json", exclude_none=True)
    return {"schema": SCHEMA} | content


def _agrees(copy: Reading) -> bool:
    exact = copy.exact is None or copy.exact.difference_to_lyapunov <= EXACT_AGREEMENT
    sampled = copy.sampled is None or copy.sampled.p_value is None or copy.sampled.p_value >= FALSE_ALARM
    solve = copy.solve is None or (
        copy.solve.difference_to_law <= EXACT_AGREEMENT and copy.solve.settling_difference <= SETTLING_AGREEMENT
    )
    return exact and solve and sampled


def _exact_copies(rule: Inversion, circuits: list[Circuit], runs: list[Run]) -> list[ExactResult]:
    """One result a copy, and last that of their mean."""
    results = []
    for circuit, run in zip(circuits, runs, strict=True):
        found, predicted = run.exact.covariance, reading_covariance(circuit)
        results.append(
            _exact(
                rule,
                found,
                predicted_error=float(rule.error(rule.read(predicted))),
                difference_to_lyapunov=float(np.linalg.norm(found - predicted) / np.linalg.norm(predicted)),
                integration_error=run.exact.integration_error,
            )
        )
    return [*results, _exact(rule, np.mean([run.exact.covariance for run in runs], axis=0))]


def _solved_copies(design: Design, circuits: list[Circuit], runs: list[Run]) -> list[SolveResult]:
    """One result a copy of a resistive board, and last that of their mean."""
    rule, results = inversion(design), []
    for circuit, run in zip(circuits, runs, strict=True):
        found = run.solve
        law = predicted_columns(design.board, circuit, found.bias)
        settling = predicted_settling(design.board, circuit, found.bias, found.times)
        results.append(
            _solved(
                design,
                rule,
                found.columns,
                found.bias,
                difference_to_law=float(np.linalg.norm(found.columns - law) / np.linalg.norm(law)),
                settling_difference=float(np.abs(found.settling - settling).max() / np.abs(settling).max()),
            )
        )
    mean = np.mean([run.solve.columns for run in runs], axis=0)
    return [*results, _solved(design, rule, mean, runs[0].solve.bias)]


def _solved(design: Design, rule: Inversion, columns: np.ndarray, bias: float, **of_copy: float) -> SolveResult:
    """P⁻¹ = Xᵀ M⁻¹ X with M⁻¹ = g columns / bias."""
    X = design.program.mapping
    B = X.T @ (design.board.unit / bias * columns) @ X
    return SolveResult(float(rule.error(B)), B, **of_copy)


def _exact(rule: Inversion, covariance: np.ndarray, **of_copy: float) -> ExactResult:
    B = rule.read(covariance)
    return ExactResult(float(rule.error(B)), rule.scale_free_error(B), B, **of_copy)


def _sampled_copies(rule: Inversion, circuits: list[Circuit], runs: list[Run], design: Design) -> list[SampledResult]:
    """One result a copy, and last that of their mean, whose law is that of independent copies."""
    correction = hold_correction(design)
    samples = len(runs[0].moments) * BLOCK
    laws = [estimate_law(c, design.program.period, samples, min(samples, CHUNK)) for c in circuits]
    results = []
    for law, run in zip(laws, runs, strict=True):
        chi_square, degrees, p = joint_chi_square(run.moments.mean(axis=0), law)
        of_copy = {"effective_samples": effective_samples(law)}
        if p is not None:
            of_copy |= {"chi_square": chi_square, "degrees_of_freedom": degrees, "p_value": p}
        results.append(_sampled(rule, run.moments, correction, law, samples, **of_copy))
    moments = np.mean([run.moments for run in runs], axis=0)
    law = EstimateLaw(
        np.mean([law.mean for law in laws], axis=0),
        np.sum([law.covariance for law in laws], axis=0) / len(laws) ** 2,
        samples,
    )
    return [*results, _sampled(rule, moments, correction, law, samples * len(runs))]


def _sampled(
    rule: Inversion, moments: np.ndarray, correction: np.ndarray, law: EstimateLaw, samples: int, **of_copy: float
) -> SampledResult:
    """Result of block moments (blocks, n, n) whose mean has the given law."""
    counts = np.unique(np.geomspace(1, len(moments), CURVE_POINTS).round().astype(int))
    partial = np.cumsum(moments, axis=0)[counts - 1] / counts[:, None, None]
    B = rule.read(partial + correction)
    floor = float(rule.error(rule.read(law.mean + correction)))
    spread = rule.spread(law)
    return SampledResult(
        relative_error=float(rule.error(B[-1])),
        scale_free_error=rule.scale_free_error(B[-1]),
        expected_error=float(np.hypot(floor, spread)),
        expected_floor=floor,
        samples=samples,
        inverse=B[-1],
        curve=Curve(
            tuple((counts * BLOCK).tolist()),
            tuple(rule.error(B).tolist()),
            tuple(np.hypot(floor, spread * np.sqrt(len(moments) / counts)).tolist()),
        ),
        **of_copy,
    )
