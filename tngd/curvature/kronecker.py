"""Kronecker-factored digital preconditioner T of a curvature: the device holds λI + M RᵀR Mᵀ, M = T⁻¹, T Tᵀ ≈ RᵀR.

T comes from earlier steps (see tngd.optimizer.history), as one Kronecker product for each layer. A row of R, seen at
one layer, is a matrix (β | W) (n, 1 + m) of bias and weight, and

    G = Σ ββᵀ + W Wᵀ,   A = Σ (β | W)ᵀ (β | W) / tr G,   then A ← A/A₀₀, G ← A₀₀ G,

summed over rows and averaged over batches, is one step from the identity towards the product A ⊗ G nearest to RᵀR (Van
Loan and Pitsianis, 1993). With the damping of K-FAC (Martens and Grosse, 2015), A = (1 āᵀ; ā B + π √δ I), π² is the
ratio of the mean diagonals of B and G, C Cᵀ = B + π √δ I - ā āᵀ and L Lᵀ = G + √δ/π I. On the device a gradient (V, β)
has the coordinates

    V' = L⁻¹ (V - β āᵀ) C⁻ᵀ,   β' = L⁻¹ β,        and a state (V', β') is read as   V = L⁻ᵀ V' C⁻¹,   β = L⁻ᵀ β' - V ā,

the transpose. Layer inputs a become C⁻¹ (a - ā), centred and whitened, so the blocks of a factor keep their kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.factor import Factor, Outer, Positions, Rows, all_finite, apart

LARGEST = 2048  # largest size of a Kronecker factor; a larger factor becomes a multiple of I
BALANCE = 1e-3, 1e3  # limits of π
TINY = 1e-30  # smallest divisor

Block = Outer | Positions | Rows


@dataclass(frozen=True, eq=False)
class Product:
    """Unscaled Kronecker factors A and G of a layer, at the offsets of its weight and bias, or of a vector (n, 1)."""

    weight: int
    bias: int | None
    shape: tuple[int, int]  # (n, m)
    first: Tensor | None  # Σ |β|²; None without bias
    mixed: Tensor | None  # Σ Wᵀβ (m,)
    B: Tensor  # Σ Wᵀ W (m, m), or the mean of its diagonal
    G: Tensor  # Σ ββᵀ + W Wᵀ (n, n), or the mean of its diagonal


@dataclass(frozen=True, eq=False)
class Change:
    """Change of coordinates of one layer: ā (m,), C⁻¹ (m, m), L⁻¹ (n, n); a number stands for a multiple of I."""

    weight: int
    bias: int | None
    shape: tuple[int, int]  # (n, m)
    center: Tensor | None
    right: Tensor
    left: Tensor


@dataclass(frozen=True, eq=False)
class Metric:
    """M = T⁻¹ of a whole network; the identity for parameters without a change of coordinates."""

    changes: tuple[Change, ...]

    def upload(self, vector: Tensor) -> Tensor:
        """M v (N,): a gradient in the coordinates of the device."""
        total = vector.clone()
        for change in self.changes:
            V, beta = _parts(total, change)
            centred = V if beta is None else V - torch.outer(beta, change.center)
            V.copy_(_left(change.left, _times(centred, change.right)))
            if beta is not None:
                beta.copy_(_times(beta, change.left))
        return total

    def read(self, state: Tensor) -> Tensor:
        """Mᵀ y (N,): a state of the device in the coordinates of the parameters."""
        total = state.clone()
        for change in self.changes:
            V, beta = _parts(total, change)
            V.copy_(_left(_turned(change.left), _times(V, _turned(change.right))))
            if beta is not None:
                beta.copy_(_times(beta, _turned(change.left)) - V @ change.center)
        return total

    def factor(self, factor: Factor) -> Factor:
        """R Mᵀ (r, N), for a factor R with blocks of any kind."""
        places = {(change.weight, change.bias): change for change in self.changes}
        owners = {offset: change for place, change in places.items() for offset in place if offset is not None}
        blocks: list[Block] = []
        loose: dict[int, list[Rows]] = {}  # separate rows of a change's weight and bias, by the offset of the weight
        for block in factor.blocks:
            for part in (block,) if _place(block) in places else apart(block):
                known, owner = places.get(_place(part)), owners.get(part.offsets[0])
                if known is None and owner is not None:
                    loose.setdefault(owner.weight, []).extend(apart(part.rows()))
                else:
                    blocks.append(part if known is None else _changed_block(part, known))
        blocks += [_changed_block(_whole(parts, owners[weight]), owners[weight]) for weight, parts in loose.items()]
        return Factor(tuple(blocks), factor.rank, factor.size)


def nearest_products(factor: Factor, shapes: Mapping[int, tuple[int, int]]) -> tuple[Product, ...]:
    """One Kronecker product for every layer, and for every single parameter whose rows are not those of a layer.

    `shapes`: (n, m) of matrices and (n, 1) of vectors, by the offset of the parameter; parameters without a shape, as
    in grouped convolutions, get no product. InputError if the curvature is not finite.
    """
    parts = [part for block in factor.blocks for part in ((block,) if _is_layer(block, shapes) else apart(block))]
    whole = [part for part in parts if shapes.keys() >= {*part.offsets}]
    return tuple(_product(*_place(part), *_moments(part, shapes)) for part in whole)


def averaged(old: tuple[Product, ...], new: tuple[Product, ...], share: float) -> tuple[Product, ...]:
    """Moving average of each layer's product, `share` the weight of the old; layers not in `new` keep the old product.

    Where layers share parameters, new products may group the parameters in another way; old products of these
    parameters are then dropped.
    """
    cut = {offset: _key(product) for product in new for offset in _key(product) if offset is not None}
    known = {_key(each): each for each in old if all(cut.get(k, _key(each)) == _key(each) for k in _key(each))}
    for product in new:
        key = _key(product)
        if key in known:
            means = {
                name: getattr(product, name).lerp(getattr(known[key], name), share)
                for name in ("first", "mixed", "B", "G")
                if getattr(product, name) is not None
            }
            product = replace(product, **means)
        known[key] = product
    return tuple(known.values())


def metric_of(products: tuple[Product, ...], damping: float) -> Metric:
    """M from Kronecker products, with damping δ > 0."""
    return Metric(tuple(_change(product, damping) for product in products))


def _key(product: Product) -> tuple[int, int | None]:
    return product.weight, product.bias


def _whole(parts: list[Rows], change: Change) -> Rows:
    """Explicit rows of both weight and bias of a change, from rows of either; zero where one is missing."""
    n, m = change.shape
    places, like = ((change.weight, n * m), (change.bias, n)), parts[0].matrix
    known = {part.places[0]: part.matrix for part in parts}
    matrix = [known[place] if place in known else like.new_zeros(len(like), place[1]) for place in places]
    return Rows(torch.cat(matrix, dim=1), places)


def _is_layer(block: Block, shapes: Mapping[int, tuple[int, int]]) -> bool:
    if not isinstance(block, Rows) or len(block.places) == 1:
        return True
    (offset, length), *more = block.places
    n, m = shapes.get(offset, (0, 0))
    return length == n * m and [each[1] for each in more] == [n]


def _place(block: Block) -> tuple[int | None, int | None]:
    """Offsets of weight and bias; (offset, None) for a single parameter."""
    if isinstance(block, Rows):
        return block.places[0][0], block.places[1][0] if len(block.places) > 1 else None
    return (block.weight, block.bias) if block.weight is not None else (block.bias, None)


def _moments(
    block: Block, shapes: Mapping[int, tuple[int, int]]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Σ ββᵀ + W Wᵀ, Σ |β|² and Σ Wᵀβ (both None without bias), and Σ Wᵀ W, summed over rows."""
    if isinstance(block, Outer):
        return _outer_moments(block)
    if isinstance(block, Positions):
        return _position_moments(block)
    n, m = shapes[block.places[0][0]]
    W = block.matrix[:, : n * m].reshape(-1, n, m)
    flat = W.transpose(0, 1).reshape(n, -1)
    G, B = flat @ flat.T, W.reshape(-1, m).T @ W.reshape(-1, m)
    if len(block.places) == 1:
        return G, None, None, B
    beta = block.matrix[:, n * m :]
    return G + beta.T @ beta, beta.square().sum(), beta.reshape(-1) @ W.reshape(-1, m), B


def _outer_moments(block: Outer) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    biased = None not in (block.weight, block.bias)
    a, g = block.inputs if block.weight is not None else block.inputs.new_ones(len(block.inputs), 1), block.outputs
    energy = g.square().sum((1, 2))
    scaled = (g * (a.square().sum(1) + biased).sqrt()[:, None, None]).flatten(0, 1)
    G, B = scaled.T @ scaled, (a * energy[:, None]).T @ a
    return (G, energy.sum(), energy @ a, B) if biased else (G, None, None, B)


def _position_moments(block: Positions) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    biased = None not in (block.weight, block.bias)
    a, g = block.inputs[:, 0], block.outputs[:, :, 0]  # (b, m, p), (b, q, n, p)
    if block.weight is None:
        a = a.new_ones(len(a), 1, a.shape[2])
    if biased:
        a = torch.cat([a.new_ones(len(a), 1, a.shape[2]), a], dim=1)
    flat = g.flatten(1, 2)
    A = ((a @ (flat.mT @ flat)) @ a.mT).sum(0)
    g_seen = (flat @ (a.mT @ a)).view(g.shape)
    G = torch.einsum("bqip,bqjp->ij", g_seen, g)
    return (G, A[0, 0], A[0, 1:], A[1:, 1:]) if biased else (G, None, None, A)


def _product(
    weight: int, bias: int | None, G: Tensor, first: Tensor | None, mixed: Tensor | None, B: Tensor
) -> Product:
    if not all_finite(G):
        raise InputError("the curvature is not finite, the step was not made; check the outputs, or lower lr")
    return Product(weight, bias, (len(G), len(B)), first, mixed, _bounded(B), _bounded(G))


def _bounded(M: Tensor) -> Tensor:
    return M if len(M) <= LARGEST else M.diagonal().mean()


def _change(product: Product, damping: float) -> Change:
    (n, m), B, G = product.shape, product.B.double(), product.G.double()
    total = (_mean_diagonal(G) * n).clamp(min=TINY)
    scale = (_mean_diagonal(B) if product.first is None else product.first.double()).clamp(min=TINY)
    B, G, a = B / scale, G * (scale / total), None
    ratio = (_mean_diagonal(B) / _mean_diagonal(G).clamp(min=TINY)).sqrt().clamp(*BALANCE)
    if product.mixed is not None:
        a = product.mixed.double() / scale
        B = B - torch.outer(a, a) if B.ndim else B - a.square().mean()
    elif m == 1:  # a vector has its whole curvature in G
        ratio = torch.ones_like(scale)
    right = _inverse_root(B, ratio * damping**0.5) if a is not None or m > 1 else B.new_ones(())
    left, a = _inverse_root(G, damping**0.5 / ratio), None if a is None else a.to(product.B.dtype)
    return Change(product.weight, product.bias, product.shape, a, right.to(product.B.dtype), left.to(product.G.dtype))


def _parts(vector: Tensor, change: Change) -> tuple[Tensor, Tensor | None]:
    """Views of a layer's weight (n, m) and bias (n,) in a flat vector."""
    n, m = change.shape
    V = vector[change.weight : change.weight + n * m].view(n, m)
    return V, None if change.bias is None else vector[change.bias : change.bias + n]


def _changed_block(block: Block, change: Change) -> Block:
    center, left, right = change.center, change.left, change.right
    if isinstance(block, Rows):
        n, m = change.shape
        W, beta = block.matrix[:, : n * m].view(-1, n, m), block.matrix[:, n * m :]
        if center is not None:
            W = W - beta[:, :, None] * center
        W = _left(left, _times(W, right)).reshape(len(W), -1)
        return replace(block, matrix=W if change.bias is None else torch.cat([W, _times(beta, left)], dim=1))
    outputs = _times(block.outputs, left) if isinstance(block, Outer) else _left(left, block.outputs)
    if block.weight is None:
        return replace(block, outputs=outputs)
    if isinstance(block, Outer):
        inputs = _times(block.inputs if center is None else block.inputs - center, right)
    else:
        inputs = _left(right, block.inputs if center is None else block.inputs - center[:, None])
    return replace(block, inputs=inputs, outputs=outputs)


def _mean_diagonal(M: Tensor) -> Tensor:
    return M.diagonal().mean() if M.ndim else M


def _inverse_root(M: Tensor, shift: Tensor) -> Tensor:
    """C⁻¹ of C Cᵀ = M + shift I; eigenvalues of M that rounding made negative count as 0."""
    if not M.ndim:
        return (M.clamp(min=0) + shift).rsqrt()
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    C, failed = torch.linalg.cholesky_ex(M + shift * eye)
    if not int(failed):
        return torch.linalg.solve_triangular(C, eye, upper=False)
    w, V = torch.linalg.eigh(M)
    return (w.clamp(min=0) + shift).rsqrt()[:, None] * V.T


def _turned(matrix: Tensor) -> Tensor:
    """The transpose of a matrix; a number unchanged."""
    return matrix.mT if matrix.ndim else matrix


def _left(matrix: Tensor, values: Tensor) -> Tensor:
    """A matrix, or a number, times every matrix in the last two axes of the values."""
    return matrix @ values if matrix.ndim else values * matrix


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """A matrix, or a number, times every vector along the last axis of the values."""
    return values @ matrix.mT if matrix.ndim else values * matrix
