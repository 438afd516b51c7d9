"""Operators cut out of a file compute what they compute in the whole."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdprune.benchmark.latency import feed_random
from kdprune.benchmark.profile import cut_ops, open_cut, profile_file
from kdprune.tflite import describe_file, open_interpreter, read_tflite

KINDS = ["float32", "float16", "int8", "uint8"]
MLPERF = ["pretrainedResnet", "pretrainedResnet_quant"]


def check_cuts(path):
    """Runs each cut on both kernels against the values of the whole."""
    whole = open_interpreter(path, "builtin")
    feed_random(whole)
    whole.invoke()
    cuts = cut_ops(path)
    last = whole.get_output_details()[0]["index"]
    np.testing.assert_array_equal(cuts[-1].outputs[0], whole.get_tensor(last))
    for cut in cuts:
        for resolver in ("builtin", "xnnpack"):
            interpreter = open_cut(cut, resolver)
            interpreter.invoke()
            details = interpreter.get_output_details()
            for detail, expected in zip(details, cut.outputs, strict=True):
                found = interpreter.get_tensor(detail["index"])
                assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
                if resolver == "builtin":
                    np.testing.assert_array_equal(found, expected)
                else:  # rounded otherwise: a step of int8, the last bits of a float
                    step = 1 if found.dtype.kind in "iu" else 1e-5
                    np.testing.assert_allclose(
                        found.astype(float),
                        expected.astype(float),
                        atol=step,
                        rtol=step,
                    )
    return cuts


@pytest.mark.parametrize("kind", KINDS)
def test_each_operator_alone_gives_what_it_gives_in_the_whole(tflites, kind):
    cuts = check_cuts(tflites[kind])
    ops = [op for op in read_tflite(tflites[kind]).ops if op.name != "DEQUANTIZE"]
    assert [cut.name for cut in cuts] == [op.name for op in ops]


@pytest.mark.parametrize("name", MLPERF)
def test_the_public_reference_models_are_cut_alike(mlperf_dir, name):
    path = mlperf_dir / f"{name}.tflite"
    assert len(check_cuts(path)) == len(read_tflite(path).ops)


def test_constants_are_within_and_values_from_outside(tflites, tmp_path):
    whole = read_tflite(tflites["int8"])
    conv = next(op for op in whole.ops if op.name == "CONV_2D")
    cut = next(cut for cut in cut_ops(tflites["int8"]) if cut.name == "CONV_2D")
    (tmp_path / "cut.tflite").write_bytes(cut.content)
    graph = read_tflite(tmp_path / "cut.tflite")
    assert len(graph.ops) == len(graph.inputs) == len(graph.outputs) == 1
    kernel, expected = (
        part.tensors[op.inputs[1]]
        for part, op in ((graph, graph.ops[0]), (whole, conv))
    )
    np.testing.assert_array_equal(kernel.data, expected.data)
    np.testing.assert_array_equal(kernel.scale, expected.scale)
    place = cut.content.find(expected.data.tobytes())
    assert place > 0 and place % 16 == 0


def test_weights_in_float16_are_widened_once_and_not_profiled(tflites):
    names = [op.name for op in read_tflite(tflites["float16"]).ops]
    assert "DEQUANTIZE" in names
    cuts = cut_ops(tflites["float16"])
    assert "DEQUANTIZE" not in [cut.name for cut in cuts]
    assert all(len(cut.inputs) == 1 for cut in cuts)


def test_layers_and_multiplications_are_named(tflites):
    cuts = cut_ops(tflites["int8"])
    named = {cut.layer: cut.macs for cut in cuts if cut.macs is not None}
    assert list(named) == ["stem", "depthwise", "out"]
    assert sum(named.values()) == describe_file(tflites["int8"])["macs"]


def test_an_operator_may_take_a_value_twice(tmp_path):
    image = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(2, 3)(image)
    model = keras.Model(image, keras.layers.Multiply()([x, x]))
    path = tmp_path / "square.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    square = check_cuts(path)[-1]
    assert (square.name, len(square.inputs)) == ("MUL", 1)


def test_a_profile_adds_up_to_the_whole(tflites):
    profile = profile_file(tflites["int8"], resolver="builtin")
    assert [op["op"] for op in profile["ops"]] == [
        op.name for op in read_tflite(tflites["int8"]).ops
    ]
    total = sum(op["us"] for op in profile["ops"])
    assert total + profile["rest_us"] == pytest.approx(profile["whole_us"])
    for op in profile["ops"]:
        assert op["us"] >= 0
        assert op["share"] == pytest.approx(op["us"] / profile["whole_us"])
    assert 0 < profile["call_us"] < profile["whole_us"]
    assert (profile["resolver"], profile["threads"]) == ("builtin", 1)


def test_a_graph_with_loops_is_refused_by_name(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([1, 4])])
    def loop(x):
        return tf.while_loop(lambda y: tf.reduce_sum(y) < 9, lambda y: [y + 1], [x])[0]

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [loop.get_concrete_function()]
    )
    path = tmp_path / "loop.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ValueError, match=r"loop\.tflite: a profile needs one graph"):
        cut_ops(path)
