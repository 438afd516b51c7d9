"""Layer rules and importances that a user adds from outside the package."""

import numpy as np
import pytest
import tf_keras as keras

from kdprune.models import build_model
from kdprune.prune import (
    IMPORTANCES,
    RuleResult,
    UnsupportedLayer,
    WeightAxes,
    plan_channels,
    prune_channels,
    register_importance,
    register_layer_rule,
)
from kdprune.prune.channels import rules

layers = keras.layers


@keras.saving.register_keras_serializable("tests_extensions")
class Scale(layers.Layer):
    """A factor for each channel."""

    def build(self, shape):
        self.factor = self.add_weight("factor", (shape[-1],), initializer="ones")

    def call(self, inputs):
        return inputs * self.factor


@keras.saving.register_keras_serializable("tests_extensions")
class Fire(layers.Layer):
    """Two convolutions of one input side by side, their channels joined."""

    def __init__(self, filters, **arguments):
        super().__init__(**arguments)
        self.filters = filters

    def build(self, shape):
        kernel = shape[-1], self.filters
        self.one = self.add_weight("one", (1, 1, *kernel))
        self.other = self.add_weight("other", (1, 1, *kernel))

    def call(self, inputs):
        return keras.backend.concatenate(
            [keras.backend.conv2d(inputs, kernel) for kernel in (self.one, self.other)]
        )

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("tests_extensions")
class SameConv2D(layers.Conv2D):
    """A convolution that always pads."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **{**named, "padding": "same"})


class Deeper(SameConv2D):
    pass


def scale_rule(call):
    (channels,) = call.inputs
    return RuleResult(channels, [WeightAxes(call.layer.factor, {0: channels})])


def fire_rule(call):
    (inputs,) = call.inputs
    if call.layer.filters > 100:
        raise UnsupportedLayer("it is too wide")
    # Both convolutions are built from one setting: their filters go in pairs.
    output = call.ids.fresh(call.layer.filters)
    kernels = [
        WeightAxes(kernel, {2: inputs, 3: output}, makes=3, uses=2)
        for kernel in (call.layer.one, call.layer.other)
    ]
    return RuleResult(
        np.concatenate([output, output]),
        kernels,
        lambda kept: {"filters": int(kept(output).sum())},
    )


@pytest.fixture(autouse=True)
def registries():
    """What tests register is forgotten after them."""
    known = dict(rules.LAYER_RULES), set(rules._INHERITED), dict(IMPORTANCES)
    yield
    tables = rules.LAYER_RULES, rules._INHERITED, IMPORTANCES
    for table, before in zip(tables, known, strict=True):
        table.clear()
        table.update(before)


def between(*stack):
    """Two convolutions with layers between them, then a classifier."""
    image = x = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first")(x)
    for layer in stack:
        x = layer(x)
    x = layers.Conv2D(8, 3, name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3, name="scores")(x))


def kernels_of(model):
    return {layer.name: layer.get_weights() for layer in model.layers}


def test_an_unknown_layer_keeps_channels_until_it_has_a_rule(check_invariant):
    plan = plan_channels(between(Scale(name="scale")), 0.5, round_to=1)
    assert "channels are not followed through a Scale" in plan.kept_layers["first"]
    assert register_layer_rule(Scale, scale_rule) is scale_rule
    plan, pruned = check_invariant(between(Scale(name="scale")))
    assert not {"first", "scale"} & set(plan.kept_layers)
    assert pruned.get_layer("scale").factor.shape[0] < 8


def test_a_layer_that_makes_channels_of_its_own_is_pruned():
    register_layer_rule(Fire)(fire_rule)
    keras.utils.set_random_seed(0)
    model = between(Fire(6, name="fire"), Scale(name="unknown"), layers.ReLU())
    plan = plan_channels(model, 0.5, "l1", round_to=1)
    assert plan.kept_layers["fire"].startswith("coupled with unknown: ")
    register_layer_rule(Scale, scale_rule)
    plan = plan_channels(model, 0.5, "l1", "local", round_to=1)
    before = {group.name: (group.before, group.after) for group in plan.groups}
    assert before == {"first": (8, 4), "fire": (6, 3), "second": (8, 4)}
    pruned = plan.apply()
    fire = pruned.get_layer("fire")
    assert fire.filters == 3 and fire.one.shape == (1, 1, 4, 3)
    # The filters that stay are those of the largest norm over both convolutions.
    old = model.get_layer("fire")
    sizes = [np.abs(k.numpy()).sum(axis=(0, 1, 2)) for k in (old.one, old.other)]
    scores = np.mean([size / size.mean() for size in sizes], axis=0)
    kept = np.sort(np.argsort(scores)[3:])
    rows = np.argsort(np.abs(model.get_layer("first").kernel).sum(axis=(0, 1, 2)))[4:]
    np.testing.assert_array_equal(
        fire.other.numpy()[0, 0], old.other.numpy()[0, 0][np.sort(rows)][:, kept]
    )


def test_a_rule_says_why_channels_must_stay():
    register_layer_rule(Fire, fire_rule)
    plan = plan_channels(between(Fire(101, name="fire")), 0.5, round_to=1)
    assert plan.kept_layers["first"] == "coupled with fire: it is too wide"


def test_a_subclass_is_followed_like_a_class_that_is_named(check_invariant):
    model = between(SameConv2D(8, 3, name="same"), Deeper(8, 3, name="deeper"))
    assert "a SameConv2D" in plan_channels(model, 0.5, round_to=1).kept_layers["first"]
    register_layer_rule(SameConv2D, layers.Conv2D)
    plan, _ = check_invariant(
        between(SameConv2D(8, 3, name="same"), layers.BatchNormalization())
    )
    assert "same" in [group.name for group in plan.groups]
    # Not a subclass of it, unless it is said.
    assert "a Deeper" in plan_channels(model, 0.5, round_to=1).kept_layers["same"]
    register_layer_rule(SameConv2D, layers.Conv2D, subclasses=True)
    assert "deeper" in [
        group.name for group in plan_channels(model, 0.5, round_to=1).groups
    ]
    # Of a class and its base, the class's own rule counts.
    register_layer_rule(Deeper, scale_rule)
    with pytest.raises(AttributeError, match="factor"):
        plan_channels(model, 0.5, round_to=1)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda call: call.inputs, "'scale' .Scale. must return a RuleResult.*list"),
        (
            lambda call: RuleResult(call.inputs[0][:3]),
            "each of the output's 8 channels. Received: 3",
        ),
        (
            lambda call: RuleResult(
                call.inputs[0], [WeightAxes(call.layer.factor, {0: call.ids.fresh(2)})]
            ),
            r"Received: 2 for axis 0 of the shape \(8,\)",
        ),
        (
            lambda call: RuleResult(
                call.inputs[0], [WeightAxes(call.layer.factor, {1: call.inputs[0]})]
            ),
            r"Received: 8 for axis 1 of the shape \(8,\)",
        ),
    ],
)
def test_a_rule_that_does_not_fit_its_layer_is_told(rule, message):
    register_layer_rule(Scale, rule)
    with pytest.raises(ValueError, match=message):
        plan_channels(between(Scale(name="scale")), 0.5)


def test_rules_are_for_layer_classes_and_replaced_on_request_only():
    with pytest.raises(ValueError, match="subclass of .*Layer. Received: 'Scale'"):
        register_layer_rule("Scale", scale_rule)
    with pytest.raises(ValueError, match="class that has a rule.*Scale"):
        register_layer_rule(Fire, Scale)
    with pytest.raises(ValueError, match="function of a LayerCall. Received: 3"):
        register_layer_rule(Fire, 3)
    with pytest.raises(ValueError, match="Conv2D has a rule already.*replace=True"):
        register_layer_rule(layers.Conv2D, scale_rule)
    register_layer_rule(layers.Conv2D, scale_rule, replace=True)
    assert rules.LAYER_RULES[layers.Conv2D] is scale_rule


def last_first(group, statistics):
    """Keeps the last channels; looks at the model through the statistics."""
    assert statistics.graph.model.name and statistics.data is None
    return np.arange(len(group.roots))


def test_an_importance_is_known_by_its_name_once_registered():
    model = build_model("resnet8")
    with pytest.raises(ValueError, match="Received: 'last_first'"):
        plan_channels(model, 0.5, "last_first")
    assert register_importance("last_first", last_first) is last_first
    by_name = prune_channels(model, 0.5, importance="last_first", scope="local")
    directly = prune_channels(model, 0.5, importance=last_first, scope="local")
    old, new = kernels_of(model)["stem_conv"][0], kernels_of(by_name)["stem_conv"][0]
    np.testing.assert_array_equal(new, old[..., 8:])
    for one, other in zip(by_name.weights, directly.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_misspelt_importance_names_the_nearest():
    with pytest.raises(ValueError, match="Received: 'tailor'; did you mean 'taylor'"):
        plan_channels(build_model("resnet8"), 0.5, "tailor")


def test_importances_are_registered_under_new_names():
    with pytest.raises(ValueError, match="importance 'l1' already"):
        register_importance("l1", last_first)
    with pytest.raises(ValueError, match="lower-case"):
        register_importance("Mine!", last_first)
    register_importance("l1", replace=True)(last_first)
    assert IMPORTANCES["l1"] is last_first


def test_what_an_importance_gives_is_checked():
    model = build_model("resnet8")
    with pytest.raises(ValueError, match="must give 16 numbers for group .stem_conv'"):
        plan_channels(model, 0.5, lambda group, statistics: np.ones(3))
