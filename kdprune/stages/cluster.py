"""Shares weights: each kernel keeps a few distinct values."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import pydantic

from kdprune.stages.base import MODEL, Node, Result, Run
from kdprune.stages.settings import Training
from kdprune.stages.trained import Compressed


class Cluster(Compressed):
    """Gives each kernel a few distinct weights, and trains them."""

    kind: Literal["cluster"]
    clusters: Annotated[int, pydantic.Field(ge=2, le=256, strict=True)] = 16
    """Distinct weights in each kernel."""
    preserve_sparsity: bool | Literal["auto"] = "auto"
    """Keep zero weights at zero; `auto` does where the model is pruned."""
    exclude: tuple[str, ...] = ()
    """Names of layers to leave alone."""
    training: Training
    """How the clustered weights train."""

    role = "quantize"
    keeps_layers = True
    in_float32 = True

    def execute(self, run: Run, node: Node, folder: pathlib.Path) -> Result:
        """Gives each kernel a few distinct weights, and trains those."""
        from kdprune import prune, quantize
        from kdprune.models import load_model
        from kdprune.stages import fitting

        base = fitting.load_node(run, node.parent_of("from"))
        sparse = fitting.is_sparse(base, self.preserve_sparsity)

        def wrapped(steps):
            return quantize.cluster_weights(
                base, self.clusters, preserve_sparsity=sparse, exclude=self.exclude
            )

        fitted, figures = fitting.fit_stage(run, node, folder, wrapped, cast=False)
        result = fitting.save_outputs(
            quantize.strip_clustering(fitted), folder, figures
        )
        saved = load_model(folder / MODEL)
        result.figures["clusters_by_layer"] = quantize.count_clusters(saved)
        result.figures["sparsity_by_layer"] = prune.layer_sparsity(saved)
        return result
