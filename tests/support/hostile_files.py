"""Writes checkpoint files by hand, so that every byte of them can lie.

Pickles are assembled from their instructions; `torch_zip`, `torch_legacy` and `safetensors_file`
write whole files, quickly and independently of torch's and safetensors' own writers. `examine`
reads a file as users do, and says what the promise is: a `CheckpointError`, or a sound network.
"""

from __future__ import annotations

import ctypes
import json
import math
import pickle
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final, cast

import torch
from torch import Tensor

import aether_spandrel
from aether_spandrel import CheckpointError
from aether_spandrel.stored import Quantised
from tests.support.published import draw

# Pickles


class Raw(bytes):
    """Instructions that stand for a value."""

    __slots__ = ()


class Pairs(list[tuple[object, object]]):
    """A dictionary by its pairs, among which keys may repeat."""


def text(value: str) -> Raw:
    """A string; lone surrogates are written, although they are no UTF-8."""
    raw = value.encode("utf-8", "surrogatepass")
    return Raw(pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)


def number(value: int) -> Raw:
    """An integer of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) < 256:
        return Raw(pickle.LONG1 + bytes([len(raw)]) + raw)
    return Raw(pickle.LONG4 + struct.pack("<i", len(raw)) + raw)


def real(value: float) -> Raw:
    return Raw(pickle.BINFLOAT + struct.pack(">d", value))


def raw_bytes(value: bytes) -> Raw:
    return Raw(pickle.BINBYTES + struct.pack("<I", len(value)) + value)


def tuple_of(*items: bytes) -> Raw:
    return Raw(pickle.MARK + b"".join(items) + pickle.TUPLE)


def list_of(*items: bytes) -> Raw:
    return Raw(pickle.EMPTY_LIST + pickle.MARK + b"".join(items) + pickle.APPENDS)


def dict_of(*keys_and_values: bytes) -> Raw:
    return Raw(pickle.EMPTY_DICT + pickle.MARK + b"".join(keys_and_values) + pickle.SETITEMS)


def name(module: str, attribute: str) -> Raw:
    return Raw(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())


def call(module: str, attribute: str, *arguments: bytes) -> Raw:
    return Raw(name(module, attribute) + tuple_of(*arguments) + pickle.REDUCE)


def put(slot: int) -> Raw:
    return Raw(pickle.LONG_BINPUT + struct.pack("<I", slot))


def get(slot: int) -> Raw:
    return Raw(pickle.LONG_BINGET + struct.pack("<I", slot))


def program(body: bytes, protocol: int = 2) -> bytes:
    return pickle.PROTO + bytes([protocol]) + body + pickle.STOP


def laughs(depth: int = 60) -> Raw:
    """Pairs of pairs of pairs: few instructions, 2**depth leaves."""
    doubled = (
        put(900_000 + level) + get(900_000 + level) + pickle.TUPLE2 for level in range(depth)
    )
    return Raw(text("ha") + b"".join(doubled))


def nested(levels: int, opening: bytes, closing: bytes) -> Raw:
    """A value around another one, so many times; `opening` precedes it, `closing` follows."""
    return Raw(opening * levels + pickle.NONE + closing * levels)


def storage(key: str, count: int, kind: str = "FloatStorage") -> Raw:
    """A storage by its persistent id."""
    identity = (text("storage"), name("torch", kind), text(key), text("cpu"), number(count))
    return Raw(tuple_of(*identity) + pickle.BINPERSID)


NO_HOOKS: Final = call("collections", "OrderedDict")


def tensor(stored: bytes, size: bytes, stride: bytes, offset: bytes | None = None) -> Raw:
    """A tensor of anything that claims to be a storage, a size, a stride and an offset."""
    arguments = (number(0) if offset is None else offset, size, stride, pickle.NEWFALSE, NO_HOOKS)
    return call("torch._utils", "_rebuild_tensor_v2", stored, *arguments)


def shape(*lengths: int) -> Raw:
    return tuple_of(*map(number, lengths))


def quantised(stored: bytes, size: bytes, stride: bytes, *scheme: bytes) -> Raw:
    arguments = (number(0), size, stride, tuple_of(*scheme), pickle.NEWFALSE, NO_HOOKS)
    return call("torch._utils", "_rebuild_qtensor", stored, *arguments)


STORAGES: Final[Mapping[torch.dtype, str]] = {
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.float64: "DoubleStorage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}


def numbers_of(values: Tensor) -> bytes:
    """The bytes of a tensor, in C order."""
    flat = values.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


class Pickler:
    """Turns values into instructions, and collects the storages of their tensors."""

    def __init__(self) -> None:
        self.storages: dict[str, tuple[int, bytes]] = {}

    def store(self, values: Tensor, kind: str | None = None) -> Raw:
        """A storage of its own."""
        key = str(len(self.storages))
        self.storages[key] = (values.numel(), numbers_of(values))
        return storage(key, values.numel(), kind or STORAGES[values.dtype])

    def value(self, value: object) -> bytes:
        """The instructions that make a value."""
        if isinstance(value, Raw):
            return value
        if isinstance(value, Tensor):
            stride = value.contiguous().stride()
            return tensor(self.store(value), shape(*value.shape), shape(*stride))
        if isinstance(value, Quantised):
            return self._quantised(value)
        if isinstance(value, Pairs):
            return dict_of(*(self.value(part) for pair in value for part in pair))
        if isinstance(value, dict):
            pairs = cast(dict[object, object], value).items()
            return dict_of(*(self.value(part) for pair in pairs for part in pair))
        if isinstance(value, (list, tuple)):
            items = [self.value(item) for item in cast(Sequence[object], value)]
            return list_of(*items) if isinstance(value, list) else tuple_of(*items)
        if value is None or isinstance(value, bool):
            codes = {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}
            return codes[value]
        if isinstance(value, str):
            return text(value)
        if isinstance(value, bytes):
            return raw_bytes(value)
        if isinstance(value, int):
            return number(value)
        if isinstance(value, float):
            return real(value)
        raise TypeError(f"a {type(value).__name__} cannot be written")

    def _quantised(self, value: Quantised) -> bytes:
        stride = value.integers.contiguous().stride()
        if value.axis is None:
            scheme = (
                name("torch", "per_tensor_affine"),
                real(float(value.scale)),
                number(int(value.zero_point)),
            )
        else:
            scheme = (
                name("torch", "per_channel_affine"),
                self.value(value.scale),
                self.value(value.zero_point),
                number(value.axis),
            )
        stored = self.store(value.integers, "QInt8Storage")
        return quantised(stored, shape(*value.integers.shape), shape(*stride), *scheme)


# Files


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of a zip archive; what the directory says of it can be made to differ."""

    name: bytes
    data: bytes = b""
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    method: int = 0
    flags: int = 0
    extra: bytes = b""


LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
ALIGNMENT: Final = 64  # bytes, as torch aligns storages


def archive(
    *entries: Entry,
    comment: bytes = b"",
    count: int | None = None,
    directory_size: int | None = None,
    directory_offset: int | None = None,
    aligned: bool = True,
) -> bytes:
    """A zip archive of entries in their order; only the directory contains what they claim."""
    parts: list[bytes] = []
    directory: list[bytes] = []
    position = 0
    for entry in entries:
        crc, length = zlib.crc32(entry.data), len(entry.data)
        padding = -(position + LOCAL.size + len(entry.name)) % ALIGNMENT if aligned else 0
        head = (entry.flags, entry.method, 0, 0, crc, length, length, len(entry.name))
        local = LOCAL.pack(b"PK\x03\x04", 20, *head, padding) + entry.name + bytes(padding)
        said = (
            length if entry.packed is None else entry.packed,
            length if entry.size is None else entry.size,
        )
        offset = position if entry.offset is None else entry.offset
        directory.append(
            CENTRAL.pack(
                *(b"PK\x01\x02", 20, 20, entry.flags, entry.method, 0, 0, crc, *said),
                *(len(entry.name), len(entry.extra), 0, 0, 0, 0, offset),
            )
            + entry.name
            + entry.extra
        )
        parts += [local, entry.data]
        position += len(local) + length
    listing = b"".join(directory)
    total = len(entries) if count is None else count
    end = struct.pack(
        "<4sHHHHIIH",
        *(b"PK\x05\x06", 0, 0, total & 0xFFFF, total & 0xFFFF),
        len(listing) if directory_size is None else directory_size,
        position if directory_offset is None else directory_offset,
        len(comment),
    )
    return b"".join([*parts, listing, end, comment])


def torch_entries(
    value: object, stored: Mapping[str, bytes] | None = None, folder: str = "archive/"
) -> list[Entry]:
    """The entries of a PyTorch file; `stored` are storages to which raw instructions refer."""
    pickler = Pickler()
    body = program(pickler.value(value))
    contents = {key: numbers for key, (_, numbers) in pickler.storages.items()}
    contents.update(stored or {})
    return [
        Entry(name=f"{folder}data.pkl".encode(), data=body),
        Entry(name=f"{folder}byteorder".encode(), data=b"little"),
        *(
            Entry(name=f"{folder}data/{key}".encode(), data=numbers)
            for key, numbers in contents.items()
        ),
        Entry(name=f"{folder}version".encode(), data=b"3\n"),
    ]


def torch_zip(value: object, stored: Mapping[str, bytes] | None = None) -> bytes:
    """A file as torch.save writes it."""
    return archive(*torch_entries(value, stored))


MAGIC: Final = 0x1950A86A20F9469CFC6C
SYSTEM: Final = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


def torch_legacy(value: object) -> bytes:
    """A file as torch.save wrote it before version 1.6."""
    pickler = Pickler()
    body = program(pickler.value(value))
    head = [pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, SYSTEM)]
    keys = pickle.dumps(list(pickler.storages), protocol=2)
    contents = (struct.pack("<q", count) + raw for count, raw in pickler.storages.values())
    return b"".join([*head, body, keys, *contents])


SAFE_DTYPES: Final[Mapping[torch.dtype, str]] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}

Header = dict[str, object]


def safetensors_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> tuple[Header, bytes]:
    """Header and contents of a safetensors file."""
    header: Header = {} if metadata is None else {"__metadata__": dict(metadata)}
    parts: list[bytes] = []
    position = 0
    for key, values in tensors.items():
        parts.append(numbers_of(values))
        end = position + len(parts[-1])
        header[key] = {
            "dtype": SAFE_DTYPES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [position, end],
        }
        position = end
    return header, b"".join(parts)


def safetensors_bytes(header: object, contents: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header, or of the bytes that stand where it should."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    return struct.pack("<Q", size % 2**64) + raw + contents


def safetensors_file(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None
) -> bytes:
    """A safetensors file."""
    return safetensors_bytes(*safetensors_parts(tensors, metadata))


# Networks


@cache
def _network(kind: str) -> dict[str, object]:
    if kind == "int8":
        return _converted(dict(draw("G5f", embed_dim=8, depths=(1,), lk_kernel=3, fused=True)))
    revision, _, variant = kind.partition(" ")
    return dict[str, object](
        draw(
            revision,
            embed_dim=8,
            depths=(1,),
            lk_kernel=5,
            scale=1 if revision == "G1" else 2,
            fused=variant == "fused",
            qat=variant == "qat",
        )
    )


def _converted(state: dict[str, Tensor]) -> dict[str, object]:
    """What a conversion to int8 makes of a state dict: weights along axis 0, and output scales."""
    found: dict[str, object] = {}
    for key, values in state.items():
        found[key] = values
        if key.endswith(".weight") and values.dim() == 4 and values.shape[0] > 1:
            scale = values.flatten(1).abs().amax(1).double() / 127
            rounded = (values / scale[:, None, None, None]).round().to(torch.int8)
            points = torch.zeros(len(scale), dtype=torch.int64)
            found[key] = Quantised(integers=rounded, scale=scale, zero_point=points, axis=0)
            layer = key.removesuffix(".weight")
            found[f"{layer}.scale"] = torch.tensor(0.02)
            found[f"{layer}.zero_point"] = torch.tensor(64)
    return found


def network(kind: str = "G1") -> dict[str, object]:
    """A state dict of one block with 8 channels: one of `KINDS`."""
    return dict(_network(kind))


KINDS: Final = ("G1", "G2b", "G4", "G5f", "G5f fused", "G5f qat", "int8")


def tensors(kind: str = "G1") -> dict[str, Tensor]:
    """The same of one that holds nothing but tensors."""
    return {key: value for key, value in network(kind).items() if isinstance(value, Tensor)}


# The promise

MOST_SECONDS: Final = 1.0  # of the processor, which others may use at the same time
MOST_BYTES: Final = 300 * 10**6  # beyond twice the file
YARDSTICK: Final = 0.08  # seconds for what `slowness` does; where it took 0.29, readings took 2.8
PATIENCE = 8.0  # seconds on the wall until a read is broken off
LONGEST_MESSAGE: Final = 4000  # characters
MOST_LINES: Final = 5  # problem, key, expected, found, next


class ViolationError(AssertionError):
    """A file for which the promise does not hold; its cause is what was raised instead, if any."""


class _TooSlow(BaseException):
    """Not to be caught on the way."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How reading a file ended.

    Attributes:
        info: What it is, or None if it was refused.
        weights: Of the network that was loaded.
        problem: Why it was refused.
        seconds: Processor time, the longer of `inspect` and `load`.
    """

    info: aether_spandrel.CheckpointInfo | None
    weights: Mapping[str, Tensor]
    problem: str
    seconds: float

    @property
    def accepted(self) -> bool:
        return self.info is not None


def examine(path: Path, *, accepted_only: bool = False, loaded: bool = True) -> Outcome:
    """What becomes of a file that is inspected and, if `loaded`, loaded.

    What `inspect` refuses, `load` must refuse too; `accepted_only` saves the time to see that.

    Raises:
        ViolationError: Anything but a helpful `CheckpointError` or a consistent network.
    """
    info, problem, seconds = _inspected(path)
    if not loaded or (info is None and accepted_only):
        return Outcome(info=info, weights={}, problem=problem, seconds=seconds)
    started = time.process_time()
    try:
        model = aether_spandrel.load(path)
    except CheckpointError as error:
        _check_error(error, path)
        if info is not None:
            raise ViolationError(f"inspect reads what load refuses: {error}") from error
        seconds = max(seconds, time.process_time() - started)
        return Outcome(info=None, weights={}, problem=problem, seconds=seconds)
    except Exception as error:
        raise ViolationError(f"load raised {type(error).__name__}: {error}"[:500]) from error
    seconds = max(seconds, time.process_time() - started)
    if info is None:
        raise ViolationError(f"load reads what inspect refuses: {problem}")
    if model.model.config != replace(info.config, fused=True):
        raise ViolationError("load and inspect differ in their configuration")
    if (model.scale, model.input_channels, model.output_channels) != (
        info.config.scale,
        info.config.in_chans,
        info.config.out_chans,
    ):
        raise ViolationError("the descriptor does not describe the network")
    weights = model.model.state_dict()
    if any(t.is_meta or t.dtype == torch.float64 for t in weights.values()):
        raise ViolationError("the network is not of float32 in memory")
    return Outcome(info=info, weights=weights, problem="", seconds=seconds)


def _inspected(path: Path) -> tuple[aether_spandrel.CheckpointInfo | None, str, float]:
    started = time.process_time()
    try:
        info = aether_spandrel.inspect(path)
    except CheckpointError as error:
        seconds = time.process_time() - started
        _check_error(error, path)
        return None, error.problem, seconds
    except Exception as error:
        raise ViolationError(f"inspect raised {type(error).__name__}: {error}"[:500]) from error
    seconds = time.process_time() - started
    try:
        json.dumps(info.as_dict())
    except (TypeError, ValueError, RecursionError) as error:
        raise ViolationError(f"the facts are not ready for JSON: {error}") from error
    if info.parameters < 1 or not math.isfinite(info.config.block_norm_eps):
        raise ViolationError("the facts contradict each other")
    return info, "", seconds


def _check_error(error: CheckpointError, path: Path) -> None:
    said = str(error)
    if error.file is None or not {error.file, error.file.parent} & {path, path.parent}:
        raise ViolationError(f"the error names no file: {said}") from error
    if not error.advice:
        raise ViolationError(f"the error names no next step: {said}") from error
    if not error.problem or len(said) > LONGEST_MESSAGE + len(str(path)):
        raise ViolationError(f"the error says too little or too much: {said[:500]}") from error
    told = said.replace(str(path), "")
    try:
        told.encode()
    except UnicodeEncodeError:
        raise ViolationError("the error cannot be printed") from error
    # A file may not write lines of advice of its own, nor to the terminal.
    lines = told.split("\n")
    if len(lines) > MOST_LINES or not all(line.isprintable() for line in lines):
        raise ViolationError(f"the error lets the file speak:\n{told[:300]!r}") from error


def watched(path: Path) -> Outcome:
    """`examine`, with the limits on time and memory.

    A time counts if it was taken three times.

    Raises:
        ViolationError: The promise does not hold.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        size = 0  # no such file, or no such name
    with _limits(size):
        return examine_in_time(lambda: examine(path))


@cache
def slowness() -> float:
    """How many times as long as where the limits were set this machine takes; at least 1."""
    best = math.inf
    for _ in range(3):
        started = time.process_time()
        pickle.loads(pickle.dumps({f"{number}.weight": [number] for number in range(100_000)}))
        best = min(best, time.process_time() - started)
    return max(best / YARDSTICK, 1.0)


def examine_in_time(read: Callable[[], Outcome]) -> Outcome:
    """What `read` gives, which is called again if it took too long."""
    outcome, most = read(), MOST_SECONDS * slowness()
    for _ in range(2):
        if outcome.seconds > most:
            outcome = min(outcome, read(), key=lambda found: found.seconds)
    if outcome.seconds > most:
        raise ViolationError(f"reading took {outcome.seconds:.2f} s")
    return outcome


@contextmanager
def _limits(size: int) -> Generator[None]:
    """Break off what takes too long, let no more memory be had, and measure what was.

    Memory is limited on Linux alone, which tells the peak of one stretch of time.
    """
    if sys.platform == "win32":
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * slowness())
    try:
        if sys.platform == "linux":
            with _memory_limit(2 * size + MOST_BYTES, mapped=4 * size):
                yield
        else:
            yield
    except _TooSlow:
        # Its traceback ends between instructions, where pytest finds no line to show.
        raise ViolationError(f"reading took more than {PATIENCE:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def _memory_limit(most: int, *, mapped: int) -> Generator[None]:
    # Twice the limit in address space, so that it is the measured peak that decides.
    import resource  # there is none on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    reserve = _status("VmSize") + mapped + 2 * most
    if hard == resource.RLIM_INFINITY or reserve < hard:
        resource.setrlimit(resource.RLIMIT_AS, (reserve, hard))
    _give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = _status("VmHWM")
    try:
        yield
        grown = _status("VmHWM") - before
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if grown > most:
        raise ViolationError(f"reading took {grown / 1e6:.0f} MB of memory")


def _give_back_freed_memory() -> None:
    """Without it, what earlier tests freed is taken again, and no growth is seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """Bytes, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
