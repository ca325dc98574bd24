"""The digital factor T under the whole curvature: what the device holds is λI + M RᵀR Mᵀ, M = T⁻¹, T Tᵀ near RᵀR.

T is stale (see tngd.history) and a Kronecker product a layer. A row of R is a matrix (β | W) (n, 1 + m) of a layer, of
its bias and weight, and

    G = Σ ββᵀ + W Wᵀ,   A = Σ (β | W)ᵀ (β | W) / tr G,   then A ← A/A₀₀, G ← A₀₀ G,

summed over rows, is one step from the identity towards the product A ⊗ G nearest to RᵀR (Van Loan and Pitsianis, 1993).
Damped as K-FAC is (Martens and Grosse, 2015), A = (1 āᵀ; ā B + π √δ I), π² the ratio of the mean diagonals of B and G,
C Cᵀ = B + π √δ I - ā āᵀ and L Lᵀ = G + √δ/π I, a gradient (V, β) has on the device the coordinates

    V' = L⁻¹ (V - β āᵀ) C⁻ᵀ,   β' = L⁻¹ β,        and a state (V', β') is read as   V = L⁻ᵀ V' C⁻¹,   β = L⁻ᵀ β' - V ā,

the transpose. Inputs a become C⁻¹ (a - ā), centred and white: a factor keeps its form.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tngd.gram import Factor, Outer, Positions, Rows

LARGEST = 2048  # numbers on a side of a layer; beyond, that side gets a multiple of I
BALANCE = 1e-3, 1e3
TINY = 1e-30

Block = Outer | Positions | Rows


@dataclass(frozen=True, eq=False)
class Product:
    """A ⊗ G of one layer, by the offsets of its weight and bias (None: not trained, then no ā)."""

    weight: int | None
    bias: int | None
    shape: tuple[int, int]  # (n, m)
    center: Tensor | None  # ā (m,)
    B: Tensor  # (m, m), or a number
    G: Tensor  # (n, n), or a number


@dataclass(frozen=True, eq=False)
class Change:
    """The coordinates of one layer: ā (m,), C⁻¹ (m, m) and L⁻¹ (n, n), or numbers."""

    weight: int | None
    bias: int | None
    shape: tuple[int, int]  # (n, m)
    center: Tensor | None
    right: Tensor
    left: Tensor


@dataclass(frozen=True, eq=False)
class Metric:
    """M = T⁻¹ of a whole network; parameters of no layer in it are left as they are."""

    changes: tuple[Change, ...]

    def upload(self, vector: Tensor) -> Tensor:
        """M v, (N,)."""
        total = vector.clone()
        for change in self.changes:
            V, beta = _parts(total, change)
            if V is not None:
                centred = V if beta is None else V - torch.outer(beta, change.center)
                V.copy_(_left(change.left, _times(centred, change.right)))
            if beta is not None:
                beta.copy_(_times(beta, change.left))
        return total

    def read(self, state: Tensor) -> Tensor:
        """Mᵀ y, (N,)."""
        total = state.clone()
        for change in self.changes:
            V, beta = _parts(total, change)
            if beta is not None:
                beta.copy_(_times(beta, change.left.mT))
            if V is not None:
                V.copy_(_left(change.left.mT, _times(V, change.right.mT)))
            if V is not None and beta is not None:
                beta.sub_(V @ change.center)
        return total

    def factor(self, factor: Factor) -> Factor:
        """R Mᵀ, (r, N)."""
        places = {(change.weight, change.bias): change for change in self.changes}
        blocks = [
            _changed_block(block, places[key]) if (key := _place(block)) in places else block for block in factor.blocks
        ]
        return Factor(tuple(blocks), factor.rank, factor.size)


def nearest_products(factor: Factor, shapes: Mapping[int, tuple[int, int]]) -> tuple[Product, ...]:
    """The product of every layer whose rows are its own; `shapes` (n, m) of weights by their offsets."""
    return tuple(
        _normalized(*_place(block), *_moments(block, shapes)) for block in factor.blocks if _has_product(block, shapes)
    )


def averaged(old: tuple[Product, ...], new: tuple[Product, ...], share: float) -> tuple[Product, ...]:
    """The running mean of layers seen before, 1 - share the new; layers not in `new` stay."""
    known = {(product.weight, product.bias): product for product in old}
    for product in new:
        key = product.weight, product.bias
        if key in known:
            center = None if product.center is None else product.center.lerp(known[key].center, share)
            B, G = product.B.lerp(known[key].B, share), product.G.lerp(known[key].G, share)
            product = replace(product, center=center, B=B, G=G)
        known[key] = product
    return tuple(known.values())


def metric_of(products: tuple[Product, ...], damping: float) -> Metric:
    """M of the products with damping δ > 0."""
    return Metric(tuple(_change(product, damping) for product in products))


def _has_product(block: Block, shapes: Mapping[int, tuple[int, int]]) -> bool:
    if isinstance(block, Positions):
        return block.inputs.shape[1] == 1
    if isinstance(block, Outer):
        return True
    (offset, length), *more = block.places
    n, m = shapes.get(offset, (0, 0))
    return length == n * m > 0 and [each[1] for each in more] in ([], [n])


def _place(block: Block) -> tuple[int | None, int | None]:
    if isinstance(block, Rows):
        return block.places[0][0], block.places[1][0] if len(block.places) == 2 else None
    return block.weight, block.bias


def _moments(
    block: Block, shapes: Mapping[int, tuple[int, int]]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Σ ββᵀ + W Wᵀ, and A before it is scaled, in parts: A₀₀ and Σ Wᵀβ (None without bias), Σ Wᵀ W."""
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
    a, g = block.inputs, block.outputs
    energy = g.square().sum((1, 2))
    size = a.square().sum(1) if block.weight is not None else a.new_zeros(len(a))
    B = (a * energy[:, None]).T @ a
    if block.bias is not None:
        size = size + 1
    scaled = (g * size.sqrt()[:, None, None]).flatten(0, 1)
    G = scaled.T @ scaled
    return (G, energy.sum(), energy @ a, B) if block.bias is not None else (G, None, None, B)


def _position_moments(block: Positions) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    a, g = block.inputs[:, 0], block.outputs[:, :, 0]  # (b, m, p), (b, q, n, p)
    if block.weight is None:
        a = a[:, :0]
    if block.bias is not None:
        a = torch.cat([a.new_ones(len(a), 1, a.shape[2]), a], dim=1)
    flat = g.flatten(1, 2)
    A = ((a @ (flat.mT @ flat)) @ a.mT).sum(0)
    g_seen = (flat @ (a.mT @ a)).view(g.shape)
    G = torch.einsum("bqip,bqjp->ij", g_seen, g)
    return (G, A[0, 0], A[0, 1:], A[1:, 1:]) if block.bias is not None else (G, None, None, A)


def _normalized(
    weight: int | None, bias: int | None, G: Tensor, first: Tensor | None, mixed: Tensor | None, B: Tensor
) -> Product:
    total = G.trace().clamp(min=TINY)
    scale = (B.trace() / max(1, len(B)) if first is None else first).clamp(min=TINY)
    center = None if mixed is None or weight is None else mixed / scale
    return Product(weight, bias, (len(G), len(B)), center, _bounded(B / scale), _bounded(G * (scale / total)))


def _bounded(M: Tensor) -> Tensor:
    return M if len(M) <= LARGEST else M.diagonal().mean()


def _change(product: Product, damping: float) -> Change:
    weight, bias, center = product.weight, product.bias, product.center
    B, G = product.B.double(), product.G.double()
    ratio = torch.ones((), dtype=B.dtype, device=B.device)
    if weight is not None:
        ratio = (_mean_diagonal(B) / _mean_diagonal(G).clamp(min=TINY)).sqrt().clamp(*BALANCE)
    if center is not None:
        a = center.double()
        B = B - torch.outer(a, a) if B.ndim else B - a.square().mean()
    right = _inverse_root(B, ratio * damping**0.5) if weight is not None else B
    left = _inverse_root(G, damping**0.5 / ratio)
    return Change(weight, bias, product.shape, center, right.to(product.B.dtype), left.to(product.G.dtype))


def _parts(vector: Tensor, change: Change) -> tuple[Tensor | None, Tensor | None]:
    """Views of a layer's weight (n, m) and bias (n,) in a flat vector."""
    n, m = change.shape
    V = None if change.weight is None else vector[change.weight : change.weight + n * m].view(n, m)
    return V, None if change.bias is None else vector[change.bias : change.bias + n]


def _changed_block(block: Block, change: Change) -> Block:
    center, left, right = change.center, change.left, change.right
    if isinstance(block, Rows):
        n, m = change.shape
        W, beta = block.matrix[:, : n * m].view(-1, n, m), block.matrix[:, n * m :]
        if center is not None:
            W = W - beta[:, :, None] * center
        W = _left(left, _times(W, right)).reshape(len(W), -1)
        return replace(block, matrix=torch.cat([W, _times(beta, left)], dim=1))
    outputs = _times(block.outputs, left) if isinstance(block, Outer) else _left(left, block.outputs)
    if change.weight is None:
        return replace(block, outputs=outputs)
    if isinstance(block, Outer):
        inputs = _times(block.inputs if center is None else block.inputs - center, right)
    else:
        inputs = _left(right, block.inputs if center is None else block.inputs - center[:, None])
    return replace(block, inputs=inputs, outputs=outputs)


def _mean_diagonal(M: Tensor) -> Tensor:
    return M.diagonal().mean() if M.ndim else M


def _inverse_root(M: Tensor, shift: Tensor) -> Tensor:
    """C⁻¹ of C Cᵀ = M + shift I."""
    if not M.ndim:
        return (M.clamp(min=0) + shift).rsqrt()
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(M + shift * eye), eye, upper=False)


def _left(matrix: Tensor, values: Tensor) -> Tensor:
    """A matrix, or a number, times every matrix of the last two axes."""
    return matrix @ values if matrix.ndim else values * matrix


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """Every vector along the last axis times a matrix, or a number."""
    return values @ matrix.mT if matrix.ndim else values * matrix
