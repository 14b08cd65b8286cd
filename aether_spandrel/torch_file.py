"""PyTorch files, of the zip format and of the one before it, read without PyTorch's loader.

Nothing is allocated because a file asks for it, but only for bytes that are there.
"""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from torch import Tensor

from aether_spandrel.errors import CheckpointError, reason
from aether_spandrel.stored import BYTES_OF, FileBytes, Storage, as_numbers, damaged
from aether_spandrel.torch_pickle import STORAGE_TYPES, Global, Unpickled, read_pickle

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL: Final = 1001
LOCAL_HEADER: Final = struct.Struct("<4sHHHHHIIIHH")  # what precedes each entry of a zip archive
ENCRYPTED: Final = 0x1 | 0x20 | 0x40  # flags of zip entries that are no plain data
SIZES_FOLLOW: Final = 0x8  # flag of entries whose header does not know their sizes
UTF_8: Final = 0x800  # flag of entries whose name is in UTF-8
SIZE_ELSEWHERE: Final = 0xFFFFFFFF  # of entries that are larger than a header can say
MOST_ENTRIES: Final = 100_000  # storages of one file
LONGEST_PICKLE: Final = 512 * 2**20  # bytes
USUAL_PICKLE: Final = 16 * 2**20  # bytes; in files that do not say where theirs ends


@dataclass(kw_only=True)
class Flaws:
    """What contradicts itself in a file; grows while tensors are read.

    Attributes:
        altered: Parts whose bytes are not those that were written.
        contradicting: Parts that are described twice, differently.
    """

    altered: list[str] = field(default_factory=list[str])
    contradicting: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class TorchContent:
    """What a PyTorch file holds.

    Attributes:
        value: Dictionaries, lists, numbers, text and `Unread` tensors.
        names: The Python objects that the file names.
    """

    value: object
    names: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Where the bytes of one entry of an archive are, and what their checksum should be."""

    name: str
    start: int
    size: int
    crc: int
    file: FileBytes = field(repr=False)
    flaws: Flaws = field(repr=False)

    def read(self) -> bytearray:
        """The bytes; a checksum that differs is noted."""
        content = self.file.read(self.start, self.size)
        # torch.serialization.set_crc32_options(False) leaves zeros.
        if self.crc and zlib.crc32(content) != self.crc:
            self.flaws.altered.append(self.name)
        return content


def read_zip(file: FileBytes, flaws: Flaws) -> TorchContent:
    """What a file of `torch.save` holds, as data; what contradicts itself is added to `flaws`.

    Raises:
        CheckpointError: The archive is damaged, forged, compressed or holds no pickle.
    """
    entries = _entries(file, flaws)
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
    if order is not None and order.size < 16 and bytes(order.read()) == b"big":
        raise CheckpointError(
            "the file was written on a machine of the other byte order",
            advice="save it again on an ordinary (little-endian) machine",
        )
    if entries[pickles[0]].size > LONGEST_PICKLE:
        raise damaged(f"a description of {entries[pickles[0]].size} bytes")
    description = memoryview(entries[pickles[0]].read())
    numbers: dict[str, tuple[str, Callable[[], Tensor]]] = {}

    def storage(identity: tuple[object, ...]) -> Storage:
        kind, key, count = _identity(identity)
        stored = entries.get(f"{folder}data/{key}")
        if stored is None:
            raise damaged(f"a tensor whose numbers data/{key[:60]} are missing")
        size = count * BYTES_OF[kind]
        if size > stored.size:
            raise CheckpointError(
                "a tensor is larger than the numbers that are stored for it",
                expected=f"{size} bytes in data/{key[:60]}",
                found=f"{stored.size} bytes",
                advice="the file is damaged or forged: download or copy it again",
            )
        # Read once for each entry: a file could name it any number of times.
        if key not in numbers:
            numbers[key] = kind, _once(stored.read, kind)
        if numbers[key][0] != kind:
            raise damaged(f"numbers data/{key[:60]} of two types")
        return Storage(kind=kind, count=count, read=numbers[key][1])

    found = read_pickle(description, storage)
    return TorchContent(value=found.value, names=found.names)


def _once(read: Callable[[], bytearray], kind: str) -> Callable[[], Tensor]:
    """Reads numbers when it is called first."""

    @functools.cache
    def numbers() -> Tensor:
        content = read()
        del content[len(content) // BYTES_OF[kind] * BYTES_OF[kind] :]
        return as_numbers(content, kind)

    return numbers


def _entries(file: FileBytes, flaws: Flaws) -> dict[str, _Entry]:
    """Where each entry of the archive is, by name."""
    try:
        with zipfile.ZipFile(file.stream) as archive:
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
            found=reason(error),
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
    if len(listed) > MOST_ENTRIES or sum(entry.file_size for entry in listed) > file.size:
        raise damaged("an archive whose entries are larger than the file")
    entries: dict[str, _Entry] = {}
    for entry in listed:
        if entry.filename in entries:
            raise damaged(f"two entries of the name {entry.filename[:60]!r}")
        entries[entry.filename] = _entry(entry, file, flaws)
    return entries


def _entry(entry: zipfile.ZipInfo, file: FileBytes, flaws: Flaws) -> _Entry:
    start = entry.header_offset
    if not 0 <= start <= file.size - LOCAL_HEADER.size:
        raise damaged(f"an entry {entry.filename[:60]!r} outside of the file")
    header = LOCAL_HEADER.unpack(file.read(start, LOCAL_HEADER.size))
    name_length, extra_length = header[9], header[10]
    start += LOCAL_HEADER.size + name_length + extra_length
    if header[0] != b"PK\x03\x04" or start + entry.file_size > file.size:
        raise damaged(f"an entry {entry.filename[:60]!r} that is not where the archive says")
    name = bytes(file.read(start - name_length - extra_length, name_length))
    if _contradicts(entry, header, name):
        flaws.contradicting.append(entry.filename)
    return _Entry(
        name=entry.filename,
        start=start,
        size=entry.file_size,
        crc=entry.CRC,
        file=file,
        flaws=flaws,
    )


def _contradicts(entry: zipfile.ZipInfo, header: tuple[object, ...], name: bytes) -> bool:
    """Whether the header before an entry describes another one than the archive's directory."""
    flags, method, crc, packed, size = cast(
        "tuple[int, int, int, int, int]", (header[2], header[3], *header[6:9])
    )
    encoding = "utf-8" if flags & UTF_8 else "cp437"
    if name.decode(encoding, "replace") != entry.orig_filename or method != entry.compress_type:
        return True
    if flags & SIZES_FOLLOW and not (crc or packed or size):
        return False
    sizes = {packed, size} - {SIZE_ELSEWHERE}
    return crc != entry.CRC or bool(sizes - {entry.file_size})


def _identity(identity: tuple[object, ...]) -> tuple[str, str, int]:
    """Type, key and number of elements of a storage, from its persistent id."""
    if len(identity) < 5 or identity[0] != "storage" or not isinstance(identity[1], Global):
        raise damaged("a storage without type, key and size")
    kind = STORAGE_TYPES.get(identity[1].name.rpartition(".")[2])
    key, count = identity[2], identity[4]
    if kind is None or not isinstance(key, str) or type(count) is not int or count < 0:
        raise damaged(f"a storage of type {identity[1]} without a key or a size")
    return kind, key, count


def read_legacy(file: FileBytes) -> TorchContent:
    """What a file of `torch.save` before PyTorch 1.6 holds, as data.

    Four pickles (magic number, protocol, system, object), the list of storage keys, then for
    each key its number of elements and the numbers.

    Raises:
        CheckpointError: The file is damaged or forged.
    """
    # The numbers come after the tensors that refer to them: sizes first, places second.
    sizes: dict[str, tuple[str, int]] = {}
    places: dict[str, int] = {}

    def storage(identity: tuple[object, ...]) -> Storage:
        kind, key, count = _identity(identity)
        if count * BYTES_OF[kind] > file.size:
            raise damaged(f"a storage of {count} elements in a file of {file.size} bytes")
        if sizes.setdefault(key, (kind, count)) != (kind, count):
            raise damaged(f"two sizes for the storage {key[:60]!r}")

        def read() -> bytearray:
            if key not in places:
                raise damaged(f"a tensor whose numbers {key[:60]!r} are missing")
            return file.read(places[key], count * BYTES_OF[kind])

        if key not in storages:
            storages[key] = Storage(kind=kind, count=count, read=_once(read, kind))
        return storages[key]

    storages: dict[str, Storage] = {}
    found, keys = _legacy_pickles(file, storage)
    position = keys.end
    for key in cast(list[object], keys.value) if isinstance(keys.value, list) else []:
        if not isinstance(key, str) or key not in sizes:
            raise damaged("numbers of a tensor that the checkpoint does not have")
        kind, count = sizes[key]
        end = position + 8 + count * BYTES_OF[kind]
        if end > file.size or int.from_bytes(file.read(position, 8), "little") != count:
            raise damaged(f"numbers of the storage {key[:60]!r} that end too early")
        places[key] = position + 8
        position = end
    return TorchContent(value=found.value, names=found.names)


def _legacy_pickles(
    file: FileBytes, storage: Callable[[tuple[object, ...]], Storage]
) -> tuple[Unpickled, Unpickled]:
    """The object and the list of storage keys, from the pickles at the beginning of the file."""
    for most in (USUAL_PICKLE, LONGEST_PICKLE):
        raw = memoryview(file.read(0, min(most, file.size)))
        try:
            found = read_pickle(raw, storage, start=_legacy_start(raw))
            return found, read_pickle(raw, _no_storage, start=found.end)
        except CheckpointError:
            # Perhaps it is the part that ends, and not the file.
            if most >= min(LONGEST_PICKLE, file.size):
                raise
    raise AssertionError("the longest part is the last")


def _no_storage(_identity: tuple[object, ...]) -> Storage:
    raise damaged("a tensor where the file holds none")


def _legacy_start(raw: memoryview) -> int:
    """Where the object begins, after magic number, protocol and system."""
    position = 0
    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL, None):
        head = read_pickle(raw, _no_storage, start=position)
        position = head.end
        if expected is not None and (type(head.value) is not int or head.value != expected):
            raise CheckpointError(
                "the file is a pickle, but no PyTorch checkpoint",
                advice="save the network with torch.save(model.state_dict(), ...)",
            )
    return position
