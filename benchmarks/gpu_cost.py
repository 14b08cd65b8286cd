"""What a GPU does for a picture, counted without one, and the least time that this takes.

    python -m benchmarks.gpu_cost [--write]

A network runs as loaded, on tensors of the device `cuda` that have shapes, dtypes and strides but
no numbers, and every operator that reaches torch's dispatcher is counted: nothing is launched, so
no GPU is needed. `--write` puts the tables into docs/gpu.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aether_core import AetherNet, Block
from aether_spandrel import AetherNetArch
from aether_spandrel.inference import FastAetherNet, Parts, build_network
from aether_spandrel.revisions import G1, G5F, Revision
from tests.support.published import draw

PAGE: Final = Path(__file__).parent.parent / "docs" / "gpu.md"
MARKERS: Final = ("<!-- computed by benchmarks/gpu_cost.py -->", "<!-- end -->")

PICTURE: Final = (720, 1280)  # height, width in px
SCALE: Final = 2
DTYPES: Final = (torch.float32, torch.float16)  # bfloat16 costs what float16 does

MODELS: Final[Mapping[str, tuple[Revision, str, bool]]] = {
    "G1 small": (G1, "small", False),
    "G1 medium": (G1, "medium", False),
    "G1 large": (G1, "large", False),
    "G5f small": (G5F, "small", True),
}
"""Revision, published size, and whether that size has channel attention."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Published peaks.

    Attributes:
        float32: TFLOP/s of the ordinary cores; in float16 they do as many.
        tensor: TFLOP/s of the tensor cores in float16, dense, sums in float32.
        bandwidth: Of the memory, GB/s.
    """

    float32: float
    tensor: float
    bandwidth: float


GPUS: Final[Mapping[str, Gpu]] = {
    "RTX 3060 12GB": Gpu(float32=12.7, tensor=25.5, bandwidth=360),
    "RTX 3090": Gpu(float32=35.6, tensor=71.2, bandwidth=936),
    "RTX 4090": Gpu(float32=82.6, tensor=165.2, bandwidth=1008),
    "RTX 5090": Gpu(float32=104.8, tensor=209.5, bandwidth=1792),
}

ALLOCATIONS: Final = frozenset({"empty", "empty_like", "empty_strided", "new_empty"})
"""Operators that launch nothing, beside views."""

UNREAD: Final = frozenset({"copy_", "fill_", "zero_"})
"""Operators that overwrite their first argument without reading it."""

MATRIX_PRODUCTS: Final = frozenset({"mm", "addmm", "bmm"})


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel.

    Attributes:
        operator: Name of the ATen operator; `bias` for what follows a convolution.
        block: Index of the block that it belongs to; None outside of the blocks.
        moved: Bytes of the distinct tensors that it reads and of those that it writes.
        flops: Of a convolution or matrix product, multiplication and addition being two; else 0.
        depthwise: Whether it is a convolution of each channel by itself.
        results: Dtype and number of values of each tensor that it writes.
    """

    operator: str
    block: int | None
    moved: int
    flops: int = 0
    depthwise: bool = False
    results: Sequence[tuple[torch.dtype, int]] = field(repr=False)


class Launches(TorchDispatchMode):
    """Lists the kernels of what runs under it.

    A convolution is counted as torch runs it in cuDNN: weights first get the memory order of the
    picture, the result has that order too, and the bias is added in place by another kernel.
    """

    def __init__(self) -> None:
        """Start with none."""
        super().__init__()
        self.block: int | None = None
        self.found: list[Launch] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operator = func.overloadpacket.__name__
        if operator == "convolution":
            return self._convolution(result, *args)
        if not _tensors(result) or operator in ALLOCATIONS or _is_view(func):
            return result
        read = _tensors(args[1:] if operator in UNREAD else args)
        kept = {name: value for name, value in kwargs.items() if name != "out"}
        flops = 0
        if operator in MATRIX_PRODUCTS:
            flops = 2 * result.numel() * cast(Tensor, args[-1]).shape[-2]
        self._add(operator, [*read, *_tensors(kept)], _tensors(result), flops=flops)
        return result

    def _convolution(self, result: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        bias, *_, groups = cast("tuple[Tensor | None, Any, int]", rest)
        order = torch.contiguous_format
        if any(_is_channels_last(tensor) for tensor in (x, weight)):
            order = torch.channels_last
        for tensor in (x, weight):
            if not tensor.is_contiguous(memory_format=order):
                self._add("contiguous", [tensor], [tensor])
        self._add(
            "convolution",
            [x, weight],
            [result],
            flops=2 * result.numel() * weight[0].numel(),
            depthwise=groups == x.shape[1] > 1,
        )
        if bias is not None:
            self._add("bias", [result, bias], [result])
        return result.contiguous(memory_format=order)

    def _add(
        self,
        operator: str,
        read: Iterable[Tensor],
        written: Iterable[Tensor],
        *,
        flops: int = 0,
        depthwise: bool = False,
    ) -> None:
        distinct = {id(tensor): tensor for tensor in read}.values()
        self.found.append(
            Launch(
                operator=operator,
                block=self.block,
                moved=sum(t.numel() * t.element_size() for t in (*distinct, *written)),
                flops=flops,
                depthwise=depthwise,
                results=tuple((t.dtype, t.numel()) for t in written),
            )
        )


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_view(operator: Any) -> bool:
    """Whether the result shares the memory of an argument that stays as it is."""
    aliases = (result.alias_info for result in operator._schema.returns)
    return any(alias is not None and not alias.is_write for alias in aliases)


def _is_channels_last(x: Tensor) -> bool:
    """Whether torch goes on in that order, which it tells by the strides, of axes of size 1 too."""
    _, channels, height, width = x.shape
    expected = (height * width * channels, 1, width * channels, channels)
    return x.stride() == expected and not x.is_contiguous()


def launches(
    network: AetherNet, height: int, width: int, dtype: torch.dtype = torch.float32
) -> list[Launch]:
    """The kernels for one picture of this size in px, in the order in which they start."""
    weights = network.state_dict()
    with FakeTensorMode() as fake:
        shape = (1, network.config.in_chans, height, width)
        picture = torch.empty(shape, dtype=dtype, device="cuda")
        there = {
            key: torch.empty(
                tensor.shape,
                dtype=dtype if tensor.is_floating_point() else tensor.dtype,
                device="cuda",
            )
            for key, tensor in weights.items()
        }
    counted = Launches()
    indices = iter(range(network.config.blocks))

    class Noted(FastAetherNet):
        def fast_block(self, block: Block, parts: Parts) -> Parts:
            counted.block = next(indices)
            result = super().fast_block(block, parts)
            counted.block = None
            return result

    on_gpu = build_network(network.config, there, Noted)
    # Not inference_mode, under which composite operators would not be taken apart.
    with torch.no_grad(), fake, counted:
        on_gpu(picture)
    return counted.found


def milliseconds(found: Iterable[Launch], gpu: Gpu, dtype: torch.dtype) -> float:
    """The roofline: of each kernel the longer of moving and computing, one after the other."""

    def peak(launch: Launch) -> float:
        return gpu.float32 if launch.depthwise or dtype == torch.float32 else gpu.tensor

    return 1e3 * sum(
        max(launch.moved / (gpu.bandwidth * 1e9), launch.flops / (peak(launch) * 1e12))
        for launch in found
    )


def load_published(name: str) -> AetherNet:
    """A network of `MODELS` as the plugin loads it; its weights are drawn."""
    revision, size, channel_attn = MODELS[name]
    preset = revision.presets[size]
    tensors = draw(
        revision.name,
        embed_dim=preset.embed_dim,
        depths=preset.depths,
        ffn_dim=preset.ffn_dim,
        lk_kernel=preset.lk_kernel,
        scale=SCALE,
        fused=True,
        channel_attn=channel_attn,
    )
    return AetherNetArch().load(tensors).model


def tables() -> str:
    """What docs/gpu.md says, in Markdown."""
    height, width = PICTURE
    peaks = [
        [name, f"{gpu.float32}", f"{gpu.tensor}", f"{gpu.bandwidth}"] for name, gpu in GPUS.items()
    ]
    of_block: list[list[str]] = []
    of_picture: list[list[str]] = []
    for name in MODELS:
        network = load_published(name)
        for dtype in DTYPES:
            label = [name, str(dtype).removeprefix("torch.")]
            found = launches(network, height, width, dtype)
            block = [launch for launch in found if launch.block == 0]
            of_block.append([*label, *_sums(block, 1e3, height * width)])
            times = [milliseconds(found, gpu, dtype) for gpu in GPUS.values()]
            of_picture.append([*label, *_sums(found, 1e9, 1), *(f"{time:.1f}" for time in times)])
    amounts = ("kernels", "{}FLOP", "of them depthwise", "{}B moved", "FLOP/B")
    per_block = [amount.format("k") for amount in amounts]
    per_picture = [amount.format("G") for amount in amounts]
    return "\n\n".join(
        [
            _table(["GPU", "float32, TFLOP/s", "float16 tensor, TFLOP/s", "memory, GB/s"], peaks),
            "One block, for one pixel:",
            _table(["network", "dtype", *per_block], of_block),
            f"One picture of {width}x{height} px, enlarged {SCALE}x, and the least time in ms:",
            _table(["network", "dtype", *per_picture, *GPUS], of_picture),
        ]
    )


def _sums(found: Sequence[Launch], unit: float, pixels: int) -> list[str]:
    """Cells of a table: kernels, and amounts for a pixel in the unit."""
    flops = sum(launch.flops for launch in found)
    depthwise = sum(launch.flops for launch in found if launch.depthwise)
    moved = sum(launch.moved for launch in found)
    amounts = (flops / unit / pixels, depthwise / unit / pixels, moved / unit / pixels)
    return [
        str(len(found)),
        *(f"{amount:.0f}" if amount >= 100 else f"{amount:.1f}" for amount in amounts),
        f"{flops / moved:.1f}",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def documented(page: str) -> str:
    """The tables that a page has between its markers."""
    return page.split(MARKERS[0])[1].split(MARKERS[1])[0].strip()


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    computed = tables()
    if not parser.parse_args().write:
        print(computed)
        return
    page = PAGE.read_text("utf-8")
    PAGE.write_text(page.replace(documented(page), computed), "utf-8")


if __name__ == "__main__":
    main()
