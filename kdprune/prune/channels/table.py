"""A table of what each coupled group can spare, for heat maps and for planning."""

from dataclasses import dataclass


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

    @classmethod
    def from_dict(cls, content):
        """The table that `as_dict` has written."""
        ratios = tuple(content["ratios"])
        columns = ("groups", "layers", "channels", "left", "scores")
        rows = zip(*(content[name] for name in columns), strict=True)
        groups = [
            GroupSensitivity(
                name,
                tuple(layers),
                before,
                dict(zip(ratios, zip(left, scores, strict=True), strict=True)),
            )
            for name, layers, before, left, scores in rows
        ]
        return cls(ratios, content["whole"], tuple(groups))

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
