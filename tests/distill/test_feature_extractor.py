"""Taps read the named feature maps of a model, wrapped or not, and change nothing."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill.feature_extractor import (
    default_feature_layers,
    feature_extractor,
    feature_layers,
    match_feature_layers,
)
from kdprune.models import build_model
from kdprune.models.precision import cast_model
from kdprune.prune import prune_magnitude
from kdprune.quantize import quantize_model

layers = keras.layers
RESNET8 = ("stage1_block1_relu", "stage2_block1_relu", "stage3_block1_relu")
LAST = ("conv_relu", "deep_relu")


def network(width=4, seed=0, size=8):
    """Two resolutions: 8 x 8 and 4 x 4."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((size, size, 3), name="image")
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(momentum=0.5, name="conv_bn")(x)
    x = layers.ReLU(name="conv_relu")(x)
    x = layers.Conv2D(2 * width, 3, 2, padding="same", name="deep")(x)
    x = layers.BatchNormalization(momentum=0.5, name="deep_bn")(x)
    x = layers.ReLU(name="deep_relu")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x), name="net")


def images(count=4, size=8):
    return np.random.default_rng(0).random((count, size, size, 3), np.float32)


def pruned(model):
    wrapped = prune_magnitude(model, 0.5, schedule="constant", begin=0, end=1)
    for layer in wrapped.layers:  # As the callback does before the first step.
        if hasattr(layer, "pruning_step"):
            layer.pruning_step.assign(1)
    return wrapped


def quantized(model):
    return quantize_model(model, calibration=images(8))


WRAPPED = pytest.mark.parametrize("wrap", [lambda model: model, pruned, quantized])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="hidden")
        self.conv = layers.Conv2D(4, 3, name="conv")

    def call(self, inputs, training=None):
        return self.conv(inputs)


@WRAPPED
@pytest.mark.quick("<lambda>", "pruned")
def test_feature_maps_come_in_the_order_of_execution(wrap):
    expected = ("conv", "conv_bn", "conv_relu", "deep", "deep_bn", "deep_relu")
    assert feature_layers(wrap(network())) == expected


def test_inputs_padding_and_vectors_are_no_feature_maps():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ZeroPadding2D(name="pad")(image)
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.Flatten(name="flat")(x)
    model = keras.Model(image, layers.Dense(4, name="logits")(x))
    assert feature_layers(model) == ("conv",)


def test_a_model_without_feature_maps_has_none_to_extract():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)], name="mlp")
    assert feature_layers(model) == ()
    with pytest.raises(ValueError, match="'mlp' has no feature map .* logits work"):
        default_feature_layers(model)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("resnet8", {}, RESNET8),
        (
            "resnet9",
            {"width": 2},
            (*["stage1_relu", "stage2_relu", "stage3_relu"], "residual3_add"),
        ),
        ("article_student", {}, ("conv1", "pool1", "conv2", "pool2", "conv3")),
        (
            "dscnn",
            {"width": 4},
            ("block1_pointwise_relu", "block3_pointwise_relu", "block4_pointwise_relu"),
        ),
    ],
)
def test_default_layers_are_the_last_of_each_resolution(name, arguments, expected):
    assert default_feature_layers(build_model(name, **arguments)) == expected


@WRAPPED
def test_a_wrapped_student_keeps_its_layers(wrap):
    assert default_feature_layers(wrap(network())) == LAST


@pytest.mark.slow
def test_a_residual_network_keeps_its_layers_when_wrapped():
    student = build_model("resnet8")
    assert default_feature_layers(pruned(student)) == RESNET8
    assert default_feature_layers(quantize_model(student)) == RESNET8


def test_default_layers_leave_out_maps_of_a_single_position():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    squeezed = layers.Conv2D(4, 1, activation="sigmoid", name="excite")(squeezed)
    x = layers.Multiply(name="scale")([x, squeezed])
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(x)))
    assert "excite" in feature_layers(model)
    assert default_feature_layers(model) == ("scale",)


def test_default_layers_are_sorted_by_resolution_not_by_depth():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, 2, padding="same", name="coarse")(image)
    x = layers.UpSampling2D(name="fine")(x)
    assert default_feature_layers(keras.Model(image, x)) == ("fine", "coarse")


def test_default_layers_need_an_image_size():
    model = network(size=None)
    assert "deep_relu" in feature_layers(model)
    with pytest.raises(ValueError, match=r"one image size.*\(None, None, None, 4\)"):
        default_feature_layers(model)


def test_the_last_maps_are_matched_and_before_them_those_of_equal_resolution():
    teacher, student = build_model("resnet9", width=2), build_model("resnet8")
    expected = ("stage1_relu", "stage2_relu", "residual3_add"), RESNET8
    assert match_feature_layers(teacher, student) == expected
    assert match_feature_layers(student, student) == (RESNET8, RESNET8)
    # 16 x 16 and 8 x 8 of the student's 16, 8 and 4 are the teacher's too.
    taught = match_feature_layers(student, build_model("dscnn", width=4))
    assert taught == (RESNET8[1:], ("block1_pointwise_relu", "block4_pointwise_relu"))


def test_without_equal_resolutions_the_last_maps_are_matched():
    taught = match_feature_layers(network(), build_model("article_student"))
    assert taught == (("deep_relu",), ("conv3",))


def test_features_are_the_outputs_of_the_layers():
    model, x = network(), images()
    logits, deep, conv = feature_extractor(model, ["deep_relu", "conv"])(x)
    np.testing.assert_array_equal(logits, model(x))
    np.testing.assert_array_equal(conv, model.get_layer("conv")(x))
    to_deep = keras.Model(model.input, model.get_layer("deep_relu").output)
    np.testing.assert_array_equal(deep, to_deep(x))


def test_a_sequential_model_gives_features():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.Flatten()]
    )
    flat, conv = feature_extractor(model, ["conv"])(images())
    np.testing.assert_array_equal(flat, tf.reshape(conv, [4, -1]))


def test_a_model_of_several_outputs_keeps_them_before_the_features():
    base = network()
    second = layers.Dense(2)(base.get_layer("features").output)
    model = keras.Model(base.input, [base.output, second])
    shapes = [tuple(output.shape) for output in feature_extractor(model, LAST).outputs]
    assert shapes == [(None, 4), (None, 2), (None, 8, 8, 4), (None, 4, 4, 8)]


@WRAPPED
def test_a_feature_extractor_shares_layers_and_weights(wrap):
    model = wrap(network())
    extractor = feature_extractor(model, LAST)
    assert {id(v) for v in extractor.variables} == {id(v) for v in model.variables}
    np.testing.assert_array_equal(extractor(images())[0], model(images()))
    ours = [id(v) for v in extractor.trainable_variables]
    assert ours == [id(v) for v in model.trainable_variables]


@WRAPPED
def test_wrapped_features_are_those_of_the_plain_model(wrap):
    model = network()
    plain = feature_extractor(model, LAST)(images())[1:]
    wrapped = feature_extractor(wrap(model), LAST)(images())[1:]
    for one, two in zip(plain, wrapped, strict=True):
        assert one.shape == two.shape
        # Eight bits tell a map's values apart to 1/255 of its range.
        np.testing.assert_allclose(one, two, atol=0.03 * np.abs(one).max())


@WRAPPED
def test_gradients_of_features_reach_the_weights_before_them(wrap):
    model = wrap(network())
    extractor = feature_extractor(model, ["conv_relu"])
    with tf.GradientTape() as tape:
        _, conv = extractor(images(), training=True)
        loss = tf.reduce_sum(conv**2)
    inner = {getattr(layer, "layer", layer).name: layer for layer in model.layers}
    kernels = [inner[name].trainable_variables[0] for name in ("conv", "deep")]
    before, after = tape.gradient(loss, kernels)
    assert before.shape == (3, 3, 3, 4) and np.abs(before).max() > 0
    assert after is None


def test_a_forward_pass_updates_the_statistics_once_and_only_in_training():
    model, other = network(), network()
    extractor = feature_extractor(model, feature_layers(model))
    extractor(images(), training=True)
    other(images(), training=True)
    trained = [variable.numpy() for variable in model.variables]
    for one, two in zip(trained, other.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    extractor(images(), training=False)
    for one, two in zip(trained, model.variables, strict=True):
        np.testing.assert_array_equal(one, two)


def test_features_of_a_mixed_precision_model_come_as_they_are_computed():
    extractor = feature_extractor(cast_model(network(), "mixed_bfloat16"), LAST)
    assert [x.dtype for x in extractor(images(1))] == [tf.float32] + 2 * [tf.bfloat16]


def test_an_unknown_layer_is_refused_with_the_nearest_and_all_candidates():
    with pytest.raises(ValueError) as error:
        feature_extractor(network(), ["conv_relu", "deep_rleu"])
    assert str(error.value) == (
        "model 'net' has no layer 'deep_rleu'. Did you mean 'deep_relu'? Feature maps: "
        "conv, conv_bn, conv_relu, deep, deep_bn, deep_relu."
    )
    with pytest.raises(ValueError, match="Did you mean 'conv_relu'"):
        feature_extractor(quantized(network()), ["quant_conv_relu"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("features", r"GlobalAveragePooling2D of output shape \(None, 8\)"),
        ("image", "InputLayer"),
    ],
)
def test_a_layer_without_a_feature_map_is_refused(name, says):
    with pytest.raises(ValueError, match=f"'{name}' of model 'net' gives no .*{says}"):
        feature_extractor(network(), [name])


@pytest.mark.parametrize("names", ["conv", [], ()])
def test_names_must_be_a_list(names):
    with pytest.raises(ValueError, match="a list of one layer name or more. Received"):
        feature_extractor(network(), names)


def test_a_layer_called_twice_is_refused():
    image = keras.Input((8, 8, 3))
    relu, conv = layers.ReLU(name="relu"), layers.Conv2D(4, 3, name="conv")
    x = layers.Conv2D(4, 3, name="deep")(relu(conv(image)))
    model = keras.Model(image, relu(x))
    assert feature_layers(model) == ("conv", "deep")
    with pytest.raises(
        ValueError, match="'relu' is called 2 times .* the layer before"
    ):
        feature_extractor(model, ["relu"])


def test_calls_outside_the_model_do_not_count():
    image = keras.Input((8, 8, 3))
    relu, conv = layers.ReLU(name="relu"), layers.Conv2D(4, 3, name="conv")
    x = relu(conv(image))
    relu(x)  # Leads nowhere.
    assert feature_layers(keras.Model(image, x)) == ("conv", "relu")


def test_a_nested_model_is_one_layer_and_its_own_are_refused():
    image = keras.Input((8, 8, 3))
    inner = keras.Model(image, layers.Conv2D(4, 3, name="deep")(image), name="body")
    outer = keras.Input((8, 8, 3))
    model = keras.Model(outer, layers.Flatten()(inner(outer)), name="whole")
    assert feature_layers(model) == ("body",)
    assert feature_extractor(model, ["body"])(images())[1].shape == (4, 6, 6, 4)
    with pytest.raises(ValueError, match="'deep' is inside the model 'body', itself"):
        feature_extractor(model, ["deep"])


def test_models_without_a_graph_are_refused():
    unbuilt = keras.Sequential([layers.Conv2D(4, 3, name="conv")], name="late")
    for find in (
        feature_layers,
        default_feature_layers,
        lambda model: feature_extractor(model, ["conv"]),
    ):
        with pytest.raises(ValueError, match="logits, .* the subclassed Subclassed"):
            find(Subclassed())
        with pytest.raises(ValueError, match="keras.Input. Received: Sequential 'late"):
            find(unbuilt)
        with pytest.raises(ValueError, match="tf_keras .* model. Received: builtins.s"):
            find("resnet8")


def test_a_sequential_model_built_by_its_first_call_gives_features():
    model = keras.Sequential([layers.Conv2D(4, 3, name="conv"), layers.Flatten()])
    model(images())
    assert feature_extractor(model, ["conv"])(images())[1].shape == (4, 6, 6, 4)
