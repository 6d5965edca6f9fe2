"""`tfllm serve`: SavedModels over REST and gRPC."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tfllm.serving.schema import Batching, Limits, ModelEntry, ServerOptions

EXAMPLES = """Examples:

  tfllm serve out/sentiment

  tfllm serve out/sentiment other=/models/topics --rest-port 8501 --grpc-port 8500

  tfllm serve --config serving/models.config

  TFLLM_TOKEN=... tfllm serve out/sentiment --host 0.0.0.0

  curl -d '{"instances": ["good"]}' http://127.0.0.1:8501/v1/models/sentiment:predict
"""

TOKEN_VARIABLE = "TFLLM_TOKEN"
# Options with a range, by the names of the settings that hold it (serving/schema.py).
OPTIONS = {
    "rest_port": "--rest-port",
    "grpc_port": "--grpc-port",
    "poll_seconds": "--poll-seconds",
    "lame_duck_seconds": "--lame-duck",
    "drain_seconds": "--drain",
    "timeout_seconds": "--timeout",
    "body_bytes": "--body-bytes",
    "message_bytes": "--message-bytes",
    "rows": "--rows",
    "text_characters": "--text-characters",
    "queue_rows": "--queue-rows",
    "num_batch_threads": "--threads",
}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHORTEST_TOKEN = 8


Directories = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DIR]...",
        help="Exported models: folders that hold version folders (DIR/1/saved_model.pb). "
        "The folder's name is the model's; NAME=DIR gives another.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        help="TF Serving's models.config: names, versions, labels. Read again whenever it changes."
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
RestPort = Annotated[int, typer.Option(help="Port of REST; 0 takes a free one.")]
GrpcPort = Annotated[int, typer.Option(help="Port of gRPC; 0 takes a free one.")]
BatchingFile = Annotated[
    Path | None,
    typer.Option("--batching-parameters-file", help="TF Serving's batching_parameters.txt."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Batches that run in parallel, on one core each. Unset: as the batching file says, "
        "else 2."
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help=f"File with the bearer token to require; or set {TOKEN_VARIABLE}."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow requests without a token from other machines.")
]
CertificateFile = Annotated[Path | None, typer.Option(help="TLS certificate chain, PEM.")]
KeyFile = Annotated[Path | None, typer.Option(help="TLS private key, PEM.")]
ClientCa = Annotated[
    Path | None, typer.Option(help="Require client certificates of this authority, PEM.")
]
PollSeconds = Annotated[float, typer.Option(help="Seconds between checks for new versions.")]
TimeoutSeconds = Annotated[float, typer.Option(help="Deadline of a request, in seconds.")]
LameDuckSeconds = Annotated[
    float, typer.Option(help="Seconds of answering after SIGTERM while /readyz says not ready.")
]
DrainSeconds = Annotated[float, typer.Option(help="Seconds that running requests have to finish.")]
MaxBodyBytes = Annotated[int, typer.Option(help="Maximum size of a REST body, in bytes.")]
MaxMessageBytes = Annotated[int, typer.Option(help="Maximum size of a gRPC message, in bytes.")]
MaxRows = Annotated[int, typer.Option(help="Maximum number of rows in a request.")]
MaxTextCharacters = Annotated[
    int, typer.Option(help="Maximum characters of a text; strings that are not UTF-8 do not count.")
]
MaxQueueRows = Annotated[
    int | None,
    typer.Option(
        help="Rows that may wait for one signature: 256, or max_enqueued_batches of "
        "the batching file."
    ),
]
AccessLog = Annotated[
    bool, typer.Option("--access-log", help="Log a line per request, without its text.")
]


def serve(
    directories: Directories = None,
    config: ConfigFile = None,
    host: Host = "127.0.0.1",
    rest_port: RestPort = 8501,
    grpc_port: GrpcPort = 8500,
    batching: BatchingFile = None,
    threads: Threads = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    certificate: CertificateFile = None,
    key: KeyFile = None,
    client_ca: ClientCa = None,
    poll_seconds: PollSeconds = 1.0,
    timeout: TimeoutSeconds = 30.0,
    lame_duck: LameDuckSeconds = 2.0,
    drain: DrainSeconds = 10.0,
    body_bytes: MaxBodyBytes = 1 << 20,
    message_bytes: MaxMessageBytes = 4 << 20,
    rows: MaxRows = 256,
    text_characters: MaxTextCharacters = 100_000,
    queue_rows: MaxQueueRows = None,
    access_log: AccessLog = False,
) -> None:
    """Answer TF Serving's REST and gRPC calls for every model given, and load new versions."""
    from tfllm.errors import SettingError

    if not directories and config is None:
        raise SettingError("Name a model folder (tfllm serve DIR) or a --config file.")
    host = host.removeprefix("[").removesuffix("]")
    token = _token(token_file)
    _check_access(host, token, insecure)
    _check_files(certificate, key, client_ca)
    entries = [_entry(directory) for directory in directories or []]

    limits = _limits(
        timeout_seconds=timeout, body_bytes=body_bytes, message_bytes=message_bytes, rows=rows,
        text_characters=text_characters, queue_rows=queue_rows,
    )  # fmt: skip
    options = _options(
        host=host, rest_port=rest_port, grpc_port=grpc_port, token=token,
        admin=token is not None or host in LOOPBACK,
        certificate=str(certificate) if certificate else None,
        key=str(key) if key else None,
        client_ca=str(client_ca) if client_ca else None,
        poll_seconds=poll_seconds, lame_duck_seconds=lame_duck, drain_seconds=drain,
        access_log=access_log, limits=limits, batching=_batching(threads),
    )  # fmt: skip
    _needs_extra()
    entries = _all_entries(entries, config)
    if batching is not None:
        from tfllm.serving import tfserving

        options = _with_batching(options, tfserving.read_batching(batching), threads, queue_rows)
    _run(entries, options, config)


def _limits(queue_rows: int | None, **limits: float) -> Limits:
    """The limits of requests. Raises SettingError naming the option."""
    from tfllm.config import build_from_fields
    from tfllm.serving.schema import Limits

    rows = {} if queue_rows is None else {"queue_rows": queue_rows}
    return build_from_fields(Limits, OPTIONS, **limits, **rows)


def _batching(threads: int | None) -> Batching:
    from tfllm.config import build_from_fields
    from tfllm.serving.schema import Batching

    return build_from_fields(
        Batching, OPTIONS, **({} if threads is None else {"num_batch_threads": threads})
    )


def _options(**fields: Any) -> ServerOptions:
    from tfllm.config import build_from_fields
    from tfllm.serving.schema import ServerOptions

    return build_from_fields(ServerOptions, OPTIONS, **fields)


def _all_entries(entries: list[ModelEntry], config: Path | None) -> list[ModelEntry]:
    """The models of the folders given, or of a models.config. Raises SettingError."""
    from tfllm.errors import SettingError
    from tfllm.serving import tfserving

    if config is not None:
        if entries:
            raise SettingError("Give model folders or --config, not both.")
        entries = tfserving.read_models(config)
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingError(f"Two models are named '{twice}'. Give one as NAME=DIR.")
    return entries


def _with_batching(
    options: ServerOptions, sizes: Batching, threads: int | None, queue_rows: int | None
) -> ServerOptions:
    """The options with a batching file's sizes, where no option says otherwise."""
    limits = options.limits
    if threads is not None:
        sizes = sizes.model_copy(update={"num_batch_threads": threads})
    if queue_rows is None and sizes.max_enqueued_batches is not None:
        waiting = sizes.max_enqueued_batches * sizes.max_batch_size
        limits = limits.model_copy(update={"queue_rows": waiting})
    return options.model_copy(update={"batching": sizes, "limits": limits})


def _run(entries: list[ModelEntry], options: ServerOptions, config: Path | None) -> None:
    """Serve until a signal ends it; then leave the process."""
    import asyncio
    import importlib.util

    # gRPC's C library writes plain lines, and says nothing that our own errors do not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tfllm.serving.observe import configure_logging
    from tfllm.serving.server import Server, url_host

    new_event_loop: Any = asyncio.new_event_loop
    if importlib.util.find_spec("uvloop"):  # faster, and not made for every system
        import uvloop

        new_event_loop = uvloop.new_event_loop

    configure_logging(options.access_log)

    def started(server: Server) -> None:
        scheme = "https" if options.certificate else "http"
        typer.echo(
            f"rest={scheme}://{url_host(options.host)}:{server.rest_port} "
            f"grpc={url_host(options.host)}:{server.grpc_port} "
            f"models={','.join(entry.name for entry in entries)}"
        )
        sys.stdout.flush()

    async def serve_and_leave() -> None:
        await Server(entries, options, config).run(started)
        # Everything is answered and closed. What Python and TensorFlow would still tidy up takes
        # seconds, and waits for loads that nobody needs any more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve_and_leave())


def _check_access(host: str, token: str | None, insecure: bool) -> None:
    from tfllm.errors import SettingError

    if host not in LOOPBACK and token is None and not insecure:
        raise SettingError(
            f"--host {host} can be reached from outside. Set {TOKEN_VARIABLE} or --token-file, "
            "or say --insecure."
        )


def _check_files(certificate: Path | None, key: Path | None, client_ca: Path | None) -> None:
    from tfllm.errors import SettingError

    if (certificate is None) != (key is None) or (client_ca and certificate is None):
        raise SettingError("TLS needs --certificate and --key together (and then --client-ca).")
    for path in (certificate, key, client_ca):
        if path is not None and not path.is_file():
            raise SettingError(f"There is no file '{path}'. Check the path.")


def _entry(text: str) -> ModelEntry:
    """`DIR` or `NAME=DIR` as a ModelEntry."""
    from tfllm.errors import ArtifactError, SettingError
    from tfllm.serving.schema import ModelEntry

    name, equals, directory = text.partition("=")
    path = Path(directory if equals else text).expanduser().absolute()
    if not path.is_dir():
        raise ArtifactError(f"There is no folder '{path}'. Give the folder that export wrote.")
    if (path / "saved_model.pb").exists():
        raise ArtifactError(
            f"'{path}' is one version of a model; give the folder above it: {path.parent}"
        )
    if not any(child.name.isdigit() for child in path.iterdir()):
        raise ArtifactError(
            f"'{path}' holds no version folder such as {path / '1'}. Export a model into it: "
            "tfllm export MODEL --to savedmodel --output DIR"
        )
    name = name if equals else path.resolve().name
    if not name or set(name) & set("/:"):
        raise SettingError(f"'{name}' cannot be a model's name. Write NAME=DIR.")
    return ModelEntry(name=name, base_path=str(path))


def _token(token_file: Path | None) -> str | None:
    from tfllm.errors import SettingError

    token = os.environ.get(TOKEN_VARIABLE)
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise SettingError(
                f"Cannot read --token-file '{token_file}'. Check the path."
            ) from None
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii()):
        raise SettingError(f"The token needs at least {SHORTEST_TOKEN} ASCII characters.")
    return token


def _needs_extra() -> None:
    """Says which extra to install where one of its packages is missing."""
    import importlib.util

    from tfllm.errors import MissingExtra

    for module in ("starlette", "uvicorn", "httptools", "orjson", "grpc", "grpc_health",
                   "tensorflow_serving", "prometheus_client"):  # fmt: skip
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(module, "serve")


COMMANDS = {"": serve}
