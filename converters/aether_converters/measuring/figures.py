"""What is measured of an artefact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

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
        psnr: Of what is seen, in 8 bits, against the original, or against the source network where
            there is none; in dB, None where both are equal.
        difference: What it gives beyond the source network, (H, W, 3), where white is 1; None where
            nobody could ever see it.
    """

    scene: str
    pixels: Pixels = field(repr=False)
    max_difference: float
    psnr: float | None = None
    difference: NDArray[np.float32] | None = field(repr=False, default=None)

    def as_dict(self) -> dict[str, object]:
        """The figures as JSON-ready values; the pictures stay out."""
        return {"scene": self.scene, "max_difference": self.max_difference, "psnr": self.psnr}


@dataclass(frozen=True, kw_only=True)
class SceneViews:
    """A scene as everything but the artefacts shows it.

    Attributes:
        name: Of the picture.
        bicubic: Enlarged by bicubic interpolation.
        source: Enlarged by the source network.
        original: What it should become; None where that is not known.
        bicubic_psnr: In dB against the original, or against the source network without one.
        source_psnr: In dB against the original; None without one.
    """

    name: str
    bicubic: Pixels = field(repr=False)
    source: Pixels = field(repr=False)
    original: Pixels | None = field(repr=False, default=None)
    bicubic_psnr: float | None = None
    source_psnr: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The facts as JSON-ready values; the pictures stay out."""
        height, width, _ = self.source.shape
        return {
            "name": self.name,
            "size": [height, width],
            "original": self.original is not None,
            "bicubic_psnr": self.bicubic_psnr,
            "source_psnr": self.source_psnr,
        }


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long an artefact took for a picture, measured in turn with the others of its report.

    Attributes:
        milliseconds: Median of the runs.
        spread: Half the distance between the quartiles of the runs, relative to the median.
        runs: Number of them.
        size: (H, W) of the input in px.
        computed_by: Runtime and processor, in words.
        load: Programs that wanted to run in the minute before, ours among them, for each core; 0
            where the system does not say.
    """

    milliseconds: float
    spread: float
    load: float
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
class Patch:
    """What becomes of a patch of one colour.

    Attributes:
        colour: By its levels, such as `0/255/0`.
        shift: Largest difference of a channel's mean, in levels of 255.
        source: Mean of each channel of what the source network gives, in levels.
        found: The same of the artefact.
    """

    colour: str
    shift: float
    source: tuple[float, ...]
    found: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Colour:
    """How far colours move: the largest difference of a channel's mean, in levels of 255.

    Attributes:
        pictures: Of all pictures that were compared.
        patches: Patches of one colour, the one that moves furthest first; none for files that take
            one size alone.
    """

    pictures: float
    patches: tuple[Patch, ...] = ()

    @property
    def flat(self) -> float | None:
        """How far the patch moves that moves furthest; None where none was compared."""
        return self.patches[0].shift if self.patches else None

    @property
    def patch(self) -> str:
        """Which patch that is, such as `0/255/0`; empty where none was compared."""
        return self.patches[0].colour if self.patches else ""

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
    """What a report shows of an artefact beside its figures: scenes enlarged."""

    views: tuple[View, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A file beside an artefact without which that is no model, such as NCNN's `.bin`."""

    path: Path
    bytes: int
    sha256: str


UNSEEN: Final = 50.0  # dB; from here on nobody sees a difference
TINT: Final = 1.0  # level of 255 by which a colour moves before anybody sees it
TYPICAL_ERROR: Final = 1e-3
"""Mean squared error of a trained network against the truth: 30 dB."""


LEAST_LOSS: Final = 0.1  # dB that are worth a number


def loss_of(error: float) -> float:
    """The PSNR in dB that a network of 30 dB loses by an error that is independent of its own."""
    return 10 * math.log10(1 + error / TYPICAL_ERROR)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an artefact is worth.

    Attributes:
        result: `usable` is within its limit, and yet somebody may see what it loses.
        words: What it loses, or why it failed or was not run; empty if it passed.
    """

    result: Literal["passed", "usable", "failed", "not run"]
    words: str = ""


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
    def verdict(self) -> Verdict:
        """Whether anybody can tell it from its source, and by what."""
        if self.not_run:
            return Verdict(result="not run", words=self.not_run)
        if self.problem:
            return Verdict(result="failed", words=self.problem)
        losses = [self._loss] if self.psnr is not None and self.psnr < UNSEEN else []
        if self.colour is not None and self.colour.shift >= TINT:
            levels = round(self.colour.shift)
            losses.append(f"tints by {levels} level{'s' * (levels != 1)}")
        if not losses:
            return Verdict(result="passed")
        return Verdict(result="usable", words=", ".join(losses))

    @property
    def _loss(self) -> str:
        """By how much it lies further from the truth, where that is known, else from 30 dB."""
        known = [proof.loss for proof in self.pictures if proof.loss is not None]
        psnr = math.inf if self.psnr is None else self.psnr
        loss = sum(known) / len(known) if known else loss_of(10 ** (-psnr / 10))
        if loss < LEAST_LOSS:
            return f"loses less than {LEAST_LOSS} dB"
        return f"loses {'' if known else 'about '}{loss:.1f} dB"

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
            fields["colour"] = {
                "pictures": self.colour.pictures,
                "flat": self.colour.flat,
                "patch": self.colour.patch,
                "in_words": self.colour.in_words,
                "patches": [vars(patch) for patch in self.colour.patches],
            }
        fields["total_bytes"] = self.total_bytes
        fields["verdict"] = vars(self.verdict)
        fields["companions"] = [{**vars(c), "path": str(c.path)} for c in self.companions]
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
