"""Loss specs: the losses between a student and its teacher, with their weights."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdprune import _registry
from kdprune.distill.features import FEATURE_LOSSES, FeatureLoss
from kdprune.distill.losses import LOGIT_LOSSES, SIGMOID_LOSSES

# What is tested already, and need not be tried before each training.
_OWN = frozenset(LOGIT_LOSSES.values())
# Names of metrics that a Distiller reports besides each loss's own.
_RESERVED = ("soft", "hard")
# What a loss of logits is given besides its own arguments, if it takes it.
_GIVEN = ("labels", "temperature")


def register_loss(
    name: str,
    loss: Callable | type[FeatureLoss] | None = None,
    *,
    replace: bool = False,
) -> Any:
    """Makes a loss known by a name, to `Distiller(losses=[name])` and to recipes.

    A loss of logits is a pure function `f(teacher_logits, student_logits)` of two
    float32 tensors `(batch, classes)` that gives one value per example, `(batch,)`.
    If it has parameters named `temperature` or `labels`, it is given the Distiller's
    temperature and the class indices, -1 where one is missing. Its other parameters
    are numbers with a default, which a spec may set. A loss of feature maps is a
    subclass of `FeatureLoss`.

    Args:
        name: Lower-case letters, digits and underscores.
        loss: The function or class; None to use this as a decorator.
        replace: Whether a loss of this name may be replaced.

    Returns:
        `loss`, or a decorator.

    Raises:
        ValueError: If the name is taken or not fit, or the loss is neither of the two.

    Example:
        >>> @register_loss("squared_logits")
        ... def squared_logits(teacher_logits, student_logits):
        ...     return tf.reduce_mean((teacher_logits - student_logits) ** 2, axis=1)
        >>> Distiller(student, teacher, losses=["kl", "squared_logits"])
    """
    if loss is None:
        return functools.partial(register_loss, name, replace=replace)
    if name in _RESERVED:
        raise ValueError(
            f"a loss can't be named {name!r}, which is the name of a metric of every "
            "Distiller; choose another name"
        )
    of_features = _is_feature_loss(loss)
    if not of_features:
        _check_function(loss, name)
    table: dict[str, Any] = FEATURE_LOSSES if of_features else LOGIT_LOSSES
    other: dict[str, Any] = LOGIT_LOSSES if of_features else FEATURE_LOSSES
    if name in other:
        if not replace:
            raise ValueError(
                f"there is a loss {name!r} already; choose another name, or replace it "
                "with replace=True"
            )
        _registry.add(table, "loss", name, loss, replace)
        del other[name]
        return loss
    return _registry.add(table, "loss", name, loss, replace)


@keras.saving.register_keras_serializable("kdprune")
@dataclasses.dataclass(frozen=True)
class SoftLoss:
    """One of the losses between a student and its teacher.

    A Keras loss object compares predictions: `y_true` is the teacher's
    `softmax(logits / T)`, and `y_pred` the student's, or its `logits / T` if the loss
    was made with `from_logits=True`; the result is multiplied by `T**2`, as in
    `distillation_loss`. So `keras.losses.KLDivergence()` is "kl", and
    `keras.losses.CategoricalCrossentropy(from_logits=True)` is "cross_entropy". To
    compare the logits themselves, give a function of logits.

    Attributes:
        name: A registered name, or what to call `loss`; by default the loss's own
            name, and "kl" if there is none.
        weight: Its weight, finite and above 0.
        teacher_layers: For features, names of the teacher's layers to compare; None
            for the last feature map of each resolution.
        student_layers: The student's, one for each of the teacher's.
        arguments: More arguments of the loss, numbers such as `{"alpha": 1, "beta":
            8}` of "dkd"; a `temperature` here is this loss's own.
        loss: A function of logits, a `keras.losses.Loss`, a subclass of `FeatureLoss`
            or a registered name; None for the one registered as `name`.

    Raises:
        ValueError: If the name or an argument is none that there is, a value is out
            of its range, the layers are not named in pairs, or `loss` is none of these.
    """

    name: str = ""
    weight: float = 1.0
    teacher_layers: Sequence[str] | None = None
    student_layers: Sequence[str] | None = None
    arguments: Mapping[str, float] = dataclasses.field(default_factory=dict)
    loss: Any = None

    def __post_init__(self) -> None:
        if not self.name:
            name = "kl" if self.loss is None else _name_of(self.loss)
            object.__setattr__(self, "name", name)
        if self.loss is None or isinstance(self.loss, str):
            _check_registered(self.loss or self.name)
        elif not self.of_features and not _is_keras_loss(self.loss):
            _check_function(self.loss, self.name)
        if self.name in _RESERVED:
            raise ValueError(
                f"a loss can't be named {self.name!r}, which is the name of a metric "
                "of every Distiller; give it another name"
            )
        if not _is_number(self.weight) or not 0 < self.weight < math.inf:
            raise ValueError(
                f"the weight of {self.name} must be above 0. Received: {self.weight}; "
                "leave the loss out instead"
            )
        if not self.of_features and (self.teacher_layers or self.student_layers):
            raise ValueError(
                f"{self.name} compares logits and has no layers. Received: "
                f"{self.teacher_layers or self.student_layers}"
            )
        self._check_layers()
        self._check_arguments()

    def _check_layers(self) -> None:
        given = self.teacher_layers, self.student_layers
        if given == (None, None):
            return
        if None in given:
            raise ValueError(
                f"{self.name}: expected both teacher_layers and student_layers, or "
                "neither. Received: only one of them"
            )
        if any(isinstance(names, str) for names in given):
            raise ValueError(
                f"{self.name}: teacher_layers and student_layers must be lists of "
                f"names. Received: {given[0]!r} and {given[1]!r}"
            )
        counts = [len(names) for names in given if names is not None]
        if counts[0] != counts[1] or not counts[0]:
            raise ValueError(
                f"{self.name}: expected a layer of the student for each of the "
                f"teacher's, at least one. Received: {counts[0]} of the teacher, "
                f"{counts[1]} of the student"
            )

    def _check_arguments(self) -> None:
        accepted = _arguments_of(self.computation)
        for key, value in self.arguments.items():
            if key not in accepted:
                takes = f"takes {', '.join(accepted)}" if accepted else "takes none"
                raise ValueError(
                    f"{self.name}: unknown argument {key!r}; it {takes}"
                    f"{_registry.nearest(key, accepted)}"
                )
            if not _is_number(value) or not math.isfinite(value):
                kind = "finite number" if _is_number(value) else "number"
                raise ValueError(
                    f"{self.name}: {key} must be a {kind}. Received: {value!r}"
                )
        try:
            if self.of_features:
                self.computation.check(**self.arguments)
            elif self.computation in _OWN:
                # A loss of logits is tried on one example, and checks them itself.
                self.of_logits([0], [[0.0, 1.0]], [[0.0, 1.0]], temperature=1.0)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    @property
    def computation(self) -> Any:
        """The function, the Keras loss or the class that computes it."""
        name = self.name if self.loss is None else self.loss
        if not isinstance(name, str):
            return name
        return FEATURE_LOSSES[name] if name in FEATURE_LOSSES else LOGIT_LOSSES[name]

    @property
    def of_features(self) -> bool:
        """Whether it compares feature maps, not logits."""
        return _is_feature_loss(self.computation)

    def of_logits(
        self,
        labels: Any,
        teacher_logits: Any,
        student_logits: Any,
        temperature: Any,
        head: str = "softmax",
    ) -> tf.Tensor:
        """The loss of each example, float32 `(batch,)`; labels where it takes them."""
        arguments = {"temperature": temperature, **self.arguments}
        loss = self.computation
        if head == "sigmoid":
            loss = SIGMOID_LOSSES.get(loss, loss)
        if _is_keras_loss(loss):
            logits = teacher_logits, student_logits
            values = _keras_loss(loss, *logits, arguments["temperature"])
        else:
            taken = inspect.signature(loss).parameters
            if "temperature" not in taken:
                del arguments["temperature"]
            if "labels" in taken:
                arguments["labels"] = labels
            values = _in_graph(loss)(teacher_logits, student_logits, **arguments)
        values = tf.convert_to_tensor(values)
        if not values.shape.is_compatible_with([None]) or not values.dtype.is_floating:
            raise ValueError(
                f"loss {self.name!r} must give one number per example, shape (batch,). "
                f"Received: {values.dtype.name} of shape {values.shape}"
                f"{_shape_hint(values.shape.rank)}"
            )
        return tf.cast(values, tf.float32)

    def validate(self, classes: int, head: str = "softmax") -> None:
        """Tries a loss of logits before training, in a graph as training has it.

        Losses of features are checked when they are given the shapes of the maps.

        Args:
            classes: The number of logits.
            head: What makes probabilities of them, "softmax" or "sigmoid".

        Raises:
            ValueError: If the loss is one of classes and `head` is sigmoid, it fails
                on random logits, does not give one finite number per example, or does
                not depend on the student's logits.
        """
        if head == "sigmoid":
            self._check_sigmoid()
        if self.of_features or self.computation in _OWN:
            return
        examples = 3 if classes != 3 else 5
        random = np.random.default_rng(0)
        logits = random.normal(0.0, 2.0, (2, examples, classes)).astype(np.float32)
        labels = np.arange(examples, dtype=np.int32) % classes
        if head == "sigmoid":
            labels = (logits[0] > 0).astype(np.float32)

        @tf.function
        def trial(labels, teacher, student):
            with tf.GradientTape() as tape:
                tape.watch(student)
                values = self.of_logits(labels, teacher, student, 2.0, head)
            return values, tape.gradient(values, student)

        try:
            values, gradient = trial(*map(tf.constant, (labels, *logits)))
        except Exception as error:
            line = plain_line(error)
            if line.startswith(f"loss {self.name!r}"):
                raise ValueError(line) from error
            raise ValueError(
                f"loss {self.name!r} fails on random logits of shape ({examples}, "
                f"{classes}): {type(error).__name__}: {line}"
            ) from error
        if values.shape != [examples]:
            raise ValueError(
                f"loss {self.name!r} must give one number per example, shape (batch,). "
                f"Received: shape {values.shape} for a batch of {examples}"
            )
        if gradient is None or not np.any(gradient):
            raise ValueError(
                f"loss {self.name!r} does not depend on the student's logits, so that "
                "nothing can be learned by it; compute it from its second argument "
                "with TensorFlow operations that have a gradient"
            )
        if not (np.isfinite(values).all() and np.isfinite(gradient).all()):
            raise ValueError(
                f"loss {self.name!r} or its gradient is NaN or infinite on random "
                f"logits. Received: {np.asarray(values)}"
            )

    def _check_sigmoid(self) -> None:
        """Refuses a loss that compares softmaxes, where there are none."""
        loss = self.computation
        own = not self.of_features and loss in _OWN and loss not in SIGMOID_LOSSES
        if own or _is_keras_loss(loss):
            works = [
                name for name, one in LOGIT_LOSSES.items() if one in SIGMOID_LOSSES
            ]
            raise ValueError(
                f"loss {self.name!r} compares one of several classes; for sigmoid, of "
                f"several labels or a single unit, there are {', '.join(works)}, the "
                "losses of features, and functions of your own"
            )

    def get_config(self) -> dict[str, Any]:
        """The spec as JSON-able values; functions and classes by registered name.

        Raises:
            ValueError: If the loss is a function or class that is not registered.
        """
        return {
            "name": self.name,
            "weight": self.weight,
            "teacher_layers": self.teacher_layers and list(self.teacher_layers),
            "student_layers": self.student_layers and list(self.student_layers),
            "arguments": dict(self.arguments),
            "loss": self._loss_config(),
        }

    def _loss_config(self) -> Any:
        if self.loss is None or isinstance(self.loss, str):
            return self.loss
        if _is_keras_loss(self.loss):
            return keras.saving.serialize_keras_object(self.loss)
        for name, loss in {**LOGIT_LOSSES, **FEATURE_LOSSES}.items():
            if loss is self.loss:
                return name
        raise ValueError(
            f"loss {self.name!r} has a config only if it is known by a name: "
            f"kdprune.register_loss({self.name!r}, …). Received: {self.loss!r}"
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SoftLoss:
        """Makes a spec of what `get_config` gave; names must be registered."""
        loss = config["loss"]
        if isinstance(loss, Mapping):
            loss = keras.saving.deserialize_keras_object(dict(loss))
        return cls(**{**config, "loss": loss})


def as_soft_losses(losses: Iterable[Any] | None) -> tuple[SoftLoss, ...]:
    """Makes specs of losses that are given in any form.

    Args:
        losses: Registered names, dicts of the attributes of `SoftLoss` (further keys
            are arguments of the loss), functions of logits, Keras losses, subclasses
            of `FeatureLoss`, or `SoftLoss` objects. None or an empty list is "kl", as
            in a recipe that names none. To learn from labels alone, `soft_weight=0`
            leaves all out.

    Returns:
        Tuple of `SoftLoss`, at least one, of different names.

    Raises:
        ValueError: If two have one name, or one is not valid.
    """
    if losses is not None and not isinstance(losses, list | tuple):
        raise ValueError(
            f"losses must be a list, such as ['kl', 'hint']. Received: {losses!r}"
        )
    found = [_as_soft_loss(loss) for loss in losses or ("kl",)]
    names = [loss.name for loss in found]
    if len(set(names)) < len(names):
        raise ValueError(
            f"expected each soft loss once. Received: {', '.join(names)}; give one "
            "that is used twice two names, as in SoftLoss(name='sharp_kl', loss='kl')"
        )
    return tuple(found)


def plain_line(error: BaseException) -> str:
    """An error's message in one line, without TensorFlow's traceback."""
    text = str(error)
    # AutoGraph puts tracebacks before the message of an error in traced code.
    if text.startswith("in user code"):
        text = re.split(rf"\n +{type(error).__name__}: ", text)[-1]
    lines = re.sub(r"\{\{.*?\}\} *", "", text).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _as_soft_loss(loss: Any) -> SoftLoss:
    if isinstance(loss, SoftLoss):
        return loss
    if isinstance(loss, str):
        return SoftLoss(loss)
    if isinstance(loss, Mapping):
        fields = {field.name for field in dataclasses.fields(SoftLoss)}
        own = {key: loss[key] for key in loss if key in fields - {"arguments"}}
        rest = {key: loss[key] for key in loss if key not in own}
        return SoftLoss(**own, arguments=rest)
    if callable(loss) or _is_keras_loss(loss):
        return SoftLoss(loss=loss)
    raise ValueError(
        "expected a soft loss as a name, a dict, a function of logits, a Keras loss, a "
        f"subclass of FeatureLoss or a SoftLoss. Received: {loss!r}"
    )


def _check_registered(name: str) -> None:
    known = (*LOGIT_LOSSES, *FEATURE_LOSSES)
    if name not in known:
        raise ValueError(
            f"a soft loss must be one of {', '.join(known)}. Received: "
            f"{name!r}{_registry.nearest(name, known)}"
        )


def _check_function(loss: Any, name: str) -> None:
    """Refuses what is no function of a teacher's and a student's logits."""
    if not callable(loss):
        raise ValueError(f"loss {name!r} must be callable. Received: {loss!r}")
    module = getattr(loss, "__module__", None) or ""
    if isinstance(loss, type) or module.startswith(("keras.", "tf_keras.")):
        raise ValueError(
            f"loss {name!r} must be a function of logits, an object of a class of "
            "keras.losses, such as keras.losses.KLDivergence(), or a subclass of "
            f"FeatureLoss. Received: {loss!r}"
        )
    try:
        parameters = list(inspect.signature(loss).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"loss {name!r} must be a Python function. Received: {loss!r}"
        ) from error
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    anything = any(
        parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters
    )
    first = [parameter.name for parameter in positional[:2]]
    if len(first) < 2 and not anything:
        raise ValueError(
            f"loss {name!r} must take (teacher_logits, student_logits). Received: a "
            f"function of ({', '.join(first)})"
        )
    swapped = any(n.startswith(("student", "y_pred")) for n in first[:1])
    swapped |= any(n.startswith(("teacher", "y_true")) for n in first[1:])
    if swapped:
        raise ValueError(
            f"loss {name!r} must take the teacher's logits first: (teacher_logits, "
            f"student_logits). Received: a function of ({', '.join(first)}); exchange "
            "the two, or wrap it in a lambda that does"
        )
    missing = [
        parameter.name
        for parameter in parameters[2:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in _GIVEN
    ]
    if missing:
        raise ValueError(
            f"loss {name!r} is given teacher_logits, student_logits and, if it takes "
            f"them, {' and '.join(_GIVEN)}; its other parameters need defaults. "
            f"Received: {', '.join(missing)} without one"
        )


def _arguments_of(loss: Any) -> list[str]:
    """Names of the arguments that a spec may set."""
    if _is_keras_loss(loss):
        return ["temperature"]
    if _is_feature_loss(loss):
        given = ("self", "teacher_shapes", "student_shapes", "kwargs", "name", "dtype")
        parameters = inspect.signature(loss.__init__).parameters
        return [name for name in parameters if name not in given]
    # The first two are the logits, whatever they are called.
    parameters = inspect.signature(loss).parameters
    return [name for name in list(parameters)[2:] if name != "labels"]


def _keras_loss(loss: Any, teacher: Any, student: Any, temperature: Any) -> Any:
    """A Keras loss of softened predictions, unreduced, with Hinton's factor `T**2`."""
    from_logits = getattr(loss, "from_logits", None)
    if from_logits is None:
        from_logits = loss.get_config().get("from_logits", False)
    student = student / temperature
    if not from_logits:
        student = tf.nn.softmax(student)
    teacher = tf.nn.softmax(teacher / temperature)
    return temperature**2 * _in_graph(loss.call)(teacher, student)


def _in_graph(function: Any) -> Any:
    """The function as Keras calls what users write: its `if` may ask a tensor."""
    if tf.executing_eagerly() or function in _OWN:
        return function
    convert = tf.__internal__.autograph
    return convert.tf_convert(function, convert.control_status_ctx())


def _is_keras_loss(loss: Any) -> bool:
    """Whether this is a loss object of tf_keras or of Keras 3."""
    return not isinstance(loss, type) and any(
        kind.__name__ == "Loss" and kind.__module__.startswith(("keras.", "tf_keras."))
        for kind in type(loss).__mro__
    )


def _is_feature_loss(loss: Any) -> bool:
    return isinstance(loss, type) and issubclass(loss, FeatureLoss)


def _name_of(loss: Any) -> str:
    """What a loss calls itself, fit for the name of a metric."""
    if isinstance(loss, str):
        return loss
    if _is_keras_loss(loss) and getattr(loss, "name", None):
        name = str(loss.name)
    else:
        function = getattr(loss, "func", loss)  # Of `functools.partial`.
        name = getattr(function, "__name__", type(function).__name__)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    name = re.sub(r"\W+", "", name).strip("_")
    return "custom" if name == "lambda" else name.removesuffix("_loss") or "custom"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shape_hint(rank: int | None) -> str:
    if rank == 0:
        return "; leave out the mean over the batch"
    return "; take the sum or mean over the classes" if rank == 2 else ""
