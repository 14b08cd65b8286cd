"""Every name of TensorRT that our code uses exists in each version in which that code runs.

The names are read from our source. Those of TensorRT were recorded from the Python modules of the
versions that `tests/tensorrt/names` is named after, which cannot all be installed everywhere.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_converters.runtimes import tensorrt as tensorrt_run
from aether_converters.tensorrt import backend as tensorrt_backend
from aether_converters.tensorrt import build as tensorrt_build
from aether_converters.tensorrt.backend import COMPUTE_CAPABILITIES, MAJOR_VERSIONS

RECORDED = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((Path(__file__).parent / "names").glob("*.json"))
}
VARIABLES = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "fault": "ParserError",
    "inspector": "EngineInspector",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "shapes": "IOptimizationProfile",
    "tensor": "ITensor",
}
"""What our variables hold; a name means the same in each of our functions."""
ATTRIBUTES = {("ITensor", "dtype"): "DataType"}
MODULES = (tensorrt_build, tensorrt_run)

Use = tuple[str, str, str]
"""The function, the class (empty for the module), the attribute."""


def source(module: object) -> ast.Module:
    return ast.parse(Path(str(vars(module)["__file__"])).read_text("utf-8"))


def held(node: ast.expr) -> str | None:
    """The class of what an expression holds; "trt" for the module, None if not TensorRT's."""
    if isinstance(node, ast.Name):
        return "trt" if node.id == "trt" else VARIABLES.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = held(node.value)
        if owner == "trt":
            return node.attr
        return ATTRIBUTES.get((owner, node.attr)) if owner else None
    return None


def uses(tree: ast.Module) -> Iterator[Use]:
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and (owner := held(node.value)):
                yield function.name, "" if owner == "trt" else owner, node.attr
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if owner := held(base):
                        for method in node.body:
                            if isinstance(method, ast.FunctionDef):
                                yield function.name, owner, method.name


def runs_with(function: str, library: str) -> bool:
    """Whether a function is called with a library; its name says so where one alone calls it."""
    if function.endswith("_tensorrt_rtx"):
        return library.startswith("tensorrt-rtx")
    if function.endswith("_tensorrt"):
        return not library.startswith("tensorrt-rtx")
    return True


def test_the_recorded_versions_are_those_that_are_supported():
    majors = {(name.rpartition("-")[0], name.rpartition("-")[2].split(".")[0]) for name in RECORDED}
    assert majors == {
        (name, str(major)) for name, known in MAJOR_VERSIONS.items() for major in known
    }


@pytest.mark.parametrize("library", RECORDED)
def test_every_name_exists_where_its_code_runs(library: str):
    recorded = RECORDED[library]
    found = {use for module in MODULES for use in uses(source(module))}
    missing = {
        use
        for use in found
        if runs_with(use[0], library)
        and not use[2].startswith("__")
        and use[2] not in (recorded.get(use[1], ()) if use[1] else recorded)
    }
    assert not missing
    # The search itself finds calls, constants, assigned properties, and methods that we override.
    classes_and_names = {use[1:] for use in found}
    assert classes_and_names >= {
        ("", "Builder"),
        ("Builder", "build_serialized_network"),
        ("BuilderFlag", "TF32"),
        ("IBuilderConfig", "profiling_verbosity"),
        ("IExecutionContext", "execute_async_v3"),
        ("ILogger", "log"),
        ("IProgressMonitor", "step_complete"),
        ("DataType", "name"),
    }
    assert len(classes_and_names) > 50


@pytest.mark.parametrize("library", RECORDED)
def test_a_name_of_an_older_version_would_be_noticed(library: str):
    """TensorRT 11 removed what much code on the web still uses."""
    tree = ast.parse(
        "def build(builder, config, trt):\n    config.set_flag(trt.BuilderFlag.FP16)\n"
    )
    ((_, owner, name),) = [use for use in uses(tree) if use[1] == "BuilderFlag"]
    assert (name in RECORDED[library][owner]) == library.startswith("tensorrt-10")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_nothing_of_tensorrt_is_used_under_a_name_that_is_not_searched(module: object):
    """What a call on TensorRT's objects returns is used through a variable that is listed above."""
    for function in ast.walk(source(module)):
        if not isinstance(function, ast.FunctionDef):
            continue
        results = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and from_tensorrt(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                assert not from_tensorrt(node.value), ast.unparse(node)
                if isinstance(node.value, ast.Name) and node.value.id in results:
                    assert node.value.id in VARIABLES, ast.unparse(node)


def from_tensorrt(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and held(node.func.value) is not None
    )


def test_compute_capabilities_are_members_of_the_library_s_own_list():
    for library in RECORDED:
        if library.startswith("tensorrt-rtx"):
            members = set(RECORDED[library]["ComputeCapability"])
            assert set(COMPUTE_CAPABILITIES.values()) == {m for m in members if m.startswith("SM")}


def test_the_backend_module_uses_nothing_but_the_version():
    assert not list(uses(source(tensorrt_backend)))
    assert "__version__" in RECORDED["tensorrt-rtx-1.7.1.116"]
