"""Runs of ngspice: a deck in, checked plots out, each run in a process and a folder of its own.

The exit code of ngspice says nothing: a failed analysis can return 0 and a sound deck 1. A run is accepted only if
every expected plot is whole in the raw file, with every vector and only finite numbers. No other module starts ngspice.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from circuits.errors import SimulationError

TIMEOUT = 3600.0  # s; a chunk takes a few seconds, that of 64 differential cells some minutes
OLDEST = 29  # the first version with `.option seed`
LARGEST = 1e20  # V and Hz: far above anything real, and its powers are finite
_FAILURE = re.compile(r"(fatal error|simulation\(s\) aborted|singular matrix|timestep too small|no such vector)", re.I)


@dataclass(frozen=True, eq=False)
class Plot:
    """One analysis: its scale (points,) (time [s] or frequency [Hz]) and the saved node voltages (points, nodes)."""

    scale: np.ndarray
    voltages: np.ndarray


def find_ngspice() -> str:
    """Path of the ngspice program; SimulationError, which says how to install it, if there is none."""
    path = shutil.which("ngspice")
    if path is None:
        raise SimulationError(
            "ngspice was not found; install it (Debian and Ubuntu: apt-get install ngspice, macOS: brew install "
            "ngspice) or run `make setup`"
        )
    return path


@cache
def ngspice_version(path: str) -> str:
    """Version number that the program at `path` prints, "unknown" if it prints none."""
    try:
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(r"ngspice-(\S+)", printed)
    return found.group(1) if found else "unknown"


def run_deck(
    deck: str, nodes: Sequence[str], output: str, plots: int, files: Mapping[str, bytes] | None = None
) -> list[Plot]:
    """Run `deck`, which writes <output>.raw, and return its `plots` plots of v(node) for `nodes`.

    `files` holds the content of the files that the deck reads, by name. SimulationError if ngspice is missing, too old,
    crashes, takes longer than TIMEOUT seconds, or writes anything but `plots` whole plots of finite numbers.
    """
    program = find_ngspice()
    _check_version(program)
    with tempfile.TemporaryDirectory(prefix="tngd-") as folder:
        Path(folder, "deck.cir").write_text(deck)
        for name, content in (files or {}).items():
            Path(folder, name).write_bytes(content)
        log = _run(program, folder, TIMEOUT)
        raw = Path(folder, f"{output}.raw")
        if not raw.is_file():
            raise SimulationError(f"ngspice wrote no result; it said: {_last_words(log)}")
        found = parse_raw(raw.read_bytes(), nodes)
    if len(found) != plots:
        raise SimulationError(f"ngspice wrote {len(found)} of {plots} analyses; it said: {_last_words(log)}")
    return found


def parse_raw(content: bytes, nodes: Sequence[str]) -> list[Plot]:
    """Plots of a binary raw file, voltages in the order of `nodes`; SimulationError if one is not whole or finite."""
    plots = []
    position = 0
    while position < len(content):
        start = content.find(b"Binary:\n", position)
        if start < 0:
            raise SimulationError("ngspice wrote a raw file that ends inside a header; run it again")
        header = content[position:start].decode(errors="replace")
        names, points, kind = _read_header(header)
        size = points * len(names) * kind.itemsize
        body = content[start + 8 : start + 8 + size]
        if len(body) != size or points == 0:
            raise SimulationError(
                f"ngspice wrote a truncated raw file: expected {size} bytes of data, got {len(body)}; is the disk full?"
            )
        table = np.frombuffer(body, kind).reshape(points, len(names))
        missing = [node for node in nodes if f"v({node})" not in names]
        if missing:
            raise SimulationError(f"ngspice's result lacks v({missing[0]}); the deck and the board do not match")
        voltages = table[:, [names.index(f"v({node})") for node in nodes]]
        if not (np.abs(table.view("<f8")) < LARGEST).all():
            raise SimulationError("ngspice returned voltages that are not finite; is the circuit stable?")
        if not voltages.any():
            raise SimulationError("ngspice returned nothing but zeros; the deck and the board do not match")
        plots.append(Plot(table[:, 0].real.copy(), voltages))
        position = start + 8 + size
    return plots


def _check_version(path: str) -> None:
    """Raise SimulationError if the version that the program prints is older than OLDEST."""
    number = re.match(r"\d+", ngspice_version(path))
    if number and int(number[0]) < OLDEST:
        raise SimulationError(
            f"ngspice {number[0]} is too old: its noise follows no seed; install ngspice {OLDEST} or newer"
        )


def _run(program: str, folder: str, timeout: float) -> str:
    """Log of the run of deck.cir in `folder`; SimulationError if the run fails or takes longer than `timeout` [s]."""
    command = [program, "-n", "-b", "deck.cir"]  # -n: no .spiceinit, or the user's settings change results
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPICE_")}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SimulationError(f"ngspice did not finish within {timeout:g} s and was stopped") from None
    except OSError as error:
        raise SimulationError(f"ngspice at {program} could not be started: {error.strerror}") from None
    log = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode < 0:
        raise SimulationError(f"ngspice crashed with signal {-done.returncode}; it said: {_last_words(log)}")
    if _FAILURE.search(log):
        raise SimulationError(f"ngspice failed; it said: {_last_words(log)}")
    return log


def _read_header(header: str) -> tuple[list[str], int, np.dtype]:
    """Names of the vectors, number of points, and type of the numbers of a plot."""
    points = re.search(r"^No\. Points:\s*(\d+)", header, re.M)
    flags = re.search(r"^Flags:\s*(\w+)", header, re.M)
    names = re.findall(r"^\t\d+\t(\S+)\t", header, re.M)
    if not points or not flags or not names:
        raise SimulationError("ngspice wrote a raw file without a readable header; run it again")
    return names, int(points.group(1)), np.dtype("<c16" if flags.group(1) == "complex" else "<f8")


def _last_words(log: str) -> str:
    """Last line of a log that names an error, or its last line."""
    told = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in told if re.search(r"error|aborted|singular|failed|small", line, re.I)]
    return (errors or told or ["nothing"])[-1][:200]


def has_ngspice() -> bool:
    """Whether ngspice is installed."""
    try:
        find_ngspice()
    except SimulationError:
        return False
    return True
