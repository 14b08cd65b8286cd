"""The network in NCNN's form: traced symbolically, then lowered operator by operator.

Programs bring NCNN of very different age, some without all of its layers. A graph keeps to those
whose weights ChaiNNer reads, which are built into Upscayl, and which run on a GPU in NCNN of 2022,
but for GELU and the largest value over channels, which came to GPUs later. What is done to each
channel alone becomes part of the convolution before or after it wherever its border allows that.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from aether_converters.errors import ConversionError
from aether_converters.graphs.ncnn_file import (
    ADD,
    ARRAY,
    FLOAT,
    HALF,
    INPUT,
    LARGEST,
    MAGIC,
    MULTIPLY,
    OUTPUT,
    POWER,
    RELU,
    SIGMOID,
    SLOPED,
)
from aether_core import ChannelNorm, scale_and_shift, subtract_mean

Number = int | float | tuple[float, ...]
STORED_AS: Final = "fp16"  # where weights are halves


@dataclass(frozen=True)
class _Weights:
    """Numbers of a layer in the `.bin` file; those with a tag may be halves."""

    tensor: Tensor
    tagged: bool = False

    def stored(self, *, half: bool) -> bytes:
        """As NCNN reads them."""
        numbers = self.tensor.detach().float().flatten().numpy()
        if not self.tagged:
            return numbers.tobytes()
        # NCNN fills an odd number of halves up, which ChaiNNer does not expect.
        if not half or numbers.size % 2:
            return FLOAT + numbers.tobytes()
        most = float(np.abs(numbers).max())
        if most > torch.finfo(torch.float16).max:
            raise ConversionError(
                f"a weight overflows {STORED_AS}",
                expected="values of at most 65504",
                found=f"{most:g}",
                advice="convert with --precision fp32",
            )
        return HALF + numbers.astype(np.float16).tobytes()


@dataclass
class Layer:
    """A line of the `.param` file, with its weights.

    Attributes:
        kind: Such as Convolution.
        inputs: Names of blobs.
        output: Name of a blob.
        numbers: Parameters by their id.
        weights: In the order of the `.bin` file.
    """

    kind: str
    inputs: list[str]
    output: str
    numbers: dict[int, Number]
    weights: list[_Weights]


@dataclass(frozen=True, kw_only=True)
class _Value:
    """What an operator gave: a blob, and what is still to be done to it.

    Attributes:
        blob: Its name.
        channels: Of the value.
        gain: That each channel is still to be multiplied by, (C) float64.
        shift: That is to be added to each channel then, (C) float64.
        pooled: Whether all pixels are one.
        shuffled: Factor by which pixels are still to be made of channels.
    """

    blob: str
    channels: int
    gain: Tensor | None = None
    shift: Tensor | None = None
    pooled: bool = False
    shuffled: int = 1

    @property
    def plain(self) -> bool:
        """Whether nothing is left to be done to its channels."""
        return self.gain is None and self.shift is None

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """Gain and shift, in full."""
        one = torch.ones(self.channels, dtype=torch.float64)
        return (
            one if self.gain is None else self.gain,
            torch.zeros_like(one) if self.shift is None else self.shift,
        )

    def scaled(self, gain: float | Tensor, shift: float | Tensor) -> _Value:
        """The value times `gain` plus `shift`, each a number or one a channel."""
        factor, added = (
            torch.as_tensor(number, dtype=torch.float64).detach().flatten().expand(self.channels)
            for number in (gain, shift)
        )
        before, moved = self.affine
        return replace(self, gain=before * factor, shift=moved * factor + added)


class Graph:
    """An NCNN graph under construction, in topological order by construction."""

    def __init__(self) -> None:
        """No layers yet."""
        self.layers: list[Layer] = []

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        numbers: Mapping[int, Number] | None = None,
        weights: Sequence[_Weights] = (),
    ) -> str:
        """Append a layer and return the name of its output."""
        output = f"{kind.lower()}_{len(self.layers)}"
        self.layers.append(Layer(kind, list(inputs), output, dict(numbers or {}), list(weights)))
        return output

    def convolve(
        self, blob: str, weight: Tensor, bias: Tensor, *, groups: int = 1, border: float = 0.0
    ) -> str:
        """Append a convolution of a picture that `border` surrounds."""
        side = weight.shape[-1]
        numbers: dict[int, Number] = {0: len(weight), 1: side, 4: side // 2}
        numbers |= {5: 1, 6: weight.numel()}
        if groups > 1:
            numbers[7] = groups
        if border:
            numbers[18] = border
        kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
        return self.add(kind, [blob], numbers, [_Weights(weight, tagged=True), _Weights(bias)])

    def settled(self, value: _Value) -> str:
        """The blob of a value once nothing is left to be done to it."""
        blob = value.blob
        if value.shuffled > 1:
            blob = self.add("PixelShuffle", [blob], {0: value.shuffled})
        if value.plain:
            return blob
        gain, shift = value.affine
        return self.convolve(blob, gain[:, None, None, None], shift, groups=len(gain))

    def with_weights(self, blob: str) -> Layer | None:
        """The convolution that gives a blob, if it is one without an activation."""
        layer = next((layer for layer in self.layers if layer.output == blob), None)
        if layer is None or layer.kind not in WITH_WEIGHTS or ACTIVATION in layer.numbers:
            return None
        return layer


WITH_WEIGHTS: Final = ("Convolution", "InnerProduct")
ACTIVATION, SLOPE = 9, 10  # ids of parameters of a convolution

Lowering = Callable[[Graph, fx.Node, Sequence[Any], Mapping[str, Any]], _Value]


def _formless(node: fx.Node) -> ConversionError:
    return ConversionError(
        "the network uses an operator that has no form in NCNN here",
        key=str(node.name),
        found=str(node.format_node() or node.target),
        advice="convert it to another format, such as --to onnx",
    )


def _add(graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]) -> _Value:
    x, y = args
    if isinstance(y, _Value):
        return _binary(graph, node, x, y, ADD)
    return x.scaled(1.0, y)


def _subtract(graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]) -> _Value:
    del graph
    x, y = args
    if isinstance(y, _Value):
        raise _formless(node)
    return x.scaled(1.0, -y)


def _multiply(graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]) -> _Value:
    x, y = args
    if isinstance(y, _Value):
        return _binary(graph, node, x, y, MULTIPLY)
    return x.scaled(y, 0.0)


def _divide(graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]) -> _Value:
    del graph
    x, y = args
    if isinstance(y, _Value):
        raise _formless(node)
    return x.scaled(1.0 / y, 0.0)


def _binary(graph: Graph, node: fx.Node, x: Any, y: _Value, code: int) -> _Value:
    if not isinstance(x, _Value):
        raise _formless(node)
    blob = graph.add("BinaryOp", [graph.settled(x), graph.settled(y)], {0: code})
    return _Value(blob=blob, channels=max(x.channels, y.channels))


def _scale_and_shift(
    graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]
) -> _Value:
    del graph, node
    x, gain, shift = args
    return x.scaled(gain, shift)


def _conv2d(graph: Graph, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Value:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    x: _Value = given["input"]
    weight: Tensor = given["weight"].detach().double()
    bias = given.get("bias")
    bias = torch.zeros(len(weight)).double() if bias is None else bias.detach().double()
    groups = int(given.get("groups", 1))
    if x.pooled:
        numbers: dict[int, Number] = {0: len(weight), 1: 1, 2: weight.numel()}
        weights = [_Weights(weight, tagged=True), _Weights(bias)]
        blob = graph.add("InnerProduct", [graph.settled(x)], numbers, weights)
        return _Value(blob=blob, channels=len(weight), pooled=True)
    if x.shuffled > 1 and len(weight) * x.shuffled**2 <= weight.shape[1]:
        weight, bias = _before_shuffle(weight, bias, x.shuffled)
        blob = graph.convolve(x.blob, weight, bias)
        channels = len(weight) // x.shuffled**2
        return _Value(blob=blob, channels=channels, shuffled=x.shuffled)
    border = _border(x, weight.shape[-1]) if x.shuffled == groups == 1 else None
    if border is None:
        blob = graph.convolve(graph.settled(x), weight, bias, groups=groups)
    else:
        gain, shift = x.affine
        bias = bias + torch.einsum("oikl,i->o", weight, shift)
        blob = graph.convolve(x.blob, weight * gain[:, None, None], bias, border=border)
    del node
    return _Value(blob=blob, channels=len(weight))


def _border(x: _Value, side: int) -> float | None:
    """What stands around a blob where zeros stand around the value; None if channels differ."""
    gain, shift = x.affine
    if side == 1 or not shift.any():
        return 0.0
    around = -shift / gain
    if not bool(torch.isfinite(around).all()) or bool((around != around[0]).any()):
        return None
    return float(around[0])


def _before_shuffle(weight: Tensor, bias: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A 3x3 convolution after a shuffle as the one before it that gives the same, borders too.

    ChaiNNer takes the channels of the last convolution over the square of the shuffles' factors
    for those of the picture, which holds where a shuffle is the last step. Nor is the wide picture
    ever written to memory in full size.
    """
    channels, width, side, _ = weight.shape
    moved = weight.new_zeros(channels, factor, factor, width, factor, factor, side, side)
    reach = side // 2
    for a in range(factor):
        for b in range(factor):
            for i in range(side):
                for j in range(side):
                    y, p = divmod(a + i - reach, factor)
                    x, q = divmod(b + j - reach, factor)
                    moved[:, a, b, :, p, q, y + reach, x + reach] = weight[:, :, i, j]
    count = factor**2
    return (
        moved.reshape(channels * count, width * count, side, side),
        bias.repeat_interleave(count),
    )


def _norm(graph: Graph, norm: ChannelNorm, x: _Value) -> _Value:
    """Layer normalisation over channels, in steps that ChaiNNer reads and every GPU computes.

    A 1x1 convolution subtracts the mean, one of squares gives the variance. Both have weights that
    a half holds exactly: the constant that this costs, with gain and shift, waits for the next
    convolution.
    """
    count = x.channels
    power = 2.0 ** math.ceil(math.log2(count)) if count > 1 else 1.0
    share = count / power
    centre = (count * torch.eye(count) - torch.ones(count, count)) / power
    centred = graph.convolve(
        graph.settled(x), centre[:, :, None, None].double(), torch.zeros(count).double()
    )
    squares = graph.add("BinaryOp", [centred, centred], {0: MULTIPLY})
    mean = torch.full((1, count, 1, 1), 1 / power, dtype=torch.float64)
    eps = torch.full((1,), norm.eps * share**3, dtype=torch.float64)
    variance = graph.convolve(squares, mean, eps)
    inverse = graph.add("BinaryOp", [variance], {0: POWER, 1: 1, 2: -0.5})
    blob = graph.add("BinaryOp", [centred, inverse], {0: MULTIPLY})
    value = _Value(blob=blob, channels=count)
    return value.scaled(norm.weight.double() * math.sqrt(share), norm.bias)


def _unary(kind: str) -> Lowering:
    def lower(graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]) -> _Value:
        del node
        (x,) = args[:1]
        return _Value(blob=graph.add(kind, [graph.settled(x)]), channels=x.channels)

    return lower


def _activation(kind: str, code: int) -> Lowering:
    """An activation, within the convolution before it if nobody else wants that without."""

    def lower(
        graph: Graph, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> _Value:
        given = dict(zip(("input", "negative_slope"), args, strict=False)) | dict(kwargs)
        x: _Value = given["input"]
        slope = float(given["negative_slope"]) if code == SLOPED else 0.0
        giver = graph.with_weights(x.blob)
        if giver is None or not x.plain or len(cast(fx.Node, node.args[0]).users) > 1:
            numbers: dict[int, Number] = {0: slope} if slope else {}
            blob = graph.add(kind, [graph.settled(x)], numbers)
            return replace(x, blob=blob, gain=None, shift=None, shuffled=1)
        giver.numbers[ACTIVATION] = code
        if slope:
            giver.numbers[SLOPE] = (slope,)
        return x

    return lower


def _mean(graph: Graph, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Value:
    """Over all pixels of a channel, or over the channels of a pixel."""
    (x,) = args
    if kwargs["dim"] == (2, 3):
        blob = graph.add("Pooling", [graph.settled(x)], {0: 1, 4: 1})
        return _Value(blob=blob, channels=x.channels, pooled=True)
    if kwargs["dim"] != 1:
        raise _formless(node)
    power = 2.0 ** math.ceil(math.log2(x.channels))
    weight = torch.full((1, x.channels, 1, 1), 1 / power, dtype=torch.float64)
    blob = graph.convolve(graph.settled(x), weight, torch.zeros(1).double())
    return _Value(blob=blob, channels=1).scaled(power / x.channels, 0.0)


def _amax(graph: Graph, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Value:
    (x,) = args
    if kwargs["dim"] != 1:
        raise _formless(node)
    # 5: axes count as they are written, which earlier NCNN got wrong
    numbers: dict[int, Number] = {0: LARGEST, 1: 0, 3: (0,), 4: 1, 5: 1}
    return _Value(blob=graph.add("Reduction", [graph.settled(x)], numbers), channels=1)


def _concat(graph: Graph, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Value:
    parts = cast("list[_Value]", list(args[0]))
    if kwargs["dim"] != 1 or any(part.shuffled > 1 or part.pooled for part in parts):
        raise _formless(node)
    blob = graph.add("Concat", [part.blob for part in parts], {0: 0})
    joined = _Value(blob=blob, channels=sum(part.channels for part in parts))
    if all(part.plain for part in parts):
        return joined
    gains, shifts = zip(*(part.affine for part in parts), strict=True)
    return joined.scaled(torch.cat(gains), torch.cat(shifts))


def _pixel_shuffle(
    graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]
) -> _Value:
    del node
    x, factor = args
    blob = graph.settled(x)
    return _Value(blob=blob, channels=x.channels // factor**2, shuffled=factor)


def _identity(graph: Graph, node: fx.Node, args: Sequence[Any], _: Mapping[str, Any]) -> _Value:
    """Memory formats do not exist in NCNN."""
    del graph, node
    return args[0]


LOWERINGS: Final[Mapping[object, Lowering]] = {
    operator.add: _add,
    operator.sub: _subtract,
    operator.mul: _multiply,
    operator.truediv: _divide,
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.gelu: _unary("GELU"),
    F.silu: _unary("Swish"),
    F.relu: _activation("ReLU", RELU),
    F.leaky_relu: _activation("ReLU", SLOPED),
    torch.sigmoid: _activation("Sigmoid", SIGMOID),
    subtract_mean: _subtract,
    scale_and_shift: _scale_and_shift,
    torch.cat: _concat,
    F.pixel_shuffle: _pixel_shuffle,
    "amax": _amax,
    "mean": _mean,
    "contiguous": _identity,
}
"""How each operator of the network is written for NCNN; methods go by their name."""


class _Tracer(fx.Tracer):
    """Traces into every module but layer normalisation, which has steps of its own here."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return isinstance(m, ChannelNorm)


@dataclass(frozen=True, kw_only=True)
class NcnnPair:
    """The contents of both files."""

    param: bytes
    weights: bytes = field(repr=False)


def build_ncnn(network: nn.Module, *, channels: int, half: bool = False) -> NcnnPair:
    """The network for NCNN: "data" (C_in, H, W) to "output" (C_out, scale * H, scale * W).

    RGB in [0, 1], not clipped, of any size.

    Args:
        network: In eval mode, on the CPU.
        channels: Of the input.
        half: Whether weights are stored as halves; biases never are.

    Raises:
        ConversionError: An operator has no form in NCNN, or a weight overflows float16.
    """
    graph = Graph()
    _lower(graph, network, channels)
    lines = list(_lines(graph))
    blobs = sum(int(line.split()[3]) for line in lines)
    text = "\n".join([MAGIC, f"{len(lines)} {blobs}", *lines, ""])
    stored = (w.stored(half=half) for layer in graph.layers for w in layer.weights)
    return NcnnPair(param=text.encode("ascii"), weights=b"".join(stored))


def _lower(graph: Graph, network: nn.Module, channels: int) -> None:
    """Append every traced operation to the graph; the last layer gives the result."""
    tensors = dict(network.state_dict())
    values: dict[fx.Node, Any] = {}
    for node in _Tracer().trace(network).nodes:
        if node.op == "placeholder":
            graph.add("Input", [])
            graph.layers[-1].output = INPUT
            values[node] = _Value(blob=INPUT, channels=channels)
        elif node.op == "get_attr":
            values[node] = tensors[str(node.target)]
        elif node.op == "output":
            _finish(graph, values[cast(fx.Node, node.args[0])])
        elif node.op == "call_module":
            norm = cast(ChannelNorm, network.get_submodule(str(node.target)))
            values[node] = _norm(graph, norm, values[cast(fx.Node, node.args[0])])
        else:
            values[node] = _lower_call(graph, node, values)


def _lower_call(graph: Graph, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args = cast(tuple[Any, ...], map_arg(node.args, values.__getitem__))
    kwargs = cast(dict[str, Any], map_arg(node.kwargs, values.__getitem__))
    if node.target is operator.getitem and isinstance(args[0], Tensor):
        return args[0][args[1]]
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        raise _formless(node)
    return lowering(graph, node, args, kwargs)


def _finish(graph: Graph, value: _Value) -> None:
    """Give the result its name, once its last gain and shift are in the last convolution."""
    giver = graph.with_weights(value.blob)
    if giver is not None and not value.plain:
        gain, shift = (part.repeat_interleave(value.shuffled**2) for part in value.affine)
        weight, bias = (weights.tensor for weights in giver.weights)
        giver.weights = [
            _Weights(weight * gain[:, None, None, None], tagged=True),
            _Weights(bias * gain + shift),
        ]
        value = replace(value, gain=None, shift=None)
    last = graph.settled(value)
    next(layer for layer in graph.layers if layer.output == last).output = OUTPUT


def _lines(graph: Graph) -> Iterator[str]:
    """The layers as text; a blob that several take is split, since each may overwrite its own."""
    takers = Counter(blob for layer in graph.layers for blob in layer.inputs)
    copies: dict[str, Iterator[str]] = {}
    for layer in graph.layers:
        inputs = [next(copies[blob]) if blob in copies else blob for blob in layer.inputs]
        yield _line(layer.kind, layer.output, inputs, [layer.output], layer.numbers)
        count = takers[layer.output]
        if count > 1:
            names = [f"{layer.output}_{copy}" for copy in range(count)]
            yield _line("Split", f"split_{layer.output}", [layer.output], names, {})
            copies[layer.output] = iter(names)


def _line(
    kind: str,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    numbers: Mapping[int, Number],
) -> str:
    words = [f"{kind:<20} {name:<24}", str(len(inputs)), str(len(outputs)), *inputs, *outputs]
    for key, value in sorted(numbers.items()):
        if isinstance(value, tuple):
            words.append(f"{ARRAY - key}={len(value)},{','.join(map(_text, value))}")
        else:
            words.append(f"{key}={_text(value)}")
    return " ".join(words)


def _text(value: float) -> str:
    """A number in at most 15 characters, all that NCNN reads; a float32 is told by these."""
    return str(value) if isinstance(value, int) else f"{value:.8e}"
