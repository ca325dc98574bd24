"""Curvatures of several batches under a digital factor T: against a dense device in coordinates of its own choice."""

from math import inf

import numpy as np
import pytest
import torch
from compare import assert_close
from reference import dense_device_state, softmax_ggn
from small_network import batches
from torch import nn

from circuits import InputError
from tngd.curvature import kronecker
from tngd.curvature import layers as curvature_layers
from tngd.device import Array
from tngd.optimizer import TNGD
from tngd.optimizer.history import DECAY, RENEWED


def network() -> nn.Module:
    """Layers with and without a bias, and a convolution, for batches of five numbers."""
    torch.manual_seed(3)
    layers = nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 2, (1, 2)), nn.Tanh(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 3, bias=False), nn.Tanh(), nn.Linear(3, 3)).double()


def flat(model) -> np.ndarray:
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def dense(model, x, y):
    """Curvature and gradient of a batch, one backward pass an output."""
    parameters, z = list(model.parameters()), model(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in z.reshape(-1)
    ]
    gradient = torch.autograd.grad(nn.functional.cross_entropy(z, y), parameters)
    J = torch.stack(rows).reshape(*z.shape, -1).numpy()
    return softmax_ggn(J, z.detach().numpy()), torch.cat([g.reshape(-1) for g in gradient]).numpy()


def places(model) -> list[tuple[int, int, bool, list[int]]]:
    """(n, m, whether it has a bias, indices) of every layer as a matrix (n, m), the bias its first column."""
    found, start = [], 0
    for layer in (layer for layer in model if hasattr(layer, "weight")):
        n, m = len(layer.weight), layer.weight[0].numel()
        weight = start + np.arange(n * m).reshape(n, m)
        start += n * m
        if layer.bias is not None:
            weight = np.hstack([start + np.arange(n)[:, None], weight])
            start += n
        found.append((*weight.shape, layer.bias is not None, weight.reshape(-1).tolist()))
    return found


def product(F: np.ndarray, n: int, m: int, biased: bool) -> tuple[np.ndarray, np.ndarray]:
    """A and G from a dense block of curvature: its partial traces."""
    block = F.reshape(n, m, n, m)
    G, A = np.einsum("imjm->ij", block), np.einsum("nanb->ab", block)
    scale = A[0, 0] if biased else np.trace(A) / m
    return A / scale, G * scale / np.trace(F)


def dense_metric(model, products, damping: float) -> np.ndarray:
    """T Tᵀ (N, N): the damped Kronecker product of every layer."""
    size = sum(p.numel() for p in model.parameters())
    S = np.zeros((size, size))
    for (n, m, biased, own), (A, G) in zip(places(model), products, strict=True):
        first = 1 if biased else 0
        pi = np.sqrt(np.diag(A)[first:].mean() / np.diag(G).mean())
        shift = np.full(m, pi * damping**0.5)
        shift[:first] = 0
        S[np.ix_(own, own)] = np.kron(G + damping**0.5 / pi * np.eye(n), A + np.diag(shift))
    return S


def literal(model, data, lr, damping, precondition, history, refresh, time, start):
    """The optimizer written out: parameters after every step. T is any square root, here a triangular one."""
    path, curvatures, mean, state, age, taken = [], [], None, None, refresh, 0
    for x, y in data:
        G, g = dense(model, x, y)
        if age >= refresh:
            age, curvatures = 0, [*curvatures, G][-history:]
            mean = G if taken == 0 else DECAY * mean + (1 - DECAY) * G
            products = [product(mean[np.ix_(own, own)], n, m, biased) for n, m, biased, own in places(model)]
            if taken < RENEWED or taken % RENEWED == 0:
                T, state = np.linalg.cholesky(dense_metric(model, products, precondition)), None
            taken += 1
            M = np.linalg.inv(T)
            A = M @ np.mean(curvatures, axis=0) @ M.T + damping * np.eye(len(g))
        age += 1
        left = {"gradient": M @ g, "zero": 0 * g, "kept": M @ g if state is None else state}[start]
        state = dense_device_state(A, M @ g, left, time)
        path.append(flat(model) - lr * M.T @ state)
        nn.utils.vector_to_parameters(torch.tensor(path[-1]), model.parameters())
    return path


@pytest.mark.parametrize(("time", "start"), [(inf, "gradient"), (0.0, "gradient"), (0.4, "zero"), (0.4, "kept")])
@pytest.mark.parametrize(("history", "refresh", "steps"), [(1, 1, 4), (3, 2, 9), (2, 1, 2 * RENEWED + 3)])
def test_steps_are_those_of_a_dense_device_in_the_coordinates_of_t(history, refresh, steps, time, start):
    settings = {"damping": 1.5, "precondition": 0.05, "history": history, "refresh": refresh}
    settings |= {"time": time, "start": start, "lr": 0.5}
    model, data = network(), batches(steps)
    optimizer = TNGD(model, curvature="ggn", **settings)
    expected = literal(network(), data, **settings)
    for (x, y), parameters in zip(data, expected, strict=True):
        optimizer.step(lambda x=x, y=y: (model(x), y))
        assert_close(flat(model), parameters, 1e-9)


@pytest.mark.parametrize("history", [2, 8])
def test_history_alone_is_the_mean_curvature(history):
    model, data = network(), batches(history + 3)
    optimizer, other = TNGD(model, lr=0.1, damping=0.1, history=history), network()
    held = []
    for x, y in data:
        optimizer.step(lambda x=x, y=y: (model(x), y))
        G, g = dense(other, x, y)
        held = [*held, G][-history:]
        step = np.linalg.solve(np.mean(held, axis=0) + 0.1 * np.eye(len(g)), g)
        nn.utils.vector_to_parameters(torch.tensor(flat(other) - 0.1 * step), other.parameters())
        assert_close(flat(model), flat(other), 1e-10)


def test_a_curvature_that_is_a_product_becomes_the_identity():
    layer = nn.Linear(4, 3).double()
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)).double(), torch.zeros(20, 3).double()
    optimizer = TNGD(layer, loss=nn.MSELoss(), precondition=1e-24, damping=1.0)
    optimizer.step(lambda: (layer(x), y))
    optimizer.step(lambda: (layer(x), y))
    optimizer.param_groups[0]["refresh"] = 2  # the curvature is kept, and can be looked at
    optimizer.step(lambda: (layer(x), y))
    R = optimizer._memory.history.uploaded.dense(x)
    assert_close(torch.linalg.eigvalsh(R.T @ R).numpy(), np.ones(15), 1e-8)


@pytest.mark.parametrize("limit", [0, 2**24])  # convolutions as products over positions, and as rows
@pytest.mark.parametrize("largest", [3, 2048])  # sides beyond it get a multiple of I
def test_coordinates_of_factor_gradient_and_state_are_one_matrix(limit, largest, monkeypatch):
    monkeypatch.setattr(curvature_layers, "LIMIT", limit)
    monkeypatch.setattr(kronecker, "LARGEST", largest)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    model[0].weight.requires_grad_(False)  # a layer whose bias alone is trained
    x, y = torch.randn(5, 1, 7, 7).double(), torch.tensor([0, 1, 2, 0, 1])
    optimizer = TNGD(model, precondition=0.1, damping=1.0, refresh=2)
    optimizer.step(lambda: (model(x), y))
    history = optimizer._memory.history
    size = history.joined.size
    M = torch.stack([history.metric.upload(column) for column in torch.eye(size).double()], dim=1)
    read = torch.stack([history.metric.read(column) for column in torch.eye(size).double()], dim=1)
    R = history.joined.dense(x)
    assert_close(read.numpy(), M.T.numpy(), 1e-12)
    assert_close(history.uploaded.dense(x).numpy(), (R @ M.T).numpy(), 1e-12)
    grouped = slice(4, 4 + 4 * 18 + 4)
    assert (M[grouped, grouped] == torch.eye(76)).all()  # a convolution in groups is no matrix


def test_products_do_not_depend_on_how_rows_are_kept(monkeypatch):
    found = []
    for limit in (0, 2**24):
        monkeypatch.setattr(curvature_layers, "LIMIT", limit)
        model, (x, y) = network(), batches(1)[0]
        optimizer = TNGD(model, precondition=0.1, damping=1.0, refresh=2)
        optimizer.step(lambda model=model, x=x, y=y: (model(x), y))
        found.append(optimizer._memory.history.products)
    for left, right in zip(*found, strict=True):
        assert_close(left.B.numpy(), right.B.numpy(), 1e-12)
        assert_close(left.G.numpy(), right.G.numpy(), 1e-12)


def test_an_ideal_array_under_t_is_the_ideal_device():
    ends = []
    for shape in (None, (36, 37)):
        model, data = network(), batches(4)
        array = None if shape is None else Array((36, sum(p.numel() for p in model.parameters())), deviation=0.0)
        optimizer = TNGD(model, array=array, precondition=0.1, damping=1.0, history=2, time=3.0)
        for x, y in data:
            optimizer.step(lambda x=x, y=y, model=model: (model(x), y))
        ends.append(flat(model))
    assert_close(ends[0], ends[1], 1e-6)  # its gains are single precision


def test_a_layer_used_twice_and_dead_ones_keep_one_matrix():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(torch.tanh(self.middle(torch.tanh(self.middle(self.first(x))))))

    torch.manual_seed(0)
    model, (x, y) = Twice().double(), batches(1)[0]
    nn.init.zeros_(model.last.weight)  # nothing reaches the layers before: their rows are 0
    optimizer = TNGD(model, precondition=0.1, damping=1.0, refresh=2)
    optimizer.step(lambda: (model(x), y))
    metric = optimizer._memory.history.metric
    assert all(torch.isfinite(change.left).all() and torch.isfinite(change.right).all() for change in metric.changes)
    nn.init.normal_(model.last.weight)
    for _ in range(2):
        optimizer.step(lambda: (model(x), y))
    history = optimizer._memory.history
    M = torch.stack([history.metric.upload(column) for column in torch.eye(history.joined.size).double()], dim=1)
    assert len(history.metric.changes) == 3  # the layer used twice is one layer
    assert_close(history.uploaded.dense(x).numpy(), (history.joined.dense(x) @ M.T).numpy(), 1e-12)


@pytest.mark.parametrize(("settings", "words"), [
    ({"history": 0}, "history"), ({"precondition": 0.0}, "precondition"), ({"precondition": -1.0}, "precondition"),
    ({"precondition": inf}, "precondition"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        TNGD(network(), **settings)


def test_parameters_without_their_layers_are_refused():
    with pytest.raises(InputError, match="give TNGD the module"):
        TNGD(network().parameters(), precondition=0.1)
