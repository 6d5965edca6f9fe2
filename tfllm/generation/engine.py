"""Prompts of token ids to texts of token ids, many at once. It knows no text.

    engine = Engine(decoder)
    results = engine.generate([[1, 5, 9], [1, 7]], GenerationSettings(max_new_tokens=20))

There are two graphs, one that reads prompts and one that writes tokens, each traced once for any
number of rows and any length. A server that adds and removes requests between steps uses
`slots.Slots` itself, as `generate` does here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.generation import beam, loop
from tfllm.generation import cache as caches
from tfllm.generation import state as states
from tfllm.generation.settings import (
    Features,
    GenerationSettings,
    Rows,
    features,
    row_specs,
    rows,
)
from tfllm.generation.slots import Request, Slots
from tfllm.generation.state import State

if TYPE_CHECKING:
    from tfllm.models.decoding import Decoder

ROWS = 32  # written at once
STEPS = 16  # tokens a row between two looks at what has finished, when nobody listens

# on_token(index of the text, token id, log-probability): True ends that text with "stop".
OnToken = Callable[[int, int, float], "bool | None"]


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


class Engine:
    """Writes tokens with one decoder. One thread at a time may use it."""

    def __init__(self, decoder: Decoder, *, max_rows: int = ROWS):
        self.decoder = decoder
        self.max_rows = max_rows
        self.traces = 0
        self._readers: dict[Features, tf.types.experimental.PolymorphicFunction] = {}
        self._writers: dict[Features, tf.types.experimental.PolymorphicFunction] = {}
        self._searchers: dict[tuple, tf.types.experimental.PolymorphicFunction] = {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings | Sequence[GenerationSettings],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
    ) -> list[Result]:
        """`num_return_sequences` results for each prompt, in the order of the prompts.

        `settings` are for all prompts, or one for each. `on_token` hears every token as it is
        written (not those of beam search, which chooses at the end); `steps` is how many tokens a
        row may be written between two calls: 1 where tokens should be shown at once. Raises
        SettingError for a prompt that is empty, longer than the window, or holds unknown ids.
        """
        each = self.settings_of(prompts, settings)
        if any(one.num_beams > 1 for one in each):
            return self._searched(prompts, each)
        requests = _requests(prompts, each)
        results: list[Result | None] = [None] * len(requests)
        waiting = deque(requests)
        slots = Slots(self)
        steps = steps or (1 if on_token else STEPS)
        while waiting or slots.requests:
            free = self.max_rows - len(slots.requests)
            news = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            progress = slots.join(news) if news else slots.step(steps)
            for one in progress:
                reason = one.finish_reason
                if on_token and _heard(one.request, one.ids, one.log_probabilities, on_token):
                    reason = "stop"
                    slots.leave(one.request)
                if reason:
                    request = one.request
                    results[request.number] = Result(request.ids, request.log_probabilities, reason)
        return [result for result in results if result is not None]

    def settings_of(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings | Sequence[GenerationSettings],
    ) -> Sequence[GenerationSettings]:
        """One for each prompt; the prompts are checked."""
        for number, prompt in enumerate(prompts):
            self.check(prompt, f"prompt {number + 1}")
        return [settings] * len(prompts) if isinstance(settings, GenerationSettings) else settings

    def check(self, prompt: Sequence[int], name: str = "the prompt") -> None:
        """Raises SettingError for ids that cannot be continued."""
        window = self.decoder.max_sequence_length
        if not len(prompt):
            raise SettingError(f"{name} is empty. Give at least one token to start from.")
        if len(prompt) >= window:
            raise SettingError(
                f"{name} has {len(prompt):,} tokens, and the model's window of {window:,} has no "
                "room for more. Shorten it, or cut its beginning off with --truncate left."
            )
        if min(prompt) < 0 or max(prompt) >= self.decoder.vocabulary_size:
            raise SettingError(
                f"{name} holds a token id outside 0 to {self.decoder.vocabulary_size - 1}. Encode "
                "it with the tokenizer of this model."
            )

    def limit(self, prompt: Sequence[int], settings: GenerationSettings) -> int:
        """Tokens that prompt and text have together at most."""
        return min(len(prompt) + settings.max_new_tokens, self.decoder.max_sequence_length)

    def read(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        settings: Rows,
        needs: Features,
        size: int,
        repeats: np.ndarray,
    ) -> State:
        """`state.begin` as a graph."""
        if needs not in self._readers:
            self._readers[needs] = self._reader(needs)
        return self._readers[needs](token_ids, lengths, settings, size, repeats)

    def write(self, state: State, settings: Rows, needs: Features, steps: int) -> State:
        """`loop.run` as a graph."""
        if needs not in self._writers:
            self._writers[needs] = self._writer(needs, state.cache[0][0].dtype)
        return self._writers[needs](state, settings, steps)

    def _reader(self, needs: Features):
        integers = tf.TensorSpec([None], tf.int32)

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                integers,
                row_specs(),
                tf.TensorSpec([], tf.int32),
                integers,
            ],
        )
        def read(token_ids, lengths, rows, size, repeats):
            self.traces += 1
            return states.begin(self.decoder, token_ids, lengths, rows, needs, size, repeats)

        return read

    def _writer(self, needs: Features, dtype: tf.DType):
        @tf.function(
            autograph=False,
            input_signature=[
                states.specs(self.decoder, dtype),
                row_specs(),
                tf.TensorSpec([], tf.int32),
            ],
        )
        def write(state, rows, steps):
            self.traces += 1
            return loop.run(self.decoder, state, rows, needs, steps, caches.scatter)

        return write

    def _searched(
        self, prompts: Sequence[Sequence[int]], each: Sequence[GenerationSettings]
    ) -> list[Result]:
        """Prompts of which some ask for beam search; neighbours of equal settings share a batch."""
        results: list[Result] = []
        for settings, group in groupby(zip(prompts, each, strict=True), key=itemgetter(1)):
            chosen = [prompt for prompt, _ in group]
            if settings.num_beams == 1:
                results += self.generate(chosen, settings)
                continue
            together = max(1, self.max_rows // settings.num_beams)
            for start in range(0, len(chosen), together):
                results += self._search(chosen[start : start + together], settings)
        return results

    def _search(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings
    ) -> list[Result]:
        limits = [self.limit(prompt, settings) for prompt in prompts]
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        token_ids = np.zeros([len(prompts), lengths.max()], np.int32)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = prompt
        needs = features(settings)
        kind = (needs, settings.num_beams, settings.early_stopping, len(settings.stop_ids))
        if kind not in self._searchers:
            self._searchers[kind] = self._searcher(*kind)
        most_new = int((np.array(limits) - lengths).max())
        found = self._searchers[kind](
            token_ids,
            lengths,
            rows([settings] * len(prompts), limits),
            most_new,
            settings.length_penalty,
        )
        texts = beam.Texts(*(one.numpy() for one in found))
        return [
            _searched_result(texts, row, place)
            for row in range(len(prompts))
            for place in range(settings.num_return_sequences)
        ]

    def _searcher(
        self, needs: Features, num_beams: int, early_stopping: beam.EarlyStopping, stops: int
    ):
        specs = row_specs()._replace(stop_ids=tf.TensorSpec([None, stops], tf.int32))

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                specs,
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.float32),
            ],
        )
        def found(token_ids, lengths, rows, most_new, length_penalty):
            self.traces += 1
            return beam.decode(
                self.decoder,
                token_ids,
                lengths,
                rows,
                needs,
                most_new,
                num_beams=num_beams,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
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


def _requests(
    prompts: Sequence[Sequence[int]], each: Sequence[GenerationSettings]
) -> list[Request]:
    requests: list[Request] = []
    for prompt, settings in zip(prompts, each, strict=True):
        shared = list(prompt)
        for sequence in range(settings.num_return_sequences):
            requests.append(Request(shared, settings, sequence, number=len(requests)))
    return requests


def _heard(
    request: Request, ids: Sequence[int], log_probabilities: Sequence[float], on_token: OnToken
) -> bool:
    """Tells the new tokens one by one; True, and the rest is taken back, when one ends the text."""
    for place, (token, value) in enumerate(zip(ids, log_probabilities, strict=True)):
        if on_token(request.number, token, value):
            surplus = len(ids) - place - 1
            if surplus:
                del request.ids[-surplus:], request.log_probabilities[-surplus:]
            return True
    return False
