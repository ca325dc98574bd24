"""The page of a folder of training results: it holds what the files hold, and nothing from elsewhere."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from simulated import rough_device

from circuits import InputError
from circuits.files import write_json
from circuits.model import describe_device, load_device
from circuits.model.device_file import device_hash
from tngd.report import comparison_tables, learning_curves, report, squad_table, study_table
from tngd.report.sheets import rich_table, seconds, sheet, with_error, with_interval
from tngd.report.training_plots import study_dots
from tngd.training.comparison import mean_and_error

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
MNIST, SQUAD = (json.loads((BENCHMARKS / name).read_text()) for name in ("mnist.json", "squad.json"))
METHODS = ("adam", "k-fac", "tngd-tiles", "cg-ngd")


def part(methods=METHODS, studies=("damping",)) -> dict:
    """Some of the stored evidence."""
    paper = MNIST["comparisons"]["paper"]
    few = paper | {key: {name: paper[key][name] for name in methods} for key in ("methods", "summary")}
    return MNIST | {"comparisons": {"paper": few}, "studies": {name: MNIST["studies"][name] for name in studies}}


class Page(HTMLParser):
    """Rows of all tables as text, and whatever a browser would fetch or run."""

    def __init__(self, path: Path):
        super().__init__()
        self.rows, self.outside, self.text, self.inside = [], [], "", False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.outside += [value for name, value in attributes if name in ("src", "data", "onclick", "onload")]
        self.outside += [tag] if tag in ("script", "link", "iframe", "object") else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("evidence")
    write_json(folder / "mnist.json", part())
    write_json(folder / "squad.json", SQUAD)
    write_json(folder / "other.json", {"mine": 1})
    (folder / "broken.json").write_text("[")
    (folder / "lab").mkdir()
    write_json(folder / "lab" / "rough.json", describe_device(rough_device(0.01, 3), {"seed": 3}))
    return Page(report(folder))


def row_of(page: Page, *starts: str) -> list[list[str]]:
    return [row for row in page.rows if tuple(row[: len(starts)]) == starts]


def crossing(records, last, spent) -> tuple[list[float], list[float], list[float]]:
    """Of the two records between which the training loss first comes down to another: -losses, epochs, seconds."""
    k = next(k for k, record in enumerate(records) if record["train_loss"] <= last["train_loss"])
    both = records[k - 1 : k + 1]
    return [-each["train_loss"] for each in both], [each["epoch"] for each in both], list(spent[k - 1 : k + 1])


def test_figures_are_those_of_the_records(page):
    """Mean and standard error of the last records, worked out here."""
    for key in METHODS:
        method = MNIST["comparisons"]["paper"]["methods"][key]
        runs = [run["records"] for run in method["seeds"].values() if run["diverged"] is None]
        figures = []
        for name, times in (("train_loss", 1), ("test_loss", 1), ("test_accuracy", 100)):
            last = [times * records[-1][name] for records in runs]
            mean = sum(last) / len(last)
            figures += [mean, (sum((x - mean) ** 2 for x in last) / (len(last) - 1) / len(last)) ** 0.5]
        final, against, *_, settings = row_of(page, method["what"]["title"])  # of some one against the ideal device too
        seeds = f"{len(runs)}" + (", 1 diverged" if key == "cg-ngd" else "")
        assert final[1] == seeds
        shown = [float(number) for cell in final[2:5] for number in cell.removesuffix(" %").split(" ± ")]
        assert np.abs(np.array(shown) - figures).max() < 0.00501
        assert np.abs(np.array(shown) - figures)[:4].max() < 0.0000501
        assert len(against) == 5
        assert f"lr {method['what']['settings']['lr']}" in settings[1]
    (kfac,) = (row for row in row_of(page, "K-FAC with momentum") if len(row) == 5)
    runs, others = (MNIST["comparisons"]["paper"]["methods"][key]["seeds"] for key in ("k-fac", "adam"))
    name = "test_accuracy"
    times = []
    for s, run in runs.items():
        spent = np.cumsum([record["cpu_s"] for record in run["records"]])
        losses, epochs, seconds = crossing(run["records"], others[s]["records"][-1], spent)
        last = -others[s]["records"][-1]["train_loss"]
        times.append((np.interp(last, losses, epochs), np.interp(last, losses, seconds)))
    epochs, seconds = np.mean(times, axis=0)
    assert kfac[1] == f"{epochs:.2f} ({seconds:.3g} s)"
    gains = [100 * (run["records"][-1][name] - others[s]["records"][-1][name]) for s, run in runs.items()]
    half = 2.2621572 * np.std(gains, ddof=1) / 10**0.5  # Student's t, 97.5 %, 9 degrees of freedom
    assert kfac[4] == f"+{np.mean(gains):.2f} ± {half:.2f}"


def test_every_part_of_the_evidence_is_there(page):
    assert not page.outside
    assert "mine" not in page.text
    for method in SQUAD["methods"]:
        (row,) = row_of(page, method["name"])
        scores = [[run["records"][-1][name] for run in method["runs"]] for name in ("exact_match", "f1")]
        assert [cell.split(" ± ")[0] for cell in row[4:6]] == [f"{np.mean(each):.1f}" for each in scores]
    damping = [row for row in page.rows if row[:2] == ["0.01", "0.03"]]
    assert damping == [["0.01", "0.03", "1, 2 diverged", *damping[0][3:]]]
    assert "2 of 3 diverged" in page.text
    assert not re.search(r"\bnan\b|\bNone\b|Undefined", page.text)


def test_devices_are_found_by_their_hash(page, tmp_path):
    board = load_device("board-1")
    fit = next(iter(board.fitted_on["copies"].values()))
    (row,) = row_of(page, "board-1")
    assert row[3] == "MNIST, paper"
    assert row[6] == f"{fit['rms_residual_uncalibrated']:.3g} → {fit['rms_residual']:.3g}"
    copy = board.copies[0]
    every = (*copy.gains.values(), *copy.temperatures, *copy.inductances)
    errors = [estimate.value - 1 for estimate in every if estimate.observed]
    assert row[5] == f"{100 * np.mean(np.square(errors)) ** 0.5:.2f}%"
    assert row_of(page, "lab/rough")[0][3] == ""
    content = part(("adam", "tngd-tiles"), ())
    text = json.dumps(content).replace(device_hash(board), "0" * 64)
    (tmp_path / "mnist.json").write_text(text)
    other = Page(report(tmp_path))
    assert not row_of(other, "board-1")
    assert f"made on a device of hash {'0' * 64}" in other.text


def test_damaged_evidence_is_refused_and_an_empty_folder_too(tmp_path):
    with pytest.raises(InputError, match="no results of training"):
        report(tmp_path)
    for content in ({"schema": "tngd.mnist/1"}, {"schema": "tngd.squad/1", "methods": 3}, {"schema": "tngd.device/4"}):
        write_json(tmp_path / "x.json", content)
        with pytest.raises(InputError):
            report(tmp_path)
        assert not (tmp_path / "report.html").exists()
    (tmp_path / "x.json").write_text('{"schema": "tngd.mnist/1", ')
    with pytest.raises(InputError, match="not readable JSON"):
        report(tmp_path)


def test_terminal_and_page_have_the_same_text(page):
    found = part()
    sheets = [*comparison_tables("paper", found["comparisons"]["paper"]), squad_table(SQUAD)]
    sheets.append(study_table("damping", found["studies"]["damping"]))
    for each in sheets:
        table = rich_table(each)
        assert [column.header for column in table.columns] == list(each.columns)
        assert list(zip(*(column.cells for column in table.columns), strict=True)) == list(each.rows)
        assert all(list(row) in page.rows for row in (each.columns, *each.rows))


def test_numbers_are_written_with_their_errors():
    value = {"mean": 0.123456, "standard_error": 0.00789}
    assert with_error(value, 3) == "0.123 ± 0.008"
    assert with_error(value | {"standard_error": None}, 2, 100, " %") == "12.35 %"
    assert with_interval({"mean": 0.01, "half_width_95": 0.02}, 1, 100) == "+1.0 ± 2.0"
    assert with_interval({"mean": -0.01, "half_width_95": None}, 2) == "-0.01"
    assert with_interval(None, 2) == ""
    assert [seconds({"mean": mean, "standard_error": 0.5}) for mean in (3.25, 122.4)] == ["3.2 ± 0.5", "122 ± 0"]
    assert sheet("", ("a", "b", "c"), [("x",)]).rows == (("x", "", ""),)


def test_the_mean_of_losses_that_ran_away_is_a_number():
    assert mean_and_error([1e300, 3e300]) == {"mean": pytest.approx(2e300), "standard_error": pytest.approx(1e300)}
    assert mean_and_error([1.7e308, 1.7e308]) == {"mean": pytest.approx(1.7e308), "standard_error": 0.0}
    assert mean_and_error([5e-324]) == {"mean": 5e-324, "standard_error": None}
    values = np.random.default_rng(0).lognormal(size=7)
    found = mean_and_error(values)
    assert found == {"mean": np.mean(values), "standard_error": np.std(values, ddof=1) / 7**0.5}


def test_figures_name_every_method_once_and_hold_its_numbers():
    paper = part()["comparisons"]["paper"]
    figure = learning_curves(paper)
    for method in paper["methods"].values():
        assert figure.count(f">{method['what']['title']}<") == 1
    assert figure == learning_curves(paper)
    lost = {key: method | {"seeds": {}} for key, method in paper["methods"].items()}
    assert learning_curves(paper | {"methods": lost}).startswith("<svg")
    study = MNIST["studies"]["damping"]
    dots = study_dots(study)
    assert dots.count("3 of 3 diverged") == sum(each["diverged"] == 3 for each in study["summary"].values())
