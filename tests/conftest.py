"""Data that tests share."""

import os
from pathlib import Path

import pytest

from kdprune.data import load_dataset


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """The folder of the real CIFAR-10; tests that need it skip without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    place = Path(os.environ.get("KDPRUNE_DATA_DIR") or beside)
    if not place.exists():
        pytest.skip("needs CIFAR-10: set KDPRUNE_DATA_DIR")
    return place


@pytest.fixture(scope="session")
def tiny_shapes():
    """270 training, 30 validation and 100 test images of ten shapes."""
    return load_dataset("shapes", train_images=300, test_images=100, calibration=50)
