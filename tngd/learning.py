"""What the verbs `train_task_file` and `report` do with files, by the rules of circuits.netlist.export.

Apart from them because torch and matplotlib take seconds to load, which no board needs.
"""

from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.files import file_sha256, locked, provenance, read_json, refuse_existing, write_json
from circuits.model.device_file import device_file, device_hash, load_device
from circuits.parallel import Progress, silent
from tngd.tasks import TASKS
from tngd.training.small_tasks import SCHEMA
from tngd.training.small_tasks import train as train_task


def train_task_file(
    task: str,
    device_path: Path,
    out: Path | None = None,
    seeds: int = 3,
    steps: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train one task on a device, a file or a preset, and add it to training.json.

    Without `out` that is beside the device's file, and for a preset in the working folder. An interrupted call leaves
    what it has done in `<name>.checkpoints` beside the file, and the same call goes on from there.
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    device = load_device(device_path)
    path = out or device_path.parent / "training.json"
    refuse_existing(path, force=True)
    if task in _training_file(path)["tasks"] and not force:
        raise InputError(f"{path} holds {task} already; give --force to replace it, or another --out")
    result = train_task(task, device, seeds, steps, progress, path.with_suffix(".checkpoints"))
    result["provenance"] = provenance(
        device_file_sha256=file_sha256(device_file(device_path)), device_sha256=device_hash(device), seeds=seeds
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):  # another task may have come into the file meanwhile
        content = _training_file(path)
        content["tasks"][task] = result
        write_json(path, content)
    return result


def _training_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"schema": SCHEMA, "tasks": {}}
    content = read_json(path, "train")
    known = isinstance(content, dict) and content.get("schema") == SCHEMA
    if not known or not isinstance(content.get("tasks"), dict):
        raise InputError(f"{path} does not say schema {SCHEMA}; choose another --out")
    return content
