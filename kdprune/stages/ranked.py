"""What stages that rank channels share: the importance, and how it is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kdprune.stages.base import Node, Run, Stage
from kdprune.stages.settings import Count, Importance


class RanksChannels(Stage):
    """A stage that ranks channels by an importance."""

    importance: str | Importance = "l2"
    """The [criterion](pruning.md#channels) by which channels are ranked."""
    round_to: Count = 8
    """Channels are left in multiples of this."""
    ignore: tuple[str, ...] = ()
    """Names or patterns of layers whose channels are all kept."""

    @property
    def importance_name(self) -> str:
        chosen = self.importance
        return chosen if isinstance(chosen, str) else chosen.name

    def ranking(self) -> Callable:
        """The function that ranks channels; random ones are drawn by the seed."""
        from kdprune import prune

        chosen = self.importance
        options: dict[str, Any] = {} if isinstance(chosen, str) else chosen.options
        if self.importance_name == "random":
            options["seed"] = self.own_seed
        return functools.partial(prune.IMPORTANCES[self.importance_name], **options)

    def check(self, run: Run, node: Node) -> None:
        from kdprune import prune
        from kdprune._registry import nearest

        super().check(run, node)
        name = self.importance_name
        if name not in prune.IMPORTANCES:
            raise ValueError(
                f"stages.{node.stage}.importance: expected one of "
                f"{', '.join(prune.IMPORTANCES)}, got {name!r}"
                f"{nearest(name, prune.IMPORTANCES)}"
            )
