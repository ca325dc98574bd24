"""MNIST from the four IDX files, as `make data` fetches them or as torchvision keeps them in <root>/MNIST/raw.

An IDX file is a big-endian header (two zero bytes, the type 8 for bytes, the number of axes, their lengths) and the
bytes of the array. Files are known by their hash; others of the same form (Fashion-MNIST) are taken and said to be.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError

FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MEAN, DEVIATION = 0.1307, 0.3081  # of the pixels of the training set, 0 to 1


@dataclass(frozen=True, eq=False)
class Images:
    """Standardised images (m, 1, 28, 28), labels (m,), and whether all files are those of MNIST."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    genuine: bool


def load_mnist(root: Path) -> Images:
    """Read the four files in `root` or `root`/MNIST/raw, gzipped or not; InputError says what is missing or wrong."""
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
    """The array of an IDX file of bytes with so many axes."""
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
