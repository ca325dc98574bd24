"""Doors and help pages load nothing heavy: asserted on the modules that are there, not on the clock."""

import json
import subprocess
import sys

import pytest
import typer

from tngd.cli import app

HEAVY = {"numpy", "scipy", "sympy", "pandas", "sklearn", "statsmodels", "torch", "matplotlib", "PySpice"}
HEAVY |= {"schemdraw", "pydantic", "jinja2", "skidl", "transformers"}


def loaded(code: str) -> set[str]:
    """Heavy modules that a fresh interpreter has after this code, whatever it printed."""
    code += "\nimport json, sys\nprint(); print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ["circuits", "tngd", "circuits.synthesis", "tngd.optimizer", "tngd.report"])
def test_door_loads_nothing(package):
    assert not loaded(f"import {package}; dir({package})")


def test_one_name_loads_its_own_stage_alone():
    assert not loaded("from circuits import InputError")
    assert "torch" not in loaded("from circuits import make_design, verify, calibrate, load_device, measure")


def verbs() -> list[str]:
    """Every verb, and every task of `train`."""
    command = typer.main.get_command(app)
    return ["", *command.commands, *(f"train {task}" for task in command.commands["train"].commands)]


@pytest.mark.parametrize("verb", verbs())
def test_help_loads_nothing(verb):
    words = ["tngd", *verb.split(), "--help"]
    code = f"import contextlib, sys; sys.argv = {words}\nfrom tngd.__main__ import main\n"
    code += "with contextlib.suppress(SystemExit):\n    main()"
    assert not loaded(code)


def test_matrix_file_needs_no_data_set(tmp_path):
    """The libraries of the named sets, and matplotlib, are not what a board of a matrix file waits for."""
    (tmp_path / "matrix.csv").write_text("2,-1\n-1,3\n")
    code = (
        "from pathlib import Path\nfrom circuits.netlist import design_folder\n"
        "from circuits.synthesis import BoardRequest, TargetOptions\n"
        "target = TargetOptions('matrix.csv')\n"
        "design_folder(target, BoardRequest(), Path('board'))"
    )
    code = f"import os; os.chdir({str(tmp_path)!r})\n{code}"
    assert not loaded(code) & {"sklearn", "statsmodels", "pandas", "matplotlib", "torch"}


def test_verification_needs_no_derivation_and_no_table_reader():
    """SymPy derives element laws for a design, pandas reads recorded voltages: neither is what `verify` waits for."""
    code = "from circuits.verification import VerifyOptions, verify_folder\n"
    code += "from tngd.report import more_tables, show, verification_table"
    assert not loaded(code) & {"sympy", "pandas", "sklearn", "statsmodels", "matplotlib", "torch"}
