"""What a converted file says of its constructor's arguments makes the network that is in it.

`tests/support/published.py` stands in for the constructors: it draws the tensors of each revision
from their arguments alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from aether_converters import convert
from tests.support.published import REVISIONS, draw


def _configurations() -> Iterator[Any]:
    """Of each revision that is written under its own keys, as few and as many options as it has."""
    for revision, options in REVISIONS.items():
        if not options.running_stats:
            continue
        chosen: list[dict[str, Any]] = [{"in_chans": options.in_chans[0]}]
        chosen += [{"embed_dim": 22, "ffn_dim": 49}]  # int(22 * (49 / 22)) is 48
        if options.attention:
            chosen += [{"channel_attn": True, "spatial_attn": True}]
        if options.free_out_chans:
            chosen += [{"in_chans": 3, "out_chans": 1}, {"in_chans": 1, "out_chans": 3}]
        for choice in chosen:
            yield pytest.param(revision, choice, id=f"{revision}-{choice}")


def as_drawn(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Published names of arguments as those of `draw`."""
    everywhere = ("in_chans", "embed_dim", "depths", "lk_kernel", "sk_kernel", "scale")
    drawn = {name: arguments[name] for name in everywhere}
    drawn["ffn_dim"] = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    somewhere = {
        "norm_type": "norm_type",
        "out_chans": "out_chans",
        "use_channel_attn": "channel_attn",
        "use_spatial_attn": "spatial_attn",
    }
    return drawn | {
        ours: arguments[theirs] for theirs, ours in somewhere.items() if theirs in arguments
    }


CONFIGURATIONS = list(_configurations())


@pytest.mark.parametrize(("revision", "options"), CONFIGURATIONS)
def test_the_stated_arguments_make_the_tensors_of_the_file(
    revision: str, options: dict[str, Any], tmp_path: Path
):
    torch.save(draw(revision, scale=4, fused=True, **options), tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", tmp_path / "out", to=["pth"], precision=["fp32"])
    content = torch.load(report.artefacts[0].path, weights_only=True)
    arguments = content["metadata"]["arch_config"]
    made = draw(revision, fused=True, **as_drawn(arguments))
    found = content["state_dict"]
    assert {k: t.shape for k, t in made.items()} == {k: t.shape for k, t in found.items()}


@pytest.mark.parametrize("revision", [name for name in REVISIONS if name != "G5s"])
def test_a_number_of_outputs_is_not_stated_where_it_is_that_of_the_inputs(
    revision: str, tmp_path: Path
):
    """Most constructors have no such argument and would refuse it."""
    torch.save(draw(revision), tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", tmp_path / "out", to=["pth"], precision=["fp32"])
    content = torch.load(report.artefacts[0].path, weights_only=True)
    assert "out_chans" not in content["metadata"]["arch_config"]
