"""A tiny decoder in plain TensorFlow that keeps the contract of models/decoding.py."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf


class FakeDecoder(tf.Module):
    """Two layers of attention with learned positions and grouped heads; random weights."""

    def __init__(self, vocabulary_size=61, window=None, places=256, seed=0):
        super().__init__()
        self.num_layers, self.num_heads, self.num_key_value_heads, self.head_dim = 2, 4, 2, 8
        self.vocabulary_size, self.window, self.max_sequence_length = (
            vocabulary_size,
            window,
            places,
        )
        self.family, self.config = "fake", None
        draw = np.random.default_rng(seed)
        width, shared = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim

        def weight(*shape):
            return tf.Variable(draw.normal(0, shape[0] ** -0.5, shape).astype("float32"))

        self.embedding = tf.Variable(draw.normal(0, 1, (vocabulary_size, width)).astype("float32"))
        self.head = tf.Variable(draw.normal(0, 0.5, (width, vocabulary_size)).astype("float32"))
        self.position = tf.Variable(draw.normal(0, 1, (places, width)).astype("float32"))
        self.query = [weight(width, width) for _ in range(2)]
        self.key_value = [weight(width, 2 * shared) for _ in range(2)]
        self.out = [weight(width, width) for _ in range(2)]
        self.calls = 0

    def __call__(self, token_ids, positions, allowed, cache=None):
        self.calls += 1
        x = tf.gather(self.embedding, token_ids) + tf.gather(self.position, positions)
        new = []
        for i in range(self.num_layers):
            x, fresh = self.layer(i, x, allowed, None if cache is None else cache[i])
            new.append(fresh)
        return x, tuple(new)

    def layer(self, i, x, allowed, cached):
        batch, length = tf.shape(x)[0], x.shape[1] or tf.shape(x)[1]

        def split(values, heads):
            shaped = tf.reshape(values, [batch, length, heads, self.head_dim])
            return tf.transpose(shaped, [0, 2, 1, 3])

        queries = split(x @ self.query[i], self.num_heads)
        keys, values = tf.split(x @ self.key_value[i], 2, axis=-1)
        keys = split(keys, self.num_key_value_heads)
        values = split(values, self.num_key_value_heads)
        fresh = (keys, values)
        if callable(cached):
            keys, values = cached(keys, values)
        elif cached is not None:
            keys = tf.concat([cached[0], keys], axis=2)
            values = tf.concat([cached[1], values], axis=2)
        groups = self.num_heads // self.num_key_value_heads
        keys, values = (tf.repeat(one, groups, axis=1) for one in (keys, values))
        scores = tf.matmul(queries, keys, transpose_b=True) * self.head_dim**-0.5
        scores = tf.where(allowed[:, None], scores, -1e9)
        mixed = tf.matmul(tf.nn.softmax(scores), values)
        mixed = tf.reshape(
            tf.transpose(mixed, [0, 2, 1, 3]), [batch, length, self.num_heads * self.head_dim]
        )
        return x + tf.nn.tanh(mixed @ self.out[i]), fresh

    def layer_masks(self, allowed, positions, key_positions):
        if self.window is None:
            return allowed
        near = positions[:, :, None] - key_positions[:, None] < self.window
        return tf.logical_and(allowed, near)

    def logits(self, hidden):
        return tf.matmul(hidden, self.head)

    def reference(self, ids):
        """Logits [T, V] of the whole sequence at once, without a cache."""
        place = np.arange(len(ids))
        positions = tf.constant([place], tf.int32)
        allowed = self.layer_masks((place[None] <= place[:, None])[None], positions, positions)
        hidden, _ = self(tf.constant([ids]), positions, allowed)
        return self.logits(hidden)[0].numpy()


@pytest.fixture
def decoder():
    return FakeDecoder()
