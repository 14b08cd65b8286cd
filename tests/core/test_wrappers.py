"""The wrappers for training frameworks, as far as they can be tested without one."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import aether_core

tomllib: Any = pytest.importorskip("tomllib")  # from Python 3.11 on

WRAPPERS = Path(aether_core.__file__).parent / "wrappers"
FILES = sorted(WRAPPERS.glob("*/aether_arch.py"))
OPTIONS = sorted(WRAPPERS.glob("*/train_aether.*"))
NAMES = ("aether", "aether_small", "aether_medium", "aether_large")

Options = dict[str, Any]


def read_options(path: Path, *, network_only: bool = False) -> Options:
    """An option file; of the network's part alone, with what is commented out."""
    text = path.read_text("utf-8")
    if network_only:
        start = {".toml": r"\[network_g\]\n", ".yml": r"network_g:\n"}[path.suffix]
        (part,) = re.findall(rf"^{start}(?:.+\n)+", text, re.MULTILINE)
        text = re.sub(r"^( *)# ?(\w+ ?[=:] ?\S)", r"\1\2", part, flags=re.MULTILINE)
    return tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)


def test_there_is_a_wrapper_with_options_for_each_framework():
    assert [path.parent.name for path in FILES] == ["neosr", "traiNNer-redux"]
    assert [path.parent.name for path in OPTIONS] == ["neosr", "traiNNer-redux"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_wrappers_import_only_aether_core_and_what_registers(path: Path):
    imports = {
        f"{node.module}.{name.name}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    core = {name for name in imports if name.startswith("aether_core.")}
    assert core == {f"aether_core.{name}" for name in (*NAMES, "AetherNet", "prepare_qat")}
    standard = {"collections.abc.Callable", "functools.wraps", "typing.Any"}
    framework = {
        "neosr": {"neosr.archs.arch_util.net_opt", "neosr.utils.registry.ARCH_REGISTRY"},
        "traiNNer-redux": {"traiNNer.utils.registry.ARCH_REGISTRY"},
    }
    assert imports - core - standard == framework[path.parent.name]


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.parent.name)
def test_options_are_arguments_of_the_networks(path: Path):
    """Those that are commented out too."""
    options = read_options(path, network_only=True)["network_g"]
    assert len(options) == 8
    assert options.pop("type") == "aether_small"
    inspect.signature(aether_core.prepare_qat).bind(None, **options.pop("qat"))
    network = aether_core.aether(**options)
    assert network.config.depths == tuple(options["depths"])


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.parent.name)
def test_options_build_the_network_that_they_name(path: Path):
    options = read_options(path)
    network: Options = options["network_g"]
    build = getattr(aether_core, network.pop("type"))
    built = build(scale=options["scale"], **network)
    qat = read_options(path, network_only=True)["network_g"]["qat"]
    layers = aether_core.quantised_layers(aether_core.prepare_qat(built, **qat))
    assert "layers.0.0.ffn" in layers
    assert "layers.0.0.conv" not in layers
