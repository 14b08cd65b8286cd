"""Checkpoints in several files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

from tests.reading.hostile.kinds import (
    Group,
    Hostile,
)
from tests.reading.hostile.pickles import (
    LIVE,
)
from tests.support.hostile_files import (
    Raw,
    safetensors_file,
    tensors,
    torch_zip,
)


def shards(index: object, **files: bytes) -> Hostile:
    """An index and its parts; a good part is `a.safetensors`, and `whole` loads alone."""

    def place(folder: Path) -> Path:
        half = len(tensors()) // 2
        entries = list(tensors().items())
        parts = {
            "a.safetensors": safetensors_file(dict(entries[:half])),
            "b.safetensors": safetensors_file(dict(entries[half:])),
            "all.safetensors": safetensors_file(dict(entries)),
            **{name.replace("__", "."): content for name, content in files.items()},
        }
        for file, content in parts.items():
            (folder / file).write_bytes(content)
        path = folder / "model.safetensors.index.json"
        path.write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
        return path

    return Hostile(place=place, verdict="same" if index == GOOD_INDEX else "refused")


def _halves() -> dict[str, object]:
    keys = list(tensors())
    half = len(keys) // 2
    return {
        **dict.fromkeys(keys[:half], "a.safetensors"),
        **dict.fromkeys(keys[half:], "b.safetensors"),
    }


GOOD_INDEX: Final[dict[str, object]] = {"weight_map": _halves()}


def index_of(*names: object) -> dict[str, object]:
    """The good index with names for its first tensors."""
    keys = list(tensors())
    return {"weight_map": {**_halves(), **dict(zip(keys, names, strict=False))}}


def odd_shards() -> Group:
    yield "a good index", shards(GOOD_INDEX)
    yield "an index of a missing part", shards(index_of("c.safetensors"))
    yield (
        "an index of a missing tensor",
        shards({"weight_map": {**_halves(), "conv_more.weight": "b.safetensors"}}),
    )
    yield "an index of a tensor in two parts", shards(index_of("all.safetensors"))
    for odd in (
        "/etc/passwd",
        "../a.safetensors",
        "x/../a.safetensors",
        "..\\a.safetensors",
        "C:\\a.safetensors",
        "..",
        ".",
        "",
        "a.safetensors\0",
        "a" * 300,
        "\ud800.safetensors",
        "model.safetensors.index.json",
        "./a.safetensors",
        "a.safetensors/",
        "~/a.safetensors",
        "http://localhost/a.safetensors",
    ):
        yield f"an index of the part {odd[:30]!r}", shards(index_of(odd))
    for odd in (1, None, True, 1.5, ["a.safetensors"], {"a": "b"}):
        yield f"an index of the part {json.dumps(odd)}", shards(index_of(odd))
    indices: dict[str, object] = {
        "nothing": {},
        "a list": [],
        "no map": {"metadata": {}},
        "a map that is a list": {"weight_map": ["a.safetensors"]},
        "a map that is text": {"weight_map": "a.safetensors"},
        "a map that is null": {"weight_map": None},
        "an empty map": {"weight_map": {}},
        "no JSON": b'{"weight_map": ',
        "no UTF-8": b'{"weight_map": {"\xff": "a.safetensors"}}',
        "lists 100,000 deep": b'{"weight_map":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a key twice": b'{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}',
        "a number of 10,000 digits": b'{"weight_map":' + b"9" * 10_000 + b"}",
        "9 MB": b'{"weight_map":{}' + b" " * 9_000_000 + b"}",
        "UTF-16": json.dumps(GOOD_INDEX).encode("utf-16"),
    }
    for title, content in indices.items():
        yield f"an index of {title}", shards(content)
    yield "an index of a part that is empty", shards(index_of("e.pth"), e__pth=b"")
    yield (
        "an index of a part that is cut",
        shards(index_of("e.safetensors"), e__safetensors=safetensors_file(tensors())[:-5]),
    )
    yield "an index of a part that is a list", shards(index_of("e.pth"), e__pth=torch_zip([1, 2]))
    yield (
        "an index of a part that executes",
        shards(index_of("e.pth"), e__pth=torch_zip(Raw(LIVE["os.mkdir"]))),
    )
    yield "an index of a surrogate", shards({"weight_map": {"\ud800": "a.safetensors"}})
    yield "an index of a key of 1 MB", shards({"weight_map": {"k" * 10**6: "a.safetensors"}})
    yield "an index of an index", shards(index_of("i.JSON"), i__JSON=json.dumps({}).encode())

    def around(folder: Path) -> Path:
        path = shards(index_of("loop.safetensors")).place(folder)
        (folder / "loop.safetensors").symlink_to("loop.safetensors")
        return path

    def pipe(folder: Path) -> Path:
        path = shards(index_of("pipe.safetensors")).place(folder)
        os.mkfifo(folder / "pipe.safetensors")
        return path

    if sys.platform != "win32":
        yield "an index of a part that links to itself", Hostile(place=around)
        yield "an index of a part that is a pipe", Hostile(place=pipe)
