"""Optimizers that go on elsewhere: resumed at a minimum, copied, pickled, under other boards, losses, frozen layers."""

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from small_network import batches, network
from torch import nn

from circuits import InputError
from circuits.model import load_device
from tngd.device import Array, tile_board
from tngd.optimizer import TNGD


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(2, 3))


def test_a_run_resumed_at_a_minimum_goes_on_where_the_gradient_cancels():
    model = small_cnn()
    x, y = torch.rand(64, 1, 6, 6), torch.randint(3, (64,))
    optimizer = TNGD(model, lr=0.3)
    for _ in range(400):
        optimizer.step(lambda: (model(x), y))
    resumed = TNGD(model, lr=0.3)
    resumed.load_state_dict(optimizer.state_dict())
    # Its own first check, on a gradient that has nearly vanished.
    assert resumed.step(lambda: (model(x), y)).isfinite()


class Sorted(nn.Module):
    """Sorts its samples by length and puts them back in order after the first layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x, lengths):
        order = lengths.argsort(descending=True, stable=True)
        return self.b(torch.tanh(self.a(x[order]))[order.argsort()])


@pytest.mark.parametrize("samples", [6, 7])
def test_samples_that_change_places_are_refused_when_they_first_do(samples):
    model = Sorted().double()
    x, y = torch.randn(samples, 5).double(), torch.randint(3, (samples,))
    optimizer, falling = TNGD(model), torch.arange(samples, 0, -1)
    optimizer.step(lambda: (model(x, falling), y))
    for _ in range(2):  # a step refused is no step that was looked at
        with pytest.raises(InputError, match="change places after layer 'a'"):
            optimizer.step(lambda: (model(x, falling.flip(0)), y))
    with pytest.raises(InputError, match="change places after layer 'a'"):
        TNGD(model).step(lambda: (model(x, falling.flip(0)), y))


def test_a_tie_that_opens_later_is_refused():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.gate = nn.Linear(5, 5), nn.Linear(5, 3), 0.0

        def forward(self, x):
            return self.b(self.a(x) + self.gate * x @ self.a.weight)

    model, (x, y) = Gated().double(), batches(1)[0]
    optimizer = TNGD(model)
    optimizer.step(lambda: (model(x), y))
    model.gate = 0.1
    with pytest.raises(InputError, match="used outside its layer"):
        optimizer.step(lambda: (model(x), y))


def through_pickle(both):
    stream = io.BytesIO()
    pickle.dump(both, stream)
    stream.seek(0)
    return pickle.load(stream)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_copied_optimizer_goes_on_as_the_original(copied, frozen):
    model, data = network(), batches(3)
    settings = {"start": "kept", "time": 2.0, "curvature": "mc", "refresh": 2, "noise": 1e-3}
    optimizer = TNGD(model, **settings, companion=torch.optim.Adam(model[2].parameters()))
    x, y = data[0]
    optimizer.step(lambda: (model(x), y))
    if frozen:
        model[0].bias.requires_grad_(False)
    other, twin = copied((model, optimizer))
    for x, y in data[1:]:
        for own, made in ((optimizer, model), (twin, other)):
            own.step(lambda made=made, x=x, y=y: (made(x), y))
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
        assert one is not same


def resume(first: TNGD, second: TNGD, model: nn.Module) -> None:
    x, y = batches(1)[0]
    first.step(lambda: (model(x), y))
    second.load_state_dict(first.state_dict())


def test_a_state_is_of_its_board_loss_and_frozen_layers():
    model = network()
    board, worst = (tile_board(load_device(name)) for name in ("board-1", "worst-case"))
    pairs = [
        (TNGD(model, board), TNGD(model, worst)),
        (TNGD(model, board), TNGD(model, replace(board, averaged=True))),
        (TNGD(model, board), TNGD(model, replace(board, quality=2.0))),
        (TNGD(model), TNGD(model, loss=nn.CrossEntropyLoss(reduction="sum"))),
        (TNGD(model), TNGD(model, loss=nn.MSELoss())),
    ]
    for first, second in pairs:
        with pytest.raises(InputError, match="another optimizer or model"):
            resume(first, second, model)
    alike = [nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double() for _ in range(2)]
    for model, frozen in zip(alike, (0, 1), strict=True):  # layers of one shape
        model[frozen].requires_grad_(False)
    with pytest.raises(InputError, match="trained parameters"):
        resume(TNGD(alike[0], refresh=3), TNGD(alike[1], refresh=3), alike[0])


def test_a_loaded_memory_is_that_of_the_layers_trained_now():
    x, y = batches(1)[0]
    trained = []
    for stepped in (False, True):  # before it loads, with all layers
        model, other = network(), network()
        model[0].requires_grad_(False)
        optimizer, resumed = TNGD(model, refresh=3), TNGD(other, refresh=3)
        optimizer.step(lambda model=model: (model(x), y))
        if stepped:
            resumed.step(lambda other=other: (other(x), y))
        other[0].requires_grad_(False)
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(optimizer.state_dict())
        for own, made in ((optimizer, model), (resumed, other)):
            own.step(lambda made=made: (made(x), y))
        assert resumed.last.age == optimizer.last.age == 2
        trained += [model[2].weight, other[2].weight]
    assert all(torch.equal(trained[0], each) for each in trained)
    other[0].requires_grad_(True)  # the device starts anew, with what was loaded before
    resumed.step(lambda: (other(x), y))
    assert resumed.last.age == 1


def test_a_state_with_impossible_settings_changes_nothing():
    model = network()
    optimizer = TNGD(model)
    content = optimizer.state_dict()
    content["param_groups"][0]["damping"] = -1.0
    with pytest.raises(InputError, match="damping must be above 0"):
        optimizer.load_state_dict(content)
    assert optimizer.param_groups[0]["damping"] == 0.01
    with pytest.raises(InputError, match="state_dict of a TNGD"):
        optimizer.load_state_dict(None)


def test_what_an_optimizer_is_given_is_of_the_right_kind():
    model, device = network(), load_device("board-1")
    for given, says in (
        ({"board": "board-1"}, "tile_board"),
        ({"board": device}, "tile_board"),
        ({"array": device}, "array_of"),
        ({"inner": torch.optim.Adam}, "made already"),
        ({"companion": "adam"}, "made already"),
        ({"damping": "0.1"}, "damping must be a number"),
        ({"time": None}, "time must be a number"),
        ({"kl_clip": True}, "kl_clip must be a number"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
        ({"tile_curvature": "x"}, "tile_curvature must be one of"),
        ({"inner": torch.optim.Adam(model.parameters()), "weight_decay": 0.1}, "is the inner one's"),
    ):
        with pytest.raises(InputError, match=says):
            TNGD(model, **given)
    with pytest.raises(InputError, match="whole numbers"):
        Array((3.5, 10))
    with pytest.raises(InputError, match="no parameter to train"):
        TNGD(nn.Tanh())
    with pytest.raises(InputError, match="no parameter to train"):
        TNGD(model, companion=torch.optim.Adam(model.parameters()))
    with pytest.raises(InputError, match="one dtype"):
        TNGD(model).add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
