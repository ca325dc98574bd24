"""What the verbs of calibrated copies do with files: devices of the package, their converters, codes for very copies.

By the rules of circuits.netlist.export: nothing is replaced without `force`, results are written whole and say what they are of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.board import Board, Copy, Design, Program
from circuits.calibration.held_out import measured_inverse
from circuits.calibration.presets import make_presets
from circuits.calibration.retrim import Retrim, expected_inverse, mean_leavings, nearest_program, retrim, trimmed_copy
from circuits.copies import codes
from circuits.errors import InputError
from circuits.evidence import evidence_frequencies
from circuits.files import new_folder, provenance, refuse_existing, sha256, write_json, write_text
from circuits.model.device import Device, readout_of
from circuits.model.device_file import PRESETS, device_hash, load_device
from circuits.model.fitted_copy import pairs_of, parameters_of
from circuits.netlist.export import codes_text
from circuits.netlist.folder import load_design
from circuits.parallel import Progress, silent
from circuits.simulation.measure import run_programs
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.synthesis.fisher import Place, congruence_of, target_of
from circuits.synthesis.target import check_target

SCHEMA = "tngd.retrim/1"
MOST_PROGRAMMINGS = 64


@dataclass(frozen=True)
class Trim:
    """What is trimmed: a copy by name (None: all), for a target (None: that of the folder), how often, checked."""

    copy: str | None = None
    target: str | None = None
    at: str = "zero"
    precondition: str | None = None
    damping: float = 0.0
    programmings: int = 8
    check: bool = False


def make_devices(out: Path, force: bool = False, progress: Progress = silent) -> tuple[Path, ...]:
    """Make the devices of the package anew, in ngspice, and write them to the folder `out`; their files."""
    files = tuple(out / f"{name}.json" for name in PRESETS)
    for path in files:
        refuse_existing(path, force)
    for path, content in zip(files, make_presets(progress).values(), strict=True):
        write_json(path, content)
    return files


def retrim_copies(
    folder: Path, trim: Trim, out: Path | None = None, force: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Choose codes for the calibrated copies in `folder` and write them and retrim.json to `out` [DIR/retrim]."""
    made, _ = load_design(folder)
    if not made.board.banks:
        raise InputError(f"the board in {folder} has no banks to trim; design one with --bank-bits")
    device = load_device(folder / "device.json")
    if device.board != made.board:
        raise InputError(f"{folder / 'device.json'} is of another board; make it again with `tngd calibrate --force`")
    if not 1 <= trim.programmings <= MOST_PROGRAMMINGS:
        raise InputError(f"--programmings is from 1 to {MOST_PROGRAMMINGS}, got {trim.programmings}")
    chosen = _chosen(device, trim.copy)
    name, target, T = _target(made, trim)
    out = out or folder / "retrim"
    with new_folder(out, force, "retrim.json") as fresh:
        nearest = nearest_program(made.board, target, T)
        known = float(device.fitted_on.get("reduced_order", {}).get("uncertainty", 0.0))
        rows = []
        for k in chosen:
            progress(len(rows), len(chosen), f"choosing codes for {device.copies[k].name}")
            found = retrim(device, k, target, T, trim.programmings)
            rows.append(_row(device, k, found, nearest, known))
            for number, programmed in enumerate(found.programs, start=1):
                write_text(fresh / rows[-1]["name"] / f"codes-{number}.csv", codes_text(made.board, programmed))
            if trim.check:
                rows[-1]["checked"] = _checked(made, device.copies[k].name, found, nearest, progress)
        progress(len(chosen), len(chosen), "")
        content = {
            "schema": SCHEMA,
            "target": name,
            "programmings": trim.programmings,
            "calibration_uncertainty": known,
            "copies": rows,
            "provenance": provenance(
                board_sha256=sha256((folder / "board.json").read_bytes()),
                device_sha256=device_hash(device),
                target_sha256=sha256(target),
                congruence_sha256=sha256(T),
                ngspice=ngspice_version(find_ngspice()) if trim.check else None,
            ),
        }
        write_json(fresh / "retrim.json", content)
    return content


def _chosen(device: Device, copy: str | None) -> list[int]:
    names = [fitted.name for fitted in device.copies]
    if copy is None:
        return list(range(len(names)))
    if copy not in names:
        raise InputError(f"the device has copies {', '.join(names)}, got --copy {copy}")
    return [names.index(copy)]


def _target(made: Design, trim: Trim) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, matrix and factor: those asked for, or those of the design."""
    program = made.program
    if trim.target is None:
        if (trim.at, trim.precondition, trim.damping) != ("zero", None, 0.0):
            raise InputError("--at, --precondition and --damping go with a --target; the folder's own has its own")
        return program.name, program.target, program.congruence
    name, matrix, _ = target_of(Place(trim.target, trim.at))
    if len(matrix) != len(made.board.cells):
        raise InputError(f"the board has {len(made.board.cells)} cells, the target is {len(matrix)} x {len(matrix)}")
    T = congruence_of(trim.precondition, trim.target, len(matrix), trim.damping)
    return name, check_target(matrix, trim.damping), np.eye(len(matrix)) if T is None else T


def _row(device: Device, copy: int, found: Retrim, nearest: Program, known: float) -> dict[str, Any]:
    """What is expected of one copy: `error_nearest` uncalibrated, `errors` of the first 1, 2, … programmings.

    `errors` are those of the calibrated model; `expected` has its relative uncertainty, `known`, in it.

    Each program's inverse is read as of any program, with its own scaling and energy, from readings that have been
    divided by the gains of the readout.
    """
    model = pairs_of(device.board)
    plain = np.ones(len(device.board.cells))
    read = expected_inverse(model, parameters_of(model, device.copies[copy]), plain, nearest)
    inverse = np.linalg.inv(nearest.target)
    return {
        "name": device.copies[copy].name,
        "error_nearest": _error(read + mean_leavings(model, nearest), inverse),
        "errors": found.errors.tolist(),
        "expected": np.hypot(found.errors, known).tolist(),
        "weights": found.weights.tolist(),
        "source_powers": found.powers.tolist(),
        "readout_gains": readout_of(device, copy)[0].tolist(),
        "programs": [
            {
                "codes": codes(device.board, made),
                "scaling": made.scaling.tolist(),
                "energy_J": made.energy,
                "period_s": made.period,
            }
            for made in found.programs
        ],
    }


def _checked(made: Design, name: str, found: Retrim, nearest: Program, progress: Progress) -> dict[str, float]:
    """The same two errors of one copy as ngspice gives them."""
    specimen = next(copy for copy in made.copies if copy.name == name)
    trimmed = trimmed_copy(made.board, specimen, found.powers)
    inverse = np.linalg.inv(nearest.target)
    before = _measured(made.board, [nearest], specimen, progress)
    after = _measured(made.board, found.programs, trimmed, progress)
    mean = np.einsum("k,kij->ij", found.weights, after)
    return {"error_nearest": _error(before[0], inverse), "error": _error(mean, inverse)}


def _measured(board: Board, programs: Sequence[Program], copy: Copy, progress: Progress) -> np.ndarray:
    """Inverses (programs, n, n) of one specimen."""
    shown = run_programs(board, programs, [copy], evidence_frequencies(board), None, progress)[0]
    return np.array(
        [
            measured_inverse(board, programmed, run.exact.covariance, run.solved)
            for programmed, run in zip(programs, shown, strict=True)
        ]
    )


def _error(found: np.ndarray, inverse: np.ndarray) -> float:
    return float(np.linalg.norm(found - inverse) / np.linalg.norm(inverse))
