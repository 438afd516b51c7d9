"""What a layer's handler is given and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune.prune.channels.ids import ChannelIds


class CannotFollow(Exception):
    """Why channels are not followed through a layer; they are pinned instead."""


@dataclass
class Call:
    """One call of a layer: what its handler may look at.

    Attributes:
        layer: The layer.
        ids: Where new ids come from.
        inputs: The id vector of each input tensor, `None` for a tensor without a
            channel axis of known size.
        arguments: All arguments of the call, with id vectors for tensors.
        keywords: The keyword arguments of the call.
        input_shapes: One shape, a tuple, for each input tensor.
        output_shape: The shape of the output tensor.
    """

    layer: keras.layers.Layer
    ids: ChannelIds
    inputs: list
    arguments: list
    keywords: dict
    input_shapes: list
    output_shape: tuple

    @property
    def has_constant_arrays(self):
        """Whether the layer is called on numbers for each channel, too."""
        tensors = {id(vector) for vector in self.inputs}
        constants = [a for a in self.arguments if id(a) not in tensors]
        return any(
            any(id(item) not in tensors for item in constant)
            if isinstance(constant, (list, tuple))
            else np.ndim(constant) and np.shape(constant)[-1] != 1
            for constant in constants
        )

    def pin(self, ids, reason):
        self.ids.pin(ids, self.layer.name, reason)


@dataclass
class Weight:
    """A weight and the ids on those of its axes that are cut with channels.

    Attributes:
        variable: The `tf.Variable`.
        axes: `{axis: ids}`.
        makes: The axis whose positions are the filters that make channels.
        uses: The axis whose positions multiply the channels that come in.
        scales: True for the factors of a normalization.
    """

    variable: tf.Variable
    axes: dict
    makes: int | None = None
    uses: int | None = None
    scales: bool = False


@dataclass
class Trace:
    """What a handler found.

    Attributes:
        output: The ids on the output's channel axis.
        weights: The `Weight`s that are cut.
        config: `config(kept)` returns the entries of the layer's configuration
            that change, `kept(ids)` being a boolean array.
    """

    output: np.ndarray
    weights: list = field(default_factory=list)
    config: Callable | None = None

    @property
    def tied(self):
        """Whether all calls of a shared layer must see the same channels."""
        return bool(self.weights) or self.config is not None
