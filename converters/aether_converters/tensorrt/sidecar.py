"""The JSON file beside an engine: all that is needed to run it, and to see that it is that one.

What a plan takes and gives cannot be read from it without a GPU and the TensorRT that built it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from aether_converters.errors import EngineError
from aether_converters.tensorrt.backend import BACKENDS, BackendName
from aether_converters.tensorrt.build import HARDWARE, Binding, Profile, Shape, shape_in_words
from aether_spandrel.opening import open_file, read_file

KIND: Final = "aether-spandrel engine"
VERSION: Final = 1
LARGEST: Final = 2**20  # bytes; a longer file is not ours
SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class EngineNetwork:
    """What tiles and figures depend on, of the network in an engine.

    Attributes:
        scale: Upscaling factor.
        receptive_radius: Input px in each direction that an output pixel can depend on.
        global_context: Whether it depends on the whole image beyond that.
        bytes_per_pixel: Estimated memory of its activations, in bytes per input px.
        macs_per_pixel: Multiply-accumulates per input px; 0 where they cannot be counted.
    """

    scale: int
    receptive_radius: int
    global_context: bool
    bytes_per_pixel: int
    macs_per_pixel: int


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What is known of an engine.

    Attributes:
        engine_sha256: Of the plan, in hexadecimal.
        engine_bytes: Its size.
        backend: TensorRT that built it, and that alone can run it.
        backend_version: Of the library.
        precision: Of weights and arithmetic: fp32, fp16 or int8.
        input: Name, dtype and (N, C, H, W) of the input, -1 for what may vary.
        output: The same of the output.
        profiles: Sizes that it takes; none if the size is fixed.
        compute_capabilities: GPUs for which it was built, such as "8.9".
        gpu: Name of the GPU on which it was built; empty if it was built without one.
        hardware_compatibility: Other GPUs that run it, as TensorRT calls them.
        version_compatible: Whether newer versions of the same major version run it.
        layers: How many it has; 0 where the builder did not say.
        int8_layers: How many of them multiply in int8.
        int8_declared: Nodes of the ONNX file that do.
        network: What tiles and figures depend on.
        onnx_sha256: Of the ONNX file that it was built from, in hexadecimal.
        source_sha256: Of the checkpoint, in hexadecimal.
        model: What the ONNX file says about itself, such as revision and name.
        versions: Of the packages that took part.
    """

    engine_sha256: str
    engine_bytes: int
    backend: BackendName
    backend_version: str
    precision: str
    input: Binding
    output: Binding
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    gpu: str
    hardware_compatibility: str
    version_compatible: bool
    layers: int
    int8_layers: int
    int8_declared: int
    network: EngineNetwork
    onnx_sha256: str
    source_sha256: str
    model: Mapping[str, object] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)

    @property
    def channels(self) -> tuple[int, int]:
        """Of input and output."""
        return self.input.shape[1], self.output.shape[1]

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) in px of the only input that it takes, or None."""
        height, width = self.input.shape[2:]
        return None if -1 in (height, width) else (height, width)

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON-ready values."""
        return {"kind": KIND, "version": VERSION, **asdict(self)}

    def to_json(self) -> str:
        """What the file holds."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    def in_rows(self) -> list[tuple[str, str]]:
        """What `aethernet inspect` prints, a name and a text a row."""
        sizes = [f"{p.in_words()}, fastest at {shape_in_words(p.opt)}" for p in self.profiles]
        int8 = f", {self.int8_layers} in INT8" if self.int8_declared else ""
        built = f"by {self.backend} {self.backend_version}"
        return [
            ("engine", f"{built}, {self.engine_bytes:,} bytes"),
            ("network", f"AetherNet, revision {self.model.get('revision', 'unknown')}"),
            ("scale", f"{self.network.scale}x"),
            ("precision", f"{self.precision}; input and output {self.input.dtype}"),
            *((name, f"{b.name} {_dims(b)}") for name, b in self._bindings()),
            *(("profile", text) for text in sizes or [shape_in_words(self.input.shape)]),
            ("GPUs", self.gpus_in_words()),
            ("layers", f"{self.layers}{int8}" if self.layers else "not reported"),
            ("source", self.source_sha256),
            ("onnx", self.onnx_sha256),
        ]

    def _bindings(self) -> tuple[tuple[str, Binding], ...]:
        return ("input", self.input), ("output", self.output)

    def gpus_in_words(self) -> str:
        """On which it runs."""
        capabilities = f"compute capability {', '.join(self.compute_capabilities)}"
        wider = {
            "ampere_plus": "any of compute capability 8.0 and newer",
            "same_compute_capability": capabilities,
        }
        return wider.get(
            self.hardware_compatibility,
            f"{self.gpu} and no other, {capabilities}" if self.gpu else capabilities,
        )


def _dims(binding: Binding) -> str:
    return shape_in_words(["?" if size == -1 else size for size in binding.shape])


def sidecar_path(engine: Path) -> Path:
    """Where the JSON file of an engine is: `model.engine.json` beside `model.engine`."""
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(engine: Path, *, check: bool = True) -> Sidecar:
    """What is known of an engine, from the file beside it.

    Args:
        engine: The plan.
        check: Compare its size and SHA-256 with the plan's.

    Raises:
        EngineError: The file is missing or damaged, or belongs to another plan.
    """
    path = sidecar_path(engine)
    try:
        content = read_file(path, most=LARGEST, kind=EngineError)
    except EngineError as error:
        raise EngineError(
            f"the JSON file of this engine cannot be read: {error.problem}",
            file=path,
            expected=f"beside {engine.name}, as aethernet convert --to trt leaves it",
            found=error.found,
            advice="copy it together with the engine, or build the engine again",
        ) from error
    sidecar = parse_sidecar(content, path)
    if check:
        check_engine(engine, sidecar)
    return sidecar


def check_engine(engine: Path, sidecar: Sidecar) -> None:
    """Raise EngineError if the plan is not that which was described."""
    digest = hashlib.sha256()
    size = 0
    try:
        with open_file(engine, EngineError) as file:
            size = os.fstat(file.fileno()).st_size
            if size == sidecar.engine_bytes:  # what is not as long is another one, however long
                while block := file.read(2**20):
                    digest.update(block)
    except OSError as error:
        raise EngineError(
            f"the engine cannot be read: {error.strerror or error}",
            file=engine,
            advice="check the path and the permissions",
        ) from error
    for name, expected, found in (
        ("bytes", str(sidecar.engine_bytes), str(size)),
        ("SHA-256", sidecar.engine_sha256, digest.hexdigest()),
    ):
        if expected != found:
            raise EngineError(
                "the engine is not the one that the file beside it describes",
                file=engine,
                key=name,
                expected=f"{expected}, as in {sidecar_path(engine).name}",
                found=found,
                advice="copy both files again, or build the engine again",
            )


def parse_sidecar(content: bytes, path: Path) -> Sidecar:
    """A sidecar from what its file holds.

    Raises:
        EngineError: It is no such file, or a value is missing or of the wrong kind.
    """
    try:
        values: object = json.loads(
            content[: LARGEST + 1] if len(content) <= LARGEST else b"",
            object_pairs_hook=partial(_once, path),
        )
    except (ValueError, RecursionError):
        values = None
    known = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    if known.get("kind") != KIND or known.get("version") != VERSION:
        raise EngineError(
            "this is not the JSON file of an engine",
            file=path,
            expected=f'"kind": "{KIND}", "version": {VERSION}',
            found="another kind or version" if known else "no JSON object",
            advice="build the engine again with aethernet convert --to trt",
        )
    read: dict[str, Any] = {}
    for name in (entry.name for entry in fields(Sidecar)):
        try:
            read[name] = READERS[name](known[name])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                "a value of the engine's JSON file is missing or makes no sense",
                file=path,
                key=name,
                expected=str(error) if isinstance(error, _UnfitError) else "a value",
                found=repr(known.get(name))[:100] if name in known else "nothing",
                advice="build the engine again with aethernet convert --to trt",
            ) from None
    return Sidecar(**read)


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys occur once each."""
    counts = Counter(key for key, _ in pairs)
    for key, count in counts.items():
        if count > 1:
            raise EngineError(
                "a key of the engine's JSON file occurs twice",
                file=path,
                key=key[:100],
                advice="build the engine again with aethernet convert --to trt",
            )
    return dict(pairs)


class _UnfitError(ValueError):
    """A value is not what its name stands for; says what would be."""


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1000:
        raise _UnfitError("a text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _UnfitError("true or false")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _UnfitError("a whole number that is not negative")
    return value


def _at_least_one(value: object) -> int:
    if _count(value) < 1:
        raise _UnfitError("a whole number of at least 1")
    return _count(value)


def _sha256(value: object) -> str:
    if not SHA256.fullmatch(_text(value)):
        raise _UnfitError("64 hexadecimal digits")
    return _text(value)


def _one_of(*known: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in known:
            raise _UnfitError(f"one of {', '.join(known)}")
        return cast(str, value)

    return read


def _many(read: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def read_all(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _UnfitError("a list")
        return tuple(read(part) for part in cast("list[object]", value))

    return read_all


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _UnfitError("an object")
    return cast("dict[str, Any]", value)


def _texts(value: object) -> Mapping[str, str]:
    return {name: _text(text) for name, text in _mapping(value).items()}


def _shape(value: object) -> Shape:
    sizes = _many(_at_least_one)(value)
    if len(sizes) != 4:
        raise _UnfitError("four sizes, (N, C, H, W)")
    return cast(Shape, sizes)


def _profile(value: object) -> Profile:
    found = _mapping(value)
    return Profile(**{name: _shape(found.get(name)) for name in ("min", "opt", "max")})


def _binding(value: object) -> Binding:
    found = _mapping(value)
    shape: Sequence[object] = _many(lambda size: size if size == -1 else _at_least_one(size))(
        found.get("shape")
    )
    if len(shape) != 4 or shape[1] == -1 or (shape[2] == -1) != (shape[3] == -1):
        raise _UnfitError("a shape (N, C, H, W) with a fixed C")
    return Binding(
        name=_text(found.get("name")),
        dtype=_one_of("fp32", "fp16")(found.get("dtype")),
        shape=cast("tuple[int, ...]", tuple(shape)),
    )


def _network(value: object) -> EngineNetwork:
    found = _mapping(value)
    return EngineNetwork(
        scale=_at_least_one(found.get("scale")),
        receptive_radius=_count(found.get("receptive_radius")),
        global_context=_flag(found.get("global_context")),
        bytes_per_pixel=_at_least_one(found.get("bytes_per_pixel")),
        macs_per_pixel=_count(found.get("macs_per_pixel")),
    )


READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "engine_sha256": _sha256,
    "engine_bytes": _at_least_one,
    "backend": _one_of(*BACKENDS),
    "backend_version": _text,
    "precision": _one_of("fp32", "fp16", "int8"),
    "input": _binding,
    "output": _binding,
    "profiles": _many(_profile),
    "compute_capabilities": _many(_text),
    "gpu": _text,
    "hardware_compatibility": _one_of(*HARDWARE),
    "version_compatible": _flag,
    "layers": _count,
    "int8_layers": _count,
    "int8_declared": _count,
    "network": _network,
    "onnx_sha256": _sha256,
    "source_sha256": _sha256,
    "model": _mapping,
    "versions": _texts,
}
"""What each value of the file must be."""


def engine_details(sidecar: Sidecar) -> dict[str, int | str]:
    """Facts about an engine for a report."""
    return {
        "backend": f"{sidecar.backend} {sidecar.backend_version}",
        "compute_capabilities": ", ".join(sidecar.compute_capabilities),
        "layers": sidecar.layers,
        "int8_layers": sidecar.int8_layers,
    }
