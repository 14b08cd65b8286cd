"""Where other programs keep their own Python, and what is installed there.

Nothing is executed: versions are read from the folders that pip writes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

from aether_converters.installation import NAME

REPORTED: Final = ("torch", "spandrel", NAME)
START_UP: Final = ("aether_spandrel.pth", "aether_spandrel.start")


def start_up_files(python: tuple[int, ...]) -> tuple[str, ...]:
    """Those that a version of Python runs: `.pth` up to 3.17, `.start` from 3.15 on (PEP 829)."""
    pth, start = START_UP
    return (*((pth,) if python < (3, 18) else ()), *((start,) if python >= (3, 15) else ()))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folders in which a program may keep its Python.

    Attributes:
        program: Its name.
        folders: Relative to the parents of `Surroundings`, as glob patterns.
        pythons: Relative to each of these folders, as glob patterns.
    """

    program: str
    folders: tuple[str, ...]
    pythons: tuple[str, ...]


ENVIRONMENTS: Final = tuple(
    f"{folder}/{python}"
    for folder in (".venv", "venv", "env")
    for python in ("Scripts/python.exe", "bin/python")
)

DIRECT: Final = ("bin/python", "Scripts/python.exe", "python.exe")
"""Pythons of an environment, relative to the environment itself."""

PLACES: Final = (
    Place(
        program="ChaiNNer",
        folders=("[cC]hai[nN][nN]er*",),
        pythons=("python/python/python.exe", "python/python/bin/python3.[0-9]*[0-9]"),
    ),
    Place(
        program="ComfyUI",
        folders=("[cC]omfy[uU][iI]*", "comfy/ComfyUI", "Packages/ComfyUI*"),
        pythons=(
            "python_embeded/python.exe",  # spelt so by its authors
            "*/python_embeded/python.exe",
            *ENVIRONMENTS,
            *(f"ComfyUI/{python}" for python in ENVIRONMENTS),
        ),
    ),
    Place(program="ComfyUI", folders=("comfy",), pythons=ENVIRONMENTS),
    Place(
        program="ComfyUI",
        folders=("comfy.git",),
        pythons=tuple(f"app/{python}" for python in ENVIRONMENTS),
    ),
)


@dataclass(frozen=True, kw_only=True)
class ProgramPython:
    """A Python that another program uses.

    Attributes:
        program: Whose it is.
        python: The interpreter.
        versions: Version by name of what matters to us and is installed there.
        has_pip: Whether pip is installed there.
        reads_pth: Whether it reads start-up lines; an embedded Python only does where told so.
        has_hook: Whether this package's start-up file is there.
    """

    program: str
    python: Path
    versions: Mapping[str, str]
    has_pip: bool
    reads_pth: bool = True
    has_hook: bool = True

    def install_command(self, requirement: str) -> str:
        """The line that installs a requirement there, for a terminal of its system."""
        python = f'"{self.python}"'
        if self.has_pip:
            return f"{python} -m pip install {requirement}"
        return f"uv pip install --python {python} {requirement}"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The computer in which programs are looked for.

    Attributes:
        platform: As `sys.platform` has it.
        home: The user's folder.
        environ: Environment variables.
        look_in: Further folders: programs, environments, or what holds programs.
    """

    platform: str = sys.platform
    home: Path = field(default_factory=Path.home)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    look_in: tuple[Path, ...] = ()

    @property
    def settings(self) -> Path:
        """Where programs keep their settings."""
        if self.platform == "win32":
            return Path(self.environ.get("APPDATA") or self.home / "AppData" / "Roaming")
        if self.platform == "darwin":
            return self.home / "Library" / "Application Support"
        return Path(self.environ.get("XDG_CONFIG_HOME") or self.home / ".config")

    @property
    def parents(self) -> tuple[Path, ...]:
        """Folders that may hold a program's folder."""
        home, settings = self.home, self.settings
        drives = [Path(f"{letter}:/") for letter in "CDEFG"] if self.platform == "win32" else []
        rooted = [Path("/opt")] if self.platform == "linux" else []
        local = self.environ.get("LOCALAPPDATA")
        return (
            *self.look_in,
            settings,
            *([Path(local), Path(local) / "Programs"] if local else []),
            home,
            *(home / name for name in ("Documents", "Desktop", "Downloads", "Applications", "AI")),
            *(base / "StabilityMatrix" for base in (home, settings)),
            home / "pinokio" / "api",
            *drives,
            *(drive / "pinokio" / "api" for drive in drives),
            *rooted,
        )


def find_programs(around: Surroundings) -> list[ProgramPython]:
    """Every Python of ChaiNNer and ComfyUI on the usual paths, each once."""
    found: dict[str, ProgramPython] = {}
    for program, python in chain(_at_places(around), _in_settings(around)):
        identity = os.path.normcase(python)
        if identity not in found and _is_file(python):
            found[identity] = _describe(program, python)
    return list(found.values())


def _at_places(around: Surroundings) -> Iterator[tuple[str, Path]]:
    for parent in around.parents:
        for place in PLACES:
            for folder in _glob(parent, place.folders):
                for python in _glob(folder, place.pythons):
                    yield place.program, python
    for named in around.look_in:
        for pattern in (*DIRECT, *chain.from_iterable(place.pythons for place in PLACES)):
            for python in _glob(named, [pattern]):
                yield named.name, python


def _in_settings(around: Surroundings) -> Iterator[tuple[str, Path]]:
    """What the programs' own settings name: a Python of the user's choice, or the base folder."""
    chainner = _json(around.settings / "chaiNNer" / "settings.json")
    if chainner.get("useSystemPython") and chainner.get("systemPythonLocation"):
        yield "ChaiNNer", Path(str(chainner["systemPythonLocation"]))
    base = _json(around.settings / "ComfyUI" / "config.json").get("basePath")
    if isinstance(base, str) and base:
        for python in _glob(Path(base), ENVIRONMENTS):
            yield "ComfyUI", python


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def _glob(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        try:
            yield from sorted(folder.glob(pattern))
        except (OSError, ValueError):
            continue  # a folder that we may not read


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _describe(program: str, python: Path) -> ProgramPython:
    versions: dict[str, str] = {}
    has_pip = False
    folders = _site_packages(python)
    for found in distributions(path=[str(folder) for folder in folders]):
        name = str(found.name or "").lower().replace("_", "-")
        has_pip = has_pip or name == "pip"
        if name in REPORTED:
            versions[name] = found.version
    return ProgramPython(
        program=program,
        python=python,
        versions={name: versions[name] for name in REPORTED if name in versions},
        has_pip=has_pip,
        reads_pth=_reads_pth(python.parent),
        has_hook=any((folder / name).is_file() for folder in folders for name in START_UP),
    )


def _site_packages(python: Path) -> list[Path]:
    """Where an interpreter's packages are."""
    if python.suffix == ".exe":
        root = python.parent.parent if python.parent.name == "Scripts" else python.parent
        return [root / "Lib" / "site-packages"]
    return list(_glob(python.parent.parent, ("lib/python3*/site-packages",)))


def _reads_pth(folder: Path) -> bool:
    """Whether the `python311._pth` of an embedded Python, if there is one, imports site."""
    for path in _glob(folder, ("python*._pth",)):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "import site" in (line.strip() for line in lines)
    return True
