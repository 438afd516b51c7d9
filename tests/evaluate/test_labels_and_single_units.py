"""Figures of several labels and of a single unit, against formulas of their own."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.evaluate import agreement, compare_predictions, evaluate_model, score
from kdprune.tflite import (
    check_tflite,
    compare_kernels,
    convert_tflite,
    images_to_prove,
    paired_drop,
)


def some(n=200, k=4, seed=0, sharp=1.0):
    """Scores in steps of 1/256, so that there are ties, and labels that follow them."""
    random = np.random.default_rng(seed)
    labels = (random.random((n, k)) < np.linspace(0.2, 0.6, k)).astype(np.int64)
    noise = random.normal(0, 1, (n, k))
    scores = 1 / (1 + np.exp(-sharp * (3 * labels - 1.5 + noise)))
    return (np.rint(scores * 255) / 256).astype(np.float32), labels


def auc_of_pairs(scores, labels):
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[labels == 1]
        for b in scores[labels == 0]
    ]
    return np.mean(pairs)


def average_precision_of_limits(scores, labels):
    """The sum over all limits of what recall gains, times the precision there."""
    total, recall = 0.0, 0.0
    for limit in sorted(set(scores.tolist()), reverse=True):
        said = scores >= limit
        hits = (labels[said] == 1).sum()
        now = hits / (labels == 1).sum()
        total += (now - recall) * hits / said.sum()
        recall = now
    return total


def f1_of_counts(scores, labels):
    found = []
    for s, y in zip(scores.T, labels.T, strict=True):
        said = s > 0.5
        precision = (y[said] == 1).mean() if said.any() else 0.0
        recall = said[y == 1].mean()
        both = precision + recall
        found.append(2 * precision * recall / both if both else 0.0)
    return np.array(found)


def test_figures_of_labels_are_those_of_plain_formulas():
    scores, labels = some()
    found = score(scores, labels)
    assert found["task"] == "labels"
    f1 = f1_of_counts(scores, labels)
    assert found["f1_by_label"] == pytest.approx(f1)
    assert found["macro_f1"] == pytest.approx(f1.mean())
    precisions = [
        average_precision_of_limits(*pair)
        for pair in zip(scores.T, labels.T, strict=True)
    ]
    assert found["average_precision_by_label"] == pytest.approx(precisions)
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions))
    right = (scores > 0.5) == labels
    assert found["per_class"] == pytest.approx(right.mean(axis=0))
    assert found["accuracy"] == pytest.approx(right.mean())
    low, high = found["accuracy_ci"]
    assert low < found["accuracy"] < high
    assert found["confusion"] is None


def test_a_single_units_area_is_the_share_of_pairs_in_order():
    scores, labels = some(k=1)
    both = np.concatenate([1 - scores, scores], axis=1)
    found = score(both, labels[:, 0], binary=True)
    assert found["auc"] == pytest.approx(auc_of_pairs(scores[:, 0], labels[:, 0]))
    assert found["accuracy"] == ((scores > 0.5) == labels).mean()
    assert score(both, np.zeros(200, np.int64), binary=True)["auc"] is None
    assert "auc" not in score(both, labels[:, 0])


def test_a_label_that_no_image_has_is_left_out_of_the_means():
    scores, labels = some()
    labels[:, 1] = 0
    found, rest = score(scores, labels), [0, 2, 3]
    assert found["f1_by_label"][1] is None
    assert found["average_precision_by_label"][1] is None
    kept = score(scores[:, rest], labels[:, rest])
    assert found["macro_f1"] == pytest.approx(kept["macro_f1"])
    assert found["mean_average_precision"] == kept["mean_average_precision"]


def test_the_intervals_of_macro_f1_hold_the_truth_as_often_as_they_say():
    big, truth = some(200_000, seed=9)
    expected = score(big, truth)["macro_f1"]
    held = drops = 0
    for seed in range(200):
        scores, labels = some(300, seed=seed)
        low, high = score(scores, labels)["macro_f1_ci"]
        held += low <= expected <= high
        other, _ = some(300, seed=seed, sharp=1.0)
        blurred = np.where(
            np.random.default_rng(seed).random(other.shape) < 0.1, 1 - other, other
        )
        low, high = paired_drop(scores, blurred, labels)["drop_interval"]
        drops += low > 0
    assert 180 <= held <= 199
    assert drops > 190  # One answer in ten turned around is a sure loss.


def test_two_sets_of_labels_are_compared_by_macro_f1():
    (a, labels), (b, _) = some(), some(sharp=0.5)
    b = np.where(np.random.default_rng(2).random(b.shape) < 0.1, 1 - b, b)
    found = compare_predictions(a, b, labels)
    gap = f1_of_counts(b, labels).mean() - f1_of_counts(a, labels).mean()
    assert found["difference"] == pytest.approx(gap)
    low, high = found["difference_ci"]
    assert low < gap < high < 0
    differ = (a > 0.5) != (b > 0.5)
    assert found["disagreement"] == pytest.approx(differ.mean())
    assert agreement(a, b, several=True) == pytest.approx(1 - differ.mean())
    one = found["per_class"][2]
    right = [((s > 0.5) == labels)[:, 2] for s in (a, b)]
    assert one["lost"] == (right[0] & ~right[1]).sum()
    assert one["images"] == labels[:, 2].sum()


def test_the_paired_drop_of_labels_is_that_of_macro_f1():
    scores, labels = some(400)
    same = paired_drop(scores, scores, labels)
    assert same["drop"] == same["disagreement"] == 0
    # Equal answers prove no more than that few are lost: the fewer images, the less.
    assert (
        0
        < same["drop_bound"]
        < paired_drop(*some(50)[:1] * 2, some(50)[1])["drop_bound"]
    )
    worse = scores.copy()
    worse[:40, 0] = 1 - worse[:40, 0]
    found = paired_drop(scores, worse, labels)
    gap = f1_of_counts(scores, labels).mean() - f1_of_counts(worse, labels).mean()
    assert found["drop"] == pytest.approx(gap)
    assert found["keras_macro_f1"] - found["tflite_macro_f1"] == pytest.approx(gap)
    assert found["disagreement"] == pytest.approx(40 / 1600)
    assert found["drop_interval"][0] < gap < found["drop_interval"][1]
    assert found["drop_bound"] > found["drop_interval"][1]


@pytest.mark.parametrize("max_drop", [0.01, 0.03])
def test_as_many_images_prove_a_budget_as_are_asked_for(max_drop):
    _, labels = some(5000)
    needed = images_to_prove(max_drop, labels)
    exact = labels.astype(np.float32)
    for count, proven in ((needed, True), (needed - needed // 5, False)):
        chosen = np.resize(np.arange(5000), count)
        found = paired_drop(exact[chosen], exact[chosen], labels[chosen])
        assert (found["drop_bound"] <= 1.05 * max_drop) is proven
    # Rarer labels take more of them; classes are as before.
    assert needed > images_to_prove(max_drop, np.ones((9, 4), int))
    assert images_to_prove(0.005) == images_to_prove(0.005, np.zeros(9, int)) == 464


def model_of(units, activation, seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(image))
    return keras.Model(image, keras.layers.Dense(units, activation=activation)(x))


def images():
    return np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)


def test_evaluate_tells_the_task_from_labels_and_units():
    rows = some(40, 3)[1]
    entry = evaluate_model(model_of(3, None), images(), rows).entry
    assert entry["task"] == "labels" and 0 <= entry["macro_f1"] <= 1
    logits = model_of(3, None).predict(images() / np.float32(255), verbose=0)
    expected = score(1 / (1 + np.exp(-logits)), rows)
    assert entry["macro_f1"] == expected["macro_f1"]
    entry = evaluate_model(model_of(1, "sigmoid"), images(), rows[:, 0]).entry
    assert entry["task"] == "binary" and len(entry["confusion"]) == 2
    entry = evaluate_model(model_of(2, "softmax"), images(), rows[:, 0]).entry
    assert "task" not in entry and "auc" not in entry


@pytest.mark.parametrize(
    "units, activation, labels, message",
    [
        (3, "softmax", np.eye(3, dtype=int)[[0, 1] * 20], "ends in sigmoid or gives"),
        (3, "sigmoid", np.arange(40) % 3, r"expected labels \(n, 3\), zeros and ones"),
        (5, "sigmoid", np.ones((40, 4), int), "has 5 outputs .* shape .40, 4"),
        (1, "sigmoid", np.arange(40) % 3, "labels run from 0 to 2"),
        (1, None, np.ones((40, 1), int), r"expected labels \(n,\), 0 or 1"),
        (3, "sigmoid", np.full((40, 3), 2), "must be zeros and ones"),
        (3, "sigmoid", np.zeros((40, 3), int), "zeros only"),
    ],
)
def test_labels_of_another_head_are_refused(units, activation, labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_model(model_of(units, activation), images(), labels)
    assert "\n" not in str(caught.value)


def file_of(units, dtype="int8", **head):
    return convert_tflite(model_of(units, None), dtype, images(), **head)


def test_the_gate_passes_labels_and_a_single_unit():
    scores, labels = some(300, 3)
    figures = check_tflite(file_of(3, head="sigmoid"), scores, scores, labels)
    assert figures["head"] == "sigmoid" and figures["drop"] == 0
    both = np.concatenate([1 - scores[:, :1], scores[:, :1]], axis=1)
    assert check_tflite(file_of(1), both, both, labels[:, 0])["drop"] == 0
    assert check_tflite(file_of(1, "int16x8"), both, both, labels[:, 0])
    kernels = compare_kernels(scores, {"builtin": scores[:50]}, several=True)
    assert kernels["builtin"]["disagreement"] == 0


def test_the_gate_refuses_what_answers_otherwise_or_is_of_another_head():
    scores, labels = some(300, 3)
    good = file_of(3, head="sigmoid")
    turned = np.where(np.random.default_rng(3).random(scores.shape) < 0.04, 1, scores)
    with pytest.raises(ValueError, match="points of macro F1"):
        check_tflite(good, scores, turned, labels, max_disagreement=0.5, max_drop=0.002)
    with pytest.raises(ValueError, match="of 300 images, all labels counted"):
        check_tflite(good, scores, 1 - scores, labels)
    with pytest.raises(ValueError, match="all labels counted"):
        compare_kernels(scores, {"builtin": 1 - scores}, several=True)
    with pytest.raises(ValueError, match="head='sigmoid'. Received: .* softmax"):
        check_tflite(file_of(3), scores, scores, labels)
    with pytest.raises(ValueError, match="Received: one that ends in sigmoid, of 3"):
        check_tflite(good, scores, scores, labels[:, 0])
    for call in (
        lambda: paired_drop(scores[:, :1], scores[:, :1], labels[:, 0]),
        lambda: agreement(scores[:, :1], scores[:, :1]),
    ):
        with pytest.raises(ValueError, match="of both classes"):
            call()
    with pytest.raises(ValueError, match="must be probabilities"):
        paired_drop(9 * scores, scores, labels)
