"""NCNN in a process of its own: started as a script, asked through pipes.

PyTorch and NCNN each bring a runtime for threads, which end a process that holds both; and what a
damaged file does to NCNN, it does here. A message is its length (4 bytes), JSON of that length,
and the numbers of an array where the JSON names its shape.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

HERE = str(Path(__file__).parent)
# The modules beside this one have names that packages have too.
sys.path[:] = [folder for folder in sys.path if folder not in ("", HERE)]


class _RefusalError(Exception):
    """Why something cannot be done, in words."""


class Worker:
    """A network, once it is loaded."""

    def __init__(self) -> None:
        """Load nothing yet."""
        import ncnn  # pyright: ignore[reportMissingImports]
        import numpy as np

        self._ncnn: Any = ncnn
        self._np: Any = np
        self._net: Any = None

    def devices(self, _: dict[str, Any]) -> dict[str, Any]:
        """Names of the GPUs that Vulkan offers."""
        count = int(self._ncnn.get_gpu_count())
        return {"devices": [self._ncnn.get_gpu_info(i).device_name() for i in range(count)]}

    def load(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Load a pair of files; `gpu` is a number, or None for the CPU.

        Where there is no such GPU, nothing is loaded, and those that there are come back.
        """
        net = self._ncnn.Net()
        # Weights may be halves, arithmetic on a CPU is not: as the checkpoint's own.
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(net.opt, option, False)
        net.opt.use_bf16_storage = False
        if asked["threads"]:
            net.opt.num_threads = asked["threads"]
        device = "CPU"
        if asked["gpu"] is not None:
            names = self.devices({})["devices"]
            if asked["gpu"] >= len(names):
                return {"offered": names}
            device = names[asked["gpu"]]
            net.opt.use_vulkan_compute = True
            net.set_vulkan_device(asked["gpu"])
        if net.load_param(asked["param"]) or net.load_model(asked["weights"]):
            raise _RefusalError("NCNN cannot load the files")
        self._net = net
        on_cpu = sorted({layer.type for layer in net.layers() if not layer.support_vulkan})
        return {"device": device, "on_cpu": [kind for kind in on_cpu if kind != "Input"]}

    def run(self, asked: dict[str, Any], image: bytes) -> tuple[dict[str, Any], bytes]:
        """Upscale (C, H, W) float32."""
        array = self._np.frombuffer(image, self._np.float32).reshape(asked["shape"])
        extractor = self._net.create_extractor()
        extractor.input(asked["input"], self._ncnn.Mat(array).clone())
        failed, result = extractor.extract(asked["output"])
        if failed:
            raise _RefusalError(f"NCNN gives no picture (error {failed})")
        found = self._np.ascontiguousarray(self._np.array(result), self._np.float32)
        return {"shape": list(found.shape)}, found.tobytes()


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """So many bytes; fewer where the other side is gone."""
    parts: list[bytes] = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """A message and the numbers after it; None where the other side is gone."""
    head = _exactly(stream, 4)
    if len(head) < 4:
        return None
    message: dict[str, Any] = json.loads(_exactly(stream, struct.unpack("<I", head)[0]))
    size = 4 * math.prod(message["shape"]) if "shape" in message else 0
    content = _exactly(stream, size)
    return (message, content) if len(content) == size else None


def send(stream: BinaryIO, message: dict[str, Any], content: bytes = b"") -> None:
    """Write a message and its numbers."""
    text = json.dumps(message).encode()
    stream.write(struct.pack("<I", len(text)) + text)
    stream.write(content)
    stream.flush()


def main() -> None:
    """Answer until the other side is gone."""
    # What NCNN prints must not come between the messages.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker()
    while (received := receive(sys.stdin.buffer)) is not None:
        asked, content = received
        try:
            if asked["do"] == "run":
                send(replies, *worker.run(asked, content))
            else:
                send(replies, getattr(worker, asked["do"])(asked))
        except (_RefusalError, MemoryError, RuntimeError, ValueError) as error:
            send(replies, {"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    main()
