"""K-FAC, the amortised digital baseline: per layer the curvature is a Kronecker product A ⊗ G of two running means,

    A = mean over samples of Σ_p ā āᵀ,   G = mean over samples and positions p of g gᵀ,   δW = G_λ⁻¹ ∇W A_λ⁻¹,

ā the input with a 1 for the bias, g gradients of sampled targets, A_λ = A + π √λ I, G_λ = G + √λ/π I, and π² the ratio
of the mean diagonals of A and G (Martens and Grosse, 2015; Grosse and Martens, 2016 for convolutions).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from circuits.errors import InputError
from tngd.curvature.curvatures import curvature_cotangents
from tngd.curvature.layers import Call, Recorder, by_position, seen
from tngd.curvature.losses import CROSS_ENTROPY, Loss
from tngd.optimizer.baselines import check_positive


@dataclass(eq=False)
class Layer:
    """Running means of one layer and the inverses of their damped values."""

    A: Tensor
    G: Tensor
    inverses: tuple[Tensor, Tensor] | None = None


class KFAC(torch.optim.Optimizer):
    """K-FAC for models of linear layers and convolutions without groups; same closure convention as TNGD.

    `factors` and `inverses`: steps between two updates of the means (weight 1 - `decay` the new) and of the inverses.
    InputError, naming it, for a parameter of another layer.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        damping: float = 1e-2,
        momentum: float = 0.0,
        factors: int = 10,
        inverses: int = 100,
        decay: float = 0.95,
        loss: Loss = CROSS_ENTROPY,
        seed: int = 0,
    ):
        check_positive(lr=lr, damping=damping, factors=factors, inverses=inverses)
        parameters = [p for p in model.parameters() if p.requires_grad]
        super().__init__(parameters, {"lr": lr, "damping": damping, "momentum": momentum})
        self.recorder = Recorder(model, parameters)
        self.factors, self.inverses, self.decay, self.loss = factors, inverses, decay, loss
        self.layers: dict[nn.Module, Layer] = {}
        self.steps = 0
        self._generator = torch.Generator().manual_seed(seed)
        seen = {id(p) for layer in self.recorder.places for p in layer.parameters() if p.requires_grad}
        for name, p in model.named_parameters():
            if p.requires_grad and id(p) not in seen:
                raise InputError(f"K-FAC has linear layers and convolutions only, but {name!r} is of another layer")

    def step(self, closure: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        """One update; returns the loss before it."""
        group = self.param_groups[0]
        with torch.enable_grad():
            outputs, targets, calls = self.recorder.evaluate(closure)
            value = self.loss.value(outputs, targets)
            fresh = self.steps % self.factors == 0
            found = torch.autograd.grad(value, group["params"], retain_graph=fresh)
            if fresh:
                S = curvature_cotangents("mc", outputs, targets, self.loss, None, self._generator)
                gradients = self.recorder.gradients(outputs, calls, S[:, 0])
        with torch.no_grad():
            if fresh:
                for call, G in zip(calls, gradients, strict=True):
                    self._follow(call, G)
            if self.steps % self.inverses == 0:
                for layer in self.layers.values():
                    layer.inverses = _damped_inverses(layer, group["damping"])
            self._move(dict(zip(map(id, group["params"]), found, strict=True)), group)
        self.steps += 1
        return value.detach()

    def state_dict(self) -> dict[str, Any]:
        """The settings, and under "factors" all that a resumed run needs."""
        content = super().state_dict()
        content["factors"] = {
            "steps": self.steps,
            "generator": self._generator.get_state(),
            "layers": {
                self.recorder.modules[module]: {"A": layer.A, "G": layer.G, "inverses": layer.inverses}
                for module, layer in self.layers.items()
            },
        }
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved; InputError if it is that of another optimizer or model."""
        content = dict(state_dict)
        held = content.pop("factors", None)
        places = {name: module for module, name in self.recorder.modules.items()}
        if held is None or not held["layers"].keys() <= places.keys():
            raise InputError("expected the state_dict of a K-FAC optimizer of this model, got another")
        super().load_state_dict(content)
        self.steps = held["steps"]
        self._generator.set_state(held["generator"])
        self.layers = {places[name]: Layer(**layer) for name, layer in held["layers"].items()}

    def _follow(self, call: Call, gradient: Tensor) -> None:
        inputs, outputs = seen(call), by_position(call, gradient)
        b, groups, m, positions = inputs.shape
        if groups > 1:
            raise InputError("K-FAC has convolutions without groups only, got one with groups")
        a = inputs.transpose(1, 3).reshape(-1, m)
        g = outputs.transpose(1, 3).reshape(b * positions, -1)
        if call.layer.bias is not None:
            a = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
        A, G = a.T @ a / b, g.T @ g / positions
        old = self.layers.get(call.layer)
        if old is None:
            self.layers[call.layer] = Layer(A, G)
        else:
            old.A, old.G = old.A.lerp(A, 1 - self.decay), old.G.lerp(G, 1 - self.decay)

    def _move(self, gradients: dict[int, Tensor], group: dict) -> None:
        for module, layer in self.layers.items():
            weight, bias = module.weight, module.bias
            slope = gradients[id(weight)].reshape(len(weight), -1)
            if bias is not None:
                slope = torch.cat([slope, gradients[id(bias)][:, None]], dim=1)
            inverse_a, inverse_g = layer.inverses
            step = inverse_g @ slope @ inverse_a
            if group["momentum"]:
                kept = self.state[weight]
                step = kept["step"] = step + group["momentum"] * kept.get("step", torch.zeros_like(step))
            if bias is not None:
                bias.sub_(step[:, -1], alpha=group["lr"])
                step = step[:, :-1]
            weight.sub_(step.reshape(weight.shape), alpha=group["lr"])


def _damped_inverses(layer: Layer, damping: float) -> tuple[Tensor, Tensor]:
    """A_λ⁻¹ and G_λ⁻¹."""
    balance = (layer.A.diagonal().mean() / layer.G.diagonal().mean().clamp(min=1e-30)).sqrt().clamp(1e-3, 1e3)
    inverses = []
    for M, share in ((layer.A, balance), (layer.G, 1 / balance)):
        eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(M + share * damping**0.5 * eye)))
    return tuple(inverses)
