"""Records: the same on every machine, whole or not there."""

import sys

import pytest

from kdprune import records


def test_a_command_is_kept_without_the_places_of_a_machine(monkeypatch):
    typed = ["kdprune", "run", "a.yaml", "--data-dir", "/home/me/data", "--output", "x"]
    monkeypatch.setattr(sys, "argv", typed)
    assert records.command() == "kdprune run a.yaml --data-dir DIR --output DIR"


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    there = records.fingerprint({"a": 1, "b": 2})
    assert records.fingerprint({"b": 2, "a": 1}) == there
    assert records.fingerprint({"a": 1, "b": 3}) != there


def test_a_broken_record_counts_as_none(tmp_path):
    path = tmp_path / "record.json"
    records.write_json(path, {"done": True})
    assert records.read_json(path) == {"done": True}
    path.write_text('{"done": tr')
    assert records.read_json(path) is None
    assert records.read_json(tmp_path / "absent.json") is None


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "null",
        '{"fingerprint": "a"}',
        '{"fingerprint": "a", "outputs": {"x": {"sha256": 1, "bytes": 2}}}',
        '{"fingerprint": "a", "outputs": {"../../x": {"sha256": "1", "bytes": 2}}}',
        '{"fingerprint": "a", "outputs": {"/x": {"sha256": "1", "bytes": 2}}}',
        '{"fingerprint": "a", "outputs": {}, "published": {"x": "y"}}',
        '{"fingerprint": "a", "outputs": {"x": {"sha256": "1", "bytes": 2}}, '
        '"published": {"../x": "x"}}',
        '{"fingerprint": "a", "outputs": {}, "identity": 3}',
        "[" * 9_000,
    ],
)
def test_a_record_of_another_form_is_as_if_nothing_were_done(tmp_path, record):
    (tmp_path / "record.json").write_text(record)
    assert records.read_record(tmp_path / "record.json") is None


def test_a_record_is_read_with_all_that_it_holds(tmp_path):
    outputs = {"kit/model.h": {"sha256": "1", "bytes": 2}}
    record = {"fingerprint": "a", "outputs": outputs, "published": {"m": "kit/model.h"}}
    records.write_json(tmp_path / "record.json", {**record, "results": {"x": [1]}})
    read = records.read_record(tmp_path / "record.json")
    assert read == {**record, "results": {"x": [1]}}
