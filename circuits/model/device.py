"""Device: estimates of every copy of one board, and the process of a copy under any target.

    dx = (b - A x) dt + N(0, D dt),   <y> = H A⁻¹ b,   Cov(y) = H Σ Hᵀ,   A Σ + Σ Aᵀ = D

with A, D, H of the copy's own circuit (circuits.model.fitted_copy) at an ambient temperature, or, if the device has a
lower order, of that circuit reduced to so many states (circuits.model.reduction): all predictions are then of the
reduced process. The readout of a copy turns a reading y into g y + o, which the ADC rounds and clips
(circuits.model.converters.converted_law); the full scale of the ADC is for the largest rms reading of the board. Bias
currents come from the DAC, whose full scale is for their rms.

`Device.program` predicts the whole process of any target, `predict` returns the circuit of a copy under any program.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from circuits.board import COLDEST, HOTTEST, REFERENCE_CELSIUS, Board, Program, inverse_scale
from circuits.errors import InputError
from circuits.model.converters import IDEAL, Interface, board_interface, convert, converted_law
from circuits.model.fitted_copy import Estimate, FittedCopy, fitted_circuit, gain_names, nominal_cell, readout_of
from circuits.model.reduction import reduce_order
from circuits.nodal import Circuit, is_stable
from circuits.ou import drift
from circuits.statistics.inversion import Inversion
from circuits.synthesis.cells import plan_cells
from circuits.synthesis.design import program, reprogram
from circuits.synthesis.target import check_array, check_congruence, check_target

DEVICE_STREAM = 3  # of random numbers: not that of parts or noise

DAC_STREAM = 9  # of random numbers


@dataclass(frozen=True, eq=False)
class Prediction:
    """The process of one copy under one program, of d states x and readings H x (n,) [V].

    Of all states x are m node voltages [V] and l fluxes [Wb] of the `circuit`, d = m + l; fewer are combinations of
    them of unit variance, and `covariance_error`, `settling_error` and `mean_error` are the relative errors of their
    process against that of the circuit, before the ADC (circuits.model.reduction); 0 with all states.
    `columns` (n, n) [ohm] are means for unit bias currents into each cell (zero where coils lead to ground), with the
    gains of the readout, before the ADC. `mean` (n,) [V] under the bias, `covariance` (n, n) [V²] and the share of
    readings that the ADC clips, `clipped` (n,), are after the ADC; `clipped_bias` counts currents that the DAC
    clipped. `settling` [s] is the slowest time constant; `interval` [s] that between readings: the program's sampling
    period, or as many as the ADC needs for all cells one after the other. `inverse` (n, n) is read from the
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


@dataclass(frozen=True)
class Device:
    """Fitted copies of a board, the record of the fit (route, number of data, χ², programs), and held-out scores.

    `values` [F or S] are those of the elements under the board's own program, the one it was designed for (none: not
    known); every copy must be stable under it. `order` is the number of states of the process that is predicted, None:
    all of the pair model.
    """

    board: Board
    copies: tuple[FittedCopy, ...]
    fitted_on: dict[str, Any]
    held_out: dict[str, Any] = field(default_factory=dict)
    interface: Interface = IDEAL
    values: dict[str, float] = field(default_factory=dict)
    order: int | None = None

    def program(
        self,
        target: np.ndarray,
        copy: int = 0,
        *,
        precondition: np.ndarray | None = None,
        name: str = "target",
        ambient: float = REFERENCE_CELSIUS,
        bias: np.ndarray | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Put any positive definite target (n, n) on the board and predict the Ornstein-Uhlenbeck process of a copy.

        Returned are its drift [1/s], diffusion, readout, mean [V], covariance [V²], settling [s], and the inverse that
        is read from them (circuits.model.device). With a `precondition` T (n, n) the board holds T P Tᵀ; it is set by
        codes if it has banks. Other parameters are those of `under`. InputError if the target
        is not symmetric and positive definite, the precondition not invertible, or the board does not hold them.
        """
        made = programmed(self.board, target, precondition, name)
        return self.under(made, copy, ambient=ambient, bias=bias, seed=seed)

    def under(
        self,
        made: Program,
        copy: int = 0,
        *,
        ambient: float = REFERENCE_CELSIUS,
        bias: np.ndarray | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Predict the process of copy number `copy` (from 0) under a program that exists already, at `ambient` [°C].

        `bias` (n,) [A] are currents into the cells, none by default; `seed` draws the DAC's noise on them. InputError
        if there is no such copy, and for what `circuits.model.device.process` refuses.
        """
        if not 0 <= copy < len(self.copies):
            raise InputError(f"the device has copies 0 to {len(self.copies) - 1}, got {copy}")
        return process(self.board, self.copies[copy], self.interface, made, ambient, bias, seed, self.order)


def ideal_device(board: Board, copies: int = 1) -> Device:
    """Return the device whose every copy is exactly nominal."""
    exact = Estimate(1.0, 0.0, False)
    each = tuple(exact for _ in board.cells)
    gains = dict.fromkeys(gain_names(board), exact)
    cells = each if board.coupling == "capacitive" else ()
    fitted = tuple(FittedCopy(f"ideal-{k}", gains, cells, cells) for k in range(1, copies + 1))
    return Device(board, fitted, {"route": "ideal"})


def draw_device(device: Device, seed: int) -> Device:
    """Give every unobserved quantity a value: estimate + standard error · uniform(-√3, √3), drawn once.

    Observed quantities stay at their estimates, which predict the copy far better than their single errors suggest (the
    errors are correlated). Unobserved ones take the spread of the parts of this board, so that a program which needs
    them does not get perfect parts. The same device and seed give the same copies.
    """
    return replace(device, copies=tuple(_drawn(copy, seed, k) for k, copy in enumerate(device.copies)))


def predict(device: Device, copy: int, program: Program, ambient: float = REFERENCE_CELSIUS) -> Circuit:
    """Return the reduced-order circuit of copy number `copy` (from 0) under any program, at `ambient` [°C].

    Readings (n,) [V], before the readout's gains and offsets, of n nodes, and where parts are known pair by pair
    also of nodes behind closed switches and losses.
    """
    coefficients = temperature_coefficients(device.board, device.interface)
    return fitted_circuit(device.board, device.copies[copy], program, coefficients, ambient - REFERENCE_CELSIUS)


def copy_of(
    board: Board,
    name: str,
    prior: Mapping[str, float],
    theta: np.ndarray,
    covariance: np.ndarray,
    outside: Mapping[str, float] = MappingProxyType({}),
) -> FittedCopy:
    """Return the record of fitted parameters θ (parameters,) and their covariance (parameters, parameters).

    `prior` holds the standard deviation of every fitted parameter before any data, by name and in the order of θ; a
    parameter is observed if its standard error is below half of that. A gain `outside` the fit keeps the value 1 and
    the prior deviation given there; a gain in neither is exact.
    """
    error = np.sqrt(np.diag(covariance))
    found = {
        parameter: Estimate(float(value), float(own), bool(own < spread / 2))
        for (parameter, spread), value, own in zip(prior.items(), theta, error, strict=True)
    }
    found |= {parameter: Estimate(1.0, spread, False) for parameter, spread in outside.items()}
    exact = Estimate(1.0, 0.0, False)
    cells = range(1, len(board.cells) + 1) if board.coupling == "capacitive" else ()
    return FittedCopy(
        name,
        {parameter: found.get(parameter, exact) for parameter in gain_names(board)},
        tuple(found.get(f"temperature_{i}", exact) for i in cells),
        tuple(found.get(f"inductance_{i}", exact) for i in cells),
    )


def quality_factor(board: Board) -> float:
    """Return R sqrt(c0/L) of a cell with the unit capacitance."""
    resistance, inductance = nominal_cell(board)
    return float(resistance * np.sqrt(board.unit / inductance))


def unstable_copies(device: Device) -> list[str]:
    """Return the names of copies that would be unstable under the board's own program; none without that program."""
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
    """Return the program of the board's own values; its target has no effect on the drift."""
    eye = np.eye(len(device.board.cells))
    return Program("own", eye, eye, np.ones(len(eye)), "", "", device.values, 1e-12, 1.0, 1.0)


def temperature_coefficients(board: Board, interface: Interface) -> dict[str, float]:
    """Return the coefficients [1/K] of "R", "L", "C", "I": the interface's where it names a kind, else the board's.

    A copy is calibrated at the reference temperature, where the coefficients change nothing.
    """
    return board_interface(board).temperature_coefficients | interface.temperature_coefficients


def programmed(
    board: Board, target: np.ndarray, precondition: np.ndarray | None = None, name: str = "target"
) -> Program:
    """Program a target P (n, n), or with a `precondition` T (n, n) T P Tᵀ, on a board, by codes if it has banks.

    InputError if P is not symmetric and positive definite, T is not invertible, or the board does not hold the target.
    """
    target = check_target(target)
    if len(target) != len(board.cells):
        raise InputError(f"the device has {len(board.cells)} cells, the target is {len(target)} x {len(target)}")
    T = np.eye(len(target)) if precondition is None else check_congruence(precondition, len(target))
    if board.banks:
        return reprogram(board, target, T, name)
    return program(board, target, T, plan_cells(target, T, board.kind, negative=board.kind == "differential"), name)


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
    """Predict the process of a copy under a program for its board, through an interface, at `ambient` [°C].

    `bias` (n,) [A] are currents into the cells, none by default; `seed` draws the DAC's noise on them. `order` is the
    number of states, None: all. InputError if the temperature is out of the range of the parts, the bias is of another
    size or leads to ground, or the copy would be unstable.
    """
    if not COLDEST <= ambient <= HOTTEST:
        raise InputError(f"expected a temperature from {COLDEST:g} to {HOTTEST:g} °C, got {ambient:g}")
    circuit = fitted_circuit(board, copy, made, temperature_coefficients(board, interface), ambient - REFERENCE_CELSIUS)
    if not np.linalg.eigvals(drift(circuit)).real.min() > 0:
        raise InputError(f"{copy.name} would run away under this program; use a --precondition")
    found = reduce_order(circuit, order)
    gains, offsets = readout_of(copy, len(board.cells))
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
    """Return the inverse (n, n) read from the covariance, or on a resistive board from the columns."""
    X = made.mapping
    if board.inputs:
        return board.unit * X.T @ read @ X
    scale = inverse_scale(board, made)
    return Inversion(np.linalg.inv(made.target), X * np.sqrt(scale)).read(read)


def _interval(board: Board, interface: Interface, made: Program) -> float:
    """Return seconds between readings: whole sampling periods, at least as long as the ADC takes for all cells."""
    rate = interface.adc.rate
    periods = 1 if rate is None else max(1, int(np.ceil(len(board.cells) / rate / made.period - 1e-9)))
    return periods * made.period


def _uploaded(board: Board, interface: Interface, bias: np.ndarray | None, seed: int) -> tuple[np.ndarray, int]:
    """Return bias currents (n,) [A] after the DAC, and the number of clipped ones."""
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


def checked(device: Device) -> Device:
    """Return the device; InputError if `device` is not one, but for example the name of a preset or a path."""
    if not isinstance(device, Device):
        raise InputError(f"expected a device, got {device!r:.80}; read one with circuits.load_device")
    return device


def part_error(device: Device) -> float:
    """Root mean square of the known relative errors of parts and temperatures of all copies."""
    rows = [(*copy.gains.values(), *copy.temperatures, *copy.inductances) for copy in device.copies]
    known = [e.value - 1 for row in rows for e in row if e.observed or e.standard_error == 0]
    return (sum(error**2 for error in known) / len(known)) ** 0.5 if known else 0.0
