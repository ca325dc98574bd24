"""Fewer states, predictions of targets, and boards drawn from what is known of a few."""

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import assert_close
from reference import kronecker_lyapunov
from scipy.linalg import expm
from simulated import measured_exactly
from test_retrim import known_device

from circuits.assembly import assemble, states
from circuits.board import Conditions
from circuits.calibration import calibrate
from circuits.choices import Choices
from circuits.design import make_design
from circuits.device import draw_device, ideal_device, load_device, predict
from circuits.ensemble import draw_boards, ensemble, kind_of
from circuits.errors import InputError
from circuits.layout import build_board
from circuits.ou import diffusion, drift, reading_covariance
from circuits.pairs import pair_model
from circuits.reduction import reduce_order
from circuits.store import write_json
from circuits.synthesis import reprogram

SMALL = np.array([[1.0, 0.1, -0.08], [0.1, 1.0, 0.05], [-0.08, 0.05, 1.0]])
CIRCUITS = {
    "banks": (M_MATRIX, "auto", Choices(bank_bits=3)),
    "differential, raw": (SMALL, "active", Choices()),
    "resistive banks": (M_MATRIX, "auto", Choices(coupling="resistive", bank_bits=3)),
    "one cell": (np.array([[3.0]]), "auto", Choices()),
}


@pytest.fixture(scope="module", params=CIRCUITS)
def circuit(request):
    target, cells, choices = CIRCUITS[request.param]
    made = make_design(target, cells=cells, choices=choices)
    return assemble(made.board, made.program, made.copies[0], Conditions())


def settled(A, D, H, times) -> list[np.ndarray]:
    """Covariance of the readings from rest at these times, by the literal Kronecker solution."""
    S = kronecker_lyapunov(A, D)
    return [H @ (S - expm(-A * t) @ S @ expm(-A * t).T) @ H.T for t in times]


def test_errors_of_the_reduced_process_are_what_it_says(circuit):
    A, D = drift(circuit), diffusion(circuit)
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[1]))], axis=1)
    unit = np.sqrt(np.abs(D).max()), np.abs(A).max()
    scale = np.concatenate([np.full(len(circuit.capacitance), 1.0), np.full(circuit.coils.shape[1], 1 / unit[1])])
    A, D, H = A * scale / scale[:, None], D / np.outer(scale, scale), H * scale
    slow = 1 / np.linalg.eigvals(A).real.min()
    times = [0.3 * slow, slow, 1e3 * slow]
    full = settled(A, D, H, times)
    n = len(H)
    for order in {n, min(2 * n, states(circuit))}:
        found = reduce_order(circuit, order)
        assert (found.order, found.states) == (order, states(circuit))
        less = settled(found.drift, found.diffusion, found.readout, times)
        size = np.linalg.norm(full[-1])
        stationary = np.linalg.norm(full[-1] - less[-1]) / size
        assert stationary == pytest.approx(found.covariance_error, rel=1e-3, abs=1e-9)
        assert max(np.linalg.norm(a - b) for a, b in zip(full, less, strict=True)) / size < found.settling_error + 1e-3


def test_default_order_is_the_smallest_within_the_error(circuit):
    found = reduce_order(circuit, error=1e-3)
    assert max(found.covariance_error, found.settling_error) <= 1e-3
    if found.order > len(circuit.readout):
        fewer = reduce_order(circuit, found.order - 1)
        assert max(fewer.covariance_error, fewer.settling_error) > 1e-3
    with pytest.raises(InputError, match="--order is from"):
        reduce_order(circuit, len(circuit.readout) - 1)
    with pytest.raises(InputError, match="--order is from"):
        reduce_order(circuit, states(circuit) + 1)


def test_switch_nodes_reduce_away_and_coils_do_not():
    made = make_design(FAIR, FAIR_FACTOR, choices=Choices(bank_bits=4))
    whole = predict(ideal_device(made.board), 0, made.program)
    found = reduce_order(whole, error=1e-3)
    assert states(whole) > 30
    assert found.order == 16
    assert reduce_order(whole, 8).covariance_error > 0.1


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
def test_prediction_of_a_target_is_that_of_the_whole_copy(coupling):
    made = make_design(M_MATRIX, choices=Choices(bank_bits=4, coupling=coupling), tolerance=0.05)
    device = known_device(made)
    target = np.array([[1.0, -0.2, -0.1], [-0.2, 1.2, -0.15], [-0.1, -0.15, 0.9]])
    found = device.program(target, 1)
    full = assemble(made.board, reprogram(made.board, target, None, "target"), made.copies[1], Conditions())
    assert_close(found.covariance, reading_covariance(full), 1e-9)
    assert found.settling == pytest.approx(1 / np.linalg.eigvals(drift(full)).real.min(), rel=1e-6)
    assert_close(found.inverse, np.linalg.inv(target), 0.2)
    A, D = found.drift, found.diffusion
    H = np.concatenate([found.circuit.readout, np.zeros((3, len(A) - found.circuit.readout.shape[1]))], axis=1)
    assert (np.linalg.eigvalsh(D) > -1e-9 * np.abs(D).max()).all()
    assert H.shape == (3, len(A))
    if coupling == "resistive":
        assert_close(found.columns, full.readout @ np.linalg.inv(full.conductance) @ full.readout.T, 1e-9)
    else:
        assert not found.columns.any()
    with pytest.raises(InputError, match="copies 0 to 2"):
        device.under(made.program, 3)
    with pytest.raises(InputError, match="3 cells"):
        device.program(np.eye(2))


def test_prediction_on_a_soldered_board_programs_its_elements():
    made = make_design(FAIR, FAIR_FACTOR)
    device, _ = calibrate(made, measured_exactly(made), "exact")
    found = device.program(FAIR, precondition=FAIR_FACTOR)
    assert found.program.values == made.program.values
    assert_close(
        found.covariance, reading_covariance(assemble(made.board, made.program, made.copies[0], Conditions())), 2e-4
    )


def test_ensemble_finds_the_spread_of_the_parts_and_draws_boards_of_any_size():
    made = make_design(M_MATRIX, choices=Choices(bank_bits=4), tolerance=0.05, copies=40, seed=3)
    known = ensemble(known_device(made))
    bits = known.spreads["bit"]
    assert bits.count == 40 * 12
    # Uniform parts alone: deviation tolerance/√3; the variance of 480 uniform parts is known to 4 %, 7 sigma are 14 %.
    assert bits.deviation == pytest.approx(0.05 / np.sqrt(3), rel=0.15)
    assert bits.interval[0] < bits.deviation < bits.interval[1]
    board = build_board(6, "plain", 0.05, Choices(bank_bits=2), 0.5)
    drawn = draw_boards(known, board, 30, seed=4)
    assert drawn == draw_boards(known, board, 30, seed=4) != draw_boards(known, board, 30, seed=5)
    values = [e.value for copy in drawn.copies for name, e in copy.gains.items() if kind_of(name) == "bit"]
    assert len(values) == 30 * 15 * 2
    assert np.std(values) == pytest.approx(bits.deviation, rel=0.25)
    assert set(drawn.copies[0].gains) == set(ideal_device(board).copies[0].gains)
    with pytest.raises(InputError, match="nothing is known"):
        draw_boards(known, build_board(3, "plain", 0.05), 2, 0)
    with pytest.raises(InputError, match="observed no kind"):
        ensemble(ideal_device(board))


def test_few_copies_draw_widely():
    made = make_design(M_MATRIX, choices=Choices(bank_bits=4), tolerance=0.05, copies=40, seed=3)
    device = known_device(made)
    few = ensemble(type(device)(device.board, device.copies[:2], {}))
    many = ensemble(device)
    width = [
        spread["temperature"].interval[1] / spread["temperature"].interval[0] for spread in (few.spreads, many.spreads)
    ]
    assert width[0] > 2 * width[1]
    drawn = draw_device(draw_boards(few, made.board, 5, 0), 0)
    assert drawn == draw_boards(few, made.board, 5, 0)


def test_device_of_another_schema_is_refused(tmp_path):
    write_json(tmp_path / "device.json", {"schema": "tngd.device/2"})
    with pytest.raises(InputError, match="does not say schema"):
        load_device(tmp_path / "device.json")


def test_every_kind_of_part_has_a_name_of_its_own():
    board = make_design(SMALL, cells="active", choices=Choices(bank_bits=2, source_tolerance=0.01)).board
    names = pair_model(board).names
    assert len(set(names)) == len(names)
    assert {kind_of(name) for name in names} == {"bit", "switch", "pad", "ground", "temperature", "inductance", "power"}
