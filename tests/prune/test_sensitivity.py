"""Per-group sensitivity: the table, and plans that go by it."""

import itertools
import json

import numpy as np
import pytest
import tf_keras as keras

from kdprune.models import count_macs
from kdprune.prune import Sensitivity, plan_channels, prune_channels, sensitivity

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
    assert Sensitivity.from_dict(json.loads(json.dumps(table.as_dict()))) == table


def test_groups_are_cut_one_at_a_time_and_each_width_once(model):
    seen = []

    def score(candidate):
        seen.append(tuple(candidate.get_layer(name).filters for name in "ab"))
        return len(seen)

    found = sensitivity(model, (0.1, 0.5, 0.6), score, round_to=4)
    assert seen == [(8, 4), (4, 4)]  # The rest rounds to these.
    assert found.groups[0].scores == {0.1: (8, 1), 0.5: (4, 2), 0.6: (4, 2)}
    assert found.groups[1].scores == {0.1: (4, 1), 0.5: (4, 1), 0.6: (4, 1)}


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


@pytest.fixture(scope="module")
def chain():
    """Three convolutions of like cost and a classifier, on 10 by 10 pixels."""
    keras.utils.set_random_seed(1)
    image = keras.Input((10, 10, 8))
    x = image
    for name in "abc":
        x = layers.Conv2D(16, 3, padding="same", name=name)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, name="d")(x))


LEFT = (16, 12, 8, 4)
# What is lost with so many channels left: `a` is fragile, `c` is not at first.
LOST = {"a": (0, 0.3, 0.5, 0.7), "b": (0, 0.02, 0.1, 0.4), "c": (0, 0, 0.01, 0.6)}


def measured(**changes):
    content = {
        "ratios": [0.25, 0.5, 0.75],
        "whole": 0.9,
        "groups": list(LOST),
        "layers": [[name] for name in LOST],
        "channels": [16, 16, 16],
        "left": [list(LEFT[1:])] * 3,
        "scores": [[0.9 - lost for lost in row[1:]] for row in LOST.values()],
    }
    return Sensitivity.from_dict({**content, **changes})


def loss(widths):
    """What cutting to these widths loses in all, by a second formula."""
    return sum(
        np.interp(width, LEFT[::-1], LOST[name][::-1])
        for name, width in zip("abc", widths, strict=True)
    )


def macs(a, b, c):
    return 900 * (8 * a + a * b + b * c) + 5 * c


def widths_of(model):
    return [model.get_layer(name).filters for name in "abc"]


@pytest.mark.parametrize("share", [0.85, 0.65, 0.45])
def test_a_plan_meets_the_target_where_the_least_is_lost(chain, share):
    target = int(share * count_macs(chain))
    plan = plan_channels(chain, target_macs=target, round_to=2, sensitivity=measured())
    found = [group.after for group in plan.groups]
    assert macs(*found) == plan.macs[1] <= target
    assert plan.drop == pytest.approx(loss(found))
    assert f"{plan.drop:.4f} of the score expected to be lost" in str(plan)
    # Of all plans, the best loses no less than this one but for its last step.
    steps = range(4, 18, 2)
    plans = [p for p in itertools.product(steps, repeat=3) if macs(*p) <= target]
    assert plan.drop <= min(map(loss, plans)) + 0.05
    by_importance = plan_channels(chain, target_macs=target, round_to=2)
    assert plan.drop < loss([group.after for group in by_importance.groups])


def test_the_fragile_group_is_spared_and_importance_chooses_within_the_others(chain):
    smaller = prune_channels(chain, 0.25, round_to=2, sensitivity=measured())
    widths = widths_of(smaller)
    assert widths[0] == 16 and sum(widths) <= 36
    kernel = chain.get_layer("b").kernel.numpy()
    norms = np.linalg.norm(kernel.reshape(-1, 16), axis=0)
    kept = np.sort(np.argsort(norms)[16 - widths[1] :])
    np.testing.assert_array_equal(
        smaller.get_layer("b").kernel.numpy(), kernel[..., kept]
    )


def test_the_table_holds_through_all_steps(chain):
    target = int(0.5 * count_macs(chain))
    between = []
    smaller = prune_channels(
        chain,
        target_macs=target,
        round_to=2,
        steps=2,
        fine_tune=lambda model: between.append(widths_of(model)),
        sensitivity=measured(),
    )
    assert count_macs(smaller) <= target < macs(*between[0])
    once = prune_channels(chain, target_macs=target, round_to=2, sensitivity=measured())
    assert loss(widths_of(smaller)) == pytest.approx(loss(widths_of(once)), abs=0.05)


def test_bytes_are_measured_a_few_times_only(chain):
    sizes = []

    def measure_bytes(model):
        sizes.append(4 * model.count_params())
        return sizes[-1]

    whole = 4 * chain.count_params()
    smaller = prune_channels(
        chain,
        target_bytes=whole // 2,
        round_to=2,
        measure_bytes=measure_bytes,
        sensitivity=measured(),
    )
    assert 4 * smaller.count_params() <= whole // 2 and len(sizes) < 10


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (
            measured(groups=["a", "b", "x"]),
            {},
            "row for 16 channels of c. Rec.*no such",
        ),
        (measured(layers=[["a"], ["b"], ["c", "d"]]), {}, "a row of c, d;"),
        (measured(channels=[16, 24, 16]), {}, "of b. Received: a row of 24 channels"),
        (
            measured().as_dict(),
            {},
            "what kdprune.prune.sensitivity returns. Rec.* dict",
        ),
        (measured(), {"scope": "local"}, "scope='global'. Received: scope='local'"),
        (measured(), {"ratio": None, "threshold": 0.1}, "Received: .* a threshold"),
        (measured(), {"ratio": 0.9}, "most is 0.75; no group is pruned further than"),
    ],
)
def test_an_invalid_table_is_refused_in_a_line(chain, table, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        plan_channels(
            chain, **{"ratio": 0.3, "round_to": 2, "sensitivity": table, **settings}
        )
    assert "\n" not in str(error.value)
