"""The factor R (r, N) of a curvature RᵀR, layer by layer: its Gram matrix K = R Rᵀ and products, R itself unformed.

Row (k, c) of a linear layer is the outer product of the output gradient g_kc and the input a_k, so

    K += (A Aᵀ + 1) ∘ (G Gᵀ),    (R v)_kc = g_kc · (W a_k + β),    Rᵀ c: W = Σ_k (Σ_c c_kc g_kc) a_kᵀ,

v = (W, β); with several positions a sample (convolutions, sequences) row (k, c) is a sum of such products over them.
Parameters live at offsets of one flat vector (N,); rows are ordered sample by sample.

The curvature of joined batches of one model: one factor with the rows of all.

Blocks of the same parameters are put one below the other in the form they have. Where batches called the layers
differently, so that the blocks are of other parameters, all are written out, parameter by parameter, and rows of a
batch that did not use a parameter are zero there.
"""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import torch
from torch import Tensor

BLOCK = 96  # rows of K at once: only the lower triangle is computed
NARROW = 16


@dataclass(frozen=True, eq=False)
class Outer:
    """Rows of a linear layer with one position a sample; offsets of weight and bias, None where not trained."""

    inputs: Tensor  # (b, m)
    outputs: Tensor  # (b, q, n)
    weight: int | None
    bias: int | None

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of the parameters it has columns of."""
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
        """The same rows, written out."""
        return Positions(
            self.inputs[:, None, :, None], self.outputs[:, :, None, :, None], self.weight, self.bias
        ).rows()


@dataclass(frozen=True, eq=False)
class Positions:
    """Rows of a convolution or of a linear layer on sequences: sums over positions, groups of channels apart."""

    inputs: Tensor  # (b, groups, m, positions)
    outputs: Tensor  # (b, q, groups, n, positions)
    weight: int | None
    bias: int | None

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of the parameters it has columns of."""
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
        """The same rows, written out: one product a sample and group for all its cotangents."""
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
    """Rows written out; places are (offset, length) of their columns, in order."""

    matrix: Tensor  # (r, n)
    places: tuple[tuple[int, int], ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of the parameters it has columns of."""
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
        """Itself."""
        return self


KINDS = {kind.__name__: kind for kind in (Outer, Positions, Rows)}


@dataclass(frozen=True, eq=False)
class Factor:
    """R (rank, size) as blocks of columns; parameters in no block have curvature 0."""

    blocks: tuple[Outer | Positions | Rows, ...]
    rank: int
    size: int

    @property
    def values(self) -> Tensor:
        """Some tensor of a block: its precision and device are those of all."""
        block = self.blocks[0]
        return block.matrix if isinstance(block, Rows) else block.outputs

    def gram(self, like: Tensor) -> Tensor:
        """K (r, r), in the precision and on the device of `like`."""
        return _gram(self.blocks, like, self.rank)

    def parted(self) -> tuple[Tensor, list[Tensor]] | None:
        """K₁ (r, r) and matrices R_j (r, n_j), K = K₁ + Σ R_j R_jᵀ: what is cheap to form, and to multiply by.

        K₁ is of the linear layers; None if a block is neither one nor written out, or there is none.
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
        """R itself, (r, N)."""
        R = like.new_zeros(self.rank, self.size)
        for block in (block.rows() for block in self.blocks):
            start = 0
            for offset, length in block.places:
                R[:, offset : offset + length] += block.matrix[:, start : start + length]
                start += length
        return R


def all_finite(vector: Tensor) -> bool:
    """Whether every number is finite; the sum says so at once in all but extreme cases."""
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
    """The factor whose R is the given matrix (r, N)."""
    return Factor((Rows(matrix, ((0, matrix.shape[1]),)),), *matrix.shape)


def apart(block: Outer | Positions | Rows) -> tuple[Outer | Positions | Rows, ...]:
    """One block a parameter, of rows written out; others as they are."""
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
    """The factor that `packed` wrote."""
    blocks = [KINDS[entry["kind"]](**{k: v for k, v in entry.items() if k != "kind"}) for entry in content["blocks"]]
    return Factor(tuple(blocks), content["rank"], content["size"])


def join_factors(factors: list[Factor], scales: list[float]) -> Factor:
    """One factor with the rows of all, each scaled: the curvature of joined batches of the same model."""
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
    """The same curvatures in blocks of the same places: where these differ, one of rows for every parameter."""
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
