"""Settings of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import onnxruntime
import pytest
import torch

from aether_converters.tensorrt.driver import probe_driver

# The tests run in as many processes as there are cores, and their networks are so small that a
# second thread costs more than it gives; in the commands that they start, too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


LONGEST = "tests/documentation/test_documentation.py"


class WaitingQuietly(cast(Any, onnxruntime).SessionOptions):
    """Threads of onnxruntime that have nothing to do sleep, and leave the cores to other tests."""

    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry("session.intra_op.allow_spinning", "0")


cast(Any, onnxruntime).SessionOptions = WaitingQuietly


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--trained",
        type=Path,
        help="a trained aether_small checkpoint, for the tests that need one",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, for no core to wait for another at the end, and of the GPU's tests none
    where there is none; asked for by `-m gpu`, they say why.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    driver = probe_driver()
    if driver.answers:
        return
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if config.getoption("markexpr") == "gpu":
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=driver.problem))
    elif needing:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
