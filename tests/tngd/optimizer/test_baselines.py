"""The digital baselines against literal twins: conjugate gradients and K-FAC."""

import numpy as np
import pytest
import torch
from compare import assert_close
from reference import softmax_ggn
from torch import nn

from circuits import InputError
from tngd.optimizer import KFAC, ConjugateNGD
from tngd.optimizer.baselines import conjugate_gradients


def flat(model) -> np.ndarray:
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(6, 5).double(), torch.randint(3, (6,))


def dense(model, x, y):
    parameters, z = list(model.parameters()), model(x)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters, retain_graph=True)])
        for value in z.reshape(-1)
    ]
    gradient = torch.autograd.grad(nn.functional.cross_entropy(z, y), parameters)
    G = softmax_ggn(torch.stack(rows).reshape(6, 3, -1).numpy(), z.detach().numpy())
    return G, torch.cat([g.reshape(-1) for g in gradient]).numpy()


@pytest.mark.parametrize("iterations", [1, 3, 39])
def test_conjugate_gradients_minimise_over_the_krylov_space(iterations):
    # Their k-th iterate is the best point of span(b, A b, …, A^(k-1) b) in the energy norm; all 39 solve the system.
    model, x, y = network()
    G, g = dense(model, x, y)
    A = G + 0.05 * np.eye(39)
    K = np.linalg.qr(np.stack([np.linalg.matrix_power(A, k) @ g for k in range(min(iterations, 12))], axis=1))[0]
    best = K @ np.linalg.solve(K.T @ A @ K, K.T @ g)
    expected = best if iterations < 12 else np.linalg.solve(A, g)
    before = flat(model)
    ConjugateNGD(model.parameters(), lr=0.1, damping=0.05, iterations=iterations).step(lambda: (model(x), y))
    assert_close(flat(model) - before, -0.1 * expected, 1e-9)


def test_conjugate_gradients_of_nothing_are_nothing():
    zero = [torch.zeros(3, dtype=torch.float64)]
    assert torch.equal(conjugate_gradients(lambda v: v, zero, 5)[0], zero[0])


def test_kfac_step_is_the_dense_kronecker_solve():
    # One linear layer, so that gradients are known in closed form; sampled targets are drawn as torch would from u.
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3).double(), torch.randn(6, 5).double(), torch.randint(3, (6,))
    p = torch.softmax(model(x), 1).detach()
    u = torch.rand(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)[:, :1]
    drawn = torch.eye(3).double()[(u > p.cumsum(1)).sum(1)]
    a = torch.cat([x, torch.ones(6, 1)], 1).numpy()
    A, G = a.T @ a / 6, ((p - drawn).T @ (p - drawn)).numpy() / 6
    slope = (p - torch.eye(3)[y]).T.numpy() @ a / 6
    pi = np.sqrt(np.diag(A).mean() / np.diag(G).mean())
    F = np.kron(G + np.sqrt(0.01) / pi * np.eye(3), A + pi * np.sqrt(0.01) * np.eye(6))
    step = np.linalg.solve(F, slope.reshape(-1)).reshape(3, 6)
    before = np.concatenate([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]], 1)
    KFAC(model, lr=0.1, damping=0.01, seed=4).step(lambda: (model(x), y))
    after = np.concatenate([model.weight.detach().numpy(), model.bias.detach().numpy()[:, None]], 1)
    assert_close(after - before, -0.1 * step, 1e-10)


def test_kfac_of_a_convolution_with_one_position_is_that_of_a_linear_layer():
    torch.manual_seed(0)
    linear, convolution = nn.Linear(12, 3).double(), nn.Conv2d(3, 3, 2).double()
    with torch.no_grad():
        convolution.weight.copy_(linear.weight.view(3, 3, 2, 2))
        convolution.bias.copy_(linear.bias)
    x, y = torch.randn(6, 12).double(), torch.randint(3, (6,))
    one = KFAC(linear, lr=0.1, momentum=0.5, factors=1, inverses=1)
    other = KFAC(convolution, lr=0.1, momentum=0.5, factors=1, inverses=1)
    for _ in range(3):
        one.step(lambda: (linear(x), y))
        other.step(lambda: (convolution(x.view(6, 3, 2, 2)).flatten(1), y))
        assert_close(convolution.weight.detach().flatten(1).numpy(), linear.weight.detach().numpy(), 1e-10)
    assert_close(convolution.bias.detach().numpy(), linear.bias.detach().numpy(), 1e-10)


def test_kfac_learns_and_names_what_it_cannot_do():
    model, x, y = network()
    optimizer = KFAC(model, lr=0.3, damping=0.1)
    losses = [float(optimizer.step(lambda: (model(x), y))) for _ in range(30)]
    assert losses[-1] < 0.2 * losses[0]
    with pytest.raises(InputError, match=r"'1\.weight' is of another layer"):
        KFAC(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    for bad in ({"lr": 0.0}, {"damping": -1.0}, {"inverses": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            KFAC(model, **bad)
    with pytest.raises(InputError, match="iterations"):
        ConjugateNGD(model.parameters(), iterations=0)
