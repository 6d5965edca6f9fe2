"""Beam search as a graph function, for anything that can be stepped and reordered.

The algorithm is that of transformers 5 (`GenerationMixin._beam_search`), with its order of
operations, so that it finds the same texts: K beams run; of their continuations the best 2K (more
with several end-of-sequence tokens) are kept; those among the first K that end join the K best
finished texts, and the best K that have not ended are the next beams. A finished text scores its
log-probability divided by its length to the power of the length penalty; the end-of-sequence token
counts. An option of tfllm's own adds the coverage of Wu et al. 2016 to that: times the penalty, the
sum over the source's tokens of log(min(attention that they got, 1)). When the search ends:

    early_stopping True      as soon as K texts have finished
    early_stopping False     when no running beam, as long as it is now, would beat the worst one
    early_stopping "never"   when none could even at the length that favours it most
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import tensorflow as tf

from tfllm.generation.blocked_top_k import top_k

EarlyStopping = bool | Literal["never"]

IMPOSSIBLE = -1e9  # lower than every real score

State = TypeVar("State")  # a nest of tensors [B * K, ...]
StepFunction = Callable[[tf.Tensor, tf.Tensor, State], tuple[tf.Tensor, State]]
"""step(token ids int32 [B * K], how many new tokens precede them, state) -> (logits float32
[B * K, V], state)."""
LogitsProcessor = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""process(log-probabilities [B * K, V], new ids [B * K, N], how many count) ->
log-probabilities."""
ScoreBonus = Callable[[State], tf.Tensor]
"""bonus(state) -> what is added to the score of a text that ends now, float32 [B * K], at
most 0."""


class Hypotheses(NamedTuple):
    """B x K new texts, running ones of equal length or finished ones."""

    ids: tf.Tensor
    """int32 [B, K, N]"""
    log_probabilities: tf.Tensor
    """float32 [B, K, N]: of each token under the model itself"""
    scores: tf.Tensor
    """float32 [B, K]: running: the log-probability; finished: with the length penalty"""
    lengths: tf.Tensor
    """int32 [B, K], of finished ones; an end-of-sequence token counts"""
    stopped: tf.Tensor
    """bool [B, K]: ended by an end-of-sequence token"""
    finished: tf.Tensor
    """bool [B, K]"""


def search(
    step: StepFunction[State],
    state: State,
    logits: tf.Tensor,
    *,
    num_beams: int,
    max_new_tokens: tf.Tensor | int,
    row_limits: tf.Tensor,
    eos_token_id: tf.Tensor,
    length_penalty: tf.Tensor | float = 1.0,
    early_stopping: EarlyStopping = False,
    process_logits: LogitsProcessor = lambda values, ids, count: values,
    bonus: ScoreBonus[State] | None = None,
    state_shapes: State | None = None,
) -> Hypotheses:
    """Find the K best texts of each of B rows.

    Args:
        step: Feeds one token to each beam.
        state: Any nest of tensors [B * K, ...]; its rows are picked by tf.gather.
        logits: Those of the first new token, float32 [B * K, V]. The K rows of one text stand
            together and are equal.
        num_beams: K.
        max_new_tokens: N.
        row_limits: The most new tokens of each row, int32 [B], none above N.
        eos_token_id: int32 [B, E], padded with -1.
        length_penalty: One number, or float32 [B, 1].
        early_stopping: When the search ends.
        process_logits: Changes log-probabilities before tokens are chosen.
        bonus: Added to the scores of texts that end.
        state_shapes: The shapes of `state`, where its tensors grow.

    Returns:
        The finished texts, best first.
    """
    settings = _Settings(
        num_beams, logits.shape[-1], row_limits, eos_token_id, early_stopping, length_penalty,
        process_logits, bonus,
    )  # fmt: skip

    def body(beams: _Beams, state: State) -> tuple[_Beams, State]:
        state = tf.nest.map_structure(lambda tensor: tf.gather(tensor, beams.parents), state)
        newest = tf.reshape(tf.gather(beams.running.ids, beams.count - 1, axis=2), [-1])
        logits, state = step(newest, beams.count - 1, state)
        return _advance(settings, beams, state, logits), state

    beams = _advance(settings, _no_beams(settings, max_new_tokens), state, logits)
    shapes = tf.nest.map_structure(lambda tensor: tensor.shape, (beams, state))
    if state_shapes is not None:
        shapes = (shapes[0], state_shapes)
    beams, _ = tf.while_loop(
        lambda beams, _: beams.unfinished,
        body,
        (beams, state),
        shape_invariants=shapes,
        parallel_iterations=1,
    )
    return beams.finished


class _Settings(NamedTuple):
    """What does not change during one search."""

    num_beams: int
    vocabulary_size: int
    row_limits: tf.Tensor
    eos_token_id: tf.Tensor
    early_stopping: EarlyStopping
    length_penalty: tf.Tensor | float
    process_logits: LogitsProcessor
    bonus: ScoreBonus | None

    @property
    def num_candidates(self) -> int:
        """Candidates per text: whichever of them end, num_beams have not ended."""
        count = max(2, 1 + self.eos_token_id.shape[1]) * self.num_beams
        return min(count, self.num_beams * self.vocabulary_size)


class _Beams(NamedTuple):
    """What changes with every token."""

    count: tf.Tensor
    """int32: new tokens so far"""
    running: Hypotheses
    finished: Hypotheses
    improvable: tf.Tensor
    """bool [B, 1]: a running beam may still beat a finished text"""
    parents: tf.Tensor
    """int32 [B * K]: the row of the state that each beam continues"""
    unfinished: tf.Tensor
    """bool: whether the search continues"""


def _no_beams(settings: _Settings, max_new_tokens: tf.Tensor | int) -> _Beams:
    """The beams before the first token."""
    num_beams, batch = settings.num_beams, tf.shape(settings.row_limits)[0]
    empty = Hypotheses(
        ids=tf.zeros([batch, num_beams, max_new_tokens], tf.int32),
        log_probabilities=tf.zeros([batch, num_beams, max_new_tokens]),
        scores=tf.fill([batch, num_beams], IMPOSSIBLE),
        lengths=tf.zeros([batch, num_beams], tf.int32),
        stopped=tf.zeros([batch, num_beams], tf.bool),
        finished=tf.zeros([batch, num_beams], tf.bool),
    )
    # The K rows of a text are equal: only the first one counts.
    scores = tf.concat([tf.zeros([batch, 1]), tf.fill([batch, num_beams - 1], IMPOSSIBLE)], axis=1)
    return _Beams(
        count=tf.constant(0),
        running=empty._replace(scores=scores),
        finished=empty,
        improvable=tf.ones([batch, 1], tf.bool),
        parents=tf.range(batch * num_beams),
        unfinished=tf.constant(True),
    )


def _advance(settings: _Settings, beams: _Beams, state: State, logits: tf.Tensor) -> _Beams:
    """Choose one more token for every beam."""
    candidates = _candidates(settings, beams, logits)
    ended, stopped = _ended(settings, beams.count, candidates)
    finished = _merge_finished(settings, beams, candidates, state, ended, stopped)
    running, parents = _next_running(settings, candidates, ended)
    count = beams.count + 1
    improvable = _improvable(settings, count, running, finished, beams.improvable)
    done = tf.reduce_all(ended)
    if settings.early_stopping is True:
        done = tf.logical_or(done, tf.reduce_all(finished.finished))
    unfinished = tf.logical_and(tf.reduce_any(improvable), tf.logical_not(done))
    return _Beams(count, running, finished, improvable, parents, unfinished)


class _Candidates(NamedTuple):
    """The best M continuations of each row, best first."""

    ids: tf.Tensor  # int32 [B, M, N]
    log_probabilities: tf.Tensor  # float32 [B, M, N]
    newest: tf.Tensor  # int32 [B, M]
    scores: tf.Tensor  # float32 [B, M]
    parents: tf.Tensor  # int32 [B, M], among the K beams of the row


def _candidates(settings: _Settings, beams: _Beams, logits: tf.Tensor) -> _Candidates:
    num_beams, vocabulary_size = settings.num_beams, settings.vocabulary_size
    running = beams.running
    width = tf.shape(running.ids)[2]
    own = tf.nn.log_softmax(logits)
    processed = settings.process_logits(own, tf.reshape(running.ids, [-1, width]), beams.count)
    total = tf.reshape(processed, [-1, num_beams, vocabulary_size]) + running.scores[:, :, None]
    total = tf.reshape(total, [-1, num_beams * vocabulary_size])
    scores, indices = top_k(total, settings.num_candidates)
    own = tf.reshape(own, [-1, num_beams * vocabulary_size])
    parents, newest = indices // vocabulary_size, indices % vocabulary_size
    is_new = tf.equal(tf.range(width), beams.count)[None, None]
    values = tf.gather(own, indices, batch_dims=1)[:, :, None]
    before = tf.gather(running.log_probabilities, parents, batch_dims=1)
    return _Candidates(
        ids=tf.where(is_new, newest[:, :, None], tf.gather(running.ids, parents, batch_dims=1)),
        log_probabilities=tf.where(is_new, values, before),
        newest=newest,
        scores=scores,
        parents=parents,
    )


def _ended(
    settings: _Settings, count: tf.Tensor, candidates: _Candidates
) -> tuple[tf.Tensor, tf.Tensor]:
    """(which continuations end, which by an end-of-sequence token), bool [B, M]."""
    is_eos = tf.equal(candidates.newest[:, :, None], settings.eos_token_id[:, None])
    stopped = tf.reduce_any(is_eos, axis=2)
    return tf.logical_or(stopped, (count + 1 >= settings.row_limits)[:, None]), stopped


def _final_scores(
    settings: _Settings, count: tf.Tensor, candidates: _Candidates, state: State
) -> tf.Tensor:
    """Scores of the continuations as texts that end now, float32 [B, M]."""
    length = tf.cast(count + 1, tf.float32)
    scores = candidates.scores / tf.pow(length, settings.length_penalty)
    if settings.bonus is None:
        return scores
    bonus = tf.reshape(settings.bonus(state), [-1, settings.num_beams])
    return scores + tf.gather(bonus, candidates.parents, batch_dims=1)


def _merge_finished(
    settings: _Settings,
    beams: _Beams,
    candidates: _Candidates,
    state: State,
    ended: tf.Tensor,
    stopped: tf.Tensor,
) -> Hypotheses:
    """The best K of the finished texts and of the continuations among the first K that end."""
    first = tf.range(settings.num_candidates)[None] < settings.num_beams
    ended = tf.logical_and(ended, first)
    scores = _final_scores(settings, beams.count, candidates, state)
    closed = tf.logical_not(beams.improvable)
    if settings.early_stopping is True:
        full = tf.reduce_all(beams.finished.finished, axis=1, keepdims=True)
        scores += tf.cast(full, tf.float32) * IMPOSSIBLE
    scores += tf.cast(closed, tf.float32) * IMPOSSIBLE
    scores += tf.cast(tf.logical_not(ended), tf.float32) * IMPOSSIBLE
    new = Hypotheses(
        ids=candidates.ids,
        log_probabilities=candidates.log_probabilities,
        scores=scores,
        lengths=tf.zeros_like(candidates.newest) + beams.count + 1,
        stopped=stopped,
        finished=ended,
    )
    merged = tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=1), beams.finished, new)
    best = tf.math.top_k(merged.scores, settings.num_beams).indices
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, best, batch_dims=1), merged)


def _next_running(
    settings: _Settings, candidates: _Candidates, ended: tf.Tensor
) -> tuple[Hypotheses, tf.Tensor]:
    """Return the K best candidates that have not ended, and the row [B * K] that each continues."""
    scores = candidates.scores + tf.cast(ended, tf.float32) * IMPOSSIBLE
    scores, best = tf.math.top_k(scores, settings.num_beams)
    parents = tf.gather(candidates.parents, best, batch_dims=1)
    batch = tf.shape(parents)[0]
    rows = tf.reshape(parents + tf.range(batch)[:, None] * settings.num_beams, [-1])
    false = tf.zeros_like(scores, tf.bool)
    running = Hypotheses(
        ids=tf.gather(candidates.ids, best, batch_dims=1),
        log_probabilities=tf.gather(candidates.log_probabilities, best, batch_dims=1),
        scores=scores,
        lengths=tf.zeros_like(best),
        stopped=false,
        finished=false,
    )
    return running, rows


def _improvable(
    settings: _Settings,
    count: tf.Tensor,
    running: Hypotheses,
    finished: Hypotheses,
    improvable: tf.Tensor,
) -> tf.Tensor:
    """Whether a running beam may still beat the worst finished text: bool [B, 1]."""
    penalty = tf.convert_to_tensor(settings.length_penalty, tf.float32)
    limits = settings.row_limits
    length = tf.cast(tf.fill(tf.shape(limits), count), tf.float32)[:, None]
    if settings.early_stopping == "never":
        length = tf.where(penalty > 0, tf.cast(limits, tf.float32)[:, None], length)
    best = running.scores[:, :1] / tf.pow(length, penalty)
    worst = tf.reduce_min(finished.scores, axis=1, keepdims=True)
    worst = tf.where(finished.finished, worst, IMPOSSIBLE)
    return tf.logical_and(improvable, tf.reduce_any(best > worst, axis=1, keepdims=True))
