"""A deck says the same as the matrices that are assembled from the same records without it."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, TARGETS
from compare import assert_close
from reference import read_deck

from circuits import Conditions, InputError, assemble
from circuits.board import TOLERANCE, Part, check_name
from circuits.copies import draw_copies, nominal_copy
from circuits.files import sha256
from circuits.netlist import circuit_of, deck_text, decks
from circuits.netlist.deck import ANALYSIS
from circuits.ou import held_covariance
from circuits.synthesis import BoardOptions, BoardRequest, make_design
from circuits.synthesis.design import board_and_program

NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")
NETLISTS = Path(__file__).parents[3] / "netlists"
# The script that writes them says which they are.
REFERENCE_DECKS = runpy.run_path(str(NETLISTS / "write_netlists.py"))["reference_designs"]()


@pytest.mark.parametrize("name", TARGETS)
def test_deck_and_assembly_agree(name):
    target, congruence, _ = TARGETS[name]
    board, program = board_and_program(
        target, congruence, request=BoardRequest(options=BoardOptions(source_tolerance=0.1))
    )
    for copy, ambient in ((nominal_copy(board), 27.0), (draw_copies(board, 4, 1)[0], 70.0)):
        conditions = Conditions(ambient)
        read = read_deck(circuit_of(deck_text(board, program, copy, conditions, 1000)))
        circuit = assemble(board, program, copy, conditions)
        order = [read["nodes"].index(node) for node in board.nodes]
        pick = np.ix_(order, order)
        assert len(read["nodes"]) == len(board.nodes)
        assert_close(read["C"][pick], circuit.capacitance, 1e-15, "C")
        assert_close(read["G"][pick], circuit.conductance, 1e-15, "G")
        assert_close(read["K"][pick], circuit.inverse_inductance, 1e-15, "Γ")
        # Held noise of amplitude σ and hold h has the two-sided density σ² h = 2 Q.
        power = [hold * sigma**2 / 2 for hold, sigma in (read["sources"][node] for node in board.nodes)]
        expected = np.array([program.energy * s.conductance * copy.gains[s.name] for s in board.sources])
        assert_close(np.array(power), expected * (1 + 100e-6 * (ambient - 27)), 1e-14, "Q")
        assert_close(np.diag(circuit.noise), np.array(power), 1e-14, "Q of the assembly")
        assert {hold for hold, _ in read["sources"].values()} == {program.period}


def test_copies_keep_their_parts_whatever_is_programmed():
    raw, preconditioned = make_design(FAIR), make_design(FAIR, FAIR_FACTOR)
    assert raw.copies == preconditioned.copies
    assert make_design(FAIR, copies=5).copies[:3] == raw.copies
    assert make_design(FAIR, seed=1).copies != raw.copies
    gains = np.array([[copy.gains[part.name] for part in raw.board.parts] for copy in raw.copies])
    assert (np.abs(gains - 1) <= 0.01).all()
    # Uniform: the variance of 3 x 184 draws has a relative standard deviation of sqrt(0.8/552).
    assert np.var(gains) == pytest.approx(0.01**2 / 3, rel=4.4 * np.sqrt(0.8 / gains.size))


def test_a_part_outside_cells_and_elements_is_in_the_deck_when_its_cause_is_on():
    board, program = board_and_program(FAIR)
    stray = Part("Cstray1", "C", ("p1", "n4"), "stray", 5e-12, tolerance=0.2, cause="stray")
    series = Part("Rleak", "R", ("p2", "0"), "leak", 1e6, cause="leak")
    board = replace(board, parts=(*board.parts, stray, series))
    copy = draw_copies(board, 0, 1)[0]
    for off in ({"stray", "leak"}, {"leak"}, {TOLERANCE}):
        conditions = Conditions(off=frozenset(off))
        text = circuit_of(deck_text(board, program, copy, conditions, 1000))
        assert ("Cstray1 p1 n4" in text) == ("stray" not in off)
        read, circuit = read_deck(text), assemble(board, program, copy, conditions)
        pick = np.ix_(*[[read["nodes"].index(node) for node in board.nodes]] * 2)
        assert_close(read["C"][pick], circuit.capacitance, 1e-15, "C")
        assert_close(read["G"][pick], circuit.conductance, 1e-15, "G")
    assert copy.gains["Rp1"] == draw_copies(board_and_program(FAIR)[0], 0, 1)[0].gains["Rp1"]


def test_header_states_target_seed_version_and_expected_covariance():
    made = make_design(FAIR, name="fair")
    text = dict(decks(made))["copy-1"]
    header = text[: text.index(".title")]
    assert sha256(FAIR) in header
    assert "noise seed" in header
    assert "tngd 0." in header
    rows = [line[4:].split() for line in header.splitlines() if line.startswith("*   ") and "e-" in line][-8:]
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    expected = held_covariance(circuit, made.program.period)
    assert_close(np.array(rows, dtype=float), expected, 1e-6)
    assert text.count(ANALYSIS) == 1


def test_decks_of_different_copies_have_different_seeds():
    seeds = [line for _, text in decks(make_design(FAIR)) for line in text.splitlines() if "seed=" in line]
    assert len(set(seeds)) == len(seeds) == 4


@pytest.mark.parametrize("name", REFERENCE_DECKS)
def test_reference_decks_are_what_the_writer_writes(name):
    kept, fresh = (NETLISTS / f"{name}.cir").read_text(), dict(decks(REFERENCE_DECKS[name]))["copy-1"]
    for old, new in zip(kept.splitlines(), fresh.splitlines(), strict=True):
        assert _same_words(old, new), f"{old!r} is now {new!r}; write the decks again with `make netlists`"


def _same_words(old: str, new: str) -> bool:
    """Equal but for the last digits of numbers, and for the hash of the target that depends on them."""
    if "sha256" in old:
        return old.split("sha256")[0] == new.split("sha256")[0]
    pairs = list(zip(NUMBER.split(old), NUMBER.split(new), strict=True))
    numbers = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
    return all(a == b for a, b in pairs) and all(
        float(a) == pytest.approx(float(b), rel=1e-6, abs=1e-9 if old.startswith("*") else 0) for a, b in numbers
    )


@pytest.mark.parametrize("name", ["a\n.control", "", "x" * 65, "../up", "a b", "$(touch x)", "`x`", ";", ".hidden"])
def test_names_that_could_do_harm_are_refused(name):
    with pytest.raises(InputError, match="a name is"):
        check_name(name)
    with pytest.raises(InputError, match="a name is"):
        make_design(np.eye(2), name=name)
