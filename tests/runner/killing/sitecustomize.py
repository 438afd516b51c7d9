"""Counts file operations below a folder and kills the process at one of them.

Python imports it at its start where this folder is in PYTHONPATH, in a run's process
and in those of `--jobs`. The environment says the rest:

- `KILL_BELOW`: The folder. Opening for writing, moving, removing, making folders and
  changing modes count, done by Python code. What C++ and HDF5 code writes by itself
  is hit by the delay.
- `KILL_COUNTER`: A file that grows by a byte at each operation of any process.
- `KILL_AT`: At which operation to kill; 0 for none.
- `KILL_DELAY`: Seconds to let pass first, in which the process goes on.
- `KILL_WHOM`: `self`, whichever process that is; `first`, the run's, which those of
  its stages end with; or `all`.
- `KILL_EAGERLY`: Whether nothing is traced, which takes far longer than a few steps.
"""

import os
import signal
import sys
import threading
import time

PATHS = {
    "os.chmod": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (0, 1),
    "os.truncate": (0,),
    "os.utime": (0,),
}
# Of these the last argument is the open folder that a path is relative to.
RELATIVE = {"os.chmod", "os.mkdir", "os.remove", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Imported when TensorFlow is.
AFTER_TENSORFLOW = "tf_keras.src.models"


class Watch:
    """What the environment asks for, in this process."""

    def __init__(self, environment):
        self.below = environment["KILL_BELOW"] + "/"
        self.at = int(environment.get("KILL_AT", "0"))
        self.delay = float(environment.get("KILL_DELAY", "0"))
        self.whom = environment.get("KILL_WHOM", "self")
        self.eagerly = bool(environment.get("KILL_EAGERLY"))
        # The process of the command; those of its stages inherit this.
        self.first = int(environment.setdefault("KILL_FIRST", str(os.getpid())))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self.counter = os.open(environment["KILL_COUNTER"], flags)
        if self.eagerly and "tf_keras" in sys.modules:
            self.trace_nothing()

    def __call__(self, event, arguments):
        if self.eagerly and event == "import" and arguments[0] == AFTER_TENSORFLOW:
            self.trace_nothing()
        if not self.counts(event, arguments):
            return
        os.write(self.counter, b".")
        if self.at and os.fstat(self.counter).st_size == self.at:
            if self.delay:
                threading.Thread(target=self.kill, daemon=True).start()
            else:  # The operation itself is not done any more.
                self.kill()

    def trace_nothing(self):
        import tensorflow as tf

        self.eagerly = False
        tf.config.run_functions_eagerly(True)

    def counts(self, event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & WRITING
            writes = writes or (isinstance(mode, str) and set(mode) & set("wxa+"))
            return bool(writes) and self.is_below(path)
        folder = arguments[-1] if event in RELATIVE else None
        return any(self.is_below(arguments[i], folder) for i in PATHS.get(event, ()))

    def is_below(self, path, folder=None):
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        path = os.fsdecode(path)
        if not os.path.isabs(path):
            within = isinstance(folder, int) and folder >= 0
            above = os.readlink(f"/proc/self/fd/{folder}") if within else os.getcwd()
            path = os.path.join(above, path)
        return path.startswith(self.below)

    def kill(self):
        time.sleep(self.delay)
        mine, others = os.getpid(), []
        if self.whom != "self":
            others = [self.first]
        if self.whom == "all":
            others += children_of(self.first)
        for pid in others:
            if pid != mine:
                os.kill(pid, signal.SIGKILL)
        if self.whom != "first" or self.first == mine:
            os.kill(mine, signal.SIGKILL)


def children_of(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += [int(number) for number in file.read().split()]
    return found


def install():
    if os.environ.get("KILL_BELOW"):
        sys.addaudithook(Watch(os.environ))


install()
