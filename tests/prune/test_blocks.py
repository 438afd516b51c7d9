"""Block pruning: residual blocks are found, ranked and removed."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.models import build_model
from kdprune.prune.blocks import (
    angular_distances,
    find_blocks,
    losses_without,
    plan_blocks,
    remove_blocks,
)

layers = keras.layers


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(20, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for name in ("one", "two"):
        y = layers.Conv2D(6, 3, padding="same", name=f"{name}_a")(x)
        y = layers.BatchNormalization(name=f"{name}_norm")(y)
        y = layers.Conv2D(4, 1, name=f"{name}_b")(layers.ReLU()(y))
        x = layers.Add(name=name)([y, x])
    narrow = layers.Conv2D(8, 1, strides=2, name="shortcut")(x)
    y = layers.Conv2D(8, 3, strides=2, padding="same", name="wide")(x)
    x = layers.Add(name="changes_width")([narrow, y])
    y = tf.nn.relu(layers.Dense(8, name="gate")(x))
    x = x + y
    seen = layers.Conv2D(8, 1, name="used_twice")(x)
    x = layers.Add(name="branch_is_used")([x, seen])
    x = layers.Concatenate()([x, seen])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def test_blocks_are_branches_that_nothing_else_uses(model):
    found = {block.name: set(block.layers) for block in find_blocks(model)}
    assert list(found)[:2] == ["one", "two"] and len(found) == 3
    assert {"one_a", "one_norm", "one_b"} < found["one"]
    assert "gate" in found[list(found)[2]]  # A plain plus, which Keras numbers.
    names = [block.name for block in find_blocks(build_model("resnet8"))]
    assert len(names) == 1  # The other two change their width.


def test_a_removed_block_is_as_if_its_branch_gave_zero(model, images):
    pruned = remove_blocks(model, ["two", find_blocks(model)[2].name])
    silent = keras.models.clone_model(model)
    silent.set_weights(model.get_weights())
    for name in ("two_b", "gate"):
        layer = silent.get_layer(name)
        layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    expected = silent(images).numpy()
    assert np.abs(pruned(images) - expected).max() < 1e-5 * np.std(expected)
    names = [layer.name for layer in pruned.layers]
    assert "two_a" not in names and "two" not in names and "one_a" in names
    assert np.abs(model(images) - expected).max() > 0.01 * np.std(expected)


def test_the_plan_tells_what_goes_and_what_is_left(model, images):
    plan = plan_blocks(model, 1, images)
    pruned = plan.apply()
    assert list(plan.scores) == sorted(plan.scores)
    assert plan.parameters == (model.count_params(), pruned.count_params())
    assert plan.macs[1] < plan.macs[0]
    assert f"removed  {plan.scores[0]:.4g}  {plan.blocks[0].name}" in str(plan)


def test_angular_distance_is_the_angle_between_input_and_output(model, images):
    block = find_blocks(model)[0]
    maps = keras.Model(model.input, [block.entry, block.end.outputs])
    before, after = (m.numpy().reshape(20, -1) for m in maps(images))
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1)
    angles = np.arccos(cosine / np.linalg.norm(after, axis=1)) / np.pi
    got = angular_distances(model, [block], images)
    np.testing.assert_allclose(got, [angles.mean()], rtol=1e-3)


def test_blocks_are_ranked_by_the_loss_without_them(model, images):
    blocks = find_blocks(model)
    seen = []

    def loss(smaller):
        seen.append({layer.name for layer in smaller.layers})
        return 3 - len(seen)

    losses = losses_without(model, blocks, images, loss)
    assert losses.tolist() == [2, 1, 0]
    for block, names in zip(blocks, seen, strict=True):
        assert block.name not in names and not names & set(block.layers)


@pytest.mark.parametrize(
    "count, message", [(0, "at least 1"), (9, "has 3 residual blocks.*count=9")]
)
def test_counts_that_make_no_sense_are_refused(count, message, model, images):
    with pytest.raises(ValueError, match=message):
        plan_blocks(model, count, images)


def test_unknown_blocks_are_refused(model):
    with pytest.raises(ValueError, match="blocks of this model are one, two.*three"):
        remove_blocks(model, ["three"])


def test_blocks_of_a_model_inside_the_model_are_found_and_removed(model, images):
    inputs = keras.Input((8, 8, 3))
    outer = keras.Model(inputs, layers.Dense(2, name="head")(model(inputs)))
    assert [b.name for b in find_blocks(outer)] == [b.name for b in find_blocks(model)]
    plan = plan_blocks(outer, 1, images)
    name = plan.blocks[0].name
    expected = outer.get_layer("head")(remove_blocks(model, [name])(images))
    np.testing.assert_allclose(plan.apply()(images), expected, atol=1e-5)
    assert plan.macs[1] < plan.macs[0]
    with pytest.raises(ValueError, match="blocks of this model are one, two"):
        remove_blocks(outer, ["nine"])
