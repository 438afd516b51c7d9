"""How much accuracy each coupled group costs when it alone is cut."""

from dataclasses import dataclass

from kdprune.prune.channels.choice import nearest_level
from kdprune.prune.channels.plan import rank_groups
from kdprune.prune.channels.surgery import rebuild
from kdprune.prune.recalibrate import recalibrate_batch_norm


@dataclass(frozen=True)
class GroupSensitivity:
    """What a model scores when one of its groups is cut.

    Attributes:
        name: The first layer whose filters make the channels.
        layers: All layers whose filters make them.
        before: Filters of the first layer that belong to the group.
        scores: `{ratio: (channels left, score)}`.
    """

    name: str
    layers: tuple
    before: int
    scores: dict


def channel_sensitivity(
    model,
    score,
    ratios=(0.25, 0.5, 0.75),
    importance="l2",
    round_to=8,
    ignore=(),
    data=None,
):
    """Measures a model with each of its coupled groups cut, one at a time.

    Args:
        model: A built Functional or Sequential model; left as it is.
        score: `score(model)`, such as its validation accuracy.
        ratios: The shares of channels to remove, to the nearest rounded width.
        importance: Which channels go, as for `plan_channels`.
        round_to: As for `plan_channels`.
        ignore: As for `plan_channels`.
        data: For the importance; batch normalization is recalibrated on it after
            each cut, without which the scores say little.

    Returns:
        A list of `GroupSensitivity`, in the order of the layers. A width that two
        ratios round to is measured once.

    Raises:
        ValueError: As `plan_channels` does.
    """
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise ValueError(
            f"ratios are shares of channels, between 0 and 1. Received: {ratios}"
        )
    graph, groups, rankings = rank_groups(model, importance, round_to, ignore, data)
    whole = score(model)

    def measure(group, ranking, kept):
        removed = group.roots[ranking.order[: len(ranking.order) - kept]]
        smaller = rebuild(graph, removed)
        if data is not None:
            recalibrate_batch_norm(smaller, data)
        return score(smaller)

    found = []
    for group, ranking in zip(groups, rankings, strict=True):
        measured, scores = {len(ranking.order): whole}, {}
        for ratio in ratios:
            kept = nearest_level(ranking, ranking.channels * (1 - ratio))
            if kept not in measured:
                measured[kept] = measure(group, ranking, kept)
            scores[ratio] = (kept * ranking.width, measured[kept])
        found.append(
            GroupSensitivity(group.name, group.layers, ranking.channels, scores)
        )
    return found
