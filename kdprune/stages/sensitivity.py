"""Measures how much accuracy each group of channels costs when it is pruned alone."""

from __future__ import annotations

import pathlib
from typing import Literal

import pydantic

from kdprune import _io
from kdprune._log import counted, logger
from kdprune.stages import base
from kdprune.stages.base import Node, Result, Run
from kdprune.stages.ranked import RanksChannels
from kdprune.stages.settings import Name, Ratio

TABLE = "sensitivity.json"


class Sensitivity(RanksChannels):
    """Measures per-group sensitivity to pruning, without training."""

    kind: Literal["sensitivity"]
    from_: Name = pydantic.Field(alias="from")
    """The stage whose model is measured."""
    ratios: tuple[Ratio, ...] = pydantic.Field(default=(0.25, 0.5, 0.75), min_length=1)
    """Shares of each group's channels that are removed in turn."""

    accepts = {"from": (base.FLOAT_MODEL,)}
    gives = base.SENSITIVITY
    role = "sensitivity"

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Scores the model on validation with each group of channels pruned alone."""
        from kdprune import prune
        from kdprune.stages import fitting
        from kdprune.stages.validation import ranking_images, validation_accuracy

        found = prune.sensitivity(
            fitting.load_node(run, node.parent_of("from")),
            self.ratios,
            counted(validation_accuracy(run), "pruned models scored"),
            importance=self.ranking(),
            round_to=self.round_to,
            ignore=self.ignore,
            data=ranking_images(run, self.own_seed),
        )
        logger.info("%s", found)
        _io.write_json(folder / TABLE, found.as_dict())
        figures = {"importance": self.importance_name, **found.as_dict()}
        return Result(figures, [TABLE])
