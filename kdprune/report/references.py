"""Published models that a CIFAR-10 result is set beside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One published model, as scored for this project.

    Attributes:
        name: What the plots and tables call it.
        accuracy: Top-1 share of the 10,000 CIFAR-10 test images, in [0, 1].
        bytes: Size of the published `.tflite` file.
        macs: Multiplications of one forward pass, batch 1.
        parameters: Number of weights and biases.
    """

    name: str
    accuracy: float
    bytes: int
    macs: int
    parameters: int


MLPERF_TINY = (
    Reference("MLPerf ResNet-8", 0.8719, 318_144, 12_500_000, 77_706),
    Reference("MLPerf ResNet-8 int8", 0.8697, 98_496, 12_500_000, 77_706),
    Reference("MLPerf large", 0.9128, 1_929_208, 76_470_000, 480_330),
    Reference("MLPerf large int8", 0.9131, 512_024, 76_470_000, 480_330),
)

MLPERF_TINY_SOURCE = (
    "The image-classification models of MLPerf Tiny "
    "([github.com/mlcommons/tiny](https://github.com/mlcommons/tiny), Apache-2.0), "
    "scored by kdprune on all 10,000 test images of CIFAR-10; constants, not part of "
    "this run. Milliseconds are told by `kdprune bench` alone, of files in turns on "
    "one machine."
)
