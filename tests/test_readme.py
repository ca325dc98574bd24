"""The README says what happens: its commands are run and their output compared, its code is executed."""

import itertools
import json
import re
import statistics
import sys
import time
from pathlib import Path

import pytest
import typer
from conftest import needs_ngspice

from circuits.synthesis import BoardOptions, make_design, named_fisher
from tngd.__main__ import main
from tngd.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e[-+]\d+)?")
ROUNDING = 1e-9  # results below this are rounding, and differ from machine to machine


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def run(command: str, monkeypatch, capsys) -> str:
    program, *words = command.split()
    if program == "ls":
        return "\n".join(sorted(path.name for path in Path(words[0]).iterdir()))
    assert program == "tngd"
    monkeypatch.setattr(sys, "argv", ["tngd", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    return printed.out


def assert_same_output(found: str, written: str) -> None:
    """The same words, and the same numbers to two per cent: another machine may round the last digit otherwise.

    A number of one or two digits, 0.12 or 0.47, to one in the last of them: that alone is more than two per cent.
    """
    pairs = list(zip(found.strip().splitlines(), written.strip().splitlines(), strict=True))
    for now, then in pairs:
        assert NUMBER.sub("#", now).split() == NUMBER.sub("#", then).split()
        for a, b in zip(NUMBER.findall(now), NUMBER.findall(then), strict=True):
            x, y = (float(text.replace(",", "")) for text in (a, b))
            whole, _, decimals = b.partition(".")
            short = decimals.isdecimal() and len((whole + decimals).lstrip("0")) <= 2
            step = 1.01 * 10.0 ** -len(decimals) if short else 0
            assert x == pytest.approx(y, rel=0.02, abs=step) or max(x, y) < ROUNDING, f"now {now!r}, README {then!r}"


@needs_ngspice
def test_commands_print_what_the_readme_shows_and_its_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks("console"):
        for step in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, written = step.partition("\n")
            assert_same_output(run(command, monkeypatch, capsys), written)
    run("tngd calibrate boards/fair", monkeypatch, capsys)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.alone
@needs_ngspice
def test_demo_prints_what_the_readme_shows_within_three_minutes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = re.search(r"<!-- output of: (.*?) -->", README).group(1)
    assert f"$(BIN)/{command} $$force" in (ROOT / "Makefile").read_text()
    start = time.monotonic()
    found = run(command, monkeypatch, capsys)
    # Not a benchmark: the promise to somebody who waits, with a factor of two in hand.
    assert time.monotonic() - start < 180
    medians = [
        json.loads((tmp_path / "runs" / "fair" / kind / "verification.json").read_text())["population"]["single_median"]
        for kind in ("raw", "preconditioned")
    ]
    assert "{:.1f} % raw, {:.2f} %".format(*(100 * median for median in medians)) in " ".join(README.split())
    *table, page = found.strip().splitlines()
    assert page == str(tmp_path / "runs" / "fair" / "report.html")
    assert_same_output("\n".join(table), re.search(r"-->\n```text\n(.*?)^```$", README, re.M | re.S).group(1))


def test_rounding_gains_of_the_readme_are_those_stored():
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "rounding.jsonl").read_text().splitlines()]
    gain = {(row["grid"], row["condition"]): row["median_gain"] for row in rows}
    text = " ".join(README.split())
    assert "{:.1f} / {:.1f} times".format(gain["4-bit grid", 10], gain["4-bit grid", 30]) in text
    banks = "4-bit banks, preconditioned"
    assert "{:.1f} / {:.1f} / {:.1f} times: there".format(*(gain[banks, c] for c in (10, 30, 100))) in text
    for word, key in (
        ("by {:.1f} to {:.1f} %, the search", "median_error_nearest"),
        ("search by {:.1f} to {:.1f} %", "median_error"),
    ):
        errors = [100 * row[key] for row in rows if row["grid"] == banks]
        assert word.format(min(errors), max(errors)) in text
    assert "{:.1f} / {:.0f} / {:.0f} times on E24".format(*(gain["E24", c] for c in (10, 30, 100))) in text
    assert gain["4-bit grid", 100] is None
    made = make_design(named_fisher("fair", "fit")[0], choices=BoardOptions(series="E24"))
    words = f"{100 * made.rounding.error:.2f} % instead of the {100 * made.rounding.error_nearest:.1f} %"
    assert words in text


def test_every_verb_and_option_of_the_readme_exists():
    found: dict[str, set[str]] = {}
    for verb, command in typer.main.get_command(app).commands.items():
        # A verb with tasks of its own has the options of all.
        tasks = getattr(command, "commands", {"": command}).values()
        found[verb] = {option for task in tasks for parameter in task.params for option in parameter.opts}
    rows = dict(re.findall(r"^\| `tngd (\w+)[^|]*\|(.*)$", README, re.M))
    assert rows.keys() == found.keys()
    for verb in rows:
        whole = next(line for line in README.splitlines() if line.startswith(f"| `tngd {verb}"))
        for option in re.findall(r"--[a-z][a-z-]*", whole):
            assert option in found[verb], f"tngd {verb} has no {option}"


def evidence_rows(setting: str) -> list[str]:
    """The table of a comparison in benchmarks/mnist.json, from the runs themselves."""
    content = json.loads((ROOT / "benchmarks" / "mnist.json").read_text())["comparisons"][setting]
    ends = {
        key: {s: run["records"] for s, run in each["seeds"].items() if run["diverged"] is None}
        for key, each in content["methods"].items()
    }
    rows = []
    for key, runs in ends.items():
        said = [f"{len(runs)}" if len(runs) == len(content["methods"][key]["seeds"]) else
                f"{len(runs)} of {len(content['methods'][key]['seeds'])}"]  # fmt: skip
        for name, scale, digits in (("train_loss", 1, 3), ("test_loss", 1, 3), ("test_accuracy", 100, 2)):
            values = [scale * records[-1][name] for records in runs.values()]
            error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
            said.append(f"{statistics.mean(values):.{digits}f}{error}")
        times = [
            first_at(records, ends["adam"][s][-1]["train_loss"]) for s, records in runs.items() if s in ends["adam"]
        ]
        said.append("" if None in times else f"{statistics.mean(times):.1f}")
        said.append(f"{statistics.mean(sum(r['cpu_s'] for r in records) for records in runs.values()):.0f}")
        rows.append(f"| {content['methods'][key]['what']['title']} | {' | '.join(said)} |")
    return rows


def first_at(records: list[dict], target: float) -> float | None:
    """The epoch, between two by their straight line, at which the training loss is down to a target."""
    for before, after in itertools.pairwise(records):
        if after["train_loss"] <= target:
            return before["epoch"] + (before["train_loss"] - target) / (before["train_loss"] - after["train_loss"])
    return None


def calibration_rows() -> list[str]:
    """The two tables of benchmarks/calibration.jsonl."""
    stored = [json.loads(line) for line in (ROOT / "benchmarks" / "calibration.jsonl").read_text().splitlines()]
    fits = [
        f"| {row['board']} | {row['worst_error']:.1e} | {row['improvement']:,.0f} | "
        f"{100 * row['coverage_95']:.0f} % of {row['intervals']} | {row['seconds']:.0f} |"
        for row in stored
        if "board" in row
    ]
    trims = [
        f"| {row['target']}, {row['retrim']} | {row['programmings']} | {100 * row['rms_nearest']:.2f} % | "
        f"{100 * row['rms_own']:.3f} % | {row['times_better']:.0f} |"
        for row in stored
        if "retrim" in row
    ]
    return fits + trims


def test_calibration_of_the_readme_is_that_stored():
    for row in calibration_rows():
        assert row in README.splitlines(), row


@pytest.mark.parametrize("setting", ["paper", "lenet"])
def test_tables_of_the_evidence_are_those_stored(setting):
    for row in evidence_rows(setting):
        assert row in README.splitlines(), row


def accuracies(study: str, *names: str) -> str:
    """Mean test accuracies of cells of a study, as the README has them."""
    cells = json.loads((ROOT / "benchmarks" / "mnist.json").read_text())["studies"][study]["cells"]
    runs = [[run["records"][-1]["test_accuracy"] for run in cells[name]["seeds"].values()] for name in names]
    return " / ".join(f"{100 * statistics.mean(each):.1f}" for each in runs)


def test_sentences_of_the_evidence_are_those_stored():
    text, sgn, parts = " ".join(README.split()), ("0.0003", "0.001", "0.003"), ("0.1", "1.0", "5.0")
    dac = "converter DAC and ADC, full scale, rms {:.1f}, bits {}"
    for phrase in (
        f"1 / 8 / 32: {accuracies('history', *(f'T none, batches held {n}, lr 0.03' for n in (1, 8, 32)))} at the same",
        f"kept: {accuracies('kept-state', *(f'start {s}, delay 0.0, lr 0.03' for s in ('gradient', 'kept')))}, it is",
        f"∞: {accuracies('time', *(f'curvature ggn, time {t}' for t in (0.0, 0.2, 1.0, 5.0, 50.0, 'inf')))}, with the",
        f"10⁻¹ at t = 1: {accuracies('noise', *(f'noise {n}, lr 0.03' for n in (0.0, 0.001, 0.01, 0.1)))}: it does",
        f"bits: {accuracies('bits', *(dac.format(4, n) for n in (4, 6, 8, 12)))} at a full scale of 4 rms",
        f"clips, {accuracies('bits', *(dac.format(16, n) for n in (4, 6, 8, 12)))} at 16",
        f"{accuracies('sign', *(f'step sign of the natural gradient, lr {lr}' for lr in sgn))} and",
        f"and {accuracies('sign', *(f'step sign of the gradient, lr {lr}' for lr in sgn))}; Adam itself",
        f"tiles {accuracies('tolerance', *(f'device tiles, preconditioned, parts ±{t}%' for t in parts))}",
    ):
        assert phrase.strip() in text, phrase


def test_question_answering_of_the_readme_is_that_stored():
    content = json.loads((ROOT / "benchmarks" / "squad.json").read_text())
    loss = {method["name"]: f"{method['final']['batch_loss']['mean']:.3f}" for method in content["methods"]}
    text = " ".join(README.split())
    assert f"epoch is {loss['adam']}: TNGD's is {loss['tngd']}, TNGD-Adam's {loss['tngd-adam']}" in text
    assert f"ends at {loss['tngd-adam-paper']}, sign descent with the same step size at {loss['sign:lr=0.001']}" in text
    assert min(loss, key=loss.get) == "adam"
    assert f"| {content['cpu_s'] / 60:.0f} | `squad.json` |" in text


def stored_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "benchmarks" / f"{name}.jsonl").read_text().splitlines()]


def cost_rows() -> list[str]:
    """The table of benchmarks/optimizer.jsonl: steps in those of Adam, on both networks."""
    found: dict[str, list[float]] = {}
    for row in stored_rows("optimizer"):
        if "times_adam" in row:
            found.setdefault(row["method"], []).append(row["times_adam"])
    digits = {name: 0 if max(times) >= 100 else 1 for name, times in found.items()}
    return [f"| {name} | {' | '.join(f'{t:.{digits[name]}f}' for t in times)} |" for name, times in found.items()]


def speed_sentences() -> list[str]:
    """What the engine and tiles take, from the stored benchmarks."""
    held = [row["ratio"] for row in stored_rows("speed") if row["recipe"] == "held trrandom"]
    boards = next(r for r in stored_rows("process") if r["what"] == "boards: paths" and r["dtype"] == "float32")
    tiles = {(row["what"], row.get("time")): row["cpu_ms"] for row in stored_rows("tiles") if row["dtype"] == "float32"}
    thermox = [row["cpu_ratio"] for row in stored_rows("thermox") if "cpu_ratio" in row]
    return [
        f"{' / '.join(f'{ratio:,}' for ratio in held)} times as many effective samples a second as ngspice at 8 / 16",
        f"{' / '.join(f'{ratio:.1f}' for ratio in thermox)} times the speed of thermox",
        f"1,000 exact steps of 1,024 boards of 16 states take {boards['cpu_ms']:.0f} ms",
        f"4,096 tiles are programmed and solved in {tiles['capacitive', 'inf']:.1f} ms",
        f"after a finite time in {tiles['resistive', '5.0']:.1f} ms",
    ]


def test_costs_of_the_readme_are_those_stored():
    for row in cost_rows():
        assert row in README.splitlines(), row
    text = " ".join(README.split())
    for phrase in speed_sentences():
        assert phrase in text, phrase
