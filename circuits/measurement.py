"""Running every copy of a design in ngspice, in parallel processes, and keeping what was measured.

A job is one exact run or one sampled chunk; each is a process of its own. A finished chunk is kept in `chunks/` under
the hash of its deck and of the ngspice that ran it, so an interrupted run goes on where it stopped.
"""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits.design import Design
from circuits.exact import ExactRun, exact_run
from circuits.ngspice import find_ngspice, ngspice_version
from circuits.sampled import chunk_deck, chunk_seed, chunk_sizes, run_chunk
from circuits.store import sha256, write_npz

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Measurement:
    """What ngspice returned for one copy: the exact run, and second moments (blocks, n, n) [V²] of the sampled one."""

    exact: ExactRun | None
    moments: np.ndarray | None


def spectral_frequencies(design: Design) -> np.ndarray:
    """Frequencies (2,) [Hz] at which spectra are kept: where unit capacitance resonates, and an octave below."""
    inductance = next(part.nominal for part in design.board.parts if part.kind == "L")
    resonance = 1 / (2 * np.pi * np.sqrt(inductance * design.board.unit_capacitance))
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
) -> dict[str, Measurement]:
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
        if exact:
            jobs[copy.name, -1] = lambda text=text: exact_run(board, program, text, wanted)
        for c, size in enumerate(sizes if k else []):
            deck = chunk_deck(board, program, text, chunk_seed(seed, k, c), size)
            jobs[copy.name, c] = lambda deck=deck, size=size: _kept_chunk(board, program, deck, size, chunks, version)
    done = _run_all(jobs, progress)
    return {
        copy.name: Measurement(
            done.get((copy.name, -1)),
            np.concatenate([done[copy.name, c] for c in range(len(sizes))]) if k and sizes else None,
        )
        for k, copy in enumerate(design.specimens)
    }


def _kept_chunk(board, program, deck: str, size: int, folder: Path | None, version: str) -> np.ndarray:
    if folder is None:
        return run_chunk(board, program, deck, size)
    path = folder / f"{sha256(version + deck)[:32]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
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
                progress(len(results), len(jobs), f"{key[0]} {'exact' if key[1] < 0 else 'sampled'}")
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
    return results
