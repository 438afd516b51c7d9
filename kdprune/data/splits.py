"""Seeded splits in which every class keeps its share."""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np


def stratified_split(
    labels: np.ndarray,
    fraction_or_count: float | int,
    seed: int | Sequence[int],
    what: str = "the drawn share",
) -> tuple[np.ndarray, np.ndarray]:
    """Divides examples into those kept and those drawn, class by class.

    Each class gives its share of the draw, rounded so that the total is met;
    every class keeps at least one example, and gives at least one unless fewer
    are asked for than there are classes. Equal arguments give equal splits.

    Args:
        labels: Class of each example, integers of shape `(n,)`; or zeros and ones,
            `(n, labels)`, whose combinations keep their shares as far as they can.
        fraction_or_count: What to draw: a fraction in (0, 1) of the examples,
            or a number of them if it is an int.
        seed: Seed, one or several integers >= 0.
        what: What errors call the draw.

    Returns:
        Indices `(kept, drawn)`, both ascending; together they are `0..n-1`.

    Raises:
        ValueError: If the fraction or count is out of range, or a class has
            fewer than two examples.
    """
    labels = _checked_labels(labels)
    if labels.ndim == 2:
        count = _count(fraction_or_count, len(labels), what)
        if count >= len(labels):
            raise ValueError(
                f"Expected {what} to be fewer than the {len(labels)} images. "
                f"Received: {count}."
            )
        drawn = _draw_rows(labels, count, seed)
        kept = np.setdiff1d(np.arange(len(labels)), drawn, assume_unique=True)
        return kept, drawn
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < 2:
        raise ValueError(
            f"Expected at least 2 images of every class, to draw {what} from it. "
            f"Received: {sizes.min()} of class {classes[sizes.argmin()]}. "
            "Add images or remove the class."
        )
    count = _count(fraction_or_count, len(labels), what)
    if not isinstance(fraction_or_count, Integral):
        count = int(np.clip(count, len(classes), len(labels) - len(classes)))
    if count > len(labels) - len(classes):
        raise ValueError(
            f"Expected {what} to be at most {len(labels) - len(classes)} of "
            f"{len(labels)} images, so that each of {len(classes)} classes keeps one. "
            f"Received: {count}."
        )
    drawn = _draw(labels, _allocate(sizes, count, sizes - 1), seed)
    return np.setdiff1d(np.arange(len(labels)), drawn, assume_unique=True), drawn


def stratified_sample(
    labels: np.ndarray,
    fraction_or_count: float | int,
    seed: int | Sequence[int],
    what: str = "the drawn share",
) -> np.ndarray:
    """Draws examples class by class; unlike a split, it may take a class whole.

    Args:
        labels: Class of each example, integers of shape `(n,)`; or zeros and ones,
            `(n, labels)`.
        fraction_or_count: A fraction in (0, 1), or a number if it is an int;
            a number above n takes all n.
        seed: Seed, one or several integers >= 0.
        what: What errors call the draw.

    Returns:
        The drawn indices, ascending.

    Raises:
        ValueError: If the fraction or count is out of range.
    """
    labels = _checked_labels(labels)
    count = min(_count(fraction_or_count, len(labels), what), len(labels))
    if labels.ndim == 2:
        return _draw_rows(labels, count, seed)
    sizes = np.unique(labels, return_counts=True)[1]
    return _draw(labels, _allocate(sizes, count, sizes), seed)


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(
            "Expected a list of whole-number labels, one for each image, or rows. "
            f"Received: {labels.dtype} of shape {labels.shape}."
        )
    return labels


def _count(fraction_or_count: float | int, total: int, what: str) -> int:
    """Turns a fraction or a count into a count; a fraction draws at least one."""
    if isinstance(fraction_or_count, Integral) and fraction_or_count > 0:
        if not isinstance(fraction_or_count, bool):
            return int(fraction_or_count)
    elif isinstance(fraction_or_count, Real) and 0 < fraction_or_count < 1:
        return max(1, round(fraction_or_count * total))
    raise ValueError(
        f"Expected {what} to be a fraction between 0 and 1 or a whole number above 0. "
        f"Received: {fraction_or_count!r}."
    )


def _allocate(sizes: np.ndarray, count: int, most: np.ndarray) -> np.ndarray:
    """Shares `count` among classes by the method of largest remainders.

    Args:
        sizes: Examples of each class, shape `(classes,)`.
        count: How many to share out, at most `most.sum()`.
        most: The most that each class can give, shape `(classes,)`.

    Returns:
        What each class gives, shape `(classes,)`, with the sum `count`; at least
        one for each class where `count` allows it.
    """
    least = np.minimum(most, int(count >= len(sizes)))
    ideal = count * sizes / sizes.sum()
    given = np.clip(np.floor(ideal).astype(int), least, most)
    while given.sum() < count:
        given[np.argmax(np.where(given < most, ideal - given, -np.inf))] += 1
    while given.sum() > count:
        given[np.argmin(np.where(given > least, ideal - given, np.inf))] -= 1
    return given


def _draw(
    labels: np.ndarray, given: np.ndarray, seed: int | Sequence[int]
) -> np.ndarray:
    """Draws `given[i]` examples of the i-th class present, by random rank."""
    rank = np.random.default_rng(seed).random(len(labels)).argsort(kind="stable")
    ranked_labels = labels[rank]
    drawn = [
        rank[ranked_labels == label][:number]
        for label, number in zip(np.unique(labels), given, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def _draw_rows(labels: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draws examples of labels `(n, k)`, each label by about its share.

    The examples are put in the order of what applies to them, the rarest label first,
    those alike at random, and every n/count-th one is taken.
    """
    random = np.random.default_rng(seed)
    by_rarity = np.argsort(-labels.sum(axis=0), kind="stable")
    order = np.lexsort([random.random(len(labels)), *labels.T[by_rarity]])
    steps = (np.arange(count) + random.random()) * (len(labels) / count)
    return np.sort(order[steps.astype(int)])
