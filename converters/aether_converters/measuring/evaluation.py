"""Model files beside each other on pictures whose originals are known."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from aether_converters.errors import ImageError, fault_of
from aether_converters.measuring.perceptual import lpips, lpips_network
from aether_converters.measuring.quality import Quality, mean_quality, quality
from aether_converters.pictures.formats import is_picture
from aether_converters.pictures.jobs import pictures_in
from aether_converters.pictures.picture import Picture, Planes
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.shrinking import SHRINKING
from aether_converters.pictures.upscaling import TileOptions, upscale_picture
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.upscaler import Upscaler
from aether_spandrel.errors import AetherError
from aether_spandrel.file_kinds import HEAD_BYTES, describe_head
from aether_spandrel.opening import read_file


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """Pictures that papers give figures of; `pattern` is what folders of them are called."""

    name: str
    pictures: int
    pattern: str


KNOWN_SETS: Final = (
    KnownSet(name="Set5", pictures=5, pattern=r"set_?5"),
    KnownSet(name="Set14", pictures=14, pattern=r"set_?14"),
    KnownSet(name="BSD100", pictures=100, pattern=r"(bsds?|b)_?100"),
    KnownSet(name="Urban100", pictures=100, pattern=r"urban_?100"),
    KnownSet(name="DIV2K valid", pictures=100, pattern=r"div2k_?valid(_hr)?"),
)


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """What pictures are enlarged, and how they are compared.

    Attributes:
        originals: The folder of what the enlarged pictures should be.
        lowres: The folder of what is enlarged; None: the originals made smaller.
        shrinking: How, a name of `SHRINKING`.
        crop: Px at each side that are not compared; None: as many as the scale.
        lpips: Whether LPIPS is measured, too.
        tiles: How large pictures are cut.
    """

    originals: Path
    lowres: Path | None = None
    shrinking: str = "bicubic-matlab"
    crop: int | None = None
    lpips: bool = False
    tiles: TileOptions = field(default_factory=TileOptions)

    def __post_init__(self) -> None:
        """Raise ImageError for a way of shrinking that does not exist."""
        if self.shrinking not in SHRINKING:
            raise ImageError(
                "pictures are not made smaller in this way",
                expected=", ".join(SHRINKING),
                found=self.shrinking,
            )

    @property
    def known_set(self) -> KnownSet | None:
        """The set that the folder of the originals, or one around it, is named after."""
        for part in reversed(self.originals.absolute().parts):
            for known in KNOWN_SETS:
                if re.fullmatch(known.pattern, part, re.IGNORECASE):
                    return known
        return None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one file makes of all pictures.

    Attributes:
        path: The file.
        precision: In which its weights are stored.
        scale: Of the model.
        crop: Px at each side that were not compared.
        pictures: By the originals' names, without those that failed.
        mean: Over these; None if there is none.
    """

    path: Path
    precision: str
    scale: int
    crop: int
    pictures: Mapping[str, Quality]
    mean: Quality | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Files beside each other.

    Attributes:
        set_name: Of the known set that the folder is named after, or empty.
        originals: How many pictures there are.
        expected: How many the known set has; None where it is none.
        lowres: What was enlarged, in words.
        files: The figures, in the order of the files.
        faults: What was wrong with files and pictures.
    """

    set_name: str
    originals: int
    expected: int | None
    lowres: str
    files: tuple[Figures, ...]
    faults: tuple[AetherError, ...]

    @property
    def complete(self) -> bool:
        """Whether these are figures of a known set, of all its pictures."""
        whole = self.originals == self.expected and not self.faults
        return whole and all(len(file.pictures) == self.originals for file in self.files)

    @property
    def name(self) -> str:
        """The known set that the figures are of, or how many pictures."""
        some = f"{self.originals} picture{'s' * (self.originals != 1)}"
        if self.complete:
            return self.set_name
        return f"{some} of {self.set_name}" if self.set_name else some

    def as_dict(self) -> dict[str, object]:
        """The figures as JSON-ready values."""
        return {
            "name": self.name,
            "set": self.set_name,
            "originals": self.originals,
            "expected": self.expected,
            "lowres": self.lowres,
            "files": [{**asdict(one), "path": str(one.path)} for one in self.files],
            "faults": [str(fault) for fault in self.faults],
        }


OnPicture = Callable[[str], None]


def evaluate(
    models: str | Path | Sequence[str | Path | Upscaler],
    comparing: Comparing,
    *,
    kept: Path | None = None,
    opened: Callable[[Path], Upscaler] = open_upscaler,
    on_picture: OnPicture = lambda _: None,
) -> Evaluation:
    """PSNR and SSIM of what models make of pictures, as `aethernet upscale` would write it.

    One model and one picture are in memory at a time. What is wrong with one is a fault of the
    result, and the others go on.

    Args:
        models: Files, and models that are open already.
        comparing: The pictures.
        kept: A file to which each figure is added at once, and whose figures are not computed
            again if model, pictures and choices are the same; None: none is kept.
        opened: Opens a file.
        on_picture: Told the model and the picture before each.

    Raises:
        ImageError: There is no picture in the folder of the originals.
        MissingExtraError: What LPIPS needs is not installed.
    """
    if comparing.lpips:
        lpips_network()
    originals = [path for path, _ in pictures_in(comparing.originals, recursive=False)]
    memory = _Memory(kept)
    faults: list[AetherError] = []
    files: list[Figures] = []
    for model in (models,) if isinstance(models, (str, Path)) else models:
        path = model.path if isinstance(model, Upscaler) else Path(model)
        try:
            with fault_of(path):
                upscaler = model if isinstance(model, Upscaler) else opened(path)
                digest = _digest(upscaler.path, *upscaler.companions)
        except AetherError as error:
            faults.append(error)
            continue
        run = _Run(upscaler=upscaler, comparing=comparing, digest=digest, memory=memory)
        found: dict[str, Quality] = {}
        for original in originals:
            on_picture(f"{path.name}: {original.name}")
            try:
                with fault_of(original):
                    found[original.stem] = run.figures(original)
            except AetherError as error:
                faults.append(error)
        files.append(
            Figures(
                path=path,
                precision=upscaler.precision,
                scale=upscaler.scale,
                crop=run.crop,
                pictures=found,
                mean=mean_quality(list(found.values())) if found else None,
            )
        )
    known = comparing.known_set
    return Evaluation(
        set_name=known.name if known else "",
        originals=len(originals),
        expected=known.pictures if known else None,
        lowres=f"from {comparing.lowres}" if comparing.lowres else f"by {comparing.shrinking}",
        files=tuple(files),
        faults=tuple(faults),
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A model that is evaluated."""

    upscaler: Upscaler
    comparing: Comparing
    digest: str
    memory: _Memory

    @property
    def crop(self) -> int:
        crop = self.comparing.crop
        return self.upscaler.scale if crop is None else crop

    def figures(self, original: Path) -> Quality:
        """Of one picture; remembered, or computed and kept.

        Raises:
            AetherError: A picture cannot be read or is of another size, or the model fails.
        """
        given = self._given(original)
        key = {
            "model": self.digest,
            "computed_by": str(self.upscaler.details.get("provider", "")),
            "pictures": [_digest(path) for path in (original, given) if path is not None],
            "shrinking": "" if given else self.comparing.shrinking,
            "crop": self.crop,
            "tiles": asdict(self.comparing.tiles),
            **({"lpips": "0.1, alex"} if self.comparing.lpips else {}),
        }
        return self.memory.recalled(key) or self.memory.keep(key, self._computed(original, given))

    def _given(self, original: Path) -> Path | None:
        """The low-resolution picture of an original, or None."""
        folder, scale = self.comparing.lowres, self.upscaler.scale
        if folder is None:
            return None
        stem = original.stem
        names = (stem, f"{stem}x{scale}", f"{stem}_x{scale}", re.sub("HR$", "LR", stem))
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.stem in names and is_picture(path):
                return path
        raise ImageError(
            "there is no low-resolution picture for this original",
            file=original,
            expected=f"{' or '.join(dict.fromkeys(names))} with any picture's ending in {folder}",
            advice="name it so, or leave --lowres out",
        )

    def _computed(self, original: Path, given: Path | None) -> Quality:
        scale = self.upscaler.scale
        truth = read_picture(original)
        if given is None:
            color = _cropped(truth, [side // scale for side in truth.color.shape[1:]], scale)
            small = SHRINKING[self.comparing.shrinking](color, scale)
            lowres = replace(truth, color=small, alpha=None)
        else:
            lowres = replace(read_picture(given), alpha=None)
            color = _cropped(truth, lowres.color.shape[1:], scale)
            if len(lowres.color) != len(color):  # grey beside RGB of three equal channels
                color = np.broadcast_to(color, (3, *color.shape[1:]))
                lowres = replace(
                    lowres, color=np.broadcast_to(lowres.color, (3, *lowres.color.shape[1:]))
                )
        found = upscale_picture(self.upscaler, lowres, self.comparing.tiles).color
        if len(found) != len(color):
            found = np.broadcast_to(found, color.shape)
        figures = quality(found, color, self.crop)
        if not self.comparing.lpips:
            return figures
        return replace(figures, lpips=lpips(found, color, self.crop))


def _cropped(original: Picture, small: Sequence[int], scale: int) -> Planes:
    """The original's colours at `scale` times a size (H, W), without what is left, as papers cut.

    Raises:
        ImageError: It is smaller, or larger by `scale` px or more.
    """
    rows, columns = (scale * side for side in small)
    height, width = original.color.shape[1:]
    if not (rows <= height < rows + scale and columns <= width < columns + scale):
        raise ImageError(
            "the original is not of the size of the enlarged picture",
            expected=f"{columns} x {rows} px, or up to {scale - 1} px more",
            found=f"{width} x {height} px",
            advice="give the low-resolution pictures of this scale",
        )
    return original.color[:, :rows, :columns]


class _Memory:
    """Figures of earlier runs, in a file of JSON lines to which those of this run are added."""

    def __init__(self, path: Path | None) -> None:
        """Read what is there; a line that an end of power cut off is none.

        Raises:
            AetherError: The file holds anything else, which nothing may be added to.
        """
        self._path = path
        self._known: dict[str, Quality] = {}
        for line in _lines(path):
            try:
                entry = cast("dict[str, Any]", json.loads(line))
                self._known[_text(entry["key"])] = _kept_quality(entry["quality"])
            except (ValueError, TypeError, KeyError):
                continue

    def recalled(self, key: Mapping[str, object]) -> Quality | None:
        """What was kept under a key."""
        return self._known.get(_text(key))

    def keep(self, key: Mapping[str, object], found: Quality) -> Quality:
        """The same, once it is kept."""
        self._known[_text(key)] = found
        if self._path is not None:
            with fault_of(self._path), self._path.open("a+b") as stream:
                # A line that was cut off must not take this one along.
                line = json.dumps({"key": key, "quality": asdict(found)})
                stream.write(f"\n{line}\n".encode())
        return found


BEGIN: Final = b'{"key": '  # of each line
MOST_KEPT: Final = 2**28  # bytes


def _lines(path: Path | None) -> Iterator[bytes]:
    if path is None or not path.exists():
        return
    for line in filter(None, read_file(path, most=MOST_KEPT, kind=AetherError).splitlines()):
        if not (line.startswith(BEGIN) or BEGIN.startswith(line)):
            raise AetherError(
                "this file holds something else than kept figures",
                file=path,
                found=describe_head(line[:HEAD_BYTES]),
                advice="choose another name with --kept",
            )
        yield line


def _kept_quality(found: Mapping[str, Any]) -> Quality:
    """Figures that were kept; raises ValueError or TypeError if they are none."""
    kept = Quality(**found)
    for name, value in asdict(kept).items():
        none = value is None and name.startswith(("psnr", "lpips"))
        if not none and not math.isfinite(cast("float", value)):
            raise ValueError("no figure")
    return kept


def _text(key: object) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(*paths: Path) -> str:
    """SHA-256 of files, one after another."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(2**20), b""):
                total.update(block)
    return total.hexdigest()
