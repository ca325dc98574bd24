"""How fast ngspice takes readings: the recipe chosen for a board of 8 to 64 cells against the other one.

Random couplings, rows dominant by 0.3: an M-matrix on plain cells, and one of both signs on differential cells. Every
run is a chunk of its own, start-up and the writing of noise files included, and is repeated; the recipes take turns.
Prints a JSON object for each board with medians, in seconds of processor time. Run: `python benchmarks/sampling.py`;
`--readings 500 --repeats 1 --sizes 8 16` for a look.
"""

import argparse
import json
import os
import resource
import threading
from pathlib import Path

import numpy as np

from circuits.board import Conditions
from circuits.copies import nominal_copy
from circuits.netlist.spice import circuit_text
from circuits.nodal import nominal_circuit
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.simulation.transient import HELD, STEPPED, chunk_deck, chunks_law, recipe_for, run_chunk
from circuits.statistics.estimators import effective_samples
from circuits.statistics.moments import BLOCK, CHUNK, chunk_seed
from circuits.synthesis.design import board_and_program
from circuits.synthesis.options import BoardRequest

SIZES = (8, 16, 32, 64)
READINGS = {8: 20_000, 16: 10_000, 32: 4000, 64: 1000}
PERIODS = (4, 8)  # times the board's: what one step a sample would be worth with longer steps, of the same covariance


def target(size: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(size)
    W = np.triu(rng.uniform(0.2, 1, (size, size)), 1)
    W = W + W.T
    signs = np.triu(rng.choice([-1, 1], (size, size)), 1)
    return np.eye(size) - 0.7 * W / W.sum(axis=1).max() * (signs + signs.T if kind == "differential" else 1)


def timed(board, program, deck: str, readings: int) -> float:
    """Readings per second of processor time, that of ngspice and what it takes here."""
    before = _processor_time()
    run_chunk(board, program, deck, readings)
    return readings / (_processor_time() - before)


def peak_memory(board, program, deck: str, readings: int) -> int | None:
    """Peak memory of ngspice [MB] in a run that is not timed; None where the system does not tell."""
    stop, peaks = threading.Event(), [0]
    watch = threading.Thread(target=_watch, args=(stop, peaks))
    watch.start()
    run_chunk(board, program, deck, readings)
    stop.set()
    watch.join()
    return round(max(peaks) / 1024) or None


def _processor_time() -> float:
    """Of this process and of all that it has started and seen end [s]."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(entry.ru_utime + entry.ru_stime for entry in used)


def _watch(stop: threading.Event, peaks: list[int]) -> None:
    """Peak memory [kB] of every ngspice that this process starts, where the system tells."""
    while not stop.wait(0.02):
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                told = dict(line.split(":", 1) for line in status.read_text().splitlines())
            except (OSError, ValueError):
                continue
            if told["Name"].strip() == "ngspice" and int(told["PPid"]) == os.getpid():
                peaks.append(int(told.get("VmHWM", "0 kB").split()[0]))


def compare(size: int, kind: str, readings: int, repeats: int) -> dict:
    board, program = board_and_program(target(size, kind), request=BoardRequest(cells=kind))
    text, circuit = circuit_text(board, program, nominal_copy(board), Conditions()), nominal_circuit(board, program)
    chosen = recipe_for(board, program)
    other = HELD if chosen.stepped else STEPPED
    rates = {recipe: [] for recipe in (chosen, other)}
    for k in range(repeats):
        for recipe, found in rates.items():
            deck = chunk_deck(board, program, text, chunk_seed(0, 0, k), readings, recipe)
            found.append(timed(board, program, deck, readings))
    row = {"cells": size, "kind": kind, "ngspice": ngspice_version(find_ngspice()), "readings": readings}
    for word, recipe in (("chosen", chosen), ("other", other)):
        worth = effective_samples(chunks_law(recipe, circuit, program.period, CHUNK)) / CHUNK
        rate = float(np.median(rates[recipe]))
        deck = chunk_deck(board, program, text, chunk_seed(0, 1, 0), readings, recipe)
        row |= {
            word: recipe.name,
            f"{word}_readings_per_cpu_second": round(rate),
            f"{word}_effective_samples_per_reading": round(worth, 4),
            f"{word}_effective_samples_per_cpu_second": round(rate * worth, 1),
            f"{word}_peak_MB": peak_memory(board, program, deck, readings),
        }
    row["ratio"] = round(row["chosen_readings_per_cpu_second"] / row["other_readings_per_cpu_second"], 2)
    if chosen.stepped:
        row["effective_samples_per_reading_at_longer_periods"] = {
            factor: round(effective_samples(chunks_law(chosen, circuit, factor * program.period, CHUNK)) / CHUNK, 4)
            for factor in PERIODS
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--readings", type=int, help="of every chunk, in place of some seconds' worth")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for kind in ("plain", "differential"):
        for size in given.sizes:
            readings = given.readings or READINGS.get(size, 1000)
            whole = -(-readings // BLOCK) * BLOCK
            print(json.dumps(compare(size, kind, whole, given.repeats)), flush=True)


if __name__ == "__main__":
    main()
