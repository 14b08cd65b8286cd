"""PyTorch files, of the zip format and of the one before it, read without PyTorch's loader.

The file is mapped into memory; tensors are views of it, so nothing is copied and nothing is
allocated because a file asks for it.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor

from aether_spandrel.errors import CheckpointError
from aether_spandrel.torch_pickle import DTYPES, Global, Storage, damaged, read_pickle

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL: Final = 1001
LOCAL_HEADER: Final = struct.Struct("<4sHHHHHIIIHH")  # what precedes each entry of a zip archive
ENCRYPTED: Final = 0x1 | 0x20 | 0x40  # flags of zip entries that are no plain data
MOST_ENTRIES: Final = 100_000  # storages of one file
LONGEST_PICKLE: Final = 64 * 2**20  # bytes


@dataclass(frozen=True)
class MappedFile:
    """A part of a file that is mapped into memory."""

    raw: memoryview

    @staticmethod
    def open(path: Path) -> MappedFile:
        """Map a whole file, of which nothing is read before it is used."""
        with path.open("rb") as file:
            # Copy-on-write: torch wants memory that it may write to, the file stays as it is.
            return MappedFile(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)))

    def __len__(self) -> int:
        """Size in bytes."""
        return len(self.raw)

    def part(self, start: int, end: int) -> MappedFile:
        """The bytes from `start` up to `end`."""
        return MappedFile(self.raw[start:end])

    def as_numbers(self, dtype: torch.dtype) -> Tensor:
        """The bytes as a flat tensor, without copying where they lie as the processor needs them.

        Each has a storage of its own: programs that save tensors refuse those that share one.
        """
        if not len(self):
            return torch.empty(0, dtype=dtype)
        numbers = torch.frombuffer(self.raw, dtype=torch.uint8)
        if numbers.data_ptr() % dtype.itemsize:
            return numbers.clone().view(dtype)
        return torch.frombuffer(self.raw, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class TorchContent:
    """What a PyTorch file holds.

    Attributes:
        value: Dictionaries, lists, numbers, text and tensors.
        names: The Python objects that the file names.
    """

    value: object
    names: frozenset[str]


def read_zip(path: Path) -> TorchContent:
    """What a file of `torch.save` holds, as data.

    Raises:
        CheckpointError: The archive is damaged, forged, compressed or holds no pickle.
    """
    content = MappedFile.open(path)
    entries = _entries(path, content)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            "the archive holds no PyTorch checkpoint",
            expected="one entry data.pkl",
            found=", ".join(repr(name)[:60] for name in list(entries)[:5]) or "an empty archive",
            advice="if a model is inside the archive, unpack it first",
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise CheckpointError(
            "the file is a TorchScript program, which is not executed",
            expected="a checkpoint as torch.save(model.state_dict()) writes it",
            advice="use the checkpoint that the program was made from",
        )
    order = entries.get(f"{folder}byteorder")
    if order is not None and bytes(order.raw[:16]) == b"big":
        raise CheckpointError(
            "the file was written on a machine of the other byte order",
            advice="save it again on an ordinary (little-endian) machine",
        )
    storages: dict[str, Tensor] = {}
    description = entries[pickles[0]].raw
    if len(description) > LONGEST_PICKLE:
        raise damaged(f"a description of {len(description)} bytes")

    def storage(identity: tuple[object, ...]) -> Storage:
        dtype, key, count = _identity(identity)
        size = count * dtype.itemsize
        stored = entries.get(f"{folder}data/{key}")
        if stored is None:
            raise damaged(f"a tensor whose numbers data/{key[:60]} are missing")
        if size > len(stored):
            raise CheckpointError(
                "a tensor is larger than the numbers that are stored for it",
                expected=f"{size} bytes in data/{key[:60]}",
                found=f"{len(stored)} bytes",
                advice="the file is damaged or forged: download or copy it again",
            )
        # Once for each storage: where it has to be copied, a file could ask for any number.
        if key not in storages:
            storages[key] = stored.part(
                0, len(stored) // dtype.itemsize * dtype.itemsize
            ).as_numbers(dtype)
        if storages[key].dtype != dtype:
            raise damaged(f"numbers data/{key[:60]} of two types")
        return Storage(storages[key][:count])

    found = read_pickle(description, storage)
    return TorchContent(value=found.value, names=found.names)


def _entries(path: Path, content: MappedFile) -> dict[str, MappedFile]:
    """The bytes of each entry of the archive, by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (
        zipfile.BadZipFile,
        ValueError,  # of names that are no text, too
        NotImplementedError,
        OverflowError,
        struct.error,
        EOFError,
    ) as error:
        raise CheckpointError(
            "the file is damaged or cut short",
            found=str(error)[:200],
            advice="download or copy the file again",
        ) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in listed):
        raise CheckpointError(
            "the file is a compressed archive, not a checkpoint",
            expected="a file as torch.save writes it, which is never compressed",
            advice="if it is an archive with a model inside, unpack it first",
        )
    if any(entry.flag_bits & ENCRYPTED for entry in listed):
        raise CheckpointError(
            "the file is an encrypted archive",
            advice="if it is an archive with a model inside, unpack it first",
        )
    if len(listed) > MOST_ENTRIES or sum(entry.file_size for entry in listed) > len(content):
        raise damaged("an archive whose entries are larger than the file")
    entries: dict[str, MappedFile] = {}
    for entry in listed:
        if entry.filename in entries:
            raise damaged(f"two entries of the name {entry.filename[:60]!r}")
        entries[entry.filename] = _entry(entry, content)
    return entries


def _entry(entry: zipfile.ZipInfo, content: MappedFile) -> MappedFile:
    start = entry.header_offset
    if not 0 <= start <= len(content) - LOCAL_HEADER.size:
        raise damaged(f"an entry {entry.filename[:60]!r} outside of the file")
    header = LOCAL_HEADER.unpack(content.raw[start : start + LOCAL_HEADER.size])
    signature, name_length, extra_length = header[0], header[9], header[10]
    start += LOCAL_HEADER.size + name_length + extra_length
    if signature != b"PK\x03\x04" or start + entry.file_size > len(content):
        raise damaged(f"an entry {entry.filename[:60]!r} that is not where the archive says")
    return content.part(start, start + entry.file_size)


def _identity(identity: tuple[object, ...]) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of a storage, from its persistent id."""
    if len(identity) < 5 or identity[0] != "storage" or not isinstance(identity[1], Global):
        raise damaged("a storage without type, key and size")
    dtype = DTYPES.get(identity[1].name.rpartition(".")[2])
    key, count = identity[2], identity[4]
    if dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
        raise damaged(f"a storage of type {identity[1]} without a key or a size")
    return dtype, key, count


def read_legacy(path: Path) -> TorchContent:
    """What a file of `torch.save` before PyTorch 1.6 holds, as data.

    Four pickles (magic number, protocol, system, object), the list of storage keys, then for
    each key its number of elements and the numbers.

    Raises:
        CheckpointError: The file is damaged or forged.
    """
    content = MappedFile.open(path)
    raw = content.raw
    position = 0

    def nothing(_identity: tuple[object, ...]) -> Storage:
        raise damaged("a tensor before the checkpoint begins")

    head: list[object] = []
    for _ in range(3):
        found = read_pickle(raw, nothing, start=position)
        head.append(found.value)
        position = found.end
        if head != [LEGACY_MAGIC, LEGACY_PROTOCOL][: len(head)] and len(head) < 3:
            raise CheckpointError(
                "the file is a pickle, but no PyTorch checkpoint",
                advice="save the network with torch.save(model.state_dict(), ...)",
            )
    # The numbers come after the tensors that refer to them: sizes first, contents second.
    sizes: dict[str, tuple[torch.dtype, int]] = {}

    def measure(identity: tuple[object, ...]) -> Storage:
        dtype, key, count = _identity(identity)
        if count * dtype.itemsize > len(raw):
            raise damaged(f"a storage of {count} elements in a file of {len(raw)} bytes")
        if sizes.setdefault(key, (dtype, count)) != (dtype, count):
            raise damaged(f"two sizes for the storage {key[:60]!r}")
        # A meta tensor has a size and no memory.
        return Storage(torch.empty(count, dtype=dtype, device="meta"))

    start = position
    position = read_pickle(raw, measure, start=start).end
    keys = read_pickle(raw, nothing, start=position)
    position = keys.end
    storages: dict[str, Tensor] = {}
    for key in cast(list[object], keys.value) if isinstance(keys.value, list) else []:
        if not isinstance(key, str) or key not in sizes:
            raise damaged("numbers of a tensor that the checkpoint does not have")
        dtype, count = sizes[key]
        end = position + 8 + count * dtype.itemsize
        if end > len(raw) or int.from_bytes(raw[position : position + 8], "little") != count:
            raise damaged(f"numbers of the storage {key[:60]!r} that end too early")
        storages[key] = content.part(position + 8, end).as_numbers(dtype)
        position = end

    def storage(identity: tuple[object, ...]) -> Storage:
        _, key, _ = _identity(identity)
        if key not in storages:
            raise damaged(f"a tensor whose numbers {key[:60]!r} are missing")
        return Storage(storages[key])

    found = read_pickle(raw, storage, start=start)
    return TorchContent(value=found.value, names=found.names)
