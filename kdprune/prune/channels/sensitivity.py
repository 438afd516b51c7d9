"""Measuring how much each coupled group costs when it alone is cut."""

from kdprune.prune.channels.choice import nearest_level
from kdprune.prune.channels.plan import rank_groups
from kdprune.prune.channels.surgery import remove_channels
from kdprune.prune.channels.table import GroupSensitivity, Sensitivity
from kdprune.prune.recalibrate import recalibrate_batch_norm


def sensitivity(
    model, ratios, score, *, importance="l2", round_to=8, ignore=(), data=None
):
    """Measures a model with each coupled group of channels cut, one at a time.

    Groups times ratios models are built and scored; a width that two ratios round
    to is measured once. With `data` given, batch normalization is recalibrated
    after each cut, without which the scores say little.

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
        `prune_channels` take it to weigh groups against each other.

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
            recalibrate_batch_norm(smaller, data)
        return score(smaller)

    rows = []
    for group, ranking in zip(groups, rankings, strict=True):
        measured, scores = {len(ranking.order): whole}, {}
        for ratio in ratios:
            kept = nearest_level(ranking, ranking.channels * (1 - ratio))
            if kept not in measured:
                measured[kept] = measure(group, ranking, kept)
            scores[ratio] = (kept * ranking.width, measured[kept])
        rows.append(
            GroupSensitivity(group.name, group.layers, ranking.channels, scores)
        )
    return Sensitivity(ratios, whole, tuple(rows))
