"""Settings as one record, and the face of devices that the optimizer steps with."""

import copy

import pytest
import torch

from circuits import InputError, load_device
from tngd import TNGD, Settings, array_of, tile_board

SIZE = 20 * 5 + 5


def made(kind: str, **options) -> tuple[torch.nn.Module, TNGD]:
    """A linear model of 105 parameters and its optimizer on a device of this kind."""
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 5)
    device = load_device("board-1")
    given = {"tiles": {"board": tile_board(device)}, "array": {"array": array_of(device, shape=(60, SIZE))}}
    return model, TNGD(model, **given.get(kind, {}), **options)


def steps(model: torch.nn.Module, optimizer: TNGD, count: int = 3) -> torch.Tensor:
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    y = torch.arange(12) % 5
    for _ in range(count):
        optimizer.step(lambda: (model(x), y))
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ideal", Settings("mc", 0.1, 2, time=3.0, start="kept", noise=0.01)),
        ("array", Settings("mc", 0.1, time=5.0)),
        ("tiles", Settings("tiles", 0.1, 5, tile_curvature="mc")),
    ],
)
def test_record_steps_as_its_keywords_do(kind, settings):
    by_record = steps(*made(kind, settings=settings))
    by_keywords = steps(*made(kind, **vars(settings)))
    assert torch.equal(by_record, by_keywords)


def test_record_can_be_printed_compared_and_read_back():
    _, optimizer = made("ideal", damping=0.5, time=4.0)
    assert optimizer.settings == Settings(damping=0.5, time=4.0)
    assert "damping=0.5" in repr(optimizer.settings)
    assert made("ideal", settings=optimizer.settings)[1].settings == optimizer.settings


def test_defaults_stand_in_one_place():
    assert made("ideal")[1].settings == Settings()
    assert made("tiles")[1].settings == Settings("tiles", refresh=10)


@pytest.mark.parametrize("kind", ["ideal", "tiles"])
def test_record_and_keywords_do_not_mix(kind):
    with pytest.raises(InputError, match=r"^damping is in the settings record; give it there"):
        made(kind, damping=0.2, settings=Settings())
    with pytest.raises(InputError, match=r"^settings must be a Settings record, got 'mc'"):
        made(kind, settings="mc")


@pytest.mark.parametrize("kind", ["ideal", "array", "tiles"])
def test_every_device_resumes_from_what_it_packs(kind):
    """The law of resumption of `SteppedDevice`: bit for bit, noise and sampled targets among it."""
    options = (
        {"tile_curvature": "mc"} if kind == "tiles" else {"curvature": "mc", "refresh": 2, "noise": 0.01, "time": 3.0}
    )
    model, optimizer = made(kind, **options)
    steps(model, optimizer)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    whole = steps(model, optimizer)
    again, resumed = made(kind, **options)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert torch.equal(steps(again, resumed), whole)


@pytest.mark.parametrize("kind", ["ideal", "array", "tiles"])
def test_a_step_leaves_the_memory_before_it_alone(kind):
    """The law of no effects: the packed memory before a step is the same after it."""
    options = {"tile_curvature": "mc"} if kind == "tiles" else {"curvature": "mc", "refresh": 2}
    model, optimizer = made(kind, **options)
    steps(model, optimizer, 1)
    kept = optimizer.state_dict()
    before = copy.deepcopy(kept)
    steps(model, optimizer, 1)
    assert str(kept["device"]) == str(before["device"])
