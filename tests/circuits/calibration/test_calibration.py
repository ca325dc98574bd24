"""Calibration against the hidden truth: fitted gains, their standard errors, and targets the fit never saw.

Measurements are made by the assembly of the full circuit here, so that many copies cost little; one test uses
ngspice.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX, SMALL, random_target
from compare import FALSE_ALARM, assert_close
from conftest import needs_ngspice
from simulated import measured_by_sampling, measured_exactly, truth

from circuits import Conditions, InputError, assemble, reading_covariance
from circuits.calibration import calibrate
from circuits.calibration import folder as calibration_folder
from circuits.calibration.element_fit import ElementParameters, element_means, model_circuit
from circuits.copies import gains_of
from circuits.files import write_json
from circuits.model import describe_device, draw_device, ideal_device, load_device, predict
from circuits.model.device_file import device_hash
from circuits.model.ensemble import ensemble_of
from circuits.model.pairs import pair_model
from circuits.netlist import write_design
from circuits.nodal import assemble_gains
from circuits.ou import predicted_columns
from circuits.simulation.operating_point import SolveRun
from circuits.statistics import inversion_rule
from circuits.synthesis import BoardOptions, BoardRequest, build_board, make_design
from circuits.synthesis.design import board_and_program as synthesise
from circuits.verification import VerifyOptions, folder
from tngd.report import calibration_lines


def deviations(made, measured, route) -> tuple[np.ndarray, np.ndarray]:
    """(fitted - true) / standard error, and fitted - true, of every parameter of every copy."""
    _, fits = calibrate(made, measured, route)
    layout = ElementParameters(
        tuple(e.name for e in made.board.elements if e.name in made.program.values), len(made.board.cells)
    )
    truth = element_means(made.board, layout, gains_of(made.board, made.copies))
    values = np.array([fit.values for fit in fits.values()])
    errors = np.array([np.sqrt(np.diag(fit.covariance)) for fit in fits.values()])
    return (values - truth) / errors, values - truth


@pytest.mark.parametrize(("target", "congruence"), [(FAIR, FAIR_FACTOR), (FAIR, None)])
def test_standard_errors_of_exact_fits_are_honest(target, congruence):
    made = make_design(target, congruence, copies=12, seed=3)
    z, difference = deviations(made, measured_exactly(made), "exact")
    # About 50 parameters of 12 copies, correlated within a copy: the mean square is 1 within a few tenths.
    assert 0.6 < np.mean(z**2) < 1.6
    assert np.abs(z).max() < 7
    if congruence is not None:
        assert np.sqrt(np.mean(difference**2)) < 1e-4  # the parts themselves are off by 6e-3


def test_plain_cells_are_identified_to_the_floor_of_the_data():
    made = make_design(M_MATRIX, copies=3)
    z, difference = deviations(made, measured_exactly(made), "exact")
    assert np.abs(difference).max() < 1e-6
    assert np.abs(z).max() < 6


def test_standard_errors_of_sampled_fits_are_honest():
    made = make_design(M_MATRIX, copies=12, tolerance=0.05, seed=9)
    z, _ = deviations(made, measured_by_sampling(made, 2_000_000, seed=4), "sampled")
    assert 0.6 < np.mean(z**2) < 1.6


@pytest.mark.parametrize(("target", "congruence", "cells"), [(FAIR, FAIR_FACTOR, "auto"), (M_MATRIX, None, "auto")])
def test_resistive_boards_are_calibrated_on_solutions_and_spectra(target, congruence, cells):
    made = make_design(
        target,
        congruence,
        cells=cells,
        choices=BoardOptions(coupling="resistive", source_tolerance=0.03),
        copies=8,
        seed=5,
    )
    measured = measured_exactly(made)
    with pytest.raises(InputError, match="exact runs"):
        calibrate(made, measured, "exact")  # without the solutions
    for copy in made.copies:
        circuit = assemble(made.board, made.program, copy, Conditions())
        columns = predicted_columns(made.board, circuit, 1e-5)
        solved = SolveRun(1e-5, columns, np.zeros(0), np.zeros((0, len(columns))))
        measured[copy.name] = replace(measured[copy.name], solve=solved)
    device, fits = calibrate(made, measured, "exact")
    model = pair_model(made.board)
    populated = [k for k, name in enumerate(model.names) if name in made.program.values]
    z = []
    for k, copy in enumerate(made.copies):  # those that a program leaves out keep their prior
        fit, true = fits[copy.name], truth(model, copy)
        z.append((fit.values - true) / np.sqrt(np.diag(fit.covariance)))
        off = np.sqrt(np.mean((fit.values - true)[populated] ** 2))  # the parts themselves are off by 4e-3
        assert off < (2e-4 if made.board.nodes_per_cell == 2 else 1e-6)
        full = assemble(made.board, made.program, copy, Conditions())
        ours = predicted_columns_of(predict(device, k, made.program))
        assert_close(ours, predicted_columns(made.board, full, 1.0), 2e-4)
        assert_close(reading_covariance(predict(device, k, made.program)), reading_covariance(full), 5e-4)
    assert np.sqrt(np.mean(np.square(z))) < 1.6
    assert {e.observed for name, e in device.copies[0].gains.items() if name in made.program.values} == {True}


def predicted_columns_of(circuit) -> np.ndarray:
    return circuit.readout @ np.linalg.inv(circuit.conductance) @ circuit.readout.T


def test_fit_carries_over_to_targets_it_never_saw():
    made = make_design(FAIR, FAIR_FACTOR, seed=11)
    device, _ = calibrate(made, measured_exactly(made), "exact")
    signs = np.sign(made.program.matrix)
    improved = []
    for k in range(5):
        rng = np.random.default_rng(k)
        size = rng.uniform(0.02, 0.1, (8, 8))
        target = np.where(np.eye(8, dtype=bool), 1.0, signs * (size + size.T) / 2)
        board, program = synthesise(target, request=BoardRequest(cells="active"))
        assert board == made.board
        rule = np.linalg.inv(program.matrix)
        scale = board.unit / (2 * program.energy)
        for c, copy in enumerate(made.copies):
            true = scale * reading_covariance(assemble(board, program, copy, Conditions()))
            predicted = scale * reading_covariance(predict(device, c, program))
            improved.append(np.linalg.norm(true - rule) / np.linalg.norm(true - predicted))
            assert np.linalg.norm(true - predicted) / np.linalg.norm(true) < 2e-4
    assert np.median(improved) > 20


def test_elements_the_program_leaves_out_keep_their_prior():
    made = make_design(FAIR, FAIR_FACTOR)
    device, _ = calibrate(made, measured_exactly(made), "exact")
    for copy in device.copies:
        for element in made.board.elements:
            estimate = copy.gains[element.name]
            assert estimate.observed == (element.name in made.program.values)
            if not estimate.observed:
                parts = sum(part.element == element.name for part in made.board.parts)
                assert estimate.value == 1.0
                assert estimate.standard_error == pytest.approx(0.01 / np.sqrt(3 * parts))


def test_what_sampled_data_do_not_determine_is_not_observed_and_has_no_spread():
    made = make_design(M_MATRIX, copies=3, tolerance=0.05, seed=9)
    device, _ = calibrate(made, measured_by_sampling(made, 2_000_000, seed=4), "sampled")
    for copy in device.copies:
        for inductance in copy.inductances:  # the covariance hardly shows them: value and error are those of the prior
            assert not inductance.observed
            assert inductance.standard_error == pytest.approx(0.05 / np.sqrt(3), rel=0.01)
        assert any(gain.observed for gain in copy.gains.values())
    for kind, spread in ensemble_of(device).spreads.items():
        assert kind != "inductance" or spread.deviation > 0
    exact, _ = calibrate(made, measured_exactly(made), "exact")
    assert all(inductance.observed for copy in exact.copies for inductance in copy.inductances)


@needs_ngspice
def test_fit_to_ngspice_finds_the_parts_of_the_netlist(tmp_path):
    made = make_design(FAIR, FAIR_FACTOR, name="fair")
    write_design(made, tmp_path / "run")
    folder.verify_folder(tmp_path / "run", VerifyOptions("exact"))
    content = calibration_folder.calibrate_folder(tmp_path / "run")
    device = load_device(tmp_path / "run" / "device.json")
    assert content["device_sha256"] == device_hash(device)
    for k, copy in enumerate(made.copies):
        for element in made.board.elements:
            if element.name in made.program.values:
                true = np.mean([copy.gains[part.name] for part in made.board.parts if part.element == element.name])
                estimate = device.copies[k].gains[element.name]
                assert abs(estimate.value - true) < 7 * estimate.standard_error
                assert abs(estimate.value - true) < 3e-4
        full = reading_covariance(assemble(made.board, made.program, copy, Conditions()))
        assert_close(reading_covariance(predict(device, k, made.program)), full, 1e-4)


@needs_ngspice
@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_verb_judges_soldered_boards_on_held_out_programs(tmp_path, method):
    made = make_design(SMALL, cells="active", copies=2, tolerance=0.02, seed=6, name="small")
    write_design(made, tmp_path / "run")
    folder.verify_folder(tmp_path / "run", VerifyOptions(method, samples=20_000))
    content = calibration_folder.calibrate_folder(tmp_path / "run")
    fitted, held = content["fitted_on"], content["held_out"]
    assert fitted["route"] == method
    assert fitted["parameters"] == len(pair_model(made.board).names)
    left_out = {element.name for element in made.board.elements} - made.program.values.keys()
    assert left_out <= set(fitted["undetermined"])
    assert all(copy["excess"] >= 1 for copy in fitted["copies"].values())
    assert len(held["errors"]) == 2 * 5  # four random targets and one near the own, on either copy
    for scores in (held, *held["also"].values()):
        assert scores["joint_p"] > FALSE_ALARM  # intervals of one copy share its fit: their coverage may be anything
    assert load_device(tmp_path / "run" / "device.json").held_out["errors"] == list(held["errors"])
    assert not (tmp_path / "run" / "training").exists()
    printed = list(calibration_lines(content))
    assert printed[2].startswith(f"the data do not determine {len(fitted['undetermined'])} of {fitted['parameters']}")
    assert printed[3].startswith("held out: 10 programmings")


@needs_ngspice
def test_verb_without_ngspice_says_that_nothing_was_held_out(tmp_path, request):
    made = make_design(M_MATRIX, copies=1, name="small")
    write_design(made, tmp_path / "run")
    folder.verify_folder(tmp_path / "run", VerifyOptions("exact"))
    request.getfixturevalue("no_ngspice")
    content = calibration_folder.calibrate_folder(tmp_path / "run")
    assert content["held_out"] == {}
    printed = list(calibration_lines(content))
    assert printed[1:] == [
        "the data determine all of 12 parameters",
        "no held-out programmings: ngspice was not found to run any",
    ]


def test_device_file_round_trips_exactly(tmp_path):
    made = make_design(FAIR, FAIR_FACTOR)
    device, _ = calibrate(made, measured_exactly(made), "exact")
    write_json(tmp_path / "device.json", describe_device(device))
    again = load_device(tmp_path / "device.json")
    assert again == device
    assert json.dumps(describe_device(again)) == json.dumps(describe_device(device))


def test_reduced_circuit_of_the_ideal_device_holds_the_matrix():
    for target in (random_target(8, 1e4, 3), FAIR):
        board, program = synthesise(target, request=BoardRequest(cells="active"))
        circuit = predict(ideal_device(board), 0, program)
        assert_close(circuit.capacitance / board.unit, program.matrix, 1e-12)


def test_reduced_model_differs_from_the_full_circuit_in_second_order():
    made = make_design(FAIR, FAIR_FACTOR)
    layout = ElementParameters(tuple(e.name for e in made.board.elements if e.name in made.program.values), 8)
    rule = inversion_rule(made)
    from_pairs = []
    for tolerance in (0.01, 0.001):
        gains = 1 + (gains_of(made.board, made.copies[:1]) - 1) * tolerance / 0.01
        theta = element_means(made.board, layout, gains)[0]
        full = rule.read(reading_covariance(assemble_gains(made.board, made.program, gains, Conditions())[0]))
        reduced = rule.read(reading_covariance(model_circuit(made.board, made.program, layout, theta)))
        from_pairs.append(np.linalg.norm(full - reduced) / np.linalg.norm(full))
    assert from_pairs[0] < 2e-4
    assert from_pairs[0] / from_pairs[1] == pytest.approx(100, rel=0.2)


def test_drawing_a_device_is_repeatable_and_moves_unobserved_elements_only():
    made = make_design(FAIR, FAIR_FACTOR)
    device, _ = calibrate(made, measured_exactly(made), "exact")
    drawn, again, other = draw_device(device, 0), draw_device(device, 0), draw_device(device, 1)
    assert drawn == again != other
    for before, after in zip(device.copies, drawn.copies, strict=True):
        for name, gain in before.gains.items():
            assert abs(after.gains[name].value - gain.value) <= np.sqrt(3) * gain.standard_error
    assert draw_device(ideal_device(build_board(3, "plain")), 5) == ideal_device(build_board(3, "plain"))
