"""Sources to texts with an encoder-decoder: translation, summarization.

generator = Seq2SeqGenerator(checkpoint)
for text in generator.generate(["Ein Haus am See."]):
    print(text.score, text.text)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation.checkpoint_config import checkpoint_config
from tfllm.generation.config import GenerationConfig
from tfllm.generation.engine import Engine
from tfllm.generation.text_generator import GeneratedText, OnText, TextGenerator, Truncate
from tfllm.generation.token_generator import Ids
from tfllm.models.encoder_decoder import EncoderDecoder, get_encoder_decoder
from tfllm.tasks.features import Example
from tfllm.tasks.seq2seq import Seq2Seq, source_of
from tfllm.tokenizers.chat import Message

BATCHES_AT_ONCE = 8  # given to the engine at once: rows that end make room for others


class Seq2SeqGenerator(TextGenerator):
    """Generates texts from sources. One thread at a time may use it."""

    generates = "target"
    purpose = "after sources"
    advice = "Give an encoder-decoder (transformer, t5, bart), or use tfllm predict."

    def generation_config(self, **overrides: object) -> GenerationConfig:
        """Return the checkpoint's own settings with overrides; see `checkpoint_config`."""
        return checkpoint_config(self.checkpoint, **overrides)

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig | None = None,
        *,
        stop: Sequence[str] = (),
        truncate: Truncate | None = None,
        on_text: OnText | None = None,
    ) -> list[GeneratedText]:
        """Generate `num_return_sequences` texts from each source.

        Args:
            prompts: The sources.
            config: The settings; unset: the checkpoint's own.
            stop: A text ends before the first of these strings.
            truncate: "right" drops the end of a source that is too long.
            on_text: Called with every piece of text as soon as it is certain.

        Returns:
            The texts in the order of the sources, best first. Each has its source as `prompt`, and
            a `score` where beam search found it.

        Raises:
            SettingError: A source is empty or too long.
        """
        config = config or self.generation_config()
        return super().generate(prompts, config, stop=stop, truncate=truncate, on_text=on_text)

    def encode_prompt(
        self,
        prompt: str,
        config: GenerationConfig | None = None,
        truncate: Truncate | None = None,
    ) -> list[int]:
        """Encode a source with the task's prefix before it.

        Args:
            prompt: The source.
            config: Not used.
            truncate: "right" drops the end of a source that is too long.

        Raises:
            SettingError: The source is empty or too long.
        """
        if truncate == "left":
            raise SettingError(
                "--truncate left: a source is cut at its end, so that its beginning and the token "
                "that ends it stay. Write --truncate right."
            )
        if not prompt.strip():
            raise SettingError("the source is empty. Give at least one character.")
        text = getattr(self.checkpoint.task, "prefix", "") + prompt
        longest = self.max_source_length
        if truncate == "right":
            return self.tokenizer.encode(text, max_length=longest).ids
        ids = self.tokenizer.encode_ids([text])[0]
        if len(ids) > longest:
            raise SettingError(
                f"the source has {len(ids):,} tokens, and the model reads {longest:,}. Shorten it, "
                "or cut its end off with --truncate right."
            )
        return ids

    def encode_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        truncate: Truncate | None = None,
    ) -> list[int]:
        """Refuse a conversation: these models read one text.

        Raises:
            SettingError: Always.
        """
        raise SettingError("this model answers a source and holds no conversation. Give 'source'.")

    def truncate(self, ids: list[int], config: GenerationConfig) -> list[int]:
        """Return the ids as they are: sources are truncated as they are encoded."""
        return ids

    def check_prompt(self, ids: Ids) -> None:
        """Check that the encoder can read a source.

        Raises:
            SettingError: It is empty or too long.
        """
        self.engine.limits.check_source(ids)

    @property
    def max_source_length(self) -> int:
        """Maximum number of tokens of a source, as the task says."""
        limits = self.engine.limits
        window = limits.max_source_length or limits.max_sequence_length
        return min(window, getattr(self.checkpoint.task, "source_length", window))

    @property
    def decoder_start_token_id(self) -> int:
        """The decoder's first token: as the task was trained, else as the checkpoint says."""
        task_start = getattr(self.checkpoint.task, "decoder_start_token_id", None)
        start = self.checkpoint.decoder_start_token_id if task_start is None else task_start
        assert start is not None
        return start

    def alignments(
        self, texts: Sequence[GeneratedText], truncate: Truncate | None = None
    ) -> list[np.ndarray]:
        """Compute the attention of each text's tokens to its source.

        Args:
            texts: Texts that this generator has generated.
            truncate: As the sources were truncated then.

        Returns:
            For each text float32 [T, S], rows sum to 1: the last layer's cross-attention weights,
            averaged over heads. S are the tokens of the source, special ones included, and T the
            text's own.
        """
        assert isinstance(self.engine, Engine)
        assert isinstance(self.engine.decoder, EncoderDecoder)
        targets = [text.token_ids for text in texts]
        sources = [self.encode_prompt(text.prompt, None, truncate) for text in texts]
        return alignments(self.engine.decoder, self.decoder_start_token_id, sources, targets)

    def _decoder(self, checkpoint: Checkpoint) -> EncoderDecoder:
        return get_encoder_decoder(checkpoint.model, checkpoint.family, checkpoint.config)

    def _context(self, ids: Ids) -> Ids:
        return ()

    def _prompts_and_sources(
        self, ids: Sequence[Ids]
    ) -> tuple[Sequence[Ids], Sequence[Ids] | None]:
        return [[self.decoder_start_token_id] for _ in ids], ids


def alignments(
    model: EncoderDecoder,
    decoder_start_token_id: int,
    sources: Sequence[Ids],
    targets: Sequence[Ids],
) -> list[np.ndarray]:
    """Compute `Seq2SeqGenerator.alignments` for token ids.

    Args:
        model: The model.
        decoder_start_token_id: The decoder's first token.
        sources: Token ids [S] of each source.
        targets: Token ids [T] of each target.

    Returns:
        float32 [T, S] of each pair.
    """
    results = []
    for source_ids, target_ids in zip(sources, targets, strict=True):
        if not target_ids:
            results.append(np.zeros([0, len(source_ids)], np.float32))
            continue
        weights: list[tf.Tensor] = []
        source = encoder_outputs.encode(
            model, tf.constant([list(source_ids)]), tf.constant([len(source_ids)])
        )
        token_ids = tf.constant([[decoder_start_token_id, *target_ids[:-1]]])
        positions = tf.range(token_ids.shape[1])[None]
        decoder = encoder_outputs.with_encoder_output(model, source, weights)
        decoder(token_ids, positions, positions[:, None] <= positions[:, :, None])
        results.append(encoder_outputs.mean_alignment(weights)[0].numpy())
    return results


def predict_targets(
    generator: Seq2SeqGenerator,
    examples: Sequence[Example],
    config: GenerationConfig,
    *,
    truncate: bool | None = None,
    batch_size: int = 32,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """Generate the targets of a seq2seq task's examples, sources of like length together.

    Args:
        generator: The generator of the task's model.
        examples: Examples with a `source`; an empty one has the empty text.
        config: The settings.
        truncate: In place of the task's own setting.
        batch_size: Sources that are read together.
        progress: Called with the number of examples done since the last call.

    Returns:
        For each example `{"text"}`, with `score` where beam search found it, and with `candidates`,
        the same of each, where several are asked for.

    Raises:
        DataError: A source is too long; it names file and line.
    """
    task = generator.checkpoint.task
    assert isinstance(task, Seq2Seq)
    predictions: list[dict[str, Any]] = [{"text": ""} for _ in examples]
    ids = task.encode_sources(examples, generator.tokenizer, truncate)
    nonempty = [index for index, example in enumerate(examples) if source_of(example).strip()]
    order = sorted(nonempty, key=lambda index: -len(ids[index]))
    generator.engine.max_batch_size = batch_size * config.num_beams
    count = config.num_return_sequences
    for start in range(0, len(order), BATCHES_AT_ONCE * batch_size):
        indices = order[start : start + BATCHES_AT_ONCE * batch_size]
        texts = generator.generate_from_ids(
            [ids[index].tolist() for index in indices],
            config,
            prompts=[source_of(examples[index]) for index in indices],
        )
        for position, index in enumerate(indices):
            predictions[index] = _prediction(texts[position * count : (position + 1) * count])
        if progress:
            progress(len(indices))
    if progress:
        progress(len(examples) - len(nonempty))
    return predictions


def _prediction(texts: Sequence[GeneratedText]) -> dict[str, Any]:
    candidates = [
        {"text": text.text} | ({} if text.score is None else {"score": float(text.score)})
        for text in texts
    ]
    return candidates[0] | ({"candidates": candidates} if len(candidates) > 1 else {})
