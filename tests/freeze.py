"""Freeze what a restructuring of the code must not change, and compare two freezes.

    python tests/freeze.py make DIR        run everything into DIR (new or empty) and write DIR/manifest.json
    python tests/freeze.py compare A B     one line for each difference of two folders or manifests, or
                                           `equal: N files and values`; exit code 1 if anything differs

Frozen are all files that the command writes, its words on standard output and standard error, its exit codes, the
shipped presets, decks and evidence, the decks that netlists/write_netlists.py makes, and the parameters and states of
the optimizer after a few steps. The manifest holds SHA-256 of files, and words as they are.

Files are taken byte by byte. Of JSON with versions, these and the hashes that cover them are left out, and everything
else counts: order, numbers, layout. In words, run times and the folder are masked; in the report all hashes are (the
versions that it names stay).

It works on every layout of the packages, since it uses the command, and looks for the few public names that it imports
in every place where they have been. Both freezes have to be of one machine and one environment: another processor
rounds the last digit otherwise. One takes 200 s of processor time, on two cores at once. `make` ends with exit code 1
if a command did not do what it should, for example refused what it should accept; such a freeze is worth nothing.
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Versions, and hashes of content that holds them.
VOLATILE = {"versions", "fitted_versions", "content_sha256", "board_sha256", "statistics_sha256", "device_file_sha256"}
RUN_TIME = re.compile(r"\d+(\.\d+)? s\b")
HASH = re.compile(r"\b[0-9a-f]{64}\b")

MATRICES = {
    "plain.csv": "2,-0.5,-0.25\n-0.5,1.5,-0.125\n-0.25,-0.125,1\n",
    "other.csv": "1.5,-0.25,-0.25\n-0.25,1.25,-0.25\n-0.25,-0.25,1\n",
    "one.csv": "2\n",
    "bad.csv": "1,2\n2,1\n",
}
RECORD, DECKS, STEPS = "record", "decks", "steps"  # not verbs of the command, but work of this script
# Chains run beside each other, the lines of one in order; no two chains use one folder.
CHAINS = [
    [
        "design fair --at fit --precondition zero --explain --out fair",
        "verify fair --method both --samples 5000 --copies 50 --charge",
        "calibrate fair --route exact",
        "train fair --device fair/device.json --steps 3 --seeds 1",
        "train digits --device fair/device.json --steps 2 --seeds 1",
        "report fair",
    ],
    [
        "design fair --at fit --explain --out raw",
        "verify raw --method exact --copies 50 --bound 0.05",
        "calibrate raw",
    ],
    [
        "design fair --at fit --precondition zero --bank-bits 6 --out banks",
        "design fair --at zero --precondition fit --reuse banks --out next",
    ],
    [
        "design fair --at fit --precondition zero --coupling resistive --out solver",
        "verify solver --method exact --copies 20",
        "calibrate solver",
        STEPS,
    ],
    [
        "design plain.csv --bank-bits 4 --tolerance 0.05 --copies 2 --precondition other.csv --out trim",
        "calibrate trim",
        "retrim trim --target other.csv --programmings 2 --check",
        "interface trim/device.json --out converted.json --dac-bits 8 --adc-bits 8 --adc-noise 0.01",
        "draw trim/device.json --out drawn.json --copies 2 --seed 5",
    ],
    [
        "design plain.csv --copies 2 --tolerance 0.02 --seed 3 --out plain",
        "verify plain --method sampled --samples 6000 --copies 20",
        "calibrate plain --route sampled",
    ],
    [
        "design plain.csv --copies 2 --tolerance 0.02 --seed 3 --out bench",
        RECORD,
        "verify bench --measured record.csv --copies 20",
        "calibrate bench --measured record.csv",
    ],
    [
        "design plain.csv --winding 1 --self-resonance 5e7 --esr 0.1 --coupled-coils 0.02 --stray 1e-13 --out lossy",
        "calibrate lossy --route programs",
    ],
    ["design one.csv --copies 1 --out one", "verify one --method exact --copies 10 --ambient 60"],
    ["design fair --at fit --precondition zero --series E24 --parallel 2 --out series"],
    ["fisher fair --out fair.npy --factor fair-factor.npy --at fit"],
    ["fisher wine --out wine.npy --factor wine-factor.npy --at fit"],
    ["devices", DECKS],
]
# What is refused, after all of the above.
REFUSED = [
    ["calibrate plain --route wrong", "retrim plain"],
    ["calibrate one --route sampled"],
    ["design nothing --out x"],
    ["design fair --out x --damping -1"],
    ["design fair --at fit --out x --cells plain"],
    ["design fair --at fit --out x --tolerance 0.3"],
    ["design bad.csv --out x"],
    ["verify nowhere"],
    ["train fair --device nowhere.json"],
    ["train fair --device board-1 --steps 0"],
    ["train mnist --methods wrong"],
    ["report nowhere"],
    ["run nothing --out x"],
    ["draw board-1 --out z.json --copies 0"],
    ["fisher fair --out f.txt"],
]


@dataclass(frozen=True)
class Freeze:
    """A freeze at work: its folder, the words of every command, and what went wrong."""

    out: Path
    said: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Do what the arguments say; the exit code."""
    parser = argparse.ArgumentParser(description="Freeze what a restructuring must not change, and compare freezes.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("make", help="run everything into a folder").add_argument("folder", type=Path)
    two = verbs.add_parser("compare", help="say what differs between two freezes")
    two.add_argument("first", type=Path)
    two.add_argument("second", type=Path)
    verbs.add_parser(STEPS, help="only the steps of the optimizer; prints hashes").add_argument("device")
    given = parser.parse_args()
    if given.verb == "make":
        return make(given.folder)
    if given.verb == "compare":
        return compare(given.first, given.second)
    return optimizer_steps(given.device)


def make(out: Path) -> int:
    """Run everything into a new or empty folder and write its manifest; 1 if anything went wrong."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        print(f"{out} is not an empty folder; choose a new one", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    freeze = Freeze(out.resolve())
    for name, text in MATRICES.items():
        (out / name).write_text(text)
    for chains, code in ((CHAINS, 0), (REFUSED, 2)):
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(work, freeze, chain, code) for chain in chains]:
                done.result()
    manifest = {f"said: {line}": text for line, text in freeze.said.items()}
    manifest |= {str(path.relative_to(out)): digest(path) for path in sorted(out.rglob("*")) if path.is_file()}
    for pattern in ("circuits/**/*.json", "benchmarks/*.json*", "netlists/*.cir"):
        for path in sorted(ROOT.glob(pattern)):
            key = f"shipped: {path.name}"
            if key in manifest:
                freeze.wrong.append(f"two shipped files have the name {path.name}")
            manifest[key] = sha256(path.read_bytes())
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    (out / "manifest.json").write_text(text + "\n")
    print(f"{len(manifest)} files and values")
    print("".join(f"wrong: {each}\n" for each in freeze.wrong), end="", file=sys.stderr)
    return int(bool(freeze.wrong))


def compare(first: Path, second: Path) -> int:
    """Print a line for every difference; 1 if there is one."""
    a, b = (json.loads((p / "manifest.json" if p.is_dir() else p).read_text()) for p in (first, second))
    different = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    for key in different:
        print(f"{key}: {difference(a.get(key), b.get(key))}")
    print(f"{len(different)} of {len(a | b)} differ" if different else f"equal: {len(a)} files and values")
    return int(bool(different))


def difference(a: str | None, b: str | None) -> str:
    """In one line what differs between two values: of words the first lines that do."""
    if a is None or b is None:
        return f"only in the {'first' if b is None else 'second'}"
    lines = zip_longest(a.splitlines(), b.splitlines(), fillvalue="")
    x, y = next((pair for pair in lines if pair[0] != pair[1]), (a, b))
    return f"{x!r} and {y!r}"


def work(freeze: Freeze, chain: list[str], code: int) -> None:
    """Run the lines of a chain, which should end with this exit code."""
    for line in chain:
        if line == RECORD:
            record(freeze.out)
        elif line == DECKS:
            decks(freeze)
        elif line == STEPS:
            words = call(freeze, STEPS, [__file__, STEPS, str(freeze.out / "solver" / "device.json")], code)
            (freeze.out / "steps.txt").write_text(words)
        else:
            freeze.said[line] = call(freeze, line, ["-m", "tngd", *line.split()], code)


def call(freeze: Freeze, name: str, arguments: list[str], code: int) -> str:
    """Run Python in the folder, on one thread, without colours; exit code and words."""
    fixed = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}
    environment = os.environ | fixed | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=freeze.out, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != code or "Traceback" in done.stderr:
        last = (done.stderr.splitlines() or [""])[-1]
        freeze.wrong.append(f"{name}: exit code {done.returncode} instead of {code}: {last}")
    words = f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return RUN_TIME.sub("RUN TIME", words.replace(str(freeze.out), "OUT"))


def record(out: Path) -> None:
    """Readings of two copies, as a logger writes them: a stable autoregression of the scale of the board."""
    import numpy as np

    about = json.loads((out / "bench" / "board.json").read_text())
    period, cells = about["program"]["period"], len(about["board"]["cells"])
    rng = np.random.default_rng(7)
    lines = ["copy,time_s," + ",".join(f"cell{i + 1}_V" for i in range(cells))]
    for copy in ("copy-1", "copy-2"):
        state = np.zeros(cells)
        for k in range(3000):
            state = 0.9 * state + 0.01 * rng.normal(size=cells)
            lines.append(f"{copy},{k * period!r}," + ",".join(repr(float(v)) for v in state))
    (out / "record.csv").write_text("\n".join(lines) + "\n")


def decks(freeze: Freeze) -> None:
    """The decks of netlists/, made by a copy of their script, since it writes where it lies."""
    folder = freeze.out / "netlists"
    folder.mkdir()
    script = Path(shutil.copy(ROOT / "netlists" / "write_netlists.py", folder))
    call(freeze, script.name, [str(script)], 0)
    script.unlink()
    for path in sorted((ROOT / "netlists").glob("*.cir")):
        made = folder / path.name
        if not made.exists() or made.read_bytes() != path.read_bytes():
            freeze.wrong.append(f"netlists/{path.name} is not what netlists/write_netlists.py writes")


def optimizer_steps(resistive: str) -> int:
    """Print a hash of parameters and one of the state for every kind of device and curvature."""
    import torch

    # First the place by which users import it, then where it has been before.
    TNGD = public("TNGD", "tngd", "tngd.optimizer", "tngd.optimizer.tngd")
    tile_board = public("tile_board", "tngd", "tngd.tiles", "tngd.device.tiles")
    array_of = public("array_of", "tngd", "tngd.array", "tngd.device.array")
    load_device = public("load_device", "circuits", "circuits.device", "circuits.model.device_file")
    torch.set_num_threads(1)
    kinds = {
        f"{curvature} t={time}": {"curvature": curvature, "time": time}
        for curvature in ("ggn", "mc", "empirical")
        for time in (float("inf"), 3.0)
    }
    held = {"curvature": "mc", "refresh": 3, "history": 4, "precondition": 0.1, "damping": 4.0, "time": 5.0}
    kinds |= {
        "preconditioned": held,
        "kept": {"start": "kept", "delay": 0.5, "time": 2.0, "refresh": 2},
        "noisy": {"noise": 0.01, "time": 4.0, "seed": 3},
        "adapted": {"adapt": 2, "kl_clip": 0.01},
        "lanczos": {"lanczos": 5, "time": 10.0},
        "tiles": {"board": tile_board(load_device("board-1")), "damping": 0.01},
        "tiles mc": {"board": tile_board(load_device("worst-case")), "tile_curvature": "mc", "refresh": 4},
        "resistive tiles": {"board": tile_board(load_device(resistive)), "time": 5.0, "start": "kept"},
        "array": {"array": "board-1"},
        "array at a time": {"array": "board-1", "time": 4.0, "refresh": 2, "noise": 0.01},
    }
    for name, how in kinds.items():
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            layers = torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)
            model = torch.nn.Sequential(*layers).to(dtype)
            x, y = torch.randn(32, 20, dtype=dtype), torch.randint(3, (32,))
            options = {"lr": 0.05} | how
            if "array" in how:
                size = sum(p.numel() for p in model.parameters())
                options["array"] = array_of(load_device(how["array"]), shape=(96, size))
            optimizer = TNGD(model, **options)
            losses = [float(optimizer.step(lambda m=model, x=x, y=y: (m(x), y))) for _ in range(5)]
            values = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
            print(f"{name}, {dtype}: loss {losses[-1]!r}, parameters {sha256(values)}", end="")
            print(f", state {sha256(walked(optimizer.state_dict()))}")
    return 0


def public(name: str, *places: str) -> object:
    """What has this name, from the first of the modules that has it."""
    for place in places:
        try:
            return getattr(importlib.import_module(place), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise ImportError(f"{name} is in none of {', '.join(places)}")


def walked(content: object) -> bytes:
    """Bytes of nested dictionaries, lists, tensors and plain values, in order; TypeError for anything else."""
    if isinstance(content, dict):
        return b"{" + b",".join(walked(k) + b":" + walked(v) for k, v in content.items()) + b"}"
    if isinstance(content, list | tuple):
        return b"[" + b",".join(map(walked, content)) + b"]"
    if type(content).__name__ in ("Tensor", "Parameter"):
        return f"{content.dtype} {tuple(content.shape)} ".encode() + content.detach().numpy().tobytes()
    if content is None or isinstance(content, bool | int | float | str):
        return repr(content).encode()
    raise TypeError(f"the state holds a {type(content).__name__}; say here which bytes it stands for")


def digest(path: Path) -> str:
    """Hash of a file, without what depends on versions; text files as they are."""
    data = path.read_bytes()
    if path.suffix == ".txt":
        return data.decode()
    if path.suffix == ".html":
        return sha256(HASH.sub("HASH", data.decode()).encode())
    if path.suffix == ".json":
        content = json.loads(data)
        if (left := steady(content)) != content:
            layout = "as tngd lays out" if laid_out(content) == data else "other layout"
            return f"{sha256(laid_out(left))}, {layout}"
    return sha256(data)


def laid_out(content: object) -> bytes:
    """JSON as the command writes it."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def steady(content: object) -> object:
    """The content without versions and hashes over them."""
    if isinstance(content, dict):
        return {key: steady(value) for key, value in content.items() if key not in VOLATILE}
    return [steady(value) for value in content] if isinstance(content, list) else content


def sha256(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
