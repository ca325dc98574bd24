"""TNGD on the whole curvature: every step against a dense device of its own, and the contract of torch optimizers."""

import copy
from math import inf

import numpy as np
import pytest
import torch
from compare import assert_close
from reference import dense_device_state, softmax_ggn
from simulated import rough_device
from small_network import batches, network
from torch import nn

from circuits import InputError
from tngd.curvature import CROSS_ENTROPY, Loss
from tngd.curvature.losses import LOGISTIC
from tngd.device import tile_board
from tngd.optimizer import TNGD


def dense(model, x, y):
    """Curvature and gradient of a batch, one backward pass an output."""
    parameters, z = list(model.parameters()), model(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in z.reshape(-1)
    ]
    J = torch.stack(rows).reshape(*z.shape, -1).numpy()
    gradient = torch.autograd.grad(nn.functional.cross_entropy(z, y), parameters)
    return softmax_ggn(J, z.detach().numpy()), torch.cat([g.reshape(-1) for g in gradient]).numpy()


def flat(model) -> np.ndarray:
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def literal(model, data, lr, damping, time, start, delay, refresh=1):
    """The optimizer written out with dense matrices: parameters after every step."""
    path, state, old, age = [], None, None, refresh
    for k, (x, y) in enumerate(data):
        G, g = dense(model, x, y)
        if age >= refresh:
            held, age = G, 0
        age += 1
        A = held + (damping[k] if isinstance(damping, list) else damping) * np.eye(len(g))
        left = {"gradient": g, "zero": 0 * g, "kept": g if state is None else state}[start]
        if delay and old is not None:
            left = {"gradient": old[1], "zero": 0 * g, "kept": state}[start]
            left = dense_device_state(old[0], old[1], left, delay)
        state, old = dense_device_state(A, g, left, time), (A, g)
        path.append(flat(model) - lr * state)
        nn.utils.vector_to_parameters(torch.tensor(path[-1]), model.parameters())
    return path


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("refresh", [1, 3])
@pytest.mark.parametrize("start", ["gradient", "zero", "kept"])
@pytest.mark.parametrize(("time", "delay"), [(4.0, 0.0), (4.0, 1.5), (inf, 0.0), (0.5, 3.0)])
def test_steps_are_those_of_a_dense_device(whole, refresh, start, time, delay):
    model, data = network(), batches(5)
    settings = {"lr": 0.3, "damping": 0.05, "time": time, "start": start, "delay": delay, "refresh": refresh}
    optimizer = TNGD(model if whole else model.parameters(), **settings)
    expected = literal(network(), data, **settings)
    for (x, y), parameters in zip(data, expected, strict=True):
        optimizer.step(lambda x=x, y=y: (model(x), y))
        assert_close(flat(model), parameters, 1e-10)


def test_a_batch_whose_memory_is_used_again_does_not_reach_the_kept_curvature():
    model, data = network(), batches(4)
    settings = {"lr": 0.3, "damping": 0.05, "time": 4.0, "start": "kept", "delay": 0.5, "refresh": 3}
    optimizer = TNGD(model, **settings)
    expected = literal(network(), data, **settings)
    buffer = torch.empty_like(data[0][0])
    for (x, y), parameters in zip(data, expected, strict=True):
        buffer.copy_(x)
        optimizer.step(lambda y=y: (model(buffer), y))
        assert_close(flat(model), parameters, 1e-10)


@pytest.mark.parametrize("refresh", [1, 2])
def test_the_damping_may_change_and_the_delay_has_that_of_its_upload(refresh):
    model, data, dampings = network(), batches(4), [0.5, 0.05, 0.2, 0.02]
    settings = {"lr": 0.3, "time": 2.0, "start": "kept", "delay": 1.0, "refresh": refresh}
    optimizer = TNGD(model, damping=0.5, **settings)
    expected = literal(network(), data, damping=dampings, **settings)
    for (x, y), damping, parameters in zip(data, dampings, expected, strict=True):
        optimizer.param_groups[0]["damping"] = damping
        optimizer.step(lambda x=x, y=y: (model(x), y))
        assert_close(flat(model), parameters, 1e-10)


def test_from_the_gradient_no_time_is_gradient_descent_and_endless_time_natural_gradient():
    for dtype, time in ((torch.float64, 0.0), (torch.float64, inf), (torch.float32, 0.0)):
        model, twin, (x, y) = network(dtype=dtype), network(dtype=dtype), batches(1, dtype=dtype)[0]
        start = flat(model)
        TNGD(model, lr=0.1, damping=1e-3, time=time).step(lambda m=model, x=x, y=y: (m(x), y))
        if time == 0:
            nn.functional.cross_entropy(twin(x), y).backward()
            torch.optim.SGD(twin.parameters(), lr=0.1).step()
            assert_close(flat(model) - start, flat(twin) - start, 1e-6)
        else:
            G, g = dense(twin, x, y)
            assert_close(flat(model) - start, -0.1 * np.linalg.solve(G + 1e-3 * np.eye(len(g)), g), 1e-6)


def test_a_kept_state_is_heavy_ball_with_a_matrix_for_momentum():
    # x_k = e^{-At} x_{k-1} + φ_t(A) g_k with one curvature throughout, from its eigenvectors.
    model, (x, y) = network(), batches(1)[0]
    G, _ = dense(model, x, y)
    a, V = np.linalg.eigh(G + 0.05 * np.eye(len(G)))
    optimizer = TNGD(model, lr=0.2, damping=0.05, time=3.0, start="kept", refresh=100)
    state = None
    for _ in range(4):
        before, (_, g) = flat(model), dense(model, x, y)
        state = g if state is None else state
        state = V @ (np.exp(-3 * a) * (V.T @ state) + (1 - np.exp(-3 * a)) / a * (V.T @ g))
        optimizer.step(lambda: (model(x), y))
        assert_close(flat(model) - before, -0.2 * state, 1e-10)
    assert optimizer.last.age == 4


def test_noise_is_seeded_and_of_its_size():
    # From zero under no gradient the state is the noise alone: at t = ∞ its energy xᵀA x/κ₀ is a chi-square of N.
    model, (x, y) = network(), batches(1)[0]
    G, g = dense(model, x, y)
    steps = []
    for seed in (1, 1, 2):
        model = network()
        before = flat(model)
        TNGD(model, lr=1.0, damping=0.05, noise=1e-4, seed=seed).step(lambda m=model: (m(x), y))
        steps.append(flat(model) - before)
    assert np.array_equal(steps[0], steps[1])
    A = G + 0.05 * np.eye(len(g))
    noise = steps[0] + np.linalg.solve(A, g)
    # 39 degrees of freedom: 12 and 88 are the quantiles at 1e-5/2 from either side.
    assert 12 < noise @ A @ noise / 1e-4 < 88
    assert not np.array_equal(steps[0], steps[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [
    {"curvature": "mc", "noise": 1e-5, "start": "kept", "time": 2.0, "delay": 0.5, "refresh": 3},
    {"curvature": "ggn", "adapt": 2, "kl_clip": 1e-3, "time": 9.0, "lanczos": 4},
    {"curvature": "empirical", "start": "kept", "time": 1.0},
    {"curvature": "mc", "inner": "adam"},
    {"curvature": "mc", "history": 2, "refresh": 2, "precondition": 0.1, "start": "kept", "time": 1.0, "delay": 0.5},
    {"curvature": "ggn", "history": 3, "precondition": 0.1, "kl_clip": 1e-3, "inner": "adam"},
])  # fmt: skip
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(settings, dtype, tmp_path):
    data, settings = batches(9, dtype=dtype), dict(settings)
    adam = settings.pop("inner", None) and (lambda m: torch.optim.Adam(m.parameters(), lr=0.01))

    def build(seed):
        model = network(seed, dtype)
        return model, TNGD(
            model, seed=seed, inner=adam(model) if adam else None, **({} if adam else {"lr": 0.1}), **settings
        )

    def run(model, optimizer, data):
        return [float(optimizer.step(lambda x=x, y=y: (model(x), y))) for x, y in data]

    model, optimizer = build(0)
    run(model, optimizer, data[:4])
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, tmp_path / "saved.pt")
    straight, end = run(model, optimizer, data[4:]), flat(model)
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    other, resumed = build(5)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert run(other, resumed, data[4:]) == straight
    assert np.array_equal(flat(other), end)


def test_a_curvature_that_is_spent_is_not_saved():
    sizes = {}
    for refresh, delay in ((1, 0.0), (2, 0.0), (1, 1.0)):
        model, (x, y) = network(), batches(1)[0]
        optimizer = TNGD(model, lr=0.1, refresh=refresh, delay=delay, start="kept")
        optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
        sizes[refresh, delay] = optimizer.state_dict()["device"]["memory"]["held"] is not None
    assert sizes == {(1, 0.0): False, (2, 0.0): True, (1, 1.0): True}


def test_inner_optimizer_takes_the_direction_as_its_gradient():
    model, twin, data = network(), network(), batches(3)
    optimizer = TNGD(model, damping=0.1, inner=torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.5, 0.9)))
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.5, 0.9))
    for x, y in data:
        G, g = dense(twin, x, y)
        direction = torch.tensor(np.linalg.solve(G + 0.1 * np.eye(len(g)), g))
        nn.utils.vector_to_parameters(direction, [p.grad for p in with_gradients(twin)])
        adam.step()
        optimizer.step(lambda x=x, y=y: (model(x), y))
        assert_close(flat(model), flat(twin), 1e-10)


def with_gradients(model):
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    return model.parameters()


def test_companion_takes_the_other_parameters_with_their_plain_gradients():
    model, (x, y) = network(), batches(1)[0]
    twin = copy.deepcopy(model)
    companion = torch.optim.SGD(model[0].parameters(), lr=0.5)
    TNGD(model, lr=0.1, damping=0.1, companion=companion).step(lambda: (model(x), y))
    G, g = dense(twin, x, y)
    own = slice(24, None)
    expected = flat(twin)
    expected[:24] -= 0.5 * g[:24]
    expected[own] -= 0.1 * np.linalg.solve(G[own, own] + 0.1 * np.eye(15), g[own])
    assert_close(flat(model), expected, 1e-10)


def test_groups_schedules_and_weight_decay():
    model, twin, data = network(), network(), batches(3)
    groups = [{"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.2}, {"params": model[2].parameters()}]
    optimizer = TNGD(groups, lr=0.4, damping=0.05, model=model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for k, (x, y) in enumerate(data):
        G, g = dense(twin, x, y)
        rates = np.concatenate([np.full(24, 0.1), np.full(15, 0.4)]) * 0.5**k
        decay = np.concatenate([np.full(24, 0.2), np.zeros(15)])
        expected = (1 - rates * decay) * flat(twin) - rates * np.linalg.solve(G + 0.05 * np.eye(39), g)
        nn.utils.vector_to_parameters(torch.tensor(expected), twin.parameters())
        optimizer.zero_grad()
        optimizer.step(lambda x=x, y=y: (model(x), y))
        schedule.step()
        assert_close(flat(model), expected, 1e-10)


@pytest.mark.parametrize("curvature", ["ggn", "empirical"])
def test_several_closures_are_one_batch(curvature):
    x, y = batches(1, 9)[0]
    y[:2] = -100  # ignored: the parts count 2 and 5 samples
    results = []
    for parts in ([slice(0, 9)], [slice(0, 4), slice(4, 9)]):
        model = network()
        optimizer = TNGD(model, lr=0.2, damping=0.05, curvature=curvature, time=5.0)
        value = optimizer.step(*(lambda k=k, m=model: (m(x[k]), y[k]) for k in parts))
        results.append((flat(model), float(value)))
    assert_close(results[1][0], results[0][0], 1e-12)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-12)


def test_long_gradients_and_long_steps_are_shortened():
    model, (x, y) = network(), batches(1)[0]
    before, (G, g) = flat(model), dense(model, x, y)
    TNGD(model, lr=0.1, time=0.0, max_norm=1e-3).step(lambda: (model(x), y))
    assert_close(flat(model) - before, -1e-4 * g / np.linalg.norm(g), 1e-10)
    model = network()
    optimizer = TNGD(model, lr=1.0, damping=0.01, kl_clip=1e-3)
    optimizer.step(lambda: (model(x), y))
    step = flat(model) - before
    assert step @ G @ step / 2 == pytest.approx(1e-3, rel=1e-10)
    assert optimizer.last.scale < 1
    direction = np.linalg.solve(G + 0.01 * np.eye(39), g)
    assert_close(step / np.linalg.norm(step), -direction / np.linalg.norm(direction), 1e-10)


def test_damping_follows_the_ratio_of_actual_to_predicted_change():
    for lr in (0.05, 30.0):
        model, (x, y) = network(), batches(1)[0]
        before, (G, g) = flat(model), dense(model, x, y)
        loss = float(nn.functional.cross_entropy(model(x), y).detach())
        optimizer = TNGD(model, lr=lr, damping=0.1, adapt=2)
        optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
        step = flat(model) - before
        actual = float(nn.functional.cross_entropy(model(x), y).detach()) - loss
        predicted = g @ step + step @ G @ step / 2
        ratio = actual / predicted if predicted < 0 else -inf  # a rise the model saw coming is no success of the model
        assert optimizer.last.ratio == pytest.approx(ratio, rel=1e-8)
        assert (ratio > 0.75) == (lr < 1)
        expected = 0.1 * (19 / 20) ** 2 if ratio > 0.75 else 0.1 / (19 / 20) ** 2 if ratio < 0.25 else 0.1
        assert optimizer.param_groups[0]["damping"] == pytest.approx(expected, rel=1e-12)
        optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
        assert optimizer.last.ratio is None
    assert expected > 0.1


def test_the_check_of_the_damping_uses_the_dropout_of_the_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    x, y = batches(1)[0]
    optimizer = TNGD(model, lr=1e-9, damping=0.1, adapt=1)
    for _ in range(3):
        optimizer.step(lambda: (model(x), y))
        # A step this small leaves the model exact; other masks would change the loss by far more than predicted.
        assert optimizer.last.ratio == pytest.approx(1, abs=1e-3)


def test_a_batch_of_one_and_one_logit_work():
    x, y = batches(1, 1)[0]
    model = network()
    before, (G, g) = flat(model), dense(model, x, y)
    TNGD(model, lr=0.1, damping=0.1).step(lambda: (model(x), y))
    assert_close(flat(model) - before, -0.1 * np.linalg.solve(G + 0.1 * np.eye(39), g), 1e-10)
    line = nn.Linear(5, 1).double()
    for curvature in ("ggn", "mc", "empirical"):
        assert TNGD(line, lr=0.1, loss=LOGISTIC, curvature=curvature).step(lambda: (line(x), y % 2)) > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{"curvature": "mc", "noise": 1e-3, "start": "kept", "time": 1.0}, {"adapt": 1}])
def test_a_step_that_is_not_finite_is_refused_and_nothing_changes(bad, settings):
    model, twin, (x, y) = network(), network(), batches(1)[0]
    optimizer, other = (TNGD(m, lr=0.1, **settings) for m in (model, twin))
    optimizer.step(lambda: (model(x), y))
    before = flat(model)
    with pytest.raises(InputError, match="step was not made"):
        optimizer.step(lambda: (model(bad * x), y))
    assert np.array_equal(flat(model), before)
    optimizer.step(lambda: (model(x), y))
    for _ in range(2):
        other.step(lambda: (twin(x), y))
    assert np.array_equal(flat(model), flat(twin))


def test_a_state_that_is_not_finite_is_refused_and_draws_nothing():
    # Found only after the sampled targets and the noise were drawn: the refused step must give them back.
    bad, ends = [], []
    loss = Loss("overflowing", nn.functional.cross_entropy, lambda z: CROSS_ENTROPY.root(z) * (1e200 if bad else 1.0))
    for refused in (False, True):
        model, (x, y) = network(), batches(1)[0]
        settings = {"curvature": "mc", "noise": 1e-3, "time": 1.0, "lr": 0.1}
        optimizer = TNGD(model, loss=loss, **settings)
        optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
        if refused:
            bad.append(True)
            with pytest.raises(InputError, match="curvature is not finite"):
                optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
            bad.clear()
        optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
        ends.append(flat(model))
    assert np.array_equal(*ends)


def test_a_gradient_that_is_not_finite_is_refused():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = TNGD([weight], lr=0.1)
    with pytest.raises(InputError, match="gradient is not finite"):
        optimizer.step(lambda: (weight.abs().sqrt()[None], torch.tensor([0])))


def test_unfreezing_restarts_the_device():
    model, (x, y) = network(), batches(1)[0]
    model[0].weight.requires_grad_(False)
    optimizer = TNGD(model, lr=0.1, refresh=10, start="kept", time=2.0)
    optimizer.step(lambda: (model(x), y))
    frozen = model[0].weight.clone()
    optimizer.step(lambda: (model(x), y))
    assert torch.equal(model[0].weight, frozen)
    assert optimizer.last.age == 2
    model[0].weight.requires_grad_(True)
    optimizer.step(lambda: (model(x), y))
    assert optimizer.last.age == 1
    assert not torch.equal(model[0].weight, frozen)


def test_freezing_another_parameter_of_the_same_shape_is_seen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    x, y = batches(1)[0]
    optimizer = TNGD(model, lr=0.1, damping=0.05, refresh=5)
    for first in (True, False):
        for layer, trained in ((model[0], first), (model[2], not first)):
            layer.requires_grad_(trained)
        before = [flat(layer) for layer in (model[0], model[2])]
        optimizer.step(lambda: (model(x), y))
        moved = [not np.array_equal(old, flat(layer)) for old, layer in zip(before, (model[0], model[2]), strict=True)]
        assert moved == [first, not first]
        assert optimizer.last.age == 1


def test_states_of_other_models_and_optimizers_are_refused():
    model, (x, y) = network(), batches(1)[0]
    optimizer = TNGD(model, lr=0.1)
    optimizer.step(lambda: (model(x), y))
    wide = TNGD(nn.Linear(5, 4).double())
    with pytest.raises(InputError, match="another optimizer or model: shapes"):
        wide.load_state_dict(optimizer.state_dict())
    with pytest.raises(InputError, match="without a whole device"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())
    with pytest.raises(InputError, match="inner optimizer None there"):
        TNGD(model, inner=torch.optim.SGD(model.parameters())).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(("settings", "words"), [
    ({"lr": -0.1}, "lr"), ({"damping": -0.1}, "damping"), ({"damping": 0.0}, "damping"), ({"time": -1.0}, "time"),
    ({"time": float("nan")}, "time"), ({"delay": -1.0}, "delay"), ({"noise": -1.0}, "noise"),
    ({"refresh": 0}, "refresh"),
    ({"start": "middle"}, "start"), ({"curvature": "hessian"}, "curvature"), ({"curvature": "tiles"}, "board"),
    ({"lanczos": 0}, "lanczos"), ({"kl_clip": 0.0}, "kl_clip"), ({"max_norm": -1.0}, "max_norm"),
    ({"adapt": -1}, "adapt"),
    ({"weight_decay": -1.0}, "weight_decay"), ({"loss": nn.L1Loss()}, "L1Loss"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        TNGD(network(), **settings)


def test_settings_that_do_not_go_together_are_refused():
    model = network()
    board = tile_board(rough_device(0.01, 3))
    with pytest.raises(InputError, match="know no time"):
        TNGD(model, board, time=1.0)
    with pytest.raises(InputError, match="for curvature 'tiles'"):
        TNGD(model, board, curvature="ggn")
    with pytest.raises(InputError, match="one for all groups"):
        TNGD([{"params": model[0].parameters(), "damping": 1.0}, {"params": model[2].parameters()}])
    with pytest.raises(InputError, match="exactly the parameters"):
        TNGD(model, inner=torch.optim.SGD(model[0].parameters()))
    with pytest.raises(InputError, match="by its companion"):
        TNGD(model.parameters(), companion=torch.optim.SGD(model[0].parameters()))
    with pytest.raises(InputError, match="float32 or float64"):
        TNGD(nn.Linear(5, 4).bfloat16())
    optimizer = TNGD(model)
    with pytest.raises(InputError, match="without autocast"):
        optimizer.step(lambda: (model(batches(1)[0][0]).float(), batches(1)[0][1]))
    optimizer.param_groups[0]["time"] = -1.0
    with pytest.raises(InputError, match="time"):
        optimizer.step(lambda: (model(batches(1)[0][0]), batches(1)[0][1]))


def test_tiles_from_a_module_are_tiles_from_its_parameters():
    results = []
    for whole in (True, False):
        model, (x, y) = network(), batches(1)[0]
        TNGD(model if whole else model.parameters(), tile_board(rough_device(0.01, 3)), lr=0.2).step(
            lambda model=model, x=x, y=y: (model(x), y)
        )
        results.append(flat(model))
    assert_close(results[0], results[1], 1e-12)
