"""What the state of an optimizer has to fit to be loaded: the same parameters, partners and device."""

from typing import Any

from torch.optim import Optimizer

from circuits.errors import InputError
from tngd.groups import trained

PARTS = {"of", "steps", "memory", "tiles", "generator", "inner", "companion"}
PARTNERS = ("inner", "companion")


def described(optimizer: Optimizer) -> dict[str, Any]:
    """What tells a TNGD from others, in the words of a refusal."""
    own = trained(optimizer.param_groups)
    return {
        "shapes of the parameters": [list(p.shape) for p in own],
        "numbers": str(own[0].dtype),
        "groups": _sizes(optimizer),
        "tiles": optimizer.board is not None,
        "module": optimizer.model is not None,
        "array": None if optimizer.array is None else optimizer.array.describe(),
    } | {f"{name} optimizer": _partner(getattr(optimizer, name)) for name in PARTNERS}


def check_state(content: dict[str, Any], device: dict[str, Any] | None, own: dict[str, Any]) -> None:
    """InputError unless the device of a state is whole and of an optimizer that is `described` alike."""
    if not isinstance(device, dict) or not device.keys() >= PARTS or "param_groups" not in content:
        raise InputError("expected the state_dict of a TNGD optimizer, got one without a whole device in it")
    for what, here in own.items():
        there = device["of"].get(what)
        if there != here:
            raise InputError(f"the state is of another optimizer or model: {what} {there} there, {here} here")


def _partner(optimizer: Optimizer | None) -> list[Any] | None:
    return None if optimizer is None else [type(optimizer).__name__, *_sizes(optimizer)]


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]
