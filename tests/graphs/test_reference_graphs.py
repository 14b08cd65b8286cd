"""What `convert` writes as ONNX, held to the text in `tests/graphs/reference`.

A change of the graph that is meant is written anew by `python -m tests.graphs.drawing`, and shows
in the review.
"""

from __future__ import annotations

import pytest

from tests.graphs.drawing import FOLDER, GRAPHS, drawn


@pytest.mark.parametrize("name", GRAPHS)
def test_the_exported_graph_is_the_one_that_was_reviewed(name: str):
    assert drawn(name) == (FOLDER / f"{name}.txt").read_text("utf-8")


def test_every_reference_graph_is_made():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(GRAPHS)
