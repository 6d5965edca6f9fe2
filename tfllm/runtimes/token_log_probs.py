"""How well a causal language model predicts texts: log-probabilities in sliding windows.

    tokens   t0 t1 t2 t3 t4 t5 t6 t7 t8 t9          window 6, stride 3
    row 0   [t0 t1 t2 t3 t4 t5]  scores t1 ... t6
    row 1            [t3 t4 t5 t6 t7 t8]  scores t7 ... t9

Every token is scored once; after the first window it has at least `window - stride` tokens before
it. docs/evaluation.md explains the measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tfllm.errors import DataError, SettingError
from tfllm.runtimes.protocols import Example, Prediction, Progress
from tfllm.tasks.causal_lm import CausalLM, lines_of, messages_of
from tfllm.tasks.features import IGNORED, text_field, where
from tfllm.tasks.objectives.packing import chunk_text
from tfllm.tokenizers import chat
from tfllm.tokenizers.base import Tokenizer

# The logits of the whole vocabulary for every token of a batch are in memory at once.
BATCH_BYTES = 256 * 2**20

LogProbs = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(token ids, targets), int32 [B, T] -> (log-probability of each target, whether it is the most
likely token), float and bool [B, T]."""


@dataclass(frozen=True)
class ScoredText:
    """A text to score: its tokens, and those of them that count."""

    ids: np.ndarray
    """int32 [N]"""
    counts: np.ndarray
    """bool [N]; never the first"""
    bytes: int
    """UTF-8 bytes of the tokens that count"""
    characters: int


@dataclass(frozen=True)
class Window:
    """A window of a text; targets outside of what it scores are IGNORED."""

    text: int
    """The index of the text."""
    ids: np.ndarray
    targets: np.ndarray


def documents(
    examples: Sequence[Example], task: CausalLM, tokenizer: Tokenizer
) -> list[ScoredText]:
    """Tokenize one text per example, or all as one where the task has no documents.

    The start token precedes a document, and its end token is not scored. In a conversation the
    assistant's messages count. A first token with nothing before it has no probability.

    Args:
        examples: Texts or conversations.
        task: The model's task.
        tokenizer: The model's tokenizer.
    """
    if not task.documents:
        examples = [{"text": "\n".join(lines_of(example) for example in examples)}]
    return [
        _conversation(example, tokenizer)
        if "messages" in example
        else _document(lines_of(example), task, tokenizer)
        for example in examples
    ]


def last_words(
    examples: Sequence[Example], task: CausalLM, tokenizer: Tokenizer
) -> list[ScoredText]:
    """Tokenize texts of which only the last word counts (LAMBADA, Paperno et al. 2016).

    The space before the word is part of it.

    Args:
        examples: Texts.
        task: The model's task.
        tokenizer: The model's tokenizer.

    Raises:
        DataError: A text has one word.
    """
    texts = []
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
        texts.append(ScoredText(ids, counts, len((space + word).encode()), len(space + word)))
    return texts


def windows(
    texts: Sequence[ScoredText], size: int, stride: int, last_only: bool = False
) -> Iterator[Window]:
    """Yield the windows of texts.

    Args:
        texts: The tokenized texts.
        size: Tokens of a window.
        stride: Tokens by which it moves.
        last_only: Whether a text that is too long has its last window alone.
    """
    for index, text in enumerate(texts):
        last = len(text.ids) - 1  # inputs are all but the last token
        if last_only:
            yield _window(index, text, max(0, last - size), last, 0)
            continue
        begin, scored = 0, 0
        while scored < last:
            end = min(begin + size, last)
            yield _window(index, text, begin, end, scored)
            begin, scored = begin + stride, end


def score_texts(
    texts: Sequence[ScoredText],
    log_probs: LogProbs,
    window: int,
    stride: int,
    batch_size: int,
    vocabulary_size: int,
    *,
    last_window_only: bool = False,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Score texts in sliding windows.

    Args:
        texts: The texts.
        log_probs: The model.
        window: Tokens of a window.
        stride: Tokens by which it moves.
        batch_size: Windows that the model is given at once, at most.
        vocabulary_size: V; it bounds the batch.
        last_window_only: Of a text that is too long score only the last window.
        progress: Called with the number of texts done since the last call.

    Returns:
        Per text: log_probability (natural), token_count, correct (tokens that are the most likely
        ones), byte_count, character_count.
    """
    all_windows = list(windows(texts, window, stride, last_window_only))
    all_windows.sort(key=lambda each: -len(each.ids))
    size = max(1, min(batch_size, BATCH_BYTES // (4 * window * vocabulary_size)))
    sums, correct = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    for start in range(0, len(all_windows), size):
        batch = all_windows[start : start + size]
        length = len(batch[0].ids)
        ids = np.zeros((len(batch), length), np.int32)
        targets = np.full((len(batch), length), IGNORED, np.int32)
        for row, each in enumerate(batch):
            ids[row, : len(each.ids)] = each.ids
            targets[row, : len(each.ids)] = each.targets
        logs, best = log_probs(ids, targets)
        counts = targets != IGNORED
        for row, each in enumerate(batch):
            sums[each.text] += float(logs[row][counts[row]].sum(dtype=np.float64))
            correct[each.text] += int(best[row][counts[row]].sum())
        if progress:
            progress(len(texts) * len(batch) / len(all_windows))
    return [
        {
            "log_probability": float(log),
            "token_count": int(text.counts.sum()),
            "correct": int(count),
            "byte_count": text.bytes,
            "character_count": text.characters,
        }
        for text, log, count in zip(texts, sums, correct, strict=True)
    ]


def target_log_probs(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the log-probabilities of targets, and whether each is the most likely token.

    Args:
        logits: [B, T, V].
        targets: int [B, T].

    Returns:
        Two arrays [B, T].
    """
    largest = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=-1, dtype=np.float64)) + largest[..., 0]
    safe = np.maximum(targets, 0)
    target_logits = np.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
    return target_logits - total, logits.argmax(axis=-1) == safe


def check_stride(stride: int | None, window: int) -> int:
    """Return the stride; half the window where it is None.

    Args:
        stride: Tokens by which the window moves.
        window: Tokens of a window.

    Raises:
        SettingError: It is not between 1 and the window.
    """
    if stride is None:
        return max(1, window // 2)
    if not 1 <= stride <= window:
        raise SettingError(
            f"--set stride={stride}: it must lie between 1 and the model's window of {window} "
            "tokens. Smaller is slower and gives every token more context."
        )
    return stride


def _document(text: str, task: CausalLM, tokenizer: Tokenizer) -> ScoredText:
    parts = tokenizer.encode_ids(list(chunk_text(text)), add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None or not task.documents else [tokenizer.bos_token_id]
    ids = np.concatenate([np.asarray(part, np.int32) for part in (start, *parts)])
    counts = np.arange(len(ids)) > 0
    unscored = "" if start or not len(ids) else tokenizer.decode([int(ids[0])])
    size = len(text.encode()) - len(unscored.encode())
    return ScoredText(ids, counts, max(size, 0), max(len(text) - len(unscored), 0))


def _conversation(example: Example, tokenizer: Tokenizer) -> ScoredText:
    token_ids, spans = chat.assistant_spans(tokenizer, messages_of(example))
    ids = np.asarray(token_ids, np.int32)
    counts = np.zeros(len(ids), bool)
    for begin, end in spans:
        counts[max(begin, 1) : end] = True
    text = tokenizer.decode(ids[counts].tolist())
    return ScoredText(ids, counts, len(text.encode()), len(text))


def _window(index: int, text: ScoredText, begin: int, end: int, scored: int) -> Window:
    """The tokens begin ... end - 1 as input; the targets after position `scored` count."""
    positions = np.arange(begin + 1, end + 1)
    counts = text.counts[positions] & (positions > scored)
    return Window(index, text.ids[begin:end], np.where(counts, text.ids[positions], IGNORED))
