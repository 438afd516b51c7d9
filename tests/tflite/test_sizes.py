"""Files are described by what they hold, and damaged ones end in one line."""

import gzip

import numpy as np
import pytest

from kdprune.models.counts import count_macs, layer_macs
from kdprune.models.io import save_model
from kdprune.tflite import describe_file, read_tflite

# Weights of stem 3*3*3*4, depthwise 3*3*4, out 4*5; a bias for each channel.
PARAMETERS = 108 + 4 + 36 + 4 + 20 + 5
MACS = 64 * 108 + 16 * 36 + 20
ZEROS = 9 + 3


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "uint8"])
def test_a_tflite_file_is_described_from_its_buffers(tflites, kind):
    description = describe_file(tflites[kind])
    content = tflites[kind].read_bytes()
    assert description["format"] == "tflite"
    assert description["bytes"] == len(content)
    assert description["bytes_gzip"] == len(gzip.compress(content, 9, mtime=0))
    assert description["parameters"] == PARAMETERS
    assert description["macs"] == MACS
    # The first bias is zero too: no weights, no normalization to speak of.
    assert PARAMETERS - 25 <= description["nonzero_parameters"] <= PARAMETERS - ZEROS
    sparsity = description["sparsity_by_layer"]
    assert list(sparsity) == ["stem", "depthwise", "out"]
    assert sparsity["stem"] == pytest.approx(ZEROS / 108, abs=0.03)
    if not kind.endswith("int8"):
        assert sparsity == {"stem": ZEROS / 108, "depthwise": 0.0, "out": 0.0}


def test_ports_and_operators_tell_a_quantized_file_from_a_float_one(tflites):
    whole, quantized = (describe_file(tflites[k]) for k in ("float32", "uint8"))
    assert whole["input"]["dtype"] == "float32" and whole["input"]["scale"] is None
    assert whole["ops"]["CONV_2D"] == 1 and whole["ops"]["DEPTHWISE_CONV_2D"] == 1
    assert whole["float_ops"] == whole["ops"]
    assert quantized["input"]["dtype"] == "uint8"
    assert quantized["input"]["shape"] == [1, 8, 8, 3]
    assert quantized["input"]["scale"] == pytest.approx(1 / 255)
    assert quantized["input"]["zero_point"] == 0
    assert quantized["output"]["scale"] == 1 / 256
    assert quantized["float_ops"] == {}


def test_a_keras_file_is_described_alike(tiny, tmp_path):
    path = tmp_path / "tiny.keras"
    save_model(tiny, path)
    description = describe_file(path)
    assert description["format"] == "keras"
    assert description["bytes"] == path.stat().st_size
    assert description["parameters"] == tiny.count_params() == 108 + 16 + 40 + 25
    assert description["macs"] == MACS == count_macs(tiny)
    assert description["sparsity_by_layer"]["stem"] == ZEROS / 108
    assert list(description["sparsity_by_layer"]) == list(layer_macs(tiny))


def test_constants_are_read_as_they_run(tiny, tflites):
    graph = read_tflite(tflites["float32"])
    conv = next(op for op in graph.ops if op.name == "CONV_2D")
    kernel = graph.tensors[conv.inputs[1]].data.transpose(1, 2, 3, 0)
    bn = tiny.get_layer("stem_bn")
    expected = tiny.get_layer("stem").get_weights()[0] / np.sqrt(1 + bn.epsilon)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5)


def test_the_zero_of_an_integer_weight_is_its_zero_point():
    from kdprune.tflite.format import Tensor
    from kdprune.tflite.sizes import _count_nonzero

    data = np.array([[3, 3, 0], [5, 5, 5]], np.uint8)
    one = Tensor("w", (2, 3), "uint8", data, np.ones(1), np.array([3]), 0)
    assert _count_nonzero(one) == 4
    each = Tensor("w", (2, 3), "uint8", data, np.ones(2), np.array([3, 5]), 0)
    assert _count_nonzero(each) == 1


def test_int4_weights_are_two_to_a_byte():
    from kdprune.tflite.format import _constant

    packed = np.array([0x21, 0xF8, 0x07], np.uint8)
    values = _constant(packed, "int4", (5,), sparse=False)
    assert values.tolist() == [1, 2, -8, -1, 7]


def test_layers_are_found_in_the_names_converters_give():
    from kdprune.tflite.names import layer_of_weights

    names = {
        "model/conv2d_3/Conv2D": "conv2d_3",
        "net/relu/Relu;net/bn/FusedBatchNormV3;net/dw/depthwise": "dw",
        "net/quant_out/MatMul;net/quant_out/LastValueQuant/FakeQuantWithVars": "out",
        "net/depthwise/depthwise": "depthwise",
        "net/conv/BiasAdd/ReadVariableOp;net/conv/Conv2D/ReadVariableOp": "conv",
        "outer/inner/conv/Conv2D1": "conv",
        "Conv2D": None,
        "arith.constant": None,
    }
    assert {name: layer_of_weights(name) for name in names} == names
