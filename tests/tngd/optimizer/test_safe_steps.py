"""Steps that must be right, or refused whole: calls in any order, frozen parameters, partners, states, losses."""

import copy
from math import inf

import numpy as np
import pytest
import torch
from compare import assert_close
from small_network import batches, network
from torch import nn
from torch.nn import functional

from circuits import InputError
from tngd.curvature import Loss
from tngd.curvature.losses import as_loss
from tngd.optimizer import TNGD


def flat(model) -> np.ndarray:
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def dense(model, outputs, value, hessian) -> tuple[np.ndarray, np.ndarray]:
    """Curvature J^T H J of outputs (b, d) with the Hessian (b d, b d) of the loss, and its gradient."""
    own = list(model.parameters())
    rows = [
        torch.cat([
            torch.zeros(p.numel()).double() if g is None else g.reshape(-1)
            for p, g in zip(own, torch.autograd.grad(z, own, retain_graph=True, allow_unused=True), strict=True)
        ])
        for z in outputs.reshape(-1)
    ]  # fmt: skip
    J = torch.stack(rows).numpy()
    g = torch.autograd.grad(value, own, retain_graph=True, allow_unused=True, materialize_grads=True)
    return J.T @ hessian.numpy() @ J, torch.cat([part.reshape(-1) for part in g]).numpy()


def mean_cross_entropy(outputs, y):
    """The loss of a batch, and its Hessian over all outputs."""
    b = len(outputs)
    p = torch.softmax(outputs.detach(), dim=1)
    return functional.cross_entropy(outputs, y), torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / b


class Heads(nn.Module):
    """A trunk and two heads, of which a call uses one; the layers of the trunk in either order."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(5, 5), nn.Linear(5, 5)
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])

    def forward(self, x, which):
        first, second = (self.one, self.other) if which == 0 else (self.other, self.one)
        return self.heads[which](torch.tanh(second(torch.tanh(first(x)))))


def test_micro_batches_may_call_other_layers_in_another_order():
    model, data = Heads().double(), batches(2)
    parts = []
    for which, (x, y) in enumerate(data):
        z = model(x, which)
        parts.append(dense(model, z, *mean_cross_entropy(z, y)))
    G, g = (np.mean(each, axis=0) for each in zip(*parts, strict=True))
    before = flat(model)
    closures = [lambda x=x, y=y, k=k: (model(x, k), y) for k, (x, y) in enumerate(data)]
    TNGD(model, lr=1.0, damping=0.1).step(*closures)
    assert_close(before - flat(model), np.linalg.solve(G + 0.1 * np.eye(len(g)), g), 1e-10)


@pytest.mark.parametrize("precondition", [None, 0.1])
def test_batches_held_together_may_have_called_other_layers(precondition):
    model, data = Heads().double(), batches(4)
    optimizer = TNGD(model, lr=0.1, damping=0.1, history=3, precondition=precondition)
    held = []
    for k, (x, y) in enumerate(data):
        z = model(x, k % 2)
        G, g = dense(model, z, *mean_cross_entropy(z, y))
        held, before = [*held, G][-3:], flat(model)
        optimizer.step(lambda x=x, y=y, k=k: (model(x, k % 2), y))
        metric = optimizer._memory.history.metric
        M = np.eye(len(g))
        if metric is not None:
            M = torch.stack([metric.upload(e) for e in torch.eye(len(g)).double()], dim=1).numpy()
        state = np.linalg.solve(M @ np.mean(held, axis=0) @ M.T + 0.1 * np.eye(len(g)), M @ g)
        assert_close(before - flat(model), 0.1 * M.T @ state, 1e-9)


@pytest.mark.parametrize("partner", ["inner", "companion"])
def test_a_parameter_frozen_on_the_way_stays_where_it_is(partner):
    model, (x, y) = network(), batches(1)[0]
    if partner == "inner":
        optimizer = TNGD(model, inner=torch.optim.Adam(model.parameters(), lr=0.1))
    else:
        optimizer = TNGD(model, companion=torch.optim.Adam(model[2].parameters(), lr=0.1))
    optimizer.step(lambda: (model(x), y))
    model[2].weight.requires_grad_(False)
    before, bias = model[2].weight.detach().clone(), model[2].bias.detach().clone()
    optimizer.step(lambda: (model(x), y))
    assert torch.equal(model[2].weight, before)
    assert not torch.equal(model[2].bias, bias)


def test_a_companion_gradient_that_is_not_finite_changes_nothing():
    model, (x, y) = network(), batches(1)[0]
    scale = nn.Parameter(torch.zeros(()).double())
    optimizer = TNGD(model, companion=torch.optim.SGD([scale], lr=0.1))
    before = flat(model)
    with pytest.raises(InputError, match="gradient is not finite"):
        optimizer.step(lambda: (model(x) * scale.sqrt(), y))
    assert np.array_equal(flat(model), before)
    assert not scale.detach().any()


def test_a_batch_of_one_does_not_answer_for_samples_that_mix():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(h - h.mean(0))

    model, (x, y) = Mixing().double(), batches(1)[0]
    optimizer = TNGD(model)
    optimizer.step(lambda: (model(x[:1]), y[:1]))
    with pytest.raises(InputError, match="samples of the batch mix"):
        optimizer.step(lambda: (model(x), y))


def test_a_refused_step_keeps_the_memory_even_after_freezing():
    model, (x, y) = network(), batches(1)[0]
    optimizer = TNGD(model, start="kept", time=1.0)
    optimizer.step(lambda: (model(x), y))
    kept = copy.deepcopy(optimizer.state_dict())
    model[0].bias.requires_grad_(False)
    with pytest.raises(InputError, match="loss is nan"):
        optimizer.step(lambda: (model(x * torch.nan), y))
    model[0].bias.requires_grad_(True)
    now = optimizer.state_dict()
    assert torch.equal(now["device"]["memory"]["state"], kept["device"]["memory"]["state"])
    assert torch.equal(now["device"]["generator"], kept["device"]["generator"])


def test_damping_grows_where_the_loss_does():
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 1).double()
    optimizer = TNGD(model, lr=3.0, damping=0.01, adapt=1, loss=nn.MSELoss())
    values = [optimizer.step(lambda: (model(x), y)).item() for _ in range(4)]
    assert values == sorted(values)
    assert optimizer.last.ratio == -inf
    assert optimizer.param_groups[0]["damping"] > 0.01


def test_a_step_whose_loss_is_no_number_afterwards_raises_the_damping():
    model, (x, y) = network(), batches(1)[0]
    calls = []

    def closure():
        calls.append(1)
        return model(x) * (torch.nan if len(calls) == 2 else 1), y

    optimizer = TNGD(model, adapt=1, damping=0.1)
    optimizer.step(closure)
    assert optimizer.last.ratio == -inf
    assert optimizer.param_groups[0]["damping"] == pytest.approx(0.1 / 0.95)


def test_a_closure_that_fails_in_the_check_of_the_damping_leaves_a_whole_step():
    trained = []
    for fails in (False, True):
        model, (x, y) = network(), batches(1)[0]
        scale, calls = nn.Parameter(torch.ones(()).double()), []

        def closure(model=model, scale=scale, calls=calls, fails=fails, x=x, y=y):
            calls.append(1)
            if fails and len(calls) == 2:
                raise KeyError("the loader has ended")
            return model(x) * scale, y

        optimizer = TNGD(model, adapt=1, companion=torch.optim.SGD([scale], lr=0.1))
        if fails:
            with pytest.raises(KeyError):
                optimizer.step(closure)
            assert optimizer.param_groups[0]["damping"] == optimizer.defaults["damping"]
        else:
            optimizer.step(closure)
        trained.append(np.append(flat(model), scale.item()))
    assert np.array_equal(*trained)
    assert trained[0][-1] != 1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_several_logits_are_several_labels(reduction):
    model, (x, _) = network(), batches(1)[0]
    y = torch.randint(2, (len(x), 3), generator=torch.Generator().manual_seed(0)).double()
    z = model(x)
    p = torch.sigmoid(z.detach()).reshape(-1)
    scale = z.numel() if reduction == "mean" else 1
    value = functional.binary_cross_entropy_with_logits(z, y, reduction=reduction)
    G, g = dense(model, z, value, torch.diag(p * (1 - p)) / scale)
    before = flat(model)
    found = TNGD(model, lr=1.0, damping=0.1, loss=nn.BCEWithLogitsLoss(reduction=reduction)).step(lambda: (model(x), y))
    assert found.item() == pytest.approx(value.item(), rel=1e-12)
    assert_close(before - flat(model), np.linalg.solve(G + 0.1 * np.eye(len(g)), g), 1e-10)
    with pytest.raises(InputError, match="one label a logit"):
        TNGD(model, loss=nn.BCEWithLogitsLoss()).step(lambda: (model(x), y[:, 0]))


def test_losses_that_compute_something_else_are_refused():
    class Focal(nn.CrossEntropyLoss):
        def forward(self, outputs, targets):
            return super().forward(outputs, targets) ** 2

    with pytest.raises(InputError, match="Focal"):
        as_loss(Focal())
    model, (x, y) = network(), batches(1)[0]
    with pytest.raises(InputError, match="add up to 1"):
        TNGD(model).step(lambda: (model(x), 3 * torch.softmax(model(x).detach(), dim=1)))
    with pytest.raises(InputError, match="refused outputs and targets"):
        TNGD(model).step(lambda: (model(x), y + 7))
    own = Loss("own", lambda z, y: z.sum(1), lambda z: torch.eye(3).double().expand(len(z), 3, 3))
    with pytest.raises(InputError, match="one number"):
        TNGD(model, loss=own).step(lambda: (model(x), y))


def test_micro_batches_of_which_no_sample_counts_add_nothing():
    model, other, (x, y) = network(), network(), batches(1)[0]
    ignored = torch.full_like(y, -100)
    TNGD(model, damping=0.1).step(lambda: (model(x), y), lambda: (model(x), ignored))
    TNGD(other, damping=0.1).step(lambda: (other(x), y))
    assert_close(flat(model), flat(other), 1e-12)
    with pytest.raises(InputError, match="no sample"):
        TNGD(model).step(lambda: (model(x), ignored))


def test_samples_are_drawn_alike_in_one_batch_and_in_parts():
    for loss, make in ((nn.MSELoss(), lambda z: torch.zeros_like(z)), (nn.CrossEntropyLoss(), lambda z: z.argmax(1))):
        ends = []
        for sizes in ((6,), (2, 4)):
            model, (x, _) = network(), batches(1)[0]
            y = make(model(x).detach())
            cuts = list(zip(x.split(sizes), y.split(sizes), strict=True))
            TNGD(model, curvature="mc", damping=0.1, loss=loss, lr=1.0).step(
                *(lambda a=a, b=b, model=model: (model(a), b) for a, b in cuts)
            )
            ends.append(flat(model))
        assert_close(ends[0], ends[1], 1e-10)


def test_groups_that_cannot_be_are_refused_and_not_added():
    model, more = network(), nn.Parameter(torch.zeros(3).double())
    for name, value in (("lr", -0.1), ("lr", inf), ("weight_decay", -1.0), ("damping", -1.0), ("curvature", "tiles")):
        with pytest.raises(InputError, match="board" if name == "curvature" else name):
            TNGD([{"params": list(model.parameters()), name: value}])
    optimizer = TNGD(model, damping=0.1)
    with pytest.raises(InputError, match="damping is the device's"):
        optimizer.add_param_group({"params": [more], "damping": 0.2})
    assert len(optimizer.param_groups) == 1
    optimizer = TNGD(model, inner=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(InputError, match="exactly the parameters"):
        optimizer.add_param_group({"params": [more]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(InputError, match="LBFGS"):
        TNGD(model, inner=torch.optim.LBFGS(model.parameters()))
    for name, value in (("history", 1.5), ("refresh", 2.0), ("lanczos", True)):
        with pytest.raises(InputError, match=f"{name} is a whole number"):
            TNGD(model, **{name: value})


def test_a_companion_parameter_unfrozen_later_is_not_trained_twice():
    model, (x, y) = network(), batches(1)[0]
    model[2].bias.requires_grad_(False)
    companion = torch.optim.SGD(model[2].parameters(), lr=0.1)
    optimizer = TNGD(list(model.parameters()), companion=None, model=model)
    optimizer.companion = companion
    with pytest.raises(InputError, match="trained by TNGD and by its companion"):
        optimizer.step(lambda: (model(x), y))


def other_states():
    """Optimizers of one network that are not each other."""
    model = network()
    yield TNGD(model)
    yield TNGD(model.parameters())
    yield TNGD(model.float())
    model = network()
    yield TNGD([{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}], model=model)
    yield TNGD(model, inner=torch.optim.SGD(model.parameters(), lr=0.1))
    yield TNGD(model, inner=torch.optim.Adam(model.parameters(), lr=0.1))


def test_states_of_other_optimizers_are_refused_before_anything_is_loaded():
    for k, saved in enumerate(other_states()):
        for j, optimizer in enumerate(other_states()):
            if j == k:
                optimizer.load_state_dict(saved.state_dict())
                continue
            optimizer.param_groups[0]["damping"] = 0.7
            with pytest.raises(InputError, match="another optimizer or model"):
                optimizer.load_state_dict(saved.state_dict())
            assert optimizer.param_groups[0]["damping"] == 0.7
    broken = TNGD(network()).state_dict()
    del broken["device"]["inner"]
    with pytest.raises(InputError, match="whole device"):
        TNGD(network()).load_state_dict(broken)


def test_a_precondition_may_be_left_on_the_way():
    model, data = network(), batches(3)
    optimizer = TNGD(model, lr=0.1, damping=0.1, precondition=0.1)
    for x, y in data[:2]:
        optimizer.step(lambda x=x, y=y: (model(x), y))
    optimizer.param_groups[0]["precondition"] = None
    (x, y), before = data[2], flat(model)
    z = model(x)
    G, g = dense(model, z, *mean_cross_entropy(z, y))
    optimizer.step(lambda: (model(x), y))
    assert_close(before - flat(model), 0.1 * np.linalg.solve(G + 0.1 * np.eye(len(g)), g), 1e-10)


def test_a_norm_set_to_training_while_a_curvature_is_kept_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().eval()
    x, y = batches(1)[0]
    optimizer = TNGD(model, refresh=5)
    optimizer.step(lambda: (model(x), y))
    model.train()
    with pytest.raises(InputError, match="BatchNorm1d"):
        optimizer.step(lambda: (model(x), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_damping_keeps_to_what_the_precision_resolves(dtype):
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 2).to(dtype), torch.randn(64, 5, dtype=dtype), torch.randn(64, 2, dtype=dtype)
    optimizer = TNGD(model, lr=0.01, loss=nn.MSELoss(), adapt=1)
    losses = [float(optimizer.step(lambda: (model(x), y))) for _ in range(800)]
    rounding = 100 * torch.finfo(dtype).eps * losses[-1]
    assert (np.diff(losses) < rounding).all()
    assert torch.finfo(dtype).eps < optimizer.param_groups[0]["damping"] < 1e-4


def test_the_damping_stays_where_nothing_is_left_to_learn():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 2), torch.randn(64, 5), torch.randn(64, 2)
    optimizer = TNGD(model, lr=1.0, damping=1.0, loss=nn.MSELoss(), adapt=1)
    for _ in range(600):
        optimizer.step(lambda: (model(x), y))
    assert optimizer.param_groups[0]["damping"] <= 1.0
    assert np.isnan(optimizer.last.ratio)


@pytest.mark.parametrize("adapt", [1000, 20000])
def test_a_rare_check_changes_the_damping_a_hundredfold_at_most(adapt):
    for lr, changed in ((1e-3, 1e-2), (500.0, 1e2)):
        model, (x, y) = network(), batches(1)[0]
        optimizer = TNGD(model, lr=lr, adapt=adapt, damping=0.1)
        optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
        assert optimizer.param_groups[0]["damping"] == pytest.approx(0.1 * changed)


def test_a_rate_of_zero_moves_nothing_and_a_warm_up_starts_from_it():
    model, (x, y) = network(), batches(1)[0]
    optimizer = TNGD(model, kl_clip=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 4))
    before = flat(model)
    optimizer.step(lambda: (model(x), y))
    assert np.array_equal(flat(model), before)
    schedule.step()
    optimizer.step(lambda: (model(x), y))
    assert not np.array_equal(flat(model), before)
    with pytest.raises(InputError, match="lr must be a number, 0 or above"):
        TNGD(model, lr=-0.1)


def test_a_companion_may_have_layers_that_are_unfrozen_later():
    model, (x, y) = network(), batches(1)[0]
    model[0].requires_grad_(False)
    optimizer = TNGD(model, companion=torch.optim.Adam(model[0].parameters(), lr=0.1))
    optimizer.step(lambda: (model(x), y))
    before = model[0].weight.detach().clone()
    model[0].requires_grad_(True)
    optimizer.step(lambda: (model(x), y))
    assert not torch.equal(model[0].weight, before)


def test_a_loss_of_ones_own_returns_what_it_says():
    model, (x, y) = network(), batches(1)[0]
    b, d = len(x), 3

    def value(outputs, targets):
        return outputs.square().sum(1).mean()

    def root(outputs):
        return 2**0.5 * torch.eye(d).double().expand(b, d, d)

    wrong = {
        "root": Loss("mine", value, lambda z: torch.full_like(z, 2**0.5)),
        "sampled": Loss("mine", value, root, sampled=lambda z, u: u[:, :1]),
        "counted": Loss("mine", value, root, counted=lambda t: torch.ones(2)),
        "does not depend": Loss("mine", lambda z, t: z.detach().sum(), root),
    }
    for says, loss in wrong.items():
        with pytest.raises(InputError, match=says):
            TNGD(model, loss=loss, curvature="mc" if says == "sampled" else "ggn").step(lambda: (model(x), y))
    TNGD(model, loss=Loss("mine", value, root)).step(lambda: (model(x), y))
    with pytest.raises(InputError, match="return the targets, not the loss"):
        TNGD(model).step(lambda: (model(x), functional.cross_entropy(model(x), y)))


def test_autocast_inside_the_network_is_refused():
    model, (x, y) = network().float(), batches(1)[0]

    def closure():
        with torch.autocast("cpu", torch.bfloat16):
            return model(x.float()).float(), y

    with pytest.raises(InputError, match="without autocast"):
        TNGD(model).step(closure)


def test_micro_batches_may_be_cut_from_one_graph():
    made, (x, y) = [network(), network()], batches(1)[0]
    for model in made:
        optimizer = TNGD(model, refresh=2)
        for _ in range(2):
            outputs = model(x)
            if model is made[0]:
                optimizer.step(lambda outputs=outputs: (outputs, y))
            else:
                parts = [slice(0, 3), slice(3, None)]
                optimizer.step(*(lambda z=outputs[part], t=y[part]: (z, t) for part in parts))
    assert_close(flat(made[1]), flat(made[0]), 1e-12)


def test_a_parameter_without_numbers_is_no_trouble():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.none = nn.Linear(5, 3), nn.Parameter(torch.zeros(0, 3))

        def forward(self, x):
            return self.layer(x)

    model, (x, y) = Empty().double(), batches(1)[0]
    optimizer = TNGD(model, precondition=0.1)
    before = flat(model)
    optimizer.step(lambda: (model(x), y))
    assert not np.array_equal(flat(model), before)
