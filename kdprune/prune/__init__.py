"""Pruning: weights with TensorFlow Model Optimization, channels by surgery."""

from kdprune.prune.blocks import BlockPlan, find_blocks, plan_blocks, remove_blocks
from kdprune.prune.channels import (
    IMPORTANCES,
    ChannelPlan,
    channel_sensitivity,
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
from kdprune.prune.memory import peak_activations
from kdprune.prune.recalibrate import recalibrate_batch_norm
from kdprune.prune.slimming import regularize_batch_norm

__all__ = [
    "BlockPlan",
    "ChannelPlan",
    "IMPORTANCES",
    "channel_sensitivity",
    "find_blocks",
    "layer_sparsity",
    "peak_activations",
    "plan_blocks",
    "plan_channels",
    "prune_channels",
    "prune_magnitude",
    "pruning_callbacks",
    "recalibrate_batch_norm",
    "regularize_batch_norm",
    "remove_blocks",
    "sparsity_below",
    "strip_pruning",
]
