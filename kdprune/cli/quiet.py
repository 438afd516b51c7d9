"""Keeps what libraries print on import from the user."""

from __future__ import annotations

import importlib
import os
import tempfile


def import_tensorflow_quietly() -> None:
    """Keeps the notices that TensorFlow's libraries print on import from the user."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
