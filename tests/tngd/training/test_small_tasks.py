"""Training: repeatable, comparable, and different on another device."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from simulated import rough_device

from circuits import InputError
from circuits.files import write_json
from circuits.model import Converter, Interface, describe_device, ideal_device, load_device
from circuits.model.device_file import device_hash
from circuits.synthesis import build_board
from tngd.device import tile_board
from tngd.report import task_curves, training_table
from tngd.report.results import task_sheet
from tngd.training import TASKS, TaskMethod, run_trial, small_tasks, train, train_once
from tngd.training.small_tasks import ordered_trials

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
    lines = (Path(__file__).parents[3] / "benchmarks" / "step_sizes.jsonl").read_text().splitlines()
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
    result = small_tasks.train_task_file("fair", Path("board-1"), seeds=1, steps=2)
    assert result["provenance"]["device_sha256"] == device_hash(load_device("board-1"))
    assert json.loads((tmp_path / "training.json").read_text())["tasks"]["fair"] == result


def test_tasks_gather_in_one_file(tmp_path):
    content = describe_device(rough_device(0.01, 3))
    write_json(tmp_path / "device.json", content)
    small_tasks.train_task_file("fair", tmp_path / "device.json", seeds=1, steps=2)
    kept = json.loads((tmp_path / "training.json").read_text())["tasks"]["fair"]
    small_tasks.train_task_file("wine", tmp_path / "device.json", seeds=1, steps=2)
    both = json.loads((tmp_path / "training.json").read_text())
    assert both["schema"] == "tngd.training/1"
    assert list(both["tasks"]) == ["fair", "wine"]
    assert both["tasks"]["fair"] == kept


@pytest.mark.parametrize(("name", "method", "steps"), [("wine", 0, 47), ("digits", 4, 4)])
def test_a_run_is_the_loop_written_by_hand(name, method, steps):
    """Same numbers to the last bit: 47 steps are recorded at 31 of them, 4 at all."""
    task, board = TASKS[name](), tile_board(rough_device(0.01, 3), interface=Interface(adc=Converter(8, 3.0)))
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(len(task.labels), generator=generator)
    test, rest = order[: round(0.2 * len(order))], order[round(0.2 * len(order)) :]
    torch.manual_seed(5)
    model = task.model()
    optimizer = task.methods[method].make(list(model.parameters()), board)

    def figures(rows):
        with torch.no_grad():
            out = model(task.features[rows])
            guess = out.argmax(dim=1) if name == "digits" else out[:, 0] > 0
            return float(task.loss.value(out, task.labels[rows])), float((guess == task.labels[rows]).double().mean())

    at, curve, said = {round(k * steps / min(30, steps)) for k in range(31)}, [], []
    for step in range(steps + 1):
        if step in at:
            curve.append(figures(rest)[0])
        if step == steps:
            break
        rows = rest[torch.randint(len(rest), (task.batch,), generator=generator)]
        if name == "digits":
            optimizer.step(lambda rows=rows: (model(task.features[rows]), task.labels[rows]))
            said.append(optimizer.last)
        else:
            optimizer.zero_grad()
            task.loss.value(model(task.features[rows]), task.labels[rows]).backward()
            optimizer.step()
    found = train_once(task, task.methods[method], board, 5, steps)
    assert found.train_loss == curve
    assert (found.test_loss, found.test_accuracy) == figures(test)
    if said:
        assert found.tiles["deviation"] == pytest.approx(np.mean([each.deviation for each in said]), rel=1e-12)
        assert found.tiles["passive"] == pytest.approx(np.mean([each.passive for each in said]), rel=1e-12)
        assert found.tiles["unstable"] == sum(each.unstable for each in said)
        assert found.tiles["saturated"] == np.mean([each.saturated for each in said]) > 0
        assert found.tiles["clipped"] == pytest.approx(np.mean([each.clipped for each in said]), rel=1e-12)
    else:
        assert found.tiles is None


def test_what_the_converters_clip_is_in_the_results_and_in_the_table_if_there_is_any():
    clipping = replace(rough_device(0.01, 3), interface=Interface(adc=Converter(8, 2.0)))
    result = train("fair", clipping, seeds=2, steps=3)
    for name, method in by_name(result).items():
        if "calibrated" not in name:
            assert "tiles" not in method or method["tiles"]["saturated"] == method["tiles"]["clipped_fraction"] == 0
            continue
        # Of the 8 cells of the one tile: a range of 2 clips more than 1e-3 of readings above 0.6 of the largest rms.
        assert 1 <= method["tiles"]["saturated"] <= 8
        assert 0.001 < method["tiles"]["clipped_fraction"] < 0.05
        assert method["tiles"]["direction_deviation"] > 0.01
    found = training_table(result)
    assert found.columns[-1] == "saturated a step"
    assert [bool(row[-1]) for row in found.rows] == [False] * 3 + [True] * 3
    plain = training_table(train("fair", rough_device(0.01, 3), seeds=1, steps=1))
    assert plain.columns == found.columns[:-1]


class Stop(Exception):
    pass


def test_interrupted_training_goes_on_where_it_stopped(tmp_path):
    write_json(tmp_path / "device.json", describe_device(rough_device(0.01, 3)))
    how = {"seeds": 2, "steps": 8}
    seen = []
    whole = small_tasks.train_task_file(
        "wine", tmp_path / "device.json", tmp_path / "whole.json", **how, progress=lambda *x: seen.append(x)
    )
    jobs = 2 * len(METHODS)
    assert seen[-1][:2] == (8 * jobs, 8 * jobs)
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)

    def stopping(done, total, what):
        if done >= 8 * 7 + 3:  # in the middle of the eighth of twelve runs
            raise Stop

    out = tmp_path / "training.json"
    with pytest.raises(Stop):
        small_tasks.train_task_file("wine", tmp_path / "device.json", out, **how, progress=stopping)
    kept = sorted((tmp_path / "training.checkpoints").iterdir())
    assert len(kept) == 8
    ends = {path: path.stat().st_mtime_ns for path in kept}
    assert not out.exists()
    with pytest.raises(Stop):  # the finished seven are not made again, nor their files written
        small_tasks.train_task_file("wine", tmp_path / "device.json", out, **how, progress=stopping)
    assert sum(path.stat().st_mtime_ns == when for path, when in ends.items()) >= 7
    assert small_tasks.train_task_file("wine", tmp_path / "device.json", out, **how) == whole
    assert not (tmp_path / "training.checkpoints").exists()
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_seed_that_diverges_is_counted_and_left_out(monkeypatch):
    rates = itertools.cycle([0.1, np.inf])
    methods = (
        TaskMethod("one", "none", {"lr": 0.1}, lambda params, _: torch.optim.SGD(params, lr=next(rates))),
        TaskMethod("all", "none", {"lr": "inf"}, lambda params, _: torch.optim.SGD(params, lr=np.inf)),
    )
    monkeypatch.setitem(TASKS, "fair", lambda make=TASKS["fair"]: replace(make(), methods=methods))
    result = train("fair", IDEAL, seeds=2, steps=6)
    json.dumps(result, allow_nan=False)
    one, every = result["methods"]
    assert list(one["diverged"]) == ["1"]
    assert list(every["diverged"]) == ["0", "1"]
    assert one["train_loss"][1][-1] is None
    assert one["final"]["train_loss"] == {"mean": one["train_loss"][0][-1], "standard_error": None}
    assert every["final"] is None
    for sheet in (training_table(result), task_sheet(result)):
        assert [row[0] for row in sheet.rows] == ["one (1 of 2 diverged)", "all (2 of 2 diverged)"]
        assert sheet.rows[1][-5:] == ("",) * 5
    assert task_curves(result).startswith("<svg")


ON_TWO_CORES = "import os, sys; os.cpu_count = lambda: 2; sys.argv[0] = 'tngd';"


@pytest.fixture
def worker(monkeypatch):
    """Progress to be passed to `train` with 600 steps: the parent begins when a worker has trained for 50 of them."""
    worked = Event()

    def behind_the_worker(*given):
        assert worked.wait(120)
        return run_trial(*given)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(small_tasks, "run_trial", behind_the_worker)
    return lambda done, total, what: done >= 50 and worked.set()


def test_workers_change_no_number(tmp_path, worker, capfd):
    device = rough_device(0.01, 3)
    shared = train("fair", device, seeds=2, steps=50, progress=worker, kept=tmp_path / "kept")
    assert json.dumps(shared) == json.dumps(train("fair", device, seeds=2, steps=50))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_error_in_a_worker_is_raised_once_as_itself(tmp_path, worker, capfd):
    *_, (_, file), (_, last) = ordered_trials("fair", IDEAL, 2, 50, tmp_path)
    file.write_bytes(b"damaged")  # the second job of the worker
    with pytest.raises(InputError, match=f"{file.name} is no whole checkpoint"):
        train("fair", IDEAL, seeds=2, steps=50, progress=worker, kept=tmp_path)
    assert last.exists()
    assert capfd.readouterr() == ("", "")


def test_killed_training_leaves_no_worker(tmp_path):
    code = ON_TWO_CORES + (
        "import signal, threading, time; from pathlib import Path; from tngd.training import train_task_file\n"
        "def kill(*_):\n"
        "    if threading.current_thread() is not threading.main_thread():\n"
        "        print(time.time(), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_task_file('digits', Path('ideal'), Path('training.json'), 1, 20_000, progress=kill)"
    )
    place = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
    killed = subprocess.run([sys.executable, "-c", code], **place, capture_output=True, timeout=120, check=False)
    # A worker holds the pipe of stderr open: that everything is read means that it has ended.
    assert time.time() - float(killed.stdout) < 10
    assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, b"")


def test_ctrl_c_ends_workers_with_one_sentence_and_keeps_checkpoints(tmp_path):
    code = ON_TWO_CORES + "from tngd.__main__ import main; main()"
    call = [sys.executable, "-c", code, "train", "digits", "--device", "ideal", "--seeds", "1", "--steps", "2000"]
    place = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
    running = subprocess.Popen(call, **place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    _, file = ordered_trials("digits", load_device("ideal"), 1, 2000, tmp_path / "training.checkpoints")[-1]
    try:
        end = time.monotonic() + 120
        while not file.exists():  # the worker's first record
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        out, said = running.communicate(timeout=10)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130
    assert b"Traceback" not in said
    assert said.count(b"tngd: interrupted") == 1
    assert out == b""
    assert file.exists()
