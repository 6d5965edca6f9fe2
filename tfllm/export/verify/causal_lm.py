"""Runs a language model's artifact, and compares its probabilities and texts with its checkpoint's.

Probabilities: perplexity, KL divergence and the most likely next token on given texts. Texts:
greedy ones token for token, and sampled ones by their seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from tfllm.checkpoints.base import Checkpoint
from tfllm.export.artifact import Check, at_least, at_most, context_length, report
from tfllm.export.profile import Profile
from tfllm.export.verify import divergence
from tfllm.export.verify.common import (
    BATCH_SIZE,
    LITE_SAMPLING_SEED,
    NEW_TOKENS,
    SAMPLING,
    SCORED_ROW,
    SCORED_TOKENS,
    SINGLE_REQUESTS,
    check_imports,
    compare_texts,
    equal_or_reported,
    generate_request,
    run_savedmodel,
    warmup_as_json,
)
from tfllm.export.verify.divergence import TokenScores
from tfllm.export.verify.sample_texts import (
    ASCII_SENTENCES,
    CONTEXT,
    PASSAGES,
    QUESTIONS,
    SENTENCES,
)
from tfllm.generation.config import GenerationConfig, generation_config
from tfllm.generation.text_generator import GeneratedText, TextGenerator
from tfllm.generation.token_generator import TokenGenerator
from tfllm.runtimes.benchmark import measure_generation
from tfllm.runtimes.causal_lm import CausalLMPredictor
from tfllm.runtimes.opening import open_model
from tfllm.runtimes.protocols import Example
from tfllm.runtimes.token_log_probs import target_log_probs

NUM_PROMPTS = 100
MAX_PROMPT_WORDS = 12
SAMPLED_PROMPT = 8  # tokens of each passage after which a file that only generates samples
SPEED_PROMPT, SPEED_NEW_TOKENS = 32, 32

TokenRows = list[list[int]]
TextsByLanguage = Mapping[str, Sequence[str]]
"""Texts by language, or all of the data under one name."""


def check_savedmodel(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    signatures: Mapping[str, meta_graph_pb2.SignatureDef],
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run all signatures in a fresh process, then score texts and measure the speed."""
    generator = TextGenerator(checkpoint)
    texts, scored_texts = texts_to_compare(examples)
    prompts = sample_prompts(texts)
    greedy = [
        generate_request(prompts[start : start + BATCH_SIZE])
        for start in range(0, len(prompts), BATCH_SIZE)
    ]
    few = prompts[:SINGLE_REQUESTS]
    sampled = [generate_request(few, sampled=True)]
    sampled += [generate_request([text], sampled=True, seed=i) for i, text in enumerate(few)]
    short_texts = [_fit_context(checkpoint, profile, text) for text in texts[:BATCH_SIZE]]
    score = {"signature": "score", "inputs": {"text": short_texts}}
    warmup = warmup_as_json(signatures, profile)
    result = run_savedmodel(directory, [*greedy, *sampled, score, *warmup], xla=profile.xla)
    yield check_imports(result, profile.xla)
    outputs = iter(result["outputs"])

    actual = [text for _ in greedy for text in next(outputs)["text"]]
    name = f"equal greedy texts of {len(prompts)} prompts"
    yield compare_texts(name, actual, _greedy_texts(generator, prompts), profile)
    batched = next(outputs)["text"]
    single = [next(outputs)["text"][0] for _ in few]
    yield compare_texts("equal sampled texts, single and batched", batched, single, profile)
    own = _sampled_texts(generator, sampled[0])
    yield compare_texts("equal sampled texts to the checkpoint", batched, own, profile)
    scores = next(outputs)
    yield at_least("warm-up requests answered", len(list(outputs)), len(warmup))

    predictor = open_model(directory)
    assert isinstance(predictor, CausalLMPredictor)
    yield from check_scores(checkpoint, profile, predictor, scored_texts)
    yield _check_score_signature(
        checkpoint, profile, short_texts, scores["log_probability"], scores["token_count"]
    )
    yield report_speed(predictor.generator.engine, (1, 8))


def _check_score_signature(
    checkpoint: Checkpoint,
    profile: Profile,
    texts: Sequence[str],
    log_probabilities: Sequence[float],
    counts: Sequence[int],
) -> Check:
    """Check the signature `score` against the checkpoint's own probabilities."""
    largest = 0.0
    for text, actual, count in zip(texts, log_probabilities, counts, strict=True):
        ids = _encode_with_start(checkpoint, text)
        if count != max(len(ids) - 1, 0):
            return Check("score", f"{count} tokens of '{text[:20]}'", f"{len(ids) - 1}", False)
        if count:
            inputs, targets = np.array([ids[:-1]], np.int32), np.array([ids[1:]], np.int32)
            expected = float(target_log_probs(_logits(checkpoint, inputs), targets)[0].sum())
            largest = max(largest, abs(actual - expected) / count)
    limit = profile.limits.abs_difference
    return at_most("largest difference of `score` per token", largest, limit)


def check_tflite(
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Run a .tflite file, or the one inside a .litertlm bundle, in ai-edge-litert."""
    generator = TextGenerator(checkpoint)
    texts, scored_texts = texts_to_compare(examples)
    predictor = open_model(directory)
    assert isinstance(predictor, CausalLMPredictor)
    engine = predictor.generator.engine
    if predictor.logits is not None:
        yield from check_scores(checkpoint, profile, predictor, scored_texts)
    else:
        yield check_samples(checkpoint, generator, profile, engine, scored_texts)
    rows = prompts_of_lengths(checkpoint, profile, texts)
    greedy = _config(generator)
    context = context_length(checkpoint, profile)
    equal = [
        expected.ids[: context - len(row)] == actual.ids
        for expected, actual, row in zip(
            generator.engine.generate(rows, greedy), engine.generate(rows, greedy), rows,
            strict=True,
        )
    ]  # fmt: skip
    lengths = ", ".join(str(len(row)) for row in rows)
    yield equal_or_reported(f"equal greedy tokens after prompts of {lengths}", equal, profile)
    sampling = _config(generator, seed=LITE_SAMPLING_SEED, **SAMPLING)
    expected_ids, actual_ids = (
        [text.ids for text in which.generate(rows[:2], sampling)]
        for which in (generator.engine, engine)
    )
    yield compare_texts("equal sampled tokens", actual_ids, expected_ids, profile)
    yield report_speed(engine, (1,), min(SPEED_PROMPT, profile.prompt_length or SPEED_PROMPT))


def texts_to_compare(
    examples: Sequence[Example],
) -> tuple[list[str], TextsByLanguage]:
    """Return the examples' texts, or built-in ones where there are no examples.

    Returns:
        Texts that prompts are taken from, and texts that are scored.
    """
    texts = texts_of(examples)
    if texts:
        return texts, {"the data": texts}
    return [" ".join(ASCII_SENTENCES), CONTEXT, *SENTENCES], PASSAGES


def check_scores(
    checkpoint: Checkpoint, profile: Profile, predictor: CausalLMPredictor, texts: TextsByLanguage
) -> Iterator[Check]:
    """Check perplexity, KL divergence and the most likely next tokens on given texts."""
    assert predictor.logits is not None
    vocabulary_size = checkpoint.config.vocabulary_size
    vocabulary = divergence.Vocabulary(checkpoint.tokenizer, vocabulary_size)
    scores = {name: TokenScores() for name in texts}
    for name, rows in scored_rows(checkpoint, profile, texts).items():
        for ids in rows:
            inputs = np.array([ids[:-1]], np.int32)
            expected, actual = _logits(checkpoint, inputs)[0], predictor.logits(inputs)[0]
            scores[name].add(expected, actual, ids[1:], vocabulary)
    yield from divergence.check_token_scores(profile, scores, vocabulary_size)


def check_samples(
    checkpoint: Checkpoint,
    generator: TextGenerator,
    profile: Profile,
    engine: TokenGenerator,
    texts: TextsByLanguage,
) -> Check:
    """Check the KL divergence of a file that gives no logits, by the texts that it samples."""
    prompts = prompts_to_sample_after(checkpoint, profile, texts)
    configs = [_config(generator, temperature=1.0, seed=seed) for seed in range(len(prompts))]
    vocabulary = divergence.Vocabulary(checkpoint.tokenizer, checkpoint.config.vocabulary_size)
    actual, expected = [], []
    for prompt, text in zip(prompts, engine.generate(prompts, configs), strict=True):
        if text.ids:
            logits = _logits(checkpoint, np.array([[*prompt, *text.ids[:-1]]], np.int32))[0]
            expected.append(vocabulary.token_log_probs(logits[len(prompt) - 1 :], text.ids))
            actual.append(text.log_probabilities)
    return divergence.check_sampled_tokens(profile, actual, expected)


def report_speed(
    engine: TokenGenerator, batch_sizes: Sequence[int], length: int = SPEED_PROMPT
) -> Check:
    """Report the generated tokens per second on this machine."""
    speeds = {
        size: measure_generation(engine, length, SPEED_NEW_TOKENS, size, 0.0)
        for size in batch_sizes
    }
    text = ", ".join(
        f"{speed['written_tokens_per_second']:,.0f} (batch {size})"
        for size, speed in speeds.items()
    )
    return report("generated tokens per second, this machine", text)


def texts_of(examples: Sequence[Example]) -> list[str]:
    """Return the texts of examples: their messages, text or prompt."""
    texts = []
    for example in examples:
        if "messages" in example:
            texts += [str(message["content"]) for message in example["messages"]]
        else:
            texts.append(str(example.get("text", example.get("prompt", ""))))
    return [text for text in texts if text.strip()]


def sample_prompts(texts: Sequence[str]) -> list[str]:
    """Return NUM_PROMPTS different beginnings of texts, of 1 to 12 words, and the empty one."""
    prompts = dict.fromkeys([""])
    for words in range(MAX_PROMPT_WORDS, 0, -1):
        for text in (*texts, *SENTENCES, *QUESTIONS):
            # Spaces are left as they are; Chinese has none.
            parts = text.split(" ")
            prompt = " ".join(parts[:words]) if len(parts) > 1 else text[: 2 * words]
            if len(prompts) < NUM_PROMPTS and prompt.strip():
                prompts[prompt] = None
    return list(prompts)


def scored_rows(
    checkpoint: Checkpoint, profile: Profile, texts: TextsByLanguage
) -> dict[str, TokenRows]:
    """Return rows of at least two token ids of texts, each with the start token if there is one."""
    start = _bos_ids(checkpoint)
    width = min(SCORED_ROW, context_length(checkpoint, profile)) - len(start)
    rows_of: dict[str, TokenRows] = {}
    for name, group in texts.items():
        rows = rows_of.setdefault(name, [])
        remaining = SCORED_TOKENS if len(texts) > 1 else 2 * SCORED_TOKENS
        for ids in checkpoint.tokenizer.encode_ids(list(group), add_special_tokens=False):
            for begin in range(0, len(ids), width):
                row = [*start, *ids[begin : begin + width]][: remaining + 1]
                if len(row) > 1 and remaining > 0:
                    rows.append(row)
                    remaining -= len(row) - 1
    return rows_of


def prompts_to_sample_after(
    checkpoint: Checkpoint, profile: Profile, texts: TextsByLanguage
) -> TokenRows:
    """Return the beginnings of texts, SAMPLED_PROMPT tokens of each or what the file can read."""
    length = min(SAMPLED_PROMPT, profile.prompt_length or SAMPLED_PROMPT)
    groups = scored_rows(checkpoint, profile, texts).values()
    return [row[:length] for rows in groups for row in rows]


def prompts_of_lengths(checkpoint: Checkpoint, profile: Profile, texts: Sequence[str]) -> TokenRows:
    """Return the token ids of prompts of several lengths.

    Short, over several prefill signatures, and close to the end of the context.

    Args:
        checkpoint: The model.
        profile: The profile, which may limit prompts.
        texts: What they are taken from.
    """
    joined = " ".join([*texts[:50], *ASCII_SENTENCES, CONTEXT])
    longest = profile.prompt_length or context_length(checkpoint, profile)
    ids = checkpoint.tokenizer.encode_ids([joined], add_special_tokens=False)[0]
    ids = [*_bos_ids(checkpoint), *ids * -(-longest // max(1, len(ids)))]
    lengths = (2, 5, 23, 90, longest - 3)
    return [ids[:length] for length in sorted({n for n in lengths if 1 <= n < longest})]


def _bos_ids(checkpoint: Checkpoint) -> list[int]:
    bos_token_id = checkpoint.tokenizer.bos_token_id
    return [] if bos_token_id is None else [bos_token_id]


def _encode_with_start(checkpoint: Checkpoint, text: str) -> list[int]:
    """Return a text's token ids, the start token first where there is one."""
    ids = checkpoint.tokenizer.encode_ids([text], add_special_tokens=False)[0]
    return [*_bos_ids(checkpoint), *ids]


def _fit_context(checkpoint: Checkpoint, profile: Profile, text: str) -> str:
    """Return the beginning of a text whose tokens fit the context."""
    while len(_encode_with_start(checkpoint, text)) > context_length(checkpoint, profile):
        text = text[: len(text) * 3 // 4]
    return text


def _logits(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """Return the checkpoint's logits float32 [1, T, V] of ids int32 [1, T]."""
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    model = checkpoint.model
    return np.asarray(model({name: inputs[name] for name in model.input}, training=False))


def _config(generator: TextGenerator, **fields: object) -> GenerationConfig:
    config = generation_config(max_new_tokens=NEW_TOKENS, **fields)
    return generator.with_eos_token_id(config)


def _greedy_texts(generator: TextGenerator, prompts: Sequence[str]) -> list[str]:
    """Return the checkpoint's greedy texts."""
    return [text.text for text in _continue(generator, prompts, _config(generator))]


def _sampled_texts(generator: TextGenerator, request: dict[str, Any]) -> list[str]:
    """Return the checkpoint's texts for a sampled request, prompt by prompt."""
    prompts, seeds = request["inputs"]["prompt"], request["inputs"]["seed"]
    return [
        _continue(generator, [prompt], _config(generator, seed=seed, **SAMPLING))[0].text
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def _continue(
    generator: TextGenerator, prompts: Sequence[str], config: GenerationConfig
) -> list[GeneratedText]:
    """Return the checkpoint's texts; an empty prompt starts as in the exported graph."""
    first = generator.tokenizer.bos_token_id
    if first is None:
        first = (*generator.checkpoint.eos_token_id, 0)[0]
    ids = [ids or [first] for ids in generator.tokenizer.encode_ids(list(prompts))]
    return generator.generate_from_ids(ids, config, prompts=list(prompts))
