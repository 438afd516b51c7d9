"""A file's first inference, in a process that may end by it.

The runtime trusts a file: what is wrong with one may abort the process or read outside
of its memory. So a file runs once in another process before it runs in this one. Run
as a program, this module is that process; it imports the runtime alone.
"""

from __future__ import annotations

import atexit
import json
import select
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

# Seconds in which one image has to be scored.
PATIENCE = 300


class Trial:
    """The other process: started when first asked, and again after it ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._lock = threading.Lock()
        # Contents that ran, by kernels: they are not tried twice.
        self._passed: set[tuple[int, int, int, int, bool]] = set()

    def fault(
        self, content: bytes, resolver: int, threads: int, one_image: bool = True
    ) -> str | None:
        """What is wrong with a file as the runtime finds it; None if it runs.

        Args:
            content: The file's content.
            resolver: The value of the runtime's `OpResolverType`.
            threads: Threads of the runtime.
            one_image: Whether the first input is to hold one image, whatever the
                file says.

        Returns:
            The runtime's complaint, or how the process ended, in one line.
        """
        key = (len(content), hash(content), resolver, threads, one_image)
        with self._lock:
            if key in self._passed:
                return None
            how = {"resolver": resolver, "threads": threads, "one_image": one_image}
            found = self._ask(content, how)
            if found is None:
                self._passed.add(key)
            return found

    def close(self) -> None:
        """Ends the other process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, self._said):
                if pipe is not None:
                    pipe.close()

    def _ask(self, content: bytes, how: dict[str, int]) -> str | None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        process, said = self._process, self._said
        assert process is not None and said is not None  # It was started.
        assert process.stdin is not None and process.stdout is not None  # Pipes.
        said.seek(0)
        said.truncate()
        try:
            head = json.dumps({**how, "size": len(content)}).encode()
            process.stdin.write(head + b"\n" + content)
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
            answer = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, answer = [process.stdout], b""
        except BaseException:
            self.close()  # Half of a question is no question.
            raise
        if answer:
            found: Any = json.loads(answer)
            return found
        if not ready:
            self.close()
            return f"one image is not scored within {PATIENCE} s"
        status = process.wait()
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").split("\n")
        told = [line.strip() for line in lines if not line.startswith("INFO")]
        last = next(filter(None, reversed(told)), "")
        self.close()
        return (
            f"it ends the process ({_name(status)}){f': {last}'[:200] if last else ''}"
        )

    def _start(self) -> None:
        self.close()
        self._said = tempfile.TemporaryFile()
        run = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {run}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            # Ctrl-C is for the first process alone; this one ends with it.
            start_new_session=True,
        )


def _name(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    name = signal.Signals(-status).name
    return f"{name}, out of memory?" if status == -signal.SIGKILL else name


_TRIAL = Trial()
atexit.register(_TRIAL.close)
fault = _TRIAL.fault


def _serve() -> None:
    """Answers until the other end is closed: null, or what is wrong, as JSON."""
    while head := sys.stdin.buffer.readline():
        how = json.loads(head)
        content = sys.stdin.buffer.read(how["size"])
        try:
            _run_once(content, how["resolver"], how["threads"], how["one_image"])
            answer = None
        except Exception as error:
            answer = (str(error).strip().splitlines() or [type(error).__name__])[0]
            answer = answer[:200]
        print(json.dumps(answer), flush=True)


def _run_once(content: bytes, resolver: int, threads: int, one_image: bool) -> None:
    import numpy as np
    from ai_edge_litert import interpreter as litert

    interpreter = litert.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_op_resolver_type=litert.OpResolverType(resolver),
    )
    source = interpreter.get_input_details()[0]
    if one_image and len(source["shape"]) and source["shape"][0] != 1:
        shape = [1, *source["shape"][1:]]
        interpreter.resize_tensor_input(source["index"], shape)
    interpreter.allocate_tensors()
    random = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        values = random.random(detail["shape"])
        if np.issubdtype(detail["dtype"], np.integer):
            limits = np.iinfo(detail["dtype"])
            values = limits.min + values * (float(limits.max) - limits.min)
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    interpreter.invoke()
    for detail in interpreter.get_output_details():
        interpreter.get_tensor(detail["index"])


if __name__ == "__main__":
    _serve()
