"""What a conversion or verification found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from aether_converters.card import ModelCard
from aether_converters.int8.sensitivity import Cost
from aether_converters.measuring.effort import Effort
from aether_converters.measuring.figures import ArtefactReport, SceneViews
from aether_converters.reports.programs import chosen_files
from aether_spandrel.inspection import CheckpointInfo

if TYPE_CHECKING:
    from aether_converters.measuring.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion or verification found: the source, and each artefact.

    An artefact that could not be run where it was made has neither passed nor failed.

    Attributes:
        kind: Whether the artefacts were made, or only compared.
        source: The checkpoint.
        source_sha256: Of its file, in hexadecimal.
        card: Whose it is, as far as anybody said so.
        effort: What it has to compute.
        artefacts: What was measured of each.
        scenes: What the source makes of the parts of pictures that a report shows.
        evaluations: How near artefacts come to originals, one for each folder of these.
        costs: By int8 target, what each layer costs, where that was asked for.
    """

    kind: Literal["conversion", "verification"]
    source: CheckpointInfo
    source_sha256: str
    card: ModelCard
    effort: Effort
    artefacts: tuple[ArtefactReport, ...]
    scenes: tuple[SceneViews, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    costs: Mapping[str, tuple[Cost, ...]] = field(default_factory=dict[str, tuple[Cost, ...]])

    @property
    def passed(self) -> bool:
        """Whether every artefact equals its source within its limit."""
        return all(artefact.passed for artefact in self.artefacts)

    @property
    def failed(self) -> bool:
        """Whether an artefact differs from its source by more than its limit."""
        return any(artefact.problem for artefact in self.artefacts)

    def as_dict(self) -> dict[str, object]:
        """The report as JSON-ready values."""
        return {
            "kind": self.kind,
            "passed": self.passed,
            "source": {**self.source.as_dict(), "sha256": self.source_sha256},
            "card": self.card.as_dict(),
            "effort": asdict(self.effort),
            "scenes": [scene.as_dict() for scene in self.scenes],
            "programs": [choice.as_dict() for choice in chosen_files(self.artefacts)],
            "artefacts": [artefact.as_dict() for artefact in self.artefacts],
            "evaluations": [evaluation.as_dict() for evaluation in self.evaluations],
            "sensitivity": {
                target: [cost.as_dict() for cost in costs] for target, costs in self.costs.items()
            },
        }
