"""Small files that ask for much time or memory."""

from __future__ import annotations

import pickle
from typing import cast

import torch
from torch import Tensor

from aether_spandrel.network import MOST_BLOCKS
from tests.reading.hostile.kinds import (
    OTHER,
    SAME,
    Group,
    of,
    pickled,
)
from tests.reading.hostile.pickles import (
    ONE,
    colliding,
    copies,
    doubled_path,
    shared_list,
)
from tests.support import hostile_files
from tests.support.hostile_files import (
    LOCAL,
    NO_HOOKS,
    Entry,
    Raw,
    archive,
    dict_of,
    get,
    list_of,
    name,
    network,
    program,
    put,
    safetensors_bytes,
    safetensors_file,
    shape,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    tuple_of,
)


def many_tensors(count: int, stored: bytes, size: bytes, stride: bytes) -> Raw:
    """Tensors by a few bytes each, all of one storage."""
    function = name("torch._utils", "_rebuild_tensor_v2") + put(1) + pickle.POP
    arguments = tuple_of(stored, b"K\0", size, stride, b"\x89", NO_HOOKS) + put(2) + pickle.POP
    pairs = (text(str(n)) + get(1) + get(2) + pickle.REDUCE for n in range(count))
    return Raw(function + arguments + dict_of(*pairs))


def misaligned(count: int, length: int) -> bytes:
    """Storages that do not lie as the processor needs them, each asked for anew."""
    pairs = (text(str(n)) + tensor(storage("0", length), shape(1), shape(1)) for n in range(count))
    body = program(dict_of(*pairs))
    odd = bytes(-(2 * LOCAL.size + len(b"a/data.pkla/data/0") + len(body)) % 4 + 1)
    return archive(
        Entry(name=b"a/data.pkl", data=body + odd),
        Entry(name=b"a/data/0", data=bytes(4 * length)),
        aligned=False,
    )


def deep_network(blocks: int) -> bytes:
    """A network of one channel and many blocks of a few bytes each."""
    state = hostile_files.draw(
        "G1", embed_dim=1, depths=(1,), lk_kernel=1, sk_kernel=1, ffn_dim=1, scale=1, fused=True
    )
    for key, value in list(state.items()):
        if key.startswith("layers.0.0."):
            for block in range(1, blocks):
                state[key.replace("layers.0.0.", f"layers.0.{block}.", 1)] = value
    return safetensors_file(state)


def wide_head(width: int) -> dict[str, object]:
    """A network of scale 16 whose last convolution before the shuffle is very wide."""
    state = dict[str, object](
        hostile_files.draw("G5f", embed_dim=16, depths=(1,), lk_kernel=3, scale=16)
    )
    keys = sorted(k for k in state if k.startswith("upsample.") and k.endswith(".weight"))
    last = cast(Tensor, state[keys[-1]])
    state[keys[-1]] = torch.zeros(4 * width, last.shape[1], 3, 3)
    state[keys[-1].replace("weight", "bias")] = torch.zeros(4 * width)
    state["conv_last.weight"] = torch.zeros(3, width, 3, 3)
    return state


def large_kernel(side: int) -> dict[str, object]:
    state = network("G5f fused")
    state["stages.0.0.conv.fused_conv.weight"] = torch.zeros(8, 1, side, side)
    return state


def many_prefixes(count: int) -> dict[str, object]:
    return {f"{n}.layers.0.0.ffn.fc1_gate.weight": None for n in range(count)}


def much_metadata(count: int, length: int) -> dict[str, object]:
    """A long list under many names beside a network."""
    first = Raw(shared_list(length) + put(1))
    return {"params": network(), "m": first, **{f"m{n}": get(1) for n in range(count)}}


def repeated_at_the_end(count: int) -> bytes:
    pairs = ",".join(f'"{n}":0' for n in range(count))
    return safetensors_bytes(f'{{{pairs},"{count - 1}":0}}'.encode())


def exhaustion() -> Group:
    yield "a path of 2**40 characters", pickled(lambda: doubled_path(40))
    yield (
        "a list copied ten thousand times",
        pickled(
            lambda: (
                tuple_of(shared_list(100_000))
                + put(1)
                + name("torch", "Size")
                + put(2)
                + copies(get(2) + get(1) + pickle.REDUCE, 10_000)
            )
        ),
    )
    yield (
        "a text encoded ten thousand times",
        pickled(
            lambda: (
                tuple_of(text("x" * 10**6), text("latin1"))
                + put(1)
                + name("_codecs", "encode")
                + put(2)
                + copies(get(2) + get(1) + pickle.REDUCE, 10_000)
            )
        ),
    )
    yield (
        "a path joined ten thousand times",
        pickled(
            lambda: (
                tuple_of(text("x" * 10**6), text("y"))
                + put(1)
                + name("pathlib", "Path")
                + put(2)
                + copies(get(2) + get(1) + pickle.REDUCE, 10_000)
            )
        ),
    )
    yield (
        "a list in words ten thousand times",
        pickled(
            lambda: (
                tuple_of(shared_list(10_000))
                + put(1)
                + name("torch", "device")
                + put(2)
                + copies(get(2) + get(1) + pickle.REDUCE, 30_000)
            )
        ),
    )
    yield (
        "a dictionary made ten thousand times",
        pickled(
            lambda: (
                tuple_of(list_of(*(tuple_of(text(str(n)), b"N") for n in range(2000))))
                + put(1)
                + name("collections", "OrderedDict")
                + put(2)
                + copies(get(2) + get(1) + pickle.REDUCE, 10_000)
            )
        ),
    )
    yield (
        "attributes given ten thousand times",
        pickled(
            lambda: (
                dict_of(*(text(str(n)) + b"N" for n in range(2000)))
                + put(1)
                + name("argparse", "Namespace")
                + put(2)
                + copies(get(2) + b")\x81" + get(1) + b"b", 10_000)
            )
        ),
    )
    yield "names that each need a copy", of(lambda: misaligned(5000, 250_000))
    yield "integers that hash alike", pickled(lambda: colliding(30_000))
    yield "two million instructions", pickled(lambda: b"N0" * 990_000 + b"N")
    yield "ten million instructions", pickled(lambda: b"N0" * 5_000_000 + b"N")
    yield "a million memos", pickled(lambda: b"N" + b"\x94" * 1_900_000)
    yield "two million marks", pickled(lambda: b"(" * 1_900_000 + b"N")
    yield "many short lists", pickled(lambda: b"(" + b"]" * 1_900_000 + b"l")
    yield "legacy with long pickles", of(lambda: torch_legacy(Raw(b"N0" * 990_000 + b"N")))
    yield (
        "fifty thousand tensors of one storage",
        pickled(lambda: many_tensors(50_000, storage("0", 16), shape(16), shape(1)), ONE),
    )
    yield (
        "a hundred thousand tensors of no size",
        pickled(lambda: many_tensors(100_000, storage("0", 0), shape(0), shape(1)), ONE),
    )
    yield (
        "tensors that share and seem large",
        pickled(
            lambda: many_tensors(200, storage("0", 250_000), shape(250_000), shape(1)),
            {"0": bytes(10**6)},
        ),
    )
    yield (
        "a network of as many blocks as may be",
        of(lambda: deep_network(MOST_BLOCKS), OTHER, suffix=".safetensors"),
    )
    yield (
        "a network of one block more",
        of(lambda: deep_network(MOST_BLOCKS + 1), suffix=".safetensors"),
    )
    yield "a network as wide as a house", of(lambda: torch_zip(wide_head(20_000)))
    yield "a kernel of 1,001 px", of(lambda: torch_zip(large_kernel(1001)))
    yield "twenty thousand prefixes", of(lambda: torch_zip(many_prefixes(20_000)))
    yield (
        "a long list under many names",
        of(lambda: torch_zip(much_metadata(10_000, 300_000)), SAME),
    )
    yield (
        "a list of nine thousand under many names",
        of(lambda: torch_zip(much_metadata(20_000, 9000)), SAME),
    )
    yield (
        "a header that repeats its last key",
        of(lambda: repeated_at_the_end(100_000), suffix=".safetensors"),
    )
    yield (
        "a header of 100,000 empty tensors",
        of(
            lambda: safetensors_bytes(
                {
                    str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                    for n in range(100_000)
                }
            ),
            suffix=".safetensors",
        ),
    )
    yield "a key of 1 MB", of(lambda: torch_zip({**network(), "k" * 10**6: torch.zeros(1)}))
    yield (
        "a key of 1 MB that anchors a network",
        of(
            lambda: torch_zip(
                {"k" * 10**6 + "." + key: value for key, value in list(network().items())[:4]}
            )
        ),
    )
    yield "a wrapper of 1 MB", of(lambda: torch_zip({"k" * 10**6: network()}), SAME)
    yield (
        "a wrapper of 1 MB around half a network",
        of(lambda: torch_zip({"k" * 10**6: dict(list(network().items())[:-4])})),
    )
