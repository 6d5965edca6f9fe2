"""Labels, answers, hidden words and vectors, as transformers' pipelines give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tfllm.errors import SettingError

BATCH_SIZE = 32
CLASSIFYING = ("top_k", "function_to_apply", "batch_size", "return_all_scores", "truncation")
ANSWERING = (
    "question", "context", "top_k", "handle_impossible_answer", "max_answer_len",
    "max_question_len", "max_seq_len", "doc_stride", "batch_size",
)  # fmt: skip
FILLING = ("top_k", "targets", "batch_size")
EXTRACTING = ("return_tensors", "batch_size", "truncation")
UNSET = object()


def classified(
    predictor: Any,
    inputs: Any,
    *,
    task: str,
    top_k: Any = UNSET,
    function_to_apply: str | None = None,
    return_all_scores: bool = False,
    truncation: bool = True,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """`{"label", "score"}` of the best label, or a list of the `top_k` best (None: all)."""
    if function_to_apply is not None:
        raise SettingError(
            "function_to_apply: a model answers by the function of its own task (task.problem). "
            "Leave it out."
        )
    if return_all_scores:
        top_k = None
    examples, single = examples_of(inputs)
    answers = predictor.predict(examples, batch_size)
    ranked = [_ranked(predictor.task, answer) for answer in answers]
    if top_k is not UNSET:
        chosen = [labels[:top_k] for labels in ranked]
        return chosen[0] if single else chosen
    best = [labels[0] for labels in ranked]
    return best[0] if isinstance(inputs, Mapping) else best


def _ranked(task: Any, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "scores" not in answer:  # a number
        labels = getattr(task, "labels", None) or ("LABEL_0",)
        return [{"label": labels[0], "score": float(answer["label"])}]
    pairs = sorted(answer["scores"].items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": score} for label, score in pairs]


def answered(
    predictor: Any,
    inputs: Any = None,
    *,
    task: str,
    question: Any = None,
    context: Any = None,
    top_k: int = 1,
    handle_impossible_answer: bool = False,
    max_answer_len: int | None = None,
    max_question_len: int | None = None,
    max_seq_len: int | None = None,
    doc_stride: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """`{"score", "start", "end", "answer"}` of the best span, or a list of the `top_k` best."""
    given = inputs if inputs is not None else _paired(question, context)
    single = isinstance(given, Mapping)
    wanted = {
        "n_best": top_k,
        "no_answer": handle_impossible_answer,
        "max_answer_length": max_answer_len,
        "max_length": max_seq_len,
        "stride": doc_stride,
    }
    changes = {
        name: value
        for name, value in wanted.items()
        if value is not None and value != getattr(predictor.task, name)
    }
    predictor = _asked(predictor, changes)
    found = predictor.predict([given] if single else list(given), batch_size)
    spans = [
        [_span(one) for one in (answer, *answer.get("alternatives", ()))][:top_k]
        for answer in found
    ]
    results: list[Any] = [ranked[0] for ranked in spans] if top_k == 1 else spans
    return results[0] if single or len(results) == 1 else results


def _paired(question: Any, context: Any) -> Any:
    if question is None or context is None:
        raise SettingError("question-answering needs question=... and context=...")
    if isinstance(question, str):
        return {"question": question, "context": context}
    contexts = [context] * len(question) if isinstance(context, str) else context
    return [
        {"question": one, "context": other} for one, other in zip(question, contexts, strict=True)
    ]


def _span(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("score", "start", "end", "answer")}


def filled(
    predictor: Any,
    inputs: Any,
    *,
    task: str,
    top_k: int = 5,
    targets: Any = None,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """`{"score", "token", "token_str", "sequence"}` of the `top_k` best tokens of a mask; a list of
    such lists where a text has several."""
    examples, single = examples_of(inputs)
    changes: dict[str, Any] = {"top_k": top_k}
    if targets is not None:
        changes = {"top_k": len(predictor.vocabulary)}
    elif top_k == predictor.task.top_k:
        changes = {}
    predictor = _asked(predictor, changes)
    names = [targets] if isinstance(targets, str) else targets
    tokenizer = _tokenizer(predictor)
    results = [
        _candidates(tokenizer, example["text"], answer["masks"], names, top_k)
        for example, answer in zip(examples, predictor.predict(examples, batch_size), strict=True)
    ]
    return results[0] if single else results


def _candidates(
    tokenizer: Any, text: str, masks: Sequence[Any], targets: Any, top_k: int
) -> list[Any]:
    if not masks:
        mask = tokenizer.vocabulary[tokenizer.mask_token_id]
        raise SettingError(f"No mask token ({mask}) found in the text '{text[:40]}'. Write one.")
    ids = tokenizer.encode_ids([text])[0]
    places = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
    found = []
    for place, mask in zip(places, masks, strict=False):
        chosen = []
        for candidate in mask["candidates"]:
            token = tokenizer.token_id(candidate["token"])
            name = tokenizer.decode([token], skip_special_tokens=False)
            if targets is None or name in targets or candidate["token"] in targets:
                whole = [*ids[:place], token, *ids[place + 1 :]]
                # Other masks stay as they are, as transformers leaves them where there are several.
                several = len(places) > 1
                chosen.append(
                    {
                        "score": candidate["score"],
                        "token": token,
                        "token_str": name,
                        "sequence": tokenizer.decode(whole, skip_special_tokens=not several),
                    }
                )
        found.append(chosen[: len(targets) if targets else top_k])
    return found[0] if len(found) == 1 else found


def extracted(
    predictor: Any,
    inputs: Any,
    *,
    task: str,
    return_tensors: Any = False,
    truncation: bool = True,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """Return the last hidden states, [1, T, D] for a text; NumPy arrays with `return_tensors`."""
    examples, single = examples_of(inputs)
    hidden = predictor.hidden
    features = predictor.task.features(examples, predictor.tokenizer, targets=False)
    rows = []
    for row in range(len(features)):
        given = features.inputs([row])
        states = hidden(given)[None, 0]
        rows.append(states if return_tensors else states.tolist())
    return rows[0] if single else rows


@dataclass(frozen=True)
class Backbone:
    """A checkpoint's model without its head."""

    checkpoint: Any

    @property
    def task(self) -> Any:
        return self.checkpoint.task

    @property
    def tokenizer(self) -> Any:
        return self.checkpoint.tokenizer

    def hidden(self, given: Mapping[str, Any]) -> Any:
        """Inputs of a batch to hidden states float32 [B, T, D]."""
        import numpy as np

        model = self._model
        inputs = {name: given[name] for name in model.input}
        return np.asarray(model(inputs, training=False), np.float32)

    @cached_property
    def _model(self) -> Any:
        from tfllm.checkpoints.base import new_model
        from tfllm.checkpoints.weights import variables_of

        checkpoint = self.checkpoint
        backbone, _ = new_model(checkpoint.family, checkpoint.config, checkpoint.task)
        values = variables_of(checkpoint.model)
        for path, variable in variables_of(backbone).items():
            variable.assign(values[path])
        return backbone


def backbone_of(model: Any) -> Backbone:
    """The backbone of a loaded checkpoint, or of the one at a path. Raises CheckpointError."""
    from tfllm.checkpoints import store

    loaded = getattr(model, "checkpoint", model)  # of a tfllm.Model
    return Backbone(loaded if isinstance(loaded, store.Checkpoint) else store.load(loaded))


def examples_of(inputs: Any) -> tuple[list[dict[str, Any]], bool]:
    """(examples with `text` and `text_pair`, whether it was one and no list)."""
    if isinstance(inputs, str):
        return [{"text": inputs}], True
    if isinstance(inputs, Mapping):
        return [dict(inputs)], True
    found = [{"text": one} if isinstance(one, str) else dict(one) for one in inputs]
    return found, False


def _asked(predictor: Any, changes: dict[str, Any]) -> Any:
    """The predictor of a task with other settings. An exported SavedModel keeps its own."""
    if not changes:
        return predictor
    if not hasattr(predictor, "call"):
        raise SettingError(
            f"{', '.join(changes)}: an exported SavedModel has fixed settings. Give the checkpoint."
        )
    task = predictor.task.model_copy(update=changes)
    return replace(predictor, task=task)


def _tokenizer(predictor: Any) -> Any:
    if hasattr(predictor, "tokenizer"):
        return predictor.tokenizer
    from tfllm.tokenizers.loading import load_tokenizer

    return load_tokenizer(predictor.folder / "assets")
