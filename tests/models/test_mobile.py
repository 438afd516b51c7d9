"""Networks of depthwise convolutions: their size, their residuals, their errors."""

import math

import numpy as np
import pytest
import tf_keras as keras

from kdprune.models import build_model, count_macs


@pytest.mark.parametrize(
    "name, trainable, macs",
    [
        ("inverted_residual", 59_722, 9_606_624),
        ("inverted_residual_69k", 69_114, 10_950_112),
        ("inverted_residual_31k", 30_922, 6_264_640),
        ("bsconv_resnet", 46_850, 10_236_704),
    ],
)
def test_trainable_parameters_and_macs_are_as_documented(name, trainable, macs):
    model = build_model(name)
    assert sum(math.prod(w.shape) for w in model.trainable_weights) == trainable
    assert count_macs(model) == macs


def test_a_residual_is_added_only_where_shapes_agree():
    blocks = [[8, 16, 1], [8, 16, 1], [8, 16, 2], [12, 16, 1]]
    model = build_model("inverted_residual", stem=4, blocks=blocks)
    adds = [x.name for x in model.layers if isinstance(x, keras.layers.Add)]
    assert adds == ["block2_add"]


def test_no_activation_follows_a_projection():
    """A block of zero projection passes its input through unchanged."""
    model = build_model("inverted_residual", stem=8, blocks=[[8, 16, 1]])
    layer = model.get_layer("block1_project_bn")
    gamma, *rest = layer.get_weights()
    layer.set_weights([np.zeros_like(gamma), *rest])
    inner = keras.Model(
        model.input,
        [model.get_layer("stem_relu").output, model.get_layer("block1_add").output],
    )
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    before, after = inner(images)
    assert np.array_equal(before, after)


def test_a_blueprint_separable_filter_is_multiples_of_one_kernel():
    """1x1, then depthwise: each filter's kernels differ by a factor only (BSConv-U)."""
    model = build_model("bsconv_resnet", filters=(6,), blocks=1)
    point = model.get_layer("stage1_block1a_pointwise")
    depth = model.get_layer("stage1_block1a_depthwise")
    assert point.kernel.shape == (1, 1, 6, 6)
    assert depth.depthwise_kernel.shape == (3, 3, 6, 1)
    image = np.random.default_rng(0).random((1, 9, 9, 6), np.float32)
    blueprint = depth.depthwise_kernel.numpy()[:, :, None, :, 0]
    full = point.kernel.numpy() * blueprint
    expected = keras.backend.conv2d(image, full, padding="same")
    np.testing.assert_allclose(depth(point(image)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "name, arguments, received",
    [
        ("inverted_residual", {"blocks": [[16, 32]]}, "[16, 32] as block 1"),
        ("inverted_residual", {"blocks": [[8, 8, 1], [8, 8, 3]]}, "as block 2"),
        ("inverted_residual", {"blocks": [[8, -8, 1]]}, "[8, -8, 1]"),
        ("inverted_residual", {"blocks": []}, "[] as block 1"),
        ("bsconv_resnet", {"filters": ()}, "filters=()"),
        ("bsconv_resnet", {"filters": (8, 0)}, "filters=(8, 0)"),
        ("bsconv_resnet", {"blocks": 0}, "blocks=0"),
    ],
)
def test_a_wrong_specification_is_one_line(name, arguments, received):
    with pytest.raises(ValueError) as caught:
        build_model(name, **arguments)
    message = str(caught.value)
    assert received in message and "\n" not in message
