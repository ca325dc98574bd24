"""Boards of switched banks: codes, switches, pads, and one board for many targets."""

import csv
import io
import json
import re

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX, TARGETS, random_target
from compare import FALSE_ALARM, assert_close
from conftest import needs_ngspice
from reference import deck_impedance, read_deck, read_kicad

from circuits import Conditions, InputError, Program, assemble, reading_covariance, spectrum
from circuits.board import ideal_conditions
from circuits.copies import codes, draw_copies, nominal_copy, populated_parts
from circuits.netlist import circuit_of, circuit_text, deck_text, decks, load_design, write_design
from circuits.netlist.export import codes_text
from circuits.netlist.kicad import pcb_netlist
from circuits.nodal import is_stable, nominal_circuit
from circuits.ou import predicted_columns
from circuits.simulation import exact_run, solve_run
from circuits.simulation.transient import chunk_deck, run_chunk
from circuits.statistics import estimate_law, inversion_rule
from circuits.statistics.estimators import joint_chi_square
from circuits.synthesis import BoardOptions, BoardRequest, build_board, inverse_factor, make_design, reuse_design
from circuits.synthesis.design import board_and_program, reprogram
from circuits.synthesis.rounding import row_sum_scaling

FOUR_BITS = BoardOptions(bank_bits=4)
NEAR = FAIR + 0.3 * np.eye(8)  # another target for the same board, and a factor that is not quite its own
NEAR_FACTOR = inverse_factor(NEAR + 0.02 * np.cos(np.add.outer(np.arange(8), np.arange(8)) ** 2))
BOARDS = {
    "differential": (FAIR, FAIR_FACTOR, FOUR_BITS),
    "plain": (M_MATRIX, None, BoardOptions(bank_bits=5)),
    "resistive": (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=4, coupling="resistive")),
    "resistive plain": (M_MATRIX, None, BoardOptions(bank_bits=3, coupling="resistive")),
}


@pytest.fixture(scope="module", params=BOARDS)
def made(request):
    target, congruence, choices = BOARDS[request.param]
    return make_design(target, congruence, choices=choices, name="banks")


def test_scaling_makes_the_row_sums_what_is_soldered():
    rng = np.random.default_rng(0)
    for condition in (2, 100, 1e6):
        P = random_target(6, condition, 3)
        A = 2 * np.diag(np.diag(P)) - np.abs(P)
        A += (1e-6 - min(np.linalg.eigvalsh(A)[0], 0)) * np.eye(6)
        sums = rng.uniform(0.5, 2, 6)
        d = row_sum_scaling(A, sums)
        assert (d > 0).all()
        assert np.abs(d * (A @ d) - sums).max() < 1e-9


def test_rounded_board_has_the_error_it_says(made):
    board, program = made.board, made.program
    inverse, X = np.linalg.inv(program.target), program.mapping
    circuit = nominal_circuit(board, program)
    if board.coupling == "resistive":
        found = X.T @ (board.unit * predicted_columns(board, circuit, 1.0)) @ X
    else:
        rule = inversion_rule(made)
        found = rule.read(reading_covariance(circuit))
    error = np.linalg.norm(found - inverse) / np.linalg.norm(inverse)
    assert error == pytest.approx(program.rounding.error, rel=1e-6, abs=1e-12)
    assert program.rounding.error <= program.rounding.error_nearest * (1 + 1e-9)
    assert program.rounding.error < 0.03


def test_values_are_codes_and_codes_are_in_the_file(made):
    board, program = made.board, made.program
    held = codes(board, program)
    rows = {row["Bank"]: row for row in csv.DictReader(io.StringIO(codes_text(board, program)))}
    assert rows.keys() == held.keys() == {bank.name for bank in board.banks}
    for bank in board.banks:
        row, code = rows[bank.name], held[bank.name]
        assert abs(code) < 2**bank.bits
        assert int(row["Code"]) == code
        assert int(row["Bits"], 2) == abs(code)
        assert len(row["Bits"]) == bank.bits
        assert row["Switched"] == ("open" if code == 0 else "straight" if code > 0 else "crossed")
        name = next((name for name in bank.elements if name in program.values), None)
        assert (name is None) == (code == 0)
        if name:
            assert program.values[name] == pytest.approx(abs(code) * bank.unit, rel=1e-12)
            assert name.startswith(row["Switched"])


def test_pcb_netlist_has_every_part_switch_and_input_at_its_nodes(made):
    parts, nets = read_kicad(pcb_netlist(made.board, made.program))
    expected = {part.name: part.nodes for part, _ in populated_parts(made.board, made.program)}
    expected |= {entry.name: (entry.node, "0") for entry in (*made.board.sources, *made.board.inputs)}
    found = {(ref, pin): net for net, pins in nets.items() for ref, pin in pins}
    assert parts.keys() == expected.keys()
    assert found == {(ref, str(pin)): node for ref, nodes in expected.items() for pin, node in enumerate(nodes, 1)}
    assert {part.name for part in made.board.parts if part.bit} <= parts.keys()


def test_closed_switches_are_those_of_the_codes(made):
    board, program = made.board, made.program
    text = circuit_of(deck_text(board, program, nominal_copy(board), Conditions(), 1000))
    held = codes(board, program)
    for part in board.parts:
        if part.bit:
            # A line of a bit ends with the names of its parts: the part, the straight switch, the crossed one, the pad.
            way, line = "rs" if part.bit.sign > 0 else "rx", re.search(rf"^Xbit_.* {part.name} .*$", text, re.M).group()
            value = float(re.search(rf" {way}=(\S+) ", line).group(1))
            code = held[part.bit.bank]
            closed = abs(code) // 2**part.bit.number % 2 == 1 and np.sign(code) == part.bit.sign
            assert value == (10.0 if closed else 1e12), part.name


def test_every_copy_obeys_the_nodal_equations_of_its_deck(made):
    # The deck has every inner node, and open switches of 1 teraohm; the assembly has eliminated what is no state.
    board, program = made.board, made.program
    copy = draw_copies(board, 4, 1)[0]
    read = read_deck(circuit_of(deck_text(board, program, copy, Conditions(), 1000)))
    circuit = assemble(board, program, copy, Conditions())
    order = [read["nodes"].index(node) for node in board.nodes]
    H = circuit.readout[:, : len(board.nodes)]
    power = np.array([hold * sigma**2 / 2 for hold, sigma in (read["sources"][node] for node in board.nodes)])
    for frequency in (1e4, 1e6, 1e8):
        Z = deck_impedance(read, frequency)[np.ix_(order, order)]
        expected = 4 * H @ Z @ np.diag(power) @ Z.conj().T @ H.T
        # Open switches of the deck leak: 448 of them, against conductances of microsiemens on a resistive board.
        tolerance = 1e-6 if board.coupling == "resistive" else 1e-7
        assert_close(spectrum(circuit, np.array([frequency]))[0], expected, tolerance, f"{frequency:g} Hz")


def test_pads_are_taken_from_what_leads_to_ground():
    # Two plain cells, two bits: with code 1 the low bit is closed (its inner pad loads the far cell), the high one is
    # open (its pad in series with it loads the near one). Pads of both switches sit on the far node for good.
    board = build_board(2, "plain", 0.0, BoardOptions(bank_bits=2, pad_capacitance=5e-12), bank_range=0.3)
    (bank,) = board.banks
    assert bank.unit == pytest.approx(0.1e-9)
    ground = {part.nodes[0]: part.nominal for part in board.parts if part.role == "ground"}
    assert ground["v1"] == pytest.approx(1e-9 - 5e-12)
    assert ground["v2"] == pytest.approx(1e-9 - 5e-12 - 10e-12)
    values = {"straight_1_2": bank.unit}
    program = Program("two", np.eye(2), np.eye(2), np.ones(2), "", "", values, 1.0, 1.0, 1.0)
    circuit = assemble(board, program, nominal_copy(board), ideal_conditions(board))
    near = ground["v1"] + bank.unit + 2 * bank.unit * 5e-12 / (2 * bank.unit + 5e-12)
    far = ground["v2"] + bank.unit + 10e-12 + 5e-12
    expected = np.array([[near, -bank.unit], [-bank.unit, far]])
    assert_close(circuit.capacitance, expected, 1e-14)


def test_every_code_is_stable_and_any_negative_element_behind_a_switch_is_not():
    board = build_board(4, "differential", 0.01, FOUR_BITS, 0.5)
    rng = np.random.default_rng(1)
    copy = draw_copies(board, 0, 1)[0]
    for _ in range(20):
        values = {bank.elements[int(rng.integers(2))]: bank.unit * int(rng.integers(1, 16)) for bank in board.banks}
        program = Program("any", np.eye(4), np.eye(4), np.ones(4), "", "", values, 1.0, 1.0, 1.0)
        circuit = assemble(board, program, copy, Conditions())
        assert is_stable(circuit)
        # The same board with -d between p and n, smaller than what the couplings add there at low frequencies.
        C = circuit.capacitance.copy()
        total = sum(value for name, value in values.items() if "_1" in name)
        pair = np.ix_([0, 1], [0, 1])
        ground = next(part.nominal for part in board.parts if part.name == "CGp1")
        d = 0.5 * (ground + 0.9 * total)
        C[pair] += d * np.array([[-1, 1], [1, -1]])
        static = assemble(board, program, copy, ideal_conditions(board)).capacitance.copy()
        static[pair] += d * np.array([[-1, 1], [1, -1]])
        if np.linalg.eigvalsh(static)[0] > 0:
            assert np.linalg.eigvalsh(C)[0] < 0


def test_another_target_goes_on_the_same_board_and_the_same_copies(tmp_path):
    first = make_design(FAIR, FAIR_FACTOR, choices=FOUR_BITS, name="first")
    second = reuse_design(first, NEAR, NEAR_FACTOR, name="second")
    assert second.board == first.board
    assert second.copies == first.copies
    assert second.program.values != first.program.values
    one, two = (circuit_of(dict(decks(design))["copy-2"]).splitlines() for design in (first, second))
    changed = [(a.split(), b.split()) for a, b in zip(one, two, strict=True) if a != b and a[0] not in "*."]
    words = [word for a, b in changed if a[0][0] != "I" for word, other in zip(a, b, strict=True) if word != other]
    assert words
    assert all(word.startswith(("rs=", "rx=")) for word in words)  # besides switches, noise alone
    assert [part.name for part, _ in populated_parts(first.board, first.program)] == [
        part.name for part, _ in populated_parts(second.board, second.program)
    ]
    write_design(second, tmp_path / "second")
    assert load_design(tmp_path / "second")[0].board == first.board
    bom = (tmp_path / "second" / "bom.csv").read_text()
    write_design(first, tmp_path / "first")
    for same in ("bom.csv", "board.net"):
        one, two = ((tmp_path / name / same).read_text() for name in ("first", "second"))
        assert one.replace("first", "") == two.replace("second", "")
    assert "analog switch 10 Ω" in bom
    assert "CP" not in bom
    assert json.loads((tmp_path / "second" / "board.json").read_text())["name"] == "second"


@needs_ngspice
@pytest.mark.parametrize("name", ["differential", "plain"])
def test_copy_in_ngspice_is_the_lyapunov_solution_of_its_own_values(name):
    target, congruence, choices = BOARDS[name]
    made = make_design(target, congruence, choices=choices)
    for copy in (nominal_copy(made.board), made.copies[0]):
        text = circuit_text(made.board, made.program, copy, Conditions())
        run = exact_run(made.board, made.program, text, np.array([1e6]))
        law = reading_covariance(assemble(made.board, made.program, copy, Conditions()))
        assert_close(run.covariance, law, 1e-6)
    rule = inversion_rule(made)
    # Switches in the couplings alone cost next to nothing: what is left at ±1 % is the parts.
    nominal = circuit_text(made.board, made.program, nominal_copy(made.board), Conditions())
    found = rule.error(rule.read(exact_run(made.board, made.program, nominal, np.array([1e6])).covariance))
    assert found < made.program.rounding.error + 0.003


@needs_ngspice
def test_resistive_banks_solve_in_ngspice_as_their_codes_say():
    target, congruence, choices = BOARDS["resistive"]
    made = make_design(target, congruence, choices=choices)
    run = solve_run(
        made.board,
        made.program,
        circuit_text(made.board, made.program, nominal_copy(made.board), Conditions()),
    )
    X = made.program.mapping
    found = X.T @ (made.board.unit / run.bias * run.columns) @ X
    inverse = np.linalg.inv(target)
    error = np.linalg.norm(found - inverse) / np.linalg.norm(inverse)
    assert error == pytest.approx(made.program.rounding.error, rel=1e-5)


@needs_ngspice
def test_sampled_run_with_switches_follows_the_law_of_its_copy():
    board, program = board_and_program(M_MATRIX, request=BoardRequest(options=BoardOptions(bank_bits=4)))
    copy, samples = draw_copies(board, 3, 1)[0], 20_000
    text = circuit_text(board, program, copy, Conditions())
    moments = run_chunk(board, program, chunk_deck(board, program, text, 17, samples), samples).moments
    law = estimate_law(assemble(board, program, copy, Conditions()), program.period, samples)
    assert joint_chi_square(moments.mean(axis=0), law)[2] > FALSE_ALARM


def test_more_bits_come_nearer():
    errors = [
        make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(bank_bits=bits, bank_range=0.3)).rounding.error
        for bits in (3, 5, 7)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(InputError, match=r"switched|passive.*--precondition"):
        make_design(FAIR, choices=FOUR_BITS)
    with pytest.raises(InputError, match=r"coupling \w+ needs .* its bank reaches .*; --bank-range 0\.\d+ or"):
        make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(bank_bits=4, bank_range=0.01))
    with pytest.raises(InputError, match=r"banks of 1 bit are too coarse .* off by 12%; --bank-bits 2 would do"):
        make_design(random_target(4, 30, 0), choices=BoardOptions(bank_bits=1))
    with pytest.raises(InputError, match=r"pads of the switches load 8 cells .*; --unit-capacitance"):
        make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(bank_bits=8, pad_capacitance=20e-12))
    with pytest.raises(InputError, match="one cell has no coupling"):
        make_design(np.eye(1), choices=FOUR_BITS)
    with pytest.raises(InputError, match="up to 16 x 16"):
        make_design(np.eye(17), choices=FOUR_BITS)
    with pytest.raises(InputError, match=r"leave out --parallel and --series, or --bank-bits"):
        make_design(np.eye(2), choices=BoardOptions(bank_bits=4, series="E24"))
    with pytest.raises(InputError, match=r"--unit-conductance .* would do"):
        make_design(np.eye(2), choices=BoardOptions(coupling="resistive", bank_bits=4, unit_conductance=0.1))


def test_reuse_on_a_board_that_does_not_take_it_is_refused():
    board = make_design(FAIR, FAIR_FACTOR, choices=FOUR_BITS).board
    with pytest.raises(InputError, match="has 8 cells, the target is 3 x 3"):
        reprogram(board, M_MATRIX, None, "other")
    with pytest.raises(InputError, match=r"board of differential cells does not take this target: .*--precondition"):
        reprogram(board, FAIR, None, "raw")
    plain = make_design(M_MATRIX, choices=FOUR_BITS).board
    with pytest.raises(InputError, match=r"board of plain cells does not take this target: plain cells"):
        reprogram(plain, TARGETS["both signs, dominant"][0], None, "signs")
    with pytest.raises(InputError, match="has no banks"):
        reprogram(make_design(M_MATRIX).board, M_MATRIX, None, "soldered")
