"""Every factory's model has its size, its shapes and its way to a file and back."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.models import (
    MODELS,
    build_model,
    load_model,
    register_model,
    save_model,
)
from kdprune.models.factories import Dirac, check_model_arguments, whitening_filters
from kdprune.models.precision import cast_model

SMALL = {"resnet9": {"width": 8}, "dscnn": {"width": 8}, "whitened_cnn": {"width": 8}}


def images(shape, count=3):
    return np.random.default_rng(0).random((count, *shape), np.float32)


@pytest.mark.parametrize(
    "name, arguments, parameters",
    [
        ("article_teacher", {}, 122_570),
        ("article_student", {}, 31_082),
        ("resnet8", {}, 78_426),
        ("resnet", {"depth": 20}, 273_754),
        ("resnet9", {"width": 64}, 6_577_610),
        ("resnet9", {"width": 32}, 1_648_362),
        ("whitened_cnn", {"width": 64}, 1_975_106),
        ("dscnn", {}, 21_290),
        ("inverted_residual", {}, 63_034),
        ("bsconv_resnet", {}, 48_370),
    ],
)
def test_parameters_are_as_documented(name, arguments, parameters):
    assert build_model(name, **arguments).count_params() == parameters


@pytest.mark.parametrize(
    "shape",
    [
        (28, 28, 1),
        pytest.param((32, 32, 3), marks=pytest.mark.slow),
        pytest.param((64, 64, 3), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_any_shape_of_image_becomes_float32_logits(name, shape):
    model = build_model(name, shape, 7, **SMALL.get(name, {}))
    logits = model(images(shape))
    assert logits.shape == (3, 7) and logits.dtype == "float32"
    assert np.isfinite(logits).all()
    # Logits, not probabilities.
    assert np.abs(np.sum(logits, axis=1) - 1).max() > 1e-3
    assert model.input_shape == (None, *shape) and model.name == name


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_float32_under_mixed_precision(name):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build_model(name, **SMALL.get(name, {}))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.layers[1].compute_dtype == "bfloat16"
    assert model(images((32, 32, 3))).dtype == "float32"


@pytest.mark.quick("resnet8")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_saved_in_any_precision_loads_as_the_float32_model(name, tmp_path):
    model = build_model(name, classes=4, **SMALL.get(name, {}))
    policies = ("mixed_bfloat16", "float32")
    # In float32 nothing is cast, and all are saved alike.
    for policy in policies if name == "resnet8" else policies[:1]:
        save_model(cast_model(model, policy), tmp_path / "model.keras")
        loaded = load_model(tmp_path / "model.keras")
        x = images((32, 32, 3))
        np.testing.assert_array_equal(loaded(x), model(x))
        assert [layer.name for layer in loaded.layers] == [
            layer.name for layer in model.layers
        ]
        trainable = [w.name for w in loaded.trainable_weights]
        assert trainable == [w.name for w in model.trainable_weights]


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(
        ValueError, match="one of article_teacher, .*, bsconv_resnet. R"
    ):
        build_model("vgg")
    with pytest.raises(ValueError, match="'resnet9' takes width. Received: depth"):
        build_model("resnet9", depth=3)
    with pytest.raises(ValueError, match="'resnet8' takes no arguments"):
        build_model("resnet8", width=3)
    with pytest.raises(ValueError, match="height, width, channels"):
        build_model("resnet8", (32, 32))
    with pytest.raises(ValueError, match="at least 1. Received: 0"):
        build_model("resnet8", classes=0)


@pytest.mark.parametrize(
    "name", ["article_teacher", "article_student", "resnet9", "whitened_cnn"]
)
def test_images_that_are_too_small_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"small for model '{name}'.* 4 x 4") as error:
        build_model(name, (4, 4, 3))
    assert "\n" not in str(error.value)


def test_a_residual_net_has_as_many_weighted_layers_as_its_depth():
    for depth, filters in ((8, (16, 32, 64)), (14, (4, 8)), (26, (4, 4, 8))):
        model = build_model("resnet", depth=depth, filters=filters)
        kinds = (keras.layers.Conv2D, keras.layers.Dense)
        names = [x.name for x in model.layers if isinstance(x, kinds)]
        assert len([n for n in names if not n.endswith("shortcut")]) == depth
    for depth, filters in ((9, (16, 32, 64)), (2, (16, 32, 64)), (8, ())):
        with pytest.raises(ValueError, match="depth must be 2"):
            build_model("resnet", depth=depth, filters=filters)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_whitening_decorrelates_patches_of_natural_correlation(channels):
    kernel, bias = whitening_filters(channels)
    assert kernel.shape == (2, 2, channels, 8 * channels)
    # Both signs of every filter, each blind to the assumed mean.
    half = 4 * channels
    np.testing.assert_array_equal(kernel[..., :half], -kernel[..., half:])
    grey = np.full((1, 2, 2, channels), 0.473, np.float32)
    np.testing.assert_allclose(np.tensordot(grey, kernel, 3) + bias, 0, atol=1e-3)
    # Noise of the covariance that is claimed for images, drawn by its square root.
    near, far = 0.95, 0.91
    rows = [[1, near, near, far], [near, 1, far, near]]
    space = np.array(rows + [row[::-1] for row in rows[::-1]])
    steps = np.abs(np.subtract.outer(range(channels), range(channels)))
    colour = np.choose(np.minimum(steps, 2), [1, 0.95, 0.86])
    colour = colour if channels <= 3 else np.eye(channels)
    covariance = np.kron(space, colour) / 16
    rng = np.random.default_rng(0)
    patches = rng.multivariate_normal(np.full(half, 0.473), covariance, 20_000)
    seen = patches @ kernel.reshape(half, -1)[:, :half] + bias[:half]
    after = np.cov(seen.T)
    variances = np.diag(after)
    # Axes below the floor of 3e-5 are damped, not blown up.
    true = np.sort(np.linalg.eigvalsh(covariance))
    np.testing.assert_allclose(np.sort(variances), true / (true + 3e-5), rtol=0.05)
    assert np.abs(after - np.diag(variances)).max() < 0.05
    before = np.corrcoef(patches.T)
    assert np.abs(before - np.eye(half)).max() > 0.9


def test_the_whitening_layer_is_not_trained():
    model = build_model("whitened_cnn", width=4)
    layer = model.get_layer("whitening")
    kernel, bias = whitening_filters()
    np.testing.assert_array_equal(layer.kernel, kernel)
    np.testing.assert_array_equal(layer.bias, bias)
    assert not layer.trainable_weights


@pytest.mark.parametrize("fan_in, filters", [(4, 4), (3, 8), (8, 3)])
def test_dirac_passes_the_first_channels_through(fan_in, filters):
    keras.utils.set_random_seed(0)
    initializer = keras.initializers.deserialize(keras.initializers.serialize(Dirac()))
    assert type(initializer) is Dirac
    convolution = keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_initializer=initializer
    )
    x = images((6, 6, fan_in))
    shared = min(fan_in, filters)
    np.testing.assert_allclose(convolution(x)[..., :shared], x[..., :shared], 1e-6)
    rest = convolution.kernel.numpy()[..., shared:]
    limit = 1 / np.sqrt(9 * fan_in)
    assert np.abs(rest).max(initial=0) <= limit
    if filters > fan_in:
        assert rest.std() == pytest.approx(limit / np.sqrt(3), rel=0.1)


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    known = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(known)


def tiny(images, filters=8):
    x = keras.layers.Conv2D(filters, 3, activation="relu", name="conv")(images)
    return keras.layers.GlobalAveragePooling2D()(x)


def test_a_factory_of_ones_own_is_built_by_its_name(registry):
    assert register_model("tiny", tiny) is tiny
    model = build_model("tiny", (10, 12, 1), classes=3, filters=5)
    assert model.input_shape == (None, 10, 12, 1) and model.output_shape == (None, 3)
    assert model.get_layer("conv").filters == 5 and model.name == "tiny"
    with pytest.raises(ValueError, match="'tiny' takes filters.*did you mean 'filte"):
        build_model("tiny", filter=5)


def test_a_factory_is_taken_as_it_is():
    model = build_model(tiny, (10, 12, 1), classes=3, filters=5)
    assert model.get_layer("conv").filters == 5 and model.name == "tiny"
    assert build_model(lambda images: tiny(images)).name == "lambda"
    with pytest.raises(ValueError, match="'tiny' takes filters.*did you mean 'filte"):
        build_model(tiny, filter=5)


def test_a_factory_takes_what_it_says(registry):
    @register_model("anything")
    def anything(images, **options):
        assert options == {"depth": 3}
        return tiny(images)

    build_model("anything", depth=3)
    with pytest.raises(ValueError, match="model 'anything' already"):
        register_model("anything", tiny)
    register_model("anything", tiny, replace=True)
    assert build_model("anything").count_params() == 3 * 72 + 8 + 90


@pytest.mark.parametrize(
    ("factory", "received"),
    [
        (lambda images: images, r"\(None, 32, 32, 3\)"),
        (lambda images: keras.Model(images, tiny(images)), "Functional"),
        (lambda images: None, "NoneType"),
    ],
)
def test_a_factory_that_gives_no_features_is_told(registry, factory, received):
    register_model("odd", factory)
    with pytest.raises(ValueError, match=f"of model 'odd' must .*Received: {received}"):
        build_model("odd")


def test_a_misspelt_model_names_the_nearest():
    with pytest.raises(ValueError, match="Received: 'resnet_8'; did you mean 'resnet"):
        build_model("resnet_8")


@pytest.mark.parametrize(
    ("name", "argument", "said"),
    [
        ("resnet", {"depth": "8"}, "model 'resnet': depth: expected a valid integer"),
        ("resnet", {"filters": 4}, "filters: expected .*, got 4"),
        ("resnet", {"filters": "abc"}, "filters: expected .*, got 'abc'"),
        ("resnet", {"filters": [16, "32", 64]}, "filters: expected a valid integer"),
        ("resnet9", {"width": 1.5}, "width: expected a valid integer, got 1.5"),
        ("resnet9", {"width": "1e-1"}, "width: expected a valid integer, got 0.1"),
        ("resnet9", {"width": True}, "width: expected a valid integer, got True"),
        ("resnet9", {"width": None}, "width: expected a valid integer, got None"),
        ("resnet9", {"width": float("inf")}, "width: expected a finite number"),
        ("whitened_cnn", {"activation": 3}, "activation: expected a valid string"),
    ],
)  # fmt: skip
def test_arguments_are_of_the_types_that_the_factory_tells(name, argument, said):
    with pytest.raises(ValueError, match=said) as caught:
        build_model(name, **argument)
    assert "\n" not in str(caught.value)


def test_a_number_with_an_exponent_which_yaml_takes_for_text_is_one():
    assert check_model_arguments("resnet9", {"width": "1e1"}) == {"width": 10}
    assert check_model_arguments("resnet", {"filters": (4, 8)}) == {"filters": (4, 8)}
