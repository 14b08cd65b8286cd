"""A rounded network learns to give what the float network gives, on pictures without originals.

Rounding is passed over by gradients where nothing saturates (the straight-through estimator,
arXiv:1308.3432); steps of activations are learnt as in LSQ (Esser et al., arXiv:1902.08153). The
large depthwise kernels stay as they are: they are float, and their gradients would take longer than
all the rest.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aether_converters.int8.plan import (
    LAST,
    PICTURE,
    PIXELS,
    Grid,
    QuantisationPlan,
    added_mean,
    is_depthwise,
    join_skip,
    layers_of,
)
from aether_converters.int8.weights import limited, neighbours, row_steps, settled
from aether_core import AetherNet
from aether_spandrel.inference import channels_last

COLOUR: Final = 10.0
"""How much the mean error of a channel around a place counts beside that of its pixels.

The eye sees it, and what is learnt of many small places holds for colours that it has not seen.
"""
PLACE: Final = 16  # px of a result, each way

WEIGHT_RATE: Final = 0.02
"""Of weights, in steps of their grids: how large a layer's are has no say in how it learns."""

SHIFT_RATE: Final = 3e-4  # of biases and norms
STEP_RATE: Final = 1e-3  # of the logarithms of steps
SMALLEST_GRADIENT: Final = 1e-15  # those of weights in steps are that much smaller
WARM_UP: Final = 10  # batches in which rates rise
UNJUDGED: Final = 0.1  # of the time: the first batches are slow
PART: Final = 48  # channels of a depthwise convolution at a time, for which oneDNN is fast
SEED: Final = 20261128


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A network with what is rounded of it.

    Attributes:
        network: Fused, in float32.
        plan: What is rounded.
        exact: The same network before its weights were rounded, if they were.
    """

    network: AetherNet
    plan: QuantisationPlan
    exact: AetherNet


def whole(network: AetherNet, pictures: Tensor) -> Tensor:
    """What a network makes of pictures (N, C, H, W)."""
    return cast(Tensor, network(channels_last(pictures)))


def of_head(network: AetherNet, features: Tensor) -> Tensor:
    """The pictures that a network makes of what its body gives, (N, embed_dim, H, W)."""
    return network.restored(network.head(channels_last(features)))


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What is learnt from.

    Attributes:
        taken: What is put in, (N, ...): pictures in [0, 1], or what the body makes of them.
        run: What a network, or its head alone, makes of that.
        expected: The picture that the float network makes of each.
        batches: How many are learnt from.
        batch: Pictures in each.
        rate: How fast, relative to the rates of this module.
        until: Fewer batches are learnt from where all would end later, by `time.monotonic`.
    """

    taken: Tensor
    run: Callable[[AetherNet, Tensor], Tensor]
    expected: Tensor
    batches: int
    batch: int
    rate: float
    until: float


def picture_error(differences: Tensor) -> Tensor:
    """What is made small: the squared error of pixels and, weighed, of what places share.

    Args:
        differences: (N, C, H, W), of pictures of at least `PLACE` px each way.
    """
    shared = F.avg_pool2d(differences, PLACE)
    return differences.square().mean() + COLOUR * shared.square().mean()


def distilled(
    start: Rounded, lessons: Lessons, progress: Callable[[int, int, float], None]
) -> Iterator[Rounded]:
    """States of the network while it learns, the last being the end; the start is left alone.

    Args:
        start: Whose weights lie on their grids.
        lessons: What it learns from.
        progress: Called after each batch with batches done and to do and the error of late.
    """
    device = lessons.taken.device
    learner = _Learner(start, device)
    optimiser = torch.optim.Adam(learner.rates(), betas=(0.9, 0.99), eps=SMALLEST_GRADIENT)
    peaks = [group["lr"] for group in optimiser.param_groups]
    random = torch.Generator().manual_seed(SEED)
    total, late, began = lessons.batches, 0.0, time.monotonic()
    done, shown = 0, 0
    while done < total:
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = lessons.rate * peak * _share_of_rate(done, total)
        chosen = torch.randint(len(lessons.taken), (lessons.batch,), generator=random)
        found = lessons.run(learner.network, lessons.taken[chosen])
        # Beyond black and white nothing is seen, and the CPU's integers end there.
        error = picture_error(found.clamp(0, 1) - lessons.expected[chosen].clamp(0, 1))
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        done += 1
        late = float(error.detach()) if done == 1 else late + 0.05 * (float(error.detach()) - late)
        total = _affordable(done, total, began, lessons.until)
        progress(done, total, late)
        if done * STATES >= (shown + 1) * total or done >= total:
            shown += 1
            yield learner.state(start)


STATES: Final = 2  # how many states of a training are looked at


def _affordable(done: int, total: int, began: float, until: float) -> int:
    """How many of all batches fit into the time at the speed so far.

    Where the time is enough, none is left out for a slow one, and a network learns the same again.
    """
    spent, given = time.monotonic() - began, until - began
    if spent < UNJUDGED * given:
        return total
    return min(max(int(done * given / max(spent, 1e-3)), done), total)


def _share_of_rate(done: int, total: int) -> float:
    """Of the largest rate: a short rise, then half a cosine."""
    return min(1.0, (done + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done / total))


class _Learner:
    """A network that rounds what its plan says and lets gradients pass."""

    def __init__(self, start: Rounded, device: torch.device) -> None:
        self.steps: dict[Grid, nn.Parameter] = {}
        self.network = copy.deepcopy(start.network).to(device)
        self._device = device
        self.network.requires_grad_(False)
        for name, layer in layers_of(self.network).items():
            parent, _, key = name.rpartition(".")
            setattr(self.network.get_submodule(parent), key, self._learning(name, layer, start))
        for name, grid in start.plan.activations.items():
            part = cast(Any, self.network.get_submodule(name))
            part.activation = _after(part.activation, self._rounding(grid))
        if start.plan.joined is not None:
            join_skip(self.network, start.plan, start.network)
        for norm in self._norms().values():
            norm.requires_grad_(True)

    def _learning(self, name: str, layer: nn.Module, start: Rounded) -> nn.Module:
        taken, given = start.plan.inputs.get(name), start.plan.outputs.get(name)
        # The last layer's result is the picture only with the mean.
        mean = added_mean(start.network) if name == LAST else 0.0
        return _Layer(
            cast(nn.Conv2d, layer),
            None if taken is None else self._rounding(taken),
            None if given is None else _around(self._rounding(given), mean),
            paired=taken is not None and start.plan.pairs(name, cast(Tensor, layer.weight)),
        )

    def _rounding(self, grid: Grid) -> Callable[[Tensor], Tensor]:
        fixed = grid in (*PICTURE.values(), PIXELS)
        if grid not in self.steps:
            start = torch.zeros((), device=self._device)
            self.steps[grid] = nn.Parameter(start, requires_grad=not fixed)
        return _Rounding(grid, self.steps[grid])

    def _norms(self) -> dict[str, nn.Module]:
        """Everything with weights that is no layer."""
        return {
            name: part
            for name, part in cast("Iterator[tuple[str, nn.Module]]", self.network.named_modules())
            if not isinstance(part, _Layer) and list(part.parameters(recurse=False))
        }

    def rates(self) -> list[dict[str, Any]]:
        """What is learnt, and how fast."""
        layers = [part for part in self.network.modules() if isinstance(part, _Layer)]
        weights = [layer.weight for layer in layers if layer.weight.requires_grad]
        shifts = [layer.bias for layer in layers]
        shifts += [tensor for norm in self._norms().values() for tensor in norm.parameters(False)]
        steps = [step for step in self.steps.values() if step.requires_grad]
        groups = ((weights, WEIGHT_RATE), (shifts, SHIFT_RATE), (steps, STEP_RATE))
        return [{"params": tensors, "lr": rate} for tensors, rate in groups if tensors]

    @torch.no_grad()
    def state(self, start: Rounded) -> Rounded:
        """What has been learnt so far, with weights on their grids."""
        network = copy.deepcopy(start.network)
        for name, layer in layers_of(network).items():
            learnt = cast(_Layer, self.network.get_submodule(name))
            layer.weight.copy_(learnt.on_grid())
            cast(Tensor, layer.bias).copy_(learnt.bias)
        for name, norm in self._norms().items():
            network.get_submodule(name).load_state_dict(norm.state_dict(), strict=False)

        def grids(of: Mapping[str, Grid]) -> dict[str, Grid]:
            return {name: self._learnt(grid) for name, grid in of.items()}

        plan = start.plan
        plan = replace(
            plan,
            inputs=grids(plan.inputs),
            outputs=grids(plan.outputs),
            activations=grids(plan.activations),
            joined=plan.joined and self._learnt(plan.joined),
        )
        return Rounded(network=network, plan=plan, exact=start.exact)

    def _learnt(self, grid: Grid) -> Grid:
        step = self.steps.get(grid)
        if step is None or not step.requires_grad:
            return grid
        return replace(grid, scale=float(torch.tensor(grid.scale) * step.detach().exp().cpu()))


class _Layer(nn.Module):
    """A convolution or linear map whose input, weights and result are rounded as a plan says.

    Weights that are rounded are kept in steps of their grids.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        taken: Callable[[Tensor], Tensor] | None,
        given: Callable[[Tensor], Tensor] | None,
        *,
        paired: bool,
    ) -> None:
        super().__init__()
        self._taken, self._given = taken, given
        self._linear = isinstance(layer, nn.Linear)
        self._depthwise = is_depthwise(layer)
        self._padding = 0 if isinstance(layer, nn.Linear) else layer.padding[0]
        self._groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        weight = layer.weight.detach()
        self._beside = neighbours(weight.shape).to(weight.device) if paired else None
        steps = row_steps(weight.flatten(1), self._beside)
        self._steps = steps.reshape(-1, *[1] * (weight.dim() - 1))
        rounded = taken is not None
        self.weight = nn.Parameter(
            weight / self._steps if rounded else weight.clone(),
            requires_grad=rounded and not self._depthwise,
        )
        self.bias = nn.Parameter(cast(Tensor, layer.bias).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        weight = self.weight
        if self._taken is not None:
            x = self._taken(x)
            weight = cast(Tensor, _Nearest.apply(weight, self._beside)) * self._steps
        if self._depthwise:
            y = cast(Tensor, _Depthwise.apply(x, weight)) + self.bias[:, None, None]
        elif self._linear:
            y = F.linear(x.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)
        else:
            y = F.conv2d(x, weight, self.bias, padding=self._padding, groups=self._groups)
        return y if self._given is None else self._given(y)

    def on_grid(self) -> Tensor:
        """The weights as they are rounded.

        Rows whose largest weight has become smaller get it back, for their step follows from it.
        """
        if self._taken is None:
            return self.weight.detach()
        integers = limited(self.weight.detach().flatten(1), self._beside)
        return settled(integers, self._beside).reshape(self.weight.shape) * self._steps


class _Rounding:
    """Rounds to a grid whose step is learnt."""

    def __init__(self, grid: Grid, learnt: Tensor) -> None:
        self._learnt, self._steps = learnt, grid.steps
        self._scale = torch.tensor(grid.scale, device=learnt.device)

    def __call__(self, x: Tensor) -> Tensor:
        step = self._scale * self._learnt.exp()
        return cast(Tensor, _ToGrid.apply(x, step, *self._steps))


def _after(
    function: Callable[[Tensor], Tensor], rounding: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda x: rounding(function(x))


def _around(rounding: Callable[[Tensor], Tensor], mean: float) -> Callable[[Tensor], Tensor]:
    return (lambda x: rounding(x + mean) - mean) if mean else rounding


class _ToGrid(torch.autograd.Function):
    """Rounding of activations, with gradients for the values within the range and for the step."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, step: Tensor, low: int, high: int
    ) -> Tensor:
        in_steps = x * (1 / step)
        rounded = in_steps.round().clamp_(low, high).mul_(step)
        ctx.save_for_backward(in_steps, step, rounded)
        ctx.limits = (low, high)
        return rounded

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        in_steps, step, rounded = ctx.saved_tensors
        low, high = ctx.limits
        # Masks of bool would take most of the time of learning on a CPU.
        passed = torch.ops.aten.hardtanh_backward(gradient, in_steps, low - 0.5, high + 0.5)
        of_step = (gradient * rounded).sum() / step - (passed * in_steps).sum()
        return passed, of_step, None, None


class _Nearest(torch.autograd.Function):
    """Rounding of weights, which gradients pass."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, weight: Tensor, beside: Tensor | None
    ) -> Tensor:
        del ctx
        return limited(weight.flatten(1), beside).reshape(weight.shape)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None]:
        del ctx
        return gradient, None


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution whose kernel is not learnt; backwards, one by the mirrored kernel."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, kernel: Tensor
    ) -> Tensor:
        ctx.kernel = kernel
        return _convolved(x, kernel)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        return _convolved(gradient, ctx.kernel.flip(2, 3)), None


def _parts(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", x.split(PART, dim=dim))


def _convolved(x: Tensor, kernel: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
    parts = [
        F.conv2d(
            part.contiguous(memory_format=torch.channels_last),
            weights,
            padding=kernel.shape[-1] // 2,
            groups=len(weights),
        )
        for part, weights in zip(_parts(x, 1), _parts(kernel, 0), strict=True)
    ]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
