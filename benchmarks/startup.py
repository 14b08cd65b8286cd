"""What the start-up hook costs: every start of Python, and the import of spandrel.

    python benchmarks/startup.py [--starts 250] [--imports 20]

Runs with and without the hook alternate, so that what else the machine does falls on both. Starts
are those of two environments that differ in nothing but the hook's files; the import is that of
the environment which runs this, with the hook switched off and on. Medians, in ms.
"""

from __future__ import annotations

import argparse
import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import aether_spandrel

FILES = ("aether_spandrel.pth", "aether_spandrel.start", "aether_spandrel_startup.py")


def hook_folder() -> Path:
    """Where the hook's files are: beside the installed package, or in the checkout."""
    package = Path(aether_spandrel.__file__).parent
    return package / "startup" if (package / "startup").is_dir() else package.parent


def environment(folder: Path, *, hook: bool) -> str:
    """The interpreter of a new environment without packages, with or without the hook."""
    builder = venv.EnvBuilder(with_pip=False)
    builder.create(folder)
    python = builder.ensure_directories(folder).env_exe
    if hook:
        query = "import sysconfig; print(sysconfig.get_path('purelib'))"
        found = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True)
        for name in FILES:
            Path(found.stdout.strip(), name).write_bytes((hook_folder() / name).read_bytes())
        compileall.compile_dir(found.stdout.strip(), quiet=1)  # as pip does when installing
    return python


def milliseconds(command: Sequence[str], variables: Mapping[str, str]) -> float:
    """Wall time of a process."""
    environ = {**os.environ, **variables}
    start = time.perf_counter()
    subprocess.run(command, env=environ, check=True)
    return 1000 * (time.perf_counter() - start)


def report(title: str, without: Sequence[float], with_hook: Sequence[float]) -> None:
    """One line: both medians, and that of the differences of runs beside each other."""
    a, b = statistics.median(without), statistics.median(with_hook)
    more = statistics.median(y - x for x, y in zip(without, with_hook, strict=True))
    print(f"{title:<16}{a:10.2f}{b:10.2f}{more:+10.2f}   {len(without)} runs each")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=250)
    parser.add_argument("--imports", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{'ms':<16}{'without':>10}{'hook':>10}{'more':>10}")
    with tempfile.TemporaryDirectory() as folder:
        pythons = [
            environment(Path(folder, name), hook=name == "hook") for name in ("plain", "hook")
        ]
        starts = [
            [milliseconds([python, "-c", "pass"], {}) for python in pythons]
            for _ in range(arguments.starts + 1)
        ][1:]
    report("start of Python", *zip(*starts, strict=True))
    command = [sys.executable, "-c", "import spandrel"]
    imports = [
        [milliseconds(command, {"AETHER_SPANDREL_AUTO": switch}) for switch in "01"]
        for _ in range(arguments.imports + 1)
    ][1:]
    report("import spandrel", *zip(*imports, strict=True))


if __name__ == "__main__":
    main()
