"""Pruning: weights with TensorFlow Model Optimization, channels by surgery."""

from kdprune.prune.arrays import prune_weights
from kdprune.prune.blocks import BlockPlan, find_blocks, plan_blocks, remove_blocks
from kdprune.prune.channels import (
    IMPORTANCES,
    ChannelPlan,
    LayerCall,
    RuleResult,
    Sensitivity,
    UnsupportedLayer,
    WeightAxes,
    plan_channels,
    prune_channels,
    register_importance,
    register_layer_rule,
    sensitivity,
)
from kdprune.prune.holding import check_masks, hold_masks, release_masks
from kdprune.prune.magnitude import (
    lamp_sparsity,
    layer_sparsity,
    prune_magnitude,
    pruning_callbacks,
    sparsity_below,
    strip_pruning,
)
from kdprune.prune.masks import activation_masks, weight_masks
from kdprune.prune.recalibrate import recalibrate_batch_norm
from kdprune.prune.slimming import regularize_batch_norm, release_batch_norm

__all__ = [
    "BlockPlan",
    "ChannelPlan",
    "IMPORTANCES",
    "LayerCall",
    "RuleResult",
    "Sensitivity",
    "UnsupportedLayer",
    "WeightAxes",
    "activation_masks",
    "check_masks",
    "find_blocks",
    "hold_masks",
    "lamp_sparsity",
    "layer_sparsity",
    "plan_blocks",
    "plan_channels",
    "prune_channels",
    "prune_magnitude",
    "prune_weights",
    "pruning_callbacks",
    "recalibrate_batch_norm",
    "register_importance",
    "register_layer_rule",
    "regularize_batch_norm",
    "release_batch_norm",
    "release_masks",
    "remove_blocks",
    "sensitivity",
    "sparsity_below",
    "strip_pruning",
    "weight_masks",
]
