"""The 8 x 8 diagonal blocks of a curvature RᵀR + λI, from inputs and output gradients of layers, without forming R.

Tile k holds parameters 8k to 8k + 7 of the flat vector, whichever layers they belong to. The parameters of a tile
inside row o of a linear layer share one output gradient g_o and differ in their inputs a_i, so

    (RᵀR)_ij = Σ_k (Σ_c g_kco²) a_ki a_kj,

one matrix product for the tiles of all rows with the same alignment to the tiles. Tiles that cross the end of a row, of
a layer, or of the vector are formed from their few explicit columns of R, and so are layers with explicit rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

from tngd.curvature.factor import Factor, Outer, Positions, Rows

Piece = tuple[int, Tensor]  # offset in the flat vector and R (r, width) from there on


def tile_blocks(factor: Factor, size: int, damping: float, like: Tensor) -> Tensor:
    """Blocks (size, size, tiles) in the precision and on the device of `like`; the last is padded with zeros."""
    P = like.new_zeros(size, size, -(-factor.size // size))
    cuts = _Cuts(tuple(sorted({0, factor.size} | {s for block in factor.blocks for s in _starts(block)})), size)
    columns = like.new_zeros(len(cuts.tiles) * size, factor.rank)
    for block in factor.blocks:
        if isinstance(block, Outer) and block.weight is not None:
            _add_outer(P, columns, block, cuts)
        else:
            for offset, R in _pieces(block):
                _add_rows(P, columns, offset, R, cuts)
    for i in range(1, size):
        P[:i, i] = P[i, :i]
    R = columns.view(len(cuts.tiles), size, factor.rank)
    P[:, :, cuts.tiles.to(like.device)] = (R @ R.mT).movedim(0, -1)  # replaces the partial sums of cut tiles
    P.diagonal(dim1=0, dim2=1).add_(damping)
    return P


@dataclass(frozen=True)
class _Cuts:
    """Offsets where rows of layers begin and end; a tile with a cut inside is formed from explicit columns of R."""

    places: tuple[int, ...]
    size: int

    @property
    def tiles(self) -> Tensor:
        """Indices of the cut tiles (k,)."""
        return _cut_tiles(self)

    def of(self, offset: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices, from `offset`, of a range's parameters in cut tiles, and their columns among all cut tiles."""
        index, column = _cut_parameters(self, offset, length)
        return index.to(device), column.to(device)


@lru_cache(maxsize=16)
def _cut_tiles(cuts: _Cuts) -> Tensor:
    places = torch.tensor(cuts.places)
    return (places[places % cuts.size != 0] // cuts.size).unique()


@lru_cache(maxsize=1024)
def _cut_parameters(cuts: _Cuts, offset: int, length: int) -> tuple[Tensor, Tensor]:
    own = (_cut_tiles(cuts)[:, None] * cuts.size + torch.arange(cuts.size)).view(-1)
    column = ((own >= offset) & (own < offset + length)).nonzero()[:, 0]
    return own[column] - offset, column


def _starts(block: Outer | Positions | Rows) -> Iterator[int]:
    """The offsets at which ranges of parameters begin and end: a tile across such an offset is cut."""
    if isinstance(block, Rows):
        yield from (end for offset, length in block.places for end in (offset, offset + length))
        return
    m = block.inputs.shape[1 if isinstance(block, Outer) else 2]
    n = block.outputs.shape[2:4].numel() if isinstance(block, Positions) else block.outputs.shape[2]
    if block.weight is not None:
        yield from range(block.weight, block.weight + n * m + 1, m)
    if block.bias is not None:
        yield from (block.bias, block.bias + n)


def _pieces(block: Outer | Positions | Rows) -> Iterator[Piece]:
    """The columns of R, by range of parameters."""
    if isinstance(block, Rows):
        start = 0
        for offset, length in block.places:
            yield offset, block.matrix[:, start : start + length]
            start += length
        return
    if isinstance(block, Outer):
        yield block.bias, block.outputs.flatten(0, 1)
        return
    b, q, groups, n, _ = block.outputs.shape
    if block.bias is not None:
        yield block.bias, block.outputs.sum(-1).view(b * q, groups * n)
    m = block.inputs.shape[2]
    for row in range(groups * n if block.weight is not None else 0):
        own = block.outputs[:, :, row // n, row % n] @ block.inputs[:, row // n].mT
        yield block.weight + row * m, own.reshape(b * q, m)


def _add_rows(P: Tensor, columns: Tensor, offset: int, R: Tensor, cuts: _Cuts) -> None:
    size = len(P)
    first, last = -(-offset // size), (offset + R.shape[1]) // size
    index, column = cuts.of(offset, R.shape[1], P.device)
    if len(index):
        columns[column] = R[:, index].T.to(P)
    if last > first:
        own = R[:, first * size - offset : last * size - offset].to(P).unflatten(1, (last - first, size))
        P[:, :, first:last] += (own.permute(1, 2, 0) @ own.permute(1, 0, 2)).movedim(0, -1)


def _add_outer(P: Tensor, columns: Tensor, block: Outer, cuts: _Cuts) -> None:
    (b, m), (_, q, n), size = block.inputs.shape, block.outputs.shape, len(P)
    a, G = block.inputs.to(P), block.outputs.to(P)
    if block.bias is not None:
        _add_rows(P, columns, block.bias, G.view(b * q, n), cuts)
    index, column = cuts.of(block.weight, n * m, P.device)
    if len(index):
        columns[column] = (G[:, :, index // m] * a[:, None, index % m]).permute(2, 0, 1).flatten(1)
    power = G.square().sum(1).T  # (n, b)
    period = size // gcd(m, size)  # rows after which the alignment to the tiles repeats
    for phase in range(min(period, n)):
        start = -(block.weight + phase * m) % size  # of the first whole tile in the row
        count = (m - start) // size
        if count <= 0:
            continue
        parts = a[:, start : start + count * size].unflatten(1, (count, size)).permute(2, 0, 1).contiguous()
        rows = power[phase::period]
        first, step = (block.weight + phase * m + start) // size, period * m // size
        own = P[:, :, first:]
        own = own.as_strided((size, size, len(rows), count), (*own.stride()[:2], step, 1), own.storage_offset())
        # A quarter of these pairs is not needed: few large products are faster than many small ones.
        for i, end in ((0, size // 2), (size // 2, size)):
            own[i:end, :end] += torch.matmul(rows, parts[i:end, None] * parts[:end])
