"""Files that are no checkpoints, one line each: every one is refused with advice, or read right.

What a file may do at worst is said by `hostile_files.examine`. Those that are valid after all are
marked: `SAME` gives exactly the network of the clean file, `OTHER` another sound network.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

import pytest
import torch
from torch import Tensor

import aether_spandrel
from aether_spandrel import CheckpointError
from aether_spandrel.network import MOST_BLOCKS
from aether_spandrel.torch_pickle import Quantised
from tests.support import hostile_files
from tests.support.hostile_files import (
    LOCAL,
    MOST_BYTES,
    NO_HOOKS,
    Entry,
    Pairs,
    Raw,
    ViolationError,
    archive,
    call,
    dict_of,
    get,
    laughs,
    list_of,
    name,
    nested,
    network,
    number,
    program,
    put,
    quantised,
    raw_bytes,
    real,
    safetensors_bytes,
    safetensors_file,
    safetensors_parts,
    shape,
    storage,
    tensor,
    tensors,
    text,
    torch_entries,
    torch_legacy,
    torch_zip,
    tuple_of,
    watched,
)

Verdict = Literal["refused", "same", "other"]
REFUSED: Final = "refused"
SAME: Final = "same"
OTHER: Final = "other"


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One file, and what becomes of it.

    Attributes:
        place: Writes it into a folder and says where.
        verdict: Whether it is refused, or read as the same network as its clean kind or another.
        kind: Of the clean network.
    """

    place: Callable[[Path], Path]
    verdict: Verdict = "refused"
    kind: str = "G1"


Group = Iterator[tuple[str, Hostile]]


def of(
    content: Callable[[], bytes],
    verdict: Verdict = "refused",
    kind: str = "G1",
    suffix: str = ".pth",
) -> Hostile:
    """A file of these bytes, which are made only when it is its turn."""

    def place(folder: Path) -> Path:
        path = folder / f"hostile{suffix}"
        path.write_bytes(content())
        return path

    return Hostile(place=place, verdict=verdict, kind=kind)


def pickled(
    body: Callable[[], bytes], stored: Mapping[str, bytes] | None = None, verdict: Verdict = REFUSED
) -> Hostile:
    """A PyTorch file of these instructions."""
    return of(lambda: torch_zip(Raw(body()), stored), verdict)


def beside(extra: Callable[[], object], verdict: Verdict = REFUSED) -> Hostile:
    """A PyTorch file of a good network with something beside it."""
    return of(lambda: torch_zip({"params": network(), "extra": extra()}), verdict)


# Cut short


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


def _truncation() -> Group:
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


# Forged archives


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


def _forged_zip() -> Group:
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


# Pickles that would execute something

SENTINEL: Final = "executed"


def live_pickle() -> bytes:
    return program(call("os", "mkdir", text(SENTINEL)))


PYTHON: Final = f"__import__('os').mkdir('{SENTINEL}')"
EVAL: Final = call("builtins", "eval", text(PYTHON))

LIVE: Final[Mapping[str, bytes]] = {
    "os.mkdir": call("os", "mkdir", text(SENTINEL)),
    "os.system": call("os", "system", text(f"mkdir {SENTINEL}")),
    "posix.mkdir": call("posix", "mkdir", text(SENTINEL)),
    "os.popen": call("builtins", "list", call("os", "popen", text(f"mkdir {SENTINEL}"))),
    "subprocess.call": call(
        "subprocess", "call", list_of(text(sys.executable), text("-c"), text(PYTHON))
    ),
    "subprocess.check_output": call(
        "subprocess", "check_output", list_of(text(sys.executable), text("-c"), text(PYTHON))
    ),
    "builtins.eval": EVAL,
    "builtins.exec": call("builtins", "exec", text(PYTHON)),
    "__builtin__.eval": call("__builtin__", "eval", text(PYTHON)),
    "builtins.getattr": Raw(
        call("builtins", "getattr", name("os", "path"), text("os"))
        + put(1)
        + call("builtins", "getattr", get(1), text("mkdir"))
        + tuple_of(text(SENTINEL))
        + pickle.REDUCE
    ),
    "builtins.__import__": Raw(
        call("builtins", "__import__", text("os"))
        + pickle.POP
        + call("os", "mkdir", text(SENTINEL))
    ),
    "builtins.map": call(
        "builtins", "list", call("builtins", "map", name("os", "mkdir"), tuple_of(text(SENTINEL)))
    ),
    "builtins.open": call("builtins", "open", text(SENTINEL), text("w")),
    "pickle.loads": call("pickle", "loads", raw_bytes(live_pickle())),
    "_pickle.loads": call("_pickle", "loads", raw_bytes(live_pickle())),
    "marshal and types.FunctionType": Raw(
        call(
            "types",
            "FunctionType",
            call("builtins", "compile", text(PYTHON), text("x"), text("exec")),
            dict_of(),
        )
        + pickle.EMPTY_TUPLE
        + pickle.REDUCE
    ),
    "functools.partial": Raw(
        call("functools", "partial", name("os", "mkdir"), text(SENTINEL))
        + pickle.EMPTY_TUPLE
        + pickle.REDUCE
    ),
    "functools.reduce": call(
        "functools", "reduce", name("os", "mkdir"), list_of(text(SENTINEL), number(0o777))
    ),
    "operator.attrgetter": Raw(
        call("operator", "attrgetter", text("mkdir"))
        + tuple_of(call("importlib", "import_module", text("os")))
        + pickle.REDUCE
        + tuple_of(text(SENTINEL))
        + pickle.REDUCE
    ),
    "operator.methodcaller": Raw(
        call("operator", "methodcaller", text("mkdir"), text(SENTINEL))
        + tuple_of(call("importlib", "import_module", text("os")))
        + pickle.REDUCE
    ),
    "importlib.import_module": Raw(
        call("importlib", "import_module", text("os"))
        + pickle.POP
        + call("os", "mkdir", text(SENTINEL))
    ),
    "timeit.timeit": call(
        "timeit", "timeit", text(PYTHON), text("pass"), name("time", "time"), b"K\1"
    ),
    "pdb and bdb.Bdb.run": call("cProfile", "run", text(PYTHON)),
    "codecs.decode and eval": call(
        "builtins", "eval", call("_codecs", "encode", text(PYTHON), text("utf-8"))
    ),
    "torch's own os": Raw(
        name("torch.serialization", "os.mkdir") + tuple_of(text(SENTINEL)) + pickle.REDUCE
    ),
    "an attribute of an allowed package": Raw(
        name("torch.optim.optimizer", "torch.os.mkdir") + tuple_of(text(SENTINEL)) + pickle.REDUCE
    ),
    "an attribute of an allowed function": Raw(
        text("torch._utils")
        + text("_rebuild_tensor_v2.__globals__.__class__")
        + pickle.STACK_GLOBAL
        + pickle.POP
        + EVAL
    ),
    "torch.storage._load_from_bytes": call(
        "torch.storage", "_load_from_bytes", raw_bytes(live_pickle())
    ),
    "STACK_GLOBAL": Raw(
        text("os") + text("mkdir") + pickle.STACK_GLOBAL + tuple_of(text(SENTINEL)) + pickle.REDUCE
    ),
    "INST": Raw(pickle.MARK + text(SENTINEL) + pickle.INST + b"os\nmkdir\n"),
    "OBJ": Raw(pickle.MARK + name("os", "mkdir") + text(SENTINEL) + pickle.OBJ),
    "NEWOBJ": Raw(
        name("subprocess", "Popen")
        + pickle.EMPTY_TUPLE
        + pickle.NEWOBJ
        + pickle.POP
        + call("os", "mkdir", text(SENTINEL))
    ),
    "NEWOBJ_EX": Raw(
        name("types", "SimpleNamespace")
        + pickle.EMPTY_TUPLE
        + pickle.EMPTY_DICT
        + pickle.NEWOBJ_EX
        + pickle.POP
        + call("os", "mkdir", text(SENTINEL))
    ),
    "BUILD": Raw(
        name("argparse", "Namespace")
        + pickle.EMPTY_TUPLE
        + pickle.NEWOBJ
        + dict_of(text("__setstate__"), name("os", "mkdir"))
        + pickle.BUILD
        + text(SENTINEL)
        + pickle.BUILD
    ),
    "DUP and REDUCE": Raw(
        name("os", "mkdir") + tuple_of(text(SENTINEL)) + pickle.DUP + pickle.POP + pickle.REDUCE
    ),
    "a name from the memo": Raw(
        name("os", "mkdir")
        + put(7)
        + pickle.POP
        + get(7)
        + tuple_of(text(SENTINEL))
        + pickle.REDUCE
    ),
}
"""Instructions that create a folder when Python's own unpickler reads them."""

DEAD: Final[Mapping[str, tuple[str, str]]] = {
    "subprocess.Popen": ("subprocess", "Popen"),
    "nt.system": ("nt", "system"),
    "torch.hub.load": ("torch.hub", "load"),
    "torch.load": ("torch", "load"),
    "torch.jit.load": ("torch.jit", "load"),
    "torch.ops.load_library": ("torch", "ops.load_library"),
    "torch.utils.cpp_extension.load_inline": ("torch.utils.cpp_extension", "load_inline"),
    "torch.serialization.load": ("torch.serialization", "load"),
    "torch.distributed.rpc.rpc_sync": ("torch.distributed.rpc", "rpc_sync"),
    "torch.Tensor.__reduce_ex__": ("torch", "Tensor.__reduce_ex__"),
    "torch.FloatStorage.from_file": ("torch", "FloatStorage.from_file"),
    "numpy.load": ("numpy", "load"),
    "numpy.f2py.compile": ("numpy.f2py", "compile"),
    "codecs.lookup": ("codecs", "lookup"),
    "codecs.open": ("codecs", "open"),
    "runpy.run_path": ("runpy", "run_path"),
    "shutil.rmtree": ("shutil", "rmtree"),
    "socket.create_connection": ("socket", "create_connection"),
    "webbrowser.open": ("webbrowser", "open"),
    "ctypes.CDLL": ("ctypes", "CDLL"),
    "pty.spawn": ("pty", "spawn"),
    "pip.main": ("pip", "main"),
    "urllib.request.urlopen": ("urllib.request", "urlopen"),
    "logging.config.fileConfig": ("logging.config", "fileConfig"),
    "site.main": ("site", "main"),
    "antigravity.geohash": ("antigravity", "geohash"),
    "this module": ("tests.reading.test_hostile", "live_pickle"),
    "collections.OrderedDict.__init_subclass__": ("collections", "OrderedDict.__init_subclass__"),
    "builtins.dict.fromkeys": ("builtins", "dict.fromkeys"),
    "a name with a line break": ("os\nsystem", "x"),
    "a module of no name": ("", "eval"),
    "a dotted end": ("torch.optim", ""),
    "a homoglyph": ("c\u043ellections", "OrderedDict"),
}
"""Names that could do harm, although not as simply as a folder is made."""


def protocol_4(value: Raw) -> bytes:
    return program(value, protocol=4)


def _executable() -> Group:
    for title, body in LIVE.items():
        allowed = title in ("an attribute of an allowed package",)
        yield title, pickled(lambda body=body: body)
        yield (
            f"{title} beside a network",
            beside(lambda body=body: Raw(body), SAME if allowed else REFUSED),
        )
        yield f"{title} in a legacy file", of(lambda body=body: torch_legacy(Raw(body)))
        yield f"{title} in a bare pickle", of(lambda body=body: program(body, protocol=4))
    for title, (module, attribute) in DEAD.items():
        allowed = module == "torch.optim"
        yield (
            f"{title} beside a network",
            beside(
                lambda module=module, attribute=attribute: call(module, attribute, text("x")),
                SAME if allowed else REFUSED,
            ),
        )
    for code in (pickle.EXT1 + b"\1", pickle.EXT2 + b"\1\0", pickle.EXT4 + b"\1\0\0\0"):
        title = f"an extension by instruction {code[0]:#x}"
        yield title, beside(lambda code=code: Raw(code + pickle.EMPTY_TUPLE + pickle.REDUCE))
    yield "a persistent id in text", beside(lambda: Raw(pickle.PERSID + b"os.system\n"))
    yield "a call of a string", beside(lambda: Raw(text("os.system") + b")R"))
    yield "a call of a number", beside(lambda: Raw(number(1) + b")R"))
    yield "a call of a dictionary", beside(lambda: Raw(b"})R"))
    yield "a call of a mark", beside(lambda: Raw(b"()R"))
    yield "a call without arguments", beside(lambda: Raw(name("torch", "Size") + b"]R"))
    yield "a call of the result of a call", beside(lambda: Raw(NO_HOOKS + b")R"))
    yield (
        "a stack name that is no text",
        beside(lambda: Raw(number(1) + number(2) + pickle.STACK_GLOBAL)),
    )
    yield "a name that never ends", beside(lambda: Raw(pickle.GLOBAL + b"a" * 5000))
    yield "a name that is no text", beside(lambda: Raw(pickle.GLOBAL + b"\xff\n\xff\n"))
    yield (
        "attributes for a dictionary",
        beside(lambda: Raw(b"}" + dict_of(text("__class__"), text("x")) + pickle.BUILD), SAME),
    )


# Pickles that are damaged or go on for ever


def every_code() -> Iterator[int]:
    known = {ord(getattr(pickle, code)) for code in dir(pickle) if _is_code(code)}
    return (code for code in range(256) if code not in known)


def _is_code(code: str) -> bool:
    value: object = getattr(pickle, code)
    return code.isupper() and isinstance(value, bytes) and len(value) == 1


def shared_list(length: int) -> bytes:
    return list_of(*([pickle.NONE] * length))


def copies(build: bytes, times: int) -> Raw:
    """One value, and the same few instructions many times after it; all results are kept."""
    return Raw(pickle.MARK + build * times + pickle.TUPLE)


def colliding(count: int) -> Raw:
    """A dictionary of integers that all have the same hash."""
    modulus = 2**61 - 1
    pairs = (number(n * modulus) + pickle.NONE for n in range(count))
    return Raw(pickle.EMPTY_DICT + pickle.MARK + b"".join(pairs) + pickle.SETITEMS)


def doubled_path(times: int) -> Raw:
    body = text("x" * 1000) + put(1)
    step = name("pathlib", "Path") + get(1) + get(1) + pickle.TUPLE2 + pickle.REDUCE + put(1)
    return Raw(body + (pickle.POP + step) * times)


def _instructions() -> Group:
    for code in list(every_code())[::24]:
        title = f"the unknown instruction {code:#04x}"
        yield title, pickled(lambda code=code: pickle.NONE + bytes([code]))
    for title, code in {
        "LONG4 of -1 bytes": pickle.LONG4 + struct.pack("<i", -1),
        "LONG4 of 2**31 - 1 bytes": pickle.LONG4 + struct.pack("<i", 2**31 - 1),
        "BINUNICODE of 4 GiB": pickle.BINUNICODE + struct.pack("<I", 2**32 - 1),
        "BINUNICODE8 of 2**63": pickle.BINUNICODE8 + struct.pack("<Q", 2**63),
        "BINUNICODE8 of 2**64 - 1": pickle.BINUNICODE8 + struct.pack("<Q", 2**64 - 1),
        "BINBYTES of 4 GiB": pickle.BINBYTES + struct.pack("<I", 2**32 - 1),
        "BINBYTES8 of 2**62": pickle.BINBYTES8 + struct.pack("<Q", 2**62),
        "BYTEARRAY8 of 2**62": pickle.BYTEARRAY8 + struct.pack("<Q", 2**62),
        "BINSTRING of -1": pickle.BINSTRING + struct.pack("<i", -1),
        "INT in text": pickle.INT + b"1\n",
        "LONG in text": pickle.LONG + b"9" * 1000 + b"L\n",
        "FLOAT in text": pickle.FLOAT + b"1e400\n",
        "STRING in text": pickle.STRING + b"'a'\n",
        "UNICODE in text": pickle.UNICODE + b"a\n",
        "GET in text": pickle.GET + b"0\n",
        "PUT in text": pickle.NONE + pickle.PUT + b"0\n",
        "NEXT_BUFFER": pickle.NEXT_BUFFER,
        "READONLY_BUFFER": pickle.NONE + pickle.READONLY_BUFFER,
        "a memo that is empty": pickle.BINGET + b"\0",
        "a memo of nothing": pickle.LONG_BINGET + struct.pack("<I", 2**32 - 1),
        "a memo of an empty stack": pickle.BINPUT + b"\0",
        "POP of an empty stack": pickle.POP,
        "POP_MARK of an empty stack": pickle.POP_MARK,
        "DUP of an empty stack": pickle.DUP,
        "APPEND to nothing": pickle.NONE + pickle.APPEND,
        "APPEND to a number": pickle.NONE * 2 + pickle.APPEND,
        "APPENDS without a mark": pickle.EMPTY_LIST + pickle.NONE + pickle.APPENDS,
        "APPENDS to a mark": pickle.MARK * 2 + pickle.APPENDS,
        "SETITEM of two": pickle.NONE * 2 + pickle.SETITEM,
        "SETITEM of a list": pickle.EMPTY_LIST + pickle.NONE * 2 + pickle.SETITEM,
        "SETITEMS of an odd number": b"}(NNNu",
        "SETITEMS without a mark": b"}NNu",
        "DICT of an odd number": b"(Nd",
        "DICT without a mark": b"NNd",
        "LIST without a mark": b"Nl",
        "TUPLE without a mark": b"Nt",
        "TUPLE1 of nothing": pickle.TUPLE1,
        "TUPLE3 of two": b"NN\x87",
        "TUPLE2 of a mark": b"(N\x86",
        "REDUCE of nothing": pickle.REDUCE,
        "BUILD of nothing": pickle.BUILD,
        "NEWOBJ of nothing": pickle.NEWOBJ,
        "NEWOBJ_EX of two": b"NN\x92",
        "STACK_GLOBAL of nothing": pickle.STACK_GLOBAL,
        "ADDITEMS without a set": b"(N\x90",
        "FROZENSET without a mark": b"N\x91",
        "BINPERSID of nothing": pickle.BINPERSID,
        "a mark as the result": pickle.MARK,
        "nothing as the result": b"",
        "a mark within a mark": b"((((((",
        "a mark in the memo": b"(q\0h\0h\0h\0t",
        "a dictionary with a mark as key": b"}(q\0Nh\0Nu",
        "text that is no UTF-8": b"X\2\0\0\0\xff\xfe",
        "a surrogate in text": text("\ud800"),
        "a cut surrogate": b"X\2\0\0\0\xed\xa0",
        "PROTO within": pickle.PROTO + b"\xff",
    }.items():
        yield title, pickled(lambda code=code: code)
    yield "FRAME of 2**64 - 1", beside(lambda: Raw(b"\x95" + b"\xff" * 8 + b"N"), SAME)
    yield "LONG_BINPUT of 2**32 - 1", beside(lambda: Raw(b"Nr\xff\xff\xff\xff"), SAME)
    yield "a number of 255 bytes", beside(lambda: number(2**2000), SAME)
    yield "a number of 300 bytes", beside(lambda: number(2**2390))
    yield "a set, an array of bytes and frozen sets", beside(lambda: Raw(b"\x8f(K\1\x90"), SAME)
    for title, value in {
        "a list in itself": b"]q\0h\0a",
        "a list in its own tuple": b"]q\0h\0\x85a",
        "a dictionary in itself": b"}q\0" + text("a") + b"h\0s",
        "a dictionary in itself as a wrapper": b"}q\0" + text("params") + b"h\0s",
        "an object in itself": name("argparse", "Namespace") + b")\x81q\0}" + text("a") + b"h\0sb",
    }.items():
        yield title, pickled(lambda value=value: value)
        yield f"{title} beside a network", beside(lambda value=value: Raw(value), SAME)
    for title, (opening, closing) in {
        "lists": (b"]", b"a"),
        "tuples": (b"", b"\x85"),
        "dictionaries": (b"}" + text("a"), b"s"),
        "wrappers": (b"}" + text("params"), b"s"),
        "parameters": (name("torch._utils", "_rebuild_parameter"), b"\x85R"),
        "marks": (b"(", b"t"),
    }.items():
        deep = nested(100_000, opening, closing)
        yield f"{title} 100,000 deep", pickled(lambda deep=deep: deep)
        yield f"{title} 100,000 deep beside a network", beside(lambda deep=deep: deep, SAME)
    yield "laughs", pickled(laughs)
    yield "laughs beside a network", beside(laughs, SAME)
    yield "laughs as a key", pickled(lambda: dict_of(laughs(), pickle.NONE))
    yield "laughs as a storage", pickled(lambda: laughs() + pickle.BINPERSID)
    yield "laughs as a size", pickled(lambda: tensor(storage("0", 1), laughs(), shape(1)), ONE)
    yield "laughs as a stride", pickled(lambda: tensor(storage("0", 1), shape(1), laughs()), ONE)
    yield (
        "laughs as an offset",
        pickled(lambda: tensor(storage("0", 1), shape(1), shape(1), laughs()), ONE),
    )
    yield "laughs as the tensor's storage", pickled(lambda: tensor(laughs(), shape(1), shape(1)))
    yield (
        "laughs as a scheme",
        pickled(lambda: quantised(storage("0", 1), shape(1), shape(1), laughs(), number(1)), ONE),
    )
    yield "laughs as a device", pickled(lambda: call("torch", "device", laughs()))
    yield "laughs as a path", pickled(lambda: call("pathlib", "Path", laughs()))
    yield (
        "laughs as a number",
        pickled(lambda: call("numpy.core.multiarray", "scalar", laughs(), laughs(50))),
    )
    yield "laughs as pairs", pickled(lambda: call("collections", "OrderedDict", laughs()))
    yield (
        "laughs as keys of pairs",
        pickled(
            lambda: call("collections", "OrderedDict", list_of(tuple_of(laughs(), pickle.NONE)))
        ),
    )
    for part in range(5):
        title = ("kind", "class", "key", "place", "size")[part]
        yield (
            f"laughs as a storage's {title}",
            pickled(lambda part=part: identity_of(part, laughs())),
        )
        yield f"a list as a storage's {title}", pickled(lambda part=part: identity_of(part, b"]"))
    yield "no storage's identity", pickled(lambda: b")Q")
    yield "a string as a storage's identity", pickled(lambda: text("storage") + b"Q")
    yield "a dictionary as a storage's identity", pickled(lambda: b"}Q")
    yield "laughs in a list of metadata", beside(lambda: list_laughs(60), SAME)
    yield (
        "laughs as metadata that count",
        of(
            lambda: torch_zip({"params": network(), "arch_config": {"scale": list_laughs(60)}}),
            SAME,
        ),
    )
    for title, key in {
        "a huge integer": number(2**2000),
        "a list": b"]",
        "a dictionary": b"}",
        "a tuple": b")",
        "an object": call("argparse", "Namespace"),
        "a tensor": tensor(storage("0", 1), shape(1), shape(1)),
        "a storage": storage("0", 1),
        "a nested tuple": nested(1000, b"", b"\x85"),
        "a mark": b"(",
    }.items():
        yield f"{title} as a key", pickled(lambda key=key: b"}" + key + b"Ns", ONE)
    for title, key in {
        "an integer": number(7),
        "a number": real(1.5),
        "no number": real(float("nan")),
        "nothing": b"N",
        "bytes": raw_bytes(b"a"),
        "a name": name("torch", "float32"),
        "truth": b"\x88",
    }.items():
        yield f"{title} as a key", of(lambda key=key: network_with(key), SAME)
    yield "two equal keys", of(lambda: torch_zip(twice("conv_last.bias")))
    yield "two equal keys in two steps", pickled(lambda: b"}" + (text("a") + b"Ns") * 2)
    yield "truth and one as keys", pickled(lambda: b"}\x88NsK\1Ns")
    yield (
        "two equal keys of a call",
        pickled(
            lambda: call("collections", "OrderedDict", list_of(*[tuple_of(text("a"), b"N")] * 2))
        ),
    )
    yield (
        "keys that are no text in a call",
        pickled(lambda: call("collections", "OrderedDict", list_of(tuple_of(b"]", b"N")))),
    )


ONE: Final = {"0": bytes(64)}


def identity_of(part: int, value: bytes) -> bytes:
    parts: list[bytes] = [
        text("storage"),
        name("torch", "FloatStorage"),
        text("0"),
        text("cpu"),
        number(1),
    ]
    parts[part] = value
    return tuple_of(*parts) + pickle.BINPERSID


def list_laughs(depth: int) -> Raw:
    steps = (
        put(800_000 + n) + pickle.POP + b"](" + get(800_000 + n) * 2 + b"e" for n in range(depth)
    )
    return Raw(text("ha") + b"".join(steps))


def network_with(key: bytes) -> bytes:
    """A network with one more key, which may be anything."""
    return torch_zip(Pairs([*network().items(), (Raw(key), None)]))


def twice(key: str) -> Pairs:
    pairs = Pairs(network().items())
    pairs.append((key, network()[key]))
    return pairs


# Few bytes that ask for much


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


def _exhaustion() -> Group:
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


# Tensors


def first_bias(body: bytes, stored: Mapping[str, bytes] | None = None) -> Callable[[], bytes]:
    """A network whose first bias is made by these instructions; storage x has 64 bytes."""
    return lambda: torch_zip(
        {**network(), "conv_first.bias": Raw(body)}, {"x": bytes(64), **(stored or {})}
    )


STORED: Final = storage("x", 16)


def _tensors() -> Group:
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


def packed(parts: object) -> dict[str, object]:
    """A network whose first convolution is packed as converted layers are, in odd ways."""
    state = network()
    del state["conv_first.weight"], state["conv_first.bias"]
    return {**state, "conv_first._packed_params._packed_params": parts}


def deep_types(levels: int) -> bytes:
    opening = name("torch._tensor", "_rebuild_from_type_v2") + name("torch", "Tensor")
    inner = tuple_of(name("torch", "Size"), name("torch", "Tensor"), b")", b"N")
    for _ in range(levels):
        inner = Raw(b"(" + opening + inner + b"Nt")
    return name("torch._tensor", "_rebuild_from_type_v2") + inner + pickle.REDUCE


# Safetensors


def safe(content: Callable[[], bytes], verdict: Verdict = "refused") -> Hostile:
    return of(content, verdict, suffix=".safetensors")


def safe_header(change: Callable[[dict[str, Any]], object]) -> Hostile:
    """A good file after a change to its header."""

    def content() -> bytes:
        header, contents = safetensors_parts(tensors(), {"a": "b"})
        change(cast(dict[str, Any], header))
        return safetensors_bytes(header, contents)

    return safe(content)


def safe_field(field: str, value: object) -> Hostile:
    return safe_header(lambda header: header["conv_first.bias"].update({field: value}))


def safe_shape(dtype: str, shape: list[object], size: int) -> Hostile:
    """A good file with one more tensor at its end."""

    def content() -> bytes:
        header, contents = safetensors_parts(tensors())
        offsets = [len(contents), len(contents) + size]
        header["more"] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        return safetensors_bytes(header, contents + bytes(size))

    return safe(content)


def safe_length(change: Callable[[int], int]) -> Hostile:
    def content() -> bytes:
        header, contents = safetensors_parts(tensors())
        length = change(len(json.dumps(header)))
        return safetensors_bytes(header, contents, length)

    return safe(content)


def _safetensors() -> Group:
    lengths: dict[str, Callable[[int], int]] = {
        "0": lambda _: 0,
        "1": lambda _: 1,
        "one less": lambda length: length - 1,
        "one more": lambda length: length + 1,
        "8 MiB": lambda _: 8 * 2**20,
        "100 MB": lambda _: 10**8,
        "2**31": lambda _: 2**31,
        "2**32": lambda _: 2**32,
        "2**63": lambda _: 2**63,
        "-1": lambda _: -1,
        "2**64 - 8": lambda _: 2**64 - 8,
    }
    for title, change in lengths.items():
        yield f"a header of length {title}", safe_length(change)
    for title, header in {
        "nothing": b"",
        "a brace": b"{",
        "spaces": b" " * 100,
        "no JSON": b"{conv_first}",
        "a list": b"[1, 2, 3]",
        "a string": b'"conv_first"',
        "a number": b"1234567890",
        "nothing in it": b"{}",
        "metadata alone": b'{"__metadata__":{"a":"b"}}',
        "lists 100,000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "no UTF-8": b'{"\xff\xfe":{}}',
        "UTF-16": '{"a":{}}'.encode("utf-16-le"),
        "a byte order mark": b'\xef\xbb\xbf{"a":{}}',
        "a surrogate": b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "a NUL": b'{"a\\u0000":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "a number of 10,000 digits": b'{"a":' + b"9" * 10_000 + b"}",
        "1e400": b'{"a":1e400}',
        "NaN": b'{"a":NaN}',
        "two JSON values": b'{"a":1}{"b":2}',
        "a comma too many": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}',
        "a comment": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}/**/}',
        "a tensor that is a list": b'{"a":["F32",[1],[0,4]]}',
        "a tensor that is null": b'{"a":null}',
        "a tensor of no fields": b'{"a":{}}',
        "a tensor of one more field": (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"code":"os.system"}}'
        ),
        "a tensor twice": (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        ),
        "a field twice": b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "metadata of numbers": b'{"__metadata__":{"a":1}}',
        "metadata of lists": b'{"__metadata__":{"a":[]}}',
        "metadata that are a list": b'{"__metadata__":[]}',
        "metadata that are null": b'{"__metadata__":null}',
        "metadata twice": b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}',
    }.items():
        yield (
            f"a header of {title}",
            safe(lambda header=header: safetensors_bytes(header, bytes(4))),
        )
    for value in ([0, 4], [0, 0], [4, 36], [-4, 28], [32, 0], [0, 10**9], [0, 2**63], [0, 2**64]):
        yield f"a bias at {value}", safe_field("data_offsets", value)
    odds: tuple[object, ...] = (
        [0.0, 32.0],
        ["0", "32"],
        [True, 32],
        [0],
        [0, 16, 32],
        [],
        None,
        {},
        "0-32",
        32,
    )
    for odd in odds:
        yield f"a bias at {json.dumps(odd)}", safe_field("data_offsets", odd)
    odds: tuple[object, ...] = (
        [-8],
        [8.0],
        ["8"],
        [True],
        [[8]],
        None,
        8,
        {},
        [2**62],
        [2**63],
        [2**64],
        [0],
    )
    for odd in odds:
        yield f"a bias of shape {json.dumps(odd)}", safe_field("shape", odd)
    yield "a bias of shape [8.5]", safe_field("shape", [8.5])
    yield "a bias of shape [2**32, 2**32]", safe_field("shape", [2**32, 2**32])
    yield "a bias of shape [7]", safe_field("shape", [7])
    yield "a bias of no axes", safe_field("shape", [])
    for dtype in ("F99", "f32", "", None, 32, ["F32"], "float32", "O", "F32\0", "F64", "U16"):
        yield f"a bias of type {json.dumps(dtype)}", safe_field("dtype", dtype)
    for dtype in ("C64", "F8_E4M3", "F8_E5M2", "U16", "U32", "U64", "F4", "F8_E8M0", "F6_E2M3"):
        size = {"C64": 8, "U16": 2, "U32": 4, "U64": 8}.get(dtype, 1)
        yield f"one more tensor of type {dtype}", safe_shape(dtype, [1], size)
    yield "one more tensor of 65 axes", safe_shape("F32", [1] * 65, 4)
    yield "one more tensor of 100,000 axes", safe_shape("F32", [1] * 100_000, 4)
    yield "one more tensor of 0 times 2**63", safe_shape("F32", [0, 2**63], 0)
    yield "one more tensor of 0 times 2**62", safe_shape("F32", [0, 2**62], 0)
    yield "one more tensor of 0 times 2**40 squared", safe_shape("F32", [0, 2**40, 2**40], 0)
    yield "one more tensor of half a byte", safe_shape("F4", [3], 1)
    yield "a hole between tensors", safe_header(shift_last)
    yield "tensors that overlap", safe_header(overlap)
    yield "bytes after the tensors", safe(lambda: safetensors_file(tensors()) + bytes(4))
    yield "spaces after the header", safe(padded, SAME)
    yield "nothing but a length", safe(lambda: struct.pack("<Q", 8) + bytes(2))
    yield (
        "metadata that look like a tensor",
        safe_header(lambda header: header.update({"__metadata__": header["conv_first.bias"]})),
    )
    for title, metadata in {
        "a deep list": {"arch_config": '{"scale":' + "[" * 5000 + "]" * 5000 + "}"},
        "a list 900 deep": {"arch_config": '{"scale":' + "[" * 900 + "]" * 900 + "}"},
        "a number of 10,000 digits": {"arch_config": '{"res_scale":' + "9" * 10_000 + "}"},
        "1e400": {"arch_config": '{"img_range":1e400}'},
        "NaN": {"arch_config": '{"img_range":NaN}', "res_scale": "nan"},
        "half a list": {"arch_config": "[1,"},
        "a list for a dictionary": {"arch_config": "[1]", "metadata": "[1]"},
        "keys of dictionaries": {"metadata": '{"metadata": {"metadata": {}}}'},
        "a surrogate": {"arch_config": '{"scale": "\\ud800"}'},
        "an infinite range": {"img_range": "inf"},
        "a range that is no number": {"img_range": "many"},
        "digits of another script": {"norm_eps": "\u0663"},
    }.items():
        yield (
            f"metadata of {title}",
            safe(lambda metadata=metadata: safetensors_file(tensors(), metadata), SAME),
        )


def shift_last(header: dict[str, Any]) -> None:
    key = list(header)[-1]
    start, end = header[key]["data_offsets"]
    header[key]["data_offsets"] = [start + 4, end + 4]


def overlap(header: dict[str, Any]) -> None:
    first, second = list(header)[1:3]
    header[second]["data_offsets"] = [0, header[second]["data_offsets"][1]]
    header[second]["shape"] = [header[second]["data_offsets"][1] // 4]
    header[first]["data_offsets"] = header[first]["data_offsets"]


def padded() -> bytes:
    header, contents = safetensors_parts(tensors())
    return safetensors_bytes(json.dumps(header).encode() + b" " * 1000, contents)


# Checkpoints in several files


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


def _shards() -> Group:
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


# State dicts

Change = Callable[[dict[str, object]], object]


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


def _state_dicts() -> Group:
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


# Other files under the name of a checkpoint


def _others() -> Group:
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


def legacy_keys(change: Callable[[list[str]], bytes]) -> bytes:
    keys = [str(n) for n in range(len(network()))]
    listed = pickle.dumps(keys, protocol=2)
    content = torch_legacy(network())
    start = content.rindex(listed)
    return content[:start] + change(keys) + content[start + len(listed) :]


def legacy_size(size: int) -> bytes:
    keys = pickle.dumps([str(n) for n in range(len(network()))], protocol=2)
    content = torch_legacy(network())
    start = content.rindex(keys) + len(keys)
    return content[:start] + struct.pack("<q", size) + content[start + 8 :]


def folder_in(folder: Path) -> Path:
    (folder / "folder.pth").mkdir()
    return folder / "folder.pth"


def name_in_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"a")
    return folder / "file" / "a.pth"


def pipe_in(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.pth")
    return folder / "pipe.pth"


def socket_in(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.pth")  # relative, for such names are short
    return folder / "s.pth"


def loop_in(folder: Path) -> Path:
    (folder / "loop.pth").symlink_to("loop.pth")
    return folder / "loop.pth"


def nowhere_in(folder: Path) -> Path:
    (folder / "link.pth").symlink_to("nowhere.pth")
    return folder / "link.pth"


# The promise

GROUPS: Final[Mapping[str, Callable[[], Group]]] = {
    "cut": _truncation,
    "zip": _forged_zip,
    "code": _executable,
    "pickle": _instructions,
    "much": _exhaustion,
    "tensor": _tensors,
    "safetensors": _safetensors,
    "shards": _shards,
    "state": _state_dicts,
    "other": _others,
}

TABLE: Final = [
    (f"{group}: {title}", file) for group, of_it in GROUPS.items() for title, file in of_it()
]
FILES: Final[Mapping[str, Hostile]] = dict(TABLE)


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is executed leaves its traces in the folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, Tensor]]:
    """The weights of the clean networks; reading them warms everything up."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clean")
    found: dict[str, Mapping[str, Tensor]] = {}
    for kind in hostile_files.KINDS:
        path = folder / f"{kind}.pth"
        path.write_bytes(torch_zip(network(kind)))
        found[kind] = hostile_files.examine(path).weights
    return found


@pytest.mark.parametrize("title", FILES)
def test_a_hostile_file_is_refused_or_read_as_the_network_that_it_is(
    title: str, tmp_path: Path, clean: dict[str, Mapping[str, Tensor]]
):
    hostile = FILES[title]
    folder = tmp_path / "files"
    folder.mkdir()
    os.chdir(folder)
    path = hostile.place(folder)
    os.chdir(tmp_path)
    outcome = watched(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["files"], "something was executed"
    assert outcome.accepted == (hostile.verdict != "refused"), outcome.problem
    if hostile.verdict == "same":
        weights = clean[hostile.kind]
        assert outcome.weights.keys() == weights.keys()
        assert all(torch.equal(outcome.weights[key], weights[key]) for key in weights)


def test_a_device_that_may_not_be_read_is_told(tmp_path: Path):
    path = tmp_path / "secret.pth"
    path.write_bytes(torch_zip(network()))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert not watched(path).accepted


@pytest.mark.skipif(sys.platform == "win32", reason="the payloads are for POSIX systems")
@pytest.mark.parametrize("title", LIVE)
def test_pythons_own_unpickler_would_execute_it(title: str, tmp_path: Path):
    for protocol in (2, 4):  # old names are known up to 2, dotted ones from 4
        with contextlib.suppress(Exception):  # whatever becomes of it after it has run
            pickle.loads(program(LIVE[title], protocol))
    assert (tmp_path / SENTINEL).exists()


@pytest.mark.parametrize("title", DEAD)
def test_a_harmful_name_is_named_or_never_looked_up(title: str, tmp_path: Path):
    module, attribute = DEAD[title]
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip(Raw(name(module, attribute))))
    with pytest.raises(CheckpointError) as caught:
        aether_spandrel.inspect(path)
    told = caught.value.found or ""
    assert f"{module}.{attribute}".split("\n")[0] in told or module == "torch.optim"


@pytest.mark.parametrize("kind", hostile_files.KINDS)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_clean_file_of_every_form_is_read(
    kind: str, form: str, tmp_path: Path, clean: dict[str, Mapping[str, Tensor]]
):
    if form == "safetensors" and kind == "int8":
        pytest.skip("safetensors holds no quantised tensors")
    path = tmp_path / "a.pth"
    write: dict[str, Callable[[], bytes]] = {
        "zip": lambda: torch_zip(network(kind)),
        "legacy": lambda: torch_legacy(network(kind)),
        "safetensors": lambda: safetensors_file(tensors(kind)),
    }
    path.write_bytes(write[form]())
    outcome = watched(path)
    assert outcome.accepted
    assert all(torch.equal(outcome.weights[key], clean[kind][key]) for key in clean[kind])


def test_the_names_differ():
    assert len(FILES) == len(TABLE)


def test_the_files_differ(tmp_path: Path):
    digests: dict[str, str] = {}
    for index, (title, hostile) in enumerate(FILES.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        os.chdir(folder)
        hostile.place(folder)
        files = sorted(entry for entry in folder.rglob("*") if entry.is_file())
        if files:
            content = b"".join(entry.read_bytes() for entry in files)
            digest = hashlib.sha256(content).hexdigest()
            assert digest not in digests, f"{title} is the same file as {digests[digest]}"
            digests[digest] = title
    assert len(digests) >= 500


# The instruments


def refusal(path: Path) -> CheckpointError:
    return CheckpointError("it is refused", file=path, advice="try another")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory was taken")
def test_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def greedy(path: Path) -> object:
        bytearray(MOST_BYTES + 10**8)
        raise refusal(path)

    monkeypatch.setattr(aether_spandrel, "inspect", greedy, raising=False)
    monkeypatch.setattr(aether_spandrel, "load", greedy, raising=False)
    with pytest.raises(ViolationError, match="MB of memory"):
        watched(tmp_path / "a.pth")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no timers on Windows")
@pytest.mark.parametrize(
    ("seconds", "patience", "told"), [(1.05, 60.0, "took 1"), (30.0, 1.5, "more than")]
)
def test_time_is_measured(
    seconds: float, patience: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def slow(path: Path) -> object:
        ended = time.process_time() + seconds
        while time.process_time() < ended:
            pass
        raise refusal(path)

    monkeypatch.setattr(aether_spandrel, "inspect", slow, raising=False)
    monkeypatch.setattr(aether_spandrel, "load", slow, raising=False)
    monkeypatch.setattr(hostile_files, "PATIENCE", patience)
    with pytest.raises(ViolationError, match=told):
        watched(tmp_path / "a.pth")


class CarelessError(CheckpointError):
    """Says what it was given as it is."""

    def __str__(self) -> str:
        return self.problem


def careless(problem: str) -> CheckpointError:
    return CarelessError(problem, file=Path("a"), advice="y")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("x"), "raised ValueError"),
        (MemoryError(), "raised MemoryError"),
        (CheckpointError("x", advice="y"), "names no file"),
        (CheckpointError("x", file=Path("a")), "names no next step"),
        (careless("\ud800"), "cannot be printed"),
        (careless("\x1b[2J"), "lets the file speak"),
        (careless("x\n\n\n\n\n"), "lets the file speak"),
        (careless("x" * 9999), "too little or too much"),
        (careless(""), "too little or too much"),
    ],
)
def test_other_errors_are_violations(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch):
    def failing(_: Path) -> object:
        raise error

    monkeypatch.setattr(aether_spandrel, "inspect", failing, raising=False)
    with pytest.raises(ViolationError, match=told):
        hostile_files.examine(Path("a"))
