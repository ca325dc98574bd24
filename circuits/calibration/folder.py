"""Calibration of a run folder: reads the design and the runs of `verify`, writes device.json.

One command at a time works on a folder. No result is replaced without `force`; every result names its inputs: hashes,
seeds, versions, and the ngspice that ran.
"""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits import statistics
from circuits.board import REFERENCE_CELSIUS, Design
from circuits.calibration.discrepancy import FEW_DRAWS, draw_pairs
from circuits.calibration.fitting import Fit
from circuits.calibration.held_out import predicted, program_statistics, standard_error
from circuits.calibration.routes import READOUT, calibrate_programs, calibrate_recorded, uncertainties, validated
from circuits.calibration.routes import calibrate as fit_copies
from circuits.errors import InputError
from circuits.files import file_sha256, locked, provenance, read_json, refuse_existing, sha256, write_json
from circuits.model.device import Device, ideal_device, predict
from circuits.model.device_file import describe_device
from circuits.model.fitted_copy import by_pairs
from circuits.model.pairs import PairModel, pair_model
from circuits.model.reduction import check_order, choose_order
from circuits.netlist.folder import load_design
from circuits.parallel import Progress, silent
from circuits.simulation.measurement import check_samples
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.simulation.runs import load_measurements

# Device, uncertainty of its inverse (discrepancy of the pair model included), and hashes and versions of its inputs.
Calibrated = tuple[Device, float, dict[str, str | int]]
ROUTES = ("auto", "exact", "sampled", "programs")
SAMPLES = 100_000  # default number of readings of a copy under a program


def calibrate_folder(
    folder: Path,
    route: str = "auto",
    force: bool = False,
    progress: Progress = silent,
    *,
    measured: Path | None = None,
    readout: float = READOUT,
    order: int | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit every copy and write device.json.

    Routes exact and sampled fit the runs of `verify`. Route programs fits training programs that are run now, the only
    route of a board with banks; training runs are exact, or with `samples` sampled by noise of `seed`. On every one of
    these routes held-out programs are run now, if there is an ngspice. `measured` fits recorded readings instead, with
    gains of the readout within ±`readout`. `order` is the order of the device, in place of the smallest that is good
    enough (circuits.model.reduction.choose_order).
    """
    if route not in ROUTES:
        raise InputError(f"--route is {', '.join(ROUTES[:-1])} or {ROUTES[-1]}, got {route!r}")
    if measured and (route != "auto" or samples):
        raise InputError("recorded readings are a route of their own; with --measured leave out --route and --samples")
    if seed < 0:
        raise InputError(f"a seed is a whole number >= 0, got {seed}")
    if samples is not None:
        check_samples(samples)
    made, _ = load_design(folder)
    if samples and not made.board.banks and route != "programs":
        raise InputError(
            "a board without banks is fitted to what `tngd verify --samples` measured; leave out --samples here, or "
            "give --route programs to sample training programs"
        )
    if order is not None:  # before anything is run
        check_order(predict(ideal_device(made.board), 0, made.program), order)
    with locked(folder):
        refuse_existing(folder / "device.json", force)
        if measured:
            found = _calibrated_readings(made, measured, readout, progress)
        elif made.board.banks or route == "programs":
            found = _calibrated_programs(made, folder, route, samples, seed, progress)
        else:
            found = _calibrated_runs(made, folder, route, progress)
        device, own, made_from = found
        circuits = [predict(device, k, made.program) for k in range(len(device.copies))]
        chosen = choose_order(circuits, own, order, max(map(_size, _left_out(made).values())))
        about = device.fitted_on | {"reduced_order": asdict(chosen) | {"warning": chosen.warning}}
        content = describe_device(
            replace(device, fitted_on=about, order=chosen.kept),
            provenance(board_sha256=sha256((folder / "board.json").read_bytes()), seed=made.seed, **made_from),
        )
        write_json(folder / "device.json", content)
        shutil.rmtree(folder / "training", ignore_errors=True)
    return content


def _calibrated_programs(
    made: Design, folder: Path, route: str, samples: int | None, seed: int, progress: Progress
) -> Calibrated:
    """Calibrate by training programs, run now; finished runs are kept until all are finished."""
    if route == "exact" and samples:
        raise InputError("exact runs take no readings; leave out --samples or use --route sampled")
    sampled = route == "sampled" or samples is not None
    found = calibrate_programs(
        made,
        folder / "training",
        progress,
        route="sampled" if sampled else "exact",
        samples=samples or SAMPLES,
        seed=seed,
    )
    own = _uncertainty(made, found.model, found.fits)
    return found.device, own, {"ngspice": ngspice_version(find_ngspice())} | ({"noise_seed": seed} if sampled else {})


def _calibrated_readings(made: Design, path: Path, readout: float, progress: Progress) -> Calibrated:
    """Calibrate by recorded readings."""
    found = calibrate_recorded(made, statistics.read_recorded(path, made), readout, progress)
    about = {"readings": path.name, "readings_sha256": file_sha256(path)}
    return found.device, _uncertainty(made, found.model, found.fits), about


def _uncertainty(made: Design, model: PairModel, fits: dict[str, Fit]) -> float:
    draws = draw_pairs(model, made.seed, next(iter(fits.values())).draws)
    asked = program_statistics(model, made.program, draws)
    return min(standard_error(predicted(model, asked, fit)["inverse"]) for fit in fits.values())


def _calibrated_runs(made: Design, folder: Path, route: str, progress: Progress) -> Calibrated:
    """Calibrate by the runs of `verify`."""
    measured = load_measurements(folder / "statistics.npz", made)
    try:
        about = read_json(folder / "verification.json", "verify")
        ngspice, ambient = about["provenance"]["ngspice"], about["ambient"]
        seed = about["provenance"].get("seed")
    except (KeyError, TypeError):
        raise InputError(
            f"{folder / 'verification.json'} is damaged; make it again with `tngd verify --force`"
        ) from None
    if ambient != REFERENCE_CELSIUS:
        raise InputError(
            f"a device is calibrated at {REFERENCE_CELSIUS:g} °C, the runs in {folder} are of {ambient:g} °C; "
            "run `tngd verify --force` without --ambient"
        )
    if route == "auto":
        route = "exact" if measured[made.copies[0].name].exact else "sampled"
    device, fits = fit_copies(made, measured, route, progress)
    device = validated(made, device, fits, folder / "training", progress)
    made_from = {"statistics_sha256": sha256((folder / "statistics.npz").read_bytes()), "ngspice": ngspice}
    made_from |= {"noise_seed": seed} if route == "sampled" else {}
    own = min(uncertainties(made, fits))
    if not by_pairs(made.board):
        left = _left_out(made)["covariance"]
        # The errors of a fit to exact runs hold the spread of the discrepancy of the pair model, but not its mean.
        mean = left.sum(axis=0, keepdims=True) / max(len(left), 1)
        own = float(np.hypot(own, _size(mean if route == "exact" else left)))
    return device, own, made_from


def _left_out(made: Design) -> dict[str, np.ndarray]:
    """Return relative discrepancies (draws, n, n) of the inverse by mismatch within pairs, for each statistic."""
    model, X = pair_model(made.board), made.program.mapping
    asked = program_statistics(model, made.program, draw_pairs(model, made.seed, FEW_DRAWS))
    return {name: X.T @ left @ X / np.linalg.norm(X.T @ asked.nominal[name] @ X) for name, left in asked.left.items()}


def _size(matrices: np.ndarray) -> float:
    """Return the root mean square Frobenius norm of matrices (draws, n, n); 0 of none."""
    return float(np.linalg.norm(matrices) / np.sqrt(max(len(matrices), 1)))
