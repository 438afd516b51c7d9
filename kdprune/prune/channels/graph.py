"""The channels of a model: their identities, and what is known of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

# The id of each channel of a tensor, an int array of shape `(channels,)`.
Ids = np.ndarray
# Tells which of some ids stay, a boolean array: `kept(ids)`.
Kept = Callable[[Ids], np.ndarray]


class ChannelIds:
    """Hands out channel ids, unites those that are coupled, pins those that stay.

    Each tensor of a model carries a vector with the id of every position on its
    channel axis. Ids that are united (a disjoint-set forest) stand for channels
    that are removed together or not at all.
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pins: list[tuple[np.ndarray, str, str]] = []

    def fresh(self, count: int) -> Ids:
        """Returns `count` new ids, each on its own, as an int array."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def unite(self, these: Ids, those: Ids) -> None:
        """Couples two id vectors of one length, position by position."""
        for one, other in zip(these.tolist(), those.tolist(), strict=True):
            one, other = self._find(one), self._find(other)
            if one != other:
                self._parents[max(one, other)] = min(one, other)

    def pin(self, ids: Ids, layer: str, reason: str) -> None:
        """Keeps channels from being removed; a plan names the layer and the reason."""
        self._pins.append((np.asarray(ids, np.int64), layer, reason))

    def roots(self) -> Ids:
        """Returns for every id the smallest id it is coupled with."""
        return np.array([self._find(i) for i in range(len(self._parents))], np.int64)

    def pinned(self, roots: Ids) -> dict[int, tuple[str, str]]:
        """Returns `{root: (layer, reason)}` of the channels that stay."""
        pinned: dict[int, tuple[str, str]] = {}
        for ids, layer, reason in self._pins:
            for root in np.unique(roots[ids]).tolist():
                pinned.setdefault(root, (layer, reason))
        return pinned

    def _find(self, one: int) -> int:
        parents = self._parents
        while parents[one] != one:
            parents[one] = one = parents[parents[one]]
        return one


class UnsupportedLayer(Exception):
    """Why channels are not followed through a layer; they all stay instead.

    A layer rule raises it with the reason, which completes "kept: ...".
    """


@dataclass
class LayerCall:
    """One call of a layer: what its rule may look at.

    Attributes:
        layer: The layer, built.
        ids: Where new ids come from, and where ids are coupled and pinned.
        inputs: The ids of each input tensor's channels, its last axis.
        arguments: All arguments of the call, with ids for tensors.
        keywords: The keyword arguments of the call.
        input_shapes: One shape, a tuple, for each input tensor.
        output_shape: The shape of the output tensor.
    """

    layer: keras.layers.Layer
    ids: ChannelIds
    inputs: list[Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    input_shapes: list[tuple]
    output_shape: tuple

    @property
    def has_constant_arrays(self) -> bool:
        """Whether the layer is called on numbers for each channel, too."""
        tensors = {id(vector) for vector in self.inputs}
        constants = [a for a in self.arguments if id(a) not in tensors]
        return any(
            any(id(item) not in tensors for item in constant)
            if isinstance(constant, (list, tuple))
            else np.ndim(constant) and np.shape(constant)[-1] != 1
            for constant in constants
        )

    def pin(self, ids: Ids, reason: str) -> None:
        """Keeps channels from being removed, for a reason that a plan tells."""
        self.ids.pin(ids, self.layer.name, reason)


@dataclass
class WeightAxes:
    """A weight and the ids on those of its axes that lose channels.

    Attributes:
        variable: The `tf.Variable`.
        axes: `{axis: ids}`.
        makes: The axis whose positions are the filters that make channels.
        uses: The axis whose positions multiply the channels that come in.
        scales: True for the factors of a normalization.
    """

    variable: tf.Variable
    axes: dict[int, Ids]
    makes: int | None = None
    uses: int | None = None
    scales: bool = False


@dataclass
class RuleResult:
    """What a layer rule found.

    Attributes:
        output: The ids on the output's channel axis.
        weights: The weights that lose channels.
        config: `config(kept)` returns the entries of the layer's configuration
            that change, `kept(ids)` being a boolean array.
    """

    output: Ids
    weights: list[WeightAxes] = field(default_factory=list)
    config: Callable[[Kept], dict[str, Any]] | None = None

    @property
    def tied(self) -> bool:
        """Whether all calls of a shared layer must see the same channels."""
        return bool(self.weights) or self.config is not None


@dataclass
class LayerRecord:
    """A layer that loses channels, and what its rule found.

    Attributes:
        layer: The layer.
        path: Its name, after the names of the nested models it is in:
            `"nested/layer"`.
        inputs: The ids of its inputs.
        result: Its output's ids, its weights' axes, its configuration.
    """

    layer: keras.layers.Layer
    path: str
    inputs: list[Any]
    result: RuleResult


@dataclass
class ChannelGraph:
    """The channels of a model and which of them can only be removed together.

    Attributes:
        model: The model.
        records: `{id(layer): LayerRecord}`, in the order of execution.
        roots: For every id the one that stands for all it is coupled with.
        pinned: `{root: (layer name, reason)}` of what cannot be removed.
        unsupported: `{path: reason}` of the layers with weights that have no rule.
    """

    model: keras.Model
    records: dict[int, LayerRecord] = field(default_factory=dict)
    roots: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    pinned: dict[int, tuple[str, str]] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)

    def weights(self) -> list[WeightAxes]:
        """All weights that lose channels, in the order of execution."""
        return [w for record in self.records.values() for w in record.result.weights]
