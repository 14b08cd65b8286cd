"""Pickles that would run something, and instructions that no saved tensor needs."""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from tests.reading.hostile.kinds import (
    REFUSED,
    SAME,
    Group,
    beside,
    of,
    pickled,
)
from tests.support.hostile_files import (
    NO_HOOKS,
    Pairs,
    Raw,
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
    shape,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    tuple_of,
)

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
    "this module": ("tests.reading.hostile.pickles", "live_pickle"),
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


def executable() -> Group:
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


def odd_instructions() -> Group:
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
    yield "a number of 300 bytes", beside(lambda: number(2**2390), SAME)
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
