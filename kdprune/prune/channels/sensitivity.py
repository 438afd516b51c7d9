"""Per-group sensitivity: what a model scores when each coupled group alone is pruned.

The table is for heat maps, and for planning: it compares groups with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pydantic
import tf_keras as keras

from kdprune.prune.channels.groups import Group
from kdprune.prune.channels.importance import Importance
from kdprune.prune.channels.selection import (
    CostAwareOrder,
    Ranking,
    nearest_level,
    rank_groups,
)
from kdprune.prune.channels.surgery import remove_channels
from kdprune.prune.recalibrate import recalibrate_after


def sensitivity(
    model: keras.Model,
    ratios: Iterable[float],
    score: Callable[[keras.Model], float],
    *,
    importance: str | Importance = "l2",
    round_to: int = 8,
    ignore: str | Iterable[str] = (),
    data: Any = None,
) -> Sensitivity:
    """Measures a model with each coupled group of channels pruned, one at a time.

    Groups times ratios models are built and scored; a width that two ratios round
    to is measured once. With `data` given, batch normalization is recalibrated
    after each removal, without which the scores say little.

    Reference: Li et al., 2017, https://arxiv.org/abs/1608.08710, section 3.2.

    Args:
        model: A built Functional or Sequential model; left as it is.
        ratios: Shares of channels to remove, each in (0, 1), to the nearest
            rounded width.
        score: `score(model)` returns a number, the higher the better, such as the
            accuracy on validation images.
        importance: Which channels go, as for `plan_channels`.
        round_to: As for `plan_channels`.
        ignore: As for `plan_channels`.
        data: For the importance, as for `plan_channels`, and for recalibration.

    Returns:
        A `Sensitivity`; printed, it is a table, and `plan_channels` and
        `prune_channels` take it to compare groups with each other.

    Raises:
        ValueError: As `plan_channels` does.
    """
    ratios = tuple(sorted(set(ratios)))
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise ValueError(
            f"ratios are shares of channels, between 0 and 1. Received: {ratios}"
        )
    graph, groups, rankings = rank_groups(model, importance, round_to, ignore, data)
    whole = score(model)

    def measure(group, ranking, kept):
        removed = group.roots[ranking.order[: len(ranking.order) - kept]]
        smaller = remove_channels(graph, removed)
        if data is not None:
            recalibrate_after(model, smaller, data)
        return score(smaller)

    rows = []
    for group, ranking in zip(groups, rankings, strict=True):
        measured = {len(ranking.order): whole}
        scores = {}
        for ratio in ratios:
            kept = nearest_level(ranking, ranking.channels * (1 - ratio))
            if kept not in measured:
                measured[kept] = measure(group, ranking, kept)
            scores[ratio] = (kept * ranking.width, measured[kept])
        rows.append(
            GroupSensitivity(group.name, group.layers, ranking.channels, scores)
        )
    return Sensitivity(ratios, whole, tuple(rows))


@dataclass(frozen=True)
class GroupSensitivity:
    """What a model scores without some channels of one group.

    Attributes:
        name: The first layer whose filters make the channels.
        layers: All layers whose filters make them.
        before: Filters of the first layer that belong to the group.
        scores: `{ratio: (channels left, score)}`.
    """

    name: str
    layers: tuple[str, ...]
    before: int
    scores: dict[float, tuple[int, float]]


@dataclass(frozen=True)
class Sensitivity:
    """Scores of a model with one coupled group pruned at a time.

    Attributes:
        ratios: The shares of channels removed, ascending: the columns.
        whole: The score of the model as it is.
        groups: A `GroupSensitivity` for each row, in the order of the layers.
    """

    ratios: tuple[float, ...]
    whole: float
    groups: tuple[GroupSensitivity, ...]

    def as_dict(self) -> dict[str, Any]:
        """What a heat map is drawn from, in plain values that go into JSON.

        `scores[row][column]` is the score, `left[row][column]` how many channels of
        the group were left; rounding may make neighbours the same.
        """
        return {
            "ratios": list(self.ratios),
            "whole": self.whole,
            "groups": [group.name for group in self.groups],
            "layers": [list(group.layers) for group in self.groups],
            "channels": [group.before for group in self.groups],
            "left": [[g.scores[r][0] for r in self.ratios] for g in self.groups],
            "scores": [[g.scores[r][1] for r in self.ratios] for g in self.groups],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Sensitivity:
        """The table that `as_dict` has written.

        Raises:
            ValueError: If it is another.
        """
        try:
            table = _Table.model_validate(content)
            ratios = tuple(table.ratios)
            columns = table.groups, table.layers, table.channels
            rows = zip(*columns, table.left, table.scores, strict=True)
            groups = [
                GroupSensitivity(
                    name,
                    tuple(layers),
                    before,
                    dict(zip(ratios, zip(left, scores, strict=True), strict=True)),
                )
                for name, layers, before, left, scores in rows
            ]
        except ValueError as error:
            raise ValueError(
                "expected a table as Sensitivity.as_dict gives it: ratios, whole, and "
                "a row of groups, layers, channels, left and scores for each group. "
                f"Received: {', '.join(map(str, content)) or 'none'}"
            ) from error
        return cls(ratios, table.whole, tuple(groups))

    def fragile(self, drop: float) -> tuple[str, ...]:
        """Names the groups that lose more than `drop` at the smallest ratio.

        They are what `plan_channels(..., ignore=...)` should keep.
        """
        first = self.ratios[0]
        return tuple(
            group.name
            for group in self.groups
            if self.whole - group.scores[first][1] > drop
        )

    def __str__(self) -> str:
        names = [f"{group.name} ({group.before})" for group in self.groups]
        width = max(map(len, [*names, "removed"]))
        head = [f"{ratio:>8.0%}" for ratio in self.ratios]
        rows = [
            "".join(f"{group.scores[r][1]:>8.4f}" for r in self.ratios)
            for group in self.groups
        ]
        return "\n".join(
            [
                f"{'removed':<{width}}{''.join(head)}",
                *(f"{n:<{width}}{row}" for n, row in zip(names, rows, strict=True)),
                f"the whole model: {self.whole:.4f}",
            ]
        )


class _Table(pydantic.BaseModel, strict=True, allow_inf_nan=False):
    """A `Sensitivity` as JSON has it."""

    ratios: list[Annotated[float, pydantic.Field(gt=0, lt=1)]]
    whole: float
    groups: list[str]
    layers: list[list[str]]
    channels: list[int]
    left: list[list[int]]
    scores: list[list[float]]


class SensitivityOrder(CostAwareOrder):
    """As `CostAwareOrder`, by what removals were measured to lose.

    What is lost is taken to be linear between the widths that were measured, never
    to fall with more channels removed, and to add up over the groups. No group is
    pruned further than the narrowest width that was measured.

    Reference: Li et al., 2017, https://arxiv.org/abs/1608.08710, sections 3.1 and
    3.2: importance ranks the channels within a layer, the layers' sensitivities say
    how many of them go. A ratio for each layer under one budget is the idea of He et
    al., 2018, https://arxiv.org/abs/1802.03494, who search for them by trial; here
    they are chosen greedily.

    Args:
        table: A `Sensitivity`.
        groups: The `Group`s of the model.
        rankings: A `Ranking` for each.
        pruned: Whether the model has been pruned since it was measured.

    Raises:
        ValueError: If the table is not that of this model.
    """

    def __init__(
        self,
        table: Sensitivity,
        groups: Sequence[Group],
        rankings: Sequence[Ranking],
        pruned: bool = False,
    ) -> None:
        if not isinstance(table, Sensitivity):
            raise ValueError(
                "sensitivity expects what kdprune.prune.sensitivity returns. Received: "
                f"{type(table).__name__}"
            )
        rows = {row.name: row for row in table.groups}
        for group, ranking in zip(groups, rankings, strict=True):
            _check_row(rows.get(group.name), group, ranking.channels, pruned)
        super().__init__(rankings)
        self._curves = [_curve(rows[group.name], table.whole) for group in groups]

    def drop(self, kept: Sequence[int]) -> float:
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


def _check_row(row, group, channels, pruned):
    if row is None:
        received = "no such row"
    elif tuple(row.layers) != group.layers:
        received = f"a row of {', '.join(row.layers)}"
    elif row.before < channels or (row.before > channels and not pruned):
        received = f"a row of {row.before} channels"
    else:
        return
    raise ValueError(
        "sensitivity expects a table of this model, with a row for "
        f"{channels} channels of {', '.join(group.layers)}. Received: {received}; "
        "measure this model, with the same layers ignored"
    )
