"""Training in neosr and traiNNer-redux themselves, with the wrappers and options that we ship.

    NEOSR=~/neosr TRAINNER_REDUX=~/traiNNer-redux pytest -m frameworks

Each variable names a checkout that holds the environment which its installer makes. What runs, on
the CPU, is a copy: unchanged, and with the files that docs/training.md lets a trainer copy.
Networks are small and trainings short, so nothing is said about quality.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from spandrel import ModelLoader
from torch import Tensor

import aether_core
import aether_spandrel
from aether_converters import convert
from aether_spandrel.checkpoint import read_checkpoint
from tests.core.test_wrappers import WRAPPERS, Options, read_options

pytestmark = pytest.mark.frameworks

ROOT = Path(__file__).parent.parent.parent
WITHOUT_CUDA = ROOT / "tests" / "programs" / "without_cuda.py"
SCALE = 2
STEPS = 4  # of each run, of which there are two: a training and its resumption
NETWORK: Options = {"type": "aether", "embed_dim": 16, "depths": [1, 2], "lk_kernel": 7}
QAT: Options = {"skip": ["layers.*.conv"], "warmup": 2}


@dataclass(frozen=True, kw_only=True)
class Framework:
    """What differs between the two.

    Attributes:
        variable: Of the environment; names a checkout.
        python: Where the framework's installer puts its interpreter.
        archs: Where it looks for networks.
        options: The name of its option file.
        configure: Changes what a trainer would, for a training of a given number of steps.
        written: The option file's text.
        averaged: The file of the averaged weights after a step, among the models.
        latest: The file from which training is resumed, likewise.
    """

    variable: str
    python: str
    archs: str
    configure: Callable[[Options, Path, int], None]
    written: Callable[[Options], str]
    averaged: str
    latest: str


def configure_neosr(options: Options, pictures: Path, steps: int) -> None:
    for split in ("train", "val"):
        for kind in ("gt", "lq"):
            options["datasets"][split][f"dataroot_{kind}"] = str(pictures / split / kind)
    train: Options = {"patch_size": 16, "batch_size": 2, "num_worker_per_gpu": 1}
    options["datasets"]["train"] |= {**train, "pin_memory": False}
    options["datasets"]["val"]["pin_memory"] = False
    options["val"]["val_freq"] = steps
    options["logger"] |= {"total_iter": steps, "save_checkpoint_freq": STEPS, "print_freq": 1}


def configure_redux(options: Options, pictures: Path, steps: int) -> None:
    for split in ("train", "val"):
        for kind in ("gt", "lq"):
            options["datasets"][split][f"dataroot_{kind}"] = [str(pictures / split / kind)]
    train: Options = {"lq_size": 16, "batch_size_per_gpu": 2, "num_worker_per_gpu": 1}
    options["datasets"]["train"] |= {**train, "pin_memory": False}
    options["num_gpu"] = 0
    options["train"]["total_iter"] = steps
    options["val"]["val_freq"] = steps
    options["logger"] |= {"save_checkpoint_freq": STEPS, "print_freq": 1}


def toml(table: Options, name: str = "") -> str:
    """The table as TOML, of which JSON's numbers, strings, switches and lists are a part."""
    tables = {key: cast(Options, value) for key, value in table.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(table[key])}" for key in table if key not in tables]
    for key, inner in tables.items():
        lines += [f"[{name}{key}]", toml(inner, f"{name}{key}.")]
    return "\n".join(lines)


FRAMEWORKS = {
    "neosr": Framework(
        variable="NEOSR",
        python=".venv/bin/python",
        archs="neosr/archs",
        configure=configure_neosr,
        written=toml,
        averaged="net_g_{step}.pth",
        latest="net_g_{step}.pth",
    ),
    "traiNNer-redux": Framework(
        variable="TRAINNER_REDUX",
        python="venv/bin/python",
        archs="traiNNer/archs",
        configure=configure_redux,
        written=lambda options: json.dumps(options, indent=1),  # which is YAML
        averaged="net_g_ema_{step}.safetensors",
        latest="resume_models/net_g_{step}.safetensors",
    ),
}


class Checkout:
    """A copy of a framework, in which trainings run when they are first asked for."""

    def __init__(self, name: str, folder: Path) -> None:
        self.framework = FRAMEWORKS[name]
        self.shipped = WRAPPERS / name
        variable = self.framework.variable
        if variable not in os.environ:
            pytest.skip(f"{variable} names no checkout of {name}")
        original = Path(os.environ[variable]).expanduser().absolute()
        self.python = original / self.framework.python
        self.root = folder / name
        skipped = (".git", "venv", ".venv", "experiments", "docs", "tests", "__pycache__")
        shutil.copytree(original, self.root, ignore=shutil.ignore_patterns(*skipped))
        for command in copies(name):
            subprocess.run(
                ["sh", "-c", command], cwd=ROOT, env={**os.environ, "HOME": str(folder)}, check=True
            )
        self.pictures = folder / "pictures"
        draw_pictures(self.pictures)

    def run(self, script: str, *arguments: str) -> str:
        """What a script of the framework prints."""
        result = subprocess.run(
            [self.python, WITHOUT_CUDA, script, *arguments],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        )
        output = result.stdout + result.stderr
        assert result.returncode == 0, output
        return output

    def options(self, name: str, steps: int, **changes: Options) -> str:
        """The path of an option file: the one we ship, for a training of `steps` steps."""
        (shipped,) = self.shipped.glob("train_aether.*")
        options = read_options(shipped)
        options |= {"name": name, "scale": SCALE, "network_g": NETWORK}
        self.framework.configure(options, self.pictures, steps)
        for table, values in changes.items():
            options[table] = {**options[table], **values}
        path = self.root / f"{name}{shipped.suffix}"
        path.write_text(self.framework.written(options), "utf-8")
        return str(path)

    def train(self, name: str, **changes: Options) -> Training:
        """A training of STEPS steps, resumed for as many."""
        log = self.run("train.py", "-opt", self.options(name, STEPS, **changes))
        resumed = self.options(name, 2 * STEPS, **changes)
        log += self.run("train.py", "-opt", resumed, "--auto_resume")
        return Training(framework=self.framework, folder=self.root / "experiments" / name, log=log)

    @cache  # noqa: B019 (one checkout a test session)
    def plain(self) -> Training:
        return self.train("plain")

    @cache  # noqa: B019
    def qat(self) -> Training:
        """Training for int8 that starts from the float network."""
        start: Options = {
            "pretrain_network_g": str(self.plain().averaged()),
            "strict_load_g": self.framework.variable == "NEOSR",
        }
        return self.train("qat", network_g={"qat": QAT}, path=start)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The files of a training that was resumed, and what was printed."""

    framework: Framework
    folder: Path
    log: str

    def averaged(self, step: int = 2 * STEPS) -> Path:
        return self.folder / "models" / self.framework.averaged.format(step=step)

    def latest(self, step: int = 2 * STEPS) -> Path:
        return self.folder / "models" / self.framework.latest.format(step=step)


def copies(name: str) -> list[str]:
    """What docs/training.md lets a trainer copy."""
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    commands = re.findall(rf"^cp \S+ ~/{name}/\S*$", page, re.MULTILINE)
    assert len(commands) == 3
    return commands


def draw_pictures(folder: Path) -> None:
    """Pairs of smooth pictures, of which the second has half the size."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    for index in range(4):
        waves = torch.sin(x / (3 + index)) * torch.cos(y / 5)
        grey = Image.fromarray((127 + 100 * waves).byte().numpy())
        large = Image.merge("RGB", [grey, grey.rotate(90), grey.rotate(180)])
        for kind, picture in (("gt", large), ("lq", large.reduce(SCALE))):
            for split in ("train", "val"):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                picture.save(folder / split / kind / f"{index}.png")


def number(path: Path, key: str) -> float:
    return float(read_checkpoint(path).qat_entries[key])


def weights(path: Path) -> dict[str, Tensor]:
    return dict(read_checkpoint(path).state_dict)


@pytest.fixture(scope="module", params=FRAMEWORKS)
def checkout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(request.param, tmp_path_factory.mktemp("frameworks"))


def test_every_size_is_known_by_its_name(checkout: Checkout):
    package = Path(checkout.framework.archs).parent.name
    script = checkout.root / "sizes.py"
    scale = "" if package == "neosr" else f", 'scale': {SCALE}"  # neosr's own networks get none
    names = ("aether", "aether_small", "aether_medium", "aether_large")
    script.write_text(
        f"from {package}.archs import build_network\n"
        f"for name in {names}:\n"
        f"    network = build_network({{'type': name{scale}}})\n"
        "    print('size', name, sum(p.numel() for p in network.parameters()))\n"
    )
    printed = checkout.run("sizes.py", "-opt", checkout.options("sizes", STEPS))
    for name in names:
        network = getattr(aether_core, name)(scale=SCALE)
        assert f"size {name} {sum(p.numel() for p in network.parameters())}\n" in printed


@pytest.mark.parametrize("kind", ["plain", "qat"])
class TestTraining:
    def test_changes_the_network_and_goes_on_when_resumed(self, checkout: Checkout, kind: str):
        training: Training = getattr(checkout, kind)()
        assert "Resuming training" in training.log
        for path in (training.latest, training.averaged):
            first, second = weights(path(STEPS)), weights(path())
            assert all(torch.isfinite(tensor).all() for tensor in second.values())
            assert not torch.equal(first["conv_last.weight"], second["conv_last.weight"])

    def test_leaves_a_file_that_every_loader_reads(self, checkout: Checkout, kind: str):
        training: Training = getattr(checkout, kind)()
        image = torch.rand(1, 3, 13, 17)
        for path in (training.latest(), training.averaged()):
            model = aether_spandrel.load(path)
            assert (model.scale, model.input_channels) == (SCALE, 3)
            other = ModelLoader().load_from_file(path)
            with torch.inference_mode():
                torch.testing.assert_close(other.model(image), model.model(image))
            info = aether_spandrel.inspect(path)
            assert info.config.depths == (1, 2)
            assert info.qat == (kind == "qat")

    def test_leaves_a_file_that_converts(self, checkout: Checkout, kind: str, tmp_path: Path):
        training: Training = getattr(checkout, kind)()
        report = convert(training.averaged(), tmp_path, precision=["fp32"])
        assert {artefact.path.suffix for artefact in report.artefacts} == {
            ".pth",
            ".safetensors",
            ".onnx",
        }


def test_int8_training_starts_from_the_float_network(checkout: Checkout):
    before, after = weights(checkout.plain().averaged()), weights(checkout.qat().latest(STEPS))
    learnt = (after["conv_first.weight"] - before["conv_first.weight"]).abs().max()
    fresh = aether_core.aether(scale=SCALE, **{k: v for k, v in NETWORK.items() if k != "type"})
    drawn = (after["conv_first.weight"] - fresh.state_dict()["conv_first.weight"]).abs().max()
    assert learnt < 0.02 < drawn


def test_ranges_are_learnt_on_when_resumed(checkout: Checkout):
    """What the last batch of a run has shown enters with the first one of the next."""
    training = checkout.qat()
    batches = "conv_last.input_range.batches"
    assert number(training.latest(STEPS), batches) == STEPS - 1
    assert number(training.latest(), batches) == 2 * STEPS - 1


def test_averaged_weights_have_their_ranges(checkout: Checkout):
    info = aether_spandrel.inspect(checkout.qat().averaged())
    assert not [warning for warning in info.warnings if "range" in warning]
    assert len(info.ranges) == 14
    assert min(info.ranges.values()) > 0
