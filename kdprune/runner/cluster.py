"""Workers that train together: how they meet, what they tell, and who was lost.

Before TensorFlow starts its own server on a worker's port, the chief listens on its
port for the others, who tell what they are about to run. Those connections stay: by
them the chief tells what is next, and each end hears whether the other is alive.
TensorFlow alone would wait for a worker that hangs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import queue
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np

import kdprune
from kdprune import records
from kdprune._log import logger
from kdprune.config import Recipe
from kdprune.runner import beat
from kdprune.runner.errors import explain
from kdprune.runner.hosts import Layout, split_address

if TYPE_CHECKING:
    import tensorflow as tf

# Seconds: between two signs of life; after which one that gave none is lost; to wait
# for workers that are started later; to answer once connected; and that the others
# have to come to hear of a refusal.
BEAT, SILENCE, WAIT, ANSWER, GRACE = 1.0, 90.0, 600.0, 10.0, 5.0
_LARGEST_MESSAGE, _LARGEST_HELLO, _PIECE = 1 << 20, 1 << 16, 1 << 20


class Refused(ValueError):
    """What the workers are told to run does not go together."""


@dataclasses.dataclass
class _Peer:
    """The other end of a connection, and what came from it."""

    index: int
    socket: socket.socket
    # Keeps threads apart; what keeps the process that gives signs of life from sending.
    sending: Any = dataclasses.field(default_factory=threading.Lock)
    alone: Callable[[], Any] = contextlib.nullcontext
    came: queue.Queue = dataclasses.field(default_factory=queue.Queue)
    left: bool = False


class Cluster:
    """This worker among the others; made by `join`.

    Run inside it as a context, which tells the others how this worker ends.

    Attributes:
        layout: Who they are, and which this is.
        scratch: A temporary folder to remove where the process ends at once.
    """

    scratch: pathlib.Path | None = None

    def __init__(self, layout: Layout, peers: list[_Peer]) -> None:
        self.layout = layout
        self._peers = peers
        self._over = False
        self._ending = threading.Lock()
        for peer in peers:
            peer.socket.settimeout(SILENCE)
        self._beating = _start_beating(peers)
        for peer in peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()

    @property
    def index(self) -> int:
        """This worker's place; the chief's is 0."""
        return self.layout.index

    @property
    def addresses(self) -> tuple[str, ...]:
        """`host:port` of each worker."""
        return self.layout.addresses

    @functools.cached_property
    def strategy(self) -> tf.distribute.Strategy:
        """Mirrors training over all workers. It is made before anything is computed."""
        import tensorflow as tf

        spec = tf.train.ClusterSpec({"worker": list(self.addresses)})
        return tf.distribute.MultiWorkerMirroredStrategy(
            tf.distribute.cluster_resolver.SimpleClusterResolver(
                spec, task_type="worker", task_id=self.index, rpc_layer="grpc"
            )
        )

    # --- What the chief tells the others ---

    def tell(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Sends to all others (of a worker: to the chief)."""
        for peer in self._peers:
            self._send(peer, message, payload)

    def hear(self) -> tuple[dict[str, Any], bytes]:
        """Waits for what the chief tells next."""
        return self._peers[0].came.get()

    def answers(self) -> list[dict[str, Any]]:
        """Waits for an answer of each of the others."""
        return [peer.came.get()[0] for peer in self._peers]

    def agree(self, value: Any) -> Any:
        """The chief's value, JSON-able, on all workers; all must ask."""
        if self.index:
            return self.hear()[0]["value"]
        self.tell({"value": value})
        return value

    def agree_on_arrays(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The chief's arrays on all workers, who have as many; all must ask."""
        if not self.index:
            content = io.BytesIO()
            np.savez(content, *arrays)
            self.tell({"arrays": len(arrays)}, content.getvalue())
            return arrays
        with np.load(io.BytesIO(self.hear()[1])) as given:
            return [given[f"arr_{place}"] for place in range(len(arrays))]

    def share(self, folder: pathlib.Path) -> None:
        """Copies the files of the chief's folder to the others'; all must ask."""
        if not self.index:
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in files:
                name = str(path.relative_to(folder))
                self.tell({"file": name}, path.read_bytes())
            self.tell({"file": None})
            return
        while True:
            message, content = self.hear()
            if message["file"] is None:
                return
            path = folder / message["file"]
            if ".." in path.parts or pathlib.PurePath(message["file"]).is_absolute():
                raise ValueError(f"expected a file inside a folder, got {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    # --- The end, good or bad ---

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.end()
        elif isinstance(error, Exception):
            self.fail(error)

    def end(self) -> None:
        """Ends the run on all workers: the chief first, who waits for the others."""
        if self.index:
            self._over = True
            self.tell({"bye": True})
        else:
            self.tell({"end": True})
            self.answers()
            self._over = True
        self._beating.communicate()  # It ends with its standard input.
        if "strategy" in vars(self):
            # TensorFlow's own thread that looks after the others sleeps for half a
            # minute at a time, and would be waited for. It is a daemon.
            self.strategy.extended._check_health_thread = None

    def fail(self, error: Exception) -> None:
        """Tells the others why this worker ends.

        What TensorFlow says of a broken connection is told better by who was lost: the
        thread that finds out ends the process.
        """
        if _is_of_connection(error):
            time.sleep(SILENCE + 2 * ANSWER)
        self._ending.acquire()
        lines = explain(error) or [f"{type(error).__name__}: {error}"]
        self._over = True
        for peer in self._peers:
            with contextlib.suppress(OSError):
                _send(peer, {"failed": self.index, "lines": lines})

    def _listen(self, peer: _Peer) -> None:
        while True:
            try:
                message, payload = _receive(peer.socket)
            except (OSError, ValueError) as error:
                self._lost(peer, error)
                return
            if "lost" in message:
                self._end_with([str(message["line"])])
            elif "failed" in message:
                who = self.layout.name(message["failed"])
                self._end_with([f"{who}: {line}" for line in message["lines"]])
            elif "beat" not in message:
                peer.left = "end" in message or "bye" in message
                peer.came.put((message, payload))
                if peer.left:
                    return

    def _send(self, peer: _Peer, message: dict[str, Any], payload: bytes = b"") -> None:
        try:
            _send(peer, message, payload)
        except OSError as error:
            self._lost(peer, error)

    def _lost(self, peer: _Peer, error: Exception) -> None:
        if self._over or peer.left:
            return
        silent = isinstance(error, TimeoutError)
        how = f"gave no sign for {SILENCE:.0f} s" if silent else "its connection broke"
        line = (
            f"{self.layout.name(peer.index)} was lost: {how}; start all workers again, "
            "with it or with the others alone, and the run goes on from its last epoch"
        )
        others = [other for other in self._peers if other is not peer]
        self._end_with([line], others)

    def _end_with(self, lines: list[str], tell: list[_Peer] | None = None) -> None:
        """Ends the process in these lines, wherever its first thread is waiting."""
        self._ending.acquire()
        for peer in tell if tell is not None else self._peers:
            peer.socket.settimeout(ANSWER)
            with contextlib.suppress(OSError):
                _send(peer, {"lost": True, "line": lines[0]})
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        _exit(lines)


def _start_beating(peers: list[_Peer]) -> subprocess.Popen[bytes]:
    """Starts the process that gives signs of life on these connections."""
    lock = tempfile.TemporaryFile(buffering=0)
    for place, peer in enumerate(peers):
        # Holds the file as well, which is closed with the last of them.
        peer.alone = functools.partial(_alone_on, lock, place)
    files = [lock.fileno(), *(peer.socket.fileno() for peer in peers)]
    told = [os.getpid(), BEAT, SILENCE, *files]
    return subprocess.Popen(
        [sys.executable, "-I", beat.__file__, *map(str, told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=files,
        start_new_session=True,  # Ctrl-C is for the worker.
    )


def _alone_on(lock: IO[bytes], place: int) -> contextlib.AbstractContextManager[None]:
    return beat.holding(lock.fileno(), place)


def _exit(lines: list[str]) -> NoReturn:
    try:
        text = "".join(f"kdprune: {line}\n" for line in lines)
        os.write(sys.stderr.fileno(), text.encode())
    finally:
        os._exit(2)


def join(layout: Layout, about: dict[str, Any]) -> Cluster:
    """Meets the other workers.

    Args:
        layout: Who they are.
        about: What must be the same on all, JSON-able: "recipe", "versions".

    Raises:
        Refused: If they are not about to run the same, or one of them is not there.
        OSError: If this worker's port is in use, or the chief can't be reached.
    """
    return Cluster(layout, meet(layout, about))


def about(recipe: Recipe, *options: str | None) -> dict[str, Any]:
    """What must be the same on all workers that run a recipe, or some of its stages."""
    content = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {
        "recipe": records.fingerprint({"recipe": content, "options": options}),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what computes, which must be the same on all workers."""
    matter = ("tensorflow", "tf_keras", "tensorflow-model-optimization", "numpy")
    found = records.versions()
    return {
        "kdprune": kdprune.__version__,
        **{name: found[name] for name in matter if name in found},
    }


# --- How they meet ---


def meet(layout: Layout, about: dict[str, Any], wait: float = WAIT) -> list[_Peer]:
    """Connects the chief with each of the others; see `join`."""
    hello = {"kdprune": True, "workers": list(layout.addresses), **about}
    hello["index"] = layout.index
    return (_join_chief if layout.index else _gather)(layout, hello, wait)


def _gather(layout: Layout, hello: dict[str, Any], wait: float) -> list[_Peer]:
    """The chief's part: waits for all others, and refuses what doesn't go together."""
    host, port = _address(layout, 0)
    try:
        listener = _listener(host, port)
    except OSError as error:
        _ask_namesake(layout, hello)
        raise _in_use(layout, error) from error
    peers: dict[int, _Peer] = {}
    strangers: list[socket.socket] = []
    problems: list[str] = []
    deadline = time.monotonic() + wait
    count = len(layout.addresses)
    told = 0.0
    with listener:
        while len(peers) + len(strangers) < count - 1:
            now = time.monotonic()
            if now > deadline:
                break
            if now > told + 30:
                told = now
                missing = [i for i in range(1, count) if i not in peers]
                names = ", ".join(layout.name(index) for index in missing)
                logger.info("waiting for %s", names)
            listener.settimeout(min(deadline - now, 1.0))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            other = _hello_of(connection)
            if other is None:
                connection.close()
                continue
            for gone in [i for i, one in peers.items() if _is_closed(one.socket)]:
                peers.pop(gone).socket.close()  # It may have been started again.
            problem = _problem(layout, hello, other, peers)
            index = int(other.get("index", 0)) if not problem else 0
            if problem:
                problems.append(problem)
                strangers.append(connection)
                deadline = min(deadline, time.monotonic() + GRACE)
            else:
                peers[index] = _Peer(index, connection)
    missing = [i for i in range(1, count) if i not in peers]
    if missing and not problems:
        names = ", ".join(layout.name(index) for index in missing)
        problems = [
            f"waited {wait:.0f} s for {names}: start all workers with the same "
            "--workers, each with its own --index, and see that they reach "
            f"{layout.addresses[0]}"
        ]
    everyone = [*(peer.socket for peer in peers.values()), *strangers]
    reply = {"refused": problems[0]} if problems else {"welcome": True}
    for connection in everyone:
        with contextlib.suppress(OSError):
            connection.sendall(_packed(reply))
    if problems:
        raise Refused(problems[0])
    return [peers[index] for index in sorted(peers)]


def _join_chief(layout: Layout, hello: dict[str, Any], wait: float) -> list[_Peer]:
    """The others' part: say hello to the chief, and wait to be welcomed."""
    try:
        _listener(*_address(layout, layout.index)).close()
    except OSError as error:
        # The others would wait for this worker.
        hello = {**hello, "problem": str(_in_use(layout, error))}
    chief = _address(layout, 0)
    deadline = time.monotonic() + (GRACE if "problem" in hello else wait)
    told = False
    while True:
        try:
            connection = socket.create_connection(chief, timeout=ANSWER)
            break
        except OSError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise OSError(
                    hello.get("problem")
                    or f"waited {wait:.0f} s for {layout.name(0)}, the chief: {error}; "
                    "start it, or correct its address"
                ) from error
            if not told:
                logger.info("waiting for %s, the chief", layout.name(0))
                told = True
            time.sleep(min(left, 0.5))
    return [_Peer(0, _welcomed(connection, layout, hello, wait))]


def _welcomed(
    connection: socket.socket, layout: Layout, hello: dict[str, Any], wait: float
) -> socket.socket:
    try:
        connection.sendall(_packed(hello))
        # The chief waits for all others before it answers.
        connection.settimeout(ANSWER if "problem" in hello else wait + GRACE + ANSWER)
        reply, _ = _receive(connection)
    except (OSError, ValueError) as error:
        connection.close()
        raise OSError(
            hello.get("problem")
            or f"{layout.name(0)}, the chief, did not answer as kdprune does: it has "
            "begun without this worker, or ended, or another program has that port; "
            "start all workers again"
        ) from error
    if "refused" in reply:
        connection.close()
        raise Refused(str(reply["refused"]))
    return connection


def _ask_namesake(layout: Layout, hello: dict[str, Any]) -> None:
    """Raises what the chief says who listens at this one's address, if one does."""
    with contextlib.suppress(OSError):
        connection = socket.create_connection(_address(layout, 0), timeout=ANSWER)
        _welcomed(connection, layout, hello, 0.0)


def _hello_of(connection: socket.socket) -> dict[str, Any] | None:
    """What a worker says first; None if it is none."""
    deadline = time.monotonic() + ANSWER
    try:
        other, _ = _receive(connection, 0, _LARGEST_HELLO, deadline)
    except (OSError, ValueError, RecursionError):  # Lists in lists, of a stranger.
        return None
    connection.settimeout(ANSWER)
    return other if other.get("kdprune") else None


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other end, which has nothing to say now, is gone."""
    if not select.select([connection], [], [], 0)[0]:
        return False
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _problem(
    layout: Layout, mine: dict[str, Any], other: dict[str, Any], known: Any
) -> str | None:
    """Why a worker can't take part, or None."""
    index, count = other.get("index"), len(layout.addresses)
    if other.get("workers") != mine["workers"]:
        return (
            f"a worker of index {index} was given other workers than the chief: "
            f"expected {', '.join(mine['workers'])} in this order on all, got "
            f"{other.get('workers')}"
        )
    if type(index) is not int or not 0 <= index < count:
        return f"expected an index from 0 to {count - 1}, got {index!r}"
    if index == 0 or index in known:
        return (
            f"expected each index once, got two workers of index {index}: start "
            f"{layout.name(index)} once, with --index {index}, and each other with its "
            "own"
        )
    if "problem" in other:
        return str(other["problem"])
    name = layout.name(index)
    ours, theirs = mine["versions"], other.get("versions")
    if theirs != ours:
        theirs = theirs if isinstance(theirs, dict) else {}
        differing = [
            key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)
        ]
        told = ", ".join(
            f"{key} {theirs.get(key, 'none')} (the chief: {ours.get(key, 'none')})"
            for key in differing
        )
        return f"{name} has other versions: {told}; install the same on all"
    if other.get("recipe") != mine["recipe"]:
        return (
            f"{name} was given another recipe than the chief: give all workers the "
            "same file, the same --set and the same --until"
        )
    return None


def _address(layout: Layout, index: int) -> tuple[str, int]:
    address = split_address(layout.addresses[index])
    assert address is not None  # It is checked with the layout.
    return address


def _listener(host: str, port: int) -> socket.socket:
    """Listens on this worker's port, which TensorFlow's server takes over.

    On all interfaces, as TensorFlow does: the machine's own name may stand for one
    that others don't reach, and its address for another outside a container.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # So that the port is free once more while connections made by it last.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _in_use(layout: Layout, error: OSError) -> OSError:
    return OSError(
        f"{layout.name(layout.index)} can't listen there: {error.strerror or error}; "
        "choose a free port of this machine for it, on all workers, or end what uses it"
    )


# --- Messages: a length, JSON, and the bytes of a file ---


def _packed(message: dict[str, Any], size: int = 0) -> bytes:
    header = json.dumps({**message, "bytes": size}).encode()
    return struct.pack(">I", len(header)) + header


def _send(peer: _Peer, message: dict[str, Any], payload: bytes = b"") -> None:
    with peer.sending, peer.alone():
        peer.socket.sendall(_packed(message, len(payload)))
        view = memoryview(payload)
        for start in range(0, len(payload), _PIECE):
            peer.socket.sendall(view[start : start + _PIECE])


def _receive(
    connection: socket.socket,
    largest: int | None = None,
    largest_message: int = _LARGEST_MESSAGE,
    deadline: float | None = None,
) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack(">I", _exactly(connection, 4, deadline))
    if size > largest_message:
        raise ValueError(f"a message of {size} bytes")
    message = json.loads(_exactly(connection, size, deadline))
    if not isinstance(message, dict) or type(message.get("bytes")) is not int:
        raise ValueError("a message that is not kdprune's")
    if largest is not None and message["bytes"] > largest:
        raise ValueError("a message that is not kdprune's")
    return message, _exactly(connection, message["bytes"])


def _exactly(
    connection: socket.socket, size: int, deadline: float | None = None
) -> bytes:
    content = bytearray()
    while len(content) < size:
        if deadline is not None:  # Of all of it: a byte a second is no answer.
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        piece = connection.recv(min(size - len(content), _PIECE))
        if not piece:
            raise ConnectionError("the connection was closed")
        content += piece
    return bytes(content)


def _is_of_connection(error: Exception) -> bool:
    """Whether TensorFlow says that another worker did not answer."""
    kinds = (
        "UnavailableError",
        "AbortedError",
        "CancelledError",
        "InternalError",
        "DeadlineExceededError",
        "FailedPreconditionError",
        "UnknownError",
    )
    return type(error).__name__ in kinds
