"""Whether an artefact computes what its source computes, measured on pictures."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch

from aether_converters.errors import ConversionError
from aether_converters.measuring.colour import (
    FLAT_SIDE,
    LEVELS,
    mean_shift,
    moved_colours,
)
from aether_converters.measuring.exhibit import (
    Exhibit,
    computed_by,
    look_at,
    view_of,
)
from aether_converters.measuring.figures import (
    ENGINE_LIMITS,
    LIMITS,
    ArtefactReport,
    Colour,
    Companion,
    Difference,
    Limit,
    SceneViews,
    Shown,
)
from aether_converters.measuring.proof import ssim
from aether_converters.runtimes.upscaler import Format, Image, Upscaler
from aether_core import AetherNet
from aether_spandrel.doubts import HALF_RANGE, activation_peak
from aether_spandrel.inference import FastAetherNet, build_network, channels_last
from aether_spandrel.network import Network, float_weights, fuse

SIZES: Final = ((96, 80), (37, 53))  # (H, W) in px; neither square, one odd
IN_HALF_ON_GPUS: Final[frozenset[Format]] = frozenset({"onnx", "ncnn"})
"""Formats whose fp16 files a GPU computes in float16, and this CPU in float32."""

WINDOW: Final = 24  # input px; the side of each part in which a fixed-size artefact is compared


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture, and what the source makes of it.

    Attributes:
        image: (1, C, H, W) in [0, 1].
        windows: Parts (top, bottom, left, right) of the output that are compared, in output px.
        expected: The source's output in each window, (1, C, h, w).
    """

    image: Image = field(repr=False)
    windows: tuple[tuple[int, int, int, int], ...]
    expected: tuple[Image, ...] = field(repr=False)


class Reference:
    """The source network in float32, run by PyTorch as programs run it."""

    def __init__(
        self,
        network: Network,
        pictures: Sequence[Image] = (),
        *,
        path: Path | None = None,
        model: AetherNet | None = None,
        exhibit: Exhibit | None = None,
    ) -> None:
        """Prepare comparisons.

        Args:
            network: The source as read from its checkpoint.
            pictures: (1, C, H, W) in [0, 1] to compare on, beside the built-in ones.
            path: The checkpoint, to be named in errors.
            model: What computes it; None for the float network. A network that was trained for
                int8 is what it is with its rounding.
            exhibit: What artefacts are asked for beside the comparison, for a report.

        Raises:
            ConversionError: The source itself gives NaN or Inf.
        """
        self.config = network.config
        self.exhibit = exhibit
        self._network = network
        fused = fuse(network)
        self._model = model or build_network(fused.config, float_weights(fused), FastAetherNet)
        images = [
            *(structured_image(network.config.in_chans, *size) for size in SIZES),
            *pictures,
        ]
        self._cases = [self._whole(image) for image in images]
        self._of_size: dict[tuple[int, int], Case] = {}
        self._shown: dict[tuple[str, str], Shown] = {}
        self._differences: dict[tuple[str, bool], Difference] = {}
        scenes = exhibit.scenes if exhibit else ()
        self._scenes = [(scene, self.run(scene.image)) for scene in scenes]
        if not all(bool(np.isfinite(case.expected[0]).all()) for case in self._cases):
            raise ConversionError(
                "the network gives NaN or Inf instead of a picture",
                file=path,
                advice="its training diverged or the file is damaged: use another checkpoint",
            )

    def cases(self, upscaler: Upscaler) -> list[Case]:
        """The comparisons for an artefact: all pictures that it takes, or one of a size it does."""
        size = upscaler.fixed_size
        if size is None:
            taken = [
                case
                for case in self._cases
                if upscaler.accepted_size(*case.image.shape[2:]) == case.image.shape[2:]
            ]
            if taken:
                return taken
            size = upscaler.size_ranges[0].least
        if size not in self._of_size:
            image = structured_image(self.config.in_chans, *size)
            # A part of the picture does not tell what the whole gives where it is pooled.
            whole = self.config.global_context
            self._of_size[size] = self._whole(image) if whole else self._windows(image)
        return [self._of_size[size]]

    def difference(self, upscaler: Upscaler) -> Difference:
        """How far an artefact's outputs lie from the source's, over all its cases.

        Computed once for all that compute the same, as files with the same tensors do.
        """
        computes = upscaler.computes()
        key = (computes, upscaler.precision == "int8")  # whose values end at black and white
        if not computes or key not in self._differences:
            self._differences[key] = compare(upscaler, self.cases(upscaler))
        return self._differences[key]

    @property
    def of_pictures(self) -> tuple[Image, ...]:
        """What the source makes of each picture that was given beside the built-in ones."""
        return tuple(case.expected[0] for case in self._cases[len(SIZES) :])

    @cached_property
    def overflows_in_half(self) -> bool:
        """Whether activations leave the range of float16, where a GPU would compute in it.

        onnxruntime computes fp16 files in float32 on most CPUs, so running them does not tell.
        """
        return activation_peak(self._network)[0] > HALF_RANGE

    @cached_property
    def scene_views(self) -> tuple[SceneViews, ...]:
        """What bicubic interpolation and the source make of the scenes that a report shows."""
        return tuple(look_at(scene, exact, self.config) for scene, exact in self._scenes)

    def show(self, upscaler: Upscaler, digest: str) -> Shown:
        """What a report shows of an artefact, whose results in the comparison have this digest.

        Looked at once for all files that give the same results, bit for bit, in the same runtime,
        as those with the same weights do.
        """
        if self.exhibit is None:
            return Shown()
        key = (computed_by(upscaler), digest)
        if key not in self._shown:
            views = (
                view_of(scene, upscaler.run(scene.image), exact)
                for scene, exact in self._scenes
                if upscaler.accepted_size(*scene.image.shape[2:]) == scene.image.shape[2:]
            )
            self._shown[key] = Shown(views=tuple(views))
        return self._shown[key]

    def run(self, image: Image) -> Image:
        """What the source makes of (1, C, H, W): (1, C_out, scale * H, scale * W)."""
        with torch.inference_mode():
            given = torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
            return self._model(channels_last(given)).contiguous().numpy()

    def _whole(self, image: Image) -> Case:
        expected = self.run(image)
        _, _, height, width = expected.shape
        return Case(image=image, windows=((0, height, 0, width),), expected=(expected,))

    def _windows(self, image: Image) -> Case:
        """Two corners and the centre: a picture of the fixed size may be too large for PyTorch."""
        _, _, height, width = image.shape
        margin, scale = self.config.receptive_radius, self.config.scale
        windows: list[tuple[int, int, int, int]] = []
        expected: list[Image] = []
        for place in (0.0, 0.5, 1.0):
            top, left = int(place * max(height - WINDOW, 0)), int(place * max(width - WINDOW, 0))
            bottom, right = min(top + WINDOW, height), min(left + WINDOW, width)
            y, x = max(top - margin, 0), max(left - margin, 0)
            seen = self.run(image[:, :, y : bottom + margin, x : right + margin])
            rows = slice(scale * (top - y), scale * (bottom - y))
            columns = slice(scale * (left - x), scale * (right - x))
            expected.append(seen[:, :, rows, columns])
            windows.append((scale * top, scale * bottom, scale * left, scale * right))
        return Case(image=image, windows=tuple(windows), expected=tuple(expected))


def structured_image(channels: int, height: int, width: int) -> Image:
    """A picture with all that networks are sensitive to, the same each time.

    Gradients, gratings of rising frequency, hard edges, fine lines, texture, flat black and
    white; shape (1, channels, height, width), values in [0, 1].
    """
    random = np.random.default_rng(20250625)
    v = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    u = np.linspace(0.0, 1.0, width, dtype=np.float32)[None, :]
    gradient = (u + v) / 2
    grating = 0.5 + 0.5 * np.sin(2 * np.pi * (2 + 10 * u) * u * (1 + v))
    planes: list[Image] = []
    for channel in range(channels):
        plane = np.where(v < 0.5, gradient, grating).astype(np.float32)
        for _ in range(12):
            top, left = random.integers(0, height), random.integers(0, width)
            plane[
                top : top + int(random.integers(1, max(height // 3, 2))),
                left : left + int(random.integers(1, max(width // 3, 2))),
            ] = random.choice([0.0, 1.0, random.random()])
        plane[:: 7 + channel, :] = 1.0 - plane[:: 7 + channel, :]
        texture = random.normal(0.0, 0.05, (height, width)).astype(np.float32)
        planes.append(np.clip(plane + np.where(u > 0.6, texture, 0.0), 0.0, 1.0))
    return np.stack(planes).astype(np.float32)[None]


def compare(upscaler: Upscaler, cases: Iterable[Case]) -> Difference:
    """How far the artefact's outputs lie from the source's, over all cases.

    Those of int8 files end at black and white, so the source's do as well.
    """
    ends = (0.0, 1.0) if upscaler.precision == "int8" else (-math.inf, math.inf)
    largest, total, squares, count, peak, shift = 0.0, 0.0, 0.0, 0, 1.0, 0.0
    likeness: list[float] = []
    digest = hashlib.sha256()
    for case in cases:
        output = upscaler.run(case.image)
        digest.update(output.tobytes())
        for (top, bottom, left, right), expected in zip(case.windows, case.expected, strict=True):
            found = output[:, :, top:bottom, left:right]
            expected = np.clip(expected, *ends)
            error = np.abs(np.clip(found.astype(np.float64), *ends) - expected)
            # NaN is the largest of all; `max` would leave it out.
            largest = float(np.maximum(largest, error.max()))
            total += float(error.sum())
            squares += float(np.square(error).sum())
            count += error.size
            peak = max(peak, float(np.abs(expected).max()))
            likeness.append(_likeness(found, expected))
            shift = max(shift, mean_shift(found, expected))
    rmse = math.sqrt(squares / count)
    psnr = (
        math.inf
        if rmse == 0
        else 20 * math.log10(peak / rmse)
        if math.isfinite(rmse)
        else -math.inf
    )
    return Difference(
        max=largest,
        mean=total / count,
        shift=shift,
        psnr=psnr,
        ssim=sum(likeness) / len(likeness),
        peak=peak,
        digest=digest.hexdigest(),
    )


def _likeness(found: Image, expected: Image) -> float:
    shown = (torch.from_numpy(np.clip(image, 0, 1)).double() for image in (found, expected))
    return ssim(*shown)


def verify_artefact(
    upscaler: Upscaler, reference: Reference, *, exhibited: bool = True
) -> ArtefactReport:
    """Compare an artefact with its source and judge it by `LIMITS`.

    Args:
        upscaler: The artefact.
        reference: Its source.
        exhibited: Whether it is also asked for what the reference's exhibit shows.

    Raises:
        ConversionError: The artefact has another scale or other channels.
    """
    started = time.perf_counter()
    config = reference.config
    wanted = (config.scale, (config.in_chans, config.out_chans))
    other = upscaler.details.get("architecture")
    if other or (upscaler.scale, upscaler.channels) != wanted:
        found = _facts(upscaler.scale, upscaler.channels)
        raise ConversionError(
            "this was made from another network",
            file=upscaler.path,
            expected=_facts(*wanted),
            found=f"{other}, {found}" if other else found,
            advice="name the checkpoint that it was made from",
        )
    limits = ENGINE_LIMITS if upscaler.format == "trt" else LIMITS
    limit = limits[upscaler.precision]
    difference = reference.difference(upscaler)
    colour = _colour(upscaler, reference, difference)
    problem = _problem(difference, colour, limit)
    half = upscaler.format in IN_HALF_ON_GPUS and upscaler.precision == "fp16"
    if half and reference.overflows_in_half:
        problem = "its activations overflow float16 on a GPU: use the fp32 file"
    file, *companions = (
        Companion(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path in (upscaler.path, *upscaler.companions)
        for content in (path.read_bytes(),)
    )
    shown = reference.show(upscaler, difference.digest) if exhibited else Shown()
    return ArtefactReport(
        path=upscaler.path,
        format=upscaler.format,
        precision=upscaler.precision,
        bytes=file.bytes,
        sha256=file.sha256,
        max_difference=difference.max,
        mean_difference=difference.mean,
        psnr=difference.psnr if math.isfinite(difference.psnr) else None,
        ssim=difference.ssim,
        limit=limit.in_words(difference.peak),
        passed=not problem,
        problem=problem,
        seconds=time.perf_counter() - started,
        details=upscaler.details,
        views=shown.views,
        colour=colour,
        companions=tuple(companions),
    )


def _colour(upscaler: Upscaler, reference: Reference, difference: Difference) -> Colour | None:
    """What becomes of colours in an int8 file."""
    if upscaler.precision != "int8":
        return None
    pictures = LEVELS * difference.shift
    side = (FLAT_SIDE, FLAT_SIDE)
    if upscaler.fixed_size is not None or upscaler.accepted_size(*side) != side:
        return Colour(pictures=pictures)
    patches = moved_colours(upscaler.run, reference.run, reference.config.in_chans)
    return Colour(pictures=pictures, patches=patches)


def _facts(scale: int, channels: tuple[int, int]) -> str:
    return f"{scale}x, {channels[0]} channels in and {channels[1]} out"


def _problem(difference: Difference, colour: Colour | None, limit: Limit) -> str:
    if not math.isfinite(difference.max):
        return "it gives NaN or Inf where the source does not: use the fp32 file"
    if limit.max_difference is not None:
        allowed = limit.max_difference * difference.peak
        if difference.max > allowed:
            return f"max difference {difference.max:.1e} is above {allowed:.0e}"
    if limit.psnr is not None and difference.psnr < limit.psnr:
        return f"PSNR {difference.psnr:.1f} dB is below {limit.psnr:g} dB: {limit.advice}"
    if colour is not None and limit.shift is not None and colour.shift > limit.shift:
        return f"colours move by {colour.in_words}, beyond {limit.shift:g}: {limit.advice}"
    return ""
