"""Planning which channels go, and what is left, before anything is cut."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdprune.prune.channels.choice import (
    Target,
    check_round_to,
    choose,
    one_target,
    rank,
)
from kdprune.prune.channels.costs import Costs
from kdprune.prune.channels.evidence import Evidence
from kdprune.prune.channels.graph import ChannelGraph, follow_channels
from kdprune.prune.channels.groups import find_groups
from kdprune.prune.channels.importance import find_importance
from kdprune.prune.channels.surgery import remove_channels
from kdprune.prune.channels.weighing import MeasuredWeighing, Weighing
from kdprune.prune.memory import peak_activations

SCOPES = ("global", "per_cost", "local")


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one coupled group.

    Attributes:
        name: The first layer whose filters make the channels.
        layers: All layers whose filters make them.
        before: Filters of the first layer that belong to the group.
        after: How many of them are left.
        removed: The roots of the channels that go.
    """

    name: str
    layers: tuple
    before: int
    after: int
    removed: np.ndarray


@dataclass(frozen=True)
class ChannelPlan:
    """A plan of which channels go; printed, it is the dry run.

    Attributes:
        graph: The `ChannelGraph` of the model.
        groups: A `GroupPlan` for each coupled group.
        drop: The score that sensitivities foretell to be lost before any recovery,
            in the unit of their scores; None if the plan was made without them.
    """

    graph: ChannelGraph
    groups: tuple
    drop: float | None = None

    @cached_property
    def removed(self):
        """The roots of all channels that go."""
        return np.concatenate(
            [np.empty(0, np.int64), *(g.removed for g in self.groups)]
        )

    @cached_property
    def uncut(self):
        """`{layer: why}` of the layers with channels that must stay."""
        return _uncut(self.graph)

    @cached_property
    def parameters(self):
        """The parameters before and after, as `count_parameters` counts them."""
        costs = Costs(self.graph)
        return costs.parameters(), costs.parameters(self.removed)

    @cached_property
    def macs(self):
        """The multiplications before and after, as `count_macs` counts them.

        Raises:
            ValueError: If the model's cannot be counted (no fixed image size).
        """
        costs = Costs(self.graph)
        return costs.macs(), costs.macs(self.removed)

    @cached_property
    def memory(self):
        """The peak of activations before and after; see `peak_activations`.

        Raises:
            ValueError: If the model is not of a fixed image size.
        """
        return peak_activations(self.graph.model), peak_activations(self.apply())

    def apply(self):
        """Builds the smaller model; see `prune_channels`."""
        return remove_channels(self.graph, self.removed)

    def __str__(self):
        return "\n".join(
            [
                f"{'channels':>14}  group",
                *(_group_line(group) for group in self.groups),
                *(f"{'kept':>14}  {n}: {why}" for n, why in self.uncut.items()),
                f"{_change(*self.parameters)} parameters",
                *_cost_lines(self),
                *([] if self.drop is None else [_drop_line(self.drop)]),
            ]
        )


def plan_channels(
    model,
    ratio=None,
    importance="l2",
    scope="global",
    round_to=8,
    ignore=(),
    data=None,
    measure_bytes=None,
    sensitivity=None,
    **target,
):
    """Plans which channels to remove, without touching the model.

    The coupled channels are found from the graph: those that meet in additions,
    depthwise convolutions and so on go together. What cannot be followed (a layer
    that mixes channels, an unknown layer) keeps its channels, and `plan.uncut`
    says so. The inputs and outputs of the model never change.

    Args:
        model: A built Functional or Sequential model with its weights.
        ratio: The share of channels to remove, in (0, 1). Under the global scope
            at least that share of all of them; under the local scope that share
            of each group, to the nearest rounded width.
        importance: A name in `IMPORTANCES` or a function of a group and evidence.
        scope: `"global"`: the least important channels of the model go first;
            `"per_cost"`: those of the least importance for each unit of the target's
            cost (MACs, parameters) that their removal saves, weighed anew after each,
            for importances that add up, as `taylor`; `"local"`: all groups lose the
            same share.
        round_to: Channels are left in multiples of this, which the runtime's
            kernels are made for; 1 for no rounding. Narrower layers stay.
        ignore: Names or patterns of layers whose output channels are all kept.
        data: For the importances that need it: float images, or
            `(images, labels)`, as arrays or an iterable of batches.
        measure_bytes: For `target_bytes`: `measure_bytes(model)` converts the
            model and returns the size of its file.
        sensitivity: A `Sensitivity` of this model, for the global scope: it weighs
            the groups against each other, so that the score it foretells to be lost
            is least, while the importance ranks the channels within each. No group
            is cut further than the table measured.
        **target: In place of `ratio`, one of `target_macs`, `target_parameters`,
            `target_bytes` (upper bounds, met within one rounding step) and
            `threshold` (channels that score below it go).

    Returns:
        A `ChannelPlan`.

    Raises:
        ValueError: If the model, a name, the data or the target is of no use; a
            target that cannot be reached is told with what can.
    """
    wanted = one_target(ratio, target)
    settings = {"importance": importance, "scope": scope, "round_to": round_to}
    settings |= {"ignore": ignore, "data": data, "measure_bytes": measure_bytes}
    settings["sensitivity"] = sensitivity
    return plan_target(model, wanted, **settings)[0]


def plan_target(
    model,
    target: Target,
    *,
    importance="l2",
    scope="global",
    round_to=8,
    ignore=(),
    data=None,
    measure_bytes=None,
    sensitivity=None,
):
    """Plans for a `Target`; returns the plan and the target as it has begun."""
    _check_scope(scope, target, sensitivity)
    graph, groups, rankings = rank_groups(model, importance, round_to, ignore, data)

    def removed(kept):
        """The roots that go from each group."""
        chosen = zip(groups, rankings, kept, strict=True)
        return [g.roots[r.order[: len(r.order) - count]] for g, r, count in chosen]

    def costing(measure):
        return lambda kept: measure(np.concatenate(removed(kept)))

    costs = Costs(graph, measure_bytes)
    if target.kind == "ratio":
        cost = _channels(rankings)
        begun = target.begun([ranking.channels for ranking in rankings])
    elif target.kind == "threshold":
        cost, begun = None, target
    else:
        measure = getattr(costs, target.kind)
        begun, cost = target.begun(measure()), costing(measure)
    # Converting a model for each step that is weighed would take hours.
    cheap = costing(costs.parameters) if target.kind == "bytes" else cost
    drop = None
    if sensitivity is not None:
        weighing = MeasuredWeighing(
            sensitivity, groups, rankings, target.start is not None
        )
        kept = _choose_weighed(weighing, rankings, begun, cost, cheap)
        drop = weighing.drop(kept)
    elif scope == "per_cost":
        removals = Weighing(rankings).removals(cheap)
        kept = choose(rankings, begun, "global", cost, removals)
    else:
        kept = choose(rankings, begun, scope, cost)
    gone = zip(groups, rankings, kept, removed(kept), strict=True)
    return ChannelPlan(graph, tuple(_planned(*one) for one in gone), drop), begun


def _check_scope(scope, target, sensitivity):
    if scope not in SCOPES:
        known = ", ".join(map(repr, SCOPES))
        raise ValueError(f"scope must be one of {known}. Received: {scope!r}")
    if sensitivity is not None and (scope != "global" or target.kind == "threshold"):
        raise ValueError(
            "sensitivity weighs groups against each other, to meet a ratio or a target "
            f"under scope='global'. Received: scope={scope!r} and a {target.kind}"
        )
    if scope == "per_cost" and target.kind == "threshold":
        raise ValueError(
            "a threshold limits no cost that scope='per_cost' could weigh: expected "
            "scope='global', a ratio or a target. Received: scope='per_cost' and a "
            "threshold"
        )


def _choose_weighed(weighing, rankings, target, cost, cheap):
    """Chooses by sensitivities, weighed by a cost that is quick to reckon."""
    removals = weighing.removals(cheap)
    try:
        return choose(rankings, target, "global", cost, removals)
    except ValueError as error:
        raise ValueError(
            f"{error}; no group is cut further than its sensitivity was measured"
        ) from error


def rank_groups(model, importance, round_to, ignore, data):
    """Finds a model's coupled groups and sorts the channels of each.

    Returns:
        The `ChannelGraph`, its `Group`s and a `Ranking` for each.

    Raises:
        ValueError: As `plan_channels` does.
    """
    check_round_to(round_to)
    importance = find_importance(importance)
    graph = follow_channels(model, ignore)
    groups = find_groups(graph)
    if not groups:
        reasons = "; ".join(f"{name}: {why}" for name, why in _uncut(graph).items())
        raise ValueError(f"no channels of this model can be removed: {reasons}")
    evidence = Evidence(graph, data)
    rankings = [rank(g, importance(g, evidence), round_to) for g in groups]
    return graph, groups, rankings


def _planned(group, ranking, kept, removed):
    after = kept * ranking.width
    return GroupPlan(group.name, group.layers, ranking.channels, after, removed)


def _channels(rankings):
    """The cost that a ratio limits: how many channels are left."""
    widths = [ranking.width for ranking in rankings]
    return lambda kept: sum(k * width for k, width in zip(kept, widths, strict=True))


def _uncut(graph):
    uncut = dict(graph.unfollowed)
    for followed in graph.followed.values():
        for weight in followed.trace.weights:
            if weight.makes is not None:
                roots = graph.roots[weight.axes[weight.makes]].tolist()
                pinned = [graph.pinned[r] for r in roots if r in graph.pinned]
                if pinned:
                    part = f"{len(pinned)} of {len(roots)} channels: "
                    why = _because(followed, *pinned[0])
                    whole = len(pinned) == len(roots)
                    uncut[followed.path] = why if whole else part + why
    return uncut


def _because(followed, layer, reason):
    own = layer in (followed.path, followed.layer.name)
    return reason if own else f"coupled with {layer}: {reason}"


def _group_line(group):
    others = len(group.layers) - 1
    more = f" and {others} coupled with it" if others else ""
    return f"{f'{group.before} -> {group.after}':>14}  {group.name}{more}"


def _change(before, after):
    return f"{before:,} -> {after:,} ({after / before:.0%})"


def _drop_line(drop):
    return f"{drop:.4f} of the score expected to be lost, before recovery"


def _cost_lines(plan):
    try:
        return [
            f"{_change(*plan.macs)} MACs",
            f"{_change(*plan.memory)} activations at the peak",
        ]
    except ValueError as error:
        return [f"MACs and memory are not known: {error}"]
