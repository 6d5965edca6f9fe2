"""Filling in masked words (Devlin et al. 2019, section 3.1, task 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tfllm.tasks.base import Answer, Signatures, Task
from tfllm.tasks.features import (
    ClassWeights,
    Example,
    Features,
    LazyArrays,
    TokenCorpus,
    encode_texts,
    features_from_encodings,
    text_field,
)
from tfllm.tasks.metric_directions import MASKED_TOKEN_METRICS
from tfllm.tasks.objectives import masking, memory_corpus, packing
from tfllm.tasks.objectives.masking import MaskedFeatures, UnmaskedRow, draw_masks
from tfllm.tasks.objectives.packing import CorpusTokenStream
from tfllm.tokenizers.word_alignment import AS_IS, NO_SPACE, SPACE_BEFORE

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfllm.layers.types import ModelConfig
    from tfllm.tokenizers.base import Encoding, Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph

SPACES = " \t\n\f\r"  # RE2's \s, which the serving graph uses


class MaskedTokenTask(Task):
    """What tasks with masked tokens share: settings, training and answers."""

    head_layers: ClassVar[tuple[str, ...]] = ("transform", "transform_norm", "token_bias")
    evaluated_on: ClassVar = "masked_tokens"
    vocabulary_outputs: ClassVar = True

    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """Training: share of masked tokens; 80 % become [MASK], 10 % another token, 10 % stay."""
    whole_word: bool = False
    """Training: mask whole words; in scripts without spaces, spans of 1 to 4 characters."""
    top_k: int = Field(default=5, ge=1)
    """Candidates in an answer."""

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """Masked-LM accuracy."""
        return ("accuracy_at_1",)

    def training_model(self, model: keras.Model) -> keras.Model:
        """Build a model with the same layers and logits at masked tokens only.

        It has one more input, `positions` int32 [B, P].
        """
        from tfllm.layers import heads

        return heads.masked_lm_at_positions(model)

    def mask_answer(self, scores: np.ndarray, detail: dict[str, Any]) -> Answer:
        """Return the answer for a text with masks. See `MaskedLM.answers`.

        Args:
            scores: Logits [T, V].
            detail: The row's detail of `features_to_fill`.
        """
        vocabulary = detail["tokenizer"].vocabulary
        masks, tokens = [], []
        for position in detail["masks"]:
            row = scores[position].astype(np.float32)
            probabilities = np.exp(row - row.max())
            probabilities /= probabilities.sum()
            # A table of embeddings may have more rows than there are tokens.
            known = [number for number, token in enumerate(vocabulary[: len(row)]) if token]
            order = np.argsort(-probabilities[known], kind="stable")[: self.top_k]
            best = np.array(known)[order]
            candidates = [{"token": vocabulary[i], "score": float(probabilities[i])} for i in best]
            masks.append({**candidates[0], "candidates": candidates})
            tokens.append(detail["tokenizer"].fill_mask_texts[best[0]])
        mask = vocabulary[detail["tokenizer"].mask_token_id]
        return {"text": fill_masks(detail["text"], mask, tokens), "masks": masks}


class MaskedLM(MaskedTokenTask):
    """Scores over the vocabulary for every token."""

    pipelines: ClassVar = ("fill-mask", "feature-extraction")

    kind: Literal["masked_lm"] = "masked_lm"
    packing: bool = False
    """Training: every row is full, with the texts one after another (RoBERTa's full sentences), cut
    elsewhere in every epoch; a prepared corpus is always read so. false: a row for every text."""

    @property
    def measure(self) -> str:
        """Accuracy and perplexity over the masked tokens."""
        return "masked_tokens"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Over the masked tokens."""
        return MASKED_TOKEN_METRICS

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the masked-LM head on a backbone: logits [B, T, V]."""
        import keras

        from tfllm.layers import heads

        scores = heads.masked_lm_head(backbone.output, config, backbone)
        return keras.Model(backbone.input, scores, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return one row per text, or pair of texts, without targets, which `for_epoch` draws.

        With `packing` rows are full windows of the texts, each followed by the end token.
        """
        if targets and self.packing:
            return self.corpus_features(
                memory_corpus.tokenize_corpus(examples, tokenizer), tokenizer
            )
        encodings = encode_texts(examples, tokenizer, self.max_length)
        return features_to_fill(examples, encodings, tokenizer, self)

    def corpus_features(self, corpus: TokenCorpus, tokenizer: Tokenizer) -> MaskedFeatures:
        """Return full windows of concatenated documents (Liu et al. 2019, 4.2: full sentences)."""
        template = tokenizer.row_template
        start, end = np.asarray(template.prefix, np.int32), np.asarray(template.suffix, np.int32)
        stream = CorpusTokenStream(corpus, after=template.suffix)
        room = self.max_length - template.num_special_tokens
        begins, lengths = packing.windows(len(stream), room)

        def unmasked(row: int, rng: np.random.Generator, moved: int) -> UnmaskedRow:
            begin = int(begins[row]) + moved
            tokens = stream.tokens(np.arange(begin, begin + int(lengths[row])))
            ids = np.concatenate([start, tokens, end])
            free = ~np.isin(ids, template.suffix)
            free[: len(start)] = False
            return UnmaskedRow(ids, np.zeros(len(ids), np.int32), free)

        sizes = lengths + template.num_special_tokens
        return MaskedFeatures(
            token_ids=LazyArrays(
                len(begins), lambda row: unmasked(row, np.random.default_rng(), 0).ids
            ),
            segment_ids=None,
            example=memory_corpus.example_indices(corpus, stream.document_of(begins)),
            targets=None,
            details=[],
            pad_id=tokenizer.pad_token_id,
            row_lengths=sizes,
            digest=corpus.digest,
            shift=room,
            unmasked=unmasked,
            rule=masking.masking_rule(tokenizer, self.mask_probability, self.whole_word),
        )

    def for_epoch(self, features: Features, seed: int = 0, epoch: int = 0) -> Features:
        """Return the rows with masks drawn as a function of (seed, epoch, row); targets int [T].

        Targets are the masked tokens, -100 elsewhere. Every row with a token has at least one.
        Rows are drawn when a batch asks for them.
        """
        assert isinstance(features, MaskedFeatures)
        return draw_masks(features, seed, epoch)

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return softmax cross entropy over the masked tokens of the batch."""
        from tfllm.tasks import losses

        losses.reject_options(self.kind, class_weights=class_weights)
        return losses.MaskedCrossEntropy(label_smoothing)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy and perplexity over the masked tokens."""
        from tfllm.tasks import metrics

        return [metrics.Accuracy(), metrics.Perplexity()]

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[Answer]:
        """Return `{"text", "masks": [{"token", "score", "candidates": [{"token", "score"}]}]}`.

        Each [MASK] of the text gets its most probable token; one beyond `max_length` stays.
        """
        rows = zip(outputs, features.details, strict=True)
        return [self.mask_answer(np.asarray(output), detail) for output, detail in rows]

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the answer from `text`, and `tokens` and `scores` [M, K] of its masks.

        Both are padded, with "" and 0.
        """
        masks = []
        for tokens, scores in zip(outputs["tokens"], outputs["scores"], strict=True):
            candidates = [
                {"token": token.decode(), "score": float(score)}
                for token, score in zip(tokens, scores, strict=True)
            ]
            if candidates[0]["token"]:
                masks.append({**candidates[0], "candidates": candidates})
        return {"text": outputs["text"].decode(), "masks": masks}  # type: ignore[attr-defined]

    def signatures(self, model: keras.Model, graph_tokenizer: TokenizerGraph) -> Signatures:
        """Return `serving_default`: text string[B] -> text with its [MASK] filled, and candidates.

        tokens string[B, M, K] and scores float[B, M, K]: the K best of each mask, padded with ""
        and 0 to the most masks of the batch. `tokens` (the signature): logits [B, T, V].
        """
        import tensorflow as tf

        from tfllm.tasks import serving_graph
        from tfllm.tasks.fill_mask_graph import fill_masks as fill_masks_in_graph

        python = graph_tokenizer.tokenizer
        assert python.mask_token_id is not None
        mask = python.vocabulary[python.mask_token_id]
        manners, contents = map(tf.constant, zip(*python.fill_mask_texts, strict=True))

        @serving_graph.signature(serving_graph.text_inputs("text"))
        def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
            text = serving_graph.replace_invalid_utf8(text)
            packed = graph_tokenizer(text, max_length=self.max_length)
            logits = serving_graph.run_model(model, packed)  # [B, T, V]
            positions = tf.where(packed["token_ids"] == python.mask_token_id)  # [N, 2]
            count = min(self.top_k, python.vocabulary_size)
            shares = tf.nn.softmax(
                tf.gather_nd(logits, positions)
            )  # rows without a token are not chosen
            scores, best = tf.math.top_k(shares[:, : python.vocabulary_size], count)
            names = tf.gather(tf.constant(python.vocabulary), best)  # [N, K]
            rows = tf.shape(text, out_type=tf.int64)[0]

            first = tf.gather(contents, best[:, 0]), tf.gather(manners, best[:, 0])

            def padded(values: tf.Tensor) -> tf.Tensor:
                ragged = tf.RaggedTensor.from_value_rowids(values, positions[:, 0], rows)
                return ragged.to_tensor(shape=[None, None, count])

            return {
                "text": fill_masks_in_graph(text, mask, *first, positions[:, 0]),
                "tokens": padded(names),
                "scores": padded(scores),
            }

        return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model)}


def features_to_fill(
    examples: Sequence[Example],
    encodings: Sequence[Encoding],
    tokenizer: Tokenizer,
    task: MaskedTokenTask,
) -> MaskedFeatures:
    """Build the features of texts with masks to fill: a row per text or pair of texts.

    Args:
        examples: Dicts with `text`, and `text_pair` where they are pairs.
        encodings: Their encodings.
        tokenizer: The model's tokenizer.
        task: The task, for its settings.

    Returns:
        Features whose `details` say where the masks are.
    """
    rows = features_from_encodings(encodings, tokenizer)
    details: list[dict[str, Any]] = []
    fixed: list[np.ndarray] = []
    for example, encoding, ids in zip(examples, encodings, rows.token_ids, strict=True):
        special = np.array([number is None for number in encoding.sequence_ids])
        masked = ids == tokenizer.mask_token_id
        details.append(
            {
                "text": text_field(example),
                "masks": np.flatnonzero(masked & ~special),
                "tokenizer": tokenizer,
                "pair": example.get("text_pair") is not None,
            }
        )
        fixed.append(special | masked)
    token_ids, types = rows.token_ids, rows.segment_ids
    assert types is not None

    def unmasked(row: int, rng: np.random.Generator, moved: int) -> UnmaskedRow:
        return UnmaskedRow(token_ids[row], types[row], ~fixed[row])

    return MaskedFeatures(
        token_ids=token_ids,
        segment_ids=types,
        example=rows.example,
        targets=None,
        details=details,
        pad_id=tokenizer.pad_token_id,
        unmasked=unmasked,
        rule=masking.masking_rule(tokenizer, task.mask_probability, task.whole_word),
    )


def fill_masks(text: str, mask: str, tokens: Sequence[tuple[int, str]]) -> str:
    """Replace the masks of a text by tokens; masks beyond the last token stay.

    Args:
        text: The text.
        mask: The mask token.
        tokens: (manner, token) of each mask; `word_alignment` says how each manner is written.
    """
    parts = text.split(mask)
    tokens = list(tokens)[: len(parts) - 1]
    tokens += [(AS_IS, mask)] * (len(parts) - 1 - len(tokens))
    result = ""
    for number, ((manner, token), part) in enumerate(zip(tokens, parts, strict=False)):
        before = part.rstrip(SPACES) if manner == NO_SPACE else part
        spaced = part[-1:] in SPACES if part else number == 0
        result += before + (" " if manner == SPACE_BEFORE and not spaced else "") + token
    return result + parts[-1]
