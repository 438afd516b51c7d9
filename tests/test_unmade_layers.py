"""A layer that can't be made again is named in one line by whatever rebuilds models."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune import intake, models, prune, quantize
from kdprune._graph import rebuild
from kdprune.intake.inline import inline
from kdprune.models.precision import cast_model

layers = keras.layers
IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


class NoConfig(layers.Layer):
    """Keras raises NotImplementedError when it is asked for its configuration."""

    def __init__(self, factor):
        super().__init__(name="odd")
        self.factor = factor

    def call(self, inputs):
        return self.factor * inputs


class HalfConfig(layers.Layer):
    """Its configuration lacks what `__init__` takes: Keras raises TypeError."""

    def __init__(self, factor, **settings):
        super().__init__(**settings)
        self.factor = factor

    def get_config(self):
        return super().get_config()

    def call(self, inputs):
        return self.factor * inputs


class Keyed(HalfConfig):
    """It reads what is not there: a KeyError of its own."""

    @classmethod
    def from_config(cls, config):
        return cls(config.pop("factor"), **config)


class Kernel(layers.Conv2D):
    """A convolution, which may be pruned and clustered itself."""

    def __init__(self, kernels, **settings):
        super().__init__(8, kernels, padding="same", **settings)

    def get_config(self):
        return {"name": self.name}


ODD = {
    "no config": lambda: NoConfig(tf.constant(2.0)),
    "half a config": lambda: HalfConfig(2.0, name="odd"),
    "a key missing": lambda: Keyed(2.0, name="odd"),
    "a kernel": lambda: Kernel(3, name="odd"),
    "wrapped": lambda: layers.TimeDistributed(HalfConfig(2.0), name="odd"),
}
USES = {
    "reset_weights": models.reset_weights,
    "cast_model": lambda model: cast_model(model, "mixed_bfloat16"),
    "inline": inline,
    "take_model": intake.take_model,
    "split_head": intake.split_head,
    "prune_magnitude": lambda model: prune.prune_magnitude(model, 0.5, end=9),
    "add_bn_l1": lambda model: prune.add_bn_l1(model, 1e-4),
    "equalize_channels": lambda model: quantize.equalize_channels(model, IMAGES),
    "cluster_weights": lambda model: quantize.cluster_weights(model, 4),
    "quantize_model": quantize.quantize_model,
    "rebuild": rebuild,
}


def network(odd, nested=False, size=8):
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    x = layers.BatchNormalization()(layers.Dropout(0.1)(x))
    if nested:
        features = keras.Input((8, 8, 8))
        x = keras.Model(features, odd(features), name="inside")(x)
    else:
        x = odd(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    return keras.Model(image, layers.Dense(4, "softmax")(x), name="net")


@pytest.mark.parametrize("use", USES)
def test_it_is_named_with_what_to_do(use):
    for name, make in ODD.items():
        with pytest.raises(ValueError, match="layer 'odd' ") as error:
            USES[use](network(make()))
        message = str(error.value)
        assert "\n" not in message and len(message) < 500, name
        if use != "quantize_model":  # Which takes none of these layers anyway.
            assert "cannot be made again from its configuration (" in message, name
            told = "register_keras_serializable" if name == "wrapped" else "get_config"
            assert told in message.rpartition("); ")[2], name


def test_no_use_of_it_is_made_where_nothing_is_made_again():
    """What is only read, scored or converted may have any layers."""
    for make in ODD.values():
        assert models.count_macs(network(make())) > 0


def test_a_model_of_any_size_is_made_again_to_count_its_operations():
    image = keras.Input((8, 8, 3))
    for make in ODD.values():
        model = network(make(), size=None)
        with pytest.raises(ValueError, match="layer 'odd' .* cannot be made again"):
            models.count_macs(keras.Model(image, model(image)))


def test_a_model_of_it_is_not_saved(tmp_path):
    for make in ODD.values():
        with pytest.raises(ValueError, match="'odd'") as error:
            models.save_model(network(make()), tmp_path / "model.keras")
        assert "\n" not in str(error.value)


class Scaled(layers.Layer):
    """A layer that is not registered, but can be made again."""

    def __init__(self, factor, **settings):
        super().__init__(**settings)
        self.factor = factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}

    def call(self, inputs):
        return self.factor * inputs


def test_weights_are_drawn_again_behind_layers_of_ones_own_in_models_inside():
    model = network(lambda features: Scaled(3.0, name="own")(features), nested=True)
    made = models.reset_weights(model)
    assert made.get_layer("inside").get_layer("own").factor == 3.0
    kernels = [one.get_layer(index=1).get_weights()[0] for one in (model, made)]
    assert (kernels[0] != kernels[1]).any()
