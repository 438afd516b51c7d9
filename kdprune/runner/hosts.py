"""Which processes train together: the workers' addresses, and which one this is."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

VARIABLE = "TF_CONFIG"
_EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"index": 0}}'


@dataclasses.dataclass(frozen=True)
class Layout:
    """The workers of a run, and which of them this process is.

    Attributes:
        addresses: `host:port` of each; the first is the chief.
        index: This process's place among them, from 0.
    """

    addresses: tuple[str, ...]
    index: int

    def name(self, index: int) -> str:
        """How a worker is called in what users read."""
        return f"worker {index} ({self.addresses[index]})"


def find_layout(
    workers: str | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Layout | None:
    """Reads the workers from the command's options, or from `TF_CONFIG`.

    Args:
        workers: `host:port` of all workers, separated by commas; it goes before the
            variable.
        index: This one's place among them, from 0.
        environment: Where `TF_CONFIG` is looked up, in the form that
            `tf.distribute` reads; a `chief` stands before the workers.

    Returns:
        A `Layout`, or None where there is one worker at most.

    Raises:
        ValueError: If they are not as they must be.
    """
    if workers is not None:
        if index is None:
            raise ValueError(
                "--workers expects --index, the place of this worker among them, from "
                "0. Received: none"
            )
        return _checked("--workers", workers.split(","), "--index", index)
    if index is not None:
        raise ValueError(
            "--index expects --workers host:port,host:port. Received: none"
        )
    if not environment.get(VARIABLE):
        return None
    return _of_variable(environment[VARIABLE])


def _of_variable(text: str) -> Layout | None:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{VARIABLE} expects JSON such as {_EXAMPLE}. Received: {text[:60]!r} "
            f"({error}); correct it, or unset it to train on this machine alone"
        ) from error
    cluster = content.get("cluster", {}) if isinstance(content, dict) else None
    task = content.get("task", {}) if isinstance(content, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise ValueError(f"{VARIABLE} expects {_EXAMPLE}. Received: {text[:60]!r}")
    if not cluster:
        return None
    others = sorted(set(cluster) - {"chief", "worker"})
    if others or task.get("type", "worker") not in ("chief", "worker"):
        wrong = others[0] if others else task["type"]
        raise ValueError(
            f"{VARIABLE} expects tasks of type worker, and one chief at most: the "
            f"models are mirrored. Received: {wrong!r}; leave it out"
        )
    chiefs, workers = (
        _listed(cluster.get(key, []), key) for key in ("chief", "worker")
    )
    index = task.get("index")
    if task.get("type", "worker") == "worker" and type(index) is int and index >= 0:
        index += len(chiefs)
    return _checked(VARIABLE, [*chiefs, *workers], f"{VARIABLE}'s task.index", index)


def _listed(addresses: Any, key: str) -> list[Any]:
    if not isinstance(addresses, list) or (key == "chief" and len(addresses) > 1):
        raise ValueError(
            f"{VARIABLE}'s cluster.{key} expects a list of addresses"
            f"{', one at most' if key == 'chief' else ''}. Received: {addresses!r}"
        )
    return addresses


def _checked(
    source: str, addresses: Sequence[Any], index_source: str, index: Any
) -> Layout | None:
    found = [one.strip() if isinstance(one, str) else one for one in addresses]
    for address in found:
        if split_address(address) is None:
            raise ValueError(
                f"{source} expects host:port of each worker, with a port from 1 to "
                f"65535. Received: {address!r}"
            )
    twice = next((one for one in found if found.count(one) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{source} expects an address of its own for each worker. Received: "
            f"{twice} twice"
        )
    if type(index) is not int:
        raise ValueError(f"{index_source} expects a whole number. Received: {index!r}")
    if not 0 <= index < len(found):
        raise ValueError(
            f"{index_source} expects a place among the {len(found)} workers, from 0 to "
            f"{len(found) - 1}. Received: {index}"
        )
    return Layout(tuple(found), index) if len(found) > 1 else None


def split_address(address: Any) -> tuple[str, int] | None:
    """Host and port of `host:port` or `[host]:port`; None of anything else."""
    if not isinstance(address, str):
        return None
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(c.isspace() for c in host) or not port.isascii():
        return None
    if not port.isdigit() or not 0 < int(port) < 65536:
        return None
    return host, int(port)
