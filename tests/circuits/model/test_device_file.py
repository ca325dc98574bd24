"""The seal of device.json: whatever is edited is refused in one sentence, before anything is made of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import M_MATRIX
from conftest import needs_ngspice

from circuits import InputError
from circuits.calibration import folder
from circuits.files import write_json
from circuits.model import Device, describe_device, ideal_device, load_device, set_interface
from circuits.model.device_file import device_hash
from circuits.netlist import write_design
from circuits.synthesis import make_design

CHANGED = "device.json was changed since it was made; make it again with `tngd calibrate`"
ABOUT = {"ngspice": "42", "seed": 7, "board_sha256": "a" * 64, "statistics_sha256": "b" * 64, "versions": {"tngd": "0"}}


def device() -> Device:
    """Two perfect copies, with something of everything."""
    made = make_design(M_MATRIX, name="three")
    about = {"route": "exact", "copies": {"ideal-1": {"chi_square": 1.5, "residuals": [0.25]}}}
    held = {"errors": [1e-3, 2e-3], "programs": ["held-out-1"], "z_rms": 1.0}
    return replace(ideal_device(made.board, 2), fitted_on=about, held_out=held, values=made.program.values, order=4)


def leaves(content: object, place: tuple = ()) -> Iterator[tuple]:
    """Where the numbers, words and empty lists of a JSON content are."""
    if isinstance(content, dict | list) and content:
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from leaves(content[key], (*place, key))
    else:
        yield place


def changed(content: dict, place: tuple, value: object) -> dict:
    """The same with another value there."""
    copy = json.loads(json.dumps(content))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return copy


def refused(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as found:
        load_device(path)
    return str(found.value)


def test_every_edit_is_told_as_one(tmp_path):
    path = tmp_path / "device.json"
    content = describe_device(device(), ABOUT)
    write_json(path, content)
    assert load_device(path) == device()
    places = [place for place in leaves(content) if place != ("schema",)]
    assert len(places) > 300
    for section in ("fitted_on", "held_out", "nominal", "provenance", "order", "board", "copies", "interface"):
        assert any(place[0] == section for place in places)
    rng = np.random.default_rng(0)
    few = [place for place in places if place[0] != "board"] + [places[k] for k in rng.choice(len(places), 60)]
    for place in few:
        sentence = refused(path, changed(content, place, [99]))
        assert sentence.endswith(CHANGED), place


EDITS = {
    "a cell that is not there": lambda c: c["board"]["elements"][0].update(cells=[99]),
    "a word more": lambda c: c["held_out"].update(remark="perfect"),
    "a number of another type": lambda c: c["fitted_on"]["copies"]["ideal-1"].update(chi_square=1),
    "a part less": lambda c: c["board"]["parts"].pop(),
    "a section less": lambda c: c.pop("nominal"),
    "another order": lambda c: c.update(order=5),
    "provenance made up": lambda c: c["provenance"].update(seed=8),
    "another hash": lambda c: c.update(device_sha256="0" * 64),
    "another seal": lambda c: c["provenance"].update(content_sha256="0" * 64),
    "a seal of another type": lambda c: c["provenance"].update(content_sha256=1),
    "not a number": lambda c: c["copies"][0]["gains"]["ground_1"].update(value=float("nan")),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_told_before_anything_is_made_of_them(edit, tmp_path):
    content = json.loads(json.dumps(describe_device(device(), ABOUT)))
    EDITS[edit](content)
    assert refused(tmp_path / "device.json", content).endswith(CHANGED)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["provenance"].pop("content_sha256"),
        lambda c: c.pop("provenance"),
        lambda c: c.update(provenance=[1]),
    ],
)
def test_a_file_without_its_seal_is_damaged(edit, tmp_path):
    content = describe_device(device(), ABOUT)
    edit(content)
    assert "is damaged (it has no content_sha256); make it again" in refused(tmp_path / "device.json", content)


def test_what_is_sealed_is_still_checked(tmp_path):
    board = device().board
    elsewhere = replace(board, elements=(replace(board.elements[0], cells=(99,)), *board.elements[1:]))
    for broken, says in (
        (replace(device(), order=2), "an order of 2, fewer states than the board's 3 readings"),
        (replace(device(), board=elsewhere), "is of cells that the board does not have"),
    ):
        sentence = refused(tmp_path / "device.json", describe_device(broken))
        assert "is not usable" in sentence
        assert says in sentence


def test_the_order_is_in_the_hash_and_all_states_are_as_before():
    whole = replace(device(), order=None)
    hashes = {device_hash(each) for each in (whole, device(), replace(whole, order=5))}
    assert len(hashes) == 3
    assert device_hash(replace(device(), fitted_on={}, held_out={})) == device_hash(device())
    assert describe_device(whole)["order"] is None


def test_other_converters_keep_what_the_device_was_made_from(tmp_path):
    first, second, third = (str(tmp_path / f"{name}.json") for name in ("device", "one", "two"))
    write_json(Path(first), describe_device(device(), ABOUT))
    none = {"bits": None}
    set_interface(first, Path(second), {"bits": 8}, none)
    set_interface(second, Path(third), none, {"bits": 10})
    about = json.loads(Path(third).read_text())["provenance"]
    for name in ("ngspice", "seed", "board_sha256", "statistics_sha256"):
        assert about[name] == ABOUT[name]
    assert about["fitted_versions"] == {"tngd": "0"}
    assert "numpy" in about["versions"]
    assert (about["device"], about["device_sha256"]) == ("one.json", device_hash(load_device(second)))
    again = load_device(third)
    assert (again.interface.dac.bits, again.interface.adc.bits, again.order) == (8, 10, 4)


def test_other_converters_of_a_device_of_the_package_keep_its_simulator(tmp_path):
    set_interface("board-1", tmp_path / "mine.json", {"bits": 8}, {"bits": 8})
    about = json.loads((tmp_path / "mine.json").read_text())["provenance"]
    assert about["ngspice"]
    assert about["design_seed"] == 0
    assert about["device"] == "board-1"


@needs_ngspice
def test_calibrated_device_is_of_its_order_and_says_its_seeds(tmp_path):
    made = make_design(M_MATRIX, copies=1, name="small", seed=2)
    write_design(made, tmp_path / "run")
    content = folder.calibrate_folder(tmp_path / "run", "programs", samples=2000, seed=5, order=4)
    found = load_device(tmp_path / "run" / "device.json")
    assert found.order == content["order"] == content["fitted_on"]["reduced_order"]["order"] == 4
    assert found.program(M_MATRIX).drift.shape == (4, 4)
    about = content["provenance"]
    assert (about["seed"], about["noise_seed"]) == (2, 5)
    assert "4 of 6 states" in content["fitted_on"]["reduced_order"]["warning"]
    assert content["fitted_on"]["reduced_order"]["pair_error"] == 0.0  # plain cells have no pairs
    path = tmp_path / "run" / "device.json"
    assert refused(path, changed(content, ("fitted_on", "samples"), 9)).endswith(CHANGED)
