"""A conversation with a model: its history, the chat template, and a window that fills up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tfllm.errors import SettingError
from tfllm.generation.config import MAX_SEED, GenerationConfig
from tfllm.generation.text_generator import Text, TextGenerator

Message = dict[str, str]


class ChatSession:
    """Messages so far, and the next answer to them.

    When the window is full the oldest turns are forgotten, a system message never. Every turn
    draws other random numbers: those of the seed plus the number of the turn.
    """

    def __init__(self, generator: TextGenerator, *, system: str | None = None):
        self.generator = generator
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []
        """Turns of user and assistant that have not been forgotten."""
        self.turns = 0

    def answer(
        self,
        said: str,
        settings: GenerationConfig,
        *,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
    ) -> Text:
        """The model's answer to what the user said; both join the history.

        Raises SettingError where the message alone does not fit the window; the history is then as
        it was.
        """
        asked = [*self.messages, {"role": "user", "content": said}]
        asked, ids = self._fitting(asked, settings)
        turn = settings.model_copy(update={"seed": (settings.seed + self.turns) % MAX_SEED})
        text = self.generator.continued(
            [ids],
            turn,
            stop=stop,
            on_text=(lambda _, piece: on_text(piece)) if on_text else None,
        )[0]
        self.messages = [*asked, {"role": "assistant", "content": text.text.strip()}]
        self.turns += 1
        return text

    def reset(self) -> None:
        """Forgets all turns."""
        self.messages = []
        self.turns = 0

    def _fitting(
        self, asked: list[Message], settings: GenerationConfig
    ) -> tuple[list[Message], list[int]]:
        """(the newest turns that fit with room for an answer, their tokens)."""
        window = self.generator.engine.decoder.max_sequence_length
        room = max(window - settings.max_new_tokens, window // 2)
        while True:
            ids = self.generator.tokenizer.apply_chat_template([*self.system, *asked])
            if len(ids) <= room:
                return asked, ids
            if len(asked) == 1:
                if len(ids) < window:
                    return asked, ids
                raise SettingError(
                    f"The message has {len(ids):,} tokens with its template, and the model's "
                    f"window is {window:,}. Write a shorter one."
                )
            asked = asked[2:]  # a question and its answer
