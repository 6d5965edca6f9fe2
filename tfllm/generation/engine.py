"""Generation of token ids with a Keras model, many prompts at once, without a tokenizer.

    engine = Engine(decoder)
    results = engine.generate([[1, 5, 9], [1, 7]], GenerationConfig(max_new_tokens=20))

There are two graphs, one that reads prompts and one that generates tokens, each traced once for any
number of rows and any length. A server that adds and removes requests between steps uses
`scheduler.Scheduler` itself, as `generate` does here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.generation import cache as caches
from tfllm.generation import decode_state as states
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation import loop
from tfllm.generation.beam_decoding import BeamSearcher
from tfllm.generation.config import (
    BatchedConfig,
    GenerationConfig,
    GraphFlags,
    batched_config_specs,
    graph_flags,
)
from tfllm.generation.decode_state import DecodeState
from tfllm.generation.scheduler import Request, Scheduler, StepOutput
from tfllm.generation.token_generator import (
    MAX_BATCH_SIZE,
    GenerationInputs,
    GenerationResult,
    ModelLimits,
    OnToken,
    TokenGenerator,
)
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import EncoderDecoder

STEPS = 16  # tokens per row between two checks for finished rows, without `on_token`


class Engine(TokenGenerator):
    """A TokenGenerator with a decoder or an encoder-decoder."""

    def __init__(self, decoder: Decoder | EncoderDecoder, *, max_batch_size: int = MAX_BATCH_SIZE):
        self.decoder = decoder
        self.limits = limits_of(decoder)
        self.max_batch_size = max_batch_size
        self._traces = 0
        self._prefill_graphs: dict[GraphFlags, tf.types.experimental.PolymorphicFunction] = {}
        self._decode_graphs: dict[GraphFlags, tf.types.experimental.PolymorphicFunction] = {}
        self._searcher = BeamSearcher(decoder, self.limits)

    @property
    def traces(self) -> int:
        """How many graphs have been traced."""
        return self._traces + self._searcher.traces

    def generate_checked(
        self,
        inputs: Sequence[GenerationInputs],
        on_token: OnToken | None = None,
        steps: int | None = None,
    ) -> list[GenerationResult]:
        """Generate in batches. See TokenGenerator.generate_checked.

        Neighbours with equal settings share a batch.
        """
        steps = steps or (1 if on_token else STEPS)
        if not any(each.config.num_beams > 1 for each in inputs):
            return self._sample(inputs, on_token, steps)
        results: list[GenerationResult] = []
        for config, group in groupby(inputs, key=lambda each: each.config):
            if config.num_beams > 1:
                results += self._search(list(group), config)
            else:
                results += self._sample(list(group), None, STEPS)
        return results

    def flags(self, config: GenerationConfig) -> GraphFlags:
        """Return what a graph for this config has to support."""
        return replace(graph_flags(config), token_ranges=self.token_ranges)

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
        """Run `decode_state.prefill` as a graph.

        Args:
            token_ids: Prompts int32 [U, P], padded on the right.
            lengths: int32 [U].
            config: The settings of the B rows.
            flags: What the graph has to support.
            size: The capacity of a row.
            prompt_of_row: int32 [B].
            source: Ids int32 [U, S] and lengths int32 [U] of the sources, or ().
        """
        if flags not in self._prefill_graphs:
            self._prefill_graphs[flags] = self._prefill_graph(flags)
        graph = self._prefill_graphs[flags]
        return graph(token_ids, lengths, config, size, prompt_of_row, source)

    def decode(
        self, state: DecodeState, config: BatchedConfig, flags: GraphFlags, steps: int
    ) -> DecodeState:
        """Run `loop.run` as a graph."""
        if flags not in self._decode_graphs:
            self._decode_graphs[flags] = self._decode_graph(flags, state.cache[0][0].dtype)
        return self._decode_graphs[flags](state, config, steps)

    def _prefill_graph(self, flags: GraphFlags) -> tf.types.experimental.PolymorphicFunction:
        integers = tf.TensorSpec([None], tf.int32)

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                integers,
                batched_config_specs(),
                tf.TensorSpec([], tf.int32),
                integers,
                encoder_outputs.source_specs(self.decoder),
            ],
        )
        def prefill(
            token_ids: tf.Tensor,
            lengths: tf.Tensor,
            config: BatchedConfig,
            size: tf.Tensor,
            prompt_of_row: tf.Tensor,
            source: tuple[tf.Tensor, ...],
        ) -> DecodeState:
            self._traces += 1
            encoded = encoder_outputs.encode_if_any(self.decoder, source)
            return states.prefill(
                self.decoder, token_ids, lengths, config, flags, size, prompt_of_row, encoded
            )

        return prefill

    def _decode_graph(
        self, flags: GraphFlags, dtype: tf.DType
    ) -> tf.types.experimental.PolymorphicFunction:
        @tf.function(
            autograph=False,
            input_signature=[
                states.state_specs(self.decoder, dtype),
                batched_config_specs(),
                tf.TensorSpec([], tf.int32),
            ],
        )
        def decode(state: DecodeState, config: BatchedConfig, steps: tf.Tensor) -> DecodeState:
            self._traces += 1
            return loop.run(self.decoder, state, config, flags, steps, caches.scatter)

        return decode

    def _sample(
        self, inputs: Sequence[GenerationInputs], on_token: OnToken | None, steps: int
    ) -> list[GenerationResult]:
        """Texts of greedy search and sampling; rows that end make room for others."""
        requests = _requests(inputs)
        results: list[GenerationResult | None] = [None] * len(requests)
        waiting = deque(requests)
        scheduler = Scheduler(self)
        while waiting or scheduler.requests:
            free = self.max_batch_size - len(scheduler.requests)
            new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            for output in scheduler.add(new) if new else scheduler.step(steps):
                request, reason = output.request, output.finish_reason
                if on_token and _apply_on_token(output, on_token):
                    reason = "stop"
                    scheduler.remove(request)
                if reason:
                    results[request.index] = GenerationResult(
                        request.ids, request.log_probabilities, reason
                    )
        return [result for result in results if result is not None]

    def _search(
        self, inputs: Sequence[GenerationInputs], config: GenerationConfig
    ) -> list[GenerationResult]:
        """Texts of beam search."""
        self._check_num_beams(config.num_beams)
        # Those of like length together, so that little is padding.
        order = sorted(
            range(len(inputs)), key=lambda i: (len(inputs[i].source), len(inputs[i].prompt))
        )
        batch_size = max(1, self.max_batch_size // config.num_beams)
        results: dict[int, list[GenerationResult]] = {}
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            texts = self._searcher.generate(
                [inputs[index].prompt for index in indices],
                [inputs[index].source for index in indices],
                config,
                self.flags(config),
            )
            results |= dict(zip(indices, texts, strict=True))
        return [result for index in range(len(inputs)) for result in results[index]]

    def _check_num_beams(self, num_beams: int) -> None:
        count = sum(stop - start for start, stop in self.token_ranges)
        count = count or self.limits.vocabulary_size
        if num_beams > count:
            raise SettingError(
                f"--num-beams {num_beams}: the model's vocabulary has only {count} tokens. "
                "Lower it."
            )


def limits_of(decoder: Decoder | EncoderDecoder) -> ModelLimits:
    """Return what ids a model takes."""
    window = decoder.max_sequence_length
    if not isinstance(decoder, EncoderDecoder):
        return ModelLimits(window, decoder.vocabulary_size)
    return ModelLimits(window, decoder.vocabulary_size, window, decoder.source_vocabulary_size)


def _requests(inputs: Sequence[GenerationInputs]) -> list[Request]:
    """A request for each text; those of one prompt share the prompt object."""
    requests: list[Request] = []
    for prompt, config, source in inputs:
        shared = list(prompt)
        for sequence_index in range(config.num_return_sequences):
            requests.append(Request(shared, config, sequence_index, len(requests), source))
    return requests


def _apply_on_token(output: StepOutput, on_token: OnToken) -> bool:
    """Tell `on_token` the new tokens; where one ends the text, take back the rest: True."""
    request = output.request
    tokens = zip(output.ids, output.log_probabilities, strict=True)
    for count, (token, log_probability) in enumerate(tokens, 1):
        if on_token(request.index, token, log_probability):
            surplus = len(output.ids) - count
            if surplus:
                del request.ids[-surplus:], request.log_probabilities[-surplus:]
            return True
    return False
