"""What a user is told of an error, in a line."""

import numpy as np
import pytest
import tensorflow as tf

from kdprune.runner.errors import explain


def test_an_error_while_batches_are_read_is_what_the_reader_says():
    """TensorFlow puts it between the name of a graph's node and a traceback."""

    def read(index):
        raise ValueError(f"expected image {index} as it was.\nReceived: another")

    batches = tf.data.Dataset.range(3).map(
        lambda index: tf.numpy_function(read, [index], tf.float32)
    )
    with pytest.raises(tf.errors.OpError) as raised:
        list(batches)
    assert "Traceback" in str(raised.value)
    assert explain(raised.value) == ["expected image 0 as it was. Received: another"]


def test_an_error_of_the_program_is_not_explained():
    with pytest.raises(TypeError) as raised:
        np.zeros(1)()
    assert explain(raised.value) == []
