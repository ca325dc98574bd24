"""Run folder of a verification: `tngd verify` reads the folder of a design and writes its results into it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits import statistics
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
from circuits.synthesis.options import two_digits
from circuits.verification.compare import describe_verification, verify_recorded
from circuits.verification.compare import verify as compare
from circuits.verification.population import COPIES

MOST_START_UP = 2_000_000  # readings discarded at the start of one chunk: some three minutes
MOST_COPIES = 100_000


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification.

    `method`: exact, sampled or both. `samples`: readings a copy; with `target_error`, as many as bring the statistical
    error of every copy down to it. `charge`: charge readout too. `ambient` [°C]: temperature of the copies. `copies`:
    number of fresh copies of the population; `bound`: largest error of a good copy. `measured`: file of recorded
    readings, used in place of ngspice.
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
    folder: Path, options: VerifyOptions, force: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Run every copy in ngspice and write verification.json and statistics.npz.

    With recorded readings, measured.json is written instead, without ngspice. InputError if an option or the folder is
    wrong, SimulationError if ngspice fails.
    """
    _check(options)
    made, decks = load_design(folder)
    with locked(folder):
        if options.measured:
            return _verify_recorded(made, folder, options, force)
        for file in ("verification.json", "statistics.npz"):
            refuse_existing(folder / file, force)
        return _verify(made, decks, folder, options, progress)


def _check(options: VerifyOptions) -> None:
    if options.method not in ("exact", "sampled", "both"):
        raise InputError(f"--method is exact, sampled or both, got {options.method!r}")
    check_samples(options.samples)
    if options.seed < 0:
        raise InputError(f"a seed is a whole number >= 0, got {options.seed}")
    if not COLDEST <= options.ambient <= HOTTEST:
        raise InputError(f"--ambient is from {COLDEST:g} to {HOTTEST:g} °C, got {options.ambient:g}")
    if not 3 <= options.copies <= MOST_COPIES:
        raise InputError(f"--copies is from 3 to {MOST_COPIES} for a population, got {options.copies}")
    for option, value in (("--target-error", options.target_error), ("--bound", options.bound)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{option} is a relative error above 0 (0.01 is one per cent), got {value:g}")
    if options.measured and (options.charge or options.target_error):
        raise InputError("readings that are recorded already need no --charge or --target-error")


def _verify(
    made: Design, decks: dict[str, str], folder: Path, options: VerifyOptions, progress: Progress
) -> dict[str, Any]:
    sampled = options.method != "exact"
    if sampled and discarded(made.program) > MOST_START_UP:
        raise InputError(
            f"sampling would discard {discarded(made.program):,} readings of start-up, because the slowest mode takes "
            f"{made.program.settling:.3g} s; use --method exact, or design with a larger --damping or a --precondition"
        )
    if options.charge and made.board.inputs:
        raise InputError("charges are read on capacitive boards; a resistive one solves by its bias currents")
    conditions = Conditions(options.ambient)
    circuits = {
        copy.name: decks[copy.name]
        if options.ambient == REFERENCE_CELSIUS
        else circuit_text(made.board, made.program, copy, conditions)
        for copy in specimens(made)
    }
    samples = _samples(made, options) if sampled else 0
    plan = Plan(options.method != "sampled", samples, options.seed, options.charge, options.ambient)
    measured = measure(made, circuits, plan, chunks=folder / "chunks", progress=progress)
    found = compare(made, measured, ambient=options.ambient, copies=options.copies, bound=options.bound)
    result = describe_verification(found)
    result["provenance"] = provenance(
        board_sha256=sha256((folder / "board.json").read_bytes()),
        seed=options.seed,
        ngspice=ngspice_version(find_ngspice()),
    )
    save_measurements(folder / "statistics.npz", measured)
    write_json(folder / "verification.json", result)
    shutil.rmtree(folder / "chunks", ignore_errors=True)
    return result


def _samples(made: Design, options: VerifyOptions) -> int:
    """Readings of a copy: as given, or as needed for the target error; InputError if that takes too many."""
    if options.target_error is None:
        return options.samples
    one = error_of_one(made, inversion_rule(made), options.ambient)
    if one / options.target_error > MOST_SAMPLES**0.5:
        raise InputError(
            f"a statistical error of {options.target_error:g} takes more than {MOST_SAMPLES:,} readings a copy; "
            f"--target-error {two_digits(one / MOST_SAMPLES**0.5, up=True):.2g} would do"
        )
    return max(int(np.ceil((one / options.target_error) ** 2 / BLOCK)), 1) * BLOCK


def _verify_recorded(made: Design, folder: Path, options: VerifyOptions, force: bool) -> dict[str, Any]:
    refuse_existing(folder / "measured.json", force)
    recorded = statistics.read_recorded(options.measured, made, ambient=options.ambient)
    result = describe_verification(verify_recorded(made, recorded, copies=options.copies, bound=options.bound))
    result["provenance"] = provenance(
        board_sha256=sha256((folder / "board.json").read_bytes()),
        readings=options.measured.name,
        readings_sha256=file_sha256(options.measured),
    )
    write_json(folder / "measured.json", result)
    return result
