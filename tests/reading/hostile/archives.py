"""Files cut short, and archives whose parts contradict each other."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch

from tests.reading.hostile.kinds import (
    REFUSED,
    SAME,
    Group,
    of,
)
from tests.support.hostile_files import (
    LOCAL,
    Entry,
    archive,
    network,
    program,
    safetensors_file,
    tensors,
    torch_entries,
    torch_zip,
)

CUTS: Final = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.999)


def cut(content: Callable[[], bytes], where: Callable[[bytes], int]) -> Callable[[], bytes]:
    def shortened() -> bytes:
        whole = content()
        return whole[: where(whole)]

    return shortened


def saved(*, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(network(), stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def truncation() -> Group:
    kinds: dict[str, Callable[[], bytes]] = {
        "zip of torch": lambda: saved(zipped=True),
        "legacy of torch": lambda: saved(zipped=False),
        "safetensors": lambda: safetensors_file(tensors()),
    }
    for kind, content in kinds.items():
        suffix = ".safetensors" if kind == "safetensors" else ".pth"
        for share in CUTS:
            at = cut(content, lambda whole, share=share: int(len(whole) * share))
            yield f"{kind} cut at {share:.1%}", of(at, suffix=suffix)
        for length in (2, 4, 7, 8, 9, 12, 16, 30):
            at = cut(content, lambda _, length=length: length)
            yield f"{kind} cut after {length} bytes", of(at, suffix=suffix)
        last = cut(content, lambda whole: len(whole) - 1)
        yield f"{kind} without its last byte", of(last, suffix=suffix)
    for share in (0.0, 0.3, 0.7, 1.0):

        def within(whole: bytes, share: float = share) -> int:
            start, end = whole.index(b"PK\x01\x02"), whole.rindex(b"PK\x05\x06")
            return int(start + share * (end - start))

        at = cut(lambda: torch_zip(network()), within)
        yield f"zip cut at {share:.0%} of its directory", of(at)
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):

        def less_pickle(share: float = share) -> bytes:
            first, *others = torch_entries(network())
            return archive(replace(first, data=first.data[: int(len(first.data) * share)]), *others)

        yield f"zip whose pickle ends at {share:.0%}", of(less_pickle)

    def less_storage(length: int) -> bytes:
        return archive(
            *(
                replace(entry, data=entry.data[:length]) if b"/data/3" in entry.name else entry
                for entry in torch_entries(network())
            )
        )

    yield "zip with an empty storage", of(lambda: less_storage(0))
    yield "zip with a storage that lacks a byte", of(lambda: less_storage(-1))


def good_archive(change: Callable[[Entry], Entry] = lambda entry: entry, **more: Any) -> bytes:
    return archive(*(change(entry) for entry in torch_entries(network())), **more)


def only(part: bytes, **changes: Any) -> Callable[[Entry], Entry]:
    """Change the entries whose name contains `part`."""
    return lambda entry: replace(entry, **changes) if part in entry.name else entry


def with_entries(*more: Entry) -> bytes:
    return archive(*torch_entries(network()), *more)


def renamed(folder: bytes) -> bytes:
    return good_archive(
        lambda entry: replace(entry, name=entry.name.replace(b"archive/", folder, 1))
    )


def patched_end(offset: int, value: bytes) -> bytes:
    content = torch_zip(network())
    start = content.rindex(b"PK\x05\x06") + offset
    return content[:start] + value + content[start + len(value) :]


def patched_local(offset: int, value: bytes) -> bytes:
    content = torch_zip(network())
    return content[:offset] + value + content[offset + len(value) :]


def zip64(size: int, offset: int) -> bytes:
    """An entry whose true size and position stand in an extra field of 64 bits."""
    extra = struct.pack("<HHQQQ", 1, 24, size, size, offset)
    return good_archive(
        only(b"data.pkl", size=2**32 - 1, packed=2**32 - 1, offset=2**32 - 1, extra=extra)
    )


def by_zipfile(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as target:
        for entry in torch_entries(network()):
            target.writestr(entry.name.decode(), entry.data)
    return stream.getvalue()


def bomb(size: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", bytes(size))
    return stream.getvalue()


def quoted() -> bytes:
    """Many directory entries of one and the same megabyte."""
    big = Entry(name=b"archive/data/0", data=bytes(10**6))
    others = (Entry(name=b"archive/data/%d" % n, size=10**6, offset=0) for n in range(1, 1000))
    return archive(big, *others)


def forged_zip() -> Group:
    yield "a directory alone", of(lambda: archive())
    yield "no data.pkl", of(lambda: archive(Entry(name=b"archive/version", data=b"3\n")))
    yield (
        "two folders with a data.pkl",
        of(lambda: with_entries(Entry(name=b"other/data.pkl", data=program(pickle.NONE)))),
    )
    yield (
        "two entries of one name",
        of(lambda: with_entries(Entry(name=b"archive/data/0", data=bytes(1000)))),
    )
    yield (
        "two data.pkl of one name",
        of(lambda: with_entries(Entry(name=b"archive/data.pkl", data=program(pickle.NONE)))),
    )
    yield "a storage that is missing", of(lambda: good_archive(only(b"/data/5", name=b"gone")))
    # Nothing is unpacked, so that names lead nowhere.
    yield "names that begin with a slash", of(lambda: renamed(b"/etc/"), SAME)
    yield "names that lead upwards", of(lambda: renamed(b"../../"), SAME)
    yield "names with a drive", of(lambda: renamed(b"C:\\x\\..\\"), REFUSED)
    yield "names without a folder", of(lambda: renamed(b""), SAME)
    yield "names that are no text", of(lambda: renamed(b"\xff\xfe/"), SAME)
    yield (
        "names that claim to be UTF-8 and are not",
        of(lambda: good_archive(lambda e: replace(e, name=b"\xff/" + e.name, flags=0x800))),
    )
    yield "a name with a NUL", of(lambda: good_archive(only(b"data.pkl", name=b"archive/d\0.pkl")))
    yield "a pickle larger than the file", of(lambda: good_archive(only(b"data.pkl", size=2**31)))
    yield "a pickle of 4 GiB", of(lambda: good_archive(only(b"data.pkl", size=2**32 - 2)))
    yield "a pickle of no bytes", of(lambda: good_archive(only(b"data.pkl", size=0, packed=0)))
    yield "a pickle that ends early", of(lambda: good_archive(only(b"data.pkl", size=40)))
    yield "a storage that says less", of(lambda: good_archive(only(b"/data/3", size=1, packed=1)))
    yield "a storage that says more", of(lambda: good_archive(only(b"/data/3", size=10**9)))
    yield "an entry beyond the end", of(lambda: good_archive(only(b"/data/3", offset=2**31)))
    yield "an entry at the last byte", of(lambda: good_archive(only(b"/data/3", offset=2**32 - 2)))
    yield "an entry within another", of(lambda: good_archive(only(b"/data/3", offset=100)))
    yield "a thousand entries of one place", of(quoted)
    yield "a pickle where a storage is", of(lambda: good_archive(only(b"data.pkl", offset=6400)))
    yield "a compressed archive", of(lambda: by_zipfile(zipfile.ZIP_DEFLATED))
    yield "an archive of LZMA", of(lambda: by_zipfile(zipfile.ZIP_LZMA))
    yield "a plain archive of another program", of(lambda: by_zipfile(zipfile.ZIP_STORED), SAME)
    yield "a bomb of 100 MB", of(lambda: bomb(100 * 10**6))
    yield "an unknown compression", of(lambda: good_archive(only(b"data.pkl", method=77)))
    yield "one compressed storage", of(lambda: good_archive(only(b"/data/3", method=8)))
    yield "an encrypted pickle", of(lambda: good_archive(only(b"data.pkl", flags=1)))
    yield "all of it encrypted", of(lambda: good_archive(lambda entry: replace(entry, flags=1)))
    yield "strong encryption", of(lambda: good_archive(lambda entry: replace(entry, flags=0x41)))
    yield "patched data", of(lambda: good_archive(lambda entry: replace(entry, flags=0x20)))
    yield "zip64 that is true", of(lambda: zip64(len(torch_entries(network())[0].data), 0), SAME)
    yield "zip64 of a size of 2**63", of(lambda: zip64(2**63, 0))
    yield "zip64 of a size of 2**64 - 1", of(lambda: zip64(2**64 - 1, 0))
    yield "zip64 of a position of 2**62", of(lambda: zip64(100, 2**62))
    yield "zip64 of a position of 2**64 - 1", of(lambda: zip64(100, 2**64 - 1))
    yield "zip64 that is cut", of(lambda: good_archive(only(b"data.pkl", extra=b"\1\0\x18\0\0")))
    yield "zip64 without any field", of(lambda: good_archive(only(b"data.pkl", size=2**32 - 1)))
    yield "a zip64 locator to nowhere", of(lambda: zip64_end(2**60))
    yield "a zip64 locator to itself", of(lambda: zip64_end(0))
    yield "more entries than there are", of(lambda: patched_end(8, b"\xff\xff\xff\xff"), SAME)
    yield "a directory larger than the file", of(lambda: patched_end(12, b"\xff\xff\xff\x7f"))
    yield "a directory beyond the end", of(lambda: patched_end(16, b"\xff\xff\xff\x7f"))
    yield "a directory at the beginning", of(lambda: patched_end(16, bytes(4)))
    yield "an empty directory", of(lambda: patched_end(12, bytes(4)))
    yield "a comment longer than the file", of(lambda: patched_end(20, b"\xff\xff"), SAME)
    yield "a comment of 65,535 bytes", of(lambda: good_archive(comment=b"x" * 65535), SAME)
    yield (
        "a comment that is an archive",
        of(lambda: good_archive(comment=archive(Entry(name=b"a", data=b"b")))),
    )
    yield "a local header without its signature", of(lambda: patched_local(2, b"\5\6"))
    yield "a local name longer than the file", of(lambda: patched_local(26, b"\xff\xff"))
    yield "a local name of another length", of(lambda: patched_local(26, b"\x0f\0"))
    yield "a local extra field of another length", of(lambda: patched_local(28, b"\xff\x7f"))
    yield (
        "an archive in an archive",
        of(lambda: archive(Entry(name=b"model.pth", data=torch_zip(network())))),
    )
    yield (
        "an archive as data.pkl",
        of(lambda: archive(Entry(name=b"archive/data.pkl", data=torch_zip(network())))),
    )
    yield "bytes before the archive", of(lambda: b"PK\x03\x04" + torch_zip(network()), SAME)
    yield "bytes after the archive", of(lambda: torch_zip(network()) + bytes(100), SAME)
    yield "two archives in a row", of(lambda: torch_zip({"a": 1}) + torch_zip(network()), SAME)
    yield (
        "a TorchScript program",
        of(lambda: with_entries(Entry(name=b"archive/constants.pkl", data=program(b"N")))),
    )
    yield (
        "the other byte order",
        of(lambda: good_archive(only(b"byteorder", data=b"big"))),
    )
    yield (
        "a hundred thousand entries",
        of(lambda: archive(*(Entry(name=b"%d" % n) for n in range(100_001)), aligned=False)),
    )
    yield "headers and nothing else", of(lambda: bytes(LOCAL.pack(b"PK\x03\x04", *([0] * 10))))


def zip64_end(position: int) -> bytes:
    content = torch_zip(network())
    start = content.rindex(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, position, 1)
    return content[:start] + locator + content[start:]
