"""Thermodynamic natural gradient descent: the gradient goes through the device, θ ← θ - η x(t).

The device holds A = λI + RᵀR, RᵀR the curvature of the batch over the whole parameter vector, and the gradient g; its
state after time t is taken exactly (tngd.device.dynamics). From the gradient, t = 0 is gradient descent and t = ∞ the
damped natural gradient. With a precondition the device holds λI + T⁻¹RᵀRT⁻ᵀ, T of older curvatures
(tngd.optimizer.history). An array puts the errors of a full-size device in (tngd.device.array). With curvature "tiles",
calibrated boards invert 8 x 8 blocks instead (tngd.optimizer.tile_step).
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.factor import all_finite
from tngd.curvature.layers import Recorder
from tngd.curvature.losses import CROSS_ENTROPY, Loss, as_loss
from tngd.device.array import Array
from tngd.device.full_size import ArrayDevice, IdealDevice
from tngd.device.tiles import TileBoard
from tngd.optimizer.adaptation import adapted, random_state, reduction_ratio
from tngd.optimizer.batch import Batch, evaluate_batch, join_batches
from tngd.optimizer.checks import (
    RATE,
    check_groups,
    check_kinds,
    check_one_setting,
    check_parameters,
    check_step,
    listed,
)
from tngd.optimizer.groups import flat, identities, left_to, matrix_shapes, shortened, step_along, take_step, trained
from tngd.optimizer.memory import FullSizeSteps
from tngd.optimizer.resume import check_state, described, settings_of, unpacked_device
from tngd.optimizer.settings import Settings, one_of
from tngd.optimizer.stepped import DeviceStep, SteppedDevice, Upload
from tngd.optimizer.tile_step import TileStep, TileSteps

Closure = Callable[[], tuple[Tensor, Tensor]]
DEFAULTS = Settings()
OWN = ("array", "board", "loss", "model", "inner", "companion", "last", "_steps", "_memory", "_generator")


class TNGD(torch.optim.Optimizer):
    """Natural gradient steps through an analog device.

    Args:
        params: a torch module, or parameters to train, in groups or not. From a module, linear and convolutional layers
            give their curvature layer by layer, which is what makes it cheap; parameters alone give explicit rows, by
            one backward pass each: right for any graph, b times dearer.
        board: the copies that invert tiles, from `tngd.tile_board`; only for curvature "tiles".
        lr: step size η, of each group its own.
        damping: λ.
        refresh: steps for which a curvature is kept (default 1); of tiles, the steps for which the digital factors T
            are kept (default 10), 0 for none at all (T = I).
        loss: a tngd.Loss or a torch criterion.
        curvature: "ggn", "mc" (Fisher of sampled targets), "empirical" (of the true ones), or "tiles".
        time: from upload to reading, in time constants of the device, 0 to inf.
        start: state at the upload: "gradient", "zero", or "kept" from the reading before.
        delay: from a reading to the next upload; the device goes on under the old pair.
        noise: κ₀ of the device.
        seed: of noise and sampled targets.
        weight_decay: decoupled, θ ← (1 - η w) θ, of each group its own.
        max_norm: gradients longer than this are shortened before the upload.
        kl_clip: the largest ½ δᵀRᵀR δ of a step δ; longer ones are shortened. TNGD's own weight decay is not part of
            δ, an inner optimizer's is.
        adapt: every so many steps the damping follows the ratio of the actual to the predicted change of the loss
            (Levenberg-Marquardt; calls the closure once more, for the same batch); 0 keeps it fixed.
        lanczos: Lanczos steps in place of the eigenvectors of K: for large b, approximate.
        tile_curvature: what tiles are blocks of: "ggn", "mc" (much cheaper: one backward pass, not one a class) or
            "empirical".
        history: batches whose curvatures the device holds together, as their mean; one alone is a poor sample.
        precondition: the damping δ of a factor T of older curvatures, a Kronecker product a layer; λ is then the weight
            of T Tᵀ beside the curvature, of order 1. None: no such factor. It needs the module.
        array: the errors of a full-size device (see below); None for an ideal one.
        model: the module, where params are its groups.
        inner: an optimizer of the same parameters, which then takes the step with the direction as its gradient:
            Adam for TNGD-Adam, SGD for momentum. lr and weight_decay are its own.
        companion: an optimizer of other parameters of the same loss, stepped with their plain gradients.
        settings: the device's settings as one record, in place of the keywords from damping to precondition.

    `step(closure)`: the closure returns (outputs, targets), outputs (b, d) still attached to their graph; the optimizer
    takes gradients itself, and neither reads nor needs `.grad`; with an inner optimizer or a companion it leaves there
    what these took. Several closures are micro-batches: the step is that of their joined batch. Returns the loss. A
    step that raises InputError has changed nothing (but where adapt meets another batch). `state_dict` holds the
    device's state and random numbers: a resumed run is the uninterrupted one. Other trained parameters, or of another
    precision, restart the device. `last`: what the device did in the last step.

    The full-size array of the paper, with the spread that calibration found, 8-bit elements, both passes apart:

        device = load_device("boards/fair/device.json")
        size = sum(p.numel() for p in model.parameters())
        array = array_of(device, shape=(64 * 9, size), seed=0, element_bits=8)  # batch 64, ten classes
        optimizer = TNGD(model, curvature="ggn", array=array, damping=0.1, time=50.0)
        optimizer.step(lambda: (model(x), y))
    """

    def __init__(
        self,
        params: torch.nn.Module | Iterable[Any],
        board: TileBoard | None = None,
        lr: float = RATE,
        damping: float = DEFAULTS.damping,
        refresh: int | None = None,
        loss: Loss | torch.nn.Module = CROSS_ENTROPY,
        *,
        curvature: str | None = None,
        time: float = DEFAULTS.time,
        start: str = DEFAULTS.start,
        delay: float = DEFAULTS.delay,
        noise: float = DEFAULTS.noise,
        seed: int = 0,
        weight_decay: float = 0.0,
        max_norm: float | None = DEFAULTS.max_norm,
        kl_clip: float | None = DEFAULTS.kl_clip,
        adapt: int = DEFAULTS.adapt,
        lanczos: int | None = DEFAULTS.lanczos,
        tile_curvature: str = DEFAULTS.tile_curvature,
        history: int = DEFAULTS.history,
        precondition: float | None = DEFAULTS.precondition,
        array: Array | None = None,
        model: torch.nn.Module | None = None,
        inner: torch.optim.Optimizer | None = None,
        companion: torch.optim.Optimizer | None = None,
        settings: Settings | None = None,
    ):
        check_kinds(board=board, array=array, model=model, inner=inner, companion=companion, seed=seed)
        if isinstance(params, torch.nn.Module):
            model, params = params, left_to(params, companion)
        curvature = curvature or ("ggn" if board is None else "tiles")
        refresh = (10 if curvature == "tiles" else DEFAULTS.refresh) if refresh is None else refresh
        given = Settings(
            curvature,
            damping,
            refresh,
            time,
            start,
            delay,
            noise,
            max_norm,
            kl_clip,
            adapt,
            lanczos,
            tile_curvature,
            history,
            precondition,
        )
        settings = one_of(settings, given, board is not None)
        if settings.curvature == "tiles" and array is not None:
            raise InputError("an array is for curvature ggn, mc or empirical; tiles have a board instead")
        if settings.precondition is not None and model is None:
            raise InputError("a precondition takes a network layer by layer; give TNGD the module, or model=...")
        # None until what these have to fit is known.
        self.board, self.array, self.inner, self.companion = board, None, None, None
        super().__init__(listed(params), {"lr": lr, "weight_decay": weight_decay, **asdict(settings)})
        self._settings()
        own = self._trained()
        check_parameters(own)
        check_groups(self.param_groups, inner, companion)
        self.array = array
        self.board = None if board is None else board.to(own[0].device)
        self._device.check(settings, sum(p.numel() for p in own))
        self.loss = as_loss(loss)
        self.model, self.inner, self.companion = model, inner, companion
        self.last: TileStep | DeviceStep | None = None
        self._steps = 0
        self._memory: Any = None
        self._identities: list[tuple[Any, ...]] = []
        self._recorder: Recorder | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def step(self, closure: Closure, *more: Closure) -> Tensor:
        """One update; see the class."""
        settings, own, closures = self._settings(), self._trained(), (closure, *more)
        check_step(closures, own)
        drawn = self._generator.get_state()
        adapts = settings.adapt and self._steps % settings.adapt == 0
        random = random_state(own[0]) if adapts else None
        before = self._memory, self._identities, self._recorder
        try:
            self._follow(own)
            self._memory = self._device.trimmed(self._memory, settings)
            batch = self._evaluate(closures, own, settings)
            with torch.no_grad():
                direction, memory, last = self._directed(batch, settings)
                start = flat(own) if adapts else None
                history = self._device.history(memory)
                factor = None if history is None else history.joined
                scale = take_step(self.param_groups, direction, self.inner, factor, settings.kl_clip)
        except BaseException:
            self._generator.set_state(drawn)
            self._memory, self._identities, self._recorder = before
            raise
        self._memory, self._steps = memory, self._steps + 1
        self.last = last if self.inner is None or settings.kl_clip is None else replace(last, scale=scale)
        try:
            if adapts:  # before the companion's step, whose part in the change of the loss is not the model's
                ratio = reduction_ratio(batch, factor, flat(own) - start, closures, self.loss, random, self.model)
                self.last = replace(self.last, ratio=ratio)
                damping = adapted(settings.damping, ratio, settings.adapt, history.uploaded, batch.gradient)
                for group in self.param_groups:
                    group["damping"] = damping
        finally:  # a closure that fails in the check leaves a whole step behind, and the damping as it was
            if self.companion is not None:
                step_along(self.companion, batch.companion)
        return batch.value

    @property
    def settings(self) -> Settings:
        """The settings of the next step: printable, comparable, and `TNGD(..., settings=...)` takes them."""
        return self._settings()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own lr and weight_decay; the device's settings are one for all.

        InputError if they are not, or for an inner optimizer or companion that does not fit; nothing is added then.
        """
        super().add_param_group(param_group)
        try:
            check_groups(self.param_groups, self.inner, self.companion)
        except InputError:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The settings, and under "device" all that a resumed run needs."""
        content = super().state_dict()
        content["device"] = {
            "of": described(self),
            "steps": self._steps,
            **dict.fromkeys(("memory", "tiles")) | {self._device.part: self._packed()},
            "generator": self._generator.get_state(),
            "inner": None if self.inner is None else self.inner.state_dict(),
            "companion": None if self.companion is None else self.companion.state_dict(),
        }
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state was saved; InputError if it is that of another optimizer or model."""
        content = deepcopy(state_dict) if isinstance(state_dict, dict) else {}
        device = content.pop("device", None)
        check_state(content, device, described(self))
        settings_of(content["param_groups"])  # refuses impossible ones while nothing is changed yet
        memory, generator = unpacked_device(device, self._device, self._trained()[0].device)
        for name in ("inner", "companion"):
            if device[name] is not None:
                getattr(self, name).load_state_dict(device[name])
        super().load_state_dict(content)
        self._memory, self._steps, self._recorder = memory, device["steps"], None
        self._generator.set_state(generator)

    def __getstate__(self) -> dict[str, Any]:
        """State of a copy; torch's own list has no attribute of a subclass."""
        own = {name: value for name, value in vars(self).items() if name in OWN}
        same = self._identities == identities(self._trained())
        return super().__getstate__() | own | {"_identities": same, "_recorder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Copies of parameters have other identities. Zero is that of none, and so a new start.
        self._identities = identities(self._trained()) if state.get("_identities", True) else [(0,)]

    def _trained(self) -> list[Tensor]:
        return trained(self.param_groups)

    def _settings(self) -> Settings:
        check_one_setting(self.param_groups, self.inner)
        found = settings_of(self.param_groups)
        if (found.curvature == "tiles") != (self.board is not None):
            raise InputError(f"a board is for curvature 'tiles', which needs one, got curvature={found.curvature!r}")
        self._device.check(found, sum(p.numel() for p in self._trained()))
        return found

    @property
    def _device(self) -> SteppedDevice:
        """The device that makes the steps: boards, an array, or the ideal one."""
        if self.board is not None:
            return TileSteps(self.board)
        return FullSizeSteps(IdealDevice() if self.array is None else ArrayDevice(self.array))

    def _packed(self) -> dict[str, Any] | None:
        memory = self._device.trimmed(self._memory, self._settings())
        return None if memory is None else self._device.pack(memory)

    def _follow(self, own: list[Tensor]) -> None:
        """A recorder for these parameters; a device that held others starts anew."""
        known = identities(own)
        if known != self._identities:
            check_groups(self.param_groups, self.inner, self.companion)
            if self._identities:
                self._memory = None
            self._identities, self._recorder = known, None
        if self.model is not None and not (self._recorder and self._recorder.holds()):
            self._recorder = Recorder(self.model, own)

    def _evaluate(self, closures: tuple[Closure, ...], own: list[Tensor], settings: Settings) -> Batch:
        kind = self._device.curvature(self._memory, settings)
        others = [] if self.companion is None else trained(self.companion.param_groups)
        if kind is None and self._recorder is not None:
            self._recorder.refuse_mixing()
        known = own, others, self.loss, kind, self._recorder, self._generator
        parts = [evaluate_batch(each, *known, keep=len(closures) > 1) for each in closures]
        with torch.no_grad():
            return join_batches(parts, self.loss)

    def _directed(self, batch: Batch, settings: Settings) -> tuple[Tensor, Any, TileStep | DeviceStep]:
        """Direction (N,), the memory of the device after the step, and its record."""
        g = batch.gradient
        if settings.max_norm is not None:
            norm = torch.linalg.vector_norm(g, dtype=torch.float64)  # the square of a float32 may be none
            g = g * (settings.max_norm / norm).clamp(max=1).to(g.dtype)
        shapes = {} if settings.precondition is None else matrix_shapes(self._trained(), self.model)
        upload = Upload(g, batch.factor, self._generator, shapes)
        direction, memory, last = self._device.step(self._memory, settings, upload)
        if settings.kl_clip is not None and self.inner is None:
            joined = self._device.history(memory).joined
            direction, scale = shortened(self.param_groups, direction, joined, settings.kl_clip)
            last = replace(last, scale=scale)
        if not all_finite(direction):
            raise InputError("the state of the device is not finite, the step was not made; raise the damping")
        return direction, memory, last
