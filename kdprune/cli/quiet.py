"""Keeps from the user what libraries say of themselves."""

from __future__ import annotations

import importlib
import logging
import os
import tempfile


def import_tensorflow_quietly() -> None:
    """Keeps the notices that TensorFlow's libraries print on import from the user.

    And those of many functions that are traced: a run scores many models, each once.
    """
    logging.getLogger("tensorflow").addFilter(_is_no_notice_of_tracing)
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


def _is_no_notice_of_tracing(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()
