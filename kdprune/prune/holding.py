"""Weights that are zero and stay zero, under any training loop of Keras."""

import base64
from collections import defaultdict

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import is_graph_model, named_layers, rebuild

# The weights that masks may be for, and the setting that constrains each. The mean
# of a normalization needs none: its input is zero wherever it is masked.
_CONSTRAINTS = {
    "kernel": "kernel_constraint",
    "depthwise_kernel": "depthwise_constraint",
    "pointwise_kernel": "pointwise_constraint",
    "bias": "bias_constraint",
    "gamma": "gamma_constraint",
    "beta": "beta_constraint",
    "moving_mean": None,
}


@keras.utils.register_keras_serializable("kdprune")
class HeldZeros(keras.constraints.Constraint):
    """Sets weights back to zero after each step of an optimizer.

    Args:
        mask: Booleans of the weight's shape, True where it may move.
    """

    def __init__(self, mask):
        self.mask = np.array(mask, bool)

    def __call__(self, weight):
        return tf.where(self.mask, weight, tf.zeros_like(weight))

    def get_config(self):
        bits = base64.b64encode(np.packbits(self.mask)).decode("ascii")
        return {"shape": list(self.mask.shape), "bits": bits}

    @classmethod
    def from_config(cls, config):
        shape = config["shape"]
        bits = np.frombuffer(base64.b64decode(config["bits"]), np.uint8)
        count = int(np.prod(shape, dtype=np.int64))
        return cls(np.unpackbits(bits, count=count).reshape(shape))


def hold_masks(model, masks=None):
    """Zeroes the masked weights and makes them stay zero while the model learns.

    The zeros are held by a constraint on the weight, which every Keras optimizer
    applies after its step: in `fit`, in a `Distiller`, in a loop of one's own, in any
    precision and under `tf.distribute`. No callback is needed. After training, call
    `release_masks`; averages that an optimizer keeps of the weights (`use_ema`) are
    made zero again there, and there only.

    Args:
        model: A built Functional or Sequential model; left as it is.
        masks: Of `weight_masks` or `activation_masks`. Without any, the zeros that
            the model has in its Conv2D and Dense kernels are held.

    Returns:
        A new `keras.Model` of the same layers and names, not compiled.

    Raises:
        ValueError: If a mask is not of a weight of the model, or that weight is
            under another constraint.

    Example:
        >>> held = hold_masks(model, weight_masks(model, beta=0.1))
        >>> held.compile("adam", loss).fit(images, labels)
        >>> save_model(release_masks(held), "pruned.keras")
    """
    if not is_graph_model(model):
        raise ValueError(
            "weights are masked in built Functional and Sequential models. "
            f"Received: {type(model).__name__}; build it from keras.Input and calls of "
            "its layers."
        )
    masks = _zeros(model) if masks is None else masks
    variables = weights_by_name(model)
    layers = dict(named_layers(model))
    for name, mask in masks.items():
        if name not in variables or np.shape(mask) != tuple(variables[name].shape):
            known = tuple(variables[name].shape) if name in variables else "none"
            raise ValueError(
                f"masks are arrays of the shape of a weight. Received: {name!r} of "
                f"shape {np.shape(mask)}, where the model's is {known}"
            )
        path, _, weight = name.rpartition("/")
        setting = _CONSTRAINTS[weight]
        other = getattr(layers[path], setting, None) if setting else None
        if other is not None:
            raise ValueError(
                f"weight {name!r} is under a constraint already "
                f"({type(other).__name__}); remove that (release_masks), then mask it"
            )
    return _rebuilt(model, masks, hold=True)


def release_masks(model):
    """Removes what `hold_masks` added; every masked weight is exactly zero.

    Returns:
        A plain `keras.Model` of the same layers, weights and names.
    """
    return _rebuilt(model, _held(model), hold=False)


def check_masks(model, masks):
    """Raises a `ValueError` unless every masked weight is exactly zero.

    Args:
        model: The model, best as loaded from its file.
        masks: What it was masked with.

    Raises:
        ValueError: If a weight is missing or not zero; the message names it.
    """
    variables = weights_by_name(model)
    for name, mask in masks.items():
        if name not in variables:
            raise ValueError(f"masks are of weights of the model. Received: {name!r}")
        count = np.count_nonzero(variables[name].numpy()[~np.asarray(mask, bool)])
        if count:
            raise ValueError(
                f"expected zeros wherever {name!r} is masked. Received: {count} other "
                "weights; train what hold_masks returns and save what release_masks "
                "returns"
            )


def weights_by_name(model):
    """`{"layer/weight": variable}` of the weights that masks may be for.

    Layers of nested models are `"nested/layer"`.
    """
    return {
        f"{path}/{weight}": getattr(layer, weight)
        for path, layer in named_layers(model)
        for weight, setting in _CONSTRAINTS.items()
        if isinstance(getattr(layer, weight, None), tf.Variable)
        and (setting is None or hasattr(layer, setting))
    }


def _zeros(model):
    masks = {
        name: variable.numpy() != 0
        for name, variable in weights_by_name(model).items()
        if name.endswith("/kernel")
    }
    return {name: mask for name, mask in masks.items() if not mask.all()}


def _held(model):
    """The masks that constraints of a model hold."""
    masks = {}
    for path, layer in named_layers(model):
        for weight, setting in _CONSTRAINTS.items():
            constraint = getattr(layer, setting, None) if setting else None
            if isinstance(constraint, HeldZeros):
                masks[f"{path}/{weight}"] = constraint.mask
    return masks


def _rebuilt(model, masks, hold):
    """The same model, masked, with constraints that hold the masks or without."""
    layers, settings = dict(named_layers(model)), defaultdict(dict)
    for name, mask in masks.items():
        path, _, weight = name.rpartition("/")
        if _CONSTRAINTS[weight]:
            settings[path][_CONSTRAINTS[weight]] = HeldZeros(mask) if hold else None
    changes = {id(layers[path]): entries for path, entries in settings.items()}
    rebuilt = rebuild(model, config=lambda layer: changes.get(id(layer)))
    variables = weights_by_name(rebuilt)
    for name, mask in masks.items():
        values = variables[name].numpy()
        variables[name].assign(np.where(mask, values, np.zeros_like(values)))
    return rebuilt
