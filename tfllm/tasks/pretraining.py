"""BERT's own objective: masked tokens, and whether the second text follows the first.

Devlin et al. 2019, section 3.1: both tasks on the same rows, [CLS] A [SEP] B [SEP], and the sum of
both means as the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tfllm.tasks import next_sentence
from tfllm.tasks.base import Answer
from tfllm.tasks.classification import softmax
from tfllm.tasks.features import (
    ClassWeights,
    Example,
    Features,
    LazyArrays,
    TokenCorpus,
    encode_texts,
)
from tfllm.tasks.masked_lm import MaskedLM, MaskedTokenTask, features_to_fill
from tfllm.tasks.metric_directions import MASKED_TOKEN_METRICS
from tfllm.tasks.objectives import masking, memory_corpus, sentence_pairs
from tfllm.tasks.objectives.masking import MaskedFeatures, UnmaskedRow, draw_masks

if TYPE_CHECKING:
    import keras

    from tfllm.layers.types import ModelConfig
    from tfllm.tokenizers.base import Tokenizer


class Pretraining(MaskedTokenTask):
    """Scores over the vocabulary for every token, and of two for the pair.

    In training an example is a document (`text`), which is cut into sentences; in prediction, a
    text with [MASK]s, or two (`text_pair`).
    """

    head_layers: ClassVar = (*MaskedTokenTask.head_layers, *next_sentence.NextSentence.head_layers)
    pipelines: ClassVar = ("feature-extraction",)

    kind: Literal["pretraining"] = "pretraining"

    @property
    def measure(self) -> str:
        """Those of masked_lm, and next-sentence accuracy."""
        return "masked_tokens_and_pairs"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Over the masked tokens, and over the pairs."""
        return (*MASKED_TOKEN_METRICS, "masked_accuracy", "next_sentence_accuracy")

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put both heads on a backbone: logits `tokens` [B, T, V] and `next_sentence` [B, 2]."""
        import keras

        from tfllm.layers import heads

        scores = {
            "tokens": heads.masked_lm_head(backbone.output, config, backbone),
            "next_sentence": heads.next_sentence_head(backbone.output, config),
        }
        return keras.Model(backbone.input, scores, name=self.kind)

    def export_task(self) -> MaskedLM:
        """Return the task of a masked language model: the head over pairs is for training only."""
        return MaskedLM(**self.model_dump(exclude={"kind"}))

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return rows of sentence pairs; without `targets` a row per example, as it is."""
        if not targets:
            encodings = encode_texts(examples, tokenizer, self.max_length)
            return features_to_fill(examples, encodings, tokenizer, self)
        return self.corpus_features(memory_corpus.tokenize_corpus(examples, tokenizer), tokenizer)

    def corpus_features(self, corpus: TokenCorpus, tokenizer: Tokenizer) -> MaskedFeatures:
        """Return rows of sentence pairs over tokenized documents, which `for_epoch` draws."""
        template, sentences = tokenizer.row_template, corpus
        plan = sentence_pairs.plan_pairs(
            sentences, self.max_length - template.num_pair_special_tokens
        )

        def unmasked(row: int, rng: np.random.Generator, moved: int) -> UnmaskedRow:
            pair = plan.pair(row, rng)
            parts = [
                np.asarray(template.prefix, np.int32), sentences.tokens(*pair.first),
                np.asarray(template.separator, np.int32), sentences.tokens(*pair.second),
                np.asarray(template.suffix, np.int32),
            ]  # fmt: skip
            sizes = [len(part) for part in parts]
            types = np.zeros(sum(sizes), np.int32)
            types[sum(sizes[:3]) :] = template.pair_type_id
            free = np.repeat([False, True, False, True, False], sizes)
            label = next_sentence.LABELS.index("is_next" if pair.is_next else "not_next")
            return UnmaskedRow(np.concatenate(parts), types, free, label)

        lengths = plan.total + template.num_pair_special_tokens
        nothing = LazyArrays(len(plan), lambda row: np.zeros(int(lengths[row]), np.int32))
        return MaskedFeatures(
            token_ids=nothing,
            segment_ids=None,
            example=memory_corpus.example_indices(corpus, plan.document),
            targets=None,
            details=[],
            pad_id=tokenizer.pad_token_id,
            row_lengths=lengths,
            digest=sentences.digest,
            unmasked=unmasked,
            rule=masking.masking_rule(tokenizer, self.mask_probability, self.whole_word),
        )

    def for_epoch(self, features: Features, seed: int = 0, epoch: int = 0) -> Features:
        """Draw pairs and masks as a function of (seed, epoch, row).

        Targets of a batch: `tokens` int [B, T], and `next_sentence` int [B], 0 follows, 1 does not.
        """
        assert isinstance(features, MaskedFeatures)
        return draw_masks(features, seed, epoch)

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return the mean over the masked tokens plus the mean over the pairs."""
        from tfllm.tasks import losses

        losses.reject_options(
            self.kind, class_weights=class_weights, label_smoothing=label_smoothing
        )
        return losses.PretrainingLoss()

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Accuracy and perplexity over the masked tokens, accuracy over the pairs."""
        from tfllm.tasks import metrics

        return {
            "tokens": [metrics.Accuracy("masked_accuracy"), metrics.Perplexity()],
            "next_sentence": [metrics.Accuracy("next_sentence_accuracy")],
        }

    def answers(self, outputs: Sequence[Any], features: Features) -> list[Answer]:
        """Return the answers of masked_lm; if an example has two texts, also of next_sentence."""
        answers = []
        for output, detail in zip(outputs, features.details, strict=True):
            answer = self.mask_answer(np.asarray(output["tokens"]), detail)
            if detail["pair"]:
                scores = np.asarray(output["next_sentence"], np.float32)
                answer |= next_sentence.answer_from_probabilities(softmax(scores))
            answers.append(answer)
        return answers
