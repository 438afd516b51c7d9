"""Training that sorts channels: batch normalization's factors are pulled to zero."""

from __future__ import annotations

import tf_keras as keras

from kdprune._graph import check_float_model, frozen_layers, named_layers, rebuild
from kdprune._log import logger


def add_bn_l1(model: keras.Model, strength: float = 1e-4) -> keras.Model:
    """Makes a model whose batch normalization factors are trained towards zero.

    Their absolute values, times `strength`, are added to the loss in training, so
    that channels which are not needed show by a factor near zero; then prune with
    `importance="bn_scale"`. Those of frozen layers stay as they are, which is logged.

    Reference: Liu et al., 2017, https://arxiv.org/abs/1708.06519, section 3.

    Args:
        model: A built Functional or Sequential model; left as it is.
        strength: The weight of the penalty, 1e-5 to 1e-3 in most cases.

    Returns:
        A new model of the same weights, not compiled.

    Raises:
        ValueError: If the model has no graph or no batch normalization with
            factors to train, or the strength is not positive.
    """
    check_float_model(model)
    if not strength > 0:
        raise ValueError(f"strength must be positive. Received: {strength}")
    scaled = _scaled(model)
    frozen = frozen_layers(model)
    held = [path for path, layer in frozen.items() if layer in scaled]
    if len(held) == len(scaled):
        raise ValueError(
            "the model must have batch normalization with scale=True that is not "
            f"frozen. Received: {model.name!r} without"
        )
    if held:
        logger.warning("the penalty moves no frozen factors: %s", ", ".join(held))
    hidden = [one.name for one in _norms(model._flatten_layers()) if one not in scaled]
    if hidden:
        logger.warning(
            "the penalty does not reach what the graph does not show: %s",
            ", ".join(hidden),
        )
    return _with_penalty(model, keras.regularizers.L1(strength))


def strip_bn_l1(model: keras.Model) -> keras.Model:
    """Removes the penalty of `add_bn_l1`: later training has none.

    Args:
        model: A built Functional or Sequential model; left as it is.

    Returns:
        A new model of the same weights, not compiled.
    """
    return _with_penalty(model, None)


def _scaled(model):
    """The batch normalizations of a model's graph that have factors."""
    return _norms(layer for _, layer in named_layers(model))


def _norms(found):
    kind = keras.layers.BatchNormalization
    return [layer for layer in found if type(layer) is kind and layer.scale]


def _with_penalty(model, penalty):
    scaled = {id(layer) for layer in _scaled(model)}
    return rebuild(
        model,
        config=lambda layer: (
            {"gamma_regularizer": penalty} if id(layer) in scaled else None
        ),
    )
