"""Soldered boards on programs of their own in ngspice: what a fit of their parts predicts of targets it never saw."""

from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import assert_close
from conftest import needs_ngspice
from reference import kronecker_lyapunov
from scipy.linalg import expm

from circuits import Conditions, InputError, SimulationError, assemble, reading_covariance, spectrum
from circuits.calibration import calibrate_programs, folder
from circuits.calibration.discrepancy import draw_pairs
from circuits.calibration.experiments import near_program, soldered_program, soldered_training
from circuits.calibration.held_out import circuit_delays, delayed_and_slopes, delayed_covariance
from circuits.model import predict
from circuits.model.pairs import half_of, pair_model
from circuits.netlist import write_design
from circuits.ou import diffusion, drift
from circuits.simulation.ac import ExactRun
from circuits.synthesis import BoardOptions, Parasitics, make_design

EVERYTHING = Parasitics(winding=0.5, self_resonance=50e6, esr=0.05, coupled_coils=0.01, stray=1e-12)


@needs_ngspice
@pytest.mark.parametrize(
    ("target", "congruence", "options"),
    [
        (FAIR, FAIR_FACTOR, {}),
        (FAIR, None, {}),
        (M_MATRIX, None, {}),
        (M_MATRIX, None, {"choices": BoardOptions(coupling="resistive")}),
        (M_MATRIX, None, {"parasitics": EVERYTHING}),
    ],
)
def test_targets_no_fit_saw_are_predicted(target, congruence, options):
    made = make_design(target, congruence, seed=2, copies=1 if len(target) > 3 else 3, **options)
    found = calibrate_programs(made, targets=3)
    held = found.held_out
    assert set(held.programs).isdisjoint(program.name for program in found.training.programs)
    for scores in (held, *held.also.values()):
        assert scores.improvement > 20
        assert max(scores.errors) < 1e-4
        if made.board.nodes_per_cell == 1:
            assert max(scores.errors) < 1e-8  # the model contains the truth, parasitics and all
        assert scores.coverage_95 > 0.9
    unknown = set(found.device.fitted_on["undetermined"])
    left_out = {e.name for e in made.board.elements if all(e.name not in p.values for p in found.training.programs)}
    assert left_out <= unknown
    gains = found.device.copies[0].gains
    for name in left_out:  # nothing is known but the prior, and the interval says so
        assert not gains[name].observed
        assert gains[name].value == pytest.approx(1.0, abs=1e-12)
        assert gains[name].standard_error == pytest.approx(0.01 / 3**0.5)
    if "parasitics" not in options:
        rng = np.random.default_rng(99)
        fresh = soldered_program(made.board, rng, "fresh")
        full = reading_covariance(assemble(made.board, fresh, made.copies[0], Conditions()))
        assert_close(reading_covariance(predict(found.device, 0, fresh)), full, 2e-4)


def test_interval_of_an_element_no_program_populated_is_that_of_its_prior():
    made = make_design(FAIR, FAIR_FACTOR)
    model = pair_model(made.board)
    training = soldered_training(model, made.program, 0, draw_pairs(model, 0))
    shown = {name for program in training.programs for name in program.values}
    negative = {e.name for e in made.board.elements if e.kind == "negative"}
    assert {e.name for e in made.board.elements} - shown == negative  # every coupling either way, every ground element
    left = dict(zip(model.names, training.uncertainty, strict=True))
    assert all(left[name] == pytest.approx(1) for name in negative)
    assert max(left[name] for name in shown) < 0.1


def test_programs_of_soldered_boards_are_repeatable_and_fit_or_are_refused():
    made = make_design(FAIR, None)
    one, two = (soldered_program(made.board, np.random.default_rng(4), "p") for _ in range(2))
    assert one.values == two.values
    assert not any(name.startswith("negative") for name in one.values)
    near = near_program(made.board, made.program, np.random.default_rng(4), "near")
    assert any(name.startswith("negative") for name in near.values)
    assert 1e-3 < np.linalg.norm(near.target - made.program.target) / np.linalg.norm(made.program.target) < 0.5
    small = make_design(M_MATRIX).board
    small = replace(small, limits=replace(small.limits, smallest=1e-9))
    with pytest.raises(InputError, match="no random target goes on this board"):
        soldered_program(small, np.random.default_rng(0), "p")


def test_settling_matrix_is_the_laplace_transform_of_the_lagged_covariances():
    made = make_design(FAIR, FAIR_FACTOR)
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    delay = made.program.settling
    A, D = drift(circuit), diffusion(circuit)
    unit = np.sqrt(np.abs(np.diag(kronecker_lyapunov(A / 1e7, D / 1e7))))
    A, D = A * unit / unit[:, None], D / unit / unit[:, None]
    S = kronecker_lyapunov(A / 1e7, D / 1e7)
    H = np.concatenate([circuit.readout, np.zeros((8, len(A) - circuit.readout.shape[1]))], axis=1) * unit
    step = delay / 200  # Simpson's rule over 40 delays
    weights = np.array([1, *([4, 2] * 3999), 4, 1]) * step / 3
    Phi, x, total = expm(-A * step), S @ H.T, np.zeros((8, 8))
    for k, weight in enumerate(weights):
        total += weight * np.exp(-k * step / delay) / delay * (H @ x)
        x = Phi @ x
    assert_close(circuit_delays(circuit, (delay,))[0], (total + total.T) / 2, 1e-6)
    frequencies = np.geomspace(1e2, 1e12, 1001)
    run = ExactRun(reading_covariance(circuit), 0.0, frequencies, spectrum(circuit, frequencies))
    assert_close(delayed_covariance(run, delay), circuit_delays(circuit, (delay,))[0], 1e-8)
    with pytest.raises(SimulationError, match="does not add up"):
        delayed_covariance(ExactRun(run.covariance, 0.0, frequencies[::10], run.spectra[::10]), delay)


def test_derivatives_of_the_settling_are_those_of_its_differences():
    made = make_design(M_MATRIX)
    model = pair_model(made.board)
    half, delay, ones = half_of(model, made.program), made.program.settling, np.ones(len(model.names))
    K, J = delayed_and_slopes(half, ones, delay)
    for k in range(len(ones)):
        e = 1e-5 * (np.arange(len(ones)) == k)
        up, down = (delayed_and_slopes(half, ones + sign * e, delay)[0] for sign in (1, -1))
        assert np.abs((up - down) / 2e-5 - J[..., k]).max() < 1e-7 * np.abs(K).max()


@needs_ngspice
def test_verb_runs_programs_of_its_own_and_chooses_the_order(tmp_path):
    made = make_design(M_MATRIX, copies=1, name="small")
    write_design(made, tmp_path / "run")
    content = folder.calibrate_folder(tmp_path / "run", "programs", order=4)
    chosen = content["fitted_on"]["reduced_order"]
    assert (chosen["order"], chosen["states"], chosen["chosen"]) == (4, 6, "user")
    assert not chosen["sufficient"]
    assert chosen["errors"]["4"] > chosen["uncertainty"]
    assert content["held_out"]["improvement"] > 20
    again = folder.calibrate_folder(tmp_path / "run", "programs", force=True)
    assert again["fitted_on"]["reduced_order"]["order"] == 6  # the parts are known to 1e-7 and more
    with pytest.raises(InputError, match="--order is from 3"):
        folder.calibrate_folder(tmp_path / "run", "programs", force=True, order=2)
    with pytest.raises(InputError, match="--route is auto, exact, sampled or programs"):
        folder.calibrate_folder(tmp_path / "run", "nonsense", force=True)


def test_exact_parts_leave_nothing_to_calibrate():
    with pytest.raises(InputError, match="nothing to calibrate"):
        calibrate_programs(make_design(M_MATRIX, tolerance=0.0))
