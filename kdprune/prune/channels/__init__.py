"""Channel pruning: smaller models, cut along the channels that go together."""

from kdprune.prune.channels.cut import prune_channels
from kdprune.prune.channels.importance import IMPORTANCES
from kdprune.prune.channels.plan import ChannelPlan, plan_channels
from kdprune.prune.channels.table import Sensitivity

__all__ = [
    "ChannelPlan",
    "IMPORTANCES",
    "Sensitivity",
    "plan_channels",
    "prune_channels",
]
