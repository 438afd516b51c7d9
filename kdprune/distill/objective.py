"""What a student is taught by: losses with weights, and values that change in time."""

import dataclasses
import inspect
import math
import numbers

import tensorflow as tf

from kdprune.distill.features import FEATURE_LOSSES
from kdprune.distill.losses import LOGIT_LOSSES

SOFT_LOSSES = (*LOGIT_LOSSES, *FEATURE_LOSSES)


@dataclasses.dataclass(frozen=True)
class SoftLoss:
    """One of the losses by which a student learns from its teacher.

    Attributes:
        name: One of `SOFT_LOSSES`; of the teacher's logits or of its features.
        weight: Its weight, finite and above 0.
        teacher_layers: For features, names of the teacher's layers to compare; None
            for the last feature map of each resolution.
        student_layers: The student's, one for each of the teacher's.
        arguments: More arguments of the loss, numbers such as `{"alpha": 1, "beta":
            8}` of "dkd"; a `temperature` here is this loss's own.

    Raises:
        ValueError: If the name or an argument is none that there is, a value is out
            of its range, or the layers are not named in pairs.
    """

    name: str = "kl"
    weight: float = 1.0
    teacher_layers: tuple | None = None
    student_layers: tuple | None = None
    arguments: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.name not in SOFT_LOSSES:
            raise ValueError(
                f"a soft loss must be one of {', '.join(SOFT_LOSSES)}. Received: "
                f"{self.name!r}"
            )
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"the weight of {self.name} must be above 0. Received: {self.weight}; "
                "leave the loss out instead"
            )
        if not self.of_features and (self.teacher_layers or self.student_layers):
            raise ValueError(
                f"{self.name} compares logits and has no layers. Received: "
                f"{self.teacher_layers or self.student_layers}"
            )
        accepted = _arguments_of(self.name)
        unknown = sorted(set(self.arguments) - set(accepted))
        if unknown:
            takes = f"takes {', '.join(accepted)}" if accepted else "takes none"
            raise ValueError(
                f"{self.name}: unknown argument {unknown[0]!r}; it {takes}"
            )
        self._check_layers()
        self._check_arguments()

    def _check_layers(self):
        given = self.teacher_layers, self.student_layers
        if given == (None, None):
            return
        if None in given:
            raise ValueError(
                f"{self.name}: expected both teacher_layers and student_layers, or "
                "neither. Received: only one of them"
            )
        counts = [len(names) for names in given]
        if counts[0] != counts[1] or not counts[0]:
            raise ValueError(
                f"{self.name}: expected a layer of the student for each of the "
                f"teacher's, at least one. Received: {counts[0]} of the teacher, "
                f"{counts[1]} of the student"
            )

    def _check_arguments(self):
        for key, value in self.arguments.items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError(
                    f"{self.name}: {key} must be a number. Received: {value!r}"
                )
        try:
            if self.of_features:
                FEATURE_LOSSES[self.name].check(**self.arguments)
            else:
                # A loss of logits is tried on one example, and checks them itself.
                self.of_logits([0], [[0.0, 1.0]], [[0.0, 1.0]], temperature=1.0)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    @property
    def of_features(self):
        return self.name in FEATURE_LOSSES

    def of_logits(self, labels, teacher_logits, student_logits, temperature):
        """The loss of each example, `(batch,)`; labels where they are needed."""
        arguments = {"temperature": temperature, **self.arguments}
        if "labels" in inspect.signature(LOGIT_LOSSES[self.name]).parameters:
            arguments["labels"] = labels
        return LOGIT_LOSSES[self.name](teacher_logits, student_logits, **arguments)


def _arguments_of(name):
    if name in FEATURE_LOSSES:
        given = ("self", "teacher_shapes", "student_shapes", "kwargs", "name", "dtype")
        parameters = inspect.signature(FEATURE_LOSSES[name].__init__).parameters
    else:
        given = ("teacher_logits", "student_logits", "labels")
        parameters = inspect.signature(LOGIT_LOSSES[name]).parameters
    return [parameter for parameter in parameters if parameter not in given]


class Schedule:
    """A value over the course of training: constant, or linear between points.

    Soft labels first and hard ones after is `[(0, 1), (0.5, 1), (0.5, 0), (1, 0)]` as
    a `soft_weight`: of two points at one place the second holds from there on.

    Args:
        value: A number, or points `(share of training in [0, 1], value)` in order.
        steps: Optimizer steps of the whole training; needed for points.
        name: What it is called in errors.
        low, high: The range its values must be in; `low` itself only if `closed`.
        closed: Whether `low` is allowed.

    Raises:
        ValueError: If a value is out of range, the shares are not in order, or
            points come without `steps`.
    """

    def __init__(self, value, steps=None, *, name, low=0.0, high=None, closed=True):
        constant = not isinstance(value, list | tuple)
        self.points = ((0.0, value),) if constant else tuple(map(tuple, value))
        self.steps = steps
        shares = [point[0] for point in self.points]
        if (
            not shares
            or shares != sorted(shares)
            or not 0 <= shares[0] <= shares[-1] <= 1
        ):
            raise ValueError(
                f"{name} must be a number or points (share of training, value), the "
                f"shares rising within [0, 1]. Received: {value}"
            )
        if not constant and not steps:
            raise ValueError(
                f"{name} changes over training, whose length is not known: give "
                "`steps`, the optimizer steps of the whole training"
            )
        for number in self.values:
            above = number >= low if closed else number > low
            if not above or (high is not None and number > high):
                bound = f"in [{low:g}, {high:g}]" if high is not None else "above 0"
                raise ValueError(f"{name} must be {bound}. Received: {number}")

    @property
    def values(self):
        return [value for _, value in self.points]

    def at(self, step):
        """The value at an optimizer step: a float, or a float32 tensor."""
        if len(set(self.values)) == 1:
            return float(self.values[0])
        share = tf.cast(step, tf.float32) / float(self.steps)
        value = tf.constant(float(self.points[0][1]))
        for (start, first), (end, last) in zip(
            self.points, self.points[1:], strict=False
        ):
            inside = (share - start) / max(end - start, 1e-9)
            between = first + (last - first) * tf.clip_by_value(inside, 0.0, 1.0)
            value = tf.where(share >= start, between, value)
        return value


def as_soft_losses(losses):
    """`SoftLoss` objects of names, dicts or `SoftLoss` objects.

    Args:
        losses: What is named; None or an empty list is "kl", as in a recipe that
            names none. To learn from labels alone, `soft_weight=0` leaves all out.

    Returns:
        Tuple of `SoftLoss`, at least one.

    Raises:
        ValueError: If there is a loss twice, or one that is not valid.
    """
    found = [_as_soft_loss(loss) for loss in losses or ("kl",)]
    names = [loss.name for loss in found]
    if len(set(names)) < len(names):
        raise ValueError(f"expected each soft loss once. Received: {', '.join(names)}")
    return tuple(found)


def _as_soft_loss(loss):
    if isinstance(loss, SoftLoss):
        return loss
    if isinstance(loss, str):
        return SoftLoss(loss)
    if isinstance(loss, dict):
        fields = {field.name for field in dataclasses.fields(SoftLoss)}
        own = {key: loss[key] for key in loss if key in fields - {"arguments"}}
        rest = {key: loss[key] for key in loss if key not in own}
        return SoftLoss(**own, arguments=rest)
    raise ValueError(
        f"expected a soft loss as a name, a dict or a SoftLoss. Received: {loss!r}"
    )
