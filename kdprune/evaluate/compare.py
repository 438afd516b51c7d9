"""Whether two models differ: paired comparison on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from kdprune._answers import disagreement, f1_by_label, f1_influence, of_labels
from kdprune.evaluate.metrics import Z95, check_predictions


def agreement(scores_a: ArrayLike, scores_b: ArrayLike, several: bool = False) -> float:
    """Returns the share of images to which both models give the same class.

    With `several`, of labels that may apply together, the share of all labels of all
    images that both answer alike.
    """
    a, b = np.asarray(scores_a), np.asarray(scores_b)
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ValueError(
            "expected two sets of scores of one shape (n, classes). "
            f"Received: {a.shape} and {b.shape}"
        )
    if a.shape[1] == 1:
        raise ValueError(
            "scores of a single unit must be those of both classes (n, 2), as predict "
            "gives them. Received: shape (n, 1)"
        )
    if several:
        return 1.0 - disagreement(a, b, several)
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def compare_predictions(
    scores_a: ArrayLike, scores_b: ArrayLike, labels: ArrayLike
) -> dict[str, Any]:
    """Compares model b with model a on the same images.

    Both see the same images, so that most of the sampling error of each accuracy
    cancels out: the paired interval is much narrower than the two separate ones.

    Args:
        scores_a: Scores of the first model (the reference), `(n, classes)`.
        scores_b: Scores of the second model, same shape.
        labels: True classes, `(n,)`; or, where several labels may apply to an image,
            zeros and ones, `(n, labels)`.

    Returns:
        A dictionary of plain Python values:
        `difference`: accuracy of b minus accuracy of a.
        `difference_ci`: its paired 95 % interval `[low, high]`, by the standard
        error of the per-image differences (-1, 0 or 1).
        `standard_error`: that standard error.
        `mcnemar_p`: two-sided exact p-value of McNemar's test, whose null
        hypothesis is that images only one of the two gets right split evenly.
        `disagreement`: share of images with different predictions.
        `right_to_wrong`, `wrong_to_right`: indices of the images that only a and
        that only b gets right.
        `per_class`: for each true class `{"gained", "lost", "images"}` counts.

        Of labels, `difference` is that in macro F1, with its interval by the delta
        method; `mcnemar_p` and `disagreement` are of the single labels' answers;
        indices are of images where one of them changed; "images" is how many have
        each label; and `task` is "labels".

    Raises:
        ValueError: If the shapes do not match or a label is not a class.
    """
    several = of_labels(labels)
    same = agreement(scores_a, scores_b, several)
    scores_a, labels = check_predictions(scores_a, labels)
    scores_b, _ = check_predictions(scores_b, labels)
    if several:
        return _compare_labels(scores_a, scores_b, labels, 1 - same)
    n, classes = scores_a.shape
    right_a = scores_a.argmax(axis=1) == labels
    right_b = scores_b.argmax(axis=1) == labels
    change = right_b.astype(int) - right_a
    lost, gained = np.flatnonzero(change < 0), np.flatnonzero(change > 0)
    difference = (len(gained) - len(lost)) / n
    error = float(change.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    flips = len(lost) + len(gained)
    return {
        "difference": difference,
        "difference_ci": [difference - Z95 * error, difference + Z95 * error],
        "standard_error": error,
        "mcnemar_p": float(stats.binomtest(len(lost), flips).pvalue) if flips else 1.0,
        "disagreement": (n - round(same * n)) / n,
        "right_to_wrong": lost.tolist(),
        "wrong_to_right": gained.tolist(),
        "per_class": [
            {
                "gained": int((labels[gained] == k).sum()),
                "lost": int((labels[lost] == k).sum()),
                "images": int((labels == k).sum()),
            }
            for k in range(classes)
        ],
    }


def _compare_labels(
    scores_a: NDArray, scores_b: NDArray, labels: NDArray, differing: float
) -> dict[str, Any]:
    """What `compare_predictions` returns, of labels."""
    n = len(labels)
    f1 = [float(np.nanmean(f1_by_label(s, labels))) for s in (scores_a, scores_b)]
    difference = f1[1] - f1[0]
    moved = f1_influence(scores_b, labels) - f1_influence(scores_a, labels)
    error = float(moved.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    right_a, right_b = ((s > 0.5) == labels for s in (scores_a, scores_b))
    gained, lost = right_b & ~right_a, right_a & ~right_b
    flips = int(gained.sum()), int(lost.sum())
    return {
        "task": "labels",
        "difference": difference,
        "difference_ci": [difference - Z95 * error, difference + Z95 * error],
        "standard_error": error,
        "mcnemar_p": (
            float(stats.binomtest(flips[1], sum(flips)).pvalue) if any(flips) else 1.0
        ),
        "disagreement": differing,
        "right_to_wrong": np.flatnonzero(lost.any(axis=1)).tolist(),
        "wrong_to_right": np.flatnonzero(gained.any(axis=1)).tolist(),
        "per_class": [
            {"gained": int(g), "lost": int(one), "images": int(images)}
            for g, one, images in zip(
                gained.sum(axis=0), lost.sum(axis=0), labels.sum(axis=0), strict=True
            )
        ],
    }


def describe_comparison(result: dict[str, Any], classes: Sequence[str]) -> str:
    """Writes what `compare_predictions` returned as text for a person.

    Args:
        result: Its dictionary.
        classes: Names of the classes.

    Returns:
        A few lines: the difference with its interval, whether it is significant,
        images whose prediction changed, and the classes that gained or lost.
    """
    low, high = (100 * bound for bound in result["difference_ci"])
    lost, gained = result["right_to_wrong"], result["wrong_to_right"]
    verdict = "not significant" if low <= 0 <= high else "significant"
    measured, each = "", "images"
    if result.get("task") == "labels":
        measured, each = " of macro F1", "labels of images"
    lines = [
        f"B against A: {100 * result['difference']:+.2f} points{measured} "
        f"(95 % interval {low:+.2f} to {high:+.2f}, McNemar p = "
        f"{result['mcnemar_p']:.3g}): {verdict}",
        f"disagreement on {100 * result['disagreement']:.2f} % of the {each}; "
        f"{len(lost)} became wrong, {len(gained)} became right",
    ]
    width = max(len(name) for name in classes)
    for name, counts in zip(classes, result["per_class"], strict=True):
        net = counts["gained"] - counts["lost"]
        lines.append(
            f"  {name:{width}}  {net:+d}  (+{counts['gained']} -{counts['lost']} of "
            f"{counts['images']})"
        )
    return "\n".join(lines)
