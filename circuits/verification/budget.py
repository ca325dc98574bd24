"""Error budget: shares of the causes of an error, each cause switched on alone and off alone, in the exact route.

With B(S) the inverse read from a copy with the causes S on, and B(∅) = P⁻¹,

    Δ_c = B({c}) - P⁻¹,   Δ = B(all) - P⁻¹ = Σ_c Δ_c + interaction,   share(X) = <X, Δ> / (||Δ|| ||P⁻¹||):

shares are signed (a cause may undo part of another) and add up to the relative error ||Δ||/||P⁻¹|| exactly. B is
computed from the Lyapunov equation of the copy, with which AC runs agree, on a resistive board from the mean. A sampled
run adds two terms: holding (the bias of held noise after the nominal correction) and sampling. The total error of a
sampled run has a law: a sum of squares of Gaussian deviations, approximated by a gamma law of equal mean and variance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from circuits.board import REFERENCE_CELSIUS, TEMPERATURES, TOLERANCE, Conditions, Copy, Design, ideal_conditions
from circuits.copies import nominal_copy, spread_cause
from circuits.nodal import Circuit, assemble, nominal_circuit, states
from circuits.ou import MOST_STATES
from circuits.statistics.estimators import EstimateLaw
from circuits.statistics.inversion import Inversion, circuit_inverses, triangle

AMBIENT, ROUNDING, INTERACTION = "ambient", "rounding", "interaction"
HOLDING, SAMPLING, PARTS_AND_SAMPLING = "holding", "sampling", "parts and sampling"
COVERAGE = 0.95  # of the interval of a sampled total
NO_CAUSE = 1e-9  # relative error below which an error is rounding of numbers, without a cause


@dataclass(frozen=True)
class Cause:
    """Share of a cause, and relative errors with the cause alone and without it (None if it cannot be switched)."""

    name: str
    share: float
    alone: float | None = None
    without: float | None = None


@dataclass(frozen=True)
class Budget:
    """Shares of the causes of the relative error `total` of a copy, or of the mean of copies, by one route.

    `route`: exact, solve, sampled or recorded. A sampled total lies in `interval` with a probability of COVERAGE.
    """

    name: str
    route: str
    total: float
    causes: tuple[Cause, ...]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Deviations:
    """Deviations Δ (n, n) of one copy: by cause, with the cause `alone` or `without` it, and `total` of all causes."""

    alone: dict[str, np.ndarray]
    without: dict[str, np.ndarray]
    total: np.ndarray


def causes_of(design: Design, ambient: float = REFERENCE_CELSIUS) -> tuple[str, ...]:
    """Causes of error that this design has, in the order of the report."""
    board = design.board
    there = {entry.cause for entry in (*board.parts, *board.mutuals)}
    spread = {spread_cause(entry) for entry in (*board.parts, *board.sources) if entry.tolerance}
    return (
        *(cause for cause in (TOLERANCE, TEMPERATURES) if cause in spread),
        *[ROUNDING] * bool(design.rounding),
        *sorted(there & ideal_conditions(board).off),
        *[AMBIENT] * (ambient != REFERENCE_CELSIUS),
    )


def deviations(
    design: Design, rule: Inversion, copies: Sequence[Copy], ambient: float = REFERENCE_CELSIUS
) -> list[Deviations] | None:
    """Deviations of every copy at `ambient` [°C]; None if the circuit has more states than MOST_STATES."""
    every = causes_of(design, ambient)
    if states(nominal_circuit(design.board, design.program, Conditions())) > MOST_STATES:
        return None
    missing = _missing(design)

    def off_by(copy: Copy, on: set[str]) -> np.ndarray:
        conditions = Conditions(ambient if AMBIENT in on else REFERENCE_CELSIUS, frozenset(set(every) - on))
        circuit = assemble(design.board, design.program, copy, conditions)
        return (
            circuit_inverses(design, rule, circuit if ROUNDING in on else _unrounded(circuit, missing)) - rule.inverse
        )

    return [
        Deviations(
            {cause: off_by(copy, {cause}) for cause in every},
            {cause: off_by(copy, set(every) - {cause}) for cause in every},
            off_by(copy, set(every)),
        )
        for copy in copies
    ]


def exact_budget(name: str, route: str, rule: Inversion, found: Deviations, measured: np.ndarray) -> Budget:
    """Budget of an inverse (n, n) measured without sampling."""
    return _budget(name, route, rule, found, measured - rule.inverse, {})


def sampled_budget(
    name: str, rule: Inversion, found: Deviations, measured: np.ndarray, law: EstimateLaw, correction: np.ndarray
) -> Budget:
    """Budget of an inverse (n, n) read from samples of this law, `correction` [V²] added to its covariance."""
    expected = rule.read(law.mean + correction)
    more = {HOLDING: expected - rule.inverse - found.total, SAMPLING: measured - expected}
    return _budget(name, "sampled", rule, found, measured - rule.inverse, more, total_interval(rule, expected, law))


def recorded_budget(
    design: Design,
    name: str,
    rule: Inversion,
    measured: np.ndarray,
    law: EstimateLaw,
    *,
    correction: np.ndarray,
    ambient: float = REFERENCE_CELSIUS,
) -> Budget | None:
    """Budget of an inverse (n, n) read on a physical board, whose values are not known, by the nominal board.

    In one record the errors of parts and of sampling cannot be told apart; `interval` is that of sampling on the
    nominal board. None if the circuit has more states than MOST_STATES.
    """
    found = deviations(design, rule, [nominal_copy(design.board)], ambient)
    if found is None:
        return None
    known = {cause: matrix for cause, matrix in found[0].alone.items() if cause not in (TOLERANCE, TEMPERATURES)}
    without = {cause: matrix for cause, matrix in found[0].without.items() if cause in known}
    more = {PARTS_AND_SAMPLING: measured - rule.inverse - found[0].total}
    interval = total_interval(rule, rule.read(law.mean + correction), law)
    nominal = Deviations(known, without, found[0].total)
    return _budget(name, "recorded", rule, nominal, measured - rule.inverse, more, interval)


def total_interval(
    rule: Inversion, expected: np.ndarray, law: EstimateLaw, coverage: float = COVERAGE
) -> tuple[float, float]:
    """Interval of this coverage for the relative error of one estimate: ||Δ + ε||² of Gaussian ε, as a gamma law."""
    scale = np.linalg.norm(rule.inverse)
    offset = triangle((expected - rule.inverse) / scale)
    V = rule.error_covariance(law)
    mean = offset @ offset + np.trace(V)
    variance = 4 * offset @ V @ offset + 2 * np.sum(V * V)
    tails = np.array([(1 - coverage) / 2, (1 + coverage) / 2])
    low, high = special.gammaincinv(mean**2 / variance, tails) * variance / mean
    return float(np.sqrt(low)), float(np.sqrt(high))


def mean_deviations(found: Sequence[Deviations]) -> Deviations:
    """Deviations of the mean of several copies."""
    first = found[0]
    return Deviations(
        {cause: np.mean([each.alone[cause] for each in found], axis=0) for cause in first.alone},
        {cause: np.mean([each.without[cause] for each in found], axis=0) for cause in first.without},
        np.mean([each.total for each in found], axis=0),
    )


def _budget(
    name: str,
    route: str,
    rule: Inversion,
    found: Deviations,
    total: np.ndarray,
    more: dict[str, np.ndarray],
    interval: tuple[float, float] | None = None,
) -> Budget:
    """Budget of a deviation `total` (n, n), with terms `more` (n, n) beside the causes of a copy."""
    scale = np.linalg.norm(rule.inverse)
    size = np.linalg.norm(total)
    direction = total / size if size else total
    terms = found.alone | {INTERACTION: found.total - sum(found.alone.values(), np.zeros_like(total))} | more
    causes = tuple(
        Cause(
            cause,
            float(np.sum(term * direction) / scale),
            *(
                float(np.linalg.norm(matrix) / scale)
                for matrix in (found.alone.get(cause), found.without.get(cause))
                if matrix is not None
            ),
        )
        for cause, term in terms.items()
    )
    return Budget(name, route, float(size / scale), causes, interval)


def _missing(design: Design) -> np.ndarray:
    """Matrix to be held minus the matrix that the ideal nominal board holds, (n, n), as elements between readings."""
    board, program = design.board, design.program
    circuit = nominal_circuit(board, program)
    H = circuit.readout
    held = circuit.conductance if board.inputs else circuit.capacitance
    seen = np.linalg.inv(H @ np.linalg.solve(held, H.T))
    return board.unit / board.nodes_per_cell * program.matrix - seen


def _unrounded(circuit: Circuit, missing: np.ndarray) -> Circuit:
    """Circuit without the error of rounding: with the elements `missing` (n, n) between the readings."""
    H = circuit.readout
    more = H.T @ missing @ H
    if circuit.inverse_inductance.size:
        return replace(circuit, capacitance=circuit.capacitance + more)
    return replace(circuit, conductance=circuit.conductance + more)
