"""Programs on copies, by the exact route: every program on every copy in ngspice, on all cores, kept as they finish.

A kept run is filed under the hash of its deck, so an interrupted calibration goes on where it stopped.
"""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits.assembly import source_power
from circuits.board import Board, Conditions, Copy, Program
from circuits.copies import gains_of
from circuits.errors import SimulationError
from circuits.exact import ExactRun, exact_run
from circuits.netlist import circuit_text
from circuits.ngspice import find_ngspice, ngspice_version
from circuits.solve import SolveRun, solve_run
from circuits.store import sha256, write_npz

UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError)  # of a damaged kept run
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Shown:
    """What a copy showed under a program: its exact run, on a resistive board its solutions, and its deck's hash."""

    exact: ExactRun
    solved: SolveRun | None
    sha256: str


def run_programs(
    board: Board,
    programs: Sequence[Program],
    copies: Sequence[Copy],
    wanted: np.ndarray,
    folder: Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> list[list[Shown]]:
    """What every copy (outer) showed under every program (inner), with spectra near `wanted` (f,) [Hz].

    Raises SimulationError if a run fails twice; finished ones stay in `folder`.
    """
    jobs = [(c, p) for c in range(len(copies)) for p in range(len(programs))]
    shown: dict[tuple[int, int], Shown] = {}
    executor = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        futures = {executor.submit(_run, board, programs[p], copies[c], wanted, folder): (c, p) for c, p in jobs}
        for future in as_completed(futures):
            c, p = futures[future]
            shown[c, p] = future.result()
            progress(len(shown), len(jobs), f"{copies[c].name} under {programs[p].name}")
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return [[shown[c, p] for p in range(len(programs))] for c in range(len(copies))]


def _run(board: Board, program: Program, copy: Copy, wanted: np.ndarray, folder: Path | None) -> Shown:
    circuit = circuit_text(board, program, copy, Conditions())
    version = ngspice_version(find_ngspice())
    name = sha256(f"{version} {wanted.tolist()} {program.energy!r} {circuit}")
    path = folder and folder / f"{name[:32]}.npz"
    if path and path.is_file():
        with contextlib.suppress(*UNREADABLE), path.open("rb") as stream:
            return _read(dict(np.load(stream, allow_pickle=False)), name)
    try:
        made = _simulated(board, program, copy, circuit, wanted, name)
    except SimulationError:
        made = _simulated(board, program, copy, circuit, wanted, name)  # once more: a process may be killed
    if path:
        write_npz(path, **_arrays(made))
    return made


def _simulated(board: Board, program: Program, copy: Copy, circuit: str, wanted: np.ndarray, name: str) -> Shown:
    power = source_power(board, program, gains_of(board, [copy])[0], Conditions())
    exact = exact_run(board, program, circuit, wanted, power)
    return Shown(exact, solve_run(board, program, circuit) if board.inputs else None, name)


_EXACT = ("covariance", "integration_error", "frequencies", "spectra")
_SOLVED = ("bias", "columns", "times", "settling")


def _arrays(shown: Shown) -> dict[str, np.ndarray]:
    found = {field: np.asarray(getattr(shown.exact, field)) for field in _EXACT}
    if shown.solved:
        found |= {f"solve_{field}": np.asarray(getattr(shown.solved, field)) for field in _SOLVED}
    return found


def _read(arrays: dict[str, np.ndarray], name: str) -> Shown:
    covariance, error, frequencies, spectra = (arrays[field] for field in _EXACT)
    solved = None
    if "solve_bias" in arrays:
        bias, *rest = (arrays[f"solve_{field}"] for field in _SOLVED)
        solved = SolveRun(float(bias), *rest)
    return Shown(ExactRun(covariance, float(error), frequencies, spectra), solved, name)
