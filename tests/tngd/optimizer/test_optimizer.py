"""TNGD on tiles against the dense natural gradient, and what the device does to it."""

import copy
from math import inf

import numpy as np
import pytest
import torch
from compare import assert_close
from reference import block_natural_gradient, softmax_ggn
from simulated import rough_device

from circuits import InputError
from circuits.model import ideal_device
from circuits.synthesis import build_board
from tngd.curvature import CROSS_ENTROPY, curvature_factor
from tngd.curvature.losses import LOGISTIC
from tngd.device import tile_board
from tngd.optimizer import TNGD, ExactNGD
from tngd.optimizer.baselines import woodbury
from tngd.training import TASKS, TaskMethod, train_once

IDEAL = tile_board(ideal_device(build_board(8, "differential"), 3))


def problem(seed: int = 0):
    """A 5-4-3 network of 39 parameters (not a multiple of 8), a batch of 6, and its dense curvature and gradient."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 5).double(), torch.randint(3, (6,))
    parameters = list(model.parameters())
    logits = model(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(logits[k, c], parameters, retain_graph=True)])
        for k in range(6)
        for c in range(3)
    ]
    J = torch.stack(rows).reshape(6, 3, -1).numpy()
    G = softmax_ggn(J, logits.detach().numpy())
    gradient = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(CROSS_ENTROPY.value(model(x), y), parameters)]
    ).numpy()
    return model, (lambda: (model(x), y)), G, gradient


def flat(model) -> np.ndarray:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def test_curvature_factor_gives_the_dense_gauss_newton_matrix():
    model, closure, G, _ = problem()
    R = curvature_factor(closure()[0], list(model.parameters()), CROSS_ENTROPY).numpy()
    assert_close(R.T @ R, G, 1e-13)


def test_logistic_factor_gives_the_fisher_matrix():
    x = torch.randn(9, 4).double()
    model = torch.nn.Linear(4, 1, bias=False).double()
    R = curvature_factor(model(x), list(model.parameters()), LOGISTIC).numpy()
    p = torch.sigmoid(model(x)).detach().numpy()
    assert_close(R.T @ R, (x.numpy() * p * (1 - p)).T @ x.numpy() / 9, 1e-13)


@pytest.mark.parametrize("refresh", [0, 1, 3])
def test_step_on_the_ideal_device_is_the_dense_block_natural_gradient(refresh):
    model, closure, G, gradient = problem()
    start = flat(model)
    optimizer = TNGD(model.parameters(), IDEAL, lr=0.3, damping=0.05, refresh=refresh)
    value = optimizer.step(closure)
    expected = start - 0.3 * block_natural_gradient(G, gradient, 8, 0.05)
    assert_close(flat(model) - start, expected - start, 1e-10)
    torch.nn.utils.vector_to_parameters(torch.tensor(start), model.parameters())
    assert float(value) == pytest.approx(CROSS_ENTROPY.value(*closure()).item(), rel=1e-12)
    assert optimizer.last.deviation < 1e-10
    assert optimizer.last.unstable == 0


@pytest.mark.parametrize("refresh", [0, 1, 4])
def test_on_the_ideal_device_preconditioning_changes_nothing(refresh):
    model, closure, *_ = problem()
    optimizer = TNGD(model.parameters(), IDEAL, lr=0.2, damping=0.05, refresh=refresh)
    losses = [float(optimizer.step(closure)) for _ in range(6)]
    other, closure, *_ = problem()
    plain = TNGD(other.parameters(), IDEAL, lr=0.2, damping=0.05, refresh=2)
    assert_close(losses, [float(plain.step(closure)) for _ in range(6)], 1e-9)
    assert losses[-1] < losses[0]


def test_swapping_the_device_changes_the_numbers():
    results = []
    for board in (IDEAL, tile_board(rough_device(0.01, 3)), tile_board(rough_device(0.01, 3), seed=1)):
        model, closure, *_ = problem()
        optimizer = TNGD(model.parameters(), board, lr=0.2, damping=0.05)
        optimizer.step(closure)
        results.append(flat(model))
        assert (optimizer.last.deviation < 1e-10) == (board is IDEAL)
        assert optimizer.last.deviation < 0.05
    assert np.linalg.norm(results[1] - results[0]) / np.linalg.norm(results[0]) > 1e-4
    assert not np.allclose(results[1], results[2])


def test_preconditioning_makes_ill_conditioned_tiles_passive_and_accurate():
    # Strongly correlated inputs: the blocks have condition numbers of hundreds.
    torch.manual_seed(1)
    x = torch.randn(64, 1).double() + 0.2 * torch.randn(64, 16).double()
    y = (x[:, 0] > 0).double()
    board = tile_board(rough_device(0.01, 3))
    seen = {}
    for refresh in (0, 1):
        model = torch.nn.Linear(16, 1, bias=False).double()
        torch.nn.init.zeros_(model.weight)
        optimizer = TNGD(model.parameters(), board, lr=0.5, damping=1e-3, refresh=refresh, loss=LOGISTIC)
        optimizer.step(lambda model=model: (model(x), y))
        seen[refresh] = optimizer.last
    assert seen[1].passive == 1.0
    assert seen[0].passive == 0.0
    assert seen[1].deviation < 0.01 < seen[0].deviation


def test_woodbury_solves_the_dense_system():
    model, closure, G, gradient = problem()
    R = curvature_factor(closure()[0], list(model.parameters()), CROSS_ENTROPY)
    for damping in (1.0, 1e-3):
        expected = np.linalg.solve(G + damping * np.eye(len(G)), gradient)
        assert_close(woodbury(R, torch.tensor(gradient), damping), expected, 1e-10)
    start = flat(model)
    ExactNGD(model.parameters(), lr=0.1, damping=0.1).step(closure)
    assert_close(flat(model) - start, -0.1 * np.linalg.solve(G + 0.1 * np.eye(len(G)), gradient), 1e-10)


@pytest.mark.parametrize(
    "bad", [{"lr": float("inf")}, {"lr": -1.0}, {"damping": 0.0}, {"damping": float("nan")}, {"refresh": -1}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        TNGD([torch.nn.Parameter(torch.zeros(3))], IDEAL, **bad)


def test_default_precision_models_train_on_the_double_precision_board():
    losses = {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double().to(dtype)
        x, y = torch.randn(6, 5, dtype=torch.float64).to(dtype), torch.randint(3, (6,))
        optimizer = TNGD(model.parameters(), IDEAL, lr=0.2, damping=1e-6)
        losses[dtype] = [optimizer.step(lambda m=model, x=x, y=y: (m(x), y)).item() for _ in range(5)]
    assert losses[torch.float32] == pytest.approx(losses[torch.float64], rel=1e-2)


def test_frozen_and_unused_parameters_are_left_alone():
    model, closure, *_ = problem()
    model[0].bias.requires_grad_(False)
    spare = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    before = model[0].bias.clone()
    optimizer = TNGD([*model.parameters(), spare], IDEAL, lr=0.1, damping=0.05)
    optimizer.step(closure)
    assert torch.equal(model[0].bias, before)
    assert torch.equal(spare, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(dtype):
    torch.manual_seed(0)
    model, other = (torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)).to(dtype) for _ in range(2))
    x, y = torch.randn(6, 5, dtype=dtype), torch.randint(3, (6,))
    optimizer = TNGD(model.parameters(), IDEAL, lr=0.2, damping=0.05, refresh=4)
    for _ in range(2):
        optimizer.step(lambda: (model(x), y))
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    straight = [optimizer.step(lambda: (model(x), y)).item() for _ in range(5)]
    other.load_state_dict(weights)
    resumed = TNGD(other.parameters(), IDEAL, lr=0.9, damping=0.9)
    resumed.load_state_dict(saved)
    assert [resumed.step(lambda: (other(x), y)).item() for _ in range(5)] == straight


def test_curvature_in_slices_is_the_curvature(monkeypatch):
    model, closure, G, _ = problem()
    monkeypatch.setattr("tngd.curvature.curvatures.ROWS", 4)
    R = curvature_factor(closure()[0], list(model.parameters()), CROSS_ENTROPY).numpy()
    assert_close(R.T @ R, G, 1e-13)


@pytest.mark.parametrize("make", [lambda p: TNGD(p, IDEAL), lambda p: ExactNGD(p)])
def test_closures_that_return_something_else_are_refused(make):
    model, closure, *_ = problem()
    optimizer = make(model.parameters())
    with pytest.raises(InputError, match="outputs, targets"):
        optimizer.step(lambda: CROSS_ENTROPY.value(*closure()))
    with pytest.raises(InputError, match="shape"):
        optimizer.step(lambda: (closure()[0][:, 0], closure()[1]))
    with pytest.raises(InputError, match="depend on"):
        optimizer.step(lambda: (closure()[0].detach(), closure()[1]))


def test_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="requires a gradient"):
        TNGD([torch.nn.Parameter(torch.zeros(3), requires_grad=False)], IDEAL)
    with pytest.raises(InputError, match="damping must be above 0"):
        ExactNGD([torch.nn.Parameter(torch.zeros(3))], damping=0)


def test_defaults_train_a_real_network():
    result = train_once(TASKS["digits"](), TaskMethod("defaults", "ideal", {}, lambda p, b: TNGD(p, b)), IDEAL, 7, 60)
    assert result.train_loss[-1] < 0.1 * result.train_loss[0]


def test_groups_on_tiles_have_their_own_step_size():
    model, closure, G, gradient = problem()
    start = flat(model)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    TNGD(groups, IDEAL, lr=0.3, damping=0.05).step(closure)
    rates = np.concatenate([np.full(24, 0.1), np.full(15, 0.3)])
    assert_close(flat(model) - start, -rates * block_natural_gradient(G, gradient, 8, 0.05), 1e-10)


@pytest.mark.parametrize("build", [
    lambda m: torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9, nesterov=True),
    lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.1),
])  # fmt: skip
def test_the_step_an_inner_optimizer_really_takes_is_shortened(build):
    free, bound = problem()[0], problem()[0]
    outputs = problem()[1]()[1]
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    open_ended = TNGD(free, damping=0.1, inner=build(free))
    clipped = TNGD(bound, damping=0.1, kl_clip=1e-4, inner=build(bound))
    for _ in range(3):
        start = flat(bound)
        torch.nn.utils.vector_to_parameters(torch.tensor(start), free.parameters())  # the same step, unbounded
        R = curvature_factor(bound(inputs), list(bound.parameters()), CROSS_ENTROPY).numpy()
        clipped.step(lambda: (bound(inputs), outputs))
        open_ended.step(lambda: (free(inputs), outputs))
        taken, wanted = flat(bound) - start, flat(free) - start
        assert np.sum((R @ wanted) ** 2) / 2 > 1e-4
        assert np.sum((R @ taken) ** 2) / 2 == pytest.approx(1e-4, rel=1e-9)
        assert_close(taken, clipped.last.scale * wanted, 1e-10)
        assert clipped.last.scale < 1
    clipped.param_groups[0]["kl_clip"] = 1e9
    start = flat(bound)
    torch.nn.utils.vector_to_parameters(torch.tensor(start), free.parameters())
    clipped.step(lambda: (bound(inputs), outputs))
    open_ended.step(lambda: (free(inputs), outputs))
    assert np.array_equal(flat(bound), flat(free))
    assert clipped.last.scale == 1


@pytest.mark.parametrize("lr", [0.05, 20.0])
def test_the_damping_is_adapted_by_the_devices_own_part_of_the_change(lr):
    # The companion's step is large: were it in the change of the loss, the ratio would be another.
    model, closure, G, gradient = problem()
    start, own = flat(model), slice(24, None)
    companion = torch.optim.SGD(model[0].parameters(), lr=3.0)
    optimizer = TNGD(model, lr=lr, damping=0.1, adapt=2, companion=companion)
    before = CROSS_ENTROPY.value(*closure()).item()
    optimizer.step(closure)
    step = np.zeros(39)
    step[own] = -lr * np.linalg.solve(G[own, own] + 0.1 * np.eye(15), gradient[own])
    end = start + step
    end[:24] -= 3.0 * gradient[:24]
    assert_close(flat(model), end, 1e-10)
    torch.nn.utils.vector_to_parameters(torch.tensor(start + step), model.parameters())
    actual = CROSS_ENTROPY.value(*closure()).item() - before
    expected = gradient @ step + step @ G @ step / 2
    ratio = actual / expected if expected < 0 else -inf  # a rise the model saw coming is no success of the model
    assert optimizer.last.ratio == pytest.approx(ratio, rel=1e-8)
    assert (optimizer.param_groups[0]["damping"] < 0.1) == (ratio > 0.75) == (lr < 1)
