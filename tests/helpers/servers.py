"""A server in a thread of the test process, on loopback ports that the system chose."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.waiting import PATIENCE_SECONDS, wait_for
from tfllm.serving.schema import ModelEntry, ServerOptions, VersionPolicy


class Running:
    """A Server in its own thread and event loop."""

    def __init__(self, server, new_event_loop=asyncio.new_event_loop):
        self.server = server
        self.loop = new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def call(self, work, seconds=PATIENCE_SECONDS):
        """Runs a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.rest_port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE_SECONDS)
        self.loop.close()


@contextmanager
def serving(entries, *, ready=True, load=None, config_file=None, new_event_loop=None, **options):
    """A running server; stopped at the end."""
    from tfllm.serving.server import Server

    settings = {"rest_port": 0, "grpc_port": 0, "poll_seconds": 0.05, **options}
    extra = {"load": load} if load else {}
    server = Server(entries, ServerOptions(**settings), config_file, **extra)
    running = Running(server, new_event_loop or asyncio.new_event_loop)
    try:
        running.call(running.server.start())
        try:
            if ready:
                wait_for(lambda: running.server.ready)
            yield running
        finally:
            running.call(running.server.stop())
    finally:
        running.close()


def entries_of(root: Path) -> list[ModelEntry]:
    return [
        ModelEntry(
            name="toy",
            base_path=str(root / "toy"),
            policy=VersionPolicy(kind="specific", versions=(1, 2)),
            labels={"stable": 1, "canary": 2},
        ),
        ModelEntry(name="kinds", base_path=str(root / "kinds")),
    ]
