"""Whole measurements in ngspice: all copies of a design (`measure`), or every program on every copy, on all cores.

A job is one exact run or one sampled chunk; each is an ngspice process of its own. A job that fails does not stop the
others, and is tried once more at the end. A finished run is kept in a folder under the hash of its deck and of the
version of ngspice, so that an interrupted measurement continues where it stopped.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from circuits.board import REFERENCE_CELSIUS, Board, Conditions, Copy, Design, Program
from circuits.copies import gains_of, specimens
from circuits.errors import InputError
from circuits.files import sha256, write_npz
from circuits.netlist.spice import circuit_text
from circuits.nodal import assemble, source_power, unit_rate
from circuits.parallel import Progress, run_all, silent
from circuits.simulation.ac import ExactRun, Spectra, exact_run, spectral_run
from circuits.simulation.charge import charge_run
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.simulation.noise import noise_run
from circuits.simulation.operating_point import SolveRun, solve_run
from circuits.simulation.runs import UNREADABLE, Run, exact_arrays, exact_from, load_chunk, save_chunk
from circuits.simulation.transient import HELD, Chunk, Recipe, chunk_deck, chunks_law, recipe_for, run_chunk
from circuits.statistics.equilibrium import Sums
from circuits.statistics.inversion import Inversion
from circuits.statistics.moments import BLOCK, CHUNK, Accumulator, chunk_seed, chunk_sizes

EXACT, SOLVE, CHARGE, NOISE = "exact", "solving", "charge", "noise"  # jobs of a copy that are no chunks
FIRST_CHUNK = 1_000_000  # number of the first chunk of programs: a verification of the same seed has fewer chunks
MOST_CHUNKS = 10_000  # of one program
MOST_SAMPLES = 100_000_000


@dataclass(frozen=True)
class Plan:
    """Analyses to run: the exact route, `samples` readings a copy (0 for none) with noise of `seed`, charge readout.

    `ambient` [°C] is the temperature of the copies.
    """

    exact: bool = True
    samples: int = 0
    seed: int = 0
    charge: bool = False
    ambient: float = REFERENCE_CELSIUS


def spectral_frequencies(design: Design) -> np.ndarray:
    """Frequencies (2,) [Hz] at which spectra are kept: an octave below the unit's resonance or corner, and at it."""
    resonance = unit_rate(design.board) / (2 * np.pi)
    return np.array([resonance / 2, resonance])


def measure(
    design: Design,
    circuits: dict[str, str],
    plan: Plan,
    *,
    chunks: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Run]:
    """Run every copy, and the nominal board (without sampling), from the circuit parts of their decks.

    SimulationError if a job fails twice, raised when all others are done; finished chunks stay in `chunks`.
    """
    recipe = recipe_for(design.board, design.program) if plan.samples else HELD
    sizes = chunk_sizes(plan.samples) if plan.samples else []
    blocks = sum(sizes) // BLOCK
    blocks_of = {copy.name: Accumulator(blocks, BLOCK, len(design.board.cells)) for copy in design.copies if blocks}
    sums: dict[str, Sums] = {}
    early: dict[str, dict[int, Chunk]] = {}  # chunks that finished before an earlier one
    taken: dict[str, int] = {}
    single: dict[tuple[str, str], object] = {}

    def collect(key: tuple[str, str | int], result: object) -> None:
        name, what = key
        if not isinstance(what, int):
            single[name, what] = result
            return
        early.setdefault(name, {})[what], _ = result
        # In the order of the record, so that the sums do not depend on which job ends first.
        while (first := taken.get(name, 0)) in early[name]:
            chunk = early[name].pop(first)
            blocks_of[name].add(sum(sizes[:first]) // BLOCK, chunk.moments)
            sums[name] = sums[name] + chunk.sums if name in sums else chunk.sums
            taken[name] = first + 1

    jobs = _jobs(design, circuits, plan, sizes, recipe, chunks)
    run_all(jobs, collect, progress, lambda key: f"{key[0]} {'sampled' if isinstance(key[1], int) else key[1]}")
    return {
        copy.name: Run(
            single.get((copy.name, EXACT)),
            blocks_of[copy.name].moments() if copy.name in blocks_of else None,
            single.get((copy.name, SOLVE)),
            single.get((copy.name, CHARGE)),
            sums.get(copy.name),
            single.get((copy.name, NOISE)),
            recipe,
        )
        for copy in specimens(design)
    }


def error_of_one(design: Design, rule: Inversion, ambient: float) -> float:
    """Statistical error of the inverse of the worst copy, times the square root of the number of readings.

    The error is known before any run: the law of the estimate follows from the values of the copy.
    """
    recipe = recipe_for(design.board, design.program)
    circuits = [assemble(design.board, design.program, copy, Conditions(ambient)) for copy in design.copies]
    laws = [chunks_law(recipe, circuit, design.program.period, CHUNK) for circuit in circuits]
    return max(rule.spread(law) for law in laws) * float(np.sqrt(CHUNK))


def _jobs(
    design: Design, circuits: dict[str, str], plan: Plan, sizes: list[int], recipe: Recipe, folder: Path | None
) -> dict[tuple[str, str | int], Callable[[], object]]:
    """Jobs by name of the copy, and analysis or number of the chunk."""
    board, program = design.board, design.program
    find_ngspice()  # or SimulationError at once, before any job
    wanted = spectral_frequencies(design)
    jobs: dict[tuple[str, str | int], Callable[[], object]] = {}
    for k, copy in enumerate(specimens(design)):
        text = circuits[copy.name]
        if plan.exact and board.inputs:
            jobs[copy.name, SOLVE] = partial(solve_run, board, program, text)
        if plan.exact:
            power = source_power(board, program, gains_of(board, [copy])[0], Conditions(plan.ambient))
            jobs[copy.name, EXACT] = partial(exact_run, board, program, text, wanted, power)
        if plan.exact and k:
            n = len(board.cells)
            jobs[copy.name, NOISE] = partial(noise_run, board, program, text, sorted({0, n // 2, n - 1}))
        if plan.charge:
            jobs[copy.name, CHARGE] = partial(charge_run, board, program, text)
        for c, size in enumerate(sizes if k else []):
            seed = chunk_seed(plan.seed, k, c)
            jobs[copy.name, c] = partial(_chunk, board, program, text, recipe, seed, size, folder)
    return jobs


def _chunk(
    board: Board, program: Program, circuit: str, recipe: Recipe, seed: int, size: int, folder: Path | None
) -> tuple[Chunk, str]:
    """Run a chunk of `size` readings or load the one kept in `folder`; the chunk, and the hash of its deck."""
    deck = chunk_deck(board, program, circuit, seed, size, recipe)
    name = sha256(ngspice_version(find_ngspice()) + deck)
    path = folder and folder / f"{name[:32]}.npz"
    chunk = path and load_chunk(path)
    if not chunk:
        chunk = run_chunk(board, program, deck, size)
        if path:
            save_chunk(path, chunk)
    return chunk, name


@dataclass(frozen=True, eq=False)
class Shown:
    """Exact run, or spectra alone, of a copy under a program; solutions of a resistive board; hash of the deck."""

    exact: ExactRun | Spectra
    solved: SolveRun | None
    sha256: str


@dataclass(frozen=True, eq=False)
class Sampled:
    """Second moment (n, n) [V²] of `samples` readings of a copy under a program, the recipe, hash of the decks."""

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
    """Run every copy (outer list) under every program (inner list), with spectra near `wanted` (f,) [Hz], each once.

    `spectra_only`: without the covariance, which takes most of the time. SimulationError if a run fails twice; finished
    runs stay in `folder`.
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
    """Sample every copy (outer list) under every program (inner list): `samples` readings each, noise of this seed.

    `samples` is rounded up to whole blocks. SimulationError if a chunk fails twice; finished chunks stay in `folder`.
    """
    recipes, sizes = [recipe_for(board, program) for program in programs], chunk_sizes(samples)
    moments: dict[tuple[int, int, int], tuple[np.ndarray, str]] = {}
    jobs = {
        (c, p, k): partial(
            _second_moment,
            board,
            program,
            copy,
            recipes[p],
            chunk_seed(seed, c, FIRST_CHUNK + p * MOST_CHUNKS + k),
            size,
            folder,
        )
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


def _second_moment(
    board: Board, program: Program, copy: Copy, recipe: Recipe, seed: int, size: int, folder: Path | None
) -> tuple[np.ndarray, str]:
    """Second moment (n, n) [V²] of one chunk, run now or kept, and the hash of its deck."""
    circuit = circuit_text(board, program, copy, Conditions())
    chunk, name = _chunk(board, program, circuit, recipe, seed, size, folder)
    return chunk.moments.mean(axis=0), name


def _run(
    board: Board, program: Program, copy: Copy, wanted: np.ndarray, folder: Path | None, spectra_only: bool
) -> Shown:
    """Run a copy under a program without sampling, or load the run kept in `folder`."""
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


def check_samples(samples: int) -> None:
    """Raise InputError unless a run can take this many readings a copy."""
    if not BLOCK <= samples <= MOST_SAMPLES:
        raise InputError(f"--samples is from {BLOCK} to {MOST_SAMPLES}, got {samples}")
