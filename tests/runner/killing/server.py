"""Runs the `kdprune` command in forks of itself: TensorFlow is imported once.

Each line on standard input is JSON: "arguments" of the command, "environment" to add,
"output" and "errors", files for what it prints. Each is answered by two lines, its
process and, once it has ended, its exit status: below 0 the number of a signal.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback

import sitecustomize

import kdprune.cli
from kdprune.cli import quiet

LATER = """
kdprune.stages kdprune.runner kdprune.training kdprune.quantize kdprune.tflite
kdprune.tflite.gate kdprune.tflite.convert kdprune.report kdprune.report.plots
kdprune.kit kdprune.evaluate kdprune.prune kdprune.prune.channels kdprune.distill
tensorflow_model_optimization matplotlib.pyplot matplotlib.backends.backend_agg
""".split()


def run(told):
    """The child: the command as it is, but that its modules are there already."""
    os.environ.update(told["environment"])
    tempfile.tempdir = None  # It was found for this process's parent.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, key in ((1, "output"), (2, "errors")):
        os.dup2(os.open(told[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    status = 70
    try:
        sitecustomize.install()
        status = kdprune.cli.main(told["arguments"])
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main():
    quiet.import_tensorflow_quietly()
    for name in LATER:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            run(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
