"""Channel pruning: smaller models, without channels that can go together."""

from kdprune.prune.channels.api import ChannelPlan, plan_channels, prune_channels
from kdprune.prune.channels.graph import (
    LayerCall,
    RuleResult,
    UnsupportedLayer,
    WeightAxes,
)
from kdprune.prune.channels.importance import IMPORTANCES, register_importance
from kdprune.prune.channels.rules import register_layer_rule
from kdprune.prune.channels.sensitivity import Sensitivity, sensitivity

__all__ = [
    "ChannelPlan",
    "IMPORTANCES",
    "LayerCall",
    "RuleResult",
    "Sensitivity",
    "UnsupportedLayer",
    "WeightAxes",
    "plan_channels",
    "prune_channels",
    "register_importance",
    "register_layer_rule",
    "sensitivity",
]
