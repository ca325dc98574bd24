"""Sampled readings from transient runs, in chunks: independent records, each with a seed of its own.

A chunk is one ngspice process: start-up discarded, then readings y_k at multiples of the hold period. Kept is the
second moment (1/BLOCK) Σ y yᵀ of every block of BLOCK readings (the mean is known to be zero), so memory does not grow
with the record, and the error can be given against the number of samples afterwards.

A recipe is a way of feeding the noise. With held noise (`trrandom`) every sample is a break point and costs four or
five steps of the integrator; the law of the readings is that of circuits.ou. Noise from a file costs one step a sample;
the law is that of circuits.statistics.trapezoidal. The deck determines the chunk completely, so the hash of the deck
can name a kept chunk.
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from circuits.board import Board, Conditions, Program
from circuits.errors import InputError, SimulationError
from circuits.netlist.deck import START_UP, discarded, file_sources, file_widths, sampled_analysis, stepped_analysis
from circuits.nodal import Circuit, lag_of, nominal_circuit, readout_matrix
from circuits.ou import held_covariance, lagged_covariances, reading_covariance
from circuits.simulation.ngspice import find_ngspice, ngspice_version, run_deck
from circuits.statistics.equilibrium import Sums, sums_of
from circuits.statistics.estimators import EstimateLaw, law_of_records, record_lengths
from circuits.statistics.moments import BLOCK, CHUNK
from circuits.statistics.trapezoidal import (
    UNIT,
    alternating_currents,
    memory,
    stepped_lagged_covariances,
)

FILE_STREAM = 4  # stream of random numbers of noise files; parts, seeds of noise and devices have others
STEPPED_FROM = 32  # cells
KLU_FROM = 42  # version of ngspice
SETTLED = 128  # steps; the first steps of ngspice are shorter than the period
MOST_START_UP = 2000  # steps of start-up that one step a sample may cost on a board that settles sooner
LARGE = 1e-6  # relative difference of a run to its recursion: far above rounding, far below any other recursion


@dataclass(frozen=True)
class Recipe:
    """Way to run a chunk. `stepped`: noise from a file, one step a sample; `klu`: with the sparse solver KLU."""

    name: str
    stepped: bool = False
    klu: bool = False


@dataclass(frozen=True, eq=False)
class Chunk:
    """Second moments (samples / BLOCK, n, n) [V²] of the blocks of a chunk, and the sums of statistics.equilibrium."""

    moments: np.ndarray
    sums: Sums


HELD = Recipe("held trrandom")
STEPPED = Recipe("filesource", stepped=True)
STEPPED_KLU = Recipe("filesource, klu", stepped=True, klu=True)


def choose_recipe(cells: int, version: str) -> Recipe:
    """Fastest recipe for a board of this number of cells in an ngspice of this version, if built with XSPICE."""
    if cells < STEPPED_FROM:
        return HELD
    number = re.match(r"\d+", version)
    return STEPPED_KLU if number and int(number[0]) >= KLU_FROM else STEPPED


def recipe_for(board: Board, program: Program) -> Recipe:
    """Fastest recipe that the installed ngspice is found to run correctly and whose law holds for this board.

    If the recipe is held noise instead of a faster one, its name says why. SimulationError if there is no ngspice.
    """
    path = find_ngspice()
    recipe = choose_recipe(len(board.cells), ngspice_version(path))
    if not recipe.stepped:
        return recipe
    if _too_stiff(board, program):
        return Recipe(f"{HELD.name}, as parasitics are too fast for filesource")
    if recipe.klu and not _steps_once_a_sample(path, klu=True):
        recipe = STEPPED
    if not _steps_once_a_sample(path, recipe.klu):
        return Recipe(f"{HELD.name}, as this ngspice has no filesource")
    return recipe


def recipe_named(name: str) -> Recipe:
    """Recipe of this name, as kept with a result; InputError if there is none."""
    for recipe in (STEPPED, STEPPED_KLU):
        if name == recipe.name:
            return recipe
    if not name.startswith(HELD.name):
        raise InputError(f"there is no recipe {name!r} of sampling; measure again with `tngd verify --force`")
    return Recipe(name)


def chunk_deck(board: Board, program: Program, circuit: str, seed: int, samples: int, recipe: Recipe = HELD) -> str:
    """Deck of one chunk, from the circuit part of the deck of a copy.

    InputError if the recipe takes one step a sample and the board has modes much faster than the period.
    """
    if not recipe.stepped:
        return circuit + sampled_analysis(board, program, seed, samples, "chunk")
    if _too_stiff(board, program):
        raise InputError(f"the board has parasitics too fast for the recipe {recipe.name!r}; use that of recipe_for")
    quiet, channels = _without_sources(board, circuit, program.period)
    options = f" seed={seed}" + " klu" * recipe.klu
    skip = _start_up(board, program)
    analysis = stepped_analysis(board.nodes, program.period, skip, samples, "chunk", options)
    return quiet + file_sources(channels, program.period) + analysis


def run_chunk(board: Board, program: Program, deck: str, samples: int) -> Chunk:
    """Run the deck of one chunk of `samples` readings; SimulationError if readings are missing or off the grid."""
    plot = run_deck(deck, board.nodes, "chunk", 1, _noise_files(deck, len(board.sources)))[0]
    if len(plot.scale) < samples:
        raise SimulationError(f"ngspice stopped after {len(plot.scale)} of {samples} readings; is the circuit stable?")
    steps = plot.scale[:samples] / program.period
    if np.abs(steps - steps[0].round() - np.arange(samples)).max() > 1e-3:
        raise SimulationError("ngspice's readings are not on the sampling grid; a newer or older ngspice may do")
    y = plot.voltages[:samples] @ readout_matrix(board).T
    blocks = y.reshape(-1, BLOCK, len(board.readings))
    return Chunk(np.einsum("bki,bkj->bij", blocks, blocks, optimize=True) / BLOCK, sums_of(y, lag_of(board, program)))


def chunks_lags(recipe: Recipe, circuit: Circuit, period: float) -> np.ndarray:
    """Lagged covariances ρ(τ), (lags, n, n), V², of the readings of a circuit taken by this recipe."""
    return (stepped_lagged_covariances if recipe.stepped else lagged_covariances)(circuit, period)


def chunks_law(recipe: Recipe, circuit: Circuit, period: float, samples: int) -> EstimateLaw:
    """Law of the sample covariance of `samples` readings of a circuit, taken in chunks by this recipe."""
    return law_of_records(chunks_lags(recipe, circuit, period), record_lengths(samples, min(samples, CHUNK)))


def chunks_covariance(recipe: Recipe, circuit: Circuit, period: float) -> np.ndarray:
    """Covariance (n, n) [V²] of the readings of a circuit, taken by this recipe."""
    return reading_covariance(circuit) if recipe.stepped else held_covariance(circuit, period)


def _start_up(board: Board, program: Program) -> int:
    """Steps discarded at the start of a chunk, after which alternating modes have decayed too."""
    circuit = nominal_circuit(board, program, Conditions())
    return max(SETTLED, discarded(program), int(np.ceil(START_UP * memory(circuit, program.period))))


def _too_stiff(board: Board, program: Program) -> bool:
    """Whether the alternating modes of one step a sample decay much more slowly than the modes of the board."""
    return _start_up(board, program) > max(2 * discarded(program), MOST_START_UP)


def _without_sources(board: Board, circuit: str, period: float) -> tuple[str, list[tuple[str, float]]]:
    """Circuit without its held noise sources, and the node of each with the current [A] of one unit in a noise file.

    The density of a source is hold · σ² of the deck, whatever `period` is.
    """
    noisy = {source.name for source in board.sources}
    kept, channels = [], []
    for line in circuit.splitlines():
        words = line.split(" ")
        if words[0] in noisy:
            hold, sigma = map(float, re.search(r"trrandom\(2 (\S+) 0 (\S+) 0\)", line).groups())
            channels.append((words[2], sigma * float(np.sqrt(hold / period)) / UNIT))
        else:
            kept.append(line)
    return "\n".join(kept) + "\n", channels


def _noise_files(deck: str, channels: int) -> dict[str, bytes]:
    """Noise files that a deck reads, by name; seed and length are found in the deck."""
    if "filesource(" not in deck:
        return {}
    seed = int(re.search(r"^\.options .*seed=(\d+)", deck, re.M)[1])
    end, step = re.search(r"^\.tran \S+ (\S+) \S+ (\S+)$", deck, re.M).groups()
    rows = int(np.ceil(float(end) / float(step))) + 2
    currents = alternating_currents(np.random.default_rng([FILE_STREAM, seed]), rows, channels)
    return _files(currents)


def _files(currents: np.ndarray) -> dict[str, bytes]:
    """Files noise1.txt, noise2.txt, …; a line holds the number of the step, then one current for each channel."""
    edges = np.cumsum([0, *file_widths(currents.shape[1])])
    steps = np.arange(len(currents))[:, None]
    return {
        f"noise{k}.txt": _table(np.hstack([steps, currents[:, start:end]]))
        for k, (start, end) in enumerate(pairwise(edges), start=1)
    }


def _table(whole: np.ndarray) -> bytes:
    """Integers (rows, columns) as text of fixed width, " +0123": four times as fast as np.savetxt."""
    left = np.abs(whole).astype(np.uint32)
    digits = len(str(left.max()))
    text = np.full((*whole.shape, digits + 2), ord(" "), dtype=np.uint8)
    text[..., 1] = np.where(whole < 0, ord("-"), ord("+"))
    for place in range(digits + 1, 1, -1):
        left, text[..., place] = left // 10, left % 10 + ord("0")
    text[:, 0, 0] = ord("\n")
    return text.tobytes()[1:] + b"\n"


@cache
def _steps_once_a_sample(path: str, klu: bool) -> bool:
    """Whether the ngspice at `path` takes one trapezoidal step a sample from a file; RC = h = 1 s, R = 1 megohm."""
    i = np.random.default_rng(FILE_STREAM).integers(-9, 10, size=(SETTLED + 102, 1))
    sources = file_sources([("a", 1e-6)], 1.0)
    analysis = stepped_analysis(["a"], 1.0, SETTLED, 100, "probe", " klu" * klu)
    try:
        plot = run_deck(f"probe\nR1 a 0 1e6\nC1 a 0 1e-6\n{sources}{analysis}", ["a"], "probe", 1, _files(i))[0]
    except SimulationError:
        return False
    v = [0.0]
    for mean in (i[1:, 0] + i[:-1, 0]) / 2:
        v.append((v[-1] / 2 + mean) / 1.5)
    expected = np.array(v[SETTLED : SETTLED + 100])
    found = plot.voltages[: len(expected), 0]
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < LARGE * np.abs(expected).max())
