"""Measurements and devices without ngspice: the full circuit of each copy, or nothing but a tolerance."""

import numpy as np
from scipy.linalg import expm

from circuits import Conditions, assemble, reading_covariance, spectrum
from circuits.copies import specimens
from circuits.model import Device, Estimate, ideal_device
from circuits.model.device import copy_of
from circuits.model.pairs import pair_model
from circuits.ou import drift, stationary_covariance
from circuits.simulation import Run
from circuits.simulation.ac import ExactRun
from circuits.simulation.measurement import spectral_frequencies
from circuits.statistics import Moments, estimate_law
from circuits.statistics.moments import BLOCK, CHUNK
from circuits.synthesis import build_board


def measured_exactly(made) -> dict[str, Run]:
    frequencies = spectral_frequencies(made)
    runs = {}
    for copy in specimens(made):
        circuit = assemble(made.board, made.program, copy, Conditions())
        covariance = reading_covariance(circuit)
        runs[copy.name] = Run(ExactRun(covariance, 0.0, frequencies, spectrum(circuit, frequencies)), None)
    return runs


def measured_by_sampling(made, samples: int, seed: int) -> dict[str, Run]:
    """One block mean drawn from the law of the estimate, repeated so that its mean is that estimate."""
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(len(made.board.cells))
    runs = {}
    for copy in specimens(made):
        law = estimate_law(assemble(made.board, made.program, copy, Conditions()), made.program.period, samples, CHUNK)
        S = law.mean.copy()
        S[i, j] += np.linalg.cholesky(law.covariance) @ rng.normal(size=len(i))
        S[j, i] = S[i, j]
        runs[copy.name] = Run(
            None, Moments(np.full(samples // BLOCK, BLOCK), np.repeat(S[None], samples // BLOCK, axis=0))
        )
    return runs


def rough_device(tolerance: float, copies: int = 2) -> Device:
    """A device whose estimates are nothing but a prior of this tolerance."""
    board = build_board(8, "differential")
    prior = Estimate(1.0, tolerance / np.sqrt(3), False)
    device = ideal_device(board, copies)
    rough = tuple(
        type(copy)(copy.name, dict.fromkeys(copy.gains, prior), (prior,) * 8, copy.inductances)
        for copy in device.copies
    )
    return Device(board, rough, {})


def truth(model, copy) -> np.ndarray:
    """What the parameters of a copy are: its parts averaged within pairs."""
    board, found = model.board, np.ones(len(model.names))
    gain = [copy.gains[part.name] for part in board.parts]
    power = {}
    for i, cell in enumerate(board.cells, start=1):
        power[i] = np.mean([copy.gains[source.name] for source in board.sources if source.node in cell.nodes])
    for c, name in enumerate(model.names):
        members = [m for m, row in zip(model.pairs, model.exponents, strict=True) if row[c]]
        part = board.parts[members[0][0]] if members else None
        cell = int(name.split("_")[1]) if name.split("_")[1].isdigit() else 0
        if name.startswith("power"):
            found[c] = power[cell]
        elif part.kind == "C" or part.role == "switch":
            found[c] = np.mean([gain[m] for m in members[0]])
        else:
            found[c] = 1 / np.mean([1 / gain[m] for m in members[0]])
            if name.startswith("temperature"):
                found[c] *= power[cell]
        if part is not None and part.role in ("ground", "storage") and part.kind == "C":
            ends = [board.parts[m].nodes[0] for m in members[0]]  # the pads that stay beside it are in it
            pads = [[p for p in board.parts if p.role == "pad" and p.nodes[0] == node] for node in ends]
            off = [sum(p.nominal * (copy.gains[p.name] - 1) for p in own) for own in pads]
            found[c] += np.mean(off) / part.nominal
    return found


def known_device(made) -> Device:
    """The device that calibration would make of these copies if it made no error."""
    model = pair_model(made.board)
    small = np.diag((1e-3 * model.spreads) ** 2)
    copies = (copy_of(made.board, copy.name, model.prior, truth(model, copy), small) for copy in made.copies)
    return Device(made.board, tuple(copies), {})


def write_record(path, made, copies, readings: int, period: float, seed: int) -> None:
    """Voltages of the copies' own circuits under white noise, step by step from their exact transition."""
    rng = np.random.default_rng(seed)
    cells = [cell.name for cell in made.board.cells]
    lines = ["copy,time_s," + ",".join(f"{cell}_mV" for cell in cells)]
    for copy in copies:
        circuit = assemble(made.board, made.program, copy, Conditions())
        F, S = expm(-drift(circuit) * period), stationary_covariance(circuit)
        noise = S - F @ S @ F.T
        values, U = np.linalg.eigh((noise + noise.T) / 2)
        root = U * np.sqrt(values.clip(0))
        x = np.linalg.cholesky(S + 1e-12 * np.diag(np.diag(S))) @ rng.normal(size=len(S))
        for k in range(readings):
            y = 1e3 * circuit.readout @ x[: circuit.readout.shape[1]]
            lines.append(f"{copy.name},{k * period!r}," + ",".join(map(repr, y.tolist())))
            x = F @ x + root @ rng.normal(size=len(x))
    path.write_text("\n".join(lines) + "\n")
