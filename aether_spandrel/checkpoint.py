"""Checkpoint files: bytes in, state dict and metadata out, without executing anything.

The kind of a file is read from its first bytes; the name's ending is only a hint to people. The
network is found by keys that every AetherNet has and nothing else, wherever a trainer put it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor

from aether_spandrel.errors import CheckpointError, reason
from aether_spandrel.file_kinds import HEAD_BYTES, describe_head, kind_of
from aether_spandrel.opening import open_file, read_file
from aether_spandrel.revisions import ANCHORS, MODULES
from aether_spandrel.safetensors_file import (
    HEADER_LIMIT,
    distinct,
    looks_like_safetensors,
    read_safetensors,
)
from aether_spandrel.stored import FileBytes, Quantised, Unread
from aether_spandrel.torch_file import Flaws, TorchContent, read_legacy, read_zip
from aether_spandrel.torch_pickle import Opaque

FLOAT_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

MOST_NETWORKS: Final = 16  # that are told apart in one dictionary
DEPTH_LIMIT: Final = 6  # wrappers within wrappers
NODE_LIMIT: Final = 10_000  # dictionaries that are looked into
LONGEST_NAME: Final = 1000  # characters of a tensor's key, and of an entry's name
METADATA_LIMIT: Final = 10**6  # characters, each text counted as often as it is referred to
VALUE_COST: Final = 100  # characters that every value counts beside its text
NAMED_ALTERNATIVES: Final = 5
MOST_SHARDS: Final = 128  # files of one checkpoint, which are open at the same time
SHARING_LIMIT: Final = 2  # how often a file's size its tensors may take together
SHARING_ALLOWANCE: Final = 2**20  # bytes
LARGEST_AETHERNET: Final = 2**30  # bytes; the largest that was published takes 0.2
LARGEST_NETWORK: Final = 2**32  # of any architecture
SMALL: Final = 2**24  # bytes of a tensor that is read whatever it is called

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
        altered: Parts of the file whose bytes differ from their checksum.
        contradicting: Parts that the file describes twice, differently.
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
    altered: tuple[str, ...] = ()
    contradicting: tuple[str, ...] = ()

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
        others = self.alternatives[:NAMED_ALTERNATIVES]
        more = len(self.alternatives) - len(others)
        return (
            f"the file holds several networks: {name or 'the outermost'} was taken, "
            f"{', '.join(others)}{f' and {more} more' if more else ''} left aside"
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
        read = _read_numbers(tensors, ours=chosen.ours)
        int8_weights = {k: t for k, t in read.items() if isinstance(t, Quantised)}
        numbers = {
            key: tensor.dequantised() if isinstance(tensor, Quantised) else tensor
            for key, tensor in read.items()
        }
        return Checkpoint(
            state_dict={k: t for k, t in numbers.items() if not QUANTISATION.search(k)},
            qat_entries={k: t for k, t in numbers.items() if QUANTISATION.search(k)},
            int8_weights=int8_weights,
            metadata=_flatten_metadata(_metadata_along(content, chosen.keys)),
            path=path,
            wrapper=_joined(chosen.keys),
            alternatives=tuple(place.name for place in others[:NODE_LIMIT]),
            prefix=chosen.prefix,
        )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where in a file a network was found."""

    keys: tuple[str, ...]
    prefix: str
    entries: Mapping[str, object]
    ours: bool = True

    @property
    def name(self) -> str:
        """Wrapper keys and prefix, as a user would write them."""
        return _joined([*self.keys, *([self.prefix.rstrip(".")] if self.prefix else [])])

    @property
    def averaged(self) -> bool:
        """Whether these are averaged weights."""
        parts = (*self.keys, self.prefix)
        return any(AVERAGED.search(part[:LONGEST_NAME]) for part in parts)


def _joined(keys: Iterable[str]) -> str:
    """Wrapper keys in one, each of a length that can be shown."""
    return ".".join(key if len(key) < LONGEST_NAME else f"{key[:60]}..." for key in keys)


def _find_networks(content: object) -> list[_Place]:
    """Every AetherNet in a nest of dictionaries, the preferred one first."""
    places: list[_Place] = []
    for keys, entries in _dictionaries(content):
        plain = {_plain_key(key): key for key in entries if isinstance(key, str)}
        prefixes = {
            key[: key.index(anchor)] for key in plain for anchor in ANCHORS if anchor in key
        }
        if not prefixes:
            continue
        nearest = _longest_prefixes(plain, prefixes)
        found: dict[str, dict[str, object]] = {
            prefix: {}
            for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix))[:MOST_NETWORKS]
        }
        for key, original in plain.items():
            prefix = nearest.get(key)
            if prefix is not None and prefix in found:
                found[prefix][key[len(prefix) :]] = entries[original]
        places += [_Place(keys=keys, prefix=p, entries=inner) for p, inner in found.items()]
    return sorted(places, key=lambda place: not place.averaged)


def _longest_prefixes(keys: Iterable[str], prefixes: Iterable[str]) -> dict[str, str]:
    """The longest of the prefixes that each key has; keys without any are left out.

    >>> _longest_prefixes(["a.b.c", "a.x", "y"], ["a.", "a.b."])
    {'a.b.c': 'a.b.', 'a.x': 'a.'}
    """
    found: dict[str, str] = {}
    begun: list[str] = []  # each begins with the one before it
    # In the order of the alphabet what begins with a prefix follows it at once.
    for text, is_key in sorted([*((p, False) for p in prefixes), *((k, True) for k in keys)]):
        while begun and not text.startswith(begun[-1]):
            begun.pop()
        if not is_key:
            begun.append(text)
        elif begun:
            found[text] = begun[-1]
    return found


def _plain_key(key: str) -> str:
    """A key without what wrapping modules put into it; one that is longer than any, cut."""
    if len(key) > LONGEST_NAME:
        key = f"{key[:LONGEST_NAME]}..."  # which is the key of no tensor
    for name in WRAPPED_MODULES:
        key = key.replace(name, "")
    return key


def _any_tensors(content: object) -> list[_Place]:
    places = [
        _Place(keys=keys, prefix="", entries={str(k): v for k, v in entries.items()}, ours=False)
        for keys, entries in islice(_with_tensors(content), MOST_NETWORKS)
    ]
    return sorted(places, key=lambda place: not place.averaged)[:1]


def _with_tensors(content: object) -> Iterator[tuple[tuple[str, ...], Mapping[object, object]]]:
    return (
        (keys, entries)
        for keys, entries in _dictionaries(content)
        if any(isinstance(value, (Tensor, Unread)) for value in entries.values())
    )


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


def _tensors(entries: Mapping[str, object]) -> dict[str, Tensor | Quantised | Unread]:
    """The tensors of a state dict, those of packed layers under `weight` and `bias`.

    Other values have no part in a network: absent biases of converted layers (None), the dtype
    of packed ones, numbers that a trainer left.
    """
    found: dict[str, Tensor | Quantised | Unread] = {}
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


def _as_tensor(value: object) -> Tensor | Quantised | Unread | None:
    if not isinstance(value, Tensor):
        return value if isinstance(value, (Quantised, Unread)) else None
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
    left = METADATA_LIMIT
    for key in keys:
        level = cast(Mapping[object, object], current)
        for name, value in level.items():
            if isinstance(name, str) and name != key and len(name) < LONGEST_NAME:
                plain, cost = _is_plain(value, left)
                left -= cost
                if plain:
                    metadata[name] = value
        current = level[key]
    return metadata


def _is_plain(value: object, most: int) -> tuple[bool, int]:
    """Whether a value consists of plain ones of at most so many characters, and what it costs.

    Lists within lists can refer to the same one, or to one text, again and again: each counts.
    """
    waiting: list[tuple[object, int]] = [(value, 0)]
    characters = 0
    for looked_at, (item, depth) in enumerate(waiting):  # grows while it is read
        inner: list[object] = []
        count = 0
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, Mapping):
            count = 2 * len(cast(Mapping[object, object], item))
        elif isinstance(item, (list, tuple)):
            count = len(cast("list[object]", item))
        elif item is not None and not isinstance(item, (int, float, bool)):
            return False, VALUE_COST * (looked_at + 1)
        if VALUE_COST * (len(waiting) + count) + characters > most or depth > DEPTH_LIMIT:
            return False, min(most, VALUE_COST * (looked_at + 1) + characters)
        if isinstance(item, Mapping):
            entries = cast(Mapping[object, object], item)
            inner = [*entries.keys(), *entries.values()]
        elif count:
            inner = list(cast("list[object]", item))
        waiting.extend((entry, depth + 1) for entry in inner)
    return True, VALUE_COST * len(waiting) + characters


def _flatten_metadata(metadata: Mapping[str, object]) -> dict[str, object]:
    """Entries of a nested `metadata` dictionary beside those of the outer level, which win."""
    nested = _as_dictionary(metadata.get("metadata")) or {}
    return {
        **{key: value for key, value in nested.items() if isinstance(key, str)},
        **{key: value for key, value in metadata.items() if key != "metadata"},
    }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth`, `.ckpt`, `.pt`, `.safetensors` or `.index.json` file, executing nothing.

    Of the numbers in it the network's are read, in the dtype in which they are stored; an optimizer
    beside them is not.

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
            "the file cannot be read", file=path, found=reason(error), advice="check the path"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _File:
    """What was read of a file, before a network was looked for in it."""

    kind: str
    content: object
    size: int
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    names: frozenset[str] = frozenset()


def _read(path: Path) -> Checkpoint:
    with ExitStack() as opened:
        flaws = Flaws()
        file = _read_file(path, opened, flaws)
        checkpoint = Checkpoint.from_object(file.content, path=path, size=file.size)
    return replace(
        checkpoint,
        metadata={**checkpoint.metadata, **file.metadata},
        refusals=tuple(_refusals(path, file, checkpoint)),
        altered=tuple(flaws.altered),
        contradicting=tuple(flaws.contradicting),
    )


def _read_file(path: Path, opened: ExitStack, flaws: Flaws) -> _File:
    """What a file holds, which stays open as long as `opened`: tensors are still to be read."""
    stream = opened.enter_context(open_file(path, CheckpointError))
    file = FileBytes(stream=stream, size=os.fstat(stream.fileno()).st_size)
    head = bytes(file.read(0, min(HEAD_BYTES, file.size)))
    if head[:4] == b"PK\x03\x04":
        return _of_torch(read_zip(file, flaws), file)
    if looks_like_safetensors(head, file.size):
        content = read_safetensors(file)
        header = {key: _parse_json(text) for key, text in content.metadata.items()}
        return _File(
            kind="safetensors",
            content=content.tensors,
            size=file.size,
            metadata=_flatten_metadata(header),
        )
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _of_torch(read_legacy(file), file)
    if path.suffix.lower() == ".json" and head.lstrip()[:1] == b"{":
        return _read_shards(path, opened, flaws)
    raise _no_checkpoint(path, head)


def _of_torch(content: TorchContent, file: FileBytes) -> _File:
    return _File(kind="torch", content=content.value, size=file.size, names=content.names)


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


def _read_shards(index: Path, opened: ExitStack, flaws: Flaws) -> _File:
    """The files that an index such as `model.safetensors.index.json` names, as one."""
    text = read_file(index, most=HEADER_LIMIT, kind=CheckpointError)
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=distinct)
        names = sorted(set(content["weight_map"].values()))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "this is no index of a checkpoint in several files",
            expected='a JSON object with a "weight_map" from keys to file names',
            advice="name the checkpoint file, or its index",
        ) from error
    if len(names) > MOST_SHARDS:
        raise CheckpointError(
            "the index names more files than any network has",
            expected=f"at most {MOST_SHARDS}",
            found=str(len(names)),
            advice="name the checkpoint file instead",
        )
    tensors: dict[object, object] = {}
    metadata: dict[str, object] = {}
    size = 0
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
            file = _read_file(shard, opened, flaws)
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
        size += file.size
    if missing := [key for key in content["weight_map"] if key not in tensors]:
        raise CheckpointError(
            "a tensor of the index is in none of the files",
            key=str(missing[0])[:100],
            advice="download all parts again",
        )
    return _File(kind="shards", content=tensors, size=size, metadata=metadata)


def _check_size(tensors: Mapping[str, Tensor | Quantised | Unread], size: int) -> None:
    """Refuse tensors that share their numbers to seem larger than the file together."""
    claimed = sum(tensor.nbytes for tensor in tensors.values())
    if claimed > SHARING_LIMIT * size + SHARING_ALLOWANCE:
        raise CheckpointError(
            "the tensors claim to be larger than the file",
            expected=f"at most {SHARING_LIMIT} times {size} bytes",
            found=f"{claimed} bytes",
            advice="the file is forged: do not trust it",
        )


def is_beside(key: str, tensor: Tensor | Quantised | Unread) -> bool:
    """Whether a tensor is too large for what an AetherNet has beside its modules."""
    return tensor.nbytes > SMALL and not MODULES.match(key)


def _read_numbers(
    tensors: Mapping[str, Tensor | Quantised | Unread], *, ours: bool
) -> dict[str, Tensor | Quantised]:
    """The tensors, those that are large and in no module of an AetherNet without their numbers.

    Raises:
        CheckpointError: The others are larger than any network, or the file was cut meanwhile.
    """
    beside = {key for key, tensor in tensors.items() if ours and is_beside(key, tensor)}
    size = sum(tensor.nbytes for key, tensor in tensors.items() if key not in beside)
    most = LARGEST_AETHERNET if ours else LARGEST_NETWORK
    if size > most:
        raise CheckpointError(
            "the tensors are larger than those of any network",
            expected=f"at most {most} bytes",
            found=f"{size} bytes",
            advice="the file is forged or damaged: do not trust it",
        )
    return {
        key: tensor
        if not isinstance(tensor, Unread)
        else tensor.described()
        if key in beside
        else tensor.read()
        for key, tensor in tensors.items()
    }


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
    names = [repr(key[:60] if isinstance(key, str) else key)[:60] for key in list(entries)[:limit]]
    more = len(entries) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "") if names else "nothing"
