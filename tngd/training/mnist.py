"""Trials on MNIST: image files, networks, training and held-out images, and the figures after every epoch.

Files. MNIST is four IDX files, as `make data` fetches them, or in <root>/MNIST/raw, as torchvision keeps them. An IDX
file is a big-endian header (two zero bytes, the type 8 for bytes, the number of axes, their lengths) and the bytes of
the array. The files of MNIST are recognised by their hashes; other files of the same form (Fashion-MNIST) are read too,
and `genuine` is then false.

Images. The training set of a trial is the first images of the training file. Tuning trains on the first four fifths of
the training set, at most 8,000 images, and evaluates on the next training images, a quarter as many: test images have
no part in tuning.

Networks. Inputs (b, 1, 28, 28), ten outputs. The paper's network has a convolutional and two linear layers of unstated
sizes. `small` has two convolutional and two linear layers, 6,218 parameters; `lenet` is LeNet-5 with rectifiers, 61,706
parameters.
"""

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from circuits.errors import InputError
from circuits.model.device import Device
from circuits.model.device_file import device_hash
from tngd.curvature.losses import CROSS_ENTROPY
from tngd.training.methods import Settings, make_optimizer, on_device
from tngd.training.trial import Trial

EVALUATED = 10_000  # training images, at most, on which the training loss is evaluated
AT_ONCE = 1000  # images in one evaluation
TUNED_ON = 8000  # training images, at most, of tuning
ON_TILES = ("tngd-tiles-mc-ideal", "tngd-tiles-mc", "tngd-tiles-mc-worst")

FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MEAN, DEVIATION = 0.1307, 0.3081  # of the pixels of the training set, 0 to 1


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
class Images:
    """Standardised images (m, 1, 28, 28), labels (m,), and whether all files are those of MNIST."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    genuine: bool


@dataclass(frozen=True, eq=False)
class Data:
    """Images, their hash, and whether all files are those of MNIST."""

    images: Images
    sha256: str
    genuine: bool


SETTINGS = {
    "paper": Setting("small", 10_000, 10_000),
    # Ten times the network and six times the images: only the methods whose step costs at most a few steps of Adam.
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
    """Images of the four files in a folder, with their hash."""
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

    InputError if the setting needs more images than there are, or the method needs a device and `device` is None.
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
    """A trial of tuning, whose figures are held_loss and held_accuracy on held-out training images."""
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


def load_mnist(root: Path) -> Images:
    """Read the four files in `root` or `root`/MNIST/raw, gzipped or not; InputError for missing or damaged files."""
    folder = next((place for place in (root, root / "MNIST" / "raw") if _find(place, next(iter(FILES)))), None)
    if folder is None:
        raise InputError(f"{root} holds no MNIST ({next(iter(FILES))} is missing); get it with `make data`")
    arrays, genuine = {}, True
    for name, known in FILES.items():
        content = _read(folder, name)
        genuine &= hashlib.sha256(content).hexdigest() == known
        arrays[name] = _parsed(folder / name, content, 3 if "images" in name else 1)
    tensors = [_tensor(array) for array in arrays.values()]
    for images, labels, which in ((tensors[0], tensors[1], "train"), (tensors[2], tensors[3], "t10k")):
        if len(images) != len(labels):
            raise InputError(f"{folder} holds {len(images)} {which} images and {len(labels)} labels; get it anew")
    return Images(*tensors, genuine)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(folder: Path, name: str) -> bytes:
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder} lacks {name}; get it with `make data`")
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); get it anew with `make data`") from None


def _parsed(path: Path, content: bytes, axes: int) -> np.ndarray:
    """The array of an IDX file of bytes with `axes` axes; InputError for other content."""
    header = 4 + 4 * axes
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist()) if len(content) >= header else ()
    whole = content[:4] == bytes([0, 0, 8, axes]) and len(content) - header == np.prod(shape, dtype=np.int64)
    if not whole or (axes == 3 and shape[1:] != (28, 28)):
        raise InputError(f"{path} is no whole IDX file of {'28 x 28 images' if axes == 3 else 'labels'}; get it anew")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _tensor(array: np.ndarray) -> Tensor:
    if array.ndim == 1:
        return torch.from_numpy(array.astype(np.int64))
    return ((torch.from_numpy(array.astype(np.float32)) / 255 - MEAN) / DEVIATION)[:, None]


def small() -> nn.Module:
    """Two strided convolutions and two linear layers, 6,218 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def lenet() -> nn.Module:
    """LeNet-5 with rectifiers, 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"small": small, "lenet": lenet}
