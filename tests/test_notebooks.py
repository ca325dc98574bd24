"""Every notebook runs from top to bottom, and holds calls and prose only."""

import ast
from pathlib import Path

import nbformat
import pytest
from conftest import needs_ngspice
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SIMULATES = "from circuits.simulation import"  # who imports it runs ngspice


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[needs_ngspice] * (SIMULATES in path.read_text()), id=path.stem) for path in NOTEBOOKS],
)
@pytest.mark.filterwarnings("ignore")  # the kernel's own; those of the cells are in its process
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not any(
                isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(cell.source))
            )
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_the_output_of_a_run(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) - 1  # the first imports


def test_there_are_notebooks():
    assert {"01-from-matrix-to-board", "02-train-on-the-device"} <= {path.stem for path in NOTEBOOKS}
