"""Reads parts as JSON on standard input and prints a KiCad netlist made by skidl. A program, not for import.

skidl writes log files where it is imported, warns about symbol libraries it does not need here, and keeps global
state; so it gets a process and a folder of its own (see circuits.pcb).

Input: {"title": text, "parts": [{"ref", "kind", "value", "footprint", "nodes": [a, b]}, …]}.
"""

import json
import re
import sys

import skidl


def main() -> None:
    """Write the netlist of standard input to standard output."""
    request = json.load(sys.stdin)
    circuit = skidl.Circuit()
    circuit.no_files, circuit.track_src = True, False
    templates: dict[str, skidl.Part] = {}
    nets: dict[str, skidl.Net] = {}
    for part in request["parts"]:
        kind = part["kind"]
        if kind not in templates:
            templates[kind] = _template(kind)
        placed = templates[kind](
            ref=part["ref"], value=part["value"], footprint=part["footprint"], tag=part["ref"], circuit=circuit
        )
        for pin, node in enumerate(part["nodes"], start=1):
            if node not in nets:
                nets[node] = skidl.Net(node, circuit=circuit)
            placed[pin] += nets[node]
    text = str(circuit.generate_netlist(tool="kicad9"))
    text = re.sub(r'\(date "[^"]*"\)', '(date "")', text)  # the same board gives the same bytes
    sys.stdout.write(re.sub(r'\(source "[^"]*"\)', lambda _: f'(source "{request["title"]}")', text))


def _template(kind: str) -> skidl.Part:
    pins = [skidl.Pin(num=str(k), name=str(k), func=skidl.Pin.types.PASSIVE) for k in (1, 2)]
    return skidl.Part(name=kind, ref_prefix=kind, dest=skidl.TEMPLATE, tool=skidl.SKIDL, tag=kind, pins=pins)


if __name__ == "__main__":
    main()
