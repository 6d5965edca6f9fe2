"""tf-text's SentencePiece operations over one model, named by its content.

tf-text's own `SentencepieceTokenizer` leaves the resource's name to TensorFlow. In a saved model
that name is the same for every tokenizer, so that the second of two, in one model or in two models
of one process, silently answers with the first one's vocabulary.
"""

from __future__ import annotations

import hashlib
from typing import Any

import tensorflow as tf

# Number of best results, smoothing, start and end tokens, reversed: plain tokenization.
PLAIN = (0, 1.0, False, False, False)


class _Model(tf.saved_model.experimental.TrackableResource):
    """The parsed model, made again wherever a saved model is loaded."""

    def __init__(self, model: bytes):
        super().__init__()
        self._model = model
        self._shared_name = f"sentencepiece_{hashlib.sha256(model).hexdigest()}"
        _ = self.resource_handle  # made now

    def _create_resource(self) -> Any:
        return _operations().sentencepiece_op(model=self._model, shared_name=self._shared_name)


class SentencePieceKernel(tf.Module):
    """Texts to ids and back. `model` is a serialized ModelProto."""

    out_type = tf.int32  # tf.string: pieces, which `_numbers` makes ids of

    def __init__(self, model: bytes):
        super().__init__()
        with tf.init_scope():
            self._resource = _Model(model)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """UTF-8 string [P] to ids, ragged int32 [P, None]."""
        values, splits = _operations().sentencepiece_tokenize_op(
            self._resource.resource_handle, texts, *PLAIN, self.out_type
        )
        return tf.RaggedTensor.from_row_splits(self._numbers(values), splits, validate=False)

    def tokenize_with_offsets(
        self, texts: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """UTF-8 string [P] to ids and the bytes where tokens start and end, ragged [P, None]."""
        values, splits, starts, ends = _operations().sentencepiece_tokenize_with_offsets_op(
            self._resource.resource_handle, texts, *PLAIN, self.out_type
        )
        ids, first, last = (
            tf.RaggedTensor.from_row_splits(part, splits, validate=False)
            for part in (self._numbers(values), starts, ends)
        )
        return ids, first, last

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None], or pieces string [B, None], to UTF-8 string [B]."""
        return _operations().sentencepiece_detokenize_op(
            self._resource.resource_handle, ids.flat_values, ids.row_splits, False, False, False
        )

    def _numbers(self, values: tf.Tensor) -> tf.Tensor:
        """What the operation gives, of `out_type` [M], to ids int32 [M]."""
        return values


def _operations() -> Any:
    from tensorflow_text.python.ops import sentencepiece_tokenizer

    return sentencepiece_tokenizer.gen_sentencepiece_tokenizer
