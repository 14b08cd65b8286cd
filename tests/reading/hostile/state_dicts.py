"""Sound files with unsound networks."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor

from tests.reading.hostile.kinds import (
    OTHER,
    REFUSED,
    SAME,
    Group,
    Hostile,
    Verdict,
    of,
)
from tests.reading.hostile.paths import (
    folder_in,
    legacy_keys,
    legacy_size,
    loop_in,
    name_in_file,
    nowhere_in,
    pipe_in,
    socket_in,
)
from tests.support import hostile_files
from tests.support.hostile_files import (
    Raw,
    call,
    dict_of,
    list_of,
    nested,
    network,
    number,
    program,
    safetensors_file,
    storage,
    tensors,
    text,
    torch_legacy,
    torch_zip,
)


def state(change: Change, verdict: Verdict = "refused", kind: str = "G1") -> Hostile:
    """A network after a change to its dictionary."""

    def content() -> bytes:
        entries = network(kind)
        change(entries)
        return torch_zip(entries)

    return of(content, verdict, kind)


def adding(key: str, value: object, verdict: Verdict = "refused", kind: str = "G1") -> Hostile:
    return state(lambda entries: entries.update({key: value}), verdict, kind)


def moving(old: str, new: str, verdict: Verdict = "refused", kind: str = "G1") -> Hostile:
    """All keys that begin with `old` begin with `new`."""

    def change(entries: dict[str, object]) -> None:
        for key in [key for key in entries if key.startswith(old)]:
            entries[new + key.removeprefix(old)] = entries.pop(key)

    return state(change, verdict, kind)


def shaped(key: str, *lengths: int, kind: str = "G1", verdict: Verdict = "refused") -> Hostile:
    return adding(key, torch.zeros(lengths), verdict, kind)


def about(metadata: Mapping[str, object], kind: str = "G5f", verdict: Verdict = SAME) -> Hostile:
    return of(lambda: torch_zip({"params": network(kind), **metadata}), verdict, kind)


def codes(revision: str) -> Tensor:
    return torch.tensor([ord(character) for character in revision], dtype=torch.uint8)


NAN: Final = float("nan")


INF: Final = float("inf")


def odd_networks() -> Group:
    yield "an empty dictionary", of(lambda: torch_zip({}))
    yield "nothing", of(lambda: torch_zip(None))
    yield "a lone tensor", of(lambda: torch_zip(torch.zeros(3)))
    yield "a network in a list", of(lambda: torch_zip([network()]))
    yield "a network in a tuple", of(lambda: torch_zip((network(), 1)))
    yield "pairs for a dictionary", of(lambda: torch_zip([[k, v] for k, v in network().items()]))
    yield "integers as keys", of(lambda: torch_zip(dict(enumerate(network().values()))))
    yield "integers as wrappers", of(lambda: torch_zip({1: network()}))
    yield "six wrappers", of(lambda: torch_zip(wrapped(6)), SAME)
    yield "seven wrappers", of(lambda: torch_zip(wrapped(7)))
    yield "an empty key", adding("", torch.zeros(1))
    yield "a dot as a key", adding(".", torch.zeros(1))
    yield "a key in Japanese", adding("重み", torch.zeros(1))
    yield "a key of control characters", adding("\x1b[2J\r\n\0", torch.zeros(1))
    yield "a key that is a surrogate", adding("\ud800", torch.zeros(1))
    yield "a network under an empty prefix", of(lambda: prefixed("."), SAME)
    yield "a network under a prefix in Japanese", of(lambda: prefixed("網."), SAME)
    yield "two networks under prefixes of each other", of(lambda: two_prefixes(), OTHER)
    yield (
        "a network within its own wrapper",
        of(lambda: torch_zip({**network(), "params": network()}), SAME),
    )
    yield (
        "every key twice, in another case",
        state(lambda entries: entries.update({k.upper(): v for k, v in list(entries.items())})),
    )
    block = "layers.0.0."
    for new in (
        *("layers.0.1.", "layers.1.0.", "layers.0.9999.", "layers.0.10000.", "layers.-1.0."),
        *(
            "layers.00.0.",
            "layers.0.00.",
            "layers.0.0.0.",
            "layers.\u0660.0.",
            "layers..0.",
            "layers.0.",
        ),
        *(f"layers.0.{10**6}.", f"layers.{2**63}.0.", f"layers.{'9' * 5000}.0.", "layers.0.+0."),
        *("layers.0.0x0.", "layers.0. 0.", "layers.1e0.0.", "LAYERS.0.0."),
    ):
        title = new if len(new) < 30 else f"{new[:20]}..."
        yield f"the block moved to {title}", moving(block, new)
        yield (
            f"one more block at {title}",
            state(
                lambda entries, new=new: copy(entries, block, new),
                OTHER if new in ("layers.0.1.", "layers.1.0.") else REFUSED,
            ),
        )
    stage = "stages.0.0."
    for new in ("stages.0.1.", "stages.0.2.", "stages.00.0.", f"stages.{10**6}.0.", "stages.2.0."):
        verdict: Verdict = OTHER if new == "stages.0.1." else REFUSED
        yield (
            f"one more stage at {new}",
            state(lambda entries, new=new: copy(entries, stage, new), verdict, "G5f"),
        )
    for kind, keys in {"G1": G1_KEYS, "G2b": G2B_KEYS, "G5f": G5F_KEYS}.items():
        for key in keys:
            yield (
                f"{kind} without {key}",
                state(lambda entries, key=key: entries.pop(key), kind=kind),
            )
            for lengths in ((), (0,), (1,), (3, 5), (8, 0, 3, 3), (1,) * 8):
                if (kind, key, lengths) not in HARMLESS_SHAPES:
                    yield f"{kind} with {key} of shape {lengths}", shaped(key, *lengths, kind=kind)
    for lengths in (
        *((8, 1, 4, 4), (8, 1, 0, 0), (8, 1, 5, 3), (8, 1, 3, 5), (8, 2, 5, 5), (7, 1, 5, 5)),
        *((8, 1, 5), (8, 1, 5, 5, 1), (8, 1, 2, 2), (8, 1, 1, 1), (0, 1, 5, 5)),
    ):
        yield f"a large kernel of shape {lengths}", shaped(f"{block}conv.lk_conv.weight", *lengths)
    for lengths in (
        (8, 1, 2, 2),
        (8, 1, 7, 7),
        (8, 1, 0, 0),
        (8, 1, 3, 1),
        (8, 3, 3),
        (8, 1, 4, 4),
    ):
        yield f"a small kernel of shape {lengths}", shaped(f"{block}conv.sk_conv.weight", *lengths)
    for lengths in ((12, 8, 3, 3), (8, 8, 3, 3), (13, 8, 3, 3), (10**4, 1, 3, 3), (32, 0, 3, 3)):
        yield (
            f"an upsampler of shape {lengths}",
            shaped("upsample.blocks.0.weight", *lengths, kind="G5f"),
        )
    for count in (2, 5, 40):
        yield (
            f"{count} more upsamplers",
            state(lambda entries, count=count: more_upsamplers(entries, count), kind="G5f"),
        )
    yield (
        "an upsampler of a name of 1 MB",
        adding(f"upsample.blocks.{'9' * 10**6}.weight", torch.zeros(1, 1, 1, 1), kind="G5f"),
    )
    yield "a second block of another form", state(second_block)
    yield "five channels", shaped("conv_first.weight", 8, 5, 3, 3, verdict=OTHER)
    yield "ten thousand channels", shaped("conv_first.weight", 8, 10_000, 3, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        yield f"one tensor of {dtype}", cast_to("conv_first.weight", dtype, OTHER)
    for dtype in (torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool):
        yield f"one tensor of {dtype}", cast_to("conv_first.weight", dtype, REFUSED)
        yield (
            f"all tensors of {dtype}",
            state(
                lambda entries, dtype=dtype: entries.update(
                    {k: cast(Tensor, v).to(dtype) for k, v in list(entries.items())}
                )
            ),
        )
    for title, value in {"NaN": NAN, "infinite": INF, "1e38": 1e38, "zero": 0.0}.items():
        yield (
            f"weights that are {title}",
            state(lambda entries, value=value: fill(entries, value), OTHER, "G5f"),
        )
        yield (
            f"int8 beside weights that are {title}",
            state(lambda entries, value=value: fill(entries, value), OTHER, "int8"),
        )
    yield (
        "kernels both fused and not",
        adding(f"{block}conv.fused_conv.weight", torch.zeros(8, 1, 5, 5)),
    )
    yield (
        "a fused block without its bias",
        state(lambda entries: entries.pop("stages.0.0.conv.fused_conv.bias"), kind="G5f fused"),
    )
    yield "half-fused kernels", state(half_fused, OTHER, "G5f")
    yield "half-fused kernels of other sizes", state(half_fused_odd, REFUSED, "G5f")
    yield "two revisions at once", of(lambda: torch_zip({**network("G5f"), **network("G4")}))
    yield "G1 and G5f at once", of(lambda: torch_zip({**network("G1"), **network("G5f")}))
    yield (
        "G2b and G5f at once",
        of(lambda: torch_zip({**network("G2b"), **network("G5f")}), SAME, "G5f"),
    )
    for title, value in {
        "of an unknown name": codes("G99"),
        "of no name": torch.zeros(0, dtype=torch.uint8),
        "of another revision": codes("G5f"),
        "of its own": codes("G1"),
        "of a name of 1 MB": torch.full((10**6,), 71, dtype=torch.uint8),
        "of numbers that are none": torch.tensor([NAN, NAN]),
        "of infinite numbers": torch.tensor([INF, -INF]),
        "of huge numbers": torch.tensor([1e300], dtype=torch.float64),
        "of negative numbers": torch.tensor([-71, -49]),
        "of two axes": codes("G1").reshape(1, 2),
        "of no axes": torch.tensor(71),
        "of truths": torch.tensor([True, False]),
        "of the largest integers": torch.tensor([2**63 - 1, -(2**63)]),
    }.items():
        same = title in ("of its own", "of two axes")  # which are its own, too
        yield f"a revision {title}", adding("revision", value, SAME if same else REFUSED)
    for key in ("scale", "scale_tensor"):
        for title, value in SCALES_THAT_LIE.items():
            yield f"{key} {title}", adding(key, value, REFUSED, "G5f")
        yield (
            f"{key} of text",
            adding(key, "many", OTHER if key == "scale_tensor" else SAME, "G5f"),
        )
    for title, value in VERSIONS_THAT_LIE.items():
        yield f"a version {title}", adding("model_version", value, OTHER, "G5f")
        yield f"a version of PyTorch {title}", adding("pt_version", value, SAME, "G5f")
    yield "complex numbers", safe_complex("more")
    for key in ("revision", "scale", "scale_tensor", "model_version", "mean", "conv_first.bias"):
        yield f"complex numbers for {key}", safe_complex(key)
    for title, metadata in METADATA_THAT_LIE.items():
        yield f"metadata with {title}", about(metadata)
        yield f"arch_config with {title}", about({"arch_config": metadata})
    odds: tuple[object, ...] = (
        [1],
        {},
        "a",
        1,
        None,
        True,
        NAN,
        [[1]],
        {"arch_config": {}},
        {1: 2},
    )
    for odd in odds:
        yield f"an arch_config of {odd!r}", about({"arch_config": odd})
        yield f"metadata of {odd!r}", about({"metadata": odd})
    yield (
        "an arch_config of lists 5,000 deep",
        about({"arch_config": {"scale": nested(5000, b"]", b"a")}}),
    )
    yield (
        "an arch_config of lists 900 deep",
        about({"arch_config": {"depths": nested(900, b"]", b"a")}}),
    )
    yield "metadata of lists 5,000 deep", about({"res_scale": nested(5000, b"]", b"a")})
    yield (
        "an observer that is no tensor",
        adding("conv_first.weight_fake_quant.scale", "x", SAME, "G5f"),
    )
    yield (
        "an observer that is infinite",
        adding("conv_first.weight_fake_quant.scale", torch.tensor(INF), SAME, "G5f qat"),
    )
    yield (
        "two keys of one tensor",
        adding("stages.0.0.ffn.fc2.weight", torch.zeros(8, 12), kind="G5f"),
    )
    yield (
        "statistics that are negative",
        state(
            lambda entries: entries.update({"norm.running_var": torch.full((1, 8, 1, 1), -1.0)}),
            OTHER,
            "G5f",
        ),
    )
    yield (
        "a temperature of zero",
        adding("stages.0.0.ffn.temperature", torch.zeros(1), OTHER, "G5f"),
    )


G1_KEYS: Final = (
    "conv_first.weight",
    "layers.0.0.conv.lk_conv.weight",
    "layers.0.0.conv.sk_bias",
    "layers.0.0.norm.weight",
    "layers.0.0.ffn.fc1_gate.weight",
    "layers.0.0.ffn.fc2.bias",
    "conv_before_upsample.0.weight",
    "conv_last.weight",
)


G2B_KEYS: Final = (
    "conv_first.weight",
    "stages.0.0.conv.lk_conv.weight",
    "stages.0.0.ffn.conv_gate.weight",
    "quant_fusion_layer.error_comp",
    "conv_last.weight",
)


G5F_KEYS: Final = (
    "mean",
    "conv_first.weight",
    "stages.0.0.norm.running_var",
    "stages.0.0.ffn.temperature",
    "stages.0.0.ffn.conv_gate.weight",
    "quant_fusion_layer.error_comp",
    "fusion_convs.0.weight",
    "norm.weight",
    "upsample.blocks.0.weight",
    "conv_last.bias",
)


HARMLESS_SHAPES: Final = (
    *(("G5f", "stages.0.0.ffn.temperature", lengths) for lengths in ((), (1,), (1,) * 8)),
)


SCALES_THAT_LIE: Final[Mapping[str, Tensor]] = {
    "of 3": torch.tensor(3),
    "of 0": torch.tensor(0),
    "of -2": torch.tensor(-2),
    "of NaN": torch.tensor(NAN),
    "of infinity": torch.tensor(INF),
    "of 1e300": torch.tensor(1e300, dtype=torch.float64),
    "of two numbers": torch.tensor([2, 2]),
    "of two axes": torch.full((2, 2), 2),
    "of nothing": torch.zeros(0),
    "of a million numbers": torch.full((10**6,), 2.0),
    "that is true": torch.tensor(True),
}


VERSIONS_THAT_LIE: Final[Mapping[str, Tensor]] = {
    "of NaN": torch.tensor([NAN, NAN, NAN]),
    "of infinity": torch.tensor([3.0, 1.0, INF]),
    "of nothing": torch.zeros(0),
    "of two axes": torch.tensor([[3, 1, 1]]),
    "of a million numbers": torch.zeros(10**6),
    "of huge numbers": torch.tensor([1e300] * 3, dtype=torch.float64),
    "of truths": torch.tensor([True, True, True]),
}


METADATA_THAT_LIE: Final[Mapping[str, Mapping[str, object]]] = {
    "a res_scale of abc": {"res_scale": "abc"},
    "a res_scale of NaN": {"res_scale": NAN},
    "a res_scale of 1e400": {"res_scale": "1e400"},
    "a res_scale of infinity": {"res_scale": INF},
    "a res_scale of 10**600": {"res_scale": 10**600},
    "a res_scale of -1": {"res_scale": -1},
    "a res_scale in a list": {"res_scale": [0.1]},
    "a res_scale in a dictionary": {"res_scale": {"value": 0.1}},
    "a res_scale of nothing": {"res_scale": None},
    "a res_scale that is true": {"res_scale": True},
    "a res_scale of 5,000 digits": {"res_scale": "9" * 5000},
    "a res_scale of 1 MB": {"res_scale": "x" * 10**6},
    "a norm_eps of NaN": {"norm_eps": NAN},
    "a norm_eps of 1e9": {"norm_eps": 1e9},
    "an img_range of 0": {"img_range": 0},
    "an error_comp of 0.5": {"error_comp": 0.5},
    "a norm_folded of 2": {"norm_folded": 2},
    "a scale of text": {"scale": "4x"},
    "a scale of 10**600": {"scale": 10**600},
    "depths in a dictionary": {"depths": {"0": 1}},
    "depths of text": {"depths": "1"},
    "depths of surrogates": {"depths": call("torch", "device", text("x"))},
    "embed_dim of 1 MB": {"embed_dim": "x" * 10**6},
    "an odd dictionary": {"embed_dim": {1: 2, None: 3}},
}


def wrapped(levels: int) -> object:
    value: object = network()
    for level in range(levels):
        value = {f"level{level}": value}
    return value


def prefixed(prefix: str) -> bytes:
    return torch_zip({prefix + key: value for key, value in network().items()})


def two_prefixes() -> bytes:
    return torch_zip(
        {
            **{"a." + key: value for key, value in network().items()},
            **{"a.b." + key: value for key, value in network("G5f").items()},
        }
    )


def copy(entries: dict[str, object], old: str, new: str) -> None:
    found = {new + k.removeprefix(old): v for k, v in entries.items() if k.startswith(old)}
    entries.update(found)


def second_block(entries: dict[str, object]) -> None:
    """One more block, whose kernels have an axis more."""
    copy(entries, "layers.0.0.", "layers.0.1.")
    for key in ("layers.0.1.conv.lk_conv.weight", "layers.0.1.conv.sk_conv.weight"):
        entries[key] = cast(Tensor, entries[key])[None]


def cast_to(key: str, dtype: torch.dtype, verdict: Verdict) -> Hostile:
    return state(
        lambda entries: entries.update({key: cast(Tensor, entries[key]).to(dtype)}), verdict
    )


def fill(entries: dict[str, object], value: float) -> None:
    entries["conv_first.bias"] = torch.full((8,), value)
    entries["norm.bias"] = torch.full((1, 8, 1, 1), value)


def more_upsamplers(entries: dict[str, object], count: int) -> None:
    for index in range(1, count + 1):
        entries[f"upsample.blocks.{2 * index}.weight"] = torch.zeros(128, 32, 3, 3)
        entries[f"upsample.blocks.{2 * index}.bias"] = torch.zeros(128)


def half_fused(entries: dict[str, object]) -> None:
    fused = {k: v for k, v in network("G5f fused").items() if k.startswith("stages.0.0.")}
    entries.update({k.replace("stages.0.0.", "stages.0.1."): v for k, v in fused.items()})


def half_fused_odd(entries: dict[str, object]) -> None:
    half_fused(entries)
    entries["stages.0.1.conv.fused_conv.weight"] = torch.zeros(8, 1, 3, 3)


def safe_complex(key: str) -> Hostile:
    """A safetensors file in which one tensor is complex."""
    value = torch.tensor([complex(1, 2)] * (3 if key == "model_version" else 1))
    content = {**tensors("G5f"), key: value}
    verdict: Verdict = OTHER if key == "model_version" else REFUSED  # that one has no effect
    return of(lambda: safetensors_file(content), verdict, "G5f", ".safetensors")


def other_files() -> Group:
    for title, content in {
        "an ONNX file": b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(200),
        "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "a page of JSON": b'{"error": "Repository not found"}',
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "a text": b"This is a text.\n" * 20,
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "a gzip archive": gzip.compress(b"a" * 1000, mtime=0),
        "a 7-Zip archive": b"7z\xbc\xaf\x27\x1c" + bytes(100),
        "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "a NumPy file": b"\x93NUMPY\x01\x00" + bytes(100),
        "a GGUF file": b"GGUF\3\0\0\0" + bytes(100),
        "a Python script": b"#!/usr/bin/env python\nimport os\nos.mkdir('executed')\n",
        "a program": b"\x7fELF\2\1\1" + bytes(100),
        "an empty file": b"",
        "one byte": b"P",
        "one NUL": b"\0",
        "ten megabytes of NUL": bytes(10**7),
        "a bare pickle of a number": program(number(1)),
        "a bare pickle of protocol 5": program(b"N", 5),
        "a legacy file of another magic number": program(number(7)) + program(number(1001)),
        "a legacy file of another protocol": program(number(hostile_files.MAGIC))
        + program(number(1002))
        + program(b"}"),
        "a legacy file of a true protocol": program(number(hostile_files.MAGIC))
        + program(b"\x88")
        + program(b"}"),
        "a legacy file of lists": program(b"]") * 3,
        "a tar archive": b"data.pkl".ljust(257, b"\0") + b"ustar\x0000" + bytes(248),
    }.items():
        yield title, of(lambda content=content: content)
    yield "JSON under its own name", of(lambda: b'{"a": 1}', suffix=".json")

    listings: dict[str, Callable[[list[str]], bytes]] = {
        "keys in a dictionary": lambda _: program(b"}"),
        "keys that are numbers": lambda _: program(list_of(number(1))),
        "keys that repeat": lambda keys: program(list_of(*(text(k) for k in [*keys, keys[0]]))),
        "keys in another order": lambda keys: program(list_of(*(text(k) for k in keys[::-1]))),
        "no keys": lambda _: program(b"]"),
        "a storage as key": lambda _: program(list_of(storage("0", 1))),
        "a network as keys": lambda _: program(dict_of(text("a"), storage("0", 1))),
    }
    for title, change in listings.items():
        yield (
            f"a legacy file of {title}",
            of(lambda change=change: legacy_keys(change)),
        )
    yield "a legacy file of a size that lies", of(lambda: legacy_size(2**62))
    yield "a legacy file of a size of -1", of(lambda: legacy_size(-1))
    yield (
        "a legacy file after another",
        of(lambda: torch_legacy(network()) + torch_legacy({"a": 1}), SAME),
    )
    yield (
        "a legacy file of two sizes for a storage",
        of(lambda: torch_legacy({"a": Raw(storage("0", 4)), "b": Raw(storage("0", 5))})),
    )
    yield "a folder", Hostile(place=folder_in)
    yield "a missing file", Hostile(place=lambda folder: folder / "missing.pth")
    yield "a name with a NUL", Hostile(place=lambda folder: folder / "a\0.pth")
    yield "a name that is too long", Hostile(place=lambda folder: folder / ("a" * 5000 + ".pth"))
    yield "a path that is too long", Hostile(place=lambda folder: folder / ("a/" * 5000))
    yield "a name in a file", Hostile(place=name_in_file)
    yield "a surrogate as a name", Hostile(place=lambda folder: folder / "\ud800.pth")
    if sys.platform != "win32":
        yield "a pipe", Hostile(place=pipe_in)
        yield "a socket", Hostile(place=socket_in)
        yield "a link to itself", Hostile(place=loop_in)
        yield "a link to nowhere", Hostile(place=nowhere_in)
        yield "a device of nothing", Hostile(place=lambda _: Path("/dev/null"))
        yield "a device of zeros", Hostile(place=lambda _: Path("/dev/zero"))
        yield "a file of the kernel", Hostile(place=lambda _: Path("/proc/self/maps"))


Change = Callable[[dict[str, object]], object]
