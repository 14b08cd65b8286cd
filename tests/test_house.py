"""The plan of the code: what may import what, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent

FLOORS: Final[tuple[tuple[str, ...], ...]] = (
    ("aether_core",),
    ("aether_spandrel",),
    ("installation",),
    ("errors", "plain_text", "sample"),
    ("atomic", "card"),
    ("source",),
    ("graphs",),
    ("tensorrt",),
    ("runtimes",),
    ("pictures", "doctor"),
    ("measuring",),
    ("int8",),
    ("reports",),
    ("wanted",),
    ("artefacts", "engines"),
    ("conversion", "comparison"),
    ("publishing",),
    ("command_line",),
)
"""From the ground up. What stands on one floor imports floors below, or its own wing."""

HEIGHTS: Final = {name: height for height, floor in enumerate(FLOORS) for name in floor}
FRONT_DOOR: Final = ("__init__", "__main__")
"""Of the converters: they name what is public, wherever it stands."""


def modules() -> dict[str, Path]:
    """Every module of the three packages, by its dotted name."""
    found: dict[str, Path] = {"aether_core": ROOT / "core" / "aether_core.py"}
    for folder in (ROOT / "aether_spandrel", ROOT / "converters" / "aether_converters"):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts)] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


MODULES: Final = modules()


def imported(name: str) -> Iterator[str]:
    """Modules of ours that a module imports anywhere, for types too."""
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif node.module in MODULES:
                    yield node.module


def wing(name: str) -> str:
    """The place on the plan at which a module stands."""
    first, _, rest = name.partition(".")
    return first if first != "aether_converters" else rest.partition(".")[0]


PLACED: Final = [n for n in MODULES if wing(n) not in ("", *FRONT_DOOR)]


def test_every_module_has_a_place_on_the_plan():
    assert {wing(name) for name in PLACED} == set(HEIGHTS)


@pytest.mark.parametrize("place", HEIGHTS)
def test_a_wing_imports_floors_below_alone(place: str):
    for name in PLACED:
        for other in imported(name) if wing(name) == place else ():
            inside = wing(other) == place
            assert inside or HEIGHTS[wing(other)] < HEIGHTS[place], f"{name} imports {other}"


def test_no_module_imports_itself_round_a_circle():
    done: set[str] = set()

    def enter(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in imported(name):
                if other != name:
                    enter(other, (*way, name))
            done.add(name)

    for name in PLACED:
        enter(name, ())


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node


def length(function: ast.FunctionDef) -> int:
    """Lines without the docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return lines
    return lines - ((first.end_lineno or 0) - first.lineno + 1)


def test_every_function_reads_at_a_glance():
    assert [name for name, function in functions() if length(function) > 60] == []


AS_PUBLISHED: Final = ("aether_core.aether",)
"""What training configurations name the arguments of."""


def test_what_travels_together_travels_as_one_value():
    for name, function in functions():
        given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        own = [argument for argument in given if argument.arg not in ("self", "cls")]
        assert len(own) <= 8 or name in AS_PUBLISHED, name
