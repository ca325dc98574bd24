"""How well three calibrated 8-cell copies are predicted under programs that no fit saw, and how long calibration takes.

Boards for the Fisher matrix of `fair` at the fit, preconditioned at zero and raw: soldered, with all parasitics,
resistive, and with banks; each calibrated by programs of its own that run in ngspice, from design to judgement on all
cores. At 4 bits and ±5 % the banks are then trimmed for targets that nothing was tuned on, a preconditioned one (`fair`
at zero under the factor of the fit) and a raw one (`diabetes` at the fit, damped by 1.5), and the codes are run in
ngspice: 8 programs a copy, and one; without calibration the nearest codes. One JSON object each.

Run: `python benchmarks/calibration.py`, four minutes.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from circuits.board import Design
from circuits.calibration.retrim import RetrimOptions, retrim_folder
from circuits.calibration.routes import calibrate_programs
from circuits.files import write_json
from circuits.model.device_file import describe_device
from circuits.netlist.export import write_design
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.synthesis.data_sets import named_fisher
from circuits.synthesis.design import make_design
from circuits.synthesis.options import BoardOptions, Parasitics
from circuits.synthesis.target import check_target, inverse_factor

EVERYTHING = Parasitics(winding=0.5, self_resonance=2e7, esr=0.05, coupled_coils=0.01, stray=0.2e-12)
SEEDS = (0,)
PROGRAMMINGS = (1, 8)
TARGETS = (("preconditioned", "fair", "zero", "fit", 0.0), ("raw", "diabetes", "fit", None, 1.5))


def fair(at: str) -> np.ndarray:
    return check_target(named_fisher("fair", at)[0])


def boards(seed: int) -> dict[str, Design]:
    target, T = fair("fit"), inverse_factor(fair("zero"))

    def made(factor: np.ndarray | None, tolerance: float = 0.01, **more) -> Design:
        return make_design(target, factor, name="fair", copies=3, tolerance=tolerance, seed=seed, **more)

    return {
        "soldered": made(T),
        "soldered, raw": made(None),
        "all parasitics": made(T, parasitics=EVERYTHING),
        "resistive": made(T, choices=BoardOptions(coupling="resistive")),
        "banks of 6 bits": made(T, choices=BoardOptions(bank_bits=6)),
        "banks of 4 bits, parts ±5 %": made(T, 0.05, choices=BoardOptions(bank_bits=4)),
    }


def calibrated(name: str, made: Design, seed: int, folder: Path) -> dict:
    """One row; with banks the design and its device stay in the folder."""
    start = time.perf_counter()
    found = calibrate_programs(made)
    seconds = time.perf_counter() - start
    held = found.held_out
    if made.board.banks:
        write_design(made, folder)
        write_json(folder / "device.json", describe_device(found.device))
    scores = {name: round(getattr(held, name), 3) for name in ("z_rms", "coverage_95", "joint_z_rms", "joint_p")}
    return {
        "board": name,
        "seed": seed,
        "cells": len(made.board.cells),
        "copies": len(made.copies),
        "seconds": round(seconds, 1),
        "programs": len(held.errors) // len(made.copies),
        "worst_error": float(max(held.errors)),
        "improvement": round(held.improvement, 1),
        **scores,
        "intervals": held.intervals,
        "ngspice": ngspice_version(find_ngspice()),
    }


def trimmed(folder: Path, seed: int) -> list[dict]:
    """Rows of both ways to program a target that the board was neither designed nor tuned for, in ngspice."""
    rows = []
    for word, target, at, precondition, damping in TARGETS:
        for spent in PROGRAMMINGS:
            trim = RetrimOptions(None, target, at, precondition, damping, spent, check=True)
            found = retrim_folder(folder, trim, folder / f"{word}-{spent}", force=True)["copies"]
            nearest, own = (np.array([row["checked"][key] for row in found]) for key in ("error_nearest", "error"))
            rms = [float(np.linalg.norm(each) / len(each) ** 0.5) for each in (nearest, own)]
            rows.append(
                {
                    "retrim": word,
                    "target": f"{target} at {at}",
                    "seed": seed,
                    "damping": damping,
                    "programmings": spent,
                    "rms_nearest": rms[0],
                    "rms_own": rms[1],
                    "times_better": round(rms[0] / rms[1], 1),
                    "worst_copy": round(float((nearest / own).min()), 1),
                }
            )
    return rows


def main() -> None:
    for seed in SEEDS:
        for name, made in boards(seed).items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "board"
                print(json.dumps(calibrated(name, made, seed, folder)), flush=True)
                if "4 bits" in name:
                    for row in trimmed(folder, seed):
                        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
