"""Ground rules of the tests: what needs ngspice says so, and programs that only pretend to be ngspice."""

import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Two BLAS threads for 16 x 16 matrices cost more than they give, above all beside another process.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Rich and typer measure the terminal; the tests want the same text everywhere.
os.environ["COLUMNS"] = "120"
os.environ["NO_COLOR"] = "1"

from tngd.__main__ import main

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


def tree(folder: Path) -> dict[str, str]:
    """Every path under a folder, hidden ones too, with the hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tngd(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple]:
    """Call the command; (exit code, standard output, standard error)."""

    def call(*argv: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["tngd", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(here: Path, tngd: Callable[..., tuple]) -> Callable[..., str]:
    """Call the command, which must refuse in one sentence and touch nothing; the sentence."""

    def call(*argv: object) -> str:
        before = tree(here)
        code, out, err = tngd(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("tngd: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()
        assert "Traceback" not in err
        assert tree(here) == before
        return err.removeprefix("tngd: ").rstrip("\n")

    return call


@pytest.fixture
def works(tngd: Callable[..., tuple]) -> Callable[..., str]:
    """Call the command, which must succeed without a word on standard error; what it printed."""

    def call(*argv: object) -> str:
        code, out, err = tngd(*argv)
        assert (code, err) == (0, "")
        return out

    return call
