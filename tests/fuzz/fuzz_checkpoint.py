"""Mutates small valid checkpoints and reads them: nothing but `CheckpointError` or a network.

    python -m tests.fuzz.fuzz_checkpoint --mutations 100000 --seed 1
    python -m tests.fuzz.fuzz_checkpoint corpus -max_total_time=3600

The first counts random mutations of bytes and of structure; the second is guided by coverage and
needs atheris, whose options follow the folder of the corpus. See README.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import random
import string
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor

from aether_spandrel.stored import Quantised
from tests.support import golden_cases, hostile_files
from tests.support.hostile_files import (
    KINDS,
    Pairs,
    Raw,
    ViolationError,
    examine,
    examine_in_time,
    network,
    safetensors_bytes,
    safetensors_file,
    safetensors_parts,
    torch_legacy,
    torch_zip,
)

Form = Literal["zip", "legacy", "safetensors"]
FORMS: Final[tuple[Form, ...]] = ("zip", "legacy", "safetensors")
Content = dict[str, object]

# Valid files


@cache
def _golden(name: str) -> Content:
    case = golden_cases.CASES[name]
    content: Content = dict(golden_cases.state_dict(case))
    wrapper = case["wrap"]
    return {wrapper: content} if wrapper else content


def golden_names() -> list[str]:
    """The published cases, one of each revision and kind, the smaller ones."""
    chosen: dict[object, str] = {}
    for name, case in golden_cases.CASES.items():
        chosen.setdefault((case["revision"], case["fused"], case["qat"]), name)
    return sorted(chosen.values())


def contents(kind: str) -> Content:
    """The content of a valid file: a kind of `hostile_files.KINDS` or a golden case."""
    return network(kind) if kind in KINDS else dict(_golden(kind))


def written(content: object, form: Form) -> bytes:
    """A file of this content; what safetensors cannot hold becomes a PyTorch file."""
    entries = _as_entries(content)
    if (
        form == "safetensors"
        and entries
        and all(_is_storable(key, entries[key]) for key in entries)
    ):
        return safetensors_file(cast("dict[str, Tensor]", entries))
    return torch_legacy(content) if form == "legacy" else torch_zip(content)


def _as_entries(content: object) -> Content:
    return cast(Content, content) if isinstance(content, dict) else {}


def _is_storable(key: object, value: object) -> bool:
    return isinstance(key, str) and key.isprintable() and isinstance(value, Tensor)


@cache
def clean(kind: str, form: Form) -> bytes:
    """A valid file."""
    return written(contents(kind), form)


# Mutations of bytes

INTERESTING: Final = (
    *(struct.pack("<Q", number) for number in (0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)),
    *(struct.pack("<I", number) for number in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)),
    *(b"\xff", b"\0", b"(", b".", b"}", b"]", b"N", b"\x85R", b"0", b"e", b"u", b"\x94"),
    *(b"cos\nsystem\n", b"ctorch\nSize\n", b"PK\x05\x06", b"PK\x01\x02", b"h\0", b"q\0", b"2"),
    *(b'":', b"[0]", b"-1", b"1e400", b"NaN", b"9999999999", b"{", b'"a"', b",", b"null"),
)


def mutate_bytes(rng: random.Random, content: bytes, other: bytes = b"") -> bytes:
    """A few bytes flipped, put in, taken out, repeated, or taken from another file."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        # Half of them where the structure is, of which the numbers have none.
        at = _position(rng, changed)
        length = rng.choice((1, 1, 2, 4, 8, 16, 64, 1024))
        step = rng.randrange(8)
        if step == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif step == 1:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif step == 2:
            changed[at:at] = rng.randbytes(length)
        elif step == 3:
            del changed[at : at + length]
        elif step == 4:
            to = _position(rng, changed)
            changed[to:to] = changed[at : at + length]
        elif step == 5:
            piece = rng.choice(INTERESTING)
            changed[at : at + len(piece)] = piece
        elif step == 6:
            changed[at:at] = rng.choice(INTERESTING)
        elif rng.randrange(4) == 0:
            del changed[at:]
        else:
            start = rng.randrange(len(other) + 1)
            changed[at : at + length] = other[start : start + length]
    return bytes(changed)


def _position(rng: random.Random, content: bytearray) -> int:
    structure = len(content)
    if rng.randrange(4):
        structure = min(structure, 6000)
        if content.startswith(b"PK\x03\x04") and rng.randrange(4) == 0:
            return max(len(content) - 1 - rng.randrange(4000), 0)
    return rng.randrange(structure + 1)


# Mutations of structure


def mutate_content(rng: random.Random, content: Content, other: Content) -> object:
    """Keys, shapes, dtypes, values, wrappers and metadata changed, so that a file stays one."""
    changed: object = dict(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        entries = _as_entries(changed)
        if not entries:
            break
        changed = rng.choice(STEPS)(rng, entries, other)
    return changed


def _any_key(rng: random.Random, content: Content) -> str:
    return rng.choice(list(content))


def _a_tensor(rng: random.Random, content: Content) -> tuple[str, Tensor] | None:
    key = _any_key(rng, content)
    value = content[key]
    return (key, value) if isinstance(value, Tensor) else None


def _without(rng: random.Random, content: Content, _: Content) -> object:
    del content[_any_key(rng, content)]
    return content


def _without_layer(rng: random.Random, content: Content, _: Content) -> object:
    layer = _any_key(rng, content).rpartition(".")[0]
    return {key: value for key, value in content.items() if not str(key).startswith(layer)}


def _renamed(rng: random.Random, content: Content, other: Content) -> object:
    old = _any_key(rng, content)
    new = _new_key(rng, str(old), other)
    return {new if key == old else key: value for key, value in content.items()}


def _repeated(rng: random.Random, content: Content, other: Content) -> object:
    key = _any_key(rng, content)
    if rng.randrange(4) == 0:
        return Pairs([*content.items(), (key, content[key])])
    content[_new_key(rng, str(key), other)] = content[key]
    return content


def _new_key(rng: random.Random, key: str, other: Content) -> str:
    step = rng.randrange(7)
    parts = key.split(".")
    if step == 0:
        return rng.choice(list(other))
    if step == 1:
        digits = [index for index, part in enumerate(parts) if part.isdigit()]
        if digits:
            parts[rng.choice(digits)] = rng.choice(
                ("0", "1", "2", "7", "00", "-1", "99999", "", "x")
            )
        return ".".join(parts)
    if step == 2:
        at = rng.randrange(len(key) + 1)
        return key[:at] + rng.choice((*string.printable, "\ud800", "é", "")) + key[at + 1 :]
    if step == 3:
        return rng.choice(("module.", "a.", "_orig_mod.", ".", "net_g.", "ema.")) + key
    if step == 4:
        return rng.choice(KNOWN_KEYS)
    if step == 5:
        rng.shuffle(parts)
        return ".".join(parts)
    return ".".join(
        (*parts[:-1], rng.choice(("weight", "bias", "scale", "zero_point", "running_var")))
    )


KNOWN_KEYS: Final = (
    *("scale", "scale_tensor", "model_version", "pt_version", "revision", "mean"),
    *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
    *("stages.0.0.conv.lk_conv.bias", "stages.0.0.conv.fused_conv.weight"),
    *("layers.0.0.ffn.fc1_gate.weight", "stages.0.0.ffn.conv_gate.weight"),
    *("stages.0.0.channel_attn.fc.0.weight", "stages.0.0.spatial_attn.conv.weight"),
    *("quant_fusion_layer.conv.weight", "quant_fusion_layer.error_comp", "fusion_convs.1.weight"),
    *("conv_first._packed_params._packed_params", "quant.activation_post_process.scale"),
    *("upsample.blocks.0.0.weight", "upsample.up_3x.0.weight", "conv_before_upsample.weight"),
)
LENGTHS: Final = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 64)
DTYPES: Final = tuple(hostile_files.STORAGES)
NUMBERS: Final = (0.0, -1.0, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), float("-inf"), 0.1)
EMPTY: Final = (list[object](), dict[str, object](), ())
JUNK: Final[tuple[object, ...]] = (
    *(None, True, 0, -1, 2**70, 10**400, 0.1, float("nan"), float("inf"), "", "x", "0.2", "1e400"),
    *("inf", b"x", *EMPTY, [EMPTY], {"a": {"b": EMPTY}}, [1, [2]], Raw(b"\x8f"), Raw(b"(Kat")),
    *({1: 2}, {"scale": 2, "depths": [1], "embed_dim": "8"}, [0.1, None], {"res_scale": 0.5}),
)


def _reshaped(rng: random.Random, content: Content, _: Content) -> object:
    found = _a_tensor(rng, content)
    if found is None:
        return content
    key, values = found
    step = rng.randrange(7)
    if step == 0:
        values = values.flatten()
    elif step == 1:
        values = values.unsqueeze(rng.randrange(values.dim() + 1))
    elif step == 2 and values.dim():
        values = values.narrow(axis := rng.randrange(values.dim()), 0, values.shape[axis] // 2)
    elif step == 3 and values.dim():
        axis = rng.randrange(values.dim())
        values = torch.cat([values, values], axis)
    elif step == 4 and values.dim() > 1:
        values = values.transpose(0, rng.randrange(values.dim()))
    elif step == 5 and values.dim() and values.shape[0]:
        values = values[0]
    else:
        values = torch.zeros([rng.choice(LENGTHS[:9]) for _ in range(rng.randrange(6))])
    content[key] = values
    return content


def _resized(rng: random.Random, content: Content, _: Content) -> object:
    """One width of the whole network changed, so that its parts still fit."""
    lengths = sorted({n for t in content.values() if isinstance(t, Tensor) for n in t.shape})
    if not lengths:
        return content
    old, new = rng.choice(lengths), rng.choice(LENGTHS)
    for key, value in content.items():
        if isinstance(value, Tensor):
            axes = [axis for axis, length in enumerate(value.shape) if length == old]
            for axis in axes if rng.randrange(8) else axes[:1]:
                index = torch.arange(new) % max(value.shape[axis], 1)
                value = value.index_select(axis, index) if value.shape[axis] else value
            content[key] = value
    return content


def _retyped(rng: random.Random, content: Content, _: Content) -> object:
    dtype = rng.choice(DTYPES)
    every = rng.randrange(3) == 0
    for key in list(content) if every else [_any_key(rng, content)]:
        value = content[key]
        if isinstance(value, Tensor):
            content[key] = value.to(dtype)
    return content


def _revalued(rng: random.Random, content: Content, _: Content) -> object:
    found = _a_tensor(rng, content)
    if found is None:
        return content
    key, values = found
    if values.is_floating_point() and values.numel():
        precise = values.contiguous().double().clone()  # which holds any number
        number = rng.choice(NUMBERS)
        if rng.randrange(2):
            precise.fill_(number)
        else:
            precise.view(-1)[rng.randrange(values.numel())] = number
        values = precise.to(values.dtype)
    else:
        values = torch.tensor([rng.choice((0, 1, 3, -2, 2**62)) for _ in range(rng.randrange(4))])
    content[key] = values
    return content


def _known(rng: random.Random, content: Content, _: Content) -> object:
    """A key that means something, with a tensor that may not."""
    shape = rng.choice(((), (1,), (3,), (1, 1), (0,), (8,), (1, 8, 1, 1), (8, 8, 1, 1)))
    value = torch.full(shape, rng.choice((*NUMBERS, 1.0, 2.0, 3.0, 71.0)))
    integer = torch.full(shape, rng.choice((0, 1, 2, 3, 71, -1, 2**62)))
    content[rng.choice(KNOWN_KEYS)] = value if rng.randrange(2) else integer
    return content


def _requantised(rng: random.Random, content: Content, _: Content) -> object:
    found = _a_tensor(rng, content)
    if found is None or not found[1].dim():
        return content
    key, values = found
    axis = rng.choice((None, 0, values.dim() - 1))
    count = 1 if axis is None else values.shape[axis]
    more = axis is not None and rng.randrange(9) == 0
    content[key] = Quantised(
        integers=values.nan_to_num().clamp(-128, 127).to(torch.int8),
        scale=torch.full((count + more,), rng.choice(NUMBERS)).double(),
        zero_point=torch.full((count,), rng.choice((0, 3, -128, 2**40))),
        axis=axis,
    )
    return content


def _packed(rng: random.Random, content: Content, _: Content) -> object:
    key = _any_key(rng, content)
    layer = str(key).rpartition(".")[0]
    parts = tuple(content.pop(f"{layer}.{name}", None) for name in ("weight", "bias"))
    content[f"{layer}._packed_params._packed_params"] = rng.choice((parts, parts[::-1], parts[:1]))
    content[f"{layer}._packed_params.dtype"] = rng.choice(JUNK)
    return content


def _junk(rng: random.Random, content: Content, _: Content) -> object:
    key = _any_key(rng, content) if rng.randrange(2) else rng.choice(KNOWN_KEYS)
    content[key] = rng.choice(JUNK)
    return content


def _odd_key(rng: random.Random, content: Content, _: Content) -> object:
    odd = (1, None, 1.5, b"a", True, "", float("nan"), Raw(b"]"), Raw(b")"))
    return Pairs([*content.items(), (rng.choice(odd), None)])


def _wrapped(rng: random.Random, content: Content, other: Content) -> object:
    names = ("params", "params_ema", "state_dict", "model", "x", "")
    step = rng.randrange(6)
    if step == 0:
        return [content]
    if step == 1:
        return {"params": other, "params_ema": content}
    found: Content = {rng.choice(names): content}
    for _ in range(rng.randrange(4)):
        found[rng.choice(METADATA)] = rng.choice(JUNK)
    return {rng.choice(names): found} if step == 2 else found


METADATA: Final = (
    *("res_scale", "norm_eps", "img_range", "error_comp", "norm_folded", "arch_config"),
    *("metadata", "scale", "iter", "epoch", "optimizer"),
)


def _prefixed(rng: random.Random, content: Content, _: Content) -> object:
    prefix = rng.choice(
        ("module.", "net_g.", "a.", "a.b.", "_orig_mod.", ".", "ema.", "layers.0.0.")
    )
    share = rng.choice((1, 1, 1, 2))
    return {
        prefix + str(key) if rng.randrange(share) == 0 else key: value
        for key, value in content.items()
    }


def _merged(rng: random.Random, content: Content, other: Content) -> object:
    merged = {**other, **content} if rng.randrange(2) else {**content, **other}
    if rng.randrange(2):
        return merged
    return dict(rng.sample(list(merged.items()), rng.randrange(len(merged) + 1)))


def _another_block(rng: random.Random, content: Content, _: Content) -> object:
    old = rng.choice(("layers.0.0.", "stages.0.0."))
    new = rng.choice(("0.1.", "1.0.", "0.2.", "1.1.", "00.0.", "9999.0.", "0.10000."))
    found = {key: value for key, value in content.items() if str(key).startswith(old)}
    content.update({key.replace(old, old[:7] + new): value for key, value in found.items()})
    return content


def _shuffled(rng: random.Random, content: Content, _: Content) -> object:
    items = list(content.items())
    rng.shuffle(items)
    return dict(items)


Step = Callable[[random.Random, Content, Content], object]
STEPS: Final[tuple[Step, ...]] = (
    _without,
    _without_layer,
    _renamed,
    _renamed,
    _repeated,
    _reshaped,
    _reshaped,
    _resized,
    _resized,
    _retyped,
    _revalued,
    _known,
    _known,
    _requantised,
    _packed,
    _junk,
    _odd_key,
    _wrapped,
    _wrapped,
    _prefixed,
    _merged,
    _another_block,
    _shuffled,
)


def mutate_header(rng: random.Random, content: Content) -> bytes:
    """A safetensors file of a network whose header describes something else."""
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor) and _is_storable(k, v)}
    header, numbers = safetensors_parts(tensors, rng.choice((None, {"res_scale": "0.2"})))
    fields = cast(dict[str, Any], header)
    figures: tuple[object, ...] = (-1, 0, 1, 8.0, 2**62, 2**64, True)
    odd = (None, "F32", "F99", *figures, *EMPTY, [1], [0, 4], [4, 0])
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(list(fields))
        described = dict(_as_entries(fields[key]))
        if not described or rng.randrange(4) == 0:
            fields[rng.choice((key, "new", "__metadata__"))] = rng.choice((fields[key], *odd))
            continue
        field = rng.choice(list(described))
        value: object = described.get(field)
        if isinstance(value, list) and value and rng.randrange(2):
            value = list(cast("list[object]", value))
            value[rng.randrange(len(value))] = rng.choice(odd)
            described[field] = value
        elif rng.randrange(4) == 0:
            del described[field]
        else:
            described[field] = rng.choice((*odd, *hostile_files.SAFE_DTYPES.values()))
        fields[key] = described
    return safetensors_bytes(fields, numbers)


def mutation(rng: random.Random, kinds: Sequence[str] = KINDS) -> bytes:
    """A mutation of a valid file: of its bytes, of its structure, or of both."""
    kind, other, form = rng.choice(kinds), rng.choice(kinds), rng.choice(FORMS)
    way = rng.randrange(16)
    if way < 8:
        return mutate_bytes(rng, clean(kind, form), clean(other, rng.choice(FORMS)))
    if way == 8:
        return mutate_header(rng, contents(kind))
    content = mutate_content(rng, contents(kind), contents(other))
    raw = written(content, form)
    return mutate_bytes(rng, raw, raw) if way == 15 else raw


# Many of them


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A file in memory, written again and again."""

    path: Path

    def examine(self, content: bytes, *, loaded: bool = True) -> hostile_files.Outcome:
        """What becomes of a file of these bytes, which is inspected and perhaps loaded."""
        self.path.write_bytes(content)
        return examine_in_time(lambda: examine(self.path, accepted_only=True, loaded=loaded))


def folder_in_memory() -> str | None:
    """Where files cost no disk, on systems that have such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run_mutations(count: int, seed: int, kinds: Sequence[str], kept: Path) -> int:
    """Read so many mutations; the number of violations, each of which is kept as a file."""
    outcomes: Counter[str] = Counter()
    violations: Counter[str] = Counter()
    longest, spent = 0.0, 0.0
    with tempfile.TemporaryDirectory(dir=folder_in_memory()) as folder:
        slot = Slot(path=Path(folder) / "mutation.pth")
        for kind in kinds:
            for form in FORMS:
                slot.examine(clean(kind, form))  # warm, and proof that they are valid
        started = time.perf_counter()
        for number in range(count):
            content = mutation(random.Random(f"{seed}/{number}"), kinds)
            before = time.perf_counter()
            try:
                outcome = slot.examine(content, loaded=number % 4 == 0)
            except ViolationError as error:
                where = _where(error)
                violations[where] += 1
                if violations[where] == 1:
                    kept.mkdir(parents=True, exist_ok=True)
                    path = kept / f"violation-{seed}-{number}.pth"
                    path.write_bytes(content)
                    _say(f"VIOLATION {where}\n  kept as {path}")
            else:
                outcomes[outcome.problem or "accepted"] += 1
                longest = max(longest, outcome.seconds)
            spent += time.perf_counter() - before
        total = time.perf_counter() - started
    _say(f"{count} mutations in {total:.1f} s: {count / total:.0f}/s, {count / spent:.0f}/s read")
    _say(f"longest {longest:.3f} s; {outcomes['accepted']} accepted, rest refused:")
    for problem, times in outcomes.most_common():
        _say(f"{times:8} {problem}")
    for where, times in violations.most_common():
        _say(f"{times:8} VIOLATION {where}")
    return sum(violations.values())


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _where(error: ViolationError) -> str:
    """What was raised, and the line of the package that raised it."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    own = [frame for frame in frames if "tests" not in Path(frame.filename).parts]
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{str(error).splitlines()[0][:120]}{place}"


# Guided by coverage


def run_guided(arguments: list[str]) -> None:
    """Hand the rest to atheris; seeds are written into the corpus, its first argument."""
    atheris = cast(Any, importlib.import_module("atheris"))
    corpus = Path(next((a for a in arguments if not a.startswith("-")), "corpus"))
    corpus.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        for form in FORMS:
            (corpus / f"seed-{kind}-{form}".replace(" ", "-")).write_bytes(clean(kind, form))
    folder = tempfile.TemporaryDirectory(dir=folder_in_memory())
    slot = Slot(path=Path(folder.name) / "guided.pth")

    def target(content: bytes) -> None:
        slot.examine(content)

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = mutation(rng) if rng.randrange(4) == 0 else atheris.Mutate(content, most)
        return changed[:most]

    for function in gc.get_objects():  # lambdas in tables, too
        if isinstance(function, FunctionType) and _is_ours(function):
            atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], "-max_len=200000", *arguments], target, custom_mutator=mutate)
    atheris.Fuzz()


def _is_ours(function: FunctionType) -> bool:
    return str(function.__module__).startswith("aether_")


def main() -> int:
    """Run what the command line asks for; 1 if there was a violation."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Read mutations of valid checkpoints.")
    parser.add_argument("--mutations", type=int, help="how many, without atheris")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golden", action="store_true", help="of the published cases, too")
    parser.add_argument("--kept", type=Path, default=Path("violations"), help="folder for them")
    options, others = parser.parse_known_args()
    if options.mutations is None:
        run_guided(others)
        return 0
    kinds = (*KINDS, *golden_names()) if options.golden else KINDS
    return 1 if run_mutations(options.mutations, options.seed, kinds, options.kept) else 0


if __name__ == "__main__":
    sys.exit(main())
