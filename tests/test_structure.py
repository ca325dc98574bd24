"""The shape of the code: the order of imports, doors that show what they say, nothing hidden, nothing private taken."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from circuits.board import REFERENCE_CELSIUS
from circuits.calibration import routes
from circuits.synthesis import data_sets, options
from circuits.verification import population
from tngd import cli

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("circuits/**/*.py"), *ROOT.glob("tngd/**/*.py")])
DOORS = sorted([*ROOT.glob("circuits/**/__init__.pyi"), *ROOT.glob("tngd/**/__init__.pyi")])
# The command loads what its verbs need when they are called.
LATE = {"tngd/__main__.py", "tngd/cli.py"}


def place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def taken(tree: ast.AST) -> list[tuple[str, str]]:
    """Module and name of everything that is imported by name."""
    return [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    ]


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_module(path):
    tree = ast.parse(path.read_text())
    said = ast.get_docstring(tree)
    assert said
    assert not said.startswith(("What ", "How ")), "a module's docstring begins with a noun phrase"
    ours = [(module, name) for module, name in taken(tree) if module.split(".")[0] in ("circuits", "tngd")]
    assert not [name for _, name in ours if name.startswith("_")], "a private name of another module"
    if place(path) not in LATE:
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                hidden = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
                assert not hidden, f"an import is hidden in {function.name}"


@pytest.mark.parametrize("stub", DOORS, ids=place)
def test_door_shows_what_its_stub_says(stub):
    """Names, in groups, that are neither modules nor missing; a type checker reads the same ones."""
    door = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    listed = next(
        ast.literal_eval(node.value)
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(door.__all__) <= set(dir(door))
    for name in listed:
        assert not isinstance(getattr(door, name), type(sys)), f"{name} is a module"
    with pytest.raises(AttributeError):
        _ = door.no_such_name


def test_every_package_has_a_door():
    assert {path.parent for path in MODULES} == {stub.parent for stub in DOORS}


def test_imports_run_one_way():
    """The contracts of layers, of owners and of what circuits may know, in pyproject.toml."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_defaults_of_the_command_are_those_of_the_stages():
    assert (cli.AMBIENT, cli.POPULATION, cli.READOUT) == (REFERENCE_CELSIUS, population.COPIES, routes.READOUT)


def test_data_sets_have_loaders():
    assert all(data_sets.load(name).name == name for name in options.DATA_SETS)
