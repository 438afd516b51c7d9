"""Files: there whole or not at all, digests, the first line of an error."""

import hashlib
import os

import numpy as np
import pytest

from kdprune import _io


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model.tflite"
    _io.write_file(path, b"old")
    with pytest.raises(RuntimeError), _io.writing(path) as partial:
        partial.write_bytes(b"half of the n")
        assert path.read_bytes() == b"old"
        raise RuntimeError("killed")
    assert path.read_bytes() == b"old"
    _io.write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_what_is_written_keeps_the_suffix_until_it_is_in_place(tmp_path):
    with _io.writing(tmp_path / "scores.npy") as partial:
        assert partial.suffix == ".npy" and partial.parent == tmp_path
        np.save(partial, np.arange(3))
    assert np.load(tmp_path / "scores.npy").tolist() == [0, 1, 2]


def test_others_may_read_what_was_written(tmp_path):
    _io.write_file(tmp_path / "text", "naïve")
    expected = tmp_path / "plain"
    expected.touch()
    assert (tmp_path / "text").stat().st_mode == expected.stat().st_mode
    assert (tmp_path / "text").read_text(encoding="utf-8") == "naïve"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="cannot write .*/none/file: No such file"):
        _io.write_file(tmp_path / "none" / "file", b"")


def test_broken_json_is_as_if_there_were_none(tmp_path):
    path = tmp_path / "record.json"
    assert _io.read_json(path) is None
    path.write_text('{"half": ')
    assert _io.read_json(path) is None
    _io.write_json(path, {"whole": [1, 2]})
    assert _io.read_json(path) == {"whole": [1, 2]}
    with pytest.raises(ValueError, match="JSON compliant"):
        _io.write_json(path, {"nan": float("nan")})
    assert _io.read_json(path) == {"whole": [1, 2]}


def test_a_digest_is_of_content_or_of_a_file(tmp_path):
    content = os.urandom((1 << 20) + 3)
    (tmp_path / "large").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert _io.sha256(content) == _io.sha256(tmp_path / "large") == expected


def test_an_error_is_told_by_its_first_line():
    assert _io.first_line(ValueError("\n first\nsecond")) == "first"
    assert _io.first_line(ValueError()) == "ValueError"
    assert _io.first_line("x" * 300, limit=10) == "x" * 10
