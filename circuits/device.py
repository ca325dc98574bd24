"""A device: what calibration knows of the copies of one board, its file, and the presets of the package.

`predict` gives the circuit of a copy under any program (circuits.specimen), `Device.program` the whole process of any
target (circuits.prediction).
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from circuits.assembly import Circuit, is_stable
from circuits.board import REFERENCE_CELSIUS, Board, Program, impossible
from circuits.errors import InputError
from circuits.estimated import Estimate, FittedCopy, by_pairs, gain_names, nominal_cell, nominal_values, pairs_of
from circuits.fitted import Device
from circuits.interface import Interface
from circuits.pairs import PairModel
from circuits.prediction import known_coefficients
from circuits.specimen import fitted_circuit, parameters_of, reduced_circuit, shown
from circuits.store import read_json, sha256

__all__ = [
    "DEVICE_STREAM",
    "PRESETS",
    "SCHEMA",
    "Device",
    "Estimate",
    "FittedCopy",
    "by_pairs",
    "copy_of",
    "describe_device",
    "device_file",
    "device_hash",
    "draw_device",
    "ideal_device",
    "load_device",
    "pairs_of",
    "parameters_of",
    "predict",
    "quality_factor",
    "readout_of",
    "reduced_circuit",
    "temperature_coefficients",
]

SCHEMA = "tngd.device/4"
DEVICE_STREAM = 3  # of random numbers: not that of parts or noise
PRESETS = ("ideal", "board-1", "board-2", "board-3", "worst-case")  # devices that come with the package


def ideal_device(board: Board, copies: int = 1) -> Device:
    """The device whose every copy is exactly nominal."""
    exact = Estimate(1.0, 0.0, False)
    each = tuple(exact for _ in board.cells)
    gains = dict.fromkeys(gain_names(board), exact)
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


def predict(device: Device, copy: int, program: Program, ambient: float = REFERENCE_CELSIUS) -> Circuit:
    """The reduced-order circuit of copy number `copy` (from 0) under any program for its board, at `ambient` [°C].

    Readings (n,) [V], before the readout's gains and offsets, of n nodes, and where parts are known pair by pair of
    those behind closed switches and losses.
    """
    coefficients = temperature_coefficients(device)
    return fitted_circuit(device.board, device.copies[copy], program, coefficients, ambient - REFERENCE_CELSIUS)


def temperature_coefficients(device: Device) -> dict[str, float]:
    """Those of all kinds of part [1/K], "R", "L", "C" and "I": the interface's where it names them, else the board's.

    A copy was calibrated at the reference temperature, where they change nothing.
    """
    return known_coefficients(device.board, device.interface)


def readout_of(device: Device, copy: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative gains (n,) and offsets (n,) [V] of a copy's readout."""
    return shown(device.copies[copy], len(device.board.cells))


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
        {parameter: found.get(parameter, exact) for parameter in gain_names(board)},
        tuple(found.get(f"temperature_{i}", exact) for i in cells),
        tuple(found.get(f"inductance_{i}", exact) for i in cells),
    )


def quality_factor(board: Board) -> float:
    """R sqrt(c0/L) of a cell with the unit capacitance."""
    resistance, inductance = nominal_cell(board)
    return float(resistance * np.sqrt(board.unit / inductance))


def describe_device(device: Device, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of device.json with its provenance, `about`, sealed by its own hash; nothing may be added to it."""
    content = {
        "schema": SCHEMA,
        "fitted_on": device.fitted_on,
        "held_out": device.held_out,
        "order": device.order,
        "nominal": nominal_values(device.board),
        f"program_{device.board.element_unit}": device.values,
        "interface": TypeAdapter(Interface).dump_python(device.interface, mode="json", by_alias=True),
        "copies": TypeAdapter(tuple[FittedCopy, ...]).dump_python(device.copies, mode="json", by_alias=True),
        "board": TypeAdapter(Board).dump_python(device.board, mode="json"),
        "device_sha256": device_hash(device),
        "provenance": dict(about or {}),
    }
    content["provenance"]["content_sha256"] = _content_hash(content)
    return content


def device_file(place: Path | str) -> Path:
    """Where a device is: the file of that name, or, if there is none, the preset of that name."""
    if str(place) in PRESETS and not Path(place).is_file():
        return Path(str(resources.files("circuits"))) / "devices" / f"{place}.json"
    return Path(place)


def load_device(path: Path | str) -> Device:
    """Read a device from its file, or a preset by its name.

    InputError if it is missing, of another schema, changed, damaged, or physically impossible.
    """
    place = device_file(path)
    if not place.exists():
        raise InputError(f"{place} does not exist; make it with `tngd calibrate`, or take one of {', '.join(PRESETS)}")
    content = read_json(place, "calibrate")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{place} does not say schema {SCHEMA}; make it again with `tngd calibrate`")
    _check_seal(place, content)
    try:
        device, seal = _device(content), content["device_sha256"]
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InputError(f"{place} is damaged ({_word(error)}); make it again with `tngd calibrate`") from None
    if device_hash(device) != seal:
        raise InputError(f"{place} was changed since it was made; make it again with `tngd calibrate`")
    try:
        problem = next(_problems(device), None)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem = f"its board makes no circuit ({type(error).__name__}: {_word(error)})"
    if problem:
        raise InputError(f"{place} is not usable: {problem}; make it again with `tngd calibrate`")
    return device


def device_hash(device: Device) -> str:
    """SHA-256 of everything a device predicts from: its board, its copies, its order, how it is written and read.

    A device of all states has the hash that it had before there was another order, so older results name it still.
    """
    content = TypeAdapter(Device).dump_json(
        replace(device, fitted_on={}, held_out={}), exclude={"order"} if device.order is None else None
    )
    return sha256(content)


def unstable_copies(device: Device) -> list[str]:
    """Names of the copies that would run away under the board's own program, none if that is not known."""
    if not device.values:
        return []
    own = _own_program(device)
    return [copy.name for k, copy in enumerate(device.copies) if not is_stable(predict(device, k, own))]


def _check_seal(path: Path, content: dict[str, Any]) -> None:
    """InputError if anything was changed in a file since it was made, or it has no seal.

    Before anything else is made of the content: what was edited may fail anywhere.
    """
    about = content.get("provenance")
    seal = about.get("content_sha256") if isinstance(about, dict) else None
    if seal is None:
        raise InputError(f"{path} is damaged (it has no content_sha256); make it again with `tngd calibrate`")
    if seal != _content_hash(content):
        raise InputError(f"{path} was changed since it was made; make it again with `tngd calibrate`")


def _content_hash(content: dict[str, Any]) -> str:
    """SHA-256 of everything in a file but this hash itself."""
    about = {name: value for name, value in content["provenance"].items() if name != "content_sha256"}
    return sha256(json.dumps(content | {"provenance": about}, sort_keys=True))


def _device(content: dict[str, Any]) -> Device:
    """The record of a file; KeyError, TypeError, ValueError or ValidationError if it is none."""
    board = TypeAdapter(Board).validate_python(content["board"])
    return Device(
        board,
        TypeAdapter(tuple[FittedCopy, ...]).validate_python(content["copies"]),
        dict(content["fitted_on"]),
        dict(content["held_out"]),
        TypeAdapter(Interface).validate_python(content["interface"]),
        TypeAdapter(dict[str, float]).validate_python(content[f"program_{board.element_unit}"]),
        TypeAdapter(int | None).validate_python(content["order"], strict=True),
    )


def _word(error: Exception) -> str:
    """What is wrong, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".replace("Value error, ", "")
    return str(error).splitlines()[0]


def _drawn(copy: FittedCopy, seed: int, number: int) -> FittedCopy:
    generator = np.random.default_rng([DEVICE_STREAM, seed, number])

    def draw(estimate: Estimate) -> Estimate:
        step = estimate.standard_error * generator.uniform(-np.sqrt(3), np.sqrt(3))
        return estimate if estimate.observed else Estimate(float(estimate.value + step), 0.0, False)

    cells = ("temperatures", "inductances", "readout_gains", "readout_offsets")
    return replace(
        copy,
        gains={name: draw(estimate) for name, estimate in copy.gains.items()},
        **{kind: tuple(draw(estimate) for estimate in getattr(copy, kind)) for kind in cells},
    )


def _problems(device: Device) -> Iterator[str]:
    wrong = impossible(device.board)
    if wrong:
        yield wrong
    names = set(gain_names(device.board))
    cells = len(device.board.cells) if device.board.coupling == "capacitive" else 0
    if not device.copies:
        yield "it holds no copies"
    nowhere = [e.name for e in device.board.elements if not set(e.cells) <= set(range(len(device.board.cells)))]
    if nowhere:
        yield f"its element {nowhere[0]} is of cells that the board does not have"
    if device.order is not None and device.order < len(device.board.cells):
        yield f"it has an order of {device.order}, fewer states than the board's {len(device.board.cells)} readings"
    unknown = sorted(device.values.keys() - {element.name for element in device.board.elements})
    if unknown or not np.isfinite(list(device.values.values())).all():
        yield f"its program has a value of {unknown[0] if unknown else 'an element'} that the board cannot hold"
    for copy in device.copies:
        if set(copy.gains) != names:
            yield f"{copy.name} does not have one gain for each of the board's {len(names)} parts"
        if not len(copy.temperatures) == len(copy.inductances) == cells:
            yield f"{copy.name} does not have one temperature and inductance for each cell"
        for row in (copy.readout_gains, copy.readout_offsets):
            if len(row) not in (0, len(device.board.cells)):
                yield f"{copy.name} does not have one readout gain and offset for each cell"
        for estimate in (*copy.gains.values(), *copy.temperatures, *copy.inductances, *copy.readout_gains):
            if not (0 < estimate.value < np.inf and 0 <= estimate.standard_error < np.inf):
                yield f"{copy.name} has a gain of {estimate.value} ± {estimate.standard_error}, expected a gain above 0"
        for estimate in copy.readout_offsets:
            if not (np.isfinite(estimate.value) and 0 <= estimate.standard_error < np.inf):
                yield f"{copy.name} has a readout offset of {estimate.value} ± {estimate.standard_error} V"
    for name in unstable_copies(device):
        yield f"{name} would run away under the board's own program: its drift is unstable"


def _own_program(device: Device) -> Program:
    """The program of the board's own values; what it stands for does not matter to the drift."""
    eye = np.eye(len(device.board.cells))
    return Program("own", eye, eye, np.ones(len(eye)), "", "", device.values, 1e-12, 1.0, 1.0)
