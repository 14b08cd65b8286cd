"""What a graph of other people may cost before onnxruntime sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from aether_converters.errors import ModelError

MOST_NODES: Final = 50_000  # with every call of a function and every turn of a loop
MOST_TIMES: Final = 4  # as many nodes as the file itself holds, where that is more
MOST_CONSTANTS: Final = 2**25  # elements that are computed from constants alone
MOST_PER_PIXEL: Final = 2**15  # elements of one value for each px of the input
DEEPEST: Final = 50  # functions that call functions, graphs within graphs


@dataclass(kw_only=True)
class Budget:
    """What is left to a graph.

    Attributes:
        nodes: Operators that are run.
        constants: Elements that are computed from constants alone, which happens on opening.
        value: Elements of one value.
    """

    nodes: int
    constants: int
    value: int
    _nodes: int = field(default=0, init=False)
    _constants: int = field(default=0, init=False)

    def take_node(self, times: int) -> None:
        """An operator is run so often; raises ModelError where that is too often."""
        self._nodes += times
        if self._nodes > self.nodes:
            raise ModelError(
                "the graph runs more operators than any network",
                expected=f"at most {self.nodes:,}, with those of functions and loops",
                found=f"at least {self._nodes:.3g}",
                advice="it was made to keep computers busy, or is no network that enlarges "
                "pictures: ask whoever made it",
            )

    def take_value(self, name: str, elements: int, *, constant: bool) -> None:
        """A value is computed; raises ModelError where it is too large."""
        self._constants += elements if constant else 0
        limit = self.constants if constant else self.value
        taken = self._constants if constant else elements
        if taken > limit:
            raise ModelError(
                "the graph needs more memory than any network",
                key=name,
                expected=f"at most {limit:,} numbers"
                + (" computed from constants" if constant else " in one value"),
                found=f"{taken:,}",
                advice="it was made to fill memory, or is no network that enlarges pictures: ask "
                "whoever made it",
            )

    def refuse_unknown(self, name: str, operator: str) -> None:
        """Raise ModelError: how large a value becomes, or how often it is computed, is not told."""
        raise ModelError(
            "the file does not say how much there is to compute",
            key=name,
            expected="sizes and numbers of turns that follow from the size of the picture",
            found=f"a {operator} that follows something else",
            advice="export the network again, with loops unrolled",
        )


def budget_of(model: ModelProto, pixels: int) -> Budget:
    """What a graph may take for a picture of so many px.

    Raises:
        ModelError: Its functions call each other too often, too deeply or in a circle.
    """
    budget = Budget(
        nodes=max(MOST_NODES, MOST_TIMES * sum(_written(model))),
        constants=MOST_CONSTANTS + MOST_TIMES * _stored(model),
        value=MOST_PER_PIXEL * pixels,
    )
    budget.take_node(_Inlined(model).nodes(model.graph.node, 0))
    return budget


def _written(model: ModelProto) -> Iterator[int]:
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        yield sum(1 for _ in all_nodes(nodes))


def _stored(model: ModelProto) -> int:
    """Bytes of the weights that the file itself holds."""
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and those of the graphs within them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in subgraphs(node):
            waiting.extend(graph.node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that an operator holds, as loops and branches do."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


class _Inlined:
    """How many operators there are once each call of a function is written out."""

    def __init__(self, model: ModelProto) -> None:
        self._functions = {(f.domain, f.name): f for f in model.functions}
        self._known: dict[tuple[str, str], int] = {}

    def nodes(self, nodes: Iterable[NodeProto], depth: int) -> int:
        if depth > DEEPEST:
            raise ModelError(
                "functions or graphs within the graph lie too deep",
                expected=f"at most {DEEPEST} within each other, and none within itself",
                advice="export the network again, without functions",
            )
        count = 0
        for node in nodes:
            count += 1
            key = (node.domain, node.op_type)
            if key in self._functions:
                if key not in self._known:
                    self._known[key] = self.nodes(self._functions[key].node, depth + 1)
                count += self._known[key]
            for graph in subgraphs(node):
                count += self.nodes(graph.node, depth + 1)
        return count
