"""What the designer gets says the same as the board: bill, PCB netlist, library, drawing, review."""

import csv
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX, TARGETS
from compare import assert_close
from reference import read_deck, read_kicad

from circuits.board import GROUND
from circuits.copies import populated_parts
from circuits.netlist import (
    bill_text,
    circuit_of,
    decks,
    engineering,
    explanation_text,
    library_text,
    review_text,
    schematic_svg,
    write_design,
)
from circuits.netlist.bill import COLUMNS
from circuits.netlist.kicad import pcb_netlist
from circuits.netlist.review import avoiding_negative, part_counts, worst_parts
from circuits.synthesis import BoardOptions, cell_law, make_design

DESIGNS = {
    "raw": make_design(FAIR, name="fair"),
    "preconditioned": make_design(FAIR, FAIR_FACTOR, name="fair"),
    "plain": make_design(M_MATRIX, name="plain"),
    "1x1": make_design(TARGETS["1x1"][0], name="one"),
}
BANKED = {
    kind: make_design(target, factor, choices=BoardOptions(bank_bits=3, coupling=coupling), name="banks")
    for kind, coupling, target, factor in (
        ("banks", "capacitive", FAIR, FAIR_FACTOR),
        ("plain banks", "resistive", M_MATRIX, None),
    )
}


@pytest.fixture(params=DESIGNS)
def made(request):
    return DESIGNS[request.param]


def test_bill_counts_every_part_once_with_its_value(made):
    rows = list(csv.DictReader(io.StringIO(bill_text(made.board, made.program))))
    assert tuple(rows[0]) == COLUMNS
    assert tuple(COLUMNS[:4]) == ("Comment", "Designator", "Footprint", "LCSC Part #")
    listed = {}
    for row in rows:
        names = row["Designator"].split(",")
        assert int(row["Quantity"]) == len(names)
        assert row["LCSC Part #"] == row["Manufacturer Part Number"] == ""
        listed |= dict.fromkeys(names, row)
    expected = {part.name: (part, value) for part, value in populated_parts(made.board, made.program)}
    sources = {source.name for source in made.board.sources}
    assert listed.keys() == expected.keys() | sources
    assert sum(int(row["Quantity"]) for row in rows) == len(listed)
    for name, (part, value) in expected.items():
        assert float(listed[name]["Value"]) == pytest.approx(value, rel=5e-4)
        assert listed[name]["Tolerance"] == "±1%"
        assert engineering(value, {"R": "Ω", "L": "H", "C": "F"}[part.kind]) in listed[name]["Comment"]
        assert ("negative" in listed[name]["Comment"]) == (value < 0)
    assert len({(row["Comment"], row["Footprint"], row["Tolerance"]) for row in rows}) == len(rows)


def test_pcb_netlist_has_every_part_at_its_nodes(made):
    parts, nets = read_kicad(pcb_netlist(made.board, made.program))
    expected = {part.name: part.nodes for part, _ in populated_parts(made.board, made.program)}
    expected |= {source.name: (source.node, GROUND) for source in made.board.sources}
    assert parts.keys() == expected.keys()
    found = {(ref, pin): net for net, pins in nets.items() for ref, pin in pins}
    assert len(found) == 2 * len(expected)
    for ref, (a, b) in expected.items():
        assert (found[ref, "1"], found[ref, "2"]) == (a, b)
    bill = csv.DictReader(io.StringIO(bill_text(made.board, made.program)))
    for row in bill:
        for name in row["Designator"].split(","):
            assert parts[name] == (row["Comment"], row["Footprint"])


@pytest.mark.parametrize("made", [*DESIGNS.values(), *BANKED.values()], ids=[*DESIGNS, *BANKED])
def test_library_holds_the_subcircuits_of_the_decks(made):
    text = dict(decks(made))["copy-1"]
    circuit = circuit_of(text)
    without = re.sub(r"^\.subckt.*?^\.ends[^\n]*\n", "", circuit, flags=re.M | re.S)
    assert ".subckt" not in without
    library = library_text(made.board)
    direct, included = read_deck(circuit), read_deck(library + without)
    for key in "CGK":
        assert_close(included[key], direct[key], 1e-15)
    for name in re.findall(r"^\.subckt (\S+)", library, re.M):
        assert f"Sim.Name={name} " in library
    bits = sum(bank.bits for bank in made.board.banks) * len(made.board.cells[0].nodes)
    assert len(re.findall(r"^Xbit_", circuit, re.M)) == bits


def test_schematic_is_one_drawing_with_names_and_values(made):
    root = ET.fromstring(schematic_svg(made.board, made.program))
    text = " ".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))
    number = next((k for k in range(1, len(made.board.cells) + 1) if f"negative_{k}" in made.program.values), 1)
    for node in made.board.cells[number - 1].nodes:
        for name in (f"R{node}", f"L{node}", f"CG{node}", f"I{node}"):
            assert name in text
    for element in made.board.elements:
        if len(element.cells) == 2 and element.name in made.program.values:
            part = next(part.name for part in made.board.parts if part.element == element.name)
            assert part in text
            assert engineering(made.program.values[element.name], "F") in text


def test_review_says_what_the_design_is(made):
    text = review_text(made)
    assert made.program.step in text
    assert made.program.reason in text
    for row in part_counts(made):
        assert f"| {row['kind']} | {row['count']} | {row['smallest']} | {row['largest']} |" in text
    for entry in worst_parts(made):
        spread, contribution = 100 * entry.tolerance, 100 * entry.tolerance * entry.value / np.sqrt(3)
        row = f"| {entry.part} | {entry.role} | {entry.value:.3f} | ±{spread:.3g} % | {contribution:.2g} % |"
        assert row in text
    assert ("without negative elements" in text) == ("negative" in made.program.step)
    assert not re.search(r"\{\{|\bNone\b|\bnan\b", text)


def test_smallest_common_mode_of_the_review_is_that_of_the_derivation():
    # Two cells in numbers: the symbolic matrix of the common mode, twice (mean of two nodes), against the review's.
    made = make_design(np.array([[1.0, 0.3], [0.3, 1.0]]), cells="active", name="two")
    values = made.program.values
    law = cell_law("differential").common
    numbers = {"g_1": values["ground_1"], "g_2": values["ground_2"], "c_s": 0.0, "c_x": values["crossed_1_2"]}
    matrix = np.array(law.subs({s: numbers[s.name] for s in law.free_symbols}), dtype=float)
    assert engineering(np.linalg.eigvalsh(matrix)[0], "F") in review_text(made)


def test_explanation_gives_every_element_with_its_entry(made):
    text = explanation_text(made.board, made.program)
    assert "C dv/dt" in text
    for name, value in made.program.values.items():
        assert re.search(rf"{name} +{re.escape(engineering(value, 'F'))}$", text, re.M)


def test_run_folder_is_the_same_to_the_byte(tmp_path):
    for name in ("one", "two"):
        write_design(DESIGNS["preconditioned"], tmp_path / name)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {str(path) for path in files} == {
        "board.json",
        "board.net",
        "bom.csv",
        "design.md",
        "schematic.svg",
        "lib/spu_cells.lib",
        *(f"netlists/{name}.cir" for name in ("nominal", "copy-1", "copy-2", "copy-3")),
    }
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_nothing_handed_over_names_this_machine(tmp_path):
    write_design(DESIGNS["plain"], tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert str(tmp_path) not in text
            assert str(Path(__file__).parents[3]) not in text


def test_damping_of_the_review_is_the_whole_one_and_does():
    damped = make_design(FAIR + 0.05 * np.eye(8), damping=0.05, name="damped")
    whole, alone = (
        float(re.match(r"--damping (\S+) or a --precondition from an older matrix", avoiding_negative(made))[1])
        for made in (damped, make_design(FAIR, name="fair"))
    )
    assert whole > 0.05
    assert alone == pytest.approx(whole, rel=0.1)
    again = make_design(FAIR + whole * np.eye(8), damping=whole, name="again")
    assert avoiding_negative(again) == ""
    assert f"--damping {whole:.2g} " in review_text(damped)
