"""Files of a run folder: written whole or not at all, hashed, and not overwritten without `force`.

All files are JSON, CSV, npz without objects, or text. JSON keeps the given order of keys (important ones first) and
writes floats with `repr` (17 digits), so equal results are equal bytes.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import PlainSerializer, PlainValidator

from circuits.errors import InputError

# A numpy array that is a nested list in JSON and is checked to be finite numbers on the way in.
ArrayField = Annotated[
    np.ndarray,
    PlainValidator(lambda value: _finite_array(value)),
    PlainSerializer(lambda value: np.asarray(value).tolist()),
]


def sha256(content: bytes | str | np.ndarray) -> str:
    """SHA-256 of bytes, of UTF-8 text, or of an array's float64 values with its shape, as 64 hex digits."""
    if isinstance(content, np.ndarray):
        content = repr(content.shape).encode() + np.ascontiguousarray(content, dtype="<f8").tobytes()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def provenance(**inputs: str | int | float | None) -> dict[str, Any]:
    """Record of the origin of a result: the named inputs (hashes, seeds) and the versions that computed it."""
    packages = ("tngd", "numpy", "scipy", "sympy", "PySpice", "torch", "scikit-learn", "statsmodels")
    return {
        **inputs,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def refuse_existing(path: Path, force: bool) -> None:
    """Raise InputError if `path` exists and `force` is off, or if a file stands where its folder would be."""
    if path.exists() and not force:
        raise InputError(f"{path} exists already; choose another place or give --force to replace it")
    file = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
    if file:
        raise InputError(f"cannot write {path}: {file} is a file; choose a folder you can write to")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: a reader sees the old file or the new one, never a part of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose a folder you can write to") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; nothing was changed") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically; bytes of a file name that are not UTF-8 are written as escapes."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; ValueError for NaN and infinity, which JSON cannot represent."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as an uncompressed .npz without objects; the same arrays give the same bytes."""
    if any(np.asarray(array).dtype.hasobject for array in arrays.values()):
        raise TypeError("an .npz holds numbers only")
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_bytes(path, stream.getvalue())


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array as .npy atomically."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    write_bytes(path, stream.getvalue())


def read_record(
    path: Path, schema: str, verb: str, suggestion: str | None = None, parts: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Content of a JSON file that says this schema and has these parts, objects each; InputError if it does not.

    The error ends with `suggestion`, by default the `verb` that makes such a file.
    """
    content = read_json(path, verb)
    known = isinstance(content, dict) and content.get("schema") == schema
    if not known or not all(isinstance(content.get(part), dict) for part in parts):
        raise InputError(f"{path} does not say schema {schema}; {suggestion or f'make it again with `tngd {verb}`'}")
    return content


def seal_of(content: dict[str, Any]) -> str:
    """SHA-256 of everything in a JSON file but the seal itself, `provenance.content_sha256`."""
    about = {name: value for name, value in content["provenance"].items() if name != "content_sha256"}
    return sha256(json.dumps(content | {"provenance": about}, sort_keys=True))


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file; InputError names the command that makes it if it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist; make it with `tngd {made_by}`") from None
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, too many digits, nested too deep
        raise InputError(f"{path} is not readable JSON ({error}); make it again with `tngd {made_by}`") from None


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock `folder` against other processes. The lock of a killed process is released.

    InputError if another process holds the lock, unless `wait` is True.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot open {folder}: {error.strerror}; choose a folder that can be read") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is at work in {folder}; wait for it, or choose another folder") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path, force: bool, mark: str) -> Iterator[Path]:
    """Fill a hidden sibling folder, then move it to `path` in one step; after an error `path` is unchanged.

    With `force` an existing folder is replaced only if it is empty or holds `mark`, a file of this tool.
    """
    refuse_existing(path, force)
    if path.exists() and not is_ours(path / mark) and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and holds no {mark} of this tool; --force will not replace it, choose another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose a folder you can write to") from error
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_ours(path: Path) -> bool:
    """Whether the JSON file at `path` was written by this tool, even if it was damaged since."""
    try:
        return b'"schema": "tngd.' in path.read_bytes()[:100]
    except OSError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _finite_array(value: Any) -> np.ndarray:
    array = np.asarray(value, dtype=float)
    if not np.isfinite(array).all():
        raise ValueError("numbers must be finite")
    return array
