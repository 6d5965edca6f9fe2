"""Beam search as a graph function, for anything that can be stepped and reordered.

The algorithm is that of transformers 5 (`GenerationMixin._beam_search`), with its order of
operations, so that it finds the same texts: K beams run; of their continuations the best 2K (more
with several stop ids) are kept; those among the first K that end join the K best finished texts,
and the best K that go on are the next beams. A finished text scores its log-probability divided by
its length to the power of the length penalty; the stop id counts. An own option of ours adds the
coverage of Wu et al. 2016 to that: times the penalty, the sum over the source's tokens of
log(min(attention that they got, 1)). When the search ends:

    early_stopping True      as soon as K texts have finished
    early_stopping False     when no running beam, as long as it is now, would beat the worst one
    early_stopping "never"   when none could even at the length that favours it most
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from tfllm.generation.blocked_top_k import largest

EarlyStopping = bool | Literal["never"]

IMPOSSIBLE = -1e9  # a score that nothing real has

# step(token ids int32 [B * K], how many new tokens precede them, state) -> logits, state
Step = Callable[[tf.Tensor, tf.Tensor, Any], tuple[tf.Tensor, Any]]
# change(log-probabilities [B * K, V], new ids [B * K, N], how many count) -> log-probabilities
Change = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class Texts(NamedTuple):
    """B x K new texts, running ones of equal length or finished ones."""

    ids: tf.Tensor
    """int32 [B, K, N]"""
    log_probabilities: tf.Tensor
    """float32 [B, K, N]: of each token under the model itself"""
    scores: tf.Tensor
    """float32 [B, K]: running: the log-probability; finished: with the length penalty"""
    lengths: tf.Tensor
    """int32 [B, K], of finished ones; a stop id counts"""
    stopped: tf.Tensor
    """bool [B, K]: ended by a stop id"""
    finished: tf.Tensor
    """bool [B, K]"""


def search(
    step: Step,
    state: Any,
    logits: tf.Tensor,
    *,
    num_beams: int,
    most_new: tf.Tensor | int,
    limits: tf.Tensor,
    eos_token_id: tf.Tensor,
    length_penalty: tf.Tensor | float = 1.0,
    early_stopping: EarlyStopping = False,
    change: Change = lambda values, ids, count: values,
    bonus: Callable[[Any], tf.Tensor] | None = None,
    shapes: Any = None,
) -> Texts:
    """The K best texts of each of B rows, best first.

    `logits` float32 [B * K, V] are those of the first new token; the K rows of one text are equal
    then and stand together. `state` is any nest of tensors [B * K, ...]; its rows are picked by
    tf.gather. `limits` int32 [B] are the most new tokens of each row, none above `most_new` = N;
    `eos_token_id` int32 [B, E], filled up with -1. `bonus` makes of a state what is added to the
    score of a text that ends now, float32 [B * K] of at most 0. `shapes` are those of `state`,
    where its tensors grow.
    """
    size = _Size(num_beams, logits.shape[-1], eos_token_id.shape[1], early_stopping, length_penalty)
    batch = tf.shape(limits)[0]
    running, finished = _nothing(batch, num_beams, most_new)
    first = tf.concat([tf.zeros([batch, 1]), tf.fill([batch, num_beams - 1], IMPOSSIBLE)], axis=1)
    running = running._replace(scores=first)
    improvable = tf.ones([batch, 1], tf.bool)

    def pick(count, state, logits, running, finished, improvable):
        found = _continuations(size, count, logits, running, change)
        ended, stopped = _ended(found, count, limits, eos_token_id)
        scores = _ended_scores(size, count, found, None if bonus is None else bonus(state))
        found_ends = found._replace(scores=scores)
        finished = _with_finished(size, count, found_ends, ended, stopped, finished, improvable)
        running, parents = _next_beams(size, found, ended)
        count = count + 1
        improvable = _improvable(size, count, limits, running, finished, improvable)
        done = tf.reduce_all(ended)
        if early_stopping is True:
            done = tf.logical_or(done, tf.reduce_all(finished.finished))
        going = tf.logical_and(tf.reduce_any(improvable), tf.logical_not(done))
        return count, running, finished, improvable, parents, going

    def body(count, state, running, finished, improvable, parents, _):
        state = tf.nest.map_structure(lambda one: tf.gather(one, parents), state)
        newest = tf.reshape(tf.gather(running.ids, count - 1, axis=2), [-1])
        logits, state = step(newest, count - 1, state)
        count, *rest = pick(count, state, logits, running, finished, improvable)
        return count, state, *rest

    count, *rest = pick(tf.constant(0), state, logits, running, finished, improvable)
    start = (count, state, *rest)
    invariants = list(tf.nest.map_structure(lambda one: one.shape, start))
    if shapes is not None:
        invariants[1] = shapes
    end = tf.while_loop(
        lambda *values: values[-1],
        body,
        start,
        shape_invariants=tuple(invariants),
        parallel_iterations=1,
    )
    return end[3]


class _Size(NamedTuple):
    """What stays the same during one search. `length_penalty` is one number or float32 [B, 1]."""

    num_beams: int
    vocabulary_size: int
    eos_token_id: int
    early_stopping: EarlyStopping
    length_penalty: tf.Tensor | float

    @property
    def kept(self) -> int:
        """Continuations of which num_beams surely go on, whichever of them stop."""
        wanted = max(2, 1 + self.eos_token_id) * self.num_beams
        return min(wanted, self.num_beams * self.vocabulary_size)


def _nothing(batch: tf.Tensor, num_beams: int, most_new: Any) -> tuple[Texts, Texts]:
    """(running, finished) before the first token."""
    none = Texts(
        ids=tf.zeros([batch, num_beams, most_new], tf.int32),
        log_probabilities=tf.zeros([batch, num_beams, most_new]),
        scores=tf.fill([batch, num_beams], IMPOSSIBLE),
        lengths=tf.zeros([batch, num_beams], tf.int32),
        stopped=tf.zeros([batch, num_beams], tf.bool),
        finished=tf.zeros([batch, num_beams], tf.bool),
    )
    return none, none


class _Found(NamedTuple):
    """The best M continuations of each row, best first."""

    ids: tf.Tensor  # int32 [B, M, N]
    log_probabilities: tf.Tensor  # float32 [B, M, N]
    newest: tf.Tensor  # int32 [B, M]
    scores: tf.Tensor  # float32 [B, M]
    parents: tf.Tensor  # int32 [B, M], among the K beams of the row


def _continuations(
    size: _Size, count: tf.Tensor, logits: tf.Tensor, running: Texts, change: Change
) -> _Found:
    beams, vocabulary_size = size.num_beams, size.vocabulary_size
    most_new = tf.shape(running.ids)[2]
    own = tf.nn.log_softmax(logits)
    changed = change(own, tf.reshape(running.ids, [-1, most_new]), count)
    total = tf.reshape(changed, [-1, beams, vocabulary_size]) + running.scores[:, :, None]
    total = tf.reshape(total, [-1, beams * vocabulary_size])
    scores, places = largest(total, size.kept)
    own = tf.reshape(own, [-1, beams * vocabulary_size])
    parents, newest = places // vocabulary_size, places % vocabulary_size
    here = tf.equal(tf.range(most_new), count)[None, None]
    values = tf.gather(own, places, batch_dims=1)[:, :, None]
    before = tf.gather(running.log_probabilities, parents, batch_dims=1)
    return _Found(
        ids=tf.where(here, newest[:, :, None], tf.gather(running.ids, parents, batch_dims=1)),
        log_probabilities=tf.where(here, values, before),
        newest=newest,
        scores=scores,
        parents=parents,
    )


def _ended(
    found: _Found, count: tf.Tensor, limits: tf.Tensor, eos_token_id: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """(which continuations end, which by a stop id), bool [B, M]."""
    stopped = tf.reduce_any(tf.equal(found.newest[:, :, None], eos_token_id[:, None]), axis=2)
    return tf.logical_or(stopped, (count + 1 >= limits)[:, None]), stopped


def _ended_scores(
    size: _Size, count: tf.Tensor, found: _Found, bonus: tf.Tensor | None
) -> tf.Tensor:
    """Scores of the continuations as texts that end now, float32 [B, M]; `bonus` [B * K]."""
    scores = found.scores / tf.pow(tf.cast(count + 1, tf.float32), size.length_penalty)
    if bonus is None:
        return scores
    return scores + tf.gather(tf.reshape(bonus, [-1, size.num_beams]), found.parents, batch_dims=1)


def _with_finished(
    size: _Size,
    count: tf.Tensor,
    found: _Found,
    ended: tf.Tensor,
    stopped: tf.Tensor,
    finished: Texts,
    improvable: tf.Tensor,
) -> Texts:
    """The best K of the finished texts and of the continuations among the first K that end."""
    first = tf.range(size.kept)[None] < size.num_beams
    ended = tf.logical_and(ended, first)
    scores = found.scores
    closed = tf.logical_not(improvable)
    if size.early_stopping is True:
        full = tf.reduce_all(finished.finished, axis=1, keepdims=True)
        scores += tf.cast(full, tf.float32) * IMPOSSIBLE
    scores += tf.cast(closed, tf.float32) * IMPOSSIBLE
    scores += tf.cast(tf.logical_not(ended), tf.float32) * IMPOSSIBLE
    fresh = Texts(
        ids=found.ids,
        log_probabilities=found.log_probabilities,
        scores=scores,
        lengths=tf.zeros_like(found.newest) + count + 1,
        stopped=stopped,
        finished=ended,
    )
    merged = tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=1), finished, fresh)
    best = tf.math.top_k(merged.scores, size.num_beams).indices
    return tf.nest.map_structure(lambda one: tf.gather(one, best, batch_dims=1), merged)


def _next_beams(size: _Size, found: _Found, ended: tf.Tensor) -> tuple[Texts, tf.Tensor]:
    """(the K best continuations that go on, the row [B * K] that each comes from)."""
    scores = found.scores + tf.cast(ended, tf.float32) * IMPOSSIBLE
    scores, best = tf.math.top_k(scores, size.num_beams)
    parents = tf.gather(found.parents, best, batch_dims=1)
    batch = tf.shape(parents)[0]
    rows = tf.reshape(parents + tf.range(batch)[:, None] * size.num_beams, [-1])
    false = tf.zeros_like(scores, tf.bool)
    running = Texts(
        ids=tf.gather(found.ids, best, batch_dims=1),
        log_probabilities=tf.gather(found.log_probabilities, best, batch_dims=1),
        scores=scores,
        lengths=tf.zeros_like(best),
        stopped=false,
        finished=false,
    )
    return running, rows


def _improvable(
    size: _Size,
    count: tf.Tensor,
    limits: tf.Tensor,
    running: Texts,
    finished: Texts,
    improvable: tf.Tensor,
) -> tf.Tensor:
    """Whether a running beam may still beat the worst finished text: bool [B, 1]."""
    penalty = tf.convert_to_tensor(size.length_penalty, tf.float32)
    length = tf.cast(tf.fill(tf.shape(limits), count), tf.float32)[:, None]
    if size.early_stopping == "never":
        length = tf.where(penalty > 0, tf.cast(limits, tf.float32)[:, None], length)
    best = running.scores[:, :1] / tf.pow(length, penalty)
    worst = tf.reduce_min(finished.scores, axis=1, keepdims=True)
    worst = tf.where(finished.finished, worst, IMPOSSIBLE)
    return tf.logical_and(improvable, tf.reduce_any(best > worst, axis=1, keepdims=True))
