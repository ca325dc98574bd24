"""Programs on copies: every program on every copy in ngspice, exactly or sampled, on all cores, kept as they finish.

A kept run is filed under the hash of its deck, so an interrupted calibration goes on where it stopped.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from circuits.board import Board, Conditions, Copy, Program
from circuits.copies import gains_of
from circuits.files import sha256, write_npz
from circuits.netlist.spice import circuit_text
from circuits.nodal import source_power
from circuits.parallel import Progress, run_all, silent
from circuits.simulation.ac import ExactRun, Spectra, exact_run, spectral_run
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.simulation.operating_point import SolveRun, solve_run
from circuits.simulation.runs import UNREADABLE, exact_arrays, exact_from, load_chunk, save_chunk
from circuits.simulation.transient import Recipe, chunk_deck, recipe_for, run_chunk
from circuits.statistics.moments import chunk_seed, chunk_sizes

BESIDE = 1_000_000  # number of the first chunk: none that a verification of the same seed has
MOST_CHUNKS = 10_000  # of one program


@dataclass(frozen=True, eq=False)
class Shown:
    """What a copy showed under a program: its exact run or spectra alone, a resistive board's solutions, a hash."""

    exact: ExactRun | Spectra
    solved: SolveRun | None
    sha256: str


@dataclass(frozen=True, eq=False)
class Sampled:
    """What readings of a copy under a program say: their second moment (n, n) [V²], how many, how they were taken."""

    covariance: np.ndarray
    samples: int
    recipe: Recipe
    sha256: str


def run_programs(
    board: Board,
    programs: Sequence[Program],
    copies: Sequence[Copy],
    wanted: np.ndarray,
    folder: Path | None = None,
    progress: Progress = silent,
    spectra_only: bool = False,
) -> list[list[Shown]]:
    """What every copy (outer) showed under every program (inner), with spectra near `wanted` (f,) [Hz], each once.

    `spectra_only`: without the covariance, which takes most of the time. Raises SimulationError if a run fails twice;
    finished ones stay in `folder`.
    """
    shown: dict[tuple[int, int], Shown] = {}
    jobs = {
        (c, p): partial(_run, board, program, copy, wanted, folder, spectra_only)
        for c, copy in enumerate(copies)
        for p, program in enumerate(programs)
    }
    run_all(jobs, shown.__setitem__, progress, lambda key: f"{copies[key[0]].name} under {programs[key[1]].name}")
    return [[shown[c, p] for p in range(len(programs))] for c in range(len(copies))]


def sample_programs(
    board: Board,
    programs: Sequence[Program],
    copies: Sequence[Copy],
    samples: int,
    seed: int,
    folder: Path | None = None,
    progress: Progress = silent,
) -> list[list[Sampled]]:
    """The same from `samples` readings each, rounded up to whole blocks, with noise of this seed."""
    recipes, sizes = [recipe_for(board, program) for program in programs], chunk_sizes(samples)
    moments: dict[tuple[int, int, int], tuple[np.ndarray, str]] = {}
    jobs = {
        (c, p, k): partial(_chunk, board, program, copy, recipes[p], seed, (c, p, k), size, folder)
        for c, copy in enumerate(copies)
        for p, program in enumerate(programs)
        for k, size in enumerate(sizes)
    }
    run_all(
        jobs, moments.__setitem__, progress, lambda key: f"{copies[key[0]].name} under {programs[key[1]].name}, sampled"
    )

    def of(c: int, p: int) -> Sampled:
        found = [moments[c, p, k] for k in range(len(sizes))]
        mean = np.average([mean for mean, _ in found], axis=0, weights=sizes)
        return Sampled(mean, sum(sizes), recipes[p], sha256("".join(own for _, own in found)))

    return [[of(c, p) for p in range(len(programs))] for c in range(len(copies))]


def _chunk(
    board: Board,
    program: Program,
    copy: Copy,
    recipe: Recipe,
    seed: int,
    place: tuple[int, int, int],
    size: int,
    folder: Path | None,
) -> tuple[np.ndarray, str]:
    """Second moment (n, n) of one chunk, run now or before, and the hash of its deck."""
    c, p, k = place
    own = chunk_seed(seed, c, BESIDE + p * MOST_CHUNKS + k)
    deck = chunk_deck(board, program, circuit_text(board, program, copy, Conditions()), own, size, recipe)
    name = sha256(ngspice_version(find_ngspice()) + deck)
    path = folder and folder / f"{name[:32]}.npz"
    chunk = path and load_chunk(path)
    if not chunk:
        chunk = run_chunk(board, program, deck, size)
        if path:
            save_chunk(path, chunk)
    return chunk.moments.mean(axis=0), name


def _run(
    board: Board, program: Program, copy: Copy, wanted: np.ndarray, folder: Path | None, spectra_only: bool
) -> Shown:
    circuit = circuit_text(board, program, copy, Conditions())
    version = ngspice_version(find_ngspice())
    name = sha256(f"{version} {spectra_only} {wanted.tolist()} {program.energy!r} {circuit}")
    path = folder and folder / f"{name[:32]}.npz"
    if path and path.is_file():
        with contextlib.suppress(*UNREADABLE, KeyError, TypeError), path.open("rb") as stream:
            kept = dict(np.load(stream, allow_pickle=False))
            exact, solved = exact_from(kept)
            return Shown(exact or Spectra(kept["frequencies"], kept["spectra"]), solved, name)
    power = source_power(board, program, gains_of(board, [copy])[0], Conditions())
    exact = (spectral_run if spectra_only else exact_run)(board, program, circuit, wanted, power)
    frequencies, first = np.unique(exact.frequencies, return_index=True)
    exact = replace(exact, frequencies=frequencies, spectra=exact.spectra[first])
    made = Shown(exact, solve_run(board, program, circuit) if board.inputs else None, name)
    if path:
        whole, spectra = (None, vars(exact)) if spectra_only else (exact, {})
        write_npz(path, **exact_arrays(whole, made.solved), **spectra)
    return made
