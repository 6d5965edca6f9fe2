"""A decoder's graphs for LiteRT: steps over a cache that the caller keeps, or a whole loop.

Steps, in the form that LiteRT-LM runs (its `llm_litert_compiled_model_executor`):

    prefill_N   tokens int32 [1, N], input_pos int32 [N], mask float32 [1, 1, N, C], kv_cache_k_i
                and kv_cache_v_i float32 [1, H, C, hd] of every layer i -> the same caches
    decode      the same with N = 1 -> the caches, logits float32 [1, 1, V]

The new tokens are written from place input_pos[0] on, one after the other: the runtime fills a
short row up with tokens whose input_pos is 0, and later writes over what they left. `mask` is added
to the scores; a place counts where it is above MASKED.

Models that read sources have `decode` alone, with a source beside the caches that `encode` gives:

    encode      source_ids int32 [1, S], source_length int32 [1] ->
                source_padding_mask int32 [1, S],
                source_k_i and source_v_i float32 [1, H, S, hd] of every layer i

Whole loop: `generate`, token ids and settings in, token ids out. See `generation.loop`. Of models
that read sources the token ids are the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from keras import ops

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
from tfllm.layers import heads
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import CrossAttendingDecoder, EncoderDecoder

DECODE = "decode"
ENCODE = "encode"
SOURCE_MASK = "source_padding_mask"
GENERATE = "generate"
MASKED = -1.0
SHORTEST_PREFILL, PREFILL_STEP = 4, 4  # 4, 16, 64, 256, ...
LONGEST_PREFILL = 1024

Tensors = dict[str, tf.Tensor]


class _Scaled:
    """A decoder whose logits are scaled by what the converter does not know to be a constant.

    It multiplies a constant before a product into the weights, which makes another matrix of a
    tied one.
    """

    def logits(self, hidden: Any) -> Any:
        made: Any = self
        zero = tf.minimum(tf.abs(hidden[..., :1]), 0)
        return heads.token_logits(hidden, made.config, made.layers, made.config.logits_scale + zero)


class ScaledCrossed(_Scaled, CrossAttendingDecoder):
    """A decoder after its sources."""


class ScaledPair(_Scaled, EncoderDecoder):
    """An encoder-decoder with that decoder."""

    def with_encoder_output(self, cross_kv: Any, source_padding_mask: Any) -> Decoder:
        return ScaledCrossed(self.family, self.config, self.layers, cross_kv, source_padding_mask)


def prefill(length: int) -> str:
    """The name of the signature that reads `length` tokens."""
    return f"prefill_{length}"


def prefill_lengths(context: int) -> tuple[int, ...]:
    """Lengths of rows that prompts are read in. A runtime can use a row only where all of it fits
    into what is left of the context, so the shortest is short."""
    found, length = [], SHORTEST_PREFILL
    while length <= min(context // 2, LONGEST_PREFILL):
        found.append(length)
        length *= PREFILL_STEP
    return tuple(found) or (1,)


def cache_names(decoder: Decoder | EncoderDecoder) -> list[str]:
    """kv_cache_k_0, kv_cache_v_0, kv_cache_k_1, ..."""
    return [f"kv_cache_{part}_{i}" for i in range(decoder.num_layers) for part in "kv"]


def steps(
    decoder: Decoder,
    context: int,
    lengths: Sequence[int],
    known: tuple[tuple[int, int], ...] = (),
) -> dict[str, Any]:
    """Signature name -> concrete function: one `prefill_N` for each of `lengths`, and `decode`.

    `known` are the ids that may be written, where the caller itself cannot bar others (see
    `GraphFlags`): LiteRT-LM chooses from the logits as they are.
    """
    made = {prefill(length): _step(decoder, context, length, False) for length in lengths}
    return {**made, DECODE: _step(decoder, context, 1, True, known=known)}


def source_steps(pair: EncoderDecoder, context: int, source_length: int) -> dict[str, Any]:
    """Signature name -> concrete function: `encode` and `decode`."""
    names = source_names(pair)
    encode_specs = {
        "source_ids": tf.TensorSpec([1, source_length], tf.int32, "source_ids"),
        "source_length": tf.TensorSpec([1], tf.int32, "source_length"),
    }

    def encode(source_ids: tf.Tensor, source_length: tf.Tensor):
        source = encoder_outputs.encode(pair, source_ids, source_length)
        flat = [one for layer in source.cross_kv for one in layer]
        return {SOURCE_MASK: source.padding_mask, **dict(zip(names, flat, strict=True))}

    shape = [1, pair.num_heads, source_length, pair.head_dim]
    specs = {
        SOURCE_MASK: tf.TensorSpec([1, source_length], tf.int32, SOURCE_MASK),
        **{name: tf.TensorSpec(shape, tf.float32, name) for name in names},
    }
    made = tf.function(encode, autograph=False).get_concrete_function(**encode_specs)
    return {ENCODE: made, DECODE: _step(pair, context, 1, True, specs)}


def source_names(pair: EncoderDecoder) -> list[str]:
    """source_k_0, source_v_0, source_k_1, ..."""
    return [f"source_{part}_{i}" for i in range(pair.num_layers) for part in "kv"]


def _after(decoder: Any, given: Tensors) -> Decoder:
    """The decoder after the source among the tensors, if it reads one."""
    if not encoder_outputs.reads_source(decoder):
        return decoder
    flat = [given[name] for name in source_names(decoder)]
    crossed = tuple(zip(flat[::2], flat[1::2], strict=True))
    return encoder_outputs.with_encoder_output(
        decoder, encoder_outputs.EncoderOutput(given[SOURCE_MASK], crossed)
    )


def _step(
    decoder: Any,
    context: int,
    length: int,
    with_logits: bool,
    source: Mapping[str, tf.TensorSpec] = {},
    known: tuple[tuple[int, int], ...] = (),
) -> Any:
    shape = [1, decoder.num_key_value_heads, context, decoder.head_dim]
    specs = {
        "tokens": tf.TensorSpec([1, length], tf.int32, "tokens"),
        "input_pos": tf.TensorSpec([length], tf.int32, "input_pos"),
        "mask": tf.TensorSpec([1, 1, length, context], tf.float32, "mask"),
        **{name: tf.TensorSpec(shape, tf.float32, name) for name in cache_names(decoder)},
        **source,
    }

    def step(tokens: tf.Tensor, input_pos: tf.Tensor, mask: tf.Tensor, **cache: tf.Tensor):
        written: Tensors = {}
        writers: Any = tuple(_writers(decoder, cache, written, input_pos[0]))
        positions = input_pos[None]
        made = _after(decoder, cache)
        allowed = made.layer_masks(mask[:, 0] > MASKED, positions, tf.range(context)[None])
        hidden, _ = made(tokens, positions, allowed, writers)
        if not with_logits:
            return written
        logits = made.logits(hidden)
        if known:
            logits = penalties.keep_token_ranges(logits[:, 0], known)[:, None]
        return {**written, "logits": logits}

    return tf.function(step, autograph=False).get_concrete_function(**specs)


def _writers(
    decoder: Decoder, cache: Tensors, written: Tensors, start: tf.Tensor
) -> Iterator[Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]]:
    """What attention takes as a layer's cache: new keys and values [1, H, N, hd] to those of the
    whole context, which `written` keeps. One built-in operation, where joining would copy twice."""
    zero = tf.constant(0)

    def writer(i: int):
        def write(*new: tf.Tensor) -> tuple[tf.Tensor, ...]:
            for part, values in zip("kv", new, strict=True):
                name = f"kv_cache_{part}_{i}"
                place = (zero, zero, start, zero)
                written[name] = ops.slice_update(cache[name], place, values)
            return tuple(written[f"kv_cache_{part}_{i}"] for part in "kv")

        return write

    return (writer(i) for i in range(decoder.num_layers))


# The settings of a row that `generate` takes, each [B].
LOOP_SETTINGS = fields_in("sampling")


def whole_loop(
    decoder: Any,
    batch: int,
    prompt_length: int,
    most_new: int,
    settings: GenerationConfig,
    known: tuple[tuple[int, int], ...],
    start_id: int = 0,
) -> Any:
    """The concrete function `generate` of B rows. What is no LOOP_SETTING is as `settings` say, the
    stop ids too; texts after sources begin with `start_id`. `known` are the ids that may be
    written (see `GraphFlags`).

    token_ids int32 [B, P] filled up on the right, lengths int32 [B], max_new_tokens int32 [B] of at
    most N, and LOOP_SETTINGS [B] -> ids int32 [B, N], counts int32 [B], log_probabilities float32
    [B, N], finished int32 [B] (1: by a stop id, 2: by length). Seeds give the texts that
    `tfllm generate` writes.
    """
    types = batched_config_specs()._asdict()
    specs = {
        "token_ids": tf.TensorSpec([batch, prompt_length], tf.int32, "token_ids"),
        "lengths": tf.TensorSpec([batch], tf.int32, "lengths"),
        "max_new_tokens": tf.TensorSpec([batch], tf.int32, "max_new_tokens"),
        **{name: tf.TensorSpec([batch], types[name].dtype, name) for name in LOOP_SETTINGS},
    }
    needs = GraphFlags(sampling=True, filters=True, token_ranges=known)
    if encoder_outputs.reads_source(decoder):
        needs |= graph_flags(settings.model_copy(update={"num_beams": 2}))  # exactly what is needed
    plain = batch_configs([settings] * batch, [0] * batch)

    def generate(token_ids: tf.Tensor, lengths: tf.Tensor, max_new_tokens: tf.Tensor, **given: Any):
        source: encoder_outputs.MaybeEncoderOutput = encoder_outputs.NO_SOURCE
        if encoder_outputs.reads_source(decoder):
            source = encoder_outputs.encode(decoder, token_ids, lengths)
            token_ids, lengths = tf.fill([batch, 1], start_id), tf.ones([batch], tf.int32)
        limit = lengths + tf.minimum(max_new_tokens, most_new)
        made = tf.nest.map_structure(tf.constant, plain)._replace(max_length=limit, **given)
        found = loop.generate(
            decoder, token_ids, lengths, made, needs, most_new, caches.select, source
        )
        return found._asdict()

    return tf.function(generate, autograph=False).get_concrete_function(**specs)
