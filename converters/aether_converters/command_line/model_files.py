"""The model files among what a command was given: `release/*` names others beside them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aether_converters.command_line.terminal import tell
from aether_converters.errors import ModelError
from aether_spandrel.errors import AetherError
from aether_spandrel.opening import is_folder


def model_files(given: Sequence[Path], *, source: Path | None = None) -> list[Path]:
    """Those of them that are named as models, and those in folders; the others are told.

    Args:
        given: Files and folders.
        source: What is not taken from a folder, since the others are compared with it.

    Raises:
        ModelError: There is none.
    """
    from aether_converters.runtimes.upscaler import SUFFIXES

    found = _in_folders(given, source)
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    others = [path for path in found if path.suffix.lower() not in SUFFIXES]
    if not files:
        raise ModelError(
            "there is no model file among what was named",
            expected=", ".join(SUFFIXES),
            found=", ".join(map(str, others or given)),
            advice="name the files, or the folder in which they are",
        )
    if others:
        names = ", ".join(path.name for path in others)
        tell(f"left out, since they are no model files: {names}")
    return files


@contextmanager
def model_first(command: str, model: Path, others: Sequence[Path]) -> Generator[None]:
    """Errors of what was named as model, with the order that is right if a model stands behind."""
    from aether_converters.runtimes.upscaler import SUFFIXES

    try:
        yield
    except AetherError as error:
        found = next((path for path in reversed(others) if path.suffix.lower() in SUFFIXES), None)
        if error.file == model and found is not None and model.suffix.lower() not in SUFFIXES:
            error.advice = f"the model stands first: aethernet {command} {found} {model}"
        raise


def _in_folders(given: Sequence[Path], source: Path | None) -> list[Path]:
    """What was named, with the model files of a folder in its place, without the source itself."""
    from aether_converters.atomic import identity
    from aether_converters.errors import fault_of
    from aether_converters.runtimes.upscaler import SUFFIXES

    original = None if source is None else identity(source)
    found: list[Path] = []
    for path in given:
        # A folder that is called like a model is told as one that cannot be opened.
        if path.suffix.lower() in SUFFIXES or not is_folder(path):
            found.append(path)
            continue
        with fault_of(path):
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        found += [file for file in inside if original is None or identity(file) != original]
    return found
