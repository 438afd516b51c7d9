"""Coupled groups: the channels that the same layers make and use."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from kdprune.prune.channels.calls import Weight
from kdprune.prune.channels.graph import Followed


@dataclass(frozen=True)
class Member:
    """Where the channels of a group stand on one axis of one layer's weight.

    Attributes:
        followed: The layer.
        weight: Its weight, or `None` for the layer's input tensor.
        axis: The axis of the weight.
        index: Positions on the axis, shape `(channels of the group, m)`: one
            channel of the group is m places here (after a Flatten, in a grouped
            convolution).
    """

    followed: Followed
    weight: Weight | None
    axis: int
    index: np.ndarray

    def rows(self, values):
        """The part of `values` (of the weight's shape) that belongs to each channel.

        Returns:
            Array of shape `(channels of the group, everything else)`.
        """
        rows = np.moveaxis(np.asarray(values), self.axis, 0)[self.index]
        return rows.reshape(len(self.index), -1)


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
        inputs: `Member`s for the input tensors of the layers that use them.
        weights: `Member`s for every axis of a weight that is cut with them.
    """

    name: str
    roots: np.ndarray
    makers: tuple
    users: tuple
    scales: tuple
    inputs: tuple
    weights: tuple

    @property
    def layers(self):
        """The paths of the layers whose filters make the channels."""
        return tuple(dict.fromkeys(m.followed.path for m in self.makers))

    @property
    def width(self):
        """How many filters of the first layer one channel of the group stands for."""
        return self.makers[0].index.shape[1]

    def step(self, round_to):
        """How many channels to remove at a time, so that all widths stay round."""
        widths = (member.index.shape[1] for member in self.makers)
        return math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))


@dataclass
class _Slot:
    """One axis of one weight (or of an input), by channel."""

    followed: Followed
    weight: Weight | None
    axis: int
    order: np.ndarray
    roots: np.ndarray  # In this order, sorted.

    def index(self, roots):
        """The positions of the channels that `roots` stand for, `(channels, m)`."""
        first = np.searchsorted(self.roots, roots)
        count = np.searchsorted(self.roots, roots[0], side="right") - first[0]
        return self.order[first[:, None] + np.arange(count)]


def find_groups(graph):
    """Sorts the channels that may be removed into coupled groups.

    Args:
        graph: A `ChannelGraph`.

    Returns:
        The list of `Group`s in the order of the layers that make them. Channels
        that are pinned are in none.
    """
    slots = _slots(graph)
    places = defaultdict(list)  # {root: [(slot, count)]}
    for number, slot in enumerate(slots):
        roots, counts = np.unique(slot.roots, return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            if root not in graph.pinned:
                places[root].append((number, count))
    alike = defaultdict(list)
    for root in sorted(places):
        alike[tuple(places[root])].append(root)
    groups = []
    for signature, roots in alike.items():
        touched = [slots[number] for number, _ in signature]
        group = _group(np.array(roots), touched)
        if group is not None:
            groups.append(group)
    order = {path: number for number, path in enumerate(_paths(graph))}
    groups.sort(key=lambda group: (order[group.name], group.roots[0]))
    return _tell_apart(groups)


def _tell_apart(groups):
    """Numbers the groups whose channels the same layer makes first."""
    seen, found = Counter(), []
    for group in groups:
        seen[group.name] += 1
        again = f"#{seen[group.name]}" if seen[group.name] > 1 else ""
        found.append(replace(group, name=group.name + again))
    return found


def _group(roots, slots):
    members = [
        Member(slot.followed, slot.weight, slot.axis, slot.index(roots))
        for slot in slots
    ]
    weights = [m for m in members if m.weight is not None]
    makers = tuple(m for m in weights if m.weight.makes == m.axis)
    if not makers:
        return None
    return Group(
        name=makers[0].followed.path,
        roots=roots,
        makers=makers,
        users=tuple(m for m in weights if m.weight.uses == m.axis),
        scales=tuple(m for m in weights if m.weight.scales),
        inputs=tuple(m for m in members if m.weight is None),
        weights=tuple(weights),
    )


def _slots(graph):
    slots = []
    for followed in graph.followed.values():
        for weight in followed.trace.weights:
            for axis, ids in weight.axes.items():
                slots.append((followed, weight, axis, graph.roots[ids]))
            if weight.uses is not None:
                slots.append((followed, None, -1, graph.roots[followed.inputs[0]]))
    return [_sorted_slot(*slot) for slot in slots]


def _sorted_slot(followed, weight, axis, roots):
    order = np.argsort(roots, kind="stable")
    return _Slot(followed, weight, axis, order, roots[order])


def _paths(graph):
    return [followed.path for followed in graph.followed.values()]
