"""Files: there whole or not at all, digests, the first line of an error."""

import errno
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


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "kit"
    path.mkdir()
    (path / "old").touch()
    (tmp_path / ".kit.partial").mkdir()
    (tmp_path / ".kit.partial" / "left").touch()  # By a process that was killed.
    with pytest.raises(RuntimeError), _io.writing_folder(path) as partial:
        (partial / "new").touch()
        raise RuntimeError("killed")
    assert os.listdir(tmp_path) == ["kit"] and os.listdir(path) == ["old"]
    with _io.writing_folder(path) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "new").touch()
        assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["kit"] and os.listdir(path) == ["inner"]


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


@pytest.mark.parametrize("form", ["[" * 9_000, '{"a": NaN}', "{", "\xff", "9" * 5_000])
def test_json_that_is_none_is_as_if_it_were_not_there(tmp_path, form):
    (tmp_path / "state.json").write_bytes(form.encode("latin-1"))
    assert _io.read_json(tmp_path / "state.json") is None
    assert _io.read_object(tmp_path / "state.json") == {}
    assert _io.read_json(tmp_path) is None


def test_an_object_is_read_where_there_is_one(tmp_path):
    _io.write_json(tmp_path / "list.json", [1])
    assert _io.read_object(tmp_path / "list.json") == {}


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "no"), RuntimeError("h5")])
def test_a_full_disk_names_the_file_whoever_writes_to_it(tmp_path, monkeypatch, raised):
    full = os.statvfs("/proc")  # Of a system of files without any room.
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(OSError, match=r"No space left on device: '.*model.h5'"):
        with _io.writing(tmp_path / "model.h5"):
            raise raised
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_into_memory_is_told_before_it_is_loaded():
    _io.check_memory(1000, "images", "take fewer")
    with pytest.raises(ValueError, match=r"GiB free. Received: .* GiB; take fewer"):
        _io.check_memory(2**60, "1,000 images", "take fewer")


def test_a_full_disk_of_temporary_files_is_named(monkeypatch):
    full = os.statvfs("/proc")  # Of a system of files without any room.
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    for raised in (OSError(errno.ENOSPC, "no"), OSError("9 requested and 0 written")):
        with pytest.raises(OSError, match="No space left .*TMPDIR.*: '.*kdprune-"):
            with _io.scratch():
                raise raised
    with pytest.raises(ValueError, match="no model"), _io.scratch():
        raise ValueError("no model")
    with pytest.raises(OSError, match="mine.keras"), _io.scratch():
        raise OSError(errno.ENOSPC, "No space", "mine.keras")
