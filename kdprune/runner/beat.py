"""Signs of life of a worker, from a process that runs beside it.

A conversion can hold the interpreter's lock for a minute, and no thread of that process
speaks meanwhile. Run as a program, which imports nothing else of the package:

    python -I beat.py PARENT EVERY SILENCE LOCK SOCKET...

It sends the message `FRAME` on each of the worker's sockets, as long as the worker is
neither stopped nor gone: then the other end of its standard input is closed, or, if a
process that the worker has forked holds that, its parent is another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator

_MESSAGE = b'{"beat": true, "bytes": 0}'
# A message as `runner.cluster` packs it.
FRAME = struct.pack(">I", len(_MESSAGE)) + _MESSAGE


def main(parent: int, every: float, silence: float, lock: int, *sockets: int) -> None:
    """Sends until the worker is gone.

    Args:
        parent: The worker's process.
        every: Seconds between two signs.
        silence: Seconds after which a connection that takes nothing is given up.
        lock: A file whose byte i is locked by who sends on socket i.
        sockets: The connections, as file descriptors.
    """
    peers = dict(enumerate(socket.socket(fileno=number) for number in sockets))
    for peer in peers.values():
        peer.settimeout(silence)
    while not select.select([0], [], [], every)[0] and os.getppid() == parent:
        if _is_stopped(parent):
            continue
        for place, peer in list(peers.items()):
            try:
                with holding(lock, place, wait=False):
                    # Waiting would keep signs from the others, and the lock.
                    if select.select([], [peer], [], 0)[1]:
                        peer.sendall(FRAME)
            except BlockingIOError:
                continue  # What the worker sends is a sign, too.
            except OSError:
                del peers[place]  # The worker hears of it itself.


@contextlib.contextmanager
def holding(lock: int, place: int, wait: bool = True) -> Iterator[None]:
    """Keeps the other process from sending on a socket; see `main`."""
    fcntl.lockf(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
    try:
        yield
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN, 1, place)


def _is_stopped(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "tT"
    except OSError:  # It is gone, which `main` finds out, or there is no /proc.
        return False


if __name__ == "__main__":
    process, seconds, most, *files = sys.argv[1:]
    main(int(process), float(seconds), float(most), *map(int, files))
    os._exit(0)
