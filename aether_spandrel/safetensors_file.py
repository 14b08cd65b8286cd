"""Safetensors files: a header in JSON that says where each tensor lies, then the numbers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from aether_spandrel.errors import CheckpointError, reason
from aether_spandrel.stored import BYTES_OF, FileBytes, Storage, StoredTensor, as_numbers

LENGTH: Final = struct.Struct("<Q")  # of the header, which precedes it
HEADER_LIMIT: Final = 4 * 2**20  # bytes; the largest AetherNet needs about 1 MiB
MOST_TENSORS: Final = 30_000
MOST_AXES: Final = 64  # of a tensor

TYPES: Final[Mapping[str, str]] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""Torch's names of the types of numbers that can stand in a header."""


@dataclass(frozen=True, kw_only=True)
class SafetensorsContent:
    """What a safetensors file holds.

    Attributes:
        tensors: By key, in the order of the header.
        metadata: Texts that it says beside them.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins so may be one."""
    if len(head) <= LENGTH.size:
        return False
    (length,) = LENGTH.unpack(head[: LENGTH.size])
    return length <= max(size, HEADER_LIMIT) and head[LENGTH.size : LENGTH.size + 1] == b"{"


def read_safetensors(file: FileBytes) -> SafetensorsContent:
    """What a safetensors file holds; none of its numbers is read yet.

    Raises:
        CheckpointError: The header is damaged, too large, or does not describe the file.
    """
    (length,) = LENGTH.unpack(file.read(0, LENGTH.size))
    if length > HEADER_LIMIT:
        raise CheckpointError(
            "the safetensors header is larger than any network needs",
            expected=f"at most {HEADER_LIMIT} bytes",
            found=f"{length} bytes",
            advice="the file is forged or damaged: download or copy it again",
        )
    begin = LENGTH.size + length
    if begin > file.size:
        raise _cut_short(f"a header of {length} bytes in a file of {file.size}")
    header = _parse(bytes(file.read(LENGTH.size, length)))
    metadata = header.pop("__metadata__", {})
    if len(header) > MOST_TENSORS:
        raise CheckpointError(
            "the file holds more tensors than any network",
            expected=f"at most {MOST_TENSORS}",
            found=str(len(header)),
            advice="save the network's state dict alone",
        )
    if not isinstance(metadata, dict) or not _are_texts(cast("dict[object, object]", metadata)):
        raise _damaged_header("metadata that are no texts")
    described = {key: _described(key, entry) for key, entry in header.items()}
    _check_places(described, file.size - begin)
    return SafetensorsContent(
        tensors={key: _stored(file, begin, tensor) for key, tensor in described.items()},
        metadata=cast("dict[str, str]", metadata),
    )


def distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, for `json`'s `object_pairs_hook`.

    Raises:
        CheckpointError: A key occurs twice.
    """
    entries: dict[str, object] = {}
    for key, value in pairs:
        if key in entries:
            raise CheckpointError(
                "a key occurs twice",
                key=key[:100],
                advice="the file is forged or was written by a broken program",
            )
        entries[key] = value
    return entries


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What a header says of a tensor: type, shape, and where it begins and ends."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _parse(text: bytes) -> dict[str, object]:
    try:
        header: object = json.loads(text.decode("utf-8"), object_pairs_hook=distinct)
        json.dumps(header, ensure_ascii=False).encode("utf-8")  # without lone surrogates
    except (ValueError, RecursionError) as error:
        raise _damaged_header(reason(error)) from error
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise _damaged_header("no JSON object")
    return cast("dict[str, object]", header)


def _described(key: str, entry: object) -> _Described:
    fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
    kind = TYPES.get(str(fields.get("dtype"))[:20])
    shape, places = fields.get("shape"), fields.get("data_offsets")
    if (
        kind is None
        or not _are_lengths(shape)
        or not _are_lengths(places)
        or len(cast("list[int]", places)) != 2
    ):
        raise _damaged_header("a tensor without type, shape and place", key)
    begin, end = cast("list[int]", places)
    found = _Described(kind=kind, shape=tuple(cast("list[int]", shape)), begin=begin, end=end)
    if math.prod(found.shape) * BYTES_OF[kind] != end - begin:
        raise _damaged_header("a tensor whose shape and place differ in size", key)
    return found


def _are_lengths(values: object) -> bool:
    if not isinstance(values, list) or len(cast("list[object]", values)) > MOST_AXES:
        return False
    return all(type(value) is int and 0 <= value < 2**62 for value in cast("list[object]", values))


def _are_texts(entries: Mapping[object, object]) -> bool:
    return all(isinstance(value, str) for value in entries.values())


def _check_places(described: Mapping[str, _Described], size: int) -> None:
    """Refuse tensors that overlap, leave gaps, or do not fill the file to its end."""
    position = 0
    for key, tensor in sorted(described.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise _damaged_header("a tensor that does not begin where the one before it ends", key)
        position = tensor.end
    if position != size:
        raise _cut_short(f"{size} bytes of numbers where the header says {position}")


def _stored(file: FileBytes, begin: int, tensor: _Described) -> StoredTensor:
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    return StoredTensor(
        storage=Storage(
            kind=tensor.kind,
            count=math.prod(tensor.shape),
            read=lambda: as_numbers(
                file.read(begin + tensor.begin, tensor.end - tensor.begin), tensor.kind
            ),
        ),
        kind=tensor.kind,
        shape=tensor.shape,
        stride=tuple(strides),
    )


def _damaged_header(what: str, key: str | None = None) -> CheckpointError:
    return CheckpointError(
        "the safetensors header is damaged",
        key=key and key[:100],
        found=what,
        advice="download or copy the file again",
    )


def _cut_short(what: str) -> CheckpointError:
    return CheckpointError(
        "the safetensors file is damaged or cut short",
        found=what,
        advice="download or copy the file again",
    )
