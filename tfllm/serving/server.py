"""One process that answers REST and gRPC over the same models, from start to drained stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path

import grpc
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from tfllm.errors import SettingError, TfllmError
from tfllm.serving import rest, sockets, tfserving, warmup
from tfllm.serving.connections import protocol
from tfllm.serving.grpc import Calls, ModelService, PredictionService
from tfllm.serving.internals import HttpServer
from tfllm.serving.lifecycle import Models
from tfllm.serving.observe import Metrics
from tfllm.serving.schema import Code, ModelEntry, RequestError, ServerOptions
from tfllm.serving.servable import Servable, code_of
from tfllm.serving.service import Service
from tfllm.serving.sockets import ACCEPT_SECONDS, refuse_connections

log = logging.getLogger("tfllm.serving")

HEALTH_NAMES = (
    "",
    "PredictionService",
    "ModelService",
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
)
TERMINATED = 128 + signal.SIGTERM
CONNECTIONS_WAITING = 2048
FIRST_REQUEST_SECONDS = 1.0  # for who has just connected when the server closes
WARM_UP_PATIENCE = 10  # times `timeout_seconds`: first runs are slow
PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)  # all others are the host's


class Server:
    """`await start()`, then `await stop()`; or `await run()`, which ends on SIGTERM."""

    def __init__(
        self,
        entries: Sequence[ModelEntry],
        options: ServerOptions | None = None,
        config_file: str | Path | None = None,
        load: Callable | None = None,
    ):
        self.options = options or ServerOptions()
        self.config_file = Path(config_file) if config_file else None
        self.entries = list(entries)
        self.metrics = Metrics()
        self.draining = False
        self.rest_port = self.grpc_port = 0
        self._load = load or partial(Servable, threads=self.options.batching.num_batch_threads)
        self._config_text: bytes | None = None
        self._refused: tuple[list[ModelEntry], model_server_config_pb2.ModelServerConfig] | None = (
            None
        )

    @property
    def ready(self) -> bool:
        """Every model answers, and the server is not on its way down."""
        return self.models.ready and not self.draining

    async def start(self) -> None:
        """Open both ports and begin to load. Raises SettingError where a port is taken."""
        options = self.options
        _check_tls(options)
        self.models = Models(
            self._load, options.poll_seconds, self._changed, self._warm, options.load_threads
        )
        self.service = Service(self.models, options.limits, options.batching, self.metrics)
        self._calls = Calls()
        self._health = health.aio.HealthServicer()
        self._changes: set[asyncio.Task] = set()
        listening = _listen(options.host, options.rest_port)
        try:
            self._grpc = self._grpc_server()
            await self._grpc.start()
        except BaseException:
            listening.close()
            raise
        self.rest_port = listening.getsockname()[1]
        self._http = _DrainingHttpServer(self._http_config())
        self._http_task = asyncio.create_task(self._http.serve(sockets=[listening]))
        self.models.apply(self.entries)
        await self._publish_health()
        self._poll_task = asyncio.create_task(self._poll())

    async def stop(self, lame_duck_seconds: float = 0.0) -> None:
        """Answer everything that is under way, then close. Not ready from the first moment.

        In the second half of `lame_duck_seconds` every REST answer is its connection's last, so
        that no client has a connection left on which it could send when they close. New
        connections are taken until then.
        """
        self.draining = True
        await self._publish_health()
        self._poll_task.cancel()
        self.models.cancel_loads()
        await asyncio.sleep(lame_duck_seconds / 2)
        self._application.closing = True
        await asyncio.sleep(lame_duck_seconds / 2)
        await asyncio.gather(self._stop_grpc(), self._stop_http(), return_exceptions=True)
        for task in self._changes:
            task.cancel()
        await self.models.close()
        await self.service.close()
        log.info("stopped")

    async def run(self, started: Callable[[Server], None] = lambda server: None) -> None:
        """Serve until SIGTERM or Ctrl-C, and drain. A second signal ends the process at once."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if stopping.is_set():
                sys.stderr.flush()
                os._exit(TERMINATED)
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await self.start()
        started(self)
        await stopping.wait()
        log.info("draining")
        await self.stop(self.options.lame_duck_seconds)

    async def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Replace the models by a ModelServerConfig; return when they are available."""
        await self.use(tfserving.entries(config))

    async def use(self, entries: list[ModelEntry]) -> None:
        """Replace the models, all or none; it completes even if the caller no longer waits.

        Raises:
            RequestError: One of them cannot be served.
        """
        task = self._spawn(self._use(entries))
        task.add_done_callback(_log_failure)
        await asyncio.shield(task)

    async def _use(self, entries: list[ModelEntry]) -> None:
        await self.models.change(entries)
        self.entries, self._refused = entries, None

    def _warm(self, servable: Servable) -> None:
        """Replay warm-up requests, in a thread. They get a multiple of a client's time limit."""
        started, code = time.monotonic(), Code.OK
        count = 1
        try:
            count = warmup.replay(servable, WARM_UP_PATIENCE * self.options.limits.timeout_seconds)
        except Exception as error:
            code = code_of(error)
            raise
        finally:
            if count:
                seconds = time.monotonic() - started
                self.metrics.warm_up(str(servable.path), code, seconds)

    async def _poll(self) -> None:
        while True:
            try:
                await self._poll_config()
                await self.models.poll()
            except Exception as error:  # whatever it is, the next look may be better
                log.error("poll: %s: %s", type(error).__name__, error)
            await asyncio.sleep(self.options.poll_seconds)

    async def _poll_config(self) -> None:
        """Apply a changed configuration file; a wrong one is reported once and left.

        One whose models cannot be served is tried again when something else lies on the disk.
        """
        if self.config_file is None:
            return
        try:
            text = self.config_file.read_bytes()
        except OSError:
            return
        if text == self._config_text:
            if self._refused:
                entries, then = self._refused
                if await self.models.snapshot(entries) != then:
                    self._refused = None
                    self._spawn(self._apply_config(entries))
            return
        self._config_text, self._refused = text, None
        try:
            entries = tfserving.read_models(self.config_file)
        except TfllmError as error:
            log.error("the configuration stays as it was: %s", error.cli_message)
            return
        if entries != self.entries:
            self._spawn(self._apply_config(entries))

    async def _apply_config(self, entries: list[ModelEntry]) -> None:
        seen = await self.models.snapshot(entries)
        try:
            await self._use(entries)
            log.info("applied %s", self.config_file)
        except RequestError as error:
            self._refused = entries, seen
            log.error("%s: %s. The configuration stays as it was.", self.config_file, error.message)

    def _changed(self) -> None:
        states = [
            (version.model, version.number, int(version.state))
            for model in self.models.models.values()
            for version in model.versions.values()
        ]
        self.metrics.versions(states)
        self._spawn(self._publish_health())

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task:
        task = asyncio.get_running_loop().create_task(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task

    async def _publish_health(self) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        state = status.SERVING if self.ready else status.NOT_SERVING
        for name in HEALTH_NAMES:
            await self._health.set(name, state)

    async def _stop_http(self) -> None:
        self._http.should_exit = True
        await self._http_task

    async def _stop_grpc(self) -> None:
        """Refuse what has not begun with UNAVAILABLE, finish what has, and close the connections.

        grpc's own `stop` answers what arrives before the client has read its GOAWAY with CANCELLED
        (grpc#41785), after which a client does not try elsewhere. A connection that ends is
        UNAVAILABLE. So nobody may be connected any more when it is called.
        """
        await self._calls.finish(self.options.drain_seconds)
        listening = list(sockets.sockets_on_port(self.grpc_port, listening=True))
        await refuse_connections(listening)
        for listener in listening:
            listener.close()
        for connection in sockets.sockets_on_port(self.grpc_port, listening=False):
            with contextlib.suppress(OSError), connection:
                connection.shutdown(socket.SHUT_RDWR)
        await self._grpc.stop(None)

    def _grpc_server(self) -> grpc.aio.Server:
        options = self.options
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", options.limits.message_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self.service, options.token, self._calls), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(
                self.service, options.token, self._calls, self.reload if options.admin else None
            ),
            server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        address = f"{url_host(options.host)}:{options.grpc_port}"
        try:
            if options.certificate and options.key:
                self.grpc_port = server.add_secure_port(address, _grpc_credentials(options))
            else:
                self.grpc_port = server.add_insecure_port(address)
        except RuntimeError:
            self.grpc_port = 0
        if not self.grpc_port:
            raise _port_taken(options.host, options.grpc_port, "--grpc-port")
        return server

    def _http_config(self) -> uvicorn.Config:
        options = self.options
        self._application = rest.Application(
            self.service, lambda: self.ready, options.token, options.access_log
        )
        return uvicorn.Config(
            self._application,
            http=protocol(options.limits),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(options.limits.header_seconds) or 1,
            timeout_graceful_shutdown=int(options.drain_seconds) or 1,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
            ssl_ca_certs=options.client_ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if options.client_ca else ssl.CERT_NONE,
        )


def _log_failure(task: asyncio.Task) -> None:
    """Log a failed change, also of a call whose client is gone."""
    if not task.cancelled() and (error := task.exception()):
        log.error("the list of models stays as it was: %s", error)


class _DrainingHttpServer(HttpServer):
    """Closes its connections without losing a request."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, accept those that wait, and then close them all.

        A connection whose first request has not come yet is given a moment for it.
        """
        await refuse_connections(sockets or [])
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + FIRST_REQUEST_SECONDS
        while loop.time() < end and any(c.waits_for_request for c in self.connections):
            await asyncio.sleep(ACCEPT_SECONDS / 10)
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: asyncio switches Nagle's algorithm off only where it is, and an answer
    # in two parts would wait 40 ms for the client's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(CONNECTIONS_WAITING)
    except OSError as error:
        listening.close()
        option = "--rest-port" if error.errno in PORT_ERRORS else "--host"
        raise _port_taken(host, port, option, error.strerror) from None
    return listening


def _port_taken(host: str, port: int, option: str, reason: str | None = None) -> SettingError:
    return SettingError(
        f"Cannot listen on {url_host(host)}:{port}: {(reason or 'it is taken').lower()}. "
        f"Choose another {option}."
    )


def url_host(host: str) -> str:
    """Return a host as it is written in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _check_tls(options: ServerOptions) -> None:
    """Raise SettingError where the PEM files cannot be used, before a port is opened."""
    if not options.certificate:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.certificate, options.key)
        if options.client_ca:
            context.load_verify_locations(options.client_ca)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise SettingError(
            f"--certificate '{options.certificate}', --key or --client-ca cannot be used: "
            f"{str(reason).lower().replace('_', ' ')}. They must be PEM files that fit each other."
        ) from None


def _grpc_credentials(options: ServerOptions) -> grpc.ServerCredentials:
    key = Path(str(options.key)).read_bytes()
    certificate = Path(str(options.certificate)).read_bytes()
    client_ca = Path(options.client_ca).read_bytes() if options.client_ca else None
    return grpc.ssl_server_credentials(
        [(key, certificate)], client_ca, require_client_auth=client_ca is not None
    )
