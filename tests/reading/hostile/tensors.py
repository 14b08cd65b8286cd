"""Tensors that are not what their entries say."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

import torch

from aether_spandrel.stored import Quantised
from tests.reading.hostile.kinds import (
    OTHER,
    Group,
    of,
)
from tests.reading.hostile.pickles import (
    SENTINEL,
)
from tests.reading.hostile.safetensors_files import deep_types, packed
from tests.support.hostile_files import (
    NO_HOOKS,
    Raw,
    call,
    dict_of,
    list_of,
    name,
    network,
    number,
    quantised,
    raw_bytes,
    real,
    shape,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_of,
)


def first_bias(body: bytes, stored: Mapping[str, bytes] | None = None) -> Callable[[], bytes]:
    """A network whose first bias is made by these instructions; storage x has 64 bytes."""
    return lambda: torch_zip(
        {**network(), "conv_first.bias": Raw(body)}, {"x": bytes(64), **(stored or {})}
    )


STORED: Final = storage("x", 16)


def odd_tensors() -> Group:
    for title, (size, stride, offset) in {
        "no elements": (shape(0), shape(1), number(0)),
        "-1 elements": (shape(-1), shape(1), number(0)),
        "-8 and -1 elements": (shape(-8, -1), shape(1, 1), number(0)),
        "2**62 elements": (shape(2**62), shape(1), number(0)),
        "2**63 elements": (shape(2**63), shape(1), number(0)),
        "2**64 elements": (shape(2**64), shape(1), number(0)),
        "2**64 + 8 elements": (shape(2**64 + 8), shape(1), number(0)),
        "2**32 times 2**32 elements": (shape(2**32, 2**32), shape(1, 1), number(0)),
        "2**63 times 2 elements": (shape(2**63, 2), shape(0, 0), number(0)),
        "2**2000 elements": (shape(2**2000), shape(0), number(0)),
        "2**62 times 0 elements": (shape(2**62, 0), shape(1, 1), number(0)),
        "2**40 times 2**40 times 0 elements": (shape(2**40, 2**40, 0), shape(1, 1, 1), number(0)),
        "a true size": (tuple_of(b"\x88"), shape(1), number(0)),
        "a size of 8.0": (tuple_of(real(8.0)), shape(1), number(0)),
        "a size that is no number": (tuple_of(real(float("nan"))), shape(1), number(0)),
        "a size in a string": (tuple_of(text("8")), shape(1), number(0)),
        "a size in a list": (list_of(number(8)), shape(1), number(0)),
        "a size of nothing": (b"N", shape(1), number(0)),
        "a size that is a tensor": (
            tuple_of(tensor(STORED, shape(1), shape(1))),
            shape(1),
            number(0),
        ),
        "9 axes": (shape(*[1] * 8, 8), shape(*[1] * 9), number(0)),
        "64 axes": (shape(*[1] * 63, 8), shape(*[1] * 64), number(0)),
        "100,000 axes": (shape(*[1] * 100_000), shape(*[1] * 100_000), number(0)),
        "more axes than strides": (shape(8, 1), shape(1), number(0)),
        "more strides than axes": (shape(8), shape(1, 1), number(0)),
        "no axes": (shape(), shape(), number(0)),
        "an offset that is one too large": (shape(8), shape(1), number(9)),
        "an offset of -1": (shape(8), shape(1), number(-1)),
        "an offset of 2**63": (shape(8), shape(1), number(2**63)),
        "an offset of 2**64": (shape(8), shape(1), number(2**64)),
        "a true offset": (shape(8), shape(1), b"\x88"),
        "an offset of 0.0": (shape(8), shape(1), real(0.0)),
        "a stride of 3": (shape(8), shape(3), number(0)),
        "a stride of -1": (shape(8), shape(-1), number(7)),
        "a stride of 2**62": (shape(8), shape(2**62), number(0)),
        "a stride of 2**64": (shape(8), shape(2**64), number(0)),
        "a stride of 0.5": (shape(8), tuple_of(real(0.5)), number(0)),
        "an expansion to 2**40": (shape(2**40), shape(0), number(0)),
        "an expansion to 10**5 squared": (shape(10**5, 10**5), shape(0, 0), number(0)),
    }.items():
        body = tensor(STORED, size, stride, offset)
        yield f"a bias of {title}", of(first_bias(body))
    for title, (size, stride, offset) in {
        "an offset": (shape(8), shape(1), number(8)),
        "a stride of 2": (shape(8), shape(2), number(1)),
        "a stride of 0": (shape(8), shape(0), number(0)),
        "four axes": (shape(1, 8, 1, 1), shape(8, 1, 2**40, 2**61), number(0)),
    }.items():
        yield f"a bias of {title}", of(first_bias(tensor(STORED, size, stride, offset)), OTHER)
    for title, stored in {
        "a storage that is too small": storage("x", 17),
        "a storage of no numbers": storage("x", 0),
        "a storage of -16": storage("x", -16),
        "a storage of 2**62": storage("x", 2**62),
        "a storage of 2**64": storage("x", 2**64),
        "a storage of 2**2000": storage("x", 2**2000),
        "a storage of unknown type": storage("x", 16, "CudaStorage"),
        "a storage of complex numbers": storage("x", 8, "ComplexFloatStorage"),
        "a storage of packed bits": storage("x", 8, "QUInt4x2Storage"),
        "a storage of bytes": storage("x", 64, "UntypedStorage"),
        "a storage of truths": storage("x", 16, "BoolStorage"),
        "a storage of integers": storage("x", 8, "LongStorage"),
        "a storage of text": text("x"),
        "a storage of nothing": b"N",
        "a storage that is a tensor": tensor(STORED, shape(8), shape(1)),
        "a storage that is a dictionary": b"}",
        "a storage that is an object": call("argparse", "Namespace"),
        "a storage of no such key": storage("y", 16),
        "a storage that leads upwards": storage("../../../../etc/passwd", 16),
        "a storage of a key of 1 MB": storage("x" * 10**6, 16),
    }.items():
        yield f"a bias of {title}", of(first_bias(tensor(stored, shape(8), shape(1))))
    yield (
        "a storage of which a part is used",
        of(first_bias(tensor(storage("x", 8), shape(8), shape(1))), OTHER),
    )
    yield (
        "a storage of doubles",
        of(first_bias(tensor(storage("x", 8, "DoubleStorage"), shape(8), shape(1))), OTHER),
    )
    utils = "torch._utils"
    for title, body in {
        "a tensor without arguments": call(utils, "_rebuild_tensor_v2"),
        "a tensor of one argument": call(utils, "_rebuild_tensor_v2", STORED),
        "a tensor of an unknown type": call(
            utils,
            "_rebuild_tensor_v3",
            STORED,
            b"K\0",
            shape(8),
            shape(1),
            b"\x89",
            NO_HOOKS,
            name("torch.optim", "x"),
        ),
        "a tensor of text as type": call(
            utils,
            "_rebuild_tensor_v3",
            STORED,
            b"K\0",
            shape(8),
            shape(1),
            b"\x89",
            NO_HOOKS,
            text("torch.float32"),
        ),
        "a parameter of nothing": call(utils, "_rebuild_parameter"),
        "a parameter of a number": call(utils, "_rebuild_parameter", number(1)),
        "a parameter of text": call(utils, "_rebuild_parameter", text("x"), b"\x88", NO_HOOKS),
        "a sparse tensor": call(utils, "_rebuild_sparse_tensor", name("torch", "sparse_coo"), b")"),
        "a meta tensor": call(
            utils,
            "_rebuild_meta_tensor_no_storage",
            name("torch", "float32"),
            shape(8),
            shape(1),
            b"\x89",
        ),
        "a nested tensor": call(
            utils, "_rebuild_nested_tensor", STORED, shape(8), shape(1), b"K\0"
        ),
        "a device tensor": call(
            utils, "_rebuild_device_tensor_from_numpy", b"N", b"N", text("cuda"), b"\x89"
        ),
        "a wrapper subclass": call(utils, "_rebuild_wrapper_subclass", *[b"N"] * 5),
        "a type of no arguments": call("torch._tensor", "_rebuild_from_type_v2"),
        "a type of the type of a type": call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("torch", "Tensor"),
            b")",
            b"N",
        ),
        "a type of a call that executes": call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("os", "mkdir"),
            name("torch", "Tensor"),
            tuple_of(text(SENTINEL)),
            b"N",
        ),
        "a type that ends in itself": Raw(deep_types(3000)),
        "text encoded as nothing": call("_codecs", "encode", number(1), text("latin1")),
        "text encoded by a list": call("_codecs", "encode", text("a"), b"]"),
        "text encoded without an encoding": call("_codecs", "encode", text("a")),
        "text that latin1 lacks": call("_codecs", "encode", text("語"), text("latin1")),
        "a number of too few bytes": call(
            "numpy.core.multiarray", "scalar", text("f8"), raw_bytes(b"1234")
        ),
        "a number of an unknown type": call(
            "numpy.core.multiarray", "scalar", text("O"), raw_bytes(b"12345678")
        ),
        "a size of a number": call("torch", "Size", number(3)),
        "a device of nothing": call("torch", "device"),
        "a dictionary of a number": call("collections", "OrderedDict", number(3)),
        "a dictionary of text": call("collections", "OrderedDict", text("abcd")),
        "a dictionary of numbers": call("collections", "OrderedDict", list_of(number(1))),
        "a storage": STORED,
        "a name": name("torch", "float32"),
        "nothing": b"N",
        "text": text("weight"),
        "a list of tensors": list_of(tensor(STORED, shape(8), shape(1))),
        "a dictionary": dict_of(text("a"), tensor(STORED, shape(8), shape(1))),
    }.items():
        yield f"for a bias {title}", of(first_bias(body))

    int8 = storage("x", 16, "QInt8Storage")
    scales = tensor(storage("s", 8), shape(8), shape(1))
    points = tensor(storage("p", 8, "LongStorage"), shape(8), shape(1))
    per_channel, per_tensor = (
        name("torch", "per_channel_affine"),
        name("torch", "per_tensor_affine"),
    )
    parameters = {"s": struct.pack("<8f", *[0.1] * 8), "p": bytes(64)}

    def bias(*scheme: bytes, stored: bytes = int8) -> Callable[[], bytes]:
        return first_bias(quantised(stored, shape(8), shape(1), *scheme), parameters)

    yield "int8 of a single scale", of(bias(per_tensor, real(0.1), number(3)), OTHER)
    yield "int8 of many scales", of(bias(per_channel, scales, points, number(0)), OTHER)
    yield "int8 of an axis that it lacks", of(bias(per_channel, scales, points, number(1)))
    yield "int8 of an axis of -1", of(bias(per_channel, scales, points, number(-1)))
    yield "int8 of a true axis", of(bias(per_channel, scales, points, b"\x89"), OTHER)
    yield "int8 of an axis of text", of(bias(per_channel, scales, points, text("0")))
    yield "int8 of an axis of 0.0", of(bias(per_channel, scales, points, real(0.0)))
    yield "int8 of an axis of 2**70", of(bias(per_channel, scales, points, number(2**70)))
    yield "int8 of no axis", of(bias(per_channel, scales, points))
    yield "int8 of numbers as scales", of(bias(per_channel, real(0.1), number(0), number(0)))
    yield "int8 of scales in a list", of(bias(per_channel, b"]", b"]", number(0)))
    yield "int8 of no scheme", of(bias())
    yield "int8 of a scheme in text", of(bias(text("torch.per_tensor_affine"), real(1), b"K\0"))
    yield "int8 of a scale that is a list", of(bias(per_tensor, b"]", number(0)))
    yield "int8 of a scale that is a tensor", of(bias(per_tensor, scales, number(0)))
    yield "int8 of a scale in text", of(bias(per_tensor, text("a"), number(0)))
    yield "int8 of a point of 2**70", of(bias(per_tensor, real(0.1), number(2**70)))
    yield "int8 of a scale of 2**2000", of(bias(per_tensor, number(2**2000), number(0)))
    yield (
        "int8 of a scale that is no number",
        of(bias(per_tensor, real(float("nan")), number(0)), OTHER),
    )
    yield "int8 of an infinite scale", of(bias(per_tensor, real(float("inf")), number(0)), OTHER)
    yield "int8 of a scale of zero", of(bias(per_tensor, real(0.0), number(0)), OTHER)
    yield "int8 of a scale of -1", of(bias(per_tensor, real(-1.0), number(0)), OTHER)
    for title, other in {
        "too few scales": tensor(storage("s", 7), shape(7), shape(1)),
        "too many axes of scales": tensor(storage("s", 8), shape(8, 1), shape(1, 1)),
        "int8 as scales": quantised(int8, shape(8), shape(1), per_tensor, real(1), b"K\0"),
    }.items():
        yield f"int8 of {title}", of(bias(per_channel, other, points, number(0)))
        yield f"int8 of {title} for points", of(bias(per_channel, scales, other, number(0)))
    yield "int8 of scales of integers", of(bias(per_channel, points, points, number(0)), OTHER)
    yield "int8 of floats", of(bias(per_tensor, real(1.0), number(0), stored=STORED), OTHER)
    broken = torch.tensor([float("nan"), float("inf"), -1.0, 0.0, 1.0, 1e38, -1e38, 1e-45])
    channels = Quantised(
        integers=torch.ones(8, dtype=torch.int8),
        scale=broken,
        zero_point=torch.full((8,), 2**62),
        axis=0,
    )
    yield (
        "int8 of broken scales",
        of(lambda: torch_zip({**network(), "conv_first.bias": channels}), OTHER),
    )
    for title, parts in {
        "nothing": (),
        "a number": (1,),
        "text": ("a", "b"),
        "a bias alone": (None, torch.zeros(8)),
        "three parts": (torch.zeros(8, 3, 3, 3), torch.zeros(8), torch.zeros(8)),
        "a bias for a weight": (torch.zeros(8), torch.zeros(8, 3, 3, 3)),
        "a list": [torch.zeros(8, 3, 3, 3), torch.zeros(8)],
    }.items():
        yield f"packed {title}", of(lambda parts=parts: torch_zip(packed(parts)))
    two = (torch.zeros(8, 3, 3, 3), torch.zeros(8))
    yield "packed weight and bias", of(lambda: torch_zip(packed(two)), OTHER)
    yield "a packed weight beside a plain one", of(lambda: torch_zip({**packed(two), **network()}))
    yield "a packed weight before a plain one", of(lambda: torch_zip({**network(), **packed(two)}))
