"""Telling the next token: text from raw text, answers from conversations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tfllm.errors import DataError, SettingError
from tfllm.tasks.base import Answer, NextToken
from tfllm.tasks.features import Example, Features, TokenCorpus, TokenWindows, text_field, where
from tfllm.tasks.objectives import packing
from tfllm.tasks.objectives.packing import CorpusTokenStream, TokenStream

if TYPE_CHECKING:
    import keras

    from tfllm.layers.types import ModelConfig
    from tfllm.tasks.huggingface import HuggingFaceHead
    from tfllm.tokenizers.base import Tokenizer

log = logging.getLogger(__name__)

# Texts are tokenized in groups of about so many characters: enough for all cores, little memory.
GROUP_CHARACTERS = 2**20

HF_WINDOW = 1024  # tokens: what perplexities are mostly published for

Document = tuple[np.ndarray, np.ndarray | None]  # ids [n]; which are learned, None: all


class CausalLM(NextToken):
    """Scores of the next token for every token (Radford et al. 2019).

    Examples are texts (`text`), or conversations (`messages`: a list of `role` and `content`), of
    which only the assistant's answers are learned.
    """

    generates: ClassVar = "continuation"
    backbones: ClassVar = ("decoder",)
    evaluated_on: ClassVar = "log_probs"
    pipelines: ClassVar = ("text-generation",)

    kind: Literal["causal_lm"] = "causal_lm"
    max_length: int = Field(default=256, ge=2)
    """Tokens of one row: the window of training."""
    packing: bool = True
    """Rows are filled: with windows of the texts one after another, cut anywhere and elsewhere in
    every epoch, or with as many whole conversations as fit. No token sees another document, and
    positions begin anew in each. false: a row holds one document, or a part of a long one."""
    documents: bool = True
    """Every example is a document of its own, between the start and the end token where the
    vocabulary has them. false: all examples are one text, joined by line ends as in their file."""

    learn: Literal["answers", "all"] = "answers"
    """Of conversations: the assistant's answers, or every token."""

    @property
    def required_fields(self) -> tuple[tuple[str, ...], ...]:
        """A text, a prompt, or a conversation."""
        return (("text",), ("prompt",), ("messages",))

    @property
    def measure(self) -> str:
        """Perplexity, bits and accuracy."""
        return "language_model"

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """Accuracy of last words where they are measured, else of next tokens."""
        return ("last_word_accuracy", "next_token_accuracy")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Over the tokens, and over last words."""
        accuracies = ("accuracy", "next_token_accuracy", "last_word_accuracy")
        return (*accuracies, "perplexity", "bits_per_byte", "bits_per_character")

    @classmethod
    def from_hf(cls, source: HuggingFaceHead) -> CausalLM:
        """Return the task with windows of HF_WINDOW tokens, or of all positions if fewer."""
        return cls(max_length=min(HF_WINDOW, source.positions))

    def hf_config(self, before: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """Return the special tokens, where the model came from no `config.json`.

        Without them transformers takes its own defaults, which are other tokens here.
        """
        if before:
            return {}
        return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the language modeling head on a backbone: logits float32 [B, T, V].

        Raises:
            SettingError: The backbone is no decoder.
        """
        import keras

        from tfllm.layers import heads
        from tfllm.layers.causal import CausalBlock

        if not any(isinstance(layer, CausalBlock) for layer in backbone.layers):
            raise SettingError(
                f"task.kind: causal_lm needs a decoder, and '{backbone.name}' is none. Use the "
                "family gpt2 or llama, or the task masked_lm."
            )
        scores = heads.lm_head(backbone.output, config, backbone)
        return keras.Model(backbone.input, scores, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return rows over one stream of all tokens; targets int [T] are the next tokens.

        A conversation is truncated to its first `max_length` tokens; one that has no token of an
        answer there is left out.

        Raises:
            DataError: There is no token to predict.
        """
        chat = bool(examples) and "messages" in examples[0]
        documents = self._chats(examples, tokenizer) if chat else self._texts(examples, tokenizer)
        stream = packing.build_stream(documents, tokenizer.vocabulary_size)
        if len(stream) < 2:
            raise DataError(
                f"{where(examples[0]) if examples else ''}the texts have {len(stream)} tokens, and "
                "the next token needs one before it. Give longer texts."
            )
        features = self._of_stream(stream, tokenizer, whole=chat)
        return features if targets else replace(features, targets=None)

    def corpus_features(self, corpus: TokenCorpus, tokenizer: Tokenizer) -> Features:
        """Return rows over a prepared corpus, read from the disk when a batch needs them."""
        start, end = _specials(tokenizer) if self.documents else ([], [])
        stream = CorpusTokenStream(corpus, tuple(start), tuple(end), self.documents)
        return replace(self._of_stream(stream, tokenizer), digest=corpus.digest)

    def _of_stream(
        self, stream: TokenStream | CorpusTokenStream, tokenizer: Tokenizer, whole: bool = False
    ) -> Features:
        """Rows of a stream; `whole`: none may hold a part of a document."""
        bounds = (stream.starts, len(stream), self.max_length)
        if whole or not self.packing:
            begins, lengths = (
                packing.pack_documents(*bounds)
                if self.packing
                else packing.one_document_per_row(*bounds)
            )
        else:
            begins, lengths = packing.windows(len(stream), self.max_length)
        return Features(
            token_ids=TokenWindows(begins, lengths, stream.tokens),
            segment_ids=None,
            example=np.arange(len(begins)),
            targets=TokenWindows(begins, lengths, stream.targets),
            details=[],
            pad_id=tokenizer.pad_token_id,
            per_token=True,
            document_ids=TokenWindows(begins, lengths, stream.document_ids),
            shift=0 if whole or not self.packing else self.max_length,
        )

    def for_epoch(self, features: Features, seed: int = 0, epoch: int = 0) -> Features:
        """Move the windows: they begin elsewhere in every epoch but the first.

        By how much is a function of (seed, epoch) alone.
        """
        moved = packing.epoch_shift(features.shift, seed, epoch) if features.shift else 0
        if not moved:
            return features
        rows: dict[str, Any] = {}
        for name in ("token_ids", "targets", "document_ids"):
            if isinstance(windows := getattr(features, name), TokenWindows):
                rows[name] = replace(windows, begins=windows.begins + moved)
        return replace(features, **rows)

    def _texts(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[Document]:
        """The tokens of every text, or of all as one."""
        if not self.documents:
            yield np.concatenate(list(_join(examples, tokenizer))), None
            return
        start, end = _specials(tokenizer)
        for group in _groups([lines_of(example) for example in examples]):
            parts = [list(packing.chunk_text(text)) for text in group]
            encoded = iter(_ids([part for several in parts for part in several], tokenizer))
            for several in parts:
                ids = [next(encoded) for _ in several]
                if any(map(len, ids)):
                    yield np.concatenate([start, *ids, end]).astype(np.int32), None

    def _chats(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[Document]:
        """The tokens of every conversation, its answers marked."""
        from tfllm.tokenizers import chat

        left_out = 0
        for example in examples:
            messages = messages_of(example)
            ids, spans = chat.assistant_spans(tokenizer, messages)
            learned = np.full(len(ids), self.learn == "all")
            for begin, end in spans:
                learned[begin:end] = True
            learned = learned[: self.max_length]
            if learned.any():
                yield np.asarray(ids[: self.max_length], np.int32), learned
            else:
                left_out += 1
        if left_out == len(examples):
            raise DataError(
                f"{where(examples[0])}no conversation has an answer of the assistant within its "
                f"first {self.max_length} tokens. Raise task.max_length, or check the roles."
            )
        if left_out:
            log.warning(
                "%d of %d conversations have no answer within task.max_length and are left out",
                left_out, len(examples),
            )  # fmt: skip

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the answer from `text`."""
        return {"text": outputs["text"].decode()}  # type: ignore[attr-defined]


def lines_of(example: Example) -> str:
    """Return the field `text`; a list of texts (paragraphs) is joined by line ends."""
    value = example.get("text")
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return text_field(example)


def messages_of(example: Example) -> list[dict[str, str]]:
    """Return the field `messages`, checked.

    Raises:
        DataError: It is no list of messages; the message names file and line.
    """
    value = example.get("messages")
    if (
        isinstance(value, list)
        and value
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    ):
        return value
    raise DataError(
        f"{where(example)}the field 'messages' is not a conversation. Write it as "
        '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
    )


def _specials(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids before and after a document, as far as the vocabulary has them."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [] if start is None else [start], [] if end is None else [end]


def _join(examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Tokenize all examples as one text."""
    text = "\n".join(lines_of(example) for example in examples)
    for group in _groups(list(packing.chunk_text(text))):
        yield from _ids(group, tokenizer)


def _ids(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    return [
        np.asarray(ids, np.int32) for ids in tokenizer.encode_ids(texts, add_special_tokens=False)
    ]


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in groups of about GROUP_CHARACTERS."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
