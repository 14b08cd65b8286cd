"""The checkpoint reference says what the code does: each row of its tables is held to the code's.

Its conditions on keys are read here as a reader would read them, and asked about the same files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.constants import CONSTANTS
from aether_spandrel.network import read_network
from aether_spandrel.revisions import ARGUMENTS, REVISIONS, STAGED_NAMES, Revision
from tests.support.published import REVISIONS as PUBLISHED
from tests.support.published import draw

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference.md").read_text("utf-8")
ROWS = {row.name: row for row in REVISIONS}
EVERY_ROW = pytest.mark.parametrize("name", list(PUBLISHED))
"""In order of publication, as the page has it."""

State = Mapping[str, Tensor]
Condition = Callable[[State], bool]


def table(first: str, second: str) -> list[list[str]]:
    """The rows of the one table whose head begins with these two cells."""
    heads = re.escape(f"| {first} | {second} |")
    (body,) = re.findall(rf"^{heads}.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in body.splitlines()]


def by_name(first: str, second: str) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table(first, second)}


def code(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


# Which revision


def test_every_revision_has_its_row_in_every_table():
    published = list(PUBLISHED)
    assert [row[0] for row in table("revision", "published in 2025")] == published
    assert [row[0] for row in table("revision", "told by")] == [row.name for row in REVISIONS]
    for second in ("`norm_eps`", "activation", "unfused file"):
        assert [row[0] for row in table("revision", second)] == published, second


def as_read(cell: str) -> Condition:
    """A cell of the table as a condition on entries."""
    clauses = [[_one(text.strip()) for text in c.split(" or ")] for c in cell.split(";")]
    return lambda entries: all(any(holds(entries) for holds in clause) for clause in clauses)


def _one(text: str) -> Condition:
    keys = code(text)
    if text == "staged":
        (sentence,) = re.findall(r"\*Staged\* means that (.+?) are there", PAGE, re.DOTALL)
        return lambda entries: entries.keys() >= set(code(sentence))
    if text.startswith("as "):
        return as_read(by_name("revision", "told by")[text.removeprefix("as ")][0])
    if found := re.fullmatch(r"(a|no) key (with|that starts with|that ends in) `.+`", text):
        matches = partial(_matches, found[2], keys[0])
        return lambda entries: any(map(matches, entries)) == (found[1] == "a")
    if re.fullmatch(r"every key that ends in `.+` is 1", text):
        return partial(_all_ones, keys[0])
    if text == f"`{keys[0]}`":
        return lambda entries: keys[0] in entries
    if text == f"no `{keys[0]}`":
        return lambda entries: keys[0] not in entries
    if found := re.fullmatch(r"`.+` has (\d) axes", text):
        return lambda entries: keys[0] in entries and entries[keys[0]].dim() == int(found[1])
    if found := re.fullmatch(r"`.+` is ([\d, ]+)", text):
        numbers = [int(number) for number in found[1].split(", ")]
        return lambda entries: keys[0] in entries and entries[keys[0]].flatten().tolist() == numbers
    assert re.fullmatch(r"`.+` is wider than `.+`", text), text
    return partial(_wider, *keys)


def _matches(how: str, part: str, key: str) -> bool:
    return {
        "with": part in key,
        "that starts with": key.startswith(part),
        "that ends in": key.endswith(part),
    }[how]


def _all_ones(end: str, entries: State) -> bool:
    found = [tensor for key, tensor in entries.items() if key.endswith(end)]
    return bool(found) and all(bool((tensor == 1).all()) for tensor in found)


def _wider(wide: str, narrow: str, entries: State) -> bool:
    if wide not in entries or narrow not in entries or entries[wide].dim() < 2:
        return False
    return entries[narrow].dim() > 0 and entries[wide].shape[1] > entries[narrow].shape[0]


def files() -> Iterator[State]:
    """Each form of each revision, with two stages and with one."""
    for revision, traits in PUBLISHED.items():
        forms: list[dict[str, Any]] = [{"norm_type": norm} for norm in traits.norm_types]
        forms += [{"channel_attn": traits.attention}, {"fused": True}]
        forms += [{"qat": True}] * traits.qat + [{"fused_init": True}] * traits.fused_init
        for form in forms:
            yield draw(revision, **form)
            yield draw(revision, **form, depths=(1,))


ODD_TENSORS = (
    torch.zeros(()),
    torch.ones(1),
    torch.zeros(64, 4),
    torch.zeros(1, 64, 1, 1),
    torch.tensor([3, 1, 0]),
    torch.tensor([3, 1, 1]),
)


def _published_keys() -> frozenset[str]:
    """Of what stands outside blocks and in the first one, and of an int8 file."""
    found = {key for revision in PUBLISHED for key in draw(revision)} | {"quant.zero_point"}
    further = re.compile(r"\.(?!0\.0\.)\d+\.\d+\.")
    return frozenset(key for key in found if not further.search(key))


PUBLISHED_KEYS = _published_keys()


def altered(state: State) -> Iterator[State]:
    """With each key that matters anywhere taken away, or there with something else in it."""
    asked = {key for row in table("revision", "told by") for key in code(row[1])}
    for key in sorted(asked | PUBLISHED_KEYS):
        yield {k: tensor for k, tensor in state.items() if key not in k}
        name = f"stages.0.0{key}" if key.startswith(".") else key
        name = f"{name}weight" if key.endswith(".") else name
        for tensor in ODD_TENSORS if key in asked else ODD_TENSORS[:1]:
            yield {**state, name: tensor}


def assert_told_alike(states: Iterable[State]) -> None:
    conditions = {name: as_read(cells[0]) for name, cells in by_name("revision", "told by").items()}
    met: set[tuple[str, bool]] = set()
    for state in states:
        for name, holds in conditions.items():
            assert holds(state) == ROWS[name].recognised(state), (name, sorted(state))
            met.add((name, holds(state)))
    assert met == set(product(ROWS, (False, True)))


def test_the_page_tells_every_file_as_the_code_does():
    assert_told_alike(files())


def test_the_page_tells_files_that_nobody_published_as_the_code_does():
    one_stage: list[State] = []
    for name, traits in PUBLISHED.items():
        one_stage.append(draw(name, depths=(1,), channel_attn=traits.attention))
        one_stage.append(draw(name, depths=(1,), fused=True, qat=traits.qat))
    assert_told_alike(state for file in one_stage for state in altered(file))


def test_files_that_two_revisions_write_are_named():
    """A row for each row of the code that can doubt."""
    taken = {row[1] for row in table("file", "taken for")}
    assert taken >= {row.name for row in REVISIONS if row.doubt is not None}


# What it computes


@EVERY_ROW
def test_constants_of_a_revision(name: str):
    row = ROWS[name]
    eps, in_blocks, after_body, res_scale, small = (
        None if cell == "none" else float(cell) for cell in by_name("revision", "`norm_eps`")[name]
    )
    assert (in_blocks, after_body) == row.layer_norm_eps
    assert eps == (row.norm_eps if row.renames else None)
    assert res_scale == row.res_scale
    assert small == (row.small_res_scale or row.res_scale)


@EVERY_ROW
def test_arithmetic_of_a_revision(name: str):
    row = ROWS[name]
    assert by_name("revision", "activation")[name] == [
        row.activation,
        row.temperature,
        row.stage_fusion,
        row.error_comp,
        f"`{row.body_order}`",
        "`divide first`" if row.range_first else "`subtract first`",
        "yes" if row.head_activation else "no",
        "stored" if row.stored_mean else "not stored",
    ]


@EVERY_ROW
def test_norms_of_a_revision(name: str):
    row = ROWS[name]
    unfused = "statistics of a picture" if row.sample_norm else "running statistics"
    fused = "folded, statistics removed"
    if row.sample_norm:
        fused = "folded"
    elif row.kept_statistics:
        fused = "running statistics"
    elif row.stale_statistics:
        fused = "folded, stale statistics stay"
    if not row.renames:
        unfused = fused = "LayerNorm"
    error_comp = "left out" if row.qat_drops_error_comp else "added"
    assert by_name("revision", "unfused file")[name] == [
        unfused,
        fused,
        "none" if row.error_comp == "none" else error_comp,
    ]


def test_values_that_no_tensor_carries():
    stated = by_name("name", "values")
    assert list(stated) == [f"`{name}`" for name in CONSTANTS]
    for name, constant in CONSTANTS.items():
        values = f"{constant.least:g} to {constant.most:g}"
        assert stated[f"`{name}`"][0] == ("0 or 1" if constant.whole else values), name


@EVERY_ROW
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("qat", [False, True])
def test_defaults_of_values_that_no_tensor_carries(name: str, fused: bool, qat: bool):
    if (qat and not PUBLISHED[name].qat) or (fused and qat):
        return
    state = draw(name, fused=fused, qat=qat)
    defaults = read_network(Checkpoint.from_object(state), revision=name).defaults
    eps, _, _, _, res_scale = by_name("revision", "`norm_eps`")[name]
    _, of_fused, error_comp = by_name("revision", "unfused file")[name]
    stale = of_fused.endswith("stale statistics stay")
    assert defaults["img_range"] == 1.0
    assert defaults.get("res_scale", 1.0) == float(res_scale.replace("none", "1"))
    assert defaults.get("error_comp", 1.0) == (0.0 if qat and error_comp == "left out" else 1.0)
    assert defaults.get("norm_folded", float(stale)) == float(stale)
    if "norm_eps" in defaults:
        assert defaults["norm_eps"] == float(eps)


# Names and sizes


def _revisions(text: str) -> list[Revision]:
    """ "G2a to G2d" as rows of the code."""
    names = list(PUBLISHED)
    first, _, last = text.partition(" to ")
    return [ROWS[name] for name in names[names.index(first) : names.index(last or first) + 1]]


def test_presets_are_those_of_the_code():
    stated: dict[str, set[tuple[object, ...]]] = {name: set() for name in ROWS}
    for revisions, name, dim, depths, ratio, kernel, *_ in table("revisions", "name"):
        stages, blocks = (int(number) for number in depths.split(" of "))
        for row in _revisions(revisions):
            size = (name, int(dim), (blocks,) * stages, float(ratio), int(kernel))
            stated[row.name].add(size)
    for row in REVISIONS:
        assert stated[row.name] == {
            (name, size.embed_dim, size.depths, size.mlp_ratio, size.lk_kernel)
            for name, size in row.presets.items()
        }, row.name


def test_arguments_are_those_of_the_code():
    stated: dict[str, set[str]] = {name: set() for name in ROWS}
    for revisions, arguments in table("revision", "arguments"):
        for row in _revisions(revisions):
            stated[row.name] |= set(code(arguments))
    assert set(ARGUMENTS) == stated["G1"] - {"drop_rate", "fused_init"}
    assert stated == {row.name: set(row.arguments) for row in REVISIONS}


def test_this_projects_own_keys_are_those_of_the_code():
    rows = [tuple(code(" ".join(row))) for row in table("published", "here")]
    named = {(ours, theirs) for theirs, ours in rows}
    assert named == {names for names in STAGED_NAMES if names[0] != "error_comp"}


def key_rows() -> Iterator[tuple[str, re.Pattern[str], list[str]]]:
    """Of the tables of G1 and of the others: heading, key and shapes."""
    for heading in ("G1", "G2 to G5"):
        section = PAGE.split(f"\n### {heading}\n")[1].split("\n### ")[0].split("\nThe upsampler")[0]
        for keys, shapes in re.findall(r"^\| (`.+`) \| (\(.*\)) \|", section, re.MULTILINE):
            for key in code(keys):
                pattern = re.escape(key).replace(r"\.i\.", r"\.\d+\.").replace(r"\.n\.", r"\.\d+\.")
                if key.startswith("B."):
                    pattern = r"(?:layers|stages)\.\d+\.\d+" + pattern[1:]
                yield heading, re.compile(pattern), shapes.split(" or ")


KEY_ROWS = list(key_rows())


def upsampler_keys() -> dict[str, re.Pattern[str]]:
    """By revision: what the keys of an upsampler look like."""
    named = {
        name: [re.escape(key) for key in code(cells[0]) if key.startswith("upsample.")]
        for name, cells in by_name("revision", "keys of convolution n").items()
    }
    patterns = {
        name: re.compile(re.sub(r"(?<![a-z])[nm](?![a-z])", r"\\d", "|".join(keys)))
        for name, keys in named.items()
    }
    return {name: patterns.get(name, patterns["others"]) for name in PUBLISHED}


@EVERY_ROW
def test_every_key_of_a_file_stands_on_the_page_with_its_shape(name: str):
    traits = PUBLISHED[name]
    upsampler = upsampler_keys()[name]
    for fused, norm_type, scale in product((False, True), traits.norm_types, traits.scales):
        sizes = {"embed_dim": 24, "depths": (2, 1)} if name != "G2a" else {}
        options: dict[str, Any] = {"channel_attn": traits.attention, **sizes}
        options["spatial_attn"] = traits.attention
        state = draw(name, fused=fused, norm_type=norm_type, scale=scale, **options)
        letters = symbols(state)
        for key, tensor in state.items():
            if name != "G1" and key.startswith("upsample."):
                assert upsampler.fullmatch(key.replace(".bias", ".weight")), key
                continue
            heading = "G1" if name == "G1" else "G2 to G5"
            shapes = [
                tuple(eval(f"[{shape[1:-1]}]", {}, letters))
                for where, pattern, shapes in KEY_ROWS
                if where == heading and pattern.fullmatch(key)
                for shape in shapes
            ]
            assert tuple(tensor.shape) in shapes, (key, tuple(tensor.shape), shapes)


def symbols(state: State) -> dict[str, int]:
    """The letters of the page, from shapes that are the same everywhere."""
    block = next(key for key in state if ".0.0." in key).split(".")[0] + ".0.0."
    dim, channels = state["conv_first.weight"].shape[:2]
    gate = next(key for key in state if re.search(r"ffn\.\w+_gate\.weight$", key))
    kernel = next(k for k in state if re.search(r"(lk|fused)_conv\.weight$", k))
    head = next(key for key in state if re.fullmatch(r"conv_before_upsample(\.0)?\.bias", key))
    return {
        "I": channels,
        "O": len(state["conv_last.bias"]),
        "E": dim,
        "S": len({key.split(".")[1] for key in state if key.startswith(block.split(".")[0])}),
        "H": state[gate].shape[0],
        "K": state[kernel].shape[-1],
        "k": state.get(f"{block}conv.sk_conv.weight", torch.zeros(3)).shape[-1],
        "R": dim // 8,
        "P": state[head].shape[0],
        "D": state["conv_last.weight"].shape[1],
    }


@EVERY_ROW
def test_the_width_of_a_head_is_what_the_page_says(name: str):
    rows = table("revision", "P")
    width, last = next(row[1:3] for row in rows if name in row[0].split(", "))
    last = re.sub(r"even (E//\(s//2\))", r"\1 & ~1", last).replace("(s//2)", "half")
    for scale in PUBLISHED[name].scales:
        dim = PUBLISHED[name].embed_dim if name == "G2a" else 88
        letters = symbols(draw(name, scale=scale, embed_dim=dim))
        letters |= {"half": max(1, scale // 2)}
        assert letters["P"] == eval(width, {}, letters)
        assert letters["D"] == eval(last, {}, letters), scale


# Places that refer to the page


def test_every_reference_to_the_page_leads_to_a_heading():
    titles = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    folders = ("aether_spandrel", "benchmarks", "converters", "core", "docs", "examples", "tests")
    mentions = 0
    for folder in folders:
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]:
            text = path.read_text("utf-8")
            for anchor in re.findall(r"\breference\.md#([\w-]+)", text):
                mentions += 1
                assert anchor in anchors, f"{path.name}: #{anchor}"
            numbered = re.search(r"\b[Ss]ection \d", text)
            assert numbered is None, f"{path.name}: {numbered and numbered[0]}, of which page?"
    assert mentions > 10
