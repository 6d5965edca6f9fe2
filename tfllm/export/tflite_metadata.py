"""The metadata of a .tflite file: MediaPipe's text tasks read it, and apps that look for labels.

Written field by field from `tflite_support/metadata/metadata_schema.fbs` (file identifier "M001"),
because the writers that ship in Python packages need libraries that are not there. The numbers
below are slots and enumeration values of that schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import flatbuffers

# metadata_schema.fbs: table -> field -> slot
FIELDS = {
    "ModelMetadata": {"name": 0, "description": 1, "version": 2, "subgraph_metadata": 3,
                      "author": 4, "license": 5, "associated_files": 6, "min_parser_version": 7},
    "SubGraphMetadata": {"name": 0, "description": 1, "input_tensor_metadata": 2,
                         "output_tensor_metadata": 3, "associated_files": 4,
                         "input_process_units": 5},
    "TensorMetadata": {"name": 0, "description": 1, "dimension_names": 2, "content": 3,
                       "process_units": 4, "stats": 5, "associated_files": 6},
    "Content": {"content_properties_type": 0, "content_properties": 1},
    "FeatureProperties": {},
    "ProcessUnit": {"options_type": 0, "options": 1},
    "BertTokenizerOptions": {"vocab_file": 0},
    "AssociatedFile": {"name": 0, "description": 1, "type": 2},
}  # fmt: skip
FEATURE_PROPERTIES = 1  # union ContentProperties
BERT_TOKENIZER_OPTIONS = 4  # union ProcessUnitOptions
TENSOR_AXIS_LABELS, VOCABULARY = 2, 5  # enum AssociatedFileType
PARSER_VERSION = "1.5.0"  # the schema's version with these fields
IDENTIFIER = b"M001"

# What the inputs are called in the metadata; MediaPipe finds them by these names.
INPUT_NAMES = {"token_ids": "ids", "padding_mask": "mask", "segment_ids": "segment_ids"}


def text_model(
    title: str,
    description: str,
    inputs: Sequence[str],
    output: str,
    labels: bool,
    vocabulary: bool = True,
) -> bytes:
    """Build the metadata of a model on token ids.

    Args:
        title: The model's name.
        description: What it is for.
        inputs: Names in the order of the file's inputs; those of INPUT_NAMES are written as
            MediaPipe knows them.
        output: Name of the output.
        labels: Whether the file has `labels.txt`.
        vocabulary: Whether a BERT tokenizer with `vocab.txt` precedes the model.

    Returns:
        The FlatBuffer.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    units = {}
    if vocabulary:
        vocab = _vector(builder, [_file(builder, "vocab.txt", VOCABULARY)])
        tokenizer = _table(builder, "BertTokenizerOptions", vocab_file=vocab)
        unit = _table(
            builder, "ProcessUnit", options_type=BERT_TOKENIZER_OPTIONS, options=tokenizer
        )
        units["input_process_units"] = _vector(builder, [unit])
    ins = _vector(builder, [_tensor(builder, INPUT_NAMES.get(name, name)) for name in inputs])
    files = [_file(builder, "labels.txt", TENSOR_AXIS_LABELS)] if labels else []
    outs = _vector(builder, [_tensor(builder, output, files)])
    graph = _table(
        builder,
        "SubGraphMetadata",
        input_tensor_metadata=ins,
        output_tensor_metadata=outs,
        **units,
    )
    root = _table(
        builder,
        "ModelMetadata",
        name=builder.CreateString(title),
        description=builder.CreateString(description),
        subgraph_metadata=_vector(builder, [graph]),
        min_parser_version=builder.CreateString(PARSER_VERSION),
    )
    builder.Finish(root, IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: flatbuffers.Builder, table: str, **values: int) -> int:
    """One table. A field whose name ends in `type` holds a byte, all others an offset."""
    slots = FIELDS[table]
    builder.StartObject(len(slots))
    for field, value in values.items():
        if field.endswith("type"):
            builder.PrependUint8Slot(slots[field], value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slots[field], value, 0)
    return builder.EndObject()


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _file(builder: flatbuffers.Builder, name: str, kind: int) -> int:
    return _table(builder, "AssociatedFile", name=builder.CreateString(name), type=kind)


def _tensor(builder: flatbuffers.Builder, name: str, files: Sequence[int] = ()) -> int:
    """A tensor of plain numbers."""
    properties = _table(builder, "FeatureProperties")
    content = _table(
        builder,
        "Content",
        content_properties_type=FEATURE_PROPERTIES,
        content_properties=properties,
    )
    values = {"name": builder.CreateString(name), "content": content}
    if files:
        values["associated_files"] = _vector(builder, files)
    return _table(builder, "TensorMetadata", **values)
