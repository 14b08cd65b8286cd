"""Runs models through the unmodified backend of ChaiNNer: its nodes, then its HTTP server.

    python tests/programs/chainner_backend.py CHAINNER_SOURCE MODEL... [--picture PICTURE]

CHAINNER_SOURCE is a checkout of ChaiNNer, of which only `backend/src` is used and nothing changed.
The Python that runs this has the packages that ChaiNNer pins and aether-spandrel. Checkpoints go
through Load Model, Upscale Image, Save Model, Interpolate Models, Convert To ONNX at every opset
and Convert To NCNN; ONNX files through ChaiNNer's ONNX nodes. Everything is compared with what
aether-spandrel or onnxruntime computes without ChaiNNer. The exit status is 1 if a figure exceeds
its limit. Like ChaiNNer itself, the server installs with pip what it finds missing.

Pictures have sides that are multiples of 16, because ChaiNNer pads what it gives to an ONNX model
of any size to them; for the one that has not, the reference is padded in the same way. So whole
pictures are compared, borders included, and models that pool over the picture too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import aether_spandrel

Picture = NDArray[np.float32]
"""A picture as ChaiNNer's nodes pass it: (H, W, C) BGR or BGRA, or (H, W), in [0, 1]."""
Settings = Mapping[str, Mapping[str, object]]
"""The user's settings by ChaiNNer package, as the server receives them."""
Link = tuple[str, int]
"""A node of a chain by its name, and the index of one of its outputs."""

FP32: Final[Settings] = {"chaiNNer_pytorch": {"use_cpu": True, "use_fp16": False}}
FP16: Final[Settings] = {"chaiNNer_pytorch": {"use_cpu": False, "use_fp16": True}}
"""ChaiNNer turns fp16 off where the CPU is asked for, not where there is nothing but a CPU."""

PACKAGES: Final = ("standard", "pytorch", "ncnn", "onnx", "tensorrt", "external")
VERSIONS: Final = (
    *("aether-spandrel", "spandrel", "spandrel_extra_arches", "torch", "safetensors", "numpy"),
    *("onnx", "onnxruntime", "onnxoptimizer", "protobuf", "ncnn-vulkan", "sanic", "Pillow"),
)
OPSETS: Final = (14, 15, 16, 17)
NO_TILING: Final = -1
SIZE_STEP: Final = 16  # what ChaiNNer pads the input of an ONNX model of any size to
CUT: Final = 11  # taken from both sides for a picture that needs padding
CHANNELS: Final[Mapping[int, list[int]]] = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}  # RGB to BGR
SHARE: Final = 0.7  # of the second model, where two are interpolated

SAME: Final = 0.0
LIMIT: Final = 1e-5
NCNN_LEVELS: Final = 2 / 255  # ChaiNNer's NCNN nodes compute in 8 bits on both sides
PSNR_FP16: Final = 50.0
OFF_BY_ONE: Final = 1e-3  # share of samples that may be rounded to the next of 256 levels

Outcome = Literal["pass", "FAIL", "not run"]
HEADER: Final = ("model", "check", "figure", "limit", "result")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was measured on which model, and whether it is right."""

    model: str
    check: str
    figure: str
    limit: str = ""
    outcome: Outcome = "pass"

    @property
    def cells(self) -> tuple[str, ...]:
        """The line's texts, in the order of `HEADER`."""
        return (self.model, self.check, self.figure, self.limit, self.outcome)


class NodeError(Exception):
    """A node of ChaiNNer, or its server, answered with an error."""


# ChaiNNer in this process


class Backend:
    """ChaiNNer's nodes, each run as its own executor runs it: inputs enforced, with a context."""

    def __init__(self, source: Path, storage: Path) -> None:
        """Import every package of nodes, as the server does when it starts."""
        folder = source / "backend" / "src"
        sys.path.insert(0, str(folder))
        self._api: Any = importlib.import_module("api")
        for package in PACKAGES:
            importlib.import_module(f"packages.chaiNNer_{package}")
        failed: list[Any] = self._api.registry.load_nodes(str(folder / "server.py"))
        self.failures: Mapping[str, str] = {item.module: str(item.error) for item in failed}
        self._process: Any = importlib.import_module("process")
        self._controller: Any = importlib.import_module("progress_controller").ProgressController
        self._storage = storage

    def run(self, schema: str, settings: Settings, inputs: Mapping[int, object]) -> list[Any]:
        """The outputs of one node.

        Args:
            schema: The node, such as `pytorch:load_model`.
            settings: The user's settings.
            inputs: Value by input ID; the others have what the node's form shows at first.

        Raises:
            NodeError: The node failed.
        """
        registry = self._api.registry
        name = f"chainner:{schema}"
        if name not in registry.nodes:
            raise NodeError(f"{name} is not registered: {dict(self.failures)}")
        node = registry.get_node(name)
        values = [inputs.get(i.id, getattr(i, "default", None)) for i in node.inputs]
        options = self._api.ExecutionOptions.parse(settings)
        context = self._process._ExecutorNodeContext(
            self._controller(),
            options.get_package_settings(registry.get_package(name).id),
            self._storage,
        )
        try:
            outputs: list[Any] = self._process.run_node(node, context, values, name).output
        except Exception as error:  # the executor wraps whatever a node raises
            raise NodeError(f"{node.name}: {_causes(error)}") from error
        finally:
            for clean_up in (*context.node_cleanup_fns, *context.chain_cleanup_fns):
                clean_up()
        return outputs

    def load(self, path: Path, settings: Settings = FP32) -> Any:
        """The model of a checkpoint file."""
        return self.run("pytorch:load_model", settings, {0: str(path)})[0]

    def load_onnx(self, path: Path) -> Any:
        """The model of an ONNX file."""
        return self.run("onnx:load_model", FP32, {0: str(path)})[0]

    def upscale(self, model: Any, picture: Picture, settings: Settings = FP32) -> Picture:
        """The picture, enlarged in one piece by a PyTorch model."""
        inputs = {0: model, 1: picture, 2: NO_TILING}
        return self.run("pytorch:upscale_image", settings, inputs)[0]

    def upscale_onnx(self, model: Any, picture: Picture) -> Picture:
        """The picture, enlarged in one piece by an ONNX model."""
        return self.run("onnx:upscale_image", FP32, {0: model, 1: picture, 2: NO_TILING})[0]


def _causes(error: BaseException | None) -> str:
    texts: list[str] = []
    while error is not None:
        text = str(error) or type(error).__name__
        if text not in texts:
            texts.append(text)
        error = error.__cause__
    return ", since ".join(texts)


# Pictures


def to_tensor(picture: Picture) -> Tensor:
    """A picture of ChaiNNer's as (1, C, H, W), RGB or RGBA."""
    tensor = torch.as_tensor(picture)  # (H, W, C) or (H, W)
    tensor = tensor[:, :, None] if tensor.ndim == 2 else tensor
    return tensor[:, :, CHANNELS[tensor.shape[2]]].permute(2, 0, 1)[None].contiguous()


def from_tensor(tensor: Tensor) -> Picture:
    """(1, C, H, W), RGB or RGBA, as a picture of ChaiNNer's."""
    picture = tensor[0].float()[CHANNELS[tensor.shape[1]]].permute(1, 2, 0)
    return (picture[:, :, 0] if tensor.shape[1] == 1 else picture).contiguous().numpy()


def difference(one: Picture, other: Picture) -> float:
    """The largest absolute difference; infinite if sizes differ or a value is not finite."""
    if one.shape != other.shape or not np.isfinite(one).all() or not np.isfinite(other).all():
        return float("inf")
    return float(np.abs(one.astype(np.float64) - other).max())


def psnr(one: Picture, other: Picture) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; -inf where `difference` is infinite."""
    if difference(one, other) == float("inf"):
        return float("-inf")
    error = float(np.square(one.astype(np.float64) - other).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def padded(picture: Picture) -> Picture:
    """The picture, mirrored at its bottom and right up to multiples of `SIZE_STEP`."""
    height, width = picture.shape[:2]
    sides = [(0, -height % SIZE_STEP), (0, -width % SIZE_STEP), (0, 0)][: picture.ndim]
    return np.pad(picture, sides, "reflect")


def cut(picture: Picture) -> Picture:
    """The picture, a little smaller, so that its sides are no multiples of `SIZE_STEP`."""
    return np.ascontiguousarray(picture[:-CUT, :-CUT])


def read_levels(path: Path) -> NDArray[np.int16]:
    """The 8-bit levels of an image file, (H, W, C) RGB or RGBA, or (H, W)."""
    image: Any = Image.open(path)
    return np.asarray(image, dtype=np.int16)


def read_picture(path: Path) -> Picture:
    """The picture of an image file, read without ChaiNNer."""
    levels = torch.as_tensor(read_levels(path))
    levels = levels[:, :, None] if levels.ndim == 2 else levels
    return from_tensor(levels.permute(2, 0, 1)[None] / 255)


def draw_picture(source: Path | None, channels: int, size: tuple[int, int], path: Path) -> None:
    """Write a PNG file of that many channels: a given picture, or waves and noise.

    Args:
        source: The picture, cropped to multiples of `SIZE_STEP`; None draws one.
        channels: 1, 3 or 4.
        size: (H, W) in px of a drawn picture.
        path: The file to write.
    """
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if source is not None:
        image: Any = Image.open(source)
        width, height = (side // SIZE_STEP * SIZE_STEP for side in image.size)
        image.convert(mode).crop((0, 0, width, height)).save(path)
        return
    height, width = size
    y, x, channel = np.ogrid[:height, :width, :channels]
    waves = 127 + 80 * np.sin(x / 5 + channel) * np.cos(y / 7 - channel)
    noise = np.random.default_rng(0).integers(-40, 40, (height, width, channels))
    array = np.clip(waves + noise, 0, 255).astype(np.uint8)
    Image.fromarray(array[:, :, 0] if channels == 1 else array, mode).save(path)


# Through the nodes


class Examination:
    """Measures one file; each method yields rows of the table."""

    def __init__(self, backend: Backend, path: Path, picture: Path | None, folder: Path) -> None:
        """Examine the file at `path`, writing what is needed into `folder`."""
        self.backend = backend
        self.path = path
        self.given = picture
        self.folder = folder

    def row(self, check: str, figure: str, limit: str = "", *, good: bool = True) -> Row:
        """A row on this file."""
        return Row(
            model=self.path.name,
            check=check,
            figure=figure,
            limit=limit,
            outcome="pass" if good else "FAIL",
        )

    def not_run(self, check: str, reason: str) -> Row:
        """A row on what could not be measured."""
        return Row(model=self.path.name, check=check, figure=reason, outcome="not run")

    def compare(
        self, check: str, expected: Picture, *results: Picture, limit: float = LIMIT
    ) -> Row:
        """A row on the largest difference that a result has from what is expected."""
        found = max(difference(result, expected) for result in results)
        allowed = f"{limit:.0e}" if limit else "0"
        return self.row(check, f"{found:.1e}", allowed, good=found <= limit)

    def compare_psnr(self, check: str, expected: Picture, *results: Picture) -> Row:
        """A row on the worst of results that were computed in fp16."""
        found = min(psnr(result, expected) for result in results)
        largest = max(difference(result, expected) for result in results)
        figure = f"{found:.1f} dB, {largest:.1e}"
        return self.row(check, figure, f"{PSNR_FP16:.0f} dB", good=found >= PSNR_FP16)

    def levels(self, check: str, found: Path, expected: Picture) -> Row:
        """A row on a picture file of 8 bits."""
        written = read_levels(found)
        rounded = to_tensor(expected)[0].permute(1, 2, 0).mul(255).round()
        wanted: Picture = (rounded[:, :, 0] if expected.ndim == 2 else rounded).numpy()
        if written.shape != wanted.shape:
            return self.row(check, f"{written.shape}", f"{wanted.shape}", good=False)
        off = np.abs(written - wanted)
        share = float((off > 0).mean())
        figure = f"{int(off.max())} levels, {share:.2%} of {off.size} samples"
        return self.row(
            check, figure, f"1 level, {OFF_BY_ONE:.1%}", good=off.max() <= 1 and share <= OFF_BY_ONE
        )


class CheckpointExamination(Examination):
    """Measures a checkpoint."""

    def __init__(self, backend: Backend, path: Path, picture: Path | None, folder: Path) -> None:
        """Load the checkpoint without ChaiNNer, as the reference."""
        super().__init__(backend, path, picture, folder)
        notes = aether_spandrel.inspect(path).notes
        self.unreadable = "; ".join(note for note in notes if "ChaiNNer" in note)
        self.reference = aether_spandrel.load(path)
        self.picture_path = folder / "picture.png"
        draw_picture(picture, self.reference.input_channels, (48, 64), self.picture_path)
        self.picture = read_picture(self.picture_path)
        with torch.inference_mode():
            self.expected = from_tensor(self.reference(to_tensor(self.picture)))

    def examine(self) -> Iterator[Row]:
        """All rows of the nodes chain, unless `inspect` warns that ChaiNNer misreads the file."""
        if self.unreadable:
            yield self.not_run("nodes", self.unreadable)
            return
        yield from self.loading()
        yield from self.saving()
        yield from self.interpolation()
        yield from self.half_precision()
        yield from self.conversion("fp32")
        yield from self.conversion("fp16")
        yield from self.ncnn()

    def loading(self) -> Iterator[Row]:
        """Load Image, Load Model, Upscale Image, against the network without ChaiNNer."""
        model = self.backend.load(self.path)
        scale, architecture, purpose = self.backend.run("pytorch:model_dim", FP32, {0: model})
        found = f"{described(model)} {architecture} {purpose}"
        expected = f"{described(self.reference)} AetherNet {self.reference.purpose}"
        yield self.row(
            "load", found, expected, good=found == expected and scale == self.reference.scale
        )
        inside = float(((self.expected > 0) & (self.expected < 1)).mean())
        yield self.row("samples that are not clipped", f"{inside:.0%}")
        picture = self.backend.run("image:load", FP32, {0: str(self.picture_path)})[0]
        result = self.backend.upscale(model, picture)
        yield self.compare("upscale, against aether_spandrel.load", self.expected, result)

    def saving(self) -> Iterator[Row]:
        """Load, Save Model, Load, against Load alone; then the same with the file gone bad.

        A loaded model must not depend on its file any longer: users save over it.
        """
        model = self.backend.load(self.path)
        before = self.backend.upscale(model, self.picture)
        for form in ("pth", "safetensors"):
            inputs = {0: model, 1: str(self.folder), 2: "saved", 3: form}
            self.backend.run("pytorch:save_model", FP32, inputs)
            path = self.folder / f"saved.{form}"
            again = self.backend.load(path)
            result = self.backend.upscale(again, self.picture)
            yield self.compare(f"save and load .{form}", before, result, limit=SAME)
            path.write_bytes(bytes(path.stat().st_size))
            result = self.backend.upscale(again, self.picture)
            yield self.compare(f"overwrite the .{form} loaded", before, result, limit=SAME)

    def interpolation(self) -> Iterator[Row]:
        """Interpolate Models on two checkpoints of this configuration."""
        first, second = self._two_checkpoints()
        torch.save(first, self.folder / "first.pth")
        torch.save(second, self.folder / "second.pth")
        models = [self.backend.load(self.folder / name) for name in ("first.pth", "second.pth")]
        inputs = {0: models[0], 1: models[1], 2: round(100 * SHARE)}
        model = self.backend.run("pytorch:interpolate_models", FP32, inputs)[0]
        self.reference.model.load_state_dict(
            {
                key: torch.lerp(value, second[key], SHARE) if value.is_floating_point() else value
                for key, value in first.items()
            }
        )
        with torch.inference_mode():
            expected = from_tensor(self.reference(to_tensor(self.picture)))
        result = self.backend.upscale(model, self.picture)
        yield self.compare(f"interpolate {SHARE:.0%}", expected, result)

    def _two_checkpoints(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # ChaiNNer interpolates nothing that makes a small white picture darker than half.
        channels = self.reference.input_channels
        with torch.inference_mode():
            white = float(self.reference.model(torch.ones(1, channels, 3, 3)).mean())
        first = {key: value.clone() for key, value in self.reference.model.state_dict().items()}
        first["conv_last.bias"] += 1 - white
        generator = torch.Generator().manual_seed(0)
        second = {
            key: value * (1 + 0.02 * torch.randn(value.shape, generator=generator))
            if key.endswith((".weight", ".bias"))
            else value
            for key, value in first.items()
        }
        return first, second

    def half_precision(self) -> Iterator[Row]:
        """Load and upscale with ChaiNNer's fp16 mode switched on."""
        model = self.backend.load(self.path, FP16)
        if model.dtype != torch.float16:
            yield self.not_run("upscale in fp16", f"ChaiNNer loads {model.dtype}")
            return
        result = self.backend.upscale(model, self.picture, FP16)
        yield self.compare_psnr("upscale in fp16", self.expected, result)

    def conversion(self, precision: Literal["fp32", "fp16"]) -> Iterator[Row]:
        """Convert To ONNX at every opset, Save and Load ONNX, Upscale, against PyTorch."""
        odd = cut(self.picture)
        height, width = (self.reference.scale * side for side in odd.shape[:2])
        odd_expected = self.backend.upscale(self.backend.load(self.path), padded(odd))
        wholes: list[Picture] = []
        parts: list[Picture] = []
        found: set[str] = set()
        for opset in OPSETS:
            loaded = self._converted(precision, opset)
            found.add(recognised(self.backend, loaded))
            wholes.append(self.backend.upscale_onnx(loaded, self.picture))
            parts.append(self.backend.upscale_onnx(loaded, odd))
        check = f"to ONNX {precision}, opset {OPSETS[0]} to {OPSETS[-1]}"
        expected = f"{described(self.reference)} {precision}"
        yield self.row(check, ", ".join(sorted(found)), expected, good=found == {expected})
        compare = self.compare_psnr if precision == "fp16" else self.compare
        yield compare(f"to ONNX {precision}, upscale", self.expected, *wholes)
        yield compare(f"to ONNX {precision}, upscale padded", odd_expected[:height, :width], *parts)

    def _converted(self, precision: Literal["fp32", "fp16"], opset: int) -> Any:
        half = precision == "fp16"
        settings = FP16 if half else FP32
        name = f"{precision}_{opset}"
        model = self.backend.load(self.path, settings)
        # ChaiNNer's own verification is too strict for what fp16 rounds; ours follows.
        inputs = {0: model, 1: int(half), 2: opset, 3: int(not half)}
        converted = self.backend.run("pytorch:convert_to_onnx", settings, inputs)[0]
        self.backend.run("onnx:save_model", FP32, {0: converted, 1: str(self.folder), 2: name})
        return self.backend.load_onnx(self.folder / f"{name}.onnx")

    def ncnn(self) -> Iterator[Row]:
        """Convert To NCNN and, where Vulkan is, upscale; what ChaiNNer cannot convert is no fault.

        Its converter knows a part of ONNX only, and drops constants that are added or multiplied.
        NCNN then crashes, and this process with it, so such a network is not run.
        """
        model = self.backend.load(self.path)
        try:
            converted = self.backend.run("pytorch:convert_to_ncnn", FP32, {0: model, 1: 0})[0]
        except NodeError as error:
            yield self.not_run("to NCNN", str(error))
            return
        # ChaiNNer counts output channels wrongly where a convolution follows the pixel shuffle.
        found = f"{converted.scale}x {converted.in_nc} {converted.fp}"
        expected = f"{model.scale}x {model.input_channels} fp32"
        yield self.row("to NCNN", found, expected, good=found == expected)
        lost = undefined_blobs(converted)
        if lost or not has_vulkan():
            reason = f"ChaiNNer dropped {', '.join(lost)}" if lost else "no Vulkan device"
            yield self.not_run("to NCNN, upscale", reason)
            return
        inputs = {0: converted, 1: self.picture, 2: NO_TILING}
        result = self.backend.run("ncnn:upscale_image", FP32, inputs)[0]
        yield self.compare("to NCNN, upscale", self.expected, result, limit=NCNN_LEVELS)

    def over_http(self, server: Server) -> Iterator[Row]:
        """Load Image, Load Model, Upscale Image, Save Image, run by the server."""
        if self.unreadable:
            yield self.not_run("HTTP", self.unreadable)
            return
        yield self.levels(
            "HTTP", server.upscale("pytorch", self.path, self.picture_path), self.expected
        )


class OnnxExamination(Examination):
    """Measures an ONNX file."""

    def __init__(self, backend: Backend, path: Path, picture: Path | None, folder: Path) -> None:
        """Find out with onnxruntime alone what the file is."""
        super().__init__(backend, path, picture, folder)
        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0]
        _, channels, height, width = entry.shape
        fixed = isinstance(height, int) and isinstance(width, int)
        self.fixed = fixed
        self.picture_path = folder / "picture.png"
        size = (height, width) if fixed else (48, 64)
        draw_picture(None if fixed else picture, channels, size, self.picture_path)
        self.picture = read_picture(self.picture_path)
        self.half = entry.type == "tensor(float16)"
        self.session = session
        self.expected = self._upscale(self.picture)
        scale, rest = divmod(self.expected.shape[0], self.picture.shape[0])
        out_channels = 1 if self.expected.ndim == 2 else self.expected.shape[2]
        precision = "fp16" if self.half else "fp32"
        self.truth = f"{scale}x {channels}->{out_channels} {precision}" + ("?" if rest else "")
        self.scale = scale

    def _upscale(self, picture: Picture) -> Picture:
        tensor = to_tensor(picture).numpy()
        name = self.session.get_inputs()[0].name
        given = tensor.astype(np.float16) if self.half else tensor
        result = torch.from_numpy(self.session.run(None, {name: given})[0])
        return from_tensor(result.float().clamp(0, 1))

    def examine(self) -> Iterator[Row]:
        """Load ONNX, what it recognises, Upscale, against onnxruntime without ChaiNNer."""
        model = self.backend.load_onnx(self.path)
        found = recognised(self.backend, model)
        yield self.row("load ONNX", found, self.truth, good=found == self.truth)
        result = self.backend.upscale_onnx(model, self.picture)
        yield self.compare("upscale, against onnxruntime", self.expected, result)
        if self.fixed:
            return
        odd = cut(self.picture)
        height, width = (self.scale * side for side in odd.shape[:2])
        result = self.backend.upscale_onnx(model, odd)
        expected = self._upscale(padded(odd))[:height, :width]
        yield self.compare("upscale padded, against onnxruntime", expected, result)

    def over_http(self, server: Server) -> Iterator[Row]:
        """Load Image, Load Model, Upscale Image, Save Image, run by the server."""
        yield self.levels(
            "HTTP", server.upscale("onnx", self.path, self.picture_path), self.expected
        )


def described(model: Any) -> str:
    """Scale and channels of a model of spandrel's."""
    return f"{model.scale}x {model.input_channels}->{model.output_channels}"


def recognised(backend: Backend, model: Any) -> str:
    """Scale, channels and dtype that ChaiNNer shows for an ONNX model."""
    scale = backend.run("onnx:model_info", FP32, {0: model})[0]
    info = model.info
    return f"{scale}x {info.input_channels}->{info.output_channels} {info.dtype}"


def undefined_blobs(model: Any) -> list[str]:
    """Names that layers of an NCNN model of ChaiNNer's take but no layer makes."""
    layers = [layer for layer in model.model.layers if layer.op_type != "ncnnfused"]
    made = {name for layer in layers for name in layer.outputs}
    taken = dict.fromkeys(name for layer in layers for name in layer.inputs)
    return [name for name in taken if name not in made]


def has_vulkan() -> bool:
    """Whether ChaiNNer's build of NCNN finds a device to run on."""
    try:
        ncnn: Any = importlib.import_module("ncnn_vulkan").ncnn
    except ImportError:
        return False
    return ncnn.get_gpu_count() > 0


# Over HTTP


class Server:
    """ChaiNNer's server, started as its desktop program starts it: a host and its worker."""

    def __init__(self, port: int, folder: Path) -> None:
        """Talk to the server on `port`; pictures are written into `folder`."""
        self._url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._schemas: dict[str, Any] = {}
        self._written = 0

    def upscale(self, package: Literal["pytorch", "onnx"], model: Path, picture: Path) -> Path:
        """Run the chain that enlarges a picture file; the path of what it wrote.

        Raises:
            NodeError: The chain failed.
        """
        self._written += 1
        name = f"{self._written}"
        chain = [
            self._node("picture", "image:load", {0: str(picture)}),
            self._node("model", f"{package}:load_model", {0: str(model)}),
            self._node("larger", f"{package}:upscale_image", {0: ("model", 0), 1: ("picture", 0)}),
            self._node("file", "image:save", {0: ("larger", 0), 1: str(self._folder), 3: name}),
        ]
        answer = self.ask(
            "/run",
            {
                "data": chain,
                "options": FP32,
                "sendBroadcastData": True,
                "useExperimentalFeatures": False,
            },
        )
        if answer.get("type") != "success":
            raise NodeError(f"{answer.get('message')} {answer.get('exception')}")
        return self._folder / f"{name}.png"

    def _node(self, name: str, schema: str, inputs: Mapping[int, str | Link]) -> dict[str, object]:
        if not self._schemas:
            self._schemas = {item["schemaId"]: item for item in self.ask("/nodes")["nodes"]}
        form = self._schemas[f"chainner:{schema}"]
        return {
            "id": name,
            "schemaId": form["schemaId"],
            "nodeType": form["kind"],
            "inputs": [_input(inputs.get(i["id"], i.get("def"))) for i in form["inputs"]],
        }

    def ask(self, path: str, content: object = None) -> dict[str, Any]:
        """The answer to a GET, or to a POST where there is content."""
        request = urllib.request.Request(
            self._url + path,
            data=None if content is None else json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:  # what failed stands in the answer
            return json.load(error)


def _input(value: object) -> dict[str, object]:
    if isinstance(value, tuple):
        node, output = cast("Link", value)
        return {"type": "edge", "id": node, "index": output}
    return {"type": "value", "value": value}


@contextmanager
def run_server(source: Path, folder: Path, patience: float = 600) -> Generator[Server]:
    """A server that is ready, and is shut down afterwards.

    Args:
        source: The checkout of ChaiNNer.
        folder: For everything that the server and its chains write.
        patience: Seconds in which the server must have become ready.

    Raises:
        NodeError: It did not.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    environment = {**os.environ, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONHOME", None)
    command = [sys.executable, str(source / "backend" / "src" / "run.py"), str(port)]
    command += ["--storage-dir", str(folder), "--logs-dir", str(folder)]
    with (folder / "server.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    server = Server(port, folder)
    try:
        end = time.monotonic() + patience
        while not _is_ready(server):
            if process.poll() is not None or time.monotonic() > end:
                raise NodeError(f"no server: {(folder / 'server.txt').read_text()[-2000:]}")
            time.sleep(1)
        yield server
        server.ask("/shutdown", {})
        process.wait(60)
    finally:
        process.kill()


def _is_ready(server: Server) -> bool:
    try:
        return bool(server.ask("/status").get("ready"))
    except (urllib.error.URLError, ConnectionError):
        return False


# The program


def table(rows: Sequence[Row]) -> str:
    """The rows as text in columns."""
    lines = [HEADER, *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def examine(source: Path, models: Sequence[Path], picture: Path | None) -> Iterator[Row]:
    """All rows, model by model through the nodes, then model by model over HTTP."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        backend = Backend(source, root)
        subjects: list[CheckpointExamination | OnnxExamination] = []
        for index, model in enumerate(models):
            folder = root / f"{index}"
            folder.mkdir()
            kind = OnnxExamination if model.suffix == ".onnx" else CheckpointExamination
            try:
                subject = kind(backend, model, picture, folder)
                subjects.append(subject)
                yield from subject.examine()
            except NodeError as error:
                yield Row(model=model.name, check="nodes", figure=str(error), outcome="FAIL")
        with run_server(source, root) as server:
            for subject in subjects:
                try:
                    yield from subject.over_http(server)
                except NodeError as error:
                    yield subject.row("HTTP", str(error), good=False)


def installed() -> str:
    """The versions that the figures belong to."""
    found: list[str] = []
    for name in VERSIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return f"Python {sys.version.split()[0]}, " + ", ".join(found)


def main() -> int:
    """Run what the command line asks for; 1 if a limit was exceeded."""
    parser = argparse.ArgumentParser(description="Run models through ChaiNNer's backend.")
    parser.add_argument("source", type=Path, metavar="CHAINNER_SOURCE")
    parser.add_argument("models", type=Path, metavar="MODEL", nargs="+")
    parser.add_argument("--picture", type=Path, help="what to enlarge, instead of a drawing")
    options = parser.parse_args()
    sys.dont_write_bytecode = True  # the checkout stays as it is
    models = [model.resolve() for model in options.models]
    rows = list(examine(options.source.resolve(), models, options.picture))
    failures = sum(row.outcome == "FAIL" for row in rows)
    sys.stdout.write(f"{installed()}\n\n{table(rows)}\n\n{len(rows)} rows, {failures} failures\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
