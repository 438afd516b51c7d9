"""Quantization of arrays, against the numbers worked out by hand."""

import numpy as np
import pytest

from kdprune import quantize
from kdprune.quantize import arrays


@pytest.mark.parametrize(
    "name",
    ["affine_parameters", "quantize_affine", "dequantize_affine", "quantize_linear"],
)
def test_the_functions_are_public(name):
    assert name in quantize.__all__
    assert getattr(quantize, name) is getattr(arrays, name)


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high", "scale", "zero_point"),
    [
        (8, False, 0.0, 1.0, 1 / 255, 0),
        (8, True, 0.0, 1.0, 1 / 255, -128),
        (8, True, -1.0, 1.0, 2 / 255, 0),
        (8, False, -1.0, 3.0, 4 / 255, 64),
        (16, True, 0.0, 1.0, 1 / 65535, -32768),
        (16, False, -1.0, 1.0, 2 / 65535, 32768),
        (8, False, 2.0, 4.0, 4 / 255, 0),
        (8, True, -4.0, -2.0, 4 / 255, 127),
        (8, True, 0.0, 0.0, 1.0, 0),
    ],
)
def test_a_range_is_spread_over_all_integers(
    bits, signed, low, high, scale, zero_point
):
    got = arrays.affine_parameters(low, high, bits, signed)
    assert got == (pytest.approx(scale, rel=1e-12), zero_point)


def test_a_symmetric_range_leaves_out_the_lowest_integer():
    assert arrays.affine_parameters(-2, 1, symmetric=True) == (2 / 127, 0)
    scale, _ = arrays.affine_parameters(0, 1, bits=16, symmetric=True)
    assert scale == 1 / 32767
    np.testing.assert_array_equal(
        arrays.quantize_affine([-2.0, 0.0, 2.0], 2 / 127), [-127, 0, 127]
    )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("limits", [(-1.3, 4.7), (0.0, 6.0), (-3.0, 0.0)])
def test_there_and_back_is_off_by_half_a_step_at_most(bits, signed, limits):
    scale, zero_point = arrays.affine_parameters(*limits, bits, signed)
    # Rounding the zero point may push the ends of the range out by half a step.
    values = np.linspace(limits[0] + scale / 2, limits[1] - scale / 2, 1001)
    integers = arrays.quantize_affine(values, scale, zero_point, bits, signed)
    assert integers.dtype == np.dtype(f"{'int' if signed else 'uint'}{bits}")
    back = arrays.dequantize_affine(integers, scale, zero_point)
    assert back.dtype == np.float32
    assert np.abs(back - values).max() <= scale * 0.5 + 1e-6
    zero = arrays.quantize_affine(0.0, scale, zero_point, bits, signed)
    assert arrays.dequantize_affine(zero, scale, zero_point) == 0.0


def test_values_out_of_range_become_the_limit():
    values = [-1e9, -np.inf, -0.1, 0.5, 1.1, np.inf]
    unsigned = arrays.quantize_affine(values, 1 / 255, 0, signed=False)
    np.testing.assert_array_equal(unsigned, [0, 0, 0, 128, 255, 255])
    wide = arrays.quantize_affine([-40000.0, 40000.0], 1.0, bits=16)
    np.testing.assert_array_equal(wide, [-32768, 32767])


def test_ties_round_to_even():
    integers = arrays.quantize_affine([0.5, 1.5, 2.5, -0.5, -1.5], 1.0)
    np.testing.assert_array_equal(integers, [0, 2, 2, 0, -2])


def test_each_channel_has_its_own_scale():
    values = np.array([[1.0, 10.0], [-1.0, -5.0]])
    scale = np.array([1 / 127, 10 / 127])
    integers = arrays.quantize_affine(values, scale)
    np.testing.assert_array_equal(integers, [[127, 127], [-127, -64]])
    back = arrays.dequantize_affine(integers, scale)
    np.testing.assert_allclose(back, values, atol=0.04)


def test_the_difference_to_the_zero_point_does_not_wrap_around():
    back = arrays.dequantize_affine(np.int8([127, -128]), 0.5, np.int8(-128))
    np.testing.assert_array_equal(back, [127.5, 0.0])


def test_truncation_goes_towards_zero_and_costs_up_to_a_step():
    values = np.array([0.019, -0.019, 0.011, 0.99])
    nearest = arrays.quantize_linear(values, 0.01)
    truncated = arrays.quantize_linear(values, 0.01, rounding="truncate")
    np.testing.assert_array_equal(nearest, [2, -2, 1, 99])
    np.testing.assert_array_equal(truncated, [1, -1, 1, 99])
    many = np.random.default_rng(0).normal(0, 0.3, 10_000)
    error = [
        np.abs(arrays.dequantize_affine(integers, 0.01) - many).max()
        for integers in (
            arrays.quantize_linear(many, 0.01, bits=16),
            arrays.quantize_linear(many, 0.01, bits=16, rounding="truncate"),
        )
    ]
    assert error[0] == pytest.approx(0.005, rel=0.01)
    assert error[1] == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("rounding", arrays.ROUNDINGS)
def test_a_linear_quantization_divides_and_clips_where_the_articles_do_not(rounding):
    values = np.array([1.3, -1.5, 0.5])
    wrapped = (values / 0.01).astype(np.int64).astype(np.int8)
    np.testing.assert_array_equal(wrapped, [-126, 106, 50])
    multiplied = (values * 0.01).astype(np.int8)
    np.testing.assert_array_equal(multiplied, [0, 0, 0])
    integers = arrays.quantize_linear(values, 0.01, rounding=rounding)
    np.testing.assert_array_equal(integers, [127, -128, 50])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrays.affine_parameters(1, 0), "low <= high"),
        (lambda: arrays.affine_parameters(0, np.inf), "finite"),
        (lambda: arrays.affine_parameters(np.nan, 1), "finite"),
        (lambda: arrays.affine_parameters(0, 1, bits=4), "8 or 16"),
        (lambda: arrays.affine_parameters(0, 1, 8, False, True), "signed"),
        (lambda: arrays.quantize_affine([1.0], 0.0), "positive"),
        (lambda: arrays.quantize_affine([1.0], -1.0), "positive"),
        (lambda: arrays.quantize_affine([np.nan], 1.0), "NaN"),
        (lambda: arrays.dequantize_affine([0.5], 1.0), "integers"),
        (lambda: arrays.quantize_linear([1.0], 1.0, rounding="up"), "nearest, trunc"),
    ],
)
def test_what_does_not_fit_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
