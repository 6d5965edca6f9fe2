"""LiteRT-LM bundles: the sections of a `.litertlm` file, and the model inside, open for use.

https://github.com/google-ai-edge/LiteRT-LM (schema/core/litertlm_header_schema.fbs). The package
litert-lm-builder ships the generated reader.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfllm.errors import ArtifactError, MissingExtra
from tfllm.runtimes import tflite_generation
from tfllm.runtimes.causal_lm import CausalLMPredictor
from tfllm.runtimes.description import read_description

if TYPE_CHECKING:
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

FILE_NAME = "model.litertlm"
MAGIC = b"LITERTLM"
VERSION_AT, HEADER_END_AT, HEADER_AT = 8, 24, 32  # bytes from the file's start
MODEL, METADATA = "TFLiteModel", "LlmMetadataProto"


@dataclass(frozen=True)
class Section:
    """A part of the file: bytes begin ... end - 1."""

    kind: str
    """A name of the schema's AnySectionDataType."""
    begin: int
    end: int


@dataclass(frozen=True)
class Bundle:
    """A file's version and sections, in their order."""

    path: Path
    version: str
    sections: tuple[Section, ...]

    def read(self, kind: str) -> bytes:
        """Read the first section of a kind.

        Raises:
            ArtifactError: There is none.
        """
        for section in self.sections:
            if section.kind == kind:
                with self.path.open("rb") as file:
                    file.seek(section.begin)
                    return file.read(section.end - section.begin)
        raise ArtifactError(f"'{self.path}' holds no {kind}. Export the model again.")

    def metadata(self) -> llm_metadata_pb2.LlmMetadata:
        """Read the LlmMetadata message: start and stop tokens, template, sampler."""
        from litert_lm_builder.runtime.proto import llm_metadata_pb2

        return llm_metadata_pb2.LlmMetadata.FromString(self.read(METADATA))


def open_bundle(path: Path) -> Bundle:
    """Read a bundle's header.

    Raises:
        ArtifactError: The file is no bundle.
        MissingExtra: litert-lm-builder is not installed.
    """
    try:
        from litert_lm_builder import litertlm_header_schema_py_generated as schema
    except ImportError:
        raise MissingExtra("litert-lm-builder", "edge") from None
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEADER_AT)
        if start[: len(MAGIC)] != MAGIC or len(start) < HEADER_AT:
            raise ArtifactError(f"'{path}' is no LiteRT-LM bundle. Export the model again.")
        version = ".".join(map(str, struct.unpack_from("<III", start, VERSION_AT)))
        (end,) = struct.unpack_from("<Q", start, HEADER_END_AT)
        header = file.read(max(0, min(end, size) - HEADER_AT))
    names = {
        value: name
        for name, value in vars(schema.AnySectionDataType).items()
        if isinstance(value, int)
    }
    try:
        listed = schema.LiteRTLMMetaData.GetRootAs(header, 0).SectionMetadata()
        objects = [listed.Objects(index) for index in range(listed.ObjectsLength())]
        sections = tuple(
            Section(names.get(each.DataType(), "unknown"), each.BeginOffset(), each.EndOffset())
            for each in objects
        )
    except (AttributeError, IndexError, struct.error, TypeError):
        raise ArtifactError(f"'{path}': its header is damaged. Export the model again.") from None
    if any(section.end > size or section.begin > section.end for section in sections):
        raise ArtifactError(f"'{path}' is cut short. Copy or export the model again.")
    return Bundle(path, version, sections)


def open_litertlm(source: Path) -> CausalLMPredictor:
    """Open the model inside a .litertlm file, or of the directory of one.

    Raises:
        ArtifactError: There is no such file, or it cannot be run.
        MissingExtra: A package of the extra `edge` is not installed.
    """
    path = source / FILE_NAME if source.is_dir() else source
    if not path.is_file():
        raise ArtifactError(f"There is no file '{path}'. Check the path.")
    bundle = open_bundle(path)
    description, task = read_description(path.parent / "tfllm.json")
    facts = {
        "kind": "litertlm",
        "path": str(path),
        "family": description.get("family"),
        "task": task.kind,
        "size_bytes": path.stat().st_size,
    }
    return tflite_generation.open_causal_lm(path, description, task, facts, bundle.read(MODEL))
