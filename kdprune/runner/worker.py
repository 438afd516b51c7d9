"""One stage in a process of its own: what `processes.StageProcess` starts."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback

from kdprune import _log
from kdprune.config import parse_recipe
from kdprune.runner.errors import explain
from kdprune.runner.folder import SEEN_WITHIN, Run
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
        sys.path += [path for path in content.get("path", ()) if path not in sys.path]
        run = Run(
            parse_recipe(content["recipe"]),
            content["folder"],
            content["data_dir"],
            content["command"],
        )
        node = next(node for node in run.nodes if node.name == content["node"])
        if missing := run.unseen(node.all_parents(), SEEN_WITHIN):
            raise ValueError(
                f"the results of stage {missing[0].name!r} are not in {run.folder} as "
                "this recipe and these images make them: let all have the same images, "
                "and --output be a folder that they share"
            )
        if run.fingerprint(node) != content["fingerprint"]:
            raise ValueError(
                "its images, files or plugins are not those that the run was started "
                "with: let all have the same"
            )
        run.execute(node)
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
