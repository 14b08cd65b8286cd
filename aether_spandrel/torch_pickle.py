"""The pickle inside a PyTorch file, read as data: nothing it names is imported or called.

Python's unpickler is a small stack machine whose instructions can call any function. Here the
same instructions build only what a checkpoint consists of: dictionaries, lists, numbers, text and
tensors. What else a file names is either known to be harmless, and becomes an inert `Opaque`, or
the file is refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from aether_spandrel.errors import CheckpointError
from aether_spandrel.stored import (
    BYTES_OF,
    Storage,
    StoredQuantised,
    StoredTensor,
    Unread,
    damaged,
)

MOST_INSTRUCTIONS: Final = 500_000  # about 40 make a tensor; the largest training file has 0.4 M
MOST_TENSORS: Final = (
    30_000  # the optimizer's and those of quantisation too; the largest file has 10,000
)
LONGEST_NAME: Final = 200  # characters of a Python object's name
LONGEST_TEXT: Final = 1000  # characters of what becomes text or bytes
LARGEST_KEY: Final = 2**60  # larger integers can be made to collide in a dictionary
MOST_AXES: Final = 8  # of a tensor; networks have 4
LONGEST_NUMBER: Final = 255  # bytes of one integer

STORAGE_TYPES: Final[Mapping[str, str]] = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "UntypedStorage": "uint8",
}
"""Which numbers a storage class of torch holds; of quantised ones, the integers themselves."""

NUMBER_TYPES: Final[Mapping[str, str]] = {f"torch.{name}": name for name in BYTES_OF} | {
    "torch.qint8": "int8",
    "torch.quint8": "uint8",
    "torch.qint32": "int32",
}
"""Types of numbers by the names under which pickles refer to them."""


@dataclass(frozen=True)
class Global:
    """The name of something in a Python module, which is not looked up."""

    name: str

    def __str__(self) -> str:
        """The dotted name."""
        return self.name


@dataclass(frozen=True)
class Opaque:
    """What would have been an object of another library; nothing but its name is kept."""

    name: str


StorageReader = Callable[[tuple[object, ...]], Storage]
"""Finds a storage by the persistent id that stands for it in the pickle."""


@dataclass(frozen=True, kw_only=True)
class Unpickled:
    """What one pickle describes.

    Attributes:
        value: The object: dictionaries, lists, numbers, text, `Unread` tensors, `Opaque`.
        names: The Python objects that the pickle names.
        end: Position after it.
    """

    value: object
    names: frozenset[str]
    end: int


def read_pickle(content: memoryview, storage: StorageReader, *, start: int = 0) -> Unpickled:
    """The object that one pickle describes; of its tensors no number is read.

    Raises:
        CheckpointError: The pickle is damaged, names anything but data, or holds a tensor that
            does not lie within its storage.
    """
    machine = _Machine(content, start, storage)
    try:
        value = machine.run()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(
            "the file is damaged or cut short",
            found=f"instructions that end or go astray at byte {machine.position}",
            advice="download or copy the file again",
        ) from error
    return Unpickled(value=value, names=frozenset(machine.names), end=machine.position)


def _too_much() -> CheckpointError:
    return CheckpointError(
        "the file holds more than can be looked through",
        expected=f"at most {MOST_INSTRUCTIONS:,} values beside the tensors' numbers",
        advice="save the network's state dict alone, without what else the training wrote",
    )


class _Mark:
    """Where the arguments of a later instruction begin on the stack."""


MARK: Final = _Mark()


class _Machine:
    """The stack machine of one pickle."""

    def __init__(self, content: memoryview, position: int, storage: StorageReader) -> None:
        self.content = content
        self.position = position
        self.storage = storage
        self.stack: list[Any] = []
        self.memo: dict[int, object] = {}
        self.names: set[str] = set()
        self.tensors = 0
        self.effort = 0

    def run(self) -> object:
        """Execute instructions up to STOP, and return what is on top of the stack."""
        content, instructions = self.content, INSTRUCTIONS
        for _ in range(MOST_INSTRUCTIONS):
            code = content[self.position]
            self.position += 1
            if code == STOP:
                return self.pop()
            instruction = instructions.get(code)
            if instruction is None:
                raise damaged(f"instruction {code:#04x}, which checkpoints do not use")
            instruction(self)
        raise _too_much()

    def spend(self, effort: int) -> None:
        """Count what a single instruction does many times: values can be named again and again."""
        self.effort += effort
        if self.effort > MOST_INSTRUCTIONS:
            raise _too_much()

    # Reading arguments

    def take(self, length: int) -> memoryview:
        """The next bytes."""
        end = self.position + length
        if end > len(self.content):
            raise IndexError
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, form: str) -> int:
        """The next integer, of a format of `struct`."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def line(self) -> str:
        """The text up to the end of the line."""
        limit = min(self.position + 1000, len(self.content))
        text = bytes(self.content[self.position : limit])
        length = text.index(b"\n") if b"\n" in text else -1
        if length < 0:
            raise IndexError
        self.position += length + 1
        return text[:length].decode("utf-8")

    # The stack

    def push(self, value: object) -> None:
        """Put a value on top."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the top value."""
        value = self.stack.pop()
        if value is MARK:
            raise damaged("a mark where a value is needed")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Take all values above the last mark, and the mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise damaged("values without a mark before them")

    def top(self, kind: type[Any]) -> Any:
        """The top value, which must be of a kind and stays."""
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise damaged(f"{type(value).__name__} where {kind.__name__} is needed")
        return value

    def remember(self, slot: int) -> None:
        """Keep the top value for later."""
        self.memo[slot] = self.stack[-1]

    def recall(self, slot: int) -> None:
        """Push a value that was kept."""
        if slot not in self.memo:
            raise damaged(f"a reference to value {slot}, which is not there")
        self.push(self.memo[slot])

    # What instructions build

    def set_items(self, items: Sequence[Any]) -> None:
        """Add keys and values in turn to the dictionary on top."""
        if len(items) % 2:
            raise damaged("a key without a value")
        target = cast(object, self.stack[-1])
        if isinstance(target, Opaque):
            return  # an object that behaves like a dictionary, such as a configuration
        entries = cast(dict[object, object], self.top(dict))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _is_key(key):
                continue
            if key in entries:
                raise CheckpointError(
                    "a key occurs twice",
                    key=str(key)[:100],
                    advice="the file is forged or was written by a broken program",
                )
            entries[key] = value

    def global_name(self, module: object, name: object) -> None:
        """Push a name, if it is one of those that may stand in a checkpoint."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise damaged("a name that is no text")
        if len(module) + len(name) > LONGEST_NAME:
            raise damaged("a name that is longer than any")
        # Python 2's names of modules, which protocols up to 2 still use.
        full = f"{PYTHON_2.get(module, module)}.{name}"
        if not _is_harmless(full):
            raise CheckpointError(
                "the file asks for more than tensors, and is not executed",
                found=f"the Python object {full}",
                advice="if you trained it yourself, save its state dict alone; "
                "else do not trust it",
            )
        self.names.add(full)
        self.push(Global(full))

    def call(self, function: object, arguments: object) -> None:
        """Push what a known function would have made of its arguments."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise damaged("a call of something that is no function")
        self.push(self.built(function.name, cast(tuple[Any, ...], arguments)))

    def built(self, function: str, arguments: tuple[Any, ...]) -> object:
        """What stands for the result of a function."""
        if function in DICTIONARIES:
            return self.dictionary(arguments)
        tensor = TENSORS.get(function)
        build = tensor or PLAIN.get(function)
        if build is None:
            return Opaque(function)
        try:
            found = build(arguments)
        except FAULTS as error:
            if tensor is None:
                return Opaque(function)  # plain data of a form that nothing here needs
            raise damaged(f"arguments that {function} cannot take") from error
        self.tensors += isinstance(found, Unread)
        if self.tensors > MOST_TENSORS:
            raise CheckpointError(
                "the file holds more tensors than any network",
                expected=f"at most {MOST_TENSORS:,}",
                advice="save the network's state dict alone",
            )
        return found

    def dictionary(self, arguments: tuple[Any, ...]) -> object:
        """A dictionary: mostly an empty one, whose entries are set by later instructions.

        Python 2 gave the entries of an OrderedDict at once, as a list of pairs.
        """
        pairs: object = arguments[0] if arguments else []
        if isinstance(pairs, Global):  # what a defaultdict makes of a missing key
            return {}
        if not isinstance(pairs, list):
            return Opaque("builtins.dict")
        items: list[Any] = []
        self.spend(len(cast(list[object], pairs)))
        for pair in cast(list[object], pairs):
            if not isinstance(pair, (list, tuple)) or len(cast(list[object], pair)) != 2:
                return Opaque("builtins.dict")
            items.extend(cast(list[object], pair))
        self.push({})
        self.set_items(items)
        return self.pop()

    def find_storage(self) -> None:
        """Push the storage whose persistent id is on top."""
        identity = self.pop()
        if not isinstance(identity, tuple):
            raise damaged("a storage without an identity")
        self.push(self.storage(cast(tuple[object, ...], identity)))


FAULTS: Final = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    RuntimeError,
    OverflowError,
    struct.error,
)
"""What a builder raises on arguments that are none."""


def _is_key(key: object) -> bool:
    """Whether a value can be a key: an entry of any other is left out.

    Hashing nested tuples can take exponential time, and large integers can be made to collide.
    """
    if isinstance(key, int):
        return abs(key) <= LARGEST_KEY
    return isinstance(key, (str, float, bytes, type(None), Global))


def _text(machine: _Machine, form: str) -> None:
    raw = machine.take(machine.number(form))
    try:
        machine.push(str(raw, "utf-8"))
    except UnicodeDecodeError:
        # Python writes lone surrogates, which stand in the names of files that are no UTF-8.
        text = str(raw, "utf-8", "surrogatepass")
        machine.push(str(text.encode("utf-8", "backslashreplace"), "utf-8"))


def _old_text(machine: _Machine, form: str) -> None:
    length = machine.number(form)
    if length < 0:
        raise damaged(f"a text of {length} characters")
    machine.push(str(machine.take(length), "latin-1"))


def _bytes(machine: _Machine, form: str) -> None:
    raw = machine.take(machine.number(form))
    machine.push(bytes(raw) if len(raw) <= LONGEST_TEXT else Opaque("builtins.bytes"))


def _long(machine: _Machine, form: str) -> None:
    length = machine.number(form)
    if length < 0:
        raise damaged(f"an integer of {length} bytes")
    raw = machine.take(length)
    if length > LONGEST_NUMBER:
        machine.push(Opaque("builtins.int"))
    else:
        machine.push(int.from_bytes(raw, "little", signed=True))


def _tuple(machine: _Machine, length: int) -> None:
    values = [machine.pop() for _ in range(length)]
    machine.push(tuple(reversed(values)))


def _dict(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.push({})
    machine.set_items(items)


def _append(machine: _Machine, values: list[Any]) -> None:
    if isinstance(machine.stack[-1], Opaque):
        return
    cast(list[Any], machine.top(list)).extend(values)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.global_name(module, name)


def _reduce(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.call(function, arguments)


def _new_object(machine: _Machine, *, keywords: bool) -> None:
    if keywords:
        machine.pop()
    _reduce(machine)


STOP: Final = 0x2E

INSTRUCTIONS: Final[Mapping[int, Callable[[_Machine], object]]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    0x28: lambda m: m.push(MARK),  # MARK
    0x30: lambda m: m.stack.pop(),  # POP
    0x31: lambda m: m.pop_to_mark(),  # POP_MARK
    0x32: lambda m: m.push(m.stack[-1]),  # DUP
    0x4E: lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x89: lambda m: m.push(False),  # NEWFALSE
    0x4B: lambda m: m.push(m.number("<B")),  # BININT1
    0x4D: lambda m: m.push(m.number("<H")),  # BININT2
    0x4A: lambda m: m.push(m.number("<i")),  # BININT
    0x8A: lambda m: _long(m, "<B"),  # LONG1
    0x8B: lambda m: _long(m, "<i"),  # LONG4
    0x47: lambda m: m.push(m.number(">d")),  # BINFLOAT
    0x8C: lambda m: _text(m, "<B"),  # SHORT_BINUNICODE
    0x58: lambda m: _text(m, "<I"),  # BINUNICODE
    0x8D: lambda m: _text(m, "<Q"),  # BINUNICODE8
    0x55: lambda m: _old_text(m, "<B"),  # SHORT_BINSTRING
    0x54: lambda m: _old_text(m, "<i"),  # BINSTRING
    0x43: lambda m: _bytes(m, "<B"),  # SHORT_BINBYTES
    0x42: lambda m: _bytes(m, "<I"),  # BINBYTES
    0x8E: lambda m: _bytes(m, "<Q"),  # BINBYTES8
    0x96: lambda m: _bytes(m, "<Q"),  # BYTEARRAY8
    0x29: lambda m: m.push(()),  # EMPTY_TUPLE
    0x85: lambda m: _tuple(m, 1),  # TUPLE1
    0x86: lambda m: _tuple(m, 2),  # TUPLE2
    0x87: lambda m: _tuple(m, 3),  # TUPLE3
    0x74: lambda m: m.push(tuple(m.pop_to_mark())),  # TUPLE
    0x5D: lambda m: m.push([]),  # EMPTY_LIST
    0x6C: lambda m: m.push(m.pop_to_mark()),  # LIST
    0x61: lambda m: _append(m, [m.pop()]),  # APPEND
    0x65: lambda m: _append(m, m.pop_to_mark()),  # APPENDS
    0x7D: lambda m: m.push({}),  # EMPTY_DICT
    0x64: _dict,  # DICT
    0x73: _set_item,  # SETITEM
    0x75: lambda m: m.set_items(m.pop_to_mark()),  # SETITEMS
    0x8F: lambda m: m.push(Opaque("builtins.set")),  # EMPTY_SET
    0x90: lambda m: _append(m, m.pop_to_mark()),  # ADDITEMS
    0x91: lambda m: (m.pop_to_mark(), m.push(Opaque("builtins.frozenset"))),  # FROZENSET
    0x71: lambda m: m.remember(m.number("<B")),  # BINPUT
    0x72: lambda m: m.remember(m.number("<I")),  # LONG_BINPUT
    0x94: lambda m: m.remember(len(m.memo)),  # MEMOIZE
    0x68: lambda m: m.recall(m.number("<B")),  # BINGET
    0x6A: lambda m: m.recall(m.number("<I")),  # LONG_BINGET
    0x63: lambda m: m.global_name(m.line(), m.line()),  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    0x52: _reduce,  # REDUCE
    0x81: lambda m: _new_object(m, keywords=False),  # NEWOBJ
    0x92: lambda m: _new_object(m, keywords=True),  # NEWOBJ_EX
    0x62: lambda m: m.pop(),  # BUILD: attributes, of which none is kept
    0x51: lambda m: m.find_storage(),  # BINPERSID
}
"""The instructions that torch.save writes, by code; the comments give pickle's own names."""


# What may be named


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v2`: storage, offset, size, stride, two more, marks."""
    storage, offset, size, stride = arguments[:4]
    found = view_of(storage, storage.kind, offset, size, stride)
    return _marked(found, arguments[6:7])


def _typed_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v3`: the same of bytes, with the type of numbers they are."""
    storage, offset, size, stride = arguments[:4]
    found = view_of(storage, NUMBER_TYPES[arguments[6].name], offset, size, stride)
    return _marked(found, arguments[7:8])


SIGNED: Final = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")


def _marked(found: StoredTensor, marks: tuple[Any, ...]) -> StoredTensor:
    """The tensor, with the other sign where it is stored so, as imaginary parts of conjugates are.

    Raises:
        CheckpointError: Its numbers are of a type that has no such tensors.
    """
    (mark,) = marks or (None,)
    if not isinstance(mark, Mapping) or not cast("Mapping[object, object]", mark).get("neg"):
        return found
    if found.kind not in SIGNED:
        raise damaged(f"a tensor of {found.kind} with the other sign")
    return replace(found, negated=True)


def view_of(
    storage: Storage, kind: str, offset: object, size: object, stride: object
) -> StoredTensor:
    """A tensor of a size and stride within a flat run of numbers, which are of type `kind`.

    Raises:
        CheckpointError: It does not lie within it, or refers to more elements than there are;
            those that an expansion (stride 0) repeats count once.
    """
    if not (_are_lengths(size) and _are_lengths(stride) and _are_lengths((offset,))):
        raise damaged("a tensor whose size, stride or offset are no numbers")
    sizes, strides = cast(tuple[int, ...], size), cast(tuple[int, ...], stride)
    if len(sizes) != len(strides) or len(sizes) > MOST_AXES:
        raise damaged(f"a tensor of {len(sizes)} axes")
    stored = storage.count * BYTES_OF[storage.kind] // BYTES_OF[kind]
    elements = math.prod(n for n, step in zip(sizes, strides, strict=True) if step or not n)
    last = cast(int, offset) + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if elements and (last >= stored or elements > stored):
        raise CheckpointError(
            "a tensor reaches beyond the numbers that are stored for it",
            expected=f"at most {stored} elements",
            found=f"size {sizes}, stride {strides}, offset {offset}",
            advice="the file is damaged or forged: download or copy it again",
        )
    return StoredTensor(
        storage=storage, kind=kind, shape=sizes, stride=strides, offset=cast(int, offset)
    )


def _are_lengths(values: object) -> bool:
    items = cast(tuple[object, ...], values) if isinstance(values, tuple) else (None,)
    return all(type(value) is int and 0 <= value < 2**62 for value in items)


def _quantised(arguments: tuple[Any, ...]) -> StoredQuantised:
    """`torch._utils._rebuild_qtensor`: storage, offset, size, stride, (scheme, ...)."""
    storage, offset, size, stride = arguments[:4]
    integers = view_of(storage, storage.kind, offset, size, stride)
    scheme, *parameters = arguments[4]
    if scheme == Global("torch.per_tensor_affine"):
        scale, zero_point = float(parameters[0]), int(parameters[1])
        if abs(zero_point) >= 2**62:
            raise ValueError("no zero point of any type")
        return StoredQuantised(integers=integers, scale=scale, zero_point=zero_point, axis=None)
    if scheme != Global("torch.per_channel_affine"):
        raise ValueError("unknown scheme")
    scales, zero_points, axis = parameters
    if (
        not isinstance(scales, StoredTensor)
        or not isinstance(zero_points, StoredTensor)
        or not 0 <= axis < len(integers.shape)
        or not scales.shape == zero_points.shape == integers.shape[axis : axis + 1]
    ):
        raise ValueError("scales do not fit the channels")
    return StoredQuantised(integers=integers, scale=scales, zero_point=zero_points, axis=axis)


def _retyped(arguments: tuple[Any, ...]) -> object:
    """`torch._tensor._rebuild_from_type_v2`: function, type, its arguments, state."""
    function, inner = arguments[0], arguments[2]
    build = TENSORS.get(function.name) if isinstance(function, Global) else None
    if build is None or not isinstance(inner, tuple) or not isinstance(arguments[1], Global):
        raise TypeError("no tensor")
    return build(cast(tuple[Any, ...], inner))


NUMBERS: Final[Mapping[str, str]] = {
    "f8": "<d",
    "f4": "<f",
    "f2": "<e",
    "i8": "<q",
    "i4": "<i",
    "i2": "<h",
    "i1": "<b",
    "u1": "<B",
    "b1": "<?",
}
"""numpy's types of one number, and how `struct` reads them."""


def _numpy_scalar(arguments: tuple[Any, ...]) -> object:
    dtype, raw = arguments
    form = NUMBERS.get(dtype) if isinstance(dtype, str) else None
    if form is None or not isinstance(raw, bytes):
        return Opaque("numpy.generic")
    (value,) = struct.unpack(form, raw)
    return value


def _first(arguments: tuple[Any, ...]) -> object:
    return arguments[0]


def _text_of(arguments: tuple[Any, ...]) -> str:
    """Text that stands for an object, such as the version that TorchVersion is."""
    value = arguments[0]
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise TypeError("no text")
    return value


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    lengths = arguments[0]
    if len(lengths) > MOST_AXES or not _are_lengths(tuple(lengths)):
        raise ValueError("no size")
    return tuple(lengths)


def _path(arguments: tuple[Any, ...]) -> str:
    """`pathlib`'s paths, by their parts; of an absolute one the first is its root."""
    parts = [_text_of((part,)) for part in arguments[:LONGEST_TEXT]]
    if sum(map(len, parts)) > LONGEST_TEXT:
        raise ValueError("no path")
    root = parts[0] if parts and parts[0].endswith(("/", "\\")) else ""
    return root + "/".join(parts[1:] if root else parts)


def _encoded(arguments: tuple[Any, ...]) -> bytes:
    text, encoding = arguments
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise ValueError("unknown encoding")
    return _text_of((text,)).encode(encoding)


DICTIONARIES: Final = frozenset(
    (
        "collections.OrderedDict",
        "typing.OrderedDict",
        "collections.defaultdict",
        "builtins.dict",
    )
)
"""What makes a dictionary."""

TENSORS: Final[Mapping[str, Callable[[tuple[Any, ...]], object]]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _retyped,
}
"""What stands for the result of each function that makes a tensor."""

PLAIN: Final[Mapping[str, Callable[[tuple[Any, ...]], object]]] = {
    "builtins.list": lambda _: [],
    "torch.Size": _size,
    "torch.device": _text_of,
    "torch.torch_version.TorchVersion": _text_of,
    "torch.serialization._get_layout": _text_of,
    "numpy.dtype": _first,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "_codecs.encode": _encoded,
    **{
        f"{module}.{name}": _path
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
"""What stands for the result of each other function, as far as it tells anything."""

PYTHON_2: Final = {"__builtin__": "builtins", "copy_reg": "copyreg"}

INERT: Final = (
    *(
        f"builtins.{name}"
        for name in (
            *("bool", "bytearray", "bytes", "complex", "Ellipsis", "ellipsis", "float"),
            *("frozenset", "int", "long", "object", "range", "set", "slice", "str", "tuple"),
            *("type", "unicode", "xrange"),
        )
    ),
    "array._array_reconstructor",
    "array.array",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.ChainMap",
    "collections.Counter",
    "collections.UserDict",
    "collections.UserList",
    "collections.deque",
    "copyreg._reconstructor",
    *(
        f"datetime.{name}"
        for name in ("date", "datetime", "time", "timedelta", "timezone", "tzinfo")
    ),
    "decimal.Decimal",
    "enum.Enum",
    "fractions.Fraction",
    "random.Random",
    "uuid.SafeUUID",
    "uuid.UUID",
    *(
        f"numpy.{name}"
        for name in (
            *("bool", "bool_", "bytes_", "complex64", "complex128", "clongdouble", "datetime64"),
            *("float16", "float32", "float64", "longdouble", "generic", "int8", "int16", "int32"),
            *("int64", "intc", "longlong", "ndarray", "object_", "str_", "timedelta64", "uint8"),
            *("uint16", "uint32", "uint64", "uintc", "ulonglong", "void", "recarray", "record"),
        )
    ),
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "numeric._frombuffer")
    ),
    "numpy.dtypes.",
    "numpy.ma.MaskedArray",
    "numpy.ma.core.MaskedArray",
    "numpy.ma.core._mareconstruct",
    *(
        f"numpy.random.{module}."
        for module in (
            *("_generator", "_mt19937", "_pcg64", "_philox", "_pickle", "_sfc64"),
            *("bit_generator", "mtrand"),
        )
    ),
    "numpy.rec.recarray",
    "numpy.rec.record",
    "torch._C.Generator",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.UninitializedParameter",
    "torch.Tensor",
    "torch.optim.",
    "torch.strided",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_sparse_csr_tensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch.storage.UntypedStorage",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "pytorch_lightning.",
    "omegaconf.",
    "accelerate.",
    "easydict.EasyDict",
    "addict.addict.Dict",
)
"""Names that trainers leave in their files; a final dot stands for all of a package."""

KNOWN: Final = frozenset(
    (
        *DICTIONARIES,
        *TENSORS,
        *PLAIN,
        *INERT,
        *NUMBER_TYPES,
        *(f"torch.{name}" for name in STORAGE_TYPES),
    )
)
PACKAGES: Final = tuple(name for name in INERT if name.endswith("."))


def _is_harmless(name: str) -> bool:
    return name in KNOWN or name.startswith(PACKAGES)
