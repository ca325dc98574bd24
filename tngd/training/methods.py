"""Optimizers of the comparison on MNIST, each made from settings in JSON.

The grid of every tuned method has eight settings, the product of the values in `grid`. `tngd train mnist --tune` picks
the best setting by the loss on held-out training images; TUNED keeps the best settings for runs without --tune.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf, sqrt
from typing import Any

import torch
from torch import nn

from circuits.errors import InputError
from circuits.model.converters import Converter
from circuits.model.device import Device, ideal_device
from circuits.model.fitted_copy import Estimate
from circuits.synthesis.topology import build_board
from tngd.device.array import Array, array_of
from tngd.device.tiles import tile_board
from tngd.optimizer.baselines import ConjugateNGD
from tngd.optimizer.kfac import KFAC
from tngd.optimizer.tngd import TNGD

Settings = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One optimizer of the comparison: MAKERS[`kind`] makes it from `settings` and the tuned settings.

    `device`: None, "given" (the device of --device), or the name of a preset. A variant without a grid of its own takes
    the tuned settings of the method `tuned_as`. `ideal` is the same method on an ideal device.
    """

    title: str
    kind: str
    settings: Settings
    grid: dict[str, tuple] = field(default_factory=dict)
    device: str | None = None
    tuned_as: str | None = None
    ideal: str | None = None

    @property
    def choices(self) -> list[Settings]:
        """All settings in the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


def make_optimizer(
    kind: str, settings: Settings, model: nn.Module, device: Device | None, seed: int
) -> torch.optim.Optimizer:
    """The optimizer of this kind on a network; `seed` sets the random numbers of the optimizer.

    Tiles and arrays are built from `device`. InputError for an unknown kind.
    """
    if kind not in MAKERS:
        raise InputError(f"unknown kind of optimizer {kind!r}; expected one of {', '.join(MAKERS)}")
    return MAKERS[kind](model, {k: inf if v == "inf" else v for k, v in settings.items()}, device, seed)


def on_device(kind: str, settings: Settings) -> bool:
    """Whether this optimizer needs a calibrated device; parts of a given tolerance or deviation do not."""
    return kind in ON_DEVICE and not {"tolerance", "deviation"} & settings.keys()


def _adam(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    own = {k: settings.pop(k) for k in ("lr", "beta1", "beta2") if k in settings}
    betas = own.get("beta1", 0.9), own.get("beta2", 0.999)
    return torch.optim.Adam(model.parameters(), lr=own["lr"], betas=betas)


def _natural(model: nn.Module, settings: Settings, seed: int, **more: Any) -> TNGD:
    """TNGD with its own step, or with the step of SGD if `momentum` is set."""
    if "momentum" in settings:
        inner = torch.optim.SGD(model.parameters(), lr=settings.pop("lr"), momentum=settings.pop("momentum"))
        return TNGD(model, inner=inner, seed=seed, **settings, **more)
    return TNGD(model, seed=seed, **settings, **more)


def _inside_adam(model: nn.Module, settings: Settings, device: Device | None, seed: int) -> TNGD:
    inner = _adam(model, settings)
    return TNGD(model, inner=inner, seed=seed, **settings)


def _on_array(model: nn.Module, settings: Settings, device: Device | None, seed: int) -> TNGD:
    own = {k: settings.pop(k) for k in ARRAY_SETTINGS if k in settings}
    shape = own["rows"], sum(p.numel() for p in model.parameters())
    spread = own.get("deviation")
    array = array_of(device, shape, seed) if spread is None else Array(shape, deviation=spread, seed=seed)
    array = replace(array, **{name: Converter(**each) for name, each in own.get("converters", {}).items()})
    return _natural(model, settings, seed, array=array)


def _on_tiles(model: nn.Module, settings: Settings, device: Device | None, seed: int) -> TNGD:
    board = (
        tile_board(_rough_device(settings.pop("tolerance")), seed) if "tolerance" in settings else tile_board(device)
    )
    return TNGD(model, board.turned(seed), seed=seed, **settings)


def _rough_device(tolerance: float) -> Device:
    """Three uncalibrated copies: only the tolerance of the parts and of the noise temperatures is known."""
    prior = Estimate(1.0, tolerance / sqrt(3), False)
    device = ideal_device(build_board(8, "differential"), 3)
    copies = [
        replace(copy, gains=dict.fromkeys(copy.gains, prior), temperatures=(prior,) * len(copy.temperatures))
        for copy in device.copies
    ]
    return replace(device, copies=tuple(copies))


Maker = Callable[[nn.Module, Settings, Device | None, int], torch.optim.Optimizer]
MAKERS: dict[str, Maker] = {
    "SGD": lambda model, settings, *_: torch.optim.SGD(model.parameters(), **settings),
    "Adam": lambda model, settings, *_: _adam(model, settings),
    "TNGD": lambda model, settings, _, seed: _natural(model, settings, seed),
    "TNGD-Adam": _inside_adam,
    "CG-NGD": lambda model, settings, *_: ConjugateNGD(model.parameters(), **settings),
    "K-FAC": lambda model, settings, _, seed: KFAC(model, seed=seed, **settings),
    "tiles": _on_tiles,
    "arrays": _on_array,
}
ON_DEVICE = ("tiles", "arrays")
ARRAY_SETTINGS = ("rows", "deviation", "converters")

SAMPLED = {"time": 50.0, "curvature": "mc"}
KEPT = {"time": "inf", "refresh": 10}
FRESH = {"lr": (0.03, 0.3), "damping": (0.01, 0.03, 0.1, 0.3)}
HELD = {"time": "inf", "curvature": "mc", "refresh": 8}
FINE = {"lr": (0.01, 0.03), "damping": (0.003, 0.01, 0.03, 0.1)}  # finer step sizes: a kept state acts as a momentum
CLIPPED = {"kl_clip": 1e-3}
SAMPLED_TILES = {"tile_curvature": "mc"}
PRECONDITIONED = {"curvature": "mc", "refresh": 8, "history": 8, "damping": 4.0, "time": 5.0, "momentum": 0.9}
WHITE = {"lr": (0.003, 0.01, 0.03, 0.06), "precondition": (0.03, 0.1)}
METHODS: dict[str, Method] = {
    "sgd": Method("SGD with momentum", "SGD", {}, {"lr": (0.01, 0.03, 0.1, 0.3), "momentum": (0.0, 0.9)}),
    "adam": Method("Adam", "Adam", {}, {"lr": (0.002, 0.005, 0.01, 0.02), "beta2": (0.99, 0.999)}),
    "tngd-paper": Method("TNGD, the paper's settings", "TNGD", {"lr": 0.01, "damping": 0.01, "time": 50.0}),
    "tngd": Method("TNGD, t = 50", "TNGD", CLIPPED | {"time": 50.0}, FRESH),
    "tngd-refresh": Method("TNGD, curvature kept 10 steps", "TNGD", CLIPPED | KEPT, FRESH),
    "tngd-mc": Method("TNGD, t = 50, sampled curvature", "TNGD", CLIPPED | SAMPLED, FRESH),
    "tngd-kept": Method(
        "TNGD, t = 5, state kept, curvature kept 10 steps",
        "TNGD",
        CLIPPED | {"time": 5.0, "start": "kept", "refresh": 10},
        FINE,
    ),
    "tngd-kept-mc": Method(
        "TNGD, t = 5, state kept, sampled curvature",
        "TNGD",
        CLIPPED | {"time": 5.0, "start": "kept", "curvature": "mc"},
        FINE,
    ),
    "tngd-history": Method("TNGD, sampled curvature, 8 batches held", "TNGD", CLIPPED | HELD | {"history": 8}, FINE),
    "tngd-history-32": Method(
        "TNGD, sampled curvature, 32 batches held", "TNGD", CLIPPED | HELD | {"history": 32}, FINE
    ),
    "tngd-preconditioned": Method("TNGD, preconditioned, 8 batches held, momentum", "TNGD", PRECONDITIONED, WHITE),
    "tngd-preconditioned-array": Method(
        "TNGD, preconditioned, array with calibrated errors",
        "arrays",
        PRECONDITIONED | {"rows": 512},
        device="given",
        tuned_as="tngd-preconditioned",
        ideal="tngd-preconditioned",
    ),
    "tngd-preconditioned-array-limit": Method(
        "TNGD, preconditioned, array with errors of 1 %",
        "arrays",
        PRECONDITIONED | {"rows": 512, "deviation": 0.01},
        tuned_as="tngd-preconditioned",
        ideal="tngd-preconditioned",
    ),
    "tngd-adam": Method(
        "TNGD-Adam, t = 50, curvature kept 10 steps",
        "TNGD-Adam",
        {"time": 50.0, "refresh": 10},
        {"lr": (0.001, 0.002, 0.005, 0.01), "damping": (0.03, 0.3)},
    ),
    "tngd-tiles-ideal": Method("TNGD, ideal tiles", "tiles", {}, device="ideal", tuned_as="tngd-tiles"),
    "tngd-tiles": Method("TNGD, calibrated tiles", "tiles", {}, FRESH, "given", ideal="tngd-tiles-ideal"),
    "tngd-tiles-worst": Method(
        "TNGD, worst-case tiles",
        "tiles",
        {},
        device="worst-case",
        tuned_as="tngd-tiles",
        ideal="tngd-tiles-ideal",
    ),
    "tngd-tiles-mc-ideal": Method(
        "TNGD, ideal tiles, sampled curvature", "tiles", SAMPLED_TILES, device="ideal", tuned_as="tngd-tiles-mc"
    ),
    "tngd-tiles-mc": Method(
        "TNGD, calibrated tiles, sampled curvature",
        "tiles",
        SAMPLED_TILES,
        FINE,
        "given",
        ideal="tngd-tiles-mc-ideal",
    ),
    "tngd-tiles-mc-worst": Method(
        "TNGD, worst-case tiles, sampled curvature",
        "tiles",
        SAMPLED_TILES,
        device="worst-case",
        tuned_as="tngd-tiles-mc",
        ideal="tngd-tiles-mc-ideal",
    ),
    "tngd-array": Method(
        "TNGD, curvature kept 10 steps, array with calibrated errors",
        "arrays",
        CLIPPED | KEPT | {"rows": 576},
        device="given",
        tuned_as="tngd-refresh",
        ideal="tngd-refresh",
    ),
    "tngd-array-limit": Method(
        "TNGD, curvature kept 10 steps, array with errors of 1 %",
        "arrays",
        CLIPPED | KEPT | {"rows": 576, "deviation": 0.01},
        tuned_as="tngd-refresh",
        ideal="tngd-refresh",
    ),
    "ngd": Method("exact NGD", "TNGD", CLIPPED | {"time": "inf"}, FRESH),
    "cg-ngd": Method(
        "NGD by 10 conjugate-gradient steps", "CG-NGD", {}, {"lr": (0.01, 0.03, 0.1, 0.3), "damping": (0.03, 0.1)}
    ),
    "k-fac": Method(
        "K-FAC with momentum", "K-FAC", {"momentum": 0.9}, {"lr": (0.001, 0.003, 0.01, 0.03), "damping": (0.03, 0.1)}
    ),
}
TUNED: dict[str, dict[str, Settings]] = {  # the best of `tngd train mnist --tune --setting NAME`, by setting
    "paper": {
        "sgd": {"lr": 0.03, "momentum": 0.9},
        "adam": {"lr": 0.01, "beta2": 0.999},
        "tngd-refresh": {"lr": 0.3, "damping": 0.1},
        "tngd-mc": {"lr": 0.03, "damping": 0.03},
        "tngd-kept": {"lr": 0.01, "damping": 0.01},
        "tngd-kept-mc": {"lr": 0.01, "damping": 0.01},
        "tngd-history": {"lr": 0.03, "damping": 0.1},
        "tngd-history-32": {"lr": 0.01, "damping": 0.03},
        "tngd-preconditioned": {"lr": 0.06, "precondition": 0.1},
        "tngd-adam": {"lr": 0.005, "damping": 0.3},
        "tngd-tiles": {"lr": 0.03, "damping": 0.03},
        "ngd": {"lr": 0.03, "damping": 0.01},
        "cg-ngd": {"lr": 0.3, "damping": 0.1},
        "k-fac": {"lr": 0.01, "damping": 0.1},
    },
    "lenet": {
        "sgd": {"lr": 0.03, "momentum": 0.9},
        "adam": {"lr": 0.005, "beta2": 0.99},
        "tngd-refresh": {"lr": 0.03, "damping": 0.03},
        "tngd-preconditioned": {"lr": 0.03, "precondition": 0.1},
        "tngd-tiles-mc": {"lr": 0.03, "damping": 0.1},
        "ngd": {"lr": 0.3, "damping": 0.03},
        "cg-ngd": {"lr": 0.1, "damping": 0.03},
        "k-fac": {"lr": 0.01, "damping": 0.1},
    },
}
