"""What tests of channel pruning share: random weights, and the invariant."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kdprune.models import count_macs, count_parameters
from kdprune.prune import plan_channels
from kdprune.prune.channels.surgery import Kept
from kdprune.prune.inference import run_layers


def randomize(model, seed=0):
    """Random numbers for every weight, statistics and biases too.

    Fresh batch normalization (mean 0, variance 1, shift 0) hides mistakes.
    """
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if not variable.dtype.is_floating:
            continue
        if "variance" in variable.name or "gamma" in variable.name:
            values = generator.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            deviation = math.sqrt(2 / max(1, math.prod(shape[:-1])))
            values = generator.normal(0, deviation, shape)
        else:
            values = generator.normal(0, 0.3, shape)
        variable.assign(values.astype(variable.dtype.name))


def images_for(model, count=4, seed=1):
    """Random images for each input of the model, a list."""
    generator = np.random.default_rng(seed)
    return [
        generator.uniform(size=(count, *tensor.shape[1:])).astype(np.float32)
        for tensor in model.inputs
    ]


def with_zeros(plan, images):
    """The original's outputs, removed channels zeroed wherever they are used."""
    kept = Kept(plan.graph, plan.removed)
    users = {
        key: followed
        for key, followed in plan.graph.followed.items()
        if any(weight.uses is not None for weight in followed.trace.weights)
    }

    def call_layer(layer, args, kwargs):
        if id(layer) not in users:
            return layer(*args, **kwargs)
        mask = kept(users[id(layer)].inputs[0]).astype(np.float32)
        return layer(args[0] * mask, *args[1:], **kwargs)

    return run_layers(plan.graph.model, images, call_layer)


def outputs_of(model, images):
    return tf.nest.flatten(model(images if len(images) > 1 else images[0]))


@pytest.fixture
def check_invariant():
    """Plans, cuts and compares; returns the plan and the smaller model."""

    def check(model, ratio=0.4, importance="random", scope="global", **settings):
        randomize(model)
        settings.setdefault("round_to", 1)
        plan = plan_channels(model, ratio, importance, scope, **settings)
        pruned = plan.apply()
        images = images_for(model)
        original = outputs_of(model, images)
        expected = with_zeros(plan, images)
        got = outputs_of(pruned, images)
        for one, other, whole in zip(got, expected, original, strict=True):
            spread = float(np.std(other, axis=0).max())
            assert spread > 0, "the test would not tell a difference"
            assert one.shape == whole.shape
            assert np.abs(one - other).max() <= 1e-4 * spread
            if len(plan.removed):
                assert np.abs(other - whole).max() > 1e-3 * spread
        assert [x.name for x in pruned.layers] == [x.name for x in model.layers]
        assert type(pruned) is type(model)
        assert count_parameters(pruned) == plan.parameters[1]
        assert count_parameters(model) == plan.parameters[0]
        assert (count_macs(model), count_macs(pruned)) == plan.macs
        return plan, pruned

    return check
