"""How well a causal language model tells texts: log-probabilities in sliding windows.

    tokens   t0 t1 t2 t3 t4 t5 t6 t7 t8 t9          window 6, stride 3
    row 0   [t0 t1 t2 t3 t4 t5]  scores t1 ... t6
    row 1            [t3 t4 t5 t6 t7 t8]  scores t7 ... t9

Every token is scored once; after the first window it has at least `window - stride` tokens before
it. What the measures mean stands in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfllm.errors import DataError, SettingError
from tfllm.runtimes.predictor import Answer, Example, Progress
from tfllm.tasks.causal_lm import CausalLM, lines_of, messages_of
from tfllm.tasks.features import IGNORED, text_field, where
from tfllm.tasks.objectives.packing import chunk_text
from tfllm.tokenizers.base import Tokenizer

# Scores of the whole vocabulary for every token of a batch are in memory at once.
BATCH_BYTES = 256 * 2**20

# ids, targets int32 [B, T] -> log-probability of each target and whether it is the likeliest
Score = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Scored:
    """A text to be told: its tokens, and those of them that count."""

    ids: np.ndarray
    """int32 [N]"""
    counts: np.ndarray
    """bool [N]; never the first"""
    bytes: int
    """UTF-8 bytes that the counted tokens stand for"""
    characters: int


@dataclass(frozen=True)
class Row:
    """A window of a text; targets outside of what it scores are IGNORED."""

    text: int
    ids: np.ndarray
    targets: np.ndarray


def documents(examples: Sequence[Example], task: CausalLM, tokenizer: Tokenizer) -> list[Scored]:
    """One text per example, or all as one where the task has no documents.

    The start token stands before a document and its end token is not scored. Of a conversation the
    assistant's answers count. A first token with nothing before it cannot be told.
    """
    if not task.documents:
        examples = [{"text": "\n".join(lines_of(example) for example in examples)}]
    return [
        _conversation(example, tokenizer)
        if "messages" in example
        else _document(lines_of(example), task, tokenizer)
        for example in examples
    ]


def last_words(examples: Sequence[Example], task: CausalLM, tokenizer: Tokenizer) -> list[Scored]:
    """The last word of every text with the space before it (Paperno et al. 2016, LAMBADA).

    Raises DataError for a text of one word.
    """
    found = []
    for example in examples:
        text = text_field(example).rstrip()
        before, space, word = text.rpartition(" ")
        if not before.strip():
            raise DataError(
                f"{where(example)}'{text}' has no word before its last one. Give longer texts, "
                "with words that spaces separate."
            )
        whole, part = tokenizer.encode_ids([text, before], add_special_tokens=False)
        start = (
            [] if tokenizer.bos_token_id is None or not task.documents else [tokenizer.bos_token_id]
        )
        ids = np.array([*start, *whole], np.int32)
        counts = np.arange(len(ids)) >= max(1, len(start) + len(part))
        found.append(Scored(ids, counts, len((space + word).encode()), len(space + word)))
    return found


def rows(texts: Sequence[Scored], window: int, stride: int, cut: bool = False) -> Iterator[Row]:
    """The windows of all texts. `cut`: only the last window of a text that is too long."""
    for number, text in enumerate(texts):
        last = len(text.ids) - 1  # inputs are all but the last token
        if cut:
            yield _row(number, text, max(0, last - window), last, 0)
            continue
        begin, told = 0, 0
        while told < last:
            end = min(begin + window, last)
            yield _row(number, text, begin, end, told)
            begin, told = begin + stride, end


def scored(
    texts: Sequence[Scored],
    score: Score,
    window: int,
    stride: int,
    batch_size: int,
    vocabulary_size: int,
    *,
    cut: bool = False,
    progress: Progress | None = None,
) -> list[Answer]:
    """Per text: log_probability (natural), token_count, correct, byte_count, character_count."""
    found = list(rows(texts, window, stride, cut))
    found.sort(key=lambda row: -len(row.ids))
    size = max(1, min(batch_size, BATCH_BYTES // (4 * window * vocabulary_size)))
    logs, right = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    for start in range(0, len(found), size):
        batch = found[start : start + size]
        length = len(batch[0].ids)
        ids = np.zeros((len(batch), length), np.int32)
        targets = np.full((len(batch), length), IGNORED, np.int32)
        for place, row in enumerate(batch):
            ids[place, : len(row.ids)] = row.ids
            targets[place, : len(row.ids)] = row.targets
        log_probabilities, best = score(ids, targets)
        counts = targets != IGNORED
        for place, row in enumerate(batch):
            logs[row.text] += float(log_probabilities[place][counts[place]].sum(dtype=np.float64))
            right[row.text] += int(best[place][counts[place]].sum())
        if progress:
            progress(len(texts) * len(batch) / len(found))
    return [
        {
            "log_probability": float(log),
            "token_count": int(text.counts.sum()),
            "correct": int(correct),
            "byte_count": text.bytes,
            "character_count": text.characters,
        }
        for text, log, correct in zip(texts, logs, right, strict=True)
    ]


def checked_stride(stride: int | None, window: int) -> int:
    """The stride, or half the window where none is given. Raises SettingError."""
    if stride is None:
        return max(1, window // 2)
    if not 1 <= stride <= window:
        raise SettingError(
            f"--set stride={stride}: it must lie between 1 and the model's window of {window} "
            "tokens. Smaller is slower and gives every token more context."
        )
    return stride


def _document(text: str, task: CausalLM, tokenizer: Tokenizer) -> Scored:
    parts = tokenizer.encode_ids(list(chunk_text(text)), add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None or not task.documents else [tokenizer.bos_token_id]
    ids = np.concatenate([np.asarray(part, np.int32) for part in (start, *parts)])
    counts = np.arange(len(ids)) > 0
    untold = "" if start or not len(ids) else tokenizer.decode([int(ids[0])])
    size = len(text.encode()) - len(untold.encode())
    return Scored(ids, counts, max(size, 0), max(len(text) - len(untold), 0))


def _conversation(example: Example, tokenizer: Tokenizer) -> Scored:
    from tfllm.tokenizers import chat

    found, spans = chat.assistant_spans(tokenizer, messages_of(example))
    ids = np.asarray(found, np.int32)
    counts = np.zeros(len(ids), bool)
    for begin, end in spans:
        counts[max(begin, 1) : end] = True
    text = tokenizer.decode(ids[counts].tolist())
    return Scored(ids, counts, len(text.encode()), len(text))


def _row(number: int, text: Scored, begin: int, end: int, told: int) -> Row:
    """The tokens begin ... end - 1 as input; the targets after `told` count."""
    places = np.arange(begin + 1, end + 1)
    counts = text.counts[places] & (places > told)
    return Row(number, text.ids[begin:end], np.where(counts, text.ids[places], IGNORED))
