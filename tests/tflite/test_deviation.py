"""The gate bounds what scores deviate by; files that it would refuse are not made."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.tflite import RefusedFile, check_tflite, convert_tflite

layers = keras.layers
CLASSES = 10


def small(behind=lambda x: x):
    x = image = keras.Input((8, 8, 3))
    x = behind(layers.Conv2D(4, 3, 2, activation="relu", name="conv")(x))
    return keras.Model(image, layers.Dense(CLASSES)(layers.Flatten()(x)), name="small")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def file(images):
    return convert_tflite(small(), "int8", images)


@pytest.fixture(scope="module")
def labels_file(images):
    return convert_tflite(small(), "int8", images, head="sigmoid")


def sure(n=500, share=0.8):
    """Probabilities of a model that is always right and rather sure."""
    labels = np.arange(n) % CLASSES
    scores = np.full((n, CLASSES), (1 - share) / (CLASSES - 1))
    scores[np.arange(n), labels] = share
    return scores, labels


def moved(scores, images, one, by):
    """The scores of these images with a class less probable, the next one more."""
    changed = scores.copy()
    changed[images, one] -= by
    changed[images, (one + 1) % CLASSES] += by
    return changed


def test_one_class_whose_scores_are_wrong_is_named_with_its_worst_image(file):
    before, labels = sure()
    wrong = moved(before, labels == 3, 3, 0.3)
    wrong[123] = moved(before, 123, 3, 0.35)[123]
    assert (wrong.argmax(axis=1) == labels).all()
    message = (
        r"probabilities of class 3 deviate .* by 0\.301 \(mean of 50 images; limit "
        r"0\.200\), most for image 123, of class 3: 0\.450 instead of 0\.800.* allow "
        "it by max_deviation"
    )
    with pytest.raises(RefusedFile, match=message) as raised:
        check_tflite(file, before, wrong, labels)
    most = raised.value.figures["most"]
    assert (most["image"], most["class"]) == (123, 3)
    assert most["scores"] == pytest.approx([0.8, 0.45])
    assert check_tflite(file, before, wrong, labels, max_deviation=0.2)
    # Logits are held to the same.
    with pytest.raises(RefusedFile, match="probabilities of class 3 deviate"):
        check_tflite(file, np.log(before) - 7, wrong, labels)


def test_what_chance_makes_of_a_few_images_is_not_held_against_a_file(file):
    """One image in 5,000 deviated by 0.64 of honest files of sound models."""
    before, labels = sure(120)
    after = moved(before, [7, 17, 27, 37], 7, 0.64)
    # The mean of class 7 is above the limit, and so is that of twelve in a thousand.
    assert np.abs(after - before)[labels == 7].max(axis=1).mean() > 0.2
    figures = check_tflite(
        file, before, after, labels, max_drop=1, max_disagreement=0.1
    )
    assert figures["deviation"] > 0.02
    # Of nine images nothing is said.
    few = np.flatnonzero(labels == 7)[3:]
    before, after = (np.delete(one, few[:3], axis=0) for one in (before, after))
    after = moved(after, np.delete(labels, few[:3]) == 7, 7, 0.1)
    given = before, after, np.delete(labels, few[:3])
    assert check_tflite(file, *given, max_drop=1, max_disagreement=0.1)


def test_files_of_many_labels_are_a_step_off_in_one_of_them(labels_file):
    rng = np.random.default_rng(0)
    before = np.full((400, 80), 0.1)
    before[np.arange(400), np.arange(400) % 80] = 0.9
    after = before + rng.normal(0, 0.03, before.shape).clip(-0.09, 0.09)
    figures = check_tflite(
        labels_file, before, after, (before > 0.5).astype(int), strict=True
    )
    assert figures["deviation"] > 0.06


def test_a_file_deviates_little_from_the_graph_it_was_trained_as(file):
    before, labels = sure()
    after = moved(before, slice(None), 0, 0.01)
    assert check_tflite(file, before, after, labels, strict=True)
    after = moved(before, labels == 0, 0, 0.12)
    assert check_tflite(file, before, after, labels)
    with pytest.raises(RefusedFile, match=r"class 0 deviate .* limit 0\.080"):
        check_tflite(file, before, after, labels, strict=True)
    after = before + 0.15 * (np.eye(CLASSES)[9] - before) * (labels < 5)[:, None]
    assert check_tflite(file, before, after, labels)
    with pytest.raises(RefusedFile, match=r"by 0\.07. \(mean of 500 .* 0\.040\), most"):
        check_tflite(file, before, after, labels, strict=True)


def test_a_label_whose_scores_are_wrong_is_named(labels_file):
    """Where it applies, and where it does not: most images have few labels."""
    rng = np.random.default_rng(0)
    labels = (rng.random((400, CLASSES)) < 0.1).astype(int)
    before = np.where(labels, 0.9, 0.1)
    for value, fault, strict in ((1, -0.3, False), (0, 0.09, True)):
        wrong = before.copy()
        wrong[:, 4] += fault * (labels[:, 4] == value)
        assert ((wrong > 0.5) == labels).all()
        message = r"probabilities of class 4 deviate .* of class 4: 0\."
        with pytest.raises(RefusedFile, match=message):
            check_tflite(labels_file, before, wrong, labels, strict=strict)
    assert check_tflite(labels_file, before, before + 0.05, labels)


def test_files_that_the_gate_or_the_runtime_would_refuse_are_not_made(images):
    waves = small(tf.sin)
    with pytest.raises(RefusedFile, match=r"1 op.s. of the uint8 .* float, first SIN"):
        convert_tflite(waves, "uint8", images)
    normed = small(layers.LayerNormalization(name="norm"))
    assert convert_tflite(normed, "int8", images)
    with pytest.raises(
        ValueError, match="to int16x8: .*'norm' .*RSQRT.*int8"
    ) as raised:
        convert_tflite(normed, "int16x8", images)
    assert "\n" not in str(raised.value)


def test_no_limit_is_advised_that_a_recipe_refuses(file):
    """A share is below 1, and what is not a number is within none."""
    before, labels = sure()
    for wrong in (before * np.nan, np.roll(before, 1, axis=1)):
        with pytest.raises(RefusedFile) as raised:
            check_tflite(file, before, wrong, labels, max_disagreement=1, strict=True)
        assert "max_deviation=" not in str(raised.value)
