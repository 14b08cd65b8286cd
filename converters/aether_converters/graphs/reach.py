"""How far each pixel of a graph's output sees, from the first operator to the last.

One walk over the graph says all that cutting pictures into tiles depends on: the reach in px, the
px of which tiles must start at multiples, and the operators that look at the whole picture. The
same walk gives the shapes for a picture of some size, and what the graph costs.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TensorShapeProto,
    numpy_helper,
)

from aether_converters.errors import ModelError
from aether_converters.graphs.budget import Budget, budget_of, subgraphs
from aether_converters.graphs.onnx_shapes import Shape, image_input, without_weights
from aether_converters.graphs.operators import Call, followed
from aether_converters.graphs.values import (
    AXES,
    HEIGHT,
    SMALL,
    WIDTH,
    Factor,
    Value,
    constant,
    joined,
    plain,
    sides,
)
from aether_spandrel.errors import reason

STANDARD: Final = ("", "ai.onnx", "com.microsoft")
"""Domains whose operators are what their names say; onnxruntime's own have the same names."""
LARGE: Final = (2_036_160, 2_076_480)
"""(H, W) in px that any block divides, and beside which no border counts."""
MIDDLE: Final = 20_160 * 20  # px; of a large picture, where tiles of any steps may start
FARTHEST: Final = 2**12  # px; what seems to see further has lost its place in the picture
AT_LEAST: Final = 32  # px that tiles overlap then, where no overlap would be enough
LAST: Final = "the output"
TURNS: Final = 32  # of a loop that are followed one by one
NO_SENSE: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a row raises for an operator that it makes no sense of; onnxruntime refuses that later."""
GROWING: Final[Mapping[str, int]] = {
    "ConstantOfShape": 0,
    "Expand": 1,
    "OneHot": 1,
    "Pad": 1,
    "Range": 1,
    "Tile": 1,
}
"""Operators whose result is as large as an input says, and which."""
BOUNDED: Final = ("Compress", "NonZero", "Unique")
"""Operators whose result is hardly larger than what they are given."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How a graph sees the picture.

    Attributes:
        radius: Input px in each direction that an output pixel can depend on.
        steps: (height, width) in px; tiles must start at multiples.
        whole: Operators that look at the whole picture.
    """

    radius: int
    steps: tuple[int, int]
    whole: tuple[str, ...]


class Graph:
    """A model without its weights and with its functions written out, to be walked over."""

    def __init__(self, model: ModelProto, pixels: int) -> None:
        """Prepare a model that is run on pictures of so many px.

        Raises:
            ModelError: It would cost more than any network.
        """
        self._budget = budget_of(model, pixels)
        skeleton = without_weights(model)
        if skeleton.functions:
            skeleton = _inlined(skeleton)
        self._model = skeleton
        self._opsets = {entry.domain: entry.version for entry in skeleton.opset_import}

    def walk(self, shape: Shape, *, charged: bool = False) -> _Walk:
        """What becomes of a picture of `shape`, (N, C, H, W).

        Raises:
            ModelError: It is `charged` and costs more than any network.
        """
        budget = replace(self._budget) if charged else None  # each walk has all of it
        walk = _Walk(self._opsets, shape[2:], budget)
        graph = self._model.graph
        batch, channels, height, width = shape
        walk.values[image_input(self._model).name] = Value(
            dims=(
                plain(batch),
                plain(channels),
                (Factor(height, HEIGHT),),
                (Factor(width, WIDTH),),
            ),
            pixels=True,
        )
        walk.enter(graph, walk.values)
        walk.output = walk.values.get(graph.output[0].name, Value(dims=None))
        return walk


def _inlined(model: ModelProto) -> ModelProto:
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:
        raise ModelError(
            "the functions of the graph cannot be read",
            found=reason(error),
            advice="export the network again, without functions",
        ) from error


class _Walk:
    """Values of a graph for one picture, operator by operator."""

    def __init__(self, opsets: Mapping[str, int], picture: Shape, budget: Budget | None) -> None:
        self.values: MutableMapping[str, Value] = {}
        self.output = Value(dims=None)
        self.largest = 1
        self._opsets = opsets
        self._picture = (picture[0], picture[1])
        self._budget = budget
        self._times = 1

    def enter(self, graph: GraphProto, values: MutableMapping[str, Value]) -> None:
        """Follow all operators of a graph whose inputs are there."""
        for tensor in graph.initializer:
            values[tensor.name] = _stored(tensor)
        for sparse in graph.sparse_initializer:
            values[sparse.values.name] = self._filled(sparse)
        for node in graph.node:
            if self._budget is not None:
                self._budget.take_node(self._times)
            found = self._results(node, values)
            for name, value in zip(node.output, found, strict=False):
                values[name] = value
                self._tally(node, name, value)

    def _tally(self, node: NodeProto, name: str, value: Value) -> None:
        if not name or node.op_type == "Constant":
            return
        self.largest = max(self.largest, value.elements)
        if self._budget is None:
            return
        self._budget.take_value(name, value.elements, constant=not value.pixels)
        constant_alone = not (value.pixels or value.sized)
        if value.dims is None and constant_alone and node.op_type not in BOUNDED:
            self._budget.refuse_unknown(name, node.op_type)

    def _results(self, node: NodeProto, values: MutableMapping[str, Value]) -> Sequence[Value]:
        inputs = [values.get(name, Value(dims=None)) if name else None for name in node.input]
        special = {"Constant": self._constant, "If": self._branches, "Loop": self._loop}
        try:
            if node.op_type in special and node.domain in STANDARD:
                return special[node.op_type](node, inputs, values)
            call = Call(
                operator=node.op_type
                if node.domain in STANDARD
                else f"{node.domain}.{node.op_type}",
                opset=self._opset(node.domain),
                attributes={a.name: _attribute(a) for a in node.attribute},
                inputs=inputs,
                outputs=len(node.output),
                picture=self._picture,
            )
            return followed(call)
        except NO_SENSE:
            return self._unknown(node, inputs, values)

    def _opset(self, domain: str) -> int:
        return self._opsets.get(domain) or self._opsets.get("ai.onnx" if not domain else "", 1)

    def _unknown(
        self,
        node: NodeProto,
        inputs: Sequence[Value | None],
        values: MutableMapping[str, Value],
    ) -> Sequence[Value]:
        """Results of an operator that may look anywhere, and at all that graphs within it name."""
        there = [value for value in inputs if value is not None]
        for graph in subgraphs(node):
            named = {name for inner in graph.node for name in inner.input}
            there += [values[name] for name in named if name in values]
        seen = joined(there, None)
        place = GROWING.get(node.op_type)
        growing = inputs[place] if place is not None and place < len(inputs) else None
        if self._budget is not None and growing is not None and growing.numbers is None:
            self._budget.refuse_unknown(node.output[0] if node.output else "", node.op_type)
        if seen.pixels or seen.sized:
            seen = replace(seen, pixels=seen.pixels, whole=seen.whole | {node.op_type})
        shapes = _inferred(node, inputs, self._opset(node.domain))
        return [
            replace(seen, dims=None if (shape := shapes.get(name)) is None else _plain(shape))
            for name in node.output
        ]

    def _constant(
        self, node: NodeProto, _inputs: Sequence[Value | None], _values: MutableMapping[str, Value]
    ) -> Sequence[Value]:
        attribute = node.attribute[0]
        given: Any = onnx.helper.get_attribute_value(attribute)
        if isinstance(given, TensorProto):
            return [_stored(given)]
        if isinstance(given, SparseTensorProto):
            return [self._filled(given)]
        numbers = np.asarray(given)
        return [constant(numbers.shape, numbers if numbers.size <= SMALL else None)]

    def _filled(self, sparse: SparseTensorProto) -> Value:
        """A tensor of mostly zeros, which becomes a full one."""
        found = constant(sparse.dims)
        if self._budget is not None:
            self._budget.take_value(sparse.values.name, found.elements, constant=True)
        return found

    def _branches(
        self, node: NodeProto, inputs: Sequence[Value | None], values: MutableMapping[str, Value]
    ) -> Sequence[Value]:
        condition = inputs[0] or Value(dims=None)
        graphs = {a.name: a.g for a in node.attribute}
        chosen = list(graphs.values())
        if condition.numbers is not None and not condition.sized:
            chosen = [graphs["then_branch" if condition.numbers.all() else "else_branch"]]
        found = [self._inner(graph, {}, values) for graph in chosen]
        results: list[Value] = []
        for ways in zip(*found, strict=True):
            dims = ways[0].dims if all(way.dims == ways[0].dims for way in ways) else None
            result = joined([*ways, *([condition] if len(chosen) > 1 else [])], dims)
            if dims is None or (condition.sized and len(chosen) > 1):
                result = replace(result, whole=result.whole | {node.op_type})
            results.append(result)
        return results

    def _inner(
        self, graph: GraphProto, given: Mapping[str, Value], values: MutableMapping[str, Value]
    ) -> list[Value]:
        inside = ChainMap(dict(given), values)
        self.enter(graph, inside)
        return [inside[value.name] for value in graph.output]

    def _loop(
        self, node: NodeProto, inputs: Sequence[Value | None], values: MutableMapping[str, Value]
    ) -> Sequence[Value]:
        turns = self._turns(node, inputs)
        body = node.attribute[0].g
        carried = [value or Value(dims=None) for value in inputs[2:]]
        followed_turns = min(turns, TURNS)
        before, self._times = self._times, self._times * -(-turns // max(followed_turns, 1))
        stacked: list[Value] = []
        whole = {node.op_type} if turns > followed_turns else set[str]()
        for turn in range(followed_turns):
            names = [value.name for value in body.input]
            given = [constant((), np.array(turn)), constant((), np.array(True)), *carried]
            again, *results = self._inner(body, dict(zip(names, given, strict=True)), values)
            carried, stacked = results[: len(carried)], results[len(carried) :]
            if again.numbers is None:  # it may end at any turn
                whole.add(node.op_type)
            elif not again.numbers.all():
                turns = turn + 1
                break
        self._times = before
        found = [
            *carried,
            *(replace(value, dims=(plain(turns), *value.known)) for value in stacked),
        ]
        return [
            replace(value, whole=value.whole | whole) if value.pixels else value for value in found
        ]

    def _turns(self, node: NodeProto, inputs: Sequence[Value | None]) -> int:
        """How often a loop turns at most."""
        limit = inputs[0]
        if limit is not None and limit.numbers is not None and not limit.pixels:
            return max(int(limit.numbers.reshape(-1)[0]), 0)
        if self._budget is not None:
            self._budget.refuse_unknown(node.output[0] if node.output else "", node.op_type)
        raise ValueError("a loop of unknown length")


def _attribute(attribute: Any) -> Any:
    found: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(found, TensorProto):
        return numpy_helper.to_array(found)
    return found


def _stored(tensor: TensorProto) -> Value:
    """What the file holds, with its numbers where they are few."""
    found = constant(tensor.dims)
    if found.elements > SMALL:
        return found
    try:
        return replace(found, numbers=numpy_helper.to_array(tensor))
    except NO_SENSE:
        return found


def _plain(shape: Iterable[int]) -> tuple[tuple[Factor, ...], ...]:
    return tuple(map(plain, shape))


def _inferred(node: NodeProto, inputs: Sequence[Value | None], opset: int) -> Mapping[str, Shape]:
    """Shapes of an operator's results as onnx knows them, for operators without a row."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        kinds = {
            name: onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, value.shape)
            for name, value in zip(node.input, inputs, strict=True)
            if value is not None
        }
        numbers = {
            name: numpy_helper.from_array(value.numbers, name)
            for name, value in zip(node.input, inputs, strict=True)
            if value is not None and value.numbers is not None
        }
        for name, tensor in numbers.items():
            kinds[name].tensor_type.elem_type = tensor.data_type
        found = onnx.shape_inference.infer_node_outputs(schema, node, kinds, numbers)
    except Exception:  # noqa: BLE001  the library raises what it likes on nodes that make no sense
        return {}
    shapes: dict[str, Shape] = {}
    for name, kind in found.items():
        dims = kind.tensor_type.shape.dim
        if kind.tensor_type.HasField("shape") and all(map(_is_told, dims)):
            shapes[name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _is_told(dim: TensorShapeProto.Dimension) -> bool:
    return dim.HasField("dim_value") and dim.dim_value >= 0


def is_turned(output: Value) -> bool:
    """Whether the output's height lies along the picture's width, or its width along the height."""
    dims = output.dims or ()
    return len(dims) == 4 and (WIDTH in sides(dims[2:3]) or HEIGHT in sides(dims[3:]))


def enlarged_by(output: Value, scale: int) -> bool:
    """Whether each px of the picture becomes scale x scale px of the output, in its place."""
    dims = output.dims or ()
    return len(dims) == 4 and all(
        [(factor.axis, factor.ratio) for factor in dims[axis + 2]] == [(axis, Fraction(scale))]
        for axis in AXES
    )


def sight_of(walk: _Walk, scale: int) -> Sight:
    """How far a walk's output sees, which is the picture enlarged by `scale`."""
    output = walk.output
    whole = set(output.whole)
    if not whole and not enlarged_by(output, scale):
        whole.add(LAST)
    radius = 0
    for axis in AXES:
        # The first px of a tile's part that is kept, and the last one.
        first, last = MIDDLE, 2 * MIDDLE
        low, high = output.views[axis].within(scale * first, scale * last - 1)
        radius = max(radius, first - low, high - (last - 1))
    if whole and radius > FARTHEST:
        radius = AT_LEAST
    return Sight(radius=radius, steps=output.steps, whole=tuple(sorted(whole)))
