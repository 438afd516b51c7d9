"""What tests of channel pruning share: random weights, and the invariant."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.models import count_macs, count_parameters
from kdprune.prune import plan_channels, recalibrate_batch_norm
from kdprune.prune.channels.surgery import with_zeros


def randomize(model, images, seed=0):
    """Random numbers for every weight, statistics and biases too.

    Fresh batch normalization (mean 0, variance 1, shift 0) hides mistakes; one
    whose statistics have nothing to do with its input hides the images.
    """
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if not variable.dtype.is_floating:
            continue
        if "variance" in variable.name or "gamma" in variable.name:
            values = generator.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            fan = shape[:2] if "depthwise" in variable.name else shape[:-1]
            values = generator.normal(0, math.sqrt(2 / math.prod(fan)), shape)
        else:
            values = generator.normal(0, 0.3, shape)
        variable.assign(values.astype(variable.dtype.name))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # It computes with copies of its weights.
    tf.config.run_functions_eagerly(True)  # Tracing would take longer.
    recalibrate_batch_norm(model, [(images, None)])
    tf.config.run_functions_eagerly(False)
    for variable in model.weights:
        if "moving_variance" in variable.name:
            variable.assign(variable * generator.uniform(0.7, 1.4, variable.shape))
        if "moving_mean" in variable.name:
            variable.assign(variable * generator.uniform(0.8, 1.2, variable.shape))


def images_for(model, scale=1.0, count=6, seed=1):
    """Random images for each input of the model, a list."""
    generator = np.random.default_rng(seed)
    return [
        generator.uniform(0, scale, (count, *tensor.shape[1:])).astype(np.float32)
        for tensor in model.inputs
    ]


def outputs_of(model, images):
    return tf.nest.flatten(model(images if len(images) > 1 else images[0]))


def tell_apart(condition):
    assert condition, "the images make no difference to this model"


@pytest.fixture(scope="session")
def randomized():
    """Gives a model random weights; returns it and images to judge it by."""

    def make(model, scale=1.0):
        images = images_for(model, scale)
        randomize(model, images)
        return model, images[0]

    return make


@pytest.fixture(scope="session")
def check_invariant():
    """Plans, cuts and compares; returns the plan and the smaller model.

    `judge` is given whether the outputs tell one image from another.
    """

    def check(model, ratio=0.4, scope="global", judge=tell_apart, scale=1.0):
        images = images_for(model, scale)
        randomize(model, images)
        plan = plan_channels(model, ratio, "random", scope, round_to=1)
        pruned = plan.apply()
        original = outputs_of(model, images)
        expected = with_zeros(plan.graph, plan.removed, images)
        got = outputs_of(pruned, images)
        for one, other, whole in zip(got, expected, original, strict=True):
            spread = float(np.std(other, axis=0).max())
            judge(spread > 1e-3 * np.abs(other).max())
            assert one.shape == whole.shape
            assert np.abs(one - other).max() <= 1e-4 * spread
            if judge is tell_apart:
                assert np.abs(other - whole).max() > 1e-3 * spread
        assert [x.name for x in pruned.layers] == [x.name for x in model.layers]
        assert type(pruned) is type(model)
        assert count_parameters(pruned) == plan.parameters[1]
        assert count_parameters(model) == plan.parameters[0]
        assert (count_macs(model), count_macs(pruned)) == plan.macs
        return plan, pruned

    return check
