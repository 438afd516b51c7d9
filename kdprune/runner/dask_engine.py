"""Stages on the workers of a dask scheduler, over a run folder that all of them share.

dask brings the machines: their connections, encryption, resources, and word of those
that are lost. What runs where is decided in `parallel`, as on one machine; each worker
runs a stage in a process of its own, as `--jobs` does (`dask_tasks`).

It is Python alone, and two commands start it; Ray would bring compiled wheels and
services of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import pathlib
import queue
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdprune._log import logger
from kdprune.runner import dask_tasks
from kdprune.runner.parallel import Ended, Job, Place

if TYPE_CHECKING:
    import distributed

ADDRESS = "tcp://127.0.0.1:8786"
# What a worker gives, as dask's resources.
CORES, GPU = "CORES", "GPU"
# Seconds: to connect; to wait for a first worker, and for another once all are lost;
# and until a new folder is seen by all who share it.
CONNECT, FIRST, ANOTHER, SEEN = 10.0, 60.0, 600.0, 10.0
# Seconds between two looks at which workers there are.
_LOOK = 2.0


def connect(address: str = ADDRESS, *, insecure: bool = False) -> Dask:
    """Connects to a scheduler, and checks what can be told without a run's folder.

    Args:
        address: `tls://host:port`, with the certificates of dask's own configuration,
            or `tcp://host:port` of this machine.
        insecure: Whether `tcp://` may lead to other machines.

    Raises:
        ValueError: If the address is not of that form or not secure, dask.distributed
            is not installed, or workers have other versions or give no cores.
        OSError: If the scheduler can't be reached, or has no workers.
    """
    try:
        import distributed
    except ImportError as error:
        raise ValueError(
            "--executor dask expects dask.distributed, which is in an extra: pip "
            f"install 'kdprune[cluster]'. Received: {error}"
        ) from error
    _check_address("--scheduler", address, insecure)
    _quiet()
    if address.startswith("tls:"):
        arguments = distributed.Security().get_connection_args("client")
        if not arguments.get("ssl_context"):
            raise ValueError(
                f"--scheduler {address} expects certificates in dask's configuration: "
                "set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …__TLS__CLIENT__CERT and "
                "…__TLS__CLIENT__KEY. Received: none"
            )
    try:
        client = distributed.Client(
            address, timeout=CONNECT, set_as_default=False, name="kdprune"
        )
    except (OSError, TimeoutError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        why = getattr(cause, "strerror", None) or str(cause)
        if not why:  # Time was up within an attempt.
            why = f"no answer in {CONNECT:g} s"
        raise OSError(
            f"can't reach the scheduler {address}: {why}; start it (dask scheduler "
            "--host 127.0.0.1), or correct --scheduler"
        ) from error
    engine = Dask(client, address, insecure)
    try:
        engine.meet()
    except BaseException:
        engine.close()
        raise
    return engine


class Dask:
    """The engine of `--executor dask`; made by `connect`, used as a context."""

    def __init__(self, client: Any, address: str, insecure: bool) -> None:
        self._client, self._address, self._insecure = client, address, insecure
        self._topic = f"kdprune-{uuid.uuid4().hex}"
        self._folder, self._word = "", ""
        # What is known of each worker, by its address; why others are left out.
        self._known: dict[str, dict[str, Any]] = {}
        self._refused: set[str] = set()
        self._running: dict[Job, distributed.Future] = {}
        self._ended: queue.Queue[tuple[Job, distributed.Future]] = queue.Queue()

    def __enter__(self) -> Dask:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close(timeout=CONNECT)

    def meet(self) -> None:
        """Learns what workers there are; raises what is wrong with any of them."""
        deadline, told = time.monotonic() + FIRST, False
        while not (found := self._workers()):
            if time.monotonic() > deadline:
                raise OSError(
                    f"the scheduler {self._address} has no workers: start some by "
                    f"`dask worker {self._address} --nthreads 1 --resources CORES=4`"
                )
            if not told:
                told = True
                logger.info("waiting for workers of %s", self._address)
            time.sleep(0.5)
        for address, problem in self._learn(found).items():
            raise ValueError(f"worker {address} {problem}")

    def enter(self, folder: pathlib.Path, lock: IO[str]) -> None:
        """Has all workers prove that they share the run's folder.

        Raises:
            ValueError: If one does not.
        """
        lock.seek(0)
        self._folder, self._word = str(folder.absolute()), lock.read()
        self._client.subscribe_topic(self._topic, _show)
        for address, problem in self._strangers(list(self._known)).items():
            raise ValueError(f"worker {address} {problem}")

    # --- As an engine of `parallel` ---

    def places(self) -> Sequence[Place]:
        """The places of all workers; waits for one where all were lost."""
        deadline, told = time.monotonic() + ANOTHER, False
        while True:
            self._look()
            places = _places(self._known)
            if places:
                return places
            if time.monotonic() > deadline:
                raise OSError(
                    f"the scheduler {self._address} has lost all its workers; start "
                    "some, and run the same command again to go on from here"
                )
            if not told:
                told = True
                logger.warning("all workers were lost: waiting for others")
            time.sleep(_LOOK)

    def start(self, job: Job, content: dict[str, Any]) -> None:
        resources = {CORES: len(job.cores), GPU: len(job.gpus)}
        future = self._client.submit(
            dask_tasks.run_stage,
            {**content, "path": _plugin_folders(content["recipe"].get("plugins", ()))},
            self._word,
            job.gpus,
            os.getcwd(),
            self._topic,
            key=f"{job.node.name}-{uuid.uuid4().hex}",
            workers=[job.worker],
            allow_other_workers=False,
            resources={name: count for name, count in resources.items() if count},
            pure=False,
        )
        self._running[job] = future
        future.add_done_callback(lambda future: self._ended.put((job, future)))

    def wait(self) -> Ended | None:
        try:
            job, future = self._ended.get(timeout=_LOOK)
        except queue.Empty:
            self._look()
            for job in self._running:
                if job.worker not in self._known:
                    self._running.pop(job).cancel()
                    return Ended(job, None)
            return None
        if job not in self._running:
            return None  # It was cancelled.
        del self._running[job]
        if future.status == "finished":
            try:
                return Ended(job, *future.result(timeout=CONNECT))
            except (OSError, TimeoutError):
                return Ended(job, None)  # Lost just after; the record will tell.
        error = future.exception() if future.status == "error" else None
        if future.status == "cancelled" or self._client.status != "running":
            raise self._lost(error)
        if error is None or type(error).__name__ in ("KilledWorker", "CommClosedError"):
            return Ended(job, None)  # What it returned may be lost with its worker.
        raise ValueError(
            f"worker {job.worker} could not run {job.node.name!r}: {error}"
        )

    def stop(self) -> None:
        """Leaves what is under way: it ends as soon as the folder's lock is free."""
        for future in self._running.values():
            with contextlib.suppress(Exception):
                future.cancel()
        self._running.clear()

    # --- Workers ---

    def _workers(self) -> dict[str, dict[str, Any]]:
        """What the scheduler says of its workers, by their addresses."""
        try:
            told = self._client.scheduler_info(n_workers=-1)
        except (OSError, TimeoutError) as error:
            raise self._lost(error) from error
        if "address" not in told:
            raise self._lost(None)  # The client has given up.
        for address in (told["address"], *told["workers"]):
            _check_address(
                f"the cluster of --scheduler {self._address}", address, self._insecure
            )
        return told["workers"]

    def _lost(self, error: BaseException | None) -> OSError:
        why = f" ({error})" if error else ""
        return OSError(
            f"the scheduler {self._address} was lost{why}; start it and its workers, "
            "and run the same command again to go on from here"
        )

    def _look(self) -> None:
        """Takes note of workers that came or were lost since."""
        workers = self._workers()
        for address in set(self._known) - set(workers):
            del self._known[address]
        self._refused.intersection_update(workers)  # Mended, one may come back.
        new = {
            a: w for a, w in workers.items() if a not in (*self._known, *self._refused)
        }
        if not new:
            return
        problems = self._learn(new)
        problems |= self._strangers([one for one in new if one not in problems])
        for address, problem in problems.items():
            self._known.pop(address, None)
            self._refused.add(address)
            logger.warning("worker %s is left out: it %s", address, problem)

    def _learn(self, workers: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Asks new workers what they are; returns what is wrong, by their addresses."""
        answers = self._ask(list(workers), dask_tasks.describe)
        problems = {}
        for address, answer in answers.items():
            told = workers[address]
            problem = _problem(answer, told)
            if not problem and address.startswith("tcp:") and not self._insecure:
                problem = _open_to(answer)
            if problem:
                problems[address] = problem
                continue
            others = [
                one
                for one in self._known.values()
                if one["machine"] == answer["machine"]
            ]
            share = _share(answer, told, others)
            if isinstance(share, str):
                problems[address] = share
            else:
                self._known[address] = share
        return problems

    def _strangers(self, addresses: list[str]) -> dict[str, str]:
        """Which workers do not share the run's folder, and in what way."""
        if not addresses:
            return {}
        deadline = time.monotonic() + SEEN
        while True:
            answers = self._ask(
                addresses, dask_tasks.find_run, self._folder, self._word
            )
            if not any(answers.values()) or time.monotonic() > deadline:
                break
            time.sleep(1)
        return {
            address: f"does not share the run's folder {self._folder}: it {answer}; "
            "let --output be a folder that all machines share"
            for address, answer in answers.items()
            if answer
        }

    def _ask(
        self, addresses: list[str], function: Any, *arguments: Any
    ) -> dict[str, Any]:
        try:
            answers = self._client.run(
                function, *arguments, workers=addresses, on_error="return"
            )
        except (OSError, TimeoutError) as error:
            raise self._lost(error) from error
        # One that was lost meanwhile is no longer told of by the scheduler.
        return {at: one for at, one in answers.items() if not isinstance(one, OSError)}


def _problem(answer: Any, told: dict[str, Any]) -> str | None:
    """What is wrong with a worker, if anything."""
    if isinstance(answer, Exception):
        return (
            "can't run this kdprune: install the same version and extra there "
            f"({type(answer).__name__}: {answer})"
        )
    for name, mine in dask_tasks.versions().items():
        theirs = answer["versions"].get(name)
        if theirs != mine:
            return f"has {name} {theirs}, and this process {mine}: install the same"
    if told["resources"].get(CORES, 0) < 1:
        return (
            f"gives no {CORES}: start it with --resources {CORES}=N, of how many cores "
            f"it may use (it has {len(answer['cores'])})"
        )
    return None


def _open_to(answer: dict[str, Any]) -> str | None:
    """Says so of a worker that other machines can reach."""
    others = [one for one in answer["listens"] if not _is_loopback(one)]
    if not others:
        return None
    return (
        f"listens on {others[0]}, where other machines may reach it: start it with "
        "--host 127.0.0.1, or use tls:// with certificates, or --insecure where all "
        "who reach these ports may run code on all machines"
    )


def _share(
    answer: dict[str, Any], told: dict[str, Any], others: list[dict[str, Any]]
) -> dict[str, Any] | str:
    """The cores and GPUs of a worker, none of which another of its machine has.

    Args:
        answer: What it says of itself (`dask_tasks.describe`).
        told: What the scheduler says of it.
        others: What was found of others on its machine.

    Returns:
        What is known of it, or what is wrong.
    """
    cores, gpus = (int(told["resources"].get(name, 0)) for name in (CORES, GPU))
    taken = {core for other in others for core in other["cores"]}
    free = [core for core in answer["cores"] if core not in taken]
    if len(free) < cores:
        return (
            f"gives {CORES}={cores}, and has {len(free)} on {answer['host']} that no "
            "other worker has"
        )
    used = {gpu for other in others for gpu in other["gpus"]}
    # Unnamed, they are counted as CUDA does.
    names = answer["gpus"] or [str(n) for n in range(len(used) + gpus)]
    unused = [gpu for gpu in names if gpu not in used]
    if len(unused) < gpus:
        return (
            f"gives {GPU}={gpus}, and has {len(unused)} in CUDA_VISIBLE_DEVICES that "
            "no other worker has"
        )
    return {
        "machine": answer["machine"],
        "cores": free[:cores],
        "gpus": unused[:gpus],
        "threads": int(told["nthreads"]),
    }


def _places(known: dict[str, dict[str, Any]]) -> list[Place]:
    """As many places of each worker as it has threads, each with a core (and a GPU)."""
    places = []
    for address, one in known.items():
        count = min(
            one["threads"], len(one["cores"]), len(one["gpus"]) or one["threads"]
        )
        places += [
            Place(
                one["machine"],
                address,
                tuple(one["cores"][index::count]),
                tuple(one["gpus"][index::count]),
            )
            for index in range(count)
        ]
    return places


def _check_address(what: str, address: str, insecure: bool) -> None:
    """Raises `ValueError` for an address that is of no use, or open to others."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("tcp", "tls"):
        raise ValueError(
            f"{what} expects tcp://HOST:PORT or tls://HOST:PORT. Received: {address!r}"
        )
    if parts.scheme == "tcp" and not insecure and not _is_loopback(host):
        raise ValueError(
            f"{what} expects addresses of this machine alone (dask scheduler --host "
            "127.0.0.1, dask worker --host 127.0.0.1), or tls:// with certificates, or "
            "--insecure where all who reach these ports may run code on all machines. "
            f"Received: {address}"
        )


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)


def _plugin_folders(modules: Sequence[str]) -> list[str]:
    """Where the modules that the recipe names are, to look for them there."""
    folders = []
    for name in modules:
        file = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
        if file:
            path = pathlib.Path(file)
            folders.append(str(path.parents[path.name == "__init__.py"]))
    return folders


def _show(event: tuple[float, Any]) -> None:
    logger.info("%s", event[1])


def _quiet() -> None:
    """What dask logs of lost workers is told by us, in a line each."""
    for name in ("distributed", "tornado", *logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
