"""The circuit of a copy whose matched pairs are equal: one branch a pair, one node a cell.

On differential cells only x = v_p - v_n counts. With v_p = (c + x)/2, v_n = (c - x)/2 a pair of parts of admittances
y (1 ± δ) is y on x, y on c, and y δ between them: equal pairs leave x alone, mismatch acts in second order. Inner
nodes (behind a switch, behind an ESR) touch cells and ground only.

A parameter is the relative value of a pair (or single part); a cell's is its temperature t, and the power p of its
sources where that has a tolerance: its resistor is then t/p of its nominal value. Parts without tolerance have none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import sparse

from circuits.board import GROUND, Board, Conditions, Part, Program
from circuits.copies import part_values
from circuits.nodal import Circuit


@dataclass(frozen=True, eq=False)
class PairModel:
    """A board as pairs of parts: `pairs` are tuples of part numbers, and ln(admittance) = exponents @ ln θ + constant.

    `names` (parameters,) and `spreads` (parameters,), standard deviations before any data. `exponents`
    (pairs, parameters) are of impedances for coils and windings; `powers` (cells, parameters) of noise powers.
    """

    board: Board
    pairs: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    spreads: np.ndarray
    exponents: np.ndarray
    powers: np.ndarray

    @property
    def prior(self) -> dict[str, float]:
        """Standard deviation of every parameter before any data, by name."""
        return dict(zip(self.names, self.spreads.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Half:
    """Branches b, coils l and inner nodes i of one program; `stamps` act on the mode x, `common` on the mode c.

    Admittance of a branch `weights` · (s or 1); `inner` (i, b) is ±1 where a branch ends on an inner node.
    """

    pairs: np.ndarray  # (b,), which pair of the model
    coil_pairs: np.ndarray  # (l,)
    stamps: np.ndarray  # (b, n)
    common: np.ndarray  # (b, n)
    inner: sparse.csr_array  # (i, b)
    weights: np.ndarray  # (b,), F or S
    capacitive: np.ndarray  # (b,), bool
    series: np.ndarray  # (b,), bool: switches
    exponents: np.ndarray  # (b, parameters)
    coils: np.ndarray  # (n, l)
    inductance: np.ndarray  # (l,), H
    coupling: np.ndarray  # (l, l), coupling factors, 1 on the diagonal
    winding: np.ndarray  # (l,), ohm
    coil_exponents: np.ndarray  # (l, parameters)
    winding_exponents: np.ndarray  # (l, parameters)
    winding_pairs: np.ndarray  # (l,), 0 where there is no winding
    power: np.ndarray  # (n,), A² s
    power_exponents: np.ndarray  # (n, parameters)


@lru_cache(maxsize=8)
def pair_model(board: Board) -> PairModel:
    """Return the pair model of a board, with all its parameters; made once for each board."""
    pairs = tuple(_pairs(board))
    first = [board.parts[members[0]] for members in pairs]
    rough = any(source.tolerance for source in board.sources)
    named = [(_name(board, part), _spread(board, part, len(m))) for part, m in zip(first, pairs, strict=True)]
    cells = range(len(board.cells))
    if rough:
        per_cell = board.nodes_per_cell
        named += [(f"power_{i + 1}", board.sources[i * per_cell].tolerance / np.sqrt(3 * per_cell)) for i in cells]
    known = [k for k, (_, spread) in enumerate(named) if spread > 0]
    column = {k: c for c, k in enumerate(known)}
    widened = dict(enumerate(spread for _, spread in named))
    exponents, powers = np.zeros((len(pairs), len(known))), np.zeros((len(cells), len(known)))
    for k, part in enumerate(first):
        if k in column:
            exponents[k, column[k]] = 1 if part.kind in "CL" or part.cause == "winding" else -1
    for i in cells if rough else ():
        c = column[len(pairs) + i]
        powers[i, c] = 1
        if board.coupling == "capacitive":
            own = _resistor(board, first, i)
            exponents[own, c] = 1
            widened[own] = np.hypot(named[own][1], named[len(pairs) + i][1])  # t = p r
    names = tuple(named[k][0] for k in known)
    return PairModel(board, pairs, names, np.array([widened[k] for k in known]), exponents, powers)


def half_of(model: PairModel, program: Program) -> Half:
    """The branches that a program populates or closes, at nominal values."""
    board = model.board
    values = part_values(board, program, np.ones(len(board.parts) + len(board.sources)), Conditions())
    there = [k for k, members in enumerate(model.pairs) if values[members[0]] != 0]
    first = {k: board.parts[model.pairs[k][0]] for k in there}
    coils = [k for k in there if first[k].kind == "L"]
    windings = {first[k].nodes[0]: k for k in there if first[k].cause == "winding"}
    branches = [k for k in there if first[k].kind != "L" and first[k].cause != "winding"]
    inner = sorted({node for k in branches for node in first[k].nodes} - {*board.nodes, GROUND})
    ends = [_ends(board, first[k], inner) for k in branches]
    per_cell = board.nodes_per_cell
    scale = np.array([len(model.pairs[k]) / per_cell for k in branches])
    value = np.array([values[model.pairs[k][0]] for k in branches])
    capacitive = np.array([first[k].kind == "C" for k in branches])
    behind = [windings.get(first[k].nodes[1]) for k in coils]
    inductances = np.array([values[model.pairs[k][0]] for k in coils])
    blank = np.zeros(len(model.names))
    return Half(
        np.array(branches, dtype=int),
        np.array(coils, dtype=int),
        np.array([end[0] for end in ends]),
        np.array([end[1] for end in ends]),
        sparse.csr_array(np.array([end[2] for end in ends]).reshape(len(branches), len(inner)).T),
        scale * np.where(capacitive, value, 1 / value),
        capacitive,
        np.array([bool(first[k].wire) for k in branches]),
        model.exponents[branches],
        np.array([_ends(board, first[k], [first[k].nodes[1]])[0] for k in coils]).reshape(-1, len(board.cells)).T,
        inductances,
        _coupling(board, [first[k] for k in coils]),
        np.array([0.0 if k is None else values[model.pairs[k][0]] for k in behind]),
        model.exponents[coils],
        np.array([blank if k is None else model.exponents[k] for k in behind]).reshape(len(coils), len(blank)),
        np.array([0 if k is None else k for k in behind], dtype=int),
        np.array([per_cell * program.energy * source.conductance for source in board.sources[::per_cell]]),
        model.powers,
    )


def half_circuit(half: Half, theta: np.ndarray) -> Circuit:
    """Return a program's circuit as matrices (m, m) of the cells' x and the inner nodes that hold a state."""
    y = half.weights * part_gains(half.exponents, theta)
    n = half.stamps.shape[1]
    inner = half.inner.toarray()
    kinds = [set(half.capacitive[row != 0].tolist()) for row in inner]
    state = np.array([len(kind) == 2 for kind in kinds], dtype=bool)
    # Capacitors alone, or resistors alone, at an inner node act as one real star.
    total = np.abs(inner) @ y
    z = -np.divide((inner * y) @ half.stamps, total[:, None], out=np.zeros((len(inner), n)), where=total[:, None] != 0)
    stamps = half.stamps + (inner * ~state[:, None]).T @ z
    stamps = np.concatenate([stamps, inner[state].T], axis=1)
    C, G = ((stamps[which].T * y[which]) @ stamps[which] for which in (half.capacitive, ~half.capacitive))
    m, coils = stamps.shape[1], half.coils.shape[1]
    E, Q = np.zeros((m, coils)), np.zeros((m, m))
    E[:n] = half.coils
    Q[range(n), range(n)] = noise_power(half, theta)
    gamma = np.linalg.inv(inductance_matrix(half, theta)) if coils else np.zeros((0, 0))
    return Circuit(C, G, E, gamma, np.diag(half.winding * part_gains(half.winding_exponents, theta)), Q, np.eye(n, m))


def part_gains(exponents: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Relative admittances, impedances or powers at θ."""
    return np.exp(exponents @ np.log(theta))


def noise_power(half: Half, theta: np.ndarray) -> np.ndarray:
    """Q of every cell, (n,) [A² s]."""
    return half.power * part_gains(half.power_exponents, theta)


def inductance_matrix(half: Half, theta: np.ndarray) -> np.ndarray:
    """Return the inductance matrix with mutual inductances, (l, l) [H]."""
    root = np.sqrt(half.inductance * part_gains(half.coil_exponents, theta))
    return root[:, None] * half.coupling * root


def _pairs(board: Board) -> Iterator[tuple[int, ...]]:
    """Part numbers that belong together: p and n of the same thing, or one alone."""
    number = {part.name: k for k, part in enumerate(board.parts)}
    for k, part in enumerate(board.parts):
        other = k
        if board.nodes_per_cell == 2:
            swapped = re.sub(r"[pn](?=\d)", lambda pole: "pn"[pole.group() == "p"], part.name)
            other = number.get(swapped, k)
        if other >= k:
            yield (k,) if other == k else (k, other)


def _resistor(board: Board, first: list[Part], cell: int) -> int:
    """Return the pair that damps a cell."""
    nodes = board.cells[cell].nodes
    return next(k for k, part in enumerate(first) if part.role == "damping" and part.nodes[0] in nodes)


def _loads(board: Board, node: str) -> list[Part]:
    """Pads that stay on a node whatever the switches do: no data can tell them from the capacitor there."""
    return [part for part in board.parts if part.role == "pad" and part.nodes[0] == node]


def _spread(board: Board, part: Part, members: int) -> float:
    """Standard deviation of a pair's relative value; a capacitor to ground stands for the pads beside it too."""
    if part.role == "pad" and part.nodes[0] in board.nodes:
        return 0.0
    square = part.tolerance**2
    if part.kind == "C" and part.role in ("ground", "storage") and part.nominal:
        square += sum((pad.tolerance * pad.nominal / part.nominal) ** 2 for pad in _loads(board, part.nodes[0]))
    return float(np.sqrt(square / (3 * members)))


def _name(board: Board, part: Part) -> str:
    """A parameter's name: the element, the bit of a bank, or what it is of which cell."""
    if part.element:
        return part.element
    cell = next((i for i, cell in enumerate(board.cells, start=1) if part.nodes[0] in cell.nodes), None)
    plain = {"damping": "temperature", "resonance": "inductance", "ground": "ground", "storage": "storage"}
    if part.role in plain:
        return f"{plain[part.role]}_{cell}"
    if part.role in ("bit", "switch", "pad"):
        short = re.fullmatch(r"\D\D(\d+_\d+)[a-z]+(\d+)(?:b(\d+)([sx])?)?", part.name)
        pair, near, number, way = short.groups()
        what = part.role + {"s": "_straight", "x": "_crossed", None: ""}[way]
        return f"bank_{pair}_{what}_{number}" if number else f"bank_{pair}_pads_{near}"
    return f"{part.role.replace(' ', '_')}_{part.name}"


def _ends(board: Board, part: Part, inner: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stamps on x and on c of the cells, and on the inner nodes."""
    x, c, z = np.zeros(len(board.cells)), np.zeros(len(board.cells)), np.zeros(len(inner))
    place = {node: (i, 1 - 2 * pole) for i, cell in enumerate(board.cells) for pole, node in enumerate(cell.nodes)}
    for node, sign in zip(part.nodes, (1, -1), strict=True):
        if node in place:
            i, pole = place[node]
            x[i] += sign * pole
            c[i] += sign
        elif node != GROUND:
            z[inner.index(node)] = sign
    return x, c, z


def _coupling(board: Board, coils: list[Part]) -> np.ndarray:
    number = {part.name: k for k, part in enumerate(coils)}
    K = np.eye(len(coils))
    for mutual in board.mutuals:
        if all(name in number for name in mutual.inductors):
            a, b = (number[name] for name in mutual.inductors)
            K[a, b] = K[b, a] = mutual.coefficient
    return K
