"""Which workers there are: options and TF_CONFIG, right and wrong."""

import json

import pytest

from kdprune.runner.hosts import Layout, find_layout


def of_variable(content):
    text = content if isinstance(content, str) else json.dumps(content)
    return find_layout(environment={"TF_CONFIG": text})


def test_options_and_variable_tell_the_same():
    expected = Layout(("a:2222", "b:2222"), 1)
    assert find_layout("a:2222, b:2222", 1, {}) == expected
    cluster = {"worker": ["a:2222", "b:2222"]}
    task = {"type": "worker", "index": 1}
    assert of_variable({"cluster": cluster, "task": task}) == expected
    assert expected.name(1) == "worker 1 (b:2222)"


def test_a_chief_stands_before_the_workers():
    cluster = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    expected = ("c:1", "a:1", "b:1")
    first = of_variable({"cluster": cluster, "task": {"type": "chief", "index": 0}})
    last = of_variable({"cluster": cluster, "task": {"type": "worker", "index": 1}})
    assert (first, last) == (Layout(expected, 0), Layout(expected, 2))


def test_options_go_before_the_variable():
    found = find_layout("a:1,b:1", 0, {"TF_CONFIG": "not read"})
    assert found == Layout(("a:1", "b:1"), 0)


@pytest.mark.parametrize("text", ["", "{}", '{"task": {"index": 0}}'])
def test_without_a_cluster_there_is_this_process_alone(text):
    assert of_variable(text) is None


def test_one_worker_is_this_process_alone():
    assert find_layout("a:1", 0, {}) is None
    assert find_layout(environment={}) is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{cluster", "TF_CONFIG expects JSON such as"),
        ("[1]", "TF_CONFIG expects {"),
        ({"cluster": ["a:1"]}, "TF_CONFIG expects {"),
        ({"cluster": {"worker": "a:1"}}, "cluster.worker expects a list of addresses"),
        ({"cluster": {"worker": ["a:1", "b"]}}, "expects host:port of each worker"),
        ({"cluster": {"worker": ["a:1", 7]}}, "expects host:port of each worker"),
        ({"cluster": {"worker": ["a:1", "a:1"]}}, "Received: a:1 twice"),
        ({"cluster": {"worker": ["a:1", "b:1"]}}, "task.index expects a whole number"),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"index": 2}},
            "expects a place among the 2 workers, from 0 to 1. Received: 2",
        ),
        (
            {"cluster": {"chief": ["c:1"], "worker": ["a:1"]}, "task": {"index": -1}},
            "expects a place among the 2 workers, from 0 to 1. Received: -1",
        ),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"index": True}},
            "task.index expects a whole number. Received: True",
        ),
        ({"cluster": {"ps": ["a:1"]}}, "expects tasks of type worker"),
        (
            {"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator"}},
            "expects tasks of type worker",
        ),
    ],
)
def test_a_wrong_variable_is_one_line(content, fault):
    with pytest.raises(ValueError, match="TF_CONFIG") as error:
        of_variable(content)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("workers", "index", "fault"),
    [
        ("a:1,b:1", None, "--workers expects --index"),
        (None, 0, "--index expects --workers"),
        ("a:1,b:1", 2, "--index expects a place among the 2 workers, from 0 to 1"),
        ("a:1,b:1", -1, "Received: -1"),
        ("a:1,b:0", 0, "with a port from 1 to 65535. Received: 'b:0'"),
        ("a:1,b:65536", 0, "Received: 'b:65536'"),
        ("a:1,:2", 0, "Received: ':2'"),
        ("a:1,,b:1", 0, "Received: ''"),
        ("a:1,b:1,a:1", 0, "Received: a:1 twice"),
    ],
)
def test_wrong_options_are_one_line(workers, index, fault):
    with pytest.raises(ValueError, match="--") as error:
        find_layout(workers, index, {})
    assert fault in str(error.value)
