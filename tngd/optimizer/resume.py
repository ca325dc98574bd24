"""Checks of a state before it is loaded: the same parameters, loss, device and other optimizers."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from circuits.errors import InputError
from circuits.files import sha256
from tngd.curvature.losses import Loss
from tngd.device.tiles import TileBoard
from tngd.optimizer.groups import trained
from tngd.optimizer.memory import placed
from tngd.optimizer.settings import Settings
from tngd.optimizer.stepped import SteppedDevice

PARTS = {"of", "steps", "memory", "tiles", "generator", "inner", "companion"}
PARTNERS = ("inner", "companion")


def described(optimizer: Optimizer) -> dict[str, Any]:
    """Description of an optimizer, by which a state of another one is refused; keys are words of the refusal."""
    own = trained(optimizer.param_groups)
    return {
        "shapes of the parameters": [list(p.shape) for p in own],
        "numbers": str(own[0].dtype),
        "groups": _sizes(optimizer),
        "trained parameters": [
            number
            for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
            if p.requires_grad
        ],
        "loss": _loss(optimizer.loss),
        "board": None if optimizer.board is None else _board(optimizer.board),
        "module": optimizer.model is not None,
        "array": None if optimizer.array is None else optimizer.array.describe(),
    } | {f"{name} optimizer": _partner(getattr(optimizer, name)) for name in PARTNERS}


def check_state(content: dict[str, Any], device: dict[str, Any] | None, own: dict[str, Any]) -> None:
    """InputError unless the device of a state is whole and of an optimizer that is `described` alike."""
    if not isinstance(device, dict) or not device.keys() >= PARTS or not content.get("param_groups"):
        raise InputError("expected the state_dict of a TNGD optimizer, got one without a whole device in it")
    wanted = {"lr", "weight_decay", *(field.name for field in fields(Settings))}
    missing = {name for group in content["param_groups"] for name in wanted - group.keys()}
    if missing:
        raise InputError(f"the state has no {', '.join(sorted(missing))}; it is of another version, or damaged")
    for what, here in own.items():
        there = device["of"].get(what)
        if there != here:
            raise InputError(f"the state is of another optimizer or model: {what} {there} there, {here} here")


def settings_of(groups: list[dict[str, Any]]) -> Settings:
    """The device's settings, of the first group, which are those of all; InputError for impossible ones."""
    return Settings(**{field.name: groups[0][field.name] for field in fields(Settings)})


def unpacked_device(device: dict[str, Any], stepped: SteppedDevice, place: torch.device) -> tuple[Any, Tensor]:
    """The memory in the device of a state, on a device of torch's, and its generator; InputError if it is damaged."""
    try:
        content = placed(device[stepped.part], place)
        memory = None if content is None else stepped.unpack(content)
        torch.Generator().set_state(device["generator"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(
            f"the device in the state is damaged ({type(error).__name__}: {error}); take another"
        ) from error
    return memory, device["generator"]


def _loss(loss: Loss) -> list[Any]:
    """Name, reduction, and what else torch's criterion was given."""
    given = getattr(loss.value, "keywords", {})
    return [loss.name, loss.reduction, *(given[name] for name in ("ignore_index", "label_smoothing") if name in given)]


def _board(board: TileBoard) -> list[Any]:
    """Description of the copies of a board: their kind, and a hash of all their numbers."""
    found: list[Tensor] = []
    for part in (board, board.banks):
        values = [] if part is None else [getattr(part, field.name) for field in fields(part)]
        found += [value for value in values if isinstance(value, Tensor)]
    numbers = b"".join(value.detach().cpu().numpy().tobytes() for value in found)
    rest = f"{board.quality} {board.dtype} {board.averaged} {board.interface}"
    return [board.coupling, board.size, board.copies, sha256(numbers + rest.encode())[:16]]


def _partner(optimizer: Optimizer | None) -> list[Any] | None:
    return None if optimizer is None else [type(optimizer).__name__, *_sizes(optimizer)]


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]
