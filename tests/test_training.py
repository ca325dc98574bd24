"""Training: repeatable, comparable, and different on another device."""

import json
from pathlib import Path

import pytest
from simulated import rough_device

from circuits.device import describe_device, device_hash, ideal_device, load_device
from circuits.layout import build_board
from circuits.store import write_json
from tngd import learning
from tngd.training import TASKS, train

IDEAL = ideal_device(build_board(8, "differential"), 3)
METHODS = [
    "SGD",
    "Adam",
    "exact NGD",
    "TNGD, ideal device",
    "TNGD, calibrated copies",
    "TNGD, calibrated copies, not preconditioned",
]


def by_name(result: dict) -> dict:
    return {method["name"]: method for method in result["methods"]}


@pytest.mark.parametrize("task", ["fair", "digits"])
def test_same_device_and_seeds_give_the_same_numbers_and_another_device_others(task):
    device = rough_device(0.01, 3)
    first, again = (train(task, device, seeds=2, steps=3) for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    assert [method["name"] for method in first["methods"]] == METHODS
    swapped = by_name(train(task, IDEAL, seeds=2, steps=3))
    found = by_name(first)
    for name in METHODS[:4]:
        assert found[name]["train_loss"] == swapped[name]["train_loss"]
    for name in METHODS[4:]:
        assert found[name]["train_loss"] != swapped[name]["train_loss"]
        assert found[name]["tiles"]["direction_deviation"] > 1e-4
        assert swapped[name]["tiles"]["direction_deviation"] < 1e-9
    assert found["TNGD, ideal device"]["tiles"]["direction_deviation"] < 1e-9
    assert first["device"] == device_hash(device) != device_hash(IDEAL)


def test_settings_are_the_best_of_the_stored_sweep():
    lines = (Path(__file__).parents[1] / "benchmarks" / "step_sizes.jsonl").read_text().splitlines()
    sweeps = {(sweep["task"], sweep["method"]): sweep for sweep in map(json.loads, lines)}
    for (task, name), sweep in sweeps.items():
        finite = [row for row in sweep["sweep"] if row["loss"] == row["loss"]]
        best = min(finite, key=lambda row: row["loss"])
        assert [best["lr"], best["damping"]] == sweep["best"]
        used = [method for method in TASKS[task]().methods if method.name.split(",")[0] == name]
        assert used
        for method in used:
            assert method.settings["lr"] == best["lr"]
            assert method.settings.get("damping") == best["damping"]


def test_every_method_starts_from_the_same_weights_and_learns():
    result = train("digits", IDEAL, seeds=1, steps=40)
    curves = {name: method["train_loss"][0] for name, method in by_name(result).items()}
    assert len({curve[0] for curve in curves.values()}) == 1
    for name, curve in curves.items():
        assert curve[-1] < 0.5 * curve[0], name
    assert result["parameters"] == 64 * 24 + 24 + 24 * 10 + 10
    assert result["evaluated_at"][0] == 0
    assert result["evaluated_at"][-1] == 40


def test_on_one_tile_the_ideal_device_is_exact_natural_gradient():
    # `fair` has 8 parameters: its one tile is the whole curvature.
    result = by_name(train("fair", IDEAL, seeds=2, steps=10))
    exact, tiles = result["exact NGD"]["train_loss"], result["TNGD, ideal device"]["train_loss"]
    for one, other in zip(exact, tiles, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_no_method_goes_below_the_optimum_of_logistic_regression():
    result = train("wine", IDEAL, seeds=2, steps=20)
    for method in result["methods"]:
        for curve, optimum in zip(method["train_loss"], result["optimal_train_loss"], strict=True):
            assert min(curve) > optimum - 1e-9


def test_device_that_comes_with_the_package_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = learning.train("fair", Path("board-1"), seeds=1, steps=2)
    assert result["provenance"]["device_sha256"] == device_hash(load_device("board-1"))
    assert json.loads((tmp_path / "training.json").read_text())["tasks"]["fair"] == result


def test_tasks_gather_in_one_file(tmp_path):
    content = describe_device(rough_device(0.01, 3))
    write_json(tmp_path / "device.json", content)
    learning.train("fair", tmp_path / "device.json", seeds=1, steps=2)
    kept = json.loads((tmp_path / "training.json").read_text())["tasks"]["fair"]
    learning.train("wine", tmp_path / "device.json", seeds=1, steps=2)
    both = json.loads((tmp_path / "training.json").read_text())
    assert both["schema"] == "tngd.training/1"
    assert list(both["tasks"]) == ["fair", "wine"]
    assert both["tasks"]["fair"] == kept
