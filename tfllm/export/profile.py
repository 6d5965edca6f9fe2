"""Export profiles: what to export, and how close it must stay to the checkpoint.

A profile is one YAML file. Those of the folder `export/` are built in and known by their names.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from tfllm.config import Settings, read_yaml
from tfllm.data.read_settings import ReadSettings
from tfllm.errors import SettingError, did_you_mean
from tfllm.generation.config import GenerationConfig

PROFILE_DIRECTORY = Path(__file__).parents[1] / "packaged" / "export"

Quantization = Literal["float32", "bfloat16", "float16", "int8", "int8_full", "int4"]

DEFAULT_NUM_BEAMS = 4  # of the signature `beam`, where neither checkpoint nor profile set it
MAX_DEFAULT_CONTEXT = 2048  # tokens of a language model's artifact, where max_length is unset
AMBIGUOUS_VERSIONS = ("2.1", "2.2")  # a YAML number cannot tell them from 2.10 and 2.20

# LayerNorm and residual sums lose most when all channels share one int8 scale, and are cheap.
FLOAT_IN_INT8 = ("MEAN", "SQUARED_DIFFERENCE", "RSQRT", "NEG", "MUL", "ADD")


@dataclass(frozen=True)
class Limits:
    """Numeric limits of the checks of one artifact; the fields of Tolerance, all of them set."""

    abs_difference: float | None
    """None: raw outputs are reported only. What a difference means depends on a model's head, so
    quantized models are held to their predictions and probabilities instead."""
    agreement: float
    perplexity_increase: float
    kl_divergence: float
    regression_error: float


# float32: sums in another order move a logit by 1e-5, and the KL divergence is half its square.
# bfloat16: 8 bits of mantissa through every layer.
# int8: real models have a KL of 0.003 to 0.03; at 0.1 one most likely token in ten changes, and a
# norm's scale folded into weights gives 3. int4, groups of 32: what it costs small models.
DEFAULT_LIMITS: dict[str, Limits] = {
    "float32": Limits(1e-4, 1.0, 1e-4, 1e-5, 1e-3),
    "bfloat16": Limits(None, 0.97, 0.02, 0.02, 0.1),
    "float16": Limits(5e-2, 0.99, 1e-3, 1e-3, 0.02),
    "int8": Limits(None, 0.9, 0.02, 0.1, 0.2),
    "int8_full": Limits(None, 0.9, 0.02, 0.2, 0.2),
    "int4": Limits(None, 0.7, 0.1, 0.4, 0.2),
}


class Tolerance(Settings):
    """How far an artifact may differ from its checkpoint. Unset: DEFAULT_LIMITS by quantization."""

    abs_difference: float | None = Field(default=None, gt=0)
    """Largest absolute difference of a raw output (logit, embedding component)."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Fraction of examples with the same prediction (label, span, nearest embedding); for language
    models, fraction of positions with the same most likely next token."""
    perplexity_increase: float | None = Field(default=None, ge=0)
    """Language models: relative increase of the perplexity."""
    kl_divergence: float | None = Field(default=None, ge=0)
    """Mean KL divergence from the checkpoint's probabilities, in nats per token or prediction."""
    regression_error: float | None = Field(default=None, ge=0)
    """Regression: root mean square error relative to the standard deviation of the predictions."""
    metric_points: float = Field(default=1.0, ge=0)
    """Points of 100 that the task's headline metric may lose on `--data`."""


class Calibration(Settings):
    """Examples from which full-int8 quantization takes the range of every activation."""

    data: str | None = None
    """A data file, read as `data` says; unset: built-in sample sentences."""
    examples: int = Field(default=100, ge=1)
    """Number of examples, from the start of the file."""


def _setting(name: str) -> Any:
    """A field with the default and bounds that it has in GenerationConfig."""
    return copy(GenerationConfig.model_fields[name])


class ServingGeneration(Settings):
    """Generation settings of a SavedModel's `serving_default`, and limits of its requests."""

    max_new_tokens: int = _setting("max_new_tokens")
    """Tokens that `serving_default` generates at most."""
    temperature: float = _setting("temperature")
    """0 decodes greedily."""
    top_k: int = _setting("top_k")
    top_p: float = _setting("top_p")
    seed: int = _setting("seed")
    num_beams: int | None = Field(default=None, ge=2, le=64)
    """Encoder-decoders: width of the signature `beam`, and of the others where the checkpoint
    searches; unset: the checkpoint's own, or DEFAULT_NUM_BEAMS."""
    max_new_tokens_limit: int | None = Field(default=None, ge=1)
    """A request's `max_new_tokens` is cut to this; unset: to what the context has room for."""


def _known_targets(schema: dict[str, Any]) -> None:
    """Add the targets to the JSON Schema, for editors: each has a built-in profile."""
    documents = (read_yaml(path)[0] for path in PROFILE_DIRECTORY.glob("*.yaml"))
    schema["enum"] = sorted({document["target"] for document in documents})


class Profile(Settings):
    """What to export and how close it must stay to the checkpoint."""

    target: str = Field(json_schema_extra=_known_targets)
    """Kind of artifact: a name in tfllm.export.TARGETS."""
    quantization: Quantization = "float32"
    """Number format. tflite, mediapipe: all but bfloat16; `int8`: int8 weights, activations
    quantized at run time (dynamic range); `int8_full`: int8 activations too, calibrated; `int4`:
    language models' weights. savedmodel: float32, or bfloat16 weights and matrix products, for
    processors with bfloat16 instructions."""
    text_input: bool = False
    """tflite: the file takes text; the runtime needs TensorFlow Text's custom operations."""
    max_length: int | None = Field(default=None, ge=3)
    """Tokens of one row; unset: the task's own. tflite and mediapipe: the fixed length. Language
    models: prompt and generated text together; unset: the model's context, at most
    MAX_DEFAULT_CONTEXT."""
    extra_lengths: tuple[int, ...] = ()
    """tflite: shorter fixed lengths, one more signature each, for lower latency on short texts."""
    batch_sizes: tuple[int, ...] = (1,)
    """tflite: fixed batch sizes, one signature for each with each length."""
    prefill_lengths: tuple[int, ...] = ()
    """tflite and litertlm, language models: token counts of the prefill signatures; unset: 4, 16,
    64, 256 and 1024, up to half of max_length."""
    prompt_length: int | None = Field(default=None, ge=1)
    """tflite, language models: if set, the file holds the whole generation loop, token ids in and
    out, for prompts of at most this many tokens and max_length tokens in all."""
    generation: ServingGeneration = ServingGeneration()
    """savedmodel, language models: defaults and limits of requests."""
    xla: bool = False
    """savedmodel, language models: the generation loop is compiled by XLA, which TF Serving must
    be started for (--xla_cpu_compilation_enabled)."""
    oldest_runtime: str | None = Field(default=None, pattern=r"^\d+\.\d+(\.\d+)?$")
    """tflite, mediapipe, litertlm: the oldest TensorFlow Lite (LiteRT) version, such as "2.9",
    that must run the file. Older operation versions are used where possible, otherwise the export
    is refused. Unset: any."""
    mask_value: float | None = Field(default=None, lt=0)
    """What attention adds to masked scores; unset: -1e9, and INT8_MASK_VALUE in full int8."""
    float_operations: tuple[str, ...] = FLOAT_IN_INT8
    """tflite, mediapipe in full int8: operations that stay in float32. []: none."""
    warmup_batch_sizes: tuple[int, ...] = (1, 8, 32)
    """savedmodel: one warm-up request per signature and batch size."""
    tolerance: Tolerance = Tolerance()
    calibration: Calibration = Calibration()
    data: ReadSettings = ReadSettings()
    """How the files of `--data` and of the calibration are read: format, columns, labels. Unset,
    and the model is a run: as its recipe says."""

    @field_validator("oldest_runtime", mode="before")
    @classmethod
    def _version_text(cls, value: object) -> object:
        """YAML reads 2.16 as a number, and 2.20 as the number 2.2."""
        if isinstance(value, float):
            if str(value) in AMBIGUOUS_VERSIONS:
                raise ValueError(f'write it in quotes, "{value}" or "{value}0"')
            return str(value)
        return value

    @property
    def limits(self) -> Limits:
        """The tolerance, with the quantization's defaults where it is unset."""
        defaults = DEFAULT_LIMITS[self.quantization]
        names = Limits.__dataclass_fields__
        set_values = {name: getattr(self.tolerance, name) for name in names}
        return Limits(
            **{
                name: getattr(defaults, name) if value is None else value
                for name, value in set_values.items()
            }
        )


def profile_names() -> list[str]:
    """Return the names of the built-in profiles, sorted."""
    return sorted(path.stem for path in PROFILE_DIRECTORY.glob("*.yaml"))


def profile_path(name: str) -> Path:
    """Return the YAML file of a built-in profile, or the path `name` of a YAML file.

    Raises:
        SettingError: There is no profile of that name.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    if name not in profile_names():
        raise SettingError(
            f"--to: there is no profile '{name}'. {did_you_mean(name, profile_names())} "
            "The path of a YAML file is accepted too."
        )
    return PROFILE_DIRECTORY / f"{name}.yaml"
