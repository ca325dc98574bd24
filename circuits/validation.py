"""Held-out programs on calibrated copies, whatever they were fitted to: run exactly in ngspice, predicted, compared.

What a fit says of programs that it never saw is judged the same way after every route (circuits.calibration.held_out). Nothing of
these runs goes into a fit.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np

from circuits.board import Design, Program
from circuits.calibration.discrepancy import Draws
from circuits.calibration.fit import Fit
from circuits.calibration.held_out import HeldOut, Question, held_out_programs, judge, measured, predicted, question
from circuits.model.pairs import PairModel
from circuits.parallel import Progress, side_by_side, silent
from circuits.settling import settling_frequencies
from circuits.simulation.measure import Shown, run_programs


def validate(
    design: Design,
    model: PairModel,
    fits: dict[str, Fit],
    draws: Draws,
    wanted: np.ndarray,
    folder: Path | None = None,
    progress: Progress = silent,
    targets: int = 4,
    codes: int = 2,
) -> tuple[HeldOut, list[list[Shown]]]:
    """Run held-out programs of a design on its copies and judge fits of `model`; the scores, and runs by copy.

    `draws` are those of the fits, `wanted` (f,) [Hz] the frequencies at which training looked, in whose middle the
    grids of the spectra are. Finished runs stay in `folder`. Raises SimulationError if a run fails twice.
    """
    fresh = held_out_programs(design.program, design.board, design.seed, targets, codes)
    dense = settling_frequencies(float(np.sqrt(wanted[0] * wanted[-1])))
    shown = run_programs(design.board, fresh, design.copies, dense, folder, progress)
    asked = side_by_side([partial(_asked, model, program, draws) for program in fresh])
    told = [[predicted(model, each, found) for each in asked] for found in fits.values()]
    return judge([program.name for program in fresh], told, *_came(design, fresh, shown)), shown


def _asked(model: PairModel, program: Program, draws: Draws, _: Event) -> Question:
    return question(model, program, draws)


def _came(
    design: Design, fresh: Sequence[Program], shown: Sequence[Sequence[Shown]]
) -> tuple[list[list[dict[str, np.ndarray]]], list[list[float]]]:
    """What every copy (outer) showed, and the relative errors of the runs themselves."""
    came = [[measured(design.board, p, r.exact, r.solved) for p, r in zip(fresh, runs, strict=True)] for runs in shown]
    return came, [[run.exact.integration_error for run in runs] for runs in shown]
