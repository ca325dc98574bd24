"""Recorded voltages of a board: the statistics against literal ones, the law against simulated paths, the refusals."""

import json
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cases import TARGETS
from compare import FALSE_ALARM, NORMAL_BOUND, assert_close
from pydantic import TypeAdapter
from reference import kronecker_lyapunov
from scipy.linalg import expm
from scipy.stats import norm

from circuits import Conditions, Design, InputError, assemble
from circuits.copies import specimens
from circuits.nodal import lag_of
from circuits.ou import lagged_covariances
from circuits.statistics import judge_equilibrium, moments, read_recorded, streaming
from circuits.statistics.estimators import effective_samples, joint_chi_square
from circuits.statistics.moments import BLOCK
from circuits.statistics.recorded import RecordSummary, recorded_law
from circuits.synthesis import BoardOptions, Parasitics, make_design

PAIR = np.array([[1.5, -0.5], [-0.5, 1.0]])


@cache
def board(name: str = "pair", coupling: str = "capacitive", copies: int = 2, tolerance: float = 0.05) -> Design:
    target, congruence, _ = TARGETS.get(name, (PAIR, None, ""))
    extra = Parasitics(winding=20.0, coupled_coils=0.1, stray=3e-12) if coupling == "parasitic" else None
    choices = BoardOptions(coupling="resistive" if coupling == "resistive" else "capacitive")
    return make_design(
        target, congruence, copies=copies, tolerance=tolerance, seed=4, choices=choices, parasitics=extra
    )


def transition(circuit, period: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """F, Q, Σ and H of x' = F x + N(0, Q): Van Loan's block exponential, with fluxes in units that equal the volts."""
    C, G, E, K, R, noise = (
        circuit.capacitance,
        circuit.conductance,
        circuit.coils,
        circuit.inverse_inductance,
        circuit.loss,
        circuit.noise,
    )
    m, coils = E.shape
    A = np.block([[np.linalg.solve(C, G), np.linalg.solve(C, E @ K)], [-E.T, R @ K]])
    D = np.zeros_like(A)
    D[:m, :m] = 2 * np.linalg.solve(C, np.linalg.solve(C, noise).T)
    weber = np.sqrt(np.diag(C).mean() / np.diag(K).mean()) if coils else 1.0
    unit = np.array([1.0] * m + [weber] * coils)
    A, D = A * unit / unit[:, None], D / unit / unit[:, None]
    block = expm(np.block([[-A, D], [np.zeros_like(A), A.T]]) * period)
    F = block[: len(A), : len(A)]
    Q = block[: len(A), len(A) :] @ F.T
    H = np.hstack([circuit.readout, np.zeros((len(circuit.readout), coils))])
    return F, (Q + Q.T) / 2, kronecker_lyapunov(A, D), H


def path_of(circuit, period: float, samples: int, seed: int) -> np.ndarray:
    """Readings (samples, n) of a stationary path, step by step."""
    F, Q, covariance, H = transition(circuit, period)
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(Q)
    x = np.linalg.cholesky((covariance + covariance.T) / 2) @ rng.normal(size=len(F))
    states = np.empty((samples, len(F)))
    for k, kick in enumerate(rng.normal(size=states.shape) @ root.T):
        states[k] = x
        x = F @ x + kick
    return states @ H.T


def table(name: str, time, volts) -> pd.DataFrame:
    columns = {f"cell{i}_V": column for i, column in enumerate(np.asarray(volts).T, start=1)}
    return pd.DataFrame({"copy": name, "time_s": time} | columns)


def write(folder: Path, *tables: pd.DataFrame) -> Path:
    path = folder / "readings.csv"
    pd.concat(tables).to_csv(path, index=False)
    return path


def white(samples: int, cells: int = 2, seed: int = 0) -> np.ndarray:
    return 0.05 * np.random.default_rng(seed).normal(size=(samples, cells))


@pytest.mark.parametrize(
    ("name", "coupling", "tolerance", "samples"),
    [
        ("1x1", "capacitive", 0.05, 30_000),
        ("M-matrix", "capacitive", 0.05, 30_000),
        ("M-matrix", "resistive", 0.05, 30_000),
        ("fair, preconditioned", "capacitive", 0.05, 30_000),
        ("fair, raw", "capacitive", 0.01, 60_000),
        ("M-matrix", "parasitic", 0.05, 30_000),
    ],
)
def test_record_of_a_copy_follows_its_law_at_any_period(tmp_path, name, coupling, tolerance, samples):
    made = board(name, coupling, tolerance=tolerance)
    circuits = [assemble(made.board, made.program, copy, Conditions()) for copy in made.copies]
    n, tables = len(made.board.cells), []
    offset = np.linspace(-0.3, 0.2, n)
    for k, (copy, circuit, factor) in enumerate(zip(made.copies, circuits, (2.5, 0.8), strict=True)):
        period = factor * made.program.period
        volts = path_of(circuit, period, samples, seed=k) + offset
        tables.append(table(copy.name, period * np.arange(samples), volts))
    found = read_recorded(write(tmp_path, *tables), made)
    for copy, record, rows in zip(made.copies, found, tables, strict=True):
        about = record.summary
        assert about.name == copy.name
        assert about.period_s == pytest.approx(rows["time_s"][1], rel=1e-9)
        assert (about.readings, about.gaps, about.dropped, about.clipped, about.remarks) == (samples, 0, 0, (), ())
        assert_close(record.covariance, np.atleast_2d(np.cov(rows.iloc[:, 2:].T, ddof=0)), 1e-11)
        law = recorded_law(made, record, copy)
        assert joint_chi_square(record.covariance, law)[2] >= FALSE_ALARM
        assert joint_chi_square(1.25 * record.covariance, law)[2] < FALSE_ALARM
        # The standard error is that of the nominal board, whose parts differ by 5 %.
        assert (np.abs(about.mean_V - offset) < 1.1 * NORMAL_BOUND * about.mean_error_V).all()
        assert (np.abs(about.mean_V - offset) > 0.001 * about.mean_error_V).any()


def test_board_that_differs_from_the_nominal_one_is_told_from_it(tmp_path):
    made = board("M-matrix", tolerance=0.3)
    copy, period = made.copies[1], 4 * made.program.period
    circuit = assemble(made.board, made.program, copy, Conditions())
    path = write(tmp_path, table("copy-2", period * np.arange(40_000), path_of(circuit, period, 40_000, seed=5)))
    (record,) = read_recorded(path, made)
    assert joint_chi_square(record.covariance, recorded_law(made, record, copy))[2] >= FALSE_ALARM
    assert joint_chi_square(record.covariance, recorded_law(made, record))[2] < FALSE_ALARM
    nominal = recorded_law(made, record)
    assert_close(nominal.mean + record.mean_covariance, lagged_white(made, period)[0], 1e-9)


def lagged_white(made: Design, period: float) -> np.ndarray:
    return lagged_covariances(assemble(made.board, made.program, specimens(made)[0], Conditions()), period, held=False)


def grid_with_gaps() -> np.ndarray:
    """Positions (1,400,) of readings: stretches, short and long gaps, and lost readings one by one."""
    rng = np.random.default_rng(3)
    position = np.arange(1500)
    position += 3 * (position >= 1100) + 700 * (position >= 1200) + 2_000_000 * (position >= 1400)
    return np.delete(position, rng.choice(np.arange(1001, 1499), 100, replace=False))


@pytest.mark.parametrize(("coupling", "rows"), [("capacitive", 11), ("resistive", 333), ("resistive", 50_000)])
def test_pairs_and_law_of_a_record_with_gaps_are_those_of_the_literal_double_sum(tmp_path, coupling, rows):
    made, position = board(coupling=coupling), grid_with_gaps()
    period = 0.7 * made.program.period
    (record,) = read_recorded(write(tmp_path, table("copy-1", period * position, white(1400))), made, rows)
    apart = np.abs(position[:, None] - position)
    counts = np.bincount(apart[apart < len(record.pairs)], minlength=len(record.pairs))
    assert (2 * record.pairs[1:] == counts[1:]).all()
    assert record.pairs[0] == counts[0] == 1400
    assert len(record.pairs) > 200
    steps = np.diff(position)
    assert (record.summary.gaps, record.summary.missing) == ((steps > 1).sum(), (steps - 1).sum())
    assert record.summary.longest_gap == steps.max()

    copy = made.copies[0]
    F, _, covariance, H = transition(assemble(made.board, made.program, copy, Conditions()), period)
    far = 600  # periods after which nothing is left
    state, rho = covariance @ H.T, []
    for _ in range(far):
        rho.append(H @ state)
        state = F @ state
    rho = np.array([*rho, np.zeros((2, 2))])
    R = rho[np.minimum(apart, far)]  # (s, t, i, k)
    R = np.where((position[:, None] >= position)[..., None, None], R, R.swapaxes(2, 3))
    law = recorded_law(made, record, copy)
    V = R.sum(axis=(0, 1)) / 1400**2
    assert_close(law.mean, rho[0] - V, 1e-9)
    if coupling == "resistive":  # the inductors of the other take the slow part of the noise away, and V is small
        assert np.linalg.norm(V) > 0.5 / effective_samples(law) * np.linalg.norm(law.mean)
    i, j = np.triu_indices(2)
    about_mean = R - R.mean(axis=0) - R.mean(axis=1)[:, None] + R.mean(axis=(0, 1))
    product = np.einsum("stik,stjl->ijkl", R, about_mean, optimize=True)
    full = product + np.einsum("stil,stjk->ijkl", R, about_mean, optimize=True)
    assert_close(law.covariance, full[i, j][:, i, j] / 1400**2, 0.1 / effective_samples(law))


def test_reading_in_chunks_or_interleaved_changes_nothing(tmp_path):
    made = board()
    one, two = (table(f"copy-{k}", 1e-7 * np.arange(2300), 2.0 + white(2300, seed=k)) for k in (1, 2))
    one.loc[[7, 1500], "cell1_V"] = np.nan
    two = two.drop([400, 401, 900])
    path = write(tmp_path, one, two)
    whole = read_recorded(path, made)
    for k in range(2):
        volts = np.array((one.dropna(), two)[k].iloc[:, 2:])
        assert_close(whole[k].covariance, (volts - volts.mean(0)).T @ (volts - volts.mean(0)) / len(volts), 1e-12)
    for rows in (17, 1001):
        assert_same(read_recorded(path, made, rows), whole)
    pd.concat([two, one]).sort_values("time_s", kind="stable").to_csv(path, index=False)
    assert_same(read_recorded(path, made, 100), whole)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        for name in ("name", "readings", "gaps", "missing", "longest_gap", "dropped", "dropped_by_cell"):
            assert getattr(a.summary, name) == getattr(b.summary, name)
        assert a.summary.period_s == pytest.approx(b.summary.period_s, rel=1e-12)
        assert_close(a.summary.mean_V, b.summary.mean_V, 1e-12)
        for name in ("covariance", "mean_covariance", "moments", "block_readings", "pairs"):
            assert_close(getattr(a, name), getattr(b, name), 1e-12, name)


@pytest.mark.parametrize(("factor", "rows"), [(0.7, 3), (0.7, 333), (0.11, 50_000), (5.0, 50_000)])
def test_sums_are_literal_ones_over_pairs_without_a_gap(tmp_path, factor, rows):
    made, position = board("M-matrix"), grid_with_gaps()
    period, n = factor * made.program.period, len(made.board.cells)
    y = white(1400, n) + 2.0  # an offset costs digits of a fourth power
    y[:, 0] = y[:, 0] ** 3
    y[[20, 21, 300], 1] = np.nan
    (record,) = read_recorded(write(tmp_path, table("copy-1", period * position, y)), made, rows)
    kept = np.isfinite(y).all(axis=1)
    position, z = position[kept], y[kept] - y[kept].mean(axis=0)
    lag = max(1, round(lag_of(made.board, made.program) / factor))
    assert record.sums.lag == lag
    at = dict(zip(position.tolist(), z, strict=True))
    late = [t for t in at if all(t - k in at for k in range(lag + 1))]
    assert 500 < len(late) == record.sums.pairs
    assert_close(record.sums.lagged, sum(np.outer(at[t], at[t - lag]) for t in late), 1e-10)
    assert record.sums.readings == 1397
    assert_close(record.sums.fourth, (z**4).sum(axis=0), 1e-10)
    apart = np.abs(np.subtract.outer(late, late))
    counts = np.bincount(apart[apart < len(record.pairs)], minlength=len(record.pairs))
    assert (record.sums_pairs[1:] * 2 == counts[1:]).all()
    assert record.sums_pairs[0] == counts[0]


def test_record_without_a_pair_has_no_sums(tmp_path):
    made, period = board(), 0.2 * board().program.period
    assert lag_of(made.board, made.program) > 1
    position = np.delete(np.arange(3000), slice(2, None, 3))
    (record,) = read_recorded(write(tmp_path, table("copy-1", period * position, white(2000))), made)
    assert record.sums is None
    assert (record.sums_pairs == 0).all()


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
def test_equilibrium_of_a_record_is_judged_as_that_of_its_copy(tmp_path, coupling):
    made = make_design(*TARGETS["M-matrix"][:2], choices=BoardOptions(coupling=coupling, source_tolerance=0.4), seed=4)
    copy, period, samples = made.copies[0], 0.6 * made.program.period, 60_000
    circuit = assemble(made.board, made.program, copy, Conditions())
    y = path_of(circuit, period, samples, seed=8) + 0.3
    (record,) = read_recorded(write(tmp_path, table(copy.name, period * np.arange(samples), y)), made)
    rho = lagged_covariances(circuit, period, held=False)
    found = judge_equilibrium(record.sums, record.covariance, rho, (record.pairs, record.sums_pairs))
    assert record.sums.lag > 1
    assert min(found.asymmetry_p, found.kurtosis_p) > FALSE_ALARM
    assert found.predicted_asymmetry > 1e-3
    backwards = write(tmp_path, table(copy.name, period * np.arange(samples), np.abs(y[::-1] - 0.3) ** 1.2))
    (record,) = read_recorded(backwards, made)
    pairs = (record.pairs, record.sums_pairs)
    assert judge_equilibrium(record.sums, record.covariance, rho, pairs).kurtosis_p < FALSE_ALARM


@pytest.mark.parametrize("rows", [130, 50_000])
def test_blocks_are_added_up_in_pairs_when_they_are_too_many(tmp_path, monkeypatch, rows):
    volts = white(6700) + 0.5
    path = write(tmp_path, table("copy-1", 1e-7 * np.arange(6700), volts))
    centred = volts - volts.mean(axis=0)
    for most, size in ((1024, BLOCK), (4, 4 * BLOCK)):
        monkeypatch.setattr(moments, "MOST_KEPT_BLOCKS", most)
        (record,) = read_recorded(path, board(), rows)
        pieces = [centred[k : k + size] for k in range(0, 6700, size)]
        assert record.block_readings.tolist() == [len(piece) for piece in pieces]
        assert_close(record.moments, [piece.T @ piece / len(piece) for piece in pieces], 1e-11)
        assert_close(np.average(record.moments, axis=0, weights=record.block_readings), record.covariance, 1e-13)


def test_memory_does_not_grow_with_the_record(tmp_path):
    peaks = []
    for samples in (50_000, 300_000):
        rows = table("copy-1", 1e-7 * np.arange(samples), white(samples))
        path = write(tmp_path, rows.drop(np.arange(2000, samples, 40)))
        tracemalloc.start()
        read_recorded(path, board(), rows=4000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 4e6 < 300_000 * 3 * 8


def test_units_names_order_comments_and_quotes_of_the_columns(tmp_path):
    made = board()
    volts, time = white(1200), 1e-7 * np.arange(1200)
    (plain,) = read_recorded(write(tmp_path, table("copy-2", time, volts)), made)
    path = tmp_path / "other.csv"
    for seconds, per in (("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        rows = [
            f'{b * 1e6:.17g}, {t * per:.17g},"copy-2",{a * 1e3:.17g}' for t, (a, b) in zip(time, volts, strict=True)
        ]
        rows[5:5] = ['# 5 " of comment, with a quote', "", "   "]
        head = f'# a board of 8"\n\n"v2_uV",time_{seconds},copy, cell1_mV'
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([head, *rows, ""]).encode())
        (found,) = read_recorded(path, made)
        assert found.summary.name == "copy-2"
        assert_close(found.covariance, plain.covariance, 1e-13)
        assert_close(found.summary.mean_V, plain.summary.mean_V, 1e-12)
        assert found.summary.period_s == pytest.approx(1e-7, rel=1e-12)
        assert found.summary.remarks == ()


def test_readings_without_a_voltage_are_dropped_like_gaps(tmp_path):
    made = board()
    rows = table("copy-1", 1e-7 * np.arange(2000), white(2000)).astype({"cell1_V": object, "cell2_V": object})
    lost = {40: "", 41: "OVL", 900: "nan", 1999: "inf", 1500: "True"}
    for k, word in lost.items():
        rows.loc[k, "cell2_V"] = word
    rows.loc[900, "cell1_V"] = "-"
    kept = np.delete(np.arange(2000), list(lost))
    path = write(tmp_path, rows)
    for chunk in (100, 50_000):
        (found,) = read_recorded(path, made, chunk)
        about = found.summary
        assert (about.readings, about.dropped, about.gaps) == (1995, 5, 0)
        assert about.dropped_by_cell == {"cell1": 1, "cell2": 5}
        assert about.remarks == ("5 readings dropped that lack a voltage or have one beyond 1 kV (cell1 1, cell2 5)",)
        apart = np.abs(kept[:, None] - kept)
        assert (found.pairs[:50] == [(apart == k).sum() // (1 + (k > 0)) for k in range(50)]).all()
        assert_close(found.covariance, np.cov(white(2000)[kept].T, ddof=0), 1e-12)


@pytest.mark.parametrize("word", ["9.9e37", "-9.9e37", "1e9", "1e308", "-1000.5", "1e999"])
def test_overload_is_no_reading(tmp_path, word):
    made, y = board(), white(2000)
    rows = table("copy-1", 1e-7 * np.arange(2000), y).astype({"cell2_V": object})
    rows.loc[1234, "cell2_V"] = word
    (found,) = read_recorded(write(tmp_path, rows), made)
    assert found.summary.remarks == ("1 reading dropped that lacks a voltage or has one beyond 1 kV (cell2 1)",)
    assert_close(found.covariance, np.cov(np.delete(y, 1234, axis=0).T, ddof=0), 1e-12)
    assert joint_chi_square(found.covariance, recorded_law(made, found))[2] is not None
    json.dumps(TypeAdapter(RecordSummary).dump_python(found.summary, mode="json"), allow_nan=False)


def test_largest_voltage_is_a_reading(tmp_path):
    y = white(2000)
    y[55, 0], y[56, 0] = 1000.0, -1000.0
    (found,) = read_recorded(write(tmp_path, table("copy-1", 1e-7 * np.arange(2000), y)), board())
    assert found.summary.dropped == 0
    assert_close(found.covariance, np.cov(y.T, ddof=0), 1e-12)


def literal_outermost(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    levels, counts = np.unique(values, return_counts=True)
    filled = np.full(17, -np.inf), np.zeros(17, dtype=int)
    filled[0][: len(levels)], filled[1][: len(levels)] = levels[::-1][:17], counts[::-1][:17]
    return filled


@pytest.mark.parametrize("chunk", [1, 700, 5000])
def test_outermost_values_are_those_of_the_sorted_column(chunk):
    y = np.column_stack([quantised(white(5000, 3), 0.02), quantised(white(5000, 2, seed=1), 0.001), white(5000, 1)])
    kept = streaming.Outermost(6)
    for start in range(0, 5000 if chunk > 1 else 60, chunk):
        kept.add(y[start : start + chunk])
    y = y[: kept.readings]
    for i in range(6):
        for side, sign in enumerate((1, -1)):
            levels, counts = literal_outermost(sign * y[:, i])
            assert (kept.levels[side, :, i] == levels).all()
            assert (kept.counts[side, :, i] == counts).all()


def test_column_of_true_and_false_holds_no_voltages(tmp_path):
    rows = table("copy-1", 1e-7 * np.arange(1500), white(1500)).astype({"cell2_V": object})
    rows["cell2_V"] = "True"
    with pytest.raises(InputError, match="copy-1 has 0 readings with a voltage of every cell"):
        read_recorded(write(tmp_path, rows), board())


def test_small_jitter_and_any_long_pause_are_on_the_grid(tmp_path):
    rng = np.random.default_rng(0)
    time = 1e-7 * (np.arange(3000) + rng.uniform(-0.004, 0.004, 3000))
    time[2000:] += 1e-7 * 12345.4  # a pause is no whole multiple, but is to 1 % of itself
    (found,) = read_recorded(write(tmp_path, table("copy-1", time, white(3000))), board())
    assert found.summary.period_s == pytest.approx(1e-7, rel=1e-5)
    longest = found.summary.longest_gap
    assert longest == pytest.approx(12346.4, rel=1e-3)
    assert found.summary.remarks == (f"1 gap, {longest - 1:,} readings missing, the longest step {longest:,} periods",)


def clip_bits(cells: int, quantum: float) -> np.ndarray:
    """Quantisation of cells in volts, finer from cell to cell."""
    return quantum * 2.0 ** -np.arange(cells)


@pytest.mark.parametrize("memory", [0.0, 0.95])
def test_bell_curves_of_any_resolution_are_not_called_clipped(tmp_path, memory):
    # 16 cells of 3 to 18 bits in ±4 σ, 3 copies, two sides; the chance of a false alarm is far below 1e-5 each.
    made = board_of_sixteen()
    rng = np.random.default_rng(7)
    tables = []
    for copy in made.copies:
        y = 0.05 * rng.normal(size=(6000, 16))
        for k in range(1, len(y)):
            y[k] = memory * y[k - 1] + np.sqrt(1 - memory**2) * y[k]
        tables.append(table(copy.name, 1e-8 * np.arange(len(y)), quantised(y, clip_bits(16, 0.05))))
    for record in read_recorded(write(tmp_path, *tables), made):
        assert record.summary.clipped == ()


@cache
def board_of_sixteen() -> Design:
    return make_design(np.eye(16) + 0.5, copies=3)


def quantised(y: np.ndarray, steps) -> np.ndarray:
    return np.round(np.round(y / steps) * steps, 12)


def test_clipped_readings_are_counted_where_they_are(tmp_path):
    made = board()
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    period, samples = 3 * made.program.period, 40_000
    y = path_of(circuit, period, samples, seed=2)
    sigma = y.std(axis=0)
    step = 8 * sigma.max() / 2**16
    limits = np.round(np.array([[-9.0, 2.5], [-2.0, 2.0]]) * sigma[:, None] / step) * step
    volts = quantised(np.clip(y, *limits.T), step)
    (record,) = read_recorded(write(tmp_path, table("copy-1", period * np.arange(samples), volts)), made, 3000)
    expected = [
        ("cell1", (volts[:, 0] == volts[:, 0].max()).sum(), volts[:, 0].max()),
        ("cell2", (volts[:, 1] == volts[:, 1].max()).sum(), volts[:, 1].max()),
        ("cell2", (volts[:, 1] == volts[:, 1].min()).sum(), volts[:, 1].min()),
    ]
    assert [(clip.cell, clip.readings, clip.level_V) for clip in record.summary.clipped] == expected
    for clip in record.summary.clipped:
        assert clip.fraction == clip.readings / samples
        assert f"{clip.cell}: {clip.readings:,} readings at or beyond {clip.level_V:+.6g} V" in " ".join(
            record.summary.remarks
        )
    # They stay in, and the covariance shows it.
    assert_close(record.covariance, np.cov(volts.T, ddof=0), 1e-11)
    assert joint_chi_square(record.covariance, recorded_law(made, record, made.copies[0]))[2] < FALSE_ALARM


def railed(samples: int = 20_000) -> tuple[np.ndarray, float]:
    """White 16 bit readings of two cells, the first clipped at 0.08 V, and the step between codes."""
    step = 0.8 / 2**16
    rail = round(0.08 / step) * step
    return np.column_stack([quantised(np.minimum(white(samples, 1), rail), step), white(samples, 1, seed=1)]), rail


@pytest.mark.parametrize("upwards", [1, -1])
@pytest.mark.parametrize("fault", ["beyond", "split", "glitch", "glitches", "fifteen", "half"])
def test_clipping_is_found_behind_strays(tmp_path, fault, upwards):
    y, rail = railed()
    at = np.flatnonzero(y[:, 0] >= rail - 1e-9)
    level = y[at[0], 0]
    assert 800 < len(at) < 1400
    if fault == "beyond":
        y[at[7], 0] += 1e-4
    elif fault == "split":
        y[at[::2], 0] -= 3e-6
        level -= 3e-6
    elif fault == "glitch":
        y[at[7], 0] = 5.0
    elif fault == "glitches":  # are a pile-up themselves
        y[at[:60], 0], y[at[60], 0] = 5.0, 4.9
    elif fault == "fifteen":
        y[at[:15], 0] += 1e-4 * np.arange(1, 16)
    elif fault == "half":  # most of the readings are at the limit, on two codes
        y[:, 0] = np.minimum(y[:, 0], -0.02)
        y[::2, 0] = np.where(y[::2, 0] == -0.02, -0.020003, y[::2, 0])
        at, level = np.flatnonzero(y[:, 0] >= -0.020003), -0.020003
    (record,) = read_recorded(write(tmp_path, table("copy-1", 1e-5 * np.arange(len(y)), upwards * y)), board(), 3000)
    (clip,) = record.summary.clipped
    assert (clip.cell, clip.readings) == ("cell1", len(at))
    assert clip.level_V == pytest.approx(upwards * level, abs=1e-9)


def test_outliers_are_counted_and_named(tmp_path):
    made = board()
    sigma = np.sqrt(np.diag(recorded_nominal(made)))
    y, time = white(20_000) + np.array([1.0, -2.0]), 1e-5 * np.arange(20_000)
    strays = {5: (0, 5.0), 6: (0, 1.0 - 8.1 * sigma[0]), 7: (0, 1.0 + 7.8 * sigma[0]), 8: (1, -900.0), 9: (1, -900.0)}
    for k, (cell, volts) in strays.items():
        y[k, cell] = volts
    (record,) = read_recorded(write(tmp_path, table("copy-1", time, y)), made, 3000)
    assert [
        (far.cell, far.readings, far.at_least, far.deviations, far.largest_V) for far in record.summary.outliers
    ] == [
        ("cell1", 2, False, 8.0, 5.0),
        ("cell2", 2, False, 8.0, -900.0),
    ]
    remark = "2 readings farther than 8 standard deviations from the mean, the largest"
    assert record.summary.remarks == (f"cell1: {remark} 5 V", f"cell2: {remark} -900 V")
    assert_close(record.covariance, np.cov(y.T, ddof=0), 1e-11)  # they stay in

    y[200:216, 0] = 900.0  # take the mean 0.7 V away, and no other reading becomes an outlier by that
    y[100:140, 1] = np.linspace(3, 4, 40)
    (record,) = read_recorded(write(tmp_path, table("copy-1", time, y)), made, 3000)
    first, far = record.summary.outliers
    assert (first.readings, first.at_least, first.largest_V) == (16 + 2, False, 900.0)
    assert (far.readings, far.at_least, far.largest_V) == (17 + 2, True, -900.0)
    assert "cell2: at least 19 readings farther" in record.summary.remarks[1]


def recorded_nominal(made: Design) -> np.ndarray:
    return lagged_white(made, 1e-5)[0]


def test_bound_of_outliers_grows_with_records_that_reach_farther():
    kept = streaming.Outermost(1)
    kept.add(np.r_[white(2000, 1), [[9.0]]])
    for readings, bound in ((2001, 8.0), (10**13, 8.836)):
        kept.readings = readings
        (far,) = kept.outliers(["cell1"], np.zeros(1), np.full(1, 0.05))
        assert far.deviations == pytest.approx(max(8.0, norm.isf(0.5e-5 / readings)), rel=1e-9)
        assert far.deviations == pytest.approx(bound, rel=1e-3)


def test_law_is_that_of_the_ambient_temperature(tmp_path):
    made, samples = board("M-matrix"), 30_000
    period = 4 * made.program.period
    # Real boards change by 0.4 % from 27 to 70 °C; the sources of this one by 20 %.
    sources = tuple(replace(source, tempco=0.005) for source in made.board.sources)
    made = replace(made, board=replace(made.board, sources=sources))
    path = write(
        tmp_path,
        *(
            table(copy.name, period * np.arange(samples), path_of(warm, period, samples, seed=5))
            for copy in made.copies
            for warm in [assemble(made.board, made.program, copy, Conditions(70.0))]
        ),
    )
    for copy, cold, warm in zip(
        made.copies, read_recorded(path, made), read_recorded(path, made, ambient=70.0), strict=True
    ):
        assert (cold.summary.ambient, warm.summary.ambient) == (27.0, 70.0)
        assert_close(cold.covariance, warm.covariance, 0)
        assert joint_chi_square(warm.covariance, recorded_law(made, warm, copy))[2] >= FALSE_ALARM
        assert joint_chi_square(cold.covariance, recorded_law(made, cold, copy))[2] < FALSE_ALARM
        assert_close(recorded_law(made, cold, ambient=70.0).mean, recorded_law(made, warm).mean, 0)
        circuit = assemble(made.board, made.program, specimens(made)[0], Conditions(70.0))
        _, _, covariance, H = transition(circuit, period)
        assert_close(recorded_law(made, warm).mean + warm.mean_covariance, H @ covariance @ H.T, 1e-9)


def test_summary_goes_to_json_and_back(tmp_path):
    volts = np.clip(white(3000), None, 0.03)
    rows = table("copy-1", 1e-6 * np.arange(3000), volts).drop([50, 51])
    rows.loc[3, "cell1_V"] = np.nan
    rows.loc[4, "cell2_V"] = -7.0
    (record,) = read_recorded(write(tmp_path, rows), board())
    adapter = TypeAdapter(RecordSummary)
    text = json.dumps(adapter.dump_python(record.summary, mode="json"), allow_nan=False)
    back = adapter.validate_json(text)
    assert [clip.cell for clip in back.clipped] == ["cell1", "cell2"]
    assert len(back.remarks) == 5
    assert back.remarks == record.summary.remarks
    assert back.outliers == record.summary.outliers
    assert_close(back.mean_V, record.summary.mean_V, 0)
    assert back.dropped_by_cell == {"cell1": 1}


HEAD = "copy,time_s,cell1_V,cell2_V\n"
ROW = "copy-1,{},{},{}\n"


def body(samples: int = 1200, **changed: str) -> str:
    """Rows of copy-1 1e-7 s apart; `changed` rows (_k) are replaced."""
    y = white(samples)
    return "".join(changed.get(f"_{k}", ROW.format(k * 1e-7, float(y[k, 0]), float(y[k, 1]))) for k in range(samples))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "hold no header; they must begin with copy,time_s,cell1_V,…,cell2_V"),
        ("# only a comment\n\n", "hold no header"),
        (HEAD, "has a header but no readings"),
        (HEAD + "# nothing\n", "has a header but no readings"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "not a CSV file in UTF-8"),
        (("\ufeff" + HEAD).encode("utf-16"), "not a CSV file in UTF-8"),
        (HEAD.replace(",", ";"), "column 'copy;time_s;cell1_V;cell2_V' .* unknown .*cell2_V, with commas"),
        (HEAD.replace(",", "\t"), r"column 'copy\\ttime.* unknown .*cell2_V, with commas"),
        ("a" * 200_000, "column 'a{40}' of"),
        ("time_s,cell1_V,cell2_V\n", "no column for copy"),
        ("copy,cell1_V,cell2_V\n", "no column for time"),
        ("copy,time_s,cell1_V\n", "no column for cell2"),
        ("copy,time_s,cell1_V,cell2_V,cell3_V\n", "column 'cell3_V' .* unknown"),
        ("copy,time,cell1_V,cell2_V\n", "column 'time' .* unknown"),
        ("copy,time_s,cell1,cell2_V\n", "column 'cell1' .* unknown"),
        ("copy,time_s,cell1_kV,cell2_V\n", "column 'cell1_kV' .* unknown"),
        ("copy,time_s,cell1_V,v1_mV,cell2_V\n", "column 'cell1_V' .* there twice"),
        (HEAD + "copy-1,0,1,2,3\n", "first row of .* more fields"),
        (HEAD + body(9) + "copy-1,0,1,2,3\n", r"no table .*Expected 4 fields in line 11, saw 5"),
        (HEAD + body(9) + 'copy-1,0,1,"2\n', "no table .*EOF inside string"),
        (HEAD + "# x\n\ncopy-3,0,1,2\n", "line 4 is of copy 'copy-3'; this design has copy-1, copy-2"),
        (HEAD + 'copy-1,0,1,"2\n', "no table .*EOF inside string"),
        (HEAD.encode() + b"copy-1,0,1,2\ncop\xe9,1,1,2\n", "no table|is of copy"),
        (HEAD + body(3) + ",0,1,2\n", "line 5 is of copy 'nan'"),
        (HEAD + body(_7="copy-1,,1,2\n"), "line 9 has no time"),
        (HEAD + body(_1100="copy-1,soon,1,2\n"), "line 1102 has no time"),
        (HEAD + "\n# x\n" + body(_7=ROW.format(2e-7, 1, 2)), "line 11 is -4e-07 s .*in time order"),
        (HEAD + body(_1150=ROW.format(1149e-7, 1, 2)), "line 1152 is 0 s .*no two may share a time"),
        (
            HEAD + body(_1150=ROW.format(1150.03e-7, 1, 2)),
            "line 1152 is 1.03e-07 s .*multiple of the period 1e-07",
        ),
        (HEAD + body(_3=ROW.format(3.4e-7, 1, 2)), "line 5 is 1.4e-07 s .*no whole multiple"),
        (HEAD + ROW.format(0, 1, 2) * 1200, "line 3 is 0 s .*more digits, or start them at zero"),
        (
            HEAD + "".join(ROW.format(f"{1.7e9 + k * 1e-7:.7f}", k % 5, k % 7) for k in range(1, 1200)),
            "is 0 s .*more digits, or start them at zero",
        ),
        (HEAD + body(999), "copy-1 has 999 readings .* at least 1,000 are needed"),
        (HEAD + body(1000, _5=ROW.format(5e-7, "", 2)), "copy-1 has 999 readings"),
        (
            HEAD + "".join(ROW.format(k * 1e-7, 0.125, k % 7) for k in range(1000)),
            "cell1 of copy-1 reads 0.125 V",
        ),
        (HEAD + "".join(ROW.format(k * 1e-15, k % 5, k % 7) for k in range(1000)), "sampled every 1e-15 s, too often"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "readings.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for rows in (50_000, 300):
        with pytest.raises(InputError, match=message) as found:
            read_recorded(path, board(), rows)
        assert "\n" not in str(found.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_recorded(tmp_path / "none.csv", board())
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_recorded(tmp_path, board())
