"""Error against ambient temperature: as it is, and after a calibration at one or two temperatures.

Parts and sources follow their temperature coefficients. With the deviation Δ(T) = B(T) - P⁻¹ of a copy at T,

    as it is                ||Δ(T)||
    known at T₁             ||Δ(T) - Δ(T₁)||
    known at T₁ and T₂      ||Δ(T) - (1 - u) Δ(T₁) - u Δ(T₂)||,   u = (T - T₁)/(T₂ - T₁)

The last two are for an exact calibration; a calibration with errors leaves a larger deviation. B is computed from the
Lyapunov equation, on a resistive board from the mean.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import REFERENCE_CELSIUS, Conditions, Design
from circuits.nodal import assemble_many, nominal_circuit, states
from circuits.ou import MOST_STATES
from circuits.statistics.inversion import Inversion, circuit_inverses

COLDEST, HOTTEST = 0.0, 70.0  # °C, commercial
STEPS = 15
KNOWN_AT = REFERENCE_CELSIUS
KNOWN_AT_BOTH = (10.0, 60.0)


@dataclass(frozen=True)
class Sweep:
    """Relative errors at the temperatures `ambient` (T,) [°C]: of each copy (copies, T), and rms over the copies (T,).

    `known_once` and `known_twice` are the rms errors when every copy is known at one or at two temperatures.
    """

    ambient: tuple[float, ...]
    errors: tuple[tuple[float, ...], ...]
    as_it_is: tuple[float, ...]
    known_once: tuple[float, ...]
    known_twice: tuple[float, ...]
    known_at: float = KNOWN_AT
    known_at_both: tuple[float, float] = KNOWN_AT_BOTH


def sweep(design: Design, rule: Inversion) -> Sweep | None:
    """Errors of the copies of a design from COLDEST to HOTTEST; None if the circuit has too many states."""
    if states(nominal_circuit(design.board, design.program, Conditions())) > MOST_STATES:
        return None
    ambient = np.linspace(COLDEST, HOTTEST, STEPS)
    at = {T: _deviations(design, rule, T) for T in (*ambient.tolist(), KNOWN_AT, *KNOWN_AT_BOTH)}
    low, high = KNOWN_AT_BOTH
    share = (ambient - low) / (high - low)
    errors = np.array([_size(rule, at[T]) for T in ambient.tolist()])  # (T, copies)
    once = [_size(rule, at[T] - at[KNOWN_AT]) for T in ambient.tolist()]
    twice = [
        _size(rule, at[T] - (1 - u) * at[low] - u * at[high])
        for T, u in zip(ambient.tolist(), share.tolist(), strict=True)
    ]
    return Sweep(
        tuple(ambient.tolist()),
        tuple(map(tuple, errors.T.tolist())),
        *(tuple(np.sqrt(np.mean(np.square(found), axis=1)).tolist()) for found in (errors, once, twice)),
    )


def _deviations(design: Design, rule: Inversion, ambient: float) -> np.ndarray:
    """Deviations Δ(T), (copies, n, n), at T = `ambient` [°C]."""
    circuits = assemble_many(design.board, design.program, design.copies, Conditions(ambient))
    return circuit_inverses(design, rule, circuits) - rule.inverse


def _size(rule: Inversion, deviations: np.ndarray) -> np.ndarray:
    """Relative Frobenius norms (copies,) of deviations (copies, n, n)."""
    return np.linalg.norm(deviations, axis=(-2, -1)) / np.linalg.norm(rule.inverse)
