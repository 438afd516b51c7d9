"""Removes residual blocks."""

from __future__ import annotations

import pathlib
from typing import Any, Literal

from kdprune.stages.base import Node, Result, Run
from kdprune.stages.settings import Count, Training
from kdprune.stages.trained import Compressed


class PruneBlocks(Compressed):
    """Removes residual blocks, and trains the smaller model to recover."""

    kind: Literal["prune_blocks"]
    count: Count
    """Residual blocks to remove."""
    rank: Literal["loss", "angle"] = "loss"
    """By the cross-entropy that the removal costs on validation images, or by the
    angle between a block's input and output."""
    training: Training
    """How the smaller model recovers."""

    role = "prune"
    plans = ("from",)

    def plan(self, run: Run, node: Node) -> str:
        return str(self._block_plan(run, node))

    def _block_plan(self, run: Run, node: Node) -> Any:
        """The `prune.BlockPlan`: blocks are ranked, nothing is trained."""
        from kdprune import prune
        from kdprune.stages import fitting
        from kdprune.stages.validation import ranking_images, validation_loss

        base = fitting.load_node(run, node.parent_of("from"))
        images, _ = ranking_images(run, self.own_seed)
        loss = validation_loss(run) if self.rank == "loss" else None
        return prune.plan_blocks(base, self.count, images, loss)

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Removes the residual blocks that matter least; the rest recovers."""
        from kdprune.prune.recalibrate import recalibrate_after, say_frozen
        from kdprune.stages import fitting
        from kdprune.stages.validation import ranking_images, validation_accuracy

        plan = self._block_plan(run, node)
        smaller = plan.apply()
        images, _ = ranking_images(run, self.own_seed)
        say_frozen(recalibrate_after(plan.model, smaller, images))
        pruned_accuracy = validation_accuracy(run)(smaller)
        fitted, figures = fitting.fit_stage(run, node, folder, lambda _: smaller)
        figures["val_accuracy_cut"] = pruned_accuracy
        result = fitting.save_outputs(fitted, folder, figures)
        result.figures["rank"] = self.rank
        result.figures["blocks"] = [
            {
                "name": block.name,
                "score": score,
                "removed": place < plan.count,
                "layers": len(block.layers),
            }
            for place, (block, score) in enumerate(
                zip(plan.blocks, plan.scores, strict=True)
            )
        ]
        return result
