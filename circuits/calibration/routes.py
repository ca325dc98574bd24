"""Routes of calibration: from runs or recorded readings of the copies of a board to a device.

By elements (`calibrate`), for soldered capacitive boards without parasitics, to the own program:

    minimise  Σ ((data - model(θ)) / σ)² + Σ ((θ - 1) / σ_prior)²

θ: relative gain of every populated element, relative temperature and inductance of every cell. From exact runs the
data are the covariance and the spectra at two frequencies; mean and σ of the discrepancy of the reduced model (mismatch
inside pairs) come from copies drawn from the prior. From sampled runs the data are the covariance alone, weighted by
the law of the estimate. σ_prior is the tolerance of the parts; elements that the program leaves out keep their prior.
Standard errors are those of the minimum under the full covariance of the data's errors (the sandwich formula).

By pairs (`fit_pairs`), for boards that have more parts than elements, to the own program: boards with parasitics, and
resistive ones, whose storage and sources count. From exact runs the data are spectra; on a resistive board also the
columns of the solution, which sources do not enter; and on a capacitive one also the covariance, which holds noise
beyond the spectra. From sampled runs the data are the covariance alone, weighted by the law of the estimate. The fit is
that of circuits.calibration.fitting, under one program instead of many.

By training programs (`calibrate_programs`). No single program determines all parts of a board with banks, so
calibration programs it itself (circuits.calibration.experiments), fits the parts of every copy to all programs at once,
and predicts held-out targets. Training runs are exact (spectra) or sampled (covariances, by the law of their estimate);
held-out targets are always run exactly, so that the prediction alone is judged.

By recorded readings (`calibrate_recorded`) of physical boards: parts, temperatures, and gains of the readout.

    data = C(0), C(L),   <C_ij(τ)> = r_i r_j ρ_ij(τ; θ) - V_ij,   offset = mean reading

with C(τ) the covariances of readings τ apart about the mean, their joint law from circuits.calibration.observations, r
the relative gains of the readout, and L the lag that circuits.statistics.recorded keeps: a quarter period, or the time
constant, of a cell. Pairs of readings count that have no gap between them; a record without any has C(0) alone, which
does not depend on the parts that set the time scale (inductances, a common scale of time). There are fewer data than a
board has parts, so some keep their prior, and the standard errors say so. A gain that all cells have in common cannot
be told from their common temperature, r² T = const, nor from a common scale of all parts: it takes the share that its
prior leaves it, and its error is reported by itself.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.board import REFERENCE_CELSIUS, Design, Program
from circuits.calibration.discrepancy import DRAWS, FEW_DRAWS, MORE_DRAWS, DrawnPairs, draw_pairs
from circuits.calibration.element_fit import (
    STEP,
    drawn_discrepancy,
    element_parameters,
    exact_misfit,
    fit_misfit,
    fitted_copy,
    model_circuit,
    paired,
    prior_of,
    sampled_misfit,
)
from circuits.calibration.experiments import (
    UNDETERMINED,
    TrainingPrograms,
    correlations,
    evidence_of,
    soldered_training,
    training_frequencies,
    training_programs,
)
from circuits.calibration.fitting import Fit, Known, fit, fit_all, observed
from circuits.calibration.held_out import HeldOut, predicted, program_statistics, standard_error, validate
from circuits.calibration.observations import FLOOR, covariance_evidence, lagged_evidence, with_readout
from circuits.copies import codes
from circuits.errors import InputError
from circuits.files import sha256
from circuits.model.device import Device, copy_of
from circuits.model.fitted_copy import Estimate, FittedCopy, by_pairs, gain_names
from circuits.model.pairs import PairModel, half_circuit, half_of, pair_model
from circuits.nodal import Circuit
from circuits.ou import reading_covariance
from circuits.parallel import Progress, silent
from circuits.simulation.measurement import Sampled, Shown, run_programs, sample_programs
from circuits.simulation.ngspice import has_ngspice
from circuits.simulation.runs import Run
from circuits.simulation.transient import chunks_law
from circuits.statistics.estimators import LONG_RECORD, EstimateLaw, effective_samples
from circuits.statistics.inversion import inversion_rule, triangle
from circuits.statistics.recorded import Recorded, recorded_law

READOUT = 0.01  # half width of the uniform relative spread of a cell's readout gain, by default
LARGEST_READOUT = 0.5

KEPT_RESIDUALS = 400  # of every copy, evenly through the sorted ones: enough to draw their distribution

FIELD = {"exact": "exact", "sampled": "moments"}  # of a run, by route


def calibrate(
    design: Design,
    measured: dict[str, Run],
    route: str,
    progress: Progress = silent,
) -> tuple[Device, dict[str, Fit]]:
    """Fit every copy to its `route` ("exact" or "sampled") run; return the device, and the fits by copy."""
    board, program = design.board, design.program
    if board.banks:
        raise InputError("one program does not show all parts of a board with banks; use calibrate_programs")
    if by_pairs(board):
        fits, model = fit_pairs(design, measured, route, progress), pair_model(board)
        copies = tuple(
            copy_of(board, name, model.prior, found.values, found.covariance) for name, found in fits.items()
        )
        return Device(board, copies, _runs_summary(design, route, fits), values=dict(program.values)), fits
    parameters = element_parameters(design)
    check_runs(design, [measured[copy.name] for copy in design.copies], route)
    prior = prior_of(board, parameters)
    discrepancy = drawn_discrepancy(design, parameters, measured) if route == "exact" else None
    fits = {}
    for k, copy in enumerate(design.copies):
        progress(k, len(design.copies), f"fitting {copy.name}")
        if route == "exact":
            misfit = exact_misfit(board, program, parameters, measured[copy.name], discrepancy)
        else:
            misfit = sampled_misfit(board, program, parameters, measured[copy.name])
        fits[copy.name] = fit_misfit(misfit, prior)
        progress(k + 1, len(design.copies), f"fitting {copy.name}")
    copies = tuple(fitted_copy(board, name, parameters, fit) for name, fit in fits.items())
    return Device(board, copies, _runs_summary(design, route, fits), values=dict(design.program.values)), fits


def validated(
    design: Design, device: Device, fits: dict[str, Fit], folder: Path | None = None, progress: Progress = silent
) -> Device:
    """Return the device with its scores on held-out programs, which are run in ngspice now; `fits` as of `calibrate`.

    Where there is no ngspice or no other program goes on the board, `fitted_on` says so as `not_held_out`. A device
    whose parts are exact stays as it is. Raises SimulationError if a run fails twice.
    """
    model, found = paired(design, device.fitted_on["route"], fits)
    if not set(gain_names(design.board)) <= set(model.names):
        return device
    draws = draw_pairs(model, design.seed, next(iter(found.values())).draws)
    wanted = training_frequencies(model, design.program)
    if not has_ngspice():
        return replace(device, fitted_on=device.fitted_on | {"not_held_out": "ngspice was not found to run any"})
    try:
        held_out, _ = validate(design, model, found, draws, wanted, folder, progress)
    except InputError as error:
        return replace(device, fitted_on=device.fitted_on | {"not_held_out": str(error)})
    return replace(device, held_out=asdict(held_out))


def uncertainties(design: Design, fits: dict[str, Fit]) -> tuple[float, ...]:
    """Return the relative standard error (Frobenius) of the own program's inverse, for each fit of `calibrate`."""
    board, program = design.board, design.program
    if by_pairs(board):
        return pair_errors(design, fits)
    parameters, rule = element_parameters(design), inversion_rule(design)

    def inverse(theta: np.ndarray) -> np.ndarray:
        return rule.read(reading_covariance(model_circuit(board, program, parameters, theta)))

    found = []
    for own in fits.values():
        steps = STEP * np.eye(len(own.values))
        J = np.array([triangle(inverse(own.values + e) - inverse(own.values - e)) for e in steps]) / (2 * STEP)
        spread = np.trace(J.T @ own.covariance @ J)
        found.append(float(np.sqrt(spread) / np.linalg.norm(inverse(own.values))))
    return tuple(found)


def _runs_summary(design: Design, route: str, fits: dict[str, Fit]) -> dict[str, Any]:
    model, found = paired(design, route, fits)
    return {
        "route": route,
        "program": design.program.name,
        "target_step": design.program.step,
        "data": len(next(iter(fits.values())).residuals),
        **undetermined(model, found),
        "copies": {
            name: fit_record(fit, fit.residuals_nominal, fit.residuals) | weaknesses_of_fit(model, fit)
            for name, fit in found.items()
        },
    }


@dataclass(frozen=True, eq=False)
class CalibratedReadings:
    """Result of `calibrate_recorded`: device, model with gains of the readout as parameters, and fits by copy."""

    device: Device
    model: PairModel
    fits: dict[str, Fit]


def calibrate_recorded(
    design: Design,
    recorded: Sequence[Recorded],
    readout: float = READOUT,
    progress: Progress = silent,
) -> CalibratedReadings:
    """Fit every recorded copy of a design without banks; gains of the readout are within ±`readout`, 0: exact.

    InputError if the board has banks, the readings were taken at another temperature, are clipped or too few.
    """
    board = design.board
    if board.banks:
        raise InputError("one program does not show all parts of a board with banks; leave out --measured")
    if not 0 <= readout <= LARGEST_READOUT:
        raise InputError(
            f"--readout-tolerance is a relative spread from 0 to {LARGEST_READOUT:g}, got {readout:g}; "
            "0.01 is one per cent"
        )
    for each in recorded:
        _check(each)
    parts = pair_model(board)
    model, place = with_readout(parts, readout) if readout else (parts, None)
    draws = draw_pairs(parts, design.seed, FEW_DRAWS)
    fits = {}
    for k, each in enumerate(recorded):
        progress(k, len(recorded), f"fitting {each.summary.name}")
        law = recorded_law(design, each)
        worth = effective_samples(law)
        if worth < LONG_RECORD:
            raise InputError(
                f"the readings of {each.summary.name} are worth {worth:.0f} independent ones, and a fit takes "
                f"{LONG_RECORD:.0f}; record for longer"
            )
        evidence, shown = _evidence(model, design, each, law, draws, place)
        fits[each.summary.name] = fit(model, [evidence], [evidence.data(shown)])
    copies = tuple(_copy(design, model, len(parts.names), fits[each.summary.name], each) for each in recorded)
    about = _readings_summary(design, model, recorded, fits, place)
    return CalibratedReadings(Device(board, copies, about, values=dict(design.program.values)), model, fits)


def _evidence(
    model: PairModel, design: Design, recorded: Recorded, law: EstimateLaw, draws: DrawnPairs, place: slice | None
) -> tuple[Known, np.ndarray]:
    """Return the evidence of a record, and its measured covariances: (n, n), or with a lag (2, n, n) [V²]."""
    sums = recorded.sums
    if sums is None:
        return covariance_evidence(model, design.program, law, draws, place), recorded.covariance
    period, pairs = recorded.summary.period_s, (recorded.pairs, recorded.sums_pairs)
    found = lagged_evidence(model, design.program, period, (0, sums.lag), pairs, draws, place)
    return found, np.array([recorded.covariance, sums.lagged / sums.pairs])


def _check(recorded: Recorded) -> None:
    about = recorded.summary
    if about.ambient != REFERENCE_CELSIUS:
        raise InputError(
            f"a device is calibrated at {REFERENCE_CELSIUS:g} °C, the readings are of {about.ambient:g} °C; "
            f"record them at {REFERENCE_CELSIUS:g} °C"
        )
    if about.clipped:
        clip = about.clipped[0]
        raise InputError(
            f"{clip.cell} of {about.name} has {clip.readings:,} clipped readings at {clip.level_V:+.6g} V, which bias "
            "its covariance; record with less gain"
        )


def _copy(design: Design, model: PairModel, known: int, found: Fit, recorded: Recorded) -> FittedCopy:
    """Return the record of a fit whose first `known` parameters are parts, and the others gains of the readout."""
    about = recorded.summary
    error = np.sqrt(np.diag(found.covariance))
    gains = zip(found.values[known:], error[known:], model.spreads[known:], strict=True)
    offsets = zip(about.mean_V, about.mean_error_V, strict=True)
    return replace(
        copy_of(
            design.board,
            about.name,
            pair_model(design.board).prior,
            found.values[:known],
            found.covariance[:known, :known],
        ),
        readout_gains=tuple(Estimate(float(v), float(e), bool(e < spread / 2)) for v, e, spread in gains),
        readout_offsets=tuple(Estimate(float(v), float(e), True) for v, e in offsets),
    )


def _readings_summary(
    design: Design, model: PairModel, recorded: Sequence[Recorded], fits: dict[str, Fit], place: slice | None
) -> dict[str, Any]:
    first = next(iter(fits.values()))
    left = np.sqrt(np.diag(first.covariance)) / model.spreads
    return {
        "route": "measured",
        "program": design.program.name,
        "target_step": design.program.step,
        "parameters": len(model.names),
        "undetermined": [name for name, share in zip(model.names, left, strict=True) if share > UNDETERMINED],
        "data": len(first.residuals),
        "copies": {each.summary.name: _about(model, each, fits[each.summary.name], place) for each in recorded},
    }


def _about(model: PairModel, recorded: Recorded, found: Fit, place: slice | None) -> dict[str, Any]:
    about = {
        "readings": recorded.summary.readings,
        "remarks": list(recorded.summary.remarks),
        **fit_record(found, found.residuals_nominal, found.residuals),
        "correlated": [list(row) for row in correlations(model.names, found.covariance)],
    }
    return about if place is None else about | {"common_gain": _common_gain(model, found, place)}


def _common_gain(model: PairModel, found: Fit, place: slice) -> dict[str, float]:
    """Return the mean gain of the readout with its error, alone and with the temperatures, and the prior error."""
    r, t = np.zeros(len(model.names)), np.zeros(len(model.names))
    r[place] = 1 / len(r[place])
    hot = [k for k, name in enumerate(model.names) if name.startswith("temperature")]
    t[hot] = 1 / max(len(hot), 1)

    def error(w: np.ndarray) -> float:
        return float(np.sqrt(w @ found.covariance @ w))

    return {
        "value": float(r @ found.values),
        "standard_error": error(r),
        "prior_standard_error": float(np.sqrt((r * model.spreads) @ (r * model.spreads))),
        "with_temperature_standard_error": error(2 * r + t),
    }


@dataclass(frozen=True, eq=False)
class CalibratedPrograms:
    """Result of `calibrate_programs`: device, model, fits by copy, training, and scores on held-out programs."""

    device: Device
    model: PairModel
    fits: dict[str, Fit]
    training: TrainingPrograms
    held_out: HeldOut


def calibrate_programs(
    design: Design,
    folder: Path | None = None,
    progress: Progress = silent,
    targets: int = 4,
    codes: int = 2,
    route: str = "exact",
    samples: int = 100_000,
    seed: int = 0,
) -> CalibratedPrograms:
    """Calibrate every copy of a design by training programs; runs are kept in `folder`.

    `route` is exact, or sampled with `samples` readings of a copy under a program and noise of this `seed`. `targets`
    random targets and with banks `codes` random codes are held out. Raises SimulationError if a run fails twice.
    """
    if route not in ("exact", "sampled"):
        raise InputError(f"expected the route exact or sampled, got {route!r}")
    board, model = design.board, pair_model(design.board)
    if not set(gain_names(board)) <= set(model.names):
        raise InputError("parts of this board are exact, with no tolerance; there is nothing to calibrate")
    progress(0, 1, "choosing training programs")
    draws = draw_pairs(model, design.seed, FEW_DRAWS if route == "sampled" else MORE_DRAWS if board.banks else DRAWS)
    training = (
        training_programs(model, design.seed, draws)
        if board.banks
        else soldered_training(model, design.program, design.seed, draws)
    )
    wanted = training.evidence[0].frequencies
    if route == "exact":
        shown = run_programs(board, training.programs, design.copies, wanted, folder, progress, spectra_only=True)
    else:
        shown = sample_programs(board, training.programs, design.copies, samples, seed, folder, progress)
    known = training.evidence if route == "exact" else _sampled_evidence(model, draws, training, shown[0])
    matched = {copy.name: _matched(known, runs) for copy, runs in zip(design.copies, shown, strict=True)}
    fits = fit_all(model, matched, progress)
    held_out, judged = validate(design, model, fits, draws, wanted, folder, progress, targets, codes)
    copies = tuple(copy_of(board, name, model.prior, f.values, f.covariance) for name, f in fits.items())
    about = _programs_summary(design, model, training, fits, [*shown, *judged])
    about |= {"route": route} | ({"samples": samples} if route == "sampled" else {})
    device = Device(board, copies, about, asdict(held_out), values=dict(design.program.values))
    return CalibratedPrograms(device, model, fits, training, held_out)


def _sampled_evidence(
    model: PairModel, draws: DrawnPairs, training: TrainingPrograms, runs: Sequence[Sampled]
) -> tuple[Known, ...]:
    """Return the evidence of sampled runs of every training program, by the law of the nominal board."""
    ones, found = np.ones(len(model.names)), []
    for program, run in zip(training.programs, runs, strict=True):
        law = chunks_law(run.recipe, half_circuit(half_of(model, program), ones), program.period, run.samples)
        found.append(covariance_evidence(model, program, law, draws))
    return tuple(found)


def _matched(known: Sequence[Known], runs: Sequence[Shown] | Sequence[Sampled]) -> tuple[list[Known], list[np.ndarray]]:
    """Return evidence and data of every program of one copy."""
    pairs = [
        (each, each.data(run.covariance)) if isinstance(run, Sampled) else observed(each, run.exact, run.solved)
        for each, run in zip(known, runs, strict=True)
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _programs_summary(
    design: Design,
    model: PairModel,
    training: TrainingPrograms,
    fits: dict[str, Fit],
    shown: Sequence[Sequence[Shown | Sampled]],
) -> dict[str, Any]:
    return {
        "program": "training",
        "target_step": "codes" if design.board.banks else "random targets",
        "training_programs": len(training.programs),
        "training_codes": [list(codes(design.board, program).values()) for program in training.programs],
        "data": len(next(iter(fits.values())).residuals),
        **undetermined(model, fits),
        "runs_sha256": sha256("".join(run.sha256 for runs in shown for run in runs)),
        "copies": {
            name: fit_record(found, _thinned(found.residuals_nominal), _thinned(found.residuals))
            | weaknesses_of_fit(model, found)
            for name, found in fits.items()
        },
    }


def fit_record(found: Fit, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Return χ² and weighted residuals of a fit for device.json; `before` and `after` are the residuals that are kept.

    `before` is of nominal parts, `after` of the fitted ones: all residuals of the fit, or some of them.
    """
    return {
        "chi_square": float(found.residuals @ found.residuals),
        "rms_residual_uncalibrated": float(np.sqrt(np.mean(found.residuals_nominal**2))),
        "rms_residual": float(np.sqrt(np.mean(found.residuals**2))),
        "residuals_uncalibrated": before.tolist(),
        "residuals": after.tolist(),
    }


def _thinned(residuals: np.ndarray) -> np.ndarray:
    """Return at most KEPT_RESIDUALS of the residuals, evenly through the sorted ones."""
    kept = np.linspace(0, len(residuals) - 1, min(KEPT_RESIDUALS, len(residuals))).round().astype(int)
    return np.sort(residuals)[kept]


def fit_pairs(design: Design, measured: dict[str, Run], route: str, progress: Progress) -> dict[str, Fit]:
    """Fit θ of `pair_model` of every copy to its `route` ("exact" or "sampled") run; InputError if there is none."""
    board, program, model = design.board, design.program, pair_model(design.board)
    runs = [measured[copy.name] for copy in design.copies]
    check_runs(design, runs, route)
    draws = draw_pairs(model, design.seed, DRAWS if route == "exact" else FEW_DRAWS)
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
    """Return the relative standard error (Frobenius) of the own program's inverse, for each fit of `fit_pairs`."""
    model = pair_model(design.board)
    draws = draw_pairs(model, design.seed, next(iter(fits.values())).draws)
    asked = program_statistics(model, design.program, draws)
    return tuple(standard_error(predicted(model, asked, found)["inverse"]) for found in fits.values())


def undetermined(model: PairModel, fits: dict[str, Fit]) -> dict[str, Any]:
    """Return the number of parameters, and the names of those that the data leave undetermined."""
    left = np.sqrt(np.diag(next(iter(fits.values())).covariance)) / model.spreads
    unknown = [name for name, share in zip(model.names, left, strict=True) if share > UNDETERMINED]
    return {"parameters": len(model.names), "undetermined": unknown}


def weaknesses_of_fit(model: PairModel, found: Fit) -> dict[str, Any]:
    """Return how much farther from the model a copy is than tolerances allow, and strongly correlated parameters."""
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
    """Return the law of an exact covariance: relative errors FLOOR of its entries."""
    S = reading_covariance(_nominal(model, program))
    i, j = np.triu_indices(len(S))
    return EstimateLaw(S, np.diag(FLOOR**2 * S[i, i] * S[j, j]), 1)
