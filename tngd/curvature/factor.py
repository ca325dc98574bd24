"""The factor R (r, N) of a curvature RᵀR, layer by layer: Gram matrix K = R Rᵀ and products, without forming R.

Row (k, c) of a linear layer is the outer product of output gradient g_kc and input a_k, so with v = (W, β)

    K += (A Aᵀ + 1) ∘ (G Gᵀ),    (R v)_kc = g_kc · (W a_k + β),    Rᵀ c: W = Σ_k (Σ_c c_kc g_kc) a_kᵀ,

where the 1 is the bias term. With several positions in a sample (convolutions, sequences) row (k, c) is the sum of
these outer products over positions. Parameters have offsets in one flat vector (N,); rows are ordered by sample.

The curvature of several batches of one model is one factor with the rows of all batches. Blocks of the same parameters
are concatenated, as explicit rows only if their kinds or shapes differ. Where batches called the layers differently, so
that their blocks cover different parameters, all blocks become explicit rows, one block a parameter, with zero rows
where a batch did not use the parameter.
"""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import torch
from torch import Tensor

BLOCK = 96  # rows of K computed at once; only the lower triangle is computed
NARROW = 16  # inputs of a layer below which the transposed product is faster


@dataclass(frozen=True, eq=False)
class Outer:
    """Rows of a linear layer, one position a sample; `weight`, `bias` are offsets, None where not trained."""

    inputs: Tensor  # (b, m)
    outputs: Tensor  # (b, q, n)
    weight: int | None
    bias: int | None

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the parameters whose columns are in this block."""
        return tuple(at for at in (self.weight, self.bias) if at is not None)

    def add_gram(self, K: Tensor) -> None:
        """Add R Rᵀ to the lower triangle of K (b q, b q)."""
        b, q, n = self.outputs.shape
        G = self.outputs.reshape(b * q, n)
        alike = self.inputs @ self.inputs.T if self.weight is not None else self.inputs.new_zeros(b, b)
        if self.bias is not None:
            alike = alike + 1
        alike = alike.repeat_interleave(q, 1)
        samples = max(1, BLOCK // q)
        for start in range(0, b, samples):
            end = min(start + samples, b)
            part = (G[start * q : end * q] @ G[: end * q].T).view(end - start, q, end * q)
            K[start * q : end * q, : end * q].view(part.shape).addcmul_(part, alike[start:end, None, : end * q])

    def forward(self, vector: Tensor) -> Tensor:
        """R v, (b q,)."""
        n, m = self.outputs.shape[-1], self.inputs.shape[-1]
        response = vector.new_zeros(1, n) if self.bias is None else vector[None, self.bias : self.bias + n]
        if self.weight is not None:
            response = torch.addmm(response, self.inputs, vector[self.weight : self.weight + n * m].view(n, m).T)
        return (self.outputs * response[:, None]).sum(-1).view(-1)

    def add_transpose(self, coefficients: Tensor, total: Tensor) -> None:
        """Add Rᵀ c to total (N,)."""
        b, q, n = self.outputs.shape
        G = (coefficients.view(b, q, 1) * self.outputs).sum(1)
        if self.weight is not None:
            m = self.inputs.shape[-1]
            total[self.weight : self.weight + n * m] += (G.T @ self.inputs).reshape(-1)
        if self.bias is not None:
            total[self.bias : self.bias + n] += G.sum(0)

    def rows(self) -> "Rows":
        """The same rows as an explicit matrix."""
        return Positions(
            self.inputs[:, None, :, None], self.outputs[:, :, None, :, None], self.weight, self.bias
        ).rows()


@dataclass(frozen=True, eq=False)
class Positions:
    """Rows of a convolution, or of a linear layer on sequences: sums over positions, for each channel group."""

    inputs: Tensor  # (b, groups, m, positions)
    outputs: Tensor  # (b, q, groups, n, positions)
    weight: int | None
    bias: int | None

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the parameters whose columns are in this block."""
        return tuple(at for at in (self.weight, self.bias) if at is not None)

    def add_gram(self, K: Tensor) -> None:
        """Add R Rᵀ to the lower triangle of K, one output channel of every group at a time."""
        for channel in range(self.outputs.shape[3]):
            part = Positions(self.inputs, self.outputs[:, :, :, channel : channel + 1], self.weight, self.bias)
            part.rows().add_gram(K)

    def forward(self, vector: Tensor) -> Tensor:
        """R v, (b q,)."""
        b, groups, m, positions = self.inputs.shape
        n = self.outputs.shape[3]
        response = self.inputs.new_zeros(b, groups, n, positions)
        if self.weight is not None:
            response = vector[self.weight : self.weight + groups * n * m].view(groups, n, m) @ self.inputs
        if self.bias is not None:
            response = response + vector[self.bias : self.bias + groups * n].view(groups, n, 1)
        return (self.outputs.flatten(2) @ response.flatten(1)[:, :, None]).reshape(-1)

    def add_transpose(self, coefficients: Tensor, total: Tensor) -> None:
        """Add Rᵀ c to total (N,)."""
        b, q, groups, n, positions = self.outputs.shape
        G = (coefficients.view(b, 1, q) @ self.outputs.flatten(2)).view(b, groups, n, positions)
        if self.weight is not None:
            W = torch.einsum("bgnp,bgmp->gnm", G, self.inputs).reshape(-1)
            total[self.weight : self.weight + len(W)] += W
        if self.bias is not None:
            total[self.bias : self.bias + groups * n] += G.sum((0, 3)).reshape(-1)

    def rows(self) -> "Rows":
        """The same rows as an explicit matrix: one product for each sample and group, over all its cotangents."""
        b, q, groups, n, positions = self.outputs.shape
        parts = []
        if self.weight is not None:
            G = self.outputs.transpose(1, 2).reshape(b, groups, q * n, positions)
            # A product with few columns is slow; its transpose is not.
            narrow = self.inputs.shape[2] < NARROW
            W = ((self.inputs @ G.mT).mT if narrow else G @ self.inputs.mT).reshape(b, groups, q, -1)
            parts.append(W.transpose(1, 2).reshape(b * q, -1))
        if self.bias is not None:
            parts.append(self.outputs.sum(-1).view(b * q, -1))
        places = tuple((offset, part.shape[1]) for offset, part in zip(self.offsets, parts, strict=True))
        return Rows(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), places)


@dataclass(frozen=True, eq=False)
class Rows:
    """Explicit rows; places are the (offset, length) of their columns in the flat vector, in order."""

    matrix: Tensor  # (r, n)
    places: tuple[tuple[int, int], ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets of the parameters whose columns are in this block."""
        return tuple(offset for offset, _ in self.places)

    def add_gram(self, K: Tensor) -> None:
        """Add R Rᵀ to the lower triangle of K."""
        R = self.matrix
        for start in range(0, len(R), BLOCK):
            end = min(start + BLOCK, len(R))
            K[start:end, :end].addmm_(R[start:end], R[:end].T)

    def forward(self, vector: Tensor) -> Tensor:
        """R v, (r,)."""
        return self.matrix @ torch.cat([vector[offset : offset + length] for offset, length in self.places])

    def add_transpose(self, coefficients: Tensor, total: Tensor) -> None:
        """Add Rᵀ c to total (N,)."""
        product = coefficients @ self.matrix
        start = 0
        for offset, length in self.places:
            total[offset : offset + length] += product[start : start + length]
            start += length

    def rows(self) -> "Rows":
        """The block itself, which has explicit rows."""
        return self


KINDS = {kind.__name__: kind for kind in (Outer, Positions, Rows)}


@dataclass(frozen=True, eq=False)
class Factor:
    """R (rank, size) as blocks of columns; parameters in no block have zero curvature."""

    blocks: tuple[Outer | Positions | Rows, ...]
    rank: int
    size: int

    @property
    def values(self) -> Tensor:
        """A tensor of the first block, with the precision and device of all blocks."""
        block = self.blocks[0]
        return block.matrix if isinstance(block, Rows) else block.outputs

    def gram(self, like: Tensor) -> Tensor:
        """The Gram matrix K (r, r), in the precision and on the device of `like`."""
        return _gram(self.blocks, like, self.rank)

    def parted(self) -> tuple[Tensor, list[Tensor]] | None:
        """K₁ (r, r) and matrices R_j (r, n_j) with K = K₁ + Σ R_j R_jᵀ, cheap to form and to multiply by.

        K₁ is the Gram matrix of Outer blocks, R_j are explicit rows; None if a block is Positions, or without blocks.
        """
        cheap = tuple(block for block in self.blocks if isinstance(block, Outer))
        written = [block.matrix for block in self.blocks if isinstance(block, Rows)]
        if not self.blocks or len(cheap) + len(written) < len(self.blocks):
            return None
        return _gram(cheap, self.values, self.rank), written

    def forward(self, vector: Tensor) -> Tensor:
        """R v, (r,)."""
        if not self.blocks:
            return vector.new_zeros(self.rank)
        return sum(block.forward(vector) for block in self.blocks[1:]) + self.blocks[0].forward(vector)

    def transpose(self, coefficients: Tensor) -> Tensor:
        """Rᵀ c, (N,)."""
        total = coefficients.new_zeros(self.size)
        for block in self.blocks:
            block.add_transpose(coefficients, total)
        return total

    def dense(self, like: Tensor) -> Tensor:
        """R (r, N) as one dense matrix."""
        R = like.new_zeros(self.rank, self.size)
        for block in (block.rows() for block in self.blocks):
            start = 0
            for offset, length in block.places:
                R[:, offset : offset + length] += block.matrix[:, start : start + length]
                start += length
        return R


def all_finite(vector: Tensor) -> bool:
    """Whether every number is finite: true if the sum is finite, else every number is tested."""
    return isfinite(float(vector.sum())) or bool(torch.isfinite(vector).all())


def _gram(blocks: "tuple[Outer | Positions | Rows, ...]", like: Tensor, rank: int) -> Tensor:
    K = like.new_zeros(rank, rank)
    for block in blocks:
        block.add_gram(K)
    lower = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=K.device).tril()
    for start in range(0, rank, BLOCK):
        end = min(start + BLOCK, rank)
        K[:start, start:end] = K[start:end, :start].T
        corner = K[start:end, start:end]
        corner.copy_(torch.where(lower[: end - start, : end - start], corner, corner.T))
    return K


def dense_factor(matrix: Tensor) -> Factor:
    """The factor whose R is the given dense matrix (r, N)."""
    return Factor((Rows(matrix, ((0, matrix.shape[1]),)),), *matrix.shape)


def apart(block: Outer | Positions | Rows) -> tuple[Outer | Positions | Rows, ...]:
    """Explicit rows split into one block for each parameter; a block of another kind stays whole."""
    if not isinstance(block, Rows):
        return (block,)
    parts = block.matrix.split([length for _, length in block.places], dim=1)
    return tuple(Rows(part, (place,)) for part, place in zip(parts, block.places, strict=True))


def packed(factor: Factor) -> dict[str, Any]:
    """A factor as plain dictionaries and tensors, for a state_dict."""
    blocks = [
        {"kind": type(block).__name__} | {field.name: getattr(block, field.name) for field in fields(block)}
        for block in factor.blocks
    ]
    return {"blocks": blocks, "rank": factor.rank, "size": factor.size}


def unpacked(content: dict[str, Any]) -> Factor:
    """The factor from the content that `packed` returned."""
    blocks = [KINDS[entry["kind"]](**{k: v for k, v in entry.items() if k != "kind"}) for entry in content["blocks"]]
    return Factor(tuple(blocks), content["rank"], content["size"])


def join_factors(factors: list[Factor], scales: list[float]) -> Factor:
    """One factor with the scaled rows of all factors: the curvature of several batches of the same model."""
    if len(factors) == 1 and scales == [1.0]:
        return factors[0]
    if len({tuple(block.offsets for block in factor.blocks) for factor in factors}) > 1:
        factors = _alike(factors)
    blocks = []
    for parts in zip(*(factor.blocks for factor in factors), strict=True):
        if len({(type(part), part.inputs.shape[2:]) if not isinstance(part, Rows) else Rows for part in parts}) > 1:
            parts = [part.rows() for part in parts]
        if isinstance(parts[0], Rows):
            matrix = torch.cat([scale * part.matrix for part, scale in zip(parts, scales, strict=True)])
            blocks.append(Rows(matrix, parts[0].places))
        else:
            outputs = torch.cat([scale * part.outputs for part, scale in zip(parts, scales, strict=True)])
            inputs = torch.cat([part.inputs for part in parts])
            blocks.append(type(parts[0])(inputs, outputs, parts[0].weight, parts[0].bias))
    return Factor(tuple(blocks), sum(factor.rank for factor in factors), factors[0].size)


def _alike(factors: list[Factor]) -> list[Factor]:
    """The same factors with one block of explicit rows for every parameter, the same places in every factor."""
    written = [[part for block in factor.blocks for part in apart(block.rows())] for factor in factors]
    places = sorted({part.places for parts in written for part in parts})
    alike = []
    for factor, parts in zip(factors, written, strict=True):
        blocks = []
        for place in places:
            found = [part.matrix for part in parts if part.places == place]
            zero = factor.values.new_zeros(factor.rank, place[0][1])
            blocks.append(Rows(sum(found) if found else zero, place))
        alike.append(Factor(tuple(blocks), factor.rank, factor.size))
    return alike
