"""Tagged tokens and entities, as transformers' token classification pipeline gives them.

The rules are those of `TokenClassificationPipeline`: a word is a token with the pieces after it,
and "simple", "first", "average" and "max" say which of them decides its label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfllm.errors import SettingError, did_you_mean
from tfllm.pipelines.answering import BATCH_SIZE, examples_of

TAGGING = ("aggregation_strategy", "ignore_labels", "batch_size", "grouped_entities")
STRATEGIES = ("none", "simple", "first", "average", "max")
PIECE = "##"  # WordPiece's mark of a token that goes on with a word

# What Hugging Face's WordPiece decoder writes together.
CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip

Token = dict[str, Any]


def tagged(
    predictor: Any,
    inputs: Any,
    *,
    task: str,
    aggregation_strategy: str = "none",
    ignore_labels: Sequence[str] = ("O",),
    grouped_entities: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """`{"entity", "score", "index", "word", "start", "end"}` of every token with a label; with a
    strategy `{"entity_group", "score", "word", "start", "end"}` of every entity."""
    strategy = "simple" if grouped_entities else str(aggregation_strategy).lower()
    if strategy not in STRATEGIES:
        raise SettingError(f"aggregation_strategy: {did_you_mean(strategy, STRATEGIES)}")
    if not hasattr(predictor, "call"):
        raise SettingError(
            "token-classification reads the scores of every token, which an exported SavedModel "
            "does not give. Give the checkpoint or the .tflite file, or use tfllm predict."
        )
    examples, single = examples_of(inputs)
    results = []
    for example in examples:
        tokens = _tokens(predictor, example["text"])
        found = entities(tokens, predictor.task.labels, strategy, predictor.tokenizer)
        results.append(
            [
                one
                for one in found
                if one.get("entity", one.get("entity_group")) not in ignore_labels
            ]
        )
    return results[0] if single else results


def _tokens(predictor: Any, text: str) -> list[Token]:
    """Every token of a text with its probabilities [C]."""
    tokenizer = predictor.tokenizer
    encoding = tokenizer.encode(text, max_length=predictor.task.max_length)
    ids = np.array([encoding.ids], np.int32)
    given = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": np.ones_like(ids)}
    scores = np.asarray(predictor.call(given))[0].astype(np.float32)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    found: list[Token] = []
    for place, number in enumerate(encoding.ids):
        if encoding.sequence_ids[place] is None:
            continue
        start, end = encoding.offsets[place]
        word = tokenizer.vocabulary[number]
        part = word.startswith(PIECE) if tokenizer.kind == "wordpiece" else _goes_on(text, start)
        if number == tokenizer.unk_token_id:
            word, part = text[start:end], False
        found.append(
            {"scores": shares[place], "index": place, "word": word, "start": start, "end": end,
             "part": part}
        )  # fmt: skip
    return found


def _goes_on(text: str, start: int) -> bool:
    return start > 0 and " " not in text[start - 1 : start + 1]


def entities(
    tokens: Sequence[Token], labels: Sequence[str], strategy: str, tokenizer: Any
) -> list[Token]:
    """Tokens, or with a strategy runs of one label."""
    if strategy in ("none", "simple"):
        found = [_labelled(token, token["scores"], labels) for token in tokens]
        if strategy == "none":
            return found
    else:
        found = [
            _word(group, CHOSEN[strategy](group), labels, tokenizer) for group in _words(tokens)
        ]
    return _grouped(found, tokenizer)


def _labelled(token: Token, scores: np.ndarray, labels: Sequence[str]) -> Token:
    best = int(scores.argmax())
    kept = {name: token[name] for name in ("index", "word", "start", "end")}
    return {"entity": labels[best], "score": float(scores[best]), **kept}


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    groups: list[list[Token]] = []
    for token in tokens:
        if groups and token["part"]:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


CHOSEN: dict[str, Callable[[Sequence[Token]], np.ndarray]] = {
    "first": lambda group: group[0]["scores"],
    "max": lambda group: max(group, key=lambda token: token["scores"].max())["scores"],
    "average": lambda group: np.mean([token["scores"] for token in group], axis=0),
}


def _word(
    group: Sequence[Token], scores: np.ndarray, labels: Sequence[str], tokenizer: Any
) -> Token:
    best = int(scores.argmax())
    return {
        "entity": labels[best],
        "score": float(scores[best]),
        "word": _joined([token["word"] for token in group], tokenizer),
        "start": group[0]["start"],
        "end": group[-1]["end"],
    }


def _grouped(found: Sequence[Token], tokenizer: Any) -> list[Token]:
    """Neighbours of one label together; a B begins anew."""
    groups: list[list[Token]] = []
    for token in found:
        first, label = _parts(token["entity"])
        if groups and first != "B" and label == _parts(groups[-1][-1]["entity"])[1]:
            groups[-1].append(token)
        else:
            groups.append([token])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([token["score"] for token in group])),
            "word": _joined([token["word"] for token in group], tokenizer),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _parts(label: str) -> tuple[str, str]:
    return (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("I", label)


def _joined(words: Sequence[str], tokenizer: Any) -> str:
    """The text of tokens."""
    if tokenizer.kind == "wordpiece":
        text = " ".join(words).replace(f" {PIECE}", "")
        for spaced, plain in CLEANED:
            text = text.replace(spaced, plain)
        return text.strip()
    ids = [tokenizer.token_id(word) for word in words]
    if None in ids:
        return " ".join(words)
    return tokenizer.decode(ids).strip() if len(ids) > 1 else tokenizer.decode(ids)
