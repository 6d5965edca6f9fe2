"""The private parts of TensorFlow Text that tfllm uses: its SentencePiece operations.

The public `tensorflow_text.SentencepieceTokenizer` leaves the name of its resource to TensorFlow.
In a saved model that name is the same for every tokenizer, so that the second of two, in one model
or in two models of one process, silently answers with the vocabulary of the first. The operations
below take the name as an argument. setup.cfg pins the versions that they were tested with,
TENSORFLOW_TEXT; tests/tokenizers/test_internals.py fails when another version has changed them.
"""

from __future__ import annotations

from types import ModuleType

import tensorflow as tf

# The tested range, as in setup.cfg: from the first, below the second.
TENSORFLOW_TEXT = ("2.21", "2.22")
# nbest_size, alpha, add_bos, add_eos, reverse: deterministic, without special tokens.
DETERMINISTIC = (0, 1.0, False, False, False)


def create_sentencepiece(model: bytes, shared_name: str) -> tf.Tensor:
    """Create the resource of a parsed model, or find the one of this name.

    Args:
        model: A serialized ModelProto.
        shared_name: The name of the resource, unique to the model.

    Returns:
        The handle of the resource: a scalar of dtype resource.
    """
    return _operations().sentencepiece_op(model=model, shared_name=shared_name)


def sentencepiece_tokenize(
    resource: tf.Tensor, texts: tf.Tensor, out_type: tf.DType
) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokenize texts.

    Args:
        resource: The model.
        texts: UTF-8 string [P].
        out_type: tf.int32 for ids, tf.string for pieces.

    Returns:
        Ids or pieces [M], and row splits int64 [P + 1].
    """
    return _operations().sentencepiece_tokenize_op(resource, texts, *DETERMINISTIC, out_type)


def sentencepiece_tokenize_with_offsets(
    resource: tf.Tensor, texts: tf.Tensor, out_type: tf.DType
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Tokenize texts, with offsets.

    Args:
        resource: The model.
        texts: UTF-8 string [P].
        out_type: tf.int32 for ids, tf.string for pieces.

    Returns:
        Ids or pieces [M]; row splits int64 [P + 1]; the bytes of the text where tokens start and
        end, int32 [M] each.
    """
    return _operations().sentencepiece_tokenize_with_offsets_op(
        resource, texts, *DETERMINISTIC, out_type
    )


def sentencepiece_detokenize(
    resource: tf.Tensor, values: tf.Tensor, row_splits: tf.Tensor
) -> tf.Tensor:
    """Decode tokens to UTF-8 string [B].

    Args:
        resource: The model.
        values: Ids or pieces [M].
        row_splits: int64 [B + 1].
    """
    return _operations().sentencepiece_detokenize_op(
        resource, values, row_splits, False, False, False
    )


def _operations() -> ModuleType:
    from tensorflow_text.python.ops import sentencepiece_tokenizer

    return sentencepiece_tokenizer.gen_sentencepiece_tokenizer
