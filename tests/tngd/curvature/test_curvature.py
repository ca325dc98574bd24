"""Factors of the curvature, layer by layer, against Jacobians taken one output and one sample at a time."""

import numpy as np
import pytest
import torch
from compare import FALSE_ALARM, assert_close
from reference import softmax_ggn
from scipy.stats import chi2
from torch import nn
from torch.nn import functional

from circuits import InputError
from tngd.curvature import (
    CROSS_ENTROPY,
    Loss,
    Recorder,
    cross_entropy,
    curvature_factor,
    factor,
    layers,
    mean_squared_error,
)
from tngd.curvature import layers as curvature_layers
from tngd.curvature.curvatures import curvature_cotangents
from tngd.curvature.factor import join_factors, packed, unpacked
from tngd.curvature.losses import LOGISTIC, as_loss
from tngd.optimizer.batch import evaluate_batch


class Tied(nn.Module):
    """One linear layer called twice, its weight also that of another layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(input=torch.tanh(self.first(x)))))))


class Sequence(nn.Module):
    """Tokens: embedding, normalisation and a free parameter beside linear layers on sequences."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.mix = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.gain, self.last = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.last((self.gain * torch.relu(self.mix(self.norm(self.words(tokens))))).mean(1))


class Attention(nn.Module):
    """Multi-head attention uses the weight of a linear layer which it never calls."""

    def __init__(self):
        super().__init__()
        self.mix, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.mix(x, x, x, need_weights=False)[0].mean(1))


def convolutions(**settings):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **settings), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(),
        nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


IMAGES, ROWS = (6, 2, 7, 8), (6, 4)
CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)), ROWS),
    "strided": (lambda: convolutions(stride=2, padding=1), IMAGES),
    "dilated": (lambda: convolutions(dilation=(2, 1), padding=(1, 2)), IMAGES),
    "circular": (lambda: convolutions(padding=1, padding_mode="circular"), IMAGES),
    "same": (lambda: convolutions(padding="same", bias=False), IMAGES),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.4), nn.ReLU(), nn.Linear(9, 3)), ROWS),
    "tied": (Tied, ROWS),
    "sequence": (Sequence, (6, 5)),
    "attention": (Attention, (6, 5, 4)),
    "frozen": (lambda: freeze(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))), ROWS),
}


def freeze(model):
    model[0].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def case(name: str, seed: int = 0):
    make, shape = CASES[name]
    torch.manual_seed(seed)
    x = torch.randint(7, shape) if name == "sequence" else torch.randn(shape, dtype=torch.float64)
    model = make().double()
    model(x[:1])
    return model, x, torch.randint(3, (len(x),))


def jacobian(outputs: torch.Tensor, parameters: list) -> np.ndarray:
    """(b, d, N), one backward pass an entry."""
    rows = []
    for z in outputs.reshape(-1):
        found = torch.autograd.grad(z, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows).reshape(*outputs.shape, -1).numpy()


def recorded(model, x, y, loss=CROSS_ENTROPY, kind="ggn", seed=0):
    """Factor from the recorder, and the outputs' Jacobian on the very same graph (dropout)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    machine, kept = Recorder(model, parameters), {}

    def closure():
        kept["outputs"] = model(x)
        return kept["outputs"], y

    state = torch.get_rng_state()
    batch = evaluate_batch(closure, parameters, [], loss, kind, machine, torch.Generator().manual_seed(seed))
    torch.set_rng_state(state)
    outputs = model(x)
    return batch, outputs.detach().numpy(), jacobian(outputs, parameters)


@pytest.mark.parametrize("way", ["rows", "rows at once", "products"])
@pytest.mark.parametrize("name", CASES)
def test_every_layer_gives_the_dense_gauss_newton_matrix(name, way, monkeypatch):
    if way == "rows at once":  # each cotangent's as it comes, their gradients never kept together; K in several blocks
        monkeypatch.setattr(curvature_layers, "KEPT", 0)
        monkeypatch.setattr(factor, "BLOCK", 5)
    if way == "products":  # convolutions and sequences as products, the rows never formed together
        monkeypatch.setattr(layers, "LIMIT", 0)
    model, x, y = case(name)
    batch, z, J = recorded(model, x, y)
    G = softmax_ggn(J, z)
    like = batch.gradient
    R = batch.factor.dense(like).numpy()
    assert_close(R.T @ R, G, 1e-10, "RᵀR")
    K = batch.factor.gram(like)
    assert_close(K.numpy(), R @ R.T, 1e-10, "K")
    assert torch.equal(K, K.T)
    v, c = torch.randn(R.shape[1]).double(), torch.randn(R.shape[0]).double()
    assert_close(batch.factor.forward(v).numpy(), R @ v.numpy(), 1e-10, "R v")
    assert_close(batch.factor.transpose(c).numpy(), R.T @ c.numpy(), 1e-10, "Rᵀ c")
    assert batch.factor.rank == len(x) * 2  # d - 1 rows a sample
    again = unpacked(packed(batch.factor))
    assert torch.equal(again.gram(like), batch.factor.gram(like))


@pytest.mark.parametrize("name", ["linear", "strided", "tied"])
def test_empirical_curvature_is_that_of_the_samples_own_gradients(name):
    model, x, y = case(name)
    batch, z, J = recorded(model, x, y, kind="empirical")
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    rows = np.einsum("bd,bdn->bn", p - np.eye(3)[y], J)
    R = batch.factor.dense(batch.gradient).numpy()
    assert_close(R.T @ R, rows.T @ rows / len(x), 1e-10)
    assert_close(batch.gradient.numpy(), rows.mean(0), 1e-10)


def test_sampled_cotangents_are_gradients_at_labels_drawn_from_the_model():
    z = torch.tensor([[0.3, -1.0, 2.0, 0.0]], dtype=torch.float64).expand(20_000, 4)
    generator = torch.Generator().manual_seed(3)
    S = (
        curvature_cotangents("mc", z, torch.zeros(len(z), dtype=torch.long), CROSS_ENTROPY, None, generator)[:, 0]
        * len(z) ** 0.5
    )
    p = torch.softmax(z[0], 0)
    drawn = p - S
    assert torch.equal(drawn.round(), torch.eye(4).double()[drawn.argmax(1)])
    counts = torch.bincount(drawn.argmax(1), minlength=4).numpy()
    expected = (p * len(z)).numpy()
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(FALSE_ALARM, 3)


def test_sampled_curvature_of_any_loss_has_the_hessian_as_its_second_moment():
    # d = 2: (Sᵀε)(Sᵀε)ᵀ/H, H = 2/d I: 40,000 chi-squares in each entry.
    z = torch.zeros(40_000, 2, dtype=torch.float64)
    S = curvature_cotangents("mc", z, z, mean_squared_error(), None, torch.Generator().manual_seed(1))[:, 0].numpy()
    total = (S**2).sum(0)
    assert chi2.ppf(FALSE_ALARM / 4, len(z)) < (len(z) * total).min()
    assert (len(z) * total).max() < chi2.isf(FALSE_ALARM / 4, len(z))


def test_sampled_factor_is_seeded():
    model, x, y = case("linear")
    dense = [recorded(model, x, y, kind="mc", seed=s)[0] for s in (0, 0, 1)]
    first, again, other = (batch.factor.dense(batch.gradient) for batch in dense)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape[0] == len(x)


@pytest.mark.parametrize("loss", [
    cross_entropy(), cross_entropy("sum"), cross_entropy(label_smoothing=0.3), cross_entropy(ignore_index=1),
    cross_entropy("sum", ignore_index=1), mean_squared_error(), mean_squared_error("sum"), LOGISTIC,
    as_loss(nn.CrossEntropyLoss(label_smoothing=0.1)), as_loss(nn.MSELoss(reduction="sum")),
    as_loss(nn.BCEWithLogitsLoss()),
])  # fmt: skip
def test_output_hessian_of_every_loss_is_autograds(loss):
    torch.manual_seed(2)
    width = 1 if loss.name == "logistic" else 4
    z = (3 * torch.randn(5, width)).double().requires_grad_()
    y = torch.tensor([1, 0, 3, 1, 2])
    if loss.name == "logistic":
        y = y % 2
    if loss.name == "mean squared error":
        y = torch.randn(5, width).double()
    S = curvature_cotangents("ggn", z, y, loss, None, None)
    H = torch.autograd.functional.hessian(lambda outputs: loss.value(outputs, y), z)
    for k in range(5):
        assert_close((S[k].T @ S[k]).numpy(), H[k, :, k].numpy(), 1e-10)


def test_softmax_factor_stays_exact_where_probabilities_vanish():
    z = torch.tensor([[0.0, -800.0, 0.0, -50.0], [90.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 400.0]], dtype=torch.float64)
    S = CROSS_ENTROPY.root(z)
    p = torch.softmax(z, 1)
    assert_close((S.mT @ S).numpy(), (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).numpy(), 1e-13)
    assert torch.isfinite(S).all()
    assert CROSS_ENTROPY.root(torch.zeros(3, 1)).shape == (3, 1, 1)


def test_micro_batches_join_to_the_whole_batch(monkeypatch):
    for limit in (2**24, 0):
        monkeypatch.setattr(layers, "LIMIT", limit)
        model, x, y = case("strided")
        whole, *_ = recorded(model, x, y)
        parts = [recorded(model, x[k], y[k])[0].factor for k in (slice(0, 2), slice(2, 6))]
        joined = join_factors(parts, [(2 / 6) ** 0.5, (4 / 6) ** 0.5])
        assert_close(joined.gram(whole.gradient).numpy(), whole.factor.gram(whole.gradient).numpy(), 1e-12)


def test_batch_normalisation_is_refused_by_name_in_training_and_right_in_eval():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4).double(), torch.randint(3, (6,))
    with pytest.raises(InputError, match=r"layer '1' \(BatchNorm1d\)"):
        recorded(model, x, y)
    batch, z, J = recorded(model.eval(), x, y)
    R = batch.factor.dense(batch.gradient).numpy()
    assert_close(R.T @ R, softmax_ggn(J, z), 1e-10)
    # Without the model the mixing samples are exact too.
    outputs = model.train()(x)
    R = curvature_factor(outputs, list(model.parameters()), CROSS_ENTROPY).detach().numpy()
    J = jacobian(outputs, list(model.parameters()))
    assert_close(R.T @ R, softmax_ggn(J, outputs.detach().numpy()), 1e-10)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.inner(x)
        return self.last(h - h.mean(0))


class Functional(Mixing):
    def forward(self, x):
        return self.last(functional.linear(x, self.inner.weight) + self.inner(x))


class Folded(Mixing):
    def forward(self, x):
        return self.last(self.inner(x.repeat(2, 1))[: len(x)])


@pytest.mark.parametrize(("model", "words"), [
    (Mixing, "samples of the batch mix or change places after layer 'inner'"),
    (Functional, "'inner.weight' is used outside its layer"),
    (Folded, "layer 'inner' took"),
])  # fmt: skip
def test_models_that_layers_do_not_explain_are_refused_by_name(model, words):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=words):
        recorded(model().double(), torch.randn(6, 4).double(), torch.randint(3, (6,)))


def test_layers_without_a_curvature_are_refused_by_name():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)).double()
    with pytest.raises(InputError, match=r"layer '0' \(Embedding\)"):
        recorded(model, torch.randint(5, (6, 3)), torch.randint(3, (6,)))


@pytest.mark.parametrize(("criterion", "words"), [
    (nn.CrossEntropyLoss(weight=torch.ones(3)), "class weights"), (nn.L1Loss(), "L1Loss"),
    (nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)), "pos_weight"), (nn.MSELoss(reduction="none"), "reduction"),
])  # fmt: skip
def test_losses_without_a_known_curvature_are_refused(criterion, words):
    with pytest.raises(InputError, match=words):
        as_loss(criterion)


def test_a_users_own_loss():
    # Poisson: value Σ e^z - y z, Hessian e^z.
    loss = Loss("poisson", lambda z, y: (z.exp() - y * z).sum(), lambda z: torch.diag_embed((z / 2).exp()), "sum")
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2).double(), torch.randn(5, 4).double()
    batch, z, J = recorded(model, x, torch.ones(5, 2).double(), loss)
    R = batch.factor.dense(batch.gradient).numpy()
    assert_close(R.T @ R, np.einsum("bdn,bd,bdm->nm", J, np.exp(z), J), 1e-10)
