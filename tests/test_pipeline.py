"""The verbs alone and chained: one command does what the six do, and goes on where it was stopped."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from threading import Event
from time import sleep

import numpy as np
import pytest
from conftest import needs_ngspice

from circuits import InputError, verification
from circuits.calibration import folder as calibration_folder
from circuits.files import write_json
from circuits.model import describe_device, ideal_device
from circuits.synthesis import build_board, named_fisher
from tngd import pipeline
from tngd.__main__ import main
from tngd.training import small_tasks

SHORT = ["--samples", "1000", "--seeds", "1", "--steps", "3"]


def command(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tngd", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


class Page(HTMLParser):
    """Collects what a browser would have to fetch, and the text of the page."""

    def __init__(self, text: str):
        super().__init__()
        self.outside, self.text, self.svgs = [], "", 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.svgs += tag == "svg"
        self.outside += [value for name, value in attributes if name in ("src", "data") or (tag == "link")]
        self.outside += [tag] if tag == "script" else []

    def handle_data(self, data):
        self.text += data


@needs_ngspice
def test_verbs_alone_give_the_same_as_the_chain(tmp_path, monkeypatch):
    chain, alone = tmp_path / "chain", tmp_path / "alone"
    assert command(monkeypatch, "run", "wine", "--out", str(chain), *SHORT) == 0
    T, F = alone / "T.npy", alone / "F.npy"
    assert command(monkeypatch, "fisher", "wine", "--out", str(alone / "zero.npy"), "--factor", str(T)) == 0
    assert command(monkeypatch, "fisher", "wine", "--at", "fit", "--out", str(F)) == 0
    board = alone / "board"
    words = ["--precondition", str(T), "--name", "wine", "--cells", "active"]
    assert command(monkeypatch, "design", str(F), "--out", str(board), *words) == 0
    assert command(monkeypatch, "verify", str(board), "--samples", "1000") == 0
    assert command(monkeypatch, "calibrate", str(board)) == 0
    for task in ("wine", "digits"):
        words = ["--device", str(board / "device.json"), "--seeds", "1", "--steps", "3"]
        assert command(monkeypatch, "train", task, *words) == 0
    assert command(monkeypatch, "report", str(board)) == 0
    F_name, same = json.loads((board / "board.json").read_text()), chain / "preconditioned" / "board.json"
    assert F_name["program"] == json.loads(same.read_text())["program"]
    for path in (board / "netlists").iterdir():
        assert path.read_bytes() == (chain / "preconditioned" / "netlists" / path.name).read_bytes()
    assert (board / "statistics.npz").read_bytes() == (chain / "preconditioned" / "statistics.npz").read_bytes()
    tasks = [json.loads((folder / "training.json").read_text())["tasks"] for folder in (board, chain)]
    for task in ("wine", "digits"):
        assert tasks[0][task]["methods"] == tasks[1][task]["methods"]
    # A named target is the same as its file.
    named = alone / "named"
    words = ["--at", "fit", "--precondition", "zero", "--cells", "active"]
    assert command(monkeypatch, "design", "wine", "--out", str(named), *words) == 0
    assert json.loads((named / "board.json").read_text())["program"] == F_name["program"]


@needs_ngspice
def test_interrupted_run_goes_on_where_it_stopped_does_everything_and_says_where_the_report_is(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "fair"
    with monkeypatch.context() as patch:
        patch.setattr(small_tasks, "train", _interrupt)
        assert command(patch, "run", "fair", "--out", str(out), *SHORT) == 130
    assert "the same command again" in capsys.readouterr().err
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "run.json"}
    assert len(kept) == 31
    assert command(monkeypatch, "run", "fair", "--out", str(out), *SHORT, "--seed", "1") == 2
    assert "other options" in capsys.readouterr().err
    assert command(monkeypatch, "run", "fair", "--out", str(out), *SHORT) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == str(out / "report.html")
    assert "Relative error of the inverse" in printed.out
    assert "train digits" in printed.err
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    each = {"board.json", "verification.json", "statistics.npz", "device.json"}
    each |= {"bom.csv", "board.net", "schematic.svg", "design.md", "lib/spu_cells.lib"}
    each |= {f"netlists/{deck}.cir" for deck in ("nominal", "copy-1", "copy-2", "copy-3")}
    assert files == {f"{kind}/{name}" for kind in ("raw", "preconditioned") for name in each} | {
        "fisher-zero.npy",
        "fisher-zero.json",
        "fisher-fit.npy",
        "fisher-fit.json",
        "factor-zero.npy",
        "training.json",
        "report.html",
        "run.json",
    }
    page = Page((out / "report.html").read_text())
    assert not page.outside
    assert page.svgs >= 12
    for word in ("Preconditioned programming", "copy-3", "Training: fair", "Training: digits", "sha256", "ngspice"):
        assert word in page.text
    assert not re.search(r"\bnan\b|\bNone\b|Undefined", page.text)
    raw, preconditioned = (
        json.loads((out / kind / "verification.json").read_text()) for kind in ("raw", "preconditioned")
    )
    assert "negative" in raw["step"]
    assert "negative" not in preconditioned["step"]
    assert raw["population"]["single_median"] > 8 * preconditioned["population"]["single_median"]


def _interrupt(*_, **__):
    raise KeyboardInterrupt


@needs_ngspice
def test_error_on_one_board_ends_the_other_is_said_once_and_the_run_goes_on_afterwards(tmp_path, monkeypatch, capsys):
    out, real = tmp_path / "fair", verification.verify_folder
    other, told = Event(), []

    def failing(folder, inquiry, force, progress):
        if folder.name == "raw":
            assert other.wait(60)
            raise InputError("no such thing")

        def watched(*word):
            other.set()
            told.append(word)
            sleep(0.5)
            progress(*word)

        return real(folder, inquiry, force=force, progress=watched)

    with monkeypatch.context() as patch:
        patch.setattr(verification, "verify_folder", failing)
        assert command(patch, "run", "fair", "--out", str(out), *SHORT) == 2
    error = capsys.readouterr().err
    assert error.count("no such thing") == 1
    assert "calibrate" not in error
    assert not (out / "preconditioned" / "verification.json").exists()
    assert len(told) < 8
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("board.json")}
    assert len(kept) == 2
    assert command(monkeypatch, "run", "fair", "--out", str(out), *SHORT) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@needs_ngspice
def test_raw_matrix_that_no_copy_holds_is_reported_and_the_preconditioned_one_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = pipeline.RunOptions("breast-cancer", samples=1000, seeds=1, steps=2)
    pipeline.run(options, out, False, lambda text: calibration_folder.silent)
    text = Page((out / "report.html").read_text()).text
    assert "refused" in text
    assert "is not positive definite" in text
    assert not (out / "raw").exists()
    result = json.loads((out / "preconditioned" / "verification.json").read_text())
    assert max(copy["exact"]["relative_error"] for copy in result["copies"]) < 0.02


def test_fisher_file_says_where_it_comes_from(tmp_path, monkeypatch):
    F, T = tmp_path / "F.npy", tmp_path / "T.npy"
    assert command(monkeypatch, "fisher", "diabetes", "--out", str(F), "--factor", str(T)) == 0
    matrix, factor = np.load(F), np.load(T)
    assert (matrix == named_fisher("diabetes", "zero")[0]).all()
    np.testing.assert_allclose(factor @ matrix @ factor.T, np.eye(8), atol=1e-12)
    about = json.loads(F.with_suffix(".json").read_text())
    assert (about["data_set"], about["at"], about["rows"]) == ("diabetes", "zero", 442)
    assert len(about["features"]) == 8


def test_report_of_a_board_that_was_only_designed_says_what_is_missing(tmp_path, monkeypatch):
    board = tmp_path / "board"
    assert command(monkeypatch, "design", "fair", "--out", str(board)) == 0
    assert command(monkeypatch, "report", str(board)) == 0
    text = Page((board / "report.html").read_text()).text
    assert "tngd verify" in text
    assert "tngd calibrate" in text


@needs_ngspice
@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_every_later_verb_works_after_either_method_alone(tmp_path, monkeypatch, method):
    board = tmp_path / "board"
    assert command(monkeypatch, "design", "fair", "--at", "fit", "--precondition", "zero", "--out", str(board)) == 0
    assert command(monkeypatch, "verify", str(board), "--method", method, "--samples", "1000") == 0
    assert command(monkeypatch, "calibrate", str(board)) == 0
    device = json.loads((board / "device.json").read_text())
    assert device["fitted_on"]["route"] == method
    words = ["--device", str(board / "device.json"), "--seeds", "1", "--steps", "2"]
    assert command(monkeypatch, "train", "fair", *words) == 0
    assert command(monkeypatch, "report", str(board)) == 0


def test_verbs_work_in_a_process_of_their_own_and_boards_load_no_torch(tmp_path):
    # In this process torch is loaded already, and would hide a verb that does not load it.
    call = "import sys; from tngd.__main__ import main; sys.argv = ['tngd', *sys.argv[1:]]; main()"
    watch = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    board, device = tmp_path / "board", tmp_path / "device.json"
    tiny = ideal_device(build_board(8, "differential"))
    write_json(device, describe_device(tiny))
    for words, loads in (
        (["design", "fair", "--out", board], False),
        (["report", board], False),
        (["train", "fair", "--device", device, "--seeds", "1", "--steps", "1"], True),
        (["--help"], False),
    ):
        done = subprocess.run(
            [sys.executable, "-c", watch + call, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), words
        assert done.stdout.splitlines()[-1] == str(loads), words
