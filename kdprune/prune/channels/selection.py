"""Selecting which channels go: rankings, rounding, targets and costs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune.models.counts import count_parameters, kernels, layer_macs
from kdprune.prune.channels.graph import ChannelGraph, Ids
from kdprune.prune.channels.groups import (
    Group,
    find_channels,
    find_groups,
    kept_layers,
)
from kdprune.prune.channels.importance import (
    ChannelStatistics,
    Importance,
    find_importance,
)
from kdprune.prune.channels.surgery import KeptChannels, remove_channels

# What keeping so many channels of each group costs.
Cost = Callable[[list[int]], float]
# `(group, channels left)` of removals, in the order in which they are made.
Removals = list[tuple[int, int]]

KINDS = ("ratio", "macs", "parameters", "bytes", "threshold")


@dataclass(frozen=True)
class Target:
    """How much to remove.

    Attributes:
        kind: One of `KINDS`.
        value: The share of channels to remove, the most that may be left of a
            cost, or the score below which channels go.
        start: What the cost (for a ratio: the channels of each group) was before
            the first of several steps.
        share: How much of the way to go, in (0, 1], geometrically.
    """

    kind: str
    value: float
    start: Any = None
    share: float = 1.0

    def initialized(self, start: Any) -> Target:
        """The target with what the cost was at first, unless it is known already."""
        return self if self.start is not None else replace(self, start=start)

    @property
    def kept_share(self) -> float:
        """The share of the channels that a ratio leaves at this point."""
        return (1 - self.value) ** self.share

    @property
    def limit(self) -> float:
        """The most of the cost that may be left at this point."""
        if self.kind == "ratio":
            return sum(self.start) * self.kept_share
        if self.value >= self.start:
            return self.value
        return self.start * (self.value / self.start) ** self.share


def parse_target(**given: float | None) -> Target:
    """Makes a `Target` of the arguments of a call, one of which must be given.

    Raises:
        ValueError: If there is none, or more than one, or it is out of range.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(sorted(given))}. "
            f"Received: {', '.join(chosen) or 'none'}"
        )
    ((name, value),) = chosen.items()
    if name == "ratio" and not 0 < value < 1:
        raise ValueError(
            "ratio is the share of channels to remove, between 0 and 1. "
            f"Received: {value}"
        )
    if name != "ratio" and not value > 0:
        raise ValueError(f"{name} must be positive. Received: {value}")
    return Target(name.removeprefix("target_"), value)


# --- Rankings ---


def rank_groups(
    model: keras.Model,
    importance: str | Importance,
    round_to: int,
    ignore: str | Iterable[str],
    data: Any,
) -> tuple[ChannelGraph, list[Group], list[Ranking]]:
    """Finds a model's coupled groups and sorts the channels of each.

    Returns:
        The channels, the coupled groups and a ranking for each.

    Raises:
        ValueError: As `plan_channels` does.
    """
    check_round_to(round_to)
    function = find_importance(importance)
    graph = find_channels(model, ignore)
    groups = find_groups(graph)
    if not groups:
        reasons = "; ".join(
            f"{name}: {why}" for name, why in kept_layers(graph).items()
        )
        raise ValueError(f"no channels of this model can be removed: {reasons}")
    statistics = ChannelStatistics(graph, data)
    rankings = [rank(g, function(g, statistics), round_to) for g in groups]
    return graph, groups, rankings


def check_round_to(round_to: int) -> None:
    """Raises a `ValueError` unless it is a whole number, at least 1."""
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(
            "round_to is a whole number of channels, 1 for no rounding. "
            f"Received: {round_to!r}"
        )


def levels(width: int, step: int) -> list[int]:
    """The numbers of channels a group may be left with, the largest first.

    Multiples of `step`, so never none at all.
    """
    return list(range((width - 1) // step * step, 0, -step))


@dataclass(frozen=True)
class Ranking:
    """The channels of a group, the least important first.

    Attributes:
        order: Positions of the channels in the group.
        scores: Their scores, ascending; infinite for those that must stay.
        levels: As `levels` returns them.
        width: How many filters one channel of the group stands for.
    """

    order: np.ndarray
    scores: np.ndarray
    levels: list[int]
    width: int = 1

    @property
    def channels(self) -> int:
        """The filters of the group's first layer."""
        return len(self.order) * self.width

    def chunks(self, scope: str) -> Iterator[tuple[float, int]]:
        """`(key, kept)` of each removal down to the next level.

        The key is the mean score of the channels removed, or, for the local
        scope, the share of the group that is then gone.
        """
        kept = len(self.scores)
        for level in self.levels:
            scores = self.scores[len(self.scores) - kept : len(self.scores) - level]
            if not np.isfinite(scores).all():
                return
            gone = 1 - level / len(self.scores)
            yield (float(scores.mean()) if scope == "global" else gone), level
            kept = level


def rank(group: Group, scores: Any, round_to: int) -> Ranking:
    """Sorts the channels of a group by score.

    Raises:
        ValueError: If there is not one number for each channel.
    """
    scores = np.asarray(scores, np.float64)
    if scores.shape != group.roots.shape or np.isnan(scores).any():
        raise ValueError(
            f"importance must give {len(group.roots)} numbers for group "
            f"{group.name!r}. Received: shape {scores.shape}"
            + (" with NaN" if np.isnan(scores).any() else "")
        )
    order = np.argsort(scores, kind="stable")
    allowed = levels(len(order), group.step(round_to))
    return Ranking(order, scores[order], allowed, group.width)


# --- Selection ---


def select(
    rankings: Sequence[Ranking],
    target: Target,
    scope: str,
    cost: Cost | None,
    removals: Removals | None = None,
) -> list[int]:
    """Selects how many channels each group keeps.

    Every removal of a group's next channels, down to its next rounded width, is
    one step; the steps are sorted (least important first, or evenly across groups
    for the local scope) and as few are taken as meet the target.

    Args:
        rankings: A `Ranking` for each group.
        target: A `Target` that is initialized.
        scope: `"global"` or `"local"`.
        cost: `cost(kept)` for a list of numbers of channels, in the unit of the
            target; unused for a threshold and for a local ratio.
        removals: `(group, channels left)` of the steps, in place of those sorted by
            importance.

    Returns:
        A list with the number of channels that each group keeps.

    Raises:
        ValueError: If the target cannot be met; the message tells what can.
    """
    if target.kind == "threshold":
        return [_above(ranking, target.value) for ranking in rankings]
    if target.kind == "ratio" and scope == "local":
        return _evenly(rankings, target)
    if removals is None:
        removals = _by_importance(rankings, scope)

    def kept_after(count):
        kept = [len(ranking.order) for ranking in rankings]
        for group, level in removals[:count]:
            kept[group] = level
        return kept

    assert cost is not None  # Only the two kinds above come without.
    few, enough = 0, len(removals)
    least = cost(kept_after(enough))
    if least > target.limit:
        raise ValueError(_unreachable(target, least))
    while few < enough:
        middle = (few + enough) // 2
        if cost(kept_after(middle)) <= target.limit:
            enough = middle
        else:
            few = middle + 1
    return kept_after(enough)


def _evenly(rankings, target):
    """The share of each group that a local ratio leaves, to the nearest level."""
    kept = [
        nearest_level(ranking, channels * target.kept_share)
        for ranking, channels in zip(rankings, target.start, strict=True)
    ]
    if target.share == 1 and all(
        left * ranking.width == channels
        for left, ranking, channels in zip(kept, rankings, target.start, strict=True)
    ):
        raise ValueError(
            f"ratio {target.value} removes nothing from any group with this rounding "
            "and what may be removed; a larger ratio or a smaller round_to would"
        )
    return kept


def _by_importance(rankings, scope):
    ordered = sorted(
        (key, group, -kept)
        for group, ranking in enumerate(rankings)
        for key, kept in ranking.chunks(scope)
    )
    return [(group, -level) for _, group, level in ordered]


def _above(ranking, threshold):
    """The smallest level that keeps every channel whose score is high enough."""
    wanted = int((ranking.scores >= threshold).sum())
    return min(
        (level for level in ranking.levels if level >= wanted),
        default=len(ranking.order),
    )


def nearest_level(ranking: Ranking, wanted: float) -> int:
    """The level nearest to `wanted` filters, the larger of two."""
    reachable = [len(ranking.order), *(kept for _, kept in ranking.chunks("local"))]

    def distance(level):
        return abs(level * ranking.width - wanted), -level

    return min(reachable, key=distance)


def _unreachable(target, least):
    if target.kind == "ratio":
        reachable = math.floor(1000 * (1 - least / sum(target.start))) / 1000
        return (
            f"ratio {target.value} cannot be reached with this rounding and what may "
            f"be removed; the most is {reachable}"
        )
    return (
        f"target_{target.kind} {target.value:,} cannot be reached with this rounding "
        f"and what may be removed; the least is {least:,}"
    )


# --- Costs ---


class Costs:
    """Predicts the costs of a model once channels are removed.

    Args:
        graph: The channels of the model.
        measure_bytes: `measure_bytes(model)`, the size of its converted file.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        measure_bytes: Callable[[keras.Model], int] | None = None,
    ) -> None:
        self.graph = graph
        self.measure_bytes = measure_bytes

    @cached_property
    def _parameters(self):
        return count_parameters(self.graph.model)

    @cached_property
    def _macs(self):
        return layer_macs(self.graph.model)

    def parameters(self, removed: Sequence[int] | Ids = ()) -> int:
        """The number that `count_parameters` will give."""
        kept = KeptChannels(self.graph, removed)
        saved = (
            math.prod(w.variable.shape) - math.prod(kept.shape(w))
            for w in self.graph.weights()
        )
        return self._parameters - sum(saved)

    def macs(self, removed: Sequence[int] | Ids = ()) -> int:
        """The number that `count_macs` will give.

        Raises:
            ValueError: If the model's multiplications cannot be counted.
        """
        kept = KeptChannels(self.graph, removed)
        saved = 0
        for record in self.graph.records.values():
            multiplied = {id(kernel) for kernel in kernels(record.layer)}
            weights = [w for w in record.result.weights if id(w.variable) in multiplied]
            if weights:
                before = sum(math.prod(w.variable.shape) for w in weights)
                after = sum(math.prod(kept.shape(w)) for w in weights)
                saved += self._macs[record.path] // before * (before - after)
        return sum(self._macs.values()) - saved

    def bytes(self, removed: Sequence[int] | Ids = ()) -> int:
        """The size of the smaller model's file, really converted."""
        if self.measure_bytes is None:
            raise ValueError(
                "target_bytes is checked by converting: give measure_bytes, e.g. "
                "lambda m: len(kdprune.convert_tflite(m, 'int8', images)). "
                "Received: None"
            )
        return self.measure_bytes(remove_channels(self.graph, removed))


class CostAwareOrder:
    """Orders removals by what they lose for each unit of cost that they save.

    What is lost is the sum of the scores of the channels that go. In early layers a
    channel saves many multiplications, in late ones many parameters, which scores
    alone do not see. Reference for ranking by cost: Molchanov et al., 2017,
    https://arxiv.org/abs/1611.06440, section 2.2 (FLOPs regularized pruning), who
    subtract the cost where this divides by it.

    Args:
        rankings: A `Ranking` for each group.
    """

    def __init__(self, rankings: Sequence[Ranking]) -> None:
        self._rankings = rankings

    def removals(self, cost: Cost) -> Removals:
        """Lists `(group, channels left)` of all removals, the cheapest first.

        The cheapest loses least for each unit of cost that it saves. A saving shrinks
        as its neighbours do: no removal gets cheaper by waiting, so that only the
        first in line needs to be computed again.

        Args:
            cost: `cost(kept)` for a list of numbers of channels, one for each group.
        """
        kept = [len(ranking.order) for ranking in self._rankings]
        levels = [self._levels(group) for group in range(len(kept))]

        def cheapest(group: int) -> list[tuple[float, float, int, int]]:
            deeper = [level for level in levels[group] if level < kept[group]]
            found = []
            for level in self._worth_trying(group, deeper):
                saved = cost(kept) - cost([*kept[:group], level, *kept[group + 1 :]])
                lost = self._lost(group, kept[group], level)
                price = lost / saved if saved > 0 else math.inf
                found.append((price, -saved, group, level))
            return [min(found)] if found else []

        waiting = [one for group in range(len(kept)) for one in cheapest(group)]
        heapq.heapify(waiting)
        found = []
        while waiting:
            group = heapq.heappop(waiting)[2]
            (now,) = cheapest(group)
            if waiting and now > waiting[0]:
                heapq.heappush(waiting, now)
                continue
            level = now[3]
            found += [(group, n) for n in levels[group] if level <= n < kept[group]]
            kept[group] = level
            for one in cheapest(group):
                heapq.heappush(waiting, one)
        return found

    def _levels(self, group: int) -> list[int]:
        return [level for _, level in self._rankings[group].chunks("local")]

    def _worth_trying(self, group: int, deeper: list[int]) -> Collection[int]:
        """The next level: those after it lose more for each channel."""
        return deeper[:1]

    def _lost(self, group: int, before: int, after: int) -> float:
        scores = self._rankings[group].scores
        return float(scores[len(scores) - before : len(scores) - after].sum())
