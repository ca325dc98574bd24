"""One trapezoidal step a sample: its law against a step-by-step twin made from the deck, and ngspice against both."""

import io
import itertools
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import FALSE_ALARM, NORMAL_BOUND, assert_close, circuit_of_cells
from conftest import needs_ngspice
from reference import deck_inductors, read_deck

from circuits import Conditions, InputError, assemble, reading_covariance
from circuits.copies import draw_copies, nominal_copy
from circuits.netlist import circuit_text
from circuits.netlist.deck import file_widths
from circuits.nodal import nominal_circuit, readout_matrix
from circuits.ou import held_covariance
from circuits.simulation import transient
from circuits.simulation.ngspice import run_deck
from circuits.simulation.transient import (
    HELD,
    STEPPED,
    STEPPED_KLU,
    Recipe,
    choose_recipe,
    chunk_deck,
    chunks_covariance,
    chunks_law,
    recipe_for,
    recipe_named,
    run_chunk,
)
from circuits.statistics import law_of_records
from circuits.statistics import moments as circuits_moments
from circuits.statistics.estimators import joint_chi_square
from circuits.statistics.moments import BLOCK
from circuits.statistics.trapezoidal import (
    UNIT,
    alternating_currents,
    memory,
    stepped_lagged_covariances,
)
from circuits.synthesis import BoardOptions, BoardRequest, Parasitics
from circuits.synthesis.design import board_and_program

RESISTIVE, BANKS = BoardOptions(coupling="resistive"), BoardOptions(bank_bits=3)
NO_CAPACITOR = Parasitics(winding=0.5, coupled_coils=0.05, stray=3e-12)  # between winding and inductor there is none
BOARDS = {
    "1x1": (np.array([[3.0]]), None, None, None),
    "plain": (M_MATRIX, None, None, None),
    "differential": (FAIR, FAIR_FACTOR, None, None),
    "negative elements": (FAIR, None, None, None),
    "resistive": (FAIR, FAIR_FACTOR, RESISTIVE, None),
    "banks": (M_MATRIX, None, BANKS, None),
    "parallel": (M_MATRIX, None, BoardOptions(parallel=2), None),
    "parasitics": (FAIR, FAIR_FACTOR, None, NO_CAPACITOR),
    "self-resonance": (M_MATRIX, None, None, Parasitics(self_resonance=3e7)),
}


def m_matrix(size: int, signs: bool = False) -> np.ndarray:
    """Random couplings, rows dominant by 0.3 or more; of both signs if `signs`."""
    rng = np.random.default_rng(size)
    W = np.triu(rng.uniform(0.2, 1, (size, size)), 1)
    W = W + W.T
    S = np.triu(rng.choice([-1, 1], (size, size)), 1)
    return np.eye(size) - 0.7 * W / W.sum(axis=1).max() * (S + S.T if signs else 1)


def specimen(name: str, factor: float = 1.0):
    """Board, program, circuit part of the deck, and circuit of a copy.

    The period is made `factor` times as long once the deck is written: its sources say a density, not a period.
    """
    target, congruence, choices, parasitics = BOARDS[name]
    board, program = board_and_program(
        target,
        congruence,
        request=BoardRequest(options=choices or BoardOptions(), parasitics=parasitics or Parasitics()),
    )
    copy = draw_copies(board, 3, 1)[0]
    text = circuit_text(board, program, copy, Conditions())
    program = replace(program, period=factor * program.period)
    return board, program, text, assemble(board, program, copy, Conditions())


def uneven(text: str) -> str:
    """The deck with sources of different strengths: a number in front of every amplitude."""
    strengths = itertools.count(10)
    return re.sub(r"(trrandom\(2 \S+ 0 )", lambda found: f"{found[1]}{next(strengths)}", text)


class Companions:
    """The trapezoidal rule as SPICE has it: every capacitor and inductor a conductance and a current of its past."""

    def __init__(self, read: dict, period: float, columns: int):
        L, E = deck_inductors(read)
        self.capacitive = 2 / period * read["C"]
        self.inductive = period / 2 * E @ np.linalg.inv(L) @ E.T if len(L) else np.zeros_like(read["C"])
        self.inverse = np.linalg.inv(read["G"] + self.capacitive + self.inductive)
        self.v, self.charging, self.coils = (np.zeros((len(read["nodes"]), columns)) for _ in range(3))

    def step(self, current: np.ndarray) -> np.ndarray:
        """Voltages (nodes, columns) one step on, for currents (nodes, columns) into the nodes then."""
        past = self.capacitive @ self.v + self.charging - self.coils - self.inductive @ self.v
        v = self.inverse @ (current + past)
        self.charging = self.capacitive @ (v - self.v) - self.charging
        self.coils = self.coils + self.inductive @ (v + self.v)
        self.v = v
        return v


def responses(read: dict, board, period: float, steps: int, a: float = 1.0) -> np.ndarray:
    """Readings (steps, n, sources) after a unit g of one step, the currents being i' = (1 + a) g' - a i."""
    order = [read["nodes"].index(node) for node in board.nodes]
    into = np.eye(len(read["nodes"]))[:, [read["nodes"].index(source.node) for source in board.sources]]
    twin = Companions(read, period, len(board.sources))
    return np.array([readout_matrix(board) @ twin.step((1 + a) * (-a) ** k * into)[order] for k in range(steps)])


def twin_of_lagged(read: dict, board, period: float, steps: int, lags: int, a: float = 1.0) -> np.ndarray:
    """ρ(τ) = Σ_k r_{k+τ} Cov(g) r_kᵀ of the responses r to the g of one step."""
    r = responses(read, board, period, steps, a)
    densities = (read["sources"][source.node] for source in board.sources)
    power = np.array([hold * sigma**2 / period for hold, sigma in densities])
    return np.array([np.einsum("kis,s,kjs->ij", r[t:], power, r[: len(r) - t], optimize=True) for t in range(lags)])


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("name", BOARDS)
def test_law_is_that_of_the_trapezoidal_rule_on_the_deck(name, factor):
    board, program, text, circuit = specimen(name, factor)
    steps = int(40 * memory(circuit, program.period))
    read = read_deck(text)
    found = stepped_lagged_covariances(circuit, program.period)[:7]
    # Open switches are 1e12 ohm in the deck and not there in the circuit.
    tolerance = 1e-6 if board.banks else 1e-9 if name == "negative elements" else 1e-10
    assert_close(found, twin_of_lagged(read, board, program.period, steps, 7), tolerance)
    # At grid points it is the law under white noise, whatever the period; that of held noise is another.
    assert_close(found[0], reading_covariance(circuit), 1e-9)
    held = held_covariance(circuit, program.period)
    assert np.linalg.norm(held - found[0]) > 1e-3 * np.linalg.norm(held)


def test_law_of_unequal_temperatures_by_brute_linear_algebra():
    C, G, K = np.array([[1.0, -0.4], [-0.4, 0.8]]), np.diag([0.5, 0.9]), np.diag([1.3, 0.7])
    circuit, h = circuit_of_cells(C, G, K, np.diag([0.6, 0.2]), np.eye(2)), 0.7
    A = np.block([[np.linalg.solve(C, G), np.linalg.solve(C, K)], [-np.eye(2), np.zeros((2, 2))]])
    plus, minus = np.eye(4) + h * A / 2, np.eye(4) - h * A / 2
    F, B = np.linalg.inv(plus) @ minus, np.linalg.inv(plus) @ np.vstack([h * np.linalg.inv(C), np.zeros((2, 2))])
    D = B @ (2 * circuit.noise / h) @ B.T
    covariance = np.linalg.solve(np.eye(16) - np.kron(F, F), D.reshape(-1)).reshape(4, 4)
    rho = stepped_lagged_covariances(circuit, h)
    assert_close(rho[0], covariance[:2, :2], 1e-12)
    assert_close(rho[3], (np.linalg.matrix_power(F, 3) @ covariance)[:2, :2], 1e-12)
    assert memory(circuit, h) == pytest.approx(-1 / np.log(np.abs(np.linalg.eigvals(F)).max()))


@pytest.mark.parametrize("a", [0.5, 0.9])
def test_shorter_memory_of_the_currents_costs_a_bias(a):
    # The closed form of the module's docstring; a = 1 is what is used, and has none.
    board, program = board_and_program(M_MATRIX)
    read = read_deck(circuit_text(board, program, nominal_copy(board), Conditions()))
    h, r = program.period, (1 - a) / (1 + a)
    found = twin_of_lagged(read, board, h, 500, 1, a)[0]
    biased = read["C"] + r * h / 2 * read["G"] + r**2 * h**2 / 4 * read["K"]
    assert_close(found, program.energy * np.linalg.inv(biased), 1e-10)
    exact = reading_covariance(nominal_circuit(board, program))
    assert np.linalg.norm(found - exact) > 0.01 * np.linalg.norm(exact)


def test_currents_have_independent_means_of_neighbours():
    steps, channels = 40_000, 3
    i = alternating_currents(np.random.default_rng(1), steps, channels)
    assert i.dtype == np.int64
    g = (i[1:] + i[:-1]) / 2
    assert (g == np.rint(np.random.default_rng(1).standard_normal((steps, channels)) * UNIT)[1:]).all()
    lagged = np.array([g[k:].T @ g[: len(g) - k] / len(g) for k in range(3)]) / UNIT**2
    # A mean of products of unit Gaussians has the variance 1/N, of squares 2/N.
    assert np.abs(lagged - np.eye(3) * np.array([1, 0, 0])[:, None, None]).max() < NORMAL_BOUND * np.sqrt(2 / steps)


def test_noise_files_are_the_numbers_and_fit_what_ngspice_reads():
    for channels in (1, 2, 31, 32, 33, 64, 128):
        widths = file_widths(channels)
        assert sum(widths) == channels
        assert all(width % 2 == 1 and width <= 31 for width in widths)
        i = alternating_currents(np.random.default_rng(channels), 600, channels)
        i[5, 0], i[6, 0] = 10**9, -(10**9)
        files = transient._files(i)
        tables = [np.loadtxt(io.BytesIO(files[f"noise{k}.txt"]), ndmin=2) for k in range(1, len(widths) + 1)]
        assert all((table[:, 0] == np.arange(600)).all() for table in tables)
        assert (np.hstack([table[:, 1:] for table in tables]) == i).all()
        assert max(len(line) for content in files.values() for line in content.splitlines()) < 511


@needs_ngspice
@pytest.mark.parametrize("name", ["plain", "differential", "resistive", "parasitics", "self-resonance"])
def test_ngspice_takes_the_steps_of_the_twin(name, monkeypatch):
    # Every file is read back, and the voltages of every node follow from it, reading by reading.
    board, program, text, circuit = specimen(name, 2.0)
    text, samples, taken = uneven(text), 1500, {}

    def kept(deck, nodes, output, plots, files):
        taken.update(files)
        return run_deck(deck, nodes, output, plots, files)

    monkeypatch.setattr(transient, "run_deck", kept)
    deck = chunk_deck(board, program, text, 23, samples, STEPPED)
    moments = run_chunk(board, program, deck, samples).moments
    plot = run_deck(deck, board.nodes, "chunk", 1, taken)[0]
    first = round(plot.scale[0] / program.period)
    assert np.abs(plot.scale[:samples] / program.period - first - np.arange(samples)).max() < 1e-6
    i = np.hstack([np.loadtxt(io.BytesIO(taken[f"noise{k + 1}.txt"]))[:, 1:] for k in range(len(taken))])
    read = read_deck(text)
    order = [read["nodes"].index(node) for node in board.nodes]
    into = np.eye(len(read["nodes"]))[:, [read["nodes"].index(source.node) for source in board.sources]]
    densities = (read["sources"][source.node] for source in board.sources)
    amplitude = np.array([np.sqrt(hold / program.period) * sigma for hold, sigma in densities]) / UNIT
    twin = Companions(read, program.period, 1)
    v = np.array([twin.step(into @ (row * amplitude)[:, None])[order, 0] for row in i])[first : first + samples]
    settled = slice(int(25 * memory(circuit, program.period)), samples)
    assert_close(plot.voltages[:samples][settled], v[settled], 1e-11)
    y = (plot.voltages[:samples] @ readout_matrix(board).T).reshape(-1, BLOCK, len(board.readings))
    assert_close(moments, np.einsum("bki,bkj->bij", y, y) / BLOCK, 1e-12)


@needs_ngspice
@pytest.mark.parametrize(
    ("name", "factor", "samples"),
    [
        *((name, 1.0, 20_000) for name in BOARDS),
        ("differential", 4.0, 20_000),
        ("negative elements", 16.0, 10_000),
        ("resistive", 3.0, 20_000),
    ],
)
def test_sampled_run_follows_the_law_of_its_copy(name, factor, samples):
    board, program, text, circuit = specimen(name, factor)
    moments = run_chunk(board, program, chunk_deck(board, program, text, 17, samples, STEPPED), samples).moments
    assert moments.shape == (samples // BLOCK, len(board.cells), len(board.cells))
    law = law_of_records(stepped_lagged_covariances(circuit, program.period), np.array([samples]))
    assert joint_chi_square(moments.mean(axis=0), law)[2] > FALSE_ALARM


@needs_ngspice
@pytest.mark.parametrize(("size", "signs"), [(32, False), (33, False), (32, True)])
def test_large_boards_follow_the_law(size, signs):
    board, program = board_and_program(m_matrix(size, signs))
    assert board.kind == ("differential" if signs else "plain")
    copy, samples = draw_copies(board, 1, 1)[0], 2500 if signs else 7500
    text = circuit_text(board, program, copy, Conditions())
    recipe = recipe_for(board, program)
    assert recipe.stepped
    moments = run_chunk(board, program, chunk_deck(board, program, text, 29, samples, recipe), samples).moments
    law = chunks_law(recipe, assemble(board, program, copy, Conditions()), program.period, samples)
    assert joint_chi_square(moments.mean(axis=0), law)[2] > FALSE_ALARM


@needs_ngspice
def test_a_long_record_shows_the_variance_under_white_noise():
    # 400,000 readings of one cell: the variance is known to 0.2 %; held noise would take 3 % away.
    board, program, text, circuit = specimen("1x1")
    samples = 400_000
    found = run_chunk(board, program, chunk_deck(board, program, text, 5, samples, STEPPED), samples).moments.mean()
    law = law_of_records(stepped_lagged_covariances(circuit, program.period), np.array([samples]))
    bound = NORMAL_BOUND * np.sqrt(law.covariance[0, 0])
    assert abs(found - reading_covariance(circuit)[0, 0]) < bound
    assert abs(found - held_covariance(circuit, program.period)[0, 0]) > bound


@needs_ngspice
def test_a_chunk_is_all_in_its_deck():
    board, program, text, _ = specimen("plain")
    decks = [chunk_deck(board, program, text, seed, 1000, STEPPED) for seed in (1, 1, 2)]
    first, again, other = (run_chunk(board, program, deck, 1000).moments.tobytes() for deck in decks)
    assert decks[0] == decks[1] != decks[2]
    assert first == again != other
    assert "trrandom" not in decks[0]
    assert "klu" not in decks[0]
    assert "klu" in chunk_deck(board, program, text, 1, 1000, STEPPED_KLU)


def test_a_long_record_in_chunks_has_the_law_of_its_recipe(monkeypatch):
    *_, program, _, circuit = specimen("plain")
    monkeypatch.setattr(circuits_moments, "CHUNK", 1000)
    for recipe, mean in ((HELD, held_covariance(circuit, program.period)), (STEPPED, reading_covariance(circuit))):
        law = chunks_law(recipe, circuit, program.period, 2500)
        assert_close(law.mean, mean, 1e-9)
        assert_close(chunks_covariance(recipe, circuit, program.period), mean, 1e-12)
        assert law.samples == 2500
        assert (
            np.diag(law.covariance).min()
            > np.diag(chunks_law(recipe, circuit, program.period, 900_000).covariance).min()
        )


@pytest.mark.parametrize(
    ("cells", "version", "recipe"),
    [
        (8, "39", HELD),
        (31, "46", HELD),
        (32, "39", STEPPED),
        (64, "41+", STEPPED),
        (32, "42", STEPPED_KLU),
        (64, "44.2", STEPPED_KLU),
        (64, "unknown", STEPPED),
    ],
)
def test_recipe_by_size_and_version(cells, version, recipe):
    assert choose_recipe(cells, version) == recipe


def test_results_name_their_recipe():
    slow = Recipe("held trrandom, as this ngspice has no filesource")
    for recipe in (HELD, STEPPED, STEPPED_KLU, slow):
        assert recipe_named(recipe.name) == recipe
    with pytest.raises(InputError, match="no recipe 'dice' of sampling"):
        recipe_named("dice")


@needs_ngspice
def test_recipe_for_the_installed_ngspice():
    large, small = board_and_program(m_matrix(32)), board_and_program(M_MATRIX)
    assert recipe_for(*small) == HELD
    assert recipe_for(*large).stepped
    # The resistance of a capacitor and the input beside it make modes a million times faster than a period.
    stiff = board_and_program(m_matrix(32), request=BoardRequest(parasitics=Parasitics(esr=0.05)))
    assert recipe_for(*stiff) == Recipe("held trrandom, as parasitics are too fast for filesource")
    text = circuit_text(*stiff, nominal_copy(stiff[0]), Conditions())
    with pytest.raises(InputError, match="parasitics too fast for the recipe 'filesource'"):
        chunk_deck(*stiff, text, 1, 1000, STEPPED)


@needs_ngspice
@pytest.mark.parametrize(
    ("version", "breaks", "name"),
    [
        ("39", "filesource", "held trrandom, as this ngspice has no filesource"),
        ("45.2", "klu", "filesource"),
        ("45.2", "filesource", "held trrandom, as this ngspice has no filesource"),
        ("45.2", "nothing at all", "filesource, klu"),
    ],
)
def test_recipe_falls_back_to_what_this_ngspice_runs(version, breaks, name, fake_ngspice):
    program = shutil.which("ngspice")
    fake_ngspice(
        f'if [ "$1" = --version ]; then echo "** ngspice-{version} : Circuit"; exit; fi\n'
        f'grep -q "{breaks}" deck.cir && exit 1\nexec {program} "$@"\n'
    )
    assert os.path.dirname(shutil.which("ngspice")) != os.path.dirname(program)
    assert recipe_for(*board_and_program(m_matrix(32))).name == name


@needs_ngspice
def test_an_ngspice_that_steps_otherwise_is_not_trusted(fake_ngspice):
    # The same deck with Euler's steps: every point is there, and the numbers are wrong.
    program = shutil.which("ngspice")
    fake_ngspice(
        '[ "$1" = --version ] && echo "** ngspice-39 :" && exit\n'
        f'sed -i "s/chgtol=1/chgtol=1 maxord=1/" deck.cir\nexec {program} "$@"\n'
    )
    assert not recipe_for(*board_and_program(m_matrix(32))).stepped
