"""Headers of safetensors files."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from typing import Any, cast

from tests.reading.hostile.kinds import (
    SAME,
    Group,
    Hostile,
    Verdict,
    of,
)
from tests.support.hostile_files import (
    Raw,
    name,
    network,
    safetensors_bytes,
    safetensors_file,
    safetensors_parts,
    tensors,
    tuple_of,
)


def packed(parts: object) -> dict[str, object]:
    """A network whose first convolution is packed as converted layers are, in odd ways."""
    state = network()
    del state["conv_first.weight"], state["conv_first.bias"]
    return {**state, "conv_first._packed_params._packed_params": parts}


def deep_types(levels: int) -> bytes:
    opening = name("torch._tensor", "_rebuild_from_type_v2") + name("torch", "Tensor")
    inner = tuple_of(name("torch", "Size"), name("torch", "Tensor"), b")", b"N")
    for _ in range(levels):
        inner = Raw(b"(" + opening + inner + b"Nt")
    return name("torch._tensor", "_rebuild_from_type_v2") + inner + pickle.REDUCE


def safe(content: Callable[[], bytes], verdict: Verdict = "refused") -> Hostile:
    return of(content, verdict, suffix=".safetensors")


def safe_header(change: Callable[[dict[str, Any]], object]) -> Hostile:
    """A good file after a change to its header."""

    def content() -> bytes:
        header, contents = safetensors_parts(tensors(), {"a": "b"})
        change(cast(dict[str, Any], header))
        return safetensors_bytes(header, contents)

    return safe(content)


def safe_field(field: str, value: object) -> Hostile:
    return safe_header(lambda header: header["conv_first.bias"].update({field: value}))


def safe_shape(dtype: str, shape: list[object], size: int) -> Hostile:
    """A good file with one more tensor at its end."""

    def content() -> bytes:
        header, contents = safetensors_parts(tensors())
        offsets = [len(contents), len(contents) + size]
        header["more"] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        return safetensors_bytes(header, contents + bytes(size))

    return safe(content)


def safe_length(change: Callable[[int], int]) -> Hostile:
    def content() -> bytes:
        header, contents = safetensors_parts(tensors())
        length = change(len(json.dumps(header)))
        return safetensors_bytes(header, contents, length)

    return safe(content)


def odd_headers() -> Group:
    lengths: dict[str, Callable[[int], int]] = {
        "0": lambda _: 0,
        "1": lambda _: 1,
        "one less": lambda length: length - 1,
        "one more": lambda length: length + 1,
        "8 MiB": lambda _: 8 * 2**20,
        "100 MB": lambda _: 10**8,
        "2**31": lambda _: 2**31,
        "2**32": lambda _: 2**32,
        "2**63": lambda _: 2**63,
        "-1": lambda _: -1,
        "2**64 - 8": lambda _: 2**64 - 8,
    }
    for title, change in lengths.items():
        yield f"a header of length {title}", safe_length(change)
    for title, header in {
        "nothing": b"",
        "a brace": b"{",
        "spaces": b" " * 100,
        "no JSON": b"{conv_first}",
        "a list": b"[1, 2, 3]",
        "a string": b'"conv_first"',
        "a number": b"1234567890",
        "nothing in it": b"{}",
        "metadata alone": b'{"__metadata__":{"a":"b"}}',
        "lists 100,000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "no UTF-8": b'{"\xff\xfe":{}}',
        "UTF-16": '{"a":{}}'.encode("utf-16-le"),
        "a byte order mark": b'\xef\xbb\xbf{"a":{}}',
        "a surrogate": b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "a NUL": b'{"a\\u0000":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "a number of 10,000 digits": b'{"a":' + b"9" * 10_000 + b"}",
        "1e400": b'{"a":1e400}',
        "NaN": b'{"a":NaN}',
        "two JSON values": b'{"a":1}{"b":2}',
        "a comma too many": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}',
        "a comment": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}/**/}',
        "a tensor that is a list": b'{"a":["F32",[1],[0,4]]}',
        "a tensor that is null": b'{"a":null}',
        "a tensor of no fields": b'{"a":{}}',
        "a tensor of one more field": (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"code":"os.system"}}'
        ),
        "a tensor twice": (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
        "a field twice": b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "metadata of numbers": b'{"__metadata__":{"a":1}}',
        "metadata of lists": b'{"__metadata__":{"a":[]}}',
        "metadata that are a list": b'{"__metadata__":[]}',
        "metadata that are null": b'{"__metadata__":null}',
        "metadata twice": b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}',
    }.items():
        yield (
            f"a header of {title}",
            safe(lambda header=header: safetensors_bytes(header, bytes(4))),
        )
    for value in ([0, 4], [0, 0], [4, 36], [-4, 28], [32, 0], [0, 10**9], [0, 2**63], [0, 2**64]):
        yield f"a bias at {value}", safe_field("data_offsets", value)
    odds: tuple[object, ...] = (
        [0.0, 32.0],
        ["0", "32"],
        [True, 32],
        [0],
        [0, 16, 32],
        [],
        None,
        {},
        "0-32",
        32,
    )
    for odd in odds:
        yield f"a bias at {json.dumps(odd)}", safe_field("data_offsets", odd)
    odds: tuple[object, ...] = (
        [-8],
        [8.0],
        ["8"],
        [True],
        [[8]],
        None,
        8,
        {},
        [2**62],
        [2**63],
        [2**64],
        [0],
    )
    for odd in odds:
        yield f"a bias of shape {json.dumps(odd)}", safe_field("shape", odd)
    yield "a bias of shape [8.5]", safe_field("shape", [8.5])
    yield "a bias of shape [2**32, 2**32]", safe_field("shape", [2**32, 2**32])
    yield "a bias of shape [7]", safe_field("shape", [7])
    yield "a bias of no axes", safe_field("shape", [])
    for dtype in ("F99", "f32", "", None, 32, ["F32"], "float32", "O", "F32\0", "F64", "U16"):
        yield f"a bias of type {json.dumps(dtype)}", safe_field("dtype", dtype)
    for dtype in ("C64", "F8_E4M3", "F8_E5M2", "U16", "U32", "U64", "F4", "F8_E8M0", "F6_E2M3"):
        size = {"C64": 8, "U16": 2, "U32": 4, "U64": 8}.get(dtype, 1)
        yield f"one more tensor of type {dtype}", safe_shape(dtype, [1], size)
    yield "one more tensor of 65 axes", safe_shape("F32", [1] * 65, 4)
    yield "one more tensor of 100,000 axes", safe_shape("F32", [1] * 100_000, 4)
    yield "one more tensor of 0 times 2**63", safe_shape("F32", [0, 2**63], 0)
    yield "one more tensor of 0 times 2**62", safe_shape("F32", [0, 2**62], 0)
    yield "one more tensor of 0 times 2**40 squared", safe_shape("F32", [0, 2**40, 2**40], 0)
    yield "one more tensor of half a byte", safe_shape("F4", [3], 1)
    yield "a hole between tensors", safe_header(shift_last)
    yield "tensors that overlap", safe_header(overlap)
    yield "bytes after the tensors", safe(lambda: safetensors_file(tensors()) + bytes(4))
    yield "spaces after the header", safe(padded, SAME)
    yield "nothing but a length", safe(lambda: struct.pack("<Q", 8) + bytes(2))
    yield (
        "metadata that look like a tensor",
        safe_header(lambda header: header.update({"__metadata__": header["conv_first.bias"]})),
    )
    for title, metadata in {
        "a deep list": {"arch_config": '{"scale":' + "[" * 5000 + "]" * 5000 + "}"},
        "a list 900 deep": {"arch_config": '{"scale":' + "[" * 900 + "]" * 900 + "}"},
        "a number of 10,000 digits": {"arch_config": '{"res_scale":' + "9" * 10_000 + "}"},
        "1e400": {"arch_config": '{"img_range":1e400}'},
        "NaN": {"arch_config": '{"img_range":NaN}', "res_scale": "nan"},
        "half a list": {"arch_config": "[1,"},
        "a list for a dictionary": {"arch_config": "[1]", "metadata": "[1]"},
        "keys of dictionaries": {"metadata": '{"metadata": {"metadata": {}}}'},
        "a surrogate": {"arch_config": '{"scale": "\\ud800"}'},
        "an infinite range": {"img_range": "inf"},
        "a range that is no number": {"img_range": "many"},
        "digits of another script": {"norm_eps": "\u0663"},
    }.items():
        yield (
            f"metadata of {title}",
            safe(lambda metadata=metadata: safetensors_file(tensors(), metadata), SAME),
        )


def shift_last(header: dict[str, Any]) -> None:
    key = list(header)[-1]
    start, end = header[key]["data_offsets"]
    header[key]["data_offsets"] = [start + 4, end + 4]


def overlap(header: dict[str, Any]) -> None:
    first, second = list(header)[1:3]
    header[second]["data_offsets"] = [0, header[second]["data_offsets"][1]]
    header[second]["shape"] = [header[second]["data_offsets"][1] // 4]
    header[first]["data_offsets"] = header[first]["data_offsets"]


def padded() -> bytes:
    header, contents = safetensors_parts(tensors())
    return safetensors_bytes(json.dumps(header).encode() + b" " * 1000, contents)
