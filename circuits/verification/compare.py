"""Comparison of the inverses of copies with the inverse by numpy, and of their readings with the law of each copy.

Exact: the covariance of a copy equals the Lyapunov solution of the drawn values. Sampled: all entries of the estimate
agree jointly (χ²) with the law of the copy, which also gives the expected error and its limit for endless samples.
Readings of physical boards, whose values are not known, are compared with the law of the nominal board.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from circuits.board import REFERENCE_CELSIUS, Conditions, Design
from circuits.files import ArrayField, sha256
from circuits.nodal import assemble
from circuits.simulation.runs import Run
from circuits.statistics.inversion import Inversion, inversion_rule
from circuits.statistics.recorded import Recorded, RecordSummary
from circuits.verification.budget import (
    Budget,
    Deviations,
    deviations,
    exact_budget,
    mean_deviations,
    recorded_budget,
    sampled_budget,
)
from circuits.verification.charge_readout import ChargeReadout, judge_charges
from circuits.verification.population import COPIES, Population, draw_population
from circuits.verification.results import (
    ExactResult,
    RecordEstimate,
    SampledResult,
    SolveResult,
    estimates,
    exact_result,
    exact_results,
    mean_estimate,
    recorded_estimate,
    sampled_result,
    solve_result,
    solve_results,
)
from circuits.verification.temperature import Sweep, sweep

SCHEMA = "tngd.verification/2"
EXACT_AGREEMENT = 1e-6  # relative, of the exact covariance with the Lyapunov solution
SETTLING_AGREEMENT = 1e-4  # relative, of a transient analysis with a hundred steps a time constant
CHARGE_AGREEMENT = 1e-4  # relative, of the readings of a packet with their law
FALSE_ALARM = 1e-5  # least p of a test that counts as agreement


@dataclass(frozen=True, eq=False)
class CopyResult:
    """Results of one copy, of the nominal board, or of the mean of the copies, by every route that was run.

    `agrees`, for single copies: the exact covariance equals the Lyapunov solution of the drawn values to 1e-6, the
    solutions of a resistive board equal G⁻¹ to 1e-6 (settling, and readings of charges, to 1e-4), and the p of the χ²
    of the sampled covariance, of the kurtoses and of detailed balance are not below FALSE_ALARM. `budget` holds the
    error budget of the solution, or those of the exact and of the sampled inverse.
    """

    name: str
    exact: ExactResult | None = None
    solve: SolveResult | None = None
    sampled: SampledResult | None = None
    agrees: bool | None = None
    budget: tuple[Budget, ...] = ()


@dataclass(frozen=True, eq=False)
class Target:
    """The target matrix, its inverse by numpy, and condition numbers of the target and of the programmed matrix."""

    matrix: ArrayField
    inverse: ArrayField
    condition: float
    programmed_condition: float
    sha256: str


@dataclass(frozen=True, eq=False)
class Verification:
    """Results of a verification at `ambient` [°C]; `recipe` is the way sampled runs were made.

    `recorded` summarizes readings of physical boards; `population`: freshly drawn copies; `temperature`: the copies
    against ambient temperature; `charge`: charge readout; `left_out` names analyses for which the circuit is too large.
    """

    name: str
    step: str
    ambient: float
    target: Target
    nominal: CopyResult
    copies: tuple[CopyResult, ...]
    mean_of_copies: CopyResult
    population: Population
    temperature: Sweep | None = None
    charge: ChargeReadout | None = None
    recipe: str | None = None
    left_out: str | None = None
    recorded: tuple[RecordSummary, ...] | None = None


def verify(
    design: Design,
    runs: dict[str, Run],
    *,
    ambient: float = REFERENCE_CELSIUS,
    copies: int = COPIES,
    bound: float | None = None,
) -> Verification:
    """Compare the runs of a design, by copy name, with its target and with the law of each copy."""
    rule = inversion_rule(design)
    own = [runs[copy.name] for copy in design.copies]
    made = [assemble(design.board, design.program, copy, Conditions(ambient)) for copy in design.copies]
    found = deviations(design, rule, design.copies, ambient)
    found = found and [*found, mean_deviations(found)]
    none = [None] * (len(own) + 1)
    exact = exact_results(rule, made, own) if own[0].exact else none
    solved = solve_results(design, rule, made, own) if own[0].solve else none
    taken = estimates(design, made, own) if own[0].moments else none
    sampled = [each and sampled_result(rule, each) for each in taken[:-1]]
    sampled.append(taken[-1] and sampled_result(rule, taken[-1], sum(each.moments.samples for each in taken[:-1])))
    names = [*(copy.name for copy in design.copies), "mean of copies"]
    rows = [
        CopyResult(*row[:4], budget=_budgets(rule, *row, deviation, estimate))
        for *row, deviation, estimate in zip(names, exact, solved, sampled, found or none, taken, strict=True)
    ]
    nominal = runs["nominal"]
    solution = nominal.solve and solve_result(design, rule, nominal.solve.columns, nominal.solve.bias)
    charged = {name: run.charge for name, run in runs.items() if run.charge}
    charge = judge_charges(design, charged, ambient) if charged else None
    charge_agrees = charge is None or max(row.difference_to_law for row in charge.copies) <= CHARGE_AGREEMENT
    return Verification(
        design.program.name,
        design.program.step,
        ambient,
        _target(design, rule),
        CopyResult("nominal", nominal.exact and exact_result(rule, nominal.exact.covariance), solution),
        tuple(replace(row, agrees=_agrees(row) and charge_agrees) for row in rows[:-1]),
        rows[-1],
        draw_population(design, rule, copies, bound, ambient),
        sweep(design, rule),
        charge,
        own[0].recipe.name if own[0].moments else None,
        None if found else "error budget and temperatures: the circuit has too many states",
    )


def verify_recorded(
    design: Design, recorded: Sequence[Recorded], *, copies: int = COPIES, bound: float | None = None
) -> Verification:
    """Compare readings of physical boards with the target and with the law of the nominal board."""
    rule = inversion_rule(design)
    ambient = recorded[0].summary.ambient
    taken = [recorded_estimate(design, each) for each in recorded]
    rows = []
    for each, estimate in zip(recorded, taken, strict=True):
        name, result = each.summary.name, sampled_result(rule, estimate)
        budget = recorded_budget(
            design, name, rule, result.inverse, estimate.law, correction=estimate.correction, ambient=ambient
        )
        rows.append(CopyResult(name, sampled=result, budget=(budget,) if budget else ()))
    mean = mean_estimate(taken)
    return Verification(
        design.program.name,
        design.program.step,
        ambient,
        _target(design, rule),
        CopyResult("nominal"),
        tuple(rows),
        CopyResult("mean of copies", sampled=sampled_result(rule, mean, sum(each.moments.samples for each in taken))),
        draw_population(design, rule, copies, bound, ambient),
        recorded=tuple(each.summary for each in recorded),
    )


def describe_verification(verification: Verification) -> dict[str, Any]:
    """Content of verification.json without the provenance; analyses that were not run are absent."""
    content = TypeAdapter(Verification).dump_python(verification, mode="json", exclude_none=True)
    for record, summary in zip(content.get("recorded", ()), verification.recorded or (), strict=True):
        record["remarks"] = list(summary.remarks)
    return {"schema": SCHEMA} | content


def _target(design: Design, rule: Inversion) -> Target:
    P, M = design.program.target, design.program.matrix
    return Target(P, rule.inverse, float(np.linalg.cond(P)), float(np.linalg.cond(M)), sha256(P))


def _agrees(copy: CopyResult) -> bool:
    """Whether a copy agrees with its law by every route that was run, charge readout aside."""
    found = copy.exact
    exact = found is None or max(found.difference_to_lyapunov, found.difference_to_noise or 0) <= EXACT_AGREEMENT
    sampled = copy.sampled is None or min(_p_values(copy.sampled)) >= FALSE_ALARM
    solve = copy.solve is None or (
        copy.solve.difference_to_law <= EXACT_AGREEMENT and copy.solve.settling_difference <= SETTLING_AGREEMENT
    )
    return exact and solve and sampled


def _p_values(sampled: SampledResult) -> list[float]:
    """p of every test for which the record is long enough: joint χ², kurtoses, detailed balance; 1 at least."""
    found = sampled.equilibrium
    every = (sampled.p_value, *([found.kurtosis_p, found.asymmetry_p] if found else []))
    return [1.0, *(p for p in every if p is not None)]


def _budgets(
    rule: Inversion,
    name: str,
    exact: ExactResult | None,
    solve: SolveResult | None,
    sampled: SampledResult | None,
    found: Deviations | None,
    estimate: RecordEstimate | None,
) -> tuple[Budget, ...]:
    """Budgets of every route that was run; none without deviations."""
    if found is None:
        return ()
    if solve:
        return (exact_budget(name, "solve", rule, found, solve.inverse),)
    budgets = [exact_budget(name, "exact", rule, found, exact.inverse)] if exact else []
    if estimate:
        inverse = rule.read(estimate.moments.mean + estimate.correction)
        budgets.append(sampled_budget(name, rule, found, inverse, estimate.law, estimate.correction))
    return tuple(budgets)
