"""LiteRT-LM bundles: model, tokenizer, chat template and stop tokens in one `.litertlm` file.

    OUT/model.litertlm      what `litert-lm run` and the LiteRT-LM engine open
        tfllm.json          what the file is for, and the checks it passed
                            and the tokenizer's files, for tfllm's own commands

The model inside is that of the tflite target (`tflite_decoding_graphs`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import MissingExtra, SettingError
from tfllm.export import flatbuffer, tflite, tflite_generation
from tfllm.export.artifact import Check, context_length, is_causal_lm, report, write_assets
from tfllm.export.litertlm_prompt import prompt_template, render_sample_chat, start_token_ids
from tfllm.export.profile import Profile
from tfllm.export.verify import causal_lm, litertlm_package
from tfllm.runtimes.litertlm import FILE_NAME, MODEL, open_bundle
from tfllm.runtimes.protocols import Example
from tfllm.tokenizers import sentencepiece_proto as proto

if TYPE_CHECKING:
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

TOKENIZERS = ("bytepair", "sentencepiece", "characters")
DEFAULT_TOP_K = 64  # of the sampler, where the profile samples without top_k

artifact_path = tflite.artifact_path
write_metadata = tflite.write_metadata


def validate(checkpoint: Checkpoint, profile: Profile) -> None:
    """Check that LiteRT-LM can run the model. See Target.validate.

    Raises:
        SettingError: It cannot.
    """
    if not is_causal_lm(checkpoint):
        raise SettingError(
            f"litertlm: LiteRT-LM runs language models, and this model is for "
            f"{checkpoint.task.kind}. Export it to tflite or mediapipe."
        )
    if checkpoint.tokenizer.kind not in TOKENIZERS:
        raise SettingError(
            f"litertlm: LiteRT-LM has no tokenizer of the kind {checkpoint.tokenizer.kind}. Export "
            "to tflite."
        )
    if profile.prompt_length is not None:
        raise SettingError("litertlm: prompt_length is for tflite. Remove it.")
    tflite_generation.validate(checkpoint, profile)


def write(checkpoint: Checkpoint, profile: Profile, directory: Path) -> None:
    """Write the bundle and the files beside it. See Target.write.

    Raises:
        MissingExtra: litert-lm-builder is not installed.
    """
    try:
        from litert_lm_builder import litertlm_builder as builders
    except ImportError:
        raise MissingExtra("litert-lm-builder", "edge") from None

    builder = builders.LitertLmFileBuilder()
    author = builders.Metadata(key="Authors", value="tfllm", dtype=builders.DType.STRING)
    builder.add_system_metadata(author)
    with tempfile.TemporaryDirectory(prefix="tfllm-") as name:
        parts = Path(name)
        metadata = llm_metadata(checkpoint, profile).SerializeToString()
        (parts / "metadata.pb").write_bytes(metadata)
        builder.add_llm_metadata(str(parts / "metadata.pb"))
        (parts / "model.tflite").write_bytes(tflite_generation.convert(checkpoint, profile))
        builder.add_tflite_model(
            str(parts / "model.tflite"), builders.TfLiteModelType.PREFILL_DECODE
        )
        if definition := getattr(checkpoint.tokenizer, "definition", None):
            (parts / "tokenizer.json").write_text(_without_post_processor(definition), "utf-8")
            builder.add_hf_tokenizer(str(parts / "tokenizer.json"))
        else:
            (parts / "tokenizer.model").write_bytes(_sentencepiece_model(checkpoint.tokenizer))
            builder.add_sentencepiece_tokenizer(str(parts / "tokenizer.model"))
        with (directory / FILE_NAME).open("wb") as stream:
            builder.build(stream)
    write_assets(checkpoint, directory)


def llm_metadata(checkpoint: Checkpoint, profile: Profile) -> llm_metadata_pb2.LlmMetadata:
    """Build the LlmMetadata message: start and stop tokens, template, sampler."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    tokenizer, generation = checkpoint.tokenizer, profile.generation
    metadata = llm_metadata_pb2.LlmMetadata()
    if start_ids := start_token_ids(tokenizer):
        metadata.start_token.token_ids.ids.extend(start_ids)
    for token_id in checkpoint.eos_token_id:
        metadata.stop_tokens.add().token_ids.ids.append(token_id)
    padding = (tokenizer.pad_token_id, *checkpoint.eos_token_id, 0)
    metadata.pad_token.token_ids.ids.append(
        next(token_id for token_id in padding if token_id is not None)
    )
    metadata.max_num_tokens = context_length(checkpoint, profile)
    metadata.llm_model_type.generic_model.SetInParent()
    greedy = generation.temperature == 0
    sampler = metadata.sampler_params
    sampler.type = sampler_params_pb2.SamplerParameters.TOP_P
    sampler.k = 1 if greedy else generation.top_k or DEFAULT_TOP_K
    sampler.p = 1.0 if greedy else generation.top_p
    sampler.temperature = 1.0 if greedy else generation.temperature
    sampler.seed = generation.seed
    metadata.jinja_prompt_template = prompt_template(tokenizer)
    return metadata


def _without_post_processor(definition: str) -> str:
    """Return tokenizer.json without the step that adds special tokens: the runtime adds them."""
    data = json.loads(definition)
    data["post_processor"] = None
    return json.dumps(data, ensure_ascii=False)


def _sentencepiece_model(tokenizer: Any) -> bytes:
    """Return the SentencePiece model, with the special tokens of the chat template as user-defined
    pieces: SentencePiece never matches control pieces in a text."""
    if not tokenizer.chat_template:
        return tokenizer.model
    model = proto.parse(tokenizer.model, tokenizer.file_name)
    text = render_sample_chat(tokenizer)
    for token_id in tokenizer.all_special_ids:
        piece = model.pieces[token_id] if token_id < len(model.pieces) else None
        if piece is not None and piece.type == proto.CONTROL and piece.piece in text:
            piece.type = proto.USER_DEFINED
    return model.SerializeToString()


def check_files(checkpoint: Checkpoint, profile: Profile, directory: Path) -> list[Check]:
    """Check the operations and weights of the model inside, and report the bundle's contents."""
    bundle = open_bundle(directory / FILE_NAME)
    content = bundle.read(MODEL)
    custom = flatbuffer.count_operations(content).custom
    return [
        Check("operations", ", ".join(custom) or "built-in only", "no others", not custom),
        tflite_generation.check_weights(checkpoint, profile, content),
        tflite.check_runtime_version(profile, content),
        report("signatures", ", ".join(flatbuffer.signature_names(flatbuffer.parse(content)))),
        report("sections", ", ".join(section.kind for section in bundle.sections)),
    ]


def check_outputs(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run the model inside, and the bundle in the litert-lm package where that is installed."""
    yield from causal_lm.check_tflite(checkpoint, profile, directory, examples)
    yield from litertlm_package.check_outputs(checkpoint, profile, directory, examples)


def describe_bundle(path: Path) -> dict[str, Any]:
    """Return what `tfllm inspect` shows of a bundle. Raises ArtifactError."""
    bundle = open_bundle(path)
    metadata = bundle.metadata()
    model = flatbuffer.parse(bundle.read(MODEL), str(path))
    return {
        "version": bundle.version,
        "sections": {section.kind: section.end - section.begin for section in bundle.sections},
        "signatures": flatbuffer.signature_names(model),
        "runtime": flatbuffer.describe_runtime(model),
        "context": metadata.max_num_tokens,
        "start_ids": list(metadata.start_token.token_ids.ids),
        "eos_token_id": [
            token_id for stop in metadata.stop_tokens for token_id in stop.token_ids.ids
        ],
        "chat_template": metadata.jinja_prompt_template,
    }
