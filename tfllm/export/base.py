"""What to export (Profile), what was written (Artifact), and the checks between them.

A profile is a YAML file of `export/` or one of the names in PROFILES, which are the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from tfllm import config
from tfllm.config import Settings
from tfllm.data.read_settings import ReadSettings
from tfllm.errors import SettingError, did_you_mean

Quantization = Literal["float32", "bfloat16", "float16", "int8", "int8_full", "int4"]

# Largest difference of a raw output from the checkpoint's, and share of rows with the same answer.
# A model's head decides what a difference means, so quantized models are held to the answers alone.
TOLERANCES: dict[str, tuple[float | None, float]] = {
    "float32": (1e-4, 1.0),
    "bfloat16": (None, 0.97),  # 8 bits of mantissa through every layer
    "float16": (5e-2, 0.99),
    "int8": (None, 0.9),
    "int8_full": (None, 0.9),
    "int4": (None, 0.7),
}
# How much worse the perplexity of a model that writes may be, as a share of the checkpoint's.
PERPLEXITY_RISES = {
    "float32": 1e-4,
    "bfloat16": 0.02,
    "float16": 1e-3,
    "int8": 0.02,
    "int4": 0.1,
}

# KL divergence of the file's probabilities from the checkpoint's, in nats a token (or an answer).
# float32: sums in another order move a logit by 1e-5, and the divergence is half a square of it.
# int8: real models have 0.003 to 0.03; at 0.1 one likeliest token in ten changes, and a norm's
# scale folded into weights gives 3. int4 in groups of 32 is given what it costs small models.
DIVERGENCES = {
    "float32": 1e-5,
    "bfloat16": 0.02,
    "float16": 1e-3,
    "int8": 0.1,
    "int8_full": 0.2,
    "int4": 0.4,
}
# Numbers of a regression: their error's root mean square for the deviation of the numbers.
SPREADS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02, "int8": 0.2, "int8_full": 0.2}

BEAMS = 4  # of the signature `beam`, where neither checkpoint nor profile say
AMBIGUOUS = ("2.1", "2.2")  # versions that a number cannot tell from 2.10 and 2.20
LONGEST_CONTEXT = 2048  # tokens of a language model's artifact, where the profile says nothing

# Norms and residual sums lose most when all channels share one int8 scale, and are little work.
FLOAT_IN_INT8 = ("MEAN", "SQUARED_DIFFERENCE", "RSQRT", "NEG", "MUL", "ADD")


class Tolerance(Settings):
    """How far an artifact may lie from its checkpoint. Unset: by the quantization (TOLERANCES)."""

    difference: float | None = Field(default=None, gt=0)
    """Largest absolute difference of a raw output (logit, embedding component)."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of the rows that must have the same answer (label, span, nearest sentence); of a
    language model, of the tokens that must be followed by the same likeliest one."""
    perplexity_rise: float | None = Field(default=None, ge=0)
    """Models that write: how much worse the perplexity may be, as a share (PERPLEXITY_RISES)."""
    divergence: float | None = Field(default=None, ge=0)
    """KL divergence from the checkpoint's probabilities, in nats a token or an answer
    (DIVERGENCES)."""
    spread: float | None = Field(default=None, ge=0)
    """Regressions: how far numbers may lie from the checkpoint's, as a share of their own deviation
    (SPREADS)."""
    metric_points: float = Field(default=1.0, ge=0)
    """How many points of 100 the task's metric may fall on `--data`."""


class Calibration(Settings):
    """The examples by which full-int8 quantization finds the range of every activation."""

    data: str | None = None
    """A data file, read as `data` says; unset: tfllm's own sentences."""
    examples: int = Field(default=100, ge=1)
    """How many examples are taken, from the start of the file."""


class Generation(Settings):
    """How a SavedModel's `serving_default` writes, and what its requests may ask for."""

    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens that `serving_default` writes at most."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """0 takes the likeliest token each time."""
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    num_beams: int | None = Field(default=None, ge=2, le=64)
    """Models that read sources: the width of the signature `beam`, and of the others where the
    checkpoint searches; unset: the checkpoint's own, or BEAMS."""
    most_new_tokens: int | None = Field(default=None, ge=1)
    """What `max_new_tokens` of a request is cut to; unset: what the window has room for."""


class Profile(Settings):
    """What to export and how exact it must be."""

    target: Literal["savedmodel", "tflite", "mediapipe", "litertlm"]
    """The kind of artifact: a name in tfllm.export.TARGETS."""
    quantization: Quantization = "float32"
    """Numbers in the file. tflite, mediapipe: all but bfloat16; `int8`: weights only, computed in
    float32 (dynamic range); `int8_full`: activations too, calibrated; `int4`: language models'
    weights. savedmodel: float32, or bfloat16 in weights and matrix products, for processors that
    multiply it in hardware."""
    text: bool = False
    """tflite: takes the text itself; needs a runtime with TensorFlow Text's custom operations."""
    max_length: int | None = Field(default=None, ge=3)
    """Tokens of one row; unset: the task's own. tflite and mediapipe: the fixed length. Language
    models: prompt and text together; unset: the model's window, at most LONGEST_CONTEXT."""
    lengths: tuple[int, ...] = ()
    """tflite: shorter fixed lengths, one more signature each, for quick answers to short texts."""
    batch_sizes: tuple[int, ...] = (1,)
    """tflite: the fixed batch sizes, one signature for each with each length."""
    prefill_lengths: tuple[int, ...] = ()
    """tflite and litertlm, language models: in rows of how many tokens prompts are read; unset: 4,
    16, 64, 256 and 1024, as far as half of max_length goes."""
    prompt_length: int | None = Field(default=None, ge=1)
    """tflite, language models: set, the file writes whole texts in one call, token ids in and out,
    from prompts of at most so many tokens up to max_length."""
    generation: Generation = Generation()
    """savedmodel, language models: the defaults and limits of requests."""
    xla: bool = False
    """savedmodel, language models: writing is compiled by XLA, which TF Serving must be started
    for (--xla_cpu_compilation_enabled)."""
    oldest_runtime: str | None = Field(default=None, pattern=r"^\d+\.\d+(\.\d+)?$")
    """tflite, mediapipe, litertlm: the TensorFlow Lite (LiteRT) version, such as "2.9", that the
    file has to run in. Older forms of operations are taken where there are any; else the export is
    refused. Unset: any."""
    mask_constant: float | None = Field(default=None, lt=0)
    """What attention adds to masked scores; unset: exact, and INT8_MASK in full int8."""
    float_operations: tuple[str, ...] = FLOAT_IN_INT8
    """tflite, mediapipe in full int8: operations that stay in float32. None of them: []."""
    warmup_batch_sizes: tuple[int, ...] = (1, 8, 32)
    """savedmodel: one warm-up record per signature and batch size."""
    tolerance: Tolerance = Tolerance()
    calibration: Calibration = Calibration()
    data: ReadSettings = ReadSettings()
    """How the files of `--data` and of the calibration are read: format, columns, labels. Unset,
    and the model is a run: as its recipe says."""

    @field_validator("oldest_runtime", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML reads 2.16 as a number, and 2.20 as the number 2.2."""
        if isinstance(value, float):
            if str(value) in AMBIGUOUS:
                raise ValueError(f'write it in quotes, "{value}" or "{value}0"')
            return str(value)
        return value

    @property
    def perplexity_rise(self) -> float:
        """The limit on a language model's perplexity, as a share."""
        given = self.tolerance.perplexity_rise
        return PERPLEXITY_RISES[self.quantization] if given is None else given

    @property
    def largest_divergence(self) -> float:
        """The limit on the KL divergence from the checkpoint."""
        given = self.tolerance.divergence
        return DIVERGENCES[self.quantization] if given is None else given

    @property
    def largest_spread(self) -> float:
        """The limit on the error of a regression's numbers, as a share of their deviation."""
        given = self.tolerance.spread
        return SPREADS[self.quantization] if given is None else given

    @property
    def largest_difference(self) -> float | None:
        """The limit on raw outputs, or None where only answers count."""
        return self.tolerance.difference or TOLERANCES[self.quantization][0]

    @property
    def least_agreement(self) -> float:
        """The limit on the share of equal answers."""
        given = self.tolerance.agreement
        return TOLERANCES[self.quantization][1] if given is None else given


PROFILES: dict[str, dict[str, Any]] = {
    "savedmodel": {"target": "savedmodel"},
    "savedmodel-bfloat16": {"target": "savedmodel", "quantization": "bfloat16"},
    "tflite-float32": {"target": "tflite"},
    "tflite-float16": {"target": "tflite", "quantization": "float16"},
    "tflite-int8": {"target": "tflite", "quantization": "int8"},
    "tflite-int8-full": {"target": "tflite", "quantization": "int8_full"},
    "tflite-text": {"target": "tflite", "text": True},
    "mediapipe": {"target": "mediapipe"},
    "tflite-int4": {"target": "tflite", "quantization": "int4"},
    "tflite-loop": {"target": "tflite", "prompt_length": 64},
    "litertlm": {"target": "litertlm"},
    "litertlm-int8": {"target": "litertlm", "quantization": "int8"},
    "savedmodel-xla": {"target": "savedmodel", "xla": True},
}


def profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """The profile called `name`, or read from the YAML file `name`, with `key=value` overrides.

    Raises SettingError naming the known profiles.
    """
    if name in PROFILES:
        source = f"profile {name}"
        return config.build(PROFILES[name], Profile, source=source, overrides=overrides)
    if Path(name).suffix in (".yaml", ".yml"):
        return config.load(name, Profile, overrides)
    raise SettingError(
        f"--to: there is no profile '{name}'. {did_you_mean(name, PROFILES)} "
        "A YAML file of your own goes too."
    )


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, what came out, and what would have been right."""

    name: str
    value: str
    limit: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.value} (limit: {self.limit})"


def stated(name: str, value: str) -> Check:
    """A fact worth a line that no limit stands against."""
    return Check(name, value, "", True)


def at_most(name: str, value: float, limit: float | None, unit: str = "") -> Check:
    """A number with an upper limit; not-a-number never passes. No limit: stated only."""
    shown = f"{value:.3g}{unit}"
    if limit is None:
        return Check(name, shown, "", bool(value == value))
    return Check(name, shown, f"at most {limit:g}{unit}", bool(value <= limit))


def at_least(name: str, value: float, limit: float, unit: str = "") -> Check:
    """A number with a lower limit; not-a-number never passes."""
    return Check(name, f"{value:.4g}{unit}", f"at least {limit:g}{unit}", bool(value >= limit))


@dataclass(frozen=True)
class Artifact:
    """What was written, and what was found out about it."""

    path: Path
    profile: Profile
    checks: tuple[Check, ...] = ()
    files: dict[str, int] = field(default_factory=dict)
    """File name within `path` to its size in bytes."""

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def sizes(folder: Path) -> dict[str, int]:
    """Every file under `folder` with its bytes, largest first."""
    found = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def is_language_model(checkpoint: Any) -> bool:
    """Whether the checkpoint writes texts."""
    return checkpoint.task.generates == "continuation"


def context_of(checkpoint: Any, profile: Profile) -> int:
    """Tokens of prompt and text together. Raises SettingError where the model has fewer."""
    most = checkpoint.config.max_sequence_length
    if profile.max_length and profile.max_length > most:
        raise SettingError(
            f"profile: max_length {profile.max_length} is more than the {most} positions of the "
            "model. Lower max_length."
        )
    return profile.max_length or min(most, LONGEST_CONTEXT)


def reads_sources(checkpoint: Any) -> bool:
    """Whether the checkpoint writes texts after sources."""
    return checkpoint.task.generates == "target"


def beams_of(checkpoint: Any, profile: Profile) -> int:
    """The width of the signature `beam`."""
    from tfllm.generation.checkpoint_config import checkpoint_config

    own = checkpoint_config(checkpoint).num_beams
    return profile.generation.num_beams or (own if own > 1 else BEAMS)


def own_beams(checkpoint: Any, profile: Profile) -> int:
    """How wide a SavedModel searches where a request does not say: 1 where its checkpoint does not
    search, else as the signature `beam`."""
    from tfllm.generation.checkpoint_config import checkpoint_config

    return beams_of(checkpoint, profile) if checkpoint_config(checkpoint).num_beams > 1 else 1


def described(checkpoint: Any, profile: Profile, checks: Sequence[Check]) -> dict[str, Any]:
    """The `tfllm.json` of an artifact: all that `evaluate` and `predict` need beside the graph."""
    from dataclasses import asdict as fields_of

    decoder: dict[str, Any] = {}
    if is_language_model(checkpoint):
        decoder["context"] = context_of(checkpoint, profile)
        decoder["eos_token_id"] = list(checkpoint.eos_token_id)
    if reads_sources(checkpoint):
        from tfllm.generation.checkpoint_config import huggingface_settings

        decoder["context"] = context_of(checkpoint, profile)
        decoder["eos_token_id"] = list(checkpoint.eos_token_id)
        decoder["start_id"] = checkpoint.task.with_start_id(
            checkpoint.decoder_start_token_id
        ).start_id
        decoder["num_beams"] = beams_of(checkpoint, profile)
        own: dict[str, Any] = {"num_beams": own_beams(checkpoint, profile)}
        if profile.target == "tflite":
            own = {"num_beams": 1, "do_sample": False}
        decoder["generation"] = huggingface_settings(checkpoint) | own
    return {
        "format": 1,
        "family": checkpoint.family,
        "config": fields_of(checkpoint.config),
        "task": checkpoint.task.model_dump(mode="json"),
        **decoder,
        "profile": profile.model_dump(mode="json", exclude_defaults=True),
        "checks": [asdict(check) for check in checks],
    }
