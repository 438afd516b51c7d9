"""What a user is told meanwhile: plain lines, warnings apart, nothing if not asked."""

import logging
import sys

import pytest

from kdprune import _log


def test_nothing_is_printed_by_a_library(capsys):
    _log.logger.info("measuring")
    assert list(_log.progress([1, 2], "scoring")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_the_command_shows_lines_and_then_leaves_the_logger_as_it_was(capsys):
    before = _log.logger.level, _log.logger.propagate, list(_log.logger.handlers)
    with _log.shown():
        _log.logger.info("measuring %s", "a.tflite")
        _log.logger.warning("near chance")
        _log.logger.debug("not shown")
    _log.logger.info("afterwards")
    assert capsys.readouterr() == ("measuring a.tflite\n", "warning: near chance\n")
    after = _log.logger.level, _log.logger.propagate, list(_log.logger.handlers)
    assert after == before


def test_a_workers_warnings_go_where_its_lines_go(capsys):
    with _log.shown(warnings_too=True):
        _log.logger.warning("near chance")
    assert capsys.readouterr() == ("warning: near chance\n", "")


def test_progress_is_lines_where_no_bar_can_be_drawn(capsys, monkeypatch):
    monkeypatch.setattr(_log, "_EVERY", -1)
    with _log.shown():
        assert list(_log.progress("ab", "scoring images")) == ["a", "b"]
        assert _log.counted(len, "scored")("abc") == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["scoring images: 0 of 2", "scoring images: 1 of 2", "scored: 1"]


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    with _log.shown():
        assert list(_log.progress("ab", "scoring images")) == ["a", "b"]
    assert "scoring images" not in capsys.readouterr().err


def test_a_reader_that_is_gone_is_an_error_and_not_a_traceback(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

    with _log.shown(), pytest.raises(BrokenPipeError):
        monkeypatch.setattr(sys, "stdout", Gone())
        _log.logger.info("measuring")


def test_show_adds_one_handler_however_often_it_is_called():
    handlers = list(_log.logger.handlers)
    level, propagate = _log.logger.level, _log.logger.propagate
    try:
        _log.show()
        _log.show(logging.WARNING)
        assert len(_log.logger.handlers) == len(handlers) + 1
    finally:
        _log.logger.handlers[:] = handlers
        _log.logger.setLevel(level)
        _log.logger.propagate = propagate
