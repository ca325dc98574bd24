"""Results of ngspice for the copies of a design, and their file: an .npz of arrays named <copy>/<quantity>."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits.board import Design
from circuits.copies import specimens
from circuits.errors import InputError
from circuits.files import write_npz
from circuits.simulation.ac import ExactRun
from circuits.simulation.charge import ChargeRun
from circuits.simulation.noise import NoiseRun
from circuits.simulation.operating_point import SolveRun
from circuits.simulation.transient import HELD, Chunk, Recipe, recipe_named
from circuits.statistics.equilibrium import Sums
from circuits.statistics.moments import Moments

EXACT = ("covariance", "integration_error", "frequencies", "spectra")
SOLVED = ("bias", "columns", "times", "settling")
SUMMED = ("lag", "pairs", "lagged", "readings", "fourth")
CHARGED = ("charge", "times", "readings")
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # raised by numpy for a damaged .npz


@dataclass(frozen=True, eq=False)
class Run:
    """Results of ngspice for one copy: the exact run, and the second moments of the readings sampled by `recipe`.

    `solve` comes with the exact run of a resistive board, `charge` with charge readout of a capacitive board, `sums`
    with the moments, `noise` (a few variances by noise analysis) with the exact run of a copy.
    """

    exact: ExactRun | None
    moments: Moments | None
    solve: SolveRun | None = None
    charge: ChargeRun | None = None
    sums: Sums | None = None
    noise: NoiseRun | None = None
    recipe: Recipe = HELD


def save_measurements(path: Path, measured: dict[str, Run]) -> None:
    """Write the runs by copy name to one .npz, arrays named <copy>/<quantity>."""
    arrays: dict[str, np.ndarray] = {}
    for name, run in measured.items():
        arrays |= exact_arrays(run.exact, run.solve, f"{name}/")
        if run.noise:
            fields = ("outputs", "variances", "integration_error")
            arrays |= {f"{name}/noise_{field}": np.asarray(getattr(run.noise, field)) for field in fields}
        if run.charge:
            arrays |= {f"{name}/charge_{field}": np.asarray(getattr(run.charge, field)) for field in CHARGED}
        if run.moments:
            arrays |= {f"{name}/moments": run.moments.means, f"{name}/readings": run.moments.readings}
            arrays[f"{name}/recipe"] = np.array(run.recipe.name)
        if run.sums:
            arrays |= {f"{name}/sums_{field}": np.asarray(getattr(run.sums, field)) for field in SUMMED}
    write_npz(path, **arrays)


def load_measurements(path: Path, design: Design) -> dict[str, Run]:
    """Runs by copy name from the file of `save_measurements`; InputError if missing, damaged or of another design."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with `tngd verify`")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            arrays = dict(kept)
        finite = all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind in "fiu")
    except (*UNREADABLE, TypeError) as error:
        raise InputError(f"{path} is not readable ({error}); make it again with `tngd verify --force`") from None
    if not finite:
        raise InputError(f"{path} holds numbers that are not finite; make it again with `tngd verify --force`")
    n = len(design.board.cells)
    try:
        measured = {copy.name: _measurement(arrays, copy.name) for copy in specimens(design)}
    except (KeyError, TypeError):
        measured = {}
    matrices = [
        S
        for run in measured.values()
        for S in (run.exact and run.exact.covariance[None], run.moments and run.moments.means)
    ]
    if not measured or any(S is not None and S.shape != (len(S), n, n) for S in matrices):
        raise InputError(f"{path} belongs to another design; make it again with `tngd verify --force`")
    return measured


def exact_arrays(exact: ExactRun | None, solve: SolveRun | None, beginning: str = "") -> dict[str, np.ndarray]:
    """Arrays of runs without sampling, with names that begin with `beginning`."""
    arrays = {f"{beginning}{field}": np.asarray(getattr(exact, field)) for field in EXACT} if exact else {}
    solved = {f"{beginning}solve_{field}": np.asarray(getattr(solve, field)) for field in SOLVED} if solve else {}
    return arrays | solved


def exact_from(arrays: Mapping[str, np.ndarray], beginning: str = "") -> tuple[ExactRun | None, SolveRun | None]:
    """Runs from the arrays of `exact_arrays`; None for a run without arrays, KeyError if some arrays of a run lack."""
    exact = solve = None
    if f"{beginning}covariance" in arrays:
        covariance, error, frequencies, spectra = (arrays[beginning + field] for field in EXACT)
        exact = ExactRun(covariance, float(error), frequencies, spectra)
    if f"{beginning}solve_columns" in arrays:
        bias, *rest = (arrays[f"{beginning}solve_{field}"] for field in SOLVED)
        solve = SolveRun(float(bias), *rest)
    return exact, solve


def save_chunk(path: Path, chunk: Chunk) -> None:
    """Write one chunk to an .npz."""
    write_npz(path, moments=chunk.moments, **{field: np.asarray(getattr(chunk.sums, field)) for field in SUMMED})


def load_chunk(path: Path) -> Chunk | None:
    """Chunk read from an .npz of `save_chunk`; None if the file is missing or damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return Chunk(kept["moments"], _sums(kept))
    except (*UNREADABLE, KeyError):
        return None


def _measurement(arrays: dict[str, np.ndarray], name: str) -> Run:
    """Run of the copy of this name; KeyError if some arrays of an analysis are missing."""
    exact, solve = exact_from(arrays, f"{name}/")
    charge = None
    if f"{name}/charge_times" in arrays:
        amount, *rest = (arrays[f"{name}/charge_{field}"] for field in CHARGED)
        charge = ChargeRun(float(amount), *rest)
    noise = None
    if f"{name}/noise_outputs" in arrays:
        outputs, variances, error = (arrays[f"{name}/noise_{f}"] for f in ("outputs", "variances", "integration_error"))
        noise = NoiseRun(tuple(outputs.tolist()), variances, float(error))
    if f"{name}/moments" not in arrays:
        return Run(exact, None, solve, charge, noise=noise)
    moments = Moments(arrays[f"{name}/readings"], arrays[f"{name}/moments"])
    recipe = recipe_named(str(arrays[f"{name}/recipe"]))
    return Run(exact, moments, solve, charge, _sums(arrays, f"{name}/sums_"), noise, recipe)


def _sums(arrays: Mapping[str, np.ndarray], beginning: str = "") -> Sums:
    """Sums over a record from the arrays whose names begin with `beginning`."""
    lag, pairs, lagged, readings, fourth = (arrays[beginning + field] for field in SUMMED)
    return Sums(int(lag), int(pairs), lagged, int(readings), fourth)
