"""Draw which package imports which, as docs/imports.svg, and count the floors of imports.

    python docs/draw_imports.py            write docs/imports.svg
    python docs/draw_imports.py --check    print the floors, and say whether docs/imports.svg is current

The floors of a chain of imports are the modules on it: a -> b -> c has three. Import statements in the code count. What
a door or the command loads when a name is asked for has no import statement there, and does not count. The exit code of
--check is 1 if there is a circle, if a limit below is passed, or if the drawing is old.
"""

import argparse
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from html import escape
from itertools import pairwise
from math import inf
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
DRAWING = ROOT / "docs" / "imports.svg"
PROJECT = ("circuits", "tngd")
# The largest number of floors that is allowed: between files, and between the packages of circuits and of tngd.
# A file that lies loose in circuits or tngd counts as a package.
LIMITS = {"files": 19, "circuits": 10, "tngd": 5}
# Two files that are one thing: __main__ does nothing but start cli.
COMMAND = {"tngd.__main__": "tngd.cli"}
GROUND = "circuits.ground"

Imports = dict[str, set[str]]

BOX, GAP, FLOOR, WAY, MARGIN = (172.0, 48.0), 30.0, 104.0, 14.0, 24.0
COLOURS = {"circuits": ("#e3eef9", "#2f6ea5"), "tngd": ("#fbeadb", "#b4642a")}


def imports_of_files() -> Imports:
    """Every file of the project as a module, and the modules that it imports."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PROJECT, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def package_of(module: str) -> str:
    """The package of a file; a file that lies loose in circuits or tngd stands for itself."""
    module = ".".join(module.split(".")[:2])
    return COMMAND.get(module, module)


def joined(imports: Imports, group: Mapping[str, str]) -> Imports:
    """Imports between groups of modules; `group` names the group of each module that counts."""
    between: Imports = {name: set() for name in sorted(set(group.values()))}
    for module, name in group.items():
        between[name] |= {group[other] for other in imports[module] if other in group} - {name}
    return between


def packages_of(imports: Imports, top: str) -> Imports:
    """Imports between the packages of circuits or of tngd; files that lie loose there count as packages."""
    return joined(imports, {module: package_of(module) for module in imports if module.startswith(f"{top}.")})


def longest_chain(imports: Imports) -> list[str]:
    """The longest chain of imports, the first importer first; CycleError if imports go in a circle."""
    chains: dict[str, list[str]] = {}
    for module in TopologicalSorter({name: sorted(imports[name]) for name in sorted(imports)}).static_order():
        below = max((chains[other] for other in sorted(imports[module])), key=len, default=[])
        chains[module] = [module, *below]
    return max((chains[module] for module in sorted(chains)), key=len)


def longest_chains() -> dict[str, list[str]]:
    """The longest chains between files, and between the packages of circuits and of tngd."""
    imports = imports_of_files()
    return {"files": longest_chain(imports)} | {top: longest_chain(packages_of(imports, top)) for top in PROJECT}


def drawn_groups(imports: Imports) -> dict[str, str]:
    """The box of each file: its package, or the ground of circuits for what lies loose there."""
    packages = {module.rpartition(".")[0] for module in imports if module.count(".") == 2}
    boxes = {module: package_of(module) for module in imports if "." in module}
    loose = {name for name in boxes.values() if name.startswith("circuits.") and name not in packages}
    return {module: GROUND if box in loose else box for module, box in boxes.items()}


def floors_of(imports: Imports) -> dict[str, int]:
    """The floor of each box: one above the highest box that it imports."""
    floors: dict[str, int] = {}
    for name in TopologicalSorter({name: sorted(imports[name]) for name in sorted(imports)}).static_order():
        floors[name] = 1 + max((floors[other] for other in imports[name]), default=-1)
    return floors


def reached(imports: Imports, start: str) -> set[str]:
    """Everything that a box imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = imports[waiting.pop()] - found
        found |= fresh
        waiting += fresh
    return found


class Layout:
    """Boxes on their floors, and points that lead arrows between the boxes of the floors they pass."""

    def __init__(self, arrows: list[tuple[str, str]], floors: Mapping[str, int]) -> None:
        self.rows: dict[int, list[str]] = {}
        self.near: dict[str, list[str]] = {name: [] for name in floors}
        self.ways: dict[tuple[str, str], list[str]] = {}
        self.floors = dict(floors)
        for name in sorted(floors):
            self.rows.setdefault(floors[name], []).append(name)
        for start, end in arrows:
            points = [f"{start}>{end}@{floor}" for floor in range(floors[start] - 1, floors[end], -1)]
            for point in points:
                floor = int(point.rpartition("@")[2])
                self.rows[floor].append(point)
                self.floors[point], self.near[point] = floor, []
            way = [start, *points, end]
            self.ways[start, end] = way
            for one, other in pairwise(way):
                self.near[one].append(other)
                self.near[other].append(one)
        self.x: dict[str, float] = {}
        for row in self.rows.values():
            self.x |= {name: 60.0 * place for place, name in enumerate(row)}
        for turn in range(60):
            for floor in sorted(self.rows, reverse=turn % 2 == 0):
                self._place(self.rows[floor], turn)
        left = min(self.x[name] - self.half(name) for name in self.x)
        self.x = {name: x - left for name, x in self.x.items()}

    def half(self, name: str) -> float:
        """Half the width of a box, or of the room for an arrow."""
        return WAY / 2 if "@" in name else BOX[0] / 2

    def _place(self, row: list[str], turn: int) -> None:
        """Put a row where its neighbours are; in the early turns its order may change."""
        wish = {name: sum(self.x[other] for other in self.near[name]) / (len(self.near[name]) or 1) for name in row}
        wish |= {name: self.x[name] for name in row if not self.near[name]}
        if turn < 40:
            row.sort(key=lambda name: (wish[name], name))
        pushed = self._spread(row, wish)
        mirrored = self._spread(row[::-1], {name: -x for name, x in wish.items()})
        self.x |= {name: (pushed[name] - mirrored[name]) / 2 for name in row}

    def _spread(self, row: list[str], wish: Mapping[str, float]) -> dict[str, float]:
        """Places from left to right, as wished or farther to the right, so that nothing overlaps."""
        places: dict[str, float] = {}
        edge = -inf
        for name in row:
            places[name] = max(wish[name], edge + self.half(name))
            edge = places[name] + self.half(name) + GAP
        return places

    @property
    def width(self) -> float:
        """From the left edge of the first box to the right edge of the last one."""
        return max(self.x[name] + self.half(name) for name in self.x)


def text(x: float, y: float, words: str, size: int, weight: str = "normal", anchor: str = "middle") -> str:
    """A line of text."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, colours: tuple[str, str]) -> str:
    """A rectangle with its upper left corner at x, y."""
    fill, line = colours
    size = f'width="{width:.0f}" height="{height:.0f}" rx="6"'
    return f'<rect x="{x:.0f}" y="{y:.0f}" {size} fill="{fill}" stroke="{line}" stroke-width="1.5"/>'


def path(points: list[tuple[float, float]], colour: str, follows: bool) -> str:
    """An arrow through points, bent so that it leaves and meets them upright."""
    words = [f"M{points[0][0]:.0f},{points[0][1]:.0f}"]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        words.append(f"C{x0:.0f},{middle:.0f} {x1:.0f},{middle:.0f} {x1:.0f},{y1:.0f}")
    style = 'stroke-width="1" stroke-opacity="0.45" stroke-dasharray="5 4"' if follows else 'stroke-width="1.8"'
    return f'<path d="{" ".join(words)}" fill="none" stroke="{colour}" {style} marker-end="url(#{colour[1:]})"/>'


def drawing() -> str:
    """The whole drawing as SVG."""
    imports = imports_of_files()
    group = drawn_groups(imports)
    boxes = joined(imports, group)
    doors = {module for module in imports if any(other.startswith(f"{module}.") for other in imports)}
    files = {name: sum(1 for module in group if group[module] == name and module not in doors) for name in boxes}
    above = {name: others - {GROUND} for name, others in boxes.items() if name != GROUND}
    floors = {name: floor + 1 for name, floor in floors_of(above).items()}
    arrows = sorted((start, end) for start in above for end in above[start])
    layout = Layout(arrows, floors)

    loose = [module for module in group if group[module] == GROUND]
    inside = {module: imports[module] & set(loose) for module in loose}
    order = list(TopologicalSorter({name: sorted(inside[name]) for name in sorted(inside)}).static_order())[::-1]
    small = 92.0
    width = max(layout.width + 60, len(order) * (small + 20)) + 2 * MARGIN
    highest = max(floors.values())
    head = 74.0
    top = {name: head + (highest - layout.floors[name]) * FLOOR for name in layout.x}
    ground_y = head + highest * FLOOR - 16
    height = ground_y + 118

    centre = {name: layout.x[name] + MARGIN + 60 for name in layout.x}
    size, font = f'width="{width:.0f}" height="{height:.0f}"', 'font-family="Helvetica, Arial, sans-serif" fill="#222"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" {size} {font}>',
        "<title>Imports between the packages of circuits and tngd</title>",
        "<defs>",
    ]
    for _, line in COLOURS.values():
        lines.append(
            f'<marker id="{line[1:]}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{line}"/></marker>'
        )
    key = "solid: the only way from one to the other; dashed: solid arrows lead there too, by way of other packages"
    lines += [
        "</defs>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        text(MARGIN, 28, "Who imports whom: an arrow leads from the importer to what it imports", 17, "bold", "start"),
        text(MARGIN, 50, key, 13, anchor="start"),
    ]
    for floor in range(1, highest + 1):
        lines.append(text(MARGIN, head + (highest - floor) * FLOOR + 29, f"floor {floor}", 13, anchor="start"))
    followed = {
        (start, end): any(end in reached(above, other) for other in above[start] - {end}) for start, end in arrows
    }
    for start, end in sorted(arrows, key=lambda arrow: not followed[arrow]):
        way = layout.ways[start, end]
        points = [(centre[start], top[start] + BOX[1])]
        for name in way[1:-1]:
            points += [(centre[name], top[name] - 8), (centre[name], top[name] + BOX[1] + 8)]
        points.append((centre[end], top[end]))
        lines.append(path(points, COLOURS[start.split(".")[0]][1], followed[start, end]))
    for name in sorted(above):
        x, y = centre[name] - BOX[0] / 2, top[name]
        lines.append(box(x, y, *BOX, COLOURS[name.split(".")[0]]))
        lines.append(text(centre[name], y + 20, name, 14, "bold"))
        count = "1 file" if files[name] == 1 else f"{files[name]} files"
        lines.append(text(centre[name], y + 38, count, 12))
    users = sum(GROUND in others for others in boxes.values())
    who = "all packages above import it" if users == len(above) else f"{users} of {len(above)} boxes above import it"
    lines.append(box(MARGIN, ground_y, width - 2 * MARGIN, 98, ("#f4f7fa", COLOURS["circuits"][1])))
    title = f"ground of circuits, {files[GROUND]} files: {who}; each file imports only files to its right"
    lines.append(text(MARGIN + 14, ground_y + 24, title, 13, "bold", "start"))
    step = (width - 2 * MARGIN - 28 - small) / max(len(order) - 1, 1)
    for place, module in enumerate(order):
        x = MARGIN + 14 + place * step
        lines.append(box(x, ground_y + 42, small, 36, COLOURS["circuits"]))
        lines.append(text(x + small / 2, ground_y + 65, module.split(".")[1], 13))
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> int:
    """Write the drawing, or print the floors and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="print the floors and write nothing")
    if not parser.parse_args().check:
        DRAWING.write_text(drawing())
        print(f"written: {DRAWING.relative_to(ROOT)}")
        return 0
    try:
        chains = longest_chains()
    except CycleError as error:
        print("expected imports without a circle, got " + " -> ".join(error.args[1]) + "; cut one of them")
        return 1
    for name, chain in chains.items():
        where = "between files" if name == "files" else f"between packages of {name}"
        print(f"{len(chain)} floors {where} (at most {LIMITS[name]}): {' -> '.join(chain)}")
    too_many = any(len(chain) > LIMITS[name] for name, chain in chains.items())
    current = DRAWING.is_file() and DRAWING.read_text() == drawing()
    print("docs/imports.svg is current" if current else "docs/imports.svg is old; type: make graph")
    return int(too_many or not current)


if __name__ == "__main__":
    sys.exit(main())
