"""ONNX files of other projects, in tiles: as the whole, or with a word about what sees it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from aether_converters import open_upscaler
from aether_converters.command_line.main import main
from aether_converters.pictures.tiling import plan_tiles, split_in_steps, upscale_image
from tests.support.foreign import (
    branch,
    function,
    graph,
    loop_body,
    node,
    saved,
    twice_as_large,
    weight,
)

SIZES = [(97, 131), (64, 64), (101, 90), (128, 77), (150, 55), (75, 75), (111, 140), (120, 62)]
"""(H, W) in px, even ones and odd ones."""

AXES = {"one": [1], "two": [2], "three": [3], "twelve": [12], "eight": [8]}
SHUFFLED = [
    node("Shape", ["x"], ["shape"]),
    node("Gather", ["shape", "two"], ["height"]),
    node("Gather", ["shape", "three"], ["width"]),
    node("Div", ["height", "two"], ["rows"]),
    node("Div", ["width", "two"], ["columns"]),
    node("Concat", ["one", "three", "rows", "two", "columns", "two"], ["six"], axis=0),
    node("Reshape", ["x", "six"], ["split"]),
    node("Transpose", ["split"], ["turned"], perm=[0, 1, 3, 5, 2, 4]),
    node("Concat", ["one", "twelve", "rows", "columns"], ["four"], axis=0),
    node("Reshape", ["turned", "four"], ["b"]),
]
NEIGHBOURS: dict[str, Any] = {
    "max_pool": graph(
        [node("MaxPool", ["x"], ["a"], kernel_shape=[15, 15], pads=[7] * 4), twice_as_large("a")]
    ),
    "average_pool": graph(
        [
            node("AveragePool", ["x"], ["a"], kernel_shape=[31, 9], pads=[15, 4, 15, 4]),
            twice_as_large("a"),
        ]
    ),
    "average_pool_with_strides": graph(
        [
            node("AveragePool", ["x"], ["b"], kernel_shape=[4, 4], strides=[4, 4]),
            node("Conv", ["b", "w"], ["c"], pads=[1] * 4),
            node("DepthToSpace", ["c"], ["y"], blocksize=8),
        ],
        {"w": weight(192, 3, 3, 3)},
    ),
    "no_kernel_shape_but_dilations": graph(
        [node("Conv", ["x", "w"], ["a"], dilations=[3, 3], pads=[6] * 4), twice_as_large("a")],
        {"w": weight(3, 3, 5, 5)},
    ),
    "padded_by_itself": graph(
        [node("Conv", ["x", "w"], ["a"], auto_pad="SAME_LOWER"), twice_as_large("a")],
        {"w": weight(3, 3, 6, 6)},
    ),
    "padded_once_for_all": graph(
        [
            node("Pad", ["x", "pads"], ["p"], mode="reflect"),
            node("Conv", ["p", "w"], ["b"]),
            node("Conv", ["b", "w"], ["a"]),
            twice_as_large("a"),
        ],
        {"pads": [0, 0, 4, 4, 0, 0, 4, 4], "w": weight(3, 3, 5, 5)},
    ),
    "space_to_depth": graph(
        [
            node("SpaceToDepth", ["x"], ["b"], blocksize=2),
            node("Conv", ["b", "w"], ["c"], pads=[2] * 4),
            node("DepthToSpace", ["c"], ["y"], blocksize=4),
        ],
        {"w": weight(48, 12, 5, 5)},
    ),
    "pixel_unshuffle_by_reshape": graph(
        [
            *SHUFFLED,
            node("Conv", ["b", "w"], ["c"], pads=[1] * 4),
            node("DepthToSpace", ["c"], ["y"], blocksize=4),
        ],
        {**AXES, "w": weight(48, 12, 3, 3)},
    ),
    "every_second_pixel": graph(
        [
            node("Slice", ["x", "from0", "end", "axes", "by2"], ["p0"]),
            node("Slice", ["x", "from1", "end", "axes", "by2"], ["p1"]),
            node("Concat", ["p0", "p1"], ["b"], axis=1),
            node("Conv", ["b", "w"], ["c"], pads=[3] * 4),
            node("DepthToSpace", ["c"], ["y"], blocksize=4),
        ],
        {
            "from0": [0, 0],
            "from1": [1, 1],
            "end": [2**62, 2**62],
            "axes": [2, 3],
            "by2": [2, 2],
            "w": weight(48, 6, 7, 7),
        },
    ),
    "transposed_convolution": graph(
        [node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[11] * 4)],
        {"w": weight(3, 3, 24, 24)},
    ),
    "strides_and_back": graph(
        [
            node("Conv", ["x", "w"], ["b"], strides=[2, 2], pads=[1] * 4),
            node("Conv", ["b", "w2"], ["c"], strides=[2, 2], pads=[1] * 4),
            node("Resize", ["c", "", "doubled"], ["d"], mode="linear"),
            node("Add", ["d", "b"], ["e"]),
            node("ConvTranspose", ["e", "w4"], ["f"], strides=[2, 2], pads=[1] * 4),
            node("DepthToSpace", ["f"], ["y"], blocksize=2),
        ],
        {"w": weight(8, 3, 3, 3), "w2": weight(8, 8, 3, 3), "w4": weight(8, 12, 4, 4)},
    ),
    "halved_to_a_computed_size": graph(
        [
            node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
            node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            node("Shape", ["a"], ["size"]),
            node("Resize", ["b", "", "", "size"], ["d"], mode="linear"),
            node("Add", ["d", "a"], ["e"]),
            node("DepthToSpace", ["e"], ["y"], blocksize=2),
        ],
        {"w": weight(12, 3, 3, 3)},
    ),
    "windows": graph(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "two"], ["height"]),
            node("Gather", ["shape", "three"], ["width"]),
            node("Div", ["height", "eight"], ["rows"]),
            node("Div", ["width", "eight"], ["columns"]),
            node("Concat", ["one", "three", "rows", "eight", "columns", "eight"], ["six"], axis=0),
            node("Reshape", ["x", "six"], ["split"]),
            node("Softmax", ["split"], ["mixed"], axis=3),
            node("Reshape", ["mixed", "shape"], ["a"]),
            twice_as_large("a"),
        ],
        AXES,
    ),
    "windows_of_pictures_filled_up": graph(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "two"], ["height"]),
            node("Gather", ["shape", "three"], ["width"]),
            node("Concat", ["height", "width"], ["size"], axis=0),
            node("Sub", ["zero", "size"], ["minus"]),
            node("Mod", ["minus", "eight"], ["missing"]),
            node("Concat", ["nothing", "missing"], ["pads"], axis=0),
            node("Pad", ["x", "pads"], ["p"], mode="reflect"),
            node("Shape", ["p"], ["filled"]),
            node("Gather", ["filled", "two"], ["high"]),
            node("Gather", ["filled", "three"], ["wide"]),
            node("Div", ["high", "eight"], ["rows"]),
            node("Div", ["wide", "eight"], ["columns"]),
            node("Concat", ["one", "three", "rows", "eight", "columns", "eight"], ["six"], axis=0),
            node("Reshape", ["p", "six"], ["split"]),
            node("Softmax", ["split"], ["mixed"], axis=3),
            node("Reshape", ["mixed", "filled"], ["b"]),
            node("Slice", ["b", "from0", "size", "axes"], ["a"]),
            twice_as_large("a"),
        ],
        {**AXES, "zero": [0], "nothing": [0] * 6, "from0": [0, 0], "axes": [2, 3]},
    ),
    "blocks_of_two_and_of_three": graph(
        [
            node("SpaceToDepth", ["x"], ["b3"], blocksize=3),
            node("Conv", ["b3", "w3"], ["c3"], pads=[1] * 4),
            node("DepthToSpace", ["c3"], ["d3"], blocksize=3),
            node("SpaceToDepth", ["x"], ["b2"], blocksize=2),
            node("Conv", ["b2", "w2"], ["c2"], pads=[1] * 4),
            node("DepthToSpace", ["c2"], ["d2"], blocksize=2),
            node("Add", ["d3", "d2"], ["a"]),
            twice_as_large("a"),
        ],
        {"w3": weight(27, 27, 3, 3), "w2": weight(12, 12, 3, 3)},
    ),
    "function": graph(
        [node("Block", ["x", "w"], ["a"], domain="block"), twice_as_large("a")],
        {"w": weight(3, 3, 21, 21)},
        functions=[function("Block", [node("Conv", ["i", "k"], ["o"], pads=[10] * 4)], "ik")],
    ),
    "loop": graph(
        [
            node(
                "Loop",
                ["turns", "true", "x"],
                ["a"],
                body=loop_body([node("Conv", ["v", "w"], ["v2"], pads=[3] * 4)]),
            ),
            twice_as_large("a"),
        ],
        {"w": weight(3, 3, 7, 7), "turns": 4, "true": True},
    ),
    "branches": graph(
        [
            node(
                "If",
                ["true"],
                ["a"],
                then_branch=branch([node("Conv", ["x", "w"], ["t"], pads=[4] * 4)], "t"),
                else_branch=branch([node("Identity", ["x"], ["e"])], "e"),
            ),
            twice_as_large("a"),
        ],
        {"w": weight(3, 3, 9, 9), "true": True},
    ),
    "begin_replaced": graph(
        [
            node("Slice", ["x", "seven", "far", "axis"], ["a"]),
            node("Pad", ["a", "pads"], ["b"], mode="edge"),
            node("Conv", ["b", "w"], ["c"], pads=[2] * 4),
            twice_as_large("c"),
        ],
        {
            "seven": [7],
            "far": [2**40],
            "axis": [3],
            "pads": [0, 0, 0, 7, 0, 0, 0, 0],
            "w": weight(3, 3, 5, 5),
        },
    ),
    "ends_replaced": graph(
        [
            node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
            node("Pad", ["a", "less"], ["b"]),
            node("Pad", ["b", "more"], ["c"]),
            node("AveragePool", ["c"], ["d"], kernel_shape=[5, 5], pads=[2] * 4),
            twice_as_large("d"),
        ],
        {
            "less": [0, 0, -4, 0, 0, 0, 0, -9],
            "more": [0, 0, 4, 0, 0, 0, 0, 9],
            "w": weight(3, 3, 3, 3),
        },
    ),
}
WHOLE: dict[str, Any] = {
    "GlobalAveragePool": graph(
        [
            node("GlobalAveragePool", ["x"], ["b"]),
            node("Mul", ["x", "b"], ["a"]),
            twice_as_large("a"),
        ]
    ),
    "ReduceMean": graph(
        [
            node("ReduceMean", ["x", "axes"], ["b"]),
            node("Sub", ["x", "b"], ["a"]),
            twice_as_large("a"),
        ],
        {"axes": [2, 3]},
        opset=18,
    ),
    "InstanceNormalization": graph(
        [node("InstanceNormalization", ["x", "g", "b"], ["a"]), twice_as_large("a")],
        {"g": np.ones(3, np.float32), "b": np.zeros(3, np.float32)},
    ),
    "MatMul, Softmax": graph(
        [
            node("Reshape", ["x", "flat"], ["q"]),
            node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
            node("MatMul", ["k", "q"], ["l"]),
            node("Softmax", ["l"], ["m"], axis=-1),
            node("MatMul", ["q", "m"], ["o"]),
            node("Shape", ["x"], ["shape"]),
            node("Reshape", ["o", "shape"], ["a"]),
            twice_as_large("a"),
        ],
        {"flat": [0, 3, -1]},
    ),
    "Add": graph(  # the first row beside every row
        [
            node("Slice", ["x", "from0", "one", "rows"], ["first"]),
            node("Add", ["x", "first"], ["a"]),
            twice_as_large("a"),
        ],
        {"from0": [0], "one": [1], "rows": [2]},
    ),
    "Sub": graph(  # the last px
        [
            node("Slice", ["x", "last", "end", "axes"], ["corner"]),
            node("Sub", ["x", "corner"], ["a"]),
            twice_as_large("a"),
        ],
        {"last": [-1, -1], "end": [2**62, 2**62], "axes": [2, 3]},
    ),
    "Squeeze": graph(  # the last column, without its dimension
        [
            node("Slice", ["x", "last", "end", "columns"], ["strip"]),
            node("Squeeze", ["strip", "columns"], ["line"]),
            node("Unsqueeze", ["line", "columns"], ["again"]),
            node("Mul", ["x", "again"], ["a"]),
            twice_as_large("a"),
        ],
        {"last": [-1], "end": [2**62], "columns": [3]},
    ),
    "Conv": graph(  # a part of the picture, looked for in the picture
        [
            node("Slice", ["x", "from0", "to3", "axes"], ["part"]),
            node("Transpose", ["part"], ["kernel"], perm=[1, 0, 2, 3]),
            node("Conv", ["x", "kernel"], ["b"], pads=[1] * 4, group=3),
            node("Sigmoid", ["b"], ["a"]),
            twice_as_large("a"),
        ],
        {"from0": [0, 0], "to3": [3, 3], "axes": [2, 3]},
    ),
    "Mul": graph(  # rows, counted by sums of ones
        [
            node("Shape", ["x"], ["shape"]),
            node("ConstantOfShape", ["shape"], ["zeros"]),
            node("Exp", ["zeros"], ["ones"]),
            node("CumSum", ["ones", "rows"], ["count"]),
            node("Mul", ["x", "count"], ["a"]),
            twice_as_large("a"),
        ],
        {"rows": 2},
    ),
    "Dropout": graph(  # exported while in training
        [node("Dropout", ["x", "half", "true"], ["a"], seed=1), twice_as_large("a")],
        {"half": np.float32(0.5), "true": True},
    ),
    "CumSum": graph([node("CumSum", ["x", "axis"], ["a"]), twice_as_large("a")], {"axis": 3}),
    "Resize": graph(
        [
            node(
                "Resize",
                ["x", "", "doubled"],
                ["y"],
                mode="linear",
                coordinate_transformation_mode="align_corners",
            )
        ]
    ),
    "ReverseSequence": graph(  # no row of ours knows it
        [
            node("Reshape", ["x", "rows"], ["r"]),
            node("ReverseSequence", ["r", "lengths"], ["t"], time_axis=0, batch_axis=1),
            node("Shape", ["x"], ["shape"]),
            node("Reshape", ["t", "shape"], ["a"]),
            twice_as_large("a"),
        ],
        {"rows": [-1, 1], "lengths": [2]},
    ),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_tiles_of_a_foreign_network_agree_with_the_whole(name: str, tmp_path: Path):
    upscaler = open_upscaler(saved(NEIGHBOURS[name], tmp_path / "m.onnx"))
    assert upscaler.looks_at_all == ()
    step = max(upscaler.steps)
    for size in SIZES:
        image = np.random.default_rng(1).random((3, *size), np.float32)
        whole = upscale_image(upscaler, image, plan_tiles(upscaler, *size, memory=2**40))
        plan = plan_tiles(upscaler, *size, tile=2 * upscaler.receptive_radius + 4 * step + 20)
        assert len(plan) > 1
        np.testing.assert_allclose(upscale_image(upscaler, image, plan), whole, atol=1e-4, rtol=0)
        default = upscale_image(upscaler, image, plan_tiles(upscaler, *size, memory=1))
        np.testing.assert_allclose(default, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_an_even_picture_comes_out_as_onnxruntime_gives_it(name: str, tmp_path: Path):
    path = saved(NEIGHBOURS[name], tmp_path / "m.onnx")
    image = np.random.default_rng(1).random((1, 3, 96, 120), np.float32)
    runtime: Any = onnxruntime
    expected = runtime.InferenceSession(str(path)).run(None, {"x": image})[0]
    upscaler = open_upscaler(path)
    plan = plan_tiles(upscaler, 96, 120, memory=1)
    np.testing.assert_allclose(upscale_image(upscaler, image[0], plan), expected[0], atol=1e-4)


@pytest.mark.parametrize("name", WHOLE)
def test_what_looks_at_the_whole_picture_is_named_in_a_note(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = saved(WHOLE[name], tmp_path / "m.onnx")
    Image.linear_gradient("L").resize((130, 121)).convert("RGB").save(tmp_path / "p.png")
    arguments = ["upscale", str(path), str(tmp_path / "p.png"), "--tile", "76", "--force"]
    assert main(arguments) == 0
    assert f"the model looks at the whole picture, or may, with {name}" in capsys.readouterr().out


def test_memory_of_attention_over_all_pixels_is_that_of_a_tile_not_of_a_probe(tmp_path: Path):
    upscaler = open_upscaler(saved(WHOLE["MatMul, Softmax"], tmp_path / "m.onnx"))
    plan = plan_tiles(upscaler, 600, 600)
    side = plan.rows[0].stop - plan.rows[0].start
    assert 3 * 4 * side**4 < 1.3 * 2**30


def test_spans_in_steps_start_at_multiples_and_cover_each_pixel_once():
    for length in (31, 64, 97):
        for step in (2, 4, 8):
            spans = split_in_steps(length, 40, 6, step)
            assert [s.keep_start for s in spans] == [0, *(s.keep_stop for s in spans[:-1])]
            assert spans[-1].keep_stop == length
            assert all(span.start % step == 0 for span in spans)
            assert all(span.stop - span.start <= 40 or len(spans) == 1 for span in spans)
