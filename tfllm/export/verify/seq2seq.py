"""Runs an encoder-decoder's artifact, and compares its texts and probabilities with its
checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from tfllm.checkpoints.base import Checkpoint
from tfllm.evaluation.harness import evaluate
from tfllm.export.artifact import (
    Check,
    at_least,
    at_most,
    beam_width,
    default_num_beams,
    get_decoder_start_token_id,
)
from tfllm.export.profile import Profile
from tfllm.export.verify import divergence
from tfllm.export.verify.common import (
    BATCH_SIZE,
    EXACT,
    LITE_SAMPLING_SEED,
    NEW_TOKENS,
    SAMPLING,
    SCORED_ROW,
    SCORED_TOKENS,
    SINGLE_REQUESTS,
    check_imports,
    compare_texts,
    equal_items,
    equal_or_reported,
    generate_request,
    run_savedmodel,
    warmup_as_json,
)
from tfllm.export.verify.sample_texts import PASSAGES, SENTENCES
from tfllm.generation.config import GenerationConfig
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model
from tfllm.runtimes.protocols import Example
from tfllm.runtimes.seq2seq import Seq2SeqPredictor
from tfllm.tasks.seq2seq import source_of, targets_of

MAX_SOURCES = 200
MAX_LITE_SOURCES = 24
SAMPLED_NEW_TOKENS = 48  # that a file that only generates samples after each passage
MAX_SCORE_DIFFERENCE = 1e-3  # of sums of some dozen float32 log-probabilities over their number

PairsByLanguage = Mapping[str, Sequence[tuple[str, str]]]
"""Sources and targets by language, or all of the data under one name."""


def check_savedmodel(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    signatures: Mapping[str, meta_graph_pb2.SignatureDef],
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run all signatures in a fresh process."""
    generator = Seq2SeqGenerator(checkpoint)
    texts = sources_of(examples)
    batches = [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
    few = texts[:SINGLE_REQUESTS]
    warmup = warmup_as_json(signatures, profile)
    result = run_savedmodel(
        directory,
        [
            *(_request("serving_default", batch) for batch in batches),
            *(_request("serving_default", [text]) for text in few),
            generate_request(few, sampled=True),
            *(generate_request([text], sampled=True, seed=i) for i, text in enumerate(few)),
            _beam_request(few),
            *warmup,
        ],
    )
    yield check_imports(result)
    outputs = iter(result["outputs"])
    default = _join_outputs(outputs, len(batches))
    yield from _check_default_texts(checkpoint, generator, profile, texts, default)
    single = _join_outputs(outputs, len(few))["text"]
    batched = default["text"][: len(few)]
    yield compare_texts("equal texts, single and batched", single, batched, profile)
    batched, single = next(outputs)["text"], _join_outputs(outputs, len(few))["text"]
    yield from _check_sampled_texts(generator, profile, few, batched, single)
    beams = beam_width(checkpoint, profile)
    searched = [
        _text(generator, text, num_beams=beams, length_penalty=_length_penalty(row))
        for row, text in enumerate(few)
    ]
    name = f"equal texts with {beams} beams"
    yield compare_texts(name, next(outputs)["text"], searched, profile)
    yield at_least("warm-up requests answered", len(list(outputs)), len(warmup))
    predictor = open_model(directory)
    assert isinstance(predictor, Seq2SeqPredictor)
    yield from check_scores(checkpoint, generator, profile, predictor, pairs_of(examples))
    if examples:
        yield check_bleu(checkpoint, profile, directory, examples)


def _check_default_texts(
    checkpoint: Checkpoint,
    generator: Seq2SeqGenerator,
    profile: Profile,
    sources: Sequence[str],
    outputs: Mapping[str, list[Any]],
) -> Iterator[Check]:
    """Check texts and scores of `serving_default` against the checkpoint's."""
    config = generator.generation_config(
        num_beams=_default_width(checkpoint, profile), num_return_sequences=1
    )
    expected = generator.generate(sources, config, truncate="right")
    equal = equal_items(outputs["text"], [text.text for text in expected])
    yield equal_or_reported(f"equal texts of {len(sources)} sources", equal, profile)
    scores = [
        float(np.sum(text.log_probabilities)) if text.score is None else text.score
        for text in expected
    ]
    differences = np.abs(np.array(outputs["score"]) - scores)[equal]
    yield at_most(
        "largest difference of their scores",
        float(differences.max(initial=0.0)),
        MAX_SCORE_DIFFERENCE if profile.quantization == EXACT else None,
    )


def _check_sampled_texts(
    generator: Seq2SeqGenerator,
    profile: Profile,
    sources: Sequence[str],
    batched: Sequence[str],
    single: Sequence[str],
) -> Iterator[Check]:
    """Check sampled texts of one batch against those of single requests and the checkpoint's."""
    yield compare_texts("equal sampled texts, single and batched", batched, single, profile)
    own = [_text(generator, text, seed=seed, **SAMPLING) for seed, text in enumerate(sources)]
    yield compare_texts("equal sampled texts to the checkpoint", batched, own, profile)


def check_tflite(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run a .tflite file in ai-edge-litert: scores of given texts, greedy and sampled texts."""
    generator = Seq2SeqGenerator(checkpoint)
    sources, pairs = sources_of(examples), pairs_of(examples)
    predictor = open_model(directory)
    assert isinstance(predictor, Seq2SeqPredictor)
    file = predictor.generator
    if predictor.logits is not None:
        yield from check_scores(checkpoint, generator, profile, predictor, pairs)
    else:
        yield check_samples(checkpoint, generator, profile, file, pairs)
    room = file.engine.limits.max_sequence_length - 1  # a whole-loop file may have less
    ids = [
        generator.tokenizer.encode(source, max_length=file.max_source_length).ids
        for source in sources[:MAX_LITE_SOURCES]
    ]
    for name, settings in (("greedy", {}), ("sampled", {"seed": LITE_SAMPLING_SEED, **SAMPLING})):
        config = file.generation_config(max_new_tokens=min(NEW_TOKENS, room), **settings)
        actual, expected = (
            [text.text for text in which.generate_from_ids(ids, config)]
            for which in (file, generator)
        )
        label = f"equal {name} texts of {len(ids)} sources"
        yield compare_texts(label, actual, expected, profile)
    if examples:
        yield check_bleu(checkpoint, profile, directory, examples)


def check_bleu(
    checkpoint: Checkpoint, profile: Profile, directory: Path, examples: Sequence[Example]
) -> Check:
    """Check BLEU on given pairs against the checkpoint's, both with the file's default settings."""
    generation = {"num_beams": _default_width(checkpoint, profile)}
    before, after = (
        evaluate(model, list(examples), truncate=True, generation=generation)["bleu"]
        for model in (open_checkpoint(checkpoint), open_model(directory))
    )
    limit = profile.tolerance.metric_points
    return Check(
        f"BLEU on {len(examples):,} examples",
        f"{after:.2f} (checkpoint {before:.2f})",
        f"at most {limit:g} points below",
        before - after <= limit,
    )


def _default_width(checkpoint: Checkpoint, profile: Profile) -> int:
    """Return the number of beams that the file uses unless a request says otherwise."""
    return 1 if profile.target == "tflite" else default_num_beams(checkpoint, profile)


def sources_of(examples: Sequence[Example]) -> list[str]:
    """Return the examples' sources; sample sentences where there are none."""
    texts = [
        source_of(example) if "source" in example else str(example.get("text", ""))
        for example in examples
    ]
    texts = [text for text in texts if text.strip()]
    return texts[:MAX_SOURCES] or [text for text in SENTENCES if text.strip()]


def pairs_of(examples: Sequence[Example]) -> PairsByLanguage:
    """Return sources with the targets that are scored; sample passages are their own targets."""
    pairs = [
        (source_of(example), targets_of(example)[0])
        for example in examples
        if "source" in example and "target" in example
    ]
    if pairs := [(source, target) for source, target in pairs if source.strip()]:
        return {"the data": pairs}
    return {name: [(text, text) for text in texts] for name, texts in PASSAGES.items()}


def check_scores(
    checkpoint: Checkpoint,
    generator: Seq2SeqGenerator,
    profile: Profile,
    predictor: Seq2SeqPredictor,
    pairs: PairsByLanguage,
) -> Iterator[Check]:
    """Check perplexity, KL divergence and the most likely next tokens of given targets."""
    assert predictor.logits is not None
    file, target_tokenizer = predictor.generator, generator.tokenizer.target
    start_token_id = get_decoder_start_token_id(checkpoint)
    longest = min(SCORED_ROW, file.engine.limits.max_sequence_length - 1)
    vocabulary_size = checkpoint.config.vocabulary_size
    vocabulary = divergence.Vocabulary(target_tokenizer, vocabulary_size)
    scores = {name: divergence.TokenScores() for name in pairs}
    for name, pairs_of_language in pairs.items():
        score = scores[name]
        for source, target in pairs_of_language:
            limit = (1 if len(pairs) > 1 else 2) * SCORED_TOKENS
            remaining = limit - score.tokens - score.unknown
            ids = target_tokenizer.encode_ids([target], add_special_tokens=False)[0]
            ids = ids[: min(remaining, longest)]
            if not ids:
                continue
            source_ids = generator.tokenizer.encode(source, max_length=file.max_source_length).ids
            inputs = [start_token_id, *ids[:-1]]
            expected = _logits(checkpoint, source_ids, inputs)
            score.add(expected, predictor.logits(source_ids, inputs), ids, vocabulary)
    yield from divergence.check_token_scores(profile, scores, vocabulary_size)


def check_samples(
    checkpoint: Checkpoint,
    generator: Seq2SeqGenerator,
    profile: Profile,
    file: Seq2SeqGenerator,
    pairs: PairsByLanguage,
) -> Check:
    """Check the KL divergence of a file that gives no logits, by the texts that it samples."""
    start_token_id = get_decoder_start_token_id(checkpoint)
    room = min(SAMPLED_NEW_TOKENS, file.engine.limits.max_sequence_length - 1)
    sources = [
        generator.tokenizer.encode(source, max_length=file.max_source_length).ids
        for pairs_of_language in pairs.values()
        for source, _ in pairs_of_language[:MAX_LITE_SOURCES]
    ]
    target_tokenizer = generator.tokenizer.target
    vocabulary = divergence.Vocabulary(target_tokenizer, checkpoint.config.vocabulary_size)
    actual, expected = [], []
    for seed, source in enumerate(sources):
        config = file.generation_config(
            max_new_tokens=room, num_beams=1, num_return_sequences=1, temperature=1.0, seed=seed
        )
        (text,) = file.engine.generate([[start_token_id]], config, sources=[source])
        if text.ids:
            logits = _logits(checkpoint, source, [start_token_id, *text.ids[:-1]])
            expected.append(vocabulary.token_log_probs(logits, text.ids))
            actual.append(text.log_probabilities)
    return divergence.check_sampled_tokens(profile, actual, expected)


def _logits(checkpoint: Checkpoint, source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """Return the checkpoint's logits float32 [T, V] after each of `target`, whose first is the
    start token."""
    source_ids, token_ids = (np.array([ids], np.int32) for ids in (source, target))
    inputs = {
        "source_ids": source_ids,
        "source_padding_mask": np.ones_like(source_ids),
        "token_ids": token_ids,
        "padding_mask": np.ones_like(token_ids),
    }
    model = checkpoint.model
    return np.asarray(model({name: inputs[name] for name in model.input}, training=False))[0]


def _text(generator: Seq2SeqGenerator, source: str, **settings: object) -> str:
    """Return the checkpoint's text for one source."""
    config: GenerationConfig = generator.generation_config(
        max_new_tokens=NEW_TOKENS, num_return_sequences=1, **settings
    )
    return generator.generate([source], config, truncate="right")[0].text


def _request(signature: str, prompts: Sequence[str], **settings: list[Any]) -> dict[str, Any]:
    return {"signature": signature, "inputs": {"prompt": list(prompts), **settings}}


def _beam_request(prompts: Sequence[str]) -> dict[str, Any]:
    penalties = [_length_penalty(row) for row in range(len(prompts))]
    lengths = [NEW_TOKENS] * len(prompts)
    return _request("beam", prompts, max_new_tokens=lengths, length_penalty=penalties)


def _length_penalty(row: int) -> float:
    """Return a different penalty for each row."""
    return 0.5 * row


def _join_outputs(outputs: Iterator[dict[str, list[Any]]], count: int) -> dict[str, list[Any]]:
    """Return the outputs of the next `count` requests, concatenated by name."""
    requests = [next(outputs) for _ in range(count)]
    return {name: [value for output in requests for value in output[name]] for name in requests[0]}
