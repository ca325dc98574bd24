"""The covariance of the readings from time-domain runs, in chunks that are independent records of their own seed.

A chunk is one ngspice process: start-up discarded, then readings y_k at multiples of the hold period. What is kept
is the second moment of every block of BLOCK readings, (1/BLOCK) Σ y yᵀ (the mean is known to be zero), so memory does
not grow with the record and any later question about error against samples can be answered.
"""

import numpy as np

from circuits.assembly import readout_matrix
from circuits.board import Board, Program
from circuits.deck import sampled_analysis
from circuits.errors import SimulationError
from circuits.ngspice import run_deck

BLOCK = 500  # readings
NOISE_STREAM = 2  # of random numbers: not that of parts
CHUNK = 25_000  # readings; about two seconds for eight differential cells


def chunk_sizes(samples: int) -> list[int]:
    """Split `samples` into chunks of at most CHUNK readings, whole blocks each, rounding the total up."""
    blocks = -(-samples // BLOCK)
    per_chunk = CHUNK // BLOCK
    full, rest = divmod(blocks, per_chunk)
    return [CHUNK] * full + [rest * BLOCK] * (rest > 0)


def chunk_seed(seed: int, copy: int, chunk: int) -> int:
    """A positive 31-bit seed for ngspice, distinct and independent for every (seed, copy, chunk)."""
    return int(np.random.SeedSequence([NOISE_STREAM, seed, copy, chunk]).generate_state(1)[0] >> 1) or 1


def chunk_deck(board: Board, program: Program, circuit: str, seed: int, samples: int) -> str:
    """The deck of one chunk, from the circuit part of a copy's deck."""
    return circuit + sampled_analysis(board, program, seed, samples, "chunk")


def run_chunk(board: Board, program: Program, deck: str, samples: int) -> np.ndarray:
    """Run one chunk; second moments of its blocks, (samples / BLOCK, n, n), V²."""
    plot = run_deck(deck, board.nodes, "chunk", 1)[0]
    if len(plot.scale) < samples:
        raise SimulationError(f"ngspice stopped after {len(plot.scale)} of {samples} readings; is the circuit stable?")
    steps = plot.scale[:samples] / program.period
    if np.abs(steps - steps[0].round() - np.arange(samples)).max() > 1e-3:
        raise SimulationError("ngspice's readings are not on the sampling grid; a newer or older ngspice may do")
    y = (plot.voltages[:samples] @ readout_matrix(board).T).reshape(-1, BLOCK, len(board.readings))
    return np.einsum("bki,bkj->bij", y, y, optimize=True) / BLOCK
