"""One backward pass for all q cotangents of a batch, if the graph is a chain of layers that do not mix samples.

Autograd takes one pass for each cotangent. Along a chain, the same rules apply to all cotangents at once, on gradients
(*features, q, b) with samples last, so that every operation runs along a long axis:

    linear G <- Wᵀ G,    activation G <- f'(z) ∘ G,    average over k positions: each gets G/k,
    convolution of stride s: position x of its input gets Σ W_iᵀ G_u over outputs u and offsets i with s u + i = x.

Autograd handles all other graphs, and convolutions of stride 1, for which torch is faster.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

Node = Any  # of autograd's graph: torch names no public type with saved values
Law = Callable[[Node, Tensor], Tensor]


def way_down(outputs: Tensor, edges: Sequence[torch.autograd.graph.GradientEdge]) -> list[Node] | None:
    """The graph nodes from outputs (b, d) down to the lowest edge; None if they are no chain of known operations."""
    wanted, node, way = {edge.node for edge in edges}, outputs.grad_fn, []
    if not edges or len(wanted) < len(edges):
        return None
    while True:
        way.append(node)
        wanted.discard(node)
        if not wanted:
            return way
        down = None if node is None else _input(node, len(outputs))
        if down is None:
            return None
        inputs = [following for following, _ in node.next_functions]
        if not all(_is_parameter(inputs[k]) for k in range(len(inputs)) if k != down):
            return None
        node = inputs[down]


@torch.no_grad()
def folded_gradients(way: list[Node], edges: Sequence[torch.autograd.graph.GradientEdge], S: Tensor) -> list[Tensor]:
    """The gradients (b, q, features) at every edge for cotangents S (b, q, d), in one pass along a chain of nodes."""
    places = {edge.node: k for k, edge in enumerate(edges)}
    found: list[Tensor] = [S] * len(edges)
    G = S.permute(2, 1, 0).clone(memory_format=torch.contiguous_format)
    slope = None  # f'(z) of the activation just passed, (b, *features); _by_sample applies the last one
    for node in way:
        if slope is not None and node is not way[-1]:
            G, slope = G.mul_(_samples_last(slope)), None
        if node in places:
            found[places[node]] = _by_sample(G, slope)
        if node.name() in SLOPES:
            slope = SLOPES[node.name()](node._saved_result)
        elif node is not way[-1]:
            G = LAWS[node.name()](node, G)
    return found


def _by_sample(G: Tensor, slope: Tensor | None) -> Tensor:
    """Copy (*features, q, b) to (b, q, features): two transpositions of two axes are faster than one of three."""
    q, b = G.shape[-2:]
    found = G.reshape(-1, q * b).T.contiguous().view(q, b, -1).transpose(0, 1)
    if slope is not None:
        return torch.mul(found, slope.reshape(b, 1, -1), out=G.new_empty(b, q, found.shape[-1]))
    return found.clone(memory_format=torch.contiguous_format)


def _is_parameter(node: Node) -> bool:
    """Whether a node is a parameter, perhaps transposed, or None (no gradient needed)."""
    if node is not None and node.name() == "TBackward0":
        node = node.next_functions[0][0]
    return node is None or node.name() == "torch::autograd::AccumulateGrad"


def _samples_last(values: Tensor) -> Tensor:
    """Values (b, *features) as (*features, 1, b)."""
    return values.flatten(1).T.contiguous().view(*values.shape[1:], 1, -1)


def _linear(weight: Tensor, G: Tensor) -> Tensor:
    """The gradient (m, q, b) at the input of a linear layer from G (n, q, b) at its output; weight (m, n)."""
    return (weight @ G.flatten(1)).view(-1, *G.shape[1:])


def _average(node: Node, G: Tensor) -> Tensor:
    channels, h, w, q, b = G.shape
    k = node._saved_kernel_size
    parts = (G / prod(k))[:, :, None, :, None].expand(channels, h, k[0], w, k[1], q, b)
    return parts.reshape(channels, h * k[0], w * k[1], q, b)


def _convolution(node: Node, G: Tensor) -> Tensor:
    weight, groups = node._saved_weight, node._saved_groups
    step, spread, edge = node._saved_stride, node._saved_dilation, node._saved_padding
    (_, m, *kernel), (_, h, w, q, b) = weight.shape, G.shape
    height, width = (size + 2 * p for size, p in zip(node._saved_input.shape[2:], edge, strict=True))
    G, W = G.view(groups, len(weight) // groups, -1), weight.view(groups, -1, m, *kernel).permute(3, 4, 0, 2, 1)
    W = W.contiguous()
    total = G.new_zeros(groups * m, height, width, q, b)
    for i in range(kernel[0]):
        rows = slice(i * spread[0], i * spread[0] + step[0] * (h - 1) + 1, step[0])
        for j in range(kernel[1]):
            columns = slice(j * spread[1], j * spread[1] + step[1] * (w - 1) + 1, step[1])
            total[:, rows, columns] += (W[i, j] @ G).view(-1, h, w, q, b)
    return total[:, edge[0] : height - edge[0], edge[1] : width - edge[1]].contiguous()


def _input(node: Node, b: int) -> int | None:
    """The index of the node's input along which the chain continues; None for an unknown operation or setting."""
    name = node.name()
    if name in SLOPES:
        return 0
    if name not in LAWS or (name == "ViewBackward0" and node._saved_self_sym_sizes[0] != b):
        return None
    if name == "AddmmBackward0":
        return 1 if node._saved_alpha == 1 else None
    if name == "AvgPool2DBackward0" and not _is_tiled(node):
        return None
    if name == "ConvolutionBackward0" and not _is_strided(node):
        return None
    return 0


def _is_tiled(node: Node) -> bool:
    """Whether the windows of an average pooling tile its input exactly, without overlap or padding."""
    k, step = tuple(node._saved_kernel_size), tuple(node._saved_stride)
    plain = step in ((), k) and not any(node._saved_padding) and node._saved_divisor_override is None
    shape = node._saved_self.shape
    return plain and len(shape) == 4 and shape[2] % k[0] == shape[3] % k[1] == 0


def _is_strided(node: Node) -> bool:
    if node._saved_transposed or node._saved_input is None or node._saved_weight is None:
        return False
    return node._saved_weight.ndim == 4 and prod(node._saved_stride) > 1


LAWS: dict[str, Law] = {
    "AddmmBackward0": lambda node, G: _linear(node._saved_mat2, G),
    "MmBackward0": lambda node, G: _linear(node._saved_mat2, G),
    "ConvolutionBackward0": _convolution,
    "AvgPool2DBackward0": _average,
    "ViewBackward0": lambda node, G: G.reshape(*node._saved_self_sym_sizes[1:], *G.shape[-2:]),
}
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # f'(z) from the result f(z)
    "ReluBackward0": lambda y: (y > 0).to(y.dtype),
    "TanhBackward0": lambda y: 1 - y.square(),
    "SigmoidBackward0": lambda y: y * (1 - y),
}
