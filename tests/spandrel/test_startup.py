"""AetherNet is registered by itself when spandrel is imported, and never breaks what it serves.

Each test starts a Python of its own: a virtual environment that sees the packages of this one, the
sources of this checkout, and the start-up files as the wheel installs them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.support.tiny import tiny

ROOT = Path(__file__).parent.parent.parent
STARTUP = ROOT / "aether_spandrel" / "startup"
SOURCES = (ROOT, ROOT / "core", ROOT / "converters")
REGISTERED = "import spandrel; print('AetherNet' in spandrel.MAIN_REGISTRY)"


@dataclass(frozen=True)
class Interpreter:
    """A Python whose site-packages folder is the test's own."""

    executable: Path
    site: Path
    env: dict[str, str] = field(default_factory=dict[str, str])

    def run(self, code: str, *flags: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "AETHER"))}
        done = subprocess.run(
            [self.executable, *flags, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.executable.parent,  # with -c, Python looks into the current folder first
            env={**env, **self.env},
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def says(self, code: str, *flags: str) -> str:
        done = self.run(code, *flags)
        assert "aether" not in done.stderr, done.stderr
        return done.stdout.strip()

    def see(self, name: str, *folders: Path) -> None:
        """Put folders on the path, in the order of the names under which they are put there."""
        (self.site / f"{name}.pth").write_text("".join(f"{folder}\n" for folder in folders))

    def shadow(self, name: str, content: str) -> None:
        """A module that is found before any other of its name."""
        target = self.site / Path(*name.split(".")).with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


@pytest.fixture
def complete(tmp_path: Path) -> Interpreter:
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(tmp_path / "venv")
    folder = tmp_path / "venv"
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=scheme))
    executable = Path(sysconfig.get_path("scripts", vars=scheme)) / Path(sys.executable).name
    found = Interpreter(executable, site)
    found.see("a_packages", *(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")))
    found.see("b_sources", *SOURCES)
    for file in STARTUP.glob("aether_spandrel*.*"):
        shutil.copy(file, site)
    return found


@pytest.fixture
def interpreter(complete: Interpreter) -> Interpreter:
    """Without torchvision, half of the time that importing spandrel takes.

    spandrel only takes functions from it, which two of its own architectures call.
    """
    for module in ("__init__", "transforms.__init__", "transforms.functional"):
        complete.shadow(f"torchvision.{module}", "def __getattr__(name): return None\n")
    return complete


def warned(done: subprocess.CompletedProcess[str]) -> bool:
    return done.stderr.count("aether-spandrel could not register AetherNet") == 1


# It works


def test_importing_spandrel_registers_aethernet(complete: Interpreter, tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "a.pth")
    code = (
        "from spandrel import ModelLoader\n"
        f"print(ModelLoader().load_from_file({str(tmp_path / 'a.pth')!r}).architecture.id)"
    )
    assert complete.says(code) == "AetherNet"


def test_nothing_but_spandrel_loads_anything_of_ours(interpreter: Interpreter):
    code = (
        "import sys, json\n"
        "ours = ('aether_core', 'aether_spandrel.', 'torch')\n"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    assert interpreter.says(code) == "[]"


def test_a_variable_switches_it_off(interpreter: Interpreter):
    interpreter.env["AETHER_SPANDREL_AUTO"] = "0"
    assert interpreter.says(REGISTERED) == "False"


@pytest.mark.parametrize("first", ["spandrel_extra_arches", "spandrel"])
def test_extra_architectures_may_come_before_or_after(interpreter: Interpreter, first: str):
    code = (
        f"import {first}\n"
        "from spandrel import MAIN_REGISTRY\n"
        "from spandrel_extra_arches import EXTRA_REGISTRY\n"
        "MAIN_REGISTRY.add(*EXTRA_REGISTRY)\n"  # as ChaiNNer does
        "print('AetherNet' in MAIN_REGISTRY, 'MAT' in MAIN_REGISTRY)"
    )
    assert interpreter.says(code) == "True True"


def test_registries_of_ones_own_are_left_alone(interpreter: Interpreter):
    code = "import spandrel; print('AetherNet' in spandrel.ArchRegistry())"
    assert interpreter.says(code) == "False"


@pytest.mark.parametrize(
    "first", ["import aether_spandrel.arch", "from aether_spandrel import load, install"]
)
def test_our_own_package_may_be_what_imports_spandrel(interpreter: Interpreter, first: str):
    assert interpreter.says(f"{first}\n{REGISTERED}") == "True"


def test_installing_by_hand_as_well_changes_nothing(interpreter: Interpreter):
    code = f"import spandrel, aether_spandrel; aether_spandrel.install()\n{REGISTERED}"
    assert interpreter.says(code) == "True"


def test_spandrel_keeps_its_own_loader(interpreter: Interpreter):
    code = (
        "import importlib.resources, importlib.util\n"
        "found = importlib.util.find_spec('spandrel')\n"
        "assert found.loader.is_package('spandrel') and found.loader.get_filename('spandrel')\n"
        "import spandrel\n"
        "assert type(spandrel.__loader__) is type(spandrel.__spec__.loader)\n"
        "assert importlib.resources.files('spandrel').joinpath('__init__.py').is_file()\n"
        "print(type(spandrel.__loader__).__name__, 'AetherNet' in spandrel.MAIN_REGISTRY)"
    )
    assert interpreter.says(code) == "SourceFileLoader True"


def test_reloading_spandrel_registers_once(interpreter: Interpreter):
    code = (
        "import importlib, spandrel; importlib.reload(spandrel)\n"
        "ids = [str(a.architecture.id) for a in spandrel.MAIN_REGISTRY.architectures()]\n"
        "print(ids.count('AetherNet'))"
    )
    assert interpreter.says(code) == "1"


def test_threads_may_import_at_once(interpreter: Interpreter):
    code = (
        "import threading\n"
        "found = []\n"
        "def work():\n"
        "    import spandrel; found.append('AetherNet' in spandrel.MAIN_REGISTRY)\n"
        "threads = [threading.Thread(target=work) for _ in range(16)]\n"
        "[t.start() for t in threads]; [t.join(60) for t in threads]\n"
        "print(len(found), all(found))"
    )
    assert interpreter.says(code) == "16 True"


def test_two_copies_of_ours_register_once(interpreter: Interpreter):
    shutil.copy(STARTUP / "aether_spandrel_startup.py", interpreter.site / "older_copy.py")
    (interpreter.site / "older.pth").write_text("import older_copy; older_copy.watch()\n")
    code = (
        f"{REGISTERED}\nimport sys\n"
        "print(sum(type(f).__name__ == 'AetherSpandrelFinder' for f in sys.meta_path))"
    )
    assert interpreter.says(code) == "True\n1"


# Other people's hooks

NAIVE_HOOK = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "spandrel":
            return None
        import importlib.util
        return importlib.util.find_spec(name)  # asks all finders, and so itself, for ever
sys.meta_path.insert(0, Finder())
"""
POLITE_HOOK = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "spandrel":
            return None
        import importlib.util
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        original = spec.loader.exec_module
        class Loader:
            def __getattr__(self, name): return getattr(spec.loader.inner, name)
            def exec_module(self, module):
                original(module)
                sys.other_was_here = True
        loader = Loader(); loader.inner = spec.loader; spec.loader = loader
        return spec
sys.meta_path.insert(0, Finder())
"""
RAISING_HOOK = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "spandrel":
            raise RuntimeError("broken")
sys.meta_path.append(Finder())
"""


@pytest.mark.parametrize("place", ["a_before", "z_after"])
def test_another_plugins_hook_of_the_same_kind_works_too(interpreter: Interpreter, place: str):
    interpreter.shadow("other_hook", POLITE_HOOK)
    (interpreter.site / f"{place}.pth").write_text("import other_hook\n")
    assert interpreter.says(f"{REGISTERED}\nimport sys; print(sys.other_was_here)") == "True\nTrue"


def test_a_hook_that_asks_itself_for_ever_is_survived_behind_ours(interpreter: Interpreter):
    interpreter.shadow("other_hook", NAIVE_HOOK)
    (interpreter.site / "a_before.pth").write_text("import other_hook\n")
    assert interpreter.says(REGISTERED) == "True"


def test_a_hook_that_raises_is_survived(interpreter: Interpreter):
    interpreter.shadow("other_hook", RAISING_HOOK)
    (interpreter.site / "a_before.pth").write_text("import other_hook\n")
    assert interpreter.says(REGISTERED) == "True"


# Broken set-ups: Python starts and spandrel is imported in every one


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("aether_spandrel.arch", "SystemExit(3)"),
        ("aether_core", "SystemExit(3)"),
        ("aether_core", "Exception('x')"),
        ("aether_core", "KeyboardInterrupt()"),
        ("aether_core", "MemoryError()"),
        ("aether_core", "ImportError('y')"),
    ],
)
def test_a_module_of_ours_that_raises_is_one_warning(
    interpreter: Interpreter, module: str, error: str
):
    if "." in module:
        interpreter.shadow("aether_spandrel.__init__", "")
    interpreter.shadow(module, f"raise {error}")
    done = interpreter.run(REGISTERED)
    assert done.stdout.strip() == "False"
    assert warned(done)


def test_a_plugin_folder_that_was_removed_is_one_warning(interpreter: Interpreter):
    (interpreter.site / "b_sources.pth").unlink()
    interpreter.shadow("aether_core", "raise ModuleNotFoundError")
    done = interpreter.run(f"import sys; sys.modules['aether_spandrel'] = None\n{REGISTERED}")
    assert done.stdout.strip() == "False"
    assert warned(done)


@pytest.mark.parametrize("content", [None, "syntax error", "raise SystemExit(3)", ""])
def test_a_start_up_module_that_is_missing_or_broken_is_not_noticed(
    interpreter: Interpreter, content: str | None
):
    module = interpreter.site / "aether_spandrel_startup.py"
    module.unlink()
    if content is not None:
        module.write_text(content)
    done = interpreter.run("print('started')")
    assert (done.stdout, done.stderr) == ("started\n", "")


def test_without_spandrel_python_starts_and_says_so_as_ever(interpreter: Interpreter):
    (interpreter.site / "a_packages.pth").unlink()
    done = interpreter.run("print('started')\nimport spandrel", check=False)
    assert done.stdout == "started\n"
    assert "ModuleNotFoundError: No module named 'spandrel'" in done.stderr
    assert "aether" not in done.stderr


def test_a_spandrel_without_what_we_need_is_one_warning(interpreter: Interpreter):
    interpreter.shadow("spandrel.__init__", "MAIN_REGISTRY = set()\n")
    done = interpreter.run(REGISTERED)
    assert done.stdout.strip() == "False"
    assert warned(done)


def test_a_spandrel_that_fails_to_import_fails_with_its_own_error(interpreter: Interpreter):
    interpreter.shadow("spandrel.__init__", "raise ValueError('theirs')\n")
    done = interpreter.run("import spandrel", check=False)
    assert done.stderr.rstrip().endswith("ValueError: theirs")
    assert "aether-spandrel" not in done.stderr


def test_warnings_that_are_errors_do_not_break_spandrel(interpreter: Interpreter):
    interpreter.shadow("aether_core", "raise Exception('x')")
    done = interpreter.run(REGISTERED, "-W", "error::RuntimeWarning")
    assert done.stdout.strip() == "False"
    assert warned(done)


def test_a_program_without_standard_streams_goes_on(interpreter: Interpreter):
    interpreter.shadow("aether_core", "raise Exception('x')")
    code = (
        "import sys, os; sys.stderr = None\n"
        "import spandrel; os.write(1, str('AetherNet' in spandrel.MAIN_REGISTRY).encode())"
    )
    assert interpreter.run(code).stdout == "False"


@pytest.mark.parametrize(
    "flags",
    [("-I",), ("-I", "-E", "-s", "-B"), ("-O",), ("-X", "importtime")],  # -I sets -E and -s
    ids=str,
)
def test_every_way_to_start_python_works(interpreter: Interpreter, flags: Sequence[str]):
    done = interpreter.run(REGISTERED, *flags)
    assert done.stdout.strip() == "True"
    assert "could not register" not in done.stderr


def test_without_site_python_starts_and_nothing_is_registered(interpreter: Interpreter):
    packages = (interpreter.site / "a_packages.pth").read_text().splitlines()
    code = f"import sys; sys.path += {packages!r}\n{REGISTERED}"
    done = interpreter.run(code, "-S")
    assert (done.stdout.strip(), done.stderr) == ("False", "")
