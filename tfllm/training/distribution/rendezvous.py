"""A rendezvous of the workers of a run before TensorFlow connects them.

TensorFlow waits for the others in C++ while holding Python's GIL: no signal handler runs, and there
is no timeout. So each worker first opens its own port here, calls all others, and waits until all
of them have called.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tfllm.errors import SettingError
from tfllm.training.distribution.cluster import Cluster, host_and_port
from tfllm.training.stopping import stop_signals

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
LOG_SECONDS = 30.0  # between lines about missing workers
ANSWER_SECONDS = 2.0
GREETING, GREETING_BYTES = b"tfllm worker ", 200

T = TypeVar("T")


def wait_for_workers(cluster: Cluster, seconds: float) -> None:
    """Return when this worker has called all others and all others have called this one.

    Signal handlers run meanwhile.

    Args:
        cluster: All workers, and which of them this process is.
        seconds: The timeout.

    Raises:
        SettingError: This worker's port cannot be opened, others have not come in time, or one
            was started with other addresses.
    """
    others = {index for index in range(len(cluster)) if index != cluster.index}
    called: set[int] = set()
    callers: set[int] = set()
    started = logged = time.monotonic()
    with _open_port(cluster) as listener:
        while not (others <= called and others <= callers):
            called |= {each for each in others - called if _call(cluster, each)}
            callers |= _callers(listener, cluster)
            now = time.monotonic()
            missing = sorted(others - (called & callers))
            names = ", ".join(f"{index} ({cluster.addresses[index]})" for index in missing)
            if missing and now - started >= seconds:
                raise SettingError(
                    f"{cluster.source}: after {seconds:g} seconds there is no answer from worker "
                    f"{names}. Start all workers, check these addresses, or raise "
                    "train.worker_timeout."
                )
            if missing and now - logged >= LOG_SECONDS:
                logged = now
                log.warning("still waiting for worker %s", names)


@contextlib.contextmanager
def default_signals(cluster: Cluster, seconds: float) -> Iterator[None]:
    """Let signals end the process inside the block, a wait in C++ that runs no signal handlers.

    So does the timeout, which a child process enforces, since no thread of this one may run
    meanwhile.

    Args:
        cluster: The workers that are waited for.
        seconds: The timeout.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in stop_signals()}
    message = (
        f"tfllm: {cluster.source}: worker {cluster.index} ({cluster.addresses[cluster.index]}) has "
        f"met the others, but they have not connected within {seconds:g} seconds. Start all "
        "workers again."
    )
    watchdog = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCHDOG, str(seconds), message], stdin=subprocess.PIPE
    )
    try:
        yield
    finally:
        watchdog.communicate()  # closes its stdin
        for number, handler in before.items():
            signal.signal(number, handler)


# Ends its parent unless its stdin is closed in time.
WATCHDOG = """
import os, select, signal, sys
parent = os.getppid()
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[2], file=sys.stderr, flush=True)
    os.kill(parent, signal.SIGTERM)
"""


def run_interruptibly(work: Callable[[], T]) -> T:
    """Run `work`, which may wait in C++ for others, while signal handlers still run."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # whatever it is, it is raised in the main thread
            raised.append(error)

    thread = threading.Thread(target=run, name="collective", daemon=True)
    thread.start()
    thread.join()  # Python runs the handlers of signals while it waits here
    if raised:
        raise raised[0]
    return results[0]


def _call(cluster: Cluster, other: int) -> bool:
    """Send this worker's greeting to another; False where nobody listens or the name is unknown."""
    try:
        with socket.create_connection(
            host_and_port(cluster.addresses[other]), ANSWER_SECONDS
        ) as connection:
            connection.sendall(_greeting(cluster, cluster.index))
            return True
    except OSError:
        return False


def _callers(listener: socket.socket, cluster: Cluster) -> set[int]:
    """The workers that have called; waits POLL_SECONDS at most for the first."""
    known = {_greeting(cluster, index): index for index in range(len(cluster))}
    callers = set()
    listener.settimeout(POLL_SECONDS)
    with contextlib.suppress(TimeoutError, BlockingIOError):  # no more callers now
        for _ in cluster.addresses:
            connection, (host, *_) = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(ANSWER_SECONDS)
                text = connection.makefile("rb").readline(GREETING_BYTES)
                if text in known:
                    callers.add(known[text])
                elif text.startswith(GREETING):
                    raise SettingError(
                        f"{cluster.source}: a worker at {host} was given other addresses than this "
                        "one. Give all workers the same ones."
                    )
            listener.settimeout(0.0)
    return callers


def _greeting(cluster: Cluster, index: int) -> bytes:
    digest = hashlib.sha256("\n".join(cluster.addresses).encode()).hexdigest()
    return GREETING + f"{digest} {index}\n".encode()


@contextlib.contextmanager
def _open_port(cluster: Cluster) -> Iterator[socket.socket]:
    address = cluster.addresses[cluster.index]
    _, port = host_and_port(address)
    try:
        listener = _listener(port, len(cluster))
    except OSError as error:
        reason = (
            "is in use by another process"
            if error.errno == errno.EADDRINUSE
            else f"cannot be opened ({error.strerror})"
        )
        raise SettingError(
            f"{cluster.source}: port {port} of this worker's address '{address}' {reason}. End the "
            "process that has it, or give this worker another port, for all workers alike."
        ) from None
    with listener:
        yield listener


def _listener(port: int, backlog: int) -> socket.socket:
    """Listen on all addresses of this machine, as TensorFlow's server does."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port), backlog=backlog)
