"""Run folder of a verification: what `tngd verify` reads from a design's folder and writes into it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.board import COLDEST, HOTTEST, REFERENCE_CELSIUS, Conditions, Design
from circuits.copies import specimens
from circuits.errors import InputError
from circuits.files import file_sha256, locked, provenance, refuse_existing, sha256, write_json
from circuits.netlist.deck import discarded
from circuits.netlist.folder import load_design
from circuits.netlist.spice import circuit_text
from circuits.parallel import Progress, silent
from circuits.simulation.measurement import MOST_SAMPLES, Plan, check_samples, error_of_one, measure
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.simulation.runs import save_measurements
from circuits.statistics.inversion import inversion_rule
from circuits.statistics.moments import BLOCK
from circuits.statistics.recorded import read_recorded
from circuits.synthesis.options import two_digits
from circuits.verification.compare import describe_verification, verify_recorded
from circuits.verification.compare import verify as compare
from circuits.verification.population import COPIES

MOST_START_UP = 2_000_000  # readings of one chunk that are thrown away: some three minutes
MOST_COPIES = 100_000


@dataclass(frozen=True)
class VerifyOptions:
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


def verify_folder(
    folder: Path, inquiry: VerifyOptions, force: bool = False, progress: Progress = silent
) -> dict[str, Any]:
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


def _check(inquiry: VerifyOptions) -> None:
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


def _verify(
    made: Design, decks: dict[str, str], folder: Path, inquiry: VerifyOptions, progress: Progress
) -> dict[str, Any]:
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


def _samples(made: Design, inquiry: VerifyOptions) -> int:
    """How many readings a copy takes, by the error that is wanted if one is."""
    if inquiry.target_error is None:
        return inquiry.samples
    one = error_of_one(made, inversion_rule(made), inquiry.ambient)
    if one / inquiry.target_error > MOST_SAMPLES**0.5:
        raise InputError(
            f"a statistical error of {inquiry.target_error:g} takes more than {MOST_SAMPLES:,} readings a copy; "
            f"--target-error {two_digits(one / MOST_SAMPLES**0.5, up=True):.2g} would do"
        )
    return max(int(np.ceil((one / inquiry.target_error) ** 2 / BLOCK)), 1) * BLOCK


def _verify_recorded(made: Design, folder: Path, inquiry: VerifyOptions, force: bool) -> dict[str, Any]:
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
