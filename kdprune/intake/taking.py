"""A model in whatever form it came, made into one of pixels in [0, 1] and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import ArrayLike, NDArray

from kdprune._graph import (
    TRAINING_ONLY,
    check_float_model,
    check_graph_model,
    frozen_layers,
    is_graph_model,
    named_layers,
)
from kdprune.images import check
from kdprune.intake import pixels
from kdprune.intake.comparison import Comparison
from kdprune.intake.depthwise import as_depthwise
from kdprune.intake.heads import Head, select_output, split_head
from kdprune.intake.inline import inline

_BATCH = 100


@dataclass(frozen=True)
class Taken:
    """A model as all of kdprune takes it, and what was done to it.

    Attributes:
        model: One flat graph that takes float32 images `(batch, height, width,
            channels)` in [0, 1] and gives logits `(batch, units)`. Where the given one
            took other numbers, it starts with a `Rescaling`.
        head: What its outputs mean.
        range: The pixel range that the given model takes.
        found: How it did in each range, where labelled images were there to tell.
        augmentation: The random layers that were left out, in their order.
        notes: A line for each thing that was done.
        comparison: How far the outputs of the model as it was loaded are from those
            of the original, where they were compared.
    """

    model: keras.Model
    head: Head
    range: pixels.PixelRange
    found: pixels.Found | None
    augmentation: tuple[keras.layers.Layer, ...]
    notes: tuple[str, ...]
    comparison: Comparison | None = None


def take_model(
    model: keras.Model,
    *,
    input_range: pixels.Given | None = None,
    images: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    output: str | None = None,
    share: bool = False,
) -> Taken:
    """Brings a classifier to the form that training, pruning and export work on.

    Models inside it become part of its graph; dropout, noise and random augmentation
    are left out; a convolution with a group for each channel is a depthwise one; a
    final softmax or sigmoid is split off; and arithmetic in front, of
    one layer at most, makes it take pixels in [0, 1] whatever it was made for.

    The pixel range is the given one; else the one that stands out on labelled images;
    else what the arithmetic at the front of the model is for: bytes, if it makes a few
    units of 0 to 255. Without any of these it is [0, 1].

    Args:
        model: A built Functional or Sequential float model; left as it is.
        input_range: What the model takes for black and white, or a name, as
            `parse_range` reads it. With labelled images it is checked.
        images: Validation images, uint8 or float in [0, 1], shape
            `(n, height, width, channels)`.
        labels: Their classes, `(n,)`, or zeros and ones `(n, labels)`.
        output: The name of the layer whose output counts, of a model with several.
        share: Whether the given model may have layers in common with the new one, so
            that it must not be trained or changed any more: of one that was loaded
            for this, which saves copying it.

    Returns:
        A `Taken`.

    Raises:
        ValueError: If the model has no graph, another number of outputs, or layers that
            can't be made again; if its outputs change from call to call (dropout
            called with `training=True`); or if the pixel range can't be determined, or
            is not the given one.
    """
    check_graph_model(model)
    check_float_model(model)
    notes: list[str] = []
    if output is not None:
        model = select_output(model, output)
        notes.append(f"output {output!r} is the one that counts")
    flat = with_channel(model)
    if flat is not model:
        notes.append("its images, of height and width alone, get an axis of 1 channel")
    model = flat
    frozen = list(frozen_layers(model))
    if frozen:
        notes.append(
            f"{len(frozen)} frozen layer{'s' * (len(frozen) > 1)} ({_some(frozen)}): "
            "training leaves their weights as they are"
        )
    random = tuple(
        layer
        for _, layer in named_layers(model)
        if type(layer).__name__.startswith("Random")
    )
    flat, changes = inline(model)
    notes += changes
    flat, replaced = as_depthwise(flat)
    if replaced:
        notes.append(
            f"{_some(replaced)}, with a group for each channel: a DepthwiseConv2D each"
        )
    flat, head = split_head(flat, share=share or flat is not model)
    if head.activation != "none":
        notes.append(f"the final {head.activation} is split off")
    chain = pixels.read_chain(flat)
    given = None if input_range is None else pixels.parse_range(input_range)
    if given is not None:
        pixels.check_channels(given, int(flat.inputs[0].shape[-1]))
    found = None
    if images is not None and labels is not None:
        found = pixels.find_range(
            lambda values: _scores(flat, values),
            check(images, flat.input_shape[1:]),
            np.asarray(labels),
            given=given,
            assumed=chain.range if chain.calls else None,
        )
    range_ = found.range if found else given or chain.range
    notes += _told(chain, range_, given is not None, found)
    made = _in_unit_range(flat, chain, range_)
    rescaled = _rescaled(flat, made)
    if rescaled:
        notes.append(
            "weights of frozen layers are rescaled to these pixels, without effect: "
            f"{', '.join(rescaled)}"
        )
    return Taken(made, head, range_, found, random, tuple(notes))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _rescaled(before: keras.Model, after: keras.Model) -> list[str]:
    """The frozen layers that have other weights than they had."""
    were = dict(named_layers(before))
    return [
        path
        for path, layer in frozen_layers(after).items()
        if path in were
        and were[path] is not layer
        and not all(map(np.array_equal, were[path].get_weights(), layer.get_weights()))
    ]


def _scores(model: keras.Model, values: NDArray) -> NDArray:
    """What `predict` gives, which holds copies of its arrays for some time."""
    starts = range(0, len(values), _BATCH)
    return np.concatenate(
        [np.asarray(model.predict_on_batch(values[i : i + _BATCH])) for i in starts]
    )


def with_channel(model: keras.Model) -> keras.Model:
    """A model of gray images, `(batch, height, width, 1)`, of one without channels.

    What gives them that axis at the model's front, a `Reshape`, is left out.

    Returns:
        The same model, if it takes anything else.
    """
    if not is_graph_model(model) or len(model.inputs) != 1:
        return model
    shape = tuple(model.inputs[0].shape[1:])
    if len(shape) != 2 or None in shape:
        return model
    call = pixels.only_user(model, model.inputs[0])
    if call is not None and isinstance(call.layer, keras.layers.Reshape):
        if tuple(call.outputs.shape[1:]) == (*shape, 1):
            return keras.Model(call.outputs, model.outputs, name=model.name)
    image = keras.Input((*shape, 1))
    flat = keras.layers.Reshape(shape, name="without_channel")(image)
    return keras.Model(image, model(flat), name=model.name)


def to_unit_range(
    model: keras.Model, input_range: pixels.Given | None = None
) -> keras.Model:
    """A model that takes pixels in [0, 1], its head and all else as it was.

    Args:
        model: Any `keras.Model`; one without a graph is taken to be of [0, 1].
        input_range: What it takes, as for `take_model`; else read off its front.

    Returns:
        The same model where it takes [0, 1] already.

    Raises:
        ValueError: If another range is given for a model without a graph.
    """
    given = None if input_range is None else pixels.parse_range(input_range)
    first = input_arithmetic(model)
    if first is None and (given is None or pixels.is_unit(given)):
        return model
    check_graph_model(model)
    check_float_model(model)
    chain = pixels.read_chain(inline(model)[0] if first is not None else model)
    range_ = given or chain.range
    if pixels.is_unit(range_):
        return model if first is None else chain.model
    pixels.check_channels(range_, int(model.inputs[0].shape[-1]))
    return _in_unit_range(chain.model, chain, range_)


def range_of(model: Any) -> pixels.PixelRange:
    """The pixel range of a model, as what stands at its front tells; [0, 1] if not."""
    if input_arithmetic(model) is None:
        return pixels.UNIT
    return pixels.read_chain(inline(model)[0]).range


def input_arithmetic(model: Any) -> keras.layers.Layer | None:
    """The layer of arithmetic on pixels that is the first to be called, if any.

    It may stand inside a model in the model, or behind random augmentation.
    """
    if not is_graph_model(model) or len(model.inputs) != 1:
        return None
    if len(model.inputs[0].shape) != 4 or model.inputs[0].shape[-1] is None:
        return None
    call = pixels.only_user(model, model.inputs[0])
    while call is not None and isinstance(call.layer, TRAINING_ONLY):
        call = pixels.only_user(model, call.outputs)
    if call is None:
        return None
    if is_graph_model(call.layer):
        return input_arithmetic(call.layer)
    channels = int(model.inputs[0].shape[-1])
    return call.layer if pixels.is_arithmetic(call, channels) else None


def _in_unit_range(
    model: keras.Model, chain: pixels.Chain, range_: pixels.PixelRange
) -> keras.Model:
    plain = all(isinstance(c.layer, keras.layers.Rescaling) for c in chain.calls)
    if (
        pixels.is_unit(range_)
        and plain
        and (
            not chain.calls
            or chain.factor != 1
            or (len(chain.calls) == 1 and chain.usual)
        )
    ):
        return model
    return pixels.put_in_front(model, chain.after(range_), chain)


def _told(
    chain: pixels.Chain,
    range_: pixels.PixelRange,
    given: bool,
    found: pixels.Found | None,
) -> list[str]:
    """What was found of the pixel range, in a line, if it is not [0, 1]."""
    if pixels.is_unit(range_):
        return []
    why = "as given" if given else "as what stands in front of it tells"
    if found is not None:
        shares = ", ".join(
            f"{100 * share:.1f} % in {name}" for name, share in found.accuracies.items()
        )
        why = f"right on {shares} of {found.images} images"
    front = ", ".join(repr(call.layer.name) for call in chain.calls)
    done = f"; {front} is made part of what brings [0, 1] to it" if front else ""
    return [f"takes pixels in {range_.name}, {why}{done}"]
