"""Where the weights of BERT, DistilBERT, ELECTRA and RoBERTa lie in a Hugging Face file."""

from __future__ import annotations

from tfllm.models.weight_map import Row, Table, Weights, linear, norm


def _embeddings(prefix: str) -> dict:
    return {
        "token_embedding/embeddings": f"{prefix}embeddings.word_embeddings.weight",
        "position_embedding/embeddings": f"{prefix}embeddings.position_embeddings.weight",
        **norm("embedding_norm", f"{prefix}embeddings.LayerNorm"),
    }


def _bert(prefix: str) -> Table:
    layer = f"{prefix}encoder.layer.{{i}}"
    return {
        **_embeddings(prefix),
        "type_embedding/embeddings": f"{prefix}embeddings.token_type_embeddings.weight",
        **linear("embedding_projection", f"{prefix}embeddings_project"),
        **linear("layer_{i}/attention/query", f"{layer}.attention.self.query"),
        **linear("layer_{i}/attention/key", f"{layer}.attention.self.key"),
        **linear("layer_{i}/attention/value", f"{layer}.attention.self.value"),
        **linear("layer_{i}/attention/attention_output", f"{layer}.attention.output.dense", 2),
        **norm("layer_{i}/attention_norm", f"{layer}.attention.output.LayerNorm"),
        **linear("layer_{i}/up", f"{layer}.intermediate.dense"),
        **linear("layer_{i}/down", f"{layer}.output.dense"),
        **norm("layer_{i}/feedforward_norm", f"{layer}.output.LayerNorm"),
    }


def _distilbert(prefix: str) -> Table:
    layer = f"{prefix}transformer.layer.{{i}}"
    return {
        **_embeddings(prefix),
        **linear("layer_{i}/attention/query", f"{layer}.attention.q_lin"),
        **linear("layer_{i}/attention/key", f"{layer}.attention.k_lin"),
        **linear("layer_{i}/attention/value", f"{layer}.attention.v_lin"),
        **linear("layer_{i}/attention/attention_output", f"{layer}.attention.out_lin", 2),
        **norm("layer_{i}/attention_norm", f"{layer}.sa_layer_norm"),
        **linear("layer_{i}/up", f"{layer}.ffn.lin1"),
        **linear("layer_{i}/down", f"{layer}.ffn.lin2"),
        **norm("layer_{i}/feedforward_norm", f"{layer}.output_layer_norm"),
    }


POOLER = linear("pooler", "bert.pooler.dense")
NEXT_SENTENCE = linear("next_sentence", "cls.seq_relationship")
PREDICTIONS: Table = {
    **linear("transform", "cls.predictions.transform.dense"),
    **norm("transform_norm", "cls.predictions.transform.LayerNorm"),
    "logits/kernel": Row("cls.predictions.decoder.weight", 1),
    "token_bias/bias": "cls.predictions.bias",
}
CLASSIFIER = linear("classifier", "classifier")
SPAN = linear("span", "qa_outputs")


def _roberta(name: str) -> Weights:
    """RoBERTa's table; XLM-R has other names of architectures."""
    return Weights(
        prefix="roberta.",
        backbone=_bert("roberta."),
        heads={
            "embedding": linear("pooler", "roberta.pooler.dense"),
            "classification": {
                **linear("pooler", "classifier.dense"),
                **linear("classifier", "classifier.out_proj"),
            },
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": {
                **linear("transform", "lm_head.dense"),
                **norm("transform_norm", "lm_head.layer_norm"),
                "logits/kernel": Row("lm_head.decoder.weight", 1),
                "token_bias/bias": "lm_head.bias",
            },
        },
        architectures={
            "embedding": (f"{name}Model",),
            "classification": (f"{name}ForSequenceClassification",),
            "token_classification": (f"{name}ForTokenClassification",),
            "question_answering": (f"{name}ForQuestionAnswering",),
            "masked_lm": (f"{name}ForMaskedLM",),
        },
        tied={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        buffers=("roberta.embeddings.position_ids",),
    )


WEIGHTS: dict[str, Weights] = {
    "bert": Weights(
        prefix="bert.",
        backbone=_bert("bert."),
        heads={
            "embedding": POOLER,
            "classification": {**POOLER, **CLASSIFIER},
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": PREDICTIONS,
            "next_sentence": {**POOLER, **NEXT_SENTENCE},
            "pretraining": {**PREDICTIONS, **POOLER, **NEXT_SENTENCE},
        },
        architectures={
            "embedding": ("BertModel",),
            "classification": ("BertForSequenceClassification",),
            "token_classification": ("BertForTokenClassification",),
            "question_answering": ("BertForQuestionAnswering",),
            "masked_lm": ("BertForMaskedLM",),
            "next_sentence": ("BertForNextSentencePrediction",),
            "pretraining": ("BertForPreTraining",),
        },
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        buffers=("bert.embeddings.position_ids",),
    ),
    "distilbert": Weights(
        prefix="distilbert.",
        backbone=_distilbert("distilbert."),
        heads={
            "embedding": {},
            "classification": {**linear("pooler", "pre_classifier"), **CLASSIFIER},
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": {
                **linear("transform", "vocab_transform"),
                **norm("transform_norm", "vocab_layer_norm"),
                "logits/kernel": Row("vocab_projector.weight", 1),
                "token_bias/bias": "vocab_projector.bias",
            },
        },
        architectures={
            "embedding": ("DistilBertModel",),
            "classification": ("DistilBertForSequenceClassification",),
            "token_classification": ("DistilBertForTokenClassification",),
            "question_answering": ("DistilBertForQuestionAnswering",),
            "masked_lm": ("DistilBertForMaskedLM",),
        },
        tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        buffers=("distilbert.embeddings.position_ids",),
    ),
    "electra": Weights(
        prefix="electra.",
        backbone=_bert("electra."),
        heads={
            "embedding": {},
            "classification": {
                **linear("pooler", "classifier.dense"),
                **linear("classifier", "classifier.out_proj"),
            },
            "token_classification": CLASSIFIER,
            "question_answering": SPAN,
            "masked_lm": {
                **linear("transform", "generator_predictions.dense"),
                **norm("transform_norm", "generator_predictions.LayerNorm"),
                "logits/kernel": Row("generator_lm_head.weight", 1),
                "token_bias/bias": "generator_lm_head.bias",
            },
            # No task of its own: the discriminator is there to be fine-tuned. Its head is kept.
            "replaced_tokens": {
                **linear("discriminator", "discriminator_predictions.dense"),
                **linear("replaced", "discriminator_predictions.dense_prediction"),
            },
        },
        architectures={
            "embedding": ("ElectraModel", "ElectraForPreTraining"),
            "classification": ("ElectraForSequenceClassification",),
            "token_classification": ("ElectraForTokenClassification",),
            "question_answering": ("ElectraForQuestionAnswering",),
            "masked_lm": ("ElectraForMaskedLM",),
        },
        tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        buffers=("electra.embeddings.position_ids",),
    ),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
}
