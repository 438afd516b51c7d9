"""Weight pruning with TensorFlow Model Optimization."""

from kdprune.prune.magnitude import (
    layer_sparsity,
    prune_magnitude,
    pruning_callbacks,
    sparsity_below,
    strip_pruning,
)

__all__ = [
    "layer_sparsity",
    "prune_magnitude",
    "pruning_callbacks",
    "sparsity_below",
    "strip_pruning",
]
