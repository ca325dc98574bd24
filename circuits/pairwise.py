"""Fit of the parts of each copy, pair by pair, to what ngspice returned for its own program.

Of boards that have more parts than elements: parasitics, and resistive ones, whose storage and sources count. From
exact runs the data are spectra, on a resistive board the columns of the solution, which sources do not enter, and on a
capacitive one the covariance, which shows what is beyond the spectra; from sampled runs the covariance alone, weighted
by the law of the estimate. The fit is that of circuits.calibration.fit, under one program instead of many.
"""

from typing import Any

import numpy as np

from circuits.board import Design, Program
from circuits.calibration.discrepancy import DRAWS, FEW, draw_pairs
from circuits.calibration.experiments import UNKNOWN, correlations, evidence_of
from circuits.calibration.fit import Fit, fit_all, observed
from circuits.calibration.held_out import predicted, question, standard_error
from circuits.covariances import covariance_evidence
from circuits.errors import InputError
from circuits.evidence import FLOOR
from circuits.model.pairs import PairModel, half_circuit, half_of, pair_model
from circuits.nodal import Circuit
from circuits.ou import reading_covariance
from circuits.parallel import Progress
from circuits.simulation.runs import Run
from circuits.simulation.transient import chunks_law
from circuits.statistics.estimators import EstimateLaw

FIELD = {"exact": "exact", "sampled": "moments"}  # of a run, by route


def fit_pairs(design: Design, measured: dict[str, Run], route: str, progress: Progress) -> dict[str, Fit]:
    """Fit θ of `pair_model` of every copy to its `route` ("exact" or "sampled") run; InputError if there is none."""
    board, program, model = design.board, design.program, pair_model(design.board)
    runs = [measured[copy.name] for copy in design.copies]
    check_runs(design, runs, route)
    draws = draw_pairs(model, design.seed, DRAWS if route == "exact" else FEW)
    if route == "exact":
        spectral = evidence_of(model, program, runs[0].exact.frequencies, draws)
        whole = None if board.inputs else covariance_evidence(model, program, _floor(model, program), draws)
    else:
        law = chunks_law(runs[0].recipe, _nominal(model, program), program.period, runs[0].moments.samples)
        whole = covariance_evidence(model, program, law, draws)
    copies = {}
    for copy, run in zip(design.copies, runs, strict=True):
        known = [observed(spectral, run.exact, run.solve)] if route == "exact" else []
        if whole:
            known.append((whole, whole.data(run.exact.covariance if route == "exact" else run.moments.mean)))
        copies[copy.name] = [each for each, _ in known], [data for _, data in known]
    return fit_all(model, copies, progress)


def pair_errors(design: Design, fits: dict[str, Fit]) -> tuple[float, ...]:
    """Relative standard error (Frobenius) of the inverse that each of these fits predicts for the own program."""
    model = pair_model(design.board)
    draws = draw_pairs(model, design.seed, next(iter(fits.values())).draws)
    asked = question(model, design.program, draws)
    return tuple(standard_error(predicted(model, asked, found)["inverse"]) for found in fits.values())


def undetermined(model: PairModel, fits: dict[str, Fit]) -> dict[str, Any]:
    """How many parameters there are, and those that the data of copies, the same for all, could not determine."""
    left = np.sqrt(np.diag(next(iter(fits.values())).covariance)) / model.spreads
    unknown = [name for name, share in zip(model.names, left, strict=True) if share > UNKNOWN]
    return {"parameters": len(model.names), "undetermined": unknown}


def doubtful(model: PairModel, found: Fit) -> dict[str, Any]:
    """How much farther from the model a copy is than tolerances allow, and strongly correlated parameters."""
    return {
        "excess": found.excess,
        "correlated": [list(row) for row in correlations(model.names, found.covariance)],
    }


def check_runs(design: Design, runs: list[Run], route: str) -> None:
    """Raise InputError unless every copy has been run as the route needs it."""
    if design.board.coupling == "resistive":
        if route != "exact" or any(run.exact is None or run.solve is None for run in runs):
            raise InputError(
                "a resistive board is calibrated on exact runs; make them with `tngd verify --method exact`"
            )
        return
    missing = [copy.name for copy, run in zip(design.copies, runs, strict=True) if getattr(run, FIELD[route]) is None]
    if missing:
        raise InputError(f"{missing[0]} has no {route} run; make it with `tngd verify --method {route} --force`")


def _nominal(model: PairModel, program: Program) -> Circuit:
    return half_circuit(half_of(model, program), np.ones(len(model.names)))


def _floor(model: PairModel, program: Program) -> EstimateLaw:
    """The law of an exact covariance: relative errors FLOOR of its entries."""
    S = reading_covariance(_nominal(model, program))
    i, j = np.triu_indices(len(S))
    return EstimateLaw(S, np.diag(FLOOR**2 * S[i, i] * S[j, j]), 1)
