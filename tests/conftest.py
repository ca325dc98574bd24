"""Ground rules of the tests: what needs ngspice says so, and programs that only pretend to be ngspice."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

# Two BLAS threads for 16 x 16 matrices cost more than they give, above all beside another process.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Rich and typer measure the terminal; the tests want the same text everywhere.
os.environ["COLUMNS"] = "120"
os.environ["NO_COLOR"] = "1"

needs_ngspice = pytest.mark.skipif(shutil.which("ngspice") is None, reason="ngspice is not installed")


@pytest.fixture
def fake_ngspice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell script named ngspice first on the path; it is called as `ngspice -b deck.cir` in the run's folder."""

    def install(script: str) -> Path:
        folder = tmp_path / "fake-bin"
        folder.mkdir(exist_ok=True)
        program = folder / "ngspice"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return program

    return install


@pytest.fixture
def no_ngspice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path on which ngspice is not."""
    keep = [place for place in os.environ["PATH"].split(os.pathsep) if not (Path(place) / "ngspice").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(keep))
