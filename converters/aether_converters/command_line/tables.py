"""The report of a conversion or verification as tables in a terminal."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from aether_converters.command_line.terminal import FAILED, Table, fail, print_json, say, tell

if TYPE_CHECKING:
    from pathlib import Path

    from aether_converters.measuring.figures import ArtefactReport, PictureProof
    from aether_converters.reports.report import Report


def print_report(report: Report, options: argparse.Namespace, *, kept: str, dropped: str) -> int:
    """Print a report, and say what becomes of each file; returns the exit status."""
    if options.json:
        print_json(report.as_dict())
    else:
        # A long folder would fold every row of a narrow terminal, so one folder is said once.
        folders = {artefact.path.parent for artefact in report.artefacts}
        together = len(folders) == 1
        place = f", in {next(iter(folders))}" if together else ""
        table = Table(f"compared with {report.source.path.name}{place}", REPORT_COLUMNS)
        for artefact in report.artefacts:
            table.add_row(
                artefact.path.name if together else str(artefact.path),
                f"{artefact.total_bytes / 2**20:.2f} MiB",
                *_comparison(artefact),
                _result(artefact, kept, dropped),
                stressed=bool(artefact.problem),
            )
        table.show()
        _print_quantisation(report)
        for warning in report.source.warnings:
            tell(f"warning: {warning}")
    for artefact in report.artefacts:
        if artefact.problem:
            fail(f"{artefact.path}: {dropped}: {artefact.problem}")
        if artefact.not_run:
            tell(f"{artefact.path.name}: {kept}, and not run: {artefact.not_run}")
    return FAILED if report.failed else 0


def print_page(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Say last where the report is that was written into a folder."""
    from aether_converters.reports.files import NAMES

    if not options.json:
        _, page = NAMES[report.kind]
        place = (folder / page).resolve()
        say("", f"open this in a browser: {place}", place.as_uri())


def _result(artefact: ArtefactReport, kept: str, dropped: str) -> str:
    """What becomes of a file, and what it loses."""
    verdict = artefact.verdict
    if verdict.result == "failed":
        return dropped
    if verdict.result == "usable":
        said = "usable" if kept == "passed" else f"{kept}, usable"
        return f"{said}: {verdict.words}"
    return kept


def _comparison(artefact: ArtefactReport) -> tuple[str, str, str]:
    """Largest difference, PSNR and limit, as far as it was run."""
    if artefact.not_run:
        return "-", "-", "not run here"
    return (
        f"{artefact.max_difference:.1e}" if artefact.max_difference else "0",
        f"{artefact.psnr:.1f} dB" if artefact.psnr is not None else "equal",
        artefact.limit,
    )


def _print_quantisation(report: Report) -> None:
    """What is in int8, and what each layer costs where that was measured."""
    for artefact in report.artefacts:
        if "int8_share" in artefact.details:
            say(
                f"{artefact.path.name}: {artefact.details['int8_layers']} layers in int8, "
                f"{artefact.details['int8_share']}; {artefact.details['ranges']}"
            )
        if artefact.colour is not None:
            say(f"{artefact.path.name}: colours move by {artefact.colour.in_words}")
        if "tuning" in artefact.details:
            say(f"{artefact.path.name}: tuned: {artefact.details['tuning']}")
        for name in ("int8_share_tensorrt", "int8_share_cpu", "tensorrt"):
            if name in artefact.details:
                say(f"{artefact.path.name}: {name.replace('_', ' ')}: {artefact.details[name]}")
    _print_proofs(report)
    for target, costs in report.costs.items():
        table = Table(f"what each layer costs by itself in int8 for {target}", COST_COLUMNS)
        total = sum(cost.macs for cost in costs)
        for cost in sorted(costs, key=lambda cost: -cost.loss):
            table.add_row(
                cost.layer,
                f"{cost.macs / total:.2%}",
                f"{cost.loss:.4f} dB",
                "int8" if cost.quantised else "float",
            )
        table.show()


def _print_proofs(report: Report) -> None:
    """How each file upscales the pictures that were given."""
    proofs = [(a.path.name, proof) for a in report.artefacts for proof in a.pictures]
    if not proofs:
        return
    known = any(proof.original_psnr is not None for _, proof in proofs)
    table = Table("picture by picture", (*PROOF_COLUMNS, *(ORIGINAL_COLUMNS if known else ())))
    for name, proof in proofs:
        table.add_row(
            name,
            proof.picture,
            "equal" if proof.psnr is None else f"{proof.psnr:.1f} dB",
            f"{proof.ssim:.4f}",
            f"{proof.shift:.2f}",
            *(_to_original(proof) if known else ()),
        )
    table.show()


def _to_original(proof: PictureProof) -> tuple[str, str, str]:
    """PSNR, SSIM and loss; a loss that rounds to nothing has no sign."""
    return (
        "-" if proof.original_psnr is None else f"{proof.original_psnr:.2f} dB",
        "-" if proof.original_ssim is None else f"{proof.original_ssim:.4f}",
        "-" if proof.loss is None else f"{round(proof.loss, 3) + 0.0:.3f} dB",
    )


PROOF_COLUMNS: Final = (
    ("file", "left"),
    ("picture", "left"),
    ("PSNR to source", "right"),
    ("SSIM to source", "right"),
    ("colour", "right"),
)
ORIGINAL_COLUMNS: Final = (("to original", "right"), ("SSIM", "right"), ("loss", "right"))


COST_COLUMNS: Final = (
    ("layer", "left"),
    ("of all MACs", "right"),
    ("loss of PSNR", "right"),
    ("kept in", "left"),
)


REPORT_COLUMNS: Final = (
    ("file", "left"),
    ("size", "right"),
    ("max diff", "right"),
    ("PSNR", "right"),
    ("limit", "left"),
    ("result", "left"),
)
