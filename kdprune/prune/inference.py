"""Running a model on data, layer by layer, to see or change what happens inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import NDArray

from kdprune import images
from kdprune._answers import check_answers, check_classes
from kdprune._graph import final_activation, head_of, is_graph_model, walk

BATCH_SIZE = 128


def run_layers(
    model: keras.Model, inputs: Any, call_layer: Callable[[Any, Any, Any], Any]
) -> list:
    """Computes a graph model's outputs, every layer called by `call_layer`.

    Args:
        model: A Functional or Sequential model; nested ones are entered.
        inputs: A tensor or the tensors (list, dict) that the model takes.
        call_layer: `call_layer(layer, args, kwargs)` returns what
            `layer(*args, **kwargs)` would, or something else instead.

    Returns:
        The list of output tensors.
    """

    def call(node, args, kwargs):
        if is_graph_model(node.layer):
            tensors = filter(tf.is_tensor, tf.nest.flatten((args, kwargs)))
            return run_layers(node.layer, list(tensors), call_layer)
        return call_layer(node.layer, args, kwargs)

    tensors = [
        tf.cast(tensor, symbolic.dtype)
        for tensor, symbolic in zip(tf.nest.flatten(inputs), model.inputs, strict=True)
    ]
    return walk(model, tensors, call)


def label_loss(model: keras.Model, batch: Any, labels: Any) -> tf.Tensor:
    """Computes the cross-entropy of each image in inference mode, `(batch,)`.

    Args:
        model: A classifier of one output, logits or probabilities.
        batch: Floats as the model takes them.
        labels: Indices of classes, or a share for each class; booleans where several
            labels may apply to an image.

    Raises:
        ValueError: If the model has several outputs, or they are not those of such
            labels.
    """
    _units(model)
    labels = tf.convert_to_tensor(labels)
    several = labels.dtype == tf.bool
    name = f"model {model.name!r}"
    head = head_of(model, name, "sigmoid" if several else None)
    scores = tf.cast(model(batch, training=False), tf.float32)
    from_logits = not final_activation(model)[0]
    if head == "sigmoid":
        if labels.shape.rank == 1:
            labels = labels[:, tf.newaxis]
        if not labels.shape.is_compatible_with(scores.shape):
            raise ValueError(
                f"{name}: expected labels {tuple(scores.shape)}, zeros and ones, as "
                f"its outputs. Received: labels {tuple(labels.shape)}"
            )
        labels = tf.cast(labels, tf.float32)
        return keras.losses.binary_crossentropy(labels, scores, from_logits)
    loss = (
        keras.losses.sparse_categorical_crossentropy
        if labels.shape.rank == 1
        else keras.losses.categorical_crossentropy
    )
    return loss(labels, scores, from_logits=from_logits)


def batches(
    data: Any, model: keras.Model | None = None
) -> Iterator[tuple[Any, NDArray | None]]:
    """Yields `(images, labels)` from whatever form the data comes in.

    Args:
        data: An array of images, a pair of arrays `(images, labels)`, or an
            iterable of batches such as a `tf.data.Dataset`, each one images or
            `(images, labels)`. Images are uint8, or floats in [0, 1]; what a model of
            several inputs takes, or one of other inputs than images, is floats.
            Labels are as in `Distiller.fit`: indices, `(n,)` or `(n, 1)`, -1 where one
            is missing; or rows of probabilities, `(n, classes)`, such as one-hot ones.
            Where several labels may apply to an image, rows of booleans, or of zeros
            and ones for a model that ends in sigmoid.
        model: The classifier that labels are needed for; None where images are enough.

    Yields:
        Pairs of images, float32 in [0, 1], and labels as `label_loss` takes them,
        without examples whose label is missing; `None` where no labels are needed.

    Raises:
        ValueError: If there are no images, they are of another type or range, or
            labels are needed and missing, or not those of the model's outputs.
    """
    empty = True
    for given, labels in _split(_as_pair(data), model):
        empty = False
        yield _as_float(given), labels
    if empty:
        what = "images" if model is None else "images with labels"
        raise ValueError(f"data must hold at least one batch of {what}. Received: none")


def _as_pair(data):
    """The data, a pair of images and labels as a tuple, images in a list as one."""
    if data is None or isinstance(data, str) or not hasattr(data, "__iter__"):
        raise ValueError(
            "data must be images, (images, labels), or batches of these. Received: "
            f"{type(data).__name__}"
        )
    if not isinstance(data, list) or not data:
        return data
    ranks = [None if isinstance(part, tuple) else np.ndim(part) for part in data[:2]]
    if ranks in ([4, 1], [4, 2]) and len(data) == 2:
        return tuple(data)
    return np.asarray(data) if ranks[0] == 3 else data


def _split(data, model):
    """Batches of images as they are, and of labels as they are needed."""
    if isinstance(data, tuple) and len(data) == 2:
        pictures, labels = data
        if labels is not None and len(pictures) != len(labels):
            raise ValueError(
                "data must hold one label for each image. Received: "
                f"{len(pictures)} images, {len(labels)} labels"
            )
        known, labels = _needed(_of_several(labels), len(pictures), model)
        for start in range(0, len(pictures), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            yield from _known(
                pictures[part], labels, part, known if known is None else known[part]
            )
    elif isinstance(data, (np.ndarray, tf.Tensor, images.Rows)):
        if model is not None:
            _needed(None, len(data), model)
        for start in range(0, len(data), BATCH_SIZE):
            yield data[start : start + BATCH_SIZE], None
    else:
        for batch in data:
            pictures, labels = batch if isinstance(batch, tuple) else (batch, None)
            count = len(tf.nest.flatten(pictures)[0])
            known, labels = _needed(labels, count, model)
            yield from _known(pictures, labels, slice(None), known)


def _known(pictures, labels, part, known):
    """The batch without the examples whose label is missing, if any is left."""
    if labels is None or known.all():
        yield pictures, labels if labels is None else labels[part]
    elif known.any():
        kept = [np.asarray(one)[known] for one in tf.nest.flatten(pictures)]
        yield tf.nest.pack_sequence_as(pictures, kept), labels[part][known]


def _of_several(labels):
    """Rows of zeros and several ones as booleans, which say what they are."""
    rows = np.asarray(labels)
    if rows.ndim == 2 and rows.shape[1] > 1 and rows.dtype.kind in "biuf":
        if np.isin(rows, (0, 1)).all() and (rows == 1).sum(axis=1).max(initial=0) > 1:
            return rows.astype(bool)
    return labels


def _needed(labels, count, model):
    """`(known, labels)`: which labels are not missing, and all; None if not needed."""
    if model is None:
        return None, None
    if labels is None:
        raise ValueError(
            "this importance needs images and their labels: data=(images, labels). "
            "Received: images alone"
        )
    labels = np.asarray(labels)
    name = f"model {model.name!r}"
    units = _units(model)
    several = labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype == bool
    if head_of(model, name, "sigmoid" if several else None) == "sigmoid":
        check_answers(labels, count, units, name)
        return (labels.reshape(count, -1) != -1).any(axis=1), labels
    check_classes(labels, count, units, name)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.any(axis=1), labels
    labels = labels.reshape(-1).astype(np.int32)
    return labels >= 0, labels


def _units(model):
    if len(model.outputs) != 1:
        raise ValueError(
            "gradients are taken of the loss of a classifier with one output. "
            f"Received: {len(model.outputs)} outputs"
        )
    return model.output_shape[-1]


def _as_float(batch):
    """Images as the model takes them; other inputs are floats already."""
    if not tf.nest.is_nested(batch) and np.ndim(batch) == 4:
        return images.as_float(batch, name="images in data")
    parts = tf.nest.flatten(batch)
    if not all(hasattr(part, "dtype") for part in parts):
        raise ValueError(
            "data must be images, (images, labels), or batches of these. Received: "
            f"batches of {type(batch).__name__}"
        )
    dtypes = [tf.as_dtype(part.dtype) for part in parts]
    if not all(dtype.is_floating for dtype in dtypes):
        raise ValueError(
            "data holds what the model takes, floats. "
            f"Received: {', '.join(dtype.name for dtype in dtypes)}"
        )
    return batch
