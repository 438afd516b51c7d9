"""Pruning: weights with TensorFlow Model Optimization, channels by surgery."""

from kdprune._former import former_names
from kdprune.models.kernels import layer_sparsity
from kdprune.prune.arrays import prune_weights
from kdprune.prune.blocks import BlockPlan, find_blocks, plan_blocks, remove_blocks
from kdprune.prune.bn_l1 import add_bn_l1, strip_bn_l1
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
from kdprune.prune.magnitude import (
    lamp_sparsity,
    prune_magnitude,
    pruning_callbacks,
    sparsity_below,
    sparsity_figures,
    strip_pruning,
)
from kdprune.prune.masks import (
    activation_masks,
    apply_masks,
    check_masks,
    strip_masks,
    weight_masks,
)
from kdprune.prune.recalibrate import recalibrate_batch_norm

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
    "add_bn_l1",
    "apply_masks",
    "check_masks",
    "find_blocks",
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
    "remove_blocks",
    "sensitivity",
    "sparsity_below",
    "sparsity_figures",
    "strip_bn_l1",
    "strip_masks",
    "strip_pruning",
    "weight_masks",
]

__getattr__ = former_names(
    __name__,
    {
        "hold_masks": "apply_masks",
        "release_masks": "strip_masks",
        "regularize_batch_norm": "add_bn_l1",
        "release_batch_norm": "strip_bn_l1",
    },
)
