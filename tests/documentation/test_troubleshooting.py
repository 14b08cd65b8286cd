"""`docs/troubleshooting.md` has every message of the code, and no other."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_converters import errors as converter_errors
from aether_converters.pictures.faults import READ_TROUBLES, WRITE_TROUBLES
from aether_converters.tensorrt.build import FAILURES
from aether_spandrel import errors
from aether_spandrel.errors import AetherError

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = [
    path
    for folder in ("core", "aether_spandrel", "converters")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "wrappers" not in path.parts and path.parent.name != "startup"
]

RAISED = {
    name
    for module in (errors, converter_errors)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, AetherError)
}
SAID = {"ArgumentTypeError", "_fail", "fail"}
"""What the command line says beside errors that are raised."""
OF_THE_NETWORK = {"ValueError"}
"""`aether_core` has no errors of its own, since it needs torch alone."""

TABLES = {
    "faults.py": [problem for _, problem, _ in (*READ_TROUBLES, *WRITE_TROUBLES)],
    "build.py": [problem for _, problem, _ in FAILURES],
}
"""Where a message is a variable, the table that it comes from."""


def texts(node: ast.expr) -> list[str] | None:
    """What a string expression can give, with … for what is only known when it runs."""
    match node:
        case ast.Constant(value=str(value)):
            return [value]
        case ast.JoinedStr(values=parts):
            return ["".join((texts(part) or ["…"])[0] for part in parts)]
        case ast.IfExp(body=body, orelse=orelse):
            return [*(texts(body) or ["…"]), *(texts(orelse) or ["…"])]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            pairs = itertools.product(texts(left) or ["…"], texts(right) or ["…"])
            return ["".join(pair) for pair in pairs]
        case _:
            return None


def messages_of(path: Path) -> Iterator[str]:
    kinds = RAISED | SAID | (OF_THE_NETWORK if path.name == "aether_core.py" else set[str]())
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=kind) | ast.Attribute(attr=kind), args=[first, *_]) if (
                kind in kinds
            ):
                if isinstance(first, ast.Name) and kind in RAISED:
                    assert path.name in TABLES, f"{path.name}:{node.lineno}: a text from where?"
                    yield from TABLES[path.name]
                yield from texts(first) or ()
            case ast.Yield(value=ast.expr() as value) if path.name == "doubts.py":
                yield from texts(value) or ()
            case ast.FunctionDef(name="_problem"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value:
                        yield from texts(inner.value) or ()
            case ast.Assign(targets=[ast.Name(id="problem")], value=value):
                yield from (text for text in texts(value) or () if ":" in text)
            case _:
                pass


def heading(message: str) -> str:
    """What people look for: a message as far as its first colon, semicolon or bracket."""
    return re.split(r"(?<=..)[:;\n]| \(", message)[0].strip()


MESSAGES = {
    heading(text): path.name
    for path in SOURCES
    for text in messages_of(path)
    if re.search(r"\w", heading(text))
}

OF_OTHERS = ("In other programs",)
"""Sections with the messages of programs that are not ours."""

ELSEWHERE = {"aether-spandrel could not register AetherNet"}
"""Written before any package can be imported, in `aether_spandrel/startup`."""

OF_PYTHON = {"the following arguments are required: …"}
"""Messages of argparse."""


def listed() -> Iterator[str]:
    """The messages in the first columns of the page."""
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]:
        if not section.startswith(OF_OTHERS):
            for row in re.findall(r"^\| (`.*?`) \| ", section, re.MULTILINE):
                yield from re.findall(r"`([^`]+)`", row)


def test_messages_are_found_in_the_code():
    assert len(MESSAGES) > 150
    assert MESSAGES["a tensor does not fit the others"] == "network.py"
    assert MESSAGES["max difference … is above …"] == "verification.py"
    assert MESSAGES["TensorRT has no kernel for a layer on this GPU"] == "build.py"


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_has_its_cause_and_next_step(message: str):
    assert message in set(listed()), f"{MESSAGES[message]}: add a row to {PAGE.name}"


def test_the_page_has_no_message_that_is_gone():
    assert set(listed()) - set(MESSAGES) - ELSEWHERE - OF_PYTHON == set()


def test_no_message_is_explained_twice():
    found = list(listed())
    assert len(found) == len(set(found))


def test_the_message_of_the_startup_is_the_one_explained():
    startup = ROOT / "aether_spandrel" / "startup" / "aether_spandrel_startup.py"
    assert all(message in startup.read_text("utf-8") for message in ELSEWHERE)
