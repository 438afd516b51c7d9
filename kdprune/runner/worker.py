"""One stage in a process of its own: what `parallel.execute` starts."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback

from kdprune import _log
from kdprune.config import parse_recipe
from kdprune.runner.errors import explain
from kdprune.runner.folder import Run
from kdprune.runner.parallel import ERROR


def main() -> int:
    """Executes the stage told on standard input, on the cores told there."""
    content = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_the_first_process, daemon=True).start()
    # Before TensorFlow counts the cores to make its threads.
    os.sched_setaffinity(0, content["cores"])
    with _log.shown(warnings_too=True):
        return _execute(content)


def _execute(content: dict) -> int:
    try:
        run = Run(
            parse_recipe(content["recipe"]),
            content["folder"],
            content["data_dir"],
            content["command"],
        )
        run.execute(next(node for node in run.nodes if node.name == content["node"]))
    except Exception as error:
        traceback.print_exc()
        for line in explain(error)[:1]:
            print(f"{ERROR}{line}", file=sys.stderr)
        return 1
    return 0


def _exit_with_the_first_process() -> None:
    """Ends this process when the other end of its standard input is gone."""
    os.read(0, 1)  # Blocks: nothing more is ever written.
    os._exit(1)
