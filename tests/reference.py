"""Slow, literal twins of what the package does fast. They share no code with it."""

import re

import numpy as np
from scipy.linalg import expm

SUFFIX = re.compile(r"^[-+0-9.eE]+$")


def read_deck(text: str) -> dict:
    """Brute nodal analysis of a deck: expand subcircuits, stamp every element one by one.

    Returns nodes (list), C, G, K (inverse inductance, mutual ones left out), sources {node: (hold, sigma)}, inputs
    {name: node}, inductors {name: (node, node, value)}, mutuals [(inductor, inductor, coefficient)].
    """
    subcircuits, lines, current = {}, [], None
    for line in text.splitlines():
        words = line.split(" ; ")[0].split()
        if not words or line.startswith("*"):
            continue
        if words[0] == ".subckt":
            pins = [word for word in words[2:] if "=" not in word]
            current = (words[1], pins, [])
        elif words[0] == ".ends":
            subcircuits[current[0]] = current[1:]
            current = None
        elif current:
            current[2].append(words)
        else:
            lines.append(words)
    elements, sources, inputs, inductors, mutuals = [], {}, {}, {}, []
    for words in lines:
        if words[0].startswith("X"):
            given = dict(word.split("=") for word in words if "=" in word)
            plain = [word for word in words[1:] if "=" not in word]
            pins, inside = subcircuits[plain[-1]]
            rename = dict(zip(pins, plain[:-1], strict=True))
            for name, a, b, value in inside:
                ends = [rename.get(node, f"{words[0]}.{node}") for node in (a, b)]
                elements.append((name[0], *ends, float(given[value.strip("{}")])))
                if name[0] == "L":
                    inductors[f"{name} of {words[0]}"] = elements[-1][1:]
        elif words[0][0] in "RLC":
            elements.append((words[0][0], words[1], words[2], float(words[3])))
            if words[0][0] == "L":
                inductors[words[0]] = elements[-1][1:]
        elif words[0][0] == "K":
            mutuals.append((words[1], words[2], float(words[3])))
        elif words[0].startswith("IB"):
            assert words[1:] == ["0", words[2], "dc", "0"]
            inputs[words[0]] = words[2]
        elif words[0].startswith("I"):
            kind, hold, delay, sigma, mean = re.search(r"trrandom\((.*)\)", " ".join(words)).group(1).split()
            assert (kind, delay, mean) == ("2", "0", "0")
            assert words[1] == "0"
            sources[words[2]] = (float(hold), float(sigma))
    nodes = []
    for _, a, b, _ in elements:
        nodes += [node for node in (a, b) if node != "0" and node not in nodes]
    matrices = {kind: np.zeros((len(nodes), len(nodes))) for kind in "CRL"}
    for kind, a, b, value in elements:
        weight = value if kind == "C" else 1 / value
        for x, y, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            if "0" not in (x, y):
                matrices[kind][nodes.index(x), nodes.index(y)] += sign * weight
    found = {"nodes": nodes, "C": matrices["C"], "G": matrices["R"], "K": matrices["L"], "sources": sources}
    return found | {"inputs": inputs, "inductors": inductors, "mutuals": mutuals}


def deck_inductors(read: dict) -> tuple[np.ndarray, np.ndarray]:
    """Inductances (l, l) of a deck, mutual ones too, and where they are connected (nodes, l)."""
    names, nodes = list(read["inductors"]), read["nodes"]
    L = np.diag([read["inductors"][name][2] for name in names])
    for a, b, k in read["mutuals"]:
        i, j = names.index(a), names.index(b)
        L[i, j] = L[j, i] = k * np.sqrt(L[i, i] * L[j, j])
    E = np.zeros((len(nodes), len(names)))
    for column, name in enumerate(names):
        for node, sign in zip(read["inductors"][name][:2], (1, -1), strict=True):
            if node != "0":
                E[nodes.index(node), column] += sign
    return L, E


def deck_impedance(read: dict, frequency: float) -> np.ndarray:
    """Voltages of all nodes of a deck (nodes, nodes) for a unit current into each, by its full nodal equations."""
    s = 2j * np.pi * frequency
    L, E = deck_inductors(read)
    return np.linalg.inv(read["G"] + s * read["C"] + E @ np.linalg.inv(s * L) @ E.T)


def kronecker_lyapunov(A: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Solve A S + S Aᵀ = D as one linear system of n² unknowns."""
    n = len(A)
    eye = np.eye(n)
    return np.linalg.solve(np.kron(A, eye) + np.kron(eye, A), D.reshape(-1)).reshape(n, n)


def euler_maruyama(A: np.ndarray, D: np.ndarray, dt: float, steps: int, seed: int, skip: int) -> np.ndarray:
    """Sample covariance of dx = -A x dt + N(0, D dt) from one Euler-Maruyama path, step by step."""
    rng = np.random.default_rng(seed)
    root = np.linalg.svd(D)
    factor = root[0] * np.sqrt(root[1])
    x, total = np.zeros(len(A)), np.zeros_like(A)
    for k in range(skip + steps):
        x = x - dt * A @ x + np.sqrt(dt) * factor @ rng.normal(size=len(A))
        if k >= skip:
            total += np.outer(x, x)
    return total / steps


def euler_covariance(A: np.ndarray, D: np.ndarray, dt: float) -> np.ndarray:
    """The exact stationary covariance of the Euler-Maruyama scheme: S = F S Fᵀ + D dt, F = I - A dt."""
    n = len(A)
    F = np.eye(n) - dt * A
    return np.linalg.solve(np.eye(n * n) - np.kron(F, F), (D * dt).reshape(-1)).reshape(n, n)


def estimate_covariance(rho: np.ndarray, samples: int) -> np.ndarray:
    """Cov of all entries of a sample covariance (n, n, n, n) by the literal double sum over times."""
    n = rho.shape[1]
    total = np.zeros((n, n, n, n))

    def lag(k: int) -> np.ndarray:
        if abs(k) >= len(rho):
            return np.zeros((n, n))
        return rho[k] if k >= 0 else rho[-k].T

    for s in range(samples):
        for t in range(samples):
            r = lag(s - t)
            total += np.einsum("ik,jl->ijkl", r, r) + np.einsum("il,jk->ijkl", r, r)
    return total / samples**2


def softmax_ggn(jacobians: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Dense mean over samples of Jᵀ (diag p - p pᵀ) J, jacobians (b, d, N), logits (b, d)."""
    total = np.zeros((jacobians.shape[2], jacobians.shape[2]))
    for J, z in zip(jacobians, logits, strict=True):
        p = np.exp(z - z.max())
        p /= p.sum()
        total += J.T @ (np.diag(p) - np.outer(p, p)) @ J
    return total / len(jacobians)


def block_natural_gradient(curvature: np.ndarray, gradient: np.ndarray, size: int, damping: float) -> np.ndarray:
    """Solve every diagonal block of curvature + damping I on its own."""
    step = np.zeros_like(gradient)
    for start in range(0, len(gradient), size):
        part = slice(start, min(start + size, len(gradient)))
        block = curvature[part, part]
        step[part] = np.linalg.solve(block + damping * np.eye(len(block)), gradient[part])
    return step


def read_kicad(text: str) -> tuple[dict[str, tuple[str, str]], dict[str, set[tuple[str, str]]]]:
    """Parts {ref: (value, footprint)} and nets {name: {(ref, pin)}} of a KiCad netlist, by a parser of our own."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()"]+', text)

    def tree(position: int) -> tuple[list, int]:
        items = []
        while tokens[position] != ")":
            if tokens[position] == "(":
                item, position = tree(position + 1)
            else:
                item, position = tokens[position].strip('"'), position + 1
            items.append(item)
        return items, position + 1

    def found(items: list, name: str) -> list[list]:
        return [item for item in items if isinstance(item, list) and item and item[0] == name]

    def word(items: list, name: str) -> str:
        return (found(items, name)[0] + [""])[1]

    export, _ = tree(1)
    parts = {
        word(part, "ref"): (word(part, "value"), word(part, "footprint"))
        for part in found(found(export, "components")[0], "comp")
    }
    nets = {
        word(net, "name"): {(word(node, "ref"), word(node, "pin")) for node in found(net, "node")}
        for net in found(found(export, "nets")[0], "net")
    }
    return parts, nets


def dense_device_state(A: np.ndarray, g: np.ndarray, start: np.ndarray, time: float) -> np.ndarray:
    """Mean of dx = -(A x - g) dt after `time`: one exponential of the affine system's block matrix."""
    if np.isinf(time):
        return np.linalg.solve(A, g)
    n = len(g)
    block = np.zeros((n + 1, n + 1))
    block[:n, :n], block[:n, n] = -A * time, g * time
    return (expm(block) @ np.append(start, 1.0))[:n]
