"""What `aethernet bench` and `benchmarks/compare.py` measure, and how they say what they cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from aether_converters.command_line.main import main
from aether_converters.conversion import convert
from aether_converters.errors import ModelError
from aether_converters.graphs.macs import graph_macs, module_macs
from aether_converters.installation import install_line
from aether_converters.measuring.benchmark import (
    Case,
    PeakProduct,
    benchmark,
    extra_memory,
    file_cases,
    measure,
    module_case,
    torch_run,
)
from aether_converters.runtimes.upscaler import Image
from aether_spandrel import CheckpointError, load
from benchmarks import gpu
from published_networks import G1, G5f
from report import markdown_table, refresh_page
from tests.support.published import draw
from tests.support.tiny import tiny

ROOT = Path(__file__).parent.parent.parent
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    torch.save(tiny().state_dict(), path)
    return path


@pytest.fixture
def graph(checkpoint: Path) -> Path:
    """The same network as ONNX."""
    report = convert(checkpoint, to=["onnx"], precision=["fp32"])
    return report.artefacts[0].path


# Multiply-accumulates


def tiny_macs(height: int, width: int) -> int:
    """Of three blocks of 16 channels with kernels of 7 px, fused, and a head of 64 channels, 2x."""
    first = 9 * 3 * 16
    block = 49 * 16 + 3 * 16 * 32
    after_body = 9 * 16 * 16
    head = 9 * 16 * 64 + 9 * 64 * 256
    last = 9 * 64 * 3 * 2**2
    return (first + 3 * block + after_body + head + last) * height * width


@pytest.mark.parametrize("size", [(16, 16), (13, 17)])
def test_macs_are_those_of_the_formula_for_torch_and_onnx(
    checkpoint: Path, graph: Path, size: tuple[int, int]
):
    assert module_macs(load(checkpoint).model, (1, 3, *size)) == tiny_macs(*size)
    assert graph_macs(graph, (1, 3, *size)) == tiny_macs(*size)
    for path in (checkpoint, graph):
        [case] = file_cases(path)
        assert case.macs(size) == tiny_macs(*size)


def test_a_graph_that_joins_the_last_convolutions_counts_what_it_computes(tmp_path: Path):
    torch.save(tiny(scale=3).state_dict(), tmp_path / "3x.pth")
    [artefact] = convert(tmp_path / "3x.pth", to=["onnx"], precision=["fp32"]).artefacts
    height, width = 16, 13
    apart = 9 * 64 * (64 * 3**2) + 9 * 64 * 3 * 3**2
    joined = 25 * 64 * 3 * 3**2
    edges = 2 * 2 * (height + width)  # two px at each of four edges
    whole = module_macs(load(tmp_path / "3x.pth").model, (1, 3, height, width))
    expected = whole + (joined - apart) * height * width + apart * edges
    assert graph_macs(artefact.path, (1, 3, height, width)) == expected


def test_attention_counts_once_a_picture_and_once_a_pixel(tmp_path: Path):
    state = draw("G5f", channel_attn=True, spatial_attn=True)
    torch.save(state, tmp_path / "with.pth")
    torch.save(draw("G5f"), tmp_path / "without.pth")
    with_attention, without = (
        module_macs(load(tmp_path / name).model, (1, 3, 8, 8))
        for name in ("with.pth", "without.pth")
    )
    assert with_attention - without == 2 * (2 * 16 * 2 + 49 * 2 * 8 * 8)
    [artefact] = convert(tmp_path / "with.pth", to=["onnx"], precision=["fp32"]).artefacts
    assert graph_macs(artefact.path, (1, 3, 8, 8)) == with_attention


def test_every_kind_of_layer_is_counted():
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2),  # 8 x 2 x 3 x 3 for each of 3 x 3 px
        nn.ConvTranspose2d(8, 6, 2, stride=2),  # 8 x 6 x 2 x 2 for each of 3 x 3 px
        nn.Linear(6, 5),  # 30 for each of 6 channels x 6 rows
    )
    assert module_macs(layers, (1, 4, 7, 7)) == 9 * 144 + 9 * 192 + 36 * 30
    assert all(p.device.type == "cpu" and p.requires_grad for p in layers.parameters())


def test_products_of_a_graph_are_counted(tmp_path: Path):
    def weight(name: str, *shape: int) -> TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * torch.Size(shape).numel())

    nodes = [
        helper.make_node("ConvTranspose", ["x", "up"], ["a"], strides=[2, 2]),
        helper.make_node("MatMul", ["a", "square"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"], axis=3),
        helper.make_node("Gemm", ["c", "flat"], ["d"], transB=1),
        helper.make_node("Gemm", ["c", "tall"], ["y"], transA=1),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [
        weight("up", 3, 2, 2, 2),
        weight("square", 10, 7),
        weight("flat", 4, 7),
        weight("tall", 16, 5),
    ]
    path = tmp_path / "products.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [image], [result], weights)), path)
    # (1, 3, 4, 5) to (1, 2, 8, 10), to (1, 2, 8, 7), to (16, 7), to (16, 4) and to (7, 5)
    expected = 60 * 8 + 112 * 10 + 16 * 4 * 7 + 7 * 5 * 16
    assert graph_macs(path, (1, 3, 4, 5)) == expected


def test_macs_are_unknown_where_shapes_are(tmp_path: Path):
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    shape = helper.make_tensor_value_info("s", TensorProto.INT64, [4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], [0.0] * 9)]
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    path = tmp_path / "unknown.onnx"
    model = helper.make_model(helper.make_graph(nodes, "g", [image, shape], [result], weights))
    onnx.save(model, path)
    assert graph_macs(path, (1, 3, 4, 5)) is None


# Measuring


def test_files_of_all_formats_are_measured_beside_each_other(checkpoint: Path, graph: Path):
    found = benchmark([checkpoint, graph], sizes=[(24, 32)], dtypes=["fp32", "bf16"], seconds=0)
    rows = found.measurements
    assert [(row.name, row.dtype) for row in rows] == [
        ("tiny.pth", "fp32"),
        ("tiny.pth", "bf16"),
        (graph.name, "fp32"),
    ]
    assert {row.macs for row in rows} == {tiny_macs(24, 32)}
    assert {row.output_pixels for row in rows} == {4 * 24 * 32}
    assert all(len(row.times) == 3 for row in rows)
    assert rows[0].speed == 1.0
    assert rows[0].peak == rows[2].peak != rows[1].peak
    for row in rows:
        fastest, middle, slowest = sorted(row.times)
        assert row.milliseconds == middle
        assert row.spread == pytest.approx((slowest - fastest) / 4 / middle)
        assert row.macs is not None
        assert row.macs_per_second == pytest.approx(row.macs / middle * 1e3)
        assert row.share_of_peak == pytest.approx(row.macs / middle * 1e3 / row.peak)
        assert row.megapixels_per_second == pytest.approx(4 * 24 * 32 / middle / 1e3)


def recorded(name: str, log: list[str], seconds: float = 0.0) -> Case:
    """A case that writes down when it runs."""

    def run(image: Image) -> Image:
        log.append(name)
        time.sleep(seconds)
        return image

    return Case(
        name=name,
        dtype="fp32",
        arithmetic="fp32",
        channels=1,
        scale=1,
        open=lambda: run,
        macs=lambda _: None,
    )


def test_cases_run_in_turn_so_that_noise_hits_all_alike():
    log: list[str] = []
    measure([recorded(name, log) for name in "abc"], sizes=[(4, 4)], seconds=0)
    assert "".join(log) == "abc" + 3 * "abc"  # once for the memory, then three rounds


def test_the_speed_is_that_of_the_rounds_and_lasts_as_long_as_asked():
    log: list[str] = []
    cases = [recorded("a", log, 0.06), recorded("b", log, 0.02)]
    found = measure(cases, sizes=[(4, 4)], seconds=0.3)
    assert found.measurements[1].speed == pytest.approx(3, rel=0.3)
    assert found.measurements[0].macs_per_second is None
    assert found.measurements[0].share_of_peak is None
    assert len(log) >= 2 * 4  # a round takes about a tenth of a second


def test_threads_are_set_for_the_measurement_alone(checkpoint: Path, graph: Path):
    seen: list[int] = []
    before = torch.get_num_threads()

    def count(_: object) -> None:
        seen.append(torch.get_num_threads())

    case = replace(recorded("a", []), macs=count)
    found = measure([case], sizes=[(4, 4)], threads=before + 1, seconds=0)
    assert seen == [before + 1]
    assert found.machine.threads == before + 1
    assert torch.get_num_threads() == before
    assert benchmark([checkpoint, graph], sizes=[(8, 8)], threads=1, seconds=0).machine.threads == 1


@needs_linux
def test_memory_is_what_a_run_takes_beyond_what_was_there():
    mebibyte = 2**20
    kept = bytearray(64 * mebibyte)
    found = extra_memory(lambda: bytearray(b"\1") * (32 * mebibyte))
    assert found is not None
    assert 31 * mebibyte < found < 40 * mebibyte
    assert len(kept) == 64 * mebibyte


def test_the_peak_is_that_of_a_product_of_known_size():
    assert 1e8 < PeakProduct("fp32", "cpu")() < 1e15


def test_files_of_one_name_are_told_apart(checkpoint: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "tiny.pth"
    other.write_bytes(checkpoint.read_bytes())
    found = benchmark([checkpoint, other], sizes=[(8, 8)], seconds=0)
    assert [row.name for row in found.measurements] == [str(checkpoint), str(other)]


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["bench", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_table_has_a_row_a_file_and_states_the_machine(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    graph: Path,
):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "65536")
    status, out, _ = run(capsys, checkpoint, graph, "--size", 8, "8x12", "--seconds", 0.01)
    assert status == 0
    for text in ("torch", "onnxruntime", "MALLOC_TOP_PAD_=65536", "8x12", "of peak", "1.00x"):
        assert text in out
    assert out.count("tiny.pth") == out.count(graph.name) == 2


def test_json_is_complete(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    arguments = ("--size", "8x12", "--seconds", 0.01, "--threads", 1, "--json")
    _, out, _ = run(capsys, checkpoint, *arguments)
    found = json.loads(out)
    assert found.keys() == {"machine", "measurements", "faults"}
    machine = found["machine"]
    assert machine.keys() == {"cpu", "cores", "threads", "device", "versions", "variables"}
    assert machine["cpu"]
    assert machine["threads"] == 1
    assert machine["versions"]["torch"] == torch.__version__.partition("+")[0]
    [row] = found["measurements"]
    assert row.keys() == {
        *("name", "dtype", "size", "times", "speed", "macs", "peak", "output_pixels", "memory"),
        *("milliseconds", "spread", "macs_per_second", "share_of_peak", "megapixels_per_second"),
    }
    assert row["macs"] == tiny_macs(8, 12)
    assert row["size"] == [8, 12]
    assert (row["memory"] is None) == (sys.platform != "linux")


def test_a_file_that_is_missing_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    status, out, err = run(capsys, tmp_path / "no.pth")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {tmp_path / 'no.pth'}: there is no such file")


def test_an_unknown_dtype_is_refused(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    with pytest.raises(SystemExit):
        run(capsys, checkpoint, "--dtype", "fp8")
    assert "fp8 is not one of fp32, bf16, fp16" in capsys.readouterr().err
    with pytest.raises(ModelError) as error:
        benchmark([checkpoint], dtypes=["fp8"])
    assert str(error.value) == (
        f"{checkpoint}: there is no such dtype to compute in\n"
        "  expected  fp32, bf16, fp16\n"
        "  found     fp8"
    )


def test_a_dtype_in_which_the_network_overflows_is_refused(checkpoint: Path):
    state = {
        key: tensor * (1e6 if "conv_first" in key else 1)
        for key, tensor in torch.load(checkpoint).items()
    }
    torch.save(state, checkpoint)
    with pytest.raises(ModelError) as error:
        benchmark([checkpoint], dtypes=["fp16"])
    assert str(error.value) == (
        f"{checkpoint}: this network cannot be computed in fp16: its values leave the range\n"
        "  next      --dtype bf16 or --dtype fp32"
    )


def test_onnx_files_have_no_other_dtype(graph: Path):
    with pytest.raises(ModelError) as error:
        benchmark([graph], dtypes=["bf16"])
    assert str(error.value) == (
        "ONNX files are run in the precision that they were written in\n"
        "  found     --dtype bf16, and no .pth or .safetensors file\n"
        "  next      leave --dtype away, or convert the checkpoint with --precision"
    )


def test_a_dtype_that_pytorch_cannot_compute_is_said_in_words():
    class Factored(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.geqrf(x).a

    with pytest.raises(ModelError, match="cannot compute the network in fp16 on cpu"):
        torch_run(Factored(), "fp16")(torch.eye(3)[None, None].numpy())


def test_a_file_of_one_size_is_measured_at_that_size_only(checkpoint: Path):
    [artefact] = convert(
        checkpoint, to=["onnx"], precision=["fp32"], shape=(1, 3, 16, 24)
    ).artefacts
    found = benchmark([artefact.path], sizes=[(16, 24)], seconds=0)
    assert found.measurements[0].macs == tiny_macs(16, 24)
    with pytest.raises(ModelError) as error:
        benchmark([artefact.path], sizes=[(16, 16)])
    assert str(error.value) == (
        f"{artefact.path.name} takes pictures of one size only\n"
        "  expected  16x24 px\n"
        "  found     16 px\n"
        "  next      --size 16x24"
    )


def test_what_is_no_aethernet_is_refused(tmp_path: Path):
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError):
        benchmark([tmp_path / "other.pth"])


@pytest.mark.parametrize("text", ["0", "8x", "8x8x8", "big"])
def test_sizes_that_are_none_are_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, text: str
):
    with pytest.raises(SystemExit):
        run(capsys, checkpoint, "--size", text)
    assert f"{text} is not of the form 128 or 720x1280 (HxW)" in capsys.readouterr().err


# The comparison


PUBLISHED: dict[str, Callable[..., nn.Module]] = {
    "G1 unfused": lambda: G1(embed_dim=16, depths=(1, 1), lk_kernel=7, fused=False),
    "G1 fused": lambda: G1(embed_dim=16, depths=(1, 1), lk_kernel=7, fused=True),
    "G5f fused": lambda: G5f(embed_dim=16, depths=(1, 1), lk_kernel=7),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_network_computes_the_published_arithmetic(name: str, tmp_path: Path):
    revision, fused = name.split()
    options: dict[str, Any] = {"channel_attn": True} if revision == "G5f" else {}
    state = draw(revision, fused=fused == "fused", **options)
    network = PUBLISHED[name]()
    network.load_state_dict(state, strict=True)
    torch.save(state, tmp_path / "model.pth")
    image = torch.rand((1, 3, 19, 23), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = load(tmp_path / "model.pth").model(image)
        torch.testing.assert_close(ours, network.eval()(image), atol=1e-5, rtol=1e-5)


def test_a_network_that_is_in_no_file_is_measured_too():
    case = module_case("G1", PUBLISHED["G1 fused"], dtype="bf16", scale=2)
    [row] = measure([case], sizes=[(8, 12)], seconds=0).measurements
    assert (row.name, row.dtype, row.output_pixels) == ("G1", "bf16", 4 * 96)
    assert row.macs == tiny_macs(8, 12) - 96 * (49 * 16 + 3 * 16 * 32)  # a block less


@needs_linux
def test_the_comparison_runs(tmp_path: Path):
    out = compare(tmp_path, "--only", "inference,load", "--no-plot")
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert results.keys() == {"inference", "load"}
    rows = results["inference"]["rows"]
    ours = [row for row in rows if row["kind"] == "ours"]
    assert {row["name"] for row in ours} == {
        "AetherNet G1, this package",
        "AetherNet G1, ONNX",
        "AetherNet G5f, this package",
    }
    assert all(row["difference"] < 1e-4 for row in ours)
    assert {row["name"] for row in rows} > {"SPAN", "Compact", "PLKSR", "RealPLKSR"}
    assert all(row["milliseconds"] > 0 for row in [*rows, *results["load"]["rows"]])
    tables = (out / "tables.md").read_text("utf-8")
    assert "AetherNet G5f, this package" in tables
    assert "large.safetensors" in tables


def compare(folder: Path, *arguments: str) -> Path:
    """Where `benchmarks/compare.py` wrote its results."""
    out = folder / "results"
    command = [sys.executable, ROOT / "benchmarks" / "compare.py", "--quick", "--out", out]
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out


def test_a_missing_matplotlib_is_named_before_anything_is_measured(tmp_path: Path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('gone')", "utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "compare.py", "--quick", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: this needs the Python package matplotlib, which cannot be imported\n"
        "  found     gone\n"
        f"  next      {install_line('bench')}\n"
    )


def test_the_picture_shows_every_network(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from report import draw_inference

    measured = measure(
        [recorded("<first>", []), recorded("second", [])], sizes=[(4, 4), (4, 8)], seconds=0
    )
    rows = [
        {**row.as_dict(), "kind": "ours", "share_of_peak": 0.5} for row in measured.measurements
    ]
    draw_inference(rows, "a machine", tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text("utf-8")
    assert text.startswith("<?xml")


def test_tables_line_up():
    assert markdown_table(["name", "ms"], [["first", "1"], ["b", "-"]]) == (
        "| name  |  ms |\n| ----- | --: |\n| first |   1 |\n| b     |   - |\n"
    )


def test_a_page_is_refreshed_between_its_comments_alone(tmp_path: Path):
    out, page = tmp_path / "figures", tmp_path / "figures.md"
    page.write_text("# T\n<!-- load -->\nold\n<!-- end of load -->\nrest\n", "utf-8")
    refresh_page(out, {"load": "new\n"})
    refresh_page(out, {"load": "newer\n"})
    assert page.read_text("utf-8") == "# T\n<!-- load -->\nnewer\n<!-- end of load -->\nrest\n"
    with pytest.raises(ValueError, match="lacks the comments <!-- convert -->"):
        refresh_page(out, {"convert": ""})


def test_the_page_of_the_docs_has_a_place_for_every_part():
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    for part in ("inference", "load", "convert", "upscale"):
        assert text.index(f"<!-- {part} -->\n") < text.index(f"<!-- end of {part} -->\n")


def test_the_benchmark_of_gpus_runs_on_the_cpu_too(tmp_path: Path):
    settings = replace(gpu.QUICK, device=torch.device("cpu"), sizes=gpu.QUICK.sizes[:1] * 2)
    gpu.measure(settings, tmp_path, titles=["difference to float64", "small networks", "kernels"])
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert all(row["max difference"] < 2e-6 for row in found["difference to float64"][:1])
    ours = [row for row in found["small networks"] if "this package" in row["network"]]
    assert all(row["ms"] > 0 and row["roofline, ms"] > 0 for row in ours)
    assert "## kernels" in (tmp_path / "gpu.md").read_text("utf-8")


def test_the_minutes_of_the_benchmark_of_gpus_are_kept(tmp_path: Path):
    settings = replace(gpu.QUICK, device=torch.device("cpu"), deadline=time.perf_counter())
    gpu.measure(settings, tmp_path, titles=["small networks", "kernels"])
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert not found["small networks"]
    assert "G1 small, this package, fp32, eager, (24, 24)" in found["left out"]
