"""The verb verify: recorded readings, temperatures, charges, an error to reach, locks, kills and a full disk."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR
from compare import assert_close
from conftest import needs_ngspice
from simulated import write_record

from circuits import Conditions, InputError, assemble, reading_covariance
from circuits.calibration import folder as calibration_folder
from circuits.files import locked
from circuits.netlist import write_design
from circuits.statistics import inversion_rule
from circuits.synthesis import BoardOptions, make_design
from circuits.verification import VerifyOptions
from circuits.verification import folder as verification_folder
from tngd.report import render

TWO = np.array([[1.0, 0.3], [0.3, 1.0]])


def test_recorded_readings_take_the_place_of_ngspice(tmp_path, no_ngspice):
    made = make_design(TWO, name="two")
    write_design(made, tmp_path / "run")
    write_record(tmp_path / "readings.csv", made, made.copies[:2], 3000, made.program.period, 3)
    result = verification_folder.verify_folder(
        tmp_path / "run", VerifyOptions(measured=tmp_path / "readings.csv", copies=60)
    )
    assert [copy["name"] for copy in result["copies"]] == ["copy-1", "copy-2"]
    data = np.genfromtxt(tmp_path / "readings.csv", delimiter=",", skip_header=1, usecols=(2, 3)) / 1e3
    rule = inversion_rule(made)
    for k, copy in enumerate(result["copies"]):
        y = data[3000 * k : 3000 * (k + 1)]
        # About the sample mean, whose own covariance is added back by the law of the nominal board.
        centred = np.cov(y.T, bias=True)
        read = np.array(copy["sampled"]["inverse"])
        assert np.linalg.norm(read - rule.read(centred)) < 0.01 * np.linalg.norm(read)
        low, high = copy["sampled"]["interval"]
        assert low < copy["sampled"]["expected_error"] < high
        assert "exact" not in copy
        (budget,) = copy["budget"]
        assert [cause["name"] for cause in budget["causes"]] == ["interaction", "parts and sampling"]
        assert sum(cause["share"] for cause in budget["causes"]) == pytest.approx(budget["total"], rel=1e-9)
    assert result["recorded"][0]["readings"] == 3000
    assert json.loads((tmp_path / "run" / "measured.json").read_text())["provenance"]["readings"] == "readings.csv"
    assert not (tmp_path / "run" / "verification.json").exists()
    with pytest.raises(InputError, match=r"measured\.json exists already"):
        verification_folder.verify_folder(tmp_path / "run", VerifyOptions(measured=tmp_path / "readings.csv"))
    render(tmp_path / "run", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Readings of physical boards" in page
    assert "Not verified yet" in page


@needs_ngspice
def test_copies_at_another_temperature_are_run_there(tmp_path):
    write_design(make_design(TWO, name="two"), tmp_path / "run")
    result = verification_folder.verify_folder(tmp_path / "run", VerifyOptions("exact", ambient=70.0, copies=30))
    made = make_design(TWO, name="two")
    rule = inversion_rule(made)
    for copy, entry in zip(made.copies, result["copies"], strict=True):
        circuit = assemble(made.board, made.program, copy, Conditions(70.0))
        assert_close(entry["exact"]["inverse"], rule.read(reading_covariance(circuit)), 1e-6)
        assert entry["agrees"]
        names = [cause["name"] for cause in entry["budget"][0]["causes"]]
        assert names == ["tolerance", "temperatures", "ambient", "interaction"]
    assert result["ambient"] == 70.0
    with pytest.raises(InputError, match=r"calibrated at 27 °C, the runs in .* are of 70 °C"):
        calibration_folder.calibrate_folder(tmp_path / "run")


@needs_ngspice
def test_charges_are_read_on_capacitive_boards_alone_and_reported(tmp_path):
    write_design(make_design(FAIR, FAIR_FACTOR, name="fair", copies=2), tmp_path / "run")
    result = verification_folder.verify_folder(tmp_path / "run", VerifyOptions("exact", charge=True, copies=30))
    assert [row["name"] for row in result["charge"]["copies"]] == ["copy-1", "copy-2"]
    assert result["charge"]["nominal"]["relative_error"] < 0.01
    render(tmp_path / "run", tmp_path / "page.html")
    assert "Charge readout" in (tmp_path / "page.html").read_text()
    write_design(make_design(TWO, choices=BoardOptions(coupling="resistive")), tmp_path / "solver")
    with pytest.raises(InputError, match="charges are read on capacitive boards"):
        verification_folder.verify_folder(tmp_path / "solver", VerifyOptions(charge=True))


@needs_ngspice
def test_an_error_to_reach_sets_the_number_of_readings(tmp_path):
    write_design(make_design(TWO, name="two"), tmp_path / "run")
    result = verification_folder.verify_folder(tmp_path / "run", VerifyOptions("sampled", target_error=0.03, copies=30))
    errors = [copy["sampled"]["statistical_error"] for copy in result["copies"]]
    assert max(errors) <= 0.03
    assert max(errors) > 0.02
    assert result["copies"][0]["sampled"]["samples"] < 100_000


def test_two_runs_on_one_folder_are_refused_with_one_sentence(tmp_path):
    write_design(make_design(TWO, name="two"), tmp_path / "run")
    with locked(tmp_path / "run"):
        for work in (
            calibration_folder.calibrate_folder,
            lambda folder: verification_folder.verify_folder(folder, VerifyOptions()),
        ):
            with pytest.raises(InputError, match=r"another run is at work in .*; wait for it"):
                work(tmp_path / "run")
    with pytest.raises(InputError, match="tngd verify"):  # the lock is gone: something else is missing now
        calibration_folder.calibrate_folder(tmp_path / "run")


@needs_ngspice
def test_full_disk_is_one_sentence_and_leaves_no_half_file(tmp_path, monkeypatch):
    write_design(make_design(TWO, name="two"), tmp_path / "run")
    real, written = os.fdopen, []

    def full(descriptor, *arguments):
        stream = real(descriptor, *arguments)
        written.append(stream)
        if len(written) > 2:
            stream.write = lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return stream

    monkeypatch.setattr("circuits.files.os.fdopen", full)
    with pytest.raises(InputError, match="No space left on device; nothing was changed"):
        verification_folder.verify_folder(tmp_path / "run", VerifyOptions("sampled", 500, copies=30))
    monkeypatch.undo()
    assert not (tmp_path / "run" / "verification.json").exists()
    assert all(np.load(chunk)["moments"].shape == (1, 2, 2) for chunk in (tmp_path / "run" / "chunks").iterdir())
    verification_folder.verify_folder(tmp_path / "run", VerifyOptions("sampled", 500, copies=30))


@needs_ngspice
def test_killed_run_leaves_no_lock_and_goes_on_with_its_finished_chunks(tmp_path):
    write_design(make_design(TWO, name="two", copies=2), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "fresh")
    command = [sys.executable, "-m", "tngd", "verify", "run", "--method", "sampled", "--samples", "150000"]
    code = "import sys; from tngd.__main__ import main; sys.argv[0] = 'tngd'; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *command[3:]], cwd=tmp_path, start_new_session=True)
    end = time.monotonic() + 120
    while len(list((tmp_path / "run").glob("chunks/*.npz"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "chunks").glob("*.npz")}
    assert len(kept) >= 2
    assert not (tmp_path / "run" / "verification.json").exists()
    seen = {}

    def look(done, total, what):
        seen.update({path: path.stat().st_mtime_ns for path in kept if path.exists()})

    verification_folder.verify_folder(tmp_path / "run", VerifyOptions("sampled", 150_000, copies=30), progress=look)
    assert seen == kept  # not written again
    verification_folder.verify_folder(tmp_path / "fresh", VerifyOptions("sampled", 150_000, copies=30))
    for file in ("statistics.npz", "verification.json"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "fresh" / file).read_bytes()
