"""What int8 has no operator for, written in terms of what it has.

Quantization-aware training needs a flat graph of layers, each of which becomes one
int8 operator. What is made of other layers, all exact in float:

    a model inside the model            its layers
    functions of TensorFlow             layers
    BatchNormalization behind Dense     the Dense layer's weights and bias
    BatchNormalization that no          a 1 x 1 depthwise convolution, of which zero
      convolution before it takes up,     padding behind it does not matter
      Rescaling, Normalization
    hard-sigmoid                        the same, and ReLU(max_value=1)
    x * hard-sigmoid(x), in pieces      Activation(hard_silu)
    swish                               x * sigmoid(x)
    an activation inside a              the layer, then Activation
      convolution or dense layer
    sums and products of many           those of two
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import NDArray

from kdprune._graph import nodes, rebuild, remake
from kdprune.intake.inline import inline
from kdprune.intake.keras_layers import hard_silu
from kdprune.intake.tf_operations import replace_operations

layers = keras.layers

# What TFMOT quantizes together with a normalization right behind it, as the converter
# does: it leaves that behind a Dense layer an operator of its own, in float.
_TAKES_NORM = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
_WITH_ACTIVATION = (*_TAKES_NORM, layers.Dense, layers.Conv2DTranspose)
# The activations that such a layer has inside, as TFMOT takes them.
_INSIDE = ("linear", "relu")
# At the end of a model they are what its scores are; TFMOT takes these as well.
_FINAL = (*_INSIDE, "softmax", "sigmoid", "tanh")
_IN_OTHER_TERMS = {
    "hard_sigmoid": "a 1 x 1 depthwise convolution and a ReLU",
    "leaky_relu": "a LeakyReLU layer",
    "relu6": "a ReLU layer",
    "swish": "x * sigmoid(x)",
}
# Left in float without being asked to: no int8 form is exact enough.
FLOAT_KINDS = (layers.LayerNormalization,)
_TOLERANCE = 1e-4  # Of the largest output, between the model and the rewritten one.


@dataclass
class Rewritten:
    """A model whose layers all have an int8 form, or are to stay in float.

    Attributes:
        model: The same one where nothing was rewritten.
        changes: A line for each thing that was.
        float_groups: Layers to leave in float, in lists that become one operator.
        lines: Names of the 1 x 1 depthwise convolutions that were made. With one
            weight for each channel, int8 holds it exactly.
    """

    model: keras.Model
    changes: list[str] = field(default_factory=list)
    float_groups: list[list[str]] = field(default_factory=list)
    lines: set[str] = field(default_factory=set)


def flat_graph(model: keras.Model) -> tuple[keras.Model, list[str]]:
    """One graph of layers: without models inside and without functions.

    Returns:
        `(model, changes)`: the same model, where there is nothing to do.

    Raises:
        ValueError: As `kdprune.intake.inline.inline` does.
    """
    flat, inlined = inline(model, keep_dropout=True)
    flat, replaced = replace_operations(flat)
    return flat, [*inlined, *replaced]


def rewrite(
    model: keras.Model, float_layers: Collection[str] = (), keep_weights: bool = False
) -> Rewritten:
    """Rewrites a model for quantization-aware training.

    Args:
        model: A float32 graph model without obstacles (see `qat_obstacles`); left
            as it is.
        float_layers: Names of layers to leave as they are, in float.
        keep_weights: Leave the distinct weights of kernels what they are: normalization
            behind Dense layers is not folded then, which scales each unit's.

    Returns:
        The model that `quantize_model` wraps, and what was done.

    Raises:
        ValueError: If the rewritten model does not give the outputs of the given one.
    """
    flat, changes = flat_graph(model)
    groups = float_groups(flat, float_layers)
    in_float = {name for group in groups for name in group}
    if not keep_weights:
        flat, folded = _without_dense_norms(flat, in_float)
        changes += folded
    rewriter = _Rewriter(flat, in_float)
    rewritten = rebuild(flat, config=rewriter.config, call=rewriter.call)
    changes += rewriter.changes
    if not changes:
        return Rewritten(model, [], groups)
    if not rewriter.changes:
        rewritten = flat
    _check_same(model, rewritten)
    kept = {layer.name for layer in rewritten.layers}
    return Rewritten(rewritten, changes, groups, rewriter.lines & kept)


def normalization_is_folded(layer: Any) -> bool:
    """Whether a BatchNormalization is taken up by the layer before it.

    That is a convolution without an activation that nothing else reads.
    """
    return _takes(source_of(layer), _TAKES_NORM)


def _takes(source: Any, kinds: tuple[type, ...]) -> bool:
    return (
        type(source) in kinds
        and activation_name(source) == "linear"
        and _is_called_once(source)
        and len(source._outbound_nodes) == 1
    )


def _without_dense_norms(
    flat: keras.Model, kept: Collection[str]
) -> tuple[keras.Model, list[str]]:
    """Folds normalization into the Dense layers that it is right behind of.

    In inference that is exact. Trained further, the layer learns without it; where one
    of the two is frozen and the other is not, both are left as they are.
    """
    changes: list[str] = []
    folded: dict[int, list[NDArray]] = {}
    bypass = {}
    for node in nodes(flat):
        norm, source = node.layer, source_of(node.layer)
        if not isinstance(norm, layers.BatchNormalization) or {
            norm.name,
            getattr(source, "name", ""),
        } & set(kept):
            continue
        found = per_channel(norm) if _takes(source, (layers.Dense,)) else None
        if found is None or norm.trainable != source.trainable:
            continue
        scale, shift = found
        kernel, *bias = source.get_weights()
        folded[id(source)] = [kernel * scale, (bias[0] if bias else 0) * scale + shift]
        bypass[node] = node.keras_inputs[0]
        changes.append(
            f"layer {norm.name!r} (BatchNormalization): part of {source.name!r} (Dense)"
        )
    if not bypass:
        return flat, []
    return rebuild(
        flat,
        config=lambda layer: {"use_bias": True} if id(layer) in folded else None,
        weights=lambda old, new: folded.get(id(old)),
        bypass=bypass,
    ), changes


def source_of(layer: Any) -> Any:
    """The layer whose output a layer takes; None of several or of none."""
    if not _is_called_once(layer):
        return None
    inputs = layer._inbound_nodes[0].keras_inputs
    return inputs[0]._keras_history.layer if len(inputs) == 1 else None


def activation_name(layer: Any) -> str:
    """What a layer's activation is called; "linear" of a layer without."""
    activation = getattr(layer, "activation", None) or keras.activations.linear
    name = getattr(activation, "__name__", type(activation).__name__)
    return {"silu": "swish"}.get(name, name)


def per_channel(layer: Any) -> tuple[NDArray, NDArray] | None:
    """`(scale, shift)` of a layer that does no more to each channel in inference.

    Returns:
        Arrays `(channels,)` in double precision; None of another layer, or one that
        has other numbers for each place, or channels on another axis than the last.
    """
    shape = layer.input_shape
    if not isinstance(shape, tuple) or shape[-1] is None:
        return None
    if isinstance(layer, layers.BatchNormalization):
        axes = np.ravel(layer.axis)
        if len(axes) != 1 or axes[0] not in (-1, len(shape) - 1):
            return None
        variance = np.asarray(layer.moving_variance, np.float64)
        scale = 1 / np.sqrt(variance + layer.epsilon)
        if layer.scale:
            scale = scale * np.asarray(layer.gamma)
        shift = -scale * np.asarray(layer.moving_mean)
        if layer.center:
            shift = shift + np.asarray(layer.beta)
    elif isinstance(layer, layers.Normalization):
        if layer.invert:
            return None
        mean = np.asarray(layer.mean, np.float64)
        deviation = np.sqrt(np.asarray(layer.variance, np.float64))
        scale = 1 / np.maximum(deviation, keras.backend.epsilon())
        shift = -mean * scale
    elif isinstance(layer, layers.Rescaling):
        scale, shift = (np.asarray(v, np.float64) for v in (layer.scale, layer.offset))
    else:
        return None
    try:
        found = [
            np.broadcast_to(part, (1,) * (len(shape) - 1) + shape[-1:]).ravel()
            for part in (scale, shift)
        ]
    except ValueError:
        return None
    return found[0], found[1]


def float_groups(flat: keras.Model, names: Collection[str]) -> list[list[str]]:
    """The layers to leave in float, with those that become one operator with them.

    A convolution takes the normalization and the ReLU behind it along, and they it.

    Args:
        flat: What `flat_graph` returned.
        names: Names of layers.

    Returns:
        Lists of names in the order of execution.
    """
    groups: list[list[str]] = []
    for node in nodes(flat):
        layer = node.layer
        if any(layer.name in group for group in groups):
            continue
        group = [layer]
        if isinstance(layer, _WITH_ACTIVATION) and activation_name(layer) == "linear":
            for kind in (layers.BatchNormalization, (layers.ReLU, layers.Activation)):
                reader = only_reader(group[-1])
                if isinstance(reader, kind) and (
                    isinstance(reader, (layers.BatchNormalization, layers.ReLU))
                    or activation_name(reader) in ("relu", "relu6")
                ):
                    group.append(reader)
        members = [one.name for one in group]
        if set(members) & set(names) or isinstance(layer, FLOAT_KINDS):
            groups.append(members)
    return groups


def only_reader(layer: Any) -> Any:
    """The layer that alone reads a layer; None of several or of none."""
    if len(layer._outbound_nodes) != 1 or not _is_called_once(layer):
        return None
    return layer._outbound_nodes[0].layer


def _is_called_once(layer: Any) -> bool:
    return len(layer._inbound_nodes) == 1


class _Rewriter:
    """The functions that `rebuild` asks, and what they have to remember."""

    def __init__(self, model: keras.Model, kept: Collection[str]) -> None:
        self.changes: list[str] = []
        self.lines: set[str] = set()
        self.kept = kept
        self.finals = {id(t._keras_history.layer) for t in model.outputs}
        self.names = {layer.name for layer in model.layers}
        self.called: set[str] = set()
        # Of tensors of the new model: what made them, `(kind, *inputs and numbers)`.
        self.made: dict[int, tuple] = {}
        self.tensors: list[Any] = []  # Whose identities are in use.
        self.rules: dict[type, Callable[..., Any]] = {
            layers.BatchNormalization: self._normalization,
            layers.Rescaling: self._affine,
            layers.Normalization: self._affine,
            layers.Activation: self._activation,
            layers.ReLU: self._relu,
            layers.Add: self._add,
            layers.Average: self._average,
            layers.Multiply: self._multiply,
        }

    def config(self, layer: Any) -> dict[str, Any] | None:
        return {"activation": "linear"} if self._splits(layer) else None

    def call(self, node: Any, args: Any, kwargs: Any, copied: Any) -> Any:
        layer = node.layer
        if layer.name in self.kept:
            return copied()
        if layer.name in self.called and not layer.weights:
            # Each call becomes an operator with a range of its own.
            layer = remake(layer, name=self._new_name(layer.name))
            self._note(layer, f"for another call of {node.layer.name!r}")
            return self._ruled(layer, args, lambda: layer(*args, **kwargs))
        self.called.add(layer.name)
        return self._ruled(layer, args, copied)

    def _ruled(self, layer: Any, args: Any, copied: Any) -> Any:
        if self._splits(layer):
            name = activation_name(layer)
            self._note(layer, f"its activation {name}: a layer of its own")
            made = self._new_name(f"{layer.name}_{name}")
            return self._activated(layer.activation, copied(), made)
        rule = self.rules.get(type(layer))
        return copied() if rule is None else rule(layer, args[0], copied)

    def _splits(self, layer: Any) -> bool:
        if layer.name in self.kept or not isinstance(layer, _WITH_ACTIVATION):
            return False
        final = id(layer) in self.finals
        return activation_name(layer) not in (_FINAL if final else _INSIDE)

    # --- Rules: what stands for a call of a layer on these inputs ---

    def _normalization(self, layer: Any, x: Any, copied: Any) -> Any:
        folded = normalization_is_folded(layer) and (
            source_of(layer).name not in self.kept
        )
        return copied() if folded else self._affine(layer, x, copied)

    def _affine(self, layer: Any, x: Any, copied: Any) -> Any:
        found = per_channel(layer)
        assert found is not None  # Else it is an obstacle.
        scale, shift = found
        kind, *parts = self._origin(x)
        sixth = _is(scale, 1 / 6) and _is(shift, 0)
        if sixth and kind == "relu6" and self._adds_three(parts[0]):
            self._note(layer, "with what stands before it: a hard-sigmoid")
            return self._hard_sigmoid(self._origin(parts[0])[1], layer.name, 1 / 6, 0.5)
        if sixth and kind == "product":
            for a, b in (parts, parts[::-1]):
                kind_b, *of_b = self._origin(b)
                if kind_b == "relu6" and self._adds_three(of_b[0], a):
                    self._note(layer, "with what stands before it: hard-swish")
                    return self._hard_silu(a, layer.name)
        self._note(layer, "a 1 x 1 depthwise convolution")
        source, total, offset = x, scale, shift
        trainable = layer.trainable and isinstance(layer, layers.BatchNormalization)
        if kind == "affine":  # One operator for arithmetic on arithmetic.
            source, first_scale, first_shift, first_trainable = parts[3:]
            total, offset = first_scale * scale, first_shift * scale + shift
            trainable = trainable or first_trainable
        made = self._depthwise(source, total, offset, layer.name, trainable)
        whole = source, total, offset, trainable
        return self._remember(made, "affine", x, scale, shift, *whole)

    def _activation(self, layer: Any, x: Any, copied: Any) -> Any:
        name = activation_name(layer)
        is_layer = isinstance(layer.activation, layers.Layer)
        if not is_layer and name not in _IN_OTHER_TERMS:
            return copied()
        self._note(layer, f"{name}: {_IN_OTHER_TERMS.get(name, 'a layer of its own')}")
        return self._activated(layer.activation, x, layer.name)

    def _activated(self, activation: Any, x: Any, name: str) -> Any:
        """An activation as layers, the last of which has this name."""
        if isinstance(activation, layers.Layer):
            return remake(activation, name=name)(x)
        kind = activation_name(layers.Activation(activation))
        if kind == "swish":
            gate = layers.Activation("sigmoid", name=self._new_name(f"{name}_sigmoid"))
            return layers.Multiply(name=name)([x, gate(x)])
        if kind == "hard_sigmoid":
            # Keras 2 has another slope than the rest of the world.
            slope = 0.2 if activation is keras.activations.hard_sigmoid else 1 / 6
            return self._hard_sigmoid(x, name, slope, 0.5)
        if kind == "leaky_relu":
            return layers.LeakyReLU(0.2, name=name)(x)
        if kind == "relu6":
            return self._remember(layers.ReLU(6.0, name=name)(x), "relu6", x)
        return layers.Activation(activation, name=name)(x)

    def _relu(self, layer: Any, x: Any, copied: Any) -> Any:
        if layer.negative_slope and layer.max_value is None and not layer.threshold:
            self._note(layer, "LeakyReLU")
            slope = float(layer.negative_slope)
            return layers.LeakyReLU(slope, name=layer.name)(x)
        made = copied()
        if layer.max_value == 6 and not layer.negative_slope and not layer.threshold:
            self._remember(made, "relu6", x)
        return made

    def _add(self, layer: Any, given: Any, copied: Any) -> Any:
        if len(given) == 2:
            return copied()
        self._note(layer, "sums of two")
        return self._in_pairs(layers.Add, given, layer.name)

    def _average(self, layer: Any, given: Any, copied: Any) -> Any:
        self._note(layer, "a sum and a 1 x 1 depthwise convolution")
        name = self._new_name(f"{layer.name}_sum")
        total = self._in_pairs(layers.Add, given, name)
        channels = np.ones(total.shape[-1])
        share = channels / len(given)
        return self._depthwise(total, share, 0 * channels, layer.name, False)

    def _multiply(self, layer: Any, given: Any, copied: Any) -> Any:
        if len(given) != 2:
            self._note(layer, "products of two")
            return self._in_pairs(layers.Multiply, given, layer.name)
        for a, b in (given, given[::-1]):
            kind, *parts = self._origin(b)
            if kind == "hard_sigmoid" and parts[0] is a:
                self._note(layer, "with what stands before it: hard-swish")
                return self._hard_silu(a, layer.name)
        return self._remember(copied(), "product", *given)

    # --- What the rules are made of ---

    def _hard_silu(self, x: Any, name: str) -> Any:
        return layers.Activation(hard_silu, name=name)(x)

    def _hard_sigmoid(self, x: Any, name: str, slope: float, offset: float) -> Any:
        channels = np.ones(x.shape[-1])
        inner = self._new_name(f"{name}_slope")
        line = self._depthwise(x, slope * channels, offset * channels, inner, False)
        made = layers.ReLU(1.0, name=name)(line)
        # Of another slope it is no part of hard-swish.
        kind = "hard_sigmoid" if _is(slope, 1 / 6) else "other"
        return self._remember(made, kind, x)

    def _depthwise(
        self, x: Any, scale: NDArray, shift: NDArray, name: str, trainable: bool
    ) -> Any:
        layer = layers.DepthwiseConv2D(1, name=name, trainable=trainable)
        self.lines.add(name)
        shape = tuple(x.shape[1:])
        flat = len(shape) != 3
        if flat:  # As an image of one row.
            size = int(np.prod(shape[:-1]))
            reshape = layers.Reshape(
                (1, size, shape[-1]), name=self._new_name(f"{name}_row")
            )
            x = reshape(x)
        made = layer(x)
        layer.set_weights([scale.reshape(1, 1, -1, 1), shift])
        if flat:
            made = layers.Reshape(shape, name=self._new_name(f"{name}_shape"))(made)
        return made

    def _in_pairs(self, kind: Any, given: list, name: str) -> Any:
        total = given[0]
        for index, item in enumerate(given[1:], 2):
            last = index == len(given)
            part = name if last else self._new_name(f"{name}_{index}")
            total = kind(name=part)([total, item])
        return total

    def _adds_three(self, tensor: Any, source: Any = None) -> bool:
        kind, *parts = self._origin(tensor)
        return (
            kind == "affine"
            and (source is None or parts[0] is source)
            and _is(parts[1], 1)
            and _is(parts[2], 3)
        )

    def _remember(self, tensor: Any, *origin: Any) -> Any:
        self.tensors.append(tensor)
        self.made[id(tensor)] = origin
        return tensor

    def _origin(self, tensor: Any) -> tuple:
        return self.made.get(id(tensor), ("other",))

    def _note(self, layer: Any, what: str) -> None:
        self.changes.append(f"layer {layer.name!r} ({type(layer).__name__}): {what}")

    def _new_name(self, name: str) -> str:
        number, free = 1, name
        while free in self.names:
            number += 1
            free = f"{name}_{number}"
        self.names.add(free)
        return free


def _is(found: Any, expected: float) -> bool:
    return bool(np.allclose(found, expected, rtol=1e-5, atol=1e-6))


def _check_same(model: keras.Model, rewritten: keras.Model) -> None:
    """Holds the rewritten model's outputs on random images against the given one's."""
    rng = np.random.default_rng(0)
    given = [
        rng.random((2, *(size or 32 for size in tensor.shape[1:])), np.float32)
        for tensor in model.inputs
    ]
    inputs = given[0] if len(given) == 1 else given
    before, after = (
        [np.asarray(part) for part in tf.nest.flatten(one(inputs, training=False))]
        for one in (model, rewritten)
    )
    for old, new in zip(before, after, strict=True):
        largest = float(np.abs(old).max())
        difference = float(np.abs(old - new).max())
        if not difference <= _TOLERANCE * largest:
            raise ValueError(
                f"model {model.name!r} can't be rewritten for quantization-aware "
                f"training: its outputs of up to {largest:.3g} would change by "
                f"{difference:.3g} on random images; quantize it after training, and "
                "please report it"
            )
