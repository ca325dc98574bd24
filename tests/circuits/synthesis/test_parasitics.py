"""Parasitics: in the deck and in the matrices the same, each to be switched off, and with the effects physics gives."""

from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import assert_close
from conftest import needs_ngspice
from reference import deck_impedance, read_deck

from circuits import Conditions, InputError, assemble, reading_covariance, spectrum
from circuits.copies import draw_copies, nominal_copy, populated_parts
from circuits.netlist import circuit_of, circuit_text, deck_text, review_text
from circuits.nodal import nominal_circuit
from circuits.simulation import exact_run
from circuits.statistics import inversion_rule
from circuits.synthesis import BoardOptions, Parasitics, make_design
from circuits.synthesis.topology import INPUT_CAPACITANCE, with_parasitics

EACH = {
    "winding": Parasitics(winding=0.5),
    "self-resonance": Parasitics(self_resonance=3e7),
    "esr": Parasitics(esr=0.05),
    "coupled coils": Parasitics(coupled_coils=0.05),
    "strays": Parasitics(stray=3e-12),
}
ALL = Parasitics(0.5, 3e7, 0.05, 0.05, 3e-12)
BOARDS = {
    "all": (FAIR, FAIR_FACTOR, BoardOptions(), ALL),
    "plain, all": (M_MATRIX, None, BoardOptions(), ALL),
    "banks, all": (M_MATRIX, None, BoardOptions(bank_bits=3), ALL),
    "parallel, all": (M_MATRIX, None, BoardOptions(parallel=2), ALL),
    "resistive": (FAIR, FAIR_FACTOR, BoardOptions(coupling="resistive"), Parasitics(esr=0.1, stray=3e-12)),
    **{name: (FAIR, FAIR_FACTOR, BoardOptions(), parasitics) for name, parasitics in EACH.items()},
}


@pytest.fixture(scope="module", params=BOARDS)
def made(request):
    target, congruence, choices, parasitics = BOARDS[request.param]
    return make_design(target, congruence, choices=choices, parasitics=parasitics, name="real")


def error_of(made, conditions: Conditions | None = None) -> float:
    rule = inversion_rule(made)
    return float(rule.error(rule.read(reading_covariance(nominal_circuit(made.board, made.program, conditions)))))


def test_every_copy_obeys_the_nodal_equations_of_its_deck(made):
    board, program = made.board, made.program
    read = read_deck(circuit_of(deck_text(board, program, made.copies[0], Conditions(), 1000)))
    circuit = assemble(board, program, made.copies[0], Conditions())
    order = [read["nodes"].index(node) for node in board.nodes]
    H = circuit.readout[:, : len(board.nodes)]
    power = np.array([hold * sigma**2 / 2 for hold, sigma in (read["sources"][node] for node in board.nodes)])
    for frequency in (1e4, 1e6, 1e8, 1e10):
        Z = deck_impedance(read, frequency)[np.ix_(order, order)]
        expected = 4 * H @ Z @ np.diag(power) @ Z.conj().T @ H.T
        tolerance = 1e-7 if board.banks else 1e-9
        assert_close(spectrum(circuit, np.array([frequency]))[0], expected, tolerance, f"{frequency:g} Hz")


def test_deck_with_causes_off_is_that_of_the_wires_that_are_left(made):
    causes = {part.cause for part in made.board.parts if part.cause} | {mutual.cause for mutual in made.board.mutuals}
    for cause in sorted(causes):
        conditions = Conditions(off=frozenset({cause}))
        read = read_deck(circuit_of(deck_text(made.board, made.program, made.copies[0], conditions, 1000)))
        circuit = assemble(made.board, made.program, made.copies[0], conditions)
        order = [read["nodes"].index(node) for node in made.board.nodes]
        Z = deck_impedance(read, 1e6)[np.ix_(order, order)]
        H = circuit.readout[:, : len(made.board.nodes)]
        power = np.diag([hold * sigma**2 / 2 for hold, sigma in (read["sources"][node] for node in made.board.nodes)])
        assert_close(spectrum(circuit, np.array([1e6]))[0], 4 * H @ Z @ power @ Z.conj().T @ H.T, 1e-7, cause)


def test_with_everything_off_the_board_holds_its_target(made):
    if not made.board.banks:
        assert error_of(made) < 1e-10


@needs_ngspice
@pytest.mark.parametrize("name", ["all", "plain, all", "esr", "resistive"])
def test_exact_run_is_the_lyapunov_solution_of_its_own_values(name):
    target, congruence, choices, parasitics = BOARDS[name]
    made = make_design(target, congruence, choices=choices, parasitics=parasitics)
    text = circuit_text(made.board, made.program, made.copies[0], Conditions())
    run = exact_run(made.board, made.program, text, np.array([1e6]))
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    assert_close(run.covariance, reading_covariance(circuit), 1e-6)


def test_coupled_coils_never_enter_the_covariance_of_voltages():
    made = make_design(FAIR, FAIR_FACTOR, parasitics=EACH["coupled coils"])
    assert error_of(made, Conditions()) < 1e-11
    inductance = np.linalg.inv(nominal_circuit(made.board, made.program, Conditions()).inverse_inductance)
    assert inductance[0, 2] == pytest.approx(0.05 * inductance[0, 0])


def test_self_resonance_is_taken_from_the_ground_elements():
    made = make_design(FAIR, FAIR_FACTOR, parasitics=EACH["self-resonance"])
    without = make_design(FAIR, FAIR_FACTOR)
    across = 1 / ((2 * np.pi * 3e7) ** 2 * 1e-5)
    for k in range(1, 9):
        name = f"ground_{k}"
        assert made.program.values[name] == pytest.approx(without.program.values[name] - across, rel=1e-9)
    assert error_of(made, Conditions()) < 1e-11


def test_strays_add_what_they_are_to_the_matrix():
    made = make_design(M_MATRIX, parasitics=EACH["strays"])
    stray = 3e-12 / made.board.unit
    M = made.program.matrix + stray * np.array([[1, -1, 0], [-1, 2, -1], [0, -1, 1]])
    X = made.program.mapping
    expected = X.T @ np.linalg.inv(M) @ X
    rule = inversion_rule(made)
    found = rule.read(reading_covariance(nominal_circuit(made.board, made.program, Conditions())))
    assert_close(found, expected, 1e-11)


def test_windings_and_esr_cost_in_proportion_and_less_at_a_low_quality():
    small, large = (
        error_of(make_design(FAIR, FAIR_FACTOR, parasitics=Parasitics(winding=ohm)), Conditions()) for ohm in (0.1, 0.2)
    )
    assert large / small == pytest.approx(2, rel=0.02)
    low, high = (
        error_of(
            make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(quality=q), parasitics=EACH["winding"]), Conditions()
        )
        for q in (1.0, 10.0)
    )
    assert high > 5 * low


def test_esr_comes_with_the_input_that_bounds_its_noise():
    made = make_design(M_MATRIX, parasitics=EACH["esr"])
    inputs = {part.name: part.nominal for part in made.board.parts if part.role == "input"}
    assert inputs == {f"CI{node}": INPUT_CAPACITANCE for node in made.board.nodes}
    bare = replace(made.board, parts=tuple(part for part in made.board.parts if part.role != "input"))
    assert np.linalg.cond(nominal_circuit(bare, made.program, Conditions()).capacitance) > 1e12
    assert np.linalg.cond(nominal_circuit(made.board, made.program, Conditions()).capacitance) < 1e6


def test_negative_elements_do_not_go_with_esr():
    with pytest.raises(InputError, match=r"behind their ESR .* runs away; use a --precondition"):
        make_design(FAIR, parasitics=EACH["esr"])


def test_parasitics_are_neither_bought_nor_soldered(made):
    bought = populated_parts(made.board, made.program)
    assert all(part.bit or not part.cause for part, _ in bought)
    assert not [part for part, _ in bought if part.role == "input"]
    known = {*made.board.nodes, "0"} | {part.nodes[1] for part in made.board.parts if part.role == "bit"}
    inner = {part.nodes[0] for part in made.board.parts if part.bit}
    assert {node for part, _ in bought for node in part.nodes} <= known | inner


def test_parts_keep_their_ratios_when_parasitics_join_them():
    bare, real = make_design(FAIR, FAIR_FACTOR), make_design(FAIR, FAIR_FACTOR, parasitics=ALL)
    for one, two in zip(bare.copies, real.copies, strict=True):
        assert one.gains.items() <= two.gains.items()


def test_review_names_them():
    text = review_text(make_design(FAIR, FAIR_FACTOR, parasitics=ALL))
    for words in ("winding: 16 × 500 mΩ", "esr: ", "strays: 7 × 3 pF", "coupled coils: 14 pairs with a factor of 0.05"):
        assert words in text


@pytest.mark.parametrize(
    "bad", [{"winding": -1}, {"esr": 1e9}, {"coupled_coils": 0.9}, {"stray": float("nan")}, {"self_resonance": 1e20}]
)
def test_impossible_parasitics_are_refused(bad):
    option = next(iter(bad)).replace("_", "-")
    with pytest.raises(InputError, match=f"--{option} is from"):
        make_design(M_MATRIX, parasitics=Parasitics(**bad))


def test_a_resistive_board_has_no_coils_to_spoil():
    board = make_design(M_MATRIX, choices=BoardOptions(coupling="resistive")).board
    with pytest.raises(InputError, match="no inductors"):
        with_parasitics(board, Parasitics(winding=1.0))


def test_a_self_resonance_too_low_for_the_ground_elements_is_refused():
    with pytest.raises(InputError, match=r"cell\d is loaded with .* F by coils and inputs, but element ground_"):
        make_design(M_MATRIX, parasitics=Parasitics(self_resonance=1e6))


def test_two_parts_in_parallel_hold_what_one_would():
    one, two = make_design(FAIR), make_design(FAIR, choices=BoardOptions(parallel=2))
    for name, value in one.program.values.items():
        if value < 0:
            assert two.program.values[name] == value
        else:
            assert two.program.values[name] == two.program.values[f"{name}b"] == value / 2
    assert error_of(two) < 1e-11
    nominal = nominal_copy(two.board)
    read = read_deck(circuit_of(deck_text(two.board, two.program, nominal, Conditions(), 1000)))
    pick = np.ix_(*[[read["nodes"].index(node) for node in two.board.nodes]] * 2)
    expected = assemble(one.board, one.program, nominal_copy(one.board), Conditions()).capacitance
    assert_close(read["C"][pick], expected, 1e-14)


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
def test_two_parts_of_a_series_come_nearer_than_one(coupling):
    single, double = (
        make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(coupling=coupling, series="E12", parallel=k))
        for k in (1, 2)
    )
    assert double.rounding.error < 0.3 * single.rounding.error
    for name, value in double.program.values.items():
        held = value if coupling == "capacitive" else 1 / value
        mantissa = held / 10.0 ** np.floor(np.log10(held) + 1e-9) * 10
        assert min(abs(mantissa - e) for e in (10, 12, 15, 18, 22, 27, 33, 39, 47, 56, 68, 82)) < 1e-6 * mantissa, name


def test_spread_of_two_parts_averages():
    # Each independent and half of the element: its spread shrinks by sqrt(2), and the expected error nearly so.
    wide = [make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(parallel=k)) for k in (1, 2)]
    gains = [np.array([list(copy.gains.values()) for copy in made.copies]) for made in wide]
    assert all((np.abs(g - 1) <= 0.01).all() for g in gains)
    drawn = [draw_copies(replace(made.board), 0, 1)[0].gains["CGp1"] for made in wide]
    assert drawn[0] == drawn[1]
