"""The export gate: the checks that a `.tflite` file passes before it is exported."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from kdprune._answers import (
    disagreement,
    f1_by_label,
    f1_influence,
    of_labels,
    share_right,
)
from kdprune._registry import suggesting
from kdprune.intake import byte_input, parse_range
from kdprune.intake.file_input import UNIT_INPUT
from kdprune.intake.pixels import Given
from kdprune.tflite.format import File
from kdprune.tflite.inspection import float_layers_of, inspect_tflite
from kdprune.tflite.interpreter import try_out

# Of [0, 1] data, by type: the zero point, and the scales of input and output.
_INTEGERS = {
    "int8": (-128, 1 / 255, 1 / 256),
    "uint8": (0, 1 / 255, 1 / 256),
    # Of int16x8, whose integers are symmetric around 0.
    "int16": (0, 1 / 32767, 1 / 32768),
}
_ONE_SIDED_95 = 1.6449  # Standard deviations.
# Of `max_disagreement` and `max_deviation`, for a file that was trained as it computes.
_STRICT = 0.4
# Times that limit: what the images of one class may deviate by on the mean.
_OF_A_CLASS = 2
_FEWEST_OF_A_CLASS = 10  # Images; of fewer nothing is said.
_ONE_SIDED_99 = 2.3263


class RefusedFile(ValueError):
    """A file that does not do what its model does; the message is all reasons.

    Attributes:
        reasons: What is wrong, each with the argument that would allow it, if any.
        figures: What `check_tflite` would have returned.
        content: The file's content, if it was just converted.
        runs: Whether that is known to run.
    """

    def __init__(
        self,
        reasons: list[str],
        figures: dict[str, Any],
        content: bytes | None = None,
        runs: bool = True,
    ) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        self.figures = figures
        self.content = content
        self.runs = runs and content is not None


def content_of(convert: Callable[[], bytes]) -> bytes:
    """What a conversion makes, be it refused, for those who measure it.

    Raises:
        RefusedFile: If it makes no file that runs.
    """
    try:
        return convert()
    except RefusedFile as error:
        if error.content is None or not error.runs:
            raise
        return error.content


def check_content(
    content: bytes, float_layers: Sequence[str] = (), input_range: Given = (0, 1)
) -> None:
    """Refuses a converted file for what the gate would refuse without any image.

    Args:
        content: The file's content.
        float_layers: As for `check_tflite`.
        input_range: As there.

    Raises:
        RefusedFile: If it computes in float where it was not to, takes pixels wrongly,
            or does not run.
    """
    figures = inspect_tflite(content)
    _, reasons = _check_integers(figures, float_layers, input_range)
    runs = True
    try:
        try_out(content)
    except ValueError as error:
        reasons.append(f"it does not run: {error}")
        runs = False
    if reasons:
        raise RefusedFile(reasons, figures, content, runs)


@suggesting
def check_tflite(
    data: File,
    keras_scores: ArrayLike,
    tflite_scores: ArrayLike,
    labels: ArrayLike,
    *,
    max_disagreement: float = 0.05,
    max_drop: float = 0.02,
    max_deviation: float = 0.1,
    float_layers: Sequence[str] = (),
    strict: bool = False,
    input_range: Given = (0, 1),
) -> dict[str, Any]:
    """Refuses a `.tflite` file that does not do what its Keras model does.

    A file that takes integers must compute in them throughout (Quantize between
    int8 and uint8 at its ends apart, and the layers that were to stay in float). An
    8-bit file must take images as bytes: input scale and zero point exactly those of
    the pixel range, of [0, 1] 1/255 and 0 (uint8) or -128 (int8); an int16x8 file has
    1/32767 and 0. Scores, of any file, must not deviate far from the Keras model's, and
    must not lose accuracy against it.

    The drop is an estimate from some images, so the gate judges a bound: it fails a
    file that *surely* loses more than the limit, with the whole one-sided 95 %
    interval beyond it. On 5,000 images with a disagreement of 2.5 % the
    bound lies 0.37 points below the measured drop: with `max_drop=0.01`, a measured
    drop of 1.4 points fails and one of 1.3 does not. The gate finds broken
    conversions and does not call an honest file broken for chance; who needs proof
    that a file loses less than a limit reads the other end of `drop_interval`.
    Agreement alone proves little: MLPerf Tiny's int8 ResNet-8 differs on 2.5 % of
    images and loses 0.2 points, and a weak model, or one of many classes, changes its
    mind between classes of nearly the same probability. So disagreement counts where
    probabilities deviate as well: by the mean over images of the largest deviation of
    a class, which is a model's disagreement if it is always sure. A single class may
    be wrong where all others are right: so each one's images must not surely (95 %)
    deviate by more than twice that limit.

    Args:
        data: The file's content, or its path.
        keras_scores: Scores of the Keras model the file was made from, shape
            `(n, classes)`, logits or probabilities: for QAT the QAT model. Of labels
            and of a single unit probabilities, as `kdprune.evaluate.predict` gives.
        tflite_scores: The file's scores on the same images, same shape.
        labels: The images' classes, shape `(n,)`, or zeros and ones `(n, labels)`;
            validation images, not test.
        max_disagreement: Largest share of images whose best class may differ (of
            labels, of all answers that may), unless the mean deviation of
            probabilities is within that limit.
        max_drop: Largest accuracy the file may lose, as a share of images; of labels
            the largest loss of macro F1.
        max_deviation: Largest mean deviation of probabilities, in [0, 1], whether the
            best classes differ or not: that of a second softmax is far beyond it. The
            images of a class (those that it is best for, or a label applies to, by the
            Keras model) may deviate by twice as much.
        float_layers: The layers that the conversion was asked to leave in float;
            an operator of any other is refused.
        strict: Whether the Keras model rounds as the file does (QAT), so that they
            may differ on and deviate by 0.4 of the limits only, give or take what
            chance makes of it on so many images.
        input_range: What bytes mean to an 8-bit file, as `take_model` takes it;
            `input_range_of(model)` of the model it was made from.

    Returns:
        What `inspect_tflite` and `paired_drop` return, `deviation`, the mean of the
        largest deviation of a probability, `most`, the `image` and `class` that deviate
        most with both `scores`, the Keras model's first, and `float_layers`, those that
        are in float indeed: JSON-able.

    Raises:
        RefusedFile: If the file fails: all that is wrong, by how much, what to do, and
            the argument that would allow it. A `ValueError`.
        ValueError: If the shapes do not fit.
    """
    figures = inspect_tflite(data)
    several = of_labels(labels)
    _check_head(figures, several)
    figures["float_layers"], reasons = _check_integers(
        figures, float_layers, input_range
    )
    figures |= paired_drop(keras_scores, tflite_scores, labels)
    before, after = _as_probabilities(keras_scores, tflite_scores)
    apart = np.abs(before - after)
    deviation = figures["deviation"] = float(apart.max(axis=1).mean())
    figures["most"] = _most(before, after)
    n = figures["images"]
    limit, share, judged = max_disagreement, 1.0, deviation
    if strict:
        limit, share = min(limit, _by_chance(_STRICT * limit, n)), _STRICT
        # Of many labels one is always a step off.
        each = apart.mean(axis=1) if several else apart.max(axis=1)
        judged = _surely(each)
    if figures["disagreement"] > limit and deviation > limit:
        reasons.append(
            f"the .tflite file and its Keras model disagree on "
            f"{figures['disagreement']:.1%} of {n} images{_each(several)} (limit "
            f"{limit:.1%}), their probabilities deviate by {deviation:.3f}: check that "
            "both get the same images, use more calibration images, train "
            "quantization-aware, or allow it by max_disagreement"
        )
    elif not (deviation <= max_deviation and judged <= share * max_deviation):  # NaN.
        reasons.append(
            "the .tflite file's probabilities deviate from its Keras model's by "
            f"{deviation:.3f} (mean of {n} images; limit {share * max_deviation:.3f}), "
            f"{_told(figures['most'])}: check that both end in the same activation and "
            f"get the same images{_allowing(max(deviation, judged / share))}"
        )
    else:
        reasons += _wrong_classes(
            before, after, several, _OF_A_CLASS * share, max_deviation
        )
    if figures["drop_interval"][0] > max_drop:
        what = ("macro_f1", "macro F1") if several else ("accuracy", "accuracy")
        before, after = (figures[f"{whose}_{what[0]}"] for whose in ("keras", "tflite"))
        reasons.append(
            f"the .tflite file loses {100 * figures['drop']:.2f} points of {what[1]} "
            f"({before:.2%} to {after:.2%} on {n} images; at least "
            f"{100 * figures['drop_interval'][0]:.2f} with 95 % confidence; limit "
            f"{100 * max_drop:.2f}): use other ranges, more calibration images, train "
            "quantization-aware, or allow it by max_drop"
        )
    if reasons:
        raise RefusedFile(reasons, figures)
    return figures


def compare_kernels(
    keras_scores: NDArray,
    scores: Mapping[str, NDArray],
    max_disagreement: float = 0.05,
    several: bool = False,
    max_deviation: float = 0.1,
) -> dict[str, dict[str, Any]]:
    """How far a file's scores are from its Keras model's, on several kernels.

    Args:
        keras_scores: Probabilities of the Keras model, shape `(n, classes)`.
        scores: `{kernels: probabilities}` of the file on the first m <= n of the
            same images, shape `(m, classes)`; m may differ.
        max_disagreement: Largest share of images whose best class may differ, give
            or take what chance makes of it on m images, unless the mean deviation of
            probabilities is within that.
        several: Whether several labels may apply to an image: then it is the share of
            all answers.
        max_deviation: Largest mean deviation of probabilities, give or take what chance
            makes of it, whatever the best classes are.

    Returns:
        `{kernels: figures}`, each `images`, `disagreement` and `largest_deviation`
        (of a probability): JSON-able.

    Raises:
        ValueError: If the disagreement or the deviation of some kernels is larger, with
            their name, or their scores are not finite.
    """
    found = {}
    for kernels, given in scores.items():
        expected = keras_scores[: len(given)]
        if not np.isfinite(given).all():
            raise ValueError(
                f"on the {kernels} kernels the .tflite file gives scores that are not "
                "finite: do not ship it to devices that use them"
            )
        differ = disagreement(given, expected, several)
        found[kernels] = {
            "images": len(given),
            "disagreement": differ,
            "largest_deviation": float(np.abs(given - expected).max()),
        }
        limit = _by_chance(max_disagreement, len(given))
        if differ > limit and _deviation(expected, given) > limit:
            raise ValueError(
                f"on the {kernels} kernels the .tflite file and its Keras model "
                f"disagree on {differ:.1%} of {len(given)} images{_each(several)} "
                f"(limit {limit:.1%}): do not ship it to devices that use them"
            )
        before, after = _as_probabilities(expected, given)
        apart = np.abs(before - after).max(axis=1)
        if _surely(apart) > max_deviation:
            raise ValueError(
                f"on the {kernels} kernels the .tflite file's probabilities deviate "
                f"from its Keras model's by {apart.mean():.3f} (mean of {len(given)} "
                f"images; limit {max_deviation:.3f}), {_told(_most(before, after))}: "
                "do not ship it to devices that use them"
            )
    return found


def paired_drop(
    keras_scores: ArrayLike, tflite_scores: ArrayLike, labels: ArrayLike
) -> dict[str, Any]:
    """The accuracy a file loses against its model, on the same images.

    Args:
        keras_scores: Scores of the model that sets the standard, shape
            `(n, classes)`, logits or probabilities; of labels probabilities.
        tflite_scores: The file's scores on the same images, same shape.
        labels: The images' classes, shape `(n,)`; or, where several labels may apply
            to an image, zeros and ones `(n, labels)`.

    Returns:
        Dict of `images`, `disagreement` (share of images whose best class differs),
        `keras_accuracy`, `tflite_accuracy`, `drop` (their difference),
        `drop_interval` (one-sided 95 % bounds, low and high), `drop_bound`, and
        `at_chance`, whether the model that sets the standard is not surely (99 %)
        right more often than always naming the commonest class, so that no drop
        tells anything: JSON-able. `drop_bound` is the upper bound for who needs proof:
        it counts one image more as lost and one as gained (Bonett & Price, 2012,
        https://doi.org/10.3102/1076998611411915), so that no difference on a few
        images is not taken for none at all: 2.3 / n there, about the same as the
        interval's where many differ.

        Of labels `drop`, its interval and its bound are of macro F1 (the delta method;
        for the bound, one answer more to each label is counted as lost and one as
        gained), `disagreement` and the accuracies are shares of all answers, and
        `keras_macro_f1` and `tflite_macro_f1` stand beside them.

    Raises:
        ValueError: If the shapes do not fit or there are no images.
    """
    keras_scores, tflite_scores = np.asarray(keras_scores), np.asarray(tflite_scores)
    labels = np.asarray(labels)
    several = of_labels(labels)
    if (
        keras_scores.ndim != 2
        or tflite_scores.shape != keras_scores.shape
        or labels.shape != keras_scores.shape[: labels.ndim]
        or not len(labels)
    ):
        raise ValueError(
            "scores must have the shape (n, classes) twice and labels (n,) or (n, "
            f"labels), n > 0. Received: {keras_scores.shape}, {tflite_scores.shape}, "
            f"{labels.shape}"
        )
    if keras_scores.shape[1] == 1:
        raise ValueError(
            "scores of a single unit must be those of both classes (n, 2), as "
            "kdprune.evaluate.predict gives them. Received: shape (n, 1)"
        )
    if several:
        return _paired_drop_of_labels(keras_scores, tflite_scores, labels)
    before, after = keras_scores.argmax(axis=1), tflite_scores.argmax(axis=1)
    drops = (before == labels).astype(float) - (after == labels)
    n, drop = len(labels), float(drops.mean())
    margin = _ONE_SIDED_95 * float(drops.std()) / n**0.5
    more, flips = n + 2, float(np.abs(drops).sum()) + 2
    shift = drop * n / more
    bound = shift + _ONE_SIDED_95 * ((flips / more - shift**2) / more) ** 0.5
    return {
        "images": n,
        "disagreement": float((before != after).mean()),
        "keras_accuracy": float((before == labels).mean()),
        "tflite_accuracy": float((after == labels).mean()),
        "drop": drop,
        "drop_interval": [drop - margin, drop + margin],
        "drop_bound": bound,
        "at_chance": _at_chance(before == labels, labels),
    }


def _paired_drop_of_labels(
    before: NDArray, after: NDArray, labels: NDArray
) -> dict[str, Any]:
    if min(before.min(), after.min()) < 0 or max(before.max(), after.max()) > 1:
        raise ValueError(
            "scores of labels must be probabilities, as kdprune.evaluate.predict gives "
            "them. Received: values outside of [0, 1]"
        )
    if not np.isin(labels, (0, 1)).all() or not labels.any():
        raise ValueError(
            "labels must be zeros and ones, some of them 1. Received: "
            f"{labels.min():g} to {labels.max():g}"
        )
    f1 = [float(np.nanmean(f1_by_label(scores, labels))) for scores in (before, after)]
    n, drop = len(labels), f1[0] - f1[1]
    # What each image takes off: the mean of these is the drop.
    drops = drop + f1_influence(before, labels) - f1_influence(after, labels)
    margin = _ONE_SIDED_95 * float(drops.std()) / n**0.5
    more = n + 2
    shift = drop * n / more
    squares = float((drops**2).sum()) + 2 * _one_answer(before, labels) ** 2
    spread = max(squares / more - shift**2, 0.0)
    return {
        "images": n,
        "disagreement": disagreement(before, after, True),
        "keras_accuracy": float(share_right(before, labels).mean()),
        "tflite_accuracy": float(share_right(after, labels).mean()),
        "keras_macro_f1": f1[0],
        "tflite_macro_f1": f1[1],
        "drop": drop,
        "drop_interval": [drop - margin, drop + margin],
        "drop_bound": shift + _ONE_SIDED_95 * (spread / more) ** 0.5,
    }


def _one_answer(scores: NDArray, labels: NDArray) -> float:
    """What one answer lost for each label takes off the macro F1 of n images, times n.

    The labels' losses are taken to be independent of each other.
    """
    there = labels.any(axis=0)
    counted = ((scores > 0.5).mean(axis=0) + labels.mean(axis=0))[there]
    each = (2 - f1_by_label(scores, labels)[there]) / counted
    return float((each**2).sum() ** 0.5) / int(there.sum())


def images_to_prove(max_drop: float, labels: ArrayLike | None = None) -> int:
    """The fewest images on which a file can be proven to lose no more than a limit.

    That is `paired_drop`'s `drop_bound` where every image is classified as before,
    turned round: of a file that classifies some otherwise, more are needed.

    Args:
        max_drop: Largest accuracy to lose, as a share of images, in (0, 1); of labels
            the largest loss of macro F1.
        labels: Zeros and ones `(n, labels)` like those that it is to be proven on: the
            rarer a label, the more images it takes. None of classes.

    Returns:
        A number of images.
    """
    one = 1.0
    if labels is not None and of_labels(labels):
        labels = np.asarray(labels)
        one = _one_answer(labels.astype(float), labels)
    return max(1, math.ceil(_ONE_SIDED_95 * 2**0.5 * one / max_drop - 2))


def _each(several: bool) -> str:
    return ", all labels counted" if several else ""


def _check_head(figures: dict[str, Any], several: bool) -> None:
    """Refuses a file whose scores are of another kind than the labels."""
    head, units = figures["head"], figures["output"]["shape"][-1]
    if several and (head == "softmax" or units == 1):
        given = "softmax" if head == "softmax" else "one unit"
        raise ValueError(
            "expected a file that ends in sigmoid for labels (n, labels): convert it "
            f"with head='sigmoid'. Received: one that ends in {given}"
        )
    if not several and head == "sigmoid" and units > 1:
        raise ValueError(
            "expected a file that ends in softmax, for labels (n,) of one of several "
            f"classes. Received: one that ends in sigmoid, of {units} outputs"
        )


def provable_drop(images: int) -> float:
    """The least limit that a file can be proven to keep on so many images.

    That is `paired_drop`'s `drop_bound` of a file that classifies every image as
    before; `images_to_prove` turned round.

    Args:
        images: A number of images, at least 1.

    Returns:
        A share of images.
    """
    return _ONE_SIDED_95 * 2**0.5 / (images + 2)


def _at_chance(right: NDArray, labels: NDArray) -> bool:
    """Whether a model is not surely right more often than the commonest class."""
    n = len(labels)
    chance = float(np.unique(labels, return_counts=True)[1].max()) / n
    margin = _ONE_SIDED_99 * (chance * (1 - chance) / n) ** 0.5
    return bool(0 < chance < 1 and right.mean() <= chance + margin)


def _as_probabilities(*given: ArrayLike) -> list[NDArray]:
    """Scores as probabilities: what is one already, else softmax of logits."""
    scores = [np.asarray(one, np.float64) for one in given]
    return [
        one if one.min() >= 0 and one.max() <= 1 else special.softmax(one, 1)
        for one in scores
    ]


def _deviation(keras_scores: ArrayLike, tflite_scores: ArrayLike) -> float:
    """The mean over images of the largest deviation of a probability."""
    first, second = _as_probabilities(keras_scores, tflite_scores)
    return float(np.abs(first - second).max(axis=1).mean())


def _most(before: NDArray, after: NDArray) -> dict[str, Any]:
    """Which image deviates most, in which class, and its two scores."""
    apart = np.abs(before - after)
    image, chosen = map(int, np.unravel_index(apart.argmax(), apart.shape))
    scores = [float(one[image, chosen]) for one in (before, after)]
    return {"image": image, "class": chosen, "scores": scores}


def _told(most: Mapping[str, Any]) -> str:
    before, after = most["scores"]
    return (
        f"most for image {most['image']}, of class {most['class']}: {after:.3f} "
        f"instead of {before:.3f}"
    )


def _surely(deviations: NDArray, tests: int = 1) -> float:
    """A mean that is exceeded with 95 % confidence, of so many that are tested.

    Two more images deviate by 0, so that a few alike prove nothing.
    """
    all_of_them = np.append(deviations, [0.0, 0.0])
    spread = float(all_of_them.std()) / len(all_of_them) ** 0.5
    return float(all_of_them.mean() - special.ndtri(1 - 0.05 / tests) * spread)


def _by_class(
    before: NDArray, apart: NDArray, several: bool
) -> Iterator[tuple[int, NDArray, NDArray]]:
    """Each class with its images, by the Keras model, and what they deviate by.

    Of labels also with the images that one does not apply to.
    """
    best, largest = before.argmax(axis=1), apart.max(axis=1)
    for one in range(before.shape[1]):
        if several:
            applies = before[:, one] > 0.5
            for chosen in map(np.flatnonzero, (applies, ~applies)):
                yield one, chosen, apart[chosen, one]
        else:
            chosen = np.flatnonzero(best == one)
            yield one, chosen, largest[chosen]


def _wrong_classes(
    before: NDArray, after: NDArray, several: bool, share: float, allowed: float
) -> list[str]:
    """The reason to refuse a file for the classes whose scores are wrong, if any.

    Args:
        before: Probabilities of the Keras model, shape `(n, classes)`.
        after: Those of the file.
        several: Whether several labels may apply to an image.
        share: What the limit is of `max_deviation`.
        allowed: `max_deviation`.
    """
    groups = [
        group
        for group in _by_class(before, np.abs(before - after), several)
        if len(group[1]) >= _FEWEST_OF_A_CLASS
    ]
    found = [
        (float(deviations.mean()), one, images)
        for one, images, deviations in groups
        if _surely(deviations, len(groups)) > share * allowed
    ]
    if not found:
        return []
    mean, one, images = max(found, key=lambda each: each[0])
    wrong = {one for _, one, _ in found}
    others = f" (and {len(wrong) - 1} others)" if len(wrong) > 1 else ""
    column = slice(one, one + 1) if several else slice(None)
    most = _most(before[images, column], after[images, column])
    most["image"] = int(images[most["image"]])
    most["class"] += one if several else 0
    return [
        f"the .tflite file's probabilities of class {one}{others} deviate from its "
        f"Keras model's by {mean:.3f} (mean of {len(images)} images; limit "
        f"{share * allowed:.3f}), {_told(most)}: check the layers by layer_report, use "
        f"more calibration images, train quantization-aware{_allowing(mean / share)}"
    ]


def _allowing(deviation: float) -> str:
    """Advice of the least limit of two decimals that would do, if there is one."""
    limit = np.ceil(100 * deviation) / 100
    return f", or allow it by max_deviation={limit:g}" if limit < 1 else ""


def _by_chance(share: float, n: int) -> float:
    """The share that n images show at most, 19 times of 20, if it is `share` of all."""
    return share + _ONE_SIDED_95 * (share * (1 - share) / n) ** 0.5


def _check_integers(
    figures: dict[str, Any], float_layers: Sequence[str], input_range: Given
) -> tuple[list[str], list[str]]:
    """The layers that are in float, and why the file is refused for what it is."""
    dtype = figures["input"]["dtype"]
    if dtype not in _INTEGERS:
        return [], []
    reasons = []
    kept, others = float_layers_of(figures, float_layers)
    if others:
        op = others[0]
        asked = f" beside {', '.join(float_layers)}" if float_layers else ""
        reasons.append(
            f"{len(others)} op(s) of the {dtype} file compute in float{asked}, first "
            f"{op['op']} ({op['tensor']}): replace the layer by one that {dtype} "
            "supports"
        )
    lowest, *steps = _INTEGERS[dtype]
    zeros = [lowest, lowest]
    if dtype in ("int8", "uint8"):
        said = byte_input(parse_range(input_range)) or UNIT_INPUT
        steps[0], zeros[0] = said.scale, said.zero_point + lowest
    for end, step, expected_zero in zip(("input", "output"), steps, zeros, strict=True):
        scale, zero = figures[end]["scale"], figures[end]["zero_point"]
        expected = float(np.float32(step))
        # Ranges of images are in single precision, of which scales are made.
        near = scale is not None and math.isclose(scale, expected, rel_tol=1e-6)
        if (figures[end]["dtype"], near, zero) != (dtype, True, expected_zero):
            reasons.append(
                f"the file's {end} is {figures[end]['dtype']} with scale {scale} and "
                f"zero point {zero}; expected {dtype}, {expected} and "
                f"{expected_zero}: convert it by convert_tflite, and give the gate the "
                "model's input_range"
            )
    return kept, reasons
