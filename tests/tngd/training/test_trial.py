"""One training run: what it computes, and that stopping it anywhere changes nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits import InputError
from tngd.curvature import CROSS_ENTROPY
from tngd.optimizer import KFAC, TNGD, ConjugateNGD, ExactNGD
from tngd.training import Trial, batch_order, run_trial
from tngd.training import trial as engine
from tngd.training.mnist import SETTINGS, Data, Images, mnist_trial
from tngd.training.trial import Draws, read_checkpoint, trial_hash, write_checkpoint

SAMPLES, BATCH, EPOCHS = 83, 8, 3


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, 8, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, 0] > 0).long() + (x[:, 1] + x[:, 2] > 0).long()


def network():
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(6, 3))


def adam(model, lr=0.01):
    return torch.optim.Adam(model.parameters(), lr=lr)


OPTIMIZERS = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "Adam": adam,
    "TNGD": lambda m: TNGD(m, curvature="mc", time=5.0, start="kept", delay=0.2, noise=1e-3, refresh=7, inner=adam(m)),
    "TNGD, adapted": lambda m: TNGD(m, lr=0.1, time=3.0, adapt=4),
    "exact NGD": lambda m: ExactNGD(m.parameters(), lr=0.1),
    "CG-NGD": lambda m: ConjugateNGD(m.parameters(), lr=0.1),
    "K-FAC": lambda m: KFAC(m, lr=0.01, momentum=0.9, factors=3, inverses=7),
}


def make(name, epochs=EPOCHS, **changed):
    x, y = data()
    own = {
        "name": name,
        "settings": {"hidden": 6},
        "seed": 3,
        "samples": SAMPLES,
        "batch": BATCH,
        "epochs": epochs,
        "model": network,
        "forward": lambda model, rows: (model(x[rows]), y[rows]),
        "loss": CROSS_ENTROPY,
        "optimizer": OPTIMIZERS[name],
        "evaluate": lambda model: {"train_loss": float(CROSS_ENTROPY.value(model(x), y))},
    }
    return Trial(**own | changed)


def without_times(records):
    return [{k: v for k, v in record.items() if k not in ("cpu_s", "wall_s")} for record in records]


def same(one, other):
    assert without_times(one.records) == without_times(other.records)
    for (name, a), (_, b) in zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture(autouse=True)
def every_fourth_step(monkeypatch):
    """Progress speaks at steps 4, 8, 10, 12, 16, 20, 20, ..."""
    monkeypatch.setattr(engine, "REPORTED", 4)


class Stop(Exception):
    pass


def stopping_at(step):
    def progress(done, total, what):
        if done >= step:
            raise Stop

    return progress


def test_order_visits_every_sample_once_and_depends_on_seed_and_epoch_alone():
    order = batch_order(3, 1, SAMPLES, BATCH)
    assert order.shape == (10, 8)
    flat = order.reshape(-1).tolist()
    assert len(set(flat)) == 80
    assert set(flat) < set(range(SAMPLES))
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(order, batch_order(3, 1, SAMPLES, BATCH))
    for other in (batch_order(3, 2, SAMPLES, BATCH), batch_order(4, 1, SAMPLES, BATCH)):
        assert not torch.equal(order, other)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_sgd_is_the_loop_written_by_hand(schedule):
    x, y = data(torch.float64)
    lr, done = 0.3, 0
    trial = make(
        "SGD",
        epochs=2,
        model=lambda: torch.nn.Linear(8, 3).double(),
        forward=lambda model, rows: (model(x[rows]), y[rows]),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=lr),
        evaluate=lambda model: {"weight": float(model.weight[0, 0])},
        schedule=schedule,
    )
    torch.manual_seed(3)
    start = torch.nn.Linear(8, 3).double()
    W, b = start.weight.detach().numpy().copy(), start.bias.detach().numpy().copy()
    X, labels = x.numpy(), y.numpy()
    losses, weights = [], [W[0, 0]]
    for epoch in (1, 2):
        per_step = []
        for rows in batch_order(3, epoch, SAMPLES, BATCH).numpy():
            z = X[rows] @ W.T + b
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            per_step.append(-np.log(p[np.arange(8), labels[rows]]).mean())
            p[np.arange(8), labels[rows]] -= 1
            rate = lr if schedule == "constant" else lr * np.cos(np.pi * done / 40) ** 2  # of twenty steps
            W, b = W - rate * p.T @ X[rows] / 8, b - rate * p.mean(axis=0)
            done += 1
        losses.append(np.mean(per_step))
        weights.append(W[0, 0])
    outcome = run_trial(trial)
    assert [record["weight"] for record in outcome.records] == pytest.approx(weights, rel=1e-10)
    assert [record["batch_loss"] for record in outcome.records[1:]] == pytest.approx(losses, rel=1e-10)
    assert [record["steps"] for record in outcome.records] == [0, 10, 20]


@pytest.mark.parametrize(
    ("name", "schedule"), [*((name, "constant") for name in OPTIMIZERS), ("SGD", "cosine"), ("TNGD", "cosine")]
)
def test_interrupted_run_is_the_uninterrupted_one(name, schedule, tmp_path):
    whole = run_trial(make(name, schedule=schedule))
    assert whole.records[-1]["train_loss"] < whole.records[0]["train_loss"]
    place = tmp_path / "run.npz"
    for step in (8, 16, 30):  # before the first checkpoint, inside an epoch, at the end of one before it is written
        with pytest.raises(Stop):
            run_trial(make(name, schedule=schedule), place, stopping_at(step))
    torch.manual_seed(1234)  # whatever the rest of the process draws
    same(run_trial(make(name, schedule=schedule), place), whole)
    before = place.read_bytes()
    again = run_trial(make(name, schedule=schedule), place, stopping_at(0))  # finished: no step is made
    same(again, whole)
    assert place.read_bytes() == before


def test_killed_run_is_the_uninterrupted_one(tmp_path):
    place = tmp_path / "run.npz"
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path[:0] = sys.argv[3:];"
        "import torch; torch.set_num_threads(1); from test_trial import engine, make; engine.REPORTED = 4;"
        "kill = lambda done, total, what: done >= 28 and os.kill(os.getpid(), signal.SIGKILL);"
        "engine.run_trial(make('TNGD'), Path(sys.argv[2]), kill)"
    )
    killed = subprocess.run([sys.executable, "-c", code, "", str(place), *sys.path], check=False)
    assert killed.returncode == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        kept = read_checkpoint(place, make("TNGD").identity)
        assert [record["epoch"] for record in kept["records"]] == [0, 1, 2]
        same(run_trial(make("TNGD"), place), run_trial(make("TNGD")))
    finally:
        torch.set_num_threads(threads)
    assert list(tmp_path.iterdir()) == [place]


def test_checkpoint_of_another_trial_is_refused(tmp_path):
    place = tmp_path / "run.npz"
    run_trial(make("Adam", epochs=1), place)
    others = {
        "seed": make("Adam", epochs=1, seed=4),
        "epochs": make("Adam", epochs=2),
        "settings": make("Adam", epochs=1, settings={"hidden": 7}),
        "name": make("SGD", epochs=1),
        "batch": make("Adam", epochs=1, batch=9),
    }
    for what, other in others.items():
        with pytest.raises(InputError, match=f"another trial: {what} differ"):
            run_trial(other, place)
    run_trial(make("Adam", epochs=1), place)
    content = place.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"no zip"):
        place.write_bytes(damaged)
        with pytest.raises(InputError, match="no whole checkpoint"):
            run_trial(make("Adam", epochs=1), place)


def test_checkpoint_gives_back_what_it_was_given(tmp_path):
    place = tmp_path / "state.npz"
    tensors = [
        torch.tensor([1.5, float("nan"), -0.0]),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor(7, dtype=torch.uint8),
        torch.tensor([True, False]),
        torch.zeros(0, 4, dtype=torch.float64),
        torch.tensor(0.1, dtype=torch.float64),
    ]
    state = {
        0: tensors,
        "plain": [None, True, 3, 0.1, "naïve", float("inf"), {}, [], ()],
        "nested": {"betas": (0.9, 0.999), 1: {2: {"tensor": tensors[0]}}},
    }
    write_checkpoint(place, {"name": "x"}, state)
    found = read_checkpoint(place, {"name": "x"})
    assert found["plain"] == state["plain"]
    assert [type(each) for each in found["plain"]] == [type(each) for each in state["plain"]]
    assert found["nested"]["betas"] == (0.9, 0.999)
    for tensor, other in zip([*tensors, tensors[0]], [*found[0], found["nested"][1][2]["tensor"]], strict=True):
        assert tensor.dtype == other.dtype
        assert tensor.shape == other.shape
        assert tensor.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    write_checkpoint(place, {}, {"x": float("nan")})
    assert np.isnan(read_checkpoint(place, {})["x"])
    with pytest.raises(TypeError, match="got object"):
        write_checkpoint(place, {}, {"x": object()})
    assert read_checkpoint(tmp_path / "none.npz", {}) is None


def test_frozen_parameters_are_not_kept_and_not_lost(tmp_path):
    def half_frozen():
        model = network()
        model[0].requires_grad_(False)
        return model

    def trial():
        return make("SGD", epochs=2, model=half_frozen, optimizer=lambda m: torch.optim.SGD(m[3].parameters(), lr=0.1))

    place = tmp_path / "run.npz"
    with pytest.raises(Stop):
        run_trial(trial(), place, stopping_at(16))
    assert set(read_checkpoint(place, trial().identity)["model"]) == {"3.weight", "3.bias"}
    same(run_trial(trial(), place), run_trial(trial()))


def test_seconds_are_those_of_steps():
    def slow(model):
        start = time.process_time()
        while time.process_time() - start < 0.2:
            pass
        return {"train_loss": 1.0}

    records = run_trial(make("SGD", epochs=2, evaluate=slow)).records
    assert all(0 < record["cpu_s"] < 0.15 for record in records[1:])
    assert records[0]["cpu_s"] == 0


def test_evaluation_sees_no_dropout_and_training_does():
    seen = []

    def evaluate(model):
        seen.append((model.training, torch.is_grad_enabled()))
        return {"train_loss": 0.0}

    modes = []

    def forward(model, rows):
        modes.append(model.training)
        return model(data()[0][rows]), data()[1][rows]

    run_trial(make("SGD", epochs=1, evaluate=evaluate, forward=forward))
    assert seen == [(False, False)] * 2
    assert modes == [True] * 10


def test_what_the_device_says_is_kept_as_means():
    records = run_trial(make("TNGD", epochs=1)).records
    # 10 steps, a curvature serves seven: ages 1 ... 7, then 1, 2 and 3.
    assert records[1]["device"]["age"] == pytest.approx((28 + 6) / 10)
    assert records[1]["device"]["rank"] == BATCH
    assert "device" not in run_trial(make("Adam", epochs=1)).records[1]


def test_divergence_ends_a_trial_and_a_wrong_trial_is_an_error(tmp_path):
    place = tmp_path / "run.npz"
    x, y = data()
    linear = {"model": lambda: torch.nn.Linear(8, 3), "evaluate": lambda m: {"train_loss": float(m.bias.sum())}}
    linear["forward"] = lambda model, rows: (1e4 * model(x[rows]), y[rows])
    far = make("SGD", **linear, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e38))
    outcome = run_trial(far, place)
    assert outcome.diverged.startswith("epoch 1: the loss is ")
    assert [record["epoch"] for record in outcome.records] == [0]
    json.dumps(outcome.records, allow_nan=False)
    assert run_trial(far, place, stopping_at(0)).diverged == outcome.diverged
    far = make("TNGD", **linear, optimizer=lambda m: TNGD(m, lr=1e38))
    assert "the step was not made" in run_trial(far).diverged
    lost = make("SGD", evaluate=lambda m: {"train_loss": float("nan") if m[0].weight.grad is not None else 1.0})
    assert run_trial(lost).diverged == "epoch 1: train_loss is not finite"
    with pytest.raises(InputError, match="must return"):
        run_trial(make("TNGD", forward=lambda model, rows: model(data()[0][rows])))
    for wrong in ({"epochs": 0}, {"batch": 0}, {"batch": SAMPLES + 1}):
        with pytest.raises(InputError, match="no larger than the training set"):
            make("SGD", **wrong)


def test_random_numbers_of_the_process_are_left_alone():
    torch.manual_seed(8)
    expected = torch.rand(3)
    torch.manual_seed(8)
    run_trial(make("SGD", epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["TNGD", "K-FAC"])
def test_given_batches_are_taken_as_they_are_and_kept_where_they_are_recorded(name, tmp_path):
    rows = torch.randint(SAMPLES, (11, 5), generator=torch.Generator().manual_seed(2))
    seen = []
    x, y = data()

    def forward(model, chosen):
        seen.append(chosen)
        return model(x[chosen]), y[chosen]

    own = {"epochs": 1, "batch": 5, "draws": Draws(rows, (1, 4, 11)), "forward": forward}
    whole = run_trial(make(name, **own))
    assert torch.equal(torch.stack(seen), rows)
    assert [record["steps"] for record in whole.records] == [0, 1, 4, 11]
    assert not any("epoch" in record for record in whole.records)
    place = tmp_path / "run.npz"
    for step in (4, 8):  # at the end of a stretch before it is written, and inside the last one
        with pytest.raises(Stop):
            run_trial(make(name, **own), place, stopping_at(step))
    assert [record["steps"] for record in read_checkpoint(place, make(name, **own).identity)["records"]] == [0, 1, 4]
    same(run_trial(make(name, **own), place), whole)
    other = own | {"draws": Draws(rows.flip(0), (1, 4, 11))}
    with pytest.raises(InputError, match="another trial: draws differ"):
        run_trial(make(name, **other), place)


def test_a_step_of_given_batches_that_fails_is_named_and_wrong_batches_are_refused():
    x, y = data()
    draws = Draws(torch.arange(24).reshape(6, 4), (2, 6))
    far = {"forward": lambda model, rows: ((torch.inf if int(rows[0]) == 12 else 1) * model(x[rows]), y[rows])}
    outcome = run_trial(make("SGD", epochs=1, batch=4, draws=draws, **far))
    assert outcome.diverged.startswith("step 4: the loss is ")
    assert [record["steps"] for record in outcome.records] == [0, 2]
    for recorded in ((), (2, 2, 6), (0, 6), (6, 2), (2, 5)):
        with pytest.raises(InputError, match="up to the last one, 6"):
            Draws(draws.rows, recorded)
    for wrong in ({"epochs": 2}, {"batch": 3}):
        with pytest.raises(InputError, match="one epoch of their own size"):
            make("SGD", **{"epochs": 1, "batch": 4, "draws": draws} | wrong)
    with pytest.raises(InputError, match="constant, cosine"):
        make("SGD", schedule="linear")


def test_runs_of_the_stored_evidence_are_known_again():
    """Their hashes, made by the engine of then: a file of results goes on filling after a change of the engine."""
    content = json.loads((Path(__file__).parents[3] / "benchmarks" / "mnist.json").read_text())
    blank = [torch.zeros(1).expand(count) for count in (60_000, 60_000, 10_000, 10_000)]
    for name in ("paper", "lenet"):
        found = content["comparisons"][name]
        data = Data(Images(*blank, True), found["what"]["data_sha256"], True)
        for method in (each for each in found["methods"].values() if each["what"]["device"] is None):
            what = method["what"]
            for seed, run in method["seeds"].items():
                trial = mnist_trial(
                    what["title"], what["kind"], what["settings"], SETTINGS[name], data, None, int(seed)
                )
                assert trial_hash(trial) == run["trial_sha256"]
