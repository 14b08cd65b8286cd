"""Weights rounded so that their errors cancel in what a layer gives, not each to its nearest value.

The inputs that a convolution sees at once are alike, as neighbouring pixels are. So what rounding
one weight adds, the others can take away again: column by column each weight is rounded, and those
that are not yet move by what the covariance of the inputs says. It is the classic way to prune and
round by second derivatives (Hassibi and Stork, NIPS 1992; Frantar et al., arXiv:2210.17323), which
takes one run of the network and a Cholesky decomposition a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aether_converters.int8.inputs import Pictures, is_one_colour, one_by_one, watch_inputs
from aether_converters.int8.one_thread import in_one_thread
from aether_converters.int8.plan import QuantisationPlan, shifted_layers, starts_at_zero
from aether_converters.int8.weights import (
    PAIR_LIMIT,
    WEIGHT_LIMIT,
    limited,
    neighbours,
    row_steps,
    settled,
)
from aether_core import AetherNet

ROWS: Final = 1024  # places of a patch at which a layer's input is looked at, about
DAMPING: Final = 0.003  # of the mean variance, added to each: what the patches did not show
SHARES: Final = (0.98, 0.94, 0.89, 0.83)
"""Of a row's largest weight: where its range is tried to end."""
APART: Final = 3  # px between two of them where all is of one colour, and tells the same
BLOCK: Final = 64  # columns whose consequences for later ones are summed up first


@dataclass
class Moments:
    """What a layer's input is like, where a weight meets it.

    Attributes:
        second: (groups, K + 1, K + 1), the mean products of the K rounded inputs of an output and
            of 1, so that its last row holds their means.
        exact: (groups, K), the means before rounding.
        crossed: (groups, K, K), the mean products of inputs before and after rounding, where all
            below 0 is rounded to 0.
    """

    second: Tensor
    exact: Tensor
    crossed: Tensor | None = None

    def __add__(self, other: Moments) -> Moments:
        """Sums of both."""
        crossed = self.crossed
        if crossed is not None and other.crossed is not None:
            crossed = crossed + other.crossed
        return Moments(self.second + other.second, self.exact + other.exact, crossed)


@torch.no_grad()
def rounded_weights(network: AetherNet, plan: QuantisationPlan, pictures: Pictures) -> AetherNet:
    """A copy whose weights lie on their int8 grids, and whose biases make up for what is left.

    Each row is as long as its step allows, so that `quantised_weight` finds the same steps and
    integers again.

    Args:
        network: Fused, in float32.
        plan: Which layers, and on which grids their inputs lie.
        pictures: What it is shown.
    """
    rounded = copy.deepcopy(network)
    for name, moments in input_moments(network, plan, pictures).items():
        layer = cast(nn.Conv2d, rounded.get_submodule(name))
        groups, size = moments.exact.shape
        means = moments.second[:, -1, :-1]
        covariance = moments.second[:, :-1, :-1] - means[:, :, None] * means[:, None]
        weight = layer.weight.detach().reshape(groups, -1, size)
        wanted = weight
        if moments.crossed is not None:
            crossed = moments.crossed - moments.exact[:, :, None] * means[:, None]
            wanted = _without_what_is_cut(weight, crossed, covariance)
        paired = plan.pairs(name, layer.weight)
        beside = neighbours(layer.weight.shape) if paired else None
        found = rounded_rows(wanted, covariance, beside)
        kept = weight @ moments.exact[:, :, None] - found @ means[:, :, None]
        layer.weight = nn.Parameter(found.reshape(layer.weight.shape), requires_grad=False)
        cast(Tensor, layer.bias).add_(kept.flatten())
    return rounded


def _without_what_is_cut(weight: Tensor, crossed: Tensor, covariance: Tensor) -> Tensor:
    """Weights that make of what is left of a layer's inputs most of what they made of all.

    What is below 0 goes along with what is above it in other channels and places, so the others
    can stand for it: it is a regression, of what the layer gave on what it now takes.
    """
    damping = DAMPING * covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    damped = covariance + damping * torch.eye(covariance.shape[1])
    given = weight.double() @ (crossed - covariance).double()
    solve = cast("Callable[..., Tensor]", torch.linalg.solve)
    return weight + solve(damped.double(), given, left=False).float()


@torch.no_grad()
def input_moments(
    network: AetherNet, plan: QuantisationPlan, pictures: Pictures
) -> dict[str, Moments]:
    """By layer of a plan, what its input is like in the float network."""
    found: dict[str, Moments] = {}
    behind = shifted_layers(network.config)
    each = one_by_one(pictures)
    varied = [picture for picture in each if not is_one_colour(picture)]
    flat = [picture for picture in each if is_one_colour(picture)]
    for shown, apart in ((varied, 1), (flat, APART)):
        watchers = {name: _summing(found, name, plan, behind, apart) for name in plan.inputs}
        watch_inputs(network, shown, watchers)
    return {
        name: Moments(
            second=sums.second / sums.second[:, -1:, -1:],
            exact=sums.exact / sums.second[:, -1, -1:],
            crossed=None if sums.crossed is None else sums.crossed / sums.second[:, -1:, -1:],
        )
        for name, sums in found.items()
    }


def _summing(
    found: dict[str, Moments], name: str, plan: QuantisationPlan, behind: Sequence[str], apart: int
) -> Callable[[nn.Module, Tensor], None]:
    grid = plan.inputs[name]
    cut = name in behind and starts_at_zero(grid)

    def noted(layer: nn.Module, x: Tensor) -> None:
        exact, rows = met_inputs(layer, x, apart), met_inputs(layer, grid.rounded(x), apart)
        sums = Moments(second=_products_with_one(rows), exact=exact.sum(dim=2))
        if cut:
            sums.crossed = exact @ rows.transpose(1, 2)
        found[name] = sums + found[name] if name in found else sums

    return noted


def met_inputs(layer: nn.Module, x: Tensor, apart: int = 1) -> Tensor:
    """What the weights of an output meet at some places of x (1, C, H, W): (groups, K, places).

    Args:
        layer: That takes x.
        x: Its input.
        apart: How many px lie between two places at least, along each axis.
    """
    # An odd step meets all places of a shuffle.
    step = max(int((x.shape[2] * x.shape[3] / ROWS) ** 0.5), apart) | 1
    side = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    met = F.unfold(x, side, padding=side // 2, stride=step)  # (1, groups * K, places)
    return met.reshape(groups, -1, met.shape[2])


def _products_with_one(met: Tensor) -> Tensor:
    """Sums of products of (groups, K, places) and of 1 beside them, (groups, K + 1, K + 1)."""
    sums = met.sum(dim=2, keepdim=True)
    count = torch.full_like(sums[:, :1], met.shape[2])
    products = torch.cat([met @ met.transpose(1, 2), sums], dim=2)
    return torch.cat([products, torch.cat([sums.transpose(1, 2), count], dim=2)], dim=1)


def rounded_rows(weight: Tensor, covariance: Tensor, beside: Tensor | None = None) -> Tensor:
    """Weights on the int8 grid of each row whose errors cancel as far as they can.

    Of several ranges each row has that in which its output changes least, and is rounded to the
    nearest values where nothing is better.

    Args:
        weight: (groups, rows, K).
        covariance: (groups, K, K), of what the weights meet.
        beside: (K), where weights are paired: see `weights.neighbours`.
    """
    longest = _steps(weight, beside)
    steps = torch.cat([longest * share for share in SHARES], dim=1)
    tried = _compensated(weight.repeat(1, len(SHARES), 1), steps, covariance, beside)
    found = _nearest(weight, longest, beside)
    least = _output_error(found - weight, covariance)
    for candidate, step in zip(
        tried.chunk(len(SHARES), dim=1), steps.chunk(len(SHARES), dim=1), strict=True
    ):
        error = _output_error(candidate - weight, covariance)
        whole = (_steps(candidate, beside) / step - 1).abs()[:, :, 0] < 0.5 / PAIR_LIMIT
        better = whole & (error < least)
        found = torch.where(better[:, :, None], candidate, found)
        least = torch.where(better, error, least)
    return found


def _steps(weight: Tensor, beside: Tensor | None) -> Tensor:
    return row_steps(weight.flatten(0, 1), beside).reshape(*weight.shape[:2], 1)


def _nearest(weight: Tensor, steps: Tensor, beside: Tensor | None) -> Tensor:
    integers = settled(limited((weight / steps).flatten(0, 1), beside), beside)
    return integers.reshape(weight.shape) * steps


def _output_error(error: Tensor, covariance: Tensor) -> Tensor:
    return ((error @ covariance) * error).sum(dim=2)


def _compensated(
    weight: Tensor, steps: Tensor, covariance: Tensor, beside: Tensor | None
) -> Tensor:
    """Round column after column, and move what is left by what each error asks for."""
    order, factor = _order_and_factor(covariance)
    columns = order[:, None].expand_as(weight)
    left, rounded = weight.gather(2, columns), torch.empty_like(weight)
    partners = _partners(order[0], beside)  # layers whose weights are paired are of one group
    limits = torch.full_like(steps, WEIGHT_LIMIT)
    for block in _blocks(weight.shape[2]):
        errors: list[Tensor] = []
        with in_one_thread():
            for column in range(block.start, block.stop):
                value = left[:, :, column : column + 1]
                low, high = -limits, limits
                if partners[column] < column:
                    partner = (rounded[:, :, partners[column], None] / steps).round()
                    low = torch.maximum(low, -PAIR_LIMIT - partner.clamp(max=0))
                    high = torch.minimum(high, PAIR_LIMIT - partner.clamp(min=0))
                nearest = (value / steps).round().clamp(low, high) * steps
                rounded[:, :, column : column + 1] = nearest
                errors.append((value - nearest) / factor[:, column, column][:, None, None])
                later = factor[:, column : column + 1, column : block.stop]
                left[:, :, column : block.stop] -= errors[-1] * later
        left[:, :, block.stop :] -= torch.cat(errors, dim=2) @ factor[:, block, block.stop :]
    return torch.empty_like(weight).scatter(2, columns, rounded)


def _partners(order: Tensor, beside: Tensor | None) -> list[int]:
    """By column in this order: where its neighbour stands in it, or it itself."""
    if beside is None:
        return list(range(len(order)))
    return cast("list[int]", order.argsort()[beside[order]].tolist())


def _blocks(columns: int) -> Iterator[slice]:
    for start in range(0, columns, BLOCK):
        yield slice(start, min(start + BLOCK, columns))


def _order_and_factor(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Columns from the largest variance on, and the Cholesky factor (upper) of the inverse."""
    variances = covariance.diagonal(dim1=1, dim2=2).double()
    order = variances.argsort(dim=1, descending=True, stable=True)
    sorted_rows = covariance.double().gather(1, order[:, :, None].expand_as(covariance))
    damped = sorted_rows.gather(2, order[:, None].expand_as(covariance))
    damping = DAMPING * variances.mean(dim=1).clamp(min=1e-20)
    damped = damped + damping[:, None, None] * torch.eye(damped.shape[1], dtype=torch.float64)
    cholesky = cast("Callable[..., Tensor]", torch.linalg.cholesky)
    inverse = torch.cholesky_inverse(cholesky(damped))
    return order, cholesky(inverse, upper=True).float()
