"""Models that generate text as .tflite files: steps with a cache, or the whole generation loop.

    prefill_4, prefill_16, ..., decode      steps, as LiteRT-LM and tfllm run them; see
                                            `tflite_decoding_graphs`
    encode, decode                          the same for encoder-decoders
    generate                                the whole loop, with the profile's `prompt_length`

All signatures share one copy of the weights. Only built-in operations.
"""

from __future__ import annotations

import keras
import numpy as np

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.export import (
    flatbuffer,
    tflite_converter,
    tflite_decoding_graphs,
    tflite_quantization,
)
from tfllm.export.artifact import (
    Check,
    ConcreteFunctions,
    context_length,
    get_decoder_start_token_id,
    is_seq2seq,
    variables_module,
    weight_bytes_check,
)
from tfllm.export.profile import Profile
from tfllm.generation.checkpoint_config import checkpoint_config
from tfllm.generation.config import GenerationConfig, generation_config
from tfllm.models.decoder import Decoder, get_decoder
from tfllm.models.encoder_decoder import EncoderDecoder, get_encoder_decoder
from tfllm.tokenizers.base import valid_id_ranges

QUANTIZATIONS = ("float32", "float16", "int8", "int4")
WEIGHT_BITS = {"int8": 8, "int4": 4}  # written by `tflite_quantization`
# Bytes of a weight; int4 with its share of a group's float16 scale.
WEIGHT_BYTES = {
    "float32": 4.0,
    "float16": 2.0,
    "int8": 1.0,
    "int4": 0.5 + 2 / tflite_quantization.GROUP_SIZE,
}
MIN_WEIGHT_RATIO, MAX_WEIGHT_RATIO = 0.97, 1.15
CONSTANT_BYTES = 60_000  # of each signature: shapes, tables, scales

TokenRanges = tuple[tuple[int, int], ...]


def validate(checkpoint: Checkpoint, profile: Profile) -> None:
    """Check that a .tflite file can hold the language model as the profile asks.

    Raises:
        SettingError: It cannot.
    """
    if profile.quantization not in QUANTIZATIONS:
        raise SettingError(
            f"quantization: a language model for LiteRT is {', '.join(QUANTIZATIONS)}, not "
            f"{profile.quantization}."
        )
    oldest = profile.oldest_runtime
    needed = tflite_quantization.OLDEST_RUNTIME
    if oldest and profile.quantization in WEIGHT_BITS:
        if flatbuffer.version_numbers(oldest) < flatbuffer.version_numbers(needed):
            raise SettingError(
                f"oldest_runtime {oldest}: {profile.quantization} weights of language models need "
                f"TensorFlow Lite {needed}. Choose float32 or float16, or a newer oldest_runtime."
            )
    for name in ("text_input", "extra_lengths"):
        if getattr(profile, name):
            raise SettingError(f"profile: {name} is not for language models. Remove it.")
    context = context_length(checkpoint, profile)
    if profile.prompt_length is not None:
        if profile.prefill_lengths:
            raise SettingError("profile: prefill_lengths and prompt_length exclude each other.")
        if profile.prompt_length >= context and not is_seq2seq(checkpoint):
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


def convert(checkpoint: Checkpoint, profile: Profile) -> bytes:
    """Return the .tflite file."""
    functions = build_functions(checkpoint, profile)
    bits = WEIGHT_BITS.get(profile.quantization)
    quantization = "float32" if bits else profile.quantization
    module = variables_module(checkpoint.model)
    content = tflite_converter.convert(functions, module, quantization)
    if bits:
        vocabulary_size = checkpoint.config.vocabulary_size
        return tflite_quantization.quantize_weights(content, bits, vocabulary_size)
    return content


def build_functions(checkpoint: Checkpoint, profile: Profile) -> ConcreteFunctions:
    """Return signature name -> concrete function."""
    if is_seq2seq(checkpoint):
        return _seq2seq_functions(checkpoint, profile)
    decoder = get_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    context = context_length(checkpoint, profile)
    config = generation_config(eos_token_id=tuple(checkpoint.eos_token_id))
    token_ranges = valid_id_ranges(checkpoint.tokenizer, decoder.vocabulary_size)
    if profile.prompt_length is None:
        lengths = profile.prefill_lengths or tflite_decoding_graphs.prefill_lengths(context)
        allowed = token_ranges if profile.target == "litertlm" else ()
        return tflite_decoding_graphs.step_functions(
            decoder, context, sorted(set(lengths)), allowed
        )
    most_new = context - profile.prompt_length
    return _loop_functions(profile, decoder, profile.prompt_length, most_new, config, token_ranges)


def _seq2seq_functions(checkpoint: Checkpoint, profile: Profile) -> ConcreteFunctions:
    """The functions of an encoder-decoder; its loop has the checkpoint's own generation settings,
    but neither beam search nor sampling unless a call asks for it."""
    model = get_encoder_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    context = context_length(checkpoint, profile)
    source_length = min(context, checkpoint.task.source_length)  # type: ignore[attr-defined]
    if profile.prompt_length is None:
        return tflite_decoding_graphs.seq2seq_step_functions(model, context, source_length)
    own = checkpoint_config(checkpoint)
    config = own.model_copy(update={"eos_token_id": tuple(checkpoint.eos_token_id)})
    most_new = min(own.max_new_tokens, context - 1)
    token_ranges = valid_id_ranges(checkpoint.tokenizer.target, model.vocabulary_size)
    length = min(profile.prompt_length, source_length)
    start_token_id = get_decoder_start_token_id(checkpoint)
    return _loop_functions(profile, model, length, most_new, config, token_ranges, start_token_id)


def _loop_functions(
    profile: Profile,
    model: Decoder | EncoderDecoder,
    prompt_length: int,
    most_new: int,
    config: GenerationConfig,
    token_ranges: TokenRanges,
    decoder_start_token_id: int = 0,
) -> ConcreteFunctions:
    """Return a whole-loop signature for each batch size."""
    name = tflite_decoding_graphs.GENERATE
    return {
        name if size == 1 else f"{name}_batch_{size}": tflite_decoding_graphs.loop_function(
            model, size, prompt_length, most_new, config, token_ranges, decoder_start_token_id
        )
        for size in sorted(set(profile.batch_sizes))
    }


def check_weights(checkpoint: Checkpoint, profile: Profile, content: bytes) -> Check:
    """Check that the file holds every weight exactly once."""
    weights = checkpoint.model.weights
    sizes = {weight.path: _weight_size(checkpoint, profile, weight) for weight in weights}
    expected = sum(sizes.values())
    # Vectors may be equal (a new model's biases are), and equal constants are stored once.
    vectors = sum(sizes[weight.path] for weight in weights if len(weight.shape) < 2)
    signatures = len(flatbuffer.parse(content).signatureDefs)
    return weight_bytes_check(
        flatbuffer.weight_bytes(content),
        (expected - vectors) * MIN_WEIGHT_RATIO,
        expected * MAX_WEIGHT_RATIO + CONSTANT_BYTES * signatures,
    )


def _weight_size(checkpoint: Checkpoint, profile: Profile, weight: keras.Variable) -> float:
    """Return the bytes that a weight takes in the file: vectors and positions stay float32 in int8
    and int4."""
    size = int(np.prod(weight.shape))
    if profile.quantization not in WEIGHT_BITS:
        return size * WEIGHT_BYTES[profile.quantization]
    if len(weight.shape) < 2 or "position_embedding" in weight.path:
        return size * WEIGHT_BYTES["float32"]
    fills_groups = weight.shape[0] % tflite_quantization.GROUP_SIZE == 0
    is_vocabulary = checkpoint.config.vocabulary_size in weight.shape
    in_int8 = is_vocabulary or not fills_groups
    return size * WEIGHT_BYTES["int8" if in_int8 else profile.quantization]
