"""Programs on copies, by the exact route: every program on every copy in ngspice, on all cores, kept as they finish.

A kept run is filed under the hash of its deck, so an interrupted calibration goes on where it stopped.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from circuits.assembly import source_power
from circuits.board import Board, Conditions, Copy, Program
from circuits.copies import gains_of
from circuits.exact import ExactRun, exact_run
from circuits.jobs import Progress, run_all
from circuits.netlist import circuit_text
from circuits.ngspice import find_ngspice, ngspice_version
from circuits.runs import UNREADABLE, exact_arrays, exact_from
from circuits.solve import SolveRun, solve_run
from circuits.store import sha256, write_npz


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
    shown: dict[tuple[int, int], Shown] = {}
    jobs = {
        (c, p): partial(_run, board, program, copy, wanted, folder)
        for c, copy in enumerate(copies)
        for p, program in enumerate(programs)
    }
    run_all(jobs, shown.__setitem__, progress, lambda key: f"{copies[key[0]].name} under {programs[key[1]].name}")
    return [[shown[c, p] for p in range(len(programs))] for c in range(len(copies))]


def _run(board: Board, program: Program, copy: Copy, wanted: np.ndarray, folder: Path | None) -> Shown:
    circuit = circuit_text(board, program, copy, Conditions())
    version = ngspice_version(find_ngspice())
    name = sha256(f"{version} {wanted.tolist()} {program.energy!r} {circuit}")
    path = folder and folder / f"{name[:32]}.npz"
    if path and path.is_file():
        with contextlib.suppress(*UNREADABLE, KeyError, TypeError), path.open("rb") as stream:
            return Shown(*exact_from(dict(np.load(stream, allow_pickle=False))), name)
    power = source_power(board, program, gains_of(board, [copy])[0], Conditions())
    exact = exact_run(board, program, circuit, wanted, power)
    made = Shown(exact, solve_run(board, program, circuit) if board.inputs else None, name)
    if path:
        write_npz(path, **exact_arrays(made.exact, made.solved))
    return made
