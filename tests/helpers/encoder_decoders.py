"""Tiny encoder-decoders with random weights, and how they are run in steps."""

import functools

import keras
import numpy as np

from tests.helpers.random_weights import language_model
from tfllm.models import bart, t5, transformer
from tfllm.models.encoder_decoder import EncoderDecoder, get_encoder_decoder

SHAPE = {
    "vocabulary_size": 40,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "dropout": 0.0,
}
UNEQUAL = {"num_encoder_layers": 1, "num_encoder_heads": 4, "encoder_intermediate_dim": 20}
CONFIGS = {
    "transformer": transformer.Config(max_sequence_length=16, **SHAPE),
    "transformer pre-norm": transformer.Config(
        max_sequence_length=16, pre_norm=True, tie_embeddings=False, logits_bias=False,
        scale_embeddings=False, **SHAPE,
    ),
    "transformer apart": transformer.Config(
        max_sequence_length=16, share_embeddings=False, source_vocabulary_size=30,
        activation="swish", pad_token_id=39, **UNEQUAL, **SHAPE,
    ),
    "t5": t5.Config(num_buckets=8, max_distance=6, **SHAPE),
    "t5 gated": t5.Config(
        num_encoder_layers=1, head_dim=6, gated=True, activation="gelu_new", tie_embeddings=False,
        scale_logits=False, **SHAPE,
    ),
    "t5 mt5": t5.Config(variant="mt5", scale_logits=False, **SHAPE),
    "bart": bart.Config(max_sequence_length=16, **UNEQUAL, **SHAPE),
    "bart mbart": bart.Config(
        variant="mbart", scale_embeddings=True, max_sequence_length=16, **SHAPE
    ),
}  # fmt: skip
SOURCES, TARGETS = (7, 4, 9), (5, 9, 2)  # tokens of each row


def family_of(name: str) -> str:
    return name.split()[0]


@functools.cache
def model_of(name: str) -> tuple[keras.Model, EncoderDecoder]:
    """The same model for all tests that only run it."""
    return new_model(name)


def new_model(name: str) -> tuple[keras.Model, EncoderDecoder]:
    """A model of random weights, biases and norms too: large, so that a wrong mask shows."""
    config = CONFIGS[name]
    model = language_model(family_of(name), config)
    return model, get_encoder_decoder(model, family_of(name), config)


def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """Sources and targets."""
    generator = np.random.default_rng(1)
    return [
        tuple(generator.integers(0, 30, length).astype("int32") for length in lengths)
        for lengths in zip(SOURCES, TARGETS, strict=True)
    ]


def padded(texts: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, with noise where they are padded, and mask: int32 (B, length)."""
    ids = np.random.default_rng(2).integers(0, 30, (len(texts), length)).astype("int32")
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return ids, mask


def inputs_of(pairs, source_length: int = 0, target_length: int = 0) -> dict[str, np.ndarray]:
    """Right-padded rows for the graph of training."""
    sources, targets = zip(*pairs, strict=True)
    source_ids, source_padding_mask = padded(sources, source_length or max(map(len, sources)))
    token_ids, mask = padded(targets, target_length or max(map(len, targets)))
    return {
        "source_ids": source_ids,
        "source_padding_mask": source_padding_mask,
        "token_ids": token_ids,
        "padding_mask": mask,
    }


def alone(model: keras.Model, pair) -> np.ndarray:
    """Logits (T, V) of one target by the whole model."""
    return np.asarray(model(inputs_of([pair])))[0]


def crossed_of(made: EncoderDecoder, sources: list[np.ndarray], length: int):
    """(keys and values, mask) of padded sources."""
    ids, mask = padded(sources, length)
    return made.cross_kv(made.encode(ids, mask)), mask


def stepped(decoder, targets: np.ndarray, chunks: list[int]) -> np.ndarray:
    """Logits (R, T, V) of targets (R, T) in chunks over a cache that grows."""
    cache, outputs, start = None, [], 0
    for size in chunks:
        end = start + size
        places = np.arange(end, dtype="int32")[None]
        allowed = places[:, None, :] <= places[:, start:, None]
        hidden, new = decoder(targets[:, start:end], places[:, start:], allowed, cache)
        outputs.append(np.asarray(decoder.logits(hidden)))
        cache = new if cache is None else tuple(
            tuple(np.concatenate(pair, 2) for pair in zip(old, added, strict=True))
            for old, added in zip(cache, new, strict=True)
        )  # fmt: skip
        start = end
    return np.concatenate(outputs, 1)
