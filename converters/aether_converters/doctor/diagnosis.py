"""What `aethernet doctor` finds out: this Python, its packages, model files, other programs.

Every row is measured when it is asked for, and none may fail: what goes wrong becomes its text.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import re
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aether_converters.doctor.programs import (
    ProgramPython,
    Surroundings,
    find_programs,
    start_up_files,
)
from aether_converters.errors import fault_of
from aether_converters.installation import NAME, install_line, pip, requirement
from aether_converters.tensorrt.driver import probe_driver
from aether_spandrel.errors import AetherError

if TYPE_CHECKING:
    from aether_spandrel.network import Network

SWITCH: Final = "AETHER_SPANDREL_AUTO"
PATIENCE: Final = 300.0  # s; a first import of torch from a cold disk takes long
TEST_SIDE: Final = 40  # px of the picture on which half precision is measured
NEWEST_IR: Final = 9  # of ONNX, in the onnxruntime 1.17.1 that ChaiNNer installs


@dataclass(frozen=True)
class Row:
    """One fact. `problem` says whether it keeps something from working, `next` what to do."""

    name: str
    text: str
    problem: bool = False
    next: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and its facts."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Diagnosis:
    """All that was found."""

    sections: tuple[Section, ...]
    problems: int = field(init=False)

    def __post_init__(self) -> None:
        """Count what is wrong."""
        count = sum(row.problem for section in self.sections for row in section.rows)
        object.__setattr__(self, "problems", count)

    def as_dict(self) -> dict[str, object]:
        """The findings as JSON-ready values."""
        return asdict(self)


def diagnose(files: Sequence[Path] = (), look_in: Sequence[Path] = ()) -> Diagnosis:
    """Examine this Python, model files, and the Pythons of ChaiNNer and ComfyUI.

    Args:
        files: Checkpoints and ONNX files; each is loaded as programs load it.
        look_in: Folders in which to look for programs, beside the usual ones.
    """
    around = Surroundings(look_in=tuple(folder.absolute() for folder in look_in))
    return Diagnosis(
        (
            examine_python(),
            *(examine_file(path) for path in files),
            *examine_programs(around),
        )
    )


def _safely(check: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a check; what it raises is a row too."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001  the rest must still be reported
        name = getattr(check, "__name__", "file").strip("_")
        yield Row(name, _in_words(error), problem=True)


def _refused(name: str, error: AetherError) -> Row:
    """The row of a file that cannot be read; its name stands in the heading already."""
    details = (("key", error.key), ("expected", error.expected), ("found", error.found))
    text = "; ".join([error.problem, *(f"{name} {value}" for name, value in details if value)])
    return Row(name, f"no: {text}", problem=True, next=error.advice or "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _in_words(error: BaseException) -> str:
    if isinstance(error, AetherError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


# This Python


def _python() -> Iterator[Row]:
    yield Row("python", f"{platform.python_version()}, {sys.executable or 'embedded'}")


def _torch() -> Iterator[Row]:
    try:
        import torch
    except Exception as error:  # noqa: BLE001  a missing library of the system, for example
        yield Row(
            "torch",
            f"cannot be imported: {_in_words(error)}",
            problem=True,
            next="reinstall torch as https://pytorch.org says for your system",
        )
        return
    built = "the CPU alone"
    if torch.version.cuda:
        built = f"CUDA {torch.version.cuda}"
    elif getattr(torch.version, "hip", None):
        built = f"ROCm {torch.version.hip}"
    threads = _count(torch.get_num_threads(), "thread")
    yield Row("torch", f"{torch.__version__}, built for {built}; {threads}")
    yield Row("GPU", "; ".join(_devices(torch)) or "none that torch can use")


def _devices(torch: Any) -> Iterator[str]:
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        capability = f"{device.major}.{device.minor}"
        yield f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {capability}"
    if torch.backends.mps.is_available():
        yield "Apple GPU (mps)"


def _hook() -> Iterator[Row]:
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    files = [
        Path(folder, name) for folder in folders for name in start_up_files(sys.version_info[:2])
    ]
    there = [path for path in files if path.is_file()]
    if os.environ.get(SWITCH, "1") == "0":
        text, advice = f"switched off by {SWITCH}=0", f"remove the variable {SWITCH}"
    elif not there:
        text, advice = "not installed", pip(f"install --force-reinstall --no-deps {requirement()}")
    elif sys.flags.no_site:
        text, advice = "not run: Python was started with -S", "start it without -S"
    else:
        yield Row("hook", f"installed, {there[0]}")
        return
    yield Row("hook", text, problem=True, next=advice)


FRESH: Final = """
import json, sys, time, warnings
found = {"error": "", "warnings": [], "names": []}
start = time.perf_counter()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        import spandrel
        found["names"] = [str(s.architecture.id) for s in spandrel.MAIN_REGISTRY.architectures()]
    except BaseException as error:
        found["error"] = f"{type(error).__name__}: {error}"
found["seconds"] = time.perf_counter() - start
found["warnings"] = [str(w.message) for w in caught if "aether-spandrel" in str(w.message)]
print(json.dumps(found))
"""


def _registered() -> Iterator[Row]:
    """Whether spandrel knows AetherNet without being told, asked in a fresh interpreter."""
    installed = _versions("spandrel", "spandrel_extra_arches").removeprefix("spandrel ")
    if not sys.executable:
        yield Row("spandrel", f"{installed}; registration cannot be tested in an embedded Python")
        return
    with tempfile.TemporaryDirectory() as empty:  # where no folder hides a package
        result = subprocess.run(
            [sys.executable, "-c", FRESH],
            cwd=empty,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    lines = result.stdout.strip().splitlines()
    if not lines:
        text = f"Python ends while importing spandrel: {result.stderr.strip()[-300:]}"
        advice = pip("install --force-reinstall torch spandrel")
        yield Row("spandrel", text, problem=True, next=advice)
        return
    found = json.loads(lines[-1])
    if found["error"]:
        missing = found["error"].startswith("ModuleNotFoundError")
        yield Row(
            "spandrel",
            f"cannot be imported: {found['error']}",
            problem=True,
            next=pip("install spandrel" if missing else "install --force-reinstall spandrel"),
        )
        return
    names = found["names"]
    yield Row(
        "spandrel", f"{installed}; {len(names)} architectures, imported in {found['seconds']:.1f} s"
    )
    if "AetherNet" in names:
        yield Row("registered", "yes, importing spandrel is enough")
    else:
        why = " ".join(found["warnings"]) or "the hook did not run"
        hook = next(_hook())
        advice = "" if hook.problem else pip(f"install --force-reinstall {requirement()}")
        # A hook that is off has been counted already.
        yield Row("registered", f"no: {why}", problem=not hook.problem, next=advice)


def _versions(*names: str) -> str:
    """Name and version of each distribution that is installed."""
    found: list[str] = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


EXTRAS: Final = {
    "convert": (
        ("onnx", "onnx"),
        ("onnxruntime", "onnxruntime"),
        ("Pillow", "PIL"),
        ("tifffile", "tifffile"),
        ("imagecodecs", "imagecodecs"),
        ("numpy", "numpy"),
        ("rich", "rich"),
    ),
    "gpu": (("onnxruntime-gpu", "onnxruntime"),),
    # Not imported: NCNN ends a process that has PyTorch in it, TensorRT needs a driver.
    "ncnn": (("ncnn", ""),),
    "trt": (("tensorrt", ""),),
    "trt-rtx": (("tensorrt-rtx", ""),),
}
"""What each extra brings beyond the one before: distributions, and the modules to import."""

EXTRA_USES: Final = {
    "convert": "convert, upscale, verify and everything about ONNX files",
    "gpu": "ONNX files on a GPU",
    "ncnn": "NCNN files",
    "trt": "TensorRT engines",
    "trt-rtx": "TensorRT-RTX engines",
}


def _extras() -> Iterator[Row]:
    absent: list[str] = []
    for extra, parts in EXTRAS.items():
        row = f"[{extra}]"
        missing: list[str] = []
        broken: list[str] = []
        for name, module in parts:
            # onnxruntime-gpu brings the module of onnxruntime too.
            if not _versions(name) and not (name == "onnxruntime" and _versions("onnxruntime-gpu")):
                missing.append(name)
            elif module:
                try:
                    importlib.import_module(module)
                except Exception as error:  # noqa: BLE001  reported with the others
                    broken.append(f"{name} cannot be imported ({_in_words(error)})")
        command = install_line(extra)
        if broken:
            yield Row(row, "; ".join(broken), problem=True, next=f"reinstall it: {command}")
        elif len(missing) == len(parts):
            absent.append(extra)
        elif missing:
            yield Row(row, f"lacks {', '.join(missing)}, which {EXTRA_USES[extra]} need: {command}")
        else:
            yield Row(row, f"works: {_versions(*(name for name, _ in parts))}")
    if absent:
        yield Row("optional", f"not installed: {', '.join(absent)}")


def _providers() -> Iterator[Row]:
    if _versions("onnxruntime") and _versions("onnxruntime-gpu"):
        yield Row(
            "providers",
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files",
            problem=True,
            next="uninstall both with pip, then install the one that you want",
        )
        return
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except Exception:  # noqa: BLE001  the extras have said so
        return
    names = [name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers()]
    names = [name for name in names if name != "Azure"]  # computes nothing on this machine
    yield Row("providers", f"onnxruntime offers {', '.join(names)}")


def _driver() -> Iterator[Row]:
    driver = probe_driver()
    cuda = f"CUDA {driver.cuda}; " if driver.cuda else ""
    yield Row("NVIDIA", f"{cuda}{driver.in_words()}")


def _vulkan() -> Iterator[Row]:
    from aether_converters.runtimes.ncnn import vulkan_devices

    if not _versions("ncnn"):
        return
    try:
        names = vulkan_devices()
    except AetherError as error:
        yield _refused("Vulkan", error)
        return
    yield Row("Vulkan", f"NCNN can compute on {', '.join(names) or 'no GPU, only on the CPU'}")


CHECKS: Final = (_python, _torch, _hook, _registered, _extras, _providers, _driver, _vulkan)


def examine_python() -> Section:
    """This Python and its packages."""
    title = f"{NAME} {version(NAME)} on {platform.system()} {platform.machine()}"
    return Section(title, tuple(row for check in CHECKS for row in _safely(check)))


# Model files


def examine_file(path: Path) -> Section:
    """Why a file does or does not load."""
    return Section(str(path), tuple(_examined(path)))


def _examined(path: Path) -> Iterator[Row]:
    examine = EXAMINERS.get(path.suffix.lower(), _checkpoint_file)
    try:
        with fault_of(path):
            yield from examine(path)
    except AetherError as error:
        yield _refused("loads", error)


def _onnx_file(path: Path) -> Iterator[Row]:
    from aether_converters.runtimes.opening import open_upscaler

    try:
        model = open_upscaler(path)
    except AetherError as error:
        yield _refused("loads", error)
        return
    taken, given = model.channels
    size = "x".join(map(str, model.fixed_size)) + " px alone" if model.fixed_size else "any size"
    yield Row(
        "loads",
        f"yes: {model.scale}x, {taken} to {given} channels, {model.precision}, {size}, "
        f"opset {model.details['opset']}",
    )
    ir_version = int(model.details["ir_version"])
    if ir_version > NEWEST_IR:
        yield Row(
            "ChaiNNer",
            f"no: IR version {ir_version}, and its onnxruntime 1.17.1 reads up to {NEWEST_IR}",
            problem=True,
            next="convert the checkpoint again with: aethernet convert model.pth --to onnx",
        )
    else:
        yield Row("ChaiNNer", "yes, as far as the file itself tells")


def _engine_file(path: Path) -> Iterator[Row]:
    from aether_converters.runtimes.tensorrt import open_engine
    from aether_converters.tensorrt.sidecar import read_sidecar

    try:
        sidecar = read_sidecar(path)
    except AetherError as error:
        yield _refused("described", error)
        return
    yield from (Row(name, text) for name, text in sidecar.in_rows())
    try:
        open_engine(path)
    except AetherError as error:
        yield _refused("runs", error)
        return
    yield Row("runs", "yes, on this computer's GPU")


def _ncnn_file(path: Path) -> Iterator[Row]:
    from aether_converters.graphs.ncnn_file import read_ncnn
    from aether_converters.runtimes.opening import open_upscaler

    try:
        yield from (Row(name, text) for name, text in read_ncnn(path).in_rows())
        open_upscaler(path)
    except AetherError as error:
        yield _refused("runs", error)
        return
    yield Row("runs", "yes, on the CPU")
    if re.search(SCALE_IN_NAME, path.stem) is None:
        yield Row(
            "Upscayl",
            "takes it for a 4x model: its scale is not in the name",
            problem=True,
            next="call both files as aethernet convert does, such as 2x_name.param and 2x_name.bin",
        )


SCALE_IN_NAME: Final = r"x\d|\dx"

EXAMINERS: Final = {".onnx": _onnx_file, ".engine": _engine_file, ".param": _ncnn_file}
"""What examines a file, by its ending; all others are checkpoints."""


def _checkpoint_file(path: Path) -> Iterator[Row]:
    from aether_spandrel.checkpoint import read_checkpoint
    from aether_spandrel.inspection import describe_network
    from aether_spandrel.network import is_aethernet, read_network

    try:
        checkpoint = read_checkpoint(path)
    except AetherError as error:
        yield _refused("loads", error)
        return
    if not is_aethernet(checkpoint):
        yield Row("AetherNet", "no, a network of another kind", problem=True)
        other = _loaded_by_spandrel(path, "check that this is the file that you mean")
        yield replace(other, problem=False)  # one is enough
        return
    try:
        network = read_network(checkpoint)
    except AetherError as error:
        yield _refused("loads", error)
        return
    info = describe_network(checkpoint, network)
    form = "fused" if info.fused else "not fused"
    yield Row(
        "loads",
        f"yes: AetherNet {info.preset or 'of its own size'}, revision {info.revision}, "
        f"{info.config.scale}x, {form}, {info.parameters:,} weights in {info.dtype}",
    )
    command = f'aethernet convert "{path}" --to safetensors makes a file that every program loads'
    yield _loaded_by_spandrel(path, command)
    yield from _half_precision(network)
    yield from (Row("assumed", f"{name} = {why}") for name, why in info.assumed.items())
    yield from (Row("warning", text) for text in info.warnings)
    yield from (Row("note", text) for text in info.notes)


def _loaded_by_spandrel(path: Path, advice: str) -> Row:
    """What `spandrel.ModelLoader` makes of a file, as ChaiNNer and ComfyUI call it."""
    from spandrel import MAIN_REGISTRY, ModelLoader

    if "AetherNet" not in MAIN_REGISTRY:
        return Row("spandrel", "no: AetherNet is not registered, see above", problem=True)
    try:
        model = ModelLoader().load_from_file(path)
    except Exception as error:  # noqa: BLE001  whatever its architectures raise
        return Row(
            "spandrel",
            f"no: {_in_words(error)}",
            problem=True,
            next=advice,
        )
    return Row("spandrel", f"yes, as {model.architecture.id}: {', '.join(model.tags)}")


def _half_precision(network: Network) -> Iterator[Row]:
    """How far fp16 and bf16 are from fp32 on a picture of noise, on the CPU."""
    import torch

    from aether_spandrel.arch import AetherNetArch, describe

    descriptor = describe(AetherNetArch(), network)
    model = descriptor.model
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, descriptor.input_channels, TEST_SIDE, TEST_SIDE, generator=generator)
    told: list[str] = []
    with torch.inference_mode():
        full = model(image).clamp(0, 1)
        if not bool(torch.isfinite(full).all()):
            text = "the weights give NaN or Inf instead of a picture, in every precision"
            yield Row(
                "picture", text, problem=True, next="use another checkpoint, or download again"
            )
            return
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            found = model.to(dtype)(image.to(dtype)).float()
            if not bool(torch.isfinite(found).all()):
                told.append(f"{name} overflows: use fp32")
                continue
            error = float((found.clamp(0, 1) - full).square().mean())
            told.append(f"{name} {10 * math.log10(1 / max(error, 1e-12)):.0f} dB from fp32")
    yield Row("half", f"{', '.join(told)} (fp16 files have to reach 50 dB)")


# Other programs


def examine_programs(around: Surroundings) -> Iterator[Section]:
    """The Pythons of ChaiNNer and ComfyUI, and the line that installs this package there."""
    found = find_programs(around)
    absent = [folder for folder in around.look_in if not folder.is_dir()]
    if absent:
        rows = (
            Row("missing", f"{folder}: there is no such folder", problem=True) for folder in absent
        )
        yield Section("other programs", tuple(rows))
        if not found:
            return
    if not found:
        text = "no ChaiNNer or ComfyUI on the usual paths; --look-in FOLDER looks elsewhere"
        yield Section("other programs", (Row("none", text),))
        return
    source = requirement()
    for entry in found:
        yield Section(f"{entry.program}: {entry.python}", tuple(_program(entry, source)))


def _program(entry: ProgramPython, source: str) -> Iterator[Row]:
    versions = ", ".join(f"{name} {number}" for name, number in entry.versions.items())
    yield Row("has", versions or "neither torch nor spandrel")
    shell = "; in PowerShell with & in front" if entry.python.suffix == ".exe" else ""
    then = f"then restart {entry.program}{shell}"
    if "spandrel" not in entry.versions:
        advice = "start the program once and let it install its dependencies (PyTorch) first"
        yield Row("AetherNet", f"not installed, nor is spandrel: {advice}")
    elif NAME not in entry.versions:
        yield Row("AetherNet", f"not installed; this line installs it, {then}")
        yield Row("install", entry.install_command(source))
    elif entry.versions[NAME] != version(NAME):
        yield Row("AetherNet", f"installed in another version; this line updates it, {then}")
        yield Row("update", entry.install_command(f"--upgrade {source}"))
    elif not entry.has_hook:
        yield Row(
            "AetherNet",
            "installed, but its start-up file is missing",
            problem=True,
            next=entry.install_command(f"--force-reinstall --no-deps {source}"),
        )
    else:
        yield Row("AetherNet", f"installed, {NAME} {entry.versions[NAME]}")
    if not entry.reads_pth:
        yield Row(
            "hook",
            "this embedded Python reads no start-up lines",
            problem=True,
            next=f"add a line `import site` to the python*._pth file in {entry.python.parent}",
        )
