"""Running a model on data, layer by layer, to see or change what happens inside."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune._graph import ends_in_softmax, is_graph_model, walk

BATCH_SIZE = 128


def run_layers(model, inputs, call_layer):
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


def label_loss(model, images, labels):
    """Computes the cross-entropy of each image in inference mode, `(batch,)`.

    Args:
        model: A classifier of one output, logits or probabilities.
        images: Floats as the model takes them.
        labels: Indices of classes, or a share for each class.

    Raises:
        ValueError: If the model has several outputs.
    """
    if len(model.outputs) != 1:
        raise ValueError(
            "gradients are taken of the loss of a classifier with one output. "
            f"Received: {len(model.outputs)} outputs"
        )
    scores = tf.cast(model(images, training=False), tf.float32)
    loss = (
        keras.losses.sparse_categorical_crossentropy
        if labels.shape.rank == 1
        else keras.losses.categorical_crossentropy
    )
    return loss(labels, scores, from_logits=not ends_in_softmax(model))


def batches(data, labelled=False):
    """Yields `(images, labels)` from whatever form the data comes in.

    Args:
        data: An array of images, a pair of arrays `(images, labels)`, or an
            iterable of batches such as a `tf.data.Dataset`, each one images or
            `(images, labels)`. Images are floats as the model takes them.
        labelled: Whether labels are needed.

    Yields:
        Pairs of images and labels, or `None` where there are no labels.

    Raises:
        ValueError: If there are no images, they are integers, or labels are
            needed and missing.
    """
    empty = True
    for batch in _split(data):
        images, labels = batch if isinstance(batch, tuple) else (batch, None)
        if labelled and labels is None:
            raise ValueError(
                "this importance needs images and their labels: data=(images, labels). "
                "Received: images alone"
            )
        dtypes = [tf.as_dtype(part.dtype) for part in tf.nest.flatten(images)]
        if not all(dtype.is_floating for dtype in dtypes):
            raise ValueError(
                "data holds images as the model takes them, floats in [0, 1] "
                "(kdprune.data.to_float). "
                f"Received: {', '.join(dtype.name for dtype in dtypes)}"
            )
        empty = False
        yield images, labels
    if empty:
        raise ValueError("data must hold at least one batch of images. Received: none")


def _split(data):
    if isinstance(data, tuple):
        images, labels = data
        if len(images) != len(labels):
            raise ValueError(
                "data must hold one label for each image. Received: "
                f"{len(images)} images, {len(labels)} labels"
            )
        for start in range(0, len(images), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            yield images[part], labels[part]
    elif isinstance(data, (np.ndarray, tf.Tensor)):
        for start in range(0, len(data), BATCH_SIZE):
            yield data[start : start + BATCH_SIZE]
    else:
        yield from data
