"""TFMOT's quantization schemes: plain, keeping zeros, keeping clusters, or both."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.clustering.keras import cluster_config
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts import (
    cluster_preserve,
)

_combine: Any = tfmot.experimental.combine
_CLUSTER_PRESERVING: Any = _combine.Default8BitClusterPreserveQuantizeScheme


def new_scheme(preserve_sparsity: bool, preserve_clusters: bool) -> Any:
    """The scheme that `quantize_apply` takes, for one model."""
    if preserve_clusters:
        return _ClusterPreserving(preserve_sparsity)
    if preserve_sparsity:
        return _combine.Default8BitPrunePreserveQuantizeScheme()
    return tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme()


def average_centroid_gradients(wrapper: Any) -> None:
    """Lets the centroids of a wrapped layer follow their weights' mean gradient.

    TFMOT fixes the sum in cluster-preserving training, by which the centroids of
    large kernels diverge at learning rates that suit all other weights.

    Args:
        wrapper: A `QuantizeWrapper`, built; one without centroids stays as it is.
    """
    key = cluster_preserve.cluster_preserve_quantize_registry.CLUSTERING_IMPL
    for _, _, variables in wrapper._weight_vars:
        if key in variables:
            average = cluster_config.GradientAggregation.AVG
            variables[key].cluster_gradient_aggregation = average


class _ClusterPreserving(_CLUSTER_PRESERVING):
    """TFMOT's, with quantizers of its own for each layer.

    TFMOT's layers share two quantizers, which turn off sparsity preservation for
    good at the first layer without a zero.
    """

    def get_quantize_registry(self) -> Any:
        registry = super().get_quantize_registry()
        kind: Any = type(registry)
        preserve_sparsity = self.preserve_sparsity

        class Registry(kind):
            def get_quantize_config(self, layer: Any) -> Any:
                return kind(preserve_sparsity).get_quantize_config(layer)

        return Registry(preserve_sparsity)
