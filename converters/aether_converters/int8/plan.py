"""Which layers of a network compute in int8, and on which grid each tensor is rounded.

A plan says it once. `simulate` runs it in PyTorch, `integer_graph` writes it as ONNX; both round
the same tensors to the same grids, so what calibration measures is what a file computes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aether_converters.errors import ConversionError
from aether_converters.int8.weights import WEIGHT_LIMIT, quantised_weight
from aether_core import (
    RGB_MEAN,
    SCALES,
    AetherConfig,
    AetherNet,
    Block,
    input_scale,
)

Target = Literal["tensorrt", "cpu"]
TARGETS: Final[tuple[Target, ...]] = get_args(Target)

FIRST: Final = "conv_first"
SUM: Final = "conv_after_body"
HEAD: Final = "conv_before_upsample.0"
LAST: Final = "conv_last"
GATE: Final = "fc1_gate"
MAIN: Final = "fc1_main"
LEVELS: Final = 255  # of an 8-bit picture
PIECES: Final = 2  # of 8 bits, of which one number may be the sum
THIRDS: Final = 3  # of a step


@dataclass(frozen=True)
class Grid:
    """The evenly spaced values that 8 bits can name: (q - zero_point) * scale.

    Attributes:
        scale: Distance of two neighbours, a float32 above zero.
        zero_point: The q that stands for 0.
        signed: Whether q lies in -128..127 or in 0..255.
        pieces: How many integers of 8 bits are added up to q; each begins where another ends, or
            both at 0: see `by_sign`.
    """

    scale: float
    zero_point: int
    signed: bool
    pieces: int = 1

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest q."""
        return (-128, 127) if self.signed else (0, LEVELS * self.pieces)

    @property
    def steps(self) -> tuple[int, int]:
        """How many times `scale` the lowest and the highest value are."""
        low, high = self.limits
        return low - self.zero_point, high - self.zero_point

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest value of the grid for each of x, as ONNX's QuantizeLinear has it.

        What `torch.fake_quantize_per_tensor_affine` gives, bit for bit. That rounds one value after
        the other on a CPU, and takes ten times as long.
        """
        return x.mul(1 / self.scale).round_().clamp_(*self.steps).mul_(self.scale)


def symmetric_grid(amax: float, *, signed: bool) -> Grid:
    """The grid of `aether_core.prepare_qat` for values of at most `amax`.

    Unsigned, it has the same values, and 128 for 0.
    """
    scale = float(input_scale(torch.tensor(amax, dtype=torch.float32)))
    return Grid(scale, 0 if signed else 128, signed)


def spanning_grid(low: float, high: float, *, signed: bool, pieces: int = 1) -> Grid:
    """The grid from `low` to `high`, with 0 on it."""
    low, high, levels = min(low, 0.0), max(high, 0.0), LEVELS * pieces
    scale = max((high - low) / levels, 1e-12)
    zero_point = min(max(round(-low / scale), 0), levels)
    return Grid(float(torch.tensor(scale)), zero_point - 128 * signed, signed, pieces)


def by_sign_grid(amax: float) -> Grid:
    """The grid for values of at most `amax` of which those below 0 have 8 bits of their own."""
    scale = max(amax / LEVELS, 1e-12)
    return Grid(float(torch.tensor(scale)), LEVELS, signed=False, pieces=PIECES)


def grid_for(low: float, high: float, target: Target, *, shifted: bool = False) -> Grid:
    """The grid of a target for values from `low` to `high`; see `shifted_layers`."""
    if target == "tensorrt" and not shifted:
        return symmetric_grid(max(abs(low), abs(high)), signed=True)
    return spanning_grid(low, high, signed=target == "tensorrt")


def by_sign(grid: Grid) -> bool:
    """Whether what lies below 0 has 8 bits of its own, and is counted down from 0."""
    return not grid.signed and grid.pieces == PIECES and grid.zero_point == LEVELS


def starts_at_zero(grid: Grid) -> bool:
    """Whether a grid has no value below 0."""
    return grid.zero_point == grid.limits[0]


def shifted_layers(config: AetherConfig) -> tuple[str, ...]:
    """The layers whose input has a zero point for TensorRT, too, where 0 is in the middle else.

    It costs an addition and a border around the input, so only what follows a LeakyReLU has one:
    hardly any of its values lie below 0, and half of the grid would stand for nothing.
    """
    if not config.head_activation:
        return ()
    return ("upsample.0",) if config.upsampler else (LAST,)


PICTURE: Final[Mapping[Target, Grid]] = {
    "tensorrt": Grid(float(torch.tensor(1 / LEVELS)), 0, signed=True),
    "cpu": Grid(float(torch.tensor(1 / LEVELS)), 128, signed=False),
}
"""Holds every pixel of an 8-bit picture exactly, 128 / 255 being its zero; see `recentred`."""

PIXELS: Final = Grid(float(torch.tensor(1 / LEVELS / PIECES)), 0, signed=False, pieces=PIECES)
"""A picture in half levels: what the last layer of the CPU target gives, clipped to [0, 1].

Its kernel computes channels in blocks, and the second half of the range fills what three colours
leave of them.
"""


@dataclass(frozen=True, kw_only=True)
class QuantisationPlan:
    """What is rounded to int8.

    Attributes:
        target: Who will run it.
        inputs: By layer that computes in int8, the grid of its input. Its weights are symmetric
            for each output channel.
        outputs: By layer, the grid of its result, where integer kernels give integers.
        activations: By feed-forward, the grid of its activated gate.
        trained: The layers whose grid was learnt in training.
        joined: The grid of what the head takes, the sum of body and skip, where the layer `SUM`
            gives it: the skip is then made once more of the picture, in that layer's integers.
    """

    target: Target
    inputs: Mapping[str, Grid]
    outputs: Mapping[str, Grid] = field(default_factory=dict[str, Grid])
    activations: Mapping[str, Grid] = field(default_factory=dict[str, Grid])
    trained: frozenset[str] = frozenset()
    joined: Grid | None = None

    def only(self, layers: Collection[str]) -> QuantisationPlan:
        """The same plan with these layers alone in int8.

        The head's first result is cut at 0 only for a layer that makes up for it.
        """
        inputs = {name: grid for name, grid in self.inputs.items() if name in layers}
        outputs = {name: grid for name, grid in self.outputs.items() if name in layers}
        left_out = [grid for name, grid in self.inputs.items() if name not in layers]
        if HEAD in outputs and starts_at_zero(outputs[HEAD]) and outputs[HEAD] in left_out:
            del outputs[HEAD]
        return replace(
            self,
            inputs=inputs,
            outputs=outputs,
            activations={
                name: grid for name, grid in self.activations.items() if f"{name}.{MAIN}" in layers
            },
            trained=self.trained & frozenset(layers),
            joined=self.joined if SUM in layers else None,
        )

    def cuts(self, config: AetherConfig) -> bool:
        """Whether what a LeakyReLU leaves of values below 0 is rounded to 0."""
        behind = [self.inputs[name] for name in shifted_layers(config) if name in self.inputs]
        return any(map(starts_at_zero, behind))

    def pairs(self, layer: str, weight: Tensor) -> bool:
        """Whether the weights of a layer are paired; see `weights`.

        Those of a training are rounded as they were trained. Depthwise kernels add in 32 bits.
        """
        return self.target == "cpu" and layer not in self.trained and weight.shape[1] > 1

    def with_products(self, parts: Collection[str]) -> QuantisationPlan:
        """The same plan with the product of gate and main map in integers in these parts alone."""
        of_others = {f"{name}.{MAIN}" for name in self.activations.keys() - {*parts}}
        return replace(
            self,
            outputs={name: grid for name, grid in self.outputs.items() if name not in of_others},
            activations={name: grid for name, grid in self.activations.items() if name in parts},
        )


def layers_of(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every convolution and linear map of a fused network, by name, in its order."""
    modules = cast("Mapping[str, nn.Module]", dict(cast(Any, network).named_modules()))
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def is_depthwise(layer: nn.Module) -> bool:
    """Whether it is a convolution of each channel by itself."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def most_pieces(network: nn.Module) -> dict[str, int]:
    """By layer that may give its result in pieces of its range on a CPU: in how many.

    All of the body is added to what the first layer gives, and the first block rounds it again:
    thirds of its steps lie nowhere in the middle between two of them, as halves would. Without a
    norm behind it, what a depthwise convolution gives is rounded again as it is: once will do. What
    `SUM` gives is rounded again with the skip, if that is not joined, and `LAST` gives `PIXELS`.
    """
    normed = [
        f"{name}.conv.fused_conv"
        for name, block in cast("Iterator[tuple[str, nn.Module]]", network.named_modules())
        if isinstance(block, Block) and block.norm is not None
    ]
    return {FIRST: THIRDS, **dict.fromkeys(normed, PIECES), SUM: PIECES, LAST: PIECES}


def chosen_layers(
    network: AetherNet,
    target: Target,
    *,
    everything: bool = False,
    keep_float: Collection[str] = (),
) -> list[str]:
    """The layers that compute in int8, in order of the network.

    Measured on trained networks: the depthwise kernels lose most and gain no speed; attention
    weighs whole channels or pixels and has no arithmetic to speak of; the first layer is small,
    and costs nothing only where its grid holds every pixel exactly and its result stays float.

    Args:
        network: Fused.
        target: Who will run it.
        everything: Every convolution and linear map, whatever it costs.
        keep_float: Names that stay float; `*` stands for any text.

    Raises:
        ConversionError: No layer is called as `keep_float` says.
    """
    layers = layers_of(network)
    chosen = [name for name, layer in layers.items() if everything or _pays(name, layer)]
    if not everything and not (target == "tensorrt" and has_picture_grid(network.config)):
        chosen.remove(FIRST)
    for pattern in keep_float:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ConversionError(
                f"no layer is called {pattern}",
                expected=f"one of {', '.join(layers)}",
                advice="name layers as --sensitivity lists them, or use *, such as layers.*.conv.*",
            )
        chosen = [name for name in chosen if not fnmatchcase(name, pattern)]
    return chosen


def _pays(name: str, layer: nn.Module) -> bool:
    return not is_depthwise(layer) and "_attn." not in name


def has_picture_grid(config: AetherConfig) -> bool:
    """Whether the first layer sees RGB pixels around the middle of their range."""
    return config.in_chans == 3 and not config.stored_mean and config.img_range == 1.0


def recentred(network: AetherNet, *, back: bool = False) -> AetherNet:
    """A copy that subtracts 128 / 255 instead of the mean, or again the mean: it computes the same.

    8-bit pixels then lie on the grid `PICTURE`; around the mean of 127.5 / 255 each would fall in
    the middle between two of its values, and rounding would darken the picture. The difference is
    part of two biases; at the border, which is padded with zeros, it is 1 / 510 of a weight's sum.
    """
    moved = copy.deepcopy(network)
    if not has_picture_grid(network.config):
        return moved
    shift = RGB_MEAN - 128 / LEVELS if back else 128 / LEVELS - RGB_MEAN
    moved.mean = RGB_MEAN if back else RGB_MEAN + shift
    first, last = (cast(nn.Conv2d, getattr(moved, name)) for name in (FIRST, LAST))
    with torch.no_grad():
        _bias(first).add_(shift * first.weight.sum(dim=(1, 2, 3)))
        _bias(last).sub_(shift)
    return moved


def _bias(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.bias)


def skip_integers(first: Tensor, steps: Tensor, taken: Grid) -> Tensor:
    """The first layer's weights as integers among those of the layer `SUM`, (C, 3, 3, 3).

    What it takes has the picture's steps there, and its weights the steps of that layer's rows.
    Rounded such that the sum over places is right to half a step: one colour all over stays it.

    Args:
        first: Weights (C, 3, 3, 3).
        steps: (C), of the weights of `SUM`.
        taken: What `SUM` takes is rounded to.
    """
    of_rows = steps * (taken.scale / PICTURE["cpu"].scale)
    sums = (first / of_rows[:, None, None, None]).flatten(2).cumsum(dim=2).round()
    integers = sums.diff(dim=2, prepend=torch.zeros_like(sums[:, :, :1])).reshape(first.shape)
    return integers.clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)


def join_skip(network: nn.Module, plan: QuantisationPlan, source: AetherNet) -> None:
    """Add up body and skip as the layer `SUM` does where `plan.joined` says so.

    Args:
        network: Changed in place: with layers of these names.
        plan: What is rounded.
        source: The same network with its weights.
    """
    first, layer = network.get_submodule(FIRST), network.get_submodule(SUM)
    of_first, weight = (
        cast(Tensor, source.get_submodule(name).weight).detach() for name in (FIRST, SUM)
    )
    taken, picture = plan.inputs[SUM], PICTURE[plan.target]
    _, steps = quantised_weight(weight, paired=plan.pairs(SUM, weight))
    integers = skip_integers(of_first, steps, taken)
    of_skip = integers * (steps * (taken.scale / picture.scale))[:, None, None, None]
    seen: dict[str, Tensor] = {}

    def note_picture(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["picture"] = picture.rounded(inputs[0])

    def note_features(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
        seen["features"] = output

    def exchange(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        weight = of_skip.to(output.device)
        skip = F.conv2d(seen.pop("picture"), weight, cast(Tensor, first.bias), padding=1)
        return output + (skip - seen.pop("features"))

    first.register_forward_pre_hook(note_picture)
    first.register_forward_hook(note_features)
    layer.register_forward_hook(exchange)


def simulate(network: AetherNet, plan: QuantisationPlan) -> AetherNet:
    """A copy of a fused network that rounds what the plan rounds, in float32 arithmetic."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for name, grid in plan.inputs.items():
            layer = copied.get_submodule(name)
            weight = cast(Tensor, layer.weight)
            integers, scales = quantised_weight(weight, paired=plan.pairs(name, weight))
            steps = scales.reshape(-1, *[1] * (integers.dim() - 1))
            layer.weight = nn.Parameter(integers * steps, requires_grad=False)
            layer.register_forward_pre_hook(_round_input(grid))
    for name, grid in plan.outputs.items():
        # The last layer's result is the picture only with the mean.
        mean = added_mean(copied) if name == LAST else 0.0
        copied.get_submodule(name).register_forward_hook(_round_output(grid, mean))
    for name, grid in plan.activations.items():
        part = cast(Any, copied.get_submodule(name))
        part.activation = _rounded_activation(part.activation, grid)
    if plan.joined is not None:
        join_skip(copied, plan, network)
        if HEAD not in plan.inputs:
            copied.get_submodule(HEAD).register_forward_pre_hook(_round_input(plan.joined))
    return copied


def added_mean(network: AetherNet) -> float:
    """What is added to the last convolution's result."""
    return 0.0 if isinstance(network.mean, Tensor) else network.mean


def _round_input(grid: Grid) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (grid.rounded(inputs[0]),)

    return hook


def _round_output(grid: Grid, mean: float) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return grid.rounded(output + mean) - mean if mean else grid.rounded(output)

    return hook


def _rounded_activation(
    function: Callable[[Tensor], Tensor], grid: Grid
) -> Callable[[Tensor], Tensor]:
    def rounded(x: Tensor) -> Tensor:
        return grid.rounded(function(x))

    return rounded


def output_layers(network: AetherNet, layers: Collection[str]) -> list[str]:
    """The layers whose result the CPU's integer kernels give as integers.

    Linear maps give floats, except the main map of a feed-forward, whose product with the gate is
    one of integers.
    """
    modules = layers_of(network)
    return [
        name for name in layers if isinstance(modules[name], nn.Conv2d) or name.endswith(f".{MAIN}")
    ]


def can_join(network: AetherNet) -> bool:
    """Whether the layer `SUM` could give what the head takes; see `QuantisationPlan.joined`.

    An odd number of channels would move the neighbours of weights that are paired.
    """
    config, mean = network.config, network.mean
    on_grid = not isinstance(mean, Tensor) and abs(mean - 128 / LEVELS) < 1 / LEVELS / 4
    even = config.embed_dim % 2 == 0
    return has_picture_grid(config) and on_grid and even and config.body_order == "norm-conv-add"


def shuffled_into(config: AetherConfig) -> dict[str, str]:
    """By layer whose result reaches another layer unchanged but for its order: that layer."""
    steps = len(SCALES[config.scale]) if config.head_widths is None else len(config.head_widths)
    heads = [f"upsample.{2 * index}" for index in range(steps)]
    first = [] if config.head_activation else [HEAD]
    return dict(itertools.pairwise([*first, *heads, LAST]))
