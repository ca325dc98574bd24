"""A device: what calibration knows of the copies of one board, its file, and the presets of the package.

`predict` gives the circuit of a copy under any program (circuits.model.fitted_copy), `Device.program` the whole process of any
target (circuits.prediction).
"""

from dataclasses import replace

import numpy as np

from circuits.board import REFERENCE_CELSIUS, Board, Program
from circuits.estimated import Estimate, FittedCopy, gain_names, nominal_cell
from circuits.fitted import Device
from circuits.model.fitted_copy import fitted_circuit, shown
from circuits.model.pairs import PairModel
from circuits.nodal import Circuit, is_stable
from circuits.prediction import known_coefficients

DEVICE_STREAM = 3  # of random numbers: not that of parts or noise


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


def unstable_copies(device: Device) -> list[str]:
    """Names of the copies that would run away under the board's own program, none if that is not known."""
    if not device.values:
        return []
    own = _own_program(device)
    return [copy.name for k, copy in enumerate(device.copies) if not is_stable(predict(device, k, own))]


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


def _own_program(device: Device) -> Program:
    """The program of the board's own values; what it stands for does not matter to the drift."""
    eye = np.eye(len(device.board.cells))
    return Program("own", eye, eye, np.ones(len(eye)), "", "", device.values, 1e-12, 1.0, 1.0)
