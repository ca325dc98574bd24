"""mnist.json: one file for comparisons, tunings and studies, filled run by run.

A run that is there is not made again; one that stopped half way goes on from its checkpoint in `<name>.checkpoints`
beside the file. Several processes may fill one file at a time: each reads it anew, adds its run and writes it whole.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.files import locked, provenance, read_json, refuse_existing, write_json
from circuits.parallel import Progress
from tngd.training.trial import Trial, run_trial, trial_hash

SCHEMA = "tngd.mnist/1"
PARTS = ("comparisons", "studies")

Content = dict[str, Any]


def read_results(path: Path) -> Content:
    """The file, or an empty one; InputError if it is another file."""
    if not path.exists():
        return {"schema": SCHEMA} | {part: {} for part in PARTS}
    content = read_json(path, "train mnist")
    known = isinstance(content, dict) and content.get("schema") == SCHEMA
    if not known or not all(isinstance(content.get(part), dict) for part in PARTS):
        raise InputError(f"{path} does not say schema {SCHEMA}; choose another --out")
    return content


def change_results(path: Path, change: Callable[[Content], None]) -> Content:
    """Read, change and write the file while no other process does."""
    refuse_existing(path, force=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):
        content = read_results(path)
        change(content)
        write_json(path, content)
    return content


def claim(path: Path, place: tuple[str, ...], what: Content, force: bool) -> None:
    """Say at `place` of the file what its runs are; InputError if it holds others, which `force` drops."""
    held = _at(read_results(path), place).get("what")
    wanted = json.loads(json.dumps(what))
    if held == wanted:
        return
    if held is not None and not force:
        names = sorted(key for key in {*held, *wanted} if held.get(key) != wanted.get(key))
        raise InputError(
            f"{path} holds {' '.join(place[1:])} with another {' and '.join(names)}; give --force to replace it, or "
            "another --out"
        )

    def begin(content: Content) -> None:
        if _at(content, place).get("what") != wanted:  # unless another process has begun it meanwhile
            _at(content, place[:-1])[place[-1]] = {"what": wanted}

    change_results(path, begin)


def kept_run(path: Path, place: tuple[str, ...], trial: Trial, force: bool, progress: Progress) -> Content:
    """The run of this seed at a claimed `place` of the file, made if it is not there.

    InputError if a run of another trial is there and `force` is off.
    """
    identity, seed = trial_hash(trial), str(trial.seed)
    held = _at(read_results(path), place).get("seeds", {}).get(seed)
    if held is not None and held["trial_sha256"] == identity:
        return held
    if held is not None and not force:
        raise InputError(
            f"{path} holds {' '.join(place[1:])}, seed {seed}, of other settings, data, device or length; "
            "give --force to replace it, or another --out"
        )
    checkpoint = path.with_suffix(".checkpoints") / f"{identity[:16]}.npz"
    outcome = run_trial(trial, checkpoint, progress)
    run = {
        "records": outcome.records,
        "diverged": outcome.diverged,
        "trial_sha256": identity,
        "provenance": provenance(
            data_sha256=trial.settings["data_sha256"], device_sha256=trial.settings["device"], seed=trial.seed
        ),
    }

    def add(content: Content) -> None:
        _at(content, place).setdefault("seeds", {})[seed] = run

    change_results(path, add)
    checkpoint.unlink(missing_ok=True)
    with suppress(OSError):  # others may still have theirs there
        checkpoint.parent.rmdir()
    return run


def _at(content: Content, place: tuple[str, ...]) -> Content:
    for key in place:
        content = content.setdefault(key, {})
    return content
