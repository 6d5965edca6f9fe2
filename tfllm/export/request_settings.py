"""Generation settings that requests to a SavedModel carry: types and bounds of GenerationConfig.

Each is an input of a signature with one value per row. A call fails where a value is out of bounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import annotated_types
import numpy as np
import tensorflow as tf

from tfllm.generation.config import GenerationConfig, signature_fields
from tfllm.tasks import serving_graph

SAMPLING_SETTINGS = signature_fields("generate")
BEAM_SETTINGS = signature_fields("beam")

TOKEN_INPUTS = (
    tf.TensorSpec([None, None], tf.int32, "token_ids"),
    tf.TensorSpec([None], tf.int32, "lengths"),
)
"""Rows of token ids int32 [B, T], padded on the right, and their lengths [B]."""

# Unlike GenerationConfig, a request may ask for no token at all.
LOWER_BOUNDS = {"max_new_tokens": 0}


def tensor_specs(settings: dict[str, np.dtype]) -> list[tf.TensorSpec]:
    """Return the signature inputs of these settings, each [B]."""
    return [tf.TensorSpec([None], dtype, name) for name, dtype in settings.items()]


def constants(config: object, settings: dict[str, np.dtype], rows: tf.Tensor) -> list[tf.Tensor]:
    """Return settings as constant tensors.

    Args:
        config: Has an attribute for each setting.
        settings: Types by name.
        rows: A tensor [B], for B.

    Returns:
        [B] for each setting.
    """
    return [
        tf.fill(tf.shape(rows), tf.constant(getattr(config, name), dtype))
        for name, dtype in settings.items()
    ]


def check_settings(names: Iterable[str], values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Make the call fail, naming the input, where a setting is out of bounds.

    Args:
        names: The inputs' names.
        values: [B] each.

    Returns:
        `values`, checked.
    """
    return [_check(name, value) for name, value in zip(names, values, strict=True)]


def check_token_ids(
    token_ids: tf.Tensor, lengths: tf.Tensor, vocabulary_size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Make the call fail, naming the input, where token ids cannot be used.

    Args:
        token_ids: int32 [B, T], padded on the right.
        lengths: Tokens of each row, at most T: int32 [B].
        vocabulary_size: The ids within each row's length are below it.

    Returns:
        Both, checked.
    """
    width = tf.shape(token_ids)[1]
    fits = (lengths >= 0) & (lengths <= width)
    lengths = serving_graph.require(
        "lengths", "between 0 and the width of token_ids", lengths, fits
    )
    padding = ~tf.sequence_mask(lengths, width)
    valid = (token_ids >= 0) & (token_ids < vocabulary_size) | padding
    rule = f"between 0 and {vocabulary_size - 1}"
    return serving_graph.require("token_ids", rule, token_ids, valid), lengths


def generate_signature(
    answer: Callable[..., dict[str, tf.Tensor]],
) -> tf.types.experimental.PolymorphicFunction:
    """Build the signature `generate`, with the inputs `prompt` and SAMPLING_SETTINGS.

    Args:
        answer: Called with the prompts string [B] and the checked settings, each [B], in the order
            of SAMPLING_SETTINGS.
    """

    @serving_graph.signature(serving_graph.text_inputs("prompt") + tensor_specs(SAMPLING_SETTINGS))
    def generate(
        prompt: tf.Tensor,
        max_new_tokens: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        settings = (max_new_tokens, temperature, top_k, top_p, seed)
        return answer(prompt, *check_settings(SAMPLING_SETTINGS, settings))

    return generate


def generate_tokens_signature(
    answer: Callable[..., dict[str, tf.Tensor]], vocabulary_size: int
) -> tf.types.experimental.PolymorphicFunction:
    """Build the signature `generate_tokens`, with the inputs TOKEN_INPUTS and SAMPLING_SETTINGS.

    Args:
        answer: Called with the checked ids int32 [B, T], their lengths [B] and the settings, each
            [B], in the order of SAMPLING_SETTINGS.
        vocabulary_size: The ids are below it.
    """

    @serving_graph.signature([*TOKEN_INPUTS, *tensor_specs(SAMPLING_SETTINGS)])
    def generate_tokens(
        token_ids: tf.Tensor,
        lengths: tf.Tensor,
        max_new_tokens: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        settings = (max_new_tokens, temperature, top_k, top_p, seed)
        values = check_settings(SAMPLING_SETTINGS, settings)
        return answer(*check_token_ids(token_ids, lengths, vocabulary_size), *values)

    return generate_tokens


def _check(name: str, value: tf.Tensor) -> tf.Tensor:
    """Apply the bounds of one field of GenerationConfig."""
    conditions, rules = [], []
    finite = False
    for bound in GenerationConfig.model_fields[name].metadata:
        if isinstance(bound, annotated_types.Gt):
            conditions.append(value > bound.gt)
            rules.append(f"above {bound.gt}")
        elif isinstance(bound, annotated_types.Ge):
            lowest = LOWER_BOUNDS.get(name, bound.ge)
            conditions.append(value >= lowest)
            rules.append(f"at least {lowest}")
        elif isinstance(bound, annotated_types.Le) and bound.le != value.dtype.max:
            conditions.append(value <= bound.le)
            rules.append(f"at most {bound.le}")
        elif getattr(bound, "allow_inf_nan", True) is False:
            conditions.append(tf.math.is_finite(value))
            finite = True
    rule = " and ".join(rules)
    if finite:
        rule = " of ".join(filter(None, ["a finite number", rule]))
    valid = functools.reduce(tf.logical_and, conditions)
    return serving_graph.require(name, rule, value, valid)
