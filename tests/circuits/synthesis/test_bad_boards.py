"""Boards that cannot be made: one sentence with a suggestion that works, exit code 2, nothing written."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_ngspice

TARGET = np.array([[2.0, -0.5, -0.3], [-0.5, 1.5, -0.2], [-0.3, -0.2, 1.0]])
BANKS = ("--bank-bits", "4")


@pytest.fixture
def target(here: Path) -> str:
    """A target of three cells in the working folder."""
    np.save("good.npy", TARGET)
    return "good.npy"


@pytest.fixture
def banks(target, works) -> str:
    """A board with banks in the folder `banks`."""
    works("design", target, "--out", "banks", *BANKS)
    return "banks"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--coupling", "inductive"], "--coupling is capacitive or resistive, got 'inductive'"),
        (["--bank-bits", "-1"], "--bank-bits is from 0 to 12, got -1"),
        (["--bank-bits", "13"], "--bank-bits is from 0 to 12, got 13"),
        ([*BANKS, "--bank-range", "1e7"], "--bank-range is from"),
        (["--switch-resistance", "0"], "--switch-resistance is from"),
        (["--pad-capacitance", "1"], "--pad-capacitance is from"),
        (["--parallel", "3"], "--parallel is from 1 to 2, got 3"),
        (["--series", "E25"], "--series is one of E6, E12, E24, E48, E96"),
        (["--unit-conductance", "nan"], "--unit-conductance is from"),
        (["--smallest-element", "2e-6"], "--smallest-element is from 0 to 1e-06"),
        (["--largest-element", "0"], "--largest-element is from"),
        (["--largest-element", "nan"], "--largest-element is from 1e-15 to 1000 F or S, got nan"),
        (["--smallest-element", "nan"], "--smallest-element is from 0 to 1e-06 F or S, got nan"),
        (["--copies", "1001"], "from 1 to 1000 copies can be drawn, got --copies 1001"),
        (["--bank-range", "0.5"], "--bank-range has no effect on a board without --bank-bits; leave it out, or give"),
        (["--switch-resistance", "5"], "--switch-resistance has no effect on a board without --bank-bits"),
        (["--pad-capacitance", "1e-12"], "--pad-capacitance has no effect on a board without --bank-bits"),
        (["--unit-conductance", "1e-4"], "--unit-conductance has no effect on a board without --coupling resistive"),
        (["--coupling", "resistive", "--quality", "2"], "--quality has no effect on a board without --coupling capa"),
        (["--coupling", "resistive", "--resonance", "1e5"], "--resonance has no effect on a board without --coupling"),
        (["--winding", "-1"], "--winding is from"),
        (["--esr", "inf"], "--esr is from"),
        (["--coupled-coils", "0.99"], "--coupled-coils is from"),
        ([*BANKS, "--series", "E24"], "leave out --parallel and --series, or --bank-bits"),
        ([*BANKS, "--bank-range", "0.0001"], "--bank-range is from"),
        (["--coupling", "resistive", "--winding", "1"], "a resistive board has no inductors; leave out --winding"),
    ],
)
def test_option_no_board_can_have_is_refused(options, says, target, refused):
    assert says in refused("design", target, "--out", "x", *options)


@pytest.mark.parametrize(
    ("options", "says", "suggested"),
    [
        (
            ["--largest-element", "1e-10"],
            r"element ground_3 needs 5e-10 F|element \w+ needs \S+ F, beyond the largest",
            "--unit-capacitance",
        ),
        (["--smallest-element", "2e-10"], r"element \w+ needs \S+ F, beyond the smallest", "--unit-capacitance"),
        (["--smallest-element", "2e-10", "--largest-element", "3e-10"], r"beyond the largest", "--largest-element"),
        (["--coupling", "resistive", "--largest-element", "1e-4"], r"needs \S+ S, beyond", "--unit-conductance"),
        (["--resonance", "100"], r"inductor of every cell would be .* H, beyond the limit of 1 H", "--resonance"),
        (["--resonance", "1e9"], r"inductor of every cell would be .* H, beyond the limit of 1e-09 H", "--resonance"),
        ([*BANKS, "--bank-range", "0.01"], r"coupling straight_\d_\d needs .*, its bank reaches", "--bank-range"),
        ([*BANKS, "--pad-capacitance", "1e-10"], r"pads of the switches load 3 cells", "--unit-capacitance"),
        (["--coupling", "resistive", *BANKS, "--unit-conductance", "0.5"], r"leave no room", "--unit-conductance"),
        (["--self-resonance", "1.5e6"], r"cell\d is loaded with .* F .* element ground_\d is only", "--self-resonance"),
    ],
)
def test_part_beyond_its_limits_is_refused_with_a_change_that_works(options, says, suggested, target, refused, tngd):
    sentence = refused("design", target, "--out", "x", *options)
    assert re.search(says, sentence), sentence
    given = dict(zip(options[::2], options[1::2], strict=True))
    for _ in range(3):  # what brings the largest element inside may push the smallest out
        option, value = re.search(r"(--[a-z-]+) (\d[\d.e+-]*\d|\d)", sentence).groups()
        assert option == suggested or given[suggested]
        given[option] = value
        words = [word for pair in given.items() for word in pair]
        code, _, sentence = tngd("design", target, "--out", "x", *words)
        if code == 0:
            return
    raise AssertionError(sentence)


def test_reuse_of_what_is_no_board_with_banks_is_refused(target, refused, works):
    assert "does not exist" in refused("design", target, "--reuse", "nowhere", "--out", "x")
    works("design", target, "--out", "soldered")
    assert "has no banks" in refused("design", target, "--reuse", "soldered", "--out", "x")


def test_reuse_for_a_target_of_another_size_is_refused(banks, refused):
    np.save("four.npy", np.eye(4))
    assert "has 3 cells, the target is 4 x 4" in refused("design", "four.npy", "--reuse", banks, "--out", "x")


def test_reuse_with_another_coupling_is_refused(target, banks, refused, works):
    sentence = refused("design", target, "--reuse", banks, "--coupling", "resistive", "--out", "x")
    assert "is capacitive, not resistive" in sentence
    works("design", target, "--reuse", banks, "--coupling", "capacitive", "--out", "x")


@pytest.mark.parametrize(
    "options",
    [
        ["--copies", "4"],
        ["--tolerance", "0.02"],
        ["--seed", "1"],
        ["--cells", "plain"],
        ["--bank-bits", "5"],
        ["--quality", "2"],
        ["--series", "E24"],
        ["--stray", "1e-12"],
    ],
)
def test_reuse_keeps_the_board_and_says_so(options, target, banks, refused):
    assert "leave out every option but" in refused("design", target, "--reuse", banks, "--out", "x", *options)


def test_reuse_never_overwrites_the_board_it_comes_from(target, banks, refused):
    assert "a folder of its own" in refused("design", target, "--reuse", banks, "--out", banks, "--force")


def test_reuse_of_a_board_that_was_changed_is_refused(target, banks, refused):
    path = Path(banks, "board.json")
    path.write_text(path.read_text().replace('"bits": 4', '"bits": 5', 1))
    assert "was changed" in refused("design", target, "--reuse", banks, "--out", "x")


def test_reuse_for_a_target_the_cells_do_not_hold_is_refused(banks, refused):
    np.save("signs.npy", np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.3], [0.3, 0.3, 1.0]]))
    sentence = refused("design", "signs.npy", "--reuse", banks, "--out", "x")
    assert "board of plain cells does not take this target" in sentence


def test_another_target_on_the_same_board(banks, works):
    np.save("next.npy", TARGET + 0.1 * np.eye(3))
    works("design", "next.npy", "--reuse", banks, "--out", "next")
    assert Path("next/bom.csv").read_text() == Path("banks/bom.csv").read_text()
    assert Path("next/codes.csv").read_text() != Path("banks/codes.csv").read_text()


@needs_ngspice
def test_a_route_that_a_board_is_not_calibrated_by_is_refused(target, banks, refused, works):
    assert "leave out --samples" in refused("calibrate", banks, "--route", "exact", "--samples", "500")
    works("design", target, "--coupling", "resistive", "--out", "solver")
    works("verify", "solver", "--method", "sampled", "--samples", "500")
    assert "calibrated on exact runs; make them with `tngd verify --method exact`" in refused("calibrate", "solver")
