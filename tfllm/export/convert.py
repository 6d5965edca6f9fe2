"""From a Keras graph to the bytes of a .tflite file.

The way that keeps the weights: a plain tf.Module holding the model's variables, saved as a
SavedModel with one signature per fixed shape, then TensorFlow's converter on that. (Given a Keras 3
model directly, the converter writes a file without weights and reports no error.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfllm.errors import MissingExtra, SettingError
from tfllm.export.flatbuffer import as_numbers
from tfllm.export.int8 import ScaledChannels, with_true_ranges
from tfllm.keras_internals import backend_variable
from tfllm.runtimes.quiet import quiet

Inputs = Mapping[str, np.ndarray]


def function(
    model: Any, batch: int, length: int, output: str, scaled: ScaledChannels | None = None
) -> Any:
    """A tf.function over one fixed shape: the model's inputs int32 [batch, length] to `output`."""
    import tensorflow as tf

    specs = {name: tf.TensorSpec([batch, length], tf.int32, name) for name in model.input}

    def forward(**inputs: Any) -> dict[str, Any]:
        if scaled:
            scaled.trace(inputs["padding_mask"])
        return {output: model(inputs, training=False)}

    return tf.function(forward, autograph=False).get_concrete_function(**specs)


def keeper(model: Any) -> Any:
    """A tf.Module that owns the model's variables."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [backend_variable(weight) for weight in model.weights]
    return module


def convert(
    functions: Mapping[str, Any],
    kept: Any,
    quantization: str,
    calibration: Iterable[Inputs] = (),
    custom: bool = False,
    in_float: Sequence[str] = (),
    oldest_runtime: str | None = None,
) -> bytes:
    """A .tflite file with one signature for each function in `functions`.

    `kept` is the tf.Module that owns the variables. `calibration`: inputs of the first signature.
    `custom` lets operations through that are not built in; `in_float` names those that full int8
    leaves in float32. A runtime older than ROWS_RUNTIME has one scale for a whole int8 matrix.
    Raises SettingError when the converter cannot express the graph.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="tfllm-") as folder, quiet():
        tf.saved_model.save(kept, folder, signatures=dict(functions))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.allow_custom_ops = custom
        QUANTIZERS[quantization](converter)
        if oldest_runtime and as_numbers(oldest_runtime) < as_numbers(ROWS_RUNTIME):
            converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        if quantization in CALIBRATED:
            inputs = list(calibration)
            converter.representative_dataset = _feeder(inputs, next(iter(functions)))
        try:
            if quantization in CALIBRATED:
                return _calibrated(converter, inputs, in_float)
            return converter.convert()
        except MissingExtra:
            raise
        except Exception as error:  # the converter has no error class of its own
            raise SettingError(
                f"TensorFlow's converter cannot write this model as {quantization}: "
                f"{str(error).strip().splitlines()[0][:200]} Choose another quantization."
            ) from error


def _calibrated(converter: Any, inputs: Sequence[Inputs], in_float: Sequence[str]) -> bytes:
    """Full int8. The debugger is TensorFlow's public way to keep chosen operations in float32, and
    to put the ranges right between calibration and quantization."""
    import tensorflow as tf

    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(in_float))
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter,
        debug_dataset=converter.representative_dataset,
        debug_options=options,
    )
    debugger.calibrated_model = with_true_ranges(debugger.calibrated_model, inputs)
    return debugger.get_nondebug_quantized_model()


def _float32(converter: Any) -> None:
    """Numbers as they are."""


def _float16(converter: Any) -> None:
    """Weights in half precision; computed in float32 where the processor has no float16."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _int8(converter: Any) -> None:
    """Dynamic range: int8 weights; an activation gets its scale when it is there."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _int8_full(converter: Any) -> None:
    """int8 weights and int8 activations, whose scales are calibrated."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        tf.lite.OpsSet.TFLITE_BUILTINS,
    ]


QUANTIZERS: dict[str, Callable[[Any], None]] = {
    "float32": _float32,
    "float16": _float16,
    "int8": _int8,
    "int8_full": _int8_full,
}
CALIBRATED = ("int8_full",)
ROWS_RUNTIME = "2.17"  # the first with a scale a row in products of float32 and int8
# Bytes of one weight in the file.
WEIGHT_BYTES = {"float32": 4, "float16": 2, "int8": 1, "int8_full": 1}


def _feeder(inputs: list[Inputs], signature: str) -> Callable[[], Iterator[tuple[str, Inputs]]]:
    """What the converter calls for its calibration."""
    if not inputs:
        raise SettingError("calibration: there are no examples. Give at least one.")

    def feed() -> Iterator[tuple[str, Inputs]]:
        for one in inputs:
            yield signature, dict(one)

    return feed
