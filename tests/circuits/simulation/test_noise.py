"""ngspice's own noise analysis, from heated resistors, gives the variances that the other routes give."""

import re
from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX, TARGETS
from compare import assert_close
from conftest import needs_ngspice
from reference import kronecker_lyapunov, read_deck

from circuits import Conditions, InputError, SimulationError, assemble, reading_covariance
from circuits.copies import draw_copies, gains_of
from circuits.netlist import circuit_text
from circuits.nodal import source_power
from circuits.simulation import exact_run, noise_run
from circuits.synthesis import BoardOptions, BoardRequest, Parasitics
from circuits.synthesis.design import board_and_program

ALL = Parasitics(0.5, 3e7, 0.05, 0.05, 3e-12)
HARD = TARGETS["random, condition 1e4"][0]
BOARDS = {
    "1x1": (TARGETS["1x1"][0], None, BoardOptions(), None),
    "plain": (M_MATRIX, None, BoardOptions(), None),
    "differential": (FAIR, FAIR_FACTOR, BoardOptions(), None),
    "differential, negative elements": (FAIR, None, BoardOptions(), None),
    "condition 1e4": (HARD, None, BoardOptions(), None),
    "resistive": (FAIR, FAIR_FACTOR, BoardOptions(coupling="resistive"), None),
    "resistive, plain": (M_MATRIX, None, BoardOptions(coupling="resistive"), None),
    "banks": (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=4), None),
    "banks, plain": (M_MATRIX, None, BoardOptions(bank_bits=5), None),
    "banks, resistive": (M_MATRIX, None, BoardOptions(bank_bits=3, coupling="resistive"), None),
    "parasitics": (FAIR, FAIR_FACTOR, BoardOptions(), ALL),
    "parasitics, plain": (M_MATRIX, None, BoardOptions(), ALL),
    "parasitics, banks": (M_MATRIX, None, BoardOptions(bank_bits=3), ALL),
    "parasitics, resistive": (
        FAIR,
        FAIR_FACTOR,
        BoardOptions(coupling="resistive"),
        Parasitics(esr=0.1, stray=3e-12),
    ),
    **{f"quality {q}": (FAIR, FAIR_FACTOR, BoardOptions(quality=q), None) for q in (0.05, 0.5, 5.0, 30.0)},
    "sources of ±20 %": (FAIR, FAIR_FACTOR, BoardOptions(source_tolerance=0.2), None),
    "quality 30, negative elements": (FAIR, None, BoardOptions(quality=30.0), None),
}


def drawn(target, congruence, choices=None, parasitics=None):
    """Board, program, the circuit of its first copy, its matrices, and the power of its sources."""
    tolerance = 0.001 if target is HARD else 0.01
    board, program = board_and_program(
        target,
        congruence,
        request=BoardRequest(
            tolerance=tolerance, options=choices or BoardOptions(), parasitics=parasitics or Parasitics()
        ),
    )
    copy = draw_copies(board, 2, 1)[0]
    text = circuit_text(board, program, copy, Conditions())
    power = source_power(board, program, gains_of(board, [copy])[0], Conditions())
    return board, program, text, assemble(board, program, copy, Conditions()), power


@needs_ngspice
@pytest.mark.parametrize("name", BOARDS)
def test_variances_of_a_copy_are_those_of_both_other_routes(name):
    board, program, text, circuit, power = drawn(*BOARDS[name])
    outputs = sorted({0, len(board.cells) // 2, len(board.cells) - 1})
    run = noise_run(board, program, text, outputs)
    assert run.integration_error <= 1e-8
    lyapunov = np.diag(reading_covariance(circuit))[outputs]
    assert np.abs(run.variances / lyapunov - 1).max() < 1e-6
    exact = np.diag(exact_run(board, program, text, np.array([1e6]), power).covariance)[outputs]
    assert np.abs(run.variances / exact - 1).max() < 2e-8  # what either may miss of its integral


@needs_ngspice
@pytest.mark.parametrize("quality", [0.5, 3.0])
def test_variance_of_one_cell_is_its_temperature_over_its_capacitance(quality):
    board, program, text, *_ = drawn(TARGETS["1x1"][0], None, BoardOptions(quality=quality))
    read = read_deck(text)
    ((hold, sigma),) = read["sources"].values()
    C, G = read["C"][0, 0], read["G"][0, 0]
    # Var = kT/C with the temperature 2 kT G = σ² h; the inductor has no say.
    assert noise_run(board, program, text, [0]).variances[0] == pytest.approx(sigma**2 * hold / (2 * G * C), rel=1e-8)


@needs_ngspice
def test_variances_are_those_of_the_nodal_equations_of_the_deck():
    board, program, text, *_ = drawn(M_MATRIX, None)
    read = read_deck(text)
    order = [read["nodes"].index(node) for node in board.nodes]
    C, G, K = (read[name][np.ix_(order, order)] for name in "CGK")
    power = np.diag([hold * sigma**2 / 2 for hold, sigma in (read["sources"][node] for node in board.nodes)])
    second = 1e-7  # a unit of time in which the numbers are of order one
    inverse = np.linalg.inv(C)
    A = np.block([[inverse @ G * second, inverse @ K * second**2], [-np.eye(3), np.zeros((3, 3))]])
    D = np.zeros((6, 6))
    D[:3, :3] = 2 * inverse @ power @ inverse * second
    expected = np.diag(kronecker_lyapunov(A, D))[:3]
    assert_close(noise_run(board, program, text, [0, 1, 2]).variances, expected, 1e-8)


@needs_ngspice
@pytest.mark.parametrize("name", ["plain", "resistive", "parasitics"])
def test_every_source_counts_for_what_the_deck_says(name):
    board, program, text, circuit, _ = drawn(*BOARDS[name])
    # The first source twice as strong: as a copy's own sources may be, or an edited deck.
    first = board.sources[0]
    line = re.search(rf"^{first.name} .*$", text, re.M).group()
    sigma = re.search(r"0 (\S+) 0\)$", line).group(1)
    louder = text.replace(line, line.replace(sigma, repr(2**0.5 * float(sigma))))
    assert louder != text
    Q = circuit.noise.copy()
    Q[0, 0] *= 2  # the cells' own nodes come first
    expected = np.diag(reading_covariance(replace(circuit, noise=Q)))[[1, 0]]
    found = noise_run(board, program, louder, [1, 0])
    assert np.abs(found.variances / expected - 1).max() < 1e-6
    assert (found.variances > noise_run(board, program, text, [1, 0]).variances).all()


@needs_ngspice
@pytest.mark.parametrize("name", ["differential", "resistive", "banks, plain", "parasitics"])
def test_nothing_but_the_sources_makes_noise(name):
    board, program, text, *_ = drawn(*BOARDS[name])
    silent = re.sub(r"trrandom\(2 (\S+) 0 \S+ 0\)", r"trrandom(2 \1 0 0.0 0)", text)
    with pytest.raises(SimulationError, match="nothing but zeros"):
        noise_run(board, program, silent, [0])


def test_what_the_board_does_not_have_is_refused():
    board, program, text, *_ = drawn(M_MATRIX, None)
    for outputs in ([], [3], [0, -1]):
        with pytest.raises(InputError, match=r"outputs are numbers of the board's readings, from 0 to 2, got"):
            noise_run(board, program, text, outputs)
    with pytest.raises(InputError, match="the circuit lacks the noise source Iv1"):
        noise_run(board, program, text.replace("Iv1 ", "Iw1 "), [0])
