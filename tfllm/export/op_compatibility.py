"""Which TF Serving can load a graph: every operation and attribute against the server's own list.

`serving_ops_2_20.txt` lists what TF Serving 2.20 links (see serving_ops.py). The check is quick and
names what is unknown; the proof is loading the graph with that version, which a test does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.framework import function_pb2, node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2

from tfllm.errors import ArtifactError

OPERATION_LIST = Path(__file__).parent / "serving_ops_2_20.txt"
OLDEST, NEWEST = "2.12", "2.20"

# A server compiles with XLA only when it is started with --xla_cpu_compilation_enabled.
XLA_ATTRIBUTE = "_XlaMustCompile"


@dataclass(frozen=True)
class Compatibility:
    """What a graph requires of the server."""

    operations: tuple[str, ...]
    """Every operation of the graph and its function library, sorted."""
    problems: tuple[str, ...]
    """What the newest known server cannot run; empty: nothing."""
    first_version: str | None
    """The first TF Serving version that has everything, or None."""

    def __str__(self) -> str:
        if self.problems:
            return "; ".join(self.problems)
        return f"TF Serving {self.first_version} or newer ({len(self.operations)} operations)"


@cache
def known_operations() -> dict[str, tuple[str, dict[str, str]]]:
    """Return operation -> (first server version, attribute -> its first version)."""
    table = {}
    for line in OPERATION_LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, since, *attributes = line.split()
        pairs = (attribute.partition(":") for attribute in attributes)
        table[name] = (since, {attribute: later or since for attribute, _, later in pairs})
    return table


def check_graph(version_directory: str | Path, xla: bool = False) -> Compatibility:
    """Check the graph of one SavedModel version against the operations of TF Serving.

    Args:
        version_directory: The version's directory.
        xla: Whether the server may compile.

    Returns:
        The oldest server that runs it, and what none runs.

    Raises:
        ArtifactError: The directory holds no readable graph.
    """
    versions, problems = {OLDEST}, dict[str, None]()
    nodes = list(iterate_nodes(read_saved_model(version_directory)))
    for prefix, node in nodes:
        if node.op not in known_operations():
            problems[f"{node.op} ({prefix}{node.name}) is not in TF Serving {NEWEST}"] = None
            continue
        since, attributes = known_operations()[node.op]
        versions.add(since)
        if not xla and XLA_ATTRIBUTE in node.attr and node.attr[XLA_ATTRIBUTE].b:
            problems[f"{prefix}{node.name} must be compiled by XLA, which is off in servers"] = None
        for attribute in node.attr:
            if attribute in attributes:
                versions.add(attributes[attribute])
            elif not attribute.startswith("_"):
                problems[
                    f"{node.op} has no '{attribute}' in TF Serving {NEWEST} ({prefix}{node.name})"
                ] = None
    first = None if problems else max(versions, key=_version_numbers)
    return Compatibility(tuple(sorted({node.op for _, node in nodes})), tuple(problems), first)


def read_saved_model(version_directory: str | Path) -> saved_model_pb2.SavedModel:
    """Read the SavedModel proto of one version.

    Raises:
        ArtifactError: There is none, or it is damaged.
    """
    path = Path(version_directory) / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"'{version_directory}' holds no saved_model.pb. Give the folder of one version."
        ) from None
    except DecodeError:
        raise ArtifactError(f"'{path}' is damaged. Export the model again.") from None
    return saved_model


def iterate_nodes(
    saved_model: saved_model_pb2.SavedModel,
) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
    """Yield (function name and a slash, or nothing; node) of every node, also of functions."""
    for graph in saved_model.meta_graphs:
        for node in graph.graph_def.node:
            yield "", node
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                yield f"{function.signature.name}/", node
            # A function marked for XLA is compiled wherever it is called.
            if XLA_ATTRIBUTE in function.attr and function.attr[XLA_ATTRIBUTE].b:
                yield f"{function.signature.name}/", _node_with_xla_mark(function)


def _node_with_xla_mark(function: function_pb2.FunctionDef) -> node_def_pb2.NodeDef:
    node = node_def_pb2.NodeDef(name=function.signature.name, op="StatefulPartitionedCall")
    node.attr[XLA_ATTRIBUTE].b = True
    return node


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
