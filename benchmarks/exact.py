"""What verification without sampling takes: one AC run per source in ngspice, and 200 copies by the Lyapunov equation.

Plain cells whose couplings are all there, Q from 0.5 to 30, parts within ±1 %; the difference is that of the covariance
from the Lyapunov solution of the copy's own values. Prints one JSON object for each.
"""

import json
import time

import numpy as np

from circuits.board import Conditions
from circuits.copies import gains_of
from circuits.netlist.deck import circuit_of
from circuits.netlist.export import decks
from circuits.nodal import assemble, source_power
from circuits.ou import reading_covariance
from circuits.simulation.ac import exact_run
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.statistics.inversion import inversion_rule
from circuits.synthesis.design import make_design
from circuits.synthesis.options import BoardOptions
from circuits.verification.population import draw_population

CASES = ((8, 0.5), (8, 1.5), (8, 30.0), (16, 1.5), (32, 1.5), (64, 1.5))
REPEATS = {8: 5, 16: 3, 32: 3, 64: 1}


def target(cells: int) -> np.ndarray:
    """A dominant M-matrix with every coupling, mean diagonal one."""
    W = np.random.default_rng(cells).uniform(size=(cells, cells))
    W = (W + W.T) / 2
    np.fill_diagonal(W, 0)
    P = np.diag(1.2 * W.sum(axis=1)) - W
    return P / P.diagonal().mean()


def main() -> None:
    version = ngspice_version(find_ngspice())
    for cells, quality in CASES:
        made = make_design(target(cells), copies=1, choices=BoardOptions(quality=quality))
        copy = made.copies[0]
        text = circuit_of(dict(decks(made))[copy.name])
        power = source_power(made.board, made.program, gains_of(made.board, [copy])[0], Conditions())
        seconds = []
        for _ in range(REPEATS[cells]):
            start = time.perf_counter()
            run = exact_run(made.board, made.program, text, np.array([1e6]), power)
            seconds.append(time.perf_counter() - start)
        S = reading_covariance(assemble(made.board, made.program, copy, Conditions()))
        row = {
            "route": "AC runs",
            "cells": cells,
            "quality": quality,
            "seconds": round(float(np.median(seconds)), 3),
            "difference_to_lyapunov": float(np.linalg.norm(run.covariance - S) / np.linalg.norm(S)),
            "ngspice": version,
        }
        print(json.dumps(row), flush=True)
    for cells in (8, 16):
        made = make_design(target(cells), copies=1)
        start = time.perf_counter()
        draw_population(made, inversion_rule(made), copies=200)
        row = {"route": "200 copies by Lyapunov", "cells": cells, "seconds": round(time.perf_counter() - start, 3)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
