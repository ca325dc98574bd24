"""Tiles on boards of every kind, at any time, through converters: against circuits and literal formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import FAIR, FAIR_FACTOR, random_target
from compare import assert_close
from scipy import linalg, stats
from simulated import rough_device

from circuits import InputError, reading_covariance
from circuits.copies import codes
from circuits.model import Converter, Device, Estimate, Interface, converters, ideal_device, predict
from circuits.nodal import nominal_circuit
from circuits.synthesis import BoardOptions, BoardRequest, build_board, program
from circuits.synthesis.cells import plan_cells
from circuits.synthesis.design import board_and_program
from tngd.device import invert_tiles, tile_board
from tngd.device.tile_solve import ReadAt, tile_answers
from tngd.device.tiles import code_tiles, held_tiles, hold_tiles, row_sum_scalings, tile_banks
from tngd.optimizer import TNGD
from tngd.optimizer.tile_step import step_tiles

GOOD = FAIR_FACTOR @ FAIR @ FAIR_FACTOR.T
TARGETS = [np.eye(8), GOOD, FAIR] + [random_target(8, c, s) for s, c in enumerate((1.5, 2, 3, 5, 30, 1e3))]
STACKED = torch.tensor(np.array(TARGETS)).movedim(0, -1).contiguous()
COPIES = torch.arange(len(TARGETS)) % 2
VECTORS = torch.tensor(np.random.default_rng(5).normal(size=(8, len(TARGETS))))


def rough(board, tolerance: float, copies: int = 2, seed: int = 0) -> Device:
    """Copies whose every gain is known and drawn at random."""
    rng = np.random.default_rng(seed)
    device = ideal_device(board, copies)

    def draw(copy):
        gains = {name: Estimate(1 + tolerance * float(rng.uniform(-1, 1)), 0.0, True) for name in copy.gains}
        cells = tuple(Estimate(1 + tolerance * float(rng.uniform(-1, 1)), 0.0, True) for _ in copy.temperatures)
        return replace(copy, gains=gains, temperatures=cells)

    return replace(device, copies=tuple(map(draw, device.copies)))


RESISTIVE = build_board(8, "differential", 0.02, BoardOptions(coupling="resistive"))


def solver(tolerance: float = 0.02) -> Device:
    return rough(RESISTIVE, tolerance)


def circuit_of(device: Device, copy: int, target: np.ndarray):
    """The circuit of a copy under the target as single parts hold it, and its mapping."""
    made = program(device.board, target, np.eye(8), plan_cells(target, np.eye(8), "active"), "tile")
    return predict(device, copy, made), made.mapping


@pytest.mark.parametrize("spread", [0.001, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_solutions_without_eigenvectors_are_those_with(spread, dtype):
    board = tile_board(rough_device(spread), seed=2, dtype=dtype)
    targets, vectors = STACKED.to(dtype), VECTORS.to(dtype)
    held = hold_tiles(board, targets, COPIES)
    answer = tile_answers(board, held, held.scaling * vectors, COPIES)
    exact = invert_tiles(tile_board(rough_device(spread), seed=2), STACKED.movedim(-1, 0), COPIES)
    assert exact.stable.sum() >= 8
    for k in exact.stable.nonzero()[:, 0].tolist():
        expected = exact.inverse[k] @ VECTORS[:, k]
        condition = np.linalg.cond(TARGETS[k])
        limit = 1e-10 if dtype == torch.float64 else 2e-6 * condition
        assert_close((held.scaling * answer.values)[:, k], expected, max(limit, 1e-15 * condition**2))
    assert torch.equal(answer.stable, exact.stable)


def test_temperatures_matter_far_more_than_the_error_of_the_series():
    board = tile_board(rough_device(0.1), seed=2)
    held = hold_tiles(board, STACKED, COPIES)
    cold = replace(board, temperature=torch.ones_like(board.temperature))
    with_, without = (tile_answers(b, held, VECTORS, COPIES).values for b in (board, cold))
    assert (torch.linalg.norm(with_ - without, dim=0) > 1e-3 * torch.linalg.norm(without, dim=0)).all()


def test_resistive_tiles_solve_as_the_circuits_of_their_copies():
    device = solver()
    board = tile_board(device)
    held = hold_tiles(board, STACKED, COPIES)
    answer = tile_answers(board, held, held.scaling * VECTORS, COPIES)
    inverse = invert_tiles(board, STACKED.movedim(-1, 0), COPIES).inverse
    for k, target in enumerate(TARGETS):
        circuit, X = circuit_of(device, int(COPIES[k]), target)
        B = X.T @ circuit.readout @ np.linalg.inv(circuit.conductance / RESISTIVE.unit) @ circuit.readout.T @ X
        if not answer.stable[k]:
            assert np.linalg.eigvalsh(circuit.conductance)[0] <= 0
            continue
        limit = 1e-12 * np.linalg.cond(target)
        assert_close((held.scaling * answer.values)[:, k], B @ VECTORS[:, k].numpy(), max(limit, 1e-10))
        assert_close(inverse[k], B, max(limit, 1e-10))
    assert answer.stable.sum() >= 8


@pytest.mark.parametrize("time", [0.0, 0.3, 5.0, 50.0])
def test_resistive_tiles_settle_as_the_circuits_of_their_copies(time):
    device = solver(0.05)
    board = tile_board(device)
    held = hold_tiles(board, STACKED, COPIES)
    begin = VECTORS.flip(-1)
    answer = tile_answers(board, held, VECTORS, COPIES, ReadAt(time), begin)
    unit = RESISTIVE.capacitance / RESISTIVE.unit
    for k in answer.stable.nonzero()[:, 0].tolist():
        circuit, _ = circuit_of(device, int(COPIES[k]), TARGETS[k])
        # dx/dt = -A x + u as one exponential of the drift with the input as a state that stands still.
        A, u = (np.linalg.solve(circuit.capacitance, x) * unit for x in (circuit.conductance, VECTORS[:, k].numpy()))
        block = np.zeros((9, 9))
        block[:8, :8], block[:8, 8] = -A, u * RESISTIVE.unit
        expected = (linalg.expm(block * time) @ np.append(begin[:, k].numpy(), 1.0))[:8]
        assert_close(answer.values[:, k], expected, 1e-9)
    assert len(set(circuit.capacitance.diagonal())) == 8


def test_noise_of_a_resistive_tile_follows_the_law_of_its_copy():
    draws, kappa, time = 4000, 0.3, 2.0
    device = solver(0.2)
    board = tile_board(device)
    many = torch.tensor(GOOD)[..., None].repeat(1, 1, draws)
    copies = torch.ones(draws, dtype=torch.long)
    held = hold_tiles(board, many, copies)
    b = VECTORS[:, :1].repeat(1, draws)
    generator = torch.Generator().manual_seed(3)

    def white(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    noisy = tile_answers(board, held, b, copies, ReadAt(time, kappa), None, white).values
    calm = tile_answers(board, held, b, copies, ReadAt(time), None).values
    circuit, _ = circuit_of(device, 1, GOOD)
    C = circuit.capacitance / RESISTIVE.capacitance
    A, D = np.linalg.solve(C, circuit.conductance / RESISTIVE.unit), 2 * kappa * np.linalg.inv(C @ C)
    end = linalg.solve_continuous_lyapunov(A, D)
    decay = linalg.expm(-A * time)
    L = np.linalg.cholesky(end - decay @ end @ decay.T)
    z = np.linalg.solve(L, (noisy - calm).numpy())
    square = (z**2).sum()
    low, high = stats.chi2.ppf([5e-6, 1 - 5e-6], 8 * draws)
    assert low < square < high
    # Every pair of components is uncorrelated: 28 correlations, jointly.
    pairs = (z @ z.T / np.sqrt(draws))[np.triu_indices(8, 1)]
    assert (pairs**2).sum() < stats.chi2.ppf(1 - 1e-5, 28)


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
def test_codes_hold_what_the_circuit_of_the_board_holds(coupling):
    unit = {"unit_conductance": 1e-5} if coupling == "resistive" else {}
    board, draft = board_and_program(
        GOOD, request=BoardRequest(cells="differential", options=BoardOptions(bank_bits=5, coupling=coupling, **unit))
    )
    rng = np.random.default_rng(0)
    banks = tile_banks(rough(board, 0.05))
    drawn = torch.tensor(rng.integers(-31, 32, (28, 3)))
    drawn[3:6] = 0
    nominal = held_tiles(banks, drawn, torch.full((3,), 2))
    real = held_tiles(banks, drawn, torch.zeros(3, dtype=torch.long))
    for k in range(3):
        values = {
            bank.elements[0 if code > 0 else 1]: abs(code) * bank.unit
            for bank, code in zip(board.banks, drawn[:, k].tolist(), strict=True)
            if code
        }
        made = replace(draft, values=values)
        circuit = nominal_circuit(board, made)
        nodal = circuit.capacitance if coupling == "capacitive" else circuit.conductance
        # Inner nodes that are left hold no charge and lead no current: eliminated.
        own = circuit.readout @ np.linalg.inv(nodal) @ circuit.readout.T * board.unit / 2
        assert_close(np.linalg.inv(own), nominal[..., k], 1e-9)
        if coupling == "resistive":
            copy = predict(rough(board, 0.05), 0, made)
            own = copy.readout @ np.linalg.inv(copy.conductance) @ copy.readout.T * board.unit
            assert_close(np.linalg.inv(own), real[..., k], 1e-9)
    assert (real - nominal).abs().max() > 1e-3


def test_codes_on_a_copy_are_its_whole_law_but_for_what_switches_do():
    board, draft = board_and_program(
        GOOD, request=BoardRequest(cells="differential", options=BoardOptions(bank_bits=6))
    )
    device = rough(board, 0.02)
    made = tile_board(device)
    held = codes(board, draft)
    code = torch.tensor([held[bank.name] for bank in board.banks])[:, None]
    for k in range(2):
        m, V = np.linalg.eigh(held_tiles(made.banks, code, torch.tensor([k]))[..., 0].numpy())
        t = V.T @ np.diag(made.temperature[k].numpy()) @ V
        a, b = m[:, None], m
        B = V @ (2 * t / (a + b + made.quality**2 * (a - b) ** 2 / 2)) @ V.T
        law = reading_covariance(predict(device, k, draft)) * board.unit / (2 * draft.energy)
        assert_close(B, law, 1e-4)
        nominal = np.linalg.inv(held_tiles(made.banks, code, torch.tensor([2]))[..., 0].numpy())
        assert np.linalg.norm(nominal - law) > 1e-2 * np.linalg.norm(law)


def test_coded_tiles_are_as_good_as_the_nearest_codes_of_synthesis():
    targets = [GOOD, np.eye(8) + 0.05 * (random_target(8, 2, 1) - np.eye(8)), random_target(8, 1.3, 4)]
    stacked = torch.tensor(np.array(targets)).movedim(0, -1).contiguous()
    choices = BoardOptions(bank_bits=8, coupling="resistive", unit_conductance=1e-5, bank_range=1.0)
    for k, target in enumerate(targets):
        made, own = board_and_program(target, request=BoardRequest(cells="differential", options=choices))
        board = tile_board(ideal_device(made))
        held = hold_tiles(board, stacked, torch.zeros(3, dtype=torch.long))
        assert held.possible.all()
        d = held.scaling[:, k].numpy()
        B = d[:, None] * np.linalg.inv(held.matrix[..., k].numpy()) * d
        error = np.linalg.norm(B - np.linalg.inv(target)) / np.linalg.norm(np.linalg.inv(target))
        assert error == pytest.approx(own.rounding.error_nearest, rel=0.05)
        assert error > 1e-5


def test_banks_refuse_what_they_cannot_hold_tile_by_tile():
    board, _ = board_and_program(
        GOOD, request=BoardRequest(cells="differential", options=BoardOptions(bank_bits=6, bank_range=0.2))
    )
    hopeless, wide = random_target(8, 1e4, 0), np.eye(8)
    wide[0, 1] = wide[1, 0] = 0.6
    U = torch.tensor(np.array([np.eye(8), wide, hopeless / np.sqrt(np.outer(*[np.diag(hopeless)] * 2))])).movedim(0, -1)
    assert code_tiles(tile_banks(ideal_device(board)), U.contiguous())[2].tolist() == [True, False, False]
    made = tile_board(ideal_device(board))
    P = torch.tensor(np.array([np.eye(8), wide])).movedim(0, -1).contiguous()
    g = torch.arange(1.0, 17.0).double()
    direction, _, step = step_tiles(made, P, g, None, refresh=0)
    assert step.unstable == 1
    assert torch.equal(direction[8:], g[8:])  # the older factor alone, here I


def test_row_sums_are_what_was_asked_for():
    rng = np.random.default_rng(0)
    A = 2 * np.eye(8)[:, :, None] - np.abs(np.eye(8)[:, :, None] + 0.13 * rng.uniform(-1, 1, (8, 8, 20)))
    A = np.tril(A.transpose(2, 0, 1)) + np.tril(A.transpose(2, 0, 1), -1).transpose(0, 2, 1)
    g = rng.uniform(0.2, 2.0, (8, 20))
    d = row_sum_scalings(torch.tensor(A.transpose(1, 2, 0).copy()), torch.tensor(g)).numpy()
    assert d.min() > 0
    for k in range(20):
        assert_close(d[:, k] * (A[k] @ d[:, k]), g[:, k], 1e-12)


def test_a_hard_tile_among_easy_ones_gets_its_row_sums():
    couplings = np.full(20, 0.3)
    couplings[7], couplings[11] = 0.999, 0.99
    A = np.eye(8) - couplings[:, None, None] / 7 * (1 - np.eye(8))
    g = np.random.default_rng(1).uniform(0.2, 2.0, (8, 20))
    d = row_sum_scalings(torch.tensor(A.transpose(1, 2, 0).copy()), torch.tensor(g)).numpy()
    assert d.min() > 0
    for k in range(20):
        assert_close(d[:, k] * (A[k] @ d[:, k]), g[:, k], 1e-11)


@pytest.mark.parametrize("device", [rough_device(0.05, 3), rough(RESISTIVE, 0.05, 3)])
def test_averaged_boards_answer_with_the_mean_of_all_copies(device):
    torch.manual_seed(0)
    P, g = STACKED[..., :6].contiguous(), torch.randn(47, dtype=torch.float64)
    whole, _, step = step_tiles(tile_board(device, averaged=True), P, g, None, refresh=0)
    single = [step_tiles(tile_board(device).turned(k), P, g, None, refresh=0)[0] for k in range(3)]
    assert_close(whole, sum(single) / 3, 1e-12)
    assert step.unstable == 0
    assert not torch.allclose(single[0], single[1], rtol=1e-4)


def test_kept_voltages_go_on_where_they_were():
    board = tile_board(solver())
    P, g = STACKED[..., :4].contiguous(), torch.arange(1.0, 33.0).double()
    first, kept, _ = step_tiles(board, P, g, None, 0, ReadAt(0.7), "zero")
    second, _, _ = step_tiles(board, P, g, kept, 0, ReadAt(0.9), "kept")
    whole, _, _ = step_tiles(board, P, g, None, 0, ReadAt(1.6), "zero")
    assert_close(second, whole, 1e-10)
    assert not torch.allclose(first, whole, rtol=1e-2)
    fresh, _, _ = step_tiles(board, P, g, None, 0, ReadAt(0.0), "gradient")
    d = hold_tiles(board, P, torch.arange(4) % 2).scaling
    assert_close(fresh, (d**2 * g.view(4, 8).T).T.reshape(-1), 1e-14)


def test_converters_see_every_tile_at_its_own_rms_and_count_what_they_clip():
    given = Interface(dac=Converter(bits=8, range=2.0), adc=Converter(bits=6, range=1.5, offset=0.01))
    board, plain = tile_board(solver(), interface=given), tile_board(solver())
    vectors = VECTORS * torch.logspace(-3, 3, VECTORS.shape[1], dtype=torch.float64)
    held = hold_tiles(board, STACKED, COPIES)
    answer = tile_answers(board, held, vectors, COPIES)
    lost = 0
    for k in answer.stable.nonzero()[:, 0].tolist():
        v = vectors[:, k].numpy()
        sent = converters.convert(v, given.dac, np.sqrt((v**2).mean()), to_analog=True)
        x = np.linalg.solve(held.matrix[..., k].numpy(), sent.values)
        read = converters.convert(x, given.adc, np.sqrt((x**2).mean()))
        assert_close(answer.values[:, k], read.values, 1e-12)
        lost += sent.saturated + read.saturated
    assert answer.saturated == lost > 0
    assert not torch.allclose(answer.values, tile_answers(plain, held, vectors, COPIES).values, rtol=1e-3)


def test_a_capacitive_board_knows_no_time_and_a_resistive_one_trains_at_any():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()
    x, y = torch.randn(32, 9).double(), torch.randint(3, (32,))
    for name, bad in (("time", {"time": 2.0}), ("noise", {"noise": 0.1}), ("start", {"start": "kept"})):
        with pytest.raises(InputError, match=f"know no {name}"):
            TNGD(model, tile_board(rough_device(0.01)), **bad)
    with pytest.raises(InputError, match="tile_curvature"):
        TNGD(model, tile_board(solver()), tile_curvature="tiles")
    start = model.state_dict()
    ends = []
    for settings in ({"time": 4.0, "start": "kept", "noise": 1e-4}, {"tile_curvature": "mc"}):
        model.load_state_dict(start)
        optimizer = TNGD(model, tile_board(solver(), averaged=True), lr=0.3, damping=0.05, **settings)
        losses = [float(optimizer.step(lambda: (model(x), y))) for _ in range(15)]
        saved, weights = optimizer.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
        straight = [float(optimizer.step(lambda: (model(x), y))) for _ in range(3)]
        model.load_state_dict(weights)
        again = TNGD(model, tile_board(solver(), averaged=True), lr=0.1)
        again.load_state_dict(saved)
        assert [float(again.step(lambda: (model(x), y))) for _ in range(3)] == straight
        assert straight[-1] < 0.9 * losses[0]
        ends.append(straight[-1])
    assert ends[0] != ends[1]
