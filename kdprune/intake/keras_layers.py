"""The tables of what a model's configuration may hold, and what each entry becomes.

There is one of Keras 3 and one of tf_keras (Keras 2). The same name is not always the
same function in both: `hard_sigmoid` differs by up to 0.083, and several settings have
other names. Each entry of the former was compared with the original's outputs in tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda

from kdprune._io import first_line
from kdprune._registry import nearest

layers = keras.layers


# The package name that kdprune's own layers are registered under.
_OWN = "kdprune>"


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
LAYERS["LayerScale"] = LayerScale  # ConvNeXt's, of keras.applications in both.
# Layers that only tf_keras files may have: of text and sequences, or no longer there.
_OLDER = """
    CenterCrop Cropping1D Dot Embedding MultiHeadAttention RepeatVector ThresholdedReLU
""".split()
# TensorFlow's functions that a TFOpLambda or SlicingOpLambda of a file may call.
_FUNCTIONS = """
    __operators__.add __operators__.getitem __operators__.sub __operators__.truediv
    cast clip_by_value concat convert_to_tensor expand_dims identity
    image.resize math.abs math.add math.divide math.divide_no_nan math.exp
    math.l2_normalize math.log math.maximum math.minimum math.multiply
    math.negative math.pow math.reciprocal math.reduce_max math.reduce_mean
    math.reduce_min math.reduce_sum math.rsqrt math.scalar_mul math.sigmoid
    math.sqrt math.square math.subtract math.tanh math.truediv linalg.matmul
    nn.avg_pool2d nn.elu nn.gelu nn.l2_normalize nn.leaky_relu nn.max_pool2d
    nn.relu nn.relu6 nn.selu nn.sigmoid nn.silu nn.softmax nn.softplus nn.swish
    nn.tanh pad reshape split square squeeze stack strided_slice tile transpose
    unstack
""".split()
_CALLING: dict[str, type] = {
    "TFOpLambda": TFOpLambda,
    "SlicingOpLambda": SlicingOpLambda,
}


def own_name(function: Callable) -> str:
    """What Keras writes of an activation of ours."""
    return f"{_OWN}{function.__name__}"


@dataclass(frozen=True)
class Tables:
    """What the files of one Keras may hold.

    Attributes:
        layers: The layers by the names of their classes.
        activations: The activations by their names; None stands for Keras's own.
        older: Whether it is tf_keras, whose settings need no translation.
    """

    layers: Mapping[str, type]
    activations: Mapping[str, Callable | None]
    older: bool = False


KERAS_3 = Tables(LAYERS, ACTIVATIONS)
TF_KERAS = Tables(
    {
        **LAYERS,
        **{name: getattr(layers, name) for name in _OLDER},
        **_CALLING,
        "CustomScaleLayer": CustomScaleLayer,
        "Custom>CustomScaleLayer": CustomScaleLayer,
    },
    {
        **dict.fromkeys(ACTIVATIONS.keys() - {"hard_silu", "hard_swish"}),
        **{own_name(one): one for one in (hard_sigmoid, hard_silu)},
    },
    older=True,
)

# Former or shorter names of the same layers.
ALIASES = {
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
_BASES = {
    "initializer": keras.initializers.Initializer,
    "regularizer": keras.regularizers.Regularizer,
    "constraint": keras.constraints.Constraint,
}
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
# What says how a layer was built, which the graph says as well.
_BUILT = frozenset(
    {"batch_input_shape", "batch_shape", "query_shape", "key_shape", "value_shape"}
)
_PRECISIONS = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "mixed_float16",
    "mixed_bfloat16",
)
_MOST_VALUES = 100_000  # In one setting: a mean of each pixel of an image, say.


def make_layer(
    class_name: str, config: dict, tables: Tables = KERAS_3
) -> keras.layers.Layer:
    """Makes a layer of the table from the configuration that Keras wrote.

    Args:
        class_name: As in the file.
        config: Its settings, as parsed from JSON.
        tables: What the file may hold.

    Raises:
        Unsupported: If the layer or a setting is not known, or has a value that
            tf_keras cannot reproduce.
    """
    class_name = ALIASES.get(class_name, class_name)
    kind = find_layer(class_name, tables)
    if kind is None:
        raise Unsupported(
            f"{class_name[:60]!r} is not a layer that can be read"
            f"{nearest(class_name, tables.layers)}"
        )
    settings: dict[str, Any] = {}
    for key, value in config.items():
        key = _RENAMED.get((class_name, key), key)
        if key == "dtype":
            check_precision(value)
        elif key in ("name", "trainable"):
            settings[key] = _plain(key, value)
        elif key == "function" and class_name in _CALLING:
            settings[key] = _function(value)
        elif key in parameters(kind):
            settings[key] = setting(key, value, tables)
        elif class_name not in _RANDOM and not _means_nothing(key, value, tables):
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


def find_layer(class_name: str, tables: Tables) -> type | None:
    """The class of a layer of the table, or one registered as ours; None if neither."""
    if class_name in tables.layers:
        return tables.layers[class_name]
    found = _own_class(class_name) if tables.older else None
    return found if found and issubclass(found, keras.layers.Layer) else None


def setting(key: str, value: Any, tables: Tables = KERAS_3) -> Any:
    """The value of one setting: plain, or an object of the tables."""
    if key == "activation":
        return activation(value, tables)
    for ending, table in _OBJECTS:
        if key.endswith(ending):
            return _object(key, value, table)
    return _plain(key, value)


def activation(value: Any, tables: Tables = KERAS_3) -> Any:
    """The function that an activation names, in text or as a serialized object."""
    if value is None:
        return None
    if isinstance(value, dict):
        kind, config = value.get("class_name"), value.get("config")
        if kind == "function":
            value = config  # Only its name counts, not the module beside it.
        elif kind in ("ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"):
            config = config if isinstance(config, dict) else {}
            return make_layer(kind, config, tables)
    if not isinstance(value, str) or value not in tables.activations:
        raise Unsupported(
            f"{str(value)[:60]!r} is not an activation that can be read"
            f"{nearest(value, tables.activations)}"
        )
    found = tables.activations[value]
    return value if found is None else found


def known_names() -> frozenset[str]:
    """The names of all classes that a file may have, but for models."""
    tables = (*(table for _, table in _OBJECTS), TF_KERAS.layers, ALIASES)
    return frozenset(name for table in tables for name in table) | {"InputLayer"}


def known_functions() -> frozenset[str]:
    """The names of all functions that a file may have."""
    return frozenset({*ACTIVATIONS, *TF_KERAS.activations, *_FUNCTIONS})


def _function(name: Any) -> Callable:
    """TensorFlow's function of that name, if it is one of the table."""
    if not isinstance(name, str) or name not in _FUNCTIONS:
        raise Unsupported(
            f"calls {str(name)[:60]!r}, which is not among the functions that are known"
        )
    return reduce(getattr, name.split("."), tf)


def _own_class(name: Any) -> type | None:
    """The class that is registered as ours under a name, or None."""
    if not isinstance(name, str):
        return None
    found = keras.saving.get_registered_object(_OWN + name.removeprefix(_OWN))
    return found if isinstance(found, type) else None


def _means_nothing(key: str, value: Any, tables: Tables) -> bool:
    """Whether a setting that tf_keras has not changes nothing."""
    if key in _BUILT:
        return True
    return any(value is one or value == one for one in _NEUTRAL.get(key, ()))


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
    named = value.get("class_name") if isinstance(value, dict) else value
    kind = table.get(named) if isinstance(named, str) else None
    own = None if kind else _own_class(named)
    if own is not None and issubclass(own, _BASES[key.rpartition("_")[2]]):
        return _own_object(key, own, value.get("config") or {})
    if kind is None:
        raise Unsupported(f"{str(named)[:60]!r} is not a {key} that can be read")
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


def _own_object(key: str, kind: Any, config: Any) -> Any:
    if not isinstance(config, dict):
        raise Unsupported(f"the {key} has settings that are not named")
    settings = {name: _plain(name, item) for name, item in config.items()}
    try:
        return kind.from_config(settings)
    except (TypeError, ValueError, LookupError) as error:
        raise Unsupported(f"the {key} cannot be made: {first_line(error)}") from error


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
