"""What each group can spare, as a table."""

import json

import numpy as np
import pytest
import tf_keras as keras

from kdprune.prune import plan_channels, sensitivity

layers = keras.layers


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, name="a", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(4, 3, name="b", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3, name="c")(x))


@pytest.fixture(scope="module")
def table(model):
    """Scored by width: `a` matters, `b` does not until it is cut in half."""

    def score(candidate):
        a, b = (candidate.get_layer(name).filters for name in "ab")
        assert a == 8 or np.ptp(candidate.get_layer("norm").moving_mean) > 0
        return a / 10 + (b > 2) / 20

    images = np.random.default_rng(0).uniform(size=(16, 6, 6, 3)).astype(np.float32)
    return sensitivity(model, [0.5, 0.25, 0.1], score, round_to=2, data=images)


def test_the_table_holds_a_score_for_each_group_and_ratio(table):
    found = json.loads(json.dumps(table.as_dict()))
    assert found.pop("scores") == [
        pytest.approx([0.85, 0.65, 0.45]),
        pytest.approx([0.85, 0.85, 0.8]),
    ]
    assert found == {
        "ratios": [0.1, 0.25, 0.5],
        "whole": pytest.approx(0.85),
        "groups": ["a", "b"],
        "layers": [["a"], ["b"]],
        "channels": [8, 4],
        "left": [[8, 6, 4], [4, 4, 2]],
    }


def test_it_is_printed_as_a_table(table):
    assert str(table).splitlines() == [
        "removed     10%     25%     50%",
        "a (8)    0.8500  0.6500  0.4500",
        "b (4)    0.8500  0.8500  0.8000",
        "the whole model: 0.8500",
    ]


def test_fragile_groups_are_left_out_of_a_plan(model, table):
    assert table.fragile(0.01) == ()
    by_size = sensitivity(model, [0.5], lambda m: m.count_params(), round_to=2)
    lost = {
        group.name: by_size.whole - group.scores[0.5][1] for group in by_size.groups
    }
    assert by_size.fragile(0) == ("a", "b")
    assert by_size.fragile(lost["b"]) == ("a",)
    plan = plan_channels(model, 0.3, round_to=2, ignore=by_size.fragile(lost["b"]))
    assert [group.name for group in plan.groups] == ["b"]


def test_ratios_outside_zero_and_one_are_refused(model):
    for ratios in ([], [0.5, 1.0]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            sensitivity(model, ratios, lambda m: 0.0)
