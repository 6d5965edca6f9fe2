"""Prompts of token ids to texts of token ids, many at once. It knows no text.

    engine = Engine(decoder)
    results = engine.generate([[1, 5, 9], [1, 7]], GenerationConfig(max_new_tokens=20))

There are two graphs, one that reads prompts and one that writes tokens, each traced once for any
number of rows and any length. A server that adds and removes requests between steps uses
`slots.Slots` itself, as `generate` does here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.generation import cache as caches
from tfllm.generation import loop
from tfllm.generation import source as sources
from tfllm.generation import state as states
from tfllm.generation.beam_decoding import Result, Searcher
from tfllm.generation.config import (
    BatchedConfig,
    GenerationConfig,
    GraphFlags,
    batched_config_specs,
    graph_flags,
)
from tfllm.generation.slots import Request, Slots
from tfllm.generation.state import State

if TYPE_CHECKING:
    from tfllm.models.decoder import Decoder
    from tfllm.models.encoder_decoder import EncoderDecoder

ROWS = 32  # written at once
STEPS = 16  # tokens a row between two looks at what has finished, when nobody listens

# on_token(index of the text, token id, log-probability): True ends that text with "stop".
OnToken = Callable[[int, int, float], "bool | None"]


class Engine:
    """Writes tokens with one decoder, or after sources with an encoder-decoder. One thread at a
    time may use it."""

    def __init__(self, decoder: Decoder | EncoderDecoder, *, max_rows: int = ROWS):
        self.decoder: Any = decoder
        self.max_rows = max_rows
        self.traces = 0
        self.known: tuple[tuple[int, int], ...] = ()
        """Half-open ranges of the ids that may be written; () for all."""
        self._readers: dict[GraphFlags, tf.types.experimental.PolymorphicFunction] = {}
        self._writers: dict[GraphFlags, tf.types.experimental.PolymorphicFunction] = {}
        self._searcher = Searcher(self)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig | Sequence[GenerationConfig],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """`num_return_sequences` results for each prompt, in the order of the prompts.

        `settings` are for all prompts, or one for each. `on_token` hears every token as it is
        written (not those of beam search, which chooses at the end); `steps` is how many tokens a
        row may be written between two calls: 1 where tokens should be shown at once. `sources` are
        what an encoder-decoder writes after, one for each prompt; its prompts begin with the
        decoder's start token. Raises SettingError for a prompt or source that is empty, longer than
        the window, or holds unknown ids.
        """
        each = self.settings_of(prompts, settings)
        given = self.sources_of(prompts, sources)
        if any(one.num_beams > 1 for one in each):
            return self._searched(prompts, each, given)
        requests = _requests(prompts, each, given)
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
        settings: GenerationConfig | Sequence[GenerationConfig],
    ) -> Sequence[GenerationConfig]:
        """One for each prompt; the prompts are checked."""
        for number, prompt in enumerate(prompts):
            self.check(prompt, f"prompt {number + 1}")
        return [settings] * len(prompts) if isinstance(settings, GenerationConfig) else settings

    def sources_of(
        self, prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]] | None
    ) -> Sequence[Sequence[int]]:
        """One for each prompt, empty for a decoder alone; they are checked."""
        if (given is not None) != sources.needed(self.decoder):
            wanted = "none" if given is not None else "one for each prompt"
            raise SettingError(f"This model writes after sources: {wanted}.")
        for number, source in enumerate(given or ()):
            self.check_source(source, f"source {number + 1}")
        return [()] * len(prompts) if given is None else given

    def check_source(self, source: Sequence[int], name: str = "the source") -> None:
        """Raises SettingError for ids that cannot be read."""
        window = getattr(self.decoder, "longest_source", self.decoder.max_sequence_length)
        if not len(source):
            raise SettingError(f"{name} is empty. Give at least one token.")
        if len(source) > window:
            raise SettingError(
                f"{name} has {len(source):,} tokens, and the model reads {window:,}. Shorten it, "
                "or cut its end off with --truncate right."
            )
        size = self.decoder.source_vocabulary_size
        if min(source) < 0 or max(source) >= size:
            raise SettingError(
                f"{name} holds a token id outside 0 to {size - 1}. Encode it with the tokenizer of "
                "this model."
            )

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

    def needs(self, settings: GenerationConfig) -> GraphFlags:
        """What a graph for these settings has to be able to do."""
        return replace(graph_flags(settings), token_ranges=self.known)

    def limit(self, prompt: Sequence[int], settings: GenerationConfig) -> int:
        """Tokens that prompt and text have together at most."""
        return min(len(prompt) + settings.max_new_tokens, self.decoder.max_sequence_length)

    def read(
        self,
        token_ids: np.ndarray,
        lengths: np.ndarray,
        settings: BatchedConfig,
        needs: GraphFlags,
        size: int,
        repeats: np.ndarray,
        source: tuple[np.ndarray, ...] = (),
    ) -> State:
        """`state.begin` as a graph. `source` holds ids int32 [U, S] and lengths [U], if any."""
        if needs not in self._readers:
            self._readers[needs] = self._reader(needs)
        return self._readers[needs](token_ids, lengths, settings, size, repeats, source)

    def write(self, state: State, settings: BatchedConfig, needs: GraphFlags, steps: int) -> State:
        """`loop.run` as a graph."""
        if needs not in self._writers:
            self._writers[needs] = self._writer(needs, state.cache[0][0].dtype)
        return self._writers[needs](state, settings, steps)

    def _reader(self, needs: GraphFlags):
        integers = tf.TensorSpec([None], tf.int32)

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                integers,
                batched_config_specs(),
                tf.TensorSpec([], tf.int32),
                integers,
                sources.id_specs(self.decoder),
            ],
        )
        def read(token_ids, lengths, rows, size, repeats, source):
            self.traces += 1
            made = self.read_source(source)
            return states.begin(self.decoder, token_ids, lengths, rows, needs, size, repeats, made)

        return read

    def read_source(self, given: tuple[tf.Tensor, ...]) -> sources.AnySource:
        return sources.read(self.decoder, *given) if given else sources.NOTHING

    def _writer(self, needs: GraphFlags, dtype: tf.DType):
        @tf.function(
            autograph=False,
            input_signature=[
                states.specs(self.decoder, dtype),
                batched_config_specs(),
                tf.TensorSpec([], tf.int32),
            ],
        )
        def write(state, rows, steps):
            self.traces += 1
            return loop.run(self.decoder, state, rows, needs, steps, caches.scatter)

        return write

    def _searched(
        self,
        prompts: Sequence[Sequence[int]],
        each: Sequence[GenerationConfig],
        given: Sequence[Sequence[int]],
    ) -> list[Result]:
        """Prompts of which some ask for beam search; neighbours of equal settings share a batch."""
        results: list[Result] = []
        for settings, group in groupby(zip(prompts, each, given, strict=True), key=itemgetter(1)):
            chosen = [(prompt, source) for prompt, _, source in group]
            if settings.num_beams == 1:
                after = [source for _, source in chosen] if chosen[0][1] else None
                results += self.generate([prompt for prompt, _ in chosen], settings, sources=after)
                continue
            self._check_beams(settings.num_beams)
            # Those of like length together, so that little is padding.
            order = sorted(range(len(chosen)), key=lambda row: [*map(len, chosen[row][::-1])])
            together = max(1, self.max_rows // settings.num_beams)
            found: dict[int, list[Result]] = {}
            for start in range(0, len(order), together):
                some = order[start : start + together]
                texts = self._searcher.texts([chosen[row] for row in some], settings)
                found |= dict(zip(some, texts, strict=True))
            results += [result for row in range(len(chosen)) for result in found[row]]
        return results

    def _check_beams(self, num_beams: int) -> None:
        count = sum(stop - start for start, stop in self.known) or self.decoder.vocabulary_size
        if num_beams > count:
            raise SettingError(
                f"--num-beams {num_beams}: the model's vocabulary has only {count} tokens. "
                "Lower it."
            )


def _requests(
    prompts: Sequence[Sequence[int]],
    each: Sequence[GenerationConfig],
    given: Sequence[Sequence[int]],
) -> list[Request]:
    requests: list[Request] = []
    for prompt, settings, source in zip(prompts, each, given, strict=True):
        shared = list(prompt)
        for sequence in range(settings.num_return_sequences):
            number = len(requests)
            requests.append(Request(shared, settings, sequence, number, source=source))
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
