"""Sources to texts with an encoder-decoder's checkpoint: translation, summarization.

writer = TextToText(checkpoint)
for text in writer.generate(["Ein Haus am See."]):
    print(text.score, text.text)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.generation.config import GenerationConfig
from tfllm.generation.defaults import defaults_of
from tfllm.generation.engine import OnToken, Result
from tfllm.generation.text_generator import OnText, Text, TextGenerator, Truncate
from tfllm.models.encoder_decoder import get_encoder_decoder
from tfllm.tokenizers.streaming import TextStream

if TYPE_CHECKING:
    from tfllm.models.encoder_decoder import EncoderDecoder


class TextToText(TextGenerator):
    """Writes texts after sources. One thread at a time may use it."""

    generates = "target"
    given = "after sources"
    instead = "Give an encoder-decoder (transformer, t5, bart), or use tfllm predict."

    def defaults(self, **given: Any) -> GenerationConfig:
        """The checkpoint's own settings with `given` ones in their place; see `defaults_of`."""
        return defaults_of(self.checkpoint, **given)

    def generate(
        self,
        prompts: Sequence[str],
        settings: GenerationConfig | None = None,
        *,
        stop: Sequence[str] = (),
        truncate: Truncate | None = None,
        on_text: OnText | None = None,
    ) -> list[Text]:
        """`num_return_sequences` texts for each source, in order, best first; each knows its
        source as `prompt`, and its `score` where beam search found it.

        `settings` are the checkpoint's own if unset. `truncate` "right" drops the end of a source
        that is too long. Raises SettingError for a source that is empty or too long.
        """
        ids = [self.encode(prompt, settings, truncate) for prompt in prompts]
        settings = settings or self.defaults()
        return self.continued(ids, settings, stop=stop, on_text=on_text, prompts=prompts)

    def encode(
        self,
        prompt: str,
        settings: GenerationConfig | None = None,
        truncate: Truncate | None = None,
    ) -> list[int]:
        """A source's tokens, the task's prefix before it. Raises SettingError."""
        if truncate == "left":
            raise SettingError(
                "--truncate left: a source is cut at its end, so that its beginning and the token "
                "that ends it stay. Write --truncate right."
            )
        if not prompt.strip():
            raise SettingError("the source is empty. Give at least one character.")
        text = getattr(self.checkpoint.task, "prefix", "") + prompt
        longest = self.longest_source
        if truncate == "right":
            return self.tokenizer.encode(text, max_length=longest).ids
        ids = self.tokenizer.encode_ids([text])[0]
        if len(ids) > longest:
            raise SettingError(
                f"the source has {len(ids):,} tokens, and the model reads {longest:,}. Shorten it, "
                "or cut its end off with --truncate right."
            )
        return ids

    @property
    def longest_source(self) -> int:
        """Tokens of a source that are read at most: as the task says."""
        model = self.engine.decoder
        window = getattr(model, "longest_source", model.max_sequence_length)
        return min(window, getattr(self.checkpoint.task, "source_length", window))

    def alignments(
        self, texts: Sequence[Text], truncate: Truncate | None = None
    ) -> list[np.ndarray]:
        """Where each token of a text looked: float32 [T, S], rows sum to 1.

        S are the tokens of the source, special ones included, and T those that the text's own
        tokens are; the last layer's attention to the source, averaged over heads.
        """
        targets = [text.token_ids for text in texts]
        given = [self.encode(text.prompt, None, truncate) for text in texts]
        return alignments(self.engine.decoder, self.start_id, given, targets)

    @property
    def start_id(self) -> int:
        """The decoder's first token: as the task was trained, else as the checkpoint says."""
        named = getattr(self.checkpoint.task, "start_id", None)
        start = self.checkpoint.decoder_start_token_id if named is None else named
        assert start is not None
        return start

    def bad_words_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of words that must not appear."""
        target = self.tokenizer.target
        forms = [form for word in words for form in (word, f" {word}")]
        found = target.encode_ids(forms, add_special_tokens=False) if forms else []
        return tuple(dict.fromkeys(tuple(ids) for ids in found if ids))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        settings: GenerationConfig,
        truncate: Truncate | None = None,
    ) -> list[int]:
        """Raises SettingError: these models read one text."""
        raise SettingError("this model answers a source and holds no conversation. Give 'source'.")

    def check(self, ids: Sequence[int]) -> None:
        """Raises SettingError for tokens that cannot be read."""
        self.engine.check_source(ids)

    def cut(self, ids: list[int], settings: GenerationConfig) -> list[int]:
        """Sources are cut as they are encoded."""
        return ids

    def _model(self, checkpoint: Checkpoint) -> Any:
        return get_encoder_decoder(checkpoint.model, checkpoint.family, checkpoint.config)

    def _stream(self) -> TextStream:
        return TextStream(self.tokenizer.target)

    def _context(self, ids: Sequence[int]) -> Sequence[int]:
        return ()

    def _written(
        self,
        ids: Sequence[Sequence[int]],
        settings: GenerationConfig,
        on_token: OnToken | None,
        steps: int | None,
    ) -> list[Result]:
        prompts = [[self.start_id] for _ in ids]
        return self.engine.generate(prompts, settings, on_token, steps=steps, sources=ids)


def alignments(
    model: EncoderDecoder,
    start_id: int,
    given: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
) -> list[np.ndarray]:
    """See `TextToText.alignments`; for ids of sources and targets."""
    import tensorflow as tf

    from tfllm.generation import source as sources

    found = []
    for ids, target in zip(given, targets, strict=True):
        if not target:
            found.append(np.zeros([0, len(ids)], np.float32))
            continue
        seen: list[Any] = []
        source = sources.read(model, tf.constant([list(ids)]), tf.constant([len(ids)]))
        row = tf.constant([[start_id, *target[:-1]]])
        places = tf.range(row.shape[1])[None]
        sources.after(model, source, seen)(row, places, places[:, None] <= places[:, :, None])
        found.append(sources.mean_alignment(seen)[0].numpy())
    return found
