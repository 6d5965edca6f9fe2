"""LiteRT-LM bundles: model, tokenizer, chat template and stop tokens in one `.litertlm` file.

    OUT/model.litertlm      what `litert-lm run` and the LiteRT-LM engine take
        tfllm.json          what the file is for, and the checks it passed
                            and the tokenizer's files, for tfllm's own verbs

The model inside is the one of the tflite target (`lite_steps`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfllm.errors import MissingExtra, SettingError
from tfllm.export import flatbuffer, lite_decoder, tflite
from tfllm.export.base import Check, Profile, context_of, is_language_model, stated
from tfllm.runtimes.litertlm import FILE_NAME, MODEL, open_bundle

TOKENIZERS = ("bytepair", "sentencepiece", "characters")
# Without a template of its own a model goes on from what is said.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# LiteRT-LM gives a message's content as a list of parts; Hugging Face's templates expect a text.
AS_TEXTS = (
    "{% set tfllm = namespace(messages=[]) %}{% for m in messages %}"
    "{% set tfllm.messages = tfllm.messages + [dict(m, content=(m.content if m.content is string "
    "else (m.content | map(attribute='text') | join(''))))] %}{% endfor %}"
    "{% set messages = tfllm.messages %}"
)
# Blocks that only training reads, and the runtime's Jinja does not know, become comments.
GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
SAMPLE = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)

place = tflite.place
finish = tflite.finish


def refuse(checkpoint: Any, profile: Profile) -> None:
    """Raises SettingError for what LiteRT-LM cannot run."""
    if not is_language_model(checkpoint):
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
    lite_decoder.refuse(checkpoint, profile)


def write(checkpoint: Any, profile: Profile, folder: Path) -> None:
    """Writes the bundle and the files beside it."""
    try:
        from litert_lm_builder import litertlm_builder as builders
    except ImportError:
        raise MissingExtra("litert-lm-builder", "edge") from None

    builder = builders.LitertLmFileBuilder()
    key = builders.Metadata(key="Authors", value="tfllm", dtype=builders.DType.STRING)
    builder.add_system_metadata(key)
    with tempfile.TemporaryDirectory(prefix="tfllm-") as name:
        parts = Path(name)
        (parts / "metadata.pb").write_bytes(metadata(checkpoint, profile).SerializeToString())
        builder.add_llm_metadata(str(parts / "metadata.pb"))
        (parts / "model.tflite").write_bytes(lite_decoder.converted(checkpoint, profile))
        builder.add_tflite_model(
            str(parts / "model.tflite"), builders.TfLiteModelType.PREFILL_DECODE
        )
        if definition := getattr(checkpoint.tokenizer, "definition", None):
            (parts / "tokenizer.json").write_text(_without_specials(definition), "utf-8")
            builder.add_hf_tokenizer(str(parts / "tokenizer.json"))
        else:
            (parts / "tokenizer.model").write_bytes(_with_written(checkpoint.tokenizer))
            builder.add_sentencepiece_tokenizer(str(parts / "tokenizer.model"))
        with (folder / FILE_NAME).open("wb") as stream:
            builder.build(stream)
    tflite.write_files(checkpoint, folder)


def metadata(checkpoint: Any, profile: Profile) -> Any:
    """The LlmMetadata message."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    tokenizer, settings = checkpoint.tokenizer, profile.generation
    found = llm_metadata_pb2.LlmMetadata()
    if begins(tokenizer):
        found.start_token.token_ids.ids.append(tokenizer.bos_token_id)
    for stop in checkpoint.eos_token_id:
        found.stop_tokens.add().token_ids.ids.append(stop)
    padding = (tokenizer.pad_token_id, *checkpoint.eos_token_id, 0)
    found.pad_token.token_ids.ids.append(next(one for one in padding if one is not None))
    found.max_num_tokens = context_of(checkpoint, profile)
    found.llm_model_type.generic_model.SetInParent()
    greedy = settings.temperature == 0
    sampler = found.sampler_params
    sampler.type = sampler_params_pb2.SamplerParameters.TOP_P
    sampler.k = 1 if greedy else settings.top_k or 64
    sampler.p = 1.0 if greedy else settings.top_p
    sampler.temperature = 1.0 if greedy else settings.temperature
    sampler.seed = settings.seed
    found.jinja_prompt_template = template_of(tokenizer)
    return found


def begins(tokenizer: Any) -> bool:
    """Whether the runtime has to put the start token before all: as the template does, or, where
    there is no template, the tokenizer."""
    if tokenizer.bos_token_id is None:
        return False
    if tokenizer.chat_template:
        return _rendered(tokenizer).startswith(tokenizer.vocabulary[tokenizer.bos_token_id])
    return tokenizer.bos_token_id in tokenizer.row_template.prefix


def template_of(tokenizer: Any) -> str:
    """The chat template in the runtime's own Jinja (minijinja), with the names of special tokens,
    which it does not define. The start token is left to the runtime."""
    from tfllm.tokenizers import chat

    if not tokenizer.chat_template:
        return AS_TEXTS + PLAIN_TEMPLATE
    names = chat.special_tokens_map(tokenizer)
    if begins(tokenizer):
        names["bos_token"] = ""
    known = "".join(f"{{% set {name} = {json.dumps(text)} %}}" for name, text in names.items())
    return known + AS_TEXTS + GENERATION.sub(r"{#\1 \2#}", tokenizer.chat_template)


def _rendered(tokenizer: Any) -> str:
    """A short conversation as the template writes it."""
    from tfllm.tokenizers import chat

    names: dict[str, Any] = {**chat.special_tokens_map(tokenizer)}
    return chat.render(tokenizer.chat_template, SAMPLE, add_generation_prompt=True, **names)


def _without_specials(definition: str) -> str:
    """tokenizer.json without the step that puts special tokens around texts: the runtime does."""
    data = json.loads(definition)
    data["post_processor"] = None
    return json.dumps(data, ensure_ascii=False)


def _with_written(tokenizer: Any) -> bytes:
    """The SentencePiece model, in which the special tokens that the chat template writes are
    recognised as they are written: SentencePiece never finds control pieces in a text."""
    from sentencepiece import sentencepiece_model_pb2

    if not tokenizer.chat_template:
        return tokenizer.model
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    text = _rendered(tokenizer)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for number in tokenizer.all_special_ids:
        piece = proto.pieces[number] if number < len(proto.pieces) else None
        if piece is not None and piece.type == kinds.CONTROL and piece.piece in text:
            piece.type = kinds.USER_DEFINED
    return proto.SerializeToString()


def checks(checkpoint: Any, profile: Profile, folder: Path) -> list[Check]:
    """What can be told from the file alone; `verify` runs it."""
    bundle = open_bundle(folder / FILE_NAME)
    content = bundle.read(MODEL)
    found = flatbuffer.operations(content)
    names = [one.signatureKey.decode() for one in flatbuffer.parse(content).signatureDefs]
    return [
        Check(
            "operations", ", ".join(found.custom) or "built in only", "no others", not found.custom
        ),
        lite_decoder.weights_present(checkpoint, profile, content),
        tflite.runs_from(profile, content),
        stated("signatures", ", ".join(sorted(names))),
        stated("sections", ", ".join(section.kind for section in bundle.sections)),
    ]


def described(path: Path) -> Mapping[str, Any]:
    """What `tfllm inspect` shows of a bundle. Raises ArtifactError."""
    bundle = open_bundle(path)
    found = bundle.metadata()
    model = flatbuffer.parse(bundle.read(MODEL), str(path))
    return {
        "version": bundle.version,
        "sections": {one.kind: one.end - one.begin for one in bundle.sections},
        "signatures": sorted(one.signatureKey.decode() for one in model.signatureDefs),
        "runtime": flatbuffer.shown_runtime(model),
        "context": found.max_num_tokens,
        "start_ids": list(found.start_token.token_ids.ids),
        "eos_token_id": [number for stop in found.stop_tokens for number in stop.token_ids.ids],
        "chat_template": found.jinja_prompt_template,
    }
