"""Where each head of a BERT-like model lies in a Hugging Face file, by variant and kind of task."""

from __future__ import annotations

from tfllm.models.rows import Table, linear, norm

POOLER = linear("pooler", "bert.pooler.dense")
ANSWER_SPAN = linear("span", "qa_outputs")
TOKEN_CLASSIFIER = linear("classifier", "classifier")

HEADS: dict[str, dict[str, Table]] = {
    "bert": {
        "embedding": POOLER,
        "classification": {**POOLER, **linear("classifier", "classifier")},
        "token_classification": TOKEN_CLASSIFIER,
        "question_answering": ANSWER_SPAN,
        "masked_lm": {
            **linear("transform", "cls.predictions.transform.dense"),
            **norm("transform_norm", "cls.predictions.transform.LayerNorm"),
            "token_bias/bias": "cls.predictions.bias",
        },
        "next_sentence": {**POOLER, **linear("next_sentence", "cls.seq_relationship")},
    },
    "distilbert": {
        "embedding": {},
        "classification": {
            **linear("pooler", "pre_classifier"),
            **linear("classifier", "classifier"),
        },
        "token_classification": TOKEN_CLASSIFIER,
        "question_answering": ANSWER_SPAN,
        "masked_lm": {
            **linear("transform", "vocab_transform"),
            **norm("transform_norm", "vocab_layer_norm"),
            "token_bias/bias": "vocab_projector.bias",
        },
    },
    "electra": {
        "embedding": {},
        "classification": {
            **linear("pooler", "classifier.dense"),
            **linear("classifier", "classifier.out_proj"),
        },
        "token_classification": TOKEN_CLASSIFIER,
        "question_answering": ANSWER_SPAN,
        "masked_lm": {
            **linear("transform", "generator_predictions.dense"),
            **norm("transform_norm", "generator_predictions.LayerNorm"),
            "token_bias/bias": "generator_lm_head.bias",
        },
        "replaced_tokens": {
            **linear("discriminator", "discriminator_predictions.dense"),
            **linear("replaced", "discriminator_predictions.dense_prediction"),
        },
    },
}
"""Kinds that are missing have no head of that kind in Hugging Face."""

TIED: dict[str, dict[str, str]] = {
    "bert": {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "distilbert": {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    "electra": {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
}
"""Tensors that a file may hold although they are another one under a second name."""

BUFFERS: dict[str, tuple[str, ...]] = {
    "bert": ("bert.embeddings.position_ids",),
    "distilbert": ("distilbert.embeddings.position_ids",),
    "electra": ("electra.embeddings.position_ids",),
}
"""Counters that old files hold; no weights."""
