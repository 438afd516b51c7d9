"""A wrong pixel range or order of labels is refused, of every kind of network."""

import numpy as np
import pytest
import tf_keras as keras

import kdprune

pytestmark = pytest.mark.slow

layers = keras.layers
NAMES = ("red", "green", "blue", "red below", "green below")
# Name: the model's first layer, units and activation, how bytes come in, wrong ranges.
NETS = {
    "tutorial": ([layers.Rescaling(1 / 255)], 5, "softmax", 1, 0, [(0, 1), (-1, 1)]),
    "signed": ([], 5, "softmax", 1 / 127.5, -1, [(0, 255), (0, 1)]),
    "bytes": ([], 5, "softmax", 1, 0, [(0, 1), (-1, 1)]),
    "labels": ([layers.Rescaling(1 / 255)], 5, "sigmoid", 1, 0, [(0, 1), (-1, 1)]),
    "unit": ([layers.Rescaling(1 / 255)], 1, "sigmoid", 1, 0, [(0, 1), (-1, 1)]),
}


def images_of(labels):
    """Noise in which each label that applies makes some pixels brighter."""
    images = np.random.default_rng(0).uniform(0, 150, (len(labels), 8, 8, 3))
    for label, applies in enumerate(labels.T):
        top = 4 * (label // 3)
        images[:, top : top + 4, :, label % 3] += 25 * applies[:, None, None]
    return images.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=NETS)
def trained(request):
    """A net that has learned, its images and labels, class names and wrong ranges."""
    first, units, activation, scale, offset, wrong = NETS[request.param]
    rng = np.random.default_rng(1)
    if activation == "softmax":
        answers = np.arange(1500) % 5
        labels, loss = np.eye(5)[answers], "sparse_categorical_crossentropy"
    else:
        answers = rng.integers(0, 2, (1500, units))
        labels, loss = answers, "binary_crossentropy"
    images = images_of(labels)
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((8, 8, 3)), *first])
    net.add(layers.Conv2D(16, 4, strides=4))
    net.add(layers.BatchNormalization(momentum=0.9))
    net.add(layers.ReLU())
    net.add(layers.Flatten())
    net.add(layers.Dense(units, activation=activation))
    net.compile(keras.optimizers.Adam(0.02), loss)
    values = images * scale + offset
    net.fit(values.astype("float32"), answers, batch_size=50, epochs=8, verbose=0)
    names = NAMES if units > 1 else ("dark", "bright")
    answers = answers if units > 1 else answers[:, 0]
    return net, (images, answers), names, wrong


def test_wrong_ranges_are_refused_with_the_right_one(trained, tmp_path):
    net, data, _, wrong = trained
    for given in wrong:
        with pytest.raises(ValueError, match="is not the model's") as refused:
            kdprune.compress(
                net, data, output=tmp_path, input_range=given, max_drop=0.02
            )
        assert "\n" not in str(refused.value)


def test_labels_in_another_order_are_refused_with_what_changed(trained, tmp_path):
    net, data, names, _ = trained
    first, *others = names
    file = tmp_path / "labels.txt"
    file.write_text("\n".join([others[-1], *others[:-1], first]))
    with pytest.raises(ValueError, match="another order") as refused:
        kdprune.compress(
            net,
            data,
            output=tmp_path / "made",
            classes=names,
            labels=file,
            max_drop=0.02,
        )
    assert repr(first) in str(refused.value)
