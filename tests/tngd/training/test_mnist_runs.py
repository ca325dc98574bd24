"""The comparison on images: fair by construction, repeatable, never lost, and its statistics right."""

import json
import struct
import sys
import textwrap
import threading
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from circuits import InputError
from circuits.model import load_device
from tngd import cli
from tngd.__main__ import main
from tngd.curvature import CROSS_ENTROPY
from tngd.optimizer import ExactNGD
from tngd.report.training_plots import NAME
from tngd.training import METHODS, STUDIES, make_optimizer, mnist_runs
from tngd.training import mnist_runs as training_mnist_runs
from tngd.training.comparison import mean_and_error, paired_difference, reached, summary
from tngd.training.methods import TUNED, on_device
from tngd.training.mnist import FILES, NETWORKS, SETTINGS, Setting, load_data, mnist_trial, tuning_trial
from tngd.training.mnist_runs import SCHEMA, change_results, claim, read_results

TINY = ("--train-size", "128", "--test-size", "64", "--epochs", "1", "--seeds", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits of 8 x 8, each pixel as 3 x 3 with a border of two, in the four files of MNIST: 300 and 100 of them."""
    digits, labels = load_digits(return_X_y=True)
    images = np.pad(np.kron(digits.reshape(-1, 8, 8), np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    images = np.round(images * 255 / 16).astype(np.uint8)
    place = tmp_path_factory.mktemp("data")
    for rows, names in ((slice(300), list(FILES)[:2]), (slice(300, 400), list(FILES)[2:])):
        for name, array in zip(names, (images[rows], labels[rows].astype(np.uint8)), strict=True):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (place / name).write_bytes(header + array.tobytes())
    return place


@pytest.fixture
def tngd(monkeypatch, capsys, folder, tmp_path):
    """Run `tngd train mnist`; exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["tngd", "train", "mnist", "--data", str(folder), *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return stopped.value.code, said.out, said.err

    return call


def without_times(content):
    if isinstance(content, dict):
        return {k: without_times(v) for k, v in content.items() if k not in ("cpu_s", "wall_s", "summary")}
    return [without_times(each) for each in content] if isinstance(content, list) else content


# --- statistics


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 12):
        a, b = rng.normal(size=(2, n))
        found = mean_and_error(list(a))
        assert found["mean"] == pytest.approx(a.mean(), rel=1e-10)
        assert found["standard_error"] == pytest.approx(stats.sem(a), rel=1e-10)
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        paired = paired_difference(list(a), list(b))
        assert paired["mean"] - paired["half_width_95"] == pytest.approx(low, rel=1e-10)
        assert paired["mean"] + paired["half_width_95"] == pytest.approx(high, rel=1e-10)
    assert mean_and_error([2.0]) == {"mean": 2.0, "standard_error": None}
    assert paired_difference([2.0], [0.5]) == {"mean": 1.5, "half_width_95": None}


def curve(losses, cpu=2.0):
    figures = {"train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5}
    return [
        {"epoch": k, "cpu_s": cpu if k else 0.0, "train_loss": loss} | figures | {"test_loss": 2 * loss}
        for k, loss in enumerate(losses)
    ]


def test_when_a_target_is_reached():
    records = curve([2.0, 1.0, 1.5, 0.5])
    assert reached(records, 3.0) == {"epochs": 0.0, "cpu_s": 0.0}
    assert reached(records, 1.25) == {"epochs": 0.75, "cpu_s": 1.5}
    assert reached(records, 1.0) == {"epochs": 1.0, "cpu_s": 2.0}
    assert reached(records, 0.75) == {"epochs": 2.75, "cpu_s": 5.5}
    assert reached(records, 0.5) == {"epochs": 3.0, "cpu_s": 6.0}
    assert reached(records, 0.4) is None


def test_summary_pairs_seeds_and_leaves_out_what_diverged():
    def run(losses, diverged=None):
        return {"records": curve(losses), "diverged": diverged}

    found = summary(
        {
            "adam": {"0": run([2, 1]), "1": run([2, 0.5]), "2": run([2], "epoch 1: lost")},
            "other": {"0": run([2, 0.8]), "1": run([2, 0.6]), "2": run([2, 0.1])},
            "lost": {"0": run([2], "epoch 1: lost")},
        }
    )
    assert found["adam"]["finished"] == 2
    assert found["adam"]["diverged"] == 1
    assert found["adam"]["train_loss"]["mean"] == 0.75
    assert "minus_adam" not in found["adam"]
    assert found["other"]["train_loss"]["mean"] == pytest.approx(0.5)
    minus = found["other"]["minus_adam"]["train_loss"]  # seeds 0 and 1 alone: -0.2 and 0.1
    assert minus["mean"] == pytest.approx(-0.05)
    assert minus["half_width_95"] == pytest.approx(stats.t.ppf(0.975, 1) * 0.3 / sqrt(2) / sqrt(2))
    assert found["other"]["to_adam"] == {"reached": 1, "of": 2}  # seed 1 stays above 0.5
    assert found["adam"]["to_adam"]["epochs"] == {"mean": 1.0, "standard_error": 0.0}
    assert found["lost"] == {"finished": 0, "diverged": 1}


# --- methods


def test_every_tuned_method_has_the_same_budget():
    for key, method in METHODS.items():
        assert len(method.choices) == (8 if method.grid else 1), key
        assert method.tuned_as is None or (not method.grid and METHODS[method.tuned_as].grid)
    for tuned in TUNED.values():
        for key, settings in tuned.items():
            assert settings in METHODS[key].choices


STORED = Path(__file__).parents[3] / "benchmarks" / "mnist.json"


@pytest.mark.skipif(not STORED.exists(), reason="the evidence is not made yet: tngd train mnist --tune")
def test_settings_of_the_package_are_the_best_of_the_stored_tuning():
    comparisons = read_results(STORED)["comparisons"]
    found = {name: {key: each["best"] for key, each in entry["tuning"].items()} for name, entry in comparisons.items()}
    assert found == TUNED
    for entry in comparisons.values():
        for tuned in entry["tuning"].values():
            useful = [each for each in tuned["choices"] if each["held_loss"] is not None]
            assert min(useful, key=lambda each: each["held_loss"])["settings"] == tuned["best"]
            assert len(tuned["choices"]) == 8


def test_exact_ngd_of_the_comparison_is_woodbury_on_explicit_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, 28, 28, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (3,), generator=generator)
    moved = []
    for make in (
        lambda m: make_optimizer("TNGD", {"time": "inf", "lr": 0.1, "damping": 0.03}, m, None, 0),
        lambda m: ExactNGD(m.parameters(), lr=0.1, damping=0.03),
    ):
        torch.manual_seed(0)
        model = NETWORKS["small"]().double()
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        make(model).step(lambda model=model: (model(x), y))
        moved.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before)
    assert float((moved[0] - moved[1]).norm() / moved[1].norm()) < 1e-10


def test_adam_without_memory_is_a_step_of_signs():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 5, generator=generator), torch.randint(3, (16,), generator=generator)
    settings = {"beta1": 0.0, "beta2": 0.0, "lr": 0.01}
    plain, natural = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    before = plain.weight.detach().clone()
    CROSS_ENTROPY.value(plain(x), y).backward()
    sign = plain.weight.grad.sign()
    make_optimizer("Adam", settings, plain, None, 0).step()
    assert torch.allclose(plain.weight.detach(), before - 0.01 * sign, atol=1e-6)
    before = natural.weight.detach().clone()
    made = make_optimizer("TNGD-Adam", settings | {"damping": 0.1, "time": 50.0}, natural, None, 0)
    made.step(lambda: (natural(x), y))
    assert torch.allclose((natural.weight.detach() - before).abs(), torch.tensor(0.01), atol=1e-6)


def test_every_cell_of_every_study_steps(folder):
    data = load_data(folder)
    for name, study in STUDIES.items():
        assert len({cell.name for cell in study.cells}) == len(study.cells)
        assert len({tuple(cell.varied) for cell in study.cells if len(cell.varied) > 1}) == 1, name
        for cell in study.cells:
            assert not on_device(cell.kind, cell.settings)
            trial = mnist_trial("x", cell.kind, cell.settings, Setting("small", 8, 8, 8, 1, 1), data, None, 0)
            model = trial.model()
            optimizer = trial.optimizer(model)
            if hasattr(optimizer, "last"):
                optimizer.step(lambda model=model, trial=trial: trial.forward(model, torch.arange(8)))
                assert optimizer.last is not None


def test_tiles_and_arrays_are_of_the_device_they_are_given(folder):
    data, setting = load_data(folder), Setting("small", 64, 32, 16, 1, 1)

    def step(kind, settings, device, seed=0):
        trial = mnist_trial("x", kind, settings, setting, data, device, seed)
        torch.manual_seed(0)
        model = trial.model()
        made = trial.optimizer(model)
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        made.step(lambda: trial.forward(model, torch.arange(16)))
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before, made.last

    devices = {name: load_device(name) for name in ("ideal", "board-1", "worst-case")}
    tiles = {name: step("tiles", {"damping": 0.1}, device) for name, device in devices.items()}
    assert tiles["ideal"][1].deviation < 1e-6
    assert 1e-4 < tiles["board-1"][1].deviation < tiles["worst-case"][1].deviation
    settings = {"damping": 0.1, "rows": 16 * 9}
    arrays = {name: step("arrays", settings, device)[0] for name, device in devices.items()}
    exact = step("TNGD", {"damping": 0.1}, None)[0]
    off = {name: float((array - exact).norm() / exact.norm()) for name, array in arrays.items()}
    assert off["ideal"] < 1e-4
    assert off["board-1"] > 1e-3
    rough = [step("tiles", {"damping": 0.1, "tolerance": t}, None)[1].deviation for t in (0.001, 0.05)]
    assert rough[0] < rough[1]
    spread = {"damping": 0.1, "rows": 16 * 9, "deviation": 0.01}
    same, again, other = (step("arrays", spread, None, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    with pytest.raises(InputError, match="give --device"):
        mnist_trial("x", "tiles", {"damping": 0.1}, setting, data, None, 0)


# --- data of tuning


def test_tuning_sees_no_test_image_and_is_judged_by_images_it_does_not_train_on(folder):
    data = load_data(folder)
    trial = tuning_trial("x", "SGD", {"lr": 0.1}, Setting("small", 300, 100), data, None, 0)
    assert trial.samples == 240
    assert trial.settings["evaluated"] == {"held": 60}
    torch.manual_seed(0)
    model = trial.model().requires_grad_(False)
    outputs = model(data.images.train_images[240:])
    expected = torch.nn.functional.cross_entropy(outputs, data.images.train_labels[240:])
    assert trial.evaluate(model)["held_loss"] == pytest.approx(float(expected), rel=1e-5)
    _, targets = trial.forward(model, torch.arange(240))
    assert torch.equal(targets, data.images.train_labels[:240])
    assert tuning_trial("x", "SGD", {}, SETTINGS["lenet"], data, None, 0).settings["network"] == "lenet"


def test_figures_are_those_of_all_images_at_once(folder, monkeypatch):
    monkeypatch.setattr("tngd.training.mnist.AT_ONCE", 7)
    data = load_data(folder)
    trial = mnist_trial("x", "SGD", {"lr": 0.1}, Setting("small", 200, 90), data, None, 0)
    torch.manual_seed(0)
    model = trial.model().requires_grad_(False)
    found = trial.evaluate(model)
    for name, x, y in (
        ("train", data.images.train_images[:200], data.images.train_labels[:200]),
        ("test", data.images.test_images[:90], data.images.test_labels[:90]),
    ):
        outputs = model(x)
        assert found[f"{name}_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)), rel=1e-5)
        assert found[f"{name}_accuracy"] == pytest.approx(float((outputs.argmax(1) == y).float().mean()))


# --- the command and its file


def test_command_tunes_trains_prints_and_goes_on(tngd, tmp_path):
    code, out, _ = tngd(*TINY, "--tune", "--methods", "sgd,adam,tngd-refresh,tngd-array-limit")
    assert code == 0
    for words in (
        "MNIST, paper: 128 images, 6,218 parameters",
        "Adam",
        "array with errors of 1 %",
        "accuracy − Adam's",
    ):
        assert words.split(",")[0] in out
    content = json.loads((tmp_path / "mnist.json").read_text())
    found = content["comparisons"]["paper"]
    assert content["schema"] == SCHEMA
    assert not found["what"]["genuine"]
    assert list(found["methods"]) == ["sgd", "adam", "tngd-refresh", "tngd-array-limit"]
    assert list(found["tuning"]) == ["sgd", "adam", "tngd-refresh"]
    for key, tuned in found["tuning"].items():
        losses = [each["held_loss"] for each in tuned["choices"]]
        assert len(losses) == 8
        best = tuned["choices"][losses.index(min(x for x in losses if x is not None))]["settings"]
        assert tuned["best"] == best
        assert best.items() <= found["methods"][key]["what"]["settings"].items()
    assert (
        found["methods"]["tngd-array-limit"]["what"]["settings"]["lr"] == found["tuning"]["tngd-refresh"]["best"]["lr"]
    )
    starts = {
        seed: {method["seeds"][seed]["records"][0]["train_loss"] for method in found["methods"].values()}
        for seed in ("0", "1")
    }
    assert all(len(losses) == 1 for losses in starts.values())  # the same weights at the start, by seed
    assert starts["0"] != starts["1"]
    # Again: nothing is run. A method more, and a seed more: the others stay.
    assert tngd(*TINY, "--methods", "sgd,adam", "--curves", "curves.svg")[0] == 0
    page = (tmp_path / "curves.svg").read_text()
    for method in found["methods"].values():
        for line in textwrap.wrap(method["what"]["title"], NAME):
            assert f">{line}<" in page
    (tmp_path / "curves.svg").unlink()
    assert json.loads((tmp_path / "mnist.json").read_text()) == content
    assert tngd(*TINY, "--seeds", "3", "--methods", "sgd,tngd-paper")[0] == 0
    more = json.loads((tmp_path / "mnist.json").read_text())["comparisons"]["paper"]
    assert list(more["methods"]["sgd"]["seeds"]) == ["0", "1", "2"]
    assert more["methods"]["sgd"]["seeds"]["1"] == found["methods"]["sgd"]["seeds"]["1"]
    assert [path.name for path in tmp_path.iterdir() if "." in path.name] == ["mnist.json"]
    # Another length is another comparison.
    code, _, said = tngd(*TINY, "--epochs", "2", "--methods", "sgd")
    assert code == 2
    assert "another epochs; give --force" in said
    assert tngd(*TINY, "--epochs", "2", "--methods", "tngd-paper", "--force")[0] == 0
    assert list(read_results(tmp_path / "mnist.json")["comparisons"]["paper"]["methods"]) == ["tngd-paper"]


def test_interrupted_command_leaves_whole_results_and_goes_on(tngd, tmp_path, monkeypatch):
    words = ("--train-size", "128", "--test-size", "64", "--epochs", "2", "--seeds", "2", "--study", "noise")
    assert tngd(*words, "--out", "whole.json")[0] == 0
    with monkeypatch.context() as patch:
        steps = []
        real = mnist_runs.one_of

        def interrupting(progress, done, jobs):
            def tell(k, total, what):
                steps.append(k)
                if len(steps) == 9:  # in the fifth run, after its first epoch
                    raise KeyboardInterrupt
                real(progress, done, jobs)(k, total, what)

            return tell

        patch.setattr(mnist_runs, "one_of", interrupting)
        code, _, said = tngd(*words, "--out", "stopped.json")
    assert code == cli.INTERRUPTED
    assert "call the same command again" in said
    cells = read_results(tmp_path / "stopped.json")["studies"]["noise"]["cells"]
    assert [len(cell.get("seeds", {})) for cell in cells.values()] == [2, 2, 0]
    assert tngd(*words, "--out", "stopped.json")[0] == 0
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "stopped.json"))
    assert without_times(one) == without_times(other)
    assert not list(tmp_path.glob("*.checkpoints"))


def test_wrong_requests_are_one_sentence(tngd, tmp_path):
    for words, says in (
        (("--setting", "big"), "--setting knows paper, lenet, got 'big'"),
        (("--methods", "sgd,magic"), "got 'magic'"),
        (("--study", "tides"), "--study knows kept-state"),
        (("--study", "time", "--tune"), "drop --methods and --tune"),
        (("--study", "time", "--curves", "x.svg"), "--curves draws the comparison"),
        (("--seeds", "0"), "--seeds must be 1 or more, got 0"),
        ((*TINY, "--epochs", "0"), "one epoch or more"),
        (("--train-size", "301"), "between 1 and 300, the images there are, got 301"),
        ((*TINY, "--test-size", "0"), "between 1 and 100"),
        (("--methods", "tngd-tiles", *TINY), "give --device"),
        (("--device", "missing.json", *TINY), "missing.json does not exist"),
        (("--data", "nowhere"), "holds no MNIST"),
    ):
        code, _, said = tngd(*words)
        assert code == 2, words
        assert says in said, words
        assert said.count("\n") == 1
        assert not (tmp_path / "mnist.json").exists(), words
    (tmp_path / "mnist.json").write_text('{"schema": "other"}')
    assert "does not say schema" in tngd(*TINY)[2]


def test_several_processes_may_fill_one_file(tmp_path):
    path = tmp_path / "mnist.json"

    def add(who):
        for k in range(15):
            claim(path, ("studies", "all"), {"about": "one"}, False)
            change_results(path, lambda content, k=k: content["studies"]["all"].update({f"{who}-{k}": {}}))

    threads = [threading.Thread(target=add, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_results(path)["studies"]["all"]) == 46
    assert training_mnist_runs.SCHEMA == SCHEMA
