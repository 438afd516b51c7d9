"""Choosing which channels go: scores, rounding and a target, for any cost."""

import math
from dataclasses import dataclass, replace

import numpy as np

KINDS = ("ratio", "macs", "parameters", "bytes", "threshold")


@dataclass(frozen=True)
class Target:
    """How far to cut.

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
    start: object = None
    share: float = 1.0

    def begun(self, start):
        return self if self.start is not None else replace(self, start=start)

    @property
    def kept_share(self):
        """The share of the channels that a ratio leaves at this point."""
        return (1 - self.value) ** self.share

    @property
    def limit(self):
        """The most of the cost that may be left at this point."""
        if self.kind == "ratio":
            return sum(self.start) * self.kept_share
        if self.value >= self.start:
            return self.value
        return self.start * (self.value / self.start) ** self.share


def one_target(ratio, targets):
    """Makes a `Target` of the arguments of a call.

    Raises:
        ValueError: If there is none, or more than one, or it is out of range.
        TypeError: If there is no such argument.
    """
    known = {f"target_{kind}": kind for kind in ("macs", "parameters", "bytes")}
    known |= {"ratio": "ratio", "threshold": "threshold"}
    for name in targets:
        if name not in known:
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    given = {n: v for n, v in {"ratio": ratio, **targets}.items() if v is not None}
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(sorted(known))}. "
            f"Received: {', '.join(given) or 'none'}"
        )
    ((name, value),) = given.items()
    if name == "ratio" and not 0 < value < 1:
        raise ValueError(
            "ratio is the share of channels to remove, between 0 and 1. "
            f"Received: {value}"
        )
    if name != "ratio" and not value > 0:
        raise ValueError(f"{name} must be positive. Received: {value}")
    return Target(known[name], value)


def check_round_to(round_to):
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise ValueError(
            "round_to is a whole number of channels, 1 for no rounding. "
            f"Received: {round_to!r}"
        )


def levels(width, step):
    """The numbers of channels a group may be cut to, the largest first.

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
    levels: list
    width: int = 1

    @property
    def channels(self):
        """The filters of the group's first layer."""
        return len(self.order) * self.width

    def chunks(self, scope):
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


def rank(group, scores, round_to):
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


def choose(rankings, target, scope, cost, removals=None):
    """Chooses how many channels each group keeps.

    Every removal of a group's next channels, down to its next rounded width, is
    one step; the steps are sorted (least important first, or evenly across groups
    for the local scope) and as few are taken as meet the target.

    Args:
        rankings: A `Ranking` for each group.
        target: A `Target` that has begun.
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
            "and what may be cut; a larger ratio or a smaller round_to would"
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


def nearest_level(ranking, wanted):
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
            f"be cut; the most is {reachable}"
        )
    return (
        f"target_{target.kind} {target.value:,} cannot be reached with this rounding "
        f"and what may be cut; the least is {least:,}"
    )
