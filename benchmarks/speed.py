"""How much faster the exact engine samples a board than ngspice does, at equal accuracy, on 8 to 64 cells.

A sample counts as what it is worth: ngspice's readings follow one another and are worth fewer independent ones, by the
lagged covariances of the copy's own circuit in the direction that settles last (`effective_samples`); the exact engine
draws independent stationary readings of that same circuit, in float64 as ngspice computes. ngspice runs either recipe
of `tngd verify` (held noise, which is the board in time too; noise from a file, whose covariance alone is the board's),
start-up and files included; the engine starts from the circuit. Both in seconds of processor time, on one thread,
taking turns; medians. Prints a JSON object for each size and recipe. Run: `OMP_NUM_THREADS=1 python
benchmarks/speed.py`, one minute; `--sizes 8 16 --repeats 1` for a look.
"""

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
import torch
from sampling import READINGS, SIZES, target, timed

from circuits.board import Conditions
from circuits.copies import draw_copies
from circuits.netlist.spice import circuit_text
from circuits.nodal import assemble
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.simulation.transient import HELD, STEPPED, chunk_deck, chunks_law, recipe_for
from circuits.statistics.estimators import effective_samples
from circuits.statistics.moments import CHUNK, chunk_seed
from circuits.synthesis.design import board_and_program
from circuits.synthesis.options import BoardRequest
from tngd.device.paths import draws_of
from tngd.device.process import circuit_process, reading_law, stationary_law

DRAWS = 400_000  # independent samples of the engine


def engine(circuit, seed: int) -> float:
    """Independent samples of the readings a second of processor time, from the circuit on."""
    before = time.process_time()
    process = circuit_process(circuit)
    draws_of(reading_law(process, stationary_law(process)), DRAWS, seed)
    return DRAWS / (time.process_time() - before)


def compare(size: int, repeats: int) -> Iterator[dict]:
    """A row for each recipe."""
    board, program = board_and_program(target(size, "plain"), request=BoardRequest(cells="plain"))
    copy = draw_copies(board, 0, 1)[0]
    circuit = assemble(board, program, copy, Conditions())
    text, chosen = circuit_text(board, program, copy, Conditions()), recipe_for(board, program)
    taken = READINGS[size] // 2
    engine(circuit, 0)
    for recipe in (HELD, STEPPED):
        worth = effective_samples(chunks_law(recipe, circuit, program.period, CHUNK)) / CHUNK
        simulator, ours = [], []
        for k in range(repeats):
            deck = chunk_deck(board, program, text, chunk_seed(0, 0, k), taken, recipe)
            simulator.append(worth * timed(board, program, deck, taken))
            ours.append(engine(circuit, k))
        yield {
            "cells": size,
            "recipe": recipe.name,
            "verify_takes_it": recipe == chosen,
            "ngspice": ngspice_version(find_ngspice()),
            "readings": taken,
            "effective_samples_per_reading": round(worth, 4),
            "ngspice_effective_samples_per_cpu_second": round(float(np.median(simulator)), 1),
            "dtype": "float64",
            "engine_samples_per_cpu_second": round(float(np.median(ours))),
            "ratio": round(float(np.median(ours) / np.median(simulator))),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for size in given.sizes:
        for row in compare(size, given.repeats):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
