"""A model's head is told, split off and put back, whatever form it has."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill import Distiller
from kdprune.evaluate import predict
from kdprune.intake.heads import Head, check_head, split_head
from kdprune.models import load_model
from kdprune.tflite import convert_tflite

layers = keras.layers


def classifier(*tail, units=4):
    images = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(images))
    x = layers.Dense(units, name="scores")(x)
    for layer in tail:
        x = layer(x)
    return keras.Model(images, x)


def dense(activation, units=4):
    images = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(images))
    return keras.Model(images, layers.Dense(units, activation=activation)(x))


def sequential(activation):
    return keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4, activation)]
    )


def nested(activation):
    inner = dense(activation)
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.Flatten()(inner(layers.Rescaling(0.5)(images))))


def images():
    return np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


def inverse(probabilities, activation):
    if activation == "sigmoid":
        return np.log(probabilities) - np.log1p(-probabilities)
    logs = np.log(probabilities)
    return logs - logs.mean(axis=1, keepdims=True)


@pytest.mark.parametrize(
    "model, activation",
    [
        (dense("softmax"), "softmax"),
        (dense("sigmoid"), "sigmoid"),
        (dense("sigmoid", 1), "sigmoid"),
        (sequential("softmax"), "softmax"),
        (nested("softmax"), "softmax"),
        (nested("sigmoid"), "sigmoid"),
        (classifier(layers.Softmax()), "softmax"),
        (classifier(layers.Activation("softmax")), "softmax"),
        (classifier(layers.Activation("sigmoid"), layers.Dropout(0.5)), "sigmoid"),
        (
            classifier(layers.Activation("softmax"), layers.Activation("linear")),
            "softmax",
        ),
        (classifier(layers.Softmax(), layers.Reshape((4,))), "softmax"),
    ],
)
def test_what_is_split_off_was_the_head(model, activation):
    split, head = split_head(model)
    assert head == Head(activation, model.output_shape[1])
    said, logits = (
        model(images()).numpy(),
        split(images()).numpy(),
    )
    expected = inverse(said.astype(np.float64), activation)
    if activation == "softmax":
        logits = logits - logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert split_head(split)[1].activation == "none"


@pytest.mark.parametrize(
    "model", [dense(None), classifier(layers.ReLU()), classifier(layers.Dropout(0.5))]
)
def test_logits_stay_as_they_are(model):
    split, head = split_head(model)
    assert split is model and head == Head("none", 4)


def test_a_softmax_inside_the_network_is_no_head():
    model = classifier(layers.Softmax(), layers.Dense(4))
    assert split_head(model)[1].activation == "none"


@pytest.mark.parametrize(
    "head, kind",
    [
        (Head("softmax", 4), "classes"),
        (Head("none", 4), "classes"),
        (Head("sigmoid", 4), "labels"),
        (Head("sigmoid", 1), "binary"),
        (Head("none", 1), "binary"),
    ],
)
def test_the_head_tells_the_task(head, kind):
    assert head.kind == kind


def two_outputs():
    source = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(source)
    kind = layers.Dense(4, activation="softmax", name="kind")(x)
    colour = layers.Dense(3, activation="sigmoid", name="colour")(x)
    return keras.Model(source, [kind, colour])


def run_file(content):
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    source, target = (
        ends[0]
        for ends in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    scores = []
    for image in images():
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        scores.append(interpreter.get_tensor(target["index"])[0])
    return np.array(scores)


@pytest.mark.parametrize(
    "model, head, activation",
    [
        (dense("softmax"), None, tf.nn.softmax),
        (dense(None), None, tf.nn.softmax),
        (dense("sigmoid"), None, tf.sigmoid),
        (nested("sigmoid"), None, tf.sigmoid),
        (dense(None), "sigmoid", tf.sigmoid),
        (dense("sigmoid", 1), None, tf.sigmoid),
        (dense(None, 1), None, tf.sigmoid),
    ],
)
def test_a_file_and_its_model_say_what_the_head_makes_of_logits(
    model, head, activation, tmp_path
):
    expected = activation(split_head(model)[0](images())).numpy()
    content = convert_tflite(model, head=head)
    assert run_file(content) == pytest.approx(expected, abs=1e-5)
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    if expected.shape[1] == 1:  # Of both classes.
        expected = np.concatenate([1 - expected, expected], axis=1)
    assert predict(model, images(), head=head) == pytest.approx(expected, abs=1e-5)
    assert predict(path, images()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "model, head, message",
    [
        (dense("softmax"), "sigmoid", "ends in sigmoid or gives logits. Received: one"),
        (dense("sigmoid"), "softmax", "ends in softmax or gives logits. Received: one"),
        (dense("softmax", 1), None, "sigmoid or logits of a single unit"),
        (dense(None, 1), "softmax", "sigmoid or logits of a single unit"),
        (dense(None), "relu", "one of softmax, sigmoid. Received: 'relu'"),
    ],
)
def test_another_head_than_the_models_is_refused(model, head, message, tmp_path):
    student = dense(None, model.output_shape[1])
    for call in (
        lambda: convert_tflite(model, head=head),
        lambda: predict(model, images(), head=head),
        lambda: Distiller(student, model, head=head),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_another_head_than_the_files_is_refused(tmp_path):
    path = tmp_path / "labels.tflite"
    path.write_bytes(convert_tflite(dense("sigmoid")))
    with pytest.raises(ValueError, match="labels.tflite: .* one that ends in sigmoid"):
        predict(path, images(), head="softmax")
    path.write_bytes(convert_tflite(dense("softmax")))
    with pytest.raises(ValueError, match="labels.tflite: .* one that ends in softmax"):
        predict(path, images(), head="sigmoid")


def test_probabilities_teach_no_student():
    for head in ("softmax", "sigmoid"):
        with pytest.raises(ValueError, match="expected logits. Received: model"):
            Distiller(dense(None), dense(head), head=head)


THREE, TWO = ("cat", "dog", "fox"), ("no", "yes")


@pytest.mark.parametrize(
    "head, task, classes",
    [
        (Head("softmax", 3), "classes", THREE),
        (Head("none", 3), "classes", THREE),
        (Head("softmax", 2), "classes", TWO),
        (Head("sigmoid", 1), "classes", TWO),
        (Head("none", 1), "binary", TWO),
        (Head("sigmoid", 1), "binary", TWO),
        (Head("sigmoid", 3), "labels", THREE),
        (Head("none", 2), "labels", TWO),
    ],
)
def test_a_head_of_the_data_passes(head, task, classes):
    check_head(head, task, classes, "model.keras")


@pytest.mark.parametrize(
    "head, task, classes, message",
    [
        (Head("softmax", 3), "labels", THREE, "3 outputs by sigmoid .* by softmax"),
        (Head("sigmoid", 5), "labels", (*THREE, "hen"), "4 outputs .* 5 outputs by"),
        (Head("sigmoid", 1), "classes", THREE, "3 outputs by softmax .* 1 output by"),
        (Head("sigmoid", 1), "labels", THREE, "3 outputs by sigmoid .* 1 output by"),
        (
            Head("sigmoid", 3),
            "classes",
            THREE,
            r"give labels as zeros and ones \(n, la",
        ),
        (Head("softmax", 2), "binary", TWO, "one unit by .* leave task: binary out"),
        (Head("softmax", 4), "classes", THREE, "3 outputs .* 4 outputs by softmax"),
        (Head("none", 3), "classes", TWO, "2 outputs .*, or a single unit"),
        (Head("softmax", 1), "classes", TWO, "2 outputs .* 1 output by softmax"),
    ],
)
def test_a_head_of_other_data_is_refused_in_one_line(head, task, classes, message):
    with pytest.raises(
        ValueError, match=f"model.keras: expected .*{message}"
    ) as caught:
        check_head(head, task, classes, "model.keras")
    assert "\n" not in str(caught.value)


def test_of_several_outputs_one_is_chosen_by_its_name(tmp_path):
    model = two_outputs()
    model.save(tmp_path / "two.keras")
    colour = load_model(tmp_path / "two.keras", output="colour")
    assert split_head(colour)[1] == Head("sigmoid", 3)
    expected = model(images())[1]
    found = colour(images())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="two.keras: .* one of kind, colour. Received"):
        load_model(tmp_path / "two.keras", output="size")
    for call in (convert_tflite, lambda given: predict(given, images())):
        with pytest.raises(ValueError, match="output=NAME .* Received: kind, colour"):
            call(model)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: split_head(two_outputs()),
            "output=NAME when it is loaded. Received: kind, col",
        ),
        (
            lambda: split_head(
                keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3)])
            ),
            r"a row of scores for each image. Received: .*\(None, 6, 6, 4\)",
        ),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
