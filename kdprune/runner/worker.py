"""One stage in a process of its own: what `parallel.execute` starts."""

import json
import os
import sys
import threading
import traceback

from kdprune.cli import explain
from kdprune.config import parse_recipe
from kdprune.runner import run as runs
from kdprune.runner.parallel import ERROR


def main():
    """Executes the stage told on standard input, on the cores told there."""
    content = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_the_first_process, daemon=True).start()
    # Before TensorFlow counts the cores to make its threads.
    os.sched_setaffinity(0, content["cores"])
    run = runs.Run(
        parse_recipe(content["recipe"]),
        content["folder"],
        content["data_dir"],
        content["command"],
    )
    node = next(node for node in run.nodes if node.name == content["node"])
    try:
        run.execute(node)
    except Exception as error:
        traceback.print_exc()
        line = explain(error)
        if line is not None:
            print(f"{ERROR}{line}", file=sys.stderr)
        return 1
    return 0


def _exit_with_the_first_process():
    """Ends this process when the other end of its standard input is gone."""
    os.read(0, 1)  # Blocks: nothing more is ever written.
    os._exit(1)
