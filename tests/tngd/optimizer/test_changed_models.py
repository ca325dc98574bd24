"""Models that change between two steps: the step is right all the same, refused, or the device starts anew."""

import numpy as np
import pytest
import torch
from compare import assert_close
from small_network import batches, network
from test_safe_steps import dense, flat, mean_cross_entropy
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from circuits import InputError
from tngd.device import array_of, tile_board
from tngd.optimizer import TNGD


class Tied(nn.Module):
    """Two layers with one weight and a bias each, of which the second may be skipped."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.b.weight = self.a.weight

    def forward(self, x, both):
        h = torch.tanh(self.a(x))
        return self.out(torch.tanh(self.b(h)) if both else h)


@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("called", [(1, 1, 1), (1, 0, 1, 0), (0, 1, 0, 0, 1)])
def test_a_preconditioned_device_whose_layers_share_a_weight_now_and_then(called, history):
    """x = Mᵀ (λI + M G Mᵀ)⁻¹ M g with the dense M of the device, whose transpose is what it reads with."""
    model = Tied().double()
    optimizer = TNGD(model, lr=0.1, damping=0.5, precondition=0.1, history=history)
    held = []
    for both, (x, y) in zip(called, batches(len(called)), strict=True):
        z = model(x, both)
        G, g = dense(model, z, *mean_cross_entropy(z, y))
        held, before = [*held, G][-history:], flat(model)
        optimizer.step(lambda x=x, y=y, both=both: (model(x, both), y))
        metric, eye = optimizer._memory.history.metric, torch.eye(len(g)).double()
        M = torch.stack([metric.upload(row) for row in eye], dim=1).numpy()
        assert_close(torch.stack([metric.read(row) for row in eye]).numpy(), M, 1e-12)
        state = np.linalg.solve(0.5 * np.eye(len(g)) + M @ np.mean(held, axis=0) @ M.T, M @ g)
        assert_close(before - flat(model), 0.1 * M.T @ state, 1e-9)


class Mixing(nn.Module):
    """Takes the mean of the batch off after its first layer when told so, or in training."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.how, self.mixes = nn.Linear(5, 4), nn.Linear(4, 3), how, False

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if self.how == "norm":
            h = functional.batch_norm(h, torch.zeros(4).double(), torch.ones(4).double(), training=self.training)
        return self.b(h - h.mean(0) if self.mixes else h)


@pytest.mark.parametrize("how", ["norm", "mean"])
def test_samples_that_mix_from_some_step_on_are_refused_at_once(how):
    model = Mixing(how).double().eval()
    optimizer, data = TNGD(model, damping=0.1), batches(6)
    for x, y in data[:5]:
        optimizer.step(lambda x=x, y=y: (model(x), y))
    model.train(how == "norm")
    model.mixes, before, (x, y) = how == "mean", flat(model), data[5]
    with pytest.raises(InputError, match="mix or change places after layer 'a'"):
        optimizer.step(lambda: (model(x), y))
    assert (flat(model) == before).all()


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_a_layer_parametrized_later_is_right_in_its_first_step():
    model, data = network(), batches(3)
    optimizer = TNGD(model, lr=1.0, damping=0.1)
    for x, y in data[:2]:
        optimizer.step(lambda x=x, y=y: (model(x), y))
    parametrize.register_parametrization(model[0], "weight", Half())
    own, (x, y) = [p for group in optimizer.param_groups for p in group["params"]], data[2]
    z = model(x)
    J = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(each, own, retain_graph=True)]) for each in z.reshape(-1)
    ]).numpy()  # fmt: skip
    value, H = mean_cross_entropy(z, y)
    g = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, own)]).numpy()
    before = torch.cat([p.detach().reshape(-1) for p in own]).numpy()
    optimizer.step(lambda: (model(x), y))
    after = torch.cat([p.detach().reshape(-1) for p in own]).numpy()
    assert_close(before - after, np.linalg.solve(J.T @ H.numpy() @ J + 0.1 * np.eye(len(g)), g), 1e-10)


KEEPING = {"refresh": 5}, {"history": 3}, {"start": "kept", "time": 1.0, "delay": 0.1}


@pytest.mark.parametrize(
    ("of", "settings"),
    [*(("parameters", each) for each in KEEPING), *(("module", each) for each in (*KEEPING, {"precondition": 0.1}))],
)
def test_other_numbers_or_sizes_restart_the_device(of, settings):
    model, data = network().float(), batches(3)

    def steps(optimizer, count, dtype):
        for x, y in data[:count]:
            optimizer.step(lambda x=x, y=y: (model(x.to(dtype)[:, : model[0].in_features]), y))

    optimizer = TNGD(model if of == "module" else model.parameters(), lr=0.1, damping=0.1, **settings)
    steps(optimizer, 2, torch.float32)
    model.double()
    kept = flat(model)
    steps(optimizer, 2, torch.float64)
    changed = flat(model)
    nn.utils.vector_to_parameters(torch.from_numpy(kept), model.parameters())
    steps(TNGD(model if of == "module" else model.parameters(), lr=0.1, damping=0.1, **settings), 2, torch.float64)
    assert_close(changed, flat(model), 1e-12)
    model[0].weight.data, model[0].in_features = model[0].weight.data[:, 1:].clone(), model[0].in_features - 1
    steps(optimizer, 2, torch.float64)
    assert np.isfinite(flat(model)).all()


@pytest.mark.parametrize("adapt", [0, 1])
def test_adapting_the_damping_counts_a_batch_once_in_running_means(adapt):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    x, y = batches(1)[0]
    optimizer = TNGD(list(model.parameters()), lr=0.1, adapt=adapt)
    mean = model[0](x).mean(0).detach()
    optimizer.step(lambda: (model(x), y))
    assert int(model[1].num_batches_tracked) == 1
    assert_close(model[1].running_mean.numpy(), 0.1 * mean.numpy(), 1e-12)


def test_adapting_the_damping_on_another_batch_is_refused():
    model, data = network(), iter(batches(4))

    def draws():
        x, y = next(data)
        return model(x), y

    optimizer = TNGD(model, damping=0.1, adapt=1)
    with pytest.raises(InputError, match="other targets the second time; draw the batch outside"):
        optimizer.step(draws)
    assert optimizer.param_groups[0]["damping"] == 0.1


def test_an_inner_optimizer_that_fails_leaves_the_device_as_it_was():
    model, data = network(), batches(2)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TNGD(model, curvature="mc", start="kept", time=1.0, inner=inner)
    (x, y), step, saved = data[0], inner.step, optimizer.state_dict()

    def fails():
        raise RuntimeError("no step")

    inner.step = fails
    with pytest.raises(RuntimeError, match="no step"):
        optimizer.step(lambda: (model(x), y))
    inner.step = step
    assert optimizer._memory is None
    assert torch.equal(optimizer.state_dict()["device"]["generator"], saved["device"]["generator"])


@pytest.mark.parametrize("make", [lambda p: TNGD(p), lambda p: torch.optim.LBFGS(p)])
def test_partners_that_need_a_closure_are_refused(make):
    model = network()
    with pytest.raises(InputError, match="takes a closure of its own"):
        TNGD(model, inner=make(list(model.parameters())))
    with pytest.raises(InputError, match="takes a closure of its own"):
        TNGD(model, companion=make(list(model[2].parameters())))
    with pytest.raises(InputError, match="SparseAdam"):
        TNGD(model, inner=torch.optim.SparseAdam(list(model.parameters())))


def test_rates_beside_an_inner_optimizer_are_refused():
    model, (x, y) = network(), batches(1)[0]
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="lr is the inner one's"):
        TNGD(model, lr=0.1, inner=inner)
    optimizer = TNGD(model, inner=inner)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step(lambda: (model(x), y))
    schedule.step()
    with pytest.raises(InputError, match="schedule it, there"):
        optimizer.step(lambda: (model(x), y))


class Numpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(g.detach().numpy().copy())


class Foreign(nn.Module):
    def forward(self, x):
        return Numpy.apply(x)


@pytest.mark.parametrize("of", ["module", "parameters"])
def test_an_operation_without_batched_backward_pass_is_refused(of):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), Foreign(), nn.Linear(4, 3)).double()
    x, y = batches(1)[0]
    optimizer = TNGD(model if of == "module" else model.parameters())
    with pytest.raises(InputError, match="no batched backward pass"):
        optimizer.step(lambda: (model(x), y))


def test_lazy_empty_and_sparse_layers():
    x, y = batches(1)[0]
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 3)).double()
    with pytest.raises(InputError, match="lazy layer has no parameters yet"):
        TNGD(lazy)
    lazy(x)
    TNGD(lazy).step(lambda: (lazy(x), y))
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 3).double()
    TNGD(empty, lr=1.0, damping=0.1).step(lambda: (empty(x[:, :0]), y))
    plain = nn.Linear(5, 3).double()
    with pytest.raises(InputError, match="sparse input"):
        TNGD(plain).step(lambda: (plain(x.to_sparse()), y))


def test_states_without_a_setting_or_with_another_kind_of_memory_are_refused_whole():
    model, (x, y) = network(), batches(1)[0]
    optimizer = TNGD(model, damping=0.3, refresh=3, inner=torch.optim.Adam(model.parameters()))
    optimizer.step(lambda: (model(x), y))
    broken = [optimizer.state_dict() for _ in range(4)]
    del broken[0]["param_groups"][0]["damping"]
    broken[1]["device"]["memory"] = "none"
    broken[2]["device"]["generator"] = torch.zeros(3)
    del broken[3]["device"]["memory"]["history"]
    fresh = TNGD(model, damping=0.1, refresh=3, inner=torch.optim.Adam(model.parameters()))
    for state, words in zip(broken, ("no damping", *["the state is damaged"] * 3), strict=True):
        with pytest.raises(InputError, match=words):
            fresh.load_state_dict(state)
        assert fresh.param_groups[0]["damping"] == 0.1
        assert not fresh.inner.state
    smooth = TNGD(model, loss=nn.CrossEntropyLoss(label_smoothing=0.3))
    with pytest.raises(InputError, match=r"loss .* there, .* here"):
        TNGD(model, loss=nn.CrossEntropyLoss(ignore_index=0)).load_state_dict(smooth.state_dict())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"time": 1e160}, "time must be up to 1e.100 or inf"),
        ({"delay": 1e200}, "delay must be up to"),
        ({"lr": True}, "lr must be a number"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr must be a number"),
        ({"seed": 2**70}, "64 bits"),
        ({"model": lambda x: x}, "model must be the torch module"),
    ],
)
def test_arguments_that_cannot_be(given, words):
    parameters = network().parameters()
    with pytest.raises(InputError, match=words):
        TNGD(parameters, **given)


@pytest.mark.parametrize("make", [tile_board, lambda device: array_of(device, (24, 53))])
@pytest.mark.parametrize("given", ["board-1", None])
def test_what_is_no_device_is_refused(make, given):
    with pytest.raises(InputError, match=r"expected a device, got .*load_device"):
        make(given)


def test_what_cannot_be_trained_and_what_cannot_be_called():
    model = network()
    for params in (None, model[0].weight, 3):
        with pytest.raises(InputError, match="expected a torch module"):
            TNGD(params)
    with pytest.raises(InputError, match="step takes a closure"):
        TNGD(model).step(None)


def test_a_norm_whose_square_is_no_float32_is_shortened():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x, y, before = torch.randn(6, 5) * 1e3, torch.randn(6, 3) * 1e18, flat(model)
    TNGD(model, loss=nn.MSELoss(), lr=0.1, max_norm=1.0, time=0.0).step(lambda: (model(x), y))
    assert np.linalg.norm(before - flat(model)) == pytest.approx(0.1, rel=1e-5)
