"""Trials on MNIST: which images, which network, and what is measured after every epoch.

The training set is the first so many training images. Tuning trains on the first four fifths of it, at most 8,000, and
is judged by the training images behind those, a quarter as many: no test image has a part in it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from circuits.errors import InputError
from circuits.model.device import Device
from circuits.model.device_file import device_hash
from tngd.curvature.losses import CROSS_ENTROPY
from tngd.mnist import Images, load_mnist
from tngd.networks import NETWORKS
from tngd.training.methods import Settings, make_optimizer, on_device
from tngd.training.trial import Trial

EVALUATED = 10_000  # training images, at most, on which the training loss is taken
AT_ONCE = 1000  # images
TUNED_ON = 8000


@dataclass(frozen=True)
class Setting:
    """One comparison: network, numbers of training and test images, batch, epochs, seeds, and methods (None: all)."""

    network: str
    train: int
    test: int
    batch: int = 64
    epochs: int = 10
    seeds: int = 5
    methods: tuple[str, ...] | None = None
    schedule: str = "constant"  # of the step sizes, see tngd.training.trial


@dataclass(frozen=True, eq=False)
class Data:
    """Images, and what tells these files from others."""

    images: Images
    sha256: str
    genuine: bool


ON_TILES = ("tngd-tiles-mc-ideal", "tngd-tiles-mc", "tngd-tiles-mc-worst")
SETTINGS = {
    "paper": Setting("small", 10_000, 10_000),
    # Of ten times the network and six times the images, the methods that cost a few Adam steps a step.
    "lenet": Setting(
        "lenet",
        60_000,
        10_000,
        seeds=3,
        methods=("sgd", "adam", "k-fac", "tngd-refresh", "tngd-preconditioned", *ON_TILES),
        schedule="cosine",
    ),
    "study": Setting("small", 4000, 10_000, epochs=3, seeds=3),
}


def load_data(root: Path) -> Data:
    """The four files of MNIST in a folder, see tngd.mnist."""
    images = load_mnist(root)
    parts = (images.train_images, images.train_labels, images.test_images, images.test_labels)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.numpy().tobytes())
    return Data(images, digest.hexdigest(), images.genuine)


def mnist_trial(
    name: str, kind: str, settings: Settings, setting: Setting, data: Data, device: Device | None, seed: int
) -> Trial:
    """A trial whose figures are train_loss, train_accuracy, test_loss and test_accuracy.

    InputError if there are fewer images than the setting asks for, or no device where the method needs one.
    """
    images = data.images
    for asked, held, which in (
        (setting.train, len(images.train_labels), "train"),
        (setting.test, len(images.test_labels), "test"),
    ):
        if not 1 <= asked <= held:
            raise InputError(f"--{which}-size must be between 1 and {held}, the images there are, got {asked}")
    x, y = images.train_images[: setting.train], images.train_labels[: setting.train]
    looked = (x[:EVALUATED], y[:EVALUATED])
    test = (images.test_images[: setting.test], images.test_labels[: setting.test])
    return _trial(name, kind, settings, setting, data, device, seed, (x, y), {"train": looked, "test": test})


def tuning_trial(
    name: str, kind: str, settings: Settings, setting: Setting, data: Data, device: Device | None, seed: int
) -> Trial:
    """A trial on a part of the training set, whose figures are held_loss and held_accuracy on another part of it."""
    trained = min(TUNED_ON, setting.train * 4 // 5)
    x, y = data.images.train_images, data.images.train_labels
    held = slice(trained, trained + max(1, trained // 4))
    sets = {"held": (x[held], y[held])}
    return _trial(name, kind, settings, setting, data, device, seed, (x[:trained], y[:trained]), sets)


def _trial(
    name: str,
    kind: str,
    settings: Settings,
    setting: Setting,
    data: Data,
    device: Device | None,
    seed: int,
    trained: tuple[Tensor, Tensor],
    sets: dict[str, tuple[Tensor, Tensor]],
) -> Trial:
    if not on_device(kind, settings):
        device = None
    elif device is None:
        raise InputError(f"{name}: {kind} are those of a calibrated device; give --device, or leave this out")
    x, y = trained
    described: dict[str, Any] = {
        "kind": kind,
        "settings": settings,
        "network": setting.network,
        "data_sha256": data.sha256,
        "evaluated": {key: len(labels) for key, (_, labels) in sets.items()},
        "device": None if device is None else device_hash(device),
    }
    return Trial(
        name,
        described,
        seed,
        len(x),
        setting.batch,
        setting.epochs,
        NETWORKS[setting.network],
        lambda model, rows: (model(x[rows]), y[rows]),
        CROSS_ENTROPY,
        lambda model: make_optimizer(kind, settings, model, device, seed),
        _figures(sets),
        schedule=setting.schedule,
    )


def _figures(sets: dict[str, tuple[Tensor, Tensor]]) -> Callable[[nn.Module], dict[str, float]]:
    def evaluate(model: nn.Module) -> dict[str, float]:
        found = {}
        for name, (images, labels) in sets.items():
            loss = right = 0.0
            for x, y in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
                outputs = model(x)
                loss += len(y) * float(CROSS_ENTROPY.value(outputs, y))
                right += float((outputs.argmax(dim=1) == y).sum())
            found |= {f"{name}_loss": loss / len(labels), f"{name}_accuracy": right / len(labels)}
        return found

    return evaluate
