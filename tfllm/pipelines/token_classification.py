"""The pipeline of token classification: labelled tokens, and entities.

The rules are those of transformers' `TokenClassificationPipeline`: a word is a token with the
subword tokens after it, and the strategies "simple", "first", "average" and "max" say which of them
decides its label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfllm.errors import SettingError, did_you_mean
from tfllm.pipelines.inputs import BATCH_SIZE, Result, TextInput, examples_of
from tfllm.runtimes.protocols import Predictor
from tfllm.runtimes.token_predictor import TokenPredictor
from tfllm.tokenizers.base import Tokenizer

OPTIONS = ("aggregation_strategy", "ignore_labels", "batch_size", "grouped_entities")
STRATEGIES = ("none", "simple", "first", "average", "max")
SUBWORD_PREFIX = "##"  # of a WordPiece token that continues a word

# What Hugging Face's WordPiece decoder cleans up.
CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip

Token = dict[str, Any]
"""`scores` float32 [C], `index`, `word`, `start`, `end`, and `is_subword`: it continues a word."""


def classify_tokens(
    predictor: Predictor,
    inputs: TextInput | Sequence[TextInput],
    *,
    task: str,
    aggregation_strategy: str = "none",
    ignore_labels: Sequence[str] = ("O",),
    grouped_entities: bool = False,
    batch_size: int = BATCH_SIZE,
) -> list[Result] | list[list[Result]]:
    """Label the tokens of texts.

    Args:
        predictor: The model.
        inputs: The texts.
        task: The pipeline's name.
        aggregation_strategy: "none" labels tokens; "simple", "first", "average" and "max" join
            neighbours of one label to entities.
        ignore_labels: Labels that are left out.
        grouped_entities: The same as `aggregation_strategy="simple"`.
        batch_size: Not used: texts are read one at a time.

    Returns:
        `{"entity", "score", "index", "word", "start", "end"}` of each token of a text, or
        `{"entity_group", "score", "word", "start", "end"}` of each entity.

    Raises:
        SettingError: There is no such strategy, or the model does not give scores of tokens.
    """
    strategy = "simple" if grouped_entities else str(aggregation_strategy).lower()
    if strategy not in STRATEGIES:
        raise SettingError(f"aggregation_strategy: {did_you_mean(strategy, STRATEGIES)}")
    if not isinstance(predictor, TokenPredictor):
        raise SettingError(
            "token-classification reads the scores of every token, which an exported SavedModel "
            "does not give. Give the checkpoint or the .tflite file, or use tfllm predict."
        )
    labels: Sequence[str] = getattr(predictor.task, "labels", ())
    examples, single = examples_of(inputs)
    results = []
    for example in examples:
        tokens = _score_tokens(predictor, example["text"])
        entities = find_entities(tokens, labels, strategy, predictor.tokenizer)
        results.append(
            [
                entity
                for entity in entities
                if entity.get("entity", entity.get("entity_group")) not in ignore_labels
            ]
        )
    return results[0] if single else results


def _score_tokens(predictor: TokenPredictor, text: str) -> list[Token]:
    """Return every token of a text with its probabilities."""
    tokenizer = predictor.tokenizer
    encoding = tokenizer.encode(text, max_length=predictor.task.max_length)
    ids = np.array([encoding.ids], np.int32)
    inputs = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": np.ones_like(ids)}
    logits = np.asarray(predictor.call(inputs))[0].astype(np.float32)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    tokens: list[Token] = []
    for index, token_id in enumerate(encoding.ids):
        if encoding.sequence_ids[index] is None:  # a special token
            continue
        start, end = encoding.offsets[index]
        word = tokenizer.vocabulary[token_id]
        if tokenizer.kind == "wordpiece":
            is_subword = word.startswith(SUBWORD_PREFIX)
        else:
            is_subword = start > 0 and " " not in text[start - 1 : start + 1]
        if token_id == tokenizer.unk_token_id:
            word, is_subword = text[start:end], False
        tokens.append(
            {"scores": probabilities[index], "index": index, "word": word, "start": start,
             "end": end, "is_subword": is_subword}
        )  # fmt: skip
    return tokens


def find_entities(
    tokens: Sequence[Token], labels: Sequence[str], strategy: str, tokenizer: Tokenizer
) -> list[Result]:
    """Label tokens and, unless the strategy is "none", join neighbours of one label.

    Args:
        tokens: The tokens of a text.
        labels: The labels in the order of the scores.
        strategy: One of STRATEGIES.
        tokenizer: Decodes the words.

    Returns:
        See `classify_tokens`.
    """
    if strategy in ("none", "simple"):
        entities = [_label_token(token, labels) for token in tokens]
        if strategy == "none":
            return entities
    else:
        aggregate = AGGREGATE[strategy]
        entities = [
            _label_word(word, aggregate(word), labels, tokenizer) for word in _group_words(tokens)
        ]
    return _group_entities(entities, tokenizer)


def _label_token(token: Token, labels: Sequence[str]) -> Result:
    best = int(token["scores"].argmax())
    fields = {name: token[name] for name in ("index", "word", "start", "end")}
    return {"entity": labels[best], "score": float(token["scores"][best]), **fields}


def _group_words(tokens: Sequence[Token]) -> list[list[Token]]:
    groups: list[list[Token]] = []
    for token in tokens:
        if groups and token["is_subword"]:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups


AGGREGATE: dict[str, Callable[[Sequence[Token]], np.ndarray]] = {
    "first": lambda word: word[0]["scores"],
    "max": lambda word: max(word, key=lambda token: token["scores"].max())["scores"],
    "average": lambda word: np.mean([token["scores"] for token in word], axis=0),
}
"""Strategy -> the probabilities [C] of a word from those of its tokens."""


def _label_word(
    word: Sequence[Token], scores: np.ndarray, labels: Sequence[str], tokenizer: Tokenizer
) -> Result:
    best = int(scores.argmax())
    return {
        "entity": labels[best],
        "score": float(scores[best]),
        "word": _decode_tokens([token["word"] for token in word], tokenizer),
        "start": word[0]["start"],
        "end": word[-1]["end"],
    }


def _group_entities(entities: Sequence[Result], tokenizer: Tokenizer) -> list[Result]:
    """Join neighbours of one label; a B- label begins another entity."""
    groups: list[list[Result]] = []
    for entity in entities:
        prefix, label = _split_label(entity["entity"])
        if groups and prefix != "B" and label == _split_label(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in group])),
            "word": _decode_tokens([entity["word"] for entity in group], tokenizer),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _split_label(label: str) -> tuple[str, str]:
    """Return "B" or "I", and the label without it."""
    return (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("I", label)


def _decode_tokens(words: Sequence[str], tokenizer: Tokenizer) -> str:
    """Return the text of tokens of the vocabulary."""
    if tokenizer.kind == "wordpiece":
        text = " ".join(words).replace(f" {SUBWORD_PREFIX}", "")
        for spaced, clean in CLEANUP:
            text = text.replace(spaced, clean)
        return text.strip()
    ids = [number for word in words if (number := tokenizer.token_id(word)) is not None]
    if len(ids) < len(words):
        return " ".join(words)
    return tokenizer.decode(ids).strip() if len(ids) > 1 else tokenizer.decode(ids)
