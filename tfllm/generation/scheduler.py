"""Continuous batching: texts of many requests share one batch, and join and leave between steps.

Every row has its own length, settings and random numbers, so what one text becomes does not depend
on its neighbours. There are as many rows as requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfllm.generation import cache as caches
from tfllm.generation import decode_state as states
from tfllm.generation.config import BatchedConfig, GenerationConfig, GraphFlags, batch_configs
from tfllm.generation.decode_state import FINISH_REASONS, RUNNING, STOPPED, DecodeState
from tfllm.generation.token_generator import Ids, ModelLimits

# Prompts are read together while batch x length^2 stays below this: it bounds the memory of their
# attention scores (4 bytes times the heads, for one layer at a time).
MAX_ATTENTION_PAIRS = 2**22
MAX_LENGTH_RATIO = 2.0  # a prompt that is so many times longer than the shortest is read apart


class ModelGraphs(Protocol):
    """The graphs of a model that the scheduler runs: an `engine.Engine`."""

    limits: ModelLimits

    def flags(self, config: GenerationConfig) -> GraphFlags:
        """Return what a graph for this config has to support."""
        ...

    def prefill(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        config: BatchedConfig,
        flags: GraphFlags,
        size: int,
        prompt_of_row: np.ndarray,
        source: tuple[np.ndarray, ...] = (),
    ) -> DecodeState:
        """Read prompts; see `decode_state.prefill`."""
        ...

    def decode(
        self, state: DecodeState, config: BatchedConfig, flags: GraphFlags, steps: int
    ) -> DecodeState:
        """Generate up to `steps` tokens of each row; see `loop.run`."""
        ...


@dataclass(eq=False)
class Request:
    """One text: its request, and what has been generated."""

    prompt: Ids
    config: GenerationConfig
    sequence_index: int = 0
    """Which of its prompt's texts this is, from 0: with the seed it gives the random numbers."""
    index: int = 0
    """For the caller."""
    source: Ids = ()
    """The source, where the model reads one."""
    ids: list[int] = field(default_factory=list)
    """The tokens generated so far."""
    log_probabilities: list[float] = field(default_factory=list)

    @property
    def prefill_length(self) -> int:
        """Tokens that are read at once."""
        return max(len(self.prompt), len(self.source))


class StepOutput(NamedTuple):
    """What one step gave one request."""

    request: Request
    ids: list[int]
    """New tokens; an end-of-sequence token is not among them."""
    log_probabilities: list[float]
    finish_reason: str | None
    """None while the text is not finished."""


class Scheduler:
    """The requests that one model is working on."""

    def __init__(self, graphs: ModelGraphs):
        self.graphs = graphs
        self.requests: list[Request] = []
        """The request of each row."""
        self._state: DecodeState | None = None
        self._batched_config: BatchedConfig | None = None
        self._flags = GraphFlags()

    def add(self, requests: Sequence[Request]) -> list[StepOutput]:
        """Read new prompts and generate their first tokens.

        Requests that share a prompt object are read once. The other requests are not touched.
        Those that finish at once are removed again.
        """
        outputs = []
        for group in _group_by_length(requests):
            new = self._prefill(group)
            size = max(new.ids.shape[1], self._size())
            new = states.resize(new, size)
            first_row = len(self.requests)
            if self._state is None:
                self._state = new
            else:
                self._state = states.concat_rows(states.resize(self._state, size), new)
            self.requests += group
            outputs += self._outputs(np.array([len(each.prompt) for each in group]), first_row)
        self._remove_finished()
        return outputs

    def step(self, steps: int = 1) -> list[StepOutput]:
        """Generate up to `steps` tokens for every request; those that finish are removed."""
        if self._state is None:
            return []
        before = self._state.lengths.numpy()
        config = self._config()
        steps = int(min(steps, (config.max_length.numpy() - before).max()))
        size = caches.capacity(int(before.max()) + steps)
        if size != self._size():
            self._state = states.resize(self._state, size)
        self._state = self.graphs.decode(self._state, config, self._flags, steps)
        outputs = self._outputs(before)
        self._remove_finished()
        return outputs

    def remove(self, request: Request) -> None:
        """Remove a request; the others are not touched. One that has finished is no error."""
        if request in self.requests:
            removed = self.requests.index(request)
            self._keep([row for row in range(len(self.requests)) if row != removed])

    def _prefill(self, requests: Sequence[Request]) -> DecodeState:
        first = {id(request.prompt): request for request in requests}
        prompt_index = {name: index for index, name in enumerate(first)}
        token_ids, lengths = pad_batch([request.prompt for request in first.values()])
        sources = [request.source for request in first.values()]
        return self.graphs.prefill(
            token_ids,
            lengths,
            self._batch(requests),
            self._all_flags(requests),
            caches.capacity(int(lengths.max()) + 1),
            np.array([prompt_index[id(request.prompt)] for request in requests], np.int32),
            pad_batch(sources) if any(sources) else (),
        )

    def _outputs(self, before: np.ndarray, first_row: int = 0) -> list[StepOutput]:
        """The new tokens of rows from `first_row` on, whose lengths were `before`."""
        assert self._state is not None
        after, finished = self._state.lengths.numpy(), self._state.finished.numpy()
        ids, scores = self._state.ids.numpy(), self._state.log_probabilities.numpy()
        outputs = []
        for row, start in enumerate(before, first_row):
            end = after[row] - (finished[row] == STOPPED)
            request = self.requests[row]
            new, values = ids[row, start:end].tolist(), scores[row, start:end].tolist()
            request.ids += new
            request.log_probabilities += values
            reason = FINISH_REASONS.get(int(finished[row]))
            outputs.append(StepOutput(request, new, values, reason))
        return outputs

    def _remove_finished(self) -> None:
        self._batched_config = None
        if self._state is not None:
            running = self._state.finished.numpy() == RUNNING
            if not running.all():
                self._keep(np.flatnonzero(running).tolist())

    def _keep(self, rows: list[int]) -> None:
        self.requests = [self.requests[row] for row in rows]
        self._batched_config = None
        if self._state is not None:
            self._state = states.gather_rows(self._state, tf.constant(rows)) if rows else None

    def _config(self) -> BatchedConfig:
        if self._batched_config is None:
            self._batched_config = self._batch(self.requests)
            self._flags = self._all_flags(self.requests)
        return self._batched_config

    def _batch(self, requests: Sequence[Request]) -> BatchedConfig:
        limits = self.graphs.limits
        arrays = batch_configs(
            [request.config for request in requests],
            [limits.max_length(request.prompt, request.config) for request in requests],
            [request.sequence_index for request in requests],
        )
        return tf.nest.map_structure(tf.constant, arrays)

    def _all_flags(self, requests: Sequence[Request]) -> GraphFlags:
        return reduce(or_, (self.graphs.flags(request.config) for request in requests))

    def _size(self) -> int:
        return 0 if self._state is None else self._state.ids.shape[1]


def pad_batch(rows: Sequence[Ids], width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of ids on the right with zeros.

    Args:
        rows: B rows.
        width: P; unset: that of the longest row.

    Returns:
        Ids int32 [B, P] and lengths int32 [B].
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    token_ids = np.zeros([len(rows), width or int(lengths.max())], np.int32)
    for row, ids in enumerate(rows):
        token_ids[row, : len(ids)] = ids
    return token_ids, lengths


def _group_by_length(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests in order of length, split where prompts become too uneven or too many."""
    groups: list[list[Request]] = []
    for request in sorted(requests, key=lambda each: each.prefill_length):
        length = request.prefill_length
        group = groups[-1] if groups else None
        if group is not None:
            prompts = len({id(each.prompt) for each in [*group, request]})
            even = length <= MAX_LENGTH_RATIO * max(group[0].prefill_length, caches.BUCKET)
            if even and prompts * length**2 <= MAX_ATTENTION_PAIRS:
                group.append(request)
                continue
        groups.append([request])
    return groups
