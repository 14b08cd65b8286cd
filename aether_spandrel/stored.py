"""Tensors that lie in a file: described when the file is opened, read when the network is known.

What lies beside the network, such as an optimizer's moments, is never read. Numbers are read into
memory and not mapped, so that a file that is cut off meanwhile is an error and not the end of the
process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Final

import torch
from torch import Tensor

from aether_spandrel.errors import CheckpointError

BYTES_OF: Final = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
    # In no network of ours, and older versions of torch lack some.
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex32": 4,
}
"""Size of a number, by torch's name of its type."""


def damaged(what: str) -> CheckpointError:
    """The error for what no program writes."""
    return CheckpointError(
        "the file is damaged or forged", found=what, advice="download or copy the file again"
    )


@dataclass(frozen=True, kw_only=True)
class FileBytes:
    """An open file, of which any part can be read.

    Attributes:
        stream: The file.
        size: In bytes, when it was opened.
    """

    stream: BufferedReader = field(repr=False)
    size: int

    def read(self, start: int, length: int) -> bytearray:
        """So many bytes from `start`, which must lie within the size; 16-byte aligned.

        Raises:
            CheckpointError: The file has become shorter.
        """
        content = bytearray(length)
        self.stream.seek(start)
        if self.stream.readinto(content) != length:
            raise CheckpointError(
                "the file is damaged or cut short",
                expected=f"{self.size} bytes, as when it was opened",
                found=f"an end before byte {start + length}",
                advice="download or copy the file again, and let that end before it is read",
            )
        return content


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A flat run of numbers in a file.

    Attributes:
        kind: Torch's name of their type.
        count: How many there are.
        read: Reads them, at the first call alone.
    """

    kind: str
    count: int
    read: Callable[[], Tensor] = field(repr=False)


def as_numbers(content: bytearray, kind: str) -> Tensor:
    """Bytes as a flat tensor of the type of that name, which shares their memory.

    Raises:
        CheckpointError: This version of torch has no such type.
    """
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(
            "this PyTorch does not know the type of a tensor's numbers",
            found=kind,
            advice="use the file in float32, float16 or bfloat16",
        )
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


class Unread(ABC):
    """A tensor that lies in a file and can be read."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that its numbers take."""

    @abstractmethod
    def read(self) -> Tensor | Quantised:
        """The tensor; raises CheckpointError if the file has become shorter."""

    @abstractmethod
    def described(self) -> Tensor:
        """A tensor of the same shape and type on the meta device, without numbers."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor(Unread):
    """A tensor that lies in a file.

    Attributes:
        storage: Where its numbers are.
        kind: Torch's name of their type, which may differ from that of the storage.
        shape: Of the tensor.
        stride: Of each axis, in numbers.
        offset: Of the first number.
        negated: Whether the numbers are stored with the other sign.
    """

    storage: Storage
    kind: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    negated: bool = False

    @property
    def nbytes(self) -> int:
        """Memory that its numbers take."""
        return math.prod(self.shape) * BYTES_OF[self.kind]

    def read(self) -> Tensor:
        """The tensor, contiguous: a view of the storage's numbers where they lie in its order."""
        numbers = self.storage.read()
        if self.kind != self.storage.kind:
            numbers = numbers[: len(numbers) // BYTES_OF[self.kind] * BYTES_OF[self.kind]]
            numbers = numbers.view(as_numbers(bytearray(), self.kind).dtype)
        if not math.prod(self.shape):
            return numbers.new_empty(0)  # whatever its other axes are
        found = numbers.as_strided(self.shape, self.stride, self.offset).contiguous()
        return -found if self.negated else found

    def described(self) -> Tensor:
        """A tensor of the same shape and type on the meta device, without numbers."""
        dtype = as_numbers(bytearray(), self.kind).dtype
        return torch.empty(self.shape, dtype=dtype, device="meta")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """An int8 tensor with what makes numbers of it: (integers - zero_point) * scale.

    Attributes:
        integers: As stored.
        scale: One number, or one for each slice along `axis`.
        zero_point: As many as scales.
        axis: Along which scales differ; None for a single one.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None

    @property
    def nbytes(self) -> int:
        """Memory that its integers take."""
        return self.integers.numel() * self.integers.element_size()

    def dequantised(self) -> Tensor:
        """The float32 numbers that the integers stand for."""
        offset = self.integers.double() - self._along(self.zero_point)
        return (offset * self._along(self.scale)).float()

    def signal_to_noise(self) -> tuple[float, float]:
        """Energy of the weights, and the expected energy of what rounding took from them.

        Rounding to steps of `scale` leaves an error that is uniform within half a step, whose
        mean square is scale^2 / 12.
        """
        step = self._along(self.scale).expand(self.integers.shape)
        return (
            float(self.dequantised().double().square().sum()),
            float(step.square().sum()) / 12.0,
        )

    def _along(self, values: Tensor) -> Tensor:
        shape = [1] * self.integers.dim()
        if self.axis is not None:
            shape[self.axis] = -1
        return values.double().reshape(shape)


@dataclass(frozen=True, kw_only=True)
class StoredQuantised(Unread):
    """A `Quantised` that lies in a file.

    Attributes:
        integers: As stored.
        scale: One number, or where there is one for each slice along `axis`.
        zero_point: As many as scales.
        axis: Along which scales differ; None for a single one.
    """

    integers: StoredTensor
    scale: StoredTensor | float
    zero_point: StoredTensor | int
    axis: int | None

    @property
    def nbytes(self) -> int:
        """Memory that its integers take."""
        return self.integers.nbytes

    def read(self) -> Quantised:
        """The integers and what makes numbers of them."""
        scale, zero_point = self.scale, self.zero_point
        return Quantised(
            integers=self.integers.read(),
            scale=scale.read()
            if isinstance(scale, StoredTensor)
            else torch.tensor([scale], dtype=torch.float64),
            zero_point=zero_point.read()
            if isinstance(zero_point, StoredTensor)
            else torch.tensor([zero_point]),
            axis=self.axis,
        )

    def described(self) -> Tensor:
        """Its integers, without numbers."""
        return self.integers.described()
