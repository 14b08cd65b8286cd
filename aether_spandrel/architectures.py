"""Networks of other architectures: which one a checkpoint holds, and the network itself.

Spandrel's tables say which, and it builds the network. It is given tensors that this package has
read as data; of the file itself, it opens nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from spandrel import MAIN_REGISTRY, ArchRegistry, ImageModelDescriptor, ModelBase
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from aether_spandrel.checkpoint import WRAPPED_MODULES, Checkpoint
from aether_spandrel.errors import CheckpointError, reason

FRONTS: Final = ("module.", "netG.", "net_g.")
"""What trainers put in front of every key."""

INDICES: Final = 8  # times as many as there are tensors: what numbers in keys may come to
ALLOWANCE: Final = 2**28  # bytes that a network may take beyond what its file holds
SHARE: Final = 8  # times what the file holds: all that is made while it is built

Descriptor = ImageModelDescriptor[Any]


def architecture_of(checkpoint: Checkpoint) -> str:
    """What spandrel calls the architecture of a checkpoint; nothing if it knows none."""
    tensors = _plain(checkpoint)
    with suppress(CheckpointError):
        _refuse_indices(tensors)
        for support in _registry().architectures("detection"):
            # What others write may raise anything for tensors that it does not expect.
            with suppress(Exception):
                if support.architecture.id != "AetherNet" and support.detect(tensors):
                    return str(support.architecture.name)
    return ""


def load_other(checkpoint: Checkpoint) -> Descriptor:
    """A network of another architecture as spandrel builds it: eval mode, on the CPU.

    Raises:
        CheckpointError: Spandrel does not know it, cannot build it from these tensors, or it takes
            something else than a picture.
    """
    tensors = _plain(checkpoint)
    name = architecture_of(checkpoint)
    _refuse_indices(tensors)
    held = sum(tensor.nbytes for tensor in tensors.values())
    try:
        with _Ceiling(held):
            model: ModelBase[Any] = _registry().load(dict(tensors))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"spandrel cannot build this network: {name or 'no architecture that it knows'}",
            found=f"{type(error).__name__}: {reason(error)}",
            advice="check that the file is whole, or update with: pip install --upgrade spandrel "
            "spandrel_extra_arches",
        ) from error
    return of_pictures(model).eval()


def of_pictures(model: ModelBase[Any]) -> Descriptor:
    """What spandrel has loaded, if it maps one picture of any size to another.

    Raises:
        CheckpointError: It takes something else.
    """
    if not isinstance(model, ImageModelDescriptor) or model.size_requirements.square:
        raise CheckpointError(
            "this network enlarges no pictures",
            expected="one that takes a picture of any size, and gives one",
            found=f"{model.architecture.name}, which takes a mask with it or one square alone",
            advice="open it in a program that is made for it",
        )
    return model


def _registry() -> ArchRegistry:
    """All architectures of spandrel and, where it is installed, of `spandrel_extra_arches`."""
    registry = MAIN_REGISTRY.copy()
    # An optional package, which may be broken, and uses what newer versions of PyTorch warn of.
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spandrel_extra_arches import EXTRA_REGISTRY

        registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    return registry


def _plain(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Tensors by key, without what wrapping modules and trainers put into all keys."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in checkpoint.entries.items():
        for name in WRAPPED_MODULES:
            key = key.replace(name, "")
        tensors[key] = tensor
    for front in FRONTS:
        if tensors and all(key.startswith(front) for key in tensors):
            tensors = {key.removeprefix(front): tensor for key, tensor in tensors.items()}
    return tensors


def _refuse_indices(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for keys that would make somebody build more layers than there are."""
    most = INDICES * max(len(tensors), 8)
    for key in tensors:
        if any(len(number) > 9 or int(number) > most for number in re.findall(r"\d+", key)):
            raise CheckpointError(
                "a key numbers more layers than the file holds",
                key=key[:100],
                expected=f"numbers up to {most}",
                advice="the file is damaged or forged: download it again, or do not trust it",
            )


class _Ceiling(TorchDispatchMode):
    """Ends the building of a network that would take far more memory than its file holds."""

    def __init__(self, held: int) -> None:
        """Allow for a multiple of so many bytes."""
        super().__init__()
        self._left = SHARE * held + ALLOWANCE

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(isinstance(a, Tensor) for a in args):
            self._left -= result.nbytes
            if self._left < 0:
                raise CheckpointError(
                    "the network would be larger than its file",
                    found=f"a tensor of shape {tuple(result.shape)}",
                    advice="the file is damaged or forged: download it again, or do not trust it",
                )
        return result
