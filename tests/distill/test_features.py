"""Feature losses against their formulas, written out in NumPy and float64."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.distill.feature_extractor import (
    feature_extractor,
    match_feature_layers,
)
from kdprune.distill.features import (
    FEATURE_LOSSES,
    AttentionLoss,
    ContrastiveLoss,
    FeatureLoss,
    HintLoss,
    RelationalLoss,
    attention_loss,
    hint_loss,
    info_nce_loss,
    relational_loss,
)
from kdprune.prune import prune_magnitude
from kdprune.quantize import quantize_model

TEACHER = [(None, 8, 8, 6), (None, 4, 4, 12)]
STUDENT = [(None, 8, 8, 3), (None, 4, 4, 12)]
KINDS = pytest.mark.parametrize("kind", list(FEATURE_LOSSES))


def features(seed, shape=(5, 4, 4, 3)):
    """Values as after a ReLU: positive, or zero."""
    values = np.random.default_rng(seed).normal(0.3, 1, shape)
    return values.clip(0).astype(np.float32)


def embeddings(seed, shape=(6, 4)):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def maps(seed, shapes, batch=5):
    return [features(seed + i, (batch, *s[1:])) for i, s in enumerate(shapes)]


def built(kind, teacher=TEACHER, student=STUDENT):
    keras.utils.set_random_seed(0)
    return FEATURE_LOSSES[kind](teacher, student)


def pooled(values, size):
    """Every cell: the mean of an area, each of its parts weighed by what it covers."""
    step = [values.shape[1] / size[0], values.shape[2] / size[1]]
    result = np.zeros((len(values), *size, values.shape[-1]))
    for out in np.ndindex(*size):
        low = [place * s for place, s in zip(out, step, strict=True)]
        for cell in np.ndindex(values.shape[1:3]):
            covers = [
                max(0, min(start + s, at + 1) - max(start, at))
                for start, s, at in zip(low, step, cell, strict=True)
            ]
            share = covers[0] * covers[1]
            result[:, out[0], out[1]] += share * values[:, cell[0], cell[1]]
    return result / (step[0] * step[1])


def expected_hint(teacher, student):
    size = np.minimum(teacher.shape[1:3], student.shape[1:3])
    difference = pooled(teacher, size) - pooled(student, size)
    return (difference**2).mean(axis=(1, 2, 3))


def expected_attention(teacher, student):
    def attention(values, size):
        energy = (values.astype(np.float64) ** 2).mean(axis=-1, keepdims=True)
        vectors = pooled(energy, size).reshape(len(values), -1)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    size = np.minimum(teacher.shape[1:3], student.shape[1:3])
    return ((attention(teacher, size) - attention(student, size)) ** 2).sum(axis=1)


def expected_relational(teacher, student, distance_weight=1.0, angle_weight=2.0):
    def huber(error):
        return error**2 / 2 if abs(error) <= 1 else abs(error) - 0.5

    def distances(values):
        found = [np.linalg.norm(values[i] - values[j]) for i, j in pairs]
        return np.array(found) / np.mean(found)

    def cosine(values, i, j, k):
        one, two = values[i] - values[j], values[k] - values[j]
        return one @ two / (np.linalg.norm(one) * np.linalg.norm(two))

    pairs = list(itertools.permutations(range(len(student)), 2))
    triples = list(itertools.permutations(range(len(student)), 3))
    far = [huber(e) for e in distances(teacher) - distances(student)]
    turned = [huber(cosine(teacher, *t) - cosine(student, *t)) for t in triples]
    return distance_weight * np.mean(far) + angle_weight * np.mean(turned)


def expected_info_nce(teacher, student, temperature=0.1):
    teacher, student = (
        values / np.linalg.norm(values, axis=1, keepdims=True)
        for values in (teacher.astype(np.float64), student.astype(np.float64))
    )
    scores = np.exp(student @ teacher.T / temperature)
    return -np.log(np.diag(scores) / scores.sum(axis=1))


@pytest.mark.parametrize("other", [(4, 4), (8, 8), (8, 4), (2, 2), (6, 3), (7, 5)])
@pytest.mark.parametrize(
    ("loss", "formula"),
    [(hint_loss, expected_hint), (attention_loss, expected_attention)],
)
def test_maps_are_compared_at_the_smaller_size(loss, formula, other):
    teacher, student = features(0), features(1, (5, *other, 3))
    result = loss(teacher, student)
    assert result.shape == (5,) and result.dtype == tf.float32
    np.testing.assert_allclose(result, formula(teacher, student), rtol=2e-5)
    np.testing.assert_allclose(loss(student, teacher), result, rtol=1e-6)


def test_attention_takes_maps_of_any_channels_and_scales():
    teacher, student = features(0, (5, 4, 4, 7)), features(1)
    expected = expected_attention(teacher, student)
    np.testing.assert_allclose(attention_loss(teacher, student), expected, rtol=1e-5)
    for scale in (1e-4, 1e4):
        scaled = attention_loss(teacher, scale * student)
        np.testing.assert_allclose(scaled, expected, rtol=1e-4)


def test_attention_of_places_that_never_meet_is_two():
    teacher, student = np.zeros((2, 1, 2, 2, 1), np.float32)
    teacher[0, 0, 0], student[0, 1, 1] = 3.0, 0.5
    np.testing.assert_allclose(attention_loss(teacher, student), [2.0])


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_relations_are_those_of_all_pairs_and_triples(weights):
    teacher, student = embeddings(0), embeddings(1, (6, 9))
    result = relational_loss(teacher, student, *weights)
    expected = expected_relational(teacher, student, *weights)
    assert result.shape == (6,) and result.dtype == tf.float32
    np.testing.assert_allclose(result, np.full(6, expected), rtol=1e-5)


def test_relations_far_apart_are_compared_linearly():
    # One example far off: relative distances differ by more than 1.
    teacher, student = embeddings(0), embeddings(1)
    student[0] += 1000
    expected = expected_relational(teacher, student, 1.0, 0.0)
    result = relational_loss(teacher, student, 1.0, 0.0)
    np.testing.assert_allclose(result, np.full(6, expected), rtol=1e-4)


def test_relations_do_not_change_with_scale_rotation_or_place():
    teacher = embeddings(0)
    rotation, _ = np.linalg.qr(embeddings(2, (4, 4)))
    moved = (5 * teacher @ rotation + 3).astype(np.float32)
    np.testing.assert_allclose(relational_loss(teacher, moved), 0, atol=1e-6)
    assert relational_loss(teacher, embeddings(1))[0] > 0.01


def test_relations_of_few_examples_are_what_there_is_of_them():
    one, two = embeddings(0, (1, 4)), embeddings(1, (1, 4))
    np.testing.assert_array_equal(relational_loss(one, two), [0.0])
    # The one distance of two examples is the mean distance.
    one, two = embeddings(0, (2, 4)), embeddings(1, (2, 4))
    np.testing.assert_allclose(relational_loss(one, two), [0.0, 0.0], atol=1e-7)


def test_equal_examples_have_no_angle():
    teacher, student = embeddings(0, (3, 4)), embeddings(1, (3, 4))
    student[1] = student[0]
    # Distances of pairs 01, 02, 12; with 0 and 1 one, only the angle at 2 is left.
    far = [np.linalg.norm(teacher[i] - teacher[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    errors = np.array(far) / np.mean(far) - [0, 1.5, 1.5]
    edge = [teacher[[1, 2, 0][j]] - teacher[j] for j in range(3)]
    edge = [e / np.linalg.norm(e) for e in edge]
    cosines = np.array([-edge[j] @ edge[j - 1] for j in range(3)])
    expected = (errors**2 / 2).mean() + 2 * ((cosines - [0, 0, 1]) ** 2 / 2).mean()
    np.testing.assert_allclose(relational_loss(teacher, student)[0], expected, 1e-5)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_info_nce_is_the_cross_entropy_of_the_own_image(temperature):
    teacher, student = embeddings(0), embeddings(1)
    result = info_nce_loss(teacher, student, temperature)
    expected = expected_info_nce(teacher, student, temperature)
    assert result.shape == (6,) and result.dtype == tf.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_info_nce_of_the_same_for_all_is_chance():
    same = np.ones((6, 4), np.float32)
    np.testing.assert_allclose(info_nce_loss(same, embeddings(1)), np.log(6), 1e-5)
    np.testing.assert_array_equal(info_nce_loss(same[:1], same[:1]), [0.0])


def test_info_nce_needs_a_positive_temperature():
    with pytest.raises(ValueError, match="above 0. Received: 0"):
        info_nce_loss(embeddings(0), embeddings(1), 0)
    with pytest.raises(ValueError, match="above 0. Received: -1"):
        ContrastiveLoss(TEACHER, STUDENT, temperature=-1)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ((0, 0), "one of distance_weight, angle_weight must be above 0"),
        ((-1.0, 2.0), "distance_weight must be .* Received: -1.0"),
        ((1.0, np.nan), "angle_weight must be .* Received: nan"),
        ((np.inf, 1.0), "distance_weight must be .* Received: inf"),
    ],
)
def test_weights_of_relations_that_are_none_are_refused(weights, says):
    with pytest.raises(ValueError, match=says):
        relational_loss(embeddings(0), embeddings(1), *weights)
    with pytest.raises(ValueError, match=says):
        RelationalLoss(TEACHER, STUDENT, *weights)


def test_hints_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"project .* teacher \(5, 4, 4, 7\)"):
        hint_loss(features(0, (5, 4, 4, 7)), features(1))


@KINDS
def test_a_layer_gives_its_formula_averaged_over_the_pairs(kind):
    loss = built(kind)
    teacher, student = maps(0, TEACHER), maps(10, STUDENT)
    if kind == "hint":
        first, second = loss.projectors
        kernel, bias = (weight.numpy() for weight in first.weights)
        assert kernel.shape == (1, 1, 3, 6) and not second.weights
        projected = [student[0] @ kernel[0, 0] + bias, student[1]]
        pairs = zip(teacher, projected, strict=True)
        expected = [expected_hint(*pair) for pair in pairs]
    elif kind == "attention":
        pairs = zip(teacher, student, strict=True)
        expected = [expected_attention(*pair) for pair in pairs]
    else:
        last = teacher[1].mean(axis=(1, 2)), student[1].mean(axis=(1, 2))
        if kind == "relational":
            expected = [np.full(5, expected_relational(*last))]
        else:
            heads = loss.teacher_head.get_weights(), loss.student_head.get_weights()
            heads = zip(last, heads, strict=True)
            embedded = [x @ kernel + bias for x, (kernel, bias) in heads]
            assert embedded[0].shape == (5, 128)
            expected = [expected_info_nce(*embedded)]
    result = loss(teacher, student)
    assert result.shape == (5,) and result.dtype == tf.float32
    np.testing.assert_allclose(result, np.mean(expected, axis=0), rtol=2e-5)


def test_a_layer_passes_its_arguments_on():
    teacher, student = maps(0, TEACHER), maps(10, STUDENT)
    last = teacher[1].mean(axis=(1, 2)), student[1].mean(axis=(1, 2))
    loss = RelationalLoss(TEACHER, STUDENT, distance_weight=3.0, angle_weight=0.5)
    expected = relational_loss(*last, 3.0, 0.5)
    np.testing.assert_allclose(loss(teacher, student), expected, rtol=1e-5)
    loss = ContrastiveLoss(TEACHER, STUDENT, temperature=0.5)
    embedded = loss.teacher_head(last[0]), loss.student_head(last[1])
    expected = info_nce_loss(*embedded, 0.5)
    np.testing.assert_allclose(loss(teacher, student), expected, rtol=1e-4)


@KINDS
def test_a_layer_is_computed_in_float32_from_half_precision(kind):
    loss = built(kind)
    teacher, student = (
        [tf.cast(x, tf.bfloat16) for x in maps(seed, shapes)]
        for seed, shapes in ((0, TEACHER), (10, STUDENT))
    )
    with tf.GradientTape() as tape:
        tape.watch(student)
        result = loss(teacher, student)
    assert result.dtype == tf.float32
    exact = loss(*([tf.cast(x, tf.float32) for x in xs] for xs in (teacher, student)))
    np.testing.assert_array_equal(result, exact)
    gradients = [g for g in tape.gradient(result, student) if g is not None]
    assert all(gradient.dtype == tf.bfloat16 for gradient in gradients)


def test_weights_are_float32_under_a_mixed_policy():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        losses = [built(kind) for kind in FEATURE_LOSSES]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for loss in losses:
        assert loss(maps(0, TEACHER), maps(10, STUDENT)).dtype == tf.float32
        assert {weight.dtype for weight in loss.weights} <= {tf.float32}


@KINDS
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dead", ["neither", "student", "teacher", "both"])
def test_loss_and_gradients_stay_finite(kind, batch, dead):
    loss = built(kind)
    teacher, student = maps(0, TEACHER, batch), maps(10, STUDENT, batch)
    if dead in ("teacher", "both"):
        teacher = [np.zeros_like(x) for x in teacher]
    if dead in ("student", "both"):
        student = [np.zeros_like(x) for x in student]
    student = [tf.Variable(x) for x in student]
    with tf.GradientTape() as tape:
        result = loss(teacher, student)
    wanted = [*student, *loss.trainable_variables]
    gradients = [g for g in tape.gradient(result, wanted) if g is not None]
    assert gradients and all(np.abs(g).max() < 1e3 for g in gradients)
    assert np.isfinite(result).all() and result.shape == (batch,)
    if dead == "both" and kind != "contrastive":
        np.testing.assert_array_equal(result, 0)


@KINDS
def test_gradients_reach_the_student_and_what_is_learned_but_not_the_teacher(kind):
    loss = built(kind)
    teacher = [tf.Variable(x) for x in maps(0, TEACHER)]
    student = [tf.Variable(x) for x in maps(10, STUDENT)]
    with tf.GradientTape(persistent=True) as tape:
        result = loss(teacher, student)
    assert tape.gradient(result, teacher) == [None, None]
    first, second = tape.gradient(result, student)
    assert np.abs(second).max() > 0
    # Relations between examples are read off the last maps.
    assert (first is None) == (kind in ("relational", "contrastive"))
    for gradient in tape.gradient(result, loss.trainable_variables):
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("hint", ["projector_0/kernel", "projector_0/bias"]),
        ("attention", []),
        ("relational", []),
        (
            "contrastive",
            [
                f"{w}_head/{v}"
                for w in ("teacher", "student")
                for v in ("kernel", "bias")
            ],
        ),
    ],
)
def test_what_is_learned_exists_before_the_first_call(kind, names):
    loss = built(kind)
    assert [w.name for w in loss.trainable_variables] == [f"{name}:0" for name in names]
    before = loss.get_weights()
    loss(maps(0, TEACHER), maps(10, STUDENT))
    for one, two in zip(before, loss.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_projector_learns_a_linear_teacher():
    student = maps(10, STUDENT[:1], batch=32)
    mixing = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    teacher = [student[0] @ mixing + 1]
    loss = built("hint", TEACHER[:1], STUDENT[:1])
    optimizer = keras.optimizers.Adam(0.05)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(teacher, student))
        optimizer.minimize(value, loss.trainable_variables, tape=tape)
        return value

    for _ in range(200):
        value = step()
    assert float(value) < 1e-4
    np.testing.assert_allclose(loss.weights[0][0, 0], mixing, atol=0.02)


@KINDS
def test_a_layer_runs_in_a_graph_of_unknown_batch(kind):
    loss = built(kind)
    signature = [[tf.TensorSpec(s) for s in shapes] for shapes in (TEACHER, STUDENT)]
    traced = tf.function(loss, input_signature=signature)
    for batch in (1, 5):
        teacher, student = maps(0, TEACHER, batch), maps(10, STUDENT, batch)
        expected = loss(teacher, student)
        np.testing.assert_allclose(traced(teacher, student), expected, 1e-4, 1e-6)


def network(width):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(width, 3, 2, padding="same", use_bias=False)(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))


def pruned(model):
    wrapped = prune_magnitude(model, 0.3, schedule="constant", end=1)
    for layer in wrapped.layers:  # As the callback does before the first step.
        if hasattr(layer, "pruning_step"):
            layer.pruning_step.assign(1)
    return wrapped


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        *((kind, lambda model: model) for kind in FEATURE_LOSSES),
        ("hint", pruned),
        ("hint", quantize_model),
    ],
)
def test_training_by_feature_maps_lowers_the_loss(kind, wrap):
    keras.utils.set_random_seed(0)
    models = network(6), wrap(network(3))
    images = np.random.default_rng(0).random((16, 8, 8, 3), np.float32)
    names = match_feature_layers(*models)
    teacher, student = map(feature_extractor, models, names)
    shapes = [[x.shape for x in model.outputs[1:]] for model in (teacher, student)]
    loss = FEATURE_LOSSES[kind](*shapes)
    optimizer, values = keras.optimizers.Adam(0.01), []
    variables = [*student.trainable_variables, *loss.trainable_variables]
    for _ in range(8):
        with tf.GradientTape() as tape:
            taught = loss(teacher(images)[1:], student(images, training=True)[1:])
            values.append(tf.reduce_mean(taught))
        gradients = zip(tape.gradient(values[-1], variables), variables, strict=True)
        optimizer.apply_gradients((g, v) for g, v in gradients if g is not None)
    assert values[-1] < 0.95 * values[0]


@KINDS
@pytest.mark.parametrize(
    ("teacher", "student", "says"),
    [
        (TEACHER, STUDENT[:1], "Received: 2 of the teacher, 1 of the student"),
        ([], [], "Received: 0 of the teacher, 0 of the student"),
        ([(None, 12)], [(None, 12)], r"Received: shape \(None, 12\)"),
        ([(None, None, None, 6)], STUDENT[:1], "model for one image size"),
    ],
)
def test_shapes_that_can_not_be_compared_are_refused(kind, teacher, student, says):
    with pytest.raises(ValueError, match=says):
        FEATURE_LOSSES[kind](teacher, student)


def test_attention_to_a_single_position_is_refused():
    with pytest.raises(ValueError, match=r"one position. .*\(None, 1, 1, 12\)"):
        AttentionLoss([(None, 4, 4, 6)], [(None, 1, 1, 12)])


@KINDS
def test_more_or_fewer_maps_than_shapes_are_refused(kind):
    with pytest.raises(ValueError, match="shorter"):
        built(kind)(maps(0, TEACHER), maps(10, STUDENT)[:1])


def test_the_losses_go_by_these_names():
    assert FEATURE_LOSSES == {
        "hint": HintLoss,
        "attention": AttentionLoss,
        "relational": RelationalLoss,
        "contrastive": ContrastiveLoss,
    }
    assert all(issubclass(loss, FeatureLoss) for loss in FEATURE_LOSSES.values())


@pytest.mark.parametrize(
    ("loss", "teacher", "student", "says"),
    [
        (hint_loss, (2, 4), (2, 4), r"\(batch, height, width, channels\).*\(2, 4\)"),
        (attention_loss, (2, 4, 4), (2, 4, 4), r"\(batch, height, width, channels\)"),
        (attention_loss, (2, 4, 4, 3), (3, 4, 4, 3), "of one batch"),
        (relational_loss, (2, 4, 4, 3), (2, 4, 4, 3), r"\(batch, width\)"),
        (relational_loss, (2, 4), (3, 4), "of one batch"),
        (info_nce_loss, (2,), (2,), r"\(batch, width\)"),
        (info_nce_loss, (2, 4), (2, 5), r"one shape \(batch, width\)"),
    ],
)
def test_features_of_another_rank_or_batch_are_refused(loss, teacher, student, says):
    with pytest.raises(ValueError, match=says) as error:
        loss(np.zeros(teacher, np.float32), np.zeros(student, np.float32))
    assert "\n" not in str(error.value)
