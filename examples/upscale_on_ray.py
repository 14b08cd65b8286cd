"""Enlarge folders of pictures on every machine of a Ray cluster.

    python examples/upscale_on_ray.py model.pth photos/ --out enlarged/
    python examples/upscale_on_ray.py model.pth photos/ --out enlarged/ --device cuda --gpus 1

Ray gives the pictures to its workers, and those of a machine that is gone to others; each worker
opens the model once. A run that was stopped goes on where it ended when the same command is given
again. Model and folders have to be where all machines see them under the same names.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from aether_converters.errors import ImageError
from aether_converters.pictures.batch import PictureReport, run_jobs
from aether_converters.pictures.jobs import Job, plan_jobs
from aether_converters.pictures.upscaling import TileOptions
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.upscaler import Upscaler
from aether_spandrel.errors import AetherError

TOGETHER: Final = 8
"""Pictures that a worker gets at a time, of which it reads one while it computes another."""

TRIES: Final = 3
"""How often Ray gives pictures to another worker, if the one that had them is gone."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is asked for.

    Attributes:
        model: The model file.
        device: Of PyTorch.
        memory: Bytes that one tile may take.
    """

    model: Path
    device: str
    memory: int


OPENED: Final[dict[Task, Upscaler]] = {}
"""The model that this worker has opened."""


def enlarge(task: Task, jobs: Sequence[Job]) -> list[PictureReport]:
    """Enlarge some pictures in this worker, which opens the model for the first of them alone."""
    if task not in OPENED:
        OPENED[task] = open_upscaler(task.model, device=task.device)
    return list(run_jobs(jobs, OPENED[task], TileOptions(memory=task.memory)))


def planned(model: Path, pictures: Sequence[Path], out: Path) -> list[Job]:
    """Which picture goes where, under names that do not depend on a worker's own folder.

    Raises:
        AetherError: There is no picture, or the model cannot be opened.
    """
    scale = open_upscaler(model).scale
    jobs = plan_jobs([path.absolute() for path in pictures], f"{out.absolute()}/", scale)
    # Files have other numbers on each machine; and as nothing is ever replaced, none are needed.
    return [replace(job, inputs=()) for job in jobs]


def enlarge_everywhere(
    task: Task, jobs: Sequence[Job], *, cpus: float, gpus: float
) -> Iterator[PictureReport]:
    """What becomes of each picture, as soon as it is known, on a cluster that is connected.

    Pictures that ended their worker again and again are tried once more, each by itself; the one
    that does so still is reported as failed.
    """
    ray: Any = importlib.import_module("ray")
    errors: Any = importlib.import_module("ray.exceptions")
    remote = ray.remote(enlarge).options(
        num_cpus=cpus, num_gpus=gpus, max_retries=TRIES, scheduling_strategy="SPREAD"
    )
    shared = ray.put(task)
    waiting = {remote.remote(shared, part): part for part in _parts(jobs, TOGETHER)}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        part = waiting.pop(done)
        try:
            yield from ray.get(done)
        except errors.RayError as error:
            if len(part) == 1:
                yield _lost(part[0], error)
            else:
                waiting |= {remote.remote(shared, [job]): [job] for job in part}


def _parts(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    return (jobs[start : start + size] for start in range(0, len(jobs), size))


def _lost(job: Job, error: Exception) -> PictureReport:
    """The report of a picture that ends whichever worker has it."""
    fault = ImageError(
        "the worker that had this picture ended",
        file=job.source,
        found=str(error).strip().split("\n", 1)[0],
        advice="enlarge it alone, with `aethernet upscale` and less --memory",
    )
    return PictureReport(
        source=job.source, target=job.target, outcome="failed", notes=(str(fault),), fault=fault
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Enlarge what the command line names; returns the exit status."""
    options = _options(arguments)
    try:
        jobs = planned(options.model, options.pictures, options.out)
    except AetherError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ray: Any = importlib.import_module("ray")
    ray.init(address=options.address, logging_level=logging.ERROR, log_to_driver=False)
    task = Task(
        model=options.model.absolute(), device=options.device, memory=int(options.memory * 2**30)
    )
    counts = _told(enlarge_everywhere(task, jobs, cpus=options.cpus, gpus=options.gpus))
    outcomes = ("written", "skipped", "failed")
    print(f"{len(jobs)} pictures: {', '.join(f'{counts[name]} {name}' for name in outcomes)}")
    ray.shutdown()
    return 1 if counts["failed"] else 0


def _told(reports: Iterable[PictureReport]) -> Counter[str]:
    """How many there are of each outcome, once each has been told."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts[report.outcome] += 1
        failed = report.outcome == "failed"
        said = "; ".join([report.outcome, *report.notes])
        print(f"{report.source}: {said}", file=sys.stderr if failed else sys.stdout, flush=True)
    return counts


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--address", help="of the cluster (default: RAY_ADDRESS, or this machine)")
    parser.add_argument("--device", default="cpu", help="for .pth and .safetensors: cpu or cuda")
    parser.add_argument("--cpus", type=float, default=1, help="of each worker (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker (default: 0)")
    parser.add_argument(
        "--memory", type=float, default=1.0, metavar="GIB", help="that one tile may take"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
