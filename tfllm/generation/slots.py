"""Texts in the making that share one batch; requests join and leave between steps.

Every row has its own length, settings and random numbers, so what one text becomes does not depend
on its neighbours. There are as many rows as requests: an empty slot costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.generation import cache as caches
from tfllm.generation import state as states
from tfllm.generation.config import BatchedConfig, GenerationConfig, GraphFlags, batch_configs
from tfllm.generation.state import REASONS, RUNNING, STOPPED, State

if TYPE_CHECKING:
    from tfllm.generation.engine import Engine

# Prompts are read together while batch x length^2 stays below this: it bounds the memory of their
# attention scores (4 bytes times the heads, for one layer at a time).
PAIRS = 2**22
UNEVEN = 2.0  # a prompt that is so many times longer than the shortest is read apart


@dataclass(eq=False)
class Request:
    """One text: what is asked for, and what has been written."""

    prompt: Sequence[int]
    settings: GenerationConfig
    sequence: int = 0
    """Which of its prompt's texts this is, from 0: with the seed it gives the random numbers."""
    number: int = 0
    """For the caller."""
    source: Sequence[int] = ()
    """What it is written after, where the model reads sources; of each prompt its own."""

    @property
    def reading(self) -> int:
        """Tokens that are read at once."""
        return max(len(self.prompt), len(self.source))

    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)


class Progress(NamedTuple):
    """What one step gave one request."""

    request: Request
    ids: list[int]
    """New tokens; a stop id is not among them."""
    log_probabilities: list[float]
    finish_reason: str | None
    """None while the text goes on."""


class Slots:
    """The requests that one engine is writing."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.requests: list[Request] = []
        """Request of each row."""
        self._state: State | None = None
        self._rows: BatchedConfig | None = None
        self._features = GraphFlags()

    def join(self, requests: Sequence[Request]) -> list[Progress]:
        """Reads new prompts and writes their first tokens; requests that share a prompt object
        share the reading. The others are not touched. What finishes at once is gone again."""
        progress = []
        for group in _groups(requests):
            state, joined = self._read(group)
            size = max(state.ids.shape[1], self._size())
            fresh = states.resized(state, size)
            before = len(self.requests)
            if self._state is None:
                self._state = fresh
            else:
                self._state = states.joined(states.resized(self._state, size), fresh)
            self.requests += joined
            progress += self._told(np.array([len(one.prompt) for one in joined]), before)
        self._drop_finished()
        return progress

    def step(self, steps: int = 1) -> list[Progress]:
        """Writes up to `steps` tokens for every request; those that finish are gone after it."""
        if self._state is None:
            return []
        before = self._state.lengths.numpy()
        limits = self._settings().max_length.numpy()
        steps = int(min(steps, (limits - before).max()))
        size = caches.capacity(int(before.max()) + steps)
        if size != self._size():
            self._state = states.resized(self._state, size)
        self._state = self.engine.write(self._state, self._settings(), self._features, steps)
        progress = self._told(before)
        self._drop_finished()
        return progress

    def leave(self, request: Request) -> None:
        """Takes a request out; the others are not touched. One that has finished is no error."""
        if request in self.requests:
            place = self.requests.index(request)
            self._keep([row for row in range(len(self.requests)) if row != place])

    def _read(self, requests: Sequence[Request]) -> tuple[State, list[Request]]:
        first = {id(one.prompt): one for one in requests}
        place = {name: i for i, name in enumerate(first)}
        token_ids, lengths = padded([one.prompt for one in first.values()])
        source = [one.source for one in first.values()]
        repeats = np.array([place[id(one.prompt)] for one in requests], np.int32)
        needs = reduce(or_, (self.engine.needs(one.settings) for one in requests))
        size = caches.capacity(int(lengths.max()) + 1)
        state = self.engine.read(
            token_ids,
            lengths,
            self._settings_of(requests),
            needs,
            size,
            repeats,
            padded(source) if any(source) else (),
        )
        return state, list(requests)

    def _told(self, before: np.ndarray, first: int = 0) -> list[Progress]:
        """The news of rows from `first` on, whose lengths were `before`."""
        assert self._state is not None
        after, finished = self._state.lengths.numpy(), self._state.finished.numpy()
        ids, scores = self._state.ids.numpy(), self._state.log_probabilities.numpy()
        progress = []
        for row, start in enumerate(before, first):
            end = after[row] - (finished[row] == STOPPED)
            request = self.requests[row]
            new, values = ids[row, start:end].tolist(), scores[row, start:end].tolist()
            request.ids += new
            request.log_probabilities += values
            progress.append(Progress(request, new, values, REASONS.get(int(finished[row]))))
        return progress

    def _drop_finished(self) -> None:
        self._rows = None
        if self._state is not None:
            running = self._state.finished.numpy() == RUNNING
            if not running.all():
                self._keep(np.flatnonzero(running).tolist())

    def _keep(self, places: list[int]) -> None:
        self.requests = [self.requests[row] for row in places]
        self._rows = None
        if self._state is not None:
            self._state = states.kept(self._state, tf.constant(places)) if places else None

    def _settings(self) -> BatchedConfig:
        if self._rows is None:
            self._rows = self._settings_of(self.requests)
            self._features = reduce(or_, (self.engine.needs(one.settings) for one in self.requests))
        return self._rows

    def _settings_of(self, requests: Sequence[Request]) -> BatchedConfig:
        made = batch_configs(
            [one.settings for one in requests],
            [self.engine.limit(one.prompt, one.settings) for one in requests],
            [one.sequence for one in requests],
        )
        return tf.nest.map_structure(tf.constant, made)

    def _size(self) -> int:
        return 0 if self._state is None else self._state.ids.shape[1]


def padded(rows: Sequence[Sequence[int]], width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [B, P] filled up on the right, lengths int32 [B]); P is the longest, or `width`."""
    lengths = np.array([len(row) for row in rows], np.int32)
    token_ids = np.zeros([len(rows), width or int(lengths.max())], np.int32)
    for row, ids in enumerate(rows):
        token_ids[row, : len(ids)] = ids
    return token_ids, lengths


def _groups(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests in order of length, cut where prompts become too uneven or too many."""
    groups: list[list[Request]] = []
    for request in sorted(requests, key=lambda one: one.reading):
        length = request.reading
        group = groups[-1] if groups else None
        if group is not None:
            prompts = len({id(one.prompt) for one in [*group, request]})
            even = length <= UNEVEN * max(group[0].reading, caches.BUCKET)
            if even and prompts * length**2 <= PAIRS:
                group.append(request)
                continue
        groups.append([request])
    return groups
