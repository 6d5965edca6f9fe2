"""Prompts to texts with a checkpoint: tokens in and out of the engine, stop strings, streaming.

generator = TextGenerator(checkpoint)
generator.generate(["Once upon a time"], GenerationConfig(max_new_tokens=50))[0].text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.generation import cpu_decoding
from tfllm.generation.config import GenerationConfig, generation_config
from tfllm.generation.engine import ROWS, Engine, OnToken, Result
from tfllm.models.decoder import get_decoder
from tfllm.tokenizers.base import valid_id_ranges
from tfllm.tokenizers.streaming import TextStream

# on_text(number of the text, piece): called as soon as a piece is certain.
OnText = Callable[[int, str], None]
Truncate = Literal["left", "right"]

CONTEXT = 8  # tokens of a prompt that decide how the text after it begins (with a space or not)


@dataclass(frozen=True)
class Text:
    """One text that was written."""

    prompt: str
    text: str
    """Without the prompt, and without the stop string."""
    token_count: int
    """Tokens written, those of a stop string included; a stop id does not count."""
    finish_reason: str
    """"stop": a stop string or stop id; "length": max_new_tokens or the model's window."""
    log_probabilities: list[float]
    """Of each token, under the model itself."""
    score: float | None = None
    """Of beam search."""
    token_ids: tuple[int, ...] = ()
    """The tokens that `token_count` counts."""


class TextGenerator:
    """Writes texts with the model of one checkpoint. One thread at a time may use it."""

    generates = "continuation"
    given = "after prompts"
    instead = "Give a causal language model, or use tfllm predict."

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_rows: int = ROWS,
        engine: Engine | None = None,
        precision: str = "float32",
    ):
        """`engine` writes the tokens in place of the checkpoint's model: an exported file's does.

        `precision` "bfloat16" changes the checkpoint's model: see `products.in_bfloat16`. Raises
        SettingError where the checkpoint's task is not to write text.
        """
        if checkpoint.task.generates != self.generates:
            raise SettingError(
                f"This model is for {checkpoint.task.kind.replace('_', ' ')} and cannot write "
                f"text {self.given}. {self.instead}"
            )
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        if engine is None:
            made = self._model(checkpoint)
            engine = Engine(cpu_decoding.prepared(made, precision), max_rows=max_rows)
        self.engine = engine
        engine.known = valid_id_ranges(self.tokenizer.target, engine.decoder.vocabulary_size)

    def generate(
        self,
        prompts: Sequence[str],
        settings: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        truncate: Truncate | None = None,
        on_text: OnText | None = None,
    ) -> list[Text]:
        """`num_return_sequences` texts for each prompt, in order.

        A text ends before the first of the `stop` strings, at a stop id of the settings or of the
        model, or after `max_new_tokens`. `truncate` "left" drops the beginning of a prompt that is
        too long. Raises SettingError for a prompt that cannot be continued.
        """
        ids = [self.encode(prompt, settings, truncate) for prompt in prompts]
        return self.continued(ids, settings, stop=stop, on_text=on_text, prompts=prompts)

    def continued(
        self,
        ids: Sequence[Sequence[int]],
        settings: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        on_text: OnText | None = None,
        prompts: Sequence[str] | None = None,
    ) -> list[Text]:
        """The same for prompts that are tokens. Their texts are `prompts`; without them every
        text begins by itself, without the space that may separate it from its prompt."""
        if any(not text for text in stop):
            raise SettingError("--stop: an empty text ends every text at once. Leave it out.")
        each = settings.num_return_sequences
        listeners = [
            Listener(self._stream(), stop, self._context(ids[number // each]) if prompts else ())
            for number in range(len(ids) * each)
        ]

        def on_token(number: int, token: int, _: float) -> bool:
            piece = listeners[number].push(token)
            if piece and on_text:
                on_text(number, piece)
            return listeners[number].stopped

        listens = on_text is not None or bool(stop)
        results = self._written(
            ids,
            self.with_eos_token_id(settings),
            on_token if listens else None,
            1 if on_text else None,
        )
        texts = []
        for number, (listener, result) in enumerate(zip(listeners, results, strict=True)):
            prompt = prompts[number // each] if prompts else ""
            texts.append(self._ended(number, prompt, listener, result, on_text))
        return texts

    def _model(self, checkpoint: Checkpoint) -> Any:
        return get_decoder(checkpoint.model, checkpoint.family, checkpoint.config)

    def _stream(self) -> TextStream:
        return TextStream(self.tokenizer)

    def _context(self, ids: Sequence[int]) -> Sequence[int]:
        """Tokens before a text that decide how it begins."""
        return ids[-CONTEXT:]

    def _written(
        self,
        ids: Sequence[Sequence[int]],
        settings: GenerationConfig,
        on_token: OnToken | None,
        steps: int | None,
    ) -> list[Result]:
        return self.engine.generate(ids, settings, on_token, steps=steps)

    def encode(
        self, prompt: str, settings: GenerationConfig, truncate: Truncate | None = None
    ) -> list[int]:
        """The prompt's tokens. Raises SettingError where they cannot be continued."""
        ids = self.tokenizer.encode_ids([prompt])[0]
        if not ids:
            if self.tokenizer.bos_token_id is None:
                raise SettingError(
                    "The prompt is empty, and this model has no start token to begin with. Give "
                    "a prompt of at least one character."
                )
            ids = [self.tokenizer.bos_token_id]
        if truncate == "right":
            raise SettingError(
                "--truncate right: the end of a prompt is what a text goes on from. Write "
                "--truncate left."
            )
        return self.cut(ids, settings) if truncate == "left" else ids

    def cut(self, ids: list[int], settings: GenerationConfig) -> list[int]:
        """The last tokens, so many that `max_new_tokens` fit; a start token stays in front."""
        window = self.engine.decoder.max_sequence_length
        room = max(window - settings.max_new_tokens, 1)
        if len(ids) <= room:
            return ids
        if room > 1 and ids[0] == self.tokenizer.bos_token_id:
            return [ids[0], *ids[-(room - 1) :]]
        return ids[-room:]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        settings: GenerationConfig,
        truncate: Truncate | None = None,
    ) -> list[int]:
        """A conversation's tokens, as the chat template writes it. Raises TokenizerError."""
        ids = self.tokenizer.apply_chat_template(messages)
        return self.cut(ids, settings) if truncate == "left" else ids

    def check(self, ids: Sequence[int]) -> None:
        """Raises SettingError for tokens that cannot be continued."""
        self.engine.check(ids)

    def defaults(self, **given: Any) -> GenerationConfig:
        """The settings of `given` fields that are not None. Raises SettingError."""
        return generation_config(
            **{name: value for name, value in given.items() if value is not None}
        )

    def with_eos_token_id(self, settings: GenerationConfig) -> GenerationConfig:
        """The settings with the model's own stop ids."""
        stops = dict.fromkeys((*settings.eos_token_id, *self.checkpoint.eos_token_id))
        return settings.model_copy(update={"eos_token_id": tuple(stops)})

    def bad_words_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of words that must not appear, alone and after a space."""
        forms = [form for word in words for form in (word, f" {word}")]
        found = self.tokenizer.encode_ids(forms, add_special_tokens=False) if forms else []
        return tuple(dict.fromkeys(tuple(ids) for ids in found if ids))

    def _ended(
        self, number: int, prompt: str, listener: Listener, result: Result, on_text: OnText | None
    ) -> Text:
        """The text of a result; what nobody has heard yet (beam search) is heard now."""
        for token in result.ids[listener.tokens :]:
            if listener.stopped:
                break
            piece = listener.push(token)
            if piece and on_text:
                on_text(number, piece)
        piece = listener.finish()
        if piece and on_text:
            on_text(number, piece)
        return Text(
            prompt=prompt,
            text=listener.text,
            token_count=listener.tokens,
            finish_reason="stop" if listener.stopped else result.finish_reason,
            log_probabilities=result.log_probabilities[: listener.tokens],
            score=result.score,
            token_ids=tuple(result.ids[: listener.tokens]),
        )


class Listener:
    """Turns the tokens of one text into text, up to a stop string.

    A stop string may begin and end inside of tokens. Text that may be the beginning of one is held
    back until the next token tells.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str], context: Sequence[int] = ()):
        """`context` are the last tokens of the prompt."""
        self.stopped = False
        self.tokens = 0
        """Pushed so far."""
        self._stream = stream
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._text = ""
        self._given = 0
        for token in context:
            stream.push(token)
        if context:
            stream.finish()

    @property
    def text(self) -> str:
        """What has been given."""
        return self._text[: self._given]

    def push(self, token: int) -> str:
        """The text that is certain after one more token; often empty."""
        self.tokens += 1
        return self._added(self._stream.push(token))

    def finish(self) -> str:
        """The text held back, at the end."""
        if self.stopped:
            return ""
        piece = self._added(self._stream.finish())
        if self.stopped:
            return piece
        piece += self._text[self._given :]
        self._given = len(self._text)
        return piece

    def _added(self, new: str) -> str:
        start = max(0, len(self._text) - self._longest + 1)
        self._text += new
        found = [place for one in self._stop if (place := self._text.find(one, start)) >= 0]
        if found:
            self.stopped = True
            self._text = self._text[: min(found)]
        end = len(self._text) if found else len(self._text) - self._held()
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _held(self) -> int:
        """Characters at the end that are the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._text)), 0, -1):
            end = self._text[-length:]
            if any(one.startswith(end) for one in self._stop):
                return length
        return 0


def open_generator(model: str, **options: Any) -> TextGenerator:
    """The TextGenerator of a checkpoint directory, run or llama2.c file. Raises CheckpointError."""
    from tfllm.checkpoints import store

    return TextGenerator(store.load(model), **options)
