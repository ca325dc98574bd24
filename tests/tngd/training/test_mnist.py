"""IDX files: read as they are written, both layouts, gzipped or not; what is not whole is refused with one sentence."""

import gzip
import struct

import numpy as np
import pytest
import torch

from circuits import InputError
from tngd.training import load_mnist
from tngd.training.mnist import DEVIATION, FILES, MEAN


def write(folder, pack=False, count=7):
    """Four small files of the right form; their arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = []
    for k, name in enumerate(FILES):
        m = count + k // 2
        shape = (m, 28, 28) if "images" in name else (m,)
        array = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        content = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + array.tobytes()
        if pack:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
        arrays.append(array)
    return arrays


@pytest.mark.parametrize("layout", ["", "MNIST/raw"])
@pytest.mark.parametrize("pack", [False, True])
def test_files_are_read_as_they_were_written(tmp_path, layout, pack):
    arrays = write(tmp_path / layout, pack)
    found = load_mnist(tmp_path)
    assert not found.genuine
    for images, array in ((found.train_images, arrays[0]), (found.test_images, arrays[2])):
        assert images.dtype == torch.float32
        expected = (array[:, None].astype(np.float64) / 255 - MEAN) / DEVIATION
        np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert found.train_labels.tolist() == arrays[1].tolist()
    assert found.test_labels.tolist() == arrays[3].tolist()


def test_what_is_missing_or_not_whole_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no MNIST .* get it with `make data`"):
        load_mnist(tmp_path / "nowhere")
    name = list(FILES)[1]
    for content in (
        b"",
        b"\x00\x00\x08\x01\x00\x00\x00\x07abc",
        b"\x00\x00\x0d\x01" + bytes(11),
        b"\x00\x00\x08\x03" + bytes(12),
    ):
        write(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is no whole IDX file of labels"):
            load_mnist(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"lacks {name}"):
        load_mnist(tmp_path)
    write(tmp_path)
    (tmp_path / name).write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 3) + bytes(3))
    with pytest.raises(InputError, match="7 train images and 3 labels"):
        load_mnist(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / f"{name}.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(InputError, match="cannot be read"):
        load_mnist(tmp_path)
