"""NCNN files that we wrote, run by NCNN: on the CPU, or on a GPU through Vulkan."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from aether_converters.errors import EXTRAS, MissingExtraError, ModelError
from aether_converters.graphs.ncnn_file import NcnnFile, read_ncnn
from aether_converters.installation import install_line
from aether_converters.runtimes import ncnn_worker
from aether_converters.runtimes.upscaler import Image, Upscaler

VULKAN: Final = "vulkan"
PATIENCE: Final = 10.0  # s, for a process that was asked to end
TOLD: Final = 2**16  # bytes of what NCNN printed last


def require_ncnn() -> None:
    """Raise MissingExtraError if NCNN is not installed.

    It is not imported to find out: it would end a process that has PyTorch in it.
    """
    if importlib.util.find_spec("ncnn") is None:
        raise MissingExtraError(
            "this needs the Python package ncnn, which is not installed",
            advice=install_line(EXTRAS["ncnn"]),
        )


def vulkan_devices() -> list[str]:
    """Names of the GPUs on which NCNN can compute.

    Raises:
        ModelError: NCNN cannot be started.
        MissingExtraError: It is not installed.
    """
    require_ncnn()
    answer, _ = _Process(Path("ncnn")).ask({"do": "devices"})
    return [str(name) for name in answer["devices"]]


def open_ncnn(
    path: Path, *, weights: Path | None = None, device: str = "cpu", threads: int = 0
) -> Upscaler:
    """Open a `.param` file with the `.bin` file beside it.

    Args:
        path: The `.param` file.
        weights: The `.bin` file, where it has another name.
        device: `cpu`, `vulkan` or `vulkan:1` for the second GPU; no other is taken instead.
        threads: On the CPU; 0 leaves NCNN the choice.

    Raises:
        ModelError: The files are damaged or none of ours, or the device is not there.
        MissingExtraError: NCNN is not installed.
    """
    file = read_ncnn(path, weights)
    gpu = _gpu(path, device)
    require_ncnn()
    network = _Network(file, gpu, threads)
    return Upscaler(
        path=path,
        format="ncnn",
        precision=file.precision,
        channels=file.channels,
        scale=file.scale,
        receptive_radius=file.receptive_radius,
        global_context=file.global_context,
        fixed_size=None,
        bytes_per_pixel=file.bytes_per_pixel,
        details={"layers": len(file.lines), **network.facts},
        run=network.run,
        companions=(file.weights,),
        computed_by=f"NCNN on {network.facts.get('provider', 'the CPU')}",
    )


def _gpu(path: Path, device: str) -> int | None:
    name, _, number = device.partition(":")
    if device == "cpu":
        return None
    if name != VULKAN or not (number or "0").isdecimal():
        raise ModelError(
            "NCNN runs on the CPU, or on a GPU through Vulkan",
            file=path,
            expected="--device cpu, vulkan or vulkan:1",
            found=f"--device {device}",
        )
    return int(number or "0")


class _Process:
    """The process that NCNN runs in."""

    def __init__(self, path: Path) -> None:
        """Start it; errors name `path`."""
        self._path = path
        self._turn = threading.Lock()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, str(Path(ncnn_worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
        )
        weakref.finalize(self, _end, self._process)

    def ask(self, message: dict[str, Any], content: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """The answer to a message.

        Raises:
            ModelError: NCNN refuses, or its process has ended.
        """
        with self._turn:
            try:
                ncnn_worker.send(cast(Any, self._process.stdin), message, content)
                answer = ncnn_worker.receive(cast(Any, self._process.stdout))
            except OSError:  # a broken pipe
                answer = None
        if answer is None:
            code = self._process.wait(PATIENCE)
            raise ModelError(
                "NCNN ended while it computed",
                file=self._path,
                found=f"exit code {code}{self._last_words()}",
                advice="if memory ran out, try a smaller --tile; another file may be damaged",
            )
        if "error" in answer[0]:
            raise ModelError(
                "NCNN cannot run the model",
                file=self._path,
                found=f"{answer[0]['error']}{self._last_words()}",
                advice="if memory ran out, try a smaller --tile",
            )
        return answer

    def _last_words(self) -> str:
        size = self._printed.seek(0, 2)
        self._printed.seek(max(size - TOLD, 0))
        lines = self._printed.read().decode("utf-8", "replace").strip().splitlines()
        return f"; {lines[-1][:200]}" if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.kill()
    process.wait(PATIENCE)


class _Network:
    """A pair of files, loaded."""

    def __init__(self, file: NcnnFile, gpu: int | None, threads: int) -> None:
        """Load it on a GPU by its number, or on the CPU."""
        self._file = file
        self._process = _Process(file.param)
        loaded, _ = self._process.ask(
            {
                "do": "load",
                "param": str(file.param.absolute()),
                "weights": str(file.weights.absolute()),
                "gpu": gpu,
                "threads": threads,
            }
        )
        if "offered" in loaded:
            raise ModelError(
                "NCNN finds no such GPU, and takes no other processor instead",
                file=file.param,
                expected=f"a GPU that Vulkan offers: {', '.join(loaded['offered']) or 'none'}",
                found=f"--device {VULKAN}:{gpu}",
                advice="install the graphics card's Vulkan driver, or use --device cpu",
            )
        self.facts: dict[str, int | str] = {}
        if gpu is not None:
            left = f", {' and '.join(loaded['on_cpu'])} on the CPU" if loaded["on_cpu"] else ""
            self.facts["provider"] = f"Vulkan on {loaded['device']}{left}"

    def run(self, image: Image) -> Image:
        """(N, C, H, W) upscaled, one picture after another."""
        return np.stack([self._one(picture) for picture in image])

    def _one(self, picture: Image) -> Image:
        first, last = self._file.lines[0], self._file.lines[-1]
        answer, content = self._process.ask(
            {
                "do": "run",
                "shape": list(picture.shape),
                "input": first.outputs[0],
                "output": last.outputs[0],
            },
            np.ascontiguousarray(picture, np.float32).tobytes(),
        )
        scale = self._file.scale
        expected = [self._file.channels[1], *(scale * side for side in picture.shape[1:])]
        if answer["shape"] != expected:
            raise ModelError(
                "NCNN gives a picture of another size",
                file=self._file.param,
                expected="x".join(map(str, expected)),
                found="x".join(map(str, answer["shape"])),
                advice="convert the checkpoint again",
            )
        return np.frombuffer(content, np.float32).reshape(expected)
