"""The check of pixels, and the two forms in which they are taken everywhere."""

import numpy as np
import pytest

from kdprune import images

BYTES = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
FLOATS = BYTES.astype(np.float32) / np.float32(255)


def broken(value, dtype="float32"):
    pixels = np.full((3, 2, 2, 1), 0.5, dtype)
    pixels[1, 0, 1, 0] = value
    return pixels


def test_bytes_become_exact_fractions_and_come_back():
    np.testing.assert_array_equal(images.as_float(BYTES), FLOATS)
    assert images.as_float(BYTES).dtype == np.float32
    np.testing.assert_array_equal(images.as_uint8(FLOATS), BYTES)
    assert images.as_uint8(FLOATS).dtype == np.uint8


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_all_bytes_survive_every_width_of_float(dtype):
    np.testing.assert_array_equal(images.as_uint8(FLOATS.astype(dtype)), BYTES)


def test_other_floats_are_rounded_to_the_nearest_byte():
    values = np.float64([0.4, 0.6, 254.4, 254.6]).reshape(1, 2, 2, 1) / 255
    assert images.as_uint8(values).ravel().tolist() == [0, 1, 254, 255]


def test_what_needs_no_change_is_not_copied():
    assert images.as_uint8(BYTES) is BYTES
    assert images.as_float(FLOATS) is FLOATS
    assert images.check(BYTES) is BYTES


def test_nothing_given_is_changed():
    before = BYTES.copy()
    images.as_float(BYTES)
    np.testing.assert_array_equal(BYTES, before)


def test_lists_are_taken():
    assert images.check([[[[0.5]]]]).shape == (1, 1, 1, 1)


def test_a_shape_may_leave_sizes_open():
    assert images.check(BYTES, (16, 16, 1)) is BYTES
    assert images.check(BYTES, (None, None, 1)) is BYTES


@pytest.mark.parametrize(
    ("pixels", "shape", "said"),
    [
        (BYTES.astype(int), None, r"int64; use images.astype\('uint8'\)"),
        (BYTES > 3, None, "bool"),
        (None, None, "Received: NoneType$"),
        ("image.png", None, "Received: str$"),
        (BYTES[0], None, r"\(n, height, width, channels\).*image\[None\]"),
        (BYTES[:0], None, r"n > 0. Received: \(0, 16, 16, 1\)$"),
        (BYTES[:, :0], None, r"Received: \(1, 0, 16, 1\)$"),
        (BYTES, (8, None, 3), r"\(n, 8, width, 3\).*\(1, 16, 16, 1\)"),
        (BYTES[..., 0, 0], (16, 16, 1), r"\(n, 16, 16, 1\)"),
        (FLOATS * 255, None, r"float32 in \[0, 255\]; divide pixels by 255"),
        (FLOATS - 0.5, None, r"in \[-0.5, 0.5\]"),
        (broken(np.nan), None, r"nan at \(1, 0, 1, 0\); repair or drop"),
        (broken(-np.inf, "float64"), None, r"-inf at \(1, 0, 1, 0\)"),
        (broken(1.001), None, r"in \[0.5, 1.001\]"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(pixels, shape, said):
    for function in (images.check, images.as_float, images.as_uint8):
        with pytest.raises(ValueError, match=f"test images must .*{said}") as error:
            function(pixels, shape, "test images")
        assert "\n" not in str(error.value)


def test_some_images_stand_for_all_of_a_folder():
    """Which is sorted by class: the first ones would be of one class alone."""
    labels = np.repeat(np.arange(10), 150)
    few = labels[images.spread(len(labels), 500)]
    assert len(few) == 500 and np.ptp(np.bincount(few)) <= 1
    assert images.spread(7, 500).tolist() == list(range(7))
