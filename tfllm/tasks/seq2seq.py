"""Writing a target after a source: translation, summarization; T5's pretraining."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field, WithJsonSchema

from tfllm.errors import DataError, SettingError, did_you_mean
from tfllm.tasks.base import NextToken
from tfllm.tasks.features import Example, Features, TokenCorpus, text_field, where
from tfllm.tasks.objectives import OBJECTIVES, seq2seq_features
from tfllm.tasks.objectives import span_corruption as spans
from tfllm.tasks.objectives.memory_corpus import tokenize_corpus
from tfllm.tasks.objectives.seq2seq_features import EpochPairs, Pair, Seq2SeqFeatures

if TYPE_CHECKING:
    import keras

    from tfllm.layers.types import ModelConfig
    from tfllm.tasks.huggingface import HuggingFaceHead
    from tfllm.tokenizers.base import Tokenizer

log = logging.getLogger(__name__)

HF_WINDOW = 512  # tokens: what T5 and Marian were trained with; BART takes 1024


def _known_objective(name: str) -> str:
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective '{name}'. {did_you_mean(name, OBJECTIVES)}")
    return name


ObjectiveName = Annotated[
    str, AfterValidator(_known_objective), WithJsonSchema({"enum": list(OBJECTIVES)})
]


class Seq2Seq(NextToken):
    """Scores of the next token of the target for every token of it (Sutskever et al. 2014).

    Examples have a `source` and a `target`. A source may be a list of sentences, which are joined
    by spaces; a target may be a list of texts that are all right, each of which is learned.
    """

    generates: ClassVar = "target"
    backbones: ClassVar = ("encoder_decoder",)
    label_fields: ClassVar = ("source", "target")
    evaluated_on: ClassVar = "generations"
    pipelines: ClassVar = ("translation", "summarization", "text2text-generation")

    kind: Literal["seq2seq"] = "seq2seq"
    max_length: int = Field(default=128, ge=3)
    """Tokens of a target with its end token."""
    max_source_length: int | None = Field(default=None, ge=2)
    """Tokens of a source with its special tokens; unset: max_length."""
    truncate: bool = False
    """Cuts longer sources and targets to their first tokens; else one is an error."""
    prefix: str = ""
    """Stands before every source, such as "translate English to German: " for T5, or a language
    tag. An example's own field `prefix` replaces it."""
    profile: Literal["translate", "summarize"] | None = None
    """The name that exported signatures have beside the usual ones."""
    decoder_start_token_id: int | None = None
    """The decoder's first token; unset: what the checkpoint says."""
    objective: ObjectiveName | None = None
    """Learns from plain texts, a prepared corpus or a file: `span_corruption`, to fill in what is
    left out (Raffel et al. 2020), for which the vocabulary needs <extra_id_0>, <extra_id_1>, ...
    Unset: examples have a source and a target."""
    noise_density: float = Field(default=spans.NOISE_DENSITY, gt=0, lt=1)
    """With an objective: the share of the tokens that is left out."""
    mean_span: float = Field(default=spans.MEAN_SPAN, ge=1)
    """With an objective: tokens that are left out in one span, on average."""

    @property
    def required_fields(self) -> tuple[tuple[str, ...], ...]:
        """A source, or a text that is one."""
        return (("source",), ("text",))

    @property
    def measure(self) -> str:
        """BLEU, chrF, TER and ROUGE."""
        return "text_to_text"

    @property
    def headline_metrics(self) -> tuple[str, ...]:
        """BLEU, of 100."""
        return ("bleu",)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of generated texts, and over the tokens of targets."""
        texts = ("bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "ter")
        return ("accuracy", *texts, "perplexity")

    @classmethod
    def from_hf(cls, source: HuggingFaceHead) -> Seq2Seq:
        """Return the task with rows of HF_WINDOW tokens, or of all positions if they are fewer."""
        return cls(max_length=min(HF_WINDOW, source.positions))

    def hf_config(self, before: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
        """Return the special tokens."""
        if before:
            return {}
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        return {**ids, "forced_eos_token_id": tokenizer.eos_token_id}

    def hf_generation_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the special tokens of `config.json`; padding is never generated."""
        keys = ("bos", "eos", "pad", "decoder_start", "forced_bos", "forced_eos")
        ids = {f"{key}_token_id": config.get(f"{key}_token_id") for key in keys}
        ids = {key: value for key, value in ids.items() if value is not None}
        pad = config.get("pad_token_id")
        return {**ids, **({"bad_words_ids": [[pad]]} if pad is not None else {})}

    @property
    def source_length(self) -> int:
        """Tokens of a source at most."""
        return self.max_source_length or self.max_length

    def with_decoder_start_token_id(self, decoder_start_token_id: int | None) -> Seq2Seq:
        """Return a copy whose rows begin with this token, where the settings name none."""
        if self.decoder_start_token_id is not None or decoder_start_token_id is None:
            return self
        return self.model_copy(update={"decoder_start_token_id": decoder_start_token_id})

    def model(self, backbone: keras.Model, config: ModelConfig) -> keras.Model:
        """Put the language modeling head on a backbone: logits float32 [B, T, V].

        Raises:
            SettingError: The model has fewer positions than the task's rows.
        """
        import keras

        from tfllm.layers import heads

        if self.source_length > config.max_sequence_length:
            raise SettingError(
                f"task.max_source_length is {self.source_length}, and the model has positions for "
                f"{config.max_sequence_length} tokens. Lower it to that."
            )
        scores = heads.lm_head(backbone.output, config, backbone)
        return keras.Model(backbone.input, scores, name=self.kind)

    def features(
        self, examples: Sequence[Example], tokenizer: Tokenizer, *, targets: bool = True
    ) -> Features:
        """Return a row for every target; without `targets` one for every source.

        An example with an empty source or target has nothing to learn: it is left out, and the log
        says how many were.

        Raises:
            DataError: A target is missing, or a text is too long; the message names file and line.
        """
        if self.objective:
            return self._objective_features(tokenize_corpus(examples, tokenizer), tokenizer)
        rows: list[tuple[int, str]] = []  # the example's number, a target
        left_out: list[Example] = []
        for number, example in enumerate(examples):
            texts = targets_of(example) if targets else [""]
            full = source_of(example).strip() and any(text.strip() for text in texts)
            if full or not targets:
                rows += [(number, text) for text in texts if text.strip() or not targets]
            else:
                left_out.append(example)
        self._tell(left_out, len(examples))
        sources = self.encode_sources(examples, tokenizer)
        target_ids = self._targets([text for _, text in rows], tokenizer) if targets else None
        pairs: list[Pair] = []
        for position, (number, _) in enumerate(rows):
            target = target_ids[position] if target_ids is not None else np.zeros(0, np.int32)
            self._check(len(target), self.max_length, "target", "max_length", examples[number])
            pairs.append((sources[number], target[: self.max_length]))
        return seq2seq_features.build_features(
            pairs,
            np.array([len(target) for _, target in pairs], np.int64),
            np.array([len(source) for source, _ in pairs], np.int64),
            self._start(tokenizer),
            tokenizer,
            example=np.array([number for number, _ in rows], np.int64),
            targets=targets,
            digest=_digest(pairs),
        )

    def encode_sources(
        self, examples: Sequence[Example], tokenizer: Tokenizer, truncate: bool | None = None
    ) -> list[np.ndarray]:
        """Tokenize every source, prefix and special tokens included: int32 [S_i] each.

        Args:
            examples: Dicts with the source's fields.
            tokenizer: The model's tokenizer.
            truncate: Replaces the task's setting of that name; None: does not.

        Raises:
            DataError: A source is missing or too long; the message names file and line.
        """
        texts = [example.get("prefix", self.prefix) + source_of(example) for example in examples]
        template = tokenizer.row_template
        room = self.source_length - len(template.prefix) - len(template.suffix)
        source_ids = []
        rows = tokenizer.encode_ids(texts, add_special_tokens=False)
        for ids, example in zip(rows, examples, strict=True):
            length = len(ids) + self.source_length - room
            self._check(
                length, self.source_length, "source", "max_source_length", example, truncate
            )
            source_ids.append(np.array([*template.prefix, *ids[:room], *template.suffix], np.int32))
        return source_ids

    def corpus_features(self, corpus: TokenCorpus, tokenizer: Tokenizer) -> Features:
        """Return sources and targets that the objective draws from texts, new ones every epoch.

        Raises:
            SettingError: The task has no objective.
        """
        if not self.objective:
            directory = getattr(corpus, "directory", "")
            raise SettingError(
                f"data.train: '{directory}' is a prepared corpus, text alone. Set "
                "task.objective: span_corruption to learn from it, or name a file of examples."
            )
        return self._objective_features(corpus, tokenizer)

    def for_epoch(self, features: Features, seed: int = 0, epoch: int = 0) -> Features:
        """Return the features with the objective's pairs of an epoch."""
        pairs = getattr(features, "pairs", None)
        if not isinstance(pairs, EpochPairs):
            return features
        assert isinstance(features, Seq2SeqFeatures)
        return seq2seq_features.with_pairs(features, replace(pairs, draw=(seed, epoch)))

    def _start(self, tokenizer: Tokenizer) -> int:
        start = self.decoder_start_token_id
        if start is None:
            start = tokenizer.target.pad_token_id
        if start is None:
            raise SettingError(
                "task.decoder_start_token_id: the vocabulary has no padding token, which targets "
                "usually begin with. Give the id of a token that a target begins with."
            )
        return start

    def _targets(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
        """Ids of every target, int32 [T_i], end token included. Where `truncate` cuts one, the last
        is not its end."""
        template, eos_token_id = tokenizer.target.row_template, tokenizer.target.eos_token_id
        if eos_token_id is None:
            raise SettingError(
                "tokenizer: the vocabulary has no token that ends a target. Add </s> to its "
                "special tokens."
            )
        end = template.suffix or (eos_token_id,)
        rows = tokenizer.target.encode_ids(texts, add_special_tokens=False)
        return [np.array([*template.prefix, *ids, *end], np.int32) for ids in rows]

    def _check(
        self,
        length: int,
        room: int,
        name: str,
        setting: str,
        example: Example,
        truncate: bool | None = None,
    ) -> None:
        """Raises DataError for too many tokens, unless they are to be cut."""
        if length > room and not (self.truncate if truncate is None else truncate):
            raise DataError(
                f"{where(example)}the {name} has {length} tokens, and task.{setting} is {room}. "
                "Raise it, shorten the text, or cut such texts: task.truncate: true, or of a "
                "trained model --truncate."
            )

    def _tell(self, left_out: Sequence[Example], count: int) -> None:
        """Says how many examples are left out; raises DataError where none is left."""
        if not left_out:
            return
        first = where(left_out[0]).removesuffix(": ") or "the first"
        if len(left_out) == count:
            raise DataError(
                f"{first}: every example has an empty source or target. Check the file."
            )
        log.warning(
            "%d of %d examples have an empty source or target and are left out, such as %s",
            len(left_out), count, first,
        )  # fmt: skip

    def _objective_features(self, corpus: TokenCorpus, tokenizer: Tokenizer) -> Features:
        assert self.objective is not None
        pairs = OBJECTIVES[self.objective](
            corpus,
            tokenizer,
            source_length=self.source_length,
            noise_density=self.noise_density,
            mean_span=self.mean_span,
        )
        source_lengths, lengths = pairs.lengths
        if lengths.max() > self.max_length:
            raise SettingError(
                f"task.max_length is {self.max_length}, and the targets of sources of "
                f"{self.source_length} tokens have {lengths.max()}. Set it to that, or lower "
                "task.max_source_length."
            )
        return seq2seq_features.build_features(
            pairs, lengths, source_lengths, self._start(tokenizer), tokenizer, digest=corpus.digest
        )


def source_of(example: Example) -> str:
    """Return the field `source`; sentences are joined by spaces. Raises DataError."""
    return " ".join(_texts(example, "source", example.get("source")))


def targets_of(example: Example) -> list[str]:
    """Return the field `target`: one text, or several that are all right. Raises DataError."""
    return _texts(example, "target", example.get("target"))


def _texts(example: Example, name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and texts and all(isinstance(t, str) for t in texts):
        return list(texts)
    return [text_field(example, name)]  # which says what is wrong


def _digest(pairs: Sequence[Pair]) -> str:
    """Names the tokens of all pairs."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in pair:
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return digest.hexdigest()[:16]
