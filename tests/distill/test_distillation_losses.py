"""The losses on logits against their formulas."""

import numpy as np
import pytest
import tensorflow as tf

from kdprune.distill import distillation_loss
from kdprune.distill.losses import (
    LOGIT_LOSSES,
    articles_loss,
    contrastive_loss,
    dist_loss,
    dkd_loss,
    soft_cross_entropy,
    standardized_loss,
)
from kdprune.training import cross_entropy

LABELS = np.random.default_rng(9).integers(0, 10, 32)


# The textbook forms, in float64, as direct as the papers write them.


def softmax(logits, temperature=1.0):
    scaled = np.asarray(logits, np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def divergence(p, q):
    return (p * np.log(p / q)).sum(axis=1)


def expected_kl(teacher, student, temperature):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * divergence(p, q)


def expected_cross_entropy(teacher, student, temperature):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return -(temperature**2) * (p * np.log(q)).sum(axis=1)


def expected_contrastive(teacher, student, temperature):
    p, q = softmax(teacher, temperature), softmax(softmax(student, temperature))
    return -(temperature**2) * (p * np.log(q)).sum(axis=1)


def expected_articles(teacher, student, temperature, weight=1.0):
    first = expected_cross_entropy(teacher, student, temperature)
    return first + weight * expected_contrastive(teacher, student, temperature)


def expected_dkd(teacher, student, temperature, alpha=1.0, beta=8.0):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    losses = []
    for i, label in enumerate(LABELS[: len(p)]):
        binary = [np.array([[x[i, label], 1 - x[i, label]]]) for x in (p, q)]
        others = [np.delete(x[i], label)[None] / (1 - x[i, label]) for x in (p, q)]
        losses.append(alpha * divergence(*binary) + beta * divergence(*others))
    return temperature**2 * np.concatenate(losses)


def expected_dist(teacher, student, temperature, beta=1.0, gamma=1.0):
    p, q = softmax(teacher, temperature), softmax(student, temperature)

    def distances(rows, other_rows):
        pairs = zip(rows, other_rows, strict=True)
        return np.array([1 - np.corrcoef(x, y)[0, 1] for x, y in pairs])

    return beta * distances(p, q) + gamma * distances(p.T, q.T).mean()


def expected_standardized(teacher, student, temperature):
    def scores(logits):
        logits = np.asarray(logits, np.float64)
        mean, deviation = logits.mean(1, keepdims=True), logits.std(1, keepdims=True)
        return (logits - mean) / deviation

    return expected_kl(scores(teacher), scores(student), temperature)


def dkd(teacher, student, temperature=4.0, **weights):
    return dkd_loss(teacher, student, LABELS[: len(teacher)], temperature, **weights)


LOSSES = {
    "kl": (distillation_loss, expected_kl),
    "cross_entropy": (soft_cross_entropy, expected_cross_entropy),
    "contrastive": (contrastive_loss, expected_contrastive),
    "articles": (articles_loss, expected_articles),
    "dkd": (dkd, expected_dkd),
    "dist": (dist_loss, expected_dist),
    "standardized": (standardized_loss, expected_standardized),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_temperature = pytest.mark.parametrize("temperature", [1.0, 4.0])


def random_logits(seed, scale=3.0, shape=(32, 10)):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, shape).astype(np.float32)


def value_and_gradient(loss, teacher, student, *arguments):
    student = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss(teacher, student, *arguments)
    return value, tape.gradient(value, student)


@each_loss
@each_temperature
def test_each_loss_is_its_formula(name, temperature):
    loss, expected = LOSSES[name]
    teacher, student = random_logits(0), random_logits(1)
    value = loss(teacher, student, temperature)
    assert value.shape == (32,) and value.dtype == tf.float32
    exact = expected(teacher, student, temperature)
    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=2e-6)


@each_loss
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    loss, expected = LOSSES[name]
    teacher = tf.cast(random_logits(0), dtype)
    student = tf.cast(random_logits(1), dtype)
    value, gradient = value_and_gradient(loss, teacher, student, 4.0)
    assert value.dtype == tf.float32 and gradient.dtype == dtype
    exact = expected(tf.cast(teacher, tf.float32), tf.cast(student, tf.float32), 4)
    np.testing.assert_allclose(value, exact, rtol=1e-4)


@each_loss
@each_temperature
def test_the_gradient_is_that_of_the_formula(name, temperature):
    loss, expected = LOSSES[name]
    teacher = random_logits(0, 2.0, (4, 5))
    student = random_logits(1, 2.0, (4, 5))
    if name == "dkd":  # its labels are of ten classes
        teacher, student = random_logits(0, 2.0)[:2], random_logits(1, 2.0)[:2]
    _, gradient = value_and_gradient(loss, teacher, student, temperature)
    slopes = np.zeros(student.shape)
    for place in np.ndindex(student.shape):
        moved = np.zeros(student.shape)
        moved[place] = 1e-5
        more = expected(teacher, student + moved, temperature).sum()
        less = expected(teacher, student - moved, temperature).sum()
        slopes[place] = (more - less) / 2e-5
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-4)


@each_loss
@each_temperature
@pytest.mark.parametrize("size", [1e4, 1e15])
def test_extreme_logits_stay_finite_in_loss_and_gradient(name, temperature, size):
    rows = np.zeros((4, 10), np.float32)
    rows[0, :2] = size, -size
    rows[1, :2] = -size, size
    rows[2] = size
    for teacher in (rows, rows[::-1], rows[[1, 0, 3, 2]]):
        for student in (rows, tf.cast(rows, tf.bfloat16)):
            value, gradient = value_and_gradient(
                LOSSES[name][0], teacher, student, temperature
            )
            assert np.isfinite(value).all()
            assert tf.reduce_all(tf.math.is_finite(gradient))


@each_loss
def test_students_that_know_nothing_yet_get_a_finite_gradient(name):
    teacher, student = random_logits(0), np.zeros((32, 10), np.float32)
    for batch in (32, 1):
        value, gradient = value_and_gradient(
            LOSSES[name][0], teacher[:batch], student[:batch], 1.0
        )
        assert np.isfinite(value).all() and np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 1e-3
        # And a teacher that knows nothing asks for nothing unheard of.
        value, gradient = value_and_gradient(
            LOSSES[name][0], student[:batch], teacher[:batch], 1.0
        )
        assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["kl", "dkd", "dist", "standardized"])
def test_a_divergence_is_zero_where_the_predictions_agree(name):
    loss, logits = LOSSES[name][0], random_logits(0)
    np.testing.assert_array_equal(loss(logits, logits, 4.0), 0)
    # A constant added to all of an image's logits changes no prediction.
    np.testing.assert_allclose(loss(logits, logits + 7, 4.0), 0, atol=2e-4)
    assert (loss(logits, random_logits(1), 4.0).numpy() > 0).all()


@each_loss
def test_a_schedule_may_move_the_temperature_of_a_compiled_step(name):
    loss = LOSSES[name][0]
    temperature = tf.Variable(1.0, dtype=tf.float64)

    @tf.function(input_signature=[tf.TensorSpec([32, None], tf.bfloat16)] * 2)
    def compiled(teacher, student):
        return loss(teacher, student, temperature)

    teacher = tf.cast(random_logits(0), tf.bfloat16)
    student = tf.cast(random_logits(1), tf.bfloat16)
    for value in (1.0, 4.0):
        temperature.assign(value)
        exact = loss(teacher, student, value)
        np.testing.assert_allclose(
            compiled(teacher, student), exact, rtol=1e-4, atol=1e-5
        )
    assert compiled.experimental_get_tracing_count() == 1


@each_loss
@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.inf])
def test_a_temperature_that_is_not_positive_is_refused(name, temperature):
    loss, logits = LOSSES[name][0], random_logits(0)
    message = f"finite number above 0. Received: {temperature:g}"
    for given in (temperature, tf.constant(float(temperature)), tf.Variable(0.0)):
        with pytest.raises(ValueError, match=message.rsplit(" ", 1)[0]):
            loss(logits, logits, given)
    with pytest.raises(ValueError, match=message):
        tf.function(lambda: loss(logits, logits, temperature))()


@each_loss
def test_a_temperature_of_several_values_is_refused(name):
    logits = random_logits(0)
    with pytest.raises(ValueError, match=r"one number. Received: shape \(2,\)"):
        LOSSES[name][0](logits, logits, tf.constant([1.0, 2.0]))


@each_loss
def test_logits_that_can_not_be_compared_are_refused(name):
    loss = LOSSES[name][0]
    with pytest.raises(ValueError, match=r"teacher \(32, 10\), student \(32, 5\)"):
        loss(random_logits(0), random_logits(1, shape=(32, 5)), 1.0)
    with pytest.raises(ValueError, match=r"teacher \(32, 10\), student \(1, 10\)"):
        loss(random_logits(0), random_logits(1, shape=(1, 10)), 1.0)
    for shape in [(32,), (32, 1), (2, 4, 4)]:
        logits = random_logits(0, shape=shape)
        with pytest.raises(ValueError, match=r"\(batch, classes\).* Received: \("):
            loss(logits, logits, 1.0)


def test_classes_unknown_to_a_graph_are_not_spread_over_the_students():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.float32),
            tf.TensorSpec([None, 10], tf.float32),
        ]
    )
    def compiled(teacher, student):
        return distillation_loss(teacher, student)

    assert compiled(random_logits(0), random_logits(1)).shape == (32,)
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled(random_logits(0, shape=(32, 1)), random_logits(1))


def test_recipes_know_seven_losses():
    assert LOGIT_LOSSES == {
        "kl": distillation_loss,
        "cross_entropy": soft_cross_entropy,
        "articles": articles_loss,
        "articles_contrastive": contrastive_loss,
        "dkd": dkd_loss,
        "dist": dist_loss,
        "standardized": standardized_loss,
    }


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("articles", {"contrastive_weight": -1}, "contrastive_weight .*Received: -1"),
        ("articles", {"contrastive_weight": np.nan}, "contrastive_weight .*: nan"),
        ("dkd", {"alpha": -0.5}, "alpha must be .* Received: -0.5"),
        ("dkd", {"beta": np.inf}, "beta must be .* Received: inf"),
        ("dkd", {"alpha": 0, "beta": 0}, "one of alpha, beta must be above 0"),
        ("dist", {"gamma": -2}, "gamma must be .* Received: -2"),
        ("dist", {"beta": 0, "gamma": 0}, "one of beta, gamma must be above 0"),
    ],
)
def test_weights_that_are_negative_or_sum_to_nothing_are_refused(
    name, weights, message
):
    with pytest.raises(ValueError, match=message):
        LOSSES[name][0](random_logits(0), random_logits(1), **weights)


class TestDistillationLoss:
    @each_temperature
    def test_certainty_of_the_opposite_costs_what_the_formula_says(self, temperature):
        student = [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]]
        teacher = [[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [1e4, -1e4, 0.0]]
        loss = distillation_loss(teacher, student, temperature)
        # The teacher is certain of what the student holds e^(-2e4 / T) likely.
        expected = [0, temperature * 2e4, temperature**2 * np.log(3)]
        np.testing.assert_allclose(loss, expected, 1e-5)

    def test_the_gradient_is_the_difference_of_softened_predictions_times_t(self):
        teacher, student = random_logits(0), random_logits(1)
        _, gradient = value_and_gradient(distillation_loss, teacher, student, 3.0)
        expected = 3.0 * (softmax(student, 3.0) - softmax(teacher, 3.0))
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_keeps_its_scale_over_temperatures(name):
    # Without the factor T**2, which a correlation does not need, most would fall
    # 256-fold.
    teacher, student = random_logits(0, 0.5), random_logits(1, 0.5)
    sizes = [
        np.linalg.norm(value_and_gradient(LOSSES[name][0], teacher, student, t)[1])
        for t in (1.0, 2.0, 4.0, 8.0, 16.0)
    ]
    assert max(sizes) < 1.8 * min(sizes), sizes


class TestArticlesLosses:
    def test_cross_entropy_teaches_what_the_divergence_does(self):
        teacher, student = random_logits(0), random_logits(1)
        _, entropic = value_and_gradient(soft_cross_entropy, teacher, student, 4.0)
        _, divergent = value_and_gradient(distillation_loss, teacher, student, 4.0)
        np.testing.assert_allclose(entropic, divergent, atol=1e-5)

    def test_cross_entropy_with_a_certain_teacher_is_the_hard_loss(self):
        teacher = np.where(np.eye(10)[LABELS], 1e4, 0.0)
        student = random_logits(1)
        soft = soft_cross_entropy(teacher, student)
        np.testing.assert_allclose(soft, cross_entropy(LABELS, student), rtol=1e-5)

    @pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
    def test_the_sum_weighs_the_contrastive_term(self, weight):
        teacher, student = random_logits(0), random_logits(1)
        loss = articles_loss(teacher, student, 4.0, weight)
        expected = expected_articles(teacher, student, 4.0, weight)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)

    def test_the_contrastive_term_has_the_floor_that_its_docstring_names(self):
        certain = np.where(np.eye(10)[LABELS], 1e4, 0.0)
        floor = np.log(np.e + 9) - 1
        np.testing.assert_allclose(contrastive_loss(certain, certain), floor, rtol=1e-6)
        assert (
            (contrastive_loss(random_logits(0), random_logits(1)) > floor).numpy().all()
        )

    def test_the_contrastive_term_wants_students_surer_than_the_teacher(self):
        logits = np.array([[2.0, 0.0, 0.0]], np.float32)
        _, gradient = value_and_gradient(contrastive_loss, logits, logits)
        assert gradient[0, 0] < -0.01
        surer = contrastive_loss(logits, 10 * logits)
        assert float(surer[0]) < float(contrastive_loss(logits, logits)[0])


class TestDecoupledLoss:
    @pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (0, 1), (2.0, 0.5)])
    def test_the_weights_are_those_of_the_two_parts(self, alpha, beta):
        teacher, student = random_logits(0), random_logits(1)
        loss = dkd(teacher, student, 4.0, alpha=alpha, beta=beta)
        expected = expected_dkd(teacher, student, 4.0, alpha, beta)
        np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-5)

    def test_its_parts_add_up_to_the_divergence(self):
        teacher, student = random_logits(0), random_logits(1)
        target = dkd(teacher, student, 4.0, alpha=1, beta=0)
        others = dkd(teacher, student, 4.0, alpha=0, beta=1)
        sure = softmax(teacher, 4.0)[np.arange(32), LABELS]
        whole = distillation_loss(teacher, student, 4.0)
        np.testing.assert_allclose(target + (1 - sure) * others, whole, rtol=1e-4)

    def test_a_missing_label_is_the_teachers_likeliest_class(self):
        teacher, student = random_logits(0), random_logits(1)
        partly = np.where(np.arange(32) % 2, LABELS, -1)
        filled = np.where(np.arange(32) % 2, LABELS, teacher.argmax(axis=1))
        np.testing.assert_array_equal(
            dkd_loss(teacher, student, partly), dkd_loss(teacher, student, filled)
        )
        assert np.any(filled != LABELS)

    def test_labels_may_stand_in_a_column_of_any_type(self):
        teacher, student = random_logits(0), random_logits(1)
        expected = dkd_loss(teacher, student, LABELS)
        for dtype in (np.uint8, np.int32, np.int64, np.float32):
            column = LABELS[:, None].astype(dtype)
            loss = dkd_loss(teacher, student, column)
            np.testing.assert_array_equal(loss, expected)

    def test_labels_that_do_not_fit_are_refused(self):
        teacher, student = random_logits(0), random_logits(1)
        with pytest.raises(ValueError, match="320 values for 32 examples"):
            dkd_loss(teacher, student, np.eye(10)[LABELS])
        with pytest.raises(ValueError, match="31 values for 32 examples"):
            dkd_loss(teacher, student, LABELS[:31])

    def test_two_classes_have_no_others(self):
        teacher, student = random_logits(0)[:, :2], random_logits(1)[:, :2]
        loss = dkd_loss(teacher, student, LABELS % 2, 4.0)
        whole = distillation_loss(teacher, student, 4.0)
        np.testing.assert_allclose(loss, whole, rtol=1e-4, atol=1e-6)

    def test_batches_of_unknown_size_compile(self):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 10], tf.float32),
                tf.TensorSpec([None, 10], tf.float32),
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([], tf.float64),
            ]
        )
        def compiled(teacher, student, labels, temperature):
            return dkd_loss(teacher, student, labels, temperature)

        teacher, student = random_logits(0), random_logits(1)
        for size in (32, 5):
            inputs = teacher[:size], student[:size], LABELS[:size]
            expected = dkd_loss(*inputs, 2.0)
            np.testing.assert_allclose(compiled(*inputs, 2.0), expected, rtol=1e-5)


class TestCorrelationLoss:
    @pytest.mark.parametrize(("beta", "gamma"), [(1, 0), (0, 1), (2.0, 0.5)])
    def test_the_weights_are_those_of_the_two_parts(self, beta, gamma):
        teacher, student = random_logits(0), random_logits(1)
        loss = dist_loss(teacher, student, 4.0, beta=beta, gamma=gamma)
        expected = expected_dist(teacher, student, 4.0, beta, gamma)
        np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)

    def test_the_part_over_the_batch_is_the_same_for_each_example(self):
        loss = dist_loss(random_logits(0), random_logits(1), beta=0)
        assert np.ptp(loss) == 0 and loss[0] > 0.1

    def test_a_batch_of_one_has_no_part_over_the_batch(self):
        teacher, student = random_logits(0)[:1], random_logits(1)[:1]
        np.testing.assert_array_equal(dist_loss(teacher, student, beta=0), [0])

    def test_it_asks_for_the_relations_alone(self):
        # Probabilities a and (a + 1/10) / 2 correlate perfectly, and differ.
        teacher = random_logits(0)
        student = np.log((softmax(teacher) + 0.1) / 2)
        np.testing.assert_allclose(dist_loss(teacher, student), 0, atol=1e-5)
        assert (distillation_loss(teacher, student, 1.0) > 0.01).numpy().all()

    def test_where_nothing_varies_nothing_is_asked(self):
        zeros = np.zeros((4, 10), np.float32)
        np.testing.assert_allclose(dist_loss(zeros, zeros), 0, atol=1e-6)


class TestStandardizedLoss:
    def test_shift_and_scale_of_the_logits_do_not_count(self):
        teacher, student = random_logits(0), random_logits(1)
        loss = standardized_loss(teacher, student)
        rescaled = standardized_loss(0.1 * teacher - 2, 50 * student + 9)
        np.testing.assert_allclose(rescaled, loss, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            standardized_loss(teacher, 3 * teacher + 1), 0, atol=1e-5
        )
