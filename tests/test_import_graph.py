"""The graph of imports: how many floors it has, that it has no circle, and that its drawing is current."""

import importlib.util
from graphlib import CycleError
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script():
    """docs/draw_imports.py as a module."""
    spec = importlib.util.spec_from_file_location("draw_imports", ROOT / "docs" / "draw_imports.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = script()


def test_floors():
    """longest_chains raises CycleError if imports go in a circle, between files or between packages."""
    chains = draw.longest_chains()
    assert {name: len(chain) for name, chain in chains.items() if len(chain) > draw.LIMITS[name]} == {}, chains


def test_drawing_is_current():
    assert draw.DRAWING.read_text() == draw.drawing(), "type: make graph"


def test_chain_is_the_longest_and_circles_are_found():
    assert draw.longest_chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ["a", "b", "c"]
    with pytest.raises(CycleError):
        draw.longest_chain({"a": {"b"}, "b": {"a"}})


def test_packages_of_both_halves_are_drawn():
    drawing = draw.drawing()
    packages = [
        path.parent.relative_to(ROOT) for path in ROOT.glob("*/*/__init__.py") if path.parts[-3] in draw.PROJECT
    ]
    assert len(packages) > 10
    assert [path for path in packages if f">{'.'.join(path.parts)}<" not in drawing] == []
