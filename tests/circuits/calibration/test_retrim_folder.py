"""`tngd retrim`: what it writes is what it says, on the whole circuit and in ngspice, and what it refuses."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from cases import M_MATRIX
from conftest import needs_ngspice
from simulated import known_device

from circuits import Conditions, assemble, reading_covariance
from circuits.calibration import choose_codes
from circuits.calibration.retrim import trimmed_copy
from circuits.files import write_json
from circuits.model import Interface, describe_device, ideal_device
from circuits.netlist import load_design, write_design
from circuits.synthesis import BoardOptions, make_design

OTHER = np.array([[2.0, 0.4, -0.3], [0.4, 1.5, 0.1], [-0.3, 0.1, 1.0]])


@pytest.fixture
def folder(here):
    """A run folder whose device is known as well as parts can be."""
    made = make_design(
        M_MATRIX, choices=BoardOptions(bank_bits=4), tolerance=0.03, copies=2, cells="differential", name="small"
    )
    write_design(made, here / "board")
    write_json(here / "board" / "device.json", describe_device(known_device(made)))
    return here / "board"


def read_back(folder, row: dict, target: np.ndarray, out) -> np.ndarray:
    """The weighted inverse that the written codes give on the whole circuit of the copy, parasitics and mismatch."""
    made, _ = load_design(folder)
    copy = next(copy for copy in made.copies if copy.name == row["name"])
    copy = trimmed_copy(made.board, copy, np.array(row["source_powers"]))
    total = np.zeros_like(target)
    for number, (weight, programmed) in enumerate(zip(row["weights"], row["programs"], strict=True), start=1):
        values = {}
        with (out / row["name"] / f"codes-{number}.csv").open() as stream:
            for line in csv.DictReader(stream):
                assert int(line["Code"]) == programmed["codes"][line["Bank"]]
                way = {"open": None, "straight": "straight", "crossed": "crossed"}[line["Switched"]]
                if way:
                    values[line["Bank"].replace("bank", way)] = float(line["Value [F]"])
        scaling = np.array(programmed["scaling"])
        program = replace(made.program, values=values, energy=programmed["energy_J"], scaling=scaling)
        S = reading_covariance(assemble(made.board, program, copy, Conditions()))
        total += weight * scaling[:, None] * S * scaling * made.board.unit / (2 * programmed["energy_J"])
    return total


@pytest.mark.parametrize("target", [None, OTHER], ids=["own target", "another target"])
def test_written_codes_give_the_expected_error_on_the_whole_circuit(target, folder, works):
    words, wanted, out = [], M_MATRIX, folder / "retrim"
    if target is not None:
        np.save(folder / "other.npy", target)
        words, wanted, out = ["--target", folder / "other.npy", "--out", folder / "there"], target, folder / "there"
    printed = works("retrim", folder, "--programmings", 3, *words)
    content = json.loads((out / "retrim.json").read_text())
    assert content["schema"] == "tngd.retrim/1"
    assert content["programmings"] == 3
    assert [row["name"] for row in content["copies"]] == ["copy-1", "copy-2"]
    inverse, known = np.linalg.inv(wanted), content["calibration_uncertainty"]
    for row in content["copies"]:
        found = read_back(folder, row, wanted, out)
        error = np.linalg.norm(found - inverse) / np.linalg.norm(inverse)
        assert abs(error - row["errors"][-1]) < 3e-4  # mismatch of this very copy
        assert sum(row["weights"]) == pytest.approx(1)
        assert row["readout_gains"] == [1.0] * 3
        assert row["errors"][-1] < row["error_nearest"] / 3
        assert f"{row['error_nearest']:.3%}" in printed
        assert row["expected"] == pytest.approx(np.hypot(row["errors"], known))
        assert f"{row['expected'][-1]:.3%}" in printed


def test_the_same_call_writes_the_same_bytes_and_nothing_is_replaced_unasked(folder, works, refused):
    words = ["retrim", folder, "--copy", "copy-2", "--programmings", 2]
    works(*words)
    first = {path.name: path.read_bytes() for path in (folder / "retrim").rglob("*") if path.is_file()}
    assert first.keys() == {"retrim.json", "codes-1.csv", "codes-2.csv"}
    assert "exists already" in refused(*words)
    works(*words, "--force")
    assert {path.name: path.read_bytes() for path in (folder / "retrim").rglob("*") if path.is_file()} == first
    (folder / "mine").mkdir()
    (folder / "mine" / "notes").write_text("mine")
    assert "choose another" in refused(*words, "--out", folder / "mine", "--force")


@needs_ngspice
def test_ngspice_gives_the_expected_errors(folder, works):
    works("retrim", folder, "--programmings", 1, "--check")
    rows = json.loads((folder / "retrim" / "retrim.json").read_text())["copies"]
    assert rows[0]["checked"]["error_nearest"] == pytest.approx(rows[0]["error_nearest"], abs=3e-4)
    assert rows[0]["checked"]["error"] == pytest.approx(rows[0]["errors"][0], abs=3e-4)
    inverse = np.linalg.inv(M_MATRIX)
    found = read_back(folder, rows[0], M_MATRIX, folder / "retrim")
    error = np.linalg.norm(found - inverse) / np.linalg.norm(inverse)
    assert rows[0]["checked"]["error"] == pytest.approx(error, abs=1e-6)
    assert all("checked" in row for row in rows)


@needs_ngspice
def test_a_resistive_board_is_trimmed_by_its_solutions(here, works):
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4, coupling="resistive"), tolerance=0.03, copies=1)
    write_design(made, here / "board")
    write_json(here / "board" / "device.json", describe_device(known_device(made)))
    works("retrim", "board", "--programmings", 1, "--check")
    row = json.loads((here / "board" / "retrim" / "retrim.json").read_text())["copies"][0]
    codes, scaling = row["programs"][0]["codes"], np.array(row["programs"][0]["scaling"])
    banks = {bank.name: bank for bank in made.board.banks}
    values = {banks[name].elements[0]: code * banks[name].unit for name, code in codes.items() if code}
    circuit = assemble(made.board, replace(made.program, values=values, scaling=scaling), made.copies[0], Conditions())
    found = made.board.unit * scaling[:, None] * np.linalg.inv(circuit.conductance)[:3, :3] * scaling
    inverse = np.linalg.inv(M_MATRIX)
    error = np.linalg.norm(found - inverse) / np.linalg.norm(inverse)
    assert row["errors"][0] == pytest.approx(error, abs=1e-5)
    assert row["checked"]["error"] == pytest.approx(error, abs=1e-6)
    assert row["errors"][0] < row["error_nearest"]


def test_sources_are_set_in_their_own_steps(folder):
    made, _ = load_design(folder)
    device = known_device(made)
    fine = choose_codes(device, 0, M_MATRIX)
    coarse = choose_codes(replace(device, interface=Interface(source_bits=7)), 0, M_MATRIX)
    codes = np.sqrt(coarse.powers) * 64
    assert np.array_equal(codes, np.round(codes))
    assert np.abs(codes - np.sqrt(fine.powers) * 64).max() <= 0.5


def test_what_cannot_be_trimmed_is_refused(folder, here, refused):
    for words, says in (
        (["--copy", "copy-3"], "copies copy-1, copy-2, got --copy copy-3"),
        (["--programmings", 0], "from 1 to 64, got 0"),
        (["--programmings", 65], "from 1 to 64, got 65"),
        (["--at", "fit"], "go with a --target"),
        (["--damping", 0.1], "go with a --target"),
        (["--precondition", "zero"], "go with a --target"),
        (["--target", "fair"], "has 3 cells, the target is 8 x 8"),
        (["--target", "bogus"], "unknown target"),
    ):
        assert says in refused("retrim", folder, *words)
    np.save(here / "far.npy", np.array([[1.0, -0.93, 0], [-0.93, 1.0, -0.3], [0, -0.3, 1.0]]))
    assert "do not hold the target" in refused("retrim", folder, "--target", "far.npy")
    other = make_design(M_MATRIX, choices=BoardOptions(bank_bits=3), copies=1)
    write_json(folder / "device.json", describe_device(ideal_device(other.board)))
    assert "is of another board" in refused("retrim", folder)
    (folder / "device.json").unlink()
    assert "make it with `tngd calibrate`" in refused("retrim", folder)
    write_design(make_design(M_MATRIX, copies=1), here / "soldered")
    assert "--bank-bits" in refused("retrim", "soldered")
