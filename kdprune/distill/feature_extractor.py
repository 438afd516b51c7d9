"""Feature maps, by the names of the layers whose outputs they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras as keras

from kdprune import _graph, _registry

# Their outputs are images still, at most with a rim of zeros around them.
_NOT_FEATURES = (keras.layers.InputLayer, keras.layers.ZeroPadding2D)


def feature_layers(model: keras.Model) -> tuple[str, ...]:
    """Lists the layers of a model whose outputs are feature maps.

    These are the layers with one output of shape `(batch, height, width,
    channels)`, except inputs and zero padding, which hold no features, and layers
    that the model calls more than once, whose name means no single output.

    Args:
        model: A built Functional or Sequential `keras.Model`, plain, or wrapped for
            pruning or quantization-aware training. Wrapped layers go by their own
            name, so that a student keeps its names from stage to stage. A model
            inside the model is one layer.

    Returns:
        Tuple of layer names in the order of execution; empty if there are none.

    Raises:
        ValueError: If the model has no layer graph.
    """
    return tuple(_maps(model))


def default_feature_layers(model: keras.Model) -> tuple[str, ...]:
    """Names the last feature map of each resolution, the finest first.

    The features of one resolution are a stage of the network; its last map is what
    the next stage builds on (Zagoruyko & Komodakis, 2017, arXiv:1612.03928,
    section 4, compare the same places). Maps of a single position, such as those of
    squeeze-and-excitation blocks, are not counted.

    Args:
        model: As for `feature_layers`, built for one image size.

    Returns:
        Tuple of layer names, at least one.

    Raises:
        ValueError: If the model has no layer graph, no feature map or no fixed
            image size.

    Example:
        >>> default_feature_layers(build_model("resnet8"))
        ('stage1_block1_relu', 'stage2_block1_relu', 'stage3_block1_relu')
    """
    return tuple(_last_maps(model).values())


def match_feature_layers(
    teacher: keras.Model, student: keras.Model
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pairs the default layers of a teacher with those of a student.

    The last maps of both form a pair, whatever their resolutions are. Before it
    come the other maps of equal resolution. What has no partner is left out.

    Args:
        teacher: As for `default_feature_layers`.
        student: As for `default_feature_layers`, for images of the same size.

    Returns:
        `(teacher's names, student's names)`, tuples of one length, at least one.

    Raises:
        ValueError: As `default_feature_layers`.

    Example:
        >>> match_feature_layers(build_model("resnet9"), build_model("resnet8"))
        (('stage1_relu', 'stage2_relu', 'residual3_add'),
         ('stage1_block1_relu', 'stage2_block1_relu', 'stage3_block1_relu'))
    """
    teachers, students = _last_maps(teacher), _last_maps(student)
    last = teachers.popitem()[1], students.popitem()[1]
    finer = [(teachers[size], students[size]) for size in teachers if size in students]
    first, second = zip(*finer, last, strict=True)
    return first, second


def feature_extractor(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """Builds a model that gives feature maps beside its outputs.

    It shares all layers and weights with `model`: a forward pass of it is one of
    `model`, BatchNorm statistics and pruning masks included, and a training step
    through it trains `model`.

    Args:
        model: As for `feature_layers`.
        names: Names of layers, out of `feature_layers(model)`.

    Returns:
        A `keras.Model` of the same inputs whose outputs are the list
        `[*model.outputs, *maps]`, maps in the order of `names`.

    Raises:
        ValueError: If a name is not that of a feature map, with the nearest one and
            all there are, or if the model has no layer graph.

    Example:
        >>> extractor = feature_extractor(student, default_feature_layers(student))
        >>> logits, *features = extractor(images, training=True)
    """
    if isinstance(names, str) or not names:
        raise ValueError(
            "a feature extractor needs a list of one layer name or more. Received: "
            f"{names!r}"
        )
    maps = _maps(model)
    for name in names:
        if name not in maps:
            raise ValueError(f"{_explain(model, name)}{_candidates(name, maps)}")
    outputs = [*model.outputs, *(maps[name] for name in names)]
    return keras.Model(model.inputs, outputs, name=f"{model.name}_features")


def _maps(model: keras.Model) -> dict[str, Any]:
    """The feature maps by layer name, in the order of execution."""
    return {
        name: nodes[0].outputs
        for name, nodes in _calls(model).items()
        if len(nodes) == 1
        and not isinstance(nodes[0].layer, _NOT_FEATURES)
        and getattr(getattr(nodes[0].outputs, "shape", None), "rank", None) == 4
    }


def _last_maps(model: keras.Model) -> dict[tuple[int, int], str]:
    """`{(height, width): name}` of the last map of each resolution, finest first."""
    last: dict[tuple[int, int], str] = {}
    for name, tensor in _maps(model).items():
        size = tuple(tensor.shape[1:3])
        if None in size:
            raise ValueError(
                "default layers need a model built for one image size, such as "
                f"input_shape=(32, 32, 3). Received: model {model.name!r}, whose "
                f"layer {name!r} gives {tuple(tensor.shape)}; name the layers."
            )
        if size != (1, 1):
            last[size] = name
    if not last:
        raise ValueError(
            f"model {model.name!r} has no feature map (batch, height, width, channels) "
            "of more than one position; losses on logits work with it."
        )
    finest_first = sorted(last, key=lambda size: size[0] * size[1], reverse=True)
    return {size: last[size] for size in finest_first}


def _calls(model: keras.Model) -> dict[str, list]:
    """The graph's nodes by the name of their layer, in the order of execution."""
    _check_graph(model)
    calls: dict[str, list] = {}
    for node in _graph.nodes(model, inputs=True):
        layer = _graph.unwrapped(node.layer)
        # The layer with which quantization starts wraps nothing.
        if not _graph.is_tfmot_layer(layer):
            calls.setdefault(layer.name, []).append(node)
    return calls


def _check_graph(model: Any) -> None:
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ValueError(f"expected a tf_keras (Keras 2) model. Received: {kind}")
    if _graph.is_graph_model(model):
        return
    name = f"{type(model).__name__} {model.name!r}"
    if isinstance(model, keras.Sequential):
        raise ValueError(
            "feature maps are taken from a built model: give it a keras.Input. "
            f"Received: {name}, not built"
        )
    raise ValueError(
        "feature maps are taken from a layer graph, which a subclassed model hides in "
        "its Python code: build it as Functional or Sequential, or use losses on "
        f"logits, which take any model. Received: the subclassed {name}"
    )


def _explain(model: keras.Model, name: str) -> str:
    """Says why this is not the name of a feature map."""
    nodes = _calls(model).get(name)
    if nodes is None:
        nested = _nested_with(model, name)
        if nested is not None:
            return (
                f"layer {name!r} is inside the model {nested.name!r}, itself a layer "
                f"of {model.name!r}, and out of reach from outside: build the model "
                "without models inside it."
            )
        return f"model {model.name!r} has no layer {name!r}."
    if len(nodes) > 1:
        return (
            f"layer {name!r} is called {len(nodes)} times in model {model.name!r}, so "
            "that its name means no single output: take the layer before or after it."
        )
    kind = type(_graph.unwrapped(nodes[0].layer)).__name__
    return (
        f"layer {name!r} of model {model.name!r} gives no feature map (batch, height, "
        f"width, channels). Received: a {kind} of output shape "
        f"{nodes[0].output_shapes}."
    )


def _nested_with(model: keras.Model, name: str) -> keras.Model | None:
    """The innermost model inside this one that has a layer of that name."""
    for nested in model.layers:
        if isinstance(nested, keras.Model):
            found = _nested_with(nested, name)
            if found is not None:
                return found
            if name in (layer.name for layer in nested.layers):
                return nested
    return None


def _candidates(name: str, maps: Mapping[str, Any]) -> str:
    near = _registry.nearest(name, maps).removeprefix("; ")
    guess = f" {near[0].upper()}{near[1:]}" if near else ""
    return f"{guess} Feature maps: {', '.join(maps) or 'none'}."
