"""Calibration from recorded readings, on made-up records whose parts, gains and offsets are known.

Bounds are those of the χ² of all parameters at a false-alarm rate of 1e-5, fixed beforehand; nothing is drawn again.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from cases import M_MATRIX
from compare import FALSE_ALARM, NORMAL_BOUND
from scipy import stats
from simulated import write_record

from circuits import Conditions, Copy, InputError, assemble
from circuits.calibration import calibrate_recorded, folder
from circuits.copies import nominal_copy
from circuits.model import load_device
from circuits.model.pairs import pair_model
from circuits.netlist import write_design
from circuits.ou import lagged_covariances
from circuits.statistics import Recorded
from circuits.statistics.estimators import law_about_mean, mean_covariance
from circuits.statistics.recorded import RecordSummary
from circuits.statistics.streaming import Clipping
from circuits.synthesis import BoardOptions, make_design

COPIES, READINGS = 10, 400_000


def made_up(made, copy, readout, offset, readings, rng) -> Recorded:
    """A record without gaps whose covariance about the mean is drawn from the law of the copy's own circuit."""
    rho = lagged_covariances(assemble(made.board, made.program, copy, Conditions()), made.program.period, held=False)
    rho = rho * np.outer(readout, readout)
    pairs = np.clip(readings - np.arange(len(rho)), 0, None)
    law, V = law_about_mean(rho, pairs), mean_covariance(rho, pairs)
    i, j = np.triu_indices(len(V))
    S = law.mean.copy()
    S[i, j] += np.linalg.cholesky(law.covariance) @ rng.normal(size=len(i))
    S[j, i] = S[i, j]
    mean = offset + np.linalg.cholesky(V) @ rng.normal(size=len(V))
    error = np.sqrt(np.diag(V))
    about = RecordSummary(copy.name, 27.0, made.program.period, readings, 0, 0, 0, 0, {}, (), (), mean, error)
    return Recorded(about, S, V, S[None], np.array([readings]), pairs, None, pairs)


@pytest.mark.parametrize("readout", [0.0, 0.02])
def test_posterior_is_that_of_the_parts_and_gains_the_records_were_made_from(readout):
    made = make_design(M_MATRIX, tolerance=0.02, seed=6)
    model, rng = pair_model(made.board), np.random.default_rng(12)
    n = len(made.board.cells)
    records, truths = [], []
    for k in range(COPIES):  # parts and gains as the prior says, on plain cells one part a parameter
        theta, r = 1 + model.spreads * rng.normal(size=len(model.names)), 1 + readout / 3**0.5 * rng.normal(size=n)
        gains = dict(nominal_copy(made.board).gains)
        gains |= {
            made.board.parts[m[0]].name: theta[row.argmax()]
            for m, row in zip(model.pairs, abs(model.exponents), strict=True)
        }
        records.append(made_up(made, Copy(f"copy-{k + 1}", gains), r, rng.normal(size=n) * 1e-3, READINGS, rng))
        truths.append(np.concatenate([theta, r]) if readout else theta)
    found = calibrate_recorded(made, records, readout)
    square = 0.0
    for fit, truth in zip(found.fits.values(), truths, strict=True):
        off = fit.values - truth
        square += off @ np.linalg.solve(fit.covariance, off)
    count = COPIES * len(truths[0])
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], count)
    assert low < square < high
    first = next(iter(found.fits.values()))
    known = np.sqrt(np.diag(first.covariance)) / found.model.spreads
    assert known.min() < 0.95  # the data do say something
    inductances = [k for k, name in enumerate(found.model.names) if name.startswith("inductance")]
    assert known[inductances] == pytest.approx(1, abs=0.01)  # and nothing of what does not show
    assert {found.model.names[k] for k in inductances} <= set(found.device.fitted_on["undetermined"])


def test_offset_and_relative_gains_are_found_and_the_common_gain_is_not():
    made = make_design(M_MATRIX, tolerance=1e-4, seed=6)  # parts nearly exact: gains and a common factor are left
    rng, n = np.random.default_rng(3), 3
    r, offset = np.array([1.04, 0.97, 1.01]), np.array([2e-3, -5e-3, 0.0])
    record = made_up(made, made.copies[0], r, offset, 4_000_000, rng)
    found = calibrate_recorded(made, [record], 0.05)
    copy = found.device.copies[0]
    for i in range(n):
        gain, own = copy.readout_gains[i], copy.readout_offsets[i]
        assert gain.observed
        assert abs(gain.value - r[i]) < NORMAL_BOUND * gain.standard_error
        assert gain.standard_error < 0.005
        assert abs(own.value - offset[i]) < NORMAL_BOUND * own.standard_error
    rough = make_design(M_MATRIX, tolerance=0.05, seed=6)
    about = calibrate_recorded(rough, [made_up(rough, rough.copies[0], r, offset, 4_000_000, rng)], 0.05)
    common = about.device.fitted_on["copies"]["copy-1"]["common_gain"]
    # Temperature and the scale of all parts have as much room as the gain has, so its error hardly falls.
    assert common["standard_error"] > 0.5 * common["prior_standard_error"]
    assert common["with_temperature_standard_error"] < 2 * common["standard_error"]


def test_readings_in_a_file_are_calibrated_without_ngspice(tmp_path, no_ngspice):
    made = make_design(M_MATRIX, name="three", tolerance=0.05)
    write_design(made, tmp_path / "run")
    write_record(tmp_path / "readings.csv", made, made.copies[:2], 6000, made.program.period, 3)
    content = folder.calibrate_folder(tmp_path / "run", measured=tmp_path / "readings.csv")
    device = load_device(tmp_path / "run" / "device.json")
    assert [copy.name for copy in device.copies] == ["copy-1", "copy-2"]
    assert content["fitted_on"]["route"] == "measured"
    assert content["provenance"]["readings"] == "readings.csv"
    assert len(device.copies[0].readout_gains) == len(device.copies[0].readout_offsets) == 3
    chosen = content["fitted_on"]["reduced_order"]
    assert chosen["uncertainty"] > 1e-3
    assert json.loads((tmp_path / "run" / "device.json").read_text()) == content
    with pytest.raises(InputError, match="leave out --route"):
        folder.calibrate_folder(tmp_path / "run", "exact", True, measured=tmp_path / "readings.csv")
    with pytest.raises(InputError, match=r"device\.json exists already"):
        folder.calibrate_folder(tmp_path / "run", measured=tmp_path / "readings.csv")


def test_what_cannot_be_calibrated_is_refused_in_one_sentence():
    made = make_design(M_MATRIX)
    record = made_up(made, made.copies[0], np.ones(3), np.zeros(3), READINGS, np.random.default_rng(0))
    short = made_up(made, made.copies[0], np.ones(3), np.zeros(3), 100, np.random.default_rng(0))
    banks = make_design(M_MATRIX, choices=BoardOptions(bank_bits=2))
    warm = replace(record, summary=replace(record.summary, ambient=40.0))
    clipped = replace(record, summary=replace(record.summary, clipped=(Clipping("cell1", 0.1, 12, 0.01),)))
    for design, given, readout, sentence in (
        (banks, record, 0.01, "board with banks"),
        (made, warm, 0.01, "the readings are of 40 °C"),
        (made, clipped, 0.01, "cell1 of copy-1 has 12 clipped readings"),
        (made, short, 0.01, "record for longer"),
        (made, record, -0.1, "--readout-tolerance"),
        (made, record, float("nan"), "--readout-tolerance"),
    ):
        with pytest.raises(InputError, match=sentence) as told:
            calibrate_recorded(design, [given], readout)
        assert "\n" not in str(told.value)
