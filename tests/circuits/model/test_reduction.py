"""Fewer states, predictions of targets, and boards drawn from what is known of a few."""

import re
from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import assert_close
from reference import kronecker_lyapunov
from scipy.linalg import expm
from simulated import known_device, measured_exactly

from circuits import Conditions, InputError, assemble, reading_covariance
from circuits.calibration import calibrate
from circuits.files import write_json
from circuits.model import draw_device, ideal_device, load_device, predict, reduce_order
from circuits.model.ensemble import draw_boards, ensemble_of, kind_of
from circuits.model.pairs import pair_model
from circuits.model.reduction import choose_order
from circuits.nodal import states
from circuits.ou import diffusion, drift
from circuits.synthesis import BoardOptions, build_board, make_design
from circuits.synthesis.design import reprogram
from tngd.device import program_process
from tngd.device.process import stationary_law

SMALL = np.array([[1.0, 0.1, -0.08], [0.1, 1.0, 0.05], [-0.08, 0.05, 1.0]])
CIRCUITS = {
    "banks": (M_MATRIX, "auto", BoardOptions(bank_bits=3)),
    "differential, raw": (SMALL, "active", BoardOptions()),
    "resistive banks": (M_MATRIX, "auto", BoardOptions(coupling="resistive", bank_bits=3)),
    "one cell": (np.array([[3.0]]), "auto", BoardOptions()),
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


@pytest.mark.parametrize("order", [4, 5, 6])
def test_settling_is_compared_from_the_fastest_modes_on(order):
    """Switch nodes are gone long before the slowest mode has moved: what is dropped shows early, if at all."""
    made = make_design(np.array([[2.0, -0.5], [-0.5, 1.0]]), choices=BoardOptions(bank_bits=4))
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    assert states(circuit) == 7
    A, D = drift(circuit), diffusion(circuit)
    H = np.concatenate([circuit.readout, np.zeros((2, circuit.coils.shape[1]))], axis=1)
    rate = np.abs(A[: len(circuit.capacitance), : len(circuit.capacitance)]).max()
    scale = np.concatenate([np.ones(len(circuit.capacitance)), np.full(circuit.coils.shape[1], 1 / rate)])
    A, D, H = A * scale / scale[:, None], D / np.outer(scale, scale), H * scale
    found = reduce_order(circuit, order)
    rates = np.linalg.eigvals(A)
    times = np.geomspace(0.01 / np.abs(rates).max(), 8 / rates.real.min(), 600)
    full, less = settled(A, D, H, times), settled(found.drift, found.diffusion, found.readout, times)
    size = np.linalg.norm(H @ kronecker_lyapunov(A, D) @ H.T)
    worst = max(np.linalg.norm(a - b) for a, b in zip(full, less, strict=True)) / size
    assert 0.9 * worst <= found.settling_error <= 1.001 * worst + 1e-9


def test_default_order_is_the_smallest_within_the_error(circuit):
    readings, size = len(circuit.readout), states(circuit)
    found = choose_order([circuit], 1e-3)
    chosen = reduce_order(circuit, found.order)
    assert max(chosen.covariance_error, chosen.settling_error, chosen.mean_error) <= 1e-3
    assert (found.chosen, found.sufficient, found.warning) == ("calibration", True, None)
    assert found.kept == (None if found.order == size else found.order)
    for fewer in range(readings, found.order):
        assert reduce_order(circuit, fewer).error > 1e-3
    if found.order < size:
        assert found.errors[str(found.order)] == chosen.error
    for order in (readings - 1, size + 1):
        with pytest.raises(InputError, match=f"--order is from {readings} .* to {size}"):
            choose_order([circuit], 1e-3, order)
    with pytest.raises(InputError, match="--order is from"):
        reduce_order(circuit, readings - 1)


def test_all_states_are_the_circuit_itself(circuit):
    size = states(circuit)
    for order in (None, size, size + 1):
        found = reduce_order(circuit, order)
        assert (found.order, found.states, found.error) == (size, size, 0.0)
        assert np.array_equal(found.drift, drift(circuit))
        assert np.array_equal(found.diffusion, diffusion(circuit))
        assert np.array_equal(found.covariance, reading_covariance(circuit))


def test_covariance_columns_and_settling_are_those_of_the_reduced_process(circuit):
    found = reduce_order(circuit, len(circuit.readout))
    A, H, rate = found.drift, found.readout, np.abs(found.drift).max()
    S = kronecker_lyapunov(A / rate, found.diffusion / rate)
    assert_close(found.covariance, H @ S @ H.T, 1e-9)
    assert found.settling == pytest.approx(1 / np.linalg.eigvals(A).real.min())
    if circuit.coils.shape[1]:
        assert not found.columns.any()
        assert found.mean_error == 0.0
    else:
        exact = circuit.readout @ np.linalg.inv(circuit.conductance) @ circuit.readout.T
        off = np.linalg.norm(found.columns - exact) / np.linalg.norm(exact)
        assert found.mean_error == pytest.approx(off, rel=1e-6, abs=1e-12)
        assert off < 0.1


def test_order_that_is_not_good_enough_says_so_in_one_sentence():
    made = make_design(SMALL, cells="active")
    whole = predict(ideal_device(made.board), 0, made.program)
    found = choose_order([whole], 1e-4, 4, 2e-5)
    assert (found.chosen, found.sufficient, found.kept, found.pair_error) == ("user", False, 4, 2e-5)
    assert re.fullmatch(
        r"a process of 4 of 6 states is off by 0\.\d+, more than the calibration's uncertainty of 0\.0001; "
        r"leave out --order, or give a larger one",
        found.warning,
    )


def test_switch_nodes_reduce_away_and_coils_do_not():
    made = make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(bank_bits=4))
    whole = predict(ideal_device(made.board), 0, made.program)
    assert states(whole) > 30
    assert choose_order([whole], 2e-3).order == 16
    assert choose_order([whole], 1e-3).order == 17  # what settles first is off by 1.3e-3 with 16
    assert reduce_order(whole, 8).covariance_error > 0.1


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
def test_device_of_an_order_predicts_the_process_of_that_order(coupling):
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=3, coupling=coupling), tolerance=0.05)
    whole = known_device(made)
    order = 6 if coupling == "capacitive" else 3
    device = replace(whole, order=order)
    full, found = (each.under(made.program, 1) for each in (whole, device))
    same = reduce_order(full.circuit, order)
    assert full.drift.shape[0] == states(full.circuit) > order
    assert (full.covariance_error, full.settling_error, full.mean_error) == (0, 0, 0)
    assert found.drift.shape == found.diffusion.shape == (order, order)
    assert found.readout.shape == (3, order)
    assert (found.covariance_error, found.settling_error) == (same.covariance_error, same.settling_error)
    assert 0 < found.covariance_error < 0.05
    rate = np.abs(found.drift).max()
    S = kronecker_lyapunov(found.drift / rate, found.diffusion / rate)
    assert_close(found.covariance, found.readout @ S @ found.readout.T, 1e-9)
    assert found.settling == pytest.approx(1 / np.linalg.eigvals(found.drift).real.min())
    off = np.linalg.norm(found.covariance - full.covariance) / np.linalg.norm(full.covariance)
    assert off == pytest.approx(found.covariance_error, rel=1e-3)
    assert not np.array_equal(found.inverse, full.inverse)
    assert_close(found.inverse, full.inverse, 0.05)
    if coupling == "resistive":
        assert found.mean_error == same.mean_error > 0
        bias = 1e-6 * np.array([1.0, -2.0, 0.5])
        assert_close(device.under(made.program, 1, bias=bias).mean, same.columns @ bias, 1e-9)
    every = replace(whole, order=states(full.circuit)).under(made.program, 1)
    assert np.array_equal(every.covariance, full.covariance)
    with pytest.raises(InputError, match="--order is from 3"):
        replace(whole, order=2).under(made.program)


def test_order_reaches_the_process_in_torch():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=3), tolerance=0.05)
    device = replace(known_device(made), order=6)
    process, found = program_process(device, 2, made.program), device.under(made.program, 2)
    assert process.drift.shape == (6, 6)
    law = stationary_law(process)
    H = process.readout
    assert_close((H @ law.covariance @ H.mT).numpy(), found.covariance, 1e-9)


NO_TARGETS = {
    "not a number": (lambda P: P * np.where(np.eye(3) > 0, np.nan, 1), None, "target must be finite"),
    "infinite": (lambda P: P * np.where(np.eye(3) > 0, np.inf, 1), None, "target must be finite"),
    "asymmetric": (lambda P: P + np.triu(np.full((3, 3), 0.1), 1), None, "target must be symmetric"),
    "indefinite": (lambda P: P - 3 * np.eye(3), None, "target must be positive definite"),
    "singular": (lambda P: np.ones((3, 3)), None, "target must be positive definite"),
    "a vector": (lambda P: P[0], None, "target must have two dimensions"),
    "a number": (lambda P: P[0, 0], None, "target is empty|must have two dimensions"),
    "not square": (lambda P: np.ones((8, 3)), None, "target must be square, got 8 x 3"),
    "nothing": (lambda P: np.ones((0, 0)), None, "target is empty"),
    "complex": (lambda P: P + 0j, None, "target must be real"),
    "words": (lambda P: P.astype(str), None, "target must hold numbers"),
    "of another size": (lambda P: np.eye(2), None, "3 cells, the target is 2 x 2"),
    "no preconditioner": (lambda P: P, np.zeros((3, 3)), "preconditioner must be invertible"),
    "singular preconditioner": (lambda P: P, np.ones((3, 3)), "preconditioner must be invertible"),
    "preconditioner of another size": (lambda P: P, np.eye(2), "preconditioner must be 3 x 3"),
    "preconditioner not square": (lambda P: P, np.ones((3, 2)), "preconditioner must be square"),
    "preconditioner a vector": (lambda P: P, np.ones(3), "preconditioner must have two dimensions"),
    "preconditioner not a number": (lambda P: P, np.full((3, 3), np.nan), "preconditioner must be finite"),
}


@pytest.mark.parametrize("banks", [None, 3])
@pytest.mark.parametrize("case", NO_TARGETS)
def test_what_is_no_target_is_refused_in_one_sentence(case, banks):
    make, T, says = NO_TARGETS[case]
    device = ideal_device(make_design(M_MATRIX, choices=BoardOptions(bank_bits=banks)).board)
    with pytest.raises(InputError, match=says):
        device.program(make(M_MATRIX), precondition=T)


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
def test_prediction_of_a_target_is_that_of_the_whole_copy(coupling):
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4, coupling=coupling), tolerance=0.05)
    device = known_device(made)
    target = np.array([[1.0, -0.2, -0.1], [-0.2, 1.2, -0.15], [-0.1, -0.15, 0.9]])
    found = device.program(target, 1)
    full = assemble(made.board, reprogram(made.board, target, None, "target"), made.copies[1], Conditions())
    assert_close(found.covariance, reading_covariance(full), 1e-9)
    assert found.settling == pytest.approx(1 / np.linalg.eigvals(drift(full)).real.min(), rel=1e-6)
    assert_close(found.inverse, np.linalg.inv(target), 0.2)
    A, D, H = found.drift, found.diffusion, found.readout
    assert np.array_equal(H[:, : found.circuit.readout.shape[1]], found.circuit.readout)
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
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4), tolerance=0.05, copies=40, seed=3)
    known = ensemble_of(known_device(made))
    bits = known.spreads["bit"]
    assert bits.count == 40 * 12
    # Uniform parts alone: deviation tolerance/√3; the variance of 480 uniform parts is known to 4 %, 7 sigma are 14 %.
    assert bits.deviation == pytest.approx(0.05 / np.sqrt(3), rel=0.15)
    assert bits.interval[0] < bits.deviation < bits.interval[1]
    board = build_board(6, "plain", 0.05, BoardOptions(bank_bits=2), 0.5)
    drawn = draw_boards(known, board, 30, seed=4)
    assert drawn == draw_boards(known, board, 30, seed=4) != draw_boards(known, board, 30, seed=5)
    values = [e.value for copy in drawn.copies for name, e in copy.gains.items() if kind_of(name) == "bit"]
    assert len(values) == 30 * 15 * 2
    assert np.std(values) == pytest.approx(bits.deviation, rel=0.25)
    assert set(drawn.copies[0].gains) == set(ideal_device(board).copies[0].gains)
    soldered = draw_boards(known, build_board(3, "plain", 0.05), 2, 0)  # its couplings by their tolerance
    assert {kind_of(name) for name in soldered.copies[0].gains} == {"ground", "straight"}
    with pytest.raises(InputError, match="observed no kind"):
        ensemble_of(ideal_device(board))


def test_few_copies_draw_widely():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4), tolerance=0.05, copies=40, seed=3)
    device = known_device(made)
    few = ensemble_of(type(device)(device.board, device.copies[:2], {}))
    many = ensemble_of(device)
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
    board = make_design(SMALL, cells="active", choices=BoardOptions(bank_bits=2, source_tolerance=0.01)).board
    names = pair_model(board).names
    assert len(set(names)) == len(names)
    assert {kind_of(name) for name in names} == {"bit", "switch", "pad", "ground", "temperature", "inductance", "power"}
