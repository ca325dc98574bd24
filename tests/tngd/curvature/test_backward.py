"""One backward pass for all cotangents against autograd's, one sample and one cotangent at a time."""

import pytest
import torch
from compare import assert_close
from torch import nn
from torch.nn import functional

from circuits import InputError
from tngd.curvature import Recorder, backward, layers
from tngd.curvature.backward import folded_gradients, way_down


class Written(nn.Module):
    """The same laws called as functions, two activations in a row, and a view that is none of a module."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, stride=(1, 2), padding=(0, 1)), nn.Linear(4 * 6, 3)

    def forward(self, x):
        h = functional.avg_pool2d(torch.tanh(torch.relu(self.first(x))), (1, 2), stride=(1, 2))
        return self.second(h.view(len(x), 2, -1).view(len(x), -1))


def convolutions(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *middle, nn.Flatten(), nn.LazyLinear(3))


IMAGES = (5, 2, 8, 9)
CHAINS = {
    "one layer": (lambda: nn.Linear(6, 3), (5, 6)),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3, bias=False)), (5, 6)),
    "one feature": (lambda: nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 3)), (5, 6)),
    "one sample": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), (1, 6)),
    "strided": (lambda: convolutions(nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2), nn.Tanh()), IMAGES),
    "padded, dilated, in groups": (
        lambda: convolutions(nn.Tanh(), nn.Conv2d(4, 6, (3, 2), (3, 2), (2, 1), (1, 2), groups=2, bias=False)),
        IMAGES,
    ),
    "averages": (lambda: convolutions(nn.AvgPool2d((4, 3)), nn.Conv2d(4, 6, 1, stride=(1, 2)), nn.Sigmoid()), IMAGES),
    "functions": (Written, (5, 2, 5, 8)),
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(x + torch.tanh(self.first(x)))


class Beside(Residual):
    """The first layer makes the weight of a later product, too."""

    def forward(self, x):
        h = self.first(x)
        return self.second(torch.tanh(h) @ h.mean(0).diag())


class Turned(nn.Module):
    """Samples change their places on the way: five of five features."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.first(x).T.reshape(5, 5))


OTHERS = {
    "residual": (Residual, (5, 6)),
    "weight of the data": (Beside, (5, 6)),
    "samples turned": (Turned, (5, 6)),
    "unit stride": (lambda: convolutions(nn.ReLU(), nn.Conv2d(4, 6, 3)), IMAGES),
    "windows that overlap": (lambda: convolutions(nn.AvgPool2d(3, stride=2)), IMAGES),
    "windows that leave a rest": (lambda: convolutions(nn.AvgPool2d(2)), IMAGES),
    "divisor of its own": (lambda: convolutions(nn.AvgPool2d((2, 3), divisor_override=5)), IMAGES),
    "turned convolution": (lambda: convolutions(nn.ConvTranspose2d(4, 3, 2, stride=2)), IMAGES),
    "other layers": (lambda: convolutions(nn.MaxPool2d(2)), IMAGES),
}


def case(build, shape):
    """Outputs (b, d), the layers' calls, and cotangents S (b, 4, d)."""
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(shape).double()
    model(x)
    machine = Recorder(model, list(model.parameters()))
    outputs, _, calls = machine.evaluate(lambda: (model(x), torch.zeros(len(x))))
    return machine, outputs, calls, torch.randn(len(x), 4, outputs.shape[1]).double()


def literal(outputs, calls, S):
    """(b, q, *) at every call, from one backward pass a sample and cotangent."""
    found = [torch.zeros(*S.shape[:2], *call.shape[1:]).double() for call in calls]
    for k in range(S.shape[0]):
        for c in range(S.shape[1]):
            own = torch.autograd.grad(outputs[k] @ S[k, c], [call.edge for call in calls], retain_graph=True)
            for whole, G in zip(found, own, strict=True):
                whole[k, c] = G[k]
    return found


@pytest.mark.parametrize("name", CHAINS)
def test_all_cotangents_at_once_are_autograds_one_by_one(name):
    _, outputs, calls, S = case(*CHAINS[name])
    edges = [call.edge for call in calls]
    way = way_down(outputs, edges)
    for cotangents in (S, S[:, :1]):
        found = folded_gradients(way, edges, cotangents)
        for G, own in zip(found, literal(outputs, calls, cotangents), strict=True):
            assert_close(G.numpy(), own.flatten(2).numpy(), 1e-12)
            assert G.is_contiguous()


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_known_chain_is_left_to_autograd(name):
    _, outputs, calls, _ = case(*OTHERS[name])
    assert way_down(outputs, [call.edge for call in calls]) is None
    assert way_down(outputs, []) is None


@pytest.mark.parametrize("name", CHAINS)
def test_factor_is_the_same_with_and_without(name, monkeypatch):
    machine, outputs, calls, S = case(*CHAINS[name])
    found = machine.factor(outputs, calls, S).dense(S)
    monkeypatch.setattr(layers, "way_down", lambda *_: None)
    assert_close(found.numpy(), machine.factor(outputs, calls, S).dense(S).numpy(), 1e-12)


def test_cotangents_are_not_changed():
    _, outputs, calls, S = case(*CHAINS["one layer"])
    for layout in (S, S.permute(2, 1, 0).contiguous().permute(2, 1, 0)):
        before, edges = layout.clone(), [call.edge for call in calls]
        folded_gradients(way_down(outputs, edges), edges, layout)
        assert torch.equal(layout, before)


def test_a_wrong_law_is_found_at_the_first_use(monkeypatch):
    machine, outputs, calls, _ = case(*CHAINS["strided"])
    monkeypatch.setitem(backward.SLOPES, "TanhBackward0", lambda y: 1 - 0.9 * y.square())
    with pytest.raises(InputError, match=r"'0\.(weight|bias)' is used outside"):
        machine.check(outputs, calls)
    monkeypatch.undo()
    machine.check(outputs, calls)
