"""Laws of devices that hold the whole curvature, for the ideal one and for an array with errors, in double precision.

The references are dense: A is read from the device column by column, by settling on unit gradients.
"""

from math import inf

import pytest
import torch
from compare import assert_close

from circuits import InputError
from circuits.model import Converter
from tngd.curvature import Factor, Rows
from tngd.device import Array, ArrayDevice, IdealDevice

SIZE, RANK, DAMPING = 7, 4, 0.3
DEVICES = {
    "ideal": IdealDevice(),
    "array": ArrayDevice(Array((RANK, SIZE), deviation=0.02, seed=5)),
    "shared array": ArrayDevice(Array((RANK, SIZE), mean=0.98, deviation=0.05, shared=True)),
    "array of 6 bits": ArrayDevice(Array((RANK, SIZE), elements=Converter(6, 4.0))),
}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def silent() -> torch.Tensor:
    raise AssertionError("a device without noise draws nothing")


@pytest.fixture(params=DEVICES)
def device(request):
    return DEVICES[request.param]


@pytest.fixture(params=[False, True], ids=["many gradients", "one gradient"])
def evolve(request, device):
    """The state after a time, from a start, under one factor."""
    rows = normal(1, RANK, SIZE)
    held, _ = device.program(factor_of(rows), normal(2, SIZE), None, request.param)

    def call(gradient, start, time):
        state, stable = device.evolve(held, gradient, start, DAMPING, time, 0.0, silent)
        assert stable
        return state

    return call


def factor_of(rows: torch.Tensor) -> Factor:
    return Factor((Rows(rows, ((0, SIZE),)),), RANK, SIZE)


def test_no_time_leaves_the_start(evolve):
    g, x = normal(3, SIZE), normal(4, SIZE)
    assert_close(evolve(g, x, 0.0), x, 1e-15)
    assert evolve(g, None, 0.0).eq(0).all()


@pytest.mark.parametrize(("first", "second"), [(0.1, 0.2), (1.0, 3.0), (0.01, 30.0), (2.0, inf)])
def test_times_add_up(evolve, first, second):
    g, x = normal(3, SIZE), normal(4, SIZE)
    assert_close(evolve(g, evolve(g, x, first), second), evolve(g, x, first + second), 1e-10)


def test_state_is_linear_in_gradient_and_start(evolve):
    g, h, x, y = (normal(k, SIZE) for k in range(4, 8))
    mixed = evolve(2 * g - 3 * h, 2 * x - 3 * y, 0.7)
    assert_close(mixed, 2 * evolve(g, x, 0.7) - 3 * evolve(h, y, 0.7), 1e-10)


def test_end_state_solves_the_matrix_that_drives_the_state(evolve):
    """A from the columns of the end state, and the exact exponential of it at a finite time."""
    inverse = torch.stack([evolve(unit, None, inf) for unit in torch.eye(SIZE, dtype=torch.float64)], dim=1)
    A, g, x, t = torch.linalg.inv(inverse), normal(8, SIZE), normal(9, SIZE), 0.4
    decay = torch.linalg.matrix_exp(-A * t)
    assert_close(evolve(g, x, t), decay @ x + inverse @ (g - decay @ g), 1e-10)


def test_ideal_device_holds_the_damped_curvature():
    rows, g = normal(1, RANK, SIZE), normal(2, SIZE)
    device = DEVICES["ideal"]
    held, _ = device.program(factor_of(rows), g, None, False)
    state, _ = device.evolve(held, g, None, DAMPING, inf, 0.0, silent)
    A = rows.T @ rows + DAMPING * torch.eye(SIZE, dtype=torch.float64)
    assert_close(state, torch.linalg.solve(A, g), 1e-10)


def test_packed_curvature_makes_the_same_states(device):
    rows, g = normal(1, RANK, SIZE), normal(2, SIZE)
    held, _ = device.program(factor_of(rows), g, None, False)
    again = device.unpack(device.pack(held), factor_of(rows), g)
    for time in (0.5, inf):
        states = [device.evolve(each, g, g, DAMPING, time, 0.0, silent)[0] for each in (held, again)]
        assert torch.equal(*states)


def test_array_refuses_another_size_and_lanczos_steps():
    array = DEVICES["array"]
    with pytest.raises(InputError, match="7 columns, but the network has 8"):
        array.check(None, SIZE + 1)
    with pytest.raises(InputError, match="drop lanczos"):
        array.check(3, SIZE)
