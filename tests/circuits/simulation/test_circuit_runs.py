"""ngspice against the law of the very copy it ran, and an outsider's measurement from the deck alone."""

import json
import re
import subprocess

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, TARGETS, random_target
from compare import FALSE_ALARM, NORMAL_BOUND, assert_close
from conftest import needs_ngspice

from circuits import Conditions, assemble, reading_covariance, spectrum
from circuits.copies import draw_copies, nominal_copy
from circuits.netlist import circuit_text, write_design
from circuits.nodal import nominal_circuit, readout_matrix
from circuits.ou import nominal_hold_correction
from circuits.simulation import exact_run
from circuits.simulation.ngspice import run_deck
from circuits.simulation.transient import chunk_deck, run_chunk
from circuits.statistics import estimate_law, inversion_rule
from circuits.statistics.estimators import joint_chi_square
from circuits.statistics.moments import BLOCK, CHUNK
from circuits.synthesis import BoardOptions, BoardRequest, Parasitics, make_design
from circuits.synthesis.design import board_and_program

pytestmark = needs_ngspice
SAMPLES = 20_000


@pytest.mark.parametrize("name", TARGETS)
def test_nominal_board_inverts_its_target(name):
    target, congruence, _ = TARGETS[name]
    made = make_design(target, congruence, tolerance=0.0, copies=1)
    text = circuit_text(made.board, made.program, nominal_copy(made.board), Conditions())
    run = exact_run(made.board, made.program, text, np.array([1e6]))
    rule = inversion_rule(made)
    assert rule.error(rule.read(run.covariance)) <= 1e-6
    assert run.integration_error <= 1e-8


@pytest.mark.parametrize(
    ("size", "condition"),
    [*((size, condition) for size in (1, 2, 3, 4, 6, 8, 12, 16) for condition in (10, 100, 1e4)), (32, 100)],
)
def test_nominal_boards_of_random_targets_invert_them(size, condition):
    made = make_design(random_target(size, condition, size), tolerance=0.0, copies=1)
    text = circuit_text(made.board, made.program, nominal_copy(made.board), Conditions())
    rule = inversion_rule(made)
    assert rule.error(rule.read(exact_run(made.board, made.program, text, np.array([1e6])).covariance)) <= 1e-6


@pytest.mark.parametrize("name", [name for name in TARGETS if "1e6" not in name and "breast-cancer, raw" not in name])
def test_exact_run_of_a_copy_is_the_lyapunov_solution_of_its_own_values(name):
    target, congruence, _ = TARGETS[name]
    board, program = board_and_program(
        target, congruence, request=BoardRequest(tolerance=0.001 if "1e4" in name else 0.01)
    )
    copy = draw_copies(board, 2, 1)[0]
    run = exact_run(board, program, circuit_text(board, program, copy, Conditions()), np.array([8e5, 1.6e6]))
    circuit = assemble(board, program, copy, Conditions())
    assert_close(run.covariance, reading_covariance(circuit), 1e-6, "covariance")
    assert_close(run.spectra, spectrum(circuit, run.frequencies), 1e-9, "spectra")


@pytest.mark.parametrize("congruence", [None, FAIR_FACTOR])
def test_sampled_run_follows_the_law_of_its_copy(congruence):
    board, program = board_and_program(FAIR, congruence)
    copy = draw_copies(board, 3, 1)[0]
    deck = chunk_deck(board, program, circuit_text(board, program, copy, Conditions()), 17, SAMPLES)
    moments = run_chunk(board, program, deck, SAMPLES).moments
    assert moments.shape == (SAMPLES // BLOCK, 8, 8)
    law = estimate_law(assemble(board, program, copy, Conditions()), program.period, SAMPLES)
    assert joint_chi_square(moments.mean(axis=0), law)[2] > FALSE_ALARM


FAST = {
    "resistive with ESR": (2 * np.eye(5) - np.eye(5, k=1) - np.eye(5, k=-1), None, {"esr": 0.05}, 0),
    "resistive banks": (FAIR, FAIR_FACTOR, {}, 6),
    "ESR of 10 milliohm": (FAIR, FAIR_FACTOR, {"esr": 0.01}, 0),
}


@pytest.mark.parametrize("name", FAST)
def test_the_grid_reaches_the_fast_modes_that_parasitics_make(name):
    # Poles of hundreds of gigahertz, where a board without parasitics has none beyond a few megahertz.
    target, factor, parasitics, bits = FAST[name]
    choices = BoardOptions(coupling="resistive", bank_bits=bits)
    made = make_design(target, factor, choices=choices, parasitics=Parasitics(**parasitics), copies=1)
    copy = made.copies[0]
    text = circuit_text(made.board, made.program, copy, Conditions())
    run = exact_run(made.board, made.program, text, np.array([1e5]))
    circuit = assemble(made.board, made.program, copy, Conditions())
    assert_close(run.covariance, reading_covariance(circuit), 1e-6)


def test_a_long_record_shows_no_bias_beyond_the_held_noise_law():
    # 400,000 readings of one cell: the variance is known to 0.2 %, the hold takes 3 % away.
    board, program = board_and_program(np.array([[1.0]]))
    copy = nominal_copy(board)
    samples = 400_000
    deck = chunk_deck(board, program, circuit_text(board, program, copy, Conditions()), 5, samples)
    found = run_chunk(board, program, deck, samples).moments.mean()
    circuit = assemble(board, program, copy, Conditions())
    law = estimate_law(circuit, program.period, samples)
    assert abs(found - law.mean[0, 0]) < NORMAL_BOUND * np.sqrt(law.covariance[0, 0])
    assert abs(found - reading_covariance(circuit)[0, 0]) > NORMAL_BOUND * np.sqrt(law.covariance[0, 0])


def test_noise_follows_its_seed():
    board, program = board_and_program(np.array([[1.0, 0.2], [0.2, 0.7]]))
    text = circuit_text(board, program, nominal_copy(board), Conditions())

    def record(seed: int) -> np.ndarray:
        return run_deck(chunk_deck(board, program, text, seed, 4000), board.nodes, "chunk", 1)[0].voltages

    first, again, other = record(1), record(1), record(2)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_noise_of_different_seeds_is_independent():
    board, program = board_and_program(np.array([[1.0]]))
    text = circuit_text(board, program, nominal_copy(board), Conditions())
    x, y = (
        run_deck(chunk_deck(board, program, text, seed, SAMPLES), board.nodes, "chunk", 1)[0].voltages[:SAMPLES, 0]
        for seed in (11, 12)
    )
    law = estimate_law(assemble(board, program, nominal_copy(board), Conditions()), program.period, SAMPLES)
    # Var of Σ x y / N is half that of Σ x² / N.
    assert abs(np.mean(x * y)) < NORMAL_BOUND * np.sqrt(law.covariance[0, 0] / 2)


def test_outsider_rebuilds_the_measurement_from_deck_and_board_file(tmp_path):
    made = make_design(FAIR, FAIR_FACTOR, name="fair")
    write_design(made, tmp_path / "run")
    subprocess.run(["ngspice", "-b", "copy-2.cir"], cwd=tmp_path / "run" / "netlists", capture_output=True, check=False)
    raw = (tmp_path / "run" / "netlists" / "copy-2.raw").read_bytes()
    header, _, body = raw.partition(b"Binary:\n")
    names = re.findall(r"^\t\d+\t(\S+)", header.decode(), re.M)
    table = np.frombuffer(body).reshape(-1, len(names))
    board = json.loads((tmp_path / "run" / "board.json").read_text())
    readings = np.stack(
        [
            table[:, names.index(f"v({cell['reading']['plus']})")]
            - table[:, names.index(f"v({cell['reading']['minus']})")]
            for cell in board["cells"]
        ],
        axis=1,
    )
    scale, X = board["scale"], np.array(board["scale"]["mapping"])
    factor = scale["capacitance_F"] / (scale["nodes_per_cell"] * scale["energy_kT_J"])
    covariance = readings.T @ readings / len(readings) + np.array(scale["hold_correction_V2"])
    inverse = X.T @ (factor * covariance) @ X
    rule = inversion_rule(made)
    law = estimate_law(
        assemble(made.board, made.program, made.copies[1], Conditions()), made.program.period, len(readings)
    )
    assert len(readings) in (CHUNK, CHUNK + 1)
    # Against the copy's own inverse nothing but the spread of the law is left: the discretisation is taken out.
    own = rule.read(law.mean + nominal_hold_correction(nominal_circuit(made.board, made.program), made.program.period))
    error, spread = np.linalg.norm(inverse - own) / np.linalg.norm(own), rule.spread(law)
    # The square of the error is a sum of 36 squares; three times its mean is beyond 1e-5.
    assert error < np.sqrt(3) * spread
    assert np.linalg.norm(own - rule.inverse) / np.linalg.norm(own) < 0.01
    assert {source["node"] for cell in board["cells"] for source in cell["sources"]} == set(made.board.nodes)
    assert readout_matrix(made.board).shape == (8, 16)
