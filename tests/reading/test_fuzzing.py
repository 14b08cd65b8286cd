"""Mutations of valid files that hypothesis chooses: an error with advice, or a sound network.

`tests/fuzz` makes the same mutations, many more and faster.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aether_core import AetherNet
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.inference import build_network
from aether_spandrel.network import float_weights, fuse, read_network
from tests.fuzz import fuzz_checkpoint
from tests.fuzz.fuzz_checkpoint import FORMS, Form, Slot, clean, contents, golden_names, written
from tests.support.hostile_files import KINDS, Outcome

ALL_KINDS: Final = (*KINDS, *golden_names())

# Derandomised, so that it fails for a change and not by chance; `--mutations` is for chance.
quick = settings(
    max_examples=int(os.environ.get("FUZZING_EXAMPLES", "150")),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
randoms = st.randoms(use_true_random=False)
kinds = st.sampled_from(ALL_KINDS)
forms = st.sampled_from(FORMS)


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> Slot:
    torch.set_num_threads(1)
    found = Slot(path=tmp_path_factory.mktemp("fuzzing") / "mutation.pth")
    found.examine(clean("G5f", "zip"))  # warm
    return found


def assert_sound(outcome: Outcome, path: Path) -> None:
    """A network that was read has the shapes of its configuration, and computes."""
    if outcome.info is None:
        return
    config = outcome.info.config
    network = fuse(read_network(read_checkpoint(path)))
    with torch.device("meta"):
        expected = AetherNet(network.config).state_dict()
    assert {key: value.shape for key, value in network.state_dict.items()} == {
        key: value.shape for key, value in expected.items()
    }
    assert outcome.info.parameters > 0
    model = build_network(network.config, float_weights(network))
    with torch.inference_mode():
        output = model(torch.zeros(1, config.in_chans, 5, 6))
    assert output.shape == (1, config.out_chans, 5 * config.scale, 6 * config.scale)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_the_files_that_are_mutated_are_valid(slot: Slot, kind: str, form: Form):
    outcome = slot.examine(clean(kind, form))
    assert outcome.accepted, outcome.problem
    assert_sound(outcome, slot.path)


@quick
@given(rng=randoms, kind=kinds, form=forms, other=kinds)
def test_mutated_bytes_are_refused_or_a_network(
    slot: Slot, rng: random.Random, kind: str, form: Form, other: str
):
    content = fuzz_checkpoint.mutate_bytes(rng, clean(kind, form), clean(other, form))
    assert_sound(slot.examine(content), slot.path)


@quick
@given(rng=randoms, kind=kinds, form=forms, other=kinds)
def test_mutated_structure_is_refused_or_a_network(
    slot: Slot, rng: random.Random, kind: str, form: Form, other: str
):
    content = fuzz_checkpoint.mutate_content(rng, contents(kind), contents(other))
    assert_sound(slot.examine(written(content, form)), slot.path)


@quick
@given(rng=randoms, kind=kinds)
def test_a_mutated_safetensors_header_is_refused_or_a_network(
    slot: Slot, rng: random.Random, kind: str
):
    content = fuzz_checkpoint.mutate_header(rng, contents(kind))
    assert_sound(slot.examine(content), slot.path)


@quick
@given(
    kind=kinds,
    form=forms,
    start=st.floats(0, 1),
    removed=st.integers(0, 64),
    inserted=st.binary(max_size=64),
)
def test_bytes_put_in_the_place_of_others_are_refused_or_a_network(
    slot: Slot, kind: str, form: Form, start: float, removed: int, inserted: bytes
):
    whole = clean(kind, form)
    at = int(start**3 * len(whole))  # more often in front, where the structure is
    content = whole[:at] + inserted + whole[at + removed :]
    assert_sound(slot.examine(content), slot.path)


@quick
@given(content=st.binary(max_size=300), head=st.sampled_from((b"PK\x03\x04", b"\x80\x02", b"")))
def test_any_bytes_are_refused(slot: Slot, content: bytes, head: bytes):
    assert not slot.examine(head + content).accepted


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(("0.1", "1e400", "nan", "-1", "abc")),
)
nests = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
metadata = st.dictionaries(
    st.sampled_from(fuzz_checkpoint.METADATA),
    nests | st.dictionaries(st.sampled_from((*fuzz_checkpoint.METADATA, "depths")), nests),
    max_size=4,
)


@quick
@given(beside=metadata, kind=kinds, form=forms)
def test_no_metadata_keep_a_network_from_being_read(
    slot: Slot, beside: dict[str, object], kind: str, form: Form
):
    outcome = slot.examine(written({**beside, "params": contents(kind)}, form))
    assert outcome.accepted, outcome.problem
    assert_sound(outcome, slot.path)
