"""What a calibrated copy will do with any target: program it, and predict drift, diffusion, mean, covariance, settling.

    dx = (b - A x) dt + N(0, D dt),   <y> = H A⁻¹ b,   Cov(y) = H Σ Hᵀ,   A Σ + Σ Aᵀ = D

with A, D, H of the copy's own circuit (circuits.device) at an ambient temperature, or of one reduced to fewer states.
The copy shows g y + o of a reading y, and the ADC rounds and clips that (circuits.interface.converted_law); its full
scale is for the largest rms reading of the board. Bias currents come from the DAC, whose full scale is for their rms.
"""

from dataclasses import dataclass

import numpy as np

from circuits.assembly import Circuit
from circuits.board import REFERENCE_CELSIUS, Program
from circuits.device import Device, predict, readout_of
from circuits.errors import InputError
from circuits.interface import convert, converted_law
from circuits.inversion import Inversion
from circuits.ladder import plan
from circuits.ou import decay_time, diffusion, drift, reading_covariance
from circuits.synthesis import program, reprogram

COLDEST, HOTTEST = -55.0, 125.0  # °C: what parts are made for
DAC_STREAM = 9  # of random numbers


@dataclass(frozen=True, eq=False)
class Prediction:
    """The process of one copy under one program; x are m node voltages [V] and l fluxes [Wb], readings (n,) [V].

    `columns` (n, n) [ohm] are means for unit bias currents into each cell (zero where coils lead to ground), with the
    gains of the readout, before the ADC. `mean` (n,) [V] under the bias, `covariance` (n, n) [V²] and the share of
    readings that the ADC clips, `clipped` (n,), are of what is read; `clipped_bias` counts currents that the DAC
    clipped. `settling` [s] is the slowest time constant; `interval` [s] that between readings: the program's sampling
    period, or as many as the ADC needs for all cells one after the other. `inverse` (n, n) is what is read from the
    covariance, on a resistive board from the columns.
    """

    program: Program
    circuit: Circuit
    drift: np.ndarray  # (m + l, m + l), 1/s
    diffusion: np.ndarray  # (m + l, m + l)
    mean: np.ndarray
    columns: np.ndarray
    covariance: np.ndarray
    settling: float
    interval: float
    inverse: np.ndarray
    clipped: np.ndarray
    clipped_bias: int


def predict_target(
    device: Device,
    copy: int,
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    name: str = "target",
    ambient: float = REFERENCE_CELSIUS,
    bias: np.ndarray | None = None,
    seed: int = 0,
) -> Prediction:
    """Program a checked target (n, n) onto the device's board, by codes if it has banks, and predict copy `copy`.

    The rest as in `predict_program`. InputError if the board does not hold the target, or there is no such copy.
    """
    board = device.board
    if len(target) != len(board.cells):
        raise InputError(f"the device has {len(board.cells)} cells, the target is {len(target)} x {len(target)}")
    if board.banks:
        made = reprogram(board, target, congruence, name)
    else:
        T = np.eye(len(target)) if congruence is None else congruence
        chosen = plan(target, T, board.kind, negative=board.kind == "differential")
        made = program(board, target, T, chosen, name)
    return predict_program(device, copy, made, ambient, bias, seed)


def predict_program(
    device: Device,
    copy: int,
    programmed: Program,
    ambient: float = REFERENCE_CELSIUS,
    bias: np.ndarray | None = None,
    seed: int = 0,
) -> Prediction:
    """Predict copy number `copy` (from 0) under a program for its board, at `ambient` [°C].

    `bias` (n,) [A] are currents into the cells, none by default; `seed` draws the DAC's noise on them. InputError if
    there is no such copy, the temperature is beyond what parts are made for, the bias is of another size or leads to
    ground, or the copy would be unstable.
    """
    board, n = device.board, len(device.board.cells)
    if not 0 <= copy < len(device.copies):
        raise InputError(f"the device has copies 0 to {len(device.copies) - 1}, got {copy}")
    if not COLDEST <= ambient <= HOTTEST:
        raise InputError(f"expected a temperature from {COLDEST:g} to {HOTTEST:g} °C, got {ambient:g}")
    circuit = predict(device, copy, programmed, ambient)
    A, D = drift(circuit), diffusion(circuit)
    if not np.linalg.eigvals(A).real.min() > 0:
        raise InputError(f"{device.copies[copy].name} would run away under this program; use a --precondition")
    gains, offsets = readout_of(device, copy)
    columns = np.zeros((n, n))
    if not circuit.coils.shape[1]:
        columns = gains[:, None] * (circuit.readout @ np.linalg.solve(circuit.conductance, circuit.readout.T))
    current, clipped_bias = _uploaded(device, bias, seed)
    mean, covariance, clipped = converted_law(
        columns @ current + offsets,
        gains[:, None] * reading_covariance(circuit) * gains,
        device.interface.adc,
        board.limits.reading_rms,
    )
    X = programmed.mapping
    if board.inputs:
        inverse = board.unit * X.T @ columns @ X
    else:
        scale = board.capacitance / (board.nodes_per_cell * programmed.energy)
        inverse = Inversion(np.linalg.inv(programmed.target), X * np.sqrt(scale)).read(covariance)
    return Prediction(
        programmed,
        circuit,
        A,
        D,
        mean,
        columns,
        covariance,
        decay_time(circuit),
        _interval(device, programmed),
        inverse,
        clipped,
        clipped_bias,
    )


def _interval(device: Device, programmed: Program) -> float:
    """Seconds between readings: whole sampling periods, at least as long as the ADC takes for all cells."""
    rate = device.interface.adc.rate
    periods = 1 if rate is None else max(1, int(np.ceil(len(device.board.cells) / rate / programmed.period - 1e-9)))
    return periods * programmed.period


def _uploaded(device: Device, bias: np.ndarray | None, seed: int) -> tuple[np.ndarray, int]:
    """Bias currents (n,) [A] as the DAC gives them, and how many it clipped."""
    n = len(device.board.cells)
    if bias is None:
        return np.zeros(n), 0
    bias = np.asarray(bias, dtype=float)
    if bias.shape != (n,) or not np.isfinite(bias).all():
        raise InputError(f"expected {n} finite bias currents, one for each cell, got an array of shape {bias.shape}")
    if not device.board.inputs:
        raise InputError("the coils of a capacitive board lead bias currents to ground; use a resistive board")
    made = convert(
        bias,
        device.interface.dac,
        np.sqrt(np.mean(bias**2)),
        np.random.default_rng([DAC_STREAM, seed]),
        to_analog=True,
    )
    return made.values, made.saturated
