"""What the intake of files refuses, every function refuses of models in memory."""

import numpy as np
import pytest
import tf_keras as keras

import kdprune
from kdprune import prune
from kdprune.evaluate import predict
from kdprune.intake.inline import inline
from kdprune.quantize import cluster_weights, equalize_channels, fold_batch_norm
from kdprune.tflite import convert_tflite, layer_report

layers = keras.layers
IMAGES = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)


def network(middle, outputs=1):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(image)
    x = layers.Add(name="sum")([x, layers.Conv2D(8, 1)(middle(x))])
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    found = [layers.Dense(4, name=f"scores_{i}")(x) for i in range(outputs)]
    return keras.Model(image, found[0] if outputs == 1 else found, name="net")


def always(x):
    return layers.Dropout(0.5, name="always")(x, training=True)


def inside(x):
    image = keras.Input(x.shape[1:])
    inner = keras.Model(image, layers.Dropout(0.5, name="always")(image), name="inner")
    return inner(x, training=True)


def by_batch(x):
    return layers.BatchNormalization(name="always")(x, training=True)


def teacher(model):
    return kdprune.Distiller(network(lambda x: x), teacher=model)


FUNCTIONS = {
    "convert_tflite": lambda m: convert_tflite(m, "int8", IMAGES),
    "layer_report": lambda m: layer_report(m, IMAGES),
    "predict": lambda m: predict(m, IMAGES),
    "Distiller": lambda m: kdprune.Distiller(m),
    "teacher": teacher,
}
REFUSING = {
    **FUNCTIONS,
    "take_model": lambda m: kdprune.take_model(m),
    "inline": inline,
    "plan_channels": lambda m: prune.plan_channels(m, 0.3, round_to=1),
    "prune_magnitude": lambda m: prune.prune_magnitude(m, 0.5, end=1),
    "weight_masks": lambda m: prune.weight_masks(m, relative_threshold=0.1),
    "remove_blocks": lambda m: prune.remove_blocks(m, ["sum"]),
    "recalibrate": lambda m: prune.recalibrate_batch_norm(m, IMAGES),
    "add_bn_l1": prune.add_bn_l1,
    "fold_batch_norm": fold_batch_norm,
    "equalize_channels": lambda m: equalize_channels(m, IMAGES),
    "cluster_weights": cluster_weights,
    "quantize_model": kdprune.quantize_model,
}


@pytest.mark.parametrize("function", REFUSING.values(), ids=REFUSING)
def test_what_says_something_else_each_time_is_refused(function):
    for middle in (always, inside, by_batch):
        with pytest.raises(ValueError, match="'always' .*training=True") as caught:
            function(network(middle))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_of_several_outputs_one_is_to_be_chosen(function):
    with pytest.raises(ValueError, match="one output, .* scores_0, scores_1"):
        function(network(lambda x: x, outputs=2))


def test_what_is_frozen_or_off_is_as_in_use():
    def middle(x):
        frozen = layers.BatchNormalization(name="frozen", trainable=False)
        return layers.Dropout(0.5)(frozen(x, training=True), training=False)

    model = network(middle)
    expected = model(IMAGES).numpy()
    flat, _ = inline(model)
    np.testing.assert_allclose(flat(IMAGES).numpy(), expected, atol=1e-6)
    assert predict(model, IMAGES).shape == (4, 4)
