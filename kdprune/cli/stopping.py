"""What ends a command from outside: Ctrl-C, a closed terminal, a system going down.

Imports Python's own alone, so that it can be asked before all else is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_in_a_line() -> dict[signal.Signals, Any]:
    """Ends the process in one line at these signals; returns their former handlers.

    A signal that is ignored, as by `nohup`, stays ignored.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _stop)
    return before


def _stop(number: int, _: object) -> None:
    """Ends the process at once.

    Nothing is lost, as nothing is by SIGKILL. A KeyboardInterrupt instead would be
    swallowed where TensorFlow calls back into Python.
    """
    message = "\nstopped; run the same command again to go on from here\n"
    try:
        os.write(sys.stderr.fileno(), message.encode())
    finally:  # The terminal may be gone.
        os._exit(128 + number)
