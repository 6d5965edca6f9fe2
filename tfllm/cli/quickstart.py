"""`tfllm quickstart`: from training to serving once, on real reviews, and a table of the results.

The recipe and the reviews are those of models/bert, as package data.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllm.cli.options import Overrides

if TYPE_CHECKING:
    from tfllm.export import Artifact

EXAMPLES = """
Examples:

  tfllm quickstart

  tfllm quickstart --output runs/second --set train.epochs=1
"""

PACKAGED = Path(__file__).parents[1] / "packaged" / "models" / "bert"
RECIPE = PACKAGED / "quickstart.yaml"
REVIEWS = PACKAGED / "reviews"
TEST = REVIEWS / "test.tsv"
PROFILES = ("savedmodel", "tflite-float32", "tflite-int8", "mediapipe")
QUESTIONS = (
    "I would walk there again in the rain for that soup.",
    "The battery gave up before I did.",
    "服务员一直在看手机，叫了三次才来。",
)
LATENCY_CALLS = 30
SERVER_START_SECONDS = 120
SERVER_STOP_SECONDS = 30


def quickstart(
    output: Annotated[Path, typer.Option(help="Directory for the results.")] = Path(
        "runs/quickstart"
    ),
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe to train in place of the quickstart's own.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Fine-tune a small encoder on English and Chinese reviews, export it, serve it, query it."""
    import tfllm
    from tfllm.data import sources
    from tfllm.model import recipe_of

    start = time.perf_counter()
    settings = recipe_of(recipe or RECIPE, [*([] if recipe else packaged_data()), *overrides])
    examples = list(sources.read(str(TEST), settings.data))
    folder = _free_folder(output)

    name = settings.model.source or settings.model.family
    _say(1, f"fine-tuning {name} ({recipe or RECIPE.name})")
    run = tfllm.train(settings, output=folder / "run")
    if run.signal is not None:
        print(f"tfllm: stopped; see {run.directory}", file=sys.stderr)
        raise typer.Exit(128 + run.signal)
    _say(2, f"exporting to {', '.join(PROFILES)}, each checked against the checkpoint")
    model = tfllm.load(run.directory)
    artifacts = {name: model.export(name, folder / name) for name in PROFILES}
    _say(3, f"measuring everything on {len(examples)} test reviews")
    rows = [_measure("checkpoint", run.directory, "", examples)]
    for name, artifact in artifacts.items():
        rows.append(_measure(name, folder / name, _passed(artifact), examples))
    _say(4, "serving the SavedModel and querying it over REST and gRPC")
    with _server(folder / "savedmodel") as (rest_port, grpc_port):
        rest, grpc = _ask_rest(rest_port), _ask_grpc(grpc_port)
    _show(rows, rest, grpc, folder, time.perf_counter() - start)


def packaged_data() -> list[str]:
    """Return overrides of the recipe that name this package's files in place of the clone's."""
    files = {"train": REVIEWS / "train.tsv", "validation": REVIEWS / "validation.tsv"}
    return [f"data.{key}={json.dumps(str(path))}" for key, path in files.items()]


def _say(step: int, text: str) -> None:
    print(f"[{step}/4] {text}", file=sys.stderr, flush=True)


def _free_folder(output: Path) -> Path:
    """`output`, or the first of output-2, output-3, ... that is free: nothing is replaced."""
    folder, number = output, 2
    while folder.exists():
        folder, number = output.with_name(f"{output.name}-{number}"), number + 1
    return folder


def _passed(artifact: Artifact) -> str:
    """How many checks passed, of all that have a limit."""
    limited = [check for check in artifact.checks if check.limit]
    return f"{sum(check.passed for check in limited)} of {len(limited)}"


def _measure(name: str, path: Path, checks: str, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table: size, accuracy of each language, latency of one text."""
    import tfllm
    from tfllm.runtimes.benchmark import measure_speed

    model = tfllm.open(path)
    correct: dict[str, list[bool]] = {"en": [], "zh": []}
    texts = [{"text": example["text"]} for example in examples]
    for example, prediction in zip(examples, model.predict(texts), strict=True):
        language = "zh" if any(ord(letter) > 0x2E80 for letter in example["text"]) else "en"
        correct[language].append(prediction["label"] == example["label"])
    speed = measure_speed(model.predictor, examples[:LATENCY_CALLS], 1, 0.5)
    return {
        "name": name,
        "path": str(path),
        "megabytes": _megabytes(path),
        "english": sum(correct["en"]) / len(correct["en"]),
        "chinese": sum(correct["zh"]) / len(correct["zh"]),
        "p50_ms": speed["p50_ms"],
        "checks": checks,
    }


def _megabytes(path: Path) -> float:
    """Size of the model's own files: a run's checkpoint without logs and states."""
    folder = path / "checkpoint" if (path / "checkpoint").is_dir() else path
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[tuple[int, int]]:
    """Run `tfllm serve` of one model as a process of its own, until the block ends."""
    rest_port, grpc_port = _free_port(), _free_port()
    command = [sys.executable, "-m", "tfllm", "serve", f"reviews={directory}"]
    command += ["--rest-port", str(rest_port), "--grpc-port", str(grpc_port)]
    with (directory.parent / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_ready(process, rest_port, directory.parent / "server.log")
            yield rest_port, grpc_port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SERVER_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen, port: int, log: Path) -> None:
    from tfllm.errors import TfllmError

    end = time.perf_counter() + SERVER_START_SECONDS
    while time.perf_counter() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).read()
            return
        time.sleep(0.2)
    raise TfllmError(f"The server did not become ready. Its log: {log}.")


def _ask_rest(port: int) -> list[dict[str, Any]]:
    """Return the predictions of TF Serving's REST predict, in row form."""
    body = json.dumps({"instances": [{"text": text} for text in QUESTIONS]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/models/reviews:predict",
        data=body,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["predictions"]


def _ask_grpc(port: int) -> list[str]:
    """Return the labels of PredictionService.Predict, through TF Serving's own stubs."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "reviews"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(list(QUESTIONS)))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(request, timeout=30)
    return [label.decode() for label in response.outputs["label"].string_val]


def _show(
    rows: list[dict[str, Any]],
    rest: list[dict[str, Any]],
    grpc: list[str],
    folder: Path,
    seconds: float,
) -> None:
    """Print the table of results, the served predictions, and the next commands."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table(title="Results")
    for column in ("model", "MB", "accuracy en", "accuracy zh", "one text, ms", "checks", "path"):
        table.add_column(column, justify="left" if column in ("model", "path") else "right")
    for row in rows:
        table.add_row(
            row["name"], f"{row['megabytes']:.1f}", f"{row['english']:.1%}",
            f"{row['chinese']:.1%}", f"{row['p50_ms']:.1f}", row["checks"], row["path"],
        )  # fmt: skip
    console.print(table)
    for text, answer, label in zip(QUESTIONS, rest, grpc, strict=True):
        console.print(
            f"  {text}\n    REST {answer['label']} ({max(answer['scores']):.2f}), gRPC {label}"
        )
    console.print(
        f"\nDone in {seconds:.0f} s. Next:\n"
        f'  tfllm predict {folder / "run"} "What a day."\n'
        f"  tfllm evaluate {folder / 'tflite-int8'} --data {TEST} --plots {folder / 'plots'}\n"
        f"  tfllm serve reviews={folder / 'savedmodel'}\n"
        "  tfllm train RECIPE: recipes with measured results are in models/ of the repository",
        markup=False,
        highlight=False,
    )


COMMANDS = {"": quickstart}
