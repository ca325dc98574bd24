"""Reads parts as JSON on standard input and prints a KiCad netlist made by skidl. A program, not for import.

skidl writes log files where it is imported, warns about symbol libraries it does not need here, and keeps global
state; so it gets a process and a folder of its own (see circuits.netlist.kicad).

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
    """Write the netlist of standard input to standard output."""
    gc.disable()  # what is made here lives to the end; looking for garbage among it would take a tenth of the time
    _spare_skidl()
    request = json.load(sys.stdin)
    circuit = skidl.Circuit()
    circuit.no_files, circuit.track_src = True, False
    for node, pins in _placed(request["parts"], circuit).items():
        skidl.Net(node, circuit, *pins)  # all pins at once: skidl traverses the net after each connection
    text = str(circuit.generate_netlist(tool="kicad9"))
    text = re.sub(r'\(date "[^"]*"\)', '(date "")', text)  # the same board gives the same bytes
    sys.stdout.write(re.sub(r'\(source "[^"]*"\)', lambda _: f'(source "{request["title"]}")', text))


def _placed(parts: list[dict], circuit: skidl.Circuit) -> dict[str, list[skidl.Pin]]:
    """Puts the parts into the circuit; the pins at each node."""
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
    pins = [skidl.Pin(num=str(k), name=str(k), func=skidl.Pin.types.PASSIVE) for k in (1, 2)]
    return skidl.Part(name=kind, ref_prefix=kind, dest=skidl.TEMPLATE, tool=skidl.SKIDL, tag=kind, pins=pins)


def _spare_skidl() -> None:
    """Replaces two inner functions of skidl that take most of its time on a large board; no option turns them off.

    For each part and net skidl reads the source line of every call on the stack, which goes into the netlist with
    track_src only. And its S-expressions lay out the text of every bracket anew, character by character, at each
    bracket around it.
    """
    skidl.circuit.get_skidl_trace = list  # no calls
    Sexp.to_str = _laid_out


def _laid_out(expression: Sexp, level: int = 1) -> str:
    """The text of an S-expression as Sexp.to_str lays it out: each bracket within it on a line of its own."""
    start = "\n" + "  " * level
    words = [
        start + _laid_out(item, level + 1) if isinstance(item, list) else " " + str(item).replace("\n", "")
        for item in expression
    ]
    return f"({''.join(words).removeprefix(' ')})"


if __name__ == "__main__":
    main()
