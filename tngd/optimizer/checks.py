"""Checks of the arguments of an optimizer, before use: parameters, groups, devices, other optimizers."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import fields
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.device.array import Array
from tngd.device.tiles import TileBoard
from tngd.optimizer.groups import Groups, trained
from tngd.optimizer.settings import Settings

Optimizer = torch.optim.Optimizer
RATE = 0.05  # lr, unless told better
KINDS = {
    "model": (torch.nn.Module, "the torch module whose parameters these are"),
    "board": (TileBoard, "a TileBoard; make it with tngd.tile_board of a device"),
    "array": (Array, "an Array; make it with tngd.array_of of a device"),
    "inner": (Optimizer, "an optimizer that is made already, such as torch.optim.Adam(model.parameters())"),
    "companion": (Optimizer, "an optimizer that is made already, of other parameters of the same loss"),
    "seed": (int, "a whole number"),
}


def check_kinds(**given: Any) -> None:
    """InputError unless every argument is of the kind its name stands for; all but a seed may be None."""
    for name, value in given.items():
        kind, expected = KINDS[name]
        missing = value is None and name != "seed"
        if not missing and (not isinstance(value, kind) or isinstance(value, bool)):
            raise InputError(f"{name} must be {expected}, got {value!r:.80}")
        if name == "seed" and not -(2**63) <= value < 2**64:
            raise InputError(f"seed must be a whole number of 64 bits, got {value}")


def check_step(closures: Sequence[Any], own: list[Tensor]) -> None:
    """InputError unless closures can be called, for parameters that can be trained."""
    if not all(map(callable, closures)):
        raise InputError("step takes a closure that returns (outputs, targets): optimizer.step(lambda: (model(x), y))")
    check_parameters(own)


def listed(params: Iterable[Any]) -> list[Any]:
    """Parameters or groups as a list; InputError if there are none."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise InputError(f"expected a torch module, or parameters in a list, got {type(params).__name__}")
    found = list(params)
    if not found:
        raise InputError("there is no parameter to train: the model has none, or all are with the companion")
    return found


def check_parameters(own: list[Tensor]) -> None:
    """InputError unless there are trained parameters of one dtype and device, float32 or float64."""
    if not own:
        raise InputError("no parameter requires a gradient; unfreeze at least one")
    if any(map(torch.nn.parameter.is_lazy, own)):
        raise InputError("a lazy layer has no parameters yet; run the model on a batch before it goes to TNGD")
    if len({(p.dtype, p.device) for p in own}) > 1:
        raise InputError("all parameters must have one dtype and device")
    if own[0].dtype not in (torch.float32, torch.float64):
        raise InputError(f"parameters must be float32 or float64, got {own[0].dtype}; convert the model")


def check_groups(groups: Groups, inner: Optimizer | None, companion: Optimizer | None) -> None:
    """InputError if groups do not go together, or other optimizers not with them."""
    check_one_setting(groups, inner)
    own = trained(groups)
    if own:
        check_parameters(own)
    _check_partners({id(p) for p in own}, inner, companion)


def check_one_setting(groups: Groups, inner: Optimizer | None) -> None:
    """InputError if groups differ in what the device, which is one, can have only once, or a rate is impossible.

    With an `inner` optimizer rates are that one's.
    """
    for group in groups:
        for name, none in (("lr", RATE), ("weight_decay", 0.0)):
            value = group[name]
            number = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
            if not number or isinstance(value, bool) or not 0 <= value < inf:
                raise InputError(f"{name} must be a number, 0 or above and finite, got {value!r}")
            if inner is not None and value != none:
                raise InputError(f"with an inner optimizer {name} is the inner one's; give it, or schedule it, there")
    for group in groups[1:]:
        for field in fields(Settings):
            if group[field.name] != groups[0][field.name]:
                raise InputError(
                    f"{field.name} is the device's, one for all groups, got {groups[0][field.name]} and "
                    f"{group[field.name]}; groups have their own lr and weight_decay"
                )


def _check_partners(own: set[int], inner: Optimizer | None, companion: Optimizer | None) -> None:
    """`inner` has the same parameters, by identity `own`, and `companion` none of them."""
    for partner in filter(None, (inner, companion)):
        if _needs_closure(partner):
            raise InputError(
                f"{type(partner).__name__} takes a closure of its own and cannot step beside TNGD; take Adam or SGD"
            )
        if isinstance(partner, torch.optim.SparseAdam):
            raise InputError("SparseAdam takes no dense gradients, which TNGD's are; take Adam or SGD")
    if inner is not None and {id(p) for p in trained(inner.param_groups)} != own:
        raise InputError("the inner optimizer must have exactly the parameters of TNGD; build it on the same ones")
    if companion is not None and own & {id(p) for p in trained(companion.param_groups)}:
        raise InputError("a parameter is trained by TNGD and by its companion; give every parameter to one of them")


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether its step cannot be taken without one, as that of LBFGS and of TNGD itself."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty
