"""How many multiplications and additions a network needs: those of its convolutions and products.

Everything else that a network does (norms, activations, gates, attention maps of functions without
weights) is a pass over memory, and counts nothing.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from aether_converters.errors import require
from aether_core import AetherConfig, AetherNet

Shape = tuple[int, ...]

LAYERS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

COUNTED_SIDES: Final = (8, 16)  # px
STANDARD: Final = ("", "ai.onnx")  # domains whose operators onnx can infer shapes for


def module_macs(model: nn.Module, shape: Shape) -> int:
    """Multiply-accumulates of one forward pass of `shape`, (N, C, H, W).

    Counted on a copy without memory, each layer each time it is called: a value of the output, or
    of the input of a transposed convolution, takes as many as one slice of the weight is long.
    """
    skeleton = copy.deepcopy(model).to("meta")
    kind = next((weight.dtype for weight in skeleton.parameters()), torch.float32)
    return _counted(skeleton, torch.empty(shape, dtype=kind, device="meta"))


def network_macs(config: AetherConfig, size: tuple[int, int]) -> int:
    """Multiply-accumulates of an AetherNet for an input of (H, W) px.

    They grow with the area, from a share that does not where channels are weighed. Two small
    pictures tell both, sooner than PyTorch imports what `module_macs` needs.
    """
    network = AetherNet(config)
    small, large = (
        _counted(network, torch.zeros(1, config.in_chans, side, side)) for side in COUNTED_SIDES
    )
    areas = [side**2 for side in COUNTED_SIDES]
    of_pixel = (large - small) // (areas[1] - areas[0])
    return small + of_pixel * (size[0] * size[1] - areas[0])


def _counted(model: nn.Module, image: Tensor) -> int:
    """What a model that nobody else uses needs for a picture."""
    # Inference is free to call layers in parts; what can be trained is plain.
    model.requires_grad_(True)
    count = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        weight: Any = layer.weight
        values = inputs[0] if isinstance(layer, TRANSPOSED) else output
        count += values.numel() * math.prod(weight.shape[1:])

    hooks = [
        layer.register_forward_hook(add)
        for layer in model.modules()
        if isinstance(layer, (*LAYERS, *TRANSPOSED))
    ]
    with torch.enable_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return count


def graph_macs(path: Path, shape: Shape) -> int | None:
    """Multiply-accumulates of an ONNX file for an input of `shape`, (N, C, H, W).

    None where the shapes inside do not follow from it.
    """
    onnx: Any = require("onnx")
    counts = node_macs(onnx.load(str(path), load_external_data=False), shape)
    return None if counts is None else sum(count for _, count in counts)


def node_macs(model: Any, shape: Shape) -> tuple[tuple[Any, int], ...] | None:
    """The convolutions and products of an `onnx.ModelProto`, each with its multiply-accumulates.

    None where the shapes inside do not follow from `shape`, (N, C, H, W), that of the input.
    """
    from aether_converters.graphs.onnx_shapes import activation_shapes, image_input

    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = {**weights, image_input(model).name: shape, **activation_shapes(model, shape)}
    if any(
        not shapes.get(node.output[0]) for node in model.graph.node if node.domain not in STANDARD
    ):
        return None  # some of them multiply
    counts = tuple(
        (
            node,
            OPERATORS[node.op_type](
                [shapes.get(name, ()) for name in node.input], shapes.get(node.output[0], ()), node
            ),
        )
        for node in model.graph.node
        if node.op_type in OPERATORS
    )
    return counts if all(count for _, count in counts) else None


def _convolution(inputs: list[Shape], output: Shape, _: Any) -> int:
    return math.prod(output or (0,)) * math.prod(inputs[1][1:] or (0,))


def _integer_convolution(inputs: list[Shape], output: Shape, node: Any) -> int:
    return _convolution([inputs[0], inputs[3]], output, node)


def _transposed(inputs: list[Shape], _output: Shape, _: Any) -> int:
    return math.prod(inputs[0] or (0,)) * math.prod(inputs[1][1:] or (0,))


def _product(inputs: list[Shape], output: Shape, _: Any) -> int:
    return math.prod(output or (0,)) * (inputs[0] or (0,))[-1]


def _gemm(inputs: list[Shape], output: Shape, node: Any) -> int:
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output or (0,)) * (inputs[0] or (0,))[0 if turned else -1]


OPERATORS: Final = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearConv": _integer_convolution,
    "QLinearMatMul": _product,
}
"""What of an operator's inputs, output and attributes tells its count; 0 where it is unknown."""
