"""Weight clustering, and training that keeps clusters and zeros, down to the file."""

import gzip
import re

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

from kdprune.models.kernels import kernel_name, kernel_of
from kdprune.quantize import (
    calibrate_ranges,
    cluster_weights,
    clustered_layers,
    count_clusters,
    load_quantized,
    quantize_model,
    read_plan,
    save_quantized,
    strip_clustering,
)
from kdprune.stages.fitting import is_clustered
from kdprune.tflite import convert_tflite, inspect_tflite
from kdprune.tflite.sizes import describe_file
from kdprune.training.optimizers import build_variables

layers = keras.layers
CLUSTERS = 6


@pytest.fixture(scope="module")
def data(quadrants):
    images, labels = quadrants(120, 12)
    return (images / 255).astype("float32"), labels


def train(model, data, epochs=1, rate=0.005, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, **options)
    build_variables(model)
    model.fit(*data, batch_size=40, epochs=epochs, verbose=0)
    return model


def accuracy(model, data):
    return np.mean(model(data[0]).numpy().argmax(axis=1) == data[1])


@pytest.fixture(scope="module")
def base(data):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8, name="norm")(x))
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="depthwise")(x)
    x = layers.Conv2D(12, 3, 2, padding="same", activation="relu", name="second")(x)
    x = layers.Dropout(0.1)(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(4, name="logits")(x))
    return train(model, data, epochs=10)


@pytest.fixture(scope="module")
def clustered(base, data):
    return strip_clustering(train(cluster_weights(base, CLUSTERS), data, rate=1e-3))


@pytest.fixture(scope="module")
def sparse(base, data):
    """Half of each kernel's weights 0 but the first's, then clustered with them."""
    model = keras.models.clone_model(base)
    model.set_weights(base.get_weights())
    for name in ("second", "logits"):
        kernel = model.get_layer(name).kernel
        small = np.abs(kernel) < np.median(np.abs(kernel))
        kernel.assign(np.where(small, 0, kernel))
    wrapped = cluster_weights(model, CLUSTERS, True, exclude=["first"])
    return strip_clustering(train(wrapped, data, rate=1e-3))


def aware(model, data, **preserved):
    wrapped = quantize_model(model, calibration=data[0], **preserved)
    # Tracing all that is wrapped would take far longer than six steps.
    trained = train(wrapped, data, epochs=2, rate=1e-3, run_eagerly=True)
    calibrate_ranges(trained, data[0])
    return trained


@pytest.fixture(scope="module")
def cqat(clustered, data):
    return aware(clustered, data, preserve_clusters=True)


@pytest.fixture(scope="module")
def pcqat(sparse, data):
    return aware(sparse, data, preserve_clusters=True, preserve_sparsity=True)


def kernels(content):
    """The file's int8 kernels by layer, one row for each scale (output channel)."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    found = {}
    for tensor in model.subgraphs[0].tensors:
        raw = model.buffers[tensor.buffer].data
        if tensor.type == schema.TensorType.INT8 and raw is not None:
            values = np.frombuffer(bytes(raw), np.int8).reshape(tensor.shape)
            name = tensor.name.decode()
            (layer,) = (
                layer
                for layer in ("first", "depthwise", "second", "logits")
                if f"/{layer}/" in name or f"quant_{layer}/" in name
            )
            found[layer] = values.reshape(len(values), -1)
    return found


def clusters_in(content):
    """The largest number of distinct values in a channel, by layer."""
    return {
        layer: max(len(np.unique(row)) for row in rows)
        for layer, rows in kernels(content).items()
    }


@pytest.mark.slow
def test_each_kernel_keeps_a_few_values_and_the_model_its_accuracy(
    base, clustered, data
):
    counts = count_clusters(clustered)
    assert list(counts) == ["first", "second", "logits"]
    assert all(2 <= count <= CLUSTERS for count in counts.values())
    assert min(count_clusters(base).values()) > 100
    assert accuracy(base, data) > 0.95
    assert accuracy(clustered, data) > 0.9
    assert [layer.name for layer in clustered.layers] == [
        layer.name for layer in base.layers
    ]


def test_a_kernel_tells_whether_it_was_clustered(base, clustered, sparse):
    assert clustered_layers(clustered) == ["first", "second", "logits"]
    assert clustered_layers(sparse) == ["second", "logits"]
    # As many zeros leave few distinct weights, and are no clusters.
    pruned = keras.models.clone_model(base)
    kernels = [w * (np.abs(w) > 2 * w.std()) for w in base.get_weights()]
    pruned.set_weights(
        [
            w if w.ndim == 1 else k
            for w, k in zip(base.get_weights(), kernels, strict=True)
        ]
    )
    assert count_clusters(pruned)["second"] < 256
    assert clustered_layers(base) == clustered_layers(pruned) == []
    averaging = keras.models.clone_model(base)
    averaging.set_weights([np.full_like(w, 1 / w.size) for w in base.get_weights()])
    assert clustered_layers(averaging) == []


def test_a_layer_left_out_does_not_cost_the_others_their_clusters():
    inputs = keras.Input((20, 20, 1))
    x = layers.Dense(16, name="large")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(8, name="other")(x))
    mixed = strip_clustering(cluster_weights(model, CLUSTERS, exclude=["large"]))
    assert count_clusters(mixed)["large"] > 1024
    assert clustered_layers(mixed) == ["other"]
    assert is_clustered(mixed, "auto") and not is_clustered(model, "auto")
    assert not is_clustered(mixed, False) and is_clustered(model, True)


def test_training_moves_centroids_and_statistics_but_not_the_given_model(base, data):
    before = base.get_weights()
    wrapped = cluster_weights(base, CLUSTERS)
    start = strip_clustering(wrapped)
    train(wrapped, data, rate=1e-3)
    after = strip_clustering(wrapped)
    for old, new in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for layer in ("first", "second", "logits"):
        old, new = (model.get_layer(layer).kernel for model in (start, after))
        assert np.any(old != new)
    # TFMOT's own wrapper leaves BatchNormalization out of the training.
    old, new = (model.get_layer("norm").moving_mean for model in (start, after))
    assert np.any(old != new)


def test_clusters_survive_post_training_quantization(base, clustered, data):
    plain, few = (convert_tflite(m, "int8", data[0][:40]) for m in (base, clustered))
    counts = clusters_in(few)
    assert max(counts[name] for name in ("first", "second", "logits")) <= CLUSTERS
    assert clusters_in(plain)["second"] > 3 * CLUSTERS
    assert len(gzip.compress(few)) < 0.9 * len(gzip.compress(plain))


@pytest.mark.slow
def test_training_quantization_aware_keeps_clusters_only_if_told_to(
    clustered, cqat, data
):
    lost = convert_tflite(aware(clustered, data), "int8")
    assert clusters_in(lost)["second"] > 2 * CLUSTERS
    kept = convert_tflite(cqat, "int8")
    assert inspect_tflite(kept)["float_ops"] == []
    counts = clusters_in(kept)
    assert max(counts[name] for name in ("first", "second", "logits")) <= CLUSTERS
    assert accuracy(cqat, data) > 0.9


@pytest.mark.slow
def test_clusters_and_zeros_are_kept_together(sparse, pcqat, data):
    shares = {
        name: np.mean(sparse.get_layer(name).kernel.numpy() == 0)
        for name in ("second", "logits")
    }
    assert min(shares.values()) >= 0.5
    content = convert_tflite(pcqat, "int8")
    counts, stored = clusters_in(content), kernels(content)
    for name, share in shares.items():
        assert counts[name] <= CLUSTERS
        assert np.mean(stored[name] == 0) >= share
    # A first layer without zeros keeps none, and takes none from the others.
    assert np.mean(stored["first"] == 0) < 0.1
    assert accuracy(pcqat, data) > 0.9


@pytest.mark.slow
def test_a_reloaded_model_is_bit_equal_and_trains_on(tmp_path, pcqat, data):
    save_quantized(pcqat, tmp_path)
    plan = read_plan(tmp_path)
    assert (plan["preserve_sparsity"], plan["preserve_clusters"]) == (True, True)
    loaded = load_quantized(tmp_path)
    expected = pcqat(data[0]).numpy()
    np.testing.assert_array_equal(loaded(data[0]).numpy(), expected)
    train(loaded, data, rate=1e-3)
    calibrate_ranges(loaded, data[0])
    assert clusters_in(convert_tflite(loaded, "int8"))["second"] <= CLUSTERS


def test_a_kernel_smaller_than_the_number_of_clusters_is_left_alone(caplog):
    inputs = keras.Input((2, 2, 1))
    x = layers.Dense(2, name="few")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(20, name="many")(x))
    np.testing.assert_array_equal(
        strip_clustering(cluster_weights(model, 16)).get_weights()[0],
        model.get_weights()[0],
    )
    (record,) = caplog.records
    assert "clustering leaves out 16.7 % of the weights" in record.getMessage()
    with pytest.raises(ValueError, match="left to cluster: .*clusters=256, and small"):
        cluster_weights(model, 256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 1}, "clusters must be an integer >= 2. Received: 1"),
        ({"clusters": 4.0}, "integer"),
        ({"clusters": 2, "preserve_sparsity": True}, ">= 3"),
        ({"preserve_sparsity": True}, "zeros in each kernel.*'first' without"),
        ({"exclude": ["frist"]}, "first, .*second, logits. Received.*frist.*first"),
        ({"exclude": ["norm"]}, "first, .*second, logits"),
        ({"exclude": ["first", "second", "logits"]}, "is left to cluster"),
    ],
)
def test_what_does_not_fit_is_an_error(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster_weights(base, **arguments)


def test_centroids_of_a_large_kernel_do_not_diverge():
    # With the gradients of its 4,096 weights summed, the loss grows a thousandfold.
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    inputs = np.random.default_rng(0).standard_normal((256, 64), np.float32)
    clustered = cluster_weights(model, 16)
    clustered.compile(keras.optimizers.SGD(0.5), "mse")
    outputs = model(inputs).numpy()
    losses = clustered.fit(inputs, outputs, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < 1.5 * losses[0] < 0.01


def test_nor_do_they_in_training_that_is_quantization_aware():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    inputs = np.random.default_rng(0).standard_normal((256, 64), np.float32)
    outputs = model(inputs).numpy()
    few = strip_clustering(cluster_weights(model, 16))
    aware = quantize_model(few, preserve_clusters=True)
    aware.compile(keras.optimizers.SGD(0.5), "mse")
    losses = aware.fit(inputs, outputs, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < 1.5 * losses[0]


def test_pointwise_and_transposed_kernels_are_clustered_too(caplog):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(16, 3, name="separable")(inputs)
    x = layers.Conv2DTranspose(4, 3, name="up")(x)
    model = keras.Model(inputs, x)
    few = strip_clustering(cluster_weights(model, CLUSTERS))
    assert max(count_clusters(few).values()) <= CLUSTERS
    assert list(count_clusters(few)) == clustered_layers(few) == ["separable", "up"]
    (record,) = caplog.records
    message = (
        f"leaves out {2700 / (27 + 48 + 576):.1f} % .* depthwise_kernel .*separabl"
    )
    assert re.search(message, record.getMessage())
    depthwise = few.get_layer("separable").depthwise_kernel
    np.testing.assert_array_equal(
        depthwise, model.get_layer("separable").depthwise_kernel
    )


def test_layers_inside_a_nested_model_are_not_passed_over():
    inner = keras.Sequential([layers.Conv2D(4, 3, name="conv")], name="backbone")
    inputs = keras.Input((8, 8, 3))
    x = layers.Dense(40, name="d")(layers.Flatten()(inner(inputs)))
    model = keras.Model(inputs, x)
    with pytest.raises(ValueError, match="nested model can't be clustered.*backbone"):
        cluster_weights(model, CLUSTERS)
    few = strip_clustering(cluster_weights(model, CLUSTERS, exclude=["backbone"]))
    assert list(count_clusters(few)) == ["backbone/conv", "d"]
    assert clustered_layers(few) == ["d"]


@pytest.mark.parametrize(
    "clusters", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_training_keeps_the_zeros_of_pointwise_and_transposed_kernels(
    data, tmp_path, caplog, clusters
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = layers.SeparableConv2D(8, 3, activation="relu", name="separable")(inputs)
    x = layers.Conv2DTranspose(6, 2, activation="relu", name="up")(x)
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    for layer in model.layers:
        if kernel_name(layer) is not None:
            kernel = kernel_of(layer)
            large = np.abs(kernel) > np.quantile(np.abs(kernel), 0.75)
            kernel.assign(np.where(large, kernel, 0))
    wrapped = quantize_model(model, preserve_sparsity=True, preserve_clusters=clusters)
    train(wrapped, data, rate=1e-3, run_eagerly=True)
    calibrate_ranges(wrapped, data[0])
    path = tmp_path / "model.tflite"
    path.write_bytes(convert_tflite(wrapped, "int8"))
    depthwise, *shares = sorted(describe_file(path)["sparsity_by_layer"].values())
    assert depthwise < 0.1
    assert len(shares) == 3 and min(shares) >= 0.74
    said = (
        "does not keep the clusters of the transposed convolution 'up'" in caplog.text
    )
    assert said == clusters
