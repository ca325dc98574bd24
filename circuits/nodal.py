"""Nodal matrices of one copy, or of many, assembled from the four records without a netlist.

    C dv/dt = -G v - E Γ φ + i_n,   dφ/dt = Eᵀ v - R Γ φ,   <i_n(t) i_n(t')ᵀ> = 2 Q δ(t - t'),   readings = H v,

with v [V] of the nodes, φ [Wb] of the inductors, E the incidence matrix of the inductors, Γ⁻¹ their inductances and R
their winding resistances. Every part is a stamp a aᵀ with a = e_plus - e_minus, so C = B diag(values) Bᵀ over the
capacitors, G and Γ likewise. Two kinds of node are not states and are eliminated exactly: those on which all parts are
capacitors (no charge), and those without a capacitor (zero sum of currents). Thermal noise of the parts themselves is
neglected: at readings of 50 mV it is a few billionths of their variance, some 1e-6 at most with ESR and windings; at
readings of microvolts it would count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import sparse

from circuits.board import Board, Conditions, Copy, Program, ideal_conditions
from circuits.copies import Wiring, gains_of, nominal_copy, part_values, source_ratios, wiring


@dataclass(frozen=True, eq=False)
class Circuit:
    """Matrices of m nodes and l inductors, with any leading batch axes: SI units, readout and coils dimensionless."""

    capacitance: np.ndarray  # (…, m, m), F
    conductance: np.ndarray  # (…, m, m), 1/ohm
    coils: np.ndarray  # (…, m, l), E
    inverse_inductance: np.ndarray  # (…, l, l), Γ, 1/H
    loss: np.ndarray  # (…, l, l), R, ohm
    noise: np.ndarray  # (…, m, m), Q, A² s
    readout: np.ndarray  # (…, n, m), H

    def __getitem__(self, index: int) -> "Circuit":
        """One circuit out of a batch."""
        return Circuit(*(getattr(self, field.name)[index] for field in fields(self)))


def assemble(board: Board, program: Program, copy: Copy, conditions: Conditions) -> Circuit:
    """The circuit of one copy, without batch axes."""
    return assemble_many(board, program, [copy], conditions)[0]


def assemble_many(board: Board, program: Program, copies: Sequence[Copy], conditions: Conditions) -> Circuit:
    """The circuits of several copies, batch axis (copies,)."""
    return assemble_gains(board, program, gains_of(board, copies), conditions)


def assemble_gains(board: Board, program: Program, gains: np.ndarray, conditions: Conditions) -> Circuit:
    """The circuits of copies given as ratios actual/nominal (…, parts + sources), batch axes those of `gains`."""
    wired = wiring(board, program, conditions)
    kinds = np.array([part.kind for part in board.parts])
    values = part_values(board, program, gains, conditions)
    values, ends = _without_floating_nodes(values, wired, kinds, len(board.nodes))
    inverse = np.divide(1, values, out=np.zeros_like(values), where=values != 0)
    capacitive, resistive = ((kinds == kind) & wired.present for kind in "CR")
    C = _total(values, ends, capacitive, len(wired.nodes))
    G = _total(inverse, ends, resistive, len(wired.nodes))
    E = _incidence(ends, (kinds == "L") & wired.present, len(wired.nodes))
    batch = C.shape[:-2]
    full = Circuit(
        C,
        G,
        np.broadcast_to(E, (*batch, *E.shape)),
        _inverse_inductance(board, values, wired, conditions),
        np.zeros((*batch, E.shape[1], E.shape[1])),
        _noise(board, wired, source_power(board, program, gains, conditions)),
        np.broadcast_to(_readout(board, wired.nodes), (*batch, len(board.readings), len(wired.nodes))),
    )
    others = _touched(ends, (kinds != "C") & wired.present, len(wired.nodes))
    return _without_algebraic_nodes(full, _touched(ends, capacitive, len(wired.nodes)), others)


def nominal_circuit(board: Board, program: Program, conditions: Conditions | None = None) -> Circuit:
    """The circuit with every part nominal, by default under ideal_conditions: with static loads, without losses.

    By default G and Γ of a capacitive board, and C of a resistive one, are multiples of I.
    """
    return assemble(board, program, nominal_copy(board), conditions or ideal_conditions(board))


def source_power(
    board: Board, program: Program, gains: np.ndarray | None = None, conditions: Conditions | None = None
) -> np.ndarray:
    """kT g [A² s] of every source, half its two-sided density: (…, sources) for gains (…, parts + sources).

    Without gains the power of the nominal board, (sources,).
    """
    nominal = np.array([program.energy * source.conductance for source in board.sources])
    return nominal if gains is None else nominal * source_ratios(board, gains, conditions or Conditions())


def readout_matrix(board: Board) -> np.ndarray:
    """H, (n, m): readings = H v over the cells' own nodes."""
    return _readout(board, board.nodes)


def is_stable(circuit: Circuit) -> np.ndarray:
    """Whether every mode decays, batch axes of the circuit.

    For a network of reciprocal parts this holds if C is positive definite, and, without inductors, G too.
    """
    stable = np.linalg.eigvalsh(circuit.capacitance)[..., 0] > 0
    if circuit.inverse_inductance.shape[-1]:
        return stable
    return stable & (np.linalg.eigvalsh(circuit.conductance)[..., 0] > 0)


def states(circuit: Circuit) -> int:
    """Nodes and inductors: the size of the state."""
    return sum(circuit.coils.shape[-2:])


def stamp_vectors(board: Board, wired: Wiring) -> np.ndarray:
    """(m, parts): +1 at a part's first node, -1 at its second, 0 at ground and for an absent part."""
    return _incidence(wired.ends, np.ones(len(board.parts), dtype=bool), len(wired.nodes)) * wired.present


def _total(weights: np.ndarray, ends: np.ndarray, chosen: np.ndarray, nodes: int) -> np.ndarray:
    """Σ weight a aᵀ over the chosen parts, (…, m, m)."""
    which = np.flatnonzero(chosen)
    flat = _stamps(ends[which], nodes) @ weights[..., which].reshape(-1, len(which)).T
    return np.ascontiguousarray(flat.T).reshape(*weights.shape[:-1], nodes, nodes)


def _stamps(ends: np.ndarray, nodes: int) -> sparse.csr_array:
    """a aᵀ of parts, flattened, one column a part, (m², parts): at most four entries a column."""
    a, b = ends.T
    rows, columns, signs = [], [], []
    for first, second, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
        there = np.flatnonzero((first >= 0) & (second >= 0))
        rows.append(first[there] * nodes + second[there])
        columns.append(there)
        signs.append(np.full(len(there), sign))
    entries = (np.concatenate(signs), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, (nodes * nodes, len(ends)))


def _incidence(ends: np.ndarray, chosen: np.ndarray, nodes: int) -> np.ndarray:
    which = ends[chosen]
    B = np.zeros((nodes, len(which)))
    for end, sign in zip(which.T, (1, -1), strict=True):
        there = end >= 0
        B[end[there], np.flatnonzero(there)] += sign
    return B


def _touched(ends: np.ndarray, chosen: np.ndarray, nodes: int) -> np.ndarray:
    """Whether a chosen part ends on each node, (m,)."""
    touched = np.zeros(nodes + 1, dtype=bool)
    touched[ends[chosen].ravel()] = True
    return touched[:nodes]


def _noise(board: Board, wired: Wiring, power: np.ndarray) -> np.ndarray:
    """Q, (…, m, m) [A² s], of sources of this power (…, sources)."""
    row = {node: k for k, node in enumerate(wired.nodes)}
    where = np.zeros((len(board.sources), len(wired.nodes)))
    where[np.arange(len(board.sources)), [row[source.node] for source in board.sources]] = 1
    return (power @ where)[..., None] * np.eye(len(wired.nodes))


def _readout(board: Board, nodes: Sequence[str]) -> np.ndarray:
    row = {node: k for k, node in enumerate(nodes)}
    H = np.zeros((len(board.readings), len(nodes)))
    for k, reading in enumerate(board.readings):
        H[k, row[reading.plus]] = 1
        if reading.minus is not None:
            H[k, row[reading.minus]] = -1
    return H


def _inverse_inductance(board: Board, values: np.ndarray, wired: Wiring, conditions: Conditions) -> np.ndarray:
    """Γ, (…, l, l): inverse of the matrix of self and mutual inductances."""
    coils = [k for k, part in enumerate(board.parts) if part.kind == "L" and wired.present[k]]
    if not board.mutuals:
        return np.eye(len(coils)) / values[..., coils, None]
    L = values[..., coils, None] * np.eye(len(coils))
    number = {board.parts[k].name: row for row, k in enumerate(coils)}
    for mutual in board.mutuals:
        if mutual.cause not in conditions.off:
            a, b = (number[name] for name in mutual.inductors)
            L[..., a, b] = L[..., b, a] = mutual.coefficient * np.sqrt(L[..., a, a] * L[..., b, b])
    return np.linalg.inv(L)


def _without_floating_nodes(
    values: np.ndarray, wired: Wiring, kinds: np.ndarray, own: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values and ends without the inner nodes on which all parts are capacitors: an open bit c, its pad p to ground.

    They act as c p/(c + p) from the bit's other node to ground; without a pad the open bit has no effect.
    """
    ends, values = wired.ends.copy(), values.copy()
    present = wired.present
    floating = ~_touched(ends, present & (kinds != "C"), len(wired.nodes))
    floating[:own] = False
    at: dict[int, list[int]] = {}
    for part in np.flatnonzero(present & (floating[ends] & (ends >= 0)).any(axis=1)):
        for node in ends[part]:
            if node >= 0 and floating[node]:
                at.setdefault(int(node), []).append(int(part))
    for node, parts in at.items():
        pads = [part for part in parts if -1 in ends[part]]
        (bit,) = (part for part in parts if part not in pads)
        pad = values[..., pads].sum(axis=-1)
        values[..., bit] = values[..., bit] * pad / (values[..., bit] + pad)
        ends[pads] = -1
        ends[bit] = [-1 if end == node else end for end in ends[bit]]
    return values, ends


def _without_algebraic_nodes(full: Circuit, capacitive: np.ndarray, other: np.ndarray) -> Circuit:
    """The circuit of the nodes that capacitors touch: currents into the others (resistors, coils) add up to zero."""
    keep, drop = np.flatnonzero(capacitive), np.flatnonzero(~capacitive & other)
    if len(keep) == len(capacitive):
        return full
    G, E = full.conductance, full.coils
    into = np.concatenate([G[..., drop, :][..., keep], E[..., drop, :]], axis=-1)
    reach = np.linalg.solve(G[..., drop, :][..., drop], into)
    to_nodes, to_coils = reach[..., : len(keep)], reach[..., len(keep) :]
    across = G[..., keep, :][..., drop]
    return Circuit(
        full.capacitance[..., keep, :][..., keep],
        G[..., keep, :][..., keep] - across @ to_nodes,
        E[..., keep, :] - across @ to_coils,
        full.inverse_inductance,
        np.swapaxes(E[..., drop, :], -1, -2) @ to_coils,
        full.noise[..., keep, :][..., keep],
        full.readout[..., keep],
    )


def noise_amplitude(board: Board, program: Program, source: str) -> float:
    """σ = sqrt(2 kT g / h) of a held noise current [A], g the conductance of the nominal source."""
    conductance = next(entry.conductance for entry in board.sources if entry.name == source)
    return float(np.sqrt(2 * program.energy * conductance / program.period))


def lag_of(board: Board, program: Program) -> int:
    """Lag, in samples, for the test of detailed balance: a quarter period, or the time constant, of a unit cell."""
    quarter = np.pi / 2 if any(part.kind == "L" for part in board.parts) else 1.0
    return max(1, round(quarter / unit_rate(board) / program.period))


def unit_rate(board: Board) -> float:
    """Resonance 1/sqrt(L c₀), or on a resistive board the corner g₀/c, of a unit cell [rad/s]."""
    inductance = next((part.nominal for part in board.parts if part.kind == "L"), None)
    return float(1 / np.sqrt(inductance * board.unit) if inductance else board.unit / board.capacitance)
