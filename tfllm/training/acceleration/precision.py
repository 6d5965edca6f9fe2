"""What the arithmetic is done in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras

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


def choose(precision: str) -> str:
    """`train.precision` with "auto" resolved for this machine."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16() else "float32"


def kept(precision: str, before: Mapping[str, str]) -> str:
    """`choose`, but "auto" stays what it was `before`, where the run was started.

    TensorFlow computes in bfloat16 everywhere, only slower where the hardware has none of it.
    """
    if precision != "auto" or "precision" not in before:
        return choose(precision)
    if before["precision"] == "bfloat16" and not has_bfloat16():
        log.warning(
            "the run was started in bfloat16 and goes on in it, though this machine has no "
            "instructions for it: steps take longer here"
        )
    return before["precision"]


def has_bfloat16() -> bool:
    """Whether the GPUs, or without one the CPU, multiply bfloat16 matrices in hardware."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"  # XLA on CPUs makes no use of it
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(
            detail.get("compute_capability", (0, 0)) >= BFLOAT16_CAPABILITY for detail in details
        )
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return any(flag in flags for flag in BFLOAT16_FLAGS)


@contextlib.contextmanager
def policy(precision: str) -> Iterator[None]:
    """Layers made inside compute in this precision; the policy of before is restored after."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
