"""Running every copy of a design in ngspice, in parallel processes, and keeping what was measured.

A job is one exact run or one sampled chunk; each is a process of its own. A finished chunk is kept in `chunks/` under
the hash of its deck and of the ngspice that ran it, so an interrupted run goes on where it stopped. A job that fails
costs itself alone: the others go on, and it is tried once more at the end.
"""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from circuits.assembly import assemble, source_power
from circuits.board import REFERENCE_CELSIUS, Conditions
from circuits.charge import ChargeRun, charge_run
from circuits.copies import gains_of
from circuits.design import Design
from circuits.errors import InputError, SimulationError
from circuits.exact import ExactRun, exact_run
from circuits.inversion import Inversion
from circuits.moments import Accumulator, Moments
from circuits.ngspice import find_ngspice, ngspice_version
from circuits.sampled import (
    BLOCK,
    CHUNK,
    HELD,
    Recipe,
    chunk_deck,
    chunk_seed,
    chunk_sizes,
    chunks_law,
    recipe_for,
    recipe_named,
    run_chunk,
)
from circuits.solve import SolveRun, solve_run
from circuits.store import sha256, write_npz

EXACT, SOLVE, CHARGE = "exact", "solving", "charge"  # jobs of a copy that are no chunks
CHARGED = ("charge", "times", "readings")
WAITING = 64  # jobs that wait for a process; more would only take memory
Progress = Callable[[int, int, str], None]
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # what a damaged .npz makes numpy raise


@dataclass(frozen=True)
class Plan:
    """What is to be run: the exact route, `samples` readings a copy (0 for none) from `seed`, the charge readout.

    `ambient` [°C] is where the copies are.
    """

    exact: bool = True
    samples: int = 0
    seed: int = 0
    charge: bool = False
    ambient: float = REFERENCE_CELSIUS


@dataclass(frozen=True, eq=False)
class Run:
    """What ngspice returned for one copy: the exact run, and the second moments of the one sampled by `recipe`.

    `solve` comes with the exact run of a resistive board, `charge` with a capacitive one if it was asked for.
    """

    exact: ExactRun | None
    moments: Moments | None
    solve: SolveRun | None = None
    charge: ChargeRun | None = None
    recipe: Recipe = HELD


def spectral_frequencies(design: Design) -> np.ndarray:
    """Frequencies (2,) [Hz] at which spectra are kept: the resonance or the corner of the unit, and an octave below."""
    board = design.board
    inductance = next((part.nominal for part in board.parts if part.kind == "L"), None)
    corner = 1 / np.sqrt(inductance * board.unit) if inductance else board.unit / board.capacitance
    resonance = corner / (2 * np.pi)
    return np.array([resonance / 2, resonance])


def measure(
    design: Design,
    circuits: dict[str, str],
    plan: Plan,
    *,
    chunks: Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Run]:
    """Run the nominal board (but not sampled) and every copy, from the circuit parts of their decks.

    Raises SimulationError if a job fails twice, when all others are done; finished chunks stay in `chunks`.
    """
    recipe = recipe_for(design.board, design.program) if plan.samples else HELD
    sizes = chunk_sizes(plan.samples) if plan.samples else []
    blocks = sum(sizes) // BLOCK
    sums = {copy.name: Accumulator(blocks, BLOCK, len(design.board.cells)) for copy in design.copies if blocks}
    single: dict[tuple[str, str], object] = {}

    def collect(key: tuple[str, str | int], result: object) -> None:
        name, what = key
        if isinstance(what, int):
            sums[name].add(sum(sizes[:what]) // BLOCK, result)
        else:
            single[name, what] = result

    jobs = _jobs(design, circuits, plan, sizes, recipe, chunks)
    _run_all(jobs, collect, progress)
    return {
        copy.name: Run(
            single.get((copy.name, EXACT)),
            sums[copy.name].moments() if copy.name in sums else None,
            single.get((copy.name, SOLVE)),
            single.get((copy.name, CHARGE)),
            recipe,
        )
        for copy in design.specimens
    }


def samples_for(design: Design, rule: Inversion, target: float, ambient: float) -> int:
    """Readings a copy after which the statistical error of every copy's inverse is at most `target`.

    The error of an estimate is known before it is made: it is that of the law of the copy's own values.
    """
    recipe = recipe_for(design.board, design.program)
    needed = 0.0
    for copy in design.copies:
        circuit = assemble(design.board, design.program, copy, Conditions(ambient))
        law = chunks_law(recipe, circuit, design.program.period, CHUNK)
        needed = max(needed, CHUNK * (rule.spread(law) / target) ** 2)
    return int(np.ceil(needed / BLOCK)) * BLOCK


def save_measurements(path: Path, measured: dict[str, Run]) -> None:
    """Write everything measured to one .npz, arrays named <copy>/<quantity>."""
    arrays: dict[str, np.ndarray] = {}
    for name, run in measured.items():
        if run.exact:
            arrays[f"{name}/covariance"] = run.exact.covariance
            arrays[f"{name}/integration_error"] = np.array(run.exact.integration_error)
            arrays[f"{name}/frequencies"] = run.exact.frequencies
            arrays[f"{name}/spectra"] = run.exact.spectra
        if run.solve:
            fields = ("bias", "columns", "times", "settling")
            arrays |= {f"{name}/solve_{field}": np.asarray(getattr(run.solve, field)) for field in fields}
        if run.charge:
            arrays |= {f"{name}/charge_{field}": np.asarray(getattr(run.charge, field)) for field in CHARGED}
        if run.moments:
            arrays |= {f"{name}/moments": run.moments.means, f"{name}/readings": run.moments.readings}
            arrays[f"{name}/recipe"] = np.array(run.recipe.name)
    write_npz(path, **arrays)


def load_measurements(path: Path, design: Design) -> dict[str, Run]:
    """Read what `save_measurements` wrote; InputError if it is missing or belongs to another design."""
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
        measured = {copy.name: _measurement(arrays, copy.name) for copy in design.specimens}
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


def _measurement(arrays: dict[str, np.ndarray], name: str) -> Run:
    exact = None
    if f"{name}/covariance" in arrays:
        fields = ("covariance", "integration_error", "frequencies", "spectra")
        covariance, error, frequencies, spectra = (arrays[f"{name}/{field}"] for field in fields)
        exact = ExactRun(covariance, float(error), frequencies, spectra)
    solve = None
    if f"{name}/solve_columns" in arrays:
        fields = ("bias", "columns", "times", "settling")
        bias, *rest = (arrays[f"{name}/solve_{field}"] for field in fields)
        solve = SolveRun(float(bias), *rest)
    charge = None
    if f"{name}/charge_times" in arrays:
        amount, *rest = (arrays[f"{name}/charge_{field}"] for field in CHARGED)
        charge = ChargeRun(float(amount), *rest)
    if f"{name}/moments" not in arrays:
        return Run(exact, None, solve, charge)
    moments = Moments(arrays[f"{name}/readings"], arrays[f"{name}/moments"])
    return Run(exact, moments, solve, charge, recipe_named(str(arrays[f"{name}/recipe"])))


def _jobs(
    design: Design, circuits: dict[str, str], plan: Plan, sizes: list[int], recipe: Recipe, folder: Path | None
) -> dict[tuple[str, str | int], Callable[[], object]]:
    """Everything to be run, by copy and kind or number of the chunk."""
    board, program = design.board, design.program
    version = ngspice_version(find_ngspice())
    wanted = spectral_frequencies(design)
    jobs: dict[tuple[str, str | int], Callable[[], object]] = {}
    for k, copy in enumerate(design.specimens):
        text = circuits[copy.name]
        if plan.exact and board.inputs:
            jobs[copy.name, SOLVE] = partial(solve_run, board, program, text)
        if plan.exact:
            power = source_power(board, program, gains_of(board, [copy])[0], Conditions(plan.ambient))
            jobs[copy.name, EXACT] = partial(exact_run, board, program, text, wanted, power)
        if plan.charge:
            jobs[copy.name, CHARGE] = partial(charge_run, board, program, text)
        for c, size in enumerate(sizes if k else []):
            seed = chunk_seed(plan.seed, k, c)
            jobs[copy.name, c] = partial(_kept_chunk, design, text, seed, size, recipe, folder, version)
    return jobs


def _kept_chunk(
    design: Design, circuit: str, seed: int, size: int, recipe: Recipe, folder: Path | None, version: str
) -> np.ndarray:
    """Second moments of the blocks of a chunk, run now or before."""
    board, program = design.board, design.program
    deck = chunk_deck(board, program, circuit, seed, size, recipe)
    path = folder and folder / f"{sha256(version + deck)[:32]}.npz"
    if path and path.is_file():
        with contextlib.suppress(*UNREADABLE), path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return kept["moments"]
    moments = run_chunk(board, program, deck, size)
    if path:
        write_npz(path, moments=moments)
    return moments


def _run_all(
    jobs: dict[tuple[str, str | int], Callable[[], object]],
    collect: Callable[[tuple[str, str | int], object], None],
    progress: Progress,
) -> None:
    """Run all jobs on all cores and collect results as they come; what fails is tried again when the others are done.

    At Ctrl-C the waiting ones are dropped.
    """
    failed: list[tuple[str, str | int]] = []
    done = 0
    for last, todo in ((False, list(jobs)), (True, failed)):
        for key, result, error in _finished(jobs, todo):
            if error and last:
                raise error
            if error:
                failed.append(key)
                continue
            collect(key, result)
            done += 1
            progress(done, len(jobs), f"{key[0]} {'sampled' if isinstance(key[1], int) else key[1]}")


def _finished(
    jobs: dict[tuple[str, str | int], Callable[[], object]], todo: list[tuple[str, str | int]]
) -> Iterator[tuple[tuple[str, str | int], object, SimulationError | None]]:
    """Key, result and error of every job of `todo`, as they finish."""
    executor = ThreadPoolExecutor(os.cpu_count() or 1)
    running: dict[Future, tuple[str, str | int]] = {}
    waiting = iter(list(todo))
    try:
        while True:
            running |= {executor.submit(jobs[key]): key for key in islice(waiting, WAITING - len(running))}
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                key = running.pop(future)
                error = future.exception()
                if error and not isinstance(error, SimulationError):
                    raise error
                yield key, None if error else future.result(), error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
