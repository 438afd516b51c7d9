"""The table of what a Keras 3 configuration may hold, and what each entry becomes.

The same name is not always the same function in both Keras: `hard_sigmoid` differs by
up to 0.083, and several settings have other names. Each entry here was compared with
the original's outputs in tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdprune._io import first_line
from kdprune._registry import nearest

layers = keras.layers


class Unsupported(ValueError):
    """Something in a configuration that has no entry in the tables."""


@keras.utils.register_keras_serializable("kdprune")
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """`relu6(x + 3) / 6`, as Keras 3 has it; tf_keras clips `0.2 x + 0.5`."""
    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


@keras.utils.register_keras_serializable("kdprune")
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """`x * relu6(x + 3) / 6`, also called hard-swish."""
    return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


# By the names of Keras 3; None stands for Keras's own function of that name.
ACTIVATIONS: dict[str, Callable | None] = {
    "elu": None,
    "exponential": None,
    "gelu": None,
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_swish": hard_silu,
    "leaky_relu": None,
    "linear": None,
    "log_softmax": None,
    "mish": None,
    "relu": None,
    "relu6": tf.nn.relu6,
    "selu": None,
    "sigmoid": None,
    "silu": keras.activations.swish,
    "softmax": None,
    "softplus": None,
    "softsign": None,
    "swish": keras.activations.swish,
    "tanh": None,
}

_PLAIN_LAYERS = """
    Activation Add AlphaDropout Average AveragePooling2D BatchNormalization Concatenate
    Conv2D Conv2DTranspose Cropping2D Dense DepthwiseConv2D Dropout ELU Flatten
    GaussianDropout GaussianNoise GlobalAveragePooling2D GlobalMaxPooling2D
    GroupNormalization LayerNormalization LeakyReLU MaxPooling2D Maximum Minimum
    Multiply Normalization PReLU Permute ReLU Rescaling Reshape Resizing
    SeparableConv2D Softmax
    SpatialDropout2D Subtract UnitNormalization UpSampling2D ZeroPadding2D
    AveragePooling1D Conv1D GlobalAveragePooling1D GlobalMaxPooling1D MaxPooling1D
""".split()
# Random changes of training images and noise; they pass images through in use.
_RANDOM = """
    RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation
    RandomTranslation RandomZoom
""".split()
LAYERS: dict[str, type] = {name: getattr(layers, name) for name in _PLAIN_LAYERS}
LAYERS |= {name: getattr(layers, name) for name in _RANDOM}

# Former or shorter names of the same layers.
_ALIASES = {
    "Convolution2D": "Conv2D",
    "MaxPool2D": "MaxPooling2D",
    "AvgPool2D": "AveragePooling2D",
    "GlobalAvgPool2D": "GlobalAveragePooling2D",
    "GlobalMaxPool2D": "GlobalMaxPooling2D",
}
_INITIALIZERS = {
    name: getattr(keras.initializers, name)
    for name in """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal
    LecunUniform Ones Orthogonal RandomNormal RandomUniform TruncatedNormal
    VarianceScaling Zeros
    """.split()
}
_REGULARIZERS = {
    name: getattr(keras.regularizers, name)
    for name in ("L1", "L2", "L1L2", "OrthogonalRegularizer")
}
_CONSTRAINTS = {
    name: getattr(keras.constraints, name)
    for name in ("MaxNorm", "MinMaxNorm", "NonNeg", "RadialConstraint", "UnitNorm")
}
# What a setting holds, by the end of its name.
_OBJECTS = (
    ("_initializer", _INITIALIZERS),
    ("_regularizer", _REGULARIZERS),
    ("_constraint", _CONSTRAINTS),
)
# Settings under another name in tf_keras.
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
# Settings that tf_keras has not and that change nothing at these values. Random layers
# do nothing in use, so that theirs never matter.
_NEUTRAL: dict[str, tuple] = {
    "activity_regularizer": (None,),
    "antialias": (False,),
    "data_format": ("channels_last", None),
    "groups": (1,),
    "input_axes": (None,),
    "invert": (False,),
    "lora_alpha": (None,),
    "lora_rank": (None,),
    "output_axes": (None,),
    "pad_to_aspect_ratio": (False,),
    "quantization_config": (None,),
    "renorm": (False,),
    "renorm_clipping": (None,),
    "renorm_momentum": (0.99,),
    "rms_scaling": (False,),
    "synchronized": (False,),
}
_IGNORED = ("fill_mode", "fill_value")
_PRECISIONS = (
    "float16",
    "bfloat16",
    "float32",
    "mixed_float16",
    "mixed_bfloat16",
)
_MOST_VALUES = 100_000  # In one setting: a mean of each pixel of an image, say.


def make_layer(class_name: str, config: dict) -> keras.layers.Layer:
    """Makes a layer of the table from the configuration that Keras 3 wrote.

    Args:
        class_name: As in the file.
        config: Its settings, as parsed from JSON.

    Raises:
        Unsupported: If the layer or a setting is not known, or has a value that
            tf_keras cannot reproduce.
    """
    class_name = _ALIASES.get(class_name, class_name)
    if class_name not in LAYERS:
        raise Unsupported(
            f"{class_name[:60]!r} is not a layer that can be read"
            f"{nearest(class_name, LAYERS)}"
        )
    kind = LAYERS[class_name]
    settings = {}
    for key, value in config.items():
        key = _RENAMED.get((class_name, key), key)
        if key == "dtype":
            check_precision(value)
        elif key in ("name", "trainable"):
            settings[key] = _plain(key, value)
        elif key in parameters(kind):
            settings[key] = setting(key, value)
        elif class_name not in _RANDOM and value not in _NEUTRAL.get(key, ()):
            raise Unsupported(
                f"{class_name} with {key[:40]}={str(value)[:40]} has no equivalent in "
                "tf_keras"
            )
    if settings.get("data_format") == "channels_first":
        raise Unsupported(
            f"{class_name} takes images with channels first; expected (height, width, "
            "channels)"
        )
    try:
        return kind(**settings)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise Unsupported(
            f"{class_name} cannot be made: {first_line(error)}"
        ) from error


def setting(key: str, value: Any) -> Any:
    """The value of one setting: plain, or an object of the tables."""
    if key == "activation":
        return activation(value)
    for ending, table in _OBJECTS:
        if key.endswith(ending):
            return _object(key, value, table)
    return _plain(key, value)


def activation(value: Any) -> Any:
    """The function that an activation names, in text or as a serialized object."""
    if value is None:
        return None
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config")
        if kind == "function":
            value = config  # Only its name counts, not the module beside it.
        elif kind in ("ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"):
            return make_layer(kind, config if isinstance(config, dict) else {})
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise Unsupported(
            f"{str(value)[:60]!r} is not an activation that can be read"
            f"{nearest(value, ACTIVATIONS)}"
        )
    found = ACTIVATIONS[value]
    return value if found is None else found


def check_precision(value: Any) -> None:
    """Raises unless weights are floating-point numbers; all are read as float32."""
    if isinstance(value, dict):
        if value.get("class_name") not in ("DTypePolicy", "Policy"):
            raise Unsupported(
                f"weights of type {str(value.get('class_name'))[:40]!r} (quantized by "
                "Keras?) cannot be read; save the model before it is quantized"
            )
        inner = value.get("config")
        value = inner.get("name") if isinstance(inner, dict) else None
    if value is not None and value not in _PRECISIONS:
        raise Unsupported(f"computing in {str(value)[:40]!r} is not supported")


@cache
def parameters(kind: type) -> frozenset[str]:
    """The settings that a layer's constructor takes, those of its bases included."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base is keras.layers.Layer:
            break
        init = base.__dict__.get("__init__")
        if init is not None:
            found |= set(inspect.signature(init).parameters)
    return frozenset(found - {"self", "args", "kwargs", "name", "dtype", "trainable"})


def _object(key: str, value: Any, table: dict[str, type]) -> Any:
    if value is None:
        return None
    if isinstance(value, str):  # As Keras 1 wrote them: "glorot_uniform".
        by_text = {_snake(name): name for name in table}
        value = {"class_name": by_text.get(value, value), "config": {}}
    if not isinstance(value, dict) or value.get("class_name") not in table:
        named = value.get("class_name") if isinstance(value, dict) else value
        raise Unsupported(f"{str(named)[:60]!r} is not a {key} that can be read")
    kind = table[value["class_name"]]
    config = value.get("config") or {}
    if not isinstance(config, dict):
        raise Unsupported(f"the {key} has settings that are not named")
    # The class's own signature would be that of `__new__`, which takes anything.
    known = set(inspect.signature(kind.__init__).parameters)  # type: ignore[misc]  # Of a class.
    settings = {}
    for name, item in config.items():
        if name in known:
            settings[name] = _plain(name, item)
        elif item not in _NEUTRAL.get(name, ()):
            raise Unsupported(f"the {key} has the unknown setting {name[:40]!r}")
    return kind(**settings)


def _plain(key: str, value: Any) -> Any:
    """Numbers, text and lists of them; an array is written as one of its own."""
    if isinstance(value, dict) and value.get("class_name") in (
        "__numpy__",
        "__tensor__",
    ):
        inner = value.get("config")
        value = inner.get("value") if isinstance(inner, dict) else None
    left, pending = _MOST_VALUES, [value]
    while pending:
        item = pending.pop()
        left -= 1
        if left < 0:
            raise Unsupported(f"{key!r} has more than {_MOST_VALUES:,} values")
        if isinstance(item, (list, tuple)):
            pending.extend(item)
        elif item is not None and not isinstance(item, (bool, int, float, str)):
            raise Unsupported(f"{key[:40]!r} holds more than numbers and text")
    return value


def _snake(name: str) -> str:
    from kdprune.intake.keras_weights import snake_case

    return snake_case(name)
