"""Files compared with the checkpoint they were made from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from typing_extensions import Unpack

from aether_converters.atomic import Identity, identities, placed_by, refuse_input
from aether_converters.errors import ConversionError, fault_of, require
from aether_converters.int8.trained import trained_for
from aether_converters.measuring.effort import effort_of
from aether_converters.measuring.exhibit import exhibit_for, shown_pairs
from aether_converters.measuring.figures import ArtefactReport, PictureProof
from aether_converters.measuring.proof import prove, refuse_other_picture
from aether_converters.measuring.speed import with_speeds
from aether_converters.measuring.verification import Reference, verify_artefact
from aether_converters.pictures.comparison import Pair
from aether_converters.reports.files import card_beside, refuse_other_report, write_report
from aether_converters.reports.report import Report
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.upscaler import Image, Upscaler
from aether_converters.source import Source, read_source
from aether_converters.wanted import Progress, one_or_many, silent
from aether_spandrel.constants import Constants
from aether_spandrel.errors import AetherError


def verify(
    source: str | Path,
    artefacts: str | Path | Sequence[str | Path],
    *,
    pictures: str | Path | Sequence[str | Path] = (),
    originals: str | Path | None = None,
    differences: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
    on_fault: Callable[[AetherError], None] | None = None,
    **constants: Unpack[Constants],
) -> Report:
    """Compare artefacts with the checkpoint they were made from.

    Args:
        source: The checkpoint.
        artefacts: `.pth`, `.safetensors`, `.onnx` or `.engine` files, ours or other people's.
        pictures: Picture files and folders to compare on, beside the built-in pictures.
        originals: Folder with what the pictures should become, under the same names.
        differences: Folder for a picture of each difference, amplified.
        report: Folder for `verify.html` and `verify.json`, with parts of the pictures and speed.
        progress: Called with a few words before each step.
        on_fault: Called with what is wrong with an artefact that cannot be compared; the others
            are compared then, as long as there is one. By default it is raised.
        **constants: Values that no tensor of the checkpoint carries; see `aether_spandrel.load`.

    Returns:
        The figures of every artefact; `passed` says whether all are within their limits.

    Raises:
        CheckpointError: A checkpoint cannot be read or is no AetherNet.
        ModelError: An ONNX file cannot be run.
        ConversionError: The source gives no picture, or an artefact or original has another size.
        ImageError: A picture cannot be read, or has no original.
        MissingExtraError: The runtime of a format is not installed.
    """
    artefacts, pictures = one_or_many(artefacts), one_or_many(pictures)
    say = progress or silent
    say("running the source network")
    origin = read_source(source, **constants)
    pairs = _pairs(origin, pictures, originals)
    if differences is not None and not pairs:
        raise _no_pictures()
    reference = _reference(origin, pairs, report)
    if differences is not None:
        inputs = identities(
            (*origin.files, *artefacts, *pictures, *([originals] if originals else ()))
        )
        _refuse_places(Path(differences), [Path(a) for a in artefacts], pairs, inputs)
    judge = _Judge(
        origin=origin,
        reference=reference,
        pairs=tuple(pairs),
        expected=reference.of_pictures,
        differences=None if differences is None else Path(differences),
    )
    figures: list[ArtefactReport] = []
    last = Path(artefacts[-1])
    for artefact in map(Path, artefacts):
        say(artefact.name)
        try:
            with fault_of(artefact):
                figures.append(judge.compare(artefact))
        except AetherError as error:
            if on_fault is None or (artefact == last and not figures):
                raise
            on_fault(error)
    if reference.exhibit is not None:
        figures = list(with_speeds(figures, reference.exhibit.timed_size))
    found = Report(
        kind="verification",
        source=origin.info,
        source_sha256=origin.sha256,
        card=card_beside(last.parent, origin.sha256).or_else(origin.card),
        effort=effort_of(origin.fused.config),
        artefacts=tuple(figures),
        scenes=reference.scene_views,
    )
    if report is not None:
        with placed_by("--report"):
            write_report(found, Path(report), force=False)
    return found


def _pairs(
    origin: Source, pictures: Sequence[str | Path], originals: str | Path | None
) -> list[Pair]:
    """The pictures to compare on, with what they should become."""
    if not pictures:
        if originals is not None:
            raise _no_pictures()
        return []
    for module in ("PIL", "tifffile", "imagecodecs"):
        require(module)
    from aether_converters.pictures.comparison import comparison_pairs

    config = origin.network.config
    return comparison_pairs(
        pictures, originals, channels=(config.in_chans, config.out_chans), scale=config.scale
    )


def _no_pictures() -> ConversionError:
    return ConversionError(
        "there are no pictures to compare on", advice="name them with --pictures"
    )


def _reference(origin: Source, pairs: list[Pair], report: str | Path | None) -> Reference:
    """The source network, which has run the pictures and what a report shows."""
    exhibit = None
    if report is not None:
        with placed_by("--report"):
            refuse_other_report(Path(report), "verification", force=False)
        config = origin.network.config
        exhibit = exhibit_for(config, pairs or shown_pairs(config, ()))
    return Reference(
        origin.network, [pair.image for pair in pairs], path=origin.path, exhibit=exhibit
    )


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """What artefacts are compared with.

    Attributes:
        origin: The checkpoint.
        reference: Its network.
        pairs: Pictures to compare on beside the built-in ones.
        expected: What the network makes of each.
        differences: Folder for pictures of the differences, if any.
        proofs: What was found on the pictures, by what files compute.
    """

    origin: Source
    reference: Reference
    pairs: tuple[Pair, ...]
    expected: tuple[Image, ...]
    differences: Path | None
    proofs: dict[str, tuple[PictureProof, ...]] = field(
        default_factory=dict[str, "tuple[PictureProof, ...]"]
    )

    def compare(self, artefact: Path) -> ArtefactReport:
        """The figures of one file."""
        upscaler = _run_once(open_upscaler(artefact), [pair.image for pair in self.pairs])
        trained = trained_for(upscaler, self.origin, self.reference.exhibit)
        figures = verify_artefact(upscaler, trained or self.reference)
        if upscaler.format == "onnx" and upscaler.precision == "int8":
            from aether_converters.int8.check import checked_integers

            figures = replace(figures, details={**figures.details, **checked_integers(upscaler)})
        if upscaler.fixed_size is not None or figures.not_run:
            return figures
        return replace(figures, pictures=self._proofs(upscaler, artefact))

    def _proofs(self, upscaler: Upscaler, artefact: Path) -> tuple[PictureProof, ...]:
        """What it makes of the pictures; looked at once for all files that compute the same."""
        folder, computes = self.differences, upscaler.computes()
        if folder is None and computes in self.proofs:
            return self.proofs[computes]
        places = None if folder is None else _difference_places(folder, artefact)
        with placed_by("--differences"):
            found = prove(upscaler.run, self.pairs, self.expected, places)
        if computes:
            self.proofs[computes] = found
        return found


def _run_once(upscaler: Upscaler, images: Sequence[Image]) -> Upscaler:
    """The same, which keeps what it made of these pictures, as more than one looks at it."""
    made: dict[int, Image] = {}
    known = {id(image) for image in images}

    def run(image: Image) -> Image:
        key = id(image)
        if key not in known:
            return upscaler.run(image)
        if key not in made:
            made[key] = upscaler.run(image)
        return made[key]

    return replace(upscaler, run=run)


def _refuse_places(
    folder: Path, artefacts: Sequence[Path], pairs: Sequence[Pair], inputs: Collection[Identity]
) -> None:
    """Raise ConversionError where a difference picture would take the place of another file."""
    with placed_by("--differences"):
        taken: dict[Path, str] = {}
        for artefact in artefacts:
            place = _difference_places(folder, artefact)
            for pair in pairs:
                target = place(pair.name)
                whose = f"{artefact} on {pair.name}"
                if target in taken:
                    raise ConversionError(
                        "two pictures would be written to one file",
                        file=target,
                        found=f"{taken[target]}, and {whose}",
                        advice="rename one, or compare them one by one, into different folders",
                    )
                taken[target] = whose
                refuse_input(target, inputs)
                refuse_other_picture(target)


def _difference_places(folder: Path, artefact: Path) -> Callable[[str], Path]:
    """Where an artefact's difference pictures go, by the picture's name."""
    return lambda name: folder / f"{artefact.stem}_{name}_difference.png"
