"""Pipelines of encoders: classification, question answering, fill-mask and feature extraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfllm.checkpoints import store
from tfllm.checkpoints.base import Checkpoint, new_model
from tfllm.checkpoints.weights import variables_of
from tfllm.errors import SettingError
from tfllm.model import InferenceModel, Model
from tfllm.pipelines.inputs import BATCH_SIZE, Result, TextInput, examples_of
from tfllm.runtimes.protocols import Predictor
from tfllm.runtimes.token_predictor import TokenPredictor
from tfllm.tasks import Task
from tfllm.tokenizers.base import Tokenizer

TEXT_CLASSIFICATION_OPTIONS = (
    "top_k", "function_to_apply", "batch_size", "return_all_scores", "truncation",
)  # fmt: skip
QUESTION_ANSWERING_OPTIONS = (
    "question", "context", "top_k", "handle_impossible_answer", "max_answer_len",
    "max_question_len", "max_seq_len", "doc_stride", "batch_size",
)  # fmt: skip
FILL_MASK_OPTIONS = ("top_k", "targets", "batch_size")
FEATURE_EXTRACTION_OPTIONS = ("return_tensors", "batch_size", "truncation")
UNSET: Any = object()


def classify_texts(
    predictor: Predictor,
    inputs: TextInput | Sequence[TextInput],
    *,
    task: str,
    top_k: int | None = UNSET,
    function_to_apply: str | None = None,
    return_all_scores: bool = False,
    truncation: bool = True,
    batch_size: int = BATCH_SIZE,
) -> Result | list[Result] | list[list[Result]]:
    """Classify texts.

    Args:
        predictor: The model.
        inputs: Texts, or pairs `{"text", "text_pair"}`.
        task: The pipeline's name.
        top_k: How many labels; None: all; unset: the best one, not as a list.
        function_to_apply: Not supported: a model answers by the function of its own task.
        return_all_scores: The same as `top_k=None`.
        truncation: Texts are always truncated.
        batch_size: Texts per batch.

    Returns:
        `{"label", "score"}` of each label.

    Raises:
        SettingError: `function_to_apply` is set.
    """
    if function_to_apply is not None:
        raise SettingError(
            "function_to_apply: a model answers by the function of its own task (task.problem). "
            "Leave it out."
        )
    if return_all_scores:
        top_k = None
    examples, single = examples_of(inputs)
    answers = predictor.predict(examples, batch_size)
    ranked = [_ranked_labels(predictor.task, answer) for answer in answers]
    if top_k is not UNSET:
        top = [labels[:top_k] for labels in ranked]
        return top[0] if single else top
    best = [labels[0] for labels in ranked]
    return best[0] if isinstance(inputs, Mapping) else best


def _ranked_labels(task: Task, answer: Mapping[str, Any]) -> list[Result]:
    """Return every label with its score, the best first."""
    if "scores" not in answer:  # a regression
        labels = getattr(task, "labels", None) or ("LABEL_0",)
        return [{"label": labels[0], "score": float(answer["label"])}]
    pairs = sorted(answer["scores"].items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": score} for label, score in pairs]


def answer_questions(
    predictor: Predictor,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    task: str,
    question: str | Sequence[str] | None = None,
    context: str | Sequence[str] | None = None,
    top_k: int = 1,
    handle_impossible_answer: bool = False,
    max_answer_len: int | None = None,
    max_question_len: int | None = None,
    max_seq_len: int | None = None,
    doc_stride: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Result | list[Result] | list[list[Result]]:
    """Answer questions with spans of their contexts.

    Args:
        predictor: The model.
        inputs: `{"question", "context"}`, or a list of them.
        task: The pipeline's name.
        question, context: In place of `inputs`; a context may belong to several questions.
        top_k: How many spans of each context; above 1 the results are lists.
        handle_impossible_answer: Whether there may be no answer.
        max_answer_len: Tokens of an answer at most. Unset, this and the following are as the
            model's task says.
        max_question_len: Not used.
        max_seq_len: Tokens of question and window together.
        doc_stride: Tokens that neighbouring windows share.
        batch_size: Windows per batch.

    Returns:
        `{"score", "start", "end", "answer"}` of the best span; offsets in characters.

    Raises:
        SettingError: Question or context is missing, or an exported file has other settings.
    """
    examples = inputs if inputs is not None else _pair_questions(question, context)
    single = isinstance(examples, Mapping)
    settings = {
        "n_best": top_k,
        "no_answer": handle_impossible_answer,
        "max_answer_length": max_answer_len,
        "max_length": max_seq_len,
        "stride": doc_stride,
    }
    changes = {
        name: value
        for name, value in settings.items()
        if value is not None and value != getattr(predictor.task, name)
    }
    predictor = _with_settings(predictor, changes)
    answers = predictor.predict(
        [dict(examples)] if isinstance(examples, Mapping) else [dict(each) for each in examples],
        batch_size,
    )
    spans = [
        [_span(each) for each in (answer, *answer.get("alternatives", ()))][:top_k]
        for answer in answers
    ]
    results: list[Any] = [ranked[0] for ranked in spans] if top_k == 1 else spans
    return results[0] if single or len(results) == 1 else results


def _pair_questions(
    question: str | Sequence[str] | None, context: str | Sequence[str] | None
) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
    if question is None or context is None:
        raise SettingError("question-answering needs question=... and context=...")
    if isinstance(question, str):
        return {"question": question, "context": context}
    contexts = [context] * len(question) if isinstance(context, str) else context
    return [
        {"question": each, "context": text} for each, text in zip(question, contexts, strict=True)
    ]


def _span(answer: Mapping[str, Any]) -> Result:
    return {name: answer[name] for name in ("score", "start", "end", "answer")}


def fill_masks(
    predictor: Predictor,
    inputs: TextInput | Sequence[TextInput],
    *,
    task: str,
    top_k: int = 5,
    targets: str | Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[Any]:
    """Predict the tokens of masks.

    Args:
        predictor: The model.
        inputs: Texts with one or more mask tokens.
        task: The pipeline's name.
        top_k: How many tokens of each mask.
        targets: Choose among these tokens alone.
        batch_size: Texts per batch.

    Returns:
        `{"score", "token", "token_str", "sequence"}` of each token, best first; of a text with
        several masks a list for each.

    Raises:
        SettingError: A text has no mask token.
    """
    examples, single = examples_of(inputs)
    changes: dict[str, object] = {"top_k": top_k}
    if targets is not None:
        changes = {"top_k": len(predictor.vocabulary)}
    elif top_k == getattr(predictor.task, "top_k", None):
        changes = {}
    predictor = _with_settings(predictor, changes)
    names = [targets] if isinstance(targets, str) else targets
    results = [
        _mask_candidates(predictor.tokenizer, example["text"], answer["masks"], names, top_k)
        for example, answer in zip(examples, predictor.predict(examples, batch_size), strict=True)
    ]
    return results[0] if single else results


def _mask_candidates(
    tokenizer: Tokenizer,
    text: str,
    masks: Sequence[Mapping[str, Any]],
    targets: Sequence[str] | None,
    top_k: int,
) -> list[Any]:
    """Return the best tokens of a text's mask, or a list of them for each of several masks."""
    mask_token_id = tokenizer.mask_token_id
    assert mask_token_id is not None
    if not masks:
        name = tokenizer.vocabulary[mask_token_id]
        raise SettingError(f"No mask token ({name}) found in the text '{text[:40]}'. Write one.")
    ids = tokenizer.encode_ids([text])[0]
    positions = [position for position, token in enumerate(ids) if token == mask_token_id]
    # Other masks stay as they are, as transformers leaves them where there are several.
    skip_special_tokens = len(positions) == 1
    results = []
    for position, mask in zip(positions, masks, strict=False):
        candidates = []
        for candidate in mask["candidates"]:
            token = tokenizer.token_id(candidate["token"])
            assert token is not None
            name = tokenizer.decode([token], skip_special_tokens=False)
            if targets is None or name in targets or candidate["token"] in targets:
                sequence = [*ids[:position], token, *ids[position + 1 :]]
                candidates.append(
                    {
                        "score": candidate["score"],
                        "token": token,
                        "token_str": name,
                        "sequence": tokenizer.decode(
                            sequence, skip_special_tokens=skip_special_tokens
                        ),
                    }
                )
        results.append(candidates[: len(targets) if targets else top_k])
    return results[0] if len(results) == 1 else results


def extract_features(
    predictor: BackbonePredictor,
    inputs: TextInput | Sequence[TextInput],
    *,
    task: str,
    return_tensors: bool | str = False,
    truncation: bool = True,
    batch_size: int = BATCH_SIZE,
) -> list[Any] | np.ndarray:
    """Compute the last hidden states of texts, one at a time.

    Args:
        predictor: The backbone.
        inputs: The texts.
        task: The pipeline's name.
        return_tensors: Return NumPy arrays, not nested lists.
        truncation: Texts are always truncated.
        batch_size: Not used.

    Returns:
        float [1, T, D] for each text.
    """
    examples, single = examples_of(inputs)
    features = predictor.task.features(examples, predictor.tokenizer, targets=False)
    results = []
    for row in range(len(features)):
        states = predictor.hidden_states(features.inputs([row]))
        results.append(states if return_tensors else states.tolist())
    return results[0] if single else results


@dataclass(frozen=True)
class BackbonePredictor:
    """A checkpoint's model without its head."""

    checkpoint: Checkpoint

    @property
    def task(self) -> Task:
        """The checkpoint's task."""
        return self.checkpoint.task

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.checkpoint.tokenizer

    def hidden_states(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compute the last hidden states float32 [B, T, D] of a batch of int32 [B, T] inputs."""
        model = self._model
        outputs = model({name: inputs[name] for name in model.input}, training=False)
        return np.asarray(outputs, np.float32)

    @cached_property
    def _model(self) -> keras.Model:
        checkpoint = self.checkpoint
        backbone, _ = new_model(checkpoint.family, checkpoint.config, checkpoint.task)
        values = variables_of(checkpoint.model)
        for path, variable in variables_of(backbone).items():
            variable.assign(values[path])
        return backbone


def open_backbone(model: str | Path | Checkpoint | InferenceModel) -> BackbonePredictor:
    """Open the backbone of a checkpoint.

    Args:
        model: The checkpoint, or its path.

    Raises:
        CheckpointError: It cannot be read.
        SettingError: The model is open for prediction only.
    """
    if isinstance(model, Model):
        return BackbonePredictor(model.checkpoint)
    if isinstance(model, InferenceModel):
        raise SettingError(
            "feature-extraction reads hidden states. Give the path of the checkpoint, or what "
            "tfllm.load returned."
        )
    return BackbonePredictor(model if isinstance(model, Checkpoint) else store.load(model))


def _with_settings(predictor: Predictor, changes: Mapping[str, object]) -> Predictor:
    """Return the predictor of a task with other settings. An exported SavedModel keeps its own."""
    if not changes:
        return predictor
    if not isinstance(predictor, TokenPredictor):
        raise SettingError(
            f"{', '.join(changes)}: an exported SavedModel has fixed settings. Give the checkpoint."
        )
    return replace(predictor, task=predictor.task.model_copy(update=changes))
