"""Language models as .tflite files: steps with a cache, or whole texts in one call.

    prefill_4, prefill_16, ..., decode      see `lite_steps`: what LiteRT-LM runs, and tfllm
    encode, decode                          the same of models that read sources
    generate                                with the profile's `prompt_length`

All signatures share one copy of the weights. Only built-in operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfllm.errors import SettingError
from tfllm.export import convert, flatbuffer, lite_steps, lite_weights
from tfllm.export.base import Check, Profile, context_of, reads_sources
from tfllm.tokenizers.base import valid_id_ranges

QUANTIZATIONS = ("float32", "float16", "int8", "int4")
BITS = {"int8": 8, "int4": 4}  # of weights that `lite_weights` writes
# Bytes that a weight takes; int4 with its share of a group's scale.
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / lite_weights.GROUP}
LEAST_WEIGHTS, MOST_WEIGHTS = 0.97, 1.15
CONSTANTS = 60_000  # bytes of each signature: shapes, tables, scales


def refuse(checkpoint: Any, profile: Profile) -> None:
    """Raises SettingError for what cannot be written."""
    if profile.quantization not in QUANTIZATIONS:
        raise SettingError(
            f"quantization: a language model for LiteRT is {', '.join(QUANTIZATIONS)}, not "
            f"{profile.quantization}."
        )
    oldest = profile.oldest_runtime
    if oldest and profile.quantization in BITS:
        if flatbuffer.as_numbers(oldest) < flatbuffer.as_numbers(lite_weights.OLDEST_RUNTIME):
            raise SettingError(
                f"oldest_runtime {oldest}: {profile.quantization} weights of language models need "
                f"TensorFlow Lite {lite_weights.OLDEST_RUNTIME}. Choose float32 or float16, or a "
                "newer oldest_runtime."
            )
    for name in ("text", "lengths"):
        if getattr(profile, name):
            raise SettingError(f"profile: {name} is not for language models. Remove it.")
    context = context_of(checkpoint, profile)
    if profile.prompt_length is not None:
        if profile.prefill_lengths:
            raise SettingError("profile: prefill_lengths and prompt_length are two kinds of file.")
        if profile.prompt_length >= context and not reads_sources(checkpoint):
            raise SettingError(
                f"profile: prompt_length {profile.prompt_length} leaves no room in the {context} "
                "tokens of max_length. Lower prompt_length."
            )
        if not all(size >= 1 for size in profile.batch_sizes) or not profile.batch_sizes:
            raise SettingError("profile: batch_sizes must name at least one size, each 1 or more.")
    elif profile.batch_sizes != (1,):
        raise SettingError(
            "profile: batch_sizes are for files with a prompt_length; the steps of LiteRT-LM have "
            "one row. Remove batch_sizes."
        )
    for length in profile.prefill_lengths:
        if not 1 <= length <= context:
            raise SettingError(
                f"profile: prefill_lengths holds {length}; each must lie between 1 and the "
                f"{context} tokens of max_length."
            )


def converted(checkpoint: Any, profile: Profile) -> bytes:
    """The .tflite file."""
    functions = functions_of(checkpoint, profile)
    first = profile.quantization if profile.quantization not in BITS else "float32"
    content = convert.convert(functions, convert.keeper(checkpoint.model), first)
    if bits := BITS.get(profile.quantization):
        return lite_weights.quantized(content, bits, checkpoint.config.vocabulary_size)
    return content


def functions_of(checkpoint: Any, profile: Profile) -> dict[str, Any]:
    """Signature name -> concrete function."""
    from tfllm.generation.config import generation_config
    from tfllm.models.decoder import get_decoder

    if reads_sources(checkpoint):
        return source_functions(checkpoint, profile)
    made = get_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    context = context_of(checkpoint, profile)
    settings = generation_config(eos_token_id=tuple(checkpoint.eos_token_id))
    known = valid_id_ranges(checkpoint.tokenizer, made.vocabulary_size)
    if profile.prompt_length is None:
        lengths = profile.prefill_lengths or lite_steps.prefill_lengths(context)
        barred = known if profile.target == "litertlm" else ()
        return lite_steps.steps(made, context, sorted(set(lengths)), barred)
    most_new = context - profile.prompt_length
    return _loops(profile, made, profile.prompt_length, most_new, settings, known)


def source_functions(checkpoint: Any, profile: Profile) -> dict[str, Any]:
    """The same of a model that reads sources; its loop writes as the checkpoint asks, beams and
    sampling apart."""
    from tfllm.generation.checkpoint_config import checkpoint_config
    from tfllm.models.encoder_decoder import get_encoder_decoder

    made = get_encoder_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    if getattr(checkpoint.config, "logits_scale", 1.0) != 1.0:
        made = lite_steps.ScaledPair(made.family, made.config, made.layers)
    context = context_of(checkpoint, profile)
    length = min(context, checkpoint.task.source_length)
    if profile.prompt_length is None:
        return lite_steps.source_steps(made, context, length)
    own = checkpoint_config(checkpoint)
    settings = own.model_copy(update={"eos_token_id": tuple(checkpoint.eos_token_id)})
    most_new = min(own.max_new_tokens, context - 1)
    start_id = checkpoint.task.with_start_id(checkpoint.decoder_start_token_id).start_id
    known = valid_id_ranges(checkpoint.tokenizer.target, made.vocabulary_size)
    length = min(profile.prompt_length, length)
    return _loops(profile, made, length, most_new, settings, known, start_id)


def _loops(profile: Profile, made: Any, length: int, most_new: int, *more: Any) -> dict[str, Any]:
    """A signature for each batch size."""
    return {
        lite_steps.GENERATE if size == 1 else f"{lite_steps.GENERATE}_batch_{size}": (
            lite_steps.whole_loop(made, size, length, most_new, *more)
        )
        for size in sorted(set(profile.batch_sizes))
    }


def weights_present(checkpoint: Any, profile: Profile, content: bytes) -> Check:
    """The file holds every weight, and holds it once."""
    bytes_of = {
        weight.path: _bytes(checkpoint, profile, weight) for weight in checkpoint.model.weights
    }
    wanted = sum(bytes_of.values())
    # Vectors may be equal (a new model's biases are), and equal constants are kept once.
    vectors = [w.path for w in checkpoint.model.weights if len(w.shape) < 2]
    least = (wanted - sum(bytes_of[path] for path in vectors)) * LEAST_WEIGHTS
    signatures = len(flatbuffer.parse(content).signatureDefs)
    stored = flatbuffer.weight_bytes(content)
    most = wanted * MOST_WEIGHTS + CONSTANTS * signatures
    return Check(
        "weights present, once",
        f"{stored / 1e6:.2f} MB",
        f"{least / 1e6:.2f} to {most / 1e6:.2f} MB",
        least <= stored <= most,
    )


def _bytes(checkpoint: Any, profile: Profile, weight: Any) -> float:
    """What a weight takes in the file: vectors and positions stay float32 in int8 and int4."""
    size = int(np.prod(weight.shape))
    if profile.quantization not in BITS:
        return size * BYTES[profile.quantization]
    if len(weight.shape) < 2 or "position_embedding" in weight.path:
        return size * BYTES["float32"]
    whole_groups = weight.shape[0] % lite_weights.GROUP == 0
    vocabulary = checkpoint.config.vocabulary_size in weight.shape
    return size * BYTES["int8" if vocabulary or not whole_groups else profile.quantization]
