"""Networks of other architectures that spandrel knows, run by PyTorch.

What one needs is found by running it once on a small picture: the memory of its largest tensors,
and how far its operators see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from spandrel import ModelBase, ModelTiling
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from aether_converters.errors import ModelError
from aether_converters.runtimes.devices import explained, place_for
from aether_converters.runtimes.upscaler import (
    LOADED,
    PRECISIONS,
    Format,
    Image,
    Upscaler,
    precision_name,
)
from aether_spandrel.architectures import Descriptor, load_other, of_pictures
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.errors import CheckpointError

PROBE_SIDE: Final = 64  # px of the picture on which it is tried
LIVE_TENSORS: Final = 3  # an operator's input and output, and a residual kept for later

EXACT: Final = 64  # px; up to which tiles overlap by all that a pixel can depend on
OVERLAP: Final = 32  # px; by which they overlap where that is more, or nobody knows


_BUSY = Lock()
_LOCKS: WeakKeyDictionary[nn.Module, Lock] = WeakKeyDictionary()


def _alone(descriptor: Descriptor) -> Lock:
    """Held while a network runs: some, such as SPAN, write into themselves meanwhile."""
    with _BUSY:
        return _LOCKS.setdefault(descriptor.model, Lock())


class Sight(TorchDispatchMode):
    """What a network's operators do with a picture while it runs inside.

    Attributes:
        pixels: Of the picture.
        largest: Bytes of the largest tensor.
        reach: Px in each direction that an output pixel can depend on, as far as all operators
            are known.
        unknown: Names of those that may look at the whole picture.
        steps: Px of which all sides and places of tiles are multiples in the network's grids.
    """

    def __init__(self, picture: Tensor) -> None:
        """Watch what becomes of a square picture, (1, C, H, H)."""
        super().__init__()
        self.pixels = picture.shape[2] * picture.shape[3]
        self.largest = 0
        self.reach = 0.0
        self.unknown: dict[str, None] = {}
        self.steps = 1
        # Px of the picture for one of each tensor made of it. Networks compute with their weights
        # alone, too, which is no matter of where one looks.
        self._of_picture = WeakTensorKeyDictionary()
        self._of_picture[picture] = Fraction(1)

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name: str = func.overloadpacket.__name__.rstrip("_")
        if name not in REACHES:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:  # it was made of others, which were looked at
                return result
        result = func(*args, **kwargs)
        given, made = (
            [value for value in tree_leaves(values) if isinstance(value, Tensor)]
            for values in ((args, kwargs), result)
        )
        grids: list[Fraction] = [
            self._of_picture[value] for value in given if value in self._of_picture
        ]
        if grids:
            grid = self._look(name, args, made, max(grids))
            for value in made:
                self._of_picture[value] = grid
        return result

    def _look(self, name: str, args: Any, made: Sequence[Tensor], grid: Fraction) -> Fraction:
        """Note what an operator does; returns how many px one of its result stands for."""
        self.largest = max([self.largest, *(value.nbytes for value in made)])
        if name in REACHES and args[0].dim() == 4:
            self.reach += float(REACHES[name](args) * grid)
        elif not _is_local(name, args, made):
            self.unknown[name] = None
        change = STEPS[name](args, made[0]) if name in STEPS and args[0].dim() == 4 else Fraction(1)
        if 1 not in (change.numerator, change.denominator):
            self.unknown[name] = None  # where it looks depends on how large the picture is
        grid *= change
        self.steps = math.lcm(self.steps, grid.numerator)
        return grid


def _is_local(name: str, args: Any, made: Sequence[Tensor]) -> bool:
    """Whether an operator looks at one pixel for each, and leaves it where it is."""
    if name in NORMS:
        return not args[5]  # else it takes the statistics of this picture
    if name in CUTS:
        return all(part.shape[2:] == args[0].shape[2:] for part in made)
    return name in LOCAL


def _of_convolution(args: Any) -> float:
    """Px of its input that a convolution sees in each direction."""
    _, weight, _, stride, padding, dilation, transposed = args[:7]
    sides = [(kernel - 1) * step for kernel, step in zip(weight.shape[2:], dilation, strict=True)]
    if transposed:
        return max(math.ceil(side / step) for side, step in zip(sides, stride, strict=True))
    return max(max(p, side - p) for side, p in zip(sides, padding, strict=True))


def _of_pooling(args: Any) -> float:
    return max(args[1]) - 1


def _of_stride(args: Any, _: Tensor) -> Fraction:
    """How much coarser a convolution makes the grid."""
    stride, transposed = max(args[3]), args[6]
    return Fraction(1, stride) if transposed else Fraction(stride)


def _of_pool_stride(args: Any, _: Tensor) -> Fraction:
    return Fraction(max(args[2]) if len(args) > 2 and args[2] else max(args[1]))


def _of_sides(args: Any, made: Tensor) -> Fraction:
    """How much coarser the grid is, by the tensors before and after."""
    before, after = args[0].shape, made.shape
    changes = {Fraction(before[axis], after[axis]) for axis in (2, 3)}
    return changes.pop() if len(changes) == 1 else Fraction(2, 3)


REACHES: Final[Mapping[str, Callable[[Any], float]]] = {
    "convolution": _of_convolution,
    "avg_pool2d": _of_pooling,
    "max_pool2d_with_indices": _of_pooling,
    "upsample_nearest2d": lambda _: 1,
    "upsample_bilinear2d": lambda _: 2,
    "upsample_bicubic2d": lambda _: 3,
}
"""Operators that look beyond a pixel, and how far."""

STEPS: Final[Mapping[str, Callable[[Any, Tensor], Fraction]]] = {
    "convolution": _of_stride,
    "avg_pool2d": _of_pool_stride,
    "max_pool2d_with_indices": _of_pool_stride,
    "upsample_nearest2d": _of_sides,
    "upsample_bilinear2d": _of_sides,
    "upsample_bicubic2d": _of_sides,
    "pixel_shuffle": _of_sides,
    "pixel_unshuffle": _of_sides,
}
"""Operators whose result has another grid of px, and how many times coarser it is."""

LOCAL: Final = frozenset(
    (
        *("add", "sub", "mul", "div", "neg", "pow", "sqrt", "rsqrt", "exp", "abs", "clamp"),
        *("clamp_min", "clamp_max", "maximum", "minimum", "lerp", "addcmul", "where", "rsub"),
        *("relu", "leaky_relu", "_prelu_kernel", "gelu", "silu", "sigmoid", "tanh", "elu"),
        *("hardtanh", "hardsigmoid", "hardswish", "softplus", "mish", "reciprocal"),
        *("cat", "pixel_shuffle", "pixel_unshuffle", "reflection_pad2d", "replication_pad2d"),
        *("constant_pad_nd", "expand", "detach", "alias", "clone", "contiguous", "_to_copy"),
        *("copy", "empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "full"),
        *("full_like", "new_zeros", "new_empty", "new_ones", "scalar_tensor", "lift_fresh"),
        *("to", "_native_batch_norm_legit_no_training"),
    )
)
"""Operators that look at one pixel, or put pixels where they are seen to come from."""

CUTS: Final = frozenset(
    ("split", "split_with_sizes", "unbind", "chunk", "select", "slice", "narrow")
)
"""Operators that look at one pixel if they cut channels, and may move pixels if they cut sides."""

NORMS: Final = frozenset(("native_batch_norm", "cudnn_batch_norm"))


def open_other(
    checkpoint: Checkpoint, path: Path, format: Format, device: str, dtype: str
) -> Upscaler:
    """A network of another architecture, on a device of PyTorch; device and dtype may be `auto`.

    Raises:
        CheckpointError: Spandrel cannot build it, or it is none that enlarges pictures.
        ModelError: The device is not there, or the network cannot be computed in the dtype.
    """
    try:
        descriptor = load_other(checkpoint)
    except CheckpointError as error:
        raise error.in_file(path) from error.__cause__
    place = place_for(
        path,
        device,
        dtype,
        fits_float16=descriptor.supports_half,
        fits_bfloat16=descriptor.supports_bfloat16,
    )
    stored = next(descriptor.model.parameters()).dtype
    descriptor.to(torch.device(place.device), PRECISIONS[place.dtype])
    upscaler = _running(descriptor, path)
    return replace(
        upscaler, format=format, computed_by=place.words, precision=precision_name(stored)
    )


def of_descriptor(model: object) -> Upscaler:
    """A network that spandrel has loaded, on the device and in the dtype in which it is now.

    Raises:
        CheckpointError: It is none that enlarges pictures.
        ModelError: It is nothing that spandrel has loaded.
    """
    if not isinstance(model, ModelBase):
        raise ModelError(
            "this is no model that can be run",
            expected="the path of a file, what open_upscaler gives, or what spandrel has loaded",
            found=type(model).__name__,
            advice='give the path of the file: upscale("model.pth", picture)',
        )
    return _running(of_pictures(cast(ModelBase[Any], model)), LOADED)


def _running(descriptor: Descriptor, path: Path) -> Upscaler:
    """A network as it is, which came from `path`."""
    sight = _looked_at(descriptor, path)
    whole = tuple(sight.unknown)
    step = descriptor.size_requirements.multiple_of
    if descriptor.tiling is not ModelTiling.SUPPORTED or step % sight.steps:
        whole = whole or (descriptor.architecture.name,)
    reach = math.ceil(sight.reach)
    exact = reach <= EXACT and not whole
    return Upscaler(
        path=path,
        format="pth",
        precision=precision_name(descriptor.dtype),
        channels=(descriptor.input_channels, descriptor.output_channels),
        scale=descriptor.scale,
        receptive_radius=reach if exact else OVERLAP,
        sees=0 if exact or whole else reach,
        global_context=bool(whole),
        looks_at_all=whole,
        fixed_size=None,
        steps=(step, step),
        takes=lambda _: True,  # spandrel fills up what is no multiple, and cuts it off again
        bytes_per_pixel=max(LIVE_TENSORS * sight.largest // sight.pixels, 1),
        details={
            "tensors": len(descriptor.model.state_dict()),
            "architecture": descriptor.architecture.name,
        },
        run=partial(_run, descriptor, path),
    )


def _looked_at(descriptor: Descriptor, path: Path) -> Sight:
    """What the network's operators do with a small picture; that of the result is checked."""
    needs = descriptor.size_requirements
    side = max(needs.minimum, -(-PROBE_SIDE // needs.multiple_of) * needs.multiple_of)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, descriptor.input_channels, side, side, generator=generator)
    picture = noise.to(descriptor.device, descriptor.dtype)
    size = f"{side} x {side} px"
    with _alone(descriptor), explained(path, descriptor.device, size), Sight(picture) as sight:
        output = descriptor(picture)
    expected = (1, descriptor.output_channels, *(2 * [descriptor.scale * side]))
    if output.shape != expected:
        raise ModelError(
            "the network gives a picture of another size than spandrel says",
            file=path,
            expected=" x ".join(map(str, expected)),
            found=" x ".join(map(str, output.shape)),
            advice="update with: pip install --upgrade spandrel",
        )
    return sight


def _run(descriptor: Descriptor, path: Path, image: Image) -> Image:
    """Pictures through the network, one at a time as spandrel takes them."""
    device, dtype = descriptor.device, descriptor.dtype
    size = f"{image.shape[3]} x {image.shape[2]} px"
    with _alone(descriptor), explained(path, device, size):
        values = torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
        outputs = [descriptor(one[None].to(device, dtype)).cpu().float() for one in values]
        return torch.cat(outputs).contiguous().numpy()
