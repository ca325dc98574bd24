"""Inputs and output gradients of linear and convolutional layers, and the curvature factor R made of them.

Forward hooks keep the input of every layer call and the place of its output in the graph. Backward passes from the
outputs give the gradients at these places for all samples at once: one pass for each of the q cotangents of a sample
or, along a chain of layers (tngd.curvature.backward), one pass for all q. At each of its positions a layer computes
W a + β; inputs a and output gradients are arranged by position, (b, groups, channels, positions), and become the
layer's block of R, all cotangents at once or one after the other.

The gradients are those of single samples only if samples do not mix, and they are complete only if no other operation
uses the layers' parameters. Recorder.check tests both, ever more rarely for each kind of graph. Parameters of other
layers get explicit rows, one backward pass a row.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from circuits.errors import InputError
from tngd.curvature.backward import folded_gradients, way_down
from tngd.curvature.curvatures import evaluated, explicit_rows
from tngd.curvature.factor import Factor, Outer, Positions, Rows, apart

LIMIT = 2**24  # numbers in the explicit rows of one layer; beyond, inputs and output gradients are kept instead
WARM = 31 * 2**20  # bytes; see Recorder
Block = Outer | Positions | Rows
Places = tuple[int | None, int | None]
TOLERANCE = 1e-3  # relative difference of recorded and autograd's gradients, for float32 networks of any depth
NEGLIGIBLE = 1e-5  # of the largest gradient; smaller differences are rounding in float32
GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are evenly spread

KEPT = 2**22  # numbers in the gradients of one layer call; beyond, rows are formed for one cotangent at a time


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: its input and the place of its output in the graph."""

    layer: nn.Module
    inputs: Tensor
    edge: torch.autograd.graph.GradientEdge
    shape: torch.Size


class Writer:
    """Builder of the block of R of one layer call, from its inputs (b, groups, m, positions) and output gradients.

    A block of kind Rows has explicit rows. They are formed together at the end, which is faster, or, where the
    gradients of all cotangents together would be large, one cotangent at a time.
    """

    def __init__(self, inputs: Tensor, channels: int, q: int, places: tuple[int | None, int | None], kind: type):
        b, groups, m, positions = inputs.shape
        self.inputs, self.kind, (self.weight, self.bias) = inputs, kind, places
        self.at_once = kind is Rows and b * q * channels * positions > KEPT
        self.columns = channels * m if self.weight is not None else 0
        width = channels if kind is Outer else channels * positions
        if self.at_once:
            width = self.columns + (channels if self.bias is not None else 0)
        self.shape = (groups, channels // groups, positions)
        self.size = b, q, width
        self.kept = inputs.new_empty(0)

    def add(self, c: int, gradient: Tensor) -> None:
        """Take the gradients (b, groups, n, positions) of cotangent c."""
        if not len(self.kept):
            self.kept = self.inputs.new_empty(self.size)
        if not self.at_once:
            self.kept[:, c] = gradient.reshape(len(gradient), -1)
            return
        if self.columns:
            self.kept[:, c, : self.columns] = (gradient @ self.inputs.mT).view(len(gradient), -1)
        if self.bias is not None:
            self.kept[:, c, self.columns :] = gradient.sum(-1).view(len(gradient), -1)

    def take(self, gradients: Tensor) -> None:
        """Take over the gradients (b, q, channels * positions) of all cotangents; the caller must not change them."""
        self.kept = gradients

    def block(self) -> Outer | Positions | Rows:
        """The block, once all cotangents are in; it does not use the inputs' memory, which the caller may reuse."""
        b, q, _ = self.kept.shape
        if self.kind is Outer:
            return Outer(self.inputs[:, 0, :, 0].clone(), self.kept, self.weight, self.bias)
        if not self.at_once:
            block = Positions(self.inputs, self.kept.view(b, q, *self.shape), self.weight, self.bias)
            return block.rows() if self.kind is Rows else replace(block, inputs=self.inputs.clone())
        places = [(self.weight, self.columns)] if self.weight is not None else []
        places += [(self.bias, self.shape[0] * self.shape[1])] if self.bias is not None else []
        return Rows(self.kept.view(b * q, -1), tuple(places))


class Recorder:
    """Recorder of a model's layer calls; `parameters` are the trained ones in the order of the flat vector (N,)."""

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]):
        self.parameters = list(parameters)
        self.size = sum(p.numel() for p in parameters)
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.offsets, start = {}, 0
        for p in parameters:
            self.offsets[id(p)] = start
            start += p.numel()
        self.modules = {module: name for name, module in model.named_modules()}
        self.owned = _owned(self.modules)
        owners: dict[int, list[nn.Module]] = {}
        for module in self.modules:
            for p in module._parameters.values():
                if p is not None and id(p) in self.offsets:
                    owners.setdefault(id(p), []).append(module)
        self.recorded = {k for k, found in owners.items() if all(map(is_recorded, found))}
        places = {module: self._offsets_of(module) for module in self.modules if is_recorded(module)}
        self.places = {module: found for module, found in places.items() if found != (None, None)}
        self.seen: Counter[int] = Counter()  # number of curvatures so far, by kind of graph
        self._refuse_sparse()
        # Allocate a block just under 32 MiB and free it untouched: from then on glibc keeps freed blocks of that size
        # for the next step, which would otherwise spend a tenth of its time on page faults. No effect elsewhere.
        torch.empty(WARM, dtype=torch.uint8)

    def holds(self) -> bool:
        """Whether the model still has the same modules and parameters."""
        return self.owned == _owned(self.modules)

    def refuse_mixing(self) -> None:
        """InputError if a layer mixes samples by design (batch normalization)."""
        for module, name in self.modules.items():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                raise InputError(
                    f"layer {name!r} ({type(module).__name__}) mixes the samples of a batch while it trains; put it in "
                    "eval(), use GroupNorm, or give TNGD the parameters without the model (exact, slow)"
                )

    @contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Collect the layer calls made inside the context."""
        self.refuse_mixing()
        calls: list[Call] = []

        def keep(layer: nn.Module, inputs: tuple, named: dict, output: Tensor) -> None:
            seen_by = inputs[0] if inputs else named["input"]
            if seen_by.layout != torch.strided:
                raise InputError(f"layer {self.modules[layer]!r} took a sparse input; make it dense first")
            if output.dtype != layer.weight.dtype:
                raise InputError(
                    f"layer {self.modules[layer]!r} computed in {output.dtype} and its parameters are "
                    f"{layer.weight.dtype}; compute both alike, without autocast"
                )
            if torch.is_grad_enabled() and output.requires_grad:
                edge = torch.autograd.graph.get_gradient_edge(output)
                calls.append(Call(layer, seen_by.detach(), edge, output.shape))

        handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in self.places]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def evaluate(self, closure: Callable) -> tuple[Tensor, Tensor, list[Call]]:
        """Outputs and targets of the closure, and its layer calls; InputError if a layer did not take the batch."""
        with self.recording() as calls:
            outputs, targets = evaluated(closure)
        for call in calls:
            if call.inputs.ndim < 2 or len(call.inputs) != len(outputs):
                shape = tuple(call.inputs.shape)
                raise InputError(
                    f"layer {self.modules[call.layer]!r} took {shape}, not a batch of {len(outputs)}; keep samples "
                    "first, or give TNGD the parameters without the model (exact, slow)"
                )
        return outputs, targets, calls

    def factor(self, outputs: Tensor, calls: list[Call], S: Tensor) -> Factor:
        """R (b q, N) from cotangents S (b, q, d); the graph is kept."""
        writers = [_writer(call, S.shape[1], self.places[call.layer]) for call in calls]
        edges = [call.edge for call in calls]
        # Autograd handles single cotangents, sequences, and gradients too large to keep together.
        fold = S.shape[1] > 1 and all(map(is_plain, calls)) and not any(each.at_once for each in writers)
        way = way_down(outputs, edges) if fold else None
        if way is not None:
            for writer, G in zip(writers, folded_gradients(way, edges, S), strict=True):
                writer.take(G)
        else:
            for c in range(S.shape[1]):
                for writer, call, G in zip(writers, calls, self.gradients(outputs, calls, S[:, c]), strict=True):
                    writer.add(c, by_position(call, G))
        return self._joined(outputs, calls, writers, S)

    def gradients(self, outputs: Tensor, calls: list[Call], cotangent: Tensor) -> list[Tensor]:
        """The gradients (b, *) at the outputs of all calls for one cotangent (b, d); zero where no gradient arrives."""
        if not calls:
            return []
        edges = [call.edge for call in calls]
        found = torch.autograd.grad(outputs, edges, grad_outputs=cotangent, retain_graph=True, allow_unused=True)
        return [
            outputs.new_zeros(1).expand(call.shape) if G is None else G for call, G in zip(calls, found, strict=True)
        ]

    def check(self, outputs: Tensor, calls: list[Call]) -> None:
        """InputError, naming a layer, if samples mix or change places, or a layer's parameters are used outside it.

        The check takes a few backward passes, so it is made only with the first, second, fourth, eighth … curvature of
        a kind of graph: the set of its operations, which modules are in training mode, and whether the batch has
        several samples (one sample alone cannot show that samples mix).
        """
        kind = hash((operations(outputs), tuple(module.training for module in self.modules), len(outputs) > 1))
        taken = self.seen[kind]
        if not taken & (taken + 1):
            self._check(outputs, calls)
        self.seen[kind] += 1  # not after an error: the next curvature is then checked again

    def _check(self, outputs: Tensor, calls: list[Call]) -> None:
        b, d = outputs.shape
        # Cotangents independent of the loss: the loss gradients of a trained network nearly cancel.
        number = torch.arange(b * d, dtype=torch.float64).view(b, d)
        even = torch.cos(number * number).to(outputs)
        weight = 0.5 + (number[:, :1] * GOLDEN % 1).to(outputs)
        plain, weighted = (self.gradients(outputs, calls, each) for each in (even, weight * even))
        sizes = [float(G.norm()) for G in weighted]
        for call, one, other, size in zip(calls, plain, weighted, sizes, strict=True):
            gap = other - weight.view(b, *[1] * (other.ndim - 1)) * one
            if float(gap.norm()) > TOLERANCE * size + NEGLIGIBLE * max(sizes):
                raise InputError(
                    f"samples of the batch mix or change places after layer {self.modules[call.layer]!r}; keep samples "
                    "first, apart and in order, or give TNGD the parameters without the model (exact, slow)"
                )
        self._check_owners(outputs, calls, even)

    def _check_owners(self, outputs: Tensor, calls: list[Call], cotangent: Tensor) -> None:
        found = torch.autograd.grad(
            outputs,
            self.parameters,
            grad_outputs=cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        # Two cotangents of half the size, so that the path for several cotangents at once is checked too.
        halves = cotangent[:, None, :].expand(-1, 2, -1) / 2
        recorded = self.factor(outputs, calls, halves).transpose(cotangent.new_ones(2 * len(outputs)))
        whole = float(torch.stack([g.norm() for g in found]).norm())
        for p, own in zip(self.parameters, found, strict=True):
            part = slice(self.offsets[id(p)], self.offsets[id(p)] + p.numel())
            gap = float((recorded[part] - own.reshape(-1)).norm())
            if gap > TOLERANCE * float(own.norm()) + NEGLIGIBLE * whole:
                raise InputError(
                    f"parameter {self.names.get(id(p), '?')!r} is used outside its layer, where it is not seen; "
                    "give it to a companion optimizer, or give TNGD the parameters without the model (exact, slow)"
                )

    def _offsets_of(self, layer: nn.Module) -> Places:
        """Offsets of weight and bias of a layer; None where not trained or shared with a layer that is not recorded."""
        found = (layer._parameters.get(name) for name in ("weight", "bias"))
        return tuple(self.offsets[id(p)] if p is not None and id(p) in self.recorded else None for p in found)

    def _joined(self, outputs: Tensor, calls: list[Call], writers: list[Writer], S: Tensor) -> Factor:
        """One block for every layer, in whatever order layers were called, and explicit rows of other parameters."""
        found: dict[Places, list[Block]] = {}
        for call, writer in zip(calls, writers, strict=True):
            found.setdefault(self.places[call.layer], []).append(writer.block())
        called = {offset for places in found for offset in places}
        others = [p for p in self.parameters if self.offsets[id(p)] not in called]
        written = self._explicit(outputs, others, S) if others else {}
        blocks: list[Block] = []
        for places in dict.fromkeys(self.places.values()):
            own = tuple(offset for offset in places if offset is not None)
            if written.keys() >= {*own}:  # no recorded call, but its parameters may be used elsewhere
                blocks.append(_beside([written.pop(offset) for offset in own]))
            elif places in found:
                blocks.append(found[places][0] if len(found[places]) == 1 else _summed(found[places]))
        blocks = _untied(blocks)
        if written:
            blocks.append(_beside(list(written.values())))
        blocks.sort(key=lambda block: block.offsets)
        return Factor(tuple(blocks), S.shape[0] * S.shape[1], self.size)

    def _explicit(self, outputs: Tensor, parameters: list[Tensor], S: Tensor) -> dict[int, Rows]:
        matrix = explicit_rows(outputs, parameters, S, [repr(self.names.get(id(p), "?")) for p in parameters])
        rows = apart(Rows(matrix, tuple((self.offsets[id(p)], p.numel()) for p in parameters)))
        return {row.offsets[0]: row for row in rows}

    def _refuse_sparse(self) -> None:
        for module, name in self.modules.items():
            if getattr(module, "sparse", False) and id(module._parameters.get("weight")) in self.offsets:
                raise InputError(
                    f"layer {name!r} ({type(module).__name__}) has sparse gradients; build it with sparse=False, or "
                    "give its parameters to a companion optimizer"
                )


def _owned(modules: Iterable[nn.Module]) -> list[int]:
    """The ids of the parameters and direct submodules of every module."""
    return [id(each) for one in modules for each in (*one._parameters.values(), *one._modules.values())]


def _beside(blocks: Sequence[Rows]) -> Rows:
    """One block with the columns of all blocks, side by side."""
    matrix = torch.cat([block.matrix for block in blocks], dim=1) if len(blocks) > 1 else blocks[0].matrix
    return Rows(matrix, tuple(place for block in blocks for place in block.places))


def _summed(blocks: Sequence[Block]) -> Rows:
    """The explicit rows of a layer that was called several times: the sum over its calls."""
    rows = [block.rows() for block in blocks]
    return Rows(sum(each.matrix for each in rows), rows[0].places)


def _untied(blocks: list[Block]) -> list[Block]:
    """The blocks split so that no two share a parameter: layers that share some parameters get a block for each."""
    times = Counter(offset for block in blocks for offset in block.offsets)
    alone = [block for block in blocks if max(times[offset] for offset in block.offsets) == 1]
    parts: dict[int, list[Rows]] = {}
    for block in blocks:
        if max(times[offset] for offset in block.offsets) > 1:
            for part in apart(block.rows()):
                parts.setdefault(part.offsets[0], []).append(part)
    return alone + [_summed(each) for each in parts.values()]


def _writer(call: Call, q: int, places: Places) -> Writer:
    """Writer of the block of one call with q cotangents: explicit rows only where these are small enough."""
    inputs, layer = seen(call), call.layer
    linear = isinstance(layer, nn.Linear)
    channels = layer.out_features if linear else layer.out_channels
    if linear and call.inputs.ndim == 2:
        return Writer(inputs, channels, q, places, Outer)
    width = channels * (inputs.shape[2] + 1)
    return Writer(inputs, channels, q, places, Rows if len(inputs) * q * width <= LIMIT else Positions)


def operations(outputs: Tensor) -> frozenset[type]:
    """The types of all operations in the graph of the outputs."""
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
    """The input of a call by output position, (b, groups, m, positions)."""
    layer, a = call.layer, call.inputs
    b = len(a)
    if isinstance(layer, nn.Linear):
        return _places(a).mT[:, None]
    patches = _patches(layer, a)
    return patches.reshape(b, layer.groups, -1, patches.shape[-2] * patches.shape[-1])


def is_recorded(module: nn.Module) -> bool:
    """Whether a module is Linear or Conv2d, or a subclass with an unchanged forward."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward


def is_plain(call: Call) -> bool:
    """Whether the output of a call is (b, n) or (b, n, *positions)."""
    return call.inputs.ndim == 2 or isinstance(call.layer, nn.Conv2d)


def _places(values: Tensor) -> Tensor:
    """Values (b, *, n) as (b, positions, n), for n = 0 too."""
    return values[:, None] if values.ndim == 2 else values.flatten(1, -2)


def _patches(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """The input patch of every output position, (b, channels, *kernel, *positions), a view of the padded input."""
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
