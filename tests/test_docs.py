"""The pages for readers of the code: terms sorted and defined once; files, commands and rules as they are."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of tables, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    heads = {number - 1 for number, row in enumerate(cells) if set(row[0]) == {"-"}}
    return [row for number, row in enumerate(cells) if number not in heads and set(row[0]) != {"-"}]


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", CONTRIBUTING, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_terms_are_unique_sorted_and_defined():
    found = rows((ROOT / "docs" / "glossary.md").read_text())
    terms = [row[0].casefold() for row in found]
    assert len(terms) > 100
    assert terms == sorted(set(terms))
    assert all(len(row) == 3 and row[1].endswith((".", "…")) for row in found)


def test_terms_point_to_terms():
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = {row[0].casefold() for row in rows(text)}
    named = [term for words in re.findall(r"\b[Ss]ee ([^.|]*)\.", text) for term in words.split(", ")]
    assert named
    assert [term for term in named if term not in terms] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]*)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_files_that_are_named_exist():
    named = re.findall(r"`((?:circuits|tngd|tests|docs|benchmarks|netlists|notebooks)/[^`]*)`", CONTRIBUTING)
    assert len(named) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_tree_names_every_file():
    """Each package has a row, and each row all files of its package."""
    tree = {row[0].strip("`/"): set(re.findall(r"`(\w+)`", row[2])) for row in rows(CONTRIBUTING) if "/`" in row[0]}
    doors = [door for top in ("circuits", "tngd") for door in ROOT.glob(f"{top}/**/__init__.py")]
    there = {
        str(door.parent.relative_to(ROOT)): {path.stem for path in door.parent.glob("*.py")} - {"__init__"}
        for door in doors
    }
    assert tree == there


def test_commands_that_are_named_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = commands()
    assert len(lines) > 5
    for line in lines:
        words = line.split()
        if words[0] == "make":
            assert words[1] in targets, line
        else:
            assert words[0] == ".venv/bin/python", line
            script = words[3] if words[1:3] == ["-m", "pytest"] else words[1]
            assert (ROOT / script).is_file(), line
    named = re.findall(r"`make ([\w-]+)`", "".join(page.read_text() for page in PAGES))
    assert set(named) <= targets


def test_owners_of_libraries_are_those_of_the_contracts():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    owners = {}
    for contract in contracts:
        for line in contract.get("ignore_imports", []):
            module, library = line.split(" -> ")
            owners.setdefault(library, set()).add(module.replace(".", "/") + ".py")
    told = {row[0]: set(re.findall(r"`([^`]*)`", row[1])) for row in rows(CONTRIBUTING) if row[0] in owners}
    assert told == owners
