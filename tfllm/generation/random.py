"""Random bits as a function of (seed, row, position): the same text for one seed everywhere.

TensorFlow's own generators give other numbers under XLA, and LiteRT has none. This one is a hash of
its counters, made of three operations on uint32 that TensorFlow and LiteRT both have built in
(xor, logical shift right, multiplication modulo 2^32), so that Python, a SavedModel in C and a
phone draw the same numbers:

    mix(x):  x ^= x >> 16;  x *= 0x7feb352d;  x ^= x >> 15;  x *= 0x846ca68b;  x ^= x >> 16
    bits  =  mix(mix(mix(seed ^ 0x9e3779b9) ^ row) ^ position)

`mix` is the permutation "lowbias32" of C. Wellons' hash-prospector (2018, public domain). For one
seed and row all 2^32 positions give different numbers.

It is for sampling text, not for secrets.
"""

from __future__ import annotations

import tensorflow as tf

SALT = 0x9E3779B9  # 2^32 divided by the golden ratio: keeps seed 0 away from mix's fixed point 0
MIXING = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None))

RANDOM_BITS = 30  # of `uniform`
HALF_BITS = 15
HALF = 1 << HALF_BITS


def uniform(seed: tf.Tensor, row: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Draw numbers in [0, 2^30): int32, one for each entry of the arguments, which broadcast.

    Args:
        seed: int32.
        row: The number of the text: int32.
        position: The position of the token: int32.
    """
    shift = tf.constant(32 - RANDOM_BITS, tf.uint32)
    return tf.bitcast(tf.bitwise.right_shift(bits(seed, row, position), shift), tf.int32)


def bits(seed: tf.Tensor, row: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Draw random uint32 bits, one for each entry of the arguments, which broadcast.

    Args:
        seed: int32.
        row: The number of the text: int32.
        position: The position of the token: int32.
    """
    value = _mix(_xor(_unsigned(seed), tf.constant(SALT, tf.uint32)))
    value = _mix(_xor(value, _unsigned(row)))
    return _mix(_xor(value, _unsigned(position)))


def below(number: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """Scale a draw to [0, total): floor(number * total / 2^30), exact without 64-bit integers.

    Args:
        number: int32 in [0, 2^30), a draw of `uniform`.
        total: int32 in [1, 2^30].
    """
    number_high, number_low = _halves(number)
    total_high, total_low = _halves(total)
    # The product is high * 2^30 + middle * 2^15 + low; every term here stays below 2^31.
    low = (number_low * total_low) // HALF
    middle = (number_high * total_low + (number_low * total_high + low)) // HALF
    return number_high * total_high + middle


def _halves(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    high = number // HALF
    return high, number - high * HALF


def _mix(value: tf.Tensor) -> tf.Tensor:
    for shift, factor in MIXING:
        value = _xor(value, tf.bitwise.right_shift(value, tf.constant(shift, tf.uint32)))
        if factor is not None:
            value = value * tf.constant(factor, tf.uint32)
    return value


def _unsigned(number: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.convert_to_tensor(number, tf.int32), tf.uint32)


def _xor(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(*_broadcast(first, second))


def _broadcast(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """LiteRT's xor wants equal shapes, or a scalar."""
    if first.shape == second.shape or first.shape.rank == 0 or second.shape.rank == 0:
        return first, second
    shape = tf.broadcast_dynamic_shape(tf.shape(first), tf.shape(second))
    return tf.broadcast_to(first, shape), tf.broadcast_to(second, shape)
