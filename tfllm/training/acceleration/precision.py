"""The precision of the layers' arithmetic (`train.precision`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

import keras
import tensorflow as tf

from tfllm import machine

log = logging.getLogger(__name__)

POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}
# CPU flags of matrix products in bfloat16 (Linux's names): AVX-512 and Intel's tiles.
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
# The first generation of NVIDIA GPUs with bfloat16 (Ampere).
BFLOAT16_CAPABILITY = (8, 0)


def choose(precision: str, before: Mapping[str, str] | None = None) -> str:
    """Resolve "auto" of `train.precision` for this machine.

    Args:
        precision: The setting.
        before: Resolved settings of the run to resume ("precision"), which stay. TensorFlow
            computes in bfloat16 everywhere, only slower without hardware for it.

    Returns:
        A key of POLICIES.
    """
    if precision != "auto":
        return precision
    if before is None or "precision" not in before:
        return "bfloat16" if has_bfloat16() else "float32"
    if before["precision"] == "bfloat16" and not has_bfloat16():
        log.warning(
            "the run was started in bfloat16 and continues in it, though this machine has no "
            "instructions for it: steps take longer here"
        )
    return before["precision"]


def has_bfloat16() -> bool:
    """Return whether the GPUs, or without one the CPU, multiply bfloat16 matrices in hardware."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"  # XLA on CPUs makes no use of it
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(
            detail.get("compute_capability", (0, 0)) >= BFLOAT16_CAPABILITY for detail in details
        )
    return not machine.cpu_flags().isdisjoint(BFLOAT16_FLAGS)


@contextlib.contextmanager
def policy(precision: str) -> Iterator[None]:
    """Set the dtype policy for layers created inside the block; restore it after.

    Args:
        precision: A key of POLICIES.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
