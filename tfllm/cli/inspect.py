"""tfllm inspect: the description of a checkpoint or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = """Examples:

tfllm inspect runs/sst2

tfllm inspect hf://sentence-transformers/all-MiniLM-L6-v2 --json

tfllm inspect exports/sst2/model.tflite

tfllm inspect exports/chat/model.litertlm
"""

TFLITE_NAME, BUNDLE_NAME = "model.tflite", "model.litertlm"
SHOWN_LABELS = 12


def inspect(
    model: Annotated[
        str, typer.Argument(help="Checkpoint, run, SavedModel, .tflite or .litertlm file.")
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print family, task, shape, parameters, vocabulary, files and signatures."""
    import json as json_package

    facts = {"model": model, **describe_model(model)}
    if json:
        print(json_package.dumps(facts, indent=2, ensure_ascii=False))
        return
    for name, value in facts.items():
        print(f"{name:<12}{_format_fact(name, value)}")


def describe_model(model: str) -> dict[str, Any]:
    """Return all that is known of a model without running it. Raises InputError."""
    from tfllm.checkpoints.locate import find

    path = Path(model)
    if path.suffix == ".litertlm" or (path / BUNDLE_NAME).is_file():
        return _bundle(path / BUNDLE_NAME if path.is_dir() else path)
    if path.suffix == ".tflite" or (path / TFLITE_NAME).is_file():
        return _tflite(path / TFLITE_NAME if path.is_dir() else path)
    if any(path.glob("saved_model.pb")) or any(path.glob("*/saved_model.pb")):
        from tfllm.runtimes.opening import version_folder

        if folder := version_folder(path):
            return _savedmodel(folder)
    checkpoint = find(model)  # a wrong path is an error before Keras is loaded

    from tfllm.checkpoints.describe import describe

    return describe(checkpoint)


def _savedmodel(folder: Path) -> dict[str, Any]:
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import types_pb2
    from tensorflow.core.protobuf import saved_model_pb2

    from tfllm.checkpoints.describe import file_sizes
    from tfllm.errors import ArtifactError

    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString((folder / "saved_model.pb").read_bytes())
        signatures = message.meta_graphs[0].signature_def
    except (DecodeError, IndexError, OSError):
        raise ArtifactError(
            f"'{folder / 'saved_model.pb'}' is not a complete SavedModel. Export it again."
        ) from None

    def tensors_of(tensors: Any) -> dict[str, str]:
        return {name: _tensor(types_pb2.DataType.Name(info.dtype)[3:].lower(),
                              [dimension.size for dimension in info.tensor_shape.dim])
                for name, info in sorted(tensors.items())}  # fmt: skip

    return {
        "form": "SavedModel",
        "version": folder.name,
        **_description(folder / "assets"),
        "signatures": {
            name: {"inputs": tensors_of(signature.inputs), "outputs": tensors_of(signature.outputs)}
            for name, signature in sorted(signatures.items())
            if not name.startswith("__")
        },
        "files": file_sizes(folder),
    }


def _tflite(path: Path) -> dict[str, Any]:
    from tfllm.checkpoints.describe import file_sizes
    from tfllm.errors import ArtifactError, MissingExtra
    from tfllm.export import flatbuffer

    if not path.is_file():
        raise ArtifactError(f"There is no file '{path}'. Check the path.")
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise MissingExtra("ai-edge-litert", "edge") from None
    try:
        interpreter = Interpreter(model_path=str(path))
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        signatures = interpreter.get_signature_list()
    except (ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(f"'{path}' is not a complete TFLite model ({first}).") from None
    tensors = {
        detail["name"]: _tensor(
            detail["dtype"].__name__, list(detail.get("shape_signature", detail["shape"]))
        )
        for detail in (*inputs, *outputs)
    }
    return {
        "form": "TFLite",
        **_description(path.parent),
        "signatures": signatures or {"": {"inputs": list(tensors)}},
        "tensors": tensors,
        "runtime": flatbuffer.describe_runtime(flatbuffer.parse(path.read_bytes(), str(path))),
        "files": {path.name: path.stat().st_size}
        | {name: size for name, size in file_sizes(path.parent).items() if name != path.name},
    }


def _bundle(path: Path) -> dict[str, Any]:
    from tfllm.checkpoints.describe import file_sizes
    from tfllm.errors import ArtifactError
    from tfllm.export.litertlm import describe_bundle as bundle

    if not path.is_file():
        raise ArtifactError(f"There is no file '{path}'. Check the path.")
    return {
        "form": "LiteRT-LM bundle",
        **_description(path.parent),
        **bundle(path),
        "files": {path.name: path.stat().st_size}
        | {name: size for name, size in file_sizes(path.parent).items() if name != path.name},
    }


def _description(directory: Path) -> dict[str, Any]:
    """Family, task and shape from an artifact's `tfllm.json`; nothing for another tool's file."""
    from tfllm.runtimes.description import read_description

    path = directory / "tfllm.json"
    if not path.is_file():
        return {"task": "not known: the artifact has no tfllm.json"}
    description, task = read_description(path)
    facts = {"family": description.get("family"), "task": task.model_dump(mode="json")}
    if "config" in description:
        facts["shape"] = description["config"]
    if (vocabulary := directory / "vocab.txt").is_file():
        with vocabulary.open("rb") as file:
            facts["vocabulary"] = {"tokens": sum(1 for _ in file)}
    return facts


def _tensor(dtype: str, shape: list[int]) -> str:
    """`float32[?, 2]`."""
    return f"{dtype}[{', '.join('?' if size < 0 else str(size) for size in shape)}]"


def _format_fact(name: str, value: Any) -> str:
    """A fact as text, further lines indented."""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, dict):
        return str(value)
    lines = [f"{key}: {_value(name, item)}" for key, item in value.items()]
    return f"\n{'':<12}".join(lines) if name in ("files", "signatures", "tensors") else ", ".join(
        f"{key} {_value(name, item)}" for key, item in value.items()
    )  # fmt: skip


def _value(name: str, item: Any) -> str:
    if name == "files":
        return f"{item:,} bytes"
    if isinstance(item, list):
        more = f" and {len(item) - SHOWN_LABELS} more" if len(item) > SHOWN_LABELS else ""
        return f"[{', '.join(map(str, item[:SHOWN_LABELS]))}{more}]"
    if isinstance(item, dict):
        return "; ".join(
            f"{key} " + (", ".join(f"{k} {v}" for k, v in part.items())
                         if isinstance(part, dict) else ", ".join(map(str, part)))
            for key, part in item.items()
        )  # fmt: skip
    return str(item)


COMMANDS = {"": inspect}
