"""How fast tiles are programmed on calibrated copies and solved, on one thread: 4,096 tiles of 8 x 8.

Targets as preconditioned programming leaves them (random symmetric matrices near I, median condition number 1.7), on
three copies with parts of ±1 %. Capacitive boards at infinite time, with the covariance of unequal temperatures; the
same by the eigenvectors of every tile, and with 5 % of the tiles too ill-conditioned for a series; resistive boards at
infinite time, after 5 and 50 time constants; banks of 6 bits; all three copies averaged. Prints a JSON object for each
with medians of wall and processor time in ms, the ratio of the goal to the latter, and how far the answers are from
those by eigenvectors.

Run: `OMP_NUM_THREADS=1 python benchmarks/tiles.py`, ten seconds; `--repeats 3` for a look.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from math import inf

import numpy as np
import torch
from process import against, timed
from torch import Tensor

from circuits.model.device import Device, ideal_device
from circuits.model.fitted_copy import Estimate
from circuits.synthesis.options import BoardOptions
from circuits.synthesis.topology import build_board
from tngd.device.small_matrices import slices
from tngd.device.tile_solve import ReadAt, tile_answers
from tngd.device.tiles import TileBoard, hold_tiles, invert_tiles, tile_board

TILES, SIZE, COPIES, TOLERANCE = 4096, 8, 3, 0.01
GOALS = {inf: 10.0, 5.0: 20.0, 50.0: 20.0}  # ms


def copies_of(choices: BoardOptions, bank_range: float = 0.5) -> Device:
    """Three copies whose every gain and temperature is uniform within the tolerance."""
    device = ideal_device(build_board(SIZE, "differential", TOLERANCE, choices, bank_range), COPIES)
    rng = np.random.default_rng(0)

    def drawn() -> Estimate:
        return Estimate(1 + TOLERANCE * float(rng.uniform(-1, 1)), 0.0, True)

    return replace(
        device,
        copies=tuple(
            replace(
                copy,
                gains={name: drawn() for name in copy.gains},
                temperatures=tuple(drawn() for _ in copy.temperatures),
            )
            for copy in device.copies
        ),
    )


def targets(dtype: torch.dtype, hard: float = 0.0) -> tuple[Tensor, Tensor]:
    """Targets (n, n, tiles), a share of them with condition numbers of 100, and vectors (n, tiles)."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(SIZE, SIZE, TILES, dtype=torch.float64, generator=generator)
    P = 0.04 * (W + W.transpose(0, 1)) + torch.eye(SIZE, dtype=torch.float64)[..., None]
    many = int(hard * TILES)
    if many:
        Q = torch.linalg.qr(W[:, :, :many].movedim(-1, 0))[0]
        P[:, :, :many] = (Q * torch.logspace(-1, 1, SIZE, dtype=torch.float64) @ Q.mT).movedim(0, -1)
    return P.to(dtype), torch.randn(SIZE, TILES, dtype=torch.float64, generator=generator).to(dtype)


def report(name: str, dtype: torch.dtype, work: Callable[[], object], repeats: int, **details: object) -> None:
    row = {"what": name, "tiles": TILES, "dtype": str(dtype).removeprefix("torch."), **timed(work, repeats), **details}
    print(json.dumps(row | against(row)), flush=True)


def deviation(board: TileBoard, P: Tensor, v: Tensor, copies: Tensor) -> float:
    """Largest relative distance of the answers from those by eigenvectors, over stable tiles."""
    held = hold_tiles(board, P, copies)
    found = held.scaling * tile_answers(board, held, held.scaling * v, copies).values
    exact = invert_tiles(board, P.movedim(-1, 0), copies)
    expected = (exact.inverse @ v.T[:, :, None])[:, :, 0].T
    gap = torch.linalg.norm(found - expected, dim=0) / torch.linalg.norm(expected, dim=0)
    return float(gap[exact.stable].max())


def measure(dtype: torch.dtype, repeats: int) -> None:
    resistive = BoardOptions(coupling="resistive")
    capacitor, solver = (tile_board(copies_of(choices), dtype=dtype) for choices in (BoardOptions(), resistive))
    copies, few = torch.arange(TILES) % COPIES, max(3, repeats // 3)
    P, v = targets(dtype)

    def answer(board: TileBoard, P: Tensor = P, time: float = inf, copies: Tensor = copies) -> Tensor:
        u, found = v.repeat(1, len(copies) // TILES), []
        for part in slices(P):  # as the optimizer does
            held = hold_tiles(board, P[:, :, part], copies[part])
            b = held.scaling * u[:, part]
            found.append(tile_answers(board, held, b, copies[part], ReadAt(time), b).values)
        return torch.cat(found, dim=-1)

    report("program", dtype, lambda: hold_tiles(capacitor, P, copies), repeats)
    error = deviation(capacitor, P, v, copies)
    report("capacitive", dtype, lambda: answer(capacitor), repeats, time="inf", goal_ms=GOALS[inf], deviation=error)
    report("by eigenvectors", dtype, lambda: invert_tiles(capacitor, P.movedim(-1, 0), copies), few, time="inf")
    hard = targets(dtype, 0.05)[0]
    report("capacitive, 5 % hard", dtype, lambda: answer(capacitor, hard), repeats, time="inf")
    for when, goal in GOALS.items():
        report("resistive", dtype, lambda t=when: answer(solver, time=t), repeats, time=str(when), goal_ms=goal)
    every = torch.arange(COPIES).repeat_interleave(TILES)
    report("capacitive, averaged", dtype, lambda: answer(capacitor, P.repeat(1, 1, COPIES), copies=every), few)
    banked = tile_board(copies_of(BoardOptions(bank_bits=6)), dtype=dtype)
    report("banks of 6 bits", dtype, lambda: answer(banked), few, time="inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        measure(dtype, repeats)


if __name__ == "__main__":
    main()
