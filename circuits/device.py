"""A device: what calibration knows of the copies of one board, and what it predicts for any program on them.

The reduced-order model of a copy has one node a cell, the reading. Each element (a matched pair of parts) has one
relative gain, each cell a relative temperature t_i = T_i/T (so its conductance is g/t_i) and a relative inductance.
With the element values e of a program

    M~_ii = Σ e_coupling γ + e_ground γ + 2 e_negative γ,   M~_ij = (e_crossed γ - e_straight γ),
    C = M~,  G = diag(g/t_i),  Γ = diag(1/(L l_i)),  Q = k kT g I  (k nodes a cell),

and the law of the readings is that of circuits.ou. Mismatch inside a pair enters in second order only. A board with
banks, and a resistive one, has a gain of every pair of parts (circuits.pairs): bits, switches, pads, what leads to
ground; its reduced circuit keeps the nodes behind switches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from circuits.assembly import Circuit
from circuits.board import Board, Program
from circuits.errors import InputError
from circuits.pairs import PairModel, half_circuit, half_of, pair_model
from circuits.store import read_json, sha256

SCHEMA = "tngd.device/3"
DEVICE_STREAM = 3  # of random numbers: not that of parts or noise


@dataclass(frozen=True)
class Estimate:
    """A relative quantity: value, standard error, and whether the data said anything about it (else: its prior)."""

    value: float
    standard_error: float
    observed: bool


@dataclass(frozen=True)
class FittedCopy:
    """Estimates of one copy: gain of every element by name, relative temperature and inductance of every cell.

    On boards with banks and resistive boards `gains` are those of all pairs of parts, and of the power of sources.
    """

    name: str
    gains: dict[str, Estimate]
    temperatures: tuple[Estimate, ...]
    inductances: tuple[Estimate, ...]


@dataclass(frozen=True)
class Device:
    """Fitted copies of a board, what they were fitted on (route, number of data, χ², programs), held-out targets."""

    board: Board
    copies: tuple[FittedCopy, ...]
    fitted_on: dict[str, Any]
    held_out: dict[str, Any] = field(default_factory=dict)


def ideal_device(board: Board, copies: int = 1) -> Device:
    """The device whose every copy is exactly nominal."""
    exact = Estimate(1.0, 0.0, False)
    each = tuple(exact for _ in board.cells)
    gains = dict.fromkeys(_gain_names(board), exact)
    cells = each if board.coupling == "capacitive" else ()
    fitted = tuple(FittedCopy(f"ideal-{k}", gains, cells, cells) for k in range(1, copies + 1))
    return Device(board, fitted, {"route": "ideal"})


def draw_device(device: Device, seed: int) -> Device:
    """Give every unobserved quantity a value: estimate + standard error · uniform(-√3, √3), drawn once.

    What calibration saw stays at its estimate, which predicts the copy far better than its parts' errors one by one
    would say (they are correlated). What it did not see takes the spread that parts of this board have, so that a
    program which needs it does not meet a perfect part. The same device and seed give the same copies.
    """
    return replace(device, copies=tuple(_drawn(copy, seed, k) for k, copy in enumerate(device.copies)))


def reduced_circuit(
    board: Board, program: Program, gains: dict[str, float], temperatures: np.ndarray, inductances: np.ndarray
) -> Circuit:
    """The reduced-order circuit, matrices (n, n), of a copy with these relative gains, temperatures, inductances."""
    n, k = len(board.cells), board.nodes_per_cell
    C = np.zeros((n, n))
    for element in board.elements:
        value = program.values.get(element.name, 0.0) * gains[element.name]
        if element.kind in ("ground", "negative"):
            C[element.cells * 2] += value * (2 if element.kind == "negative" else 1)
        else:
            i, j = element.cells
            C[i, i] += value
            C[j, j] += value
            C[i, j] = C[j, i] = C[i, j] + (value if element.kind == "crossed" else -value)
    resistance, inductance = _nominal(board)
    eye = np.eye(n)
    return Circuit(
        C,
        np.diag(1 / (resistance * temperatures)),
        eye,
        np.diag(1 / (inductance * inductances)),
        0 * eye,
        k * program.energy / resistance * eye,
        eye,
    )


def predict(device: Device, copy: int, program: Program) -> Circuit:
    """The reduced-order circuit of copy number `copy` (from 0) under any program for its board.

    Readings (n,) of n nodes, and on a board with banks of those behind closed switches.
    """
    fitted = device.copies[copy]
    if by_pairs(device.board):
        model = pairs_of(device.board)
        return half_circuit(half_of(model, program), parameters_of(model, fitted))
    return reduced_circuit(
        device.board,
        program,
        {name: estimate.value for name, estimate in fitted.gains.items()},
        np.array([estimate.value for estimate in fitted.temperatures]),
        np.array([estimate.value for estimate in fitted.inductances]),
    )


def by_pairs(board: Board) -> bool:
    """Whether the parts of a copy are known pair by pair, rather than element by element."""
    return bool(board.banks) or board.coupling == "resistive"


@lru_cache(maxsize=8)
def pairs_of(board: Board) -> PairModel:
    """`pair_model`, once for a board."""
    return pair_model(board)


def parameters_of(model: PairModel, copy: FittedCopy) -> np.ndarray:
    """θ (parameters,) of a fitted copy."""
    cells = {f"temperature_{i}": e for i, e in enumerate(copy.temperatures, start=1)}
    cells |= {f"inductance_{i}": e for i, e in enumerate(copy.inductances, start=1)}
    found = copy.gains | cells
    return np.array([found[name].value for name in model.names])


def copy_of(board: Board, name: str, model: PairModel, theta: np.ndarray, covariance: np.ndarray) -> FittedCopy:
    """The record of fitted parameters (parameters,) of this covariance; observed is what is known twice as well."""
    error = np.sqrt(np.diag(covariance))
    found = {
        parameter: Estimate(float(value), float(own), bool(own < spread / 2))
        for parameter, value, own, spread in zip(model.names, theta, error, model.spreads, strict=True)
    }
    exact = Estimate(1.0, 0.0, False)
    cells = range(1, len(board.cells) + 1) if board.coupling == "capacitive" else ()
    return FittedCopy(
        name,
        {parameter: found[parameter] for parameter in _gain_names(board)},
        tuple(found.get(f"temperature_{i}", exact) for i in cells),
        tuple(found.get(f"inductance_{i}", exact) for i in cells),
    )


def quality_factor(board: Board) -> float:
    """R sqrt(c0/L) of a cell with the unit capacitance."""
    resistance, inductance = _nominal(board)
    return float(resistance * np.sqrt(board.unit / inductance))


def describe_device(device: Device) -> dict[str, Any]:
    """The content of device.json, but for its provenance."""
    return {
        "schema": SCHEMA,
        "fitted_on": device.fitted_on,
        "held_out": device.held_out,
        "nominal": _nominal_values(device.board),
        "copies": TypeAdapter(tuple[FittedCopy, ...]).dump_python(device.copies, mode="json"),
        "board": TypeAdapter(Board).dump_python(device.board, mode="json"),
        "device_sha256": device_hash(device),
    }


def load_device(path: Path | str) -> Device:
    """Read device.json; InputError if it is missing, of another schema, damaged, or physically impossible."""
    path = Path(path)
    content = read_json(path, "calibrate")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{path} does not say schema {SCHEMA}; make it again with `tngd calibrate`")
    try:
        device = Device(
            TypeAdapter(Board).validate_python(content["board"]),
            TypeAdapter(tuple[FittedCopy, ...]).validate_python(content["copies"]),
            dict(content["fitted_on"]),
            dict(content["held_out"]),
        )
        seal = content["device_sha256"]
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        word = str(error).splitlines()[0]
        raise InputError(f"{path} is damaged ({word}); make it again with `tngd calibrate`") from None
    problem = next(_problems(device), None)
    if problem:
        raise InputError(f"{path} is not usable: {problem}; make it again with `tngd calibrate`")
    if device_hash(device) != seal:
        raise InputError(f"{path} was changed since it was made; make it again with `tngd calibrate`")
    return device


def device_hash(device: Device) -> str:
    """SHA-256 of everything a device predicts from: its board and its copies."""
    return sha256(TypeAdapter(Device).dump_json(replace(device, fitted_on={}, held_out={})))


def _drawn(copy: FittedCopy, seed: int, number: int) -> FittedCopy:
    generator = np.random.default_rng([DEVICE_STREAM, seed, number])

    def draw(estimate: Estimate) -> Estimate:
        step = estimate.standard_error * generator.uniform(-np.sqrt(3), np.sqrt(3))
        return estimate if estimate.observed else Estimate(float(estimate.value + step), 0.0, False)

    return FittedCopy(
        copy.name,
        {name: draw(estimate) for name, estimate in copy.gains.items()},
        tuple(draw(estimate) for estimate in copy.temperatures),
        tuple(draw(estimate) for estimate in copy.inductances),
    )


def _problems(device: Device) -> Iterator[str]:
    names = set(_gain_names(device.board))
    cells = len(device.board.cells) if device.board.coupling == "capacitive" else 0
    if not device.copies:
        yield "it holds no copies"
    for copy in device.copies:
        if set(copy.gains) != names:
            yield f"{copy.name} does not have one gain for each of the board's {len(names)} parts"
        if not len(copy.temperatures) == len(copy.inductances) == cells:
            yield f"{copy.name} does not have one temperature and inductance for each cell"
        for estimate in (*copy.gains.values(), *copy.temperatures, *copy.inductances):
            if not (0 < estimate.value < np.inf and 0 <= estimate.standard_error < np.inf):
                yield f"{copy.name} has a gain of {estimate.value} ± {estimate.standard_error}, expected a gain above 0"


def _gain_names(board: Board) -> tuple[str, ...]:
    """Of what a copy has gains."""
    if not by_pairs(board):
        return tuple(element.name for element in board.elements)
    return tuple(name for name in pairs_of(board).names if name.split("_")[0] not in ("temperature", "inductance"))


def _nominal_values(board: Board) -> dict[str, dict[str, float]]:
    """Nominal values of what gains are relative to, in F, ohm, H, but for elements that a program sets."""
    if not by_pairs(board):
        return {}
    model, unit = pairs_of(board), {"C": "F", "R": "ohm", "L": "H"}
    found = {}
    for members, row in zip(model.pairs, model.exponents, strict=True):
        part = board.parts[members[0]]
        if part.nominal is not None and row.any():
            found[model.names[int(np.abs(row).argmax())]] = {f"nominal_{unit[part.kind]}": part.nominal}
    return found


def _nominal(board: Board) -> tuple[float, float]:
    resistance = next(part.nominal for part in board.parts if part.kind == "R")
    inductance = next(part.nominal for part in board.parts if part.kind == "L")
    return resistance, inductance
