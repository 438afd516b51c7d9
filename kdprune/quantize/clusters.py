"""Weight clustering: each kernel keeps a few distinct values, and compresses well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tensorflow_model_optimization.python.core.clustering.keras import (
    cluster_config,
    cluster_wrapper,
)

from kdprune import _graph, _registry
from kdprune._registry import suggesting
from kdprune.models.kernels import (
    choose_layers,
    kernel_name,
    kernel_of,
    say_left_out,
)
from kdprune.models.precision import cast_model

tfmot_cluster = tfmot.clustering.keras
# Of a kernel that counts as clustered: distinct weights, and how often each is there.
_MOST_CLUSTERS, _REPEATED = 256, 4


@suggesting
def cluster_weights(
    model: keras.Model,
    clusters: int = 16,
    preserve_sparsity: bool = False,
    exclude: Sequence[str] = (),
) -> keras.Model:
    """Wraps a trained model so that each kernel has a few values, and trains them.

    Kernels of Conv2D, Conv2DTranspose and Dense layers and the pointwise ones of
    SeparableConv2D are clustered, each as a whole; depthwise kernels, those of frozen
    layers and those of no more weights than clusters are left alone, which is logged
    with their share. Fit the wrapped model for a few epochs with a learning rate about
    a hundredth of the first training's, then call `strip_clustering`. In an int8 file,
    where each channel of a kernel has a scale of its own, `clusters` is the number of
    values in a channel.

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
        ValueError: If an argument or the model does not fit, if there are layers to
            cluster inside a nested model (a frozen one is left alone), or none at all,
            or if a kernel without a zero is to keep its zeros.
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
    known = [layer.name for layer in base.layers if kernel_name(layer)]
    unknown = [name for name in exclude if name not in known]
    try:
        chosen = choose_layers(base, "cluster", exclude=exclude)
    except ValueError as error:
        hint = _registry.nearest(unknown[0], known) if unknown else ""
        raise ValueError(f"{error}{hint}") from None
    chosen = {
        name: layer for name, layer in chosen.items() if layer.count_params() > clusters
    }
    if not chosen:
        raise ValueError(
            f"nothing of model {model.name!r} is left to cluster: expected a kernel of "
            f"more weights than clusters. Received: {clusters=}, and smaller ones alone"
        )
    say_left_out(base, chosen, exclude, "clustering")

    def wrap(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not any(layer is one for one in chosen.values()):
            return layer
        if preserve_sparsity and kernel_of(layer).numpy().all():
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
    """The number of distinct values in each kernel that `cluster_weights` may change.

    Layers of nested models are `"nested/layer"`.
    """
    return {
        path: len(np.unique(kernel_of(layer).numpy()))
        for path, layer in _clusterable(model)
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
        Names of the layers, in the model's order; `"nested/layer"` in nested models.
    """
    found = []
    for path, layer in _clusterable(model):
        kernel = kernel_of(layer).numpy()
        weights = kernel[kernel != 0]
        distinct = len(np.unique(weights))
        if 2 <= distinct <= _MOST_CLUSTERS and weights.size >= _REPEATED * distinct:
            found.append(path)
    return found


def _clusterable(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """`(path, layer)` of all with a kernel to cluster, those of nested models too."""
    for path, layer in _graph.named_layers(model):
        if kernel_name(layer) not in (None, "depthwise_kernel"):
            yield path, layer
