"""Identities of channels: which channels of a model can only go together."""

import numpy as np


class ChannelIds:
    """Hands out channel ids, unites those that are coupled, pins those that stay.

    Each tensor of a model carries a vector with the id of every position on its
    channel axis. Ids that are united (a disjoint-set forest) stand for channels
    that are removed together or not at all.
    """

    def __init__(self):
        self._parents = []
        self._pins = []

    def fresh(self, count):
        """Returns `count` new ids, each on its own, as an int array."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def unite(self, these, those):
        """Couples two id vectors of one length, position by position."""
        for one, other in zip(these.tolist(), those.tolist(), strict=True):
            one, other = self._find(one), self._find(other)
            if one != other:
                self._parents[max(one, other)] = min(one, other)

    def pin(self, ids, layer, reason):
        """Keeps channels from being removed; the layer's name and why are told."""
        self._pins.append((np.asarray(ids, np.int64), layer, reason))

    def roots(self):
        """Returns for every id the smallest id it is coupled with."""
        return np.array([self._find(i) for i in range(len(self._parents))], np.int64)

    def pinned(self, roots):
        """Returns `{root: (layer, reason)}` of the channels that stay."""
        pinned = {}
        for ids, layer, reason in self._pins:
            for root in np.unique(roots[ids]).tolist():
                pinned.setdefault(root, (layer, reason))
        return pinned

    def _find(self, one):
        parents = self._parents
        while parents[one] != one:
            parents[one] = one = parents[parents[one]]
        return one
