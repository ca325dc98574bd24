"""Errors of charge readout: of the inverse by packets of charge, and by a record of noise in the same board time.

The error of the record, and the board time in which a record reaches the error of the charges, come from the law of an
estimate: hypot(floor, spread), where the spread falls with the square root of the number of readings.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import REFERENCE_CELSIUS, Conditions, Design
from circuits.copies import specimens
from circuits.netlist.deck import START_UP
from circuits.nodal import Circuit, assemble_many, nominal_circuit
from circuits.ou import lagged_covariances, nominal_hold_correction
from circuits.simulation.charge import ChargeRun, charge_law, check_capacitive, peak_current
from circuits.statistics.estimators import law_of_records
from circuits.statistics.inversion import Inversion, inversion_rule

LONG_NOISE_RECORD = 1_000_000  # readings of a record against which the correlation time of the noise is negligible


@dataclass(frozen=True)
class ChargeResult:
    """Relative errors of the inverse of a copy, or of the nominal board, by charges: at the instant, and at all times.

    `difference_to_law` is the largest difference of a reading to its law, relative to the largest reading.
    `covariance_error` is the expected error of a record of noise in the same board time (None: too short for a record),
    `covariance_floor` the limit of that error for endless records, and `equal_time` [s] the board time from which
    a record of noise is as good as the charges (None: never).
    """

    name: str
    relative_error: float
    errors: tuple[float, ...]
    difference_to_law: float
    covariance_error: float | None
    covariance_floor: float
    equal_time: float | None


@dataclass(frozen=True)
class ChargeReadout:
    """Charge readout of a design: packets of `charge` [C], `pulse` [s] long, read at `instant` [s], one of `times` [s].

    `current` [A] is the peak current of a packet. `board_time` [s] is the time of all packets, each after the board has
    come to rest; a record of noise of `samples` readings takes the same time.
    """

    charge: float
    current: float
    pulse: float
    times: tuple[float, ...]
    instant: float
    board_time: float
    samples: int
    nominal: ChargeResult
    copies: tuple[ChargeResult, ...]


def judge_charges(design: Design, runs: dict[str, ChargeRun], ambient: float = REFERENCE_CELSIUS) -> ChargeReadout:
    """Compare charge readout at `ambient` [°C], `runs` by copy name, with a record of noise in the same board time.

    InputError for a resistive board.
    """
    board, program = design.board, design.program
    check_capacitive(board)
    rule = inversion_rule(design)
    circuits = assemble_many(board, program, specimens(design), Conditions(ambient))
    charge, times = runs["nominal"].charge, runs["nominal"].times
    laws = [charge_law(board, circuits[k], charge, times) for k in range(len(specimens(design)))]
    best = int(_inverse_errors(design, rule, charge, laws[0]).argmin())
    wait = START_UP * program.settling
    board_time = len(board.cells) * (wait + float(times[best]))
    samples = int((board_time - wait) / program.period)
    results = []
    for k, copy in enumerate(specimens(design)):
        run = runs[copy.name]
        errors = _inverse_errors(design, rule, run.charge, run.readings)
        difference = np.abs(run.readings - laws[k]).max() / np.abs(laws[k]).max()
        noise = _by_noise(design, rule, circuits[k], samples, float(errors[best]))
        results.append(ChargeResult(copy.name, float(errors[best]), tuple(errors.tolist()), float(difference), *noise))
    nominal, *copies = results
    peak, pulse, instant = peak_current(charge, times), float(times[0]), float(times[best])
    return ChargeReadout(
        charge, peak, pulse, tuple(times.tolist()), instant, board_time, samples, nominal, tuple(copies)
    )


def _inverse_errors(design: Design, rule: Inversion, charge: float, readings: np.ndarray) -> np.ndarray:
    """Relative errors (t,) of P⁻¹ = Xᵀ M⁻¹ X read at every time."""
    X = design.program.mapping
    columns = readings.transpose(1, 2, 0)  # (t, reading, packet)
    B = X.T @ (design.board.capacitance / charge * columns) @ X
    return rule.error((B + B.transpose(0, 2, 1)) / 2)


def _by_noise(
    design: Design, rule: Inversion, circuit: Circuit, samples: int, aim: float
) -> tuple[float | None, float, float | None]:
    """Expected error of a record of `samples` readings, its limit, and the board time [s] for an error `aim`."""
    period = design.program.period
    rho = lagged_covariances(circuit, period)
    correction = nominal_hold_correction(nominal_circuit(design.board, design.program), period)
    floor = float(rule.error(rule.read(rho[0] + correction)))
    expected = None
    if samples > 0:
        expected = float(np.hypot(floor, rule.spread(law_of_records(rho, np.array([samples])))))
    if aim <= floor:
        return expected, floor, None
    spread = rule.spread(law_of_records(rho, np.array([LONG_NOISE_RECORD])))
    needed = LONG_NOISE_RECORD * spread**2 / (aim**2 - floor**2)
    return expected, floor, float(START_UP * design.program.settling + np.ceil(needed) * period)
