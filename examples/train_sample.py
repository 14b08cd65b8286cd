"""Train the sample model that the package ships, fine-tune it for int8, measure either.

    python examples/train_sample.py --out training
    python examples/train_sample.py --out training_qat --qat training/2x_aether_sample.safetensors
    python examples/train_sample.py --evaluate training/2x_aether_sample.safetensors

Training takes the photographs of Debian's package lomiri-wallpapers-16.04, or those of any folder.
A run that was stopped goes on where it last saved when the same command is given again, and ends
with the same weights as one that was not: a batch depends on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import aether_spandrel
from aether_converters.atomic import complete_or_nothing
from aether_converters.pictures.formats import is_picture
from aether_converters.pictures.picture import from_float, to_float
from aether_converters.pictures.reading import read_picture
from aether_core import (
    AetherNet,
    aether,
    freeze_ranges,
    prepare_qat,
    quantised_layers,
)
from aether_spandrel.errors import AetherError

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), RGB

# The photographs. Of those in the package, the ones that ask for attribution at most.

DEBIAN_PACKAGE: Final = "lomiri-wallpapers-16.04"
INSTALLED: Final = Path("/usr/share/backgrounds")  # where the package puts its pictures
PHOTOGRAPHS: Final = {
    "Picture_0B_by_freespace.jpg": ('Trevor "Freespace", 2018', "CC-BY-4.0"),
    "Picture_1A_by_freespace.jpg": ('Trevor "Freespace", 2018', "CC-BY-4.0"),
    "Wine_by_Jakkub_Mede.jpg": ("Jakub Mede, 2018", "CC-BY-4.0"),
    "aitzgorri_by_Aitzol_Berasategi.jpg": ("Aitzol Berasategi, 2018", "CC-BY-4.0"),
    "friends_by_Aitzol_Berasategi.jpg": ("Aitzol Berasategi, 2018", "CC-BY-4.0"),
    "life_by_Aitzol_Berasategi.jpg": ("Aitzol Berasategi, 2018", "CC-BY-4.0"),
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": ("Aitzol Berasategi, 2018", "CC-BY-4.0"),
    "seeding_by_Clements_Engelhardt.jpg": ("Clemens Engelhardt, 2018", "CC0-1.0"),
    "sunset_by_Aitzol_Berasategi.jpg": ("Aitzol Berasategi, 2018", "CC-BY-4.0"),
}
"""File name: who holds the copyright and the licence, as the package's `copyright` file says."""

REDUCTIONS: Final = (2, 3, 4)  # photographs of many megapixels are sharp only when made smaller
LEAST_DETAIL: Final = 3.0  # of 255, mean step between neighbours; skies and blur teach nothing
TRIES: Final = 8  # crops to look at until one has so much

# The pictures that quality is measured on, all in scikit-image's wheel. None is trained on.

TEST_PICTURES: Final = ("astronaut", "coffee", "chelsea", "rocket")
MARGIN: Final = 8  # px that are not measured, on each side
QUALITY_EVERY: Final = 500  # steps; it is only looked at, and decides nothing

# What is trained, and how.

SCALE: Final = 2
FLOAT_LAYERS: Final = ("layers.*.conv",)  # depthwise kernels lose most in int8 and gain little
CHARBONNIER: Final = 1e-3
SAMPLE_NAME: Final = f"{SCALE}x_aether_sample.safetensors"
QAT_NAME: Final = f"{SCALE}x_aether_sample_qat.pth"


def sample_network() -> AetherNet:
    """The sample model before training: revision G1, RGB, 2x."""
    return aether(embed_dim=48, depths=(2, 2, 2), lk_kernel=11, scale=SCALE, drop_path_rate=0.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a training goes.

    Attributes:
        steps: Batches in all.
        batch: Patches a batch.
        patch: Side of a patch before upscaling, in px.
        rate: Learning rate after the warm-up; falls as half a cosine to a hundredth.
        warmup: Steps in which the rate rises.
        decay: Of the moving average of weights that is written.
        seed: Of the first weights and the patches.
        frozen_from: Share of the steps after which int8 ranges stay as they are.
    """

    steps: int = 5000
    batch: int = 8
    patch: int = 32
    rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.999
    seed: int = 0
    frozen_from: float = 0.75

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


FEWEST_STEPS: Final = 4  # so that int8 ranges have seen something before they are frozen
QAT_PLAN: Final = Plan(steps=600, rate=1e-4, warmup=100, decay=0.99)


def find_photographs(folder: Path | None, temporary: Path) -> list[Path]:
    """The pictures of `folder`, or else of the Debian package: installed, or downloaded with apt.

    Raises:
        AetherError: There are none.
    """
    if folder is not None:
        found = sorted(path for path in folder.glob("*") if is_picture(path))
        if not found:
            raise AetherError(
                "no pictures to train on",
                file=folder,
                expected="a folder with PNG, JPEG, WebP, TIFF or BMP files",
            )
        return found
    source = INSTALLED
    if not all((source / name).exists() for name in PHOTOGRAPHS):
        source = temporary / INSTALLED.relative_to("/")
        _download_package(temporary)
    missing = [name for name in PHOTOGRAPHS if not (source / name).exists()]
    if missing:
        raise AetherError(
            f"Debian's package {DEBIAN_PACKAGE} lacks a photograph",
            expected=missing[0],
            advice="name a folder of pictures with --photographs",
        )
    return [source / name for name in PHOTOGRAPHS]


def _download_package(folder: Path) -> None:
    """Unpack the Debian package below `folder`, without installing it."""

    def run_there(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)

    try:
        run_there("apt-get", "download", DEBIAN_PACKAGE)
        run_there("dpkg-deb", "-x", *(str(archive) for archive in folder.glob("*.deb")), ".")
    except (OSError, subprocess.CalledProcessError) as error:
        raise AetherError(
            f"the photographs of Debian's package {DEBIAN_PACKAGE} cannot be had",
            found=str(getattr(error, "stderr", "") or error).strip(),
            advice=f"apt-get update && apt-get install {DEBIAN_PACKAGE}, "
            "or name a folder of pictures with --photographs",
        ) from error


def read_photographs(paths: Sequence[Path], patch: int) -> list[Pixels]:
    """Each photograph at each of the `REDUCTIONS` that leaves room for a patch (px, upscaled).

    Raises:
        ImageError: A picture cannot be read.
        AetherError: None is large enough.
    """
    pictures: list[Pixels] = []
    for path in paths:
        planes = from_float(to_float(read_picture(path).color), np.dtype(np.uint8))
        pixels = np.moveaxis(np.broadcast_to(planes, (3, *planes.shape[1:])), 0, -1)
        reduced = [shrink(pixels, factor) for factor in REDUCTIONS]
        pictures += [smaller for smaller in reduced if min(smaller.shape[:2]) >= patch]
    if not pictures:
        raise AetherError(
            "every picture is too small to train on",
            expected=f"at least {REDUCTIONS[0] * patch} px on each side",
        )
    return pictures


def shrink(pixels: Pixels, factor: int) -> Pixels:
    """A `factor`-th as many px on each side, by area and rounded; what is left over is cut off.

    >>> shrink(np.array([[[1], [2], [9]], [[3], [5], [9]]], np.uint8), 2).tolist()
    [[[3]]]
    """
    height, width = (side // factor for side in pixels.shape[-3:-1])
    cut = pixels[..., : height * factor, : width * factor, :]
    areas = cut.reshape(*pixels.shape[:-3], height, factor, width, factor, pixels.shape[-1])
    return (areas.mean(axis=(-4, -2), dtype=np.float32) + 0.5).astype(np.uint8)


def draw_batch(pictures: Sequence[Pixels], plan: Plan, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: (N, 3, patch, patch) and what it is half of, both in [0, 1]."""
    random = np.random.default_rng((plan.seed, step))
    large = np.stack([_draw_patch(pictures, plan.patch * SCALE, random) for _ in range(plan.batch)])
    return as_tensor(shrink(large, SCALE)), as_tensor(large)


def _draw_patch(pictures: Sequence[Pixels], size: int, random: np.random.Generator) -> Pixels:
    """A square of a picture, flipped and turned, with some detail if a few tries find any."""
    crop = _crop(pictures, size, random)
    for _ in range(TRIES - 1):
        if _detail(crop) >= LEAST_DETAIL:
            break
        crop = _crop(pictures, size, random)
    turned = np.rot90(crop, _below(4, random))
    return turned[:, ::-1] if _below(2, random) else turned


def _crop(pictures: Sequence[Pixels], size: int, random: np.random.Generator) -> Pixels:
    picture = pictures[_below(len(pictures), random)]
    top, left = (_below(side - size + 1, random) for side in picture.shape[:2])
    return picture[top : top + size, left : left + size]


def _below(end: int, random: np.random.Generator) -> int:
    return int(random.integers(end))


def _detail(pixels: Pixels) -> float:
    """The mean step from a px to the next, of 255, in green."""
    green = pixels[..., 1].astype(np.int16)
    down, right = green[1:] - green[:-1], green[:, 1:] - green[:, :-1]
    return float(np.abs(down).mean() + np.abs(right).mean()) / 2


def as_tensor(pixels: Pixels) -> Tensor:
    """(N, H, W, 3) of 0 to 255 as (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def start_as_interpolation(network: AetherNet) -> AetherNet:
    """The same network, in place, whose fresh weights already enlarge by a cubic kernel.

    AetherNet has no path from input to output beside its layers, so a fresh one learns to copy
    the picture first. Here the picture has channels of its own throughout, all others add
    nothing yet, and training begins with what interpolation lacks.
    """
    layers = cast(Any, network)
    first, before, upsample, last = (
        layers.conv_first,
        layers.conv_before_upsample[0],
        layers.upsample[0],
        layers.conv_last,
    )
    for layer in (layers.conv_after_body, last):
        nn.init.zeros_(layer.weight)
    for layer in (first, layers.conv_after_body, before, upsample, last):
        nn.init.zeros_(layer.bias)
    # Of the cubic kernel (a = -0.5) the three taps that a 3 x 3 convolution reaches.
    phases = torch.tensor([[0.2266, 0.8672, -0.0703], [-0.0703, 0.8672, 0.2266]])
    phases = phases / phases.sum(dim=1, keepdim=True)
    slope = layers.conv_before_upsample[1].negative_slope
    for colour in range(3):
        first.weight[colour] = 0
        first.weight[colour, colour, 1, 1] = 1
        # LeakyReLU(v) - LeakyReLU(-v) = (1 + slope) v: both signs keep the picture linear.
        positive, negative = colour, colour + 3
        for channel, sign in ((positive, 1), (negative, -1)):
            before.weight[channel] = 0
            before.weight[channel, colour, 1, 1] = sign
        for row in range(SCALE):
            for column in range(SCALE):
                kernel = torch.outer(phases[row], phases[column]) / (1 + slope)
                phase = (colour * SCALE + row) * SCALE + column
                upsample.weight[phase] = 0
                upsample.weight[phase, positive] = kernel
                upsample.weight[phase, negative] = -kernel
        last.weight[colour, colour, 1, 1] = 1
    return network


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One line of a training's report, about the steps since the line before.

    Attributes:
        step: Steps done.
        loss: Mean loss.
        rate: Learning rate of the last step.
        speed: Steps a second.
        network: The averaged weights so far.
    """

    step: int
    loss: float
    rate: float
    speed: float
    network: AetherNet


def train(
    network: AetherNet,
    pictures: Sequence[Pixels],
    plan: Plan,
    state_file: Path,
    report: Callable[[Progress], None],
    every: int = 100,
) -> AetherNet:
    """The network with the average of its weights over the last steps, after all of them.

    Args:
        network: Freshly drawn, or prepared for quantisation; trained in place.
        pictures: To take patches from.
        plan: How to train.
        state_file: Is written every `every` steps, and read first if it exists.
        report: Is told of the progress as often.
        every: Steps between two reports.

    Raises:
        AetherError: The state belongs to another plan.
    """
    optimizer = torch.optim.Adam(network.parameters(), plan.rate, betas=(0.9, 0.99))
    average = AveragedModel(network, multi_avg_fn=cast(Any, get_ema_multi_avg_fn)(plan.decay))
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "average": average}
    begin = load_state(state_file, plan, parts) if state_file.exists() else 0
    losses: list[float] = []
    since = time.monotonic()
    for step in range(begin, plan.steps):
        if quantised_layers(network) and step == int(plan.frozen_from * plan.steps):
            freeze_ranges(network)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        small, large = draw_batch(pictures, plan, step)
        error = network.train()(small) - large
        loss = torch.sqrt(error.square() + CHARBONNIER**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
        losses.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == plan.steps:
            save_state(state_file, plan, parts, step + 1)
            report(
                Progress(
                    step=step + 1,
                    loss=sum(losses) / len(losses),
                    rate=plan.rate_at(step),
                    speed=len(losses) / (time.monotonic() - since),
                    network=cast(AetherNet, average.module).eval(),
                )
            )
            losses, since = [], time.monotonic()
    return cast(AetherNet, average.module).eval()


def save_state(path: Path, plan: Plan, parts: dict[str, Any], step: int) -> None:
    """Write what `load_state` needs; the file before stays until this one is complete."""
    state = {"plan": asdict(plan), "step": step}
    state |= {name: part.state_dict() for name, part in parts.items()}
    with complete_or_nothing(path, force=True) as unfinished:
        torch.save(state, unfinished.path)


def load_state(path: Path, plan: Plan, parts: dict[str, Any]) -> int:
    """Give each part its state back; the number of steps done.

    Raises:
        AetherError: The state cannot be read, or belongs to another plan.
    """
    state = _read_state(path)
    if state["plan"] != asdict(plan):
        raise AetherError(
            "this training was begun with other settings",
            file=path,
            expected=str(plan),
            found=str(Plan(**state["plan"])),
            advice="give the same options again, or another folder with --out",
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"]


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise AetherError(
            "this is no state of a training",
            file=path,
            found=str(error),
            advice="remove it to begin anew, or give another folder with --out",
        ) from error


def write_sample(network: AetherNet, plan: Plan, photographs: Sequence[Path], path: Path) -> None:
    """Write the network as safetensors in float16, its kernels apart as trainers leave them."""
    tensors = {name: t.half().contiguous() for name, t in network.state_dict().items()}
    sources = {p.name: ", ".join(PHOTOGRAPHS.get(p.name, ())) for p in photographs}
    metadata = {
        "name": "AetherNet sample",
        "author": "aether-spandrel",
        "license": "MIT",
        "description": "A small network for trying things out, trained on clean pictures.",
        "trained_on": json.dumps(sources, ensure_ascii=False),
        "training": json.dumps(asdict(plan)),
    }
    with complete_or_nothing(path, force=True) as unfinished:
        safetensors.torch.save_file(tensors, unfinished.path, metadata)


def write_qat(network: AetherNet, path: Path) -> None:
    """Write the network and its int8 ranges as a state dict, as trainers leave them."""
    with complete_or_nothing(path, force=True) as unfinished:
        torch.save(network.state_dict(), unfinished.path)


def read_sample(model: Path, warmup: int) -> AetherNet:
    """A network of the sample's shape with the weights of `model`, prepared for int8.

    A float file leaves the ranges fresh; they then take `warmup` batches to begin with.

    Raises:
        AetherError: The file is no sample model.
    """
    network = prepare_qat(sample_network(), skip=FLOAT_LAYERS, warmup=warmup)
    try:
        if model.suffix == ".safetensors":
            state = safetensors.torch.load_file(model)
        else:
            state = torch.load(model, weights_only=True)
        network.load_state_dict(state)  # float16 becomes float32
    except (RuntimeError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise AetherError(
            "this is no sample model",
            file=model,
            expected=f"{SAMPLE_NAME} or {QAT_NAME} as this script writes them",
            found=str(error),
        ) from error
    return network


@dataclass(frozen=True, kw_only=True)
class Quality:
    """PSNR in dB of a test picture that was halved and enlarged again."""

    picture: str
    bicubic: float
    network: float

    @property
    def gain(self) -> float:
        """How much better the network is, in dB."""
        return self.network - self.bicubic


@torch.inference_mode()
def measure(upscale: Callable[[Tensor], Tensor]) -> list[Quality]:
    """The quality on each of the `TEST_PICTURES`, halved by area to 8 bits, on RGB in [0, 1].

    Raises:
        AetherError: scikit-image is not installed.
    """
    try:
        pictures = importlib.import_module("skimage.data")
    except ImportError as error:
        raise AetherError(
            "the test pictures come with scikit-image, which is not installed",
            advice="pip install scikit-image",
        ) from error
    return [_measured(name, getattr(pictures, name)(), upscale) for name in TEST_PICTURES]


def _measured(name: str, pixels: Pixels, upscale: Callable[[Tensor], Tensor]) -> Quality:
    height, width = (side - side % SCALE for side in pixels.shape[:2])
    pixels = pixels[None, :height, :width]
    small, large = as_tensor(shrink(pixels, SCALE)), as_tensor(pixels)
    # With antialias the cubic kernel is the one that picture editors use, and the better one.
    bicubic = F.interpolate(small, scale_factor=SCALE, mode="bicubic", antialias=True)
    return Quality(
        picture=name, bicubic=_psnr(bicubic, large), network=_psnr(upscale(small), large)
    )


def _psnr(found: Tensor, expected: Tensor) -> float:
    error = (found.clamp(0, 1) - expected)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    return -10 * math.log10(error.double().square().mean().item())


def mean_gain(qualities: Sequence[Quality]) -> float:
    """By how many dB the network is better than bicubic, on average over the pictures."""
    return sum(quality.gain for quality in qualities) / len(qualities)


def print_qualities(title: str, qualities: Sequence[Quality]) -> None:
    """A table on standard output."""
    print(f"{title:<12} {'bicubic':>8} {'network':>8} {'gain':>6}  dB")
    for quality in qualities:
        print(
            f"{quality.picture:<12} {quality.bicubic:8.2f} {quality.network:8.2f} "
            f"{quality.gain:+6.2f}"
        )
    print(f"{'mean':<12} {'':8} {'':8} {mean_gain(qualities):+6.2f}")


def evaluate(model: Path) -> None:
    """Print the quality of a model, and that of its int8 form where it has learnt ranges."""
    print(model)
    print_qualities("float", measure(aether_spandrel.load(model)))
    if aether_spandrel.inspect(model).ranges:
        print_qualities("int8", measure(read_sample(model, warmup=1).eval()))


def print_progress(plan: Plan, progress: Progress) -> None:
    """One line on standard output, now and then with the averaged network's quality."""
    left = (plan.steps - progress.step) / progress.speed / 60
    line = (
        f"step {progress.step}/{plan.steps}  loss {progress.loss:.5f}  "
        f"rate {progress.rate:.1e}  {progress.speed:.2f} steps/s  {left:.0f} min left"
    )
    if progress.step % QUALITY_EVERY == 0 and find_spec("skimage"):
        line += f"  over bicubic {mean_gain(measure(progress.network)):+.2f} dB"
    print(line, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to train, or go on")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="pictures to train on")
    parser.add_argument("--qat", type=Path, metavar="MODEL", help="fine-tune this model for int8")
    parser.add_argument("--evaluate", type=Path, metavar="MODEL", help="only measure this model")
    parser.add_argument("--steps", type=int, help="another length than the planned one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the processor; as many as torch takes")
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.evaluate is None):
        parser.error("give either --out or --evaluate")
    if options.steps is not None and options.steps < FEWEST_STEPS:
        parser.error(f"--steps must be at least {FEWEST_STEPS}")
    return options


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.evaluate:
        evaluate(options.evaluate)
        return
    plan = replace(QAT_PLAN if options.qat else Plan(), seed=options.seed)
    if options.steps:
        plan = replace(plan, steps=options.steps)
    torch.manual_seed(plan.seed)
    if options.qat:
        network = read_sample(options.qat, max(plan.steps // 10, 1))
    else:
        network = start_as_interpolation(sample_network())
    with tempfile.TemporaryDirectory() as temporary:
        paths = find_photographs(options.photographs, Path(temporary))
        pictures = read_photographs(paths, plan.patch * SCALE)
    state_file = options.out / ("qat_state.pth" if options.qat else "state.pth")
    trained = train(network, pictures, plan, state_file, partial(print_progress, plan))
    target = options.out / (QAT_NAME if options.qat else SAMPLE_NAME)
    if options.qat:
        write_qat(trained, target)
    else:
        write_sample(trained, plan, paths, target)
    for model in (options.qat, target) if options.qat else (target,):
        if find_spec("skimage"):
            evaluate(model)
        else:
            print(model)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    try:
        run(parse(arguments))
    except AetherError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last report", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
