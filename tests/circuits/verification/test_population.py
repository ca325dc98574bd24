"""Many copies: the exact and the Lyapunov route agree, yields and their intervals, averaging as a law, what matters."""

import time
from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR
from compare import NORMAL_BOUND, assert_close
from conftest import needs_ngspice

from circuits import Conditions, Copy, reading_covariance
from circuits.copies import draw_gains
from circuits.netlist import circuit_text
from circuits.nodal import assemble_gains, source_power
from circuits.simulation import exact_run
from circuits.statistics import inversion_rule
from circuits.synthesis import BoardOptions, Parasitics, make_design
from circuits.verification import draw_population, sweep
from circuits.verification.population import POPULATION_SEED, contributions, yield_at
from circuits.verification.temperature import KNOWN_AT, KNOWN_AT_BOTH


@pytest.mark.parametrize("congruence", [None, FAIR_FACTOR])
def test_averaging_three_copies_gains_the_square_root_of_three(congruence):
    # Parts so good that nothing but the first order is left.
    made = make_design(FAIR, congruence, tolerance=1e-4)
    found = draw_population(made, inversion_rule(made), copies=1800)
    law = found.averaging
    assert law.triples == 600
    assert law.gain_standard_error < 0.05
    assert abs(law.gain - np.sqrt(3)) < NORMAL_BOUND * law.gain_standard_error
    assert law.mean_of_three_median < found.single_median


def test_first_order_and_population_agree_and_contributions_add_up():
    made = make_design(FAIR, FAIR_FACTOR, tolerance=1e-3, choices=BoardOptions(source_tolerance=2e-3))
    found = draw_population(made, inversion_rule(made), copies=1200)
    squares = np.square(found.errors)
    error = squares.std() / np.sqrt(len(squares))
    assert abs(squares.mean() - found.expected**2) < NORMAL_BOUND * error + 0.01 * found.expected**2
    assert found.rms == pytest.approx(np.sqrt(squares.mean()), rel=1e-12)
    assert sum(row.share for row in found.contributions) == pytest.approx(1, rel=1e-12)
    # Without the sources' tolerance the mean square falls by their share.
    source = next(row.share for row in found.contributions if row.role == "noise source")
    quiet = draw_population(make_design(FAIR, FAIR_FACTOR, tolerance=1e-3), inversion_rule(made), copies=1200)
    assert quiet.expected**2 / found.expected**2 == pytest.approx(1 - source, rel=1e-9)
    assert contributions(made) == found.contributions


def test_yield_is_the_share_below_the_bound_and_unstable_copies_are_never_good():
    errors = np.array([0.01, 0.02, 0.03])
    assert yield_at(errors, 4, 0.02).share == 0.5
    low, high = yield_at(errors, 4, 0.02).interval
    # Clopper and Pearson: 2 of 4; the ends are where two or more (or less) have a probability of 2.5 %.
    assert (1 - low) ** 4 + 4 * low * (1 - low) ** 3 == pytest.approx(0.975, rel=1e-6)
    assert high**4 + 4 * high**3 * (1 - high) == pytest.approx(0.975, rel=1e-6)
    made = make_design(FAIR, tolerance=0.08, seed=3, copies=1)
    found = draw_population(made, inversion_rule(made), copies=300, bound=10.0)
    assert found.unstable > 0
    assert len(found.errors) == 300 - found.unstable
    assert found.yields[0].share <= 1 - found.unstable / 300
    curve = [row.share for row in found.yields[1:]]
    assert curve == sorted(curve)


def test_two_hundred_copies_take_less_than_thirty_seconds():
    made = make_design(FAIR, FAIR_FACTOR, parasitics=Parasitics(0.5, 3e7, 0.05, 0.01, 1e-12))
    start = time.monotonic()
    found = draw_population(made, inversion_rule(made), copies=200, bound=0.02)
    assert time.monotonic() - start < 30
    assert found.parasitics == "on"
    assert len(found.errors) == 200


def test_parasitics_of_large_boards_count_as_on_the_nominal_board():
    # Two ways for the same copies: whole circuits, and ideal ones with what parasitics do to the nominal board.
    made = make_design(FAIR, FAIR_FACTOR, parasitics=Parasitics(winding=2.0, esr=0.2), tolerance=1e-3)
    rule = inversion_rule(made)
    whole = draw_population(made, rule, copies=60, bound=0.02)
    assert whole.parasitics == "on"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuits.verification.population.LARGE", 10)
        quick = draw_population(made, rule, copies=60, bound=0.02)
    assert quick.parasitics == "as on the nominal board"
    assert whole.single_median > 0.02
    # The copies differ by the spread of ±20 % that parasitics have, which is not drawn then.
    assert quick.single_median == pytest.approx(whole.single_median, rel=0.05)


def test_no_stable_copy_is_a_result_of_its_own():
    made = make_design(FAIR, tolerance=0.01, copies=1)
    hopeless = replace(
        made, board=replace(made.board, parts=tuple(replace(p, tolerance=0.9) for p in made.board.parts))
    )
    found = draw_population(hopeless, inversion_rule(made), copies=3, bound=1.0)
    assert found.unstable == 3
    assert found.errors == ()
    assert found.single_median is None
    assert found.yields[0].share == 0.0


@needs_ngspice
@pytest.mark.parametrize("ambient", [27.0, 70.0])
def test_copies_of_a_population_are_what_ngspice_measures_without_sampling(ambient):
    made = make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(source_tolerance=0.05))
    rule = inversion_rule(made)
    gains = draw_gains(made.board, made.seed + POPULATION_SEED, 3)
    names = [entry.name for entry in (*made.board.parts, *made.board.sources)]
    conditions, errors = Conditions(ambient), []
    for row in gains:
        copy = Copy("drawn", dict(zip(names, row.tolist(), strict=True)))
        text = circuit_text(made.board, made.program, copy, conditions)
        power = source_power(made.board, made.program, row, conditions)
        S = exact_run(made.board, made.program, text, np.array([1e6]), power).covariance
        circuit = assemble_gains(made.board, made.program, row, conditions)
        assert_close(S, reading_covariance(circuit), 1e-6)
        errors.append(float(rule.error(rule.read(S))))
    found = draw_population(made, rule, copies=3, ambient=ambient)
    np.testing.assert_allclose(found.errors, np.sort(errors), rtol=1e-4)


def test_temperature_moves_copies_as_their_coefficients_say():
    made = make_design(FAIR, FAIR_FACTOR)
    rule = inversion_rule(made)
    found = sweep(made, rule)
    for k, ambient in enumerate(found.ambient):
        deviation = []
        for T in (ambient, KNOWN_AT, *KNOWN_AT_BOTH):
            gains = draw_gains(made.board, made.seed, 3)
            circuits = assemble_gains(made.board, made.program, gains, Conditions(T))
            deviation.append(np.array([rule.read(reading_covariance(circuits[c])) - rule.inverse for c in range(3)]))
        size = lambda D: np.linalg.norm(D, axis=(1, 2)) / np.linalg.norm(rule.inverse)  # noqa: E731
        now, known, low, high = deviation
        u = (ambient - KNOWN_AT_BOTH[0]) / (KNOWN_AT_BOTH[1] - KNOWN_AT_BOTH[0])
        np.testing.assert_allclose([row[k] for row in found.errors], size(now), rtol=1e-9)
        assert found.as_it_is[k] == pytest.approx(np.sqrt(np.mean(size(now) ** 2)), rel=1e-9)
        assert found.known_once[k] == pytest.approx(np.sqrt(np.mean(size(now - known) ** 2)), rel=1e-6, abs=1e-12)
        both = size(now - (1 - u) * low - u * high)
        assert found.known_twice[k] == pytest.approx(np.sqrt(np.mean(both**2)), rel=1e-4, abs=1e-11)
    assert max(found.known_twice) < 0.01 * max(found.known_once) < 0.01 * max(found.as_it_is)


def test_a_common_coefficient_of_all_capacitors_is_a_common_factor():
    # All capacitors +30 ppm/K, and sources +100 ppm/K against resistors +25 ppm/K (a lower conductance, a higher
    # temperature): with exact parts the covariance moves by (1 + 100e-6 ΔT)(1 + 25e-6 ΔT)/(1 + 30e-6 ΔT), no more.
    made = make_design(FAIR, FAIR_FACTOR, tolerance=0.0)
    found, rule = sweep(made, inversion_rule(made)), inversion_rule(made)
    for ambient, error in zip(found.ambient, found.as_it_is, strict=True):
        rise = ambient - 27.0
        factor = (1 + 100e-6 * rise) * (1 + 25e-6 * rise) / (1 + 30e-6 * rise)
        assert error == pytest.approx(abs(factor - 1), abs=1e-9)
    assert rule.scale_free_error(1.01 * rule.inverse) < 1e-12
