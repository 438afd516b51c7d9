"""The pixel range is read off the graph or found by scoring, and never assumed."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.intake.pixels import (
    BYTES,
    CAFFE,
    IMAGENET,
    MOST_IMAGES,
    SIGNED,
    UNIT,
    PixelRange,
    after,
    find_range,
    split_pixels,
    usual_ranges,
)

layers = keras.layers


def predictor(model, range_):
    """The same knowledge in a model that takes pixels of another range."""

    def predict(values):
        bytes_ = (values - np.float32(range_.offset)) / np.float32(range_.scale)
        if range_.reverse:
            bytes_ = bytes_[..., ::-1]
        return model(bytes_ / 255).numpy()

    return predict


@pytest.mark.parametrize("range_", usual_ranges(3), ids=lambda range_: range_.name)
def test_each_usual_range_is_found(learned, range_):
    model, (images, labels) = learned
    found = find_range(predictor(model, range_), images, labels)
    assert found.range == range_ and found.images == 400
    assert found.accuracies[range_.name] == max(found.accuracies.values()) > 0.4


def test_ranges_are_what_they_say():
    image = np.array([[[[0, 127, 255]]]], np.uint8)
    np.testing.assert_allclose(UNIT.apply(image)[0, 0, 0], [0, 127 / 255, 1])
    np.testing.assert_array_equal(BYTES.apply(image)[0, 0, 0], [0, 127, 255])
    np.testing.assert_allclose(
        SIGNED.apply(image)[0, 0, 0], [-1, -1 / 255, 1], atol=1e-6
    )
    expected = (np.array([0, 127, 255]) / 255 - [0.485, 0.456, 0.406]) / [
        0.229,
        0.224,
        0.225,
    ]
    np.testing.assert_allclose(IMAGENET.apply(image)[0, 0, 0], expected, atol=1e-5)
    expected = np.array([255, 127, 0]) - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(CAFFE.apply(image)[0, 0, 0], expected, atol=1e-4)
    assert [one.uniform for one in usual_ranges(3)] == [True] * 3 + [False] * 2
    assert SIGNED.bounds == (-1, 1) and BYTES.bounds == (0, 255)
    floats = image.astype("float32") / 255
    np.testing.assert_allclose(BYTES.apply(floats), BYTES.apply(image), atol=1e-4)


def test_a_given_range_is_taken_if_it_is_right_and_refused_if_it_is_not(learned):
    model, (images, labels) = learned
    predict = predictor(model, SIGNED)
    given = PixelRange.between(-1, 1)
    assert find_range(predict, images, labels, given=given).range == given
    with pytest.raises(ValueError, match=r"\[0, 255\] is not the model's: .*give \[-1"):
        find_range(predict, images, labels, given=BYTES)


def test_a_given_range_that_is_not_a_usual_one_is_checked_too(learned):
    model, (images, labels) = learned
    odd = PixelRange.between(-0.5, 0.5)
    predict = predictor(model, odd)
    assert find_range(predict, images, labels, given=odd).range == odd


def test_chance_everywhere_is_one_line_that_asks(learned):
    _, (images, labels) = learned
    rng = np.random.default_rng(0)

    def guess(values):
        return rng.random((len(values), 4))

    with pytest.raises(
        ValueError, match="none surely above chance; .*input_range="
    ) as e:
        find_range(guess, images, labels)
    assert "\n" not in str(e.value)


def test_a_tie_is_one_line_that_asks(learned):
    """A model that does not mind the scale of its pixels, such as a normalizing one."""
    model, (images, labels) = learned

    def predict(values):
        low = values.min(axis=(1, 2, 3), keepdims=True)
        high = values.max(axis=(1, 2, 3), keepdims=True)
        return model((values - low) / (high - low)).numpy()

    with pytest.raises(
        ValueError, match="can't be determined from these images: .*more image"
    ):
        find_range(predict, images, labels, candidates=(UNIT, BYTES, SIGNED))


def test_two_classes_by_one_logit_and_several_labels_are_scored(learned):
    model, (images, labels) = learned
    two = labels < 2

    def one_logit(values):
        scores = predictor(model, BYTES)(values)
        return (scores[:, :2].max(axis=1) - scores[:, 2:].max(axis=1))[:, None]

    assert find_range(one_logit, images, two.astype(int)).range == BYTES

    def several(values):
        scores = predictor(model, SIGNED)(values)
        return scores - np.sort(scores, axis=1)[:, -1:] + 1e-3

    hot = np.eye(4)[labels]
    found = find_range(several, images, hot, candidates=(UNIT, BYTES, SIGNED))
    assert found.range == SIGNED


def keras_model(model, *first):
    """A model that takes what the first layers make of its pixels."""
    return keras.Sequential([keras.Input((8, 8, 3)), *first, model])


def test_a_model_made_for_bytes_is_scored_and_converted_as_one(learned, tmp_path):
    from kdprune.evaluate import predict
    from kdprune.tflite import convert_tflite

    model, (images, _) = learned
    user = keras_model(model, layers.Rescaling(1 / 255))
    expected = predict(model, images)
    np.testing.assert_allclose(predict(user, images), expected, atol=1e-4)
    np.testing.assert_allclose(
        predict(user, images, input_range=(0, 255)), expected, atol=1e-4
    )
    path = tmp_path / "file.tflite"
    path.write_bytes(convert_tflite(user))
    np.testing.assert_allclose(predict(path, images), expected, atol=1e-4)


def starting_with(*first):
    source = keras.Input((8, 8, 3))
    x = source
    for layer in first:
        x = layer(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    return keras.Model(source, layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(
    "first, outer, inner",
    [
        ([layers.Rescaling(1 / 255)], BYTES, UNIT),
        ([layers.Rescaling(1 / 127.5, -1)], BYTES, SIGNED),
        ([layers.Rescaling(1 / 127.5), layers.Rescaling(1.0, -1.0)], BYTES, SIGNED),
        ([layers.Rescaling(2.0, -1.0)], UNIT, SIGNED),
        ([layers.Rescaling(255.0)], UNIT, BYTES),
    ],
)
def test_a_rescaling_in_front_moves_into_the_range(first, outer, inner):
    model = starting_with(*first)
    split, scale, offset = split_pixels(model)
    assert [x.name for x in split.layers if isinstance(x, layers.Rescaling)] == []
    found = after(outer, scale, offset)
    assert found == inner
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(
        split(found.apply(image)).numpy(),
        model(outer.apply(image)).numpy(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_normalization_per_channel_is_read_off_as_it_is():
    model = starting_with(
        layers.Rescaling(1 / 255),
        layers.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.04, 0.09, 0.16]),
    )
    split, scale, offset = split_pixels(model)
    found = after(BYTES, scale, offset)
    assert not found.uniform
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(
        split(found.apply(image)).numpy(),
        model(BYTES.apply(image)).numpy(),
        atol=1e-5,
    )


def test_arithmetic_that_the_input_is_not_alone_in_stays():
    source = keras.Input((8, 8, 3))
    scaled = layers.Rescaling(0.5)(source)
    model = keras.Model(source, layers.Add()([scaled, source]))
    split, scale, offset = split_pixels(model)
    assert split is model and scale == [1, 1, 1] and offset == [0, 0, 0]
    later = starting_with(layers.Conv2D(3, 1), layers.Rescaling(0.5))
    assert split_pixels(later)[0] is later


@pytest.mark.parametrize("bounds", [(1, 0), (0, 0), (0, float("inf"))])
def test_a_range_is_two_numbers_in_order(bounds):
    with pytest.raises(ValueError, match="pixel range is .*Received"):
        PixelRange.between(*bounds)


def test_images_sorted_by_class_tell_as_much_as_others(learned):
    """As those of a folder are, of which the first 500 may be of three classes."""
    model, (images, labels) = learned
    repeats = 2 * MOST_IMAGES // len(images) + 1
    images, labels = np.repeat(images, repeats, axis=0), np.repeat(labels, repeats)
    order = np.argsort(labels, kind="stable")
    assert len(set(labels[order][:MOST_IMAGES])) < len(set(labels))
    found = find_range(
        lambda pixels: model(pixels).numpy(), images[order], labels[order]
    )
    assert found.range == UNIT
