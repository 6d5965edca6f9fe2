"""A label for every word: named entities, parts of speech."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tfllm.errors import DataError
from tfllm.tasks import entities, label_names
from tfllm.tasks.base import Answer, Signatures, Task
from tfllm.tasks.classification import softmax
from tfllm.tasks.features import (
    IGNORED,
    ClassWeights,
    Example,
    Features,
    features_from_encodings,
    text_field,
    where,
)
from tfllm.tasks.huggingface import HuggingFaceHead, label_maps

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfllm.layers.types import ModelConfig
    from tfllm.tokenizers.base import Encoding, Tokenizer
    from tfllm.tokenizers.graph.base import TokenizerGraph

log = logging.getLogger(__name__)


class TokenClassification(Task):
    """A head on every token; a word's label stands at its first piece."""

    head_layers: ClassVar = ("classifier",)
    label_fields: ClassVar = ("words", "tags")
    pipelines: ClassVar = ("token-classification",)

    kind: Literal["token_classification"] = "token_classification"
    labels: label_names.Labels = ()
    """Tags (`O`, `B-PER`, `I-PER`, ...) in the order of the outputs; empty: from the data."""

    @property
    def required_fields(self) -> tuple[tuple[str, ...], ...]:
        """A list of words, or a text whose words are found."""
        return (("words",), ("text",))

    @property
    def measure(self) -> str:
        """Precision, recall and F1 of entities."""
        return "entities"

    @property
    def measure_options(self) -> dict[str, Any]:
        """The labels, for tags of examples that are numbers."""
        return {"labels": self.labels}

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """F1 of entities."""
        return ("f1",)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of entities, and of tags: `accuracy` of tokens, `token_accuracy` of words."""
        return ("accuracy", "token_accuracy", "precision", "recall", "f1", "f1_macro")

    @property
    def head_key(self) -> tuple[Hashable, ...]:
        """The labels."""
        return (self.kind, self.labels)

    @classmethod
    def from_hf(cls, source: HuggingFaceHead) -> TokenClassification:
        """Return the task with the labels of `id2label`."""
        length = source.length_of_texts()
        return cls(labels=source.labels, max_length=length)

    def hf_config(self, before: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """Return `id2label` and `label2id`."""
        return label_maps(self.labels, before)

    def infer_settings(self, examples: Sequence[Example]) -> TokenClassification:
        """Take labels from the examples if none are named: O first, then B and I of each kind."""
        if self.labels or not label_names.have_field(examples, "tags"):
            return self
        tags = label_names.collect_labels(
            (example, tag) for example in examples for tag in example["tags"]
        )
        if label_names.are_numbers(tags):
            log.warning(
                "The tags are numbers (%s), so no entity has a name. Name them in their order: "
                "task.labels: [O, B-PER, I-PER, ...]",
                ", ".join(tags[: label_names.SHOWN_LABELS]),
            )
            return self.model_copy(update={"labels": tags})
        order = sorted(tags, key=lambda tag: (tag != "O", entities.entity_label(tag), tag))
        return self.model_copy(update={"labels": tuple(order)})

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the classifier of tokens on a backbone: logits [B, T, C]."""
        import keras

        from tfllm.layers import heads

        size = label_names.count_labels(self.labels, "tags")
        scores = heads.token_classification_head(backbone.output, config, size)
        return keras.Model(backbone.input, scores, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return one row per example of `words`, or of `text`, whose words `tasks.entities` finds.

        Targets int [T]: the tag's position at the first piece of each word, -100 elsewhere. A row
        longer than `max_length` is cut; words after the cut get the tag O in answers.
        """
        if not label_names.have_field(examples, "words"):
            return self._text_features(examples, tokenizer)
        encodings = [
            tokenizer.encode_words(_words(example), max_length=self.max_length)
            for example in examples
        ]
        details = [
            _word_details(_words(example), encoding)
            for example, encoding in zip(examples, encodings, strict=True)
        ]
        if not (targets and label_names.have_field(examples, "tags")):
            return features_from_encodings(encodings, tokenizer, details=details)
        rows = [
            self._target(example, detail["positions"], len(encoding))
            for example, detail, encoding in zip(examples, details, encodings, strict=True)
        ]
        return features_from_encodings(
            encodings, tokenizer, details=details, targets=rows, per_token=True
        )

    def loss(
        self, label_smoothing: float = 0.0, class_weights: ClassWeights = None
    ) -> keras.losses.Loss:
        """Return softmax cross entropy over the words of the batch."""
        from tfllm.tasks import losses

        return losses.CrossEntropy(
            label_smoothing, losses.ordered_class_weights(class_weights, self.labels)
        )

    def metrics(self) -> list[keras.metrics.Metric]:
        """Accuracy over words; entity-level F1 is tfllm.evaluation's."""
        from tfllm.tasks import metrics

        return [metrics.Accuracy()]

    def answers(self, outputs: Sequence[np.ndarray], features: Features) -> list[Answer]:
        """Return `{"entities": [{"text", "label", "start", "end", "score"}]}` in characters.

        Examples that came as `words` also get `tags`, one per word; their characters are those of
        the words joined by one space.
        """
        return [
            self._answer(np.asarray(output, np.float32), detail)
            for output, detail in zip(outputs, features.details, strict=True)
        ]

    def answer_from_signature(self, example: Example, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the entities of the words that the graph split, or of the example's own words.

        An own word has the tag of the first word of the graph that begins in it: both are the tag
        of its first piece.
        """
        labels = [label.decode() for label in outputs["labels"]]
        columns = (outputs["starts"], outputs["ends"], outputs["scores"])
        if "words" not in example:
            return {"entities": entities.join_entities(example["text"], labels, *columns)}
        known = [int(start) for start, label in zip(columns[0], labels, strict=True) if label]
        lengths = [len(word) for word in example["words"]]
        starts = np.cumsum([0, *(length + 1 for length in lengths)])[:-1]
        first = np.searchsorted(known, starts)
        inside = np.append(known, np.inf)[first] < starts + lengths
        sources = [
            int(index) if within else None for index, within in zip(first, inside, strict=True)
        ]
        tags = ["O" if index is None else labels[index] for index in sources]
        scores = [0.0 if index is None else float(columns[2][index]) for index in sources]
        text = " ".join(example["words"])
        ends = (starts + lengths).tolist()
        return {
            "entities": entities.join_entities(text, tags, starts.tolist(), ends, scores),
            "tags": tags,
        }

    def signatures(self, model: keras.Model, graph_tokenizer: TokenizerGraph) -> Signatures:
        """Return `serving_default`: text string[B] -> words of each text and tags, padded [B, W].

        labels string ("" is padding), starts and ends int32 in characters (Unicode code points, not
        bytes) of the text, end exclusive, scores float: the tag's probability. `tokens`: logits
        [B, T, C]. `tfllm.tasks.entities.join_entities` joins words to entities.
        """
        import tensorflow as tf

        from tfllm.tasks import serving_graph
        from tfllm.tasks.entities_graph import GraphWords

        find = GraphWords(graph_tokenizer.tokenizer)
        template = graph_tokenizer.ids.template

        @serving_graph.signature(serving_graph.text_inputs("text"))
        def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
            ids, starts, ends = (
                ragged[:, : self.max_length - template.num_special_tokens]
                for ragged in graph_tokenizer.tokenize_with_offsets(text)
            )
            packed = graph_tokenizer.pack(ids, max_length=self.max_length)
            probabilities = tf.nn.softmax(serving_graph.run_model(model, packed))  # [B, T, C]
            words = find(text, ids, starts, ends)
            positions = tf.stack([words.rows, words.positions + len(template.prefix)], 1)
            scores = tf.gather_nd(probabilities, positions)  # [W, C]
            best = tf.argmax(scores, axis=-1, output_type=tf.int32)
            size = tf.size(text, out_type=tf.int64)

            def padded(values: tf.Tensor) -> tf.Tensor:
                return tf.RaggedTensor.from_value_rowids(values, words.rows, size).to_tensor()

            return {
                "labels": padded(tf.gather(tf.constant(self.labels), best)),
                "starts": padded(tf.cast(words.starts, tf.int32)),
                "ends": padded(tf.cast(words.ends, tf.int32)),
                "scores": padded(tf.reduce_max(scores, axis=-1)),
            }

        return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model)}

    def _answer(self, output: np.ndarray, detail: dict[str, Any]) -> Answer:
        positions = detail["positions"]
        seen = positions >= 0
        probabilities = softmax(output[positions[seen]])  # [words seen, C]
        best = probabilities.argmax(axis=-1)
        tags = ["O"] * len(positions)
        for word, position in zip(np.flatnonzero(seen), best, strict=True):
            tags[word] = self.labels[position]
        scores = np.zeros(len(positions), np.float32)
        scores[seen] = probabilities.max(axis=-1)
        joined = entities.join_entities(
            detail["text"], tags, detail["starts"], detail["ends"], scores
        )
        return {"entities": joined, **({"tags": tags} if detail["split"] else {})}

    def _text_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Features:
        texts = [text_field(example) for example in examples]
        encodings = tokenizer.encode_batch(texts, max_length=self.max_length)
        details = []
        for text, encoding in zip(texts, encodings, strict=True):
            _, positions, starts, ends = entities.align_pieces(text, encoding, tokenizer)
            details.append(
                {
                    "text": text,
                    "split": False,
                    "positions": positions,
                    "starts": starts,
                    "ends": ends,
                }
            )
        return features_from_encodings(encodings, tokenizer, details=details)

    def _target(self, example: Example, positions: np.ndarray, length: int) -> np.ndarray:
        tags = example["tags"]
        if not isinstance(tags, list | tuple) or len(tags) != len(positions):
            count = len(tags) if isinstance(tags, list | tuple) else "no list of"
            raise DataError(
                f"{where(example)}{len(positions)} words but {count} tags. Give every word one tag."
            )
        result = np.full(length, IGNORED, np.int32)
        for tag, position in zip(tags, positions, strict=True):
            index = label_names.label_index(tag, self.labels, example, "tag")
            if position >= 0:
                result[position] = index
        return result


def _words(example: Example) -> list[str]:
    value = example["words"]
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return list(value)
    raise DataError(
        f"{where(example)}the field 'words' is not a list of texts. Split the text into words, or "
        "use the field 'text' to tag a text as it is."
    )


def _word_details(split: list[str], encoding: Encoding) -> dict[str, Any]:
    """Where each word begins in the row (-1: no piece, or cut off) and in the joined text."""
    positions = np.full(len(split), -1)
    for position in range(len(encoding.word_ids) - 1, -1, -1):
        word = encoding.word_ids[position]
        if word is not None:
            positions[word] = position
    starts = np.cumsum([0, *(len(word) + 1 for word in split)])[:-1]
    ends = starts + [len(word) for word in split]
    text = " ".join(split)
    return {"text": text, "split": True, "positions": positions, "starts": starts, "ends": ends}
