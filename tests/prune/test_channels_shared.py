"""Channel pruning where one layer is in several places: groups, nested models."""

import numpy as np
import tf_keras as keras

from kdprune.prune import IMPORTANCES, plan_channels, prune_channels, sensitivity

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Layer):
    """A layer of one's own, with a weight, that is not followed."""

    def build(self, shape):
        self.factor = self.add_weight("factor", (shape[-1],), initializer="ones")

    def call(self, inputs):
        return 2 * self.factor * inputs


def one_maker_of_two_groups():
    """The channels of `x` meet those of `a` in one half, those of `b` in the other."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, name="x")(inputs)
    a, b = (layers.Conv2D(4, 1, name=name)(x) for name in "ab")
    x = layers.Add()([x, layers.Concatenate()([a, b])])
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


def test_groups_of_one_layer_have_names_of_their_own():
    model = one_maker_of_two_groups()
    plan = plan_channels(model, 0.5, round_to=1)
    assert [group.name for group in plan.groups] == ["x", "x#2"]
    table = sensitivity(
        model, [0.5], lambda smaller: smaller.count_params(), round_to=1
    )
    weighed = plan_channels(model, 0.25, round_to=1, sensitivity=table)
    assert weighed.drop > 0
    random = IMPORTANCES["random"]
    drawn = []
    plan_channels(
        model,
        0.5,
        round_to=1,
        importance=lambda g, e: drawn.append(random(g)) or random(g),
    )
    assert not np.allclose(*drawn)


def test_a_layer_shared_with_a_nested_model_stays_one_layer():
    inputs = keras.Input((8, 8, 4))
    shared = Doubled(name="shared")
    inner_input = keras.Input((8, 8, 4))
    inner = keras.Model(inner_input, shared(inner_input), name="inner")
    x = layers.Conv2D(8, 3, name="conv")(inner(shared(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    plan = plan_channels(model, 0.5, round_to=1)
    smaller = plan.apply()
    assert smaller.get_layer("shared") is smaller.get_layer("inner").get_layer("shared")
    assert smaller.count_params() == plan.parameters[1]
    smaller.get_layer("shared").factor.assign(np.full(4, 3.0))
    images = np.ones((1, 8, 8, 4), np.float32)
    np.testing.assert_allclose(smaller.get_layer("inner")(images), 6 * images)


def test_random_channels_differ_by_seed():
    model = one_maker_of_two_groups()
    kept = [
        prune_channels(
            model,
            0.5,
            round_to=1,
            importance=lambda g, e, seed=seed: IMPORTANCES["random"](g, seed=seed),
        ).get_weights()[0]
        for seed in (1, 2)
    ]
    assert kept[0].shape != kept[1].shape or not np.allclose(*kept)
