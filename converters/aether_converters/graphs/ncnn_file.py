"""NCNN's pair of files: a `.param` text of layers, and the numbers of their weights in a `.bin`.

Read as data, without NCNN: every count and size is checked before anything is made of it, so that
what reaches NCNN is a graph of layers that we know, with as many weights as they need.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aether_converters.errors import ModelError
from aether_spandrel.errors import reason
from aether_spandrel.opening import open_file, read_file

MAGIC: Final = "7767517"
INPUT: Final = "data"
OUTPUT: Final = "output"
"""The blobs' names that Upscayl and realesrgan-ncnn-vulkan ask for."""

HALF: Final = struct.pack("<I", 0x01306B47)
FLOAT: Final = bytes(4)
TAGS: Final[Mapping[bytes, tuple[str, int]]] = {FLOAT: ("fp32", 4), HALF: ("fp16", 2)}
"""What stands before weights that may be halves: their precision, and bytes of each."""

ADD, MULTIPLY, POWER = 0, 2, 6  # of BinaryOp
LARGEST: Final = 4  # of Reduction
RELU, SLOPED, SIGMOID = 1, 2, 4  # activations within a convolution

LARGEST_PARAM: Final = 2**22  # bytes; the largest preset has 50 KB
MOST_CHANNELS: Final = 2**16
LARGEST_KERNEL: Final = 99  # px
LARGEST_FACTOR: Final = 16

Numbers = Mapping[int, int | float | tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A layer as the `.param` file has it.

    Attributes:
        number: Of the line, from 1.
        kind: Such as Convolution.
        inputs: Names of blobs.
        outputs: Names of blobs.
        numbers: Parameters by their id.
    """

    number: int
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Numbers

    def integer(self, key: int, default: int, least: int, most: int) -> int:
        """A whole number between two others; raises `_OddError` for any other value."""
        value = self.numbers.get(key, default)
        if not isinstance(value, int) or not least <= value <= most:
            raise _OddError(f"{self.kind}: parameter {key} is {value}")
        return value


class _OddError(Exception):
    """What is wrong with a line, in words."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """What is known of a blob.

    Attributes:
        channels: Of it.
        scale: Its size relative to the picture; 0 where pixels are pooled.
        radius: Picture px in each direction that it depends on.
    """

    channels: int
    scale: int = 1
    radius: int = 0


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """What a layer gives, and needs.

    Attributes:
        blob: Its output.
        weights: Numbers in the `.bin` file, each with whether a tag stands before them.
        macs: Multiply-accumulates a picture px.
    """

    blob: Blob
    weights: tuple[tuple[int, bool], ...] = ()
    macs: int = 0


Rule = Callable[[Line, Sequence[Blob]], _Needs]


def _convolution(line: Line, inputs: Sequence[Blob]) -> _Needs:
    (x,) = inputs
    channels = line.integer(0, 0, 1, MOST_CHANNELS)
    side = line.integer(1, 0, 1, LARGEST_KERNEL)
    groups = line.integer(7, 1, 1, MOST_CHANNELS)
    if groups not in (1, x.channels) or (groups > 1 and channels != groups) or not x.scale:
        raise _OddError(f"{line.kind}: {groups} groups for {x.channels} channels")
    count = channels * (x.channels // groups) * side**2
    line.integer(6, 0, count, count)
    line.integer(4, 0, side // 2, side // 2)
    for key, usual in ((2, 1), (3, 1), (8, 0), (19, 0)):
        line.integer(key, usual, usual, usual)
    for key, like in ((11, side), (12, 1), (13, 1), (14, side // 2), (15, side // 2)):
        line.integer(key, like, like, like)
    return _Needs(
        blob=Blob(channels=channels, scale=x.scale, radius=x.radius + side // 2),
        weights=((count, True), *(((channels, False),) if line.integer(5, 0, 0, 1) else ())),
        macs=count * x.scale**2,
    )


def _inner_product(line: Line, inputs: Sequence[Blob]) -> _Needs:
    (x,) = inputs
    channels = line.integer(0, 0, 1, MOST_CHANNELS)
    count = channels * x.channels
    line.integer(2, 0, count, count)
    line.integer(8, 0, 0, 0)
    if x.scale:
        raise _OddError(f"{line.kind} of a picture")
    return _Needs(
        blob=Blob(channels=channels, scale=0, radius=x.radius),
        weights=((count, True), *(((channels, False),) if line.integer(1, 0, 0, 1) else ())),
    )


def _shuffle(line: Line, inputs: Sequence[Blob]) -> _Needs:
    (x,) = inputs
    factor = line.integer(0, 1, 1, LARGEST_FACTOR)
    line.integer(1, 0, 0, 0)
    if x.channels % factor**2 or not 0 < x.scale * factor <= LARGEST_FACTOR:
        raise _OddError(f"{line.kind}: factor {factor} for {x.channels} channels")
    blob = Blob(channels=x.channels // factor**2, scale=x.scale * factor, radius=x.radius)
    return _Needs(blob=blob)


def _binary(line: Line, inputs: Sequence[Blob]) -> _Needs:
    line.integer(0, 0, 0, 8)
    if line.integer(1, 0, 0, 1):  # with a number
        return _same(line, inputs)
    x, y = inputs
    if 1 not in (x.channels, y.channels) and x.channels != y.channels:
        raise _OddError(f"{line.kind} of {x.channels} and {y.channels} channels")
    if 0 not in (x.scale, y.scale) and x.scale != y.scale:
        raise _OddError(f"{line.kind} of sizes {x.scale} and {y.scale}")
    return _Needs(
        blob=Blob(
            channels=max(x.channels, y.channels),
            scale=max(x.scale, y.scale),
            radius=max(x.radius, y.radius),
        )
    )


def _concat(line: Line, inputs: Sequence[Blob]) -> _Needs:
    line.integer(0, 0, 0, 0)
    channels = sum(blob.channels for blob in inputs)
    if len({blob.scale for blob in inputs}) != 1 or channels > MOST_CHANNELS:
        raise _OddError(f"{line.kind} of different sizes")
    radius = max(blob.radius for blob in inputs)
    return _Needs(blob=Blob(channels=channels, scale=inputs[0].scale, radius=radius))


def _pooling(line: Line, inputs: Sequence[Blob]) -> _Needs:
    (x,) = inputs
    line.integer(0, 0, 1, 1)
    line.integer(4, 0, 1, 1)
    return _Needs(blob=Blob(channels=x.channels, scale=0, radius=x.radius))


def _reduction(line: Line, inputs: Sequence[Blob]) -> _Needs:
    (x,) = inputs
    line.integer(0, 0, LARGEST, LARGEST)
    line.integer(1, 0, 0, 0)
    line.integer(4, 0, 1, 1)
    if line.numbers.get(3) != (0,) or not x.scale:
        raise _OddError(f"{line.kind} over other axes than channels")
    return _Needs(blob=Blob(channels=1, scale=x.scale, radius=x.radius))


def _same(line: Line, inputs: Sequence[Blob]) -> _Needs:
    del line
    (x,) = inputs
    return _Needs(blob=x)


RULES: Final[Mapping[str, Rule]] = {
    "BinaryOp": _binary,
    "Concat": _concat,
    "Convolution": _convolution,
    "ConvolutionDepthWise": _convolution,
    "GELU": _same,
    "InnerProduct": _inner_product,
    "PixelShuffle": _shuffle,
    "Pooling": _pooling,
    "ReLU": _same,
    "Reduction": _reduction,
    "Sigmoid": _same,
    "Split": _same,
    "Swish": _same,
}
"""What each kind of layer that we write gives and needs."""


@dataclass(frozen=True, kw_only=True)
class NcnnFile:
    """A pair of files whose counts and sizes all agree.

    Attributes:
        param: The `.param` file.
        weights: The `.bin` file.
        lines: Its layers.
        precision: fp16 where any weights are halves, else fp32.
        numbers: How many weights there are.
        channels: Of input and output.
        scale: Upscaling factor.
        receptive_radius: Input px in each direction that an output pixel can depend on.
        global_context: Whether it depends on the whole picture beyond that.
        macs_per_pixel: Multiply-accumulates of an input px.
        bytes_per_pixel: Of its activations, estimated, for an input px.
    """

    param: Path
    weights: Path
    lines: tuple[Line, ...] = field(repr=False)
    precision: str
    numbers: int
    channels: tuple[int, int]
    scale: int
    receptive_radius: int
    global_context: bool
    macs_per_pixel: int
    bytes_per_pixel: int

    def in_rows(self) -> list[tuple[str, str]]:
        """What it is, a name and a text a row."""
        taken, given = self.channels
        radius = "the whole picture" if self.global_context else f"{self.receptive_radius} px"
        return [
            ("format", f"NCNN, {len(self.lines)} layers"),
            ("scale", f"{self.scale}x"),
            ("channels", f"{taken} in, {given} out"),
            ("weights", f"{self.numbers:,} in {self.precision}, in {self.weights.name}"),
            ("sees", radius),
        ]

    def as_dict(self) -> dict[str, object]:
        """What it is as JSON-ready values."""
        return {
            "path": str(self.param),
            "weights": str(self.weights),
            "format": "ncnn",
            "layers": len(self.lines),
            "precision": self.precision,
            "numbers": self.numbers,
            "channels": list(self.channels),
            "scale": self.scale,
            "receptive_radius": self.receptive_radius,
            "global_context": self.global_context,
        }


def weights_path(param: Path) -> Path:
    """The `.bin` file of a `.param` file: the same name beside it."""
    return param.with_suffix(".bin")


def read_ncnn(param: Path, weights: Path | None = None) -> NcnnFile:
    """What a pair of files is; `weights` where the name of the `.bin` is not that of the `.param`.

    Raises:
        ModelError: One is missing or damaged, or they hold another network than AetherNet.
    """
    weights = weights or weights_path(param)
    text = _bytes(param, LARGEST_PARAM)
    try:
        lines = tuple(_lines(text.decode("ascii")))
        found, needs, macs, widest = _walk(lines)
    except UnicodeDecodeError as error:
        raise _damaged(param, "bytes that are no text") from error
    except _OddError as error:
        raise _damaged(param, reason(error)) from None
    halves, count = _weigh(weights, needs)
    picture, result = found
    return NcnnFile(
        param=param,
        weights=weights,
        lines=lines,
        precision="fp16" if halves else "fp32",
        numbers=count,
        channels=(picture.channels, result.channels),
        scale=result.scale,
        receptive_radius=result.radius,
        global_context=any(line.kind == "Pooling" for line in lines),
        macs_per_pixel=macs,
        bytes_per_pixel=4 * LIVE * widest,
    )


LIVE: Final = 4  # of the widest blobs: a layer's input and output, its packed copy, a residual


def _damaged(param: Path, found: str) -> ModelError:
    return ModelError(
        "this is no AetherNet in NCNN's form, or it is damaged",
        file=param,
        expected="layers as aethernet convert --to ncnn writes them",
        found=found,
        advice="copy both files again, or convert the checkpoint again",
    )


def _bytes(path: Path, most: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > most:
            raise _damaged(path, f"{size} bytes")
        return read_file(path, most=most, kind=ModelError)
    except OSError as error:
        raise ModelError(
            f"the file cannot be read: {error.strerror or error}",
            file=path,
            advice="a model in NCNN's form is a .param and a .bin file of one name in one folder",
        ) from error


def _lines(text: str) -> Iterator[Line]:
    rows = text.splitlines()
    if not rows or rows[0].strip() != MAGIC:
        raise _OddError("a first line other than 7767517")
    counts = rows[1].split() if len(rows) > 1 else []
    if len(counts) != 2 or not all(count.isdecimal() for count in counts):
        raise _OddError("no counts of layers and blobs in the second line")
    rows = rows[2:]
    if counts[0] != str(len(rows)):
        raise _OddError(f"{len(rows)} layers where the second line says {counts[0][:12]}")
    blobs = 0
    for number, row in enumerate(rows, start=3):
        line = _line(number, row.split())
        blobs += len(line.outputs)
        yield line
    if counts[1] != str(blobs):
        raise _OddError(f"{blobs} blobs where the second line says {counts[1][:12]}")


def _line(number: int, words: list[str]) -> Line:
    if len(words) < 4 or not (words[2].isdecimal() and words[3].isdecimal()):
        raise _OddError(f"line {number} is no layer")
    # No more names than the line has words, whatever it says.
    first = 4 + min(int(words[2][:6]), len(words))
    last = first + min(int(words[3][:6]), len(words))
    if last > len(words):
        raise _OddError(f"line {number} names fewer blobs than it says")
    return Line(
        number=number,
        kind=words[0],
        inputs=tuple(words[4:first]),
        outputs=tuple(words[first:last]),
        numbers=dict(_number(number, word) for word in words[last:]),
    )


ARRAY: Final = -23300  # minus the id of a parameter that is an array


def _number(number: int, word: str) -> tuple[int, int | float | tuple[float, ...]]:
    key, _, text = word.partition("=")
    try:
        if int(key) > ARRAY:
            value = float(text) if set(text) & set(".en") else int(text)
            return int(key), value
        length, *values = text.split(",")
        if len(values) != int(length):
            raise _OddError(f"line {number}: an array of {len(values)} that says {length[:12]}")
        return ARRAY - int(key), tuple(map(float, values))
    except ValueError:
        raise _OddError(f"line {number}: {word[:40]} is no parameter") from None


def _walk(
    lines: Sequence[Line],
) -> tuple[tuple[Blob, Blob], list[tuple[int, bool]], int, int]:
    """Input and output, the weights, multiply-accumulates, and the most numbers of a blob a px."""
    if not lines or lines[0].kind != "Input" or lines[0].inputs or len(lines[0].outputs) != 1:
        raise _OddError("no layer that takes a picture at the start")
    picture = Blob(channels=_picture_channels(lines))
    blobs: dict[str, Blob] = {lines[0].outputs[0]: picture}
    unused = set(blobs)
    needs: list[tuple[int, bool]] = []
    macs, widest = 0, 1
    for line in lines[1:]:
        rule = RULES.get(line.kind)
        if rule is None:
            raise _OddError(f"a layer {line.kind[:40]}")
        if any(name not in unused for name in line.inputs) or not line.outputs:
            raise _OddError(f"line {line.number} takes what no layer gives, or twice")
        try:
            found = rule(line, [blobs[name] for name in line.inputs])
        except ValueError:
            raise _OddError(f"{line.kind} of {len(line.inputs)} blobs") from None
        unused -= set(line.inputs)
        if unused & set(line.outputs) or len(set(line.outputs)) != len(line.outputs):
            raise _OddError(f"line {line.number} gives a blob that is there already")
        if len(line.outputs) != 1 and line.kind != "Split":
            raise _OddError(f"{line.kind} with {len(line.outputs)} results")
        blobs.update(dict.fromkeys(line.outputs, found.blob))
        unused |= set(line.outputs)
        needs.extend(found.weights)
        macs += found.macs
        widest = max(widest, found.blob.channels * found.blob.scale**2)
    if len(unused) != 1 or lines[-1].outputs[0] not in unused:
        raise _OddError("other than one result")
    result = blobs[lines[-1].outputs[0]]
    if result.scale < 1:
        raise _OddError("a result that is no picture")
    return (picture, result), needs, macs, widest


def _picture_channels(lines: Sequence[Line]) -> int:
    """Channels of the input: those of the first layer with weights, which alone say so."""
    for line in lines:
        if line.kind == "ConvolutionDepthWise":
            return line.integer(7, 0, 1, MOST_CHANNELS)
        if line.kind == "Convolution":
            filters = line.integer(0, 0, 1, MOST_CHANNELS)
            side = line.integer(1, 0, 1, LARGEST_KERNEL)
            channels = line.integer(6, 0, 1, 2**31) // (filters * side**2)
            if 1 <= channels <= MOST_CHANNELS:
                return channels
    raise _OddError("no convolution")


def _weigh(weights: Path, needs: Sequence[tuple[int, bool]]) -> tuple[bool, int]:
    """Whether any weights are halves, and how many there are; the size has to be just right."""
    halves, place = False, 0
    try:
        size = weights.stat().st_size
        with open_file(weights, ModelError) as file:
            for count, tagged in needs:
                width = 4
                if tagged:
                    file.seek(place)
                    tag = file.read(4)
                    if len(tag) == 4 and tag not in TAGS:
                        raise _damaged(weights, f"weights of another kind, {tag.hex()}")
                    _, width = TAGS.get(tag, ("", 4))  # none where the file has ended
                    halves |= tag == HALF
                    place += 4
                place += -(-count * width // 4) * 4
    except OSError as error:
        raise ModelError(
            f"the file cannot be read: {error.strerror or error}",
            file=weights,
            advice="a model in NCNN's form is a .param and a .bin file of one name in one folder",
        ) from error
    if place != size:
        raise _damaged(weights, f"{size} bytes of weights, where the layers need {place} or more")
    return halves, sum(count for count, _ in needs)
