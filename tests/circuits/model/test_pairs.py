"""The circuit of equal pairs against the assembly of the whole board: readings, derivatives, discrepancy."""

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import assert_close

from circuits import Conditions, reading_covariance, spectrum
from circuits.model.pairs import half_circuit, half_of, pair_model
from circuits.model.response import covariance_and_slopes, impedance, impedance_slopes, spectra, spectra_and_slopes
from circuits.nodal import assemble_gains, states
from circuits.synthesis import BoardOptions, Parasitics, make_design

LOSSES = Parasitics(winding=1.0, self_resonance=3e7, coupled_coils=0.02, esr=0.05)
BOARDS = {
    "differential": (FAIR, FAIR_FACTOR, BoardOptions(), None),
    "negative elements": (FAIR, None, BoardOptions(), None),
    "plain": (M_MATRIX, None, BoardOptions(), None),
    "one cell": (np.array([[3.0]]), None, BoardOptions(), None),
    "banks": (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=3, source_tolerance=0.03), None),
    "banks and losses": (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=3), LOSSES),
    "plain banks, no pads": (M_MATRIX, None, BoardOptions(bank_bits=4, pad_capacitance=0.0), None),
    "resistive": (FAIR, FAIR_FACTOR, BoardOptions(coupling="resistive", source_tolerance=0.03), None),
    "resistive banks": (FAIR, FAIR_FACTOR, BoardOptions(coupling="resistive", bank_bits=3), None),
    "resistive banks, no pads": (
        M_MATRIX,
        None,
        BoardOptions(coupling="resistive", bank_bits=3, pad_capacitance=0.0),
        None,
    ),
}
FREQUENCIES = np.array([1e5, 1.6e6, 1e7, 1e9])


@pytest.fixture(scope="module", params=BOARDS)
def case(request):
    target, congruence, choices, parasitics = BOARDS[request.param]
    made = make_design(target, congruence, choices=choices, parasitics=parasitics)
    model = pair_model(made.board)
    theta = 1 + 0.05 * np.random.default_rng(0).uniform(-1, 1, len(model.names))
    return made, model, half_of(model, made.program), theta


def gains_at(model, theta) -> np.ndarray:
    """Every part and source of the board at these parameters, by name: what the parameters' names say."""
    board, value = model.board, dict(zip(model.names, theta, strict=True))
    gains = np.ones(len(board.parts) + len(board.sources))
    for members, row in zip(model.pairs, model.exponents, strict=True):
        own = [name for name, exponent in zip(model.names, row, strict=True) if exponent]
        part = board.parts[members[0]]
        if part.role == "damping":
            cell = next(i for i, entry in enumerate(board.cells, start=1) if part.nodes[0] in entry.nodes)
            gains[list(members)] = value.get(f"temperature_{cell}", 1.0) / value.get(f"power_{cell}", 1.0)
        elif own:
            gains[list(members)] = value[own[0]]
    for k, source in enumerate(board.sources):
        cell = next(i for i, entry in enumerate(board.cells, start=1) if source.node in entry.nodes)
        gains[len(board.parts) + k] = value.get(f"power_{cell}", 1.0)
    return gains


def test_spectra_are_those_of_the_whole_board(case):
    made, model, half, theta = case
    full = assemble_gains(made.board, made.program, gains_at(model, theta), Conditions())
    S = spectrum(full, FREQUENCIES)
    for ours, theirs in zip(spectra(half, theta, FREQUENCIES), S, strict=True):
        assert_close(ours, theirs, 1e-10)
    small = half_circuit(half, theta)
    assert states(small) <= states(full)
    for ours, theirs in zip(spectrum(small, FREQUENCIES), S, strict=True):
        assert_close(ours, theirs, 1e-10)
    assert_close(reading_covariance(small), reading_covariance(full), 1e-9)


def test_slopes_are_finite_differences(case):
    _, model, half, theta = case
    S, J = spectra_and_slopes(half, theta, FREQUENCIES)
    Z, K = impedance_slopes(half, theta, 2j * np.pi * FREQUENCIES)
    scale = np.abs(S).max(axis=(1, 2))[:, None, None]
    size = np.abs(Z).max(axis=(1, 2))[:, None, None]
    for p in np.random.default_rng(1).choice(len(theta), min(15, len(theta)), replace=False):
        step = 1e-5 * (np.arange(len(theta)) == p)
        change = (spectra(half, theta + step, FREQUENCIES) - spectra(half, theta - step, FREQUENCIES)) / 2e-5
        assert np.abs((change - J[..., p]) / scale).max() < 1e-6, model.names[p]
        s = 2j * np.pi * FREQUENCIES
        change = (impedance(half, theta + step, s) - impedance(half, theta - step, s)) / 2e-5
        assert np.abs((change - K[..., p]) / size).max() < 1e-6, model.names[p]


def test_integrated_spectrum_is_the_lyapunov_covariance_and_so_are_its_slopes(case):
    _, model, half, theta = case
    S, J = covariance_and_slopes(half, theta)
    assert_close(S, reading_covariance(half_circuit(half, theta)), 1e-7)  # the tails are closed to that with windings
    for p in np.random.default_rng(2).choice(len(theta), min(6, len(theta)), replace=False):
        step = 1e-4 * (np.arange(len(theta)) == p)
        plus, minus = (reading_covariance(half_circuit(half, theta + sign * step)) for sign in (1, -1))
        assert np.abs((plus - minus) / 2e-4 - J[..., p]).max() < 1e-5 * np.abs(S).max(), model.names[p]


def test_parameters_without_tolerance_are_none():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4), tolerance=0.0)
    model = pair_model(made.board)
    assert model.names == ()
    half = half_of(model, made.program)
    full = assemble_gains(made.board, made.program, gains_at(model, np.ones(0)), Conditions())
    assert_close(reading_covariance(half_circuit(half, np.ones(0))), reading_covariance(full), 1e-10)
