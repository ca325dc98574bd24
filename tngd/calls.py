"""One call of a linear or convolutional layer: what it saw and the gradient at its output, position by position.

At one position a layer gives W a + β, a what it sees there: (b, groups, channels, positions), and so its gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: its input and the place of its output in the graph."""

    layer: nn.Module
    inputs: Tensor
    edge: torch.autograd.graph.GradientEdge
    shape: torch.Size


def operations(outputs: Tensor) -> frozenset[type]:
    """The kinds of all operations in the graph of outputs."""
    todo, met = [outputs.grad_fn], {outputs.grad_fn}
    while todo:
        for before, _ in todo.pop().next_functions:
            if before is not None and before not in met:
                met.add(before)
                todo.append(before)
    return frozenset(map(type, met))


def by_position(call: Call, gradient: Tensor) -> Tensor:
    """The gradient (b, *) at the output of a call as (b, groups, n, positions)."""
    layer, b = call.layer, len(gradient)
    if isinstance(layer, nn.Linear):
        return _places(gradient).mT[:, None]
    return gradient.reshape(b, layer.groups, layer.out_channels // layer.groups, -1)


def seen(call: Call) -> Tensor:
    """What a call saw, (b, groups, m, positions)."""
    layer, a = call.layer, call.inputs
    b = len(a)
    if isinstance(layer, nn.Linear):
        return _places(a).mT[:, None]
    patches = _patches(layer, a)
    return patches.reshape(b, layer.groups, -1, patches.shape[-2] * patches.shape[-1])


def is_recorded(module: nn.Module) -> bool:
    """Linear and Conv2d, subclasses too unless they compute something else."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward


def is_plain(call: Call) -> bool:
    """Whether the output of a call is (b, n) or (b, n, *positions)."""
    return call.inputs.ndim == 2 or isinstance(call.layer, nn.Conv2d)


def _places(values: Tensor) -> Tensor:
    """Values (b, *, n) as (b, positions, n), n = 0 too."""
    return values[:, None] if values.ndim == 2 else values.flatten(1, -2)


def _patches(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """What every output position sees, (b, channels, *kernel, *positions), a view of the padded input."""
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        a = nn.functional.pad(a, layer._reversed_padding_repeated_twice, mode=mode)
    a = a.contiguous()
    b, channels, *extent = a.shape
    sample, channel, *unit = a.stride()
    kernel, step, spread = layer.kernel_size, layer.stride, layer.dilation
    places = [(extent[i] - spread[i] * (kernel[i] - 1) - 1) // step[i] + 1 for i in (0, 1)]
    strides = [spread[0] * unit[0], spread[1] * unit[1], step[0] * unit[0], step[1] * unit[1]]
    return a.as_strided((b, channels, *kernel, *places), (sample, channel, *strides))
