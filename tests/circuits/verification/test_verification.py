"""What verification.json says holds: errors by hand, the law of averaging, the same bytes for the same seed."""

import json

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR
from compare import FALSE_ALARM, NORMAL_BOUND, assert_close
from conftest import needs_ngspice
from simulated import rough_device

from circuits import Conditions, InputError
from circuits.copies import draw_gains
from circuits.model import draw_device
from circuits.netlist import load_design, write_design
from circuits.nodal import assemble_gains, assemble_many, nominal_circuit
from circuits.ou import nominal_hold_correction, reading_covariances
from circuits.simulation import Plan, load_measurements, measure, save_measurements
from circuits.simulation.transient import run_chunk
from circuits.statistics import estimate_law, inversion_rule
from circuits.statistics.moments import chunk_seed, chunk_sizes
from circuits.synthesis import make_design
from circuits.verification import VerifyOptions, describe_verification, verify
from circuits.verification import folder as verification_folder

SAMPLES = 6_000


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """Preconditioned `fair`, verified both ways."""
    folder = tmp_path_factory.mktemp("verified") / "run"
    write_design(make_design(FAIR, FAIR_FACTOR, name="fair"), folder)
    return folder, verification_folder.verify_folder(folder, VerifyOptions(samples=SAMPLES))


@needs_ngspice
def test_errors_are_what_the_written_inverses_say(verified):
    folder, _ = verified
    result = json.loads((folder / "verification.json").read_text())
    inverse = np.array(result["target"]["inverse"])
    assert_close(np.array(result["target"]["matrix"]) @ inverse, np.eye(8), 1e-12)
    entries = [*result["copies"], result["mean_of_copies"]]
    for entry in entries:
        for route in ("exact", "sampled"):
            found = np.array(entry[route]["inverse"])
            error = np.linalg.norm(found - inverse) / np.linalg.norm(inverse)
            assert entry[route]["relative_error"] == pytest.approx(error, rel=1e-12)
            factors = np.linspace(0.9, 1.1, 20_001)[:, None, None]
            free = np.linalg.norm(factors * found - inverse, axis=(1, 2)).min() / np.linalg.norm(inverse)
            assert entry[route]["scale_free_error"] == pytest.approx(free, rel=1e-3)
    assert_close(
        np.array(result["mean_of_copies"]["exact"]["inverse"]),
        np.mean([copy["exact"]["inverse"] for copy in result["copies"]], axis=0),
        1e-12,
    )
    assert result["nominal"]["exact"]["relative_error"] <= 1e-6


@needs_ngspice
def test_every_copy_agrees_with_its_own_law(verified):
    _, result = verified
    for copy in result["copies"]:
        assert copy["exact"]["difference_to_lyapunov"] <= 1e-6
        assert copy["exact"]["predicted_error"] == pytest.approx(copy["exact"]["relative_error"], rel=1e-6)
        assert copy["sampled"]["p_value"] > FALSE_ALARM
        assert copy["sampled"]["samples"] == SAMPLES
        curve = copy["sampled"]["curve"]
        assert curve["samples"][-1] == SAMPLES
        assert curve["relative_error"][-1] == copy["sampled"]["relative_error"]
        assert curve["expected_error"][-1] == pytest.approx(copy["sampled"]["expected_error"])
        assert copy["sampled"]["expected_error"] > copy["sampled"]["expected_floor"]
    samples = result["mean_of_copies"]["sampled"]["samples"]
    assert samples == 3 * SAMPLES


@needs_ngspice
def test_same_seed_gives_the_same_bytes_and_another_seed_other_noise(verified, tmp_path):
    folder, first = verified
    write_design(make_design(FAIR, FAIR_FACTOR, name="fair"), tmp_path / "run")
    assert (tmp_path / "run" / "board.json").read_bytes() == (folder / "board.json").read_bytes()
    verification_folder.verify_folder(tmp_path / "run", VerifyOptions(samples=SAMPLES))
    for file in ("verification.json", "statistics.npz"):
        assert (tmp_path / "run" / file).read_bytes() == (folder / file).read_bytes()
    other = verification_folder.verify_folder(tmp_path / "run", VerifyOptions("sampled", 1000, seed=1), force=True)
    assert other["copies"][0]["sampled"]["inverse"] != first["copies"][0]["sampled"]["inverse"]
    assert "exact" not in other["copies"][0]
    assert "exact" not in other["nominal"]


@needs_ngspice
def test_interrupted_run_goes_on_with_its_finished_chunks(tmp_path, monkeypatch):
    made = make_design(np.array([[1.0, 0.3], [0.3, 1.0]]))
    write_design(made, tmp_path / "run")
    design, decks = load_design(tmp_path / "run")
    calls = []
    monkeypatch.setattr("circuits.statistics.moments.CHUNK", 500)
    monkeypatch.setattr("circuits.simulation.measurement.run_chunk", _counting(calls, stop_at=3))
    with pytest.raises(KeyboardInterrupt):
        measure(design, decks, Plan(exact=False, samples=1000), chunks=tmp_path / "chunks")
    kept = len(list((tmp_path / "chunks").glob("*.npz")))
    assert 1 <= kept < 6
    calls.clear()
    monkeypatch.setattr("circuits.simulation.measurement.run_chunk", _counting(calls, stop_at=None))
    measured = measure(design, decks, Plan(exact=False, samples=1000), chunks=tmp_path / "chunks")
    assert len(calls) == 6 - kept
    fresh = measure(design, decks, Plan(exact=False, samples=1000))
    for copy in design.copies:
        assert measured[copy.name].moments.means.tobytes() == fresh[copy.name].moments.means.tobytes()


def _counting(calls: list, stop_at: int | None):
    def run(*arguments):
        calls.append(arguments)
        if stop_at is not None and len(calls) >= stop_at:
            raise KeyboardInterrupt
        return run_chunk(*arguments)

    return run


def test_copies_are_independent_of_each_other_of_seeds_and_of_drawn_devices():
    made = make_design(FAIR, FAIR_FACTOR, copies=2)
    parts = len(made.board.parts)
    gains = draw_gains(made.board, 0, 400)[:, :parts]
    unit = (gains - 1) / 0.01 * np.sqrt(3)
    assert abs(unit.mean()) < NORMAL_BOUND / np.sqrt(unit.size)
    # Correlations between parts and between copies: each is normal with variance 1/400, or 1/parts.
    for matrix, samples in ((unit.T @ unit / 400, 400), (unit @ unit.T / parts, parts)):
        off = matrix[~np.eye(len(matrix), dtype=bool)] * np.sqrt(samples)
        assert np.abs(off).max() < 6
        assert np.std(off) == pytest.approx(1, abs=0.05)
    other = (draw_gains(made.board, 1, 400)[:, :parts] - 1) / 0.01 * np.sqrt(3)
    assert abs(np.mean(unit * other)) < NORMAL_BOUND / np.sqrt(unit.size)
    drawn = draw_device(rough_device(0.01, 2), 0)
    for k, copy in enumerate(drawn.copies):
        device = [copy.gains[e.name].value - 1 for e in made.board.elements]
        own = [
            np.mean([made.copies[k].gains[p.name] for p in made.board.parts if p.element == e.name]) - 1
            for e in made.board.elements
        ]
        assert abs(np.corrcoef(device, own)[0, 1]) < NORMAL_BOUND / np.sqrt(len(own))


def test_preconditioning_makes_the_error_ten_times_smaller():
    raw, preconditioned = make_design(FAIR), make_design(FAIR, FAIR_FACTOR)
    errors = []
    for made in (raw, preconditioned):
        gains = draw_gains(made.board, 77, 400)
        circuits = assemble_gains(made.board, made.program, gains, Conditions())
        rule = inversion_rule(made)
        errors.append(np.median(rule.error(rule.read(reading_covariances(circuits)))))
    # 400 copies: 4.8 % and 0.41 % with a standard error of the median below 5 % of it.
    assert errors[0] == pytest.approx(0.045, rel=0.3)
    assert errors[1] == pytest.approx(0.0039, rel=0.3)


def test_hold_correction_removes_the_discretisation_from_the_nominal_board():
    made = make_design(FAIR)
    rule = inversion_rule(made)
    nominal, period = nominal_circuit(made.board, made.program), made.program.period
    law = estimate_law(nominal, period, 1000)
    assert rule.error(rule.read(law.mean)) > 0.02
    assert rule.error(rule.read(law.mean + nominal_hold_correction(nominal, period))) < 1e-11


def test_expected_error_is_the_root_mean_square_error_of_drawn_estimates():
    made = make_design(FAIR)
    rule = inversion_rule(made)
    circuit = assemble_many(made.board, made.program, made.copies, Conditions())[0]
    law = estimate_law(circuit, made.program.period, 5000)
    rng = np.random.default_rng(6)
    factor, draws = np.linalg.cholesky(law.covariance), 4000
    i, j = np.triu_indices(8)
    S = np.repeat(law.mean[None], draws, axis=0)
    S[:, i, j] += rng.normal(size=(draws, 36)) @ factor.T
    S[:, j, i] = S[:, i, j]
    squares = rule.error(rule.read(S) - rule.read(law.mean) + rule.inverse) ** 2
    error = squares.std() / np.sqrt(draws)
    assert abs(squares.mean() - rule.spread(law) ** 2) < NORMAL_BOUND * error


def test_samples_are_split_into_whole_blocks_with_seeds_of_their_own():
    assert chunk_sizes(1) == [500]
    assert chunk_sizes(60_001) == [25_000, 25_000, 10_500]
    seeds = {chunk_seed(seed, copy, chunk) for seed in range(5) for copy in range(5) for chunk in range(20)}
    assert len(seeds) == 500
    assert min(seeds) > 0


@needs_ngspice
def test_measurements_survive_the_file(verified, tmp_path):
    folder, _ = verified
    design, _ = load_design(folder)
    measured = load_measurements(folder / "statistics.npz", design)
    save_measurements(tmp_path / "again.npz", measured)
    assert (tmp_path / "again.npz").read_bytes() == (folder / "statistics.npz").read_bytes()
    result = describe_verification(verify(design, measured))
    assert result["copies"] == json.loads((folder / "verification.json").read_text())["copies"]


def test_copy_that_would_run_away_never_reaches_a_deck(tmp_path):
    bad = np.diag([1.0, 1.0]) + np.array([[0, 0.9999], [0.9999, 0]])
    with pytest.raises(InputError, match=r"is not positive definite.*--tolerance.*--damping.*--precondition"):
        make_design(bad, cells="active", tolerance=0.05, seed=1)
