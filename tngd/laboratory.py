"""What the verbs that measure boards do with files: verify and calibrate.

One at a time works on a folder. No result is replaced without `force`; every result says what it was made from: hashes
of the inputs, seeds, versions, the ngspice that ran.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.banked import calibrate_programs
from circuits.board import COLDEST, HOTTEST, REFERENCE_CELSIUS, Conditions, Design
from circuits.calibration import calibrate as fit_copies
from circuits.calibration import uncertainties, validated
from circuits.copies import specimens
from circuits.errors import InputError
from circuits.files import file_sha256, locked, provenance, read_json, refuse_existing, sha256, write_json
from circuits.fitting import Fit
from circuits.heldout import predicted, question, standard_error
from circuits.leavings import FEW, draw_pairs
from circuits.measured import READOUT, calibrate_measured
from circuits.model.device import Device, ideal_device, predict
from circuits.model.device_file import describe_device
from circuits.model.fitted_copy import by_pairs
from circuits.model.pairs import PairModel, pair_model
from circuits.model.reduction import check_order, choose_order
from circuits.netlist.deck import discarded
from circuits.netlist.folder import load_design
from circuits.netlist.spice import circuit_text
from circuits.parallel import Progress, silent
from circuits.simulation.measure import MOST_SAMPLES, Plan, check_samples, error_of_one, measure
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.simulation.runs import load_measurements, save_measurements
from circuits.statistics.inversion import inversion
from circuits.statistics.moments import BLOCK
from circuits.statistics.recorded import read_recorded
from circuits.synthesis.options import two_digits
from circuits.verification.population import COPIES
from circuits.verification.verify import describe_verification, verify_recorded
from circuits.verification.verify import verify as compare

# With the uncertainty of its inverse, which holds what the pair model leaves out, and what it was made from.
Calibrated = tuple[Device, float, dict[str, str | int]]
ROUTES = ("auto", "exact", "sampled", "programs")
SAMPLES = 100_000  # readings of a copy under a program, unless told better
MOST_START_UP = 2_000_000  # readings of one chunk that are thrown away: some three minutes
MOST_COPIES = 100_000


@dataclass(frozen=True)
class Inquiry:
    """What a verification is to find out.

    `method` is exact, sampled or both; `samples` readings a copy, or as many as bring the statistical error of every
    copy down to `target_error`; `charge`: the charge readout too; `ambient` [°C]; `copies` freshly drawn ones for the
    population and the `bound` they are judged by; `measured`: recorded readings in place of ngspice.
    """

    method: str = "both"
    samples: int = 100_000
    target_error: float | None = None
    seed: int = 0
    charge: bool = False
    ambient: float = REFERENCE_CELSIUS
    copies: int = COPIES
    bound: float | None = None
    measured: Path | None = None


def verify(folder: Path, inquiry: Inquiry, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Run every copy in ngspice and write verification.json and statistics.npz.

    From recorded readings measured.json is written instead, without ngspice.
    """
    _check(inquiry)
    made, decks = load_design(folder)
    with locked(folder):
        if inquiry.measured:
            return _verify_recorded(made, folder, inquiry, force)
        for file in ("verification.json", "statistics.npz"):
            refuse_existing(folder / file, force)
        return _verify(made, decks, folder, inquiry, progress)


def calibrate(
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

    `route` exact or sampled: to the runs of `verify`. programs: to training programs that are run now; a board with
    banks has no other way. They are exact, or with `samples` sampled by noise of `seed`. Either way held-out programs
    are run now, if there is an ngspice.
    `measured`: to recorded readings, with gains of the readout within ±`readout`. `order` is that of the process the
    device predicts, in place of the smallest that is good enough (circuits.model.reduction.choose_order).
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
    """From programs of its own, run now; finished ones are kept until all are."""
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
    """From recorded readings."""
    found = calibrate_measured(made, read_recorded(path, made), readout, progress)
    about = {"readings": path.name, "readings_sha256": file_sha256(path)}
    return found.device, _uncertainty(made, found.model, found.fits), about


def _uncertainty(made: Design, model: PairModel, fits: dict[str, Fit]) -> float:
    draws = draw_pairs(model, made.seed, next(iter(fits.values())).draws)
    asked = question(model, made.program, draws)
    return min(standard_error(predicted(model, asked, fit)["inverse"]) for fit in fits.values())


def _calibrated_runs(made: Design, folder: Path, route: str, progress: Progress) -> Calibrated:
    """From what `verify` measured."""
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
        # The errors of a fit to exact runs hold the spread of what the pair model leaves out, but not its mean.
        mean = left.sum(axis=0, keepdims=True) / max(len(left), 1)
        own = float(np.hypot(own, _size(mean if route == "exact" else left)))
    return device, own, made_from


def _left_out(made: Design) -> dict[str, np.ndarray]:
    """What mismatch within pairs adds to the inverse by each statistic, relative, of drawn copies (draws, n, n)."""
    model, X = pair_model(made.board), made.program.mapping
    asked = question(model, made.program, draw_pairs(model, made.seed, FEW))
    return {name: X.T @ left @ X / np.linalg.norm(X.T @ asked.nominal[name] @ X) for name, left in asked.left.items()}


def _size(matrices: np.ndarray) -> float:
    """Root mean square Frobenius norm of matrices (draws, n, n); 0 of none."""
    return float(np.linalg.norm(matrices) / np.sqrt(max(len(matrices), 1)))


def _check(inquiry: Inquiry) -> None:
    if inquiry.method not in ("exact", "sampled", "both"):
        raise InputError(f"--method is exact, sampled or both, got {inquiry.method!r}")
    check_samples(inquiry.samples)
    if inquiry.seed < 0:
        raise InputError(f"a seed is a whole number >= 0, got {inquiry.seed}")
    if not COLDEST <= inquiry.ambient <= HOTTEST:
        raise InputError(f"--ambient is from {COLDEST:g} to {HOTTEST:g} °C, got {inquiry.ambient:g}")
    if not 3 <= inquiry.copies <= MOST_COPIES:
        raise InputError(f"--copies is from 3 to {MOST_COPIES} for a population, got {inquiry.copies}")
    for option, value in (("--target-error", inquiry.target_error), ("--bound", inquiry.bound)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{option} is a relative error above 0 (0.01 is one per cent), got {value:g}")
    if inquiry.measured and (inquiry.charge or inquiry.target_error):
        raise InputError("readings that are recorded already need no --charge or --target-error")


def _verify(made: Design, decks: dict[str, str], folder: Path, inquiry: Inquiry, progress: Progress) -> dict[str, Any]:
    sampled = inquiry.method != "exact"
    if sampled and discarded(made.program) > MOST_START_UP:
        raise InputError(
            f"sampling would discard {discarded(made.program):,} readings of start-up, because the slowest mode takes "
            f"{made.program.settling:.3g} s; use --method exact, or design with a larger --damping or a --precondition"
        )
    if inquiry.charge and made.board.inputs:
        raise InputError("charges are read on capacitive boards; a resistive one solves by its bias currents")
    conditions = Conditions(inquiry.ambient)
    circuits = {
        copy.name: decks[copy.name]
        if inquiry.ambient == REFERENCE_CELSIUS
        else circuit_text(made.board, made.program, copy, conditions)
        for copy in specimens(made)
    }
    samples = _samples(made, inquiry) if sampled else 0
    plan = Plan(inquiry.method != "sampled", samples, inquiry.seed, inquiry.charge, inquiry.ambient)
    measured = measure(made, circuits, plan, chunks=folder / "chunks", progress=progress)
    found = compare(made, measured, ambient=inquiry.ambient, copies=inquiry.copies, bound=inquiry.bound)
    result = describe_verification(found)
    result["provenance"] = provenance(
        board_sha256=sha256((folder / "board.json").read_bytes()),
        seed=inquiry.seed,
        ngspice=ngspice_version(find_ngspice()),
    )
    save_measurements(folder / "statistics.npz", measured)
    write_json(folder / "verification.json", result)
    shutil.rmtree(folder / "chunks", ignore_errors=True)
    return result


def _samples(made: Design, inquiry: Inquiry) -> int:
    """How many readings a copy takes, by the error that is wanted if one is."""
    if inquiry.target_error is None:
        return inquiry.samples
    one = error_of_one(made, inversion(made), inquiry.ambient)
    if one / inquiry.target_error > MOST_SAMPLES**0.5:
        raise InputError(
            f"a statistical error of {inquiry.target_error:g} takes more than {MOST_SAMPLES:,} readings a copy; "
            f"--target-error {two_digits(one / MOST_SAMPLES**0.5, up=True):.2g} would do"
        )
    return max(int(np.ceil((one / inquiry.target_error) ** 2 / BLOCK)), 1) * BLOCK


def _verify_recorded(made: Design, folder: Path, inquiry: Inquiry, force: bool) -> dict[str, Any]:
    refuse_existing(folder / "measured.json", force)
    recorded = read_recorded(inquiry.measured, made, ambient=inquiry.ambient)
    result = describe_verification(verify_recorded(made, recorded, copies=inquiry.copies, bound=inquiry.bound))
    result["provenance"] = provenance(
        board_sha256=sha256((folder / "board.json").read_bytes()),
        readings=inquiry.measured.name,
        readings_sha256=file_sha256(inquiry.measured),
    )
    write_json(folder / "measured.json", result)
    return result
