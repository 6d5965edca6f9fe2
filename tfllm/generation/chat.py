"""A conversation with a model: its history, the chat template, and a window that fills up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tfllm.errors import SettingError
from tfllm.generation.config import MAX_SEED, GenerationConfig
from tfllm.generation.text_generator import GeneratedText, TextGenerator

Message = dict[str, str]


class ChatSession:
    """The messages so far, and the next reply to them.

    When the context window is full the oldest turns are dropped, a system message never. Every turn
    draws other random numbers: those of the seed plus the number of the turn.
    """

    def __init__(self, generator: TextGenerator, *, system: str | None = None):
        self.generator = generator
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []
        """Turns of user and assistant that have not been dropped."""
        self.turns = 0

    def reply(
        self,
        message: str,
        config: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> GeneratedText:
        """Generate the model's reply to a message of the user; both join the history.

        Args:
            message: What the user says.
            config: The settings.
            stop: The reply ends before the first of these strings.
            on_text: Called with every piece of text as soon as it is certain.

        Raises:
            SettingError: The message alone does not fit the window; the history is then as it was.
        """
        messages = [*self.messages, {"role": "user", "content": message}]
        messages, ids = self._fit_window(messages, config)
        config = config.model_copy(update={"seed": (config.seed + self.turns) % MAX_SEED})
        text = self.generator.generate_from_ids(
            [ids],
            config,
            stop=stop,
            on_text=(lambda _, piece: on_text(piece)) if on_text else None,
        )[0]
        self.messages = [*messages, {"role": "assistant", "content": text.text.strip()}]
        self.turns += 1
        return text

    def reset(self) -> None:
        """Drop all turns."""
        self.messages = []
        self.turns = 0

    def _fit_window(
        self, messages: list[Message], config: GenerationConfig
    ) -> tuple[list[Message], list[int]]:
        """(the newest turns that fit with room for a reply, their token ids)."""
        window = self.generator.engine.limits.max_sequence_length
        room = max(window - config.max_new_tokens, window // 2)
        while True:
            ids = self.generator.tokenizer.apply_chat_template([*self.system, *messages])
            if len(ids) <= room:
                return messages, ids
            if len(messages) == 1:
                if len(ids) < window:
                    return messages, ids
                raise SettingError(
                    f"The message has {len(ids):,} tokens with its template, and the model's "
                    f"window is {window:,}. Write a shorter one."
                )
            messages = messages[2:]  # a question and its answer
