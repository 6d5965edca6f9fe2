"""Where the workers of a run meet before TensorFlow connects them.

TensorFlow waits for the others in C++ with Python's lock held: no signal is heard there, and there
is no limit. So each worker first opens its own port here, calls all others, and waits until all of
them have called.
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
from tfllm.training.stopping import asking

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_LINES = 30.0  # about whom is waited for
SECONDS_OF_ANSWER = 2.0
GREETING, GREETING_BYTES = b"tfllm worker ", 200

T = TypeVar("T")


def meet(cluster: Cluster, seconds: float) -> None:
    """Returns when this worker has called all others and all others have called this one.

    Raises SettingError where this worker's port cannot be opened, where others have not come within
    `seconds`, and where one was given other addresses. Signals are heard meanwhile.
    """
    others = {index for index in range(len(cluster)) if index != cluster.index}
    called: set[int] = set()
    callers: set[int] = set()
    begun = told = time.monotonic()
    with _open_port(cluster) as listener:
        while not (others <= called and others <= callers):
            called |= {each for each in others - called if _call(cluster, each)}
            callers |= _callers(listener, cluster)
            now = time.monotonic()
            missing = sorted(others - (called & callers))
            names = ", ".join(f"{index} ({cluster.addresses[index]})" for index in missing)
            if missing and now - begun >= seconds:
                raise SettingError(
                    f"{cluster.source}: after {seconds:g} seconds there is no answer from worker "
                    f"{names}. Start all workers, check these addresses, or raise "
                    "train.worker_timeout."
                )
            if missing and now - told >= SECONDS_BETWEEN_LINES:
                told = now
                log.warning("still waiting for worker %s", names)


@contextlib.contextmanager
def unheard(cluster: Cluster, seconds: float) -> Iterator[None]:
    """Around a wait in C++ that hears no signals: they end the process at once, as does the limit.

    A process beside this one keeps the limit, since no thread of this one may run meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in asking()}
    message = (
        f"tfllm: {cluster.source}: worker {cluster.index} ({cluster.addresses[cluster.index]}) has "
        f"met the others, but they have not connected within {seconds:g} seconds. Start all "
        "workers again."
    )
    watch = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCH, str(seconds), message], stdin=subprocess.PIPE
    )
    try:
        yield
    finally:
        watch.communicate()  # closes its stdin
        for number, handler in before.items():
            signal.signal(number, handler)


# Ends its parent unless its stdin is closed in time.
WATCH = """
import os, select, signal, sys
parent = os.getppid()
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    print(sys.argv[2], file=sys.stderr, flush=True)
    os.kill(parent, signal.SIGTERM)
"""


def heard(work: Callable[[], T]) -> T:
    """The result of `work`, which may wait in C++ for others; signals are heard meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # raised again in the main thread
            raised.append(error)

    thread = threading.Thread(target=run, name="collective", daemon=True)
    thread.start()
    thread.join()  # Python runs the handlers of signals while it waits here
    if raised:
        raise raised[0]
    return found[0]


def _call(cluster: Cluster, other: int) -> bool:
    """Tells another worker who calls; False where nobody listens, or the name is not known yet."""
    try:
        with socket.create_connection(
            host_and_port(cluster.addresses[other]), SECONDS_OF_ANSWER
        ) as connection:
            connection.sendall(_greeting(cluster, cluster.index))
            return True
    except OSError:
        return False


def _callers(listener: socket.socket, cluster: Cluster) -> set[int]:
    """The workers that have called; the first is waited for, SECONDS_BETWEEN_LOOKS at most."""
    known = {_greeting(cluster, index): index for index in range(len(cluster))}
    found = set()
    listener.settimeout(SECONDS_BETWEEN_LOOKS)
    with contextlib.suppress(TimeoutError, BlockingIOError):  # no more callers now
        for _ in cluster.addresses:
            connection, (host, *_) = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(SECONDS_OF_ANSWER)
                text = connection.makefile("rb").readline(GREETING_BYTES)
                if text in known:
                    found.add(known[text])
                elif text.startswith(GREETING):
                    raise SettingError(
                        f"{cluster.source}: a worker at {host} was given other addresses than this "
                        "one. Give all workers the same ones."
                    )
            listener.settimeout(0.0)
    return found


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
    """As TensorFlow's server: on all addresses of this machine."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port), backlog=backlog)
