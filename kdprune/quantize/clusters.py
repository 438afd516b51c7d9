"""Weight clustering: each kernel keeps a few distinct values, and compresses well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.clustering.keras import (
    cluster_config,
    cluster_wrapper,
)

from kdprune import _graph, _registry
from kdprune.models.precision import cast_model

tfmot_cluster = tfmot.clustering.keras
_CLUSTERABLE = (keras.layers.Conv2D, keras.layers.Dense)
# Of a kernel that counts as clustered: distinct weights, and how often each is there.
_MOST_CLUSTERS, _REPEATED = 256, 4
_NOT_CLUSTERABLE = (keras.layers.DepthwiseConv2D, keras.layers.Conv2DTranspose)


def cluster_weights(
    model: keras.Model,
    clusters: int = 16,
    preserve_sparsity: bool = False,
    exclude: Sequence[str] = (),
) -> keras.Model:
    """Wraps a trained model so that each kernel has a few values, and trains them.

    Kernels of Conv2D and Dense layers are clustered, each as a whole; a kernel of no
    more weights than clusters is left alone. Fit the wrapped model for a few epochs
    with a learning rate about a hundredth of the first training's, then call
    `strip_clustering`. In an int8 file, where each channel of a kernel has a scale
    of its own, `clusters` is the number of values in a channel.

    TFMOT's function of this name wraps all layers and then calls them without
    `training`, so that BatchNormalization and Dropout do not train; here the layers
    without a kernel stay as they are.

    Reference: Han et al., 2016, https://arxiv.org/abs/1510.00149, section 3.

    Args:
        model: Functional or Sequential `tf_keras` model, trained; left as it was.
        clusters: Distinct values of a kernel, at least 2; with `preserve_sparsity`
            at least 3, one of which is 0.
        preserve_sparsity: Keep weights that are zero at zero (PCQAT's first step).
        exclude: Names of layers to leave alone.

    Returns:
        A new, wrapped float32 `keras.Model`.

    Raises:
        ValueError: If an argument or the model does not fit, or if a kernel without
            a zero is to keep its zeros.
    """
    least = 3 if preserve_sparsity else 2
    if isinstance(clusters, bool) or not isinstance(clusters, int) or clusters < least:
        raise ValueError(
            f"clusters must be an integer >= {least}. Received: {clusters!r}"
        )
    if isinstance(exclude, str):
        raise ValueError(f"exclude must be a list of names. Received: {exclude!r}")
    _graph.check_float_model(model)
    base = cast_model(model, "float32")
    names = [layer.name for layer in base.layers if _is_clusterable(layer)]
    unknown = [name for name in exclude if name not in names]
    if unknown or not names:
        raise ValueError(
            f"layers to cluster must be among {', '.join(names) or 'none'}. Received: "
            f"exclude={list(exclude)}"
            f"{_registry.nearest(unknown[0], names) if unknown else ''}"
        )

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        chosen = layer.name in names and layer.name not in exclude
        if not chosen or layer.count_params() <= clusters:
            return layer
        if preserve_sparsity and layer.kernel.numpy().all():
            raise ValueError(
                "preserve_sparsity expects zeros in each kernel: prune the layer, or "
                f"exclude it. Received: {layer.name!r} without"
            )
        return cluster_wrapper.ClusterWeights(
            layer,
            clusters,
            # Evenly spread, which keeps the large weights (section 3.2).
            tfmot_cluster.CentroidInitialization.LINEAR,
            preserve_sparsity=preserve_sparsity,
            # The sum over thousands of weights, TFMOT's default, makes the centroids
            # of large kernels diverge at learning rates that suit the others.
            cluster_gradient_aggregation=cluster_config.GradientAggregation.AVG,
        )

    return keras.models.clone_model(base, clone_function=wrap)


def strip_clustering(model: keras.Model) -> keras.Model:
    """Removes the clustering wrappers; the clustered weights stay.

    Args:
        model: What `cluster_weights` returned, trained.

    Returns:
        A plain `keras.Model` of the same layers, weights and names.

    Raises:
        ValueError: If it is no built Functional or Sequential `tf_keras` model.
    """
    _graph.check_graph_model(model)
    # Rebuilt, since its layers are shared with the wrapped model.
    return _graph.rebuild(tfmot_cluster.strip_clustering(model))


def count_clusters(model: keras.Model) -> dict[str, int]:
    """The number of distinct values in the kernel of every Conv2D and Dense layer."""
    return {
        layer.name: len(np.unique(layer.kernel.numpy()))
        for layer in model.layers
        if _is_clusterable(layer)
    }


def clustered_layers(model: keras.Model) -> list[str]:
    """The layers whose kernels have been clustered, as their weights tell.

    A kernel that was only trained has as many distinct weights as weights; one that
    was clustered has at most 256 (what a recipe allows), each of them many times.
    Zeros are not counted, since pruning makes as many, nor are small kernels,
    nor do those of one value, such as a filter that averages.

    Args:
        model: A `tf_keras` model, not wrapped.

    Returns:
        Names of Conv2D and Dense layers, in the model's order.
    """
    found = []
    for layer in filter(_is_clusterable, model.layers):
        kernel = layer.kernel.numpy()
        weights = kernel[kernel != 0]
        distinct = len(np.unique(weights))
        if 2 <= distinct <= _MOST_CLUSTERS and weights.size >= _REPEATED * distinct:
            found.append(layer.name)
    return found


def _is_clusterable(layer: Any) -> bool:
    return isinstance(layer, _CLUSTERABLE) and not isinstance(layer, _NOT_CLUSTERABLE)
