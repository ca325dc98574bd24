"""Program, not for import: reads parts as JSON on standard input and prints a KiCad netlist made by skidl.

skidl writes log files where it is imported, warns about symbol libraries that are not needed here, and keeps global
state; so it runs in a process and a folder of its own (see circuits.netlist.kicad).

Input: {"title": text, "parts": [{"ref", "kind", "value", "footprint", "nodes": [a, b]}, …]}.
"""

import gc
import json
import re
import sys

# skidl does without InSpice where that is not installed; it needs it for simulations only, and importing it brings in
# all of matplotlib, which takes longer than writing the netlist of a small board. None makes the import fail.
sys.modules["InSpice"] = None

import skidl  # noqa: E402
import skidl.circuit  # noqa: E402
from simp_sexp import Sexp  # noqa: E402


def main() -> None:
    """Print the netlist of the parts on standard input."""
    gc.disable()  # all objects live to the end of the program; collecting garbage would take a tenth of the time
    _speed_up_skidl()
    given = json.load(sys.stdin)
    circuit = skidl.Circuit()
    circuit.no_files, circuit.track_src = True, False
    for node, pins in _placed(given["parts"], circuit).items():
        skidl.Net(node, circuit, *pins)  # all pins at once: skidl traverses the net after each connection
    text = str(circuit.generate_netlist(tool="kicad9"))
    text = re.sub(r'\(date "[^"]*"\)', '(date "")', text)  # the same board gives the same bytes
    sys.stdout.write(re.sub(r'\(source "[^"]*"\)', lambda _: f'(source "{given["title"]}")', text))


def _placed(parts: list[dict], circuit: skidl.Circuit) -> dict[str, list[skidl.Pin]]:
    """Put the parts into the circuit; return the pins at each node."""
    templates: dict[str, skidl.Part] = {}
    nodes: dict[str, list[skidl.Pin]] = {}
    for part in parts:
        kind = part["kind"]
        if kind not in templates:
            templates[kind] = _template(kind)
        placed = templates[kind](
            ref=part["ref"], value=part["value"], footprint=part["footprint"], tag=part["ref"], circuit=circuit
        )
        for pin, node in zip(placed.pins, part["nodes"], strict=True):
            nodes.setdefault(node, []).append(pin)
    return nodes


def _template(kind: str) -> skidl.Part:
    """Part of two passive pins, from which all parts of a kind are made."""
    pins = [skidl.Pin(num=str(k), name=str(k), func=skidl.Pin.types.PASSIVE) for k in (1, 2)]
    return skidl.Part(name=kind, ref_prefix=kind, dest=skidl.TEMPLATE, tool=skidl.SKIDL, tag=kind, pins=pins)


def _speed_up_skidl() -> None:
    """Replace two inner functions of skidl that take most of the time on a large board and that no option turns off.

    For each part and net skidl reads the source line of every call on the stack, although the lines enter the netlist
    only with track_src. And the text of a bracket of an S-expression is laid out again, character by character, for
    every bracket around it.
    """
    skidl.circuit.get_skidl_trace = list  # no calls
    Sexp.to_str = _laid_out


def _laid_out(expression: Sexp, level: int = 1) -> str:
    """Text of an S-expression as laid out by Sexp.to_str: each inner bracket on a line of its own."""
    start = "\n" + "  " * level
    words = [
        start + _laid_out(item, level + 1) if isinstance(item, list) else " " + str(item).replace("\n", "")
        for item in expression
    ]
    return f"({''.join(words).removeprefix(' ')})"


if __name__ == "__main__":
    main()
