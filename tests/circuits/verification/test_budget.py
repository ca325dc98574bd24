"""Every per cent has a cause: shares add up, causes switched one by one, and sampled totals within their interval."""

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import FALSE_ALARM, assert_close
from conftest import needs_ngspice
from reference import kronecker_lyapunov
from scipy import stats

from circuits import Conditions, assemble, reading_covariance
from circuits.copies import nominal_copy
from circuits.netlist import circuit_of, decks
from circuits.nodal import nominal_circuit
from circuits.ou import nominal_hold_correction
from circuits.simulation import Plan, measure
from circuits.statistics import EstimateLaw, estimate_law, inversion_rule
from circuits.synthesis import BoardOptions, Parasitics, make_design
from circuits.verification import verify
from circuits.verification.budget import (
    AMBIENT,
    INTERACTION,
    ROUNDING,
    causes_of,
    deviations,
    exact_budget,
    mean_deviations,
    sampled_budget,
    total_interval,
)
from circuits.verification.results import estimates

ALL = Parasitics(0.5, 3e7, 0.05, 0.01, 1e-12)
CASES = {
    "tolerances": (FAIR, FAIR_FACTOR, BoardOptions(source_tolerance=0.02), Parasitics()),
    "raw, E24": (FAIR, None, BoardOptions(series="E24"), Parasitics()),
    "everything": (FAIR, FAIR_FACTOR, BoardOptions(series="E24", source_tolerance=0.02), ALL),
    "plain, everything": (M_MATRIX, None, BoardOptions(series="E96"), ALL),
    "banks": (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=4), Parasitics()),
    "resistive": (FAIR, None, BoardOptions(coupling="resistive", series="E24"), Parasitics(esr=0.05, stray=1e-12)),
    "resistive banks": (FAIR, FAIR_FACTOR, BoardOptions(coupling="resistive", bank_bits=4), Parasitics()),
    "1x1": (np.eye(1), None, BoardOptions(series="E6"), Parasitics()),
}


@pytest.fixture(scope="module", params=CASES)
def made(request):
    target, factor, choices, parasitics = CASES[request.param]
    return make_design(target, factor, choices=choices, parasitics=parasitics, copies=2)


def test_shares_add_up_and_everything_off_is_the_target(made):
    rule = inversion_rule(made)
    causes = causes_of(made, 60.0)
    assert causes[-1] == AMBIENT
    for found in deviations(made, rule, made.copies, 60.0):
        measured = rule.inverse + found.total
        budget = exact_budget("copy", "exact", rule, found, measured)
        assert tuple(cause.name for cause in budget.causes) == (*causes, INTERACTION)
        assert sum(cause.share for cause in budget.causes) == pytest.approx(budget.total, rel=1e-9)
        assert budget.total == pytest.approx(float(rule.error(measured)), rel=1e-12)
    # With every cause off each copy is the target: a nominal copy at 27 degrees, whose parts were never rounded.
    (nothing,) = deviations(made, rule, [nominal_copy(made.board)])
    for cause in ("tolerance", "temperatures"):
        if cause in nothing.alone:
            assert np.linalg.norm(nothing.alone[cause]) <= 1e-9 * np.linalg.norm(rule.inverse)


def test_causes_are_those_that_the_board_has():
    made = {name: make_design(t, f, choices=c, parasitics=p, copies=1) for name, (t, f, c, p) in CASES.items()}
    assert causes_of(made["tolerances"]) == ("tolerance", "temperatures")
    assert causes_of(made["raw, E24"]) == ("tolerance", "temperatures", ROUNDING)
    parasitics = ("coupled coils", "esr", "strays", "winding")
    assert causes_of(made["everything"]) == ("tolerance", "temperatures", ROUNDING, *parasitics)
    assert causes_of(made["banks"]) == ("tolerance", "temperatures", ROUNDING, "switches")
    assert causes_of(made["resistive banks"]) == ("tolerance", ROUNDING, "pads")
    assert causes_of(make_design(FAIR, tolerance=0.0)) == ()


def test_one_cause_alone_is_a_board_that_has_no_other():
    # Winding resistance alone, against a board designed with nothing else and its own Lyapunov equation by Kronecker.
    everything = make_design(
        M_MATRIX, choices=BoardOptions(), parasitics=Parasitics(winding=0.5, stray=1e-12), copies=1
    )
    alone = make_design(M_MATRIX, parasitics=Parasitics(winding=0.5), tolerance=0.0, copies=1)
    circuit = assemble(alone.board, alone.program, alone.copies[0], Conditions())
    m, coils = circuit.coils.shape
    K = circuit.inverse_inductance
    inverse = np.linalg.inv(circuit.capacitance)
    A = np.block([[inverse @ circuit.conductance, inverse @ circuit.coils @ K], [-circuit.coils.T, circuit.loss @ K]])
    D = np.zeros_like(A)
    D[:m, :m] = 2 * inverse @ circuit.noise @ inverse
    unit = np.concatenate([np.ones(m), np.full(coils, 1e-7)])  # volts, and webers of the size of a cell's flux
    S = kronecker_lyapunov(A * (unit / unit[:, None]), D / (unit[:, None] * unit))
    scale = alone.board.capacitance / alone.program.energy
    X = alone.program.mapping
    expected = X.T @ (scale * circuit.readout @ S[:m, :m] @ circuit.readout.T) @ X - np.linalg.inv(M_MATRIX)
    (found,) = deviations(everything, inversion_rule(everything), everything.copies)
    assert_close(found.alone["winding"], expected, 1e-7, "winding alone")


def test_rounding_alone_is_the_cost_that_the_design_states():
    for target, factor, choices in (
        (FAIR, FAIR_FACTOR, BoardOptions(series="E24")),
        (FAIR, None, BoardOptions(series="E24")),
        (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=4)),
        (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=4, coupling="resistive")),
    ):
        made = make_design(target, factor, choices=choices, copies=1)
        rule = inversion_rule(made)
        (found,) = deviations(made, rule, made.copies)
        alone = np.linalg.norm(found.alone[ROUNDING]) / np.linalg.norm(rule.inverse)
        assert alone == pytest.approx(made.rounding.error, rel=1e-6)


def test_the_mean_of_copies_has_the_mean_deviations():
    made = make_design(FAIR, FAIR_FACTOR)
    rule = inversion_rule(made)
    found = deviations(made, rule, made.copies)
    mean = mean_deviations(found)
    assert_close(mean.total, sum(each.total for each in found) / 3, 1e-12)
    assert_close(mean.alone["tolerance"], sum(each.alone["tolerance"] for each in found) / 3, 1e-12)


def test_sampled_totals_fall_into_their_interval_as_often_as_stated():
    # 2,000 estimates drawn from their law: coverage is binomial, judged at the false-alarm rate. The gamma law of the
    # total is an approximation; here it is good to a per cent and a half, which is allowed on top.
    made = make_design(FAIR, FAIR_FACTOR, copies=1)
    rule = inversion_rule(made)
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    draws, rng = 2000, np.random.default_rng(11)
    i, j = np.triu_indices(8)
    for samples in (2_000, 200_000):
        law = estimate_law(circuit, made.program.period, samples)
        correction = nominal_hold_correction(nominal_circuit(made.board, made.program), made.program.period)
        low, high = total_interval(rule, rule.read(law.mean + correction), law)
        S = np.repeat(law.mean[None], draws, axis=0)
        S[:, i, j] += rng.normal(size=(draws, len(i))) @ np.linalg.cholesky(law.covariance).T
        S[:, j, i] = S[:, i, j]
        error = rule.error(rule.read(S + correction))
        inside = int(((low <= error) & (error <= high)).sum())
        lowest, highest = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], draws, 0.95)
        assert lowest - 0.015 * draws <= inside <= highest + 0.015 * draws


def test_sampling_is_what_is_left_and_holding_what_the_nominal_correction_leaves():
    made = make_design(FAIR, FAIR_FACTOR, copies=1)
    rule = inversion_rule(made)
    (found,) = deviations(made, rule, made.copies)
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    law = estimate_law(circuit, made.program.period, 10_000)
    correction = nominal_hold_correction(nominal_circuit(made.board, made.program), made.program.period)
    off = EstimateLaw(law.mean, law.covariance, law.samples)
    measured = rule.read(1.01 * law.mean + correction)
    budget = sampled_budget("copy", rule, found, measured, off, correction)
    share = {cause.name: cause.share for cause in budget.causes}
    assert sum(share.values()) == pytest.approx(budget.total, rel=1e-9)
    direction = (measured - rule.inverse) / np.linalg.norm(measured - rule.inverse)
    scale = np.linalg.norm(rule.inverse)
    assert share["sampling"] == pytest.approx(np.sum(direction * 0.01 * rule.read(law.mean)) / scale, rel=1e-9)
    held = rule.read(law.mean + correction) - rule.read(reading_covariance(circuit))
    assert share["holding"] == pytest.approx(np.sum(direction * held) / scale, rel=1e-6)


def assembled(made) -> list:
    return [assemble(made.board, made.program, copy, Conditions()) for copy in made.copies]


@needs_ngspice
def test_measured_totals_agree_with_the_sum_of_their_causes():
    # Exact: to the integration error of ngspice. Sampled: the total is inside the interval of the false-alarm rate.
    for choices, parasitics in (
        (BoardOptions(series="E24", source_tolerance=0.02), ALL),
        (BoardOptions(), Parasitics()),
    ):
        made = make_design(FAIR, FAIR_FACTOR, choices=choices, parasitics=parasitics, copies=2)
        circuits = {name: circuit_of(text) for name, text in decks(made)}
        runs = measure(made, circuits, Plan(exact=True, samples=10_000, seed=5))
        result = verify(made, runs, copies=30)
        rule, laws = inversion_rule(made), estimates(made, assembled(made), [runs[copy.name] for copy in made.copies])
        for copy, estimate in zip(result.copies, laws[:-1], strict=True):
            exact, sampled = copy.budget
            expected = rule.read(estimate.law.mean + estimate.correction)
            low, high = total_interval(rule, expected, estimate.law, 1 - FALSE_ALARM)
            assert low < sampled.total < high
            assert (exact.route, sampled.route) == ("exact", "sampled")
            parts = sum(cause.share for cause in exact.causes)
            assert parts == pytest.approx(exact.total, abs=1e-6)
            assert exact.total == pytest.approx(copy.exact.relative_error, rel=1e-12)
            assert sampled.total == pytest.approx(copy.sampled.relative_error, rel=1e-12)
            assert copy.sampled.interval == sampled.interval
            assert copy.sampled.p_value > FALSE_ALARM
