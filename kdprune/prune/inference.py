"""Running a model on data, layer by layer, to see or change what happens inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune import images
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
    if len(model.outputs) != 1:
        raise ValueError(
            "gradients are taken of the loss of a classifier with one output. "
            f"Received: {len(model.outputs)} outputs"
        )
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


def batches(data: Any, labelled: bool = False) -> Iterator[tuple[Any, Any]]:
    """Yields `(images, labels)` from whatever form the data comes in.

    Args:
        data: An array of images, a pair of arrays `(images, labels)`, or an
            iterable of batches such as a `tf.data.Dataset`, each one images or
            `(images, labels)`. Images are uint8, or floats in [0, 1]; what a model of
            several inputs takes, or one of other inputs than images, is floats.
        labelled: Whether labels are needed.

    Yields:
        Pairs of images, float32 in [0, 1], and labels, or `None` where there are no
        labels.

    Raises:
        ValueError: If there are no images, they are of another type or range, or
            labels are needed and missing.
    """
    empty = True
    for batch in _split(data):
        given, labels = batch if isinstance(batch, tuple) else (batch, None)
        if labelled and labels is None:
            raise ValueError(
                "this importance needs images and their labels: data=(images, labels). "
                "Received: images alone"
            )
        empty = False
        if labelled:
            _check_rows(labels)
        yield _as_float(given), labels
    if empty:
        raise ValueError("data must hold at least one batch of images. Received: none")


def _check_rows(labels):
    """Refuses rows that are neither shares of classes nor told to be labels."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] == 1 or labels.dtype == bool:
        return
    sums = labels.sum(axis=1, dtype=np.float64)
    if (np.minimum(abs(sums), abs(sums - 1)) > 1e-2).any():
        raise ValueError(
            "rows of labels must have the sum 1, or be booleans where several labels "
            f"may apply to an image. Received: sums from {sums.min():g} to "
            f"{sums.max():g}"
        )


def _as_float(batch):
    """Images as the model takes them; other inputs are floats already."""
    if not tf.nest.is_nested(batch) and np.ndim(batch) == 4:
        return images.as_float(batch, name="images in data")
    dtypes = [tf.as_dtype(part.dtype) for part in tf.nest.flatten(batch)]
    if not all(dtype.is_floating for dtype in dtypes):
        raise ValueError(
            "data holds what the model takes, floats. "
            f"Received: {', '.join(dtype.name for dtype in dtypes)}"
        )
    return batch


def _split(data):
    if isinstance(data, tuple):
        pictures, labels = data
        if len(pictures) != len(labels):
            raise ValueError(
                "data must hold one label for each image. Received: "
                f"{len(pictures)} images, {len(labels)} labels"
            )
        rows = np.asarray(labels)
        if rows.ndim == 2 and (rows == 1).sum(axis=1).max(initial=0) > 1:
            labels = rows.astype(bool) if np.isin(rows, (0, 1)).all() else labels
        for start in range(0, len(pictures), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            yield pictures[part], labels[part]
    elif isinstance(data, (np.ndarray, tf.Tensor, images.Rows)):
        for start in range(0, len(data), BATCH_SIZE):
            yield data[start : start + BATCH_SIZE]
    else:
        yield from data
