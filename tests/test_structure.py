"""The shape of the code: imports follow the data, one owner for each tool, nothing hidden, nothing long."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("circuits/*.py"), *ROOT.glob("tngd/*.py")])
# Every module may import those above it in its own column, and tngd all of circuits.
ORDER = {
    "circuits": [
        "errors",
        "store",
        "target",
        "fisher",
        "board",
        "interface",
        "copies",
        "choices",
        "banks",
        "parasitics",
        "remedies",
        "layout",
        "ladder",
        "derivation",
        "assembly",
        "ou",
        "stepped",
        "equilibrium",
        "rounding",
        "elements",
        "coding",
        "grids",
        "synthesis",
        "gradient",
        "sensitivity",
        "netlist",
        "deck",
        "ngspice",
        "jobs",
        "exact",
        "noise",
        "sampled",
        "design",
        "inversion",
        "solve",
        "charge",
        "bill",
        "imperfections",
        "bringup",
        "kicad_writer",
        "pcb",
        "schematic",
        "review",
        "handover",
        "explanation",
        "moments",
        "runs",
        "measurement",
        "streaming",
        "recorded",
        "budget",
        "estimates",
        "population",
        "thermal",
        "answers",
        "verification",
        "pairs",
        "estimated",
        "specimen",
        "response",
        "quadrature",
        "leavings",
        "covariances",
        "lagged",
        "evidence",
        "settling",
        "programmings",
        "fitting",
        "bench",
        "heldout",
        "validation",
        "pairwise",
        "reduction",
        "prediction",
        "fitted",
        "device",
        "populated",
        "measured",
        "calibration",
        "presets",
        "banked",
        "retrim",
        "ensemble",
    ],
    "tngd": [
        "__main__",
        "folded",
        "sheets",
        "checkpoint",
        "comparison",
        "converters",
        "mnist_tables",
        "networks",
        "options",
        "squad_data",
        "squad_score",
        "squad_table",
        "studies",
        "tile_algebra",
        "tile_banks",
        "tile_functions",
        "tile_readout",
        "transition",
        "process",
        "scan",
        "paths",
        "likelihood",
        "tiles",
        "tile_solve",
        "losses",
        "squad_span",
        "mnist",
        "squad_model",
        "gram",
        "joined",
        "kronecker",
        "writer",
        "tile_blocks",
        "curvature",
        "dynamics",
        "low_rank",
        "array",
        "calls",
        "recorder",
        "tile_steps",
        "settings",
        "history",
        "groups",
        "admission",
        "descent",
        "memory",
        "batches",
        "adaptation",
        "resumed",
        "optimizer",
        "baselines",
        "tasks",
        "kfac",
        "methods",
        "trial",
        "mnist_results",
        "mnist_trials",
        "squad",
        "helper",
        "training",
        "tuning",
        "evidence",
        "plots",
        "plots_training",
        "verbs",
        "laboratory",
        "calibrated",
        "stages",
        "tables",
        "report_training",
        "report",
        "learning",
        "pipeline",
        "cli_copies",
        "cli_train",
        "cli",
    ],
}
OWNERS = {
    "PySpice": {"circuits/netlist.py"},
    "subprocess": {"circuits/ngspice.py", "circuits/pcb.py", "tngd/helper.py"},
    "skidl": {"circuits/kicad_writer.py"},
    "schemdraw": {"circuits/schematic.py"},
    "matplotlib": {"tngd/plots.py", "tngd/plots_training.py"},
    "sympy": {"circuits/derivation.py", "circuits/explanation.py"},
    "typer": {"tngd/cli.py", "tngd/cli_copies.py", "tngd/cli_train.py", "tngd/options.py"},
}


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_module(path):
    package, name = path.parent.name, path.stem
    tree = ast.parse(path.read_text())
    used = imports(tree)
    assert ast.get_docstring(tree)
    if name != "__init__":
        allowed = {f"{package}.{module}" for module in ORDER[package][: ORDER[package].index(name)]}
        own = {module for module in used if re.fullmatch(rf"{package}\.[a-z_]+", module)}
        assert own <= allowed, f"imports against the data path: {own - allowed}"
    if package == "circuits":
        assert not [module for module in used if module.split(".")[0] in ("torch", "tngd")]
    for tool, owners in OWNERS.items():
        if f"{package}/{path.name}" not in owners:
            assert not [module for module in used if module.split(".")[0] == tool], f"{tool} has another owner"
    assert len(path.read_text().splitlines()) <= 300
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function)), function.name
            assert not body or function.end_lineno - body[0].lineno < 40, f"{function.name} is too long to see whole"


def test_every_module_has_its_place():
    names = {(path.parent.name, path.stem) for path in MODULES if path.stem != "__init__"}
    assert names == {(package, name) for package, modules in ORDER.items() for name in modules}


def test_circuits_load_without_torch():
    code = (
        "import sys; import circuits.calibration.routes, circuits.verification.compare; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
