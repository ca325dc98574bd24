"""Freeze what a restructuring of the code must not change, and compare two freezes.

    python tests/freeze.py make DIR        run everything into the new folder DIR and write DIR/manifest.json
    python tests/freeze.py compare A B     say what differs between two manifests; exit code 1 if anything does

Frozen are all files that the command writes, its words on standard output and standard error, its exit codes, the
shipped presets, decks and evidence, and the parameters and states of the optimizer after a few steps. Files are taken
byte by byte; in JSON only times, versions and hashes that cover them are left out. Both freezes have to be of one
machine: another processor rounds the last digit otherwise.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Times and versions, and hashes of content that holds them.
VOLATILE = {"versions", "seconds", "cpu_seconds", "wall_seconds", "version", "content_sha256", "time", "date"}
VOLATILE |= {"device_sha256_of_file", "device_file_sha256", "board_sha256", "statistics_sha256"}
TEXT = re.compile(r"\d+(\.\d+)? s\b")

DESIGNS = {
    "raw": "fair --at fit --explain",
    "fair": "fair --at fit --precondition zero --explain",
    "banks": "fair --at fit --precondition zero --bank-bits 6",
    "banks-4": "fair --at fit --precondition zero --bank-bits 4 --tolerance 0.05 --copies 2",
    "next": "fair --at zero --precondition fit --reuse banks",
    "solver": "fair --at fit --precondition zero --coupling resistive",
    "series": "fair --at fit --precondition zero --series E24 --parallel 2",
    "lossy": "plain.csv --winding 1 --self-resonance 5e7 --esr 0.1 --coupled-coils 0.02 --stray 1e-13 --copies 2",
    "plain": "plain.csv --copies 2 --tolerance 0.02 --seed 3",
    "one": "one.csv --copies 1",
}
BOARDS = {
    "raw": ["verify raw --method exact --copies 50 --bound 0.05", "calibrate raw"],
    "fair": [
        "verify fair --samples 5000 --copies 50 --charge",
        "calibrate fair --route exact",
        "train fair --device fair/device.json --steps 3 --seeds 1",
        "train digits --device fair/device.json --steps 2 --seeds 1",
        "report fair",
    ],
    "solver": ["verify solver --method exact --copies 20", "calibrate solver"],
    "plain": [
        "verify plain --samples 6000 --method sampled --copies 20",
        "calibrate plain --route sampled",
        "verify plain --measured record.csv --copies 20",
        "calibrate plain --measured record.csv --force",
    ],
    "lossy": ["calibrate lossy --route programs"],
    "banks-4": [
        "calibrate banks-4",
        "retrim banks-4 --target fair --at zero --precondition fit --programmings 2",
        "interface banks-4/device.json --out converted.json --dac-bits 8 --adc-bits 8 --adc-noise 0.01",
        "draw banks-4/device.json --out drawn.json --copies 2 --seed 5",
    ],
    "one": ["verify one --method exact --copies 10 --ambient 60"],
}
REFUSED = [
    "design nothing --out x",
    "design fair --out x --damping -1",
    "design fair --at fit --out x --cells plain",
    "design fair --at fit --out x --tolerance 0.3",
    "design bad.csv --out x",
    "verify nowhere",
    "verify plain --method wrong",
    "calibrate one --route sampled",
    "calibrate plain --route wrong",
    "retrim plain",
    "interface board-9 --out y.json",
    "train fair --device nowhere.json",
    "train fair --device board-1 --steps 0",
    "train mnist --methods wrong",
    "report nowhere",
    "run nothing --out x",
    "draw board-1 --out z.json --copies 0",
    "fisher fair --out f.txt",
]


def main() -> int:
    """Do what the arguments say; the exit code."""
    if sys.argv[1] == "compare":
        return compare(Path(sys.argv[2]), Path(sys.argv[3]))
    make(Path(sys.argv[2]))
    return 0


def make(out: Path) -> None:
    """Run everything into a new folder and write its manifest."""
    out.mkdir(parents=True)
    (out / "plain.csv").write_text("2,-0.5,-0.25\n-0.5,1.5,-0.125\n-0.25,-0.125,1\n")
    (out / "one.csv").write_text("2\n")
    (out / "bad.csv").write_text("1,2\n2,1\n")
    said = {}
    for name in ("fair", "wine"):
        call(out, said, f"fisher {name} --out {name}.npy --factor {name}-factor.npy --at fit")
    for name, words in DESIGNS.items():
        call(out, said, f"design {words} --out {name}")
    record(out)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(lambda lines: [call(out, said, line) for line in lines], each) for each in BOARDS.values()]
        for job in jobs:
            job.result()
    steps(out)
    for line in ("devices", *REFUSED):
        call(out, said, line)
    manifest = {f"said: {line}": text for line, text in said.items()}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != ".lock":
            manifest[str(path.relative_to(out))] = digest(path)
    for pattern in ("circuits/**/*.json", "benchmarks/*.json*", "netlists/*.cir"):
        for path in sorted(ROOT.glob(pattern)):
            manifest[f"shipped: {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False))
    print(f"{len(manifest)} files and values")


def compare(first: Path, second: Path) -> int:
    """Print a line for every difference; 1 if there is one."""
    a, b = (json.loads((path / "manifest.json").read_text()) for path in (first, second))
    different = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    for key in different:
        print(f"{key}: {str(a.get(key))[:300]!r} and {str(b.get(key))[:300]!r}")
    print(f"{len(different)} differ" if different else f"equal: {len(a)} files and values")
    return int(bool(different))


def environment() -> dict[str, str]:
    """One thread, no colours, and the code of this checkout."""
    fixed = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}
    return os.environ | fixed | {"PYTHONPATH": str(ROOT)}


def call(out: Path, said: dict[str, str], line: str) -> None:
    """Run one command in the folder and keep its exit code and words."""
    command = [sys.executable, "-m", "tngd", *line.split()]
    done = subprocess.run(command, cwd=out, env=environment(), capture_output=True, text=True, check=False)
    words = f"{done.returncode}\n{done.stdout}\n{done.stderr}".replace(str(out.resolve()), "OUT")
    said[line] = TEXT.sub("SECONDS", words)
    if "Traceback" in words or (done.returncode and line not in REFUSED):
        print(f"{line}: {words.splitlines()[-1]}", file=sys.stderr)


def record(out: Path) -> None:
    """Readings of two copies, as a logger writes them: a stable autoregression of the scale of the board."""
    import numpy as np

    about = json.loads((out / "plain" / "board.json").read_text())
    period = about["program"]["period"]
    cells = len(about["board"]["cells"])
    rng = np.random.default_rng(7)
    lines = ["copy,time_s," + ",".join(f"cell{i + 1}_V" for i in range(cells))]
    for copy in ("copy-1", "copy-2"):
        state = np.zeros(cells)
        for k in range(3000):
            state = 0.9 * state + 0.01 * rng.normal(size=cells)
            lines.append(f"{copy},{k * period!r}," + ",".join(repr(float(v)) for v in state))
    (out / "record.csv").write_text("\n".join(lines) + "\n")


def steps(out: Path) -> None:
    """Parameters and states after steps of the optimizer, in a process of its own."""
    command = [sys.executable, __file__, "steps", str(out / "solver" / "device.json")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    (out / "steps.txt").write_text(done.stdout + done.stderr)


def optimizer_steps(resistive: str) -> None:
    """Print a hash of parameters and state for every kind of device and curvature."""
    import torch

    try:
        from circuits import load_device
        from tngd import TNGD, array_of, tile_board
    except ImportError:  # before there were doors
        from circuits.model.device_file import load_device
        from tngd.device.array import array_of
        from tngd.device.tiles import tile_board
        from tngd.optimizer.tngd import TNGD

    torch.set_num_threads(1)
    device = load_device("board-1")
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
        "tiles": {"board": tile_board(device), "damping": 0.01},
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
            options = dict(how)
            count = sum(p.numel() for p in model.parameters())
            if "array" in options:
                options["array"] = array_of(load_device(options["array"]), shape=(96, count))
            try:
                optimizer = TNGD(model, **{"lr": 0.05} | options)
                losses = [float(optimizer.step(lambda m=model, x=x, y=y: (m(x), y))) for _ in range(4)]
                state = walked(optimizer.state_dict())
            except Exception as error:  # what is refused is frozen too
                print(name, dtype, type(error).__name__, error)
                continue
            values = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
            print(name, dtype, losses[-1], hashlib.sha256(values).hexdigest(), hashlib.sha256(state).hexdigest())


def walked(content: object) -> bytes:
    """Bytes of nested dictionaries, lists and tensors, in order."""
    if isinstance(content, dict):
        return b"{" + b",".join(str(k).encode() + b":" + walked(v) for k, v in content.items()) + b"}"
    if isinstance(content, list | tuple):
        return b"[" + b",".join(map(walked, content)) + b"]"
    if hasattr(content, "numpy"):
        return str(content.dtype).encode() + str(tuple(content.shape)).encode() + content.detach().numpy().tobytes()
    return repr(content).encode()


def digest(path: Path) -> str:
    """Hash of a file; of JSON without what changes from run to run."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(steady(json.loads(data)), sort_keys=True).encode()
    if path.suffix == ".html":
        data = re.sub(rb"[0-9a-f]{12,64}", b"HASH", TEXT.sub("SECONDS", data.decode()).encode())
    if path.suffix == ".txt":
        return data.decode()
    return hashlib.sha256(data).hexdigest()


def steady(content: object) -> object:
    """The content without times, versions and hashes over them."""
    if isinstance(content, dict):
        return {key: steady(value) for key, value in content.items() if key not in VOLATILE and "seconds" not in key}
    return [steady(value) for value in content] if isinstance(content, list) else content


if __name__ == "__main__":
    if sys.argv[1] == "steps":
        optimizer_steps(sys.argv[2])
    else:
        sys.exit(main())
