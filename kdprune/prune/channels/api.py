"""Planning which channels go, and removing them, in one step or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import tf_keras as keras

from kdprune._graph import frozen_layers
from kdprune._log import logger
from kdprune._registry import suggesting
from kdprune.prune.channels.graph import ChannelGraph, Ids
from kdprune.prune.channels.groups import kept_layers
from kdprune.prune.channels.importance import Importance
from kdprune.prune.channels.selection import (
    CostAwareOrder,
    Costs,
    Target,
    parse_target,
    rank_groups,
    select,
)
from kdprune.prune.channels.sensitivity import Sensitivity, SensitivityOrder
from kdprune.prune.channels.surgery import KeptChannels, remove_channels
from kdprune.prune.recalibrate import recalibrate_after, say_frozen
from kdprune.tflite.memory import peak_activations

SCOPES = ("global", "per_cost", "local")


@suggesting
def plan_channels(
    model: keras.Model,
    ratio: float | None = None,
    importance: str | Importance = "l2",
    scope: str = "global",
    round_to: int = 8,
    ignore: str | Iterable[str] = (),
    data: Any = None,
    measure_bytes: Callable[[keras.Model], int] | None = None,
    sensitivity: Sensitivity | None = None,
    *,
    target_macs: int | None = None,
    target_parameters: int | None = None,
    target_bytes: int | None = None,
    threshold: float | None = None,
) -> ChannelPlan:
    """Plans which channels to remove, without touching the model.

    The coupled channels are found from the graph: those that meet in additions,
    depthwise convolutions and so on go together. What cannot be followed (a layer
    that mixes channels, an unknown layer) keeps its channels, and `plan.kept_layers`
    says so. The inputs and outputs of the model never change.

    Args:
        model: A built Functional or Sequential model with its weights.
        ratio: The share of channels to remove, in (0, 1). Under the global scope
            at least that share of all of them; under the local scope that share
            of each group, to the nearest rounded width.
        importance: A name in `IMPORTANCES` or a function of a group and statistics.
        scope: `"global"`: the least important channels of the model go first;
            `"per_cost"`: those of the least importance for each unit of the target's
            cost (MACs, parameters) that their removal saves, computed again after
            each, for importances that add up, as `taylor`; `"local"`: all groups
            lose the same share.
        round_to: Channels are left in multiples of this, which the runtime's
            kernels are made for; 1 for no rounding. Narrower layers stay.
        ignore: Names or patterns of layers whose output channels are all kept.
        data: For the importances that need it: images, uint8 or floats in [0, 1],
            or `(images, labels)`, as arrays or an iterable of batches.
        measure_bytes: For `target_bytes`: `measure_bytes(model)` converts the
            model and returns the size of its file.
        sensitivity: A `Sensitivity` of this model, for the global scope: it compares
            the groups with each other, so that the score it predicts to be lost is
            least, while the importance ranks the channels within each. No group is
            pruned further than the table measured.
        target_macs: In place of `ratio`: the most MACs that may be left, met within
            one rounding step.
        target_parameters: In place of `ratio`: the most parameters.
        target_bytes: In place of `ratio`: the most bytes of the model's file.
        threshold: In place of `ratio`: channels that score below it go.

    Returns:
        A `ChannelPlan`.

    Raises:
        ValueError: If the model, a name, the data or the target is invalid; a
            target that cannot be reached is named with what can be.
    """
    wanted = parse_target(
        ratio=ratio,
        target_macs=target_macs,
        target_parameters=target_parameters,
        target_bytes=target_bytes,
        threshold=threshold,
    )
    options = _Options(
        importance, scope, round_to, ignore, data, measure_bytes, sensitivity
    )
    return _plan(model, wanted, options)[0]


@suggesting
def prune_channels(
    model: keras.Model,
    ratio: float | None = None,
    *,
    target_macs: int | None = None,
    target_parameters: int | None = None,
    target_bytes: int | None = None,
    threshold: float | None = None,
    importance: str | Importance = "l2",
    scope: str = "global",
    round_to: int = 8,
    ignore: str | Iterable[str] = (),
    data: Any = None,
    measure_bytes: Callable[[keras.Model], int] | None = None,
    sensitivity: Sensitivity | None = None,
    steps: int = 1,
    fine_tune: Callable[[keras.Model], object] | None = None,
) -> keras.Model:
    """Removes channels: returns a new, physically smaller model.

    The weights that stay are carried over, names are kept, inputs and outputs are
    as they were. Before any recalibration the new model computes what the old one
    would if the removed channels were zero wherever they are used.

    Frozen layers lose channels as others do, which is logged (`ignore` keeps those of
    some layers); what is left of their weights stays as it is, as do the statistics of
    frozen normalizations but for those that channels were removed in front of.

    Args:
        model: A built Functional or Sequential `tf_keras` model; left as it is.
        ratio: The share of channels to remove, in (0, 1), or give a target.
        target_macs: As for `plan_channels`, with the other targets.
        target_parameters: As for `plan_channels`.
        target_bytes: As for `plan_channels`.
        threshold: As for `plan_channels`.
        importance: As for `plan_channels`.
        scope: As for `plan_channels`.
        round_to: As for `plan_channels`.
        ignore: As for `plan_channels`.
        data: As for `plan_channels`; with it, batch normalization is recalibrated
            after each step.
        measure_bytes: As for `plan_channels`.
        sensitivity: As for `plan_channels`, of the model before the first step.
        steps: In how many steps to get there, each on the importances that the
            model has by then, and by the same factor; 1 with a threshold.
        fine_tune: `fine_tune(model)` trains the model in place; called between
            steps, not after the last.

    Returns:
        A `keras.Model` (`Sequential` if the model was), not compiled.

    Raises:
        ValueError: As `plan_channels` does.

    Example:
        >>> smaller = prune_channels(model, target_macs=6_000_000, data=images)
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps is a whole number, at least 1. Received: {steps!r}")
    target = parse_target(
        ratio=ratio,
        target_macs=target_macs,
        target_parameters=target_parameters,
        target_bytes=target_bytes,
        threshold=threshold,
    )
    if target.kind == "threshold" and steps > 1:
        raise ValueError(
            "a threshold says at once which channels go: expected steps=1. "
            f"Received: {steps}; give a ratio or a target to get there in steps"
        )
    options = _Options(
        importance, scope, round_to, ignore, data, measure_bytes, sensitivity
    )
    frozen: dict[str, None] = {}
    measured: list[str] = []
    for step in range(1, steps + 1):
        target = replace(target, share=step / steps)
        plan, target = _plan(model, target, options)
        frozen |= dict.fromkeys(plan.frozen)
        model, before = plan.apply(), model
        if data is not None:
            measured += recalibrate_after(before, model, data)
        if fine_tune is not None and step < steps:
            fine_tune(model)
    if frozen:
        logger.warning(
            "channels are removed from frozen layers: %s; what is left of their "
            "weights stays as it is",
            ", ".join(frozen),
        )
    say_frozen(measured)
    return model


# --- Plans ---


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
    layers: tuple[str, ...]
    before: int
    after: int
    removed: Ids


@dataclass(frozen=True)
class ChannelPlan:
    """A plan of which channels go; printed, it is the dry run.

    Attributes:
        graph: The channels of the model.
        groups: A `GroupPlan` for each coupled group.
        drop: The score that sensitivities predict to be lost before any recovery,
            in the unit of their scores; None if the plan was made without them.
    """

    graph: ChannelGraph
    groups: tuple[GroupPlan, ...]
    drop: float | None = None

    @cached_property
    def removed(self) -> Ids:
        """The roots of all channels that go."""
        return np.concatenate(
            [np.empty(0, np.int64), *(g.removed for g in self.groups)]
        )

    @cached_property
    def kept_layers(self) -> dict[str, str]:
        """`{layer: why}` of the layers with channels that must stay."""
        return kept_layers(self.graph)

    @cached_property
    def frozen(self) -> tuple[str, ...]:
        """The frozen layers that lose weights, by their paths."""
        kept = KeptChannels(self.graph, self.removed)
        smaller = {
            id(record.layer)
            for record in self.graph.records.values()
            for weight in record.result.weights
            if kept.shape(weight) != tuple(weight.variable.shape)
        }
        held = frozen_layers(self.graph.model)
        return tuple(path for path, layer in held.items() if id(layer) in smaller)

    @cached_property
    def parameters(self) -> tuple[int, int]:
        """The parameters before and after, as `count_parameters` counts them."""
        costs = Costs(self.graph)
        return costs.parameters(), costs.parameters(self.removed)

    @cached_property
    def macs(self) -> tuple[int, int]:
        """The multiplications before and after, as `count_macs` counts them.

        Raises:
            ValueError: If the model's cannot be counted (no fixed image size).
        """
        costs = Costs(self.graph)
        return costs.macs(), costs.macs(self.removed)

    @cached_property
    def memory(self) -> tuple[int, int]:
        """Peak activation memory in bytes (int8), before and after.

        Raises:
            ValueError: If the model is not of a fixed image size.
        """
        return peak_activations(self.graph.model), peak_activations(self.apply())

    def apply(self) -> keras.Model:
        """Builds the smaller model; see `prune_channels`."""
        return remove_channels(self.graph, self.removed)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{'channels':>14}  group",
                *(_group_line(group) for group in self.groups),
                *(f"{'kept':>14}  {n}: {why}" for n, why in self.kept_layers.items()),
                *(f"{'frozen':>14}  {n}: loses channels" for n in self.frozen),
                f"{_change(*self.parameters)} parameters",
                *_cost_lines(self),
                *([] if self.drop is None else [_drop_line(self.drop)]),
            ]
        )


@dataclass(frozen=True)
class _Options:
    """What `plan_channels` takes beside the model and the target."""

    importance: str | Importance
    scope: str
    round_to: int
    ignore: str | Iterable[str]
    data: Any
    measure_bytes: Callable[[keras.Model], int] | None
    sensitivity: Sensitivity | None


def _plan(
    model: keras.Model, target: Target, options: _Options
) -> tuple[ChannelPlan, Target]:
    """The plan, and the target with what the cost was before the first step."""
    pruned = target.start is not None
    scope, sensitivity = options.scope, options.sensitivity
    _check_scope(scope, target, sensitivity)
    graph, groups, rankings = rank_groups(
        model, options.importance, options.round_to, options.ignore, options.data
    )

    def removed(kept):
        """The roots that go from each group."""
        chosen = zip(groups, rankings, kept, strict=True)
        return [g.roots[r.order[: len(r.order) - count]] for g, r, count in chosen]

    def costing(measure):
        return lambda kept: measure(np.concatenate(removed(kept)))

    costs = Costs(graph, options.measure_bytes)
    if target.kind == "ratio":
        cost = _channels(rankings)
        target = target.initialized([ranking.channels for ranking in rankings])
    elif target.kind == "threshold":
        cost = None
    else:
        measure = getattr(costs, target.kind)
        target, cost = target.initialized(measure()), costing(measure)
    # Converting a model for each step that is compared would take hours.
    cheap = costing(costs.parameters) if target.kind == "bytes" else cost
    drop = None
    if sensitivity is not None:
        order = SensitivityOrder(sensitivity, groups, rankings, pruned)
        kept = _select_measured(order, rankings, target, cost, cheap)
        drop = order.drop(kept)
    elif scope == "per_cost":
        removals = CostAwareOrder(rankings).removals(cheap)
        kept = select(rankings, target, "global", cost, removals)
    else:
        kept = select(rankings, target, scope, cost)
    gone = zip(groups, rankings, kept, removed(kept), strict=True)
    return ChannelPlan(graph, tuple(_planned(*one) for one in gone), drop), target


def _check_scope(scope, target, sensitivity):
    if scope not in SCOPES:
        known = ", ".join(map(repr, SCOPES))
        raise ValueError(f"scope must be one of {known}. Received: {scope!r}")
    if sensitivity is not None and (scope != "global" or target.kind == "threshold"):
        raise ValueError(
            "sensitivity compares groups with each other, to meet a ratio or a target "
            f"under scope='global'. Received: scope={scope!r} and a {target.kind}"
        )
    if scope == "per_cost" and target.kind == "threshold":
        raise ValueError(
            "a threshold limits no cost that scope='per_cost' could divide by: "
            "expected scope='global', a ratio or a target. Received: "
            "scope='per_cost' and a threshold"
        )


def _select_measured(order, rankings, target, cost, cheap):
    """Selects by sensitivities, divided by a cost that is quick to compute."""
    removals = order.removals(cheap)
    try:
        return select(rankings, target, "global", cost, removals)
    except ValueError as error:
        raise ValueError(
            f"{error}; no group is pruned further than its sensitivity was measured"
        ) from error


def _planned(group, ranking, kept, removed):
    after = kept * ranking.width
    return GroupPlan(group.name, group.layers, ranking.channels, after, removed)


def _channels(rankings):
    """The cost that a ratio limits: how many channels are left."""
    widths = [ranking.width for ranking in rankings]
    return lambda kept: sum(k * width for k, width in zip(kept, widths, strict=True))


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
            f"{_change(*plan.memory)} bytes of peak activation memory (int8)",
        ]
    except ValueError as error:
        return [f"MACs and memory are not known: {error}"]
