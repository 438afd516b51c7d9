"""Pruning: weights with TensorFlow Model Optimization, channels by surgery."""

from kdprune.prune.channels import (
    IMPORTANCES,
    ChannelPlan,
    plan_channels,
    prune_channels,
)
from kdprune.prune.magnitude import (
    layer_sparsity,
    prune_magnitude,
    pruning_callbacks,
    sparsity_below,
    strip_pruning,
)
from kdprune.prune.recalibrate import recalibrate_batch_norm

__all__ = [
    "ChannelPlan",
    "IMPORTANCES",
    "layer_sparsity",
    "plan_channels",
    "prune_channels",
    "prune_magnitude",
    "pruning_callbacks",
    "recalibrate_batch_norm",
    "sparsity_below",
    "strip_pruning",
]
