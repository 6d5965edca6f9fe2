"""Random decoders for tests, with ways to run them that must agree."""

import functools

import keras
import numpy as np

from tests.helpers.random_weights import VECTORS, language_model
from tfllm.models import gemma, gpt2, gpt_neox, llama, opt
from tfllm.models.decoder import Decoder, get_decoder

SHAPE = {
    "vocabulary_size": 40,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 20,
    "max_sequence_length": 16,
    "initializer_range": 0.3,  # large, so that a wrong mask shows
}
CONFIGS = {
    "gpt2": gpt2.Config(**SHAPE),
    "gpt2 untied": gpt2.Config(tie_embeddings=False, **SHAPE),
    "llama": llama.Config(num_key_value_heads=2, tie_embeddings=False, **SHAPE),
    "llama mistral": llama.Config(
        variant="mistral", num_key_value_heads=2, sliding_window=3, tie_embeddings=False, **SHAPE
    ),
    "llama qwen2": llama.Config(
        variant="qwen2",
        qkv_bias=True,
        sliding_window=4,
        layer_types=("full_attention", "sliding_attention"),
        **SHAPE,
    ),
    "llama qwen3": llama.Config(
        variant="qwen3",
        num_key_value_heads=1,
        head_dim=6,
        query_key_norm=True,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        **SHAPE,
    ),
    "llama smollm3": llama.Config(
        variant="smollm3", num_key_value_heads=2, rotary_layers=(True, False), sliding_window=3,
        layer_types=("full_attention", "sliding_attention"), **SHAPE,
    ),
    "llama granite": llama.Config(
        variant="granite", num_key_value_heads=2, embedding_scale=1.5, query_scale=0.3,
        residual_scale=0.7, logits_scale=0.4, tie_embeddings=False, **SHAPE,
    ),
    "llama olmo2": llama.Config(
        variant="olmo2", num_key_value_heads=2, query_key_norm=True, tie_embeddings=False, **SHAPE
    ),
    "llama phi3": llama.Config(
        variant="phi3", num_key_value_heads=2, partial_rotary_factor=0.5, sliding_window=4,
        rope_scaling={
            "rope_type": "longrope", "short_factor": [2.0], "long_factor": [9.0], "factor": 2.0,
            "original_max_position_embeddings": 16,
        },
        **SHAPE,
    ),
    "gemma": gemma.Config(variant="gemma", num_key_value_heads=2, head_dim=6, **SHAPE),
    "gemma 2": gemma.Config(
        variant="gemma2", num_key_value_heads=2, head_dim=6, query_scalar=9.0, sliding_window=4,
        attention_softcap=2.0, logits_softcap=3.0, **SHAPE,
    ),
    "gemma 3": gemma.Config(
        head_dim=6, query_scalar=9.0, sliding_window=4, rope_theta=500.0, local_rope_theta=50.0,
        layer_types=("sliding_attention", "full_attention"), **SHAPE,
    ),
    "gpt_neox": gpt_neox.Config(partial_rotary_factor=0.5, **SHAPE),
    "gpt_neox sequential": gpt_neox.Config(
        partial_rotary_factor=1.0, parallel_residual=False, attention_bias=False,
        tie_embeddings=True, **SHAPE,
    ),
    "opt": opt.Config(**SHAPE),
    "opt post-norm": opt.Config(embedding_dim=12, pre_norm=False, **SHAPE),
    "opt untied": opt.Config(bias=False, tie_embeddings=False, activation="gelu", **SHAPE),
}  # fmt: skip
LENGTHS = (9, 4, 7)


def family_of(name: str) -> str:
    return name.split()[0]


@functools.cache
def model_of(name: str) -> tuple[keras.Model, Decoder]:
    """The same model for all tests that only run it."""
    return new_model(name)


def new_model(name: str) -> tuple[keras.Model, Decoder]:
    """A causal language model with random weights, biases and norms too."""
    config = CONFIGS[name]
    model = language_model(family_of(name), config, VECTORS)
    return model, get_decoder(model, family_of(name), config)


def rows() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 40, length).astype("int32") for length in LENGTHS]


def padded(texts: list[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Right-padded rows of one segment each."""
    ids, mask = np.zeros((2, len(texts), length), "int32")
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"token_ids": ids, "padding_mask": mask}


def alone(model: keras.Model, text: np.ndarray) -> np.ndarray:
    """Logits (T, V) of one text by the whole model."""
    return np.asarray(model(padded([text], len(text))))[0]


def stepped(made: Decoder, text: np.ndarray, chunks: list[int]) -> np.ndarray:
    """Logits (T, V) of one text in chunks over a cache."""
    cache, outputs, start = None, [], 0
    for size in chunks:
        end = start + size
        places = np.arange(end, dtype="int32")[None]
        allowed = places[:, None, :] <= places[:, start:, None]
        seen = made.layer_masks(allowed, places[:, start:], places)
        hidden, new = made(text[None, start:end], places[:, start:], seen, cache)
        outputs.append(np.asarray(made.logits(hidden))[0])
        cache = new if cache is None else tuple(
            tuple(np.concatenate(pair, 2) for pair in zip(old, added, strict=True))
            for old, added in zip(cache, new, strict=True)
        )  # fmt: skip
        start = end
    return np.concatenate(outputs)
