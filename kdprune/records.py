"""One JSON record per stage: what went in, what came out, versions, seed, time."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterable
from typing import Any

import pydantic

from kdprune._io import read_json, sha256, write_json

__all__ = [
    "SCHEMA",
    "command",
    "describe_outputs",
    "fingerprint",
    "machine",
    "read_json",
    "read_record",
    "sealed",
    "sha256",
    "versions",
    "write_json",
]

SCHEMA = 1
_SEAL = "sha256"
_PACKAGES = (
    "kdprune",
    "tensorflow",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # Used from a checkout that was never installed.
    return found


def machine() -> dict[str, Any]:
    """The processor, its number formats for learning, memory, system, and our cores."""
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        pairs = [line.partition(":") for line in text.splitlines() if ":" in line]
        lines = {key.strip(): value.strip() for key, _, value in pairs}
        model, flags = lines.get("model name", model), lines.get("flags", "")
    matter = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx2", "asimd")
    return {
        "processor": model,
        "features": [flag for flag in matter if flag in flags.split()],
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cores() -> int | None:
    """How many cores this process may use; fewer than all beside others."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def fingerprint(content: Any) -> str:
    """SHA-256 of JSON-able content, independent of the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode())


def describe_outputs(
    folder: pathlib.Path, names: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of each named file of a folder."""
    paths = {name: folder / name for name in names}
    return {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for name, path in paths.items()
    }


class _Output(pydantic.BaseModel, strict=True):
    sha256: str
    bytes: int


class _Record(pydantic.BaseModel, strict=True):
    """What a record is gone by; the other figures are read by the report."""

    fingerprint: str
    outputs: dict[str, _Output]
    published: dict[str, str] = {}
    identity: str | None = None

    @pydantic.model_validator(mode="after")
    def _names_stay_inside(self) -> _Record:
        # What a run shows was once written at its top by the stage itself.
        read = [name.removeprefix("../") for name in self.outputs]
        names = [*read, *self.published]
        if any(part in ("", ".", "..") for name in names for part in name.split("/")):
            raise ValueError("a file outside of the folder")
        if not set(self.published.values()) <= set(self.outputs):
            raise ValueError("a file is shown that is no output")
        return self


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the checksum by which `read_record` tells that it was changed."""
    content = {key: value for key, value in record.items() if key != _SEAL}
    # As it is read again: JSON's keys are text, and text sorts as numbers don't.
    return {**content, _SEAL: fingerprint(json.loads(json.dumps(content)))}


def read_record(path: str | os.PathLike) -> dict[str, Any] | None:
    """Reads a stage's record; a missing, broken, changed or unfit one is None.

    Those of earlier versions have no checksum.
    """
    found = read_json(path)
    try:
        _Record.model_validate(found)
    except pydantic.ValidationError:
        return None
    if _SEAL in found and sealed(found) != found:
        return None
    return found


def command() -> str:
    """The command line of this process, without the places of one machine."""
    program = pathlib.Path(sys.argv[0]).name
    if program in ("__main__.py",):
        program = "kdprune"
    arguments = list(sys.argv[1:])
    for index, argument in enumerate(arguments[:-1]):
        if argument in ("--data-dir", "--output", "--data-path"):
            arguments[index + 1] = "DIR"
    return shlex.join([program, *arguments])


def _memory_gib() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    return round(pages * size / 2**30, 1)
