"""A decoder's graphs for LiteRT: steps over a cache that the caller holds, or the whole loop.

Steps, in the form that LiteRT-LM runs (its `llm_litert_compiled_model_executor`):

    prefill_N   tokens int32 [1, N], input_pos int32 [N], mask float32 [1, 1, N, C], kv_cache_k_i
                and kv_cache_v_i float32 [1, H, C, hd] of every layer i -> the same caches
    decode      the same with N = 1 -> the caches, logits float32 [1, 1, V]

The new tokens are written to consecutive positions from input_pos[0] on: the runtime pads a short
row with tokens whose input_pos is 0, and later overwrites what they left. `mask` is added to the
scores; a position is attended to where it is above MASKED.

Encoder-decoders have `decode` alone, which takes beside the caches the source that `encode` gives:

    encode      source_ids int32 [1, S], source_length int32 [1] ->
                source_padding_mask int32 [1, S],
                source_k_i and source_v_i float32 [1, H, S, hd] of every layer i

Whole loop: `generate`, token ids and settings in, token ids out. See `generation.loop`. For
encoder-decoders the token ids are the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import tensorflow as tf
from keras import ops

from tfllm.export.artifact import ConcreteFunctions
from tfllm.generation import cache as caches
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation import loop, penalties
from tfllm.generation.config import (
    GenerationConfig,
    GraphFlags,
    batch_configs,
    batched_config_specs,
    fields_in,
    graph_flags,
)
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import EncoderDecoder

DECODE = "decode"
ENCODE = "encode"
SOURCE_MASK = "source_padding_mask"
GENERATE = "generate"
MASKED = -1.0
SHORTEST_PREFILL, PREFILL_FACTOR = 4, 4  # 4, 16, 64, 256, ...
LONGEST_PREFILL = 1024

Tensors = dict[str, tf.Tensor]
KeyValueUpdate = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]
"""New keys and values of a layer [1, H, N, hd] -> those of the whole context [1, H, C, hd]."""


def prefill_name(length: int) -> str:
    """Return the name of the signature that reads `length` tokens."""
    return f"prefill_{length}"


def prefill_lengths(context: int) -> tuple[int, ...]:
    """Return the default lengths of prefill signatures.

    A runtime can use one only where all of it fits into the rest of the context, so the shortest is
    short.

    Args:
        context: Capacity of the caches in tokens.
    """
    lengths, length = [], SHORTEST_PREFILL
    while length <= min(context // 2, LONGEST_PREFILL):
        lengths.append(length)
        length *= PREFILL_FACTOR
    return tuple(lengths) or (1,)


def cache_names(decoder: Decoder | EncoderDecoder) -> list[str]:
    """Return kv_cache_k_0, kv_cache_v_0, kv_cache_k_1, ..."""
    return [f"kv_cache_{part}_{i}" for i in range(decoder.num_layers) for part in "kv"]


def step_functions(
    decoder: Decoder,
    context: int,
    lengths: Sequence[int],
    token_ranges: tuple[tuple[int, int], ...] = (),
) -> ConcreteFunctions:
    """Return signature name -> concrete function: a `prefill_N` per length, and `decode`.

    Args:
        decoder: The model.
        context: Capacity of the caches in tokens.
        lengths: Token counts of the prefill signatures.
        token_ranges: Ranges of ids that may be generated, where the caller cannot exclude others
            itself: LiteRT-LM samples from the logits as they are.
    """
    prefill = {
        prefill_name(length): _step_function(decoder, context, length, with_logits=False)
        for length in lengths
    }
    return {
        **prefill,
        DECODE: _step_function(decoder, context, 1, with_logits=True, token_ranges=token_ranges),
    }


def seq2seq_step_functions(
    model: EncoderDecoder, context: int, source_length: int
) -> ConcreteFunctions:
    """Trace the functions `encode` and `decode`.

    Args:
        model: The encoder-decoder.
        context: Capacity of the caches in target tokens.
        source_length: Tokens of a source.

    Returns:
        Concrete functions by signature name.
    """
    names = source_names(model)
    encode_specs = {
        "source_ids": tf.TensorSpec([1, source_length], tf.int32, "source_ids"),
        "source_length": tf.TensorSpec([1], tf.int32, "source_length"),
    }

    def encode(source_ids: tf.Tensor, source_length: tf.Tensor) -> Tensors:
        source = encoder_outputs.encode(model, source_ids, source_length)
        flat = [tensor for layer in source.cross_kv for tensor in layer]
        return {SOURCE_MASK: source.padding_mask, **dict(zip(names, flat, strict=True))}

    shape = [1, model.num_heads, source_length, model.head_dim]
    specs = {
        SOURCE_MASK: tf.TensorSpec([1, source_length], tf.int32, SOURCE_MASK),
        **{name: tf.TensorSpec(shape, tf.float32, name) for name in names},
    }
    function = tf.function(encode, autograph=False).get_concrete_function(**encode_specs)
    decode = _step_function(model, context, 1, with_logits=True, source_specs=specs)
    return {ENCODE: function, DECODE: decode}


def source_names(model: EncoderDecoder) -> list[str]:
    """Return source_k_0, source_v_0, source_k_1, ..."""
    return [f"source_{part}_{i}" for i in range(model.num_layers) for part in "kv"]


def _with_source(model: Decoder | EncoderDecoder, inputs: Tensors) -> Decoder:
    """Return the decoder, attending to the source among the inputs if the model has an encoder."""
    if not encoder_outputs.reads_source(model):
        return cast(Decoder, model)
    flat = [inputs[name] for name in source_names(model)]
    cross_kv = tuple(zip(flat[::2], flat[1::2], strict=True))
    return encoder_outputs.with_encoder_output(
        model, encoder_outputs.EncoderOutput(inputs[SOURCE_MASK], cross_kv)
    )


def _step_function(
    decoder: Decoder | EncoderDecoder,
    context: int,
    length: int,
    *,
    with_logits: bool,
    source_specs: Mapping[str, tf.TensorSpec] = {},
    token_ranges: tuple[tuple[int, int], ...] = (),
) -> tf.types.experimental.ConcreteFunction:
    """Return the concrete function that reads `length` tokens."""
    shape = [1, decoder.num_key_value_heads, context, decoder.head_dim]
    specs = {
        "tokens": tf.TensorSpec([1, length], tf.int32, "tokens"),
        "input_pos": tf.TensorSpec([length], tf.int32, "input_pos"),
        "mask": tf.TensorSpec([1, 1, length, context], tf.float32, "mask"),
        **{name: tf.TensorSpec(shape, tf.float32, name) for name in cache_names(decoder)},
        **source_specs,
    }

    def step(
        tokens: tf.Tensor, input_pos: tf.Tensor, mask: tf.Tensor, **cache: tf.Tensor
    ) -> Tensors:
        new_cache: Tensors = {}
        updates: Any = tuple(_cache_updates(decoder, cache, new_cache, input_pos[0]))
        positions = input_pos[None]
        model = _with_source(decoder, cache)
        attention_mask = mask[:, 0] > MASKED
        attention_mask = model.layer_masks(attention_mask, positions, tf.range(context)[None])
        hidden, _ = model(tokens, positions, attention_mask, updates)
        if not with_logits:
            return new_cache
        logits = model.logits(hidden)
        if token_ranges:
            logits = penalties.keep_token_ranges(logits[:, 0], token_ranges)[:, None]
        return {**new_cache, "logits": logits}

    return tf.function(step, autograph=False).get_concrete_function(**specs)


def _cache_updates(
    decoder: Decoder | EncoderDecoder, cache: Tensors, new_cache: Tensors, start: tf.Tensor
) -> Iterator[KeyValueUpdate]:
    """Yield what attention takes as each layer's cache: a function of new keys and values
    [1, H, N, hd] to those of the whole context, which are stored in `new_cache`. The update is one
    built-in operation, where a concatenation would copy twice."""
    zero = tf.constant(0)

    def update_of(layer: int) -> KeyValueUpdate:
        def update(*new: tf.Tensor) -> tuple[tf.Tensor, ...]:
            for part, values in zip("kv", new, strict=True):
                name = f"kv_cache_{part}_{layer}"
                position = (zero, zero, start, zero)
                new_cache[name] = ops.slice_update(cache[name], position, values)
            return tuple(new_cache[f"kv_cache_{part}_{layer}"] for part in "kv")

        return update

    return (update_of(layer) for layer in range(decoder.num_layers))


# The settings that `generate` takes for each row, each [B].
LOOP_SETTINGS = fields_in("sampling")


def loop_function(
    decoder: Decoder | EncoderDecoder,
    batch_size: int,
    prompt_length: int,
    most_new: int,
    config: GenerationConfig,
    token_ranges: tuple[tuple[int, int], ...],
    decoder_start_token_id: int = 0,
) -> tf.types.experimental.ConcreteFunction:
    """Return the concrete function `generate`.

    token_ids int32 [B, P] padded on the right, lengths int32 [B], max_new_tokens int32 [B] of at
    most N, and LOOP_SETTINGS [B] -> ids int32 [B, N], counts int32 [B], log_probabilities float32
    [B, N], finished int32 [B] (1: by an eos token, 2: by length). A seed gives the text that
    `tfllm generate` gives.

    Args:
        decoder: A Decoder or EncoderDecoder.
        batch_size: B.
        prompt_length: P; for encoder-decoders of the source.
        most_new: N.
        config: The settings that are not LOOP_SETTINGS, eos tokens among them.
        token_ranges: Ranges of ids that may be generated.
        decoder_start_token_id: First target token of encoder-decoders.
    """
    types = batched_config_specs()._asdict()
    specs = {
        "token_ids": tf.TensorSpec([batch_size, prompt_length], tf.int32, "token_ids"),
        "lengths": tf.TensorSpec([batch_size], tf.int32, "lengths"),
        "max_new_tokens": tf.TensorSpec([batch_size], tf.int32, "max_new_tokens"),
        **{name: tf.TensorSpec([batch_size], types[name].dtype, name) for name in LOOP_SETTINGS},
    }
    flags = GraphFlags(sampling=True, filters=True, token_ranges=token_ranges)
    if encoder_outputs.reads_source(decoder):
        # With beams the flags are exactly what the settings need.
        flags |= graph_flags(config.model_copy(update={"num_beams": 2}))
    batched = batch_configs([config] * batch_size, [0] * batch_size)

    def generate(
        token_ids: tf.Tensor, lengths: tf.Tensor, max_new_tokens: tf.Tensor, **rows: tf.Tensor
    ) -> Tensors:
        source: encoder_outputs.MaybeEncoderOutput = encoder_outputs.NO_SOURCE
        if encoder_outputs.reads_source(decoder):
            source = encoder_outputs.encode(decoder, token_ids, lengths)
            token_ids, lengths = (
                tf.fill([batch_size, 1], decoder_start_token_id),
                tf.ones([batch_size], tf.int32),
            )
        limit = lengths + tf.minimum(max_new_tokens, most_new)
        settings = tf.nest.map_structure(tf.constant, batched)._replace(max_length=limit, **rows)
        result = loop.generate(
            decoder, token_ids, lengths, settings, flags, most_new, caches.select, source
        )
        return result._asdict()

    return tf.function(generate, autograph=False).get_concrete_function(**specs)
