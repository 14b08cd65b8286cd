"""What is measured of an artefact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aether_converters.runtimes.upscaler import Format


@dataclass(frozen=True, kw_only=True)
class PictureProof:
    """How an artefact upscales one picture. PSNR in dB, None where both are equal; SSIM up to 1.

    Attributes:
        picture: Its name.
        psnr: Of the artefact against the source network.
        ssim: The same.
        original_psnr: Of the artefact against the original; None without one.
        original_ssim: The same.
        source_psnr: Of the source network against the original; None without one.
        loss: By how much the artefact lies further from the original than the source, in dB.
        difference: The picture that shows the difference, amplified; None if none was written.
        shift: Largest difference of a channel's mean to the source network, in levels of 255.
    """

    picture: str
    psnr: float | None
    ssim: float
    shift: float = 0.0
    original_psnr: float | None = None
    original_ssim: float | None = None
    source_psnr: float | None = None
    loss: float | None = None
    difference: Path | None = None


Pixels = NDArray[np.uint8]
"""(H, W, 3), sRGB."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How an artefact enlarges a scene.

    Attributes:
        scene: Its name.
        pixels: What is seen.
        max_difference: Largest difference to the source network, where white is 1.
        factor: How many times the difference is amplified in its picture.
        difference: The difference, grey where both agree; None where nobody could ever see it.
    """

    scene: str
    pixels: Pixels = field(repr=False)
    max_difference: float
    factor: int = 1
    difference: Pixels | None = field(repr=False, default=None)

    def as_dict(self) -> dict[str, object]:
        """The figures as JSON-ready values; the pictures stay out."""
        return {
            "scene": self.scene,
            "max_difference": self.max_difference,
            "factor": self.factor,
        }


@dataclass(frozen=True, kw_only=True)
class SceneViews:
    """A scene as everything but the artefacts shows it."""

    name: str
    bicubic: Pixels = field(repr=False)
    source: Pixels = field(repr=False)
    original: Pixels | None = field(repr=False, default=None)

    def as_dict(self) -> dict[str, object]:
        """The facts as JSON-ready values; the pictures stay out."""
        height, width, _ = self.source.shape
        return {"name": self.name, "size": [height, width], "original": self.original is not None}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long an artefact took for a picture, measured briefly.

    Attributes:
        milliseconds: Median of the runs.
        runs: Number of them.
        size: (H, W) of the input in px.
        computed_by: Runtime and processor, in words.
    """

    milliseconds: float
    runs: int
    size: tuple[int, int]
    computed_by: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How far an artefact may stray from its source; what is None is not asked for.

    Attributes:
        max_difference: Largest absolute difference of a pixel, where white is 1; relative to the
            largest output of networks that go beyond it.
        psnr: Least peak signal-to-noise ratio against the source's output, in dB.
        advice: What to do about an artefact with less of it.
        shift: Largest difference of a channel's mean, in levels of 255.
    """

    max_difference: float | None = None
    psnr: float | None = None
    advice: str = "use the fp32 file"
    shift: float | None = None

    def in_words(self, peak: float) -> str:
        """The limit for outputs of up to `peak`, in a few words."""
        if self.max_difference is not None:
            return f"max diff <= {self.max_difference * peak:.0e}"
        colour = "" if self.shift is None else f", colour <= {self.shift:g} levels"
        return f"PSNR >= {self.psnr:g} dB{colour}"


INT8: Final = Limit(
    psnr=35.0, shift=6.0, advice="tune longer with --tune 10m, or convert with --max-loss 0.05"
)


ENGINE_LIMITS: Final[Mapping[str, Limit]] = {
    # Sums are taken in another order than PyTorch takes them, by kernels that the builder chose.
    "fp32": Limit(psnr=80.0, advice="please report it"),
    "fp16": Limit(psnr=50.0),
    "int8": INT8,
}
"""By precision, for what TensorRT computes on a GPU."""


LIMITS: Final[Mapping[str, Limit]] = {
    "fp32": Limit(max_difference=2e-5),
    "fp64": Limit(max_difference=2e-5),
    "fp16": Limit(psnr=50.0),
    "bf16": Limit(psnr=35.0),
    "int8": INT8,
}
"""By precision. 50 dB are 0.8 grey levels of 255 (root mean square), which nobody sees."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far outputs lie apart.

    Attributes:
        max: Largest absolute difference.
        mean: Mean absolute difference.
        psnr: In dB, relative to `peak`.
        ssim: Structural similarity between black and white, the mean over all that was compared.
        peak: Largest absolute value that was expected, at least 1.
        digest: SHA-256 of what the artefact gave.
        shift: Largest difference of a channel's mean over what was compared of a picture.
    """

    max: float
    mean: float
    shift: float
    psnr: float
    ssim: float
    peak: float
    digest: str


@dataclass(frozen=True, kw_only=True)
class Colour:
    """How far colours move: the largest difference of a channel's mean, in levels of 255.

    Attributes:
        pictures: Of all pictures that were compared.
        flat: Of patches of one colour; None for files that take one size alone.
        patch: The colour that moves furthest, such as `0/255/0`; empty where none was compared.
    """

    pictures: float
    flat: float | None = None
    patch: str = ""

    @property
    def shift(self) -> float:
        """The larger of both."""
        return max(self.pictures, self.flat or 0.0)

    @property
    def in_words(self) -> str:
        """Such as `0.1 levels on pictures, 0.3 on flat 0/255/0`."""
        flat = "" if self.flat is None else f", {self.flat:.2f} on flat {self.patch}"
        return f"{self.pictures:.2f} levels of 255 on pictures{flat}"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a report shows of an artefact beside its figures: its speed, and scenes enlarged."""

    speed: Speed | None = None
    views: tuple[View, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A file beside an artefact without which that is no model, such as NCNN's `.bin`."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ArtefactReport:
    """What was measured of one artefact.

    Attributes:
        path: The file.
        format: Such as onnx.
        precision: Such as fp16.
        bytes: Size of the file, without its companions.
        sha256: Of the file, in hexadecimal.
        max_difference: Largest absolute difference to the source's output, where white is 1.
        mean_difference: Mean absolute difference.
        psnr: Against the source's output, in dB; None where both are equal.
        ssim: Structural similarity to the source's output, 1 where both are equal.
        limit: What was asked for, in words.
        passed: Whether it was kept.
        problem: Why not, in words; empty if it passed.
        not_run: Why it was not compared, in words; empty if it was. It has not passed then.
        seconds: Time that writing and comparing took.
        details: Facts about the file, such as opset and nodes.
        pictures: How it upscales each picture that was given.
        speed: How fast it was, where a report asked for it.
        views: How it enlarges what a report shows.
        colour: What becomes of colours, of files in int8.
        companions: Files that belong to it.
    """

    path: Path
    format: Format
    precision: str
    bytes: int
    sha256: str
    max_difference: float
    mean_difference: float
    psnr: float | None
    ssim: float
    limit: str
    passed: bool
    problem: str
    seconds: float
    details: Mapping[str, int | str]
    not_run: str = ""
    pictures: tuple[PictureProof, ...] = ()
    speed: Speed | None = None
    views: tuple[View, ...] = ()
    colour: Colour | None = None
    companions: tuple[Companion, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Of all its files."""
        return self.bytes + sum(file.bytes for file in self.companions)

    def as_dict(self) -> dict[str, object]:
        """The figures as JSON-ready values; what is no number there becomes None."""
        fields = {**asdict(replace(self, views=())), "path": str(self.path)}
        fields["views"] = [view.as_dict() for view in self.views]
        fields["pictures"] = [
            {**vars(picture), "difference": picture.difference and str(picture.difference)}
            for picture in self.pictures
        ]
        if self.colour is not None:
            fields["colour"] = {**vars(self.colour), "in_words": self.colour.in_words}
        fields["total_bytes"] = self.total_bytes
        fields["companions"] = [{**vars(c), "path": str(c.path)} for c in self.companions]
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
