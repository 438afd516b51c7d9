"""Weighing groups against each other by what cutting each costs and saves."""

import heapq
import math

import numpy as np

from kdprune.prune.channels.table import Sensitivity


class Weighing:
    """What cutting each group loses, for each unit of cost that it saves.

    What is lost is the sum of the scores of the channels that go. In early layers a
    channel saves many multiplications, in late ones many parameters, which scores
    alone do not see. Reference for weighing by cost: Molchanov et al., 2017,
    https://arxiv.org/abs/1611.06440, section 2.2 (FLOPs regularized pruning), who
    subtract the cost where this divides by it.

    Args:
        rankings: A `Ranking` for each group.
    """

    def __init__(self, rankings):
        self._rankings = rankings

    def removals(self, cost):
        """Lists `(group, channels left)` of all removals, the cheapest first.

        The cheapest loses least for each unit of cost that it saves. A saving shrinks
        as its neighbours do: no removal gets cheaper by waiting, so that only the
        first in line needs to be weighed anew.

        Args:
            cost: `cost(kept)` for a list of numbers of channels, one for each group.
        """
        kept = [len(ranking.order) for ranking in self._rankings]
        levels = [self._levels(group) for group in range(len(kept))]

        def cheapest(group):
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

    def _levels(self, group):
        return [level for _, level in self._rankings[group].chunks("local")]

    def _worth_trying(self, group, deeper):
        """The next level: those after it lose more for each channel."""
        return deeper[:1]

    def _lost(self, group, before, after):
        scores = self._rankings[group].scores
        return float(scores[len(scores) - before : len(scores) - after].sum())


class MeasuredWeighing(Weighing):
    """As `Weighing`, by what cutting each group was measured to lose.

    What is lost is taken to be linear between the widths that were measured, never
    to fall with more channels removed, and to add up over the groups. No group is cut
    further than the narrowest width that was measured.

    Reference: Li et al., 2017, https://arxiv.org/abs/1608.08710, sections 3.1 and
    3.2: importance ranks the channels within a layer, the layers' sensitivities say
    how many of them go. A ratio for each layer under one budget is the idea of He et
    al., 2018, https://arxiv.org/abs/1802.03494, who search for them by trial; here
    they are chosen greedily.

    Args:
        table: A `Sensitivity`.
        groups: The `Group`s of the model.
        rankings: A `Ranking` for each.
        begun: Whether the model has been cut since it was measured.

    Raises:
        ValueError: If the table is not that of this model.
    """

    def __init__(self, table, groups, rankings, begun=False):
        if not isinstance(table, Sensitivity):
            raise ValueError(
                "sensitivity expects what kdprune.prune.sensitivity returns. Received: "
                f"{type(table).__name__}"
            )
        rows = {row.name: row for row in table.groups}
        for group, ranking in zip(groups, rankings, strict=True):
            _check_row(rows.get(group.name), group, ranking.channels, begun)
        super().__init__(rankings)
        self._curves = [_curve(rows[group.name], table.whole) for group in groups]

    def drop(self, kept):
        """The score expected to be lost by keeping so many channels of each group."""
        return sum(
            self._lost(group, len(ranking.order), left)
            for group, (ranking, left) in enumerate(
                zip(self._rankings, kept, strict=True)
            )
        )

    def _levels(self, group):
        width, (widths, _) = self._rankings[group].width, self._curves[group]
        return [n for n in super()._levels(group) if n * width >= widths[0]]

    def _worth_trying(self, group, deeper):
        """The next level, and those where what is lost takes another turn."""
        width, (widths, _) = self._rankings[group].width, self._curves[group]
        turns = ([n for n in deeper if n * width >= turn] for turn in widths)
        return {*deeper[:1], *(found[-1] for found in turns if found)}

    def _lost(self, group, before, after):
        width, curve = self._rankings[group].width, self._curves[group]
        first, then = np.interp([before * width, after * width], *curve)
        return float(then - first)


def _curve(row, whole):
    """`(widths, score lost)`, both arrays, by ascending widths."""
    lost = {row.before: 0.0}
    for left, score in row.scores.values():
        if left < row.before:
            lost[left] = max(whole - score, 0.0)
    widths = sorted(lost)
    falling = np.maximum.accumulate([lost[width] for width in widths[::-1]])
    return np.asarray(widths), falling[::-1]


def _check_row(row, group, channels, begun):
    if row is None:
        received = "no such row"
    elif tuple(row.layers) != group.layers:
        received = f"a row of {', '.join(row.layers)}"
    elif row.before < channels or (row.before > channels and not begun):
        received = f"a row of {row.before} channels"
    else:
        return
    raise ValueError(
        "sensitivity expects a table of this model, with a row for "
        f"{channels} channels of {', '.join(group.layers)}. Received: {received}; "
        "measure this model, with the same layers ignored"
    )
