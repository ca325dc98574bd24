"""What a calibrated copy will do with any target: program it, and predict drift, diffusion, mean, covariance, settling.

    dx = (b - A x) dt + N(0, D dt),   <y> = H A⁻¹ b,   Cov(y) = H Σ Hᵀ,   A Σ + Σ Aᵀ = D

with A, D, H of the copy's own circuit (circuits.device), or of one reduced to fewer states.
"""

from dataclasses import dataclass

import numpy as np

from circuits.assembly import Circuit
from circuits.board import Program
from circuits.device import Device, predict
from circuits.errors import InputError
from circuits.inversion import Inversion
from circuits.ladder import plan
from circuits.ou import decay_time, diffusion, drift, reading_covariance
from circuits.synthesis import program, reprogram


@dataclass(frozen=True, eq=False)
class Prediction:
    """The process of one copy under one program; x are m node voltages [V] and l fluxes [Wb], readings (n,) [V].

    `mean` (n,) [V] is under no bias; `columns` (n, n) [ohm] are means for unit bias currents into each cell (zero where
    coils lead to ground); `covariance` (n, n) [V²]; `settling` [s] is the slowest time constant; `inverse` (n, n) is
    what is read from the covariance, on a resistive board from the columns.
    """

    program: Program
    circuit: Circuit
    drift: np.ndarray  # (m + l, m + l), 1/s
    diffusion: np.ndarray  # (m + l, m + l)
    mean: np.ndarray
    columns: np.ndarray
    covariance: np.ndarray
    settling: float
    inverse: np.ndarray


def predict_target(
    device: Device, copy: int, target: np.ndarray, congruence: np.ndarray | None = None, name: str = "target"
) -> Prediction:
    """Program a checked target (n, n) onto the device's board, by codes if it has banks, and predict copy `copy`.

    InputError if the board does not hold the target, or there is no such copy.
    """
    board = device.board
    if len(target) != len(board.cells):
        raise InputError(f"the device has {len(board.cells)} cells, the target is {len(target)} x {len(target)}")
    if board.banks:
        return predict_program(device, copy, reprogram(board, target, congruence, name))
    T = np.eye(len(target)) if congruence is None else congruence
    chosen = plan(target, T, board.kind, negative=board.kind == "differential")
    return predict_program(device, copy, program(board, target, T, chosen, name))


def predict_program(device: Device, copy: int, programmed: Program) -> Prediction:
    """Predict copy number `copy` (from 0) under a program for its board; InputError if there is no such copy."""
    board = device.board
    if not 0 <= copy < len(device.copies):
        raise InputError(f"the device has copies 0 to {len(device.copies) - 1}, got {copy}")
    circuit = predict(device, copy, programmed)
    n, covariance = len(board.cells), reading_covariance(circuit)
    columns = np.zeros((n, n))
    if not circuit.coils.shape[1]:
        columns = circuit.readout @ np.linalg.solve(circuit.conductance, circuit.readout.T)
    X = programmed.mapping
    if board.inputs:
        inverse = board.unit * X.T @ columns @ X
    else:
        scale = board.capacitance / (board.nodes_per_cell * programmed.energy)
        inverse = Inversion(np.linalg.inv(programmed.target), X * np.sqrt(scale)).read(covariance)
    A, D = drift(circuit), diffusion(circuit)
    return Prediction(programmed, circuit, A, D, np.zeros(n), columns, covariance, decay_time(circuit), inverse)
