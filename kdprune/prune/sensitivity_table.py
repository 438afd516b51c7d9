"""A table of what each part of a model can spare, for heat maps and for planning."""

from dataclasses import dataclass

from kdprune.prune.channels.sensitivity import channel_sensitivity


@dataclass(frozen=True)
class Sensitivity:
    """Scores of a model with one coupled group cut at a time.

    Attributes:
        ratios: The shares of channels removed, ascending: the columns.
        whole: The score of the model as it is.
        groups: A `GroupSensitivity` for each row, in the order of the layers.
    """

    ratios: tuple
    whole: float
    groups: tuple

    def as_dict(self):
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

    def fragile(self, drop):
        """Names the groups that lose more than `drop` at the smallest ratio.

        They are what `plan_channels(..., ignore=...)` should keep.
        """
        first = self.ratios[0]
        return tuple(
            group.name
            for group in self.groups
            if self.whole - group.scores[first][1] > drop
        )

    def __str__(self):
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


def sensitivity(model, ratios, score, **settings):
    """Measures a model with each coupled group of channels cut, one at a time.

    With `data` given, batch normalization is recalibrated after each cut, without
    which the scores say little. Groups times ratios models are built and scored.

    Reference: Li et al., 2017, https://arxiv.org/abs/1608.08710, section 3.2.

    Args:
        model: A built Functional or Sequential model; left as it is.
        ratios: Shares of channels to remove, each in (0, 1).
        score: `score(model)` returns a number, the higher the better, such as the
            accuracy on validation images.
        **settings: `importance`, `round_to`, `ignore` and `data`, as for
            `plan_channels`.

    Returns:
        A `Sensitivity`; printed, it is a table.

    Raises:
        ValueError: As `plan_channels` does.
    """
    ratios = tuple(sorted(set(ratios)))
    groups = channel_sensitivity(model, score, ratios, **settings)
    return Sensitivity(ratios, score(model), tuple(groups))
