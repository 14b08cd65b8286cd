"""What quantisation-aware training gains over calibration alone, on a network trained on the spot.

    python benchmarks/int8_training.py

A small network learns to enlarge drawn pictures, in float. Its every convolution and linear map
then becomes int8, with ranges from calibration; and again after fine-tuning for int8. The float
network that both are compared with is fine-tuned for as many steps. What is measured is what the
exported files compute in onnxruntime, on drawn pictures that no training saw.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from aether_converters.conversion import convert
from aether_converters.int8.patches import built_in_patches
from aether_converters.int8.planning import Int8Options
from aether_core import (
    AetherNet,
    aether,
    freeze_ranges,
    input_scale,
    prepare_qat,
    quantised_layers,
)

SIDE: Final = 96  # px of an original
HELD_OUT: Final = 24  # pictures
BATCH: Final = 8
SOFTENED: Final = 3  # px that become one


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What was measured; PSNR in dB, mean over pictures, in float and as loss against it.

    Attributes:
        float_psnr: Of the float network, fine-tuned as long as the other.
        calibrated_loss: Of all layers in int8, with ranges from calibration.
        trained_loss: Of all layers in int8 after quantisation-aware training.
        equal_ranges: Whether every step in the file is the trained one, bit for bit.
        within_a_level: Share of pixels in which onnxruntime, computing each operator of the file
            as it is written, and PyTorch lie within 1 / 255.
        largest_difference: Of all pixels, in levels of 255.
        within_a_level_optimised: The share where onnxruntime replaces convolutions by its integer
            kernels, which round biases to integers as well.
    """

    float_psnr: float
    calibrated_loss: float
    trained_loss: float
    equal_ranges: bool
    within_a_level: float
    largest_difference: float
    within_a_level_optimised: float


def main() -> None:
    """Train, convert, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200, help="of the float training")
    parser.add_argument("--fine-tuning", type=int, default=400, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    pictures = _pictures(160)
    network = aether(embed_dim=24, depths=(1, 1), lk_kernel=7, scale=2, drop_path_rate=0.0)
    train(network, pictures[HELD_OUT:], options.steps, 2e-3)
    plain = train(deepcopy(network), pictures[HELD_OUT:], options.fine_tuning, 2e-4)
    prepared = prepare_qat(deepcopy(network), warmup=max(options.fine_tuning // 10, 1))
    trained = train(prepared, pictures[HELD_OUT:], options.fine_tuning, 2e-4)
    freeze_ranges(trained)
    print(json.dumps(asdict(measure(plain, trained, pictures[:HELD_OUT])), indent=2))


def _pictures(count: int) -> Tensor:
    """Drawn larger and averaged: edges as soft as a lens and a sensor leave them."""
    patches = built_in_patches(3, count, SIDE * SOFTENED)
    return F.avg_pool2d(torch.from_numpy(np.concatenate(patches)), SOFTENED)


def train(network: AetherNet, pictures: Tensor, steps: int, rate: float) -> AetherNet:
    """Let the network learn to enlarge area-downscaled parts of pictures."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
        top, left = (int(n) for n in torch.randint((SIDE - 48) // 2, (2,), generator=generator) * 2)
        original = pictures[chosen, :, top : top + 48, left : left + 48]
        loss = (network(smaller(original)) - original).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def smaller(pictures: Tensor) -> Tensor:
    """Half the size, in 8 bits."""
    return (F.avg_pool2d(pictures, 2) * 255).round() / 255


@torch.inference_mode()
def measure(plain: AetherNet, trained: AetherNet, pictures: Tensor) -> Gain:
    """Compare the files made of a float and of a trained network."""
    images = smaller(pictures)
    with tempfile.TemporaryDirectory() as folder:
        calibrated = _exported(plain, Path(folder, "plain"))
        quantised = _exported(trained, Path(folder, "trained"))
        reference = _psnr(plain(images), pictures)
        found = _run(quantised, images)
        expected = trained(images)
        apart = (_run(quantised, images, optimised=False) - expected).abs()
        return Gain(
            float_psnr=reference,
            calibrated_loss=reference - _psnr(_run(calibrated, images), pictures),
            trained_loss=reference - _psnr(found, pictures),
            equal_ranges=_has_trained_ranges(quantised, trained),
            within_a_level=_share_within_a_level(apart),
            largest_difference=float(apart.max()) * 255,
            within_a_level_optimised=_share_within_a_level((found - expected).abs()),
        )


def _exported(network: AetherNet, folder: Path) -> Path:
    """The file for TensorRT with every layer in int8, which onnxruntime computes as well."""
    folder.mkdir()
    checkpoint = folder / "model.pth"
    torch.save(network.state_dict(), checkpoint)
    report = convert(
        checkpoint,
        folder,
        to=["onnx"],
        precision=["int8"],
        int8=Int8Options(everything=True, tune=0),
    )
    return report.artefacts[0].path


def _share_within_a_level(apart: Tensor) -> float:
    return float((apart <= 1 / 255).float().mean())


def _run(path: Path, images: Tensor, *, optimised: bool = True) -> Tensor:
    runtime = cast(Any, onnxruntime)
    options = runtime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = runtime.InferenceSession(str(path), options)
    return torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


def _psnr(found: Tensor, originals: Tensor) -> float:
    inside = (..., slice(8, -8), slice(8, -8))
    errors = (found.clamp(0, 1) - originals)[inside].square().flatten(1).mean(dim=1)
    return float((-10 * errors.log10()).mean())


def _has_trained_ranges(path: Path, trained: AetherNet) -> bool:
    model = onnx.load(str(path))
    steps = {t.name: float(numpy_helper.to_array(t)) for t in model.graph.initializer if not t.dims}
    makers = {name: node for node in model.graph.node for name in node.output}
    written: dict[str, float] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            written[node.name] = steps[makers[node.input[0]].input[1]]
    expected: dict[str, float] = {}
    for name, layer in quantised_layers(trained).items():
        for each in _layers(name):
            expected[each] = float(input_scale(layer.amax))
    return written == expected and not any(math.isnan(step) for step in written.values())


def _layers(name: str) -> Sequence[str]:
    """The layers of the fused network that share a range."""
    if name.endswith(".ffn"):
        return f"{name}.fc1_gate", f"{name}.fc1_main"
    return (
        (f"{name}.fused_conv",)
        if name.startswith("layers.") and name.endswith(".conv")
        else (name,)
    )


if __name__ == "__main__":
    main()
