"""What a refusal advises, works: each change is applied, and makes a board of parts that exist."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from cases import TARGETS

from circuits import InputError
from circuits.netlist import load_design
from circuits.synthesis import (
    BoardOptions,
    BoardRequest,
    Parasitics,
    check_target,
    inverse_factor,
    make_design,
    reuse_design,
)
from circuits.synthesis.design import holds
from circuits.synthesis.rounding import needed_range
from circuits.synthesis.target import check_congruence

TWO = np.array([[2.0, 1.0], [1.0, 2.0]])
CHAIN = 2 * np.eye(5) - np.eye(5, k=1) - np.eye(5, k=-1)
RING = 2 * np.eye(5) - np.eye(5, k=1) - np.eye(5, k=-1) - np.eye(5, k=4) - np.eye(5, k=-4)  # a Laplacian: singular
RESISTIVE = ("--coupling", "resistive")
NUMBER = r"\d[\d.]*(?:e[+-]?\d+)?"


def close(r: float) -> np.ndarray:
    return np.array([[1.0, -r], [-r, 1.0]])


def advised(sentence: str) -> list[str]:
    """The first alternative of a refusal as words of the command."""
    first = re.search(r"; ((?:--[a-z-]+ \S+)(?: with --[a-z-]+ \S+)*).* would do$", sentence)
    assert first, sentence
    return re.sub("with |,", "", first[1]).split()


def with_changes(options: list[str], changes: list[str]) -> list[str]:
    given = dict(zip(options[::2], options[1::2], strict=True))
    given |= dict(zip(changes[::2], changes[1::2], strict=True))
    return [word for pair in given.items() for word in pair]


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        (close(0.9999), [*RESISTIVE, "--bank-bits", "8"], "switches of 10 ohm leave no room in bank_1_2"),
        (close(0.99), [*RESISTIVE, "--bank-bits", "8"], "switches of 10 ohm leave no room in bank_1_2"),
        (
            TWO,
            [*RESISTIVE, "--bank-bits", "4", "--unit-conductance", "0.05", "--bank-range", "16"],
            "leave no room in bank_1_2, which reaches 0.8 S",
        ),
        (close(0.99), [*RESISTIVE, "--bank-bits", "8", "--bank-range", "16"], "its bank reaches 0.016"),
        (close(0.9999), ["--bank-bits", "8"], "part CB1_2v1b7 needs 1e-05 F, beyond the largest"),
        (RING + 1e-6 * np.eye(5), [*RESISTIVE, "--bank-bits", "8"], "leave no room in bank_1_2, which reaches"),
        (
            RING + 1e-7 * np.eye(5),
            [*RESISTIVE, "--bank-bits", "8"],
            "banks reach at most 1e+06 units, the target",
        ),
        (TWO, [*RESISTIVE, "--esr", "1", "--unit-capacitance", "5e-12"], "Cv1 is only 5e-12 F"),
        (TWO, [*RESISTIVE, "--esr", "1", "--unit-capacitance", "1e-12"], "Cv1 is only 1e-12 F"),
        (TWO, ["--esr", "1", "--unit-capacitance", "1e-12"], "cell1 is loaded with 5e-12 F by coils and inputs"),
        (TWO, [*RESISTIVE, "--esr", "1", "--unit-capacitance", "4e-12", "--bank-bits", "4"], "load 2 cells with up"),
        (
            TWO,
            ["--esr", "1", "--unit-capacitance", "4e-12", "--bank-bits", "4", "--pad-capacitance", "0"],
            "CGv1 is only 4e-12 F",
        ),
        (TWO, ["--parallel", "2", "--smallest-element", "3e-10"], "element ground_1 needs 2.5e-10 F"),
        (TWO, ["--parallel", "2", "--smallest-element", "1e-9", "--largest-element", "1e-9"], "needs 2.5e-10 F"),
        (TWO, ["--bank-bits", "6", "--smallest-element", "1e-10"], r"part CB1_2v1b0 needs 3.17e-11 F, beyond the sm"),
        (TWO, ["--bank-bits", "6", "--largest-element", "1e-10"], "part CB1_2v1b5 needs 1.02e-09 F, beyond the larg"),
        (TWO, [*RESISTIVE, "--bank-bits", "6", "--largest-element", "1e-4"], "needs 0.00103 S, beyond the largest"),
    ],
)
def test_advised_change_makes_a_board_of_parts_that_exist(target, options, says, here, refused, works):
    np.save("target.npy", target)
    sentence = refused("design", "target.npy", "--out", "x", *options)
    assert says in sentence
    works("design", "target.npy", "--out", "x", *with_changes(options, advised(sentence)))
    rows = list(csv.DictReader(io.StringIO(Path("x/bom.csv").read_text())))
    assert all(float(row["Value"]) > 0 for row in rows if row["Value"])
    board = load_design(Path("x"))[0].board
    held = [part.nominal if part.kind == "C" else 1 / part.nominal for part in board.parts if part.role == "bit"]
    assert all(board.limits.smallest <= value <= board.limits.largest for value in held)


def test_every_bit_of_a_resistive_bank_is_larger_than_its_switch():
    for choices in (
        BoardOptions("resistive", bank_bits=8),
        BoardOptions("resistive", bank_bits=3, switch_resistance=100.0),
    ):
        made = make_design(TARGETS["M-matrix"][0], choices=choices)
        bits = [part.nominal for part in made.board.parts if part.role == "bit"]
        assert min(bits) >= choices.switch_resistance * (1 - 1e-9)


def test_range_that_is_chosen_or_advised_is_one_that_may_be_given(here, refused, works):
    np.save("close.npy", close(0.99))
    options = [*RESISTIVE, "--bank-bits", "8", "--unit-conductance", "1e-4"]
    reach = needed_range(close(0.99))
    assert reach == pytest.approx(2 * 99, rel=0.1)
    works("design", "close.npy", "--out", "x", *options)
    works("design", "close.npy", "--out", "x", "--force", *options, "--bank-range", reach)


@pytest.mark.parametrize("seed", ["0", "3"])
def test_suggestions_for_unstable_copies_work_with_parasitics_and_their_own_spread(seed, here, refused, works):
    given = ["design", "breast-cancer", "--at", "fit", "--seed", seed, "--self-resonance", "7e6"]
    sentence = refused(*given, "--out", "x")
    found = dict(re.findall(rf"(--[a-z]+) ({NUMBER})", sentence))
    assert "--damping" in found
    for option, value in found.items():
        works(*given, option, value, "--out", "x", "--force")


@pytest.mark.parametrize("self_resonance", [6e6, 1e7, 3e7])
def test_advised_changes_leave_the_spread_of_parasitics_as_it_is(self_resonance):
    # A coil's own capacitance is taken from the ground element and is off by 20 %, whatever the tolerance of parts is.
    target, parasitics = TARGETS["breast-cancer, raw"][0], Parasitics(self_resonance=self_resonance)
    with pytest.raises(InputError) as refusal:
        make_design(target, parasitics=parasitics)
    found = dict(re.findall(rf"--(tolerance|damping) ({NUMBER})", str(refusal.value)))
    assert "damping" in found
    damping = float(found.pop("damping"))
    make_design(target + damping * np.eye(8), damping=damping, parasitics=parasitics)
    for tolerance in found.values():
        make_design(target, tolerance=float(tolerance), parasitics=parasitics)


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_diagonal_target_goes_on_banks_and_is_exact(coupling, size):
    target = np.diag(np.arange(1.0, size + 1))
    made = make_design(target, choices=BoardOptions(coupling=coupling, bank_bits=4))
    assert made.program.rounding.error < 1e-12
    assert made.program.values == {}
    assert made.board.banks[0].reach == pytest.approx(made.board.unit)
    dense = make_design(target + 0.1 - 0.2 * (np.ones((size, size)) - np.eye(size)), choices=BoardOptions(bank_bits=4))
    assert reuse_design(dense, target).program.rounding.error < 1e-12


def test_another_target_is_refused_with_the_damping_that_takes_it(here, refused, works):
    np.save("chain.npy", CHAIN[:3, :3])
    np.save("wide.npy", np.array([[1.0, -0.7, -0.6], [-0.7, 1.0, 0.0], [-0.6, 0.0, 1.0]]))
    works("design", "chain.npy", "--bank-bits", "4", "--out", "banks")
    for given in ("0", "0.01"):
        words = ["design", "wide.npy", "--reuse", "banks", "--out", "x", "--force"]
        sentence = refused(*words, "--damping", given)
        assert "its bank reaches" in sentence
        assert "--bank-range" not in sentence
        works(*words, "--damping", re.search(rf"--damping ({NUMBER})", sentence)[1])


def test_indefinite_target_for_a_board_is_refused_with_a_damping_that_board_takes(here, refused, works):
    np.save("chain.npy", CHAIN[:3, :3])
    np.save("indefinite.npy", CHAIN[:3, :3] - 2 * np.eye(3))
    works("design", "chain.npy", "--bank-bits", "4", "--out", "banks")
    words = ["design", "indefinite.npy", "--reuse", "banks", "--out", "x"]
    works(*words, "--damping", re.search(rf"--damping ({NUMBER})", refused(*words))[1])


def test_damping_advised_on_top_of_one_is_the_whole_one(here, refused, works):
    sentence = refused("design", "wine", "--at", "fit", "--cells", "differential", "--damping", "0.01", "--out", "x")
    whole = re.search(rf"--damping ({NUMBER})", sentence)[1]
    assert float(whole) > 0.01
    works("design", "wine", "--at", "fit", "--cells", "differential", "--damping", whole, "--out", "x")


def test_row_sum_of_zero_is_scaled_so_that_inputs_can_be_taken_from_it():
    made = make_design(CHAIN, parasitics=Parasitics(esr=0.5))
    assert made.program.step == "plain cells, scaled to dominance"
    ground = [made.program.values[f"ground_{k}"] for k in range(1, 6)]
    assert min(ground) > 0
    held = np.zeros((5, 5))
    for part in made.board.parts:
        if part.kind == "C":
            value = part.nominal or made.program.values.get(part.element, 0.0)
            ends = [node.replace("ecg", "").replace("ecs", "") for node in part.nodes]
            near = int(ends[0][1:]) - 1
            far = re.fullmatch(r"ecsv\d_v(\d)", part.nodes[1])
            held[near, near] += value
            if far:
                other = int(far[1]) - 1
                held[other, other] += value
                held[near, other] -= value
                held[other, near] -= value
    # Maxwell matrix with the ESR as wires, inputs included, part by part.
    assert np.abs(held / made.board.unit - made.program.matrix).max() < 1e-12
    assert make_design(CHAIN).program.step == "plain cells"


def test_target_of_rows_in_wide_units_is_judged_by_its_unit_diagonal():
    A = np.array([[1.0, 0.6, 0.2], [0.6, 1.0, 0.3], [0.2, 0.3, 1.0]])
    D = np.diag([1e4, 1.0, 1e-4])
    made, same = make_design(check_target(D @ A @ D)), make_design(A)
    assert np.abs(made.program.matrix - same.program.matrix).max() < 1e-12
    assert made.program.values.keys() == same.program.values.keys()
    expected = np.linalg.inv(D) @ np.linalg.inv(A) @ np.linalg.inv(D)
    X, M = made.program.mapping, made.program.matrix
    T = check_congruence(inverse_factor(D @ A @ D), 3)
    assert np.abs(T @ D @ A @ D @ T.T - np.eye(3)).max() < 1e-12
    # Entry by entry: the smallest is 16 decades below the largest.
    assert np.abs(X.T @ np.linalg.inv(M) @ X / expected - 1).max() < 1e-12


def test_singular_rows_in_wide_units_are_still_refused(here, refused):
    D = np.diag([1e4, 1.0, 1e-4])
    np.save("singular.npy", D @ np.ones((3, 3)) @ D)
    assert "must be positive definite" in refused("design", "singular.npy", "--out", "x")


@pytest.mark.parametrize("text", ["\ufeff2,-1\n-1,2\n", "\ufeff2 -1\r\n-1 2\r\n"])
def test_byte_order_mark_of_a_spreadsheet_is_no_number(text, here, works):
    Path("good.csv").write_bytes(text.encode())
    works("design", "good.csv", "--out", "x")
    assert load_design(Path("x"))[0].program.target.tolist() == [[2.0, -1.0], [-1.0, 2.0]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"1 2\n3\n", "expected 2 numbers in row 2 as in row 1, got 1; fill it up"),
        (b"1 2\n\n3 4 5\n", "expected 2 numbers in row 2 as in row 1, got 3; fill it up"),
        (b"1 2\n3 x\n", "row 2, column 2 is 'x'; give numbers"),
        (b"\xff\xfe1\x00", "it is no UTF-8 text; save it as CSV in UTF-8"),
    ],
)
def test_text_that_is_no_matrix_names_the_row(content, says, here, refused):
    Path("bad.csv").write_bytes(content)
    sentence = refused("design", "bad.csv", "--out", "x")
    assert says in sentence
    assert "inhomogeneous" not in sentence


def test_board_is_judged_with_its_parasitics_before_a_damping_is_advised(here, refused, works):
    # Coils whose own capacitance is more than a cell's ground element: only a larger diagonal leaves room for them.
    coils = Parasitics(self_resonance=2.2e6)
    assert holds(CHAIN[:2, :2], None, BoardRequest())
    assert not holds(CHAIN[:2, :2], None, BoardRequest(parasitics=coils))
    np.save("indefinite.npy", CHAIN[:2, :2] - np.eye(2) * 1.1)
    given = ["design", "indefinite.npy", "--self-resonance", "2.2e6", "--out", "x"]
    works(*given, "--damping", re.search(rf"--damping ({NUMBER})", refused(*given))[1])
