"""One SentencePiece model as TensorFlow operations, in a resource that is named by its content."""

from __future__ import annotations

import hashlib

import tensorflow as tf

from tfllm.tokenizers.graph import tf_text_internals


class _ModelResource(tf.saved_model.experimental.TrackableResource):
    """The parsed model, created again wherever a saved model is loaded."""

    def __init__(self, model: bytes):
        super().__init__()
        self._model = model
        self._shared_name = f"sentencepiece_{hashlib.sha256(model).hexdigest()}"
        _ = self.resource_handle  # creates the resource now

    def _create_resource(self) -> tf.Tensor:
        return tf_text_internals.create_sentencepiece(self._model, self._shared_name)


class SentencePieceKernel(tf.Module):
    """Tokenizes and detokenizes texts with tf-text's SentencePiece operations.

    Args:
        model: A serialized ModelProto.
    """

    out_type = tf.int32
    """What the operations return: ids, or pieces (tf.string), which `_to_ids` converts."""

    def __init__(self, model: bytes):
        super().__init__()
        with tf.init_scope():
            self._resource = _ModelResource(model)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize UTF-8 string [P] to ids, ragged int32 [P, None]."""
        values, splits = tf_text_internals.sentencepiece_tokenize(
            self._resource.resource_handle, texts, self.out_type
        )
        return tf.RaggedTensor.from_row_splits(self._to_ids(values), splits, validate=False)

    def tokenize_with_offsets(
        self, texts: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Tokenize UTF-8 string [P] to ids and the bytes where they start and end: [P, None]."""
        values, splits, starts, ends = tf_text_internals.sentencepiece_tokenize_with_offsets(
            self._resource.resource_handle, texts, self.out_type
        )
        ids, first, last = (
            tf.RaggedTensor.from_row_splits(part, splits, validate=False)
            for part in (self._to_ids(values), starts, ends)
        )
        return ids, first, last

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None], or pieces string [B, None], to UTF-8 string [B]."""
        return tf_text_internals.sentencepiece_detokenize(
            self._resource.resource_handle, ids.flat_values, ids.row_splits
        )

    def _to_ids(self, values: tf.Tensor) -> tf.Tensor:
        """Convert what the operations return, of `out_type` [M], to ids int32 [M]."""
        return values
