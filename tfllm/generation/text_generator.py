"""Prompts to texts with a causal language model: tokenizing, stop strings, streaming.

generator = TextGenerator(checkpoint)
generator.generate(["Once upon a time"], GenerationConfig(max_new_tokens=50))[0].text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tfllm.checkpoints import store
from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.generation.checkpoint_config import GenerationSource
from tfllm.generation.config import GenerationConfig, generation_config
from tfllm.generation.cpu_decoding import optimize_for_cpu
from tfllm.generation.engine import Engine
from tfllm.generation.token_generator import (
    MAX_BATCH_SIZE,
    GenerationResult,
    Ids,
    TokenGenerator,
)
from tfllm.models.decoder import Decoder, get_decoder
from tfllm.models.encoder_decoder import EncoderDecoder
from tfllm.tasks.features import Example
from tfllm.tokenizers.base import valid_id_ranges
from tfllm.tokenizers.chat import Message
from tfllm.tokenizers.streaming import TextStream

OnText = Callable[[int, str], None]
"""on_text(index of the text, piece): called as soon as a piece is certain."""
Truncate = Literal["left", "right"]

CONTEXT = 8  # tokens of a prompt that decide how the text after it begins (with a space or not)


@dataclass(frozen=True)
class GeneratedText:
    """One generated text."""

    prompt: str
    text: str
    """Without the prompt, and without the stop string."""
    token_count: int
    """Tokens generated, those of a stop string included; an end-of-sequence token does not
    count."""
    finish_reason: str
    """"stop": a stop string or an end-of-sequence token; "length": max_new_tokens or the model's
    context window."""
    log_probabilities: list[float]
    """Of each token, under the model itself."""
    score: float | None = None
    """Of beam search."""
    token_ids: tuple[int, ...] = ()
    """The tokens that `token_count` counts."""


class TextGenerator:
    """Generates texts with one causal language model. One thread at a time may use it."""

    generates = "continuation"
    purpose = "after prompts"
    advice = "Give a causal language model, or use tfllm predict."

    def __init__(
        self,
        checkpoint: GenerationSource,
        *,
        max_batch_size: int = MAX_BATCH_SIZE,
        engine: TokenGenerator | None = None,
        precision: str = "float32",
    ):
        """Open a checkpoint for generation.

        Args:
            checkpoint: A Checkpoint, or with an `engine` an exported file.
            max_batch_size: Texts that are generated together.
            engine: Generates the tokens in place of the checkpoint's model: an exported file.
            precision: "float32" or "bfloat16", see `cpu_decoding.optimize_for_cpu`.

        Raises:
            SettingError: The checkpoint's task is not to generate text.
        """
        if checkpoint.task.generates != self.generates:
            raise SettingError(
                f"This model is for {checkpoint.task.kind.replace('_', ' ')} and cannot write "
                f"text {self.purpose}. {self.advice}"
            )
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        if engine is None:
            assert isinstance(checkpoint, Checkpoint)
            decoder = optimize_for_cpu(self._decoder(checkpoint), precision)
            engine = Engine(decoder, max_batch_size=max_batch_size)
        self.engine = engine
        engine.token_ranges = valid_id_ranges(self.tokenizer.target, engine.limits.vocabulary_size)

    def generate(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        truncate: Truncate | None = None,
        on_text: OnText | None = None,
    ) -> list[GeneratedText]:
        """Generate `num_return_sequences` texts after each prompt.

        Args:
            prompts: The prompts.
            config: The settings. The model's own end-of-sequence tokens end a text too.
            stop: A text ends before the first of these strings.
            truncate: "left" drops the beginning of a prompt that is too long.
            on_text: Called with every piece of text as soon as it is certain.

        Returns:
            The texts in the order of the prompts.

        Raises:
            SettingError: A prompt cannot be continued.
        """
        ids = [self.encode_prompt(prompt, config, truncate) for prompt in prompts]
        return self.generate_from_ids(ids, config, stop=stop, on_text=on_text, prompts=prompts)

    def generate_examples(
        self,
        examples: Sequence[Example],
        config: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        truncate: Truncate | None = None,
        on_text: OnText | None = None,
    ) -> list[GeneratedText]:
        """Generate after examples with a `prompt` or a conversation under `messages`.

        Args:
            examples: The examples.
            config: See `generate`, as for the other arguments.
            stop: See `generate`.
            truncate: See `generate`.
            on_text: See `generate`.

        Returns:
            The texts in the order of the examples.

        Raises:
            SettingError: A prompt cannot be continued; it begins with the example's `_where`.
        """
        ids = [self.encode_example(example, config, truncate) for example in examples]
        prompts = [example.get("prompt") for example in examples]
        return self.generate_from_ids(ids, config, stop=stop, on_text=on_text, prompts=prompts)

    def generate_from_ids(
        self,
        ids: Sequence[Ids],
        config: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        on_text: OnText | None = None,
        prompts: Sequence[str | None] | None = None,
    ) -> list[GeneratedText]:
        """Generate after prompts that are token ids.

        Args:
            ids: The prompts.
            config: See `generate`.
            stop: See `generate`.
            on_text: See `generate`.
            prompts: The text of each prompt, which the generated text continues. Without one, as
                after a conversation, the text begins by itself, without the space that may
                separate it from what is before it.

        Returns:
            `num_return_sequences` texts for each prompt, in order.

        Raises:
            SettingError: A prompt or a setting cannot be used.
        """
        if any(not text for text in stop):
            raise SettingError("--stop: an empty text ends every text at once. Leave it out.")
        count = config.num_return_sequences
        prompts = [None] * len(ids) if prompts is None else prompts
        contexts = [
            () if prompt is None else self._context(row)
            for prompt, row in zip(prompts, ids, strict=True)
        ]
        streams = [
            StopStringStream(self._text_stream(), stop, contexts[index // count])
            for index in range(len(ids) * count)
        ]

        def on_token(index: int, token: int, _: float) -> bool:
            piece = streams[index].push(token)
            if piece and on_text:
                on_text(index, piece)
            return streams[index].stopped

        prompt_ids, sources = self._prompts_and_sources(ids)
        config = self.with_eos_token_id(config)
        inputs = self.engine.limits.check_inputs(prompt_ids, config, sources)
        listens = bool(stop) or on_text is not None
        results = self.engine.generate_checked(
            inputs, on_token if listens else None, None if on_text is None else 1
        )
        texts = []
        for index, (stream, result) in enumerate(zip(streams, results, strict=True)):
            prompt = prompts[index // count] or ""
            texts.append(_finish_text(index, prompt, stream, result, on_text))
        return texts

    def encode_prompt(
        self, prompt: str, config: GenerationConfig, truncate: Truncate | None = None
    ) -> list[int]:
        """Encode a prompt.

        Args:
            prompt: The prompt.
            config: Its `max_new_tokens` is the room that truncation leaves.
            truncate: "left" drops the beginning of a prompt that is too long.

        Raises:
            SettingError: It is empty, and the model has no start token.
        """
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
                "--truncate right: a text continues the end of its prompt, which must stay. Write "
                "--truncate left."
            )
        return self.truncate(ids, config) if truncate == "left" else ids

    def encode_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        truncate: Truncate | None = None,
    ) -> list[int]:
        """Encode a conversation with the chat template.

        Args:
            messages: The conversation.
            config: Its `max_new_tokens` is the room that truncation leaves.
            truncate: "left" drops the beginning of a conversation that is too long.

        Raises:
            TokenizerError: The tokenizer has no template, or it fails.
        """
        ids = self.tokenizer.apply_chat_template(messages)
        return self.truncate(ids, config) if truncate == "left" else ids

    def truncate(self, ids: list[int], config: GenerationConfig) -> list[int]:
        """Keep the last tokens, so many that the text fits; a start token stays in front.

        Args:
            ids: The prompt.
            config: Its `max_new_tokens` is the room that stays.
        """
        room = max(self.engine.limits.max_sequence_length - config.max_new_tokens, 1)
        if len(ids) <= room:
            return ids
        if room > 1 and ids[0] == self.tokenizer.bos_token_id:
            return [ids[0], *ids[-(room - 1) :]]
        return ids[-room:]

    def check_prompt(self, ids: Ids) -> None:
        """Check that tokens can be continued.

        Raises:
            SettingError: There are none, or too many.
        """
        self.engine.limits.check_prompt(ids)

    def generation_config(self, **overrides: object) -> GenerationConfig:
        """Build a config of the overrides that are not None. Raises SettingError."""
        fields = {name: value for name, value in overrides.items() if value is not None}
        return generation_config(**fields)

    def with_eos_token_id(self, config: GenerationConfig) -> GenerationConfig:
        """Return the config with the model's own end-of-sequence tokens added."""
        ids = dict.fromkeys((*config.eos_token_id, *self.checkpoint.eos_token_id))
        return config.model_copy(update={"eos_token_id": tuple(ids)})

    def encode_bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the `bad_words_ids` of words, alone and after a space."""
        forms = [form for word in words for form in (word, f" {word}")]
        if not forms:
            return ()
        rows = self.tokenizer.target.encode_ids(forms, add_special_tokens=False)
        return tuple(dict.fromkeys(tuple(ids) for ids in rows if ids))

    def encode_example(
        self,
        example: Example,
        config: GenerationConfig,
        truncate: Truncate | None = None,
    ) -> list[int]:
        """Encode an example's `prompt` or `messages`.

        Args:
            example: The example.
            config: Its `max_new_tokens` is the room that truncation leaves.
            truncate: See `encode_prompt`.

        Raises:
            SettingError: It cannot be continued; the message begins with the example's `_where`.
        """
        try:
            if "prompt" in example:
                ids = self.encode_prompt(example["prompt"], config, truncate)
            else:
                ids = self.encode_chat(example["messages"], config, truncate)
            self.check_prompt(ids)
        except SettingError as error:
            where = example.get("_where")
            raise SettingError(
                f"{where}: {error.cli_message}" if where else error.cli_message
            ) from None
        return ids

    def _decoder(self, checkpoint: Checkpoint) -> Decoder | EncoderDecoder:
        return get_decoder(checkpoint.model, checkpoint.family, checkpoint.config)

    def _text_stream(self) -> TextStream:
        return TextStream(self.tokenizer.target)

    def _context(self, ids: Ids) -> Ids:
        """Tokens before a text that decide how it begins."""
        return ids[-CONTEXT:]

    def _prompts_and_sources(
        self, ids: Sequence[Ids]
    ) -> tuple[Sequence[Ids], Sequence[Ids] | None]:
        """Return the engine's prompts and, for a model with an encoder, its sources."""
        return ids, None


class StopStringStream:
    """Turns the tokens of one text into text, up to a stop string.

    A stop string may begin and end inside of tokens. Text that may be the beginning of one is held
    back until the next tokens decide.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str], context: Ids = ()):
        """`context` are the last tokens of the prompt."""
        self.stopped = False
        self.token_count = 0
        """Tokens pushed so far."""
        self._stream = stream
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._text = ""
        self._released = 0
        for token in context:
            stream.push(token)
        if context:
            stream.finish()

    @property
    def text(self) -> str:
        """The text that has been released."""
        return self._text[: self._released]

    def push(self, token: int) -> str:
        """Add a token, and return the text that is certain now, often empty."""
        self.token_count += 1
        return self._release(self._stream.push(token))

    def finish(self) -> str:
        """Release the text held back, at the end."""
        if self.stopped:
            return ""
        piece = self._release(self._stream.finish())
        if self.stopped:
            return piece
        piece += self._text[self._released :]
        self._released = len(self._text)
        return piece

    def _release(self, new: str) -> str:
        start = max(0, len(self._text) - self._longest + 1)
        self._text += new
        matches = [at for text in self._stop if (at := self._text.find(text, start)) >= 0]
        if matches:
            self.stopped = True
            self._text = self._text[: min(matches)]
        end = len(self._text) if matches else len(self._text) - self._held_back()
        piece = self._text[self._released : end]
        self._released = max(self._released, end)
        return piece

    def _held_back(self) -> int:
        """Characters at the end that are the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self._text)), 0, -1):
            end = self._text[-length:]
            if any(text.startswith(end) for text in self._stop):
                return length
        return 0


def _finish_text(
    index: int,
    prompt: str,
    stream: StopStringStream,
    result: GenerationResult,
    on_text: OnText | None,
) -> GeneratedText:
    """The text of a result; tokens that were not streamed (of beam search) are streamed now."""
    for token in result.ids[stream.token_count :]:
        if stream.stopped:
            break
        piece = stream.push(token)
        if piece and on_text:
            on_text(index, piece)
    piece = stream.finish()
    if piece and on_text:
        on_text(index, piece)
    return GeneratedText(
        prompt=prompt,
        text=stream.text,
        token_count=stream.token_count,
        finish_reason="stop" if stream.stopped else result.finish_reason,
        log_probabilities=result.log_probabilities[: stream.token_count],
        score=result.score,
        token_ids=tuple(result.ids[: stream.token_count]),
    )


def load_generator(
    model: str, *, max_batch_size: int = MAX_BATCH_SIZE, precision: str = "float32"
) -> TextGenerator:
    """Load a checkpoint, run or llama2.c file for generation.

    Args:
        model: Its path.
        max_batch_size, precision: See TextGenerator.

    Raises:
        CheckpointError: It cannot be read.
    """
    return TextGenerator(store.load(model), max_batch_size=max_batch_size, precision=precision)
