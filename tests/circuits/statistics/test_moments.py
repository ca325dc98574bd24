"""Memory does not grow with the record; a failed job costs itself alone; how many samples an error takes."""

import tracemalloc

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR
from compare import assert_close
from conftest import needs_ngspice

from circuits import Conditions, SimulationError, assemble
from circuits.netlist import circuit_of, decks
from circuits.simulation import Plan, measure
from circuits.simulation import measurement as simulation_measure
from circuits.simulation.measurement import error_of_one
from circuits.simulation.transient import HELD, Chunk
from circuits.statistics import estimate_law, inversion_rule
from circuits.statistics.equilibrium import Sums
from circuits.statistics.moments import BLOCK, CHUNK, MOST_BLOCKS, Accumulator, running
from circuits.synthesis import make_design

TWO = make_design(np.array([[1.0, 0.3], [0.3, 1.0]]), copies=1)
CIRCUITS = {name: circuit_of(text) for name, text in decks(TWO)}


@pytest.mark.parametrize("blocks", [1, 7, MOST_BLOCKS, 3 * MOST_BLOCKS + 50])
def test_blocks_in_any_order_give_the_moments_of_the_record(blocks):
    rng = np.random.default_rng(blocks)
    means = rng.normal(size=(blocks, 2, 2))
    accumulator = Accumulator(blocks, 10, 2)
    starts = np.arange(0, blocks, 3)
    for start in rng.permutation(starts):
        accumulator.add(int(start), means[start : start + 3])
    found = accumulator.moments()
    assert found.samples == 10 * blocks
    assert len(found.readings) <= MOST_BLOCKS
    assert_close(found.mean, means.mean(axis=0), 1e-12)
    readings, partial = running(found, 20)
    for count, moment in zip(readings // 10, partial, strict=True):
        assert_close(moment, means[:count].mean(axis=0), 1e-12)
    assert readings[-1] == 10 * blocks


def test_fifty_million_readings_take_no_more_memory_than_one(monkeypatch):
    # A fake engine delivers the chunks; what the package keeps of them is its own.
    def chunk(board, program, deck, samples):
        return Chunk(np.full((samples // BLOCK, 2, 2), 1.0), Sums(1, samples - 1, np.eye(2), samples, np.ones(2)))

    monkeypatch.setattr(simulation_measure, "run_chunk", chunk)
    monkeypatch.setattr(simulation_measure, "chunk_deck", lambda *_: "deck")
    monkeypatch.setattr(simulation_measure, "recipe_for", lambda *_: HELD)
    monkeypatch.setattr(simulation_measure, "find_ngspice", lambda: "ngspice")
    monkeypatch.setattr(simulation_measure, "ngspice_version", lambda _: "0")
    peaks = []
    for samples in (1_000_000, 50_000_000):
        tracemalloc.start()
        run = measure(TWO, CIRCUITS, Plan(exact=False, samples=samples))["copy-1"]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert run.moments.samples == samples
        assert_close(run.moments.mean, np.ones((2, 2)), 1e-12)
    assert peaks[1] < peaks[0] + 3_000_000  # of which a list of 2,000 jobs is the larger part


@needs_ngspice
def test_a_job_that_fails_is_tried_again_when_the_others_are_done(monkeypatch):
    real, seen, failing = simulation_measure.run_chunk, [], 1

    def chunk(board, program, deck, samples):
        seen.append(deck)
        if len(seen) <= failing:
            raise SimulationError("ngspice crashed with signal 11")
        return real(board, program, deck, samples)

    monkeypatch.setattr(simulation_measure, "run_chunk", chunk)
    monkeypatch.setattr("circuits.statistics.moments.CHUNK", 500)
    plan = Plan(exact=False, samples=2000)
    run = measure(TWO, CIRCUITS, plan)["copy-1"]
    assert len(seen) == 5
    assert seen[-1] == seen[0]
    failing, seen[:] = 0, []
    assert measure(TWO, CIRCUITS, plan)["copy-1"].moments.means.tobytes() == run.moments.means.tobytes()


@needs_ngspice
def test_a_job_that_fails_twice_ends_the_run_when_all_others_are_kept(monkeypatch, tmp_path):
    real = simulation_measure.run_chunk

    def chunk(board, program, deck, samples):
        if "seed=" in deck and deck == bad:
            raise SimulationError("ngspice crashed with signal 11")
        return real(board, program, deck, samples)

    monkeypatch.setattr("circuits.statistics.moments.CHUNK", 500)
    bad = simulation_measure.chunk_deck(
        TWO.board, TWO.program, CIRCUITS["copy-1"], simulation_measure.chunk_seed(0, 1, 0), 500, HELD
    )
    monkeypatch.setattr(simulation_measure, "run_chunk", chunk)
    with pytest.raises(SimulationError, match="signal 11"):
        measure(TWO, CIRCUITS, Plan(exact=False, samples=2000), chunks=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 3


@pytest.mark.parametrize("factor", [None, FAIR_FACTOR])
def test_error_of_one_reading_is_that_of_the_worst_copy_at_any_number(factor):
    made = make_design(FAIR, factor)
    rule = inversion_rule(made)
    one = error_of_one(made, rule, 27.0)
    for samples in (CHUNK, 10 * CHUNK):
        circuits = [assemble(made.board, made.program, copy, Conditions()) for copy in made.copies]
        spreads = [rule.spread(estimate_law(c, made.program.period, samples, CHUNK)) for c in circuits]
        assert max(spreads) == pytest.approx(one / np.sqrt(samples), rel=1e-9)
