"""One step on tiles: 8 x 8 blocks of the curvature inverted by calibrated boards.

With the gradient g and the blocks P_k = (RᵀR + λI)_kk of the batch:

    T_k = L_k⁻¹, L_k L_kᵀ = the block of an older batch (refreshed every `refresh` steps)
    the copy holds T_k P_k T_kᵀ and answers B_k T_k g_k, B_k its inverse under the copy's own errors
    x_k = T_kᵀ B_k T_k g_k

Preconditioned programming: T_k is exact digital work, P_k fresh, and the board sees a matrix close to I, which fits
its parts and does not magnify their errors. A resistive board may be read at a finite time; its voltages then start
from the uploaded vector d T_k g_k, from zero, or stay as the step before left them. Blocks are (n, n, tiles).
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.blocks import tile_blocks
from tngd.device.converters import standard_normal
from tngd.device.small_matrices import (
    apply,
    apply_transposed,
    cholesky,
    cholesky_solve,
    congruence,
    lower_inverse,
    slices,
)
from tngd.device.tile_solve import LAST, ReadAt, White, check_reading, tile_answers
from tngd.device.tiles import TileBoard, hold_tiles
from tngd.optimizer.settings import Settings
from tngd.optimizer.stepped import Upload


@dataclass(frozen=True, eq=False)
class TileStep:
    """Record of one step of the boards.

    `unstable` tiles could not be held by their copy and took the step of the older factor alone; `passive` is the
    fraction that needed no negative element. `saturated` counts values that met the full scale of a converter, and on
    capacitive boards, whose answers are covariances of many readings, cells of tiles with more than 1e-3 of their
    readings clipped (tngd.device.tile_solve); `clipped` is the share of all readings of stable tiles that the ADC
    clips.
    """

    unstable: int
    passive: float
    saturated: int
    clipped: float
    direction: Tensor = field(repr=False)  # (n, tiles), as the gradient
    blocks: Tensor = field(repr=False)  # (n, n, tiles)
    gradient: Tensor = field(repr=False)

    @cached_property
    def deviation(self) -> float:
        """The relative distance of the direction from that of exact inverses of the same tiles, found when asked for.

        It takes a factorisation of every tile, which the step itself does without.
        """
        parts = slices(self.blocks)
        exact = torch.cat([cholesky_solve(cholesky(self.blocks[:, :, k])[0], self.gradient[:, k]) for k in parts], -1)
        return float((self.direction - exact).norm() / exact.norm())


@dataclass(frozen=True, eq=False)
class TileFactors:
    """The digital factors T (n, n, tiles), None for I, the number of steps they have served, and the boards' voltages.

    `state` (n, 1, tiles), of averaged boards (n, copies, tiles), is None before the first step.
    """

    factors: Tensor | None
    age: int
    state: Tensor | None = None


def tile_factors(P: Tensor, kept: TileFactors | None, refresh: int) -> TileFactors:
    """T for this step: L⁻¹ of blocks P (n, n, tiles) of up to `refresh` steps ago; I for refresh 0.

    InputError if a block is not positive definite in its precision.
    """
    state = None if kept is None else kept.state
    if not refresh:
        return TileFactors(None, 1, state)
    if kept is not None and kept.factors is not None and kept.age < refresh:
        return TileFactors(kept.factors, kept.age + 1, state)
    L, definite = cholesky(P)
    if not bool(definite.all()):
        raise InputError(
            f"{int((~definite).sum())} of {len(definite)} blocks of the curvature are not positive definite in "
            f"{str(P.dtype).removeprefix('torch.')}, the step was not made; raise the damping, or use a float64 board"
        )
    return TileFactors(lower_inverse(L), 1, state)


def step_tiles(
    board: TileBoard,
    P: Tensor,
    gradient: Tensor,
    kept: TileFactors | None,
    refresh: int = 10,
    reading: ReadAt = LAST,
    start: str = "gradient",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, TileFactors, TileStep]:
    """Direction (N,) from blocks P (n, n, tiles) and the gradient (N,), what is kept, and what the boards did.

    Tile k is on copy k modulo their number, on averaged boards on all. `start` "gradient", "zero" or "kept" says from
    what the voltages of a resistive board start; `generator` draws noise. Errors as `tile_factors`, `tile_answers`.
    """
    n, _, tiles = P.shape
    own = tile_factors(P, kept, refresh)
    g = torch.nn.functional.pad(gradient, (0, tiles * n - len(gradient))).view(tiles, n).T.contiguous()

    def white(like: Tensor) -> Tensor:
        return standard_normal(like, generator)

    parts = []
    for part in slices(P):
        T = None if own.factors is None else own.factors[:, :, part]
        state = None if own.state is None else own.state[:, :, part]
        parts.append(_read(board, P[:, :, part], T, g[:, part], part.start, reading, start, state, white))
    x, stable, passive, state = (torch.cat(found, dim=-1) for found in [*zip(*parts, strict=True)][:4])
    lost, saturated = int((~stable).sum()), sum(part[4] for part in parts)
    clipped = sum(part[5] for part in parts) / max(n * (len(stable) - lost), 1)
    step = TileStep(lost, float(passive.double().mean()), saturated, clipped, x, P, g)
    memory = TileFactors(own.factors, own.age, state if board.coupling == "resistive" else None)
    return x.T.reshape(-1)[: len(gradient)], memory, step


def _read(
    board: TileBoard,
    P: Tensor,
    T: Tensor | None,
    g: Tensor,
    first: int,
    reading: ReadAt,
    start: str,
    state: Tensor | None,
    white: White,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, float]:
    """Direction (n, t), stable (m t,), passive, voltages (n, m, t), what is saturated, and the shares clipped.

    Of t tiles from number `first` on, on m copies each.
    """
    n, _, tiles = P.shape
    b, M = (g, P) if T is None else (apply(T, g), congruence(T, P))
    copies = (torch.arange(tiles, device=P.device) + first) % board.copies
    many = board.copies if board.averaged else 1
    if board.averaged:
        copies = torch.arange(many, device=P.device).repeat_interleave(tiles)
        b, M = b.repeat(1, many), M.repeat(1, 1, many)
    held = hold_tiles(board, M, copies)
    uploaded = held.scaling * b
    kept = uploaded if state is None else state.reshape(n, -1)
    begin = {"gradient": uploaded, "zero": None, "kept": kept}[start]
    answer = tile_answers(board, held, uploaded, copies, reading, begin, white)
    x = torch.where(answer.stable, held.scaling * answer.values, b).view(n, many, tiles).mean(1)
    x = x if T is None else apply_transposed(T, x)
    return x, answer.stable, held.passive, answer.state.view(n, many, tiles), answer.saturated, answer.clipped


@dataclass(frozen=True)
class TileSteps:
    """Steps with calibrated boards, a block of the curvature a tile; a `SteppedDevice`."""

    board: TileBoard
    part: ClassVar[str] = "tiles"

    def check(self, settings: Settings, size: int) -> None:
        """Raise InputError if the boards cannot be read at the time of these settings, or from their start."""
        check_reading(self.board, ReadAt(settings.time, settings.noise), settings.start)

    def curvature(self, memory: TileFactors | None, settings: Settings) -> str:
        """The curvature of the settings: tiles are programmed with a fresh one in every step."""
        return settings.tile_curvature

    def trimmed(self, memory: TileFactors | None, settings: Settings) -> TileFactors | None:
        """The memory itself: tiles keep nothing large."""
        return memory

    def step(
        self, memory: TileFactors | None, settings: Settings, upload: Upload
    ) -> tuple[Tensor, TileFactors, TileStep]:
        """Direction (N,), the memory after the step, and a record of the step."""
        # Small blocks, ill-conditioned ones among them: made and solved in the board's own precision.
        fine = upload.gradient.to(self.board.dtype)
        P = tile_blocks(upload.factor, self.board.size, settings.damping, fine)
        how = settings.refresh, ReadAt(settings.time, settings.noise), settings.start
        direction, kept, last = step_tiles(self.board, P, fine, memory, *how, upload.generator)
        return direction.to(upload.gradient.dtype), kept, last

    def history(self, memory: TileFactors) -> None:
        """None: a tile knows its own block alone."""

    def pack(self, memory: TileFactors) -> dict[str, Any]:
        """Factors, age and voltages."""
        return vars(memory).copy()

    def unpack(self, content: dict[str, Any]) -> TileFactors:
        """The memory that `pack` wrote."""
        return TileFactors(**content)
