"""Checkpoint files: bytes in, state dict and metadata out, without executing anything.

The kind of a file is read from its first bytes; the name's ending is only a hint to people. The
network is found by keys that every AetherNet has and nothing else, wherever a trainer put it.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import safetensors
import torch
from torch import Tensor

from aether_spandrel.errors import CheckpointError
from aether_spandrel.file_kinds import HEAD_BYTES, describe_head, kind_of
from aether_spandrel.opening import open_file, read_file
from aether_spandrel.revisions import ANCHORS
from aether_spandrel.torch_file import TorchContent, read_legacy, read_zip
from aether_spandrel.torch_pickle import MOST_TENSORS, Opaque, Quantised

FLOAT_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

HEADER_LIMIT: Final = 4 * 2**20  # bytes; the largest AetherNet needs about 1 MiB
MOST_NETWORKS: Final = 16  # that are told apart in one dictionary
DEPTH_LIMIT: Final = 6  # wrappers within wrappers
NODE_LIMIT: Final = 10_000  # dictionaries that are looked into
LONGEST_NAME: Final = 1000  # characters of an entry's name among the metadata
SHARING_LIMIT: Final = 2  # how often a file's size its tensors may take together
SHARING_ALLOWANCE: Final = 2**20  # bytes

WRAPPED_MODULES: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into the middle of keys."""

AVERAGED: Final = re.compile(r"(^|[._-])(ema|averaged|swa)([._-]|$)", re.IGNORECASE)
"""Found in the names of averaged weights, which are preferred to the momentary ones."""

QUANTISATION: Final = re.compile(
    r"(^|\.)(weight_fake_quant|activation_post_process|input_range)(\.|$)|\.(scale|zero_point)$"
)
"""Found in the keys of fake quantisation, observers and int8 (docs/reference.md#qat-and-int8)."""

PACKED: Final = "._packed_params"

SPANDREL_NAMES: Final = frozenset(
    {"collections.OrderedDict", "typing.OrderedDict", "torch._utils._rebuild_tensor_v2"}
)
"""Python objects, beside storages, that spandrel's own reader lets pass."""

SPANDREL_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "torch": (".pth", ".pt", ".ckpt"),
    "safetensors": (".safetensors",),
    "shards": (),
}
"""Endings by which spandrel's own reader recognises each kind of file."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds, unwrapped.

    Attributes:
        state_dict: The network's tensors by key, without prefix; int8 weights as float32.
        qat_entries: Fake-quant, observer and int8 activation entries, kept apart from them.
        int8_weights: The int8 weights as stored, by key.
        metadata: Everything else the file says about the network.
        path: The file, where there is one.
        wrapper: The keys that led to the state dict, such as `params_ema`; empty if it was bare.
        alternatives: Other places in the file that hold an AetherNet too.
        prefix: What was stripped from the front of every key.
        refusals: Why spandrel's own loader does not read this file, in words; usually empty.
    """

    state_dict: Mapping[str, Tensor] = field(repr=False)
    qat_entries: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    int8_weights: Mapping[str, Quantised] = field(default_factory=dict[str, Quantised], repr=False)
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    path: Path | None = None
    wrapper: str = ""
    alternatives: tuple[str, ...] = ()
    prefix: str = ""
    refusals: tuple[str, ...] = ()

    @property
    def qat(self) -> bool:
        """Whether the network was trained with, or converted by, quantisation."""
        return bool(self.qat_entries or self.int8_weights)

    @property
    def averaged(self) -> bool:
        """Whether averaged weights (EMA) were chosen beside others that are not averaged."""
        chosen = AVERAGED.search(f"{self.wrapper}.{self.prefix}")
        return bool(chosen) and not any(AVERAGED.search(name) for name in self.alternatives)

    @property
    def choice(self) -> str:
        """Which of several networks was taken, in words."""
        name = ".".join(filter(None, [self.wrapper, self.prefix.rstrip(".")]))
        return (
            f"the file holds several networks: {name or 'the outermost'} was taken, "
            f"{', '.join(self.alternatives)} left aside"
        )

    @property
    def entries(self) -> Mapping[str, Tensor]:
        """The state dict with the entries that were kept apart from it."""
        return {**self.state_dict, **self.qat_entries}

    @staticmethod
    def from_object(
        content: object, *, path: Path | None = None, size: int | None = None
    ) -> Checkpoint:
        """Unwrap what a checkpoint file held: a bare state dict or any nest of wrappers.

        Args:
            content: What the file held; it is left unchanged.
            path: The file, to be named in errors.
            size: Of the file in bytes; tensors may not claim to be much larger together.

        Raises:
            CheckpointError: It holds no state dict, or one that claims to be larger than its file.
        """
        places = _find_networks(content)
        if not places:
            places = _any_tensors(content)  # no AetherNet, which the next step will say
        if not places:
            raise CheckpointError(
                "the file holds no state dict",
                file=path,
                expected="a dictionary of tensors, as torch.save(model.state_dict()) writes",
                found=_listing(content),
                advice="save the network's state dict, not the network object",
            )
        chosen, *others = places
        tensors = _tensors(chosen.entries)
        if size is not None:
            _check_size(tensors, size)
        int8_weights = {k: t for k, t in tensors.items() if isinstance(t, Quantised)}
        numbers = {
            key: tensor.dequantised() if isinstance(tensor, Quantised) else tensor
            for key, tensor in tensors.items()
        }
        return Checkpoint(
            state_dict={k: t for k, t in numbers.items() if not QUANTISATION.search(k)},
            qat_entries={k: t for k, t in numbers.items() if QUANTISATION.search(k)},
            int8_weights=int8_weights,
            metadata=_flatten_metadata(_metadata_along(content, chosen.keys)),
            path=path,
            wrapper=".".join(chosen.keys),
            alternatives=tuple(place.name for place in others),
            prefix=chosen.prefix,
        )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where in a file a network was found."""

    keys: tuple[str, ...]
    prefix: str
    entries: Mapping[str, object]

    @property
    def name(self) -> str:
        """Wrapper keys and prefix, as a user would write them."""
        return ".".join([*self.keys, *([self.prefix.rstrip(".")] if self.prefix else [])])

    @property
    def averaged(self) -> bool:
        """Whether these are averaged weights."""
        return any(AVERAGED.search(part) for part in (*self.keys, self.prefix))


def _find_networks(content: object) -> list[_Place]:
    """Every AetherNet in a nest of dictionaries, the preferred one first."""
    places: list[_Place] = []
    for keys, entries in _dictionaries(content):
        plain = {_plain_key(key): key for key in entries if isinstance(key, str)}
        prefixes = {
            key[: key.index(anchor)] for key in plain for anchor in ANCHORS if anchor in key
        }
        for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix))[:MOST_NETWORKS]:
            within = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
            places.append(
                _Place(
                    keys=keys,
                    prefix=prefix,
                    entries={
                        key[len(prefix) :]: entries[original]
                        for key, original in plain.items()
                        if key.startswith(prefix) and not (within and key.startswith(within))
                    },
                )
            )
    return sorted(places, key=lambda place: not place.averaged)


def _plain_key(key: str) -> str:
    for name in WRAPPED_MODULES:
        key = key.replace(name, "")
    return key


def _any_tensors(content: object) -> list[_Place]:
    return [
        _Place(keys=keys, prefix="", entries={str(k): v for k, v in entries.items()})
        for keys, entries in _dictionaries(content)
        if any(isinstance(value, Tensor) for value in entries.values())
    ][:1]


def _dictionaries(content: object) -> Iterator[tuple[tuple[str, ...], Mapping[object, object]]]:
    """All dictionaries of a nest with the keys that lead to them, the outer ones first."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: set[int] = set()
    for keys, value in waiting:  # grows while it is read
        entries = _as_dictionary(value)
        if entries is None or id(entries) in seen or len(seen) >= NODE_LIMIT:
            continue
        seen.add(id(entries))
        yield keys, entries
        if len(keys) < DEPTH_LIMIT:
            waiting.extend(
                ((*keys, key), entry)
                for key, entry in entries.items()
                if isinstance(key, str) and _as_dictionary(entry) is not None
            )


def _as_dictionary(value: object) -> Mapping[object, object] | None:
    return cast(Mapping[object, object], value) if isinstance(value, Mapping) else None


def _tensors(entries: Mapping[str, object]) -> dict[str, Tensor | Quantised]:
    """The tensors of a state dict, those of packed layers under `weight` and `bias`.

    Other values have no part in a network: absent biases of converted layers (None), the dtype
    of packed ones, numbers that a trainer left.
    """
    found: dict[str, Tensor | Quantised] = {}
    for key, value in entries.items():
        if key.endswith(f"{PACKED}{PACKED}"):
            layer = key.removesuffix(f"{PACKED}{PACKED}")
            parts = cast(tuple[object, ...], value) if isinstance(value, tuple) else ()
            named = {f"{layer}.{n}": p for n, p in zip(("weight", "bias"), parts, strict=False)}
        else:
            parts, named = (), {key: value}
        for name, part in named.items():
            if (tensor := _as_tensor(part)) is not None:
                if name in found or len(parts) > 2:
                    raise CheckpointError(
                        "a packed layer holds more than its weight and bias",
                        key=name[:100],
                        advice="the file is forged or was written by a broken program",
                    )
                found[name] = tensor
    return found


def _as_tensor(value: object) -> Tensor | Quantised | None:
    if not isinstance(value, Tensor):
        return value if isinstance(value, Quantised) else None
    if not value.is_quantized:
        # Not every device has the precision in which weights are folded.
        return value.detach() if value.is_meta else value.detach().cpu()
    per_channel = value.qscheme() in (
        torch.per_channel_affine,
        torch.per_channel_affine_float_qparams,
    )
    return Quantised(
        integers=value.int_repr(),
        scale=value.q_per_channel_scales() if per_channel else torch.tensor([value.q_scale()]),
        zero_point=value.q_per_channel_zero_points()
        if per_channel
        else torch.tensor([value.q_zero_point()]),
        axis=value.q_per_channel_axis() if per_channel else None,
    )


def _metadata_along(content: object, keys: tuple[str, ...]) -> dict[str, object]:
    """What stands beside the state dict on the way to it, the inner levels winning.

    Text, numbers, and lists and dictionaries of them are kept; tensors and objects are not, nor is
    what lies deeper or is more than any trainer writes.
    """
    metadata: dict[str, object] = {}
    current = content
    budget = NODE_LIMIT
    for key in keys:
        level = cast(Mapping[object, object], current)
        for name, value in level.items():
            if isinstance(name, str) and name != key and len(name) < LONGEST_NAME:
                plain, looked_at = _is_plain(value, budget)
                budget -= looked_at
                if plain:
                    metadata[name] = value
        current = level[key]
    return metadata


def _is_plain(value: object, most: int) -> tuple[bool, int]:
    """Whether a value consists of at most so many plain ones, and how many were looked at."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    for looked_at, (item, depth) in enumerate(waiting):  # grows while it is read
        inner: Collection[object] = ()
        if isinstance(item, Mapping):
            inner = cast(Mapping[object, object], item).values()
        elif isinstance(item, (list, tuple)):
            inner = cast("list[object]", item)
        elif item is not None and not isinstance(item, (str, int, float, bool)):
            return False, looked_at + 1
        # Lists within lists can refer to the same one again and again.
        if len(waiting) + len(inner) > most or depth > DEPTH_LIMIT:
            return False, looked_at + 1
        waiting.extend((entry, depth + 1) for entry in inner)
    return True, len(waiting)


def _flatten_metadata(metadata: Mapping[str, object]) -> dict[str, object]:
    """Entries of a nested `metadata` dictionary beside those of the outer level, which win."""
    nested = _as_dictionary(metadata.get("metadata")) or {}
    return {
        **{key: value for key, value in nested.items() if isinstance(key, str)},
        **{key: value for key, value in metadata.items() if key != "metadata"},
    }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth`, `.ckpt`, `.pt`, `.safetensors` or `.index.json` file, executing nothing.

    Tensors keep the dtype in which they are stored and are memory-mapped where the format allows.

    Raises:
        CheckpointError: The file cannot be opened, is none of these formats, is damaged, or
            holds no state dict.
    """
    path = Path(path)
    try:
        return _read(path)
    except CheckpointError as error:
        raise (error if error.file else error.in_file(path)) from error.__cause__
    except OSError as error:
        raise CheckpointError(
            f"the file cannot be read: {error.strerror or error}",
            file=path,
            advice="check the permissions and that the disk is well",
        ) from error
    except (ValueError, RecursionError) as error:
        # A name that no file can have, or nesting that no program writes.
        raise CheckpointError(
            "the file cannot be read", file=path, found=str(error)[:200], advice="check the path"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _File:
    """What was read of a file, before a network was looked for in it."""

    kind: str
    content: object
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    names: frozenset[str] = frozenset()


def _read(path: Path) -> Checkpoint:
    file = _read_file(path)
    checkpoint = Checkpoint.from_object(file.content, path=path, size=_size_on_disk(path, file))
    return replace(
        checkpoint,
        metadata={**checkpoint.metadata, **file.metadata},
        refusals=tuple(_refusals(path, file, checkpoint)),
    )


def _read_file(path: Path) -> _File:
    with open_file(path, CheckpointError) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(HEAD_BYTES)
    if head[:4] == b"PK\x03\x04":
        return _of_torch(read_zip(path))
    if _looks_like_safetensors(head, size):
        tensors, header = _read_safetensors(path)
        return _File(kind="safetensors", content=tensors, metadata=_flatten_metadata(header))
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _of_torch(read_legacy(path))
    if path.suffix.lower() == ".json" and head.lstrip()[:1] == b"{":
        return _read_shards(path)
    raise _no_checkpoint(path, head)


def _no_checkpoint(path: Path, head: bytes) -> CheckpointError:
    kind = kind_of(head)
    advice = "download or copy the file again, and check that it is the model itself"
    if path.suffix.lower() == ".onnx":
        advice = "this takes checkpoints: `aethernet upscale`, `bench` and `verify` run ONNX files"
    return CheckpointError(
        "this is not a checkpoint file" if head else "the file is empty",
        expected="a PyTorch .pth/.ckpt/.pt or a .safetensors file",
        found=describe_head(head),
        advice=(kind and kind.advice) or advice,
    )


def _of_torch(content: TorchContent) -> _File:
    return _File(kind="torch", content=content.value, names=content.names)


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return length <= max(size, HEADER_LIMIT) and head[8:9] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    _check_header(path)
    try:
        # safetensors' own types come through untyped.
        with cast(Any, safetensors).safe_open(str(path), framework="pt", device="cpu") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not iterable
    except (
        safetensors.SafetensorError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
    ) as error:
        raise CheckpointError(
            "the safetensors file is damaged or cut short",
            found=_first_line(error),
            advice="download or copy the file again",
        ) from error
    return tensors, {key: _parse_json(text) for key, text in header.items()}


def _check_header(path: Path) -> None:
    """Refuse a header that the library would read, but in which a key occurs twice."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > HEADER_LIMIT:
            raise CheckpointError(
                "the safetensors header is larger than any network needs",
                expected=f"at most {HEADER_LIMIT} bytes",
                found=f"{length} bytes",
                advice="the file is forged or damaged: download or copy it again",
            )
        text = stream.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "the safetensors header is damaged",
            found=_first_line(error),
            advice="download or copy the file again",
        ) from error
    if len(header) > MOST_TENSORS:
        raise CheckpointError(
            "the file holds more tensors than any network",
            expected=f"at most {MOST_TENSORS}",
            found=str(len(header)),
            advice="the file is forged or holds something else",
        )


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
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


def _read_shards(index: Path) -> _File:
    """The files that an index such as `model.safetensors.index.json` names, as one."""
    text = read_file(index, most=HEADER_LIMIT, kind=CheckpointError)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct)
        names = sorted(set(content["weight_map"].values()))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "this is no index of a checkpoint in several files",
            expected='a JSON object with a "weight_map" from keys to file names',
            advice="name the checkpoint file, or its index",
        ) from error
    tensors: dict[object, object] = {}
    metadata: dict[str, object] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise CheckpointError(
                "the index names a file outside of its folder",
                found=f"{name!r:.100}",
                advice="do not trust this file",
            )
        shard = index.parent / name
        if shard.suffix.lower() == ".json":
            raise CheckpointError(
                "the index names another index", found=name, advice="download the index again"
            )
        try:
            file = _read_file(shard)
        except CheckpointError as error:
            raise error.in_file(shard) from error.__cause__
        if not isinstance(file.content, Mapping):
            raise CheckpointError(
                "this part holds no state dict", file=shard, advice="download all parts again"
            )
        part = cast(Mapping[object, object], file.content)
        if repeated := next((key for key in part if key in tensors), None):
            raise CheckpointError(
                "a key occurs in two parts",
                file=shard,
                key=str(repeated)[:100],
                advice="download all parts, and the index, again",
            )
        tensors.update(part)
        metadata.update(file.metadata)
    if missing := [key for key in content["weight_map"] if key not in tensors]:
        raise CheckpointError(
            "a tensor of the index is in none of the files",
            key=str(missing[0])[:100],
            advice="download all parts again",
        )
    return _File(kind="shards", content=tensors, metadata=metadata)


def _size_on_disk(path: Path, file: _File) -> int:
    if file.kind != "shards":
        return path.stat().st_size
    return sum(part.stat().st_size for part in path.parent.iterdir() if part.is_file())


def _check_size(tensors: Mapping[str, Tensor | Quantised], size: int) -> None:
    """Refuse tensors that share their numbers to seem larger than the file together."""
    stored = [t.integers if isinstance(t, Quantised) else t for t in tensors.values()]
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in stored)
    if claimed > SHARING_LIMIT * size + SHARING_ALLOWANCE:
        raise CheckpointError(
            "the tensors claim to be larger than the file",
            expected=f"at most {SHARING_LIMIT} times {size} bytes",
            found=f"{claimed} bytes",
            advice="the file is forged: do not trust it",
        )


def _refusals(path: Path, file: _File, checkpoint: Checkpoint) -> Iterator[str]:
    """Why spandrel's own loader, which ChaiNNer uses, does not read this file."""
    if path.suffix.lower() not in SPANDREL_SUFFIXES[file.kind]:
        kind = {"torch": "a PyTorch file", "shards": "a checkpoint in several files"}.get(
            file.kind, "a safetensors file"
        )
        yield f"this is {kind} under the name *{path.suffix}"
    foreign = sorted(n for n in file.names - SPANDREL_NAMES if not n.endswith("Storage"))
    if foreign:
        yield f"it names Python objects: {', '.join(foreign[:3])}"
    if checkpoint.int8_weights and not foreign:
        yield "its weights are quantised"


def _parse_json(text: str) -> object:
    """The value of a header entry: parsed where it is a JSON object or list, else the text."""
    if text[:1] in ("{", "["):
        try:
            return cast(object, json.loads(text))
        except (ValueError, RecursionError):
            return text
    return text


def _listing(value: object, limit: int = 6) -> str:
    if isinstance(value, Opaque):
        return f"an object {value.name}"
    if not isinstance(value, Mapping):
        return type(value).__name__
    entries = cast(Mapping[object, object], value)
    names = [f"{key!r}"[:60] for key in list(entries)[:limit]]
    more = len(entries) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "") if names else "nothing"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
