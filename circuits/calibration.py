"""Fit of the reduced-order model of each copy to what ngspice returned for it.

    minimise  Σ ((data - model(θ)) / σ)² + Σ ((θ - 1) / σ_prior)²

θ: relative gain of every populated element, relative temperature and inductance of every cell. From exact runs the
data are the covariance and the spectra at two frequencies; mean and σ of what the reduced model leaves out (mismatch
inside pairs) come from copies drawn from the prior. From sampled runs the data are the covariance alone, weighted by
the law of the estimate. σ_prior is the tolerance of the parts; elements that the program leaves out keep their prior.
Standard errors are those of the minimum under the full covariance of the data's errors (the sandwich formula).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import least_squares

from circuits.assembly import Circuit, assemble_gains, is_stable
from circuits.board import Board, Conditions, Design, Program
from circuits.copies import draw_gains
from circuits.device import copy_of
from circuits.errors import InputError
from circuits.estimated import by_pairs, gain_names
from circuits.fitted import Device
from circuits.fitting import Fit, plain_fit
from circuits.inversion import inversion, triangle
from circuits.jobs import Progress, silent
from circuits.leavings import draw_pairs
from circuits.ngspice import has_ngspice
from circuits.ou import reading_covariance, spectrum
from circuits.pairs import pair_model
from circuits.pairwise import check_runs, doubtful, fit_pairs, pair_errors, undetermined
from circuits.populated import Layout, element_means, fitted_copy, layout_of, model_circuit, paired, prior_of
from circuits.programmings import training_frequencies
from circuits.runs import Run
from circuits.sampled import chunks_covariance, chunks_law
from circuits.validation import validate

DISCREPANCY_DRAWS = 256
DISCREPANCY_SEED = 20_000_003  # added to the design's seed: never the copies themselves
STEP = 1e-5  # of a parameter, for a slope
FLOOR = 1e-8  # relative error of an exact datum: far above its integration error, far below anything that matters


@dataclass(frozen=True, eq=False)
class Misfit:
    """Weighted residuals of the data as a function of θ, and the covariance (data, data) of their errors."""

    residuals: Callable[[np.ndarray], np.ndarray]
    covariance: np.ndarray


def calibrate(
    design: Design,
    measured: dict[str, Run],
    route: str,
    progress: Progress = silent,
) -> tuple[Device, dict[str, Fit]]:
    """Fit every copy to its `route` ("exact" or "sampled") run; the device, and the fits by copy."""
    board, program = design.board, design.program
    if board.banks:
        raise InputError("one program does not show all parts of a board with banks; use calibrate_programs")
    if by_pairs(board):
        fits, model = fit_pairs(design, measured, route, progress), pair_model(board)
        copies = tuple(copy_of(board, name, model, found.values, found.covariance) for name, found in fits.items())
        return Device(board, copies, _runs_summary(design, route, fits), values=dict(program.values)), fits
    layout = layout_of(design)
    check_runs(design, [measured[copy.name] for copy in design.copies], route)
    prior = prior_of(board, layout)
    discrepancy = drawn_discrepancy(design, layout, measured) if route == "exact" else None
    fits = {}
    for k, copy in enumerate(design.copies):
        progress(k, len(design.copies), f"fitting {copy.name}")
        if route == "exact":
            misfit = exact_misfit(board, program, layout, measured[copy.name], discrepancy)
        else:
            misfit = sampled_misfit(board, program, layout, measured[copy.name])
        fits[copy.name] = fit_misfit(misfit, prior)
        progress(k + 1, len(design.copies), f"fitting {copy.name}")
    copies = tuple(fitted_copy(board, name, layout, fit) for name, fit in fits.items())
    return Device(board, copies, _runs_summary(design, route, fits), values=dict(design.program.values)), fits


def validated(
    design: Design, device: Device, fits: dict[str, Fit], folder: Path | None = None, progress: Progress = silent
) -> Device:
    """The device of these fits of `calibrate`, and how it did on held-out programs, which are run in ngspice now.

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
    """Relative standard error (Frobenius) of the inverse that each fit of `calibrate` predicts for the own program."""
    board, program = design.board, design.program
    if by_pairs(board):
        return pair_errors(design, fits)
    layout, rule = layout_of(design), inversion(design)

    def inverse(theta: np.ndarray) -> np.ndarray:
        return rule.read(reading_covariance(model_circuit(board, program, layout, theta)))

    found = []
    for own in fits.values():
        steps = STEP * np.eye(len(own.values))
        J = np.array([triangle(inverse(own.values + e) - inverse(own.values - e)) for e in steps]) / (2 * STEP)
        spread = np.trace(J.T @ own.covariance @ J)
        found.append(float(np.sqrt(spread) / np.linalg.norm(inverse(own.values))))
    return tuple(found)


def _statistics(circuit: Circuit, frequencies: np.ndarray) -> np.ndarray:
    return _flatten(reading_covariance(circuit), spectrum(circuit, frequencies))


def _flatten(covariance: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    """Hermitian matrices as real numbers of one size: logarithms of the diagonal, correlations off it."""
    a, b = np.triu_indices(len(covariance), 1)
    pieces = []
    for S in (covariance, *spectra):
        scale = np.sqrt(np.diag(S).real)
        correlation = (S / scale[:, None] / scale)[a, b]
        pieces += [2 * np.log(scale), correlation.real]
        pieces += [correlation.imag] if np.iscomplexobj(S) else []
    return np.concatenate(pieces)


def drawn_discrepancy(design: Design, layout: Layout, measured: dict[str, Run]) -> np.ndarray:
    """Full minus reduced statistics of copies drawn from the prior, (draws, data)."""
    board, program = design.board, design.program
    frequencies = measured[design.copies[0].name].exact.frequencies
    gains = draw_gains(board, design.seed + DISCREPANCY_SEED, DISCREPANCY_DRAWS)
    full = assemble_gains(board, program, gains, Conditions())
    return np.array(
        [
            _statistics(full[k], frequencies) - _statistics(model_circuit(board, program, layout, theta), frequencies)
            for k, theta in enumerate(element_means(board, layout, gains))
            if is_stable(full[k])
        ]
    )


def exact_misfit(board: Board, program: Program, layout: Layout, run: Run, discrepancy: np.ndarray) -> Misfit:
    data = _flatten(run.exact.covariance, run.exact.spectra) - discrepancy.mean(axis=0)
    sigma = np.sqrt(discrepancy.var(axis=0) + FLOOR**2)

    def misfit(theta: np.ndarray) -> np.ndarray:
        circuit = model_circuit(board, program, layout, theta)
        return (_statistics(circuit, run.exact.frequencies) - data) / sigma

    deviations = (discrepancy - discrepancy.mean(axis=0)) / sigma
    # What the floor adds is independent from datum to datum.
    return Misfit(misfit, deviations.T @ deviations / len(deviations) + np.diag((FLOOR / sigma) ** 2))


def sampled_misfit(board: Board, program: Program, layout: Layout, run: Run) -> Misfit:
    nominal = model_circuit(board, program, layout, np.ones(len(layout.names)))
    law = chunks_law(run.recipe, nominal, program.period, run.moments.samples)
    whiten = np.linalg.cholesky(law.covariance)
    i, j = np.triu_indices(layout.cells)
    data = run.moments.mean[i, j]

    def misfit(theta: np.ndarray) -> np.ndarray:
        circuit = model_circuit(board, program, layout, theta)
        covariance = chunks_covariance(run.recipe, circuit, program.period)
        return solve_triangular(whiten, covariance[i, j] - data, lower=True)

    return Misfit(misfit, np.eye(len(data)))


def fit_misfit(misfit: Misfit, prior: np.ndarray) -> Fit:
    start = np.ones(len(prior))

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.concatenate([misfit.residuals(theta), (theta - 1) / prior])

    solution = least_squares(residuals, start, jac="3-point", x_scale=prior, method="trf", xtol=1e-12, ftol=1e-12)
    data = len(solution.fun) - len(prior)
    J = solution.jac[:data]
    # The minimum moves by H⁻¹ Jᵀ e with errors e of the data and of the prior.
    H = np.linalg.inv(J.T @ J + np.diag(prior**-2))
    covariance = H @ (J.T @ misfit.covariance @ J + np.diag(prior**-2)) @ H
    found = plain_fit(solution.x, covariance, misfit.residuals(start), solution.fun[:data])
    # What is left of e after the fit, and what the prior keeps it from taking up.
    P, kept = np.eye(data) - J @ H @ J.T, J @ H / prior
    expected = np.sum((P @ misfit.covariance) * P) + np.sum(kept**2)
    return replace(found, excess=float(np.sqrt(max(found.residuals @ found.residuals / expected, 1.0))))


def _runs_summary(design: Design, route: str, fits: dict[str, Fit]) -> dict[str, Any]:
    model, found = paired(design, route, fits)
    return {
        "route": route,
        "program": design.program.name,
        "target_step": design.program.step,
        "data": len(next(iter(fits.values())).residuals),
        **undetermined(model, found),
        "copies": {
            name: {
                "chi_square": float(fit.residuals @ fit.residuals),
                "rms_residual_uncalibrated": float(np.sqrt(np.mean(fit.residuals_nominal**2))),
                "rms_residual": float(np.sqrt(np.mean(fit.residuals**2))),
                "residuals_uncalibrated": fit.residuals_nominal.tolist(),
                "residuals": fit.residuals.tolist(),
                **doubtful(model, fit),
            }
            for name, fit in found.items()
        },
    }
