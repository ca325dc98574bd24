"""The state of a training run in one .npz without objects: tensors as arrays, everything else as JSON among them.

One file, written in one step: no reader sees the tensors of one epoch with the records of another.
"""

import io
import json
import math
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.files import write_npz

SCHEMA = "tngd.checkpoint/1"


def write_checkpoint(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write nested dictionaries, lists, tuples, numbers, words and tensors, under what `identity` (JSON) says."""
    tensors: list[Tensor] = []
    tree = {"schema": SCHEMA, "identity": identity, "state": _encoded(state, tensors)}
    text = np.frombuffer(json.dumps(tree, allow_nan=False).encode(), dtype=np.uint8)
    arrays = {f"tensor_{k}": tensor.detach().cpu().numpy() for k, tensor in enumerate(tensors)}
    write_npz(path, json=text, **arrays)


def read_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What was written, tensors on the CPU, or None if there is no file; InputError if it is not of `identity`."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            tree = json.loads(arrays["json"].tobytes())
            held = tree["identity"] if tree["schema"] == SCHEMA else None
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "json"}
        state = _decoded(tree["state"], tensors)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is no whole checkpoint ({error}); delete it to start anew") from None
    wanted = json.loads(json.dumps(identity))
    if held != wanted:
        names = sorted(key for key in {*(held or {}), *wanted} if (held or {}).get(key) != wanted.get(key))
        raise InputError(
            f"{path} is a checkpoint of another trial: {', '.join(names)} differ; delete it, or choose another place"
        )
    return state


def _encoded(value: Any, tensors: list[Tensor]) -> Any:
    """JSON with every container tagged, so that keys that are numbers and tuples come back as they were."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        return {"dict": [[key, _encoded(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(item, tensors) for item in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors, numbers, words and containers of them, got {type(value).__name__}")


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[f"tensor_{content}"]
    if kind == "dict":
        return {key: _decoded(item, tensors) for key, item in content}
    if kind == "float":
        return float(content)
    items = [_decoded(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
