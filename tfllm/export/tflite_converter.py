"""From a Keras graph to the bytes of a .tflite file.

The model's variables are put into a plain tf.Module, saved as a SavedModel with one signature per
fixed shape, and TensorFlow's converter runs on that. (Given a Keras 3 model directly, the converter
writes a file without weights and reports no error.)
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfllm.errors import MissingExtra, SettingError
from tfllm.export.flatbuffer import version_numbers
from tfllm.export.tflite_activation_scaling import ScaledChannels, measure_ranges
from tfllm.layers.attention import EXACT_MASK, set_mask_constant
from tfllm.runtimes.quiet import quiet

Inputs = Mapping[str, np.ndarray]


@contextlib.contextmanager
def mask_constant(model: keras.Model, constant: float) -> Iterator[None]:
    """Set the number at masked attention scores for graphs that are traced inside the block.

    Args:
        model: The model.
        constant: The number, in place of EXACT_MASK.
    """
    set_mask_constant(model, constant)
    try:
        yield
    finally:
        set_mask_constant(model, EXACT_MASK)


def concrete_function(
    model: keras.Model,
    batch_size: int,
    length: int,
    output: str,
    scaled: ScaledChannels | None = None,
) -> Any:
    """Trace a model for one shape.

    Args:
        model: Inputs int32 [B, T].
        batch_size: B.
        length: T.
        output: Name of the output.
        scaled: Channels that are scaled in full int8.
    """
    specs = {name: tf.TensorSpec([batch_size, length], tf.int32, name) for name in model.input}

    def forward(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        if scaled:
            scaled.trace(inputs["padding_mask"])
        return {output: model(inputs, training=False)}

    return tf.function(forward, autograph=False).get_concrete_function(**specs)


def convert(
    functions: Mapping[str, Any],
    module: tf.Module,
    quantization: str,
    calibration: Iterable[Inputs] = (),
    custom_operations: bool = False,
    float_operations: Sequence[str] = (),
    oldest_runtime: str | None = None,
) -> bytes:
    """Return a .tflite file with one signature for each concrete function.

    Args:
        functions: Signature name -> concrete function.
        module: Owns the variables; see `variables_module`.
        quantization: A key of QUANTIZERS.
        calibration: Inputs of the first signature, for full int8.
        custom_operations: Allow operations that are not built in.
        float_operations: Operations that full int8 leaves in float32.
        oldest_runtime: Where it is older than PER_ROW_RUNTIME, an int8 matrix has one scale.

    Raises:
        SettingError: The converter cannot express the graph.
    """
    with tempfile.TemporaryDirectory(prefix="tfllm-") as directory, quiet():
        tf.saved_model.save(module, directory, signatures=dict(functions))
        names = list(functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(directory, signature_keys=names)
        converter.allow_custom_ops = custom_operations
        QUANTIZERS[quantization](converter)
        if oldest_runtime and version_numbers(oldest_runtime) < version_numbers(PER_ROW_RUNTIME):
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        inputs = list(calibration)
        if quantization in CALIBRATED:
            converter.representative_dataset = _representative_dataset(inputs, names[0])
        try:
            if quantization in CALIBRATED:
                return _convert_calibrated(converter, inputs, float_operations)
            return converter.convert()
        except MissingExtra:
            raise
        except Exception as error:  # the converter has no error class of its own
            raise SettingError(
                f"TensorFlow's converter cannot write this model as {quantization}: "
                f"{str(error).strip().splitlines()[0][:200]} Choose another quantization."
            ) from error


def _convert_calibrated(
    converter: tf.lite.TFLiteConverter, inputs: Sequence[Inputs], float_operations: Sequence[str]
) -> bytes:
    """Convert to full int8. The debugger is TensorFlow's public way to keep chosen operations in
    float32, and to correct the ranges between calibration and quantization."""
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(float_operations))
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter,
        debug_dataset=converter.representative_dataset,
        debug_options=options,
    )
    debugger.calibrated_model = measure_ranges(debugger.calibrated_model, inputs)
    return debugger.get_nondebug_quantized_model()


def _float32(converter: tf.lite.TFLiteConverter) -> None:
    """No quantization."""


def _float16(converter: tf.lite.TFLiteConverter) -> None:
    """float16 weights; computed in float32 where the processor has no float16."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _int8(converter: tf.lite.TFLiteConverter) -> None:
    """Dynamic range: int8 weights; activations are quantized at run time."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8_full(converter: tf.lite.TFLiteConverter) -> None:
    """int8 weights and int8 activations with calibrated scales."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        tf.lite.OpsSet.TFLITE_BUILTINS,
    ]


QUANTIZERS: dict[str, Callable[[tf.lite.TFLiteConverter], None]] = {
    "float32": _float32,
    "float16": _float16,
    "int8": _int8,
    "int8_full": _int8_full,
}
CALIBRATED = ("int8_full",)
PER_ROW_RUNTIME = "2.17"  # the first with a scale per row in products of float32 and int8
WEIGHT_BYTES = {"float32": 4, "float16": 2, "int8": 1, "int8_full": 1}  # of one weight in the file


def _representative_dataset(
    inputs: Sequence[Inputs], signature: str
) -> Callable[[], Iterator[tuple[str, Inputs]]]:
    """Return the generator function that the converter calls for its calibration."""
    if not inputs:
        raise SettingError("calibration: there are no examples. Give at least one.")

    def generate() -> Iterator[tuple[str, Inputs]]:
        for example in inputs:
            yield signature, dict(example)

    return generate
