"""Beam search with a model: the graphs of it, and texts from them.

`beam` knows the algorithm and no model; here are the steps of one, its penalties, its sources and
how far the source was covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.generation import beam
from tfllm.generation import cache as caches
from tfllm.generation import source as sources
from tfllm.generation import state as states
from tfllm.generation.beam import EarlyStopping, Texts, search
from tfllm.generation.config import (
    BatchedConfig,
    GenerationConfig,
    GraphFlags,
    batch_configs,
    batched_config_specs,
)
from tfllm.generation.penalties import penalised
from tfllm.generation.slots import padded

if TYPE_CHECKING:
    from tfllm.generation.engine import Engine

UNSEEN = 1e-9  # attention that stands for none, where a logarithm is taken


@dataclass(frozen=True)
class Result:
    """One text."""

    ids: list[int]
    """The new tokens, without the stop id."""
    log_probabilities: list[float]
    """Of each token under the model itself, before temperature, filters and penalties."""
    finish_reason: str
    """"stop": a stop id, or `on_token` said so; "length": max_new_tokens or the model's window."""
    score: float | None = None
    """Of beam search: the log-probability over length to the power of the length penalty."""


class _Kind(NamedTuple):
    """What one graph of beam search is made for."""

    needs: GraphFlags
    num_beams: int
    early_stopping: beam.EarlyStopping
    eos_token_id: int
    renormalize_logits: bool
    covers: bool


class Searcher:
    """Beam search with an engine's model; a graph for each kind of settings."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._graphs: dict[_Kind, tf.types.experimental.PolymorphicFunction] = {}

    def texts(
        self,
        chosen: Sequence[tuple[Sequence[int], Sequence[int]]],
        settings: GenerationConfig,
    ) -> list[list[Result]]:
        """The texts of each prompt with its source."""
        prompts, given = zip(*chosen, strict=True)
        limits = [self.engine.limit(prompt, settings) for prompt in prompts]
        token_ids, lengths = padded(prompts)
        needs = self.engine.needs(settings)
        kind = _Kind(
            needs,
            settings.num_beams,
            settings.early_stopping,
            len(settings.eos_token_id),
            settings.renormalize_logits,
            settings.coverage_penalty > 0,
        )
        if kind not in self._graphs:
            self._graphs[kind] = self._graph(kind)
        found = self._graphs[kind](
            token_ids,
            lengths,
            batch_configs([settings] * len(prompts), limits),
            int((np.array(limits) - lengths).max()),
            settings.length_penalty,
            settings.coverage_penalty,
            padded(given) if any(given) else (),
        )
        texts = beam.Texts(*(one.numpy() for one in found))
        places = range(settings.num_return_sequences)
        return [
            [_searched_result(texts, row, place) for place in places] for row in range(len(prompts))
        ]

    def _graph(self, kind: _Kind):
        specs = batched_config_specs()._replace(
            eos_token_id=tf.TensorSpec([None, kind.eos_token_id], tf.int32)
        )

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                specs,
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([], tf.float32),
                sources.id_specs(self.engine.decoder),
            ],
        )
        def found(token_ids, lengths, rows, most_new, length_penalty, coverage_penalty, source):
            self.engine.traces += 1
            return decode(
                self.engine.decoder,
                token_ids,
                lengths,
                rows,
                kind.needs,
                most_new,
                num_beams=kind.num_beams,
                length_penalty=length_penalty,
                early_stopping=kind.early_stopping,
                renormalize_logits=kind.renormalize_logits,
                source=self.engine.read_source(source),
                coverage_penalty=coverage_penalty if kind.covers else None,
            )

        return found


def _searched_result(texts: beam.Texts, row: int, place: int) -> Result:
    stopped = bool(texts.stopped[row, place])
    length = int(texts.lengths[row, place]) - stopped
    return Result(
        texts.ids[row, place, :length].tolist(),
        texts.log_probabilities[row, place, :length].tolist(),
        "stop" if stopped else "length",
        float(texts.scores[row, place]),
    )


def decode(
    decoder: Any,
    token_ids: tf.Tensor,
    lengths: tf.Tensor,
    rows: BatchedConfig,
    features: GraphFlags,
    most_new: tf.Tensor | int,
    *,
    num_beams: int,
    length_penalty: tf.Tensor | float = 1.0,
    early_stopping: EarlyStopping = False,
    renormalize_logits: bool = False,
    source: sources.AnySource = sources.NOTHING,
    coverage_penalty: tf.Tensor | float | None = None,
    writer: caches.Writer = caches.scatter,
) -> Texts:
    """Beam search: prompts int32 [B, P] of `lengths` [B] to Texts, each after its `source`.

    `rows` has B rows; temperature and filters are not used. `most_new` is N. The beams of a source
    share its keys and values.
    """
    longest = token_ids.shape[1] or tf.shape(token_ids)[1]
    covers = coverage_penalty is not None
    seen: list[Any] = []
    decoder = sources.after(decoder, source, seen if covers else None)
    # The cache grows as the texts do: each step picks, and so copies, all of it.
    logits, cache = states.read(decoder, token_ids, lengths, tf.shape(token_ids)[1] + 1)
    covered = _seen(seen, lengths) if covers else ()

    def widened(one: tf.Tensor) -> tf.Tensor:
        return tf.repeat(one, num_beams, axis=0)

    logits, cache, covered, wide, prompts, starts = tf.nest.map_structure(
        widened, (logits, cache, covered, rows, token_ids, lengths)
    )

    def step(newest: tf.Tensor, count: tf.Tensor, state: Any):
        cache, covered = state
        cache = caches.grown(cache, longest + count + 1)
        logits, cache = states.step(decoder, newest, starts + count, cache, writer)
        return logits, (cache, covered + _seen(seen) if covers else covered)

    def change(values: tf.Tensor, new: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        place = tf.range(longest + most_new)[None]
        column = tf.clip_by_value(place - starts[:, None], 0, most_new - 1)
        prompt = tf.pad(prompts, [[0, 0], [0, most_new]])
        ids = tf.where(place < starts[:, None], prompt, tf.gather(new, column, batch_dims=1))
        values = penalised(values, ids, starts + count, starts, wide, features)
        return tf.nn.log_softmax(values) if renormalize_logits else values

    def coverage(state: Any) -> tf.Tensor:
        assert isinstance(source, sources.Source)
        shares = tf.math.log(tf.clip_by_value(state[1], UNSEEN, 1.0))
        return coverage_penalty * tf.reduce_sum(
            tf.where(widened(source.mask) > 0, shares, 0.0), axis=1
        )

    shapes = caches.mapped(
        lambda one: tf.TensorShape([None, one.shape[1], None, one.shape[3]]), cache
    )
    return search(
        step,
        (cache, covered),
        logits,
        num_beams=num_beams,
        most_new=most_new,
        limits=rows.max_length - lengths,
        eos_token_id=rows.eos_token_id,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        change=change,
        bonus=coverage if covers else None,
        shapes=(shapes, tf.TensorShape([None, None]) if covers else ()),
    )


def _seen(alignments: list[Any], lengths: tf.Tensor | None = None) -> tf.Tensor:
    """Float32 [R, S]: where the last token of each row looked. `lengths` int32 [R] are the tokens
    of each row, one without them. Empties the list for the next step."""
    weights = sources.mean_alignment(alignments)
    alignments.clear()
    return weights[:, 0] if lengths is None else tf.gather(weights, lengths - 1, batch_dims=1)
