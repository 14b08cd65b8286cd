"""A float ONNX graph with a plan's layers in int8, in the form that each target runs in integers.

TensorRT wants a QuantizeLinear and a DequantizeLinear on each input of a convolution, and takes it
from there. onnxruntime's kernels on a CPU want more: integers on both sides of a convolution, and
linear maps as products of matrices, pixels by channels, so that the body of the network is kept
channels-last. Both are standard ONNX at the opset of the float graph.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import onnx
import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from aether_converters.graphs.onnx_graph import OUTPUT, Graph
from aether_converters.graphs.onnx_shapes import name_shapes
from aether_converters.int8.plan import (
    FIRST,
    LAST,
    LEVELS,
    MAIN,
    PICTURE,
    SUM,
    Grid,
    QuantisationPlan,
    Target,
    by_sign,
    skip_integers,
    starts_at_zero,
)
from aether_converters.int8.weights import overflows, quantised_weight, unsigned

TO_CHANNELS_LAST: Final = [0, 2, 3, 1]
TO_CHANNELS_FIRST: Final = [0, 3, 1, 2]
CHANNEL_BLOCK: Final = 16  # channels of which onnxruntime's integer kernels give as many at a time
GROUP: Final = 4  # channels that they take at a time
RESULT_OF_MAIN: Final = f".{MAIN}.out"
RESULT_OF_SUM: Final = f"{SUM}.out"
AXES_CHANNELS_LAST: Final = {0: 0, 1: 3, 2: 1, 3: 2}
"""Where each axis of (N, C, H, W) lies in (N, H, W, C)."""

POINTWISE: Final = frozenset(
    ("Add", "Cast", "Div", "Erf", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sqrt", "Sub")
)


def quantise(model: ModelProto, plan: QuantisationPlan) -> ModelProto:
    """The graph of `build_onnx` in float32 with the plan's layers in int8; checked.

    Input, output and metadata stay as they are; the CPU target's output lies on the grid `PIXELS`
    where its last layer is in int8.
    """
    writer = WRITERS[plan.target](model, plan)
    writer.write()
    graph = helper.make_graph(
        writer.graph.nodes,
        model.graph.name,
        list(model.graph.input),
        list(model.graph.output),
        list(writer.graph.initializers.values()),
    )
    quantised = helper.make_model(
        graph,
        producer_name=model.producer_name,
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )
    quantised.metadata_props.extend(model.metadata_props)
    name_shapes(quantised)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


@dataclass(frozen=True)
class _Integers:
    """A quantised tensor: the names of its integers, of its step and of its zero point."""

    values: str
    scale: str
    zero_point: str


class _Writer:
    """Copies a graph node by node, each tensor under the name that `names` gives it."""

    def __init__(self, model: ModelProto, plan: QuantisationPlan) -> None:
        self.plan = plan
        self.source = list(copy.deepcopy(model.graph).node)
        self.graph = Graph(torch.float32)
        self.constants = {
            tensor.name: torch.tensor(cast(Any, numpy_helper.to_array(tensor)))
            for tensor in model.graph.initializer
        }
        self.names: dict[str, str] = {value.name: value.name for value in model.graph.input}
        self._integers: dict[tuple[str, Grid], _Integers] = {}
        self._floats: dict[_Integers, str] = {}

    def write(self) -> None:
        """Write every node."""
        for node in self.source:
            self.names[node.output[0]] = self.lowered(node)
        self.graph.nodes[-1].output[0] = OUTPUT

    def lowered(self, node: NodeProto) -> str:
        """Write a node and return the name of its result."""
        if node.op_type == "Conv" and node.name in self.plan.inputs:
            return self.convolution(node)
        return self.copied(node)

    def copied(self, node: NodeProto) -> str:
        """Write a node as it is."""
        return self.add(node, [self.value(name) for name in node.input])

    def add(self, node: NodeProto, inputs: Sequence[str]) -> str:
        """Write a node with other inputs."""
        return self.graph.add(node.op_type, inputs, node.name, **attributes(node))

    def value(self, name: str) -> str:
        """What a tensor of the source is called here."""
        if name in self.constants:
            return self.graph.constant(self.constants[name], name)
        return self.names[name]

    def convolution(self, node: NodeProto) -> str:
        """A convolution between integers."""
        grid, name = self.plan.inputs[node.name], self.value(node.input[0])
        bias = self.value(node.input[2])
        if grid.zero_point:
            name, bias = self.shifted(node, grid)
            grid = replace(grid, zero_point=0)
        taken = self.floats(self.integers(name, grid))
        return self.add(node, [taken, self.weight(node), bias])

    def shifted(self, node: NodeProto, grid: Grid) -> tuple[str, str]:
        """A convolution's input and bias such that 0 stands for the middle of its grid.

        TensorRT has no zero points. The border of zeros moves along with the input, so that it is
        drawn beforehand, and none is left for the convolution, whose `pads` this takes away.
        """
        pads = attribute(node, "pads")
        height, width = pads.ints[:2]
        border = torch.tensor([0, 0, height, width] * 2)
        pads.ints[:] = [0] * len(pads.ints)
        shift = grid.zero_point * grid.scale
        integers, scales = self.quantised(node)
        bias = self.constants[node.input[2]] - shift * scales * integers.flatten(1).sum(dim=1)
        name = self.graph.add(
            "Pad",
            [self.value(node.input[0]), self.constant(border, f"{node.name}.border")],
            f"{node.name}.bordered",
        )
        shifts = self.constant(torch.tensor(shift), f"{node.name}.shift")
        moved = self.graph.add("Add", [name, shifts], f"{node.name}.shifted")
        return moved, self.graph.constant(bias, f"{node.input[2]}.shifted")

    def quantised(self, node: NodeProto) -> tuple[Tensor, Tensor]:
        """A layer's int8 weights and their steps."""
        weight = self.constants[node.input[1]]
        return quantised_weight(weight, paired=self.plan.pairs(node.name, weight))

    def weight(self, node: NodeProto) -> str:
        """The convolution's int8 weights as floats."""
        integers, scales = self.quantised(node)
        zero = torch.full(scales.shape, 128 * (integers.dtype == torch.uint8), dtype=integers.dtype)
        return self.graph.add(
            "DequantizeLinear",
            [
                self.constant(integers, node.input[1]),
                self.constant(scales, f"{node.input[1]}.scale"),
                self.constant(zero, f"{node.input[1]}.zero"),
            ],
            f"{node.input[1]}.float",
            axis=0,
        )

    def constant(self, tensor: Tensor, name: str) -> str:
        """Store a tensor in its own dtype."""
        return self.graph.constant(tensor, name, tensor.dtype)

    def integers(self, name: str, grid: Grid) -> _Integers:
        """A tensor rounded to a grid; once for all who take it."""
        if (name, grid) not in self._integers:
            values = self._on_grid(f"{name}.quantised", grid)
            inputs = [name, values.scale, values.zero_point]
            written = self.graph.add("QuantizeLinear", inputs, values.values)
            self._integers[name, grid] = replace(values, values=written)
        return self._integers[name, grid]

    def _on_grid(self, values: str, grid: Grid) -> _Integers:
        """Integers of this name, with the step and the zero point of a grid."""
        dtype = torch.int8 if grid.signed else torch.uint8
        zero = torch.tensor(grid.zero_point, dtype=dtype)
        return _Integers(
            values,
            self.constant(torch.tensor(grid.scale), f"scale_{grid.scale:.9g}"),
            self.constant(zero, f"zero_{'int8' if grid.signed else 'uint8'}_{grid.zero_point}"),
        )

    def floats(self, integers: _Integers) -> str:
        """Integers as floats again; once for all who take them."""
        if integers not in self._floats:
            self._floats[integers] = self.graph.add(
                "DequantizeLinear",
                [integers.values, integers.scale, integers.zero_point],
                f"{integers.values}.float",
            )
        return self._floats[integers]

    def rounded(self, name: str, grid: Grid) -> str:
        """A tensor rounded to a grid, as floats."""
        return self.floats(self.integers(name, grid))


class _CpuWriter(_Writer):
    """Integer kernels of onnxruntime: QLinearConv, MatMulIntegerToFloat, QLinearMul.

    A tensor lies in memory as (N, C, H, W), or as (N, H, W, C) if its name is in `channels_last`.
    """

    def __init__(self, model: ModelProto, plan: QuantisationPlan) -> None:
        super().__init__(model, plan)
        self.channels_last: set[str] = set()
        self._turned: dict[tuple[str, bool], str] = {}
        self._shuffle: NodeProto | None = None  # what follows the last layer instead
        self._skip: Tensor | None = None  # weights that join those of the layer `SUM`
        self._channels: dict[str, int] = {}  # that layers give in each piece
        self._undivided = dict(self.constants)  # the skip is made with the first layer as it was

    def write(self) -> None:
        """Write every node, the head rearranged for integers."""
        self._join_mean()
        self._convolve_before_shuffle()
        self._divide_results()
        super().write()

    def _join_mean(self) -> None:
        """Make a mean that is added to the last layer's result part of its bias."""
        *_, last, after = self.source
        mean = self.constants.get(after.input[1]) if after.op_type == "Add" else None
        if last.name == LAST and LAST in self.plan.outputs and mean is not None:
            self.constants[last.input[2]] = self.constants[last.input[2]] + mean
            self.source.remove(after)

    def _convolve_before_shuffle(self) -> None:
        """Let the last layer take what the last pixel shuffle takes, and shuffle its result.

        The convolution then has a whole block of channels to give, without which onnxruntime's
        kernel takes five times as long, and the shuffle moves 3 channels instead of 64.
        """
        *_, shuffle, last = self.source
        given = self.plan.outputs.get(shuffle.input[0].removesuffix(".out"))
        if shuffle.op_type != "DepthToSpace" or given != self.plan.inputs.get(last.name):
            return
        if last.name not in self.plan.outputs:
            return
        factor = attributes(shuffle)["blocksize"]
        weight, bias = (self.constants[name] for name in last.input[1:])
        weight, bias = before_shuffle(weight, bias, factor)
        self._by_place(shuffle.input[0].removesuffix(".out"), factor)
        self.constants[last.input[1]], self.constants[last.input[2]] = weight, bias
        last.input[0] = shuffle.input[0]
        self.source[-2:] = [last]
        self._shuffle = shuffle

    def _by_place(self, giver: str, factor: int) -> None:
        """Let a layer give all channels of one place one after the other, and not places."""
        node = next(node for node in self.source if node.name == giver)
        for name in node.input[1:]:
            rows = self.constants[name]
            self.constants[name] = rows.unflatten(0, (-1, factor**2)).transpose(0, 1).flatten(0, 1)

    def _divide_results(self) -> None:
        """Let layers give each piece of their range by itself, in whole blocks of channels.

        What lies below a piece becomes its smallest value and what lies above its largest, so that
        all pieces together are the value.
        """
        for node in self.source:
            grid = self.plan.outputs.get(node.name)
            if grid is None or (grid.pieces == 1 and node.name != LAST):
                continue
            weight, bias = (self.constants[name] for name in node.input[1:])
            self._channels[node.name] = len(bias)
            begins = [
                (piece * LEVELS - grid.zero_point) * grid.scale for piece in range(grid.pieces)
            ]
            depthwise = is_depthwise_node(node)
            wide = 0 if depthwise else -len(begins) * len(bias) % CHANNEL_BLOCK
            weight, bias = torch.cat([weight] * len(begins)), torch.cat([bias - b for b in begins])
            self.constants[node.input[1]] = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, wide))
            self.constants[node.input[2]] = F.pad(bias, (0, wide))
            if depthwise:
                attribute(node, "group").i *= grid.pieces

    def turned(self, name: str, channels_last: bool) -> str:
        """A tensor in the wanted order; transposed once for all who take it."""
        if (name in self.channels_last) == channels_last:
            return name
        key = (name, channels_last)
        if key not in self._turned:
            order = TO_CHANNELS_LAST if channels_last else TO_CHANNELS_FIRST
            self._turned[key] = self.graph.add(
                "Transpose", [name], f"{name}.{'last' if channels_last else 'first'}", perm=order
            )
            if channels_last:
                self.channels_last.add(self._turned[key])
        return self._turned[key]

    def operand(self, name: str, channels_last: bool) -> str:
        """A tensor or constant of the source in the wanted order."""
        if name not in self.constants:
            return self.turned(self.names[name], channels_last)
        tensor = self.constants[name]
        if channels_last and tensor.dim() == 3:  # (C, 1, 1), a value for each channel
            return self.constant(tensor.flatten(), f"{name}.last")
        return self.value(name)

    def lowered(self, node: NodeProto) -> str:
        """Write a node and return the name of its result."""
        if self.plan.joined is not None and RESULT_OF_SUM in node.input:
            return self.names[RESULT_OF_SUM]  # the skip is in it
        lowering = CPU_LOWERINGS.get(node.op_type)
        if lowering is not None:
            return lowering(self, node)
        if node.op_type in POINTWISE:
            return self.pointwise(node)
        return self.add(node, [self.operand(name, False) for name in node.input])

    def pointwise(self, node: NodeProto) -> str:
        """An operator on each value, in the order in which its inputs lie."""
        given = self.plan.outputs.get(node.input[0].removesuffix(".out"))
        if node.op_type == "LeakyRelu" and given is not None and starts_at_zero(given):
            return self.names[node.input[0]]  # there is nothing below 0
        last = any(self.names.get(name) in self.channels_last for name in node.input)
        names = [self.operand(name, last) for name in node.input]
        gate = self._gate_grid(node)
        if gate is not None:  # the main map gives integers, so the activated gate must, too
            names = [
                name
                if source.endswith(RESULT_OF_MAIN)
                else self.known(self.rounded(name, gate), last)
                for source, name in zip(node.input, names, strict=True)
            ]
        return self.known(self.add(node, names), last)

    def _gate_grid(self, node: NodeProto) -> Grid | None:
        """The grid of an activated gate, if the node multiplies it with the main map."""
        parts = [n.removesuffix(RESULT_OF_MAIN) for n in node.input if n.endswith(RESULT_OF_MAIN)]
        return self.plan.activations.get(parts[0]) if parts else None

    def known(self, name: str, channels_last: bool) -> str:
        """Remember in which order a tensor lies."""
        if channels_last:
            self.channels_last.add(name)
        return name

    def transpose(self, node: NodeProto) -> str:
        """The source's own transpositions around its norms: none is left."""
        (source,) = node.input
        if attributes(node)["perm"] == TO_CHANNELS_LAST:
            return self.turned(self.names[source], True)
        return self.names[source]

    def norm(self, node: NodeProto) -> str:
        """Normalisation over the last axis, as in the source."""
        weights = [self.value(name) for name in node.input[1:]]
        return self.known(self.add(node, [self.names[node.input[0]], *weights]), True)

    def reduction(self, node: NodeProto) -> str:
        """A mean or maximum, over the axes where they now lie."""
        name = self.names[node.input[0]]
        if name not in self.channels_last:
            return self.add(node, [name])
        given = attributes(node)
        axes = sorted(AXES_CHANNELS_LAST[axis] for axis in given.pop("axes"))
        return self.known(self.graph.add(node.op_type, [name], node.name, axes=axes, **given), True)

    def concatenation(self, node: NodeProto) -> str:
        """Channels of several tensors, one after the other."""
        last = all(self.names[name] in self.channels_last for name in node.input)
        names = [self.operand(name, last) for name in node.input]
        axis = AXES_CHANNELS_LAST[attributes(node)["axis"]] if last else attributes(node)["axis"]
        return self.known(self.graph.add(node.op_type, names, node.name, axis=axis), last)

    def layer(self, node: NodeProto) -> str:
        """A convolution or linear map."""
        if node.name not in self.plan.inputs:
            return self.add(
                node, [self.operand(node.input[0], False), *map(self.value, node.input[1:])]
            )
        linear = self.constants[node.input[1]].shape[2:] == (1, 1)
        if linear and node.name not in self.plan.outputs:
            return self.product(node)
        return self.convolution(node)

    def convolution(self, node: NodeProto) -> str:
        """A convolution from integers to integers, which onnxruntime orders as it likes."""
        integers = self._taken(self.names[node.input[0]], self.plan.inputs[node.name])
        given = self.plan.outputs.get(node.name)
        if node.name == SUM and self.plan.joined is not None:
            integers, given = self._with_picture(node, integers), self.plan.joined
        if given is not None and given.pieces > 1 and is_depthwise_node(node):
            copies = [integers.values] * given.pieces
            values = self.graph.add("Concat", copies, f"{node.name}.taken", axis=1)
            integers = replace(integers, values=values)
        operands = [self.floats(integers), self.weight(node), self.value(node.input[2])]
        result = self.add(node, operands)
        if given is None:
            return result
        if node.name in self._channels:
            return self._put_together(node, result, given)
        integers = self.integers(result, given)
        if not node.name.endswith(MAIN):
            return self.floats(integers)
        # Its product with the gate lies as the gate does.
        values = self.turned(integers.values, True)
        return self.known(self.floats(replace(integers, values=values)), True)

    def _taken(self, name: str, grid: Grid) -> _Integers:
        """A tensor rounded to a grid, channels first: if it was made from such integers, those."""
        integers = self._integers_of(name)
        if by_sign(grid):
            integers = self._by_sign(name, grid)
        elif integers is None or integers != self._on_grid(integers.values, grid):
            integers = self.integers(name, grid)
            self.known(integers.values, name in self.channels_last)
        return replace(integers, values=self.turned(integers.values, False))

    def _by_sign(self, name: str, grid: Grid) -> _Integers:
        """What lies above 0 and what lies below, each from 0 on and in channels of its own."""
        last = name in self.channels_last
        from_zero = replace(grid, zero_point=0, pieces=1)
        negative = self.graph.add("Neg", [name], f"{name}.negative")
        above, below = (self.integers(part, from_zero) for part in (name, negative))
        taken_from = [above.values, below.values]
        axis = AXES_CHANNELS_LAST[1] if last else 1
        values = self.graph.add("Concat", taken_from, f"{name}.by_sign", axis=axis)
        return replace(above, values=self.known(values, last))

    def _with_picture(self, node: NodeProto, body: _Integers) -> _Integers:
        """What the layer `SUM` takes, and the picture, of which it makes the skip.

        More than once, each with its part of the weights, so that no two are too large together,
        and as often as makes groups of channels whole.
        """
        first = next(node for node in self.source if node.name == FIRST)
        weight, bias = (self._undivided[name] for name in first.input[1:])
        grid, (_, steps) = self.plan.inputs[SUM], self.quantised(node)
        integers = skip_integers(weight, steps, grid)
        copies = 2 if self.constants[node.input[1]].shape[1] % GROUP else 4  # of 3 colours
        parts = [((integers + part) / copies).floor() for part in range(copies)]
        self._skip = torch.cat(parts, dim=1)
        self.constants[node.input[2]] = self.constants[node.input[2]] + bias
        picture = self.integers(self.names[first.input[0]], PICTURE[self.plan.target])
        taken_from = [body.values, *[picture.values] * copies]
        values = self.graph.add("Concat", taken_from, f"{SUM}.taken", axis=1)
        return replace(body, values=values)

    def quantised(self, node: NodeProto) -> tuple[Tensor, Tensor]:
        """A layer's 8-bit weights, with those of the skip where it has them, and their steps."""
        integers, steps = super().quantised(node)
        if node.name == SUM and self._skip is not None:
            integers = torch.cat([integers, self._skip.to(torch.int8)], dim=1)
        if by_sign(self.plan.inputs[node.name]):
            integers = torch.cat([integers, -integers], dim=1)
        if node.name in self.plan.trained and integers.shape[1] > 1 and overflows(integers):
            integers = unsigned(integers)
        return integers, steps

    def _put_together(self, node: NodeProto, result: str, grid: Grid) -> str:
        """A layer's pieces added up, and shuffled if nothing has shuffled what it takes.

        As floats: onnxruntime 1.17 shuffles no integers.
        """
        integers = self.integers(result, replace(grid, zero_point=0, pieces=1))
        channels, axis = self._channels[node.name], self.constant(torch.tensor([1]), "channel_axis")
        whole = ""
        for piece in range(grid.pieces):
            ends = [
                self.constant(torch.tensor([end]), f"channel_{end}")
                for end in (piece * channels, (piece + 1) * channels)
            ]
            name = f"{node.name}.piece_{piece}"
            values = self.graph.add("Slice", [integers.values, *ends, axis], name)
            zero_point = min(max(grid.zero_point - piece * LEVELS, 0), LEVELS)
            part = self.floats(self._on_grid(values, replace(grid, zero_point=zero_point)))
            whole = self.graph.add("Add", [whole, part], f"{name}.added") if whole else part
        shuffle = self._shuffle if node.name == LAST else None
        return self.add(shuffle, [whole]) if shuffle else whole

    def _integers_of(self, name: str) -> _Integers | None:
        """The integers that a tensor of floats was made from, if it was."""
        return next((found for found, floats in self._floats.items() if floats == name), None)

    def product(self, node: NodeProto) -> str:
        """A linear map as a product of matrices, (N, H, W, C_in) by (C_in, C_out), in integers.

        onnxruntime makes it one kernel with its scale and bias. For that, the step of the weights
        must meet that of the input in the graph, where a DequantizeLinear of 1 keeps the product
        from being computed beforehand.
        """
        grid, name = self.plan.inputs[node.name], node.name
        integers, scales = self.quantised(node)
        taken = self.integers(self.turned(self.names[node.input[0]], True), grid)
        matrix = self.constant(integers.flatten(1).t(), node.input[1])
        operands = [taken.values, matrix, taken.zero_point]
        if integers.dtype == torch.uint8:
            operands.append(self.constant(torch.tensor(128, dtype=torch.uint8), "zero_of_unsigned"))
        sums = self.graph.add("MatMulInteger", operands, name)
        sums = self.graph.add("Cast", [sums], f"{name}.sums", to=TensorProto.FLOAT)
        one = self.constant(torch.tensor(1, dtype=torch.int8), "one")
        step = self.graph.add("DequantizeLinear", [one, taken.scale], f"{name}.step")
        steps = self.constant(scales, f"{node.input[1]}.scale")
        steps = self.graph.add("Mul", [step, steps], f"{name}.steps")
        scaled = self.graph.add("Mul", [sums, steps], f"{name}.scaled")
        biased = self.graph.add("Add", [scaled, self.value(node.input[2])], f"{name}.biased")
        return self.known(biased, True)


CPU_LOWERINGS: Final[Mapping[str, Callable[[_CpuWriter, NodeProto], str]]] = {
    "Concat": _CpuWriter.concatenation,
    "Conv": _CpuWriter.layer,
    "LayerNormalization": _CpuWriter.norm,
    "ReduceMax": _CpuWriter.reduction,
    "ReduceMean": _CpuWriter.reduction,
    "Transpose": _CpuWriter.transpose,
}
"""How each operator is written that minds in which order its input lies, or need not."""

WRITERS: Final[Mapping[Target, type[_Writer]]] = {"tensorrt": _Writer, "cpu": _CpuWriter}
"""By target."""


def before_shuffle(weight: Tensor, bias: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A 3x3 convolution behind a pixel shuffle as one before it, with the same results.

    Each of `factor` ** 2 results of a small pixel meets the small pixels around it, each of which
    holds `factor` ** 2 large ones; at the border both see zeros.

    Args:
        weight: (C_out, C_in, 3, 3).
        bias: (C_out).
        factor: Of the shuffle.

    Returns:
        Weight (C_out * factor ** 2, factor ** 2 * C_in, 3, 3), and bias. It takes all channels of a
        place, then all of the next, so that each has the neighbour that it had.
    """
    given, taken = weight.shape[:2]
    moved = weight.new_zeros(given, factor, factor, factor, factor, taken, 3, 3)
    for i, j, y, x in itertools.product(range(factor), range(factor), range(3), range(3)):
        rows, p = divmod(i + y - 1, factor)
        columns, q = divmod(j + x - 1, factor)
        moved[:, i, j, p, q, :, rows + 1, columns + 1] = weight[:, :, y, x]
    return moved.flatten(3, 5).flatten(0, 2), bias.repeat_interleave(factor**2)


def is_depthwise_node(node: NodeProto) -> bool:
    """Whether a convolution is one of each channel by itself."""
    return attributes(node).get("group", 1) > 1


def attribute(node: NodeProto, name: str) -> onnx.AttributeProto:
    """A node's attribute, to be changed."""
    return next(entry for entry in node.attribute if entry.name == name)


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
