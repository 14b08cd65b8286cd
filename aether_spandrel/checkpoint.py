"""Checkpoint files: bytes in, state dict and metadata out, without executing anything.

The kind of a file is read from its first bytes; the name's ending is only a hint to people.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import safetensors
import torch
from torch import Tensor

from aether_spandrel.errors import CheckpointError

WRAPPERS: Final = (
    "params_ema",
    "params-ema",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "params",
    "state_dict",
    "model_state_dict",
    "net_g",
    "netG",
    "generator",
    "model",
    "net",
    "module",
)
"""Keys under which trainers nest a state dict, the preferred one first: averaged weights win."""

PREFIXES: Final = ("module.", "_orig_mod.", "netG.", "net_g.", "net.")
"""Prefixes that wrappers put before every key: DataParallel, torch.compile, GAN trainers."""

QAT_COMPONENTS: Final = ("weight_fake_quant", "activation_post_process")
"""Path components of fake-quant and observer entries (checkpoint revisions, section 5)."""

FLOAT_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

HEADER_LIMIT: Final = 64 * 2**20  # bytes; the largest AetherNet needs about 100 KiB
DEPTH_LIMIT: Final = 4  # wrappers within wrappers


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds, unwrapped.

    Attributes:
        state_dict: The network's tensors by key, wrapper prefixes stripped.
        qat_entries: Fake-quant and observer entries, kept apart from the network's tensors.
        metadata: Everything else the file says about the network.
        path: The file, where there is one.
        wrapper: The keys that led to the state dict, such as `params_ema`; empty if it was bare.
        alternatives: Wrapper keys beside the chosen one that hold a state dict too.
        prefix: What was stripped from the front of every key.
    """

    state_dict: Mapping[str, Tensor] = field(repr=False)
    qat_entries: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    path: Path | None = None
    wrapper: str = ""
    alternatives: tuple[str, ...] = ()
    prefix: str = ""

    @staticmethod
    def from_object(content: object, *, path: Path | None = None) -> Checkpoint:
        """Unwrap what a checkpoint file held: a bare state dict or any nest of wrappers.

        The argument is left unchanged.

        Raises:
            CheckpointError: It holds no state dict.
        """
        metadata: dict[str, object] = {}
        wrapper: list[str] = []
        alternatives: tuple[str, ...] = ()
        current = content
        for _ in range(DEPTH_LIMIT):
            entries = _string_keyed(current)
            if entries is None:
                raise CheckpointError(
                    "the file holds no state dict",
                    file=path,
                    expected="a dictionary of tensors, as torch.save(model.state_dict()) writes",
                    found=type(current).__name__,
                    advice="save the network's state dict, not the network object",
                )
            if any(isinstance(value, Tensor) for value in entries.values()) and not any(
                _holds_tensors(entries.get(key)) for key in WRAPPERS
            ):
                break
            nested = [key for key in WRAPPERS if _holds_tensors(entries.get(key))]
            if not nested:
                lone = [key for key, value in entries.items() if _holds_tensors(value)]
                if len(lone) != 1:
                    raise CheckpointError(
                        "the file holds no state dict that could be told from the rest",
                        file=path,
                        expected=f"tensors, or a state dict under one of {', '.join(WRAPPERS)}",
                        found=_listing(entries),
                        advice="save the network's state dict alone",
                    )
                nested = lone
            metadata.update(
                {k: v for k, v in entries.items() if k not in nested and not _holds_tensors(v)}
            )
            wrapper.append(nested[0])
            alternatives = tuple(nested[1:])
            current = entries[nested[0]]
        entries = _string_keyed(current) or {}
        tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
        if not tensors:
            raise CheckpointError(
                "the state dict holds no tensor", file=path, found=_listing(entries)
            )
        tensors, prefix = _strip_prefixes(tensors)
        qat = {key: value for key, value in tensors.items() if is_qat_key(key)}
        return Checkpoint(
            state_dict={key: value for key, value in tensors.items() if key not in qat},
            qat_entries=qat,
            metadata=_flatten_metadata(metadata),
            path=path,
            wrapper=".".join(wrapper),
            alternatives=alternatives,
            prefix=prefix,
        )


def is_qat_key(key: str) -> bool:
    """Whether a key belongs to fake quantisation or an observer, not to the float network."""
    return any(part in QAT_COMPONENTS for part in key.split("."))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth`, `.ckpt`, `.pt` or `.safetensors` file without executing anything in it.

    Tensors keep the dtype in which they are stored and are memory-mapped where the format allows.

    Raises:
        CheckpointError: The file cannot be opened, is none of these formats, is damaged, or
            holds no state dict.
    """
    path = Path(path)
    try:
        return _read(path)
    except CheckpointError as error:
        raise error.in_file(path) from error.__cause__
    except OSError as error:
        raise CheckpointError(
            f"the file cannot be read: {error.strerror or error}",
            file=path,
            advice="check the permissions and that the disk is well",
        ) from error


def _read(path: Path) -> Checkpoint:
    if not path.exists():
        raise CheckpointError("there is no such file", advice="check the path")
    if not path.is_file():
        raise CheckpointError("this is not a regular file", advice="name a checkpoint file")
    with path.open("rb") as file:
        head = file.read(16)
    size = path.stat().st_size
    if head[:4] == b"PK\x03\x04":
        return Checkpoint.from_object(_read_torch(path, zipped=True), path=path)
    if _looks_like_safetensors(head, size):
        tensors, header = _read_safetensors(path)
        checkpoint = Checkpoint.from_object(tensors, path=path)
        return replace(checkpoint, metadata=_flatten_metadata(header))
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        return Checkpoint.from_object(_read_torch(path, zipped=False), path=path)
    raise CheckpointError(
        "this is not a checkpoint file" if size else "the file is empty",
        expected="a PyTorch .pth/.ckpt/.pt or a .safetensors file",
        found=_guess_content(head),
        advice="download or copy the file again, and check that it is the model itself",
    )


def _read_torch(path: Path, *, zipped: bool) -> object:
    if zipped:
        _check_zip(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")  # torch's own, about storages we do not choose
            # Mapping needs the path, from whose ending torch would take it for safetensors.
            mapped = zipped and path.suffix.lower() != ".safetensors"
            return cast(
                object,
                torch.load(
                    path if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped
                ),
            )
    except (MemoryError, KeyboardInterrupt):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "the file asks for more than tensors, and is not executed",
            found=_refused_object(error),
            advice="if you trained it yourself, save its state dict alone; else do not trust it",
        ) from error
    except Exception as error:
        # torch raises RuntimeError, EOFError, KeyError, UnicodeDecodeError ... on damaged files.
        raise CheckpointError(
            "the file is damaged or is no PyTorch checkpoint",
            found=f"{type(error).__name__}: {_first_line(error)}",
            advice="download or copy the file again",
        ) from error


def _check_zip(path: Path) -> None:
    """Refuse archives that would unpack to more than they hold, before anything is allocated."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(
            "the file is damaged or cut short",
            found=_first_line(error),
            advice="download or copy the file again",
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > size
    ):
        raise CheckpointError(
            "the file is a compressed archive, not a checkpoint",
            expected="a file as torch.save writes it, which is never compressed",
            advice="if it is an archive with a model inside, unpack it first",
        )


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return length <= max(size, HEADER_LIMIT) and head[8:9] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        # safetensors' own types come through untyped.
        with cast(Any, safetensors).safe_open(str(path), framework="pt", device="cpu") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (
        safetensors.SafetensorError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        raise CheckpointError(
            "the safetensors file is damaged or cut short",
            found=_first_line(error),
            advice="download or copy the file again",
        ) from error
    return tensors, {key: _parse_json(text) for key, text in header.items()}


def _parse_json(text: str) -> object:
    """The value of a header entry: parsed where it is a JSON object or list, else the text."""
    if text[:1] in ("{", "["):
        try:
            return cast(object, json.loads(text))
        except (ValueError, RecursionError):
            return text
    return text


def _string_keyed(value: object) -> dict[str, object] | None:
    if not isinstance(value, Mapping):
        return None
    entries = cast(Mapping[object, object], value)
    return {key: entry for key, entry in entries.items() if isinstance(key, str)}


def _holds_tensors(value: object) -> bool:
    """Whether a value is a state dict, or a wrapper around one."""
    entries = _string_keyed(value)
    if not entries:
        return False
    if any(isinstance(entry, Tensor) for entry in entries.values()):
        return True
    return any(
        any(isinstance(tensor, Tensor) for tensor in (_string_keyed(entries[key]) or {}).values())
        for key in WRAPPERS
        if key in entries
    )


def _strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    stripped = ""
    while True:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            return tensors, stripped
        stripped += prefix
        tensors = {key[len(prefix) :]: value for key, value in tensors.items()}


def _flatten_metadata(metadata: Mapping[str, object]) -> dict[str, object]:
    """Entries of a nested `metadata` dictionary beside those of the outer level, which win."""
    inner = _string_keyed(metadata.get("metadata")) or {}
    return {**inner, **{key: value for key, value in metadata.items() if key != "metadata"}}


def _listing(entries: Mapping[str, object], limit: int = 6) -> str:
    names = [f"{key!r}"[:60] for key in list(entries)[:limit]]
    more = len(entries) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "") if names else "nothing"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _refused_object(error: pickle.UnpicklingError) -> str:
    """What the unpickler refused; its own text advises to switch the protection off."""
    blocked = re.search(r"(?:GLOBAL|global:?) (?:GLOBAL )?([\w.]+)", str(error))
    return f"the Python object {blocked[1]}" if blocked else "instructions that are no tensors"


def _guess_content(head: bytes) -> str:
    known = (
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"<", "a text or web page"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"7z\xbc\xaf", "a 7-Zip archive"),
        (b"Rar!", "a RAR archive"),
        (b"\x08", "perhaps an ONNX file"),
    )
    for start, name in known:
        if head.lstrip().startswith(start) or start.startswith(head[: len(start)] or b"?"):
            return name
    return f"bytes {head[:8].hex(' ')}" if head else "nothing"
