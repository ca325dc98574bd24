"""What a fitted copy will do with any target: its drift, diffusion, mean, covariance and settling.

    dx = (b - A x) dt + N(0, D dt),   <y> = H A⁻¹ b,   Cov(y) = H Σ Hᵀ,   A Σ + Σ Aᵀ = D

with A, D, H of the copy's own circuit (circuits.model.fitted_copy) at an ambient temperature, or, if the device is of a lower
order, of that circuit reduced to so many states (circuits.model.reduction): all that is predicted is then of that process.
The copy shows g y + o of a reading y, and the ADC rounds and clips that (circuits.model.converters.converted_law); its full
scale is for the largest rms reading of the board. Bias currents come from the DAC, whose full scale is for their rms.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import COLDEST, HOTTEST, REFERENCE_CELSIUS, Board, Program
from circuits.errors import InputError
from circuits.estimated import FittedCopy
from circuits.model.converters import Interface, board_interface, convert, converted_law
from circuits.model.fitted_copy import fitted_circuit, shown
from circuits.model.reduction import reduce_order
from circuits.nodal import Circuit
from circuits.ou import drift
from circuits.statistics.inversion import Inversion
from circuits.synthesis.cells import plan
from circuits.synthesis.design import program, reprogram
from circuits.synthesis.target import check_array, check_congruence, check_target

DAC_STREAM = 9  # of random numbers


@dataclass(frozen=True, eq=False)
class Prediction:
    """The process of one copy under one program, of d states x and readings H x (n,) [V].

    Of all states x are m node voltages [V] and l fluxes [Wb] of the `circuit`, d = m + l; fewer are combinations of
    them of unit variance, and `covariance_error`, `settling_error` and `mean_error` are what their process is off by
    from that of the circuit, relative, before the ADC (circuits.reduction); 0 of all states.
    `columns` (n, n) [ohm] are means for unit bias currents into each cell (zero where coils lead to ground), with the
    gains of the readout, before the ADC. `mean` (n,) [V] under the bias, `covariance` (n, n) [V²] and the share of
    readings that the ADC clips, `clipped` (n,), are of what is read; `clipped_bias` counts currents that the DAC
    clipped. `settling` [s] is the slowest time constant; `interval` [s] that between readings: the program's sampling
    period, or as many as the ADC needs for all cells one after the other. `inverse` (n, n) is what is read from the
    covariance, on a resistive board from the columns.
    """

    program: Program
    circuit: Circuit
    drift: np.ndarray  # (d, d), 1/s
    diffusion: np.ndarray  # (d, d)
    readout: np.ndarray  # (n, d)
    mean: np.ndarray
    columns: np.ndarray
    covariance: np.ndarray
    settling: float
    interval: float
    inverse: np.ndarray
    clipped: np.ndarray
    clipped_bias: int
    covariance_error: float
    settling_error: float
    mean_error: float


def known_coefficients(board: Board, interface: Interface) -> dict[str, float]:
    """Temperature coefficients [1/K] of "R", "L", "C", "I": the interface's where it names them, else the board's."""
    return board_interface(board).temperature_coefficients | interface.temperature_coefficients


def programmed(
    board: Board, target: np.ndarray, precondition: np.ndarray | None = None, name: str = "target"
) -> Program:
    """A checked target P (n, n), or with a `precondition` T (n, n) T P Tᵀ, on a board, by codes if it has banks.

    InputError if it is not symmetric and positive definite, T not invertible, or the board does not hold them.
    """
    target = check_target(target)
    if len(target) != len(board.cells):
        raise InputError(f"the device has {len(board.cells)} cells, the target is {len(target)} x {len(target)}")
    T = np.eye(len(target)) if precondition is None else check_congruence(precondition, len(target))
    if board.banks:
        return reprogram(board, target, T, name)
    return program(board, target, T, plan(target, T, board.kind, negative=board.kind == "differential"), name)


def process(
    board: Board,
    copy: FittedCopy,
    interface: Interface,
    made: Program,
    ambient: float = REFERENCE_CELSIUS,
    bias: np.ndarray | None = None,
    seed: int = 0,
    order: int | None = None,
) -> Prediction:
    """The process of a copy under a program for its board, written and read by an interface, at `ambient` [°C].

    `bias` (n,) [A] are currents into the cells, none by default; `seed` draws the DAC's noise on them. `order` is the
    number of states, None: all. InputError if the temperature is beyond what parts are made for, the bias is of another
    size or leads to ground, or the copy would be unstable.
    """
    if not COLDEST <= ambient <= HOTTEST:
        raise InputError(f"expected a temperature from {COLDEST:g} to {HOTTEST:g} °C, got {ambient:g}")
    circuit = fitted_circuit(board, copy, made, known_coefficients(board, interface), ambient - REFERENCE_CELSIUS)
    if not np.linalg.eigvals(drift(circuit)).real.min() > 0:
        raise InputError(f"{copy.name} would run away under this program; use a --precondition")
    found = reduce_order(circuit, order)
    gains, offsets = shown(copy, len(board.cells))
    columns = gains[:, None] * found.columns
    current, clipped_bias = _uploaded(board, interface, bias, seed)
    mean, covariance, clipped = converted_law(
        columns @ current + offsets,
        gains[:, None] * found.covariance * gains,
        interface.adc,
        board.limits.reading_rms,
    )
    return Prediction(
        made,
        circuit,
        found.drift,
        found.diffusion,
        found.readout,
        mean,
        columns,
        covariance,
        found.settling,
        _interval(board, interface, made),
        _inverse(board, made, columns if board.inputs else covariance),
        clipped,
        clipped_bias,
        found.covariance_error,
        found.settling_error,
        found.mean_error,
    )


def _inverse(board: Board, made: Program, read: np.ndarray) -> np.ndarray:
    """What is read from the covariance, on a resistive board from the columns, (n, n)."""
    X = made.mapping
    if board.inputs:
        return board.unit * X.T @ read @ X
    scale = board.capacitance / (board.nodes_per_cell * made.energy)
    return Inversion(np.linalg.inv(made.target), X * np.sqrt(scale)).read(read)


def _interval(board: Board, interface: Interface, made: Program) -> float:
    """Seconds between readings: whole sampling periods, at least as long as the ADC takes for all cells."""
    rate = interface.adc.rate
    periods = 1 if rate is None else max(1, int(np.ceil(len(board.cells) / rate / made.period - 1e-9)))
    return periods * made.period


def _uploaded(board: Board, interface: Interface, bias: np.ndarray | None, seed: int) -> tuple[np.ndarray, int]:
    """Bias currents (n,) [A] as the DAC gives them, and how many it clipped."""
    n = len(board.cells)
    if bias is None:
        return np.zeros(n), 0
    if seed < 0:
        raise InputError(f"a seed is a whole number >= 0, got {seed}")
    bias = check_array(bias, "bias")
    if bias.dtype.kind not in "biuf" or bias.shape != (n,) or not np.isfinite(bias).all():
        raise InputError(
            f"expected {n} finite bias currents, one for each cell, got an array of shape {bias.shape} and type "
            f"{bias.dtype}"
        )
    if not board.inputs:
        raise InputError("the coils of a capacitive board lead bias currents to ground; use a resistive board")
    made = convert(
        bias,
        interface.dac,
        np.sqrt(np.mean(bias**2)),
        np.random.default_rng([DAC_STREAM, seed]),
        to_analog=True,
    )
    return made.values, made.saturated
