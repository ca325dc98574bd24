"""Re-trim: codes chosen for one calibrated copy from its own bits, loads and temperatures.

A copy has three errors, each corrected where that is possible. Unequal temperatures cannot be corrected by codes: the
amplitude of each noise generator is set by the temperature of its cell (a source's power by 1/t). Wrong bits are no
error once they are known: the closest-vector search of circuits.synthesis.rounding runs on the values that the codes of
this copy really have. The coarseness of the codes remains, which no search removes: couplings of 4 bits and 28 banks
hold an inverse to some 0.5 %. Repeated programming reduces it: the k-th program is for the inverse that makes the mean
of the first k right,

    B_k  →  k P⁻¹ - Σ_{j<k} B_j,

so that the error of the mean falls as 1/k, and weights w (Σ w = 1) reduce it further. The effect of switches at high
frequencies is predicted and subtracted from the inverse that the search aims at.

Files follow the rules of circuits.netlist.export: nothing is replaced without `force`, and results are written whole
and name their inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.board import Bank, Board, Copy, Design, Program, inverse_scale
from circuits.calibration.discrepancy import delayed_discrepancies, draw_pairs, drawn_spectra
from circuits.calibration.held_out import observed_inverse
from circuits.calibration.observations import evidence_frequencies
from circuits.copies import codes
from circuits.errors import InputError
from circuits.files import new_folder, provenance, sha256, write_json, write_text
from circuits.model.converters import source_power
from circuits.model.device import Device
from circuits.model.device_file import device_hash, load_device
from circuits.model.fitted_copy import parameters_of, readout_of
from circuits.model.pairs import Half, PairModel, half_circuit, half_of, pair_model, part_gains
from circuits.model.response import impedance, spread_stamps
from circuits.netlist.export import codes_text
from circuits.netlist.folder import load_design
from circuits.ou import reading_covariance
from circuits.parallel import Progress, silent
from circuits.simulation.measurement import run_programs
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.synthesis.cells import plan_cells
from circuits.synthesis.design import levelled
from circuits.synthesis.fisher import TargetOptions, congruence_of, target_of
from circuits.synthesis.rounding import round_to_grid, scale_to_row_sums
from circuits.synthesis.target import check_target

NEAR = 4  # codes that are considered for a coupling
DRAWS = 32  # copies drawn for the mean discrepancy
PASSES = 3  # of the search, because codes change the load
KNOWN = 3e-4  # relative error of a predicted inverse: weights are not fitted to less

SCHEMA = "tngd.retrim/1"
MOST_PROGRAMMINGS = 64


@dataclass(frozen=True, eq=False)
class Retrim:
    """Programs for one copy, weights (k,) of their inverses, powers (n,) of the cells' sources, expected errors (k,).

    The inverse is Σ weight · inverse read under each program. `errors` are those of the first 1, 2, … programs alone.
    """

    programs: tuple[Program, ...]
    weights: np.ndarray
    powers: np.ndarray
    errors: np.ndarray


def choose_codes(
    device: Device, copy: int, target: np.ndarray, congruence: np.ndarray | None = None, programmings: int = 1
) -> Retrim:
    """Choose codes for copy number `copy` (from 0) of a calibrated board with banks and a checked target (n, n).

    InputError if the board has no banks, or a coupling is beyond their reach.
    """
    board = device.board
    if not board.banks:
        raise InputError("the board has no banks to trim; design one with --bank-bits")
    T = np.eye(len(target)) if congruence is None else congruence
    model = pair_model(board)
    theta = parameters_of(model, device.copies[copy])
    powers = source_powers(device, copy)
    inverse = np.linalg.inv(target)
    programs, read, errors = [], [], []
    left = mean_discrepancy(model, _search(model, theta, powers, target, T, inverse, "trim-1"))
    for k in range(1, programmings + 1):
        wanted = k * inverse - sum(read, left)
        made = _search(model, theta, powers, target, T, wanted, f"trim-{k}")
        programs.append(made)
        read.append(expected_inverse(model, theta, powers, made) + left)
        weights = _weights(read, inverse)
        mean = np.einsum("k,kij->ij", weights, read)
        errors.append(float(np.linalg.norm(mean - inverse) / np.linalg.norm(inverse)))
    return Retrim(tuple(programs), weights, powers, np.array(errors))


def source_powers(device: Device, copy: int) -> np.ndarray:
    """Return relative powers (n,) of the cells' sources that make all temperatures equal and nominal.

    They are the nearest that the bits of the sources' amplitudes allow.
    """
    fitted = device.copies[copy]
    if device.board.coupling == "resistive":
        gains = [fitted.gains.get(f"power_{i + 1}") for i in range(len(device.board.cells))]
        wanted = np.array([1 / gain.value if gain else 1.0 for gain in gains])
    else:
        wanted = np.array([1 / estimate.value for estimate in fitted.temperatures])
    return source_power(wanted, device.interface)


def trimmed_copy(board: Board, copy: Copy, powers: np.ndarray) -> Copy:
    """Return the specimen with the power of its cells' noise generators multiplied by `powers` (n,)."""
    cell = {node: i for i, entry in enumerate(board.cells) for node in entry.nodes}
    changed = {s.name: float(copy.gains[s.name] * powers[cell[s.node]]) for s in board.sources}
    return Copy(copy.name, copy.gains | changed)


def expected_inverse(model: PairModel, theta: np.ndarray, powers: np.ndarray, program: Program) -> np.ndarray:
    """Return the inverse (n, n) of a copy at θ under a program, with relative powers (n,) of its sources."""
    board, half = model.board, half_of(model, program)
    X = program.mapping
    if board.inputs:
        return board.unit * X.T @ impedance(half, theta, np.zeros(1))[0].real @ X
    half = replace(half, power=half.power * powers)
    scale = inverse_scale(board, program)
    return scale * X.T @ reading_covariance(half_circuit(half, theta)) @ X


def mean_discrepancy(model: PairModel, program: Program) -> np.ndarray:
    """Return the mean discrepancy (n, n) of the inverse, by mismatch within pairs."""
    board, half = model.board, half_of(model, program)
    if board.nodes_per_cell == 1:
        return np.zeros_like(program.target)
    draws, X = draw_pairs(model, 0, DRAWS), program.mapping
    if board.inputs:
        drawn, matched = (drawn_spectra(half, each, np.zeros(1))[1][:, 0].real for each in (draws, draws.matched))
        left, scale = drawn - matched, board.unit
    else:
        left = delayed_discrepancies(half, draws)[0]
        scale = inverse_scale(board, program)
    return scale * X.T @ left.mean(axis=0) @ X


def nearest_program(board: Board, target: np.ndarray, congruence: np.ndarray | None = None) -> Program:
    """Return the program without re-trim: each exact coupling of a nominal board takes its nearest code."""
    T = np.eye(len(target)) if congruence is None else congruence
    model = pair_model(board)
    theta, draft = np.ones(len(model.names)), _draft(board, target, T, "nearest")
    exact = _exact(board, draft, np.diag(_held(model, theta, draft)) / board.unit)
    picked = {e: round(value / bank.unit) for e, bank, value in _banked(board, exact.values)}
    return levelled(board, replace(exact, values=_code_values(board, picked)))


def _search(
    model: PairModel,
    theta: np.ndarray,
    powers: np.ndarray,
    target: np.ndarray,
    congruence: np.ndarray,
    wanted: np.ndarray,
    name: str,
) -> Program:
    """Return the program of `target` whose inverse comes nearest to `wanted` on this copy."""
    board = model.board
    draft = _draft(board, target, congruence, name)
    load, excess, best = _held(model, theta, draft), np.zeros_like(wanted), None
    for _ in range(PASSES):
        aim = np.linalg.inv(wanted - excess)
        exact = _exact(board, replace(draft, target=(aim + aim.T) / 2), np.diag(load) / board.unit)
        grid, choices = _grid(model, theta, exact)
        found = round_to_grid(board, exact, grid, "the copy's own codes", load)
        picked = {
            element: int(choices[row][np.argmin(np.abs(grid[row] - value))])
            for row, (element, value) in enumerate(found.values.items())
        }
        made = replace(exact, target=target, scaling=found.scaling, values=_code_values(board, picked))
        made = levelled(board, made)
        read = expected_inverse(model, theta, powers, made)
        error = np.linalg.norm(read - wanted)
        if best is None or error < best[0]:
            best = error, made
        held = _held(model, theta, made)
        own = _stamped(board, {e: _true_value(model, theta, made, e) for e in made.values})
        load = held - own
        X = made.mapping
        excess = read - X.T @ np.linalg.inv(held / board.unit) @ X
    return best[1]


def _weights(read: list[np.ndarray], inverse: np.ndarray) -> np.ndarray:
    """Return weights (k,) of sum 1 whose mean comes nearest to the inverse, regularised by KNOWN."""
    k = len(read)
    if k == 1:
        return np.ones(1)
    off = np.array([(B - inverse).ravel() for B in read]) / np.linalg.norm(inverse)
    gram = off @ off.T + KNOWN**2 * np.eye(k)
    weights = np.linalg.solve(gram, np.ones(k))
    return weights / weights.sum()


def _draft(board: Board, target: np.ndarray, congruence: np.ndarray, name: str) -> Program:
    chosen = plan_cells(target, congruence, board.kind, negative=False)
    return Program(name, target, congruence, chosen.scaling, chosen.step, "codes of this very copy", {}, 1.0, 1.0, 1.0)


def _exact(board: Board, draft: Program, sums: np.ndarray) -> Program:
    """Return `scale_to_row_sums`; InputError if one of them is beyond the reach of its bank."""
    exact = scale_to_row_sums(board, draft, sums)
    over = [e for e, bank, value in _banked(board, exact.values) if value > bank.reach + bank.unit]
    if over:
        raw = np.array_equal(draft.congruence, np.eye(len(draft.congruence)))
        suggestion = "use a --precondition, or a board" if raw else "take a newer factor, or a board"
        raise InputError(f"coupling {over[0]} is beyond the reach of its bank; {suggestion} with a larger --bank-range")
    return exact


def _banked(board: Board, values: dict[str, float]) -> list[tuple[str, Bank, float]]:
    banks = {name: bank for bank in board.banks for name in bank.elements}
    return [(name, banks[name], value) for name, value in values.items()]


def _code_values(board: Board, picked: dict[str, int]) -> dict[str, float]:
    return {e: code * bank.unit for e, bank, code in _banked(board, picked) if code}


def _grid(model: PairModel, theta: np.ndarray, exact: Program) -> tuple[np.ndarray, np.ndarray]:
    """Return true values (elements, NEAR) [F or S] of the codes nearest to the exact values, and the codes."""
    values, choices = [], []
    for element, bank, value in _banked(model.board, exact.values):
        every = np.arange(2**bank.bits)
        true = (every[:, None] >> np.arange(bank.bits) & 1) @ _bits(model, theta, bank, element)
        near = np.argsort(np.abs(true - value), kind="stable")[:NEAR]
        near = np.resize(near, NEAR)
        values.append(true[near])
        choices.append(every[near])
    return np.array(values).reshape(-1, NEAR), np.array(choices).reshape(-1, NEAR)


def _bits(model: PairModel, theta: np.ndarray, bank: Bank, element: str) -> np.ndarray:
    """Return true values (bits,) [F or S] of a bank's bits; a resistor with its switch."""
    gain = dict(zip(model.names, theta, strict=True))
    nominal = bank.unit * 2.0 ** np.arange(bank.bits)
    own = np.array([gain.get(f"{bank.name}_bit_{b}", 1.0) for b in range(bank.bits)])
    if model.board.coupling == "capacitive":
        return nominal * own
    way = element.split("_")[0]
    switch = next(part.nominal for part in model.board.parts if part.role == "switch")
    series = np.array([gain.get(f"{bank.name}_switch_{way}_{b}", 1.0) for b in range(bank.bits)])
    return 1 / ((1 / nominal - switch) * own + switch * series)


def _true_value(model: PairModel, theta: np.ndarray, program: Program, element: str) -> float:
    bank = next(bank for bank in model.board.banks if element in bank.elements)
    code = abs(codes(model.board, program)[bank.name])
    return float((code >> np.arange(bank.bits) & 1) @ _bits(model, theta, bank, element))


def _stamped(board: Board, values: dict[str, float]) -> np.ndarray:
    M = np.zeros((len(board.cells),) * 2)
    elements = {element.name: element for element in board.elements}
    for name, value in values.items():
        i, j = elements[name].cells
        M[[i, j], [i, j]] += value
        M[i, j] = M[j, i] = M[i, j] + (value if elements[name].kind == "crossed" else -value)
    return M


def _held(model: PairModel, theta: np.ndarray, program: Program) -> np.ndarray:
    """Return the matrix (n, n) [F or S] that the readings see at low frequencies, closed switches as wires."""
    half = half_of(model, program)
    if model.board.inputs:
        return np.linalg.inv(impedance(half, theta, np.zeros(1))[0].real)
    return static_capacitance(half, theta)


def static_capacitance(half: Half, theta: np.ndarray) -> np.ndarray:
    """Return the nodal capacitance (n, n) [F] of the readings with closed switches as wires."""
    stamps = spread_stamps(half, theta, np.array([1e-3j]))[0].real[half.capacitive]
    value = (half.weights * part_gains(half.exponents, theta))[half.capacitive]
    return (stamps.T * value) @ stamps


@dataclass(frozen=True)
class RetrimOptions:
    """Options of re-trim: copy by name (None: all), target (None: that of the folder), programmings, check."""

    copy: str | None = None
    target: str | None = None
    at: str = "zero"
    precondition: str | None = None
    damping: float = 0.0
    programmings: int = 8
    check: bool = False


def retrim_folder(
    folder: Path, trim: RetrimOptions, out: Path | None = None, force: bool = False, progress: Progress = silent
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
            found = choose_codes(device, k, target, T, trim.programmings)
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


def _target(made: Design, trim: RetrimOptions) -> tuple[str, np.ndarray, np.ndarray]:
    """Return name, matrix and factor of the target in the options, or else of the design."""
    program = made.program
    if trim.target is None:
        if (trim.at, trim.precondition, trim.damping) != ("zero", None, 0.0):
            raise InputError("--at, --precondition and --damping go with a --target; the folder's own has its own")
        return program.name, program.target, program.congruence
    name, matrix, _ = target_of(TargetOptions(trim.target, trim.at))
    if len(matrix) != len(made.board.cells):
        raise InputError(f"the board has {len(made.board.cells)} cells, the target is {len(matrix)} x {len(matrix)}")
    T = congruence_of(trim.precondition, trim.target, len(matrix), trim.damping)
    return name, check_target(matrix, trim.damping), np.eye(len(matrix)) if T is None else T


def _row(device: Device, copy: int, found: Retrim, nearest: Program, known: float) -> dict[str, Any]:
    """Return the record of one copy: `error_nearest` without calibration, `errors` of the first 1, 2, … programmings.

    `errors` are those of the calibrated model; `expected` includes the relative uncertainty of the model, `known`.

    The inverse of each program is read with the program's own scaling and energy, from readings divided by the gains of
    the readout.
    """
    model = pair_model(device.board)
    plain = np.ones(len(device.board.cells))
    read = expected_inverse(model, parameters_of(model, device.copies[copy]), plain, nearest)
    inverse = np.linalg.inv(nearest.target)
    return {
        "name": device.copies[copy].name,
        "error_nearest": _error(read + mean_discrepancy(model, nearest), inverse),
        "errors": found.errors.tolist(),
        "expected": np.hypot(found.errors, known).tolist(),
        "weights": found.weights.tolist(),
        "source_powers": found.powers.tolist(),
        "readout_gains": readout_of(device.copies[copy], len(device.board.cells))[0].tolist(),
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
    """Return the errors of one copy in ngspice, before (`error_nearest`) and after re-trim."""
    specimen = next(copy for copy in made.copies if copy.name == name)
    trimmed = trimmed_copy(made.board, specimen, found.powers)
    inverse = np.linalg.inv(nearest.target)
    before = _measured(made.board, [nearest], specimen, progress)
    after = _measured(made.board, found.programs, trimmed, progress)
    mean = np.einsum("k,kij->ij", found.weights, after)
    return {"error_nearest": _error(before[0], inverse), "error": _error(mean, inverse)}


def _measured(board: Board, programs: Sequence[Program], copy: Copy, progress: Progress) -> np.ndarray:
    """Return the inverses (programs, n, n) of one specimen in ngspice."""
    shown = run_programs(board, programs, [copy], evidence_frequencies(board), None, progress)[0]
    return np.array(
        [
            observed_inverse(board, programmed, run.exact.covariance, run.solved)
            for programmed, run in zip(programs, shown, strict=True)
        ]
    )


def _error(found: np.ndarray, inverse: np.ndarray) -> float:
    return float(np.linalg.norm(found - inverse) / np.linalg.norm(inverse))
