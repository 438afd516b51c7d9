"""Coupled groups: the channels that the same layers make and use.

Which channels go together is found from the model's graph, never declared: layer rules
are applied to the identities of channels, in place of tensors.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import check_float_model, is_graph_model, walk
from kdprune.prune.channels.graph import (
    ChannelGraph,
    ChannelIds,
    Ids,
    LayerCall,
    LayerRecord,
    RuleResult,
    UnsupportedLayer,
    WeightAxes,
)
from kdprune.prune.channels.rules import apply_rule


def find_channels(
    model: keras.Model,
    ignore: str | Iterable[str] = (),
    rule: Callable[[LayerCall], RuleResult] = apply_rule,
) -> ChannelGraph:
    """Finds the channels of a model and how they are coupled.

    Args:
        model: A built Functional or Sequential model.
        ignore: Names or patterns (`"head*"`, `"nested/conv"`) of layers whose
            output channels are all kept.
        rule: `rule(call)` says which channels a layer couples, as a layer rule does;
            by default those that can only be removed together.

    Returns:
        A `ChannelGraph`.

    Raises:
        ValueError: If the model has no graph or is wrapped for quantization, or
            a name in `ignore` matches no layer.
    """
    check_float_model(model)
    return _Tracer(model, ignore, rule).result()


class _Tracer:
    """Walks the model with id vectors in place of tensors."""

    def __init__(self, model, ignore, rule):
        self.graph = ChannelGraph(model)
        self.rule = rule
        self.ids = ChannelIds()
        self.ignore = [ignore] if isinstance(ignore, str) else list(ignore)
        self.paths: set[str] = set()

    def result(self):
        graph = self.graph
        names = [tensor._keras_history.layer.name for tensor in graph.model.inputs]
        inputs = [
            self._pinned(tensor.shape, name, "it is an input of the model")
            for tensor, name in zip(graph.model.inputs, names, strict=True)
        ]
        outputs = self._walk(graph.model, inputs, "")
        for tensor, ids in zip(graph.model.outputs, outputs, strict=True):
            if ids is not None:
                layer = tensor._keras_history.layer.name
                self.ids.pin(ids, layer, "it is an output of the model")
        self._check_ignored()
        graph.roots = self.ids.roots()
        graph.pinned = self.ids.pinned(graph.roots)
        return graph

    def _walk(self, model, inputs, prefix):
        def call(node, args, kwargs):
            return self._call(node, args, kwargs, prefix)

        return walk(model, inputs, call)

    def _call(self, node, args, kwargs, prefix):
        layer, path = node.layer, prefix + node.layer.name
        values = tf.nest.flatten((args, kwargs))
        originals = tf.nest.flatten((node.call_args, node.call_kwargs))
        tensors = {id(tensor) for tensor in node.keras_inputs}
        inputs = [
            ids
            for ids, tensor in zip(values, originals, strict=True)
            if id(tensor) in tensors
        ]
        if is_graph_model(layer):
            outputs = self._nested(layer, inputs, path)
        else:
            call = LayerCall(
                layer,
                self.ids,
                inputs,
                [*args, *kwargs.values()],
                kwargs,
                [tuple(tensor.shape) for tensor in node.keras_inputs],
                tuple(tf.nest.flatten(node.outputs)[0].shape),
            )
            outputs = self._layer(call, node, path)
        self._ignore(path, outputs)
        return outputs

    def _layer(self, call, node, path):
        """The output ids of one call of a layer that is not a model."""
        earlier = self.graph.records.get(id(call.layer))
        if earlier is not None:
            self._tie(earlier, call.inputs, path)
            return [earlier.result.output]
        outputs = tf.nest.flatten(node.outputs)
        try:
            if len(outputs) != 1:
                raise UnsupportedLayer("it has several outputs")
            result = self.rule(call)
        except UnsupportedLayer as reason:
            if call.layer.weights:
                self.graph.unsupported[path] = str(reason)
            for ids in call.inputs:
                if ids is not None:
                    self.ids.pin(ids, path, str(reason))
            return [self._pinned(t.shape, path, str(reason)) for t in outputs]
        if result.tied:
            found = LayerRecord(call.layer, path, call.inputs, result)
            self.graph.records[id(call.layer)] = found
        return [result.output]

    def _nested(self, model, inputs, path):
        """Goes through a nested model, whose input layers are of fixed width."""
        for tensor, ids in zip(model.inputs, inputs, strict=True):
            layer = tensor._keras_history.layer
            if ids is None:
                continue
            if id(layer) in self.graph.records:
                self._tie(self.graph.records[id(layer)], [ids], f"{path}/{layer.name}")
            else:
                self.graph.records[id(layer)] = LayerRecord(
                    layer, f"{path}/{layer.name}", [ids], _input_result(tensor, ids)
                )
        return self._walk(model, inputs, f"{path}/")

    def _tie(self, earlier, inputs, path):
        """Another call of a shared layer sees the channels that the first one saw."""
        if earlier.path != path:
            raise ValueError(
                f"layer {earlier.path!r} is also used as {path!r}; a layer that is "
                "shared between a model and another nested in it cannot lose channels"
            )
        for first, ids in zip(earlier.inputs, inputs, strict=True):
            self.ids.unite(first, ids)

    def _pinned(self, shape, name, reason):
        """New ids for a tensor whose channels all stay."""
        if len(shape) < 2 or shape[-1] is None:
            return None
        ids = self.ids.fresh(shape[-1])
        self.ids.pin(ids, name, reason)
        return ids

    def _ignore(self, path, outputs):
        self.paths.add(path)
        if any(_matches(path, pattern) for pattern in self.ignore):
            for ids in outputs:
                if ids is not None:
                    self.ids.pin(ids, path, "it is ignored")

    def _check_ignored(self):
        for pattern in self.ignore:
            if not any(_matches(path, pattern) for path in self.paths):
                near = difflib.get_close_matches(pattern, self.paths, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
                raise ValueError(
                    f"ignore names layers of the model; {hint}Received: {pattern!r}"
                )


def _matches(path, pattern):
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(
        path.rpartition("/")[2], pattern
    )


def _input_result(tensor, ids):
    shape = tuple(tensor.shape)
    return RuleResult(
        ids,
        config=lambda kept: {"batch_input_shape": (*shape[:-1], int(kept(ids).sum()))},
    )


def kept_layers(graph: ChannelGraph) -> dict[str, str]:
    """`{layer: why}` of the layers with channels that must stay."""
    kept = dict(graph.unsupported)
    for record in graph.records.values():
        for weight in record.result.weights:
            if weight.makes is not None:
                roots = graph.roots[weight.axes[weight.makes]].tolist()
                pinned = [graph.pinned[r] for r in roots if r in graph.pinned]
                if pinned:
                    part = f"{len(pinned)} of {len(roots)} channels: "
                    why = _because(record, *pinned[0])
                    whole = len(pinned) == len(roots)
                    kept[record.path] = why if whole else part + why
    return kept


def _because(record, layer, reason):
    own = layer in (record.path, record.layer.name)
    return reason if own else f"coupled with {layer}: {reason}"


# --- Groups ---


@dataclass(frozen=True)
class Member:
    """Where the channels of a group stand on one axis of one layer's weight.

    Attributes:
        record: The layer.
        weight: Its weight.
        axis: The axis of the weight.
        index: Positions on the axis, shape `(channels of the group, m)`: one
            channel of the group is m places here (after a Flatten, in a grouped
            convolution).
    """

    record: LayerRecord
    weight: WeightAxes
    axis: int
    index: np.ndarray

    def rows(self, values: np.ndarray) -> np.ndarray:
        """The part of `values` (of the weight's shape) that belongs to each channel.

        Returns:
            Array of shape `(channels of the group, everything else)`.
        """
        rows = np.moveaxis(np.asarray(values), self.axis, 0)[self.index]
        return rows.reshape(len(self.index), -1)


@dataclass(frozen=True)
class InputMember:
    """Where the channels of a group stand in the input of a layer that uses them.

    Attributes:
        record: The layer.
        index: Positions on the channel axis, shape `(channels of the group, m)`.
    """

    record: LayerRecord
    index: np.ndarray


@dataclass(frozen=True)
class Group:
    """Channels that can be removed one by one, each from all of these layers.

    Attributes:
        name: The path of the first layer that makes them, with a number after a
            hash from the second such group on, as in `"conv#2"`.
        roots: The ids that stand for them, shape `(channels,)`.
        makers: `Member`s whose filters make the channels.
        users: `Member`s for the kernels that multiply them.
        scales: `Member`s for the factors of batch normalizations.
        inputs: `InputMember`s for the inputs of the layers that use them.
        weights: `Member`s for every axis of a weight that loses them.
    """

    name: str
    roots: Ids
    makers: tuple[Member, ...]
    users: tuple[Member, ...]
    scales: tuple[Member, ...]
    inputs: tuple[InputMember, ...]
    weights: tuple[Member, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the layers whose filters make the channels."""
        return tuple(dict.fromkeys(m.record.path for m in self.makers))

    @property
    def width(self) -> int:
        """How many filters of the first layer one channel of the group stands for."""
        return self.makers[0].index.shape[1]

    def step(self, round_to: int) -> int:
        """How many channels to remove at a time, so that all widths stay round."""
        widths = (member.index.shape[1] for member in self.makers)
        return math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))


@dataclass
class _Slot:
    """One axis of one weight (or of an input), by channel."""

    record: LayerRecord
    weight: WeightAxes | None
    axis: int
    order: np.ndarray
    roots: np.ndarray  # In this order, sorted.

    def index(self, roots: Ids) -> np.ndarray:
        """The positions of the channels that `roots` stand for, `(channels, m)`."""
        first = np.searchsorted(self.roots, roots)
        count = np.searchsorted(self.roots, roots[0], side="right") - first[0]
        return self.order[first[:, None] + np.arange(count)]


def find_groups(graph: ChannelGraph) -> list[Group]:
    """Sorts the channels that may be removed into coupled groups.

    Args:
        graph: A `ChannelGraph`.

    Returns:
        The list of `Group`s in the order of the layers that make them. Channels
        that are pinned are in none.
    """
    slots = _slots(graph)
    places: dict[int, list] = defaultdict(list)  # {root: [(slot, count)]}
    for number, slot in enumerate(slots):
        roots, counts = np.unique(slot.roots, return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            if root not in graph.pinned:
                places[root].append((number, count))
    alike: dict[tuple, list[int]] = defaultdict(list)
    for root in sorted(places):
        alike[tuple(places[root])].append(root)
    groups = []
    for signature, channels in alike.items():
        touched = [slots[number] for number, _ in signature]
        group = _group(np.array(channels), touched)
        if group is not None:
            groups.append(group)
    order = {path: number for number, path in enumerate(_paths(graph))}
    groups.sort(key=lambda group: (order[group.name], group.roots[0]))
    return _tell_apart(groups)


def _tell_apart(groups: list[Group]) -> list[Group]:
    """Numbers the groups whose channels the same layer makes first."""
    seen: Counter = Counter()
    found = []
    for group in groups:
        seen[group.name] += 1
        again = f"#{seen[group.name]}" if seen[group.name] > 1 else ""
        found.append(replace(group, name=group.name + again))
    return found


def _group(roots: Ids, slots: list[_Slot]) -> Group | None:
    weights = [
        Member(slot.record, slot.weight, slot.axis, slot.index(roots))
        for slot in slots
        if slot.weight is not None
    ]
    makers = tuple(m for m in weights if m.weight.makes == m.axis)
    if not makers:
        return None
    return Group(
        name=makers[0].record.path,
        roots=roots,
        makers=makers,
        users=tuple(m for m in weights if m.weight.uses == m.axis),
        scales=tuple(m for m in weights if m.weight.scales),
        inputs=tuple(
            InputMember(slot.record, slot.index(roots))
            for slot in slots
            if slot.weight is None
        ),
        weights=tuple(weights),
    )


def _slots(graph):
    slots = []
    for record in graph.records.values():
        for weight in record.result.weights:
            for axis, ids in weight.axes.items():
                slots.append((record, weight, axis, graph.roots[ids]))
            if weight.uses is not None:
                slots.append((record, None, -1, graph.roots[record.inputs[0]]))
    return [_sorted_slot(*slot) for slot in slots]


def _sorted_slot(record, weight, axis, roots):
    order = np.argsort(roots, kind="stable")
    return _Slot(record, weight, axis, order, roots[order])


def _paths(graph):
    return [record.path for record in graph.records.values()]
