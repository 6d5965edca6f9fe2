"""Which TF Serving can load a graph: every operation and attribute against the server's own list.

`serving_ops_2_20.txt` lists what TF Serving 2.20 links (see serving_ops.py). The lint is quick and
names what is foreign; the proof is loading the graph with that version, which a test does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tfllm.errors import ArtifactError

LIST = Path(__file__).parent / "serving_ops_2_20.txt"
NEWEST = "2.20"

# A server compiles with XLA only when it is started with --xla_cpu_compilation_enabled.
XLA_ATTRIBUTE = "_XlaMustCompile"


@dataclass(frozen=True)
class Lint:
    """What a graph asks of the server."""

    operations: tuple[str, ...]
    """Every operation of the graph and its function library, sorted."""
    problems: tuple[str, ...]
    """What the newest known server cannot run; empty: it can."""
    first_version: str | None
    """The first TF Serving version that has everything, or None."""

    def __str__(self) -> str:
        if self.problems:
            return "; ".join(self.problems)
        return f"TF Serving {self.first_version} or newer ({len(self.operations)} operations)"


@cache
def known() -> dict[str, tuple[str, dict[str, str]]]:
    """Operation to (first server version, attribute to its first version)."""
    table = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, since, *attributes = line.split()
        pairs = (attribute.partition(":") for attribute in attributes)
        table[name] = (since, {attribute: later or since for attribute, _, later in pairs})
    return table


def lint(version_folder: str | Path, xla: bool = False) -> Lint:
    """Looks through the graph of one SavedModel version. Raises ArtifactError where it has none.

    `xla`: the server may compile.
    """
    needed, problems = {"2.12"}, dict[str, None]()
    found = list(nodes(read(version_folder)))
    for place, node in found:
        if node.op not in known():
            problems[f"{node.op} ({place}{node.name}) is not in TF Serving {NEWEST}"] = None
            continue
        since, attributes = known()[node.op]
        needed.add(since)
        if not xla and XLA_ATTRIBUTE in node.attr and node.attr[XLA_ATTRIBUTE].b:
            problems[f"{place}{node.name} must be compiled by XLA, which is off in servers"] = None
        for attribute in node.attr:
            if attribute in attributes:
                needed.add(attributes[attribute])
            elif not attribute.startswith("_"):
                text = f"{node.op} has no '{attribute}' in TF Serving {NEWEST} ({place}{node.name})"
                problems[text] = None
    first = None if problems else max(needed, key=_number)
    return Lint(tuple(sorted({node.op for _, node in found})), tuple(problems), first)


def read(version_folder: str | Path) -> Any:
    """The SavedModel proto of one version folder."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(version_folder) / "saved_model.pb"
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"'{version_folder}' holds no saved_model.pb. Give the folder of one version."
        ) from None
    except DecodeError:
        raise ArtifactError(f"'{path}' is damaged. Export the model again.") from None
    return saved


def nodes(saved: Any) -> Iterator[tuple[str, Any]]:
    """(function name and a slash, node) of every node, those of functions included."""
    for graph in saved.meta_graphs:
        for node in graph.graph_def.node:
            yield "", node
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                yield f"{function.signature.name}/", node
                # A function with an XLA mark is compiled wherever it is called.
            if XLA_ATTRIBUTE in function.attr and function.attr[XLA_ATTRIBUTE].b:
                yield f"{function.signature.name}/", _marked(function)


def _marked(function: Any) -> Any:
    """A node that carries the function's own mark."""
    from tensorflow.core.framework import node_def_pb2

    node = node_def_pb2.NodeDef(name=function.signature.name, op="StatefulPartitionedCall")
    node.attr[XLA_ATTRIBUTE].b = True
    return node


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
