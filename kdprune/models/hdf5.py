"""Whether the HDF5 library gets through a file, in a process that it may end.

On damaged files it may loop for ever, where no signal reaches Python, or crash.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from kdprune._io import is_vouched, sha256, vouch

# Seconds of computing in which a file is read whole; ten times as long by the clock.
PATIENCE = 20
_PROGRAM = """
import resource, sys
seconds, left = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import h5py

def read(name, item):
    global left
    try:
        list(item.attrs.values())
        # Other files may be pipes, and what claims to be huge takes the memory.
        if isinstance(item, h5py.Dataset) and not (item.external or item.is_virtual):
            left -= item.nbytes
            if left >= 0:
                item[()]
    except Exception:
        pass  # The reader may pass over it, and come to what is behind.

with h5py.File(sys.argv[1], "r") as file:
    read("", file)
    file.visititems(read)
"""


def check(path: Path, most: int) -> None:
    """Raises `ValueError` for a file that hangs the library or ends its process.

    What it refuses by an error is left to whoever reads the file, as are arrays of more
    than `most` bytes together and those that lie in other files. Where Python is part
    of another program there is no interpreter to start, and nothing is checked; nor is
    what this process has written, verified against a run's record, or checked before.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return
    digest = sha256(path)
    if is_vouched(digest):
        return
    arguments = [str(path.absolute()), str(PATIENCE), str(most)]
    endless = ValueError(f"HDF5 does not get through it in {PATIENCE} s")
    try:
        ended = subprocess.run(
            # -P: what lies in the folder that the user is in is not imported.
            [sys.executable, "-P", "-c", _PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10 * PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise endless from None
    if ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise endless
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise ValueError(f"HDF5 ends its process by {name}")
    vouch(digest)
