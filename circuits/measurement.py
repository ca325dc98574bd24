"""Running every copy of a design in ngspice, in parallel processes, and keeping what was measured.

A job is one exact run or one sampled chunk; each is a process of its own. A finished chunk is kept in `chunks/` under
the hash of its deck and of the ngspice that ran it, so an interrupted run goes on where it stopped.
"""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits.assembly import source_power
from circuits.board import Conditions
from circuits.copies import gains_of
from circuits.design import Design
from circuits.errors import InputError
from circuits.exact import ExactRun, exact_run
from circuits.ngspice import find_ngspice, ngspice_version
from circuits.sampled import chunk_deck, chunk_seed, chunk_sizes, run_chunk
from circuits.solve import SolveRun, solve_run
from circuits.store import sha256, write_npz

EXACT, SOLVE = -1, -2  # jobs of a copy that are no chunks
WORDS = {EXACT: "exact", SOLVE: "solving"}
Progress = Callable[[int, int, str], None]
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # what a damaged .npz makes numpy raise


@dataclass(frozen=True, eq=False)
class Run:
    """What ngspice returned for one copy: the exact run, and second moments (blocks, n, n) [V²] of the sampled one.

    `solve` comes with the exact run of a resistive board.
    """

    exact: ExactRun | None
    moments: np.ndarray | None
    solve: SolveRun | None = None


def spectral_frequencies(design: Design) -> np.ndarray:
    """Frequencies (2,) [Hz] at which spectra are kept: the resonance or the corner of the unit, and an octave below."""
    board = design.board
    inductance = next((part.nominal for part in board.parts if part.kind == "L"), None)
    corner = 1 / np.sqrt(inductance * board.unit) if inductance else board.unit / board.capacitance
    resonance = corner / (2 * np.pi)
    return np.array([resonance / 2, resonance])


def measure(
    design: Design,
    decks: dict[str, str],
    *,
    exact: bool,
    samples: int,
    seed: int,
    chunks: Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Run]:
    """Run the nominal board (exact only) and every copy; `samples` readings a copy, 0 for none.

    Raises SimulationError at the first job that fails; finished chunks stay in `chunks`.
    """
    board, program = design.board, design.program
    version = ngspice_version(find_ngspice())
    wanted = spectral_frequencies(design)
    sizes = chunk_sizes(samples) if samples else []
    jobs: dict[tuple[str, int], Callable] = {}
    for k, copy in enumerate(design.specimens):
        text = decks[copy.name]
        if exact and board.inputs:
            jobs[copy.name, SOLVE] = lambda text=text: solve_run(board, program, text)
        if exact:
            power = source_power(board, program, gains_of(board, [copy])[0], Conditions())
            jobs[copy.name, EXACT] = lambda text=text, power=power: exact_run(board, program, text, wanted, power)
        for c, size in enumerate(sizes if k else []):
            deck = chunk_deck(board, program, text, chunk_seed(seed, k, c), size)
            jobs[copy.name, c] = lambda deck=deck, size=size: _kept_chunk(board, program, deck, size, chunks, version)
    done = _run_all(jobs, progress)
    return {
        copy.name: Run(
            done.get((copy.name, EXACT)),
            np.concatenate([done[copy.name, c] for c in range(len(sizes))]) if k and sizes else None,
            done.get((copy.name, SOLVE)),
        )
        for k, copy in enumerate(design.specimens)
    }


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
        if run.moments is not None:
            arrays[f"{name}/moments"] = run.moments
    write_npz(path, **arrays)


def load_measurements(path: Path, design: Design) -> dict[str, Run]:
    """Read what `save_measurements` wrote; InputError if it is missing or belongs to another design."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with `tngd verify`")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            arrays = dict(kept)
        finite = all(np.isfinite(array).all() for array in arrays.values())
    except (*UNREADABLE, TypeError) as error:
        raise InputError(f"{path} is not readable ({error}); make it again with `tngd verify --force`") from None
    if not finite:
        raise InputError(f"{path} holds numbers that are not finite; make it again with `tngd verify --force`")
    n = len(design.board.cells)
    try:
        measured = {copy.name: _measurement(arrays, copy.name) for copy in design.specimens}
    except (KeyError, TypeError):
        measured = {}
    matrices = [S for run in measured.values() for S in (run.exact and run.exact.covariance[None], run.moments)]
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
    return Run(exact, arrays.get(f"{name}/moments"), solve)


def _kept_chunk(board, program, deck: str, size: int, folder: Path | None, version: str) -> np.ndarray:
    if folder is None:
        return run_chunk(board, program, deck, size)
    path = folder / f"{sha256(version + deck)[:32]}.npz"
    if path.is_file():
        with contextlib.suppress(*UNREADABLE), path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return kept["moments"]
    moments = run_chunk(board, program, deck, size)
    write_npz(path, moments=moments)
    return moments


def _run_all(jobs: dict[tuple[str, int], Callable], progress: Progress) -> dict[tuple[str, int], object]:
    """Run all jobs on all cores; at the first failure or Ctrl-C the waiting ones are dropped."""
    results: dict[tuple[str, int], object] = {}
    executor = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        running: dict[Future, tuple[str, int]] = {executor.submit(job): key for key, job in jobs.items()}
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                key = running.pop(future)
                results[key] = future.result()
                progress(len(results), len(jobs), f"{key[0]} {WORDS.get(key[1], 'sampled')}")
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return results
