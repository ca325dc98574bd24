"""Boards with banks, calibrated on programs of their own in ngspice: parts, honest errors, targets no fit saw."""

import json
from functools import partial
from threading import Event

import numpy as np
import pytest
from cases import M_MATRIX, SMALL
from compare import FALSE_ALARM, assert_close
from conftest import needs_ngspice
from scipy.stats import norm
from simulated import truth

from circuits import Conditions, InputError, SimulationError, assemble, reading_covariance, spectrum
from circuits.calibration import calibrate_programs, fit, folder, held_out_programs
from circuits.calibration.discrepancy import draw_pairs
from circuits.calibration.experiments import random_program, soldered_training, training_programs
from circuits.calibration.fitting import fit_all
from circuits.calibration.held_out import observed_inverse, predicted, program_statistics
from circuits.calibration.observations import flattened
from circuits.files import write_json
from circuits.model import describe_device, load_device, predict
from circuits.model.device_file import SCHEMA, device_hash
from circuits.model.pairs import pair_model
from circuits.netlist import write_design
from circuits.parallel import side_by_side, silent
from circuits.simulation import measurement, run_programs
from circuits.synthesis import BoardOptions, make_design

BOARDS = {
    "differential": (SMALL, "active", BoardOptions(bank_bits=4), 0.02),
    "plain": (M_MATRIX, "auto", BoardOptions(bank_bits=4), 0.05),
    "plain, rough sources": (M_MATRIX, "auto", BoardOptions(bank_bits=3, source_tolerance=0.02), 0.02),
    "resistive": (SMALL, "active", BoardOptions(bank_bits=3, coupling="resistive"), 0.02),
}


@pytest.fixture(scope="module", params=BOARDS)
def calibrated(request):
    target, cells, choices, tolerance = BOARDS[request.param]
    made = make_design(target, cells=cells, choices=choices, tolerance=tolerance, name="banks", seed=2)
    return made, calibrate_programs(made)


@needs_ngspice
def test_parts_are_found_within_honest_errors(calibrated):
    made, found = calibrated
    model = pair_model(made.board)
    z = []
    for copy in made.copies:
        fit = found.fits[copy.name]
        z.append((fit.values - truth(model, copy)) / np.sqrt(np.diag(fit.covariance)))
        known = [k for k, name in enumerate(model.names) if "_bit_" in name or name.startswith("temperature")]
        off = (fit.values - truth(model, copy))[known] / model.spreads[known]
        # With sources of unknown power nothing tells the scale that all parts have in common.
        rough = any(name.startswith("power") for name in model.names)
        assert np.std(off) < 0.1
        assert rough or np.sqrt(np.mean(off**2)) < 0.1
    z = np.array(z)
    # Some 100 parameters of three copies, much correlated within a copy. On plain cells nothing is left out, and
    # the floor of the data is far above their errors.
    assert np.sqrt(np.mean(z**2)) < (3 if rough else 1.6)  # three copies of one unknown scale, or many unknowns
    assert np.abs(z).max() < 7
    if made.board.nodes_per_cell == 2:
        assert np.sqrt(np.mean(z**2)) > 0.4


@needs_ngspice
def test_held_out_targets_are_predicted(calibrated):
    made, found = calibrated
    held = found.held_out
    assert held.intervals == len(made.copies) * 6 * 6
    assert set(held.programs).isdisjoint(program.name for program in found.training.programs)
    assert set(held.also) == ({"settling", "covariance"} if made.board.inputs else {"settling"})
    for scores in (held, *held.also.values()):
        assert scores.intervals == held.intervals
        assert scores.improvement > 20
        if made.board.nodes_per_cell == 1:
            assert max(scores.errors) < 1e-4  # the model contains the truth
            assert min(scores.errors_uncalibrated) > 1e-3
        else:
            assert 0.3 < scores.z_rms < 1.5
            assert scores.coverage_95 > 0.85  # of 108 intervals on three copies that share a fit each
            assert scores.joint_p > FALSE_ALARM


@needs_ngspice
def test_device_predicts_the_whole_circuit_of_any_program(calibrated):
    made, found = calibrated
    program = random_program(made.board, np.random.default_rng(77), "fresh")
    for k, copy in enumerate(made.copies):
        full = reading_covariance(assemble(made.board, program, copy, Conditions()))
        ours = reading_covariance(predict(found.device, k, program))
        assert np.linalg.norm(ours - full) < 5e-4 * np.linalg.norm(full)


@needs_ngspice
def test_device_file_of_banks_round_trips_and_is_checked(calibrated, tmp_path):
    _, found = calibrated
    path = tmp_path / "device.json"
    write_json(path, describe_device(found.device))
    again = load_device(path)
    assert again.copies == found.device.copies
    assert device_hash(again) == device_hash(found.device)
    assert json.dumps(describe_device(again)) == json.dumps(describe_device(found.device))
    content = json.loads(path.read_text())
    assert content["schema"] == SCHEMA
    assert set(content["nominal"]) <= set(pair_model(again.board).names)
    name = next(name for name in content["copies"][0]["gains"] if "_bit_" in name)
    for damage in (
        lambda c: c["copies"][0]["gains"].pop(name),
        lambda c: c["copies"][0]["gains"][name].update(value=-1.0),
        lambda c: c["copies"][0]["gains"][name].update(value=1.2),
        lambda c: c.pop("held_out"),
    ):
        broken = json.loads(json.dumps(content))
        damage(broken)
        write_json(path, broken)
        with pytest.raises(InputError, match="make it again"):
            load_device(path)


@needs_ngspice
def test_verb_calibrates_banks_without_a_verification(tmp_path):
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=2), copies=1, name="small")
    write_design(made, tmp_path / "run")
    with pytest.raises(InputError, match="leave out --samples"):
        folder.calibrate_folder(tmp_path / "run", "exact", samples=1000)
    content = folder.calibrate_folder(tmp_path / "run")
    chosen = content["fitted_on"]["reduced_order"]
    assert 3 <= chosen["order"] <= chosen["states"]
    assert chosen["sufficient"]
    assert chosen["errors"][str(chosen["order"])] <= chosen["uncertainty"]
    assert content["held_out"]["improvement"] > 20
    assert content["fitted_on"]["training_programs"] >= 6
    assert not (tmp_path / "run" / "training").exists()
    assert load_device(tmp_path / "run" / "device.json").copies[0].name == "copy-1"


@needs_ngspice
def test_sampled_programs_err_by_sampling_alone(tmp_path):
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=2), copies=1, tolerance=0.05, name="small")
    found = calibrate_programs(made, tmp_path, route="sampled", samples=2000, seed=8)
    held = found.held_out
    assert found.device.fitted_on["route"] == "sampled"
    # z of entries that share one fit; the largest of them at a false-alarm rate of 1e-5, exact runs judging.
    entries = np.abs(_scores_of(made, found))
    assert entries.max() < norm.isf(FALSE_ALARM / 2 / entries.size)
    assert held.improvement > 1
    error = np.array(held.errors)
    assert 1e-4 < np.median(error) < 0.02  # 14 programs of 2000 readings, each worth some hundred independent ones
    assert any(name.startswith("inductance") for name in found.device.fitted_on["undetermined"])  # do not show
    again = calibrate_programs(made, tmp_path, route="sampled", samples=2000, seed=8)
    assert describe_device(again.device) == describe_device(found.device)


def _scores_of(made, found) -> np.ndarray:
    """(predicted - true inverse)/error of held-out programs, the truth by assembly of the copy's own parts."""
    fit, draws, z = found.fits["copy-1"], draw_pairs(found.model, made.seed), []
    for program in held_out_programs(made.program, made.board, made.seed):
        told = predicted(found.model, program_statistics(found.model, program, draws), fit)["inverse"]
        S = reading_covariance(assemble(made.board, program, made.copies[0], Conditions()))
        i, j = np.triu_indices(len(S))
        scale = np.where(i == j, 1, 2**0.5)
        off = (told.value - observed_inverse(made.board, program, S, None))[i, j] * scale
        z.append(off / np.sqrt(np.diag(told.covariance)))
    return np.array(z)


@needs_ngspice
@pytest.mark.parametrize("only", [False, True])
def test_finished_runs_are_kept_and_failed_ones_tried_twice(only, tmp_path, monkeypatch):
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=2), copies=1)
    programs = [random_program(made.board, np.random.default_rng(k), f"p{k}") for k in range(2)]
    wanted = made.board, programs, made.copies, np.array([4e5, 1e6, 3e7]), tmp_path, silent, only
    first = run_programs(*wanted)[0]
    tried = []

    def fails(*_):
        tried.append(1)
        raise SimulationError("no result")

    monkeypatch.setattr(measurement, "spectral_run" if only else "exact_run", fails)
    again = run_programs(*wanted)[0]
    for before, after in zip(first, again, strict=True):
        assert only or (after.exact.covariance == before.exact.covariance).all()
        assert (after.exact.frequencies == before.exact.frequencies).all()
        assert (after.exact.spectra == before.exact.spectra).all()
    assert not tried
    (tmp_path / f"{first[1].sha256[:32]}.npz").write_bytes(b"damaged")
    with pytest.raises(SimulationError, match="no result"):
        run_programs(*wanted)
    assert len(tried) == 2


@needs_ngspice
def test_spectra_alone_are_those_of_the_exact_run():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=2), copies=1)
    programs = [random_program(made.board, np.random.default_rng(3), "p")]
    wanted = made.board, programs, made.copies, np.array([4e5, 1e6, 3e7, 1e9]), None, silent
    (whole,), (alone,) = (run_programs(*wanted, only)[0] for only in (False, True))
    assert_close(alone.exact.frequencies, whole.exact.frequencies, 1e-12)
    assert_close(alone.exact.spectra, whole.exact.spectra, 1e-10)


def test_copies_fitted_side_by_side_are_those_fitted_alone_to_the_last_bit():
    made = make_design(SMALL, cells="active", tolerance=0.02, copies=3, seed=4)
    model = pair_model(made.board)
    training = soldered_training(model, made.program, 0, draw_pairs(model, 0, 16))
    copies = {}
    for copy in made.copies:
        circuits = [assemble(made.board, program, copy, Conditions()) for program in training.programs]
        data = [
            flattened(spectrum(c, e.frequencies)[None])[0] for c, e in zip(circuits, training.evidence, strict=True)
        ]
        copies[copy.name] = training.evidence, data
    together = fit_all(model, copies, silent)
    assert list(together) == [copy.name for copy in made.copies]
    for name, known in copies.items():
        alone = fit(model, *known)
        assert (together[name].values == alone.values).all()
        assert (together[name].errors == alone.errors).all()


def test_work_beside_one_that_fails_or_is_interrupted_is_stopped():
    waited = []

    def works(stop):
        waited.append(stop.wait(60))

    for error in (InputError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            side_by_side([works, partial(_fails, error)])
    assert waited == [True, True]
    stop = Event()
    stop.set()
    made = make_design(M_MATRIX)
    model = pair_model(made.board)
    training = soldered_training(model, made.program, 0, draw_pairs(model, 0))
    data = [np.zeros(evidence.discrepancy.shape[1]) for evidence in training.evidence]
    with pytest.raises(InterruptedError, match="no longer wanted"):
        fit(model, training.evidence, data, stop)


def _fails(error, _):
    raise error


def test_training_tells_every_bit_and_says_what_it_does_not():
    board = make_design(SMALL, cells="active", choices=BoardOptions(bank_bits=4), tolerance=0.02).board
    model = pair_model(board)
    draws = draw_pairs(model, 0, 64)
    training = training_programs(model, 0, draws)
    left = dict(zip(model.names, training.uncertainty, strict=True))
    assert all(left[name] < 0.1 for name in model.names if "_bit_" in name or name.startswith("temperature"))
    again = training_programs(model, 0, draws)
    assert [program.values for program in again.programs] == [program.values for program in training.programs]
    # One program alone cannot tell the bits of a bank apart.
    alone = training_programs(model, 0, draws, most=1)
    assert max(u for name, u in zip(model.names, alone.uncertainty, strict=True) if "_bit_" in name) > 0.3
