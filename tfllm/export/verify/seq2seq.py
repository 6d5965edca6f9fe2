"""Runs an encoder-decoder's artifact, and compares what it writes with its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.export import warmup
from tfllm.export.base import Check, Profile, at_least, at_most, beams_of, own_beams, stated
from tfllm.export.verify import divergence, encoder
from tfllm.export.verify.passages import PASSAGES
from tfllm.export.verify.sentences import SENTENCES
from tfllm.tasks.seq2seq import source_of, targets_of

SOURCES = 200  # real ones at most
LITE_SOURCES = 24
TOLD_TOKENS, TOLD_ROW = 1000, 128  # as in verify_decoder
DRAWN_NEW = 48  # tokens that a file that only writes draws after each passage
NEW_TOKENS = 24
ROWS = 16  # of one request
ALONE = 4  # sources that are also asked for one by one
SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
SCORES = 1e-3  # sums of some dozen float32 log-probabilities, over their number
EXACT = "float32"
Pairs = Mapping[str, Sequence[tuple[str, str]]]
"""Sources and targets by language, or all data under one name."""


def checks(
    checkpoint: Any, profile: Profile, folder: Path, examples: Sequence[dict]
) -> Iterator[Check]:
    """Every check that runs the artifact in `folder`."""
    from tfllm.generation.seq2seq_generator import Seq2SeqGenerator

    writer = Seq2SeqGenerator(checkpoint)
    sources, told = sources_of(examples), pairs_of(examples)
    yield from RUNTIMES[profile.target](checkpoint, writer, profile, folder, sources, told)
    if examples:
        yield bleu(checkpoint, profile, folder, examples)


def bleu(checkpoint: Any, profile: Profile, folder: Path, examples: Sequence[dict]) -> Check:
    """BLEU on real pairs against the checkpoint's, both as the file writes."""
    from tfllm.evaluation.harness import evaluate
    from tfllm.runtimes.checkpoint import open_checkpoint
    from tfllm.runtimes.opening import open_model

    writing = {"num_beams": _beams(checkpoint, profile), "truncate": True}
    before, after = (
        evaluate(model, list(examples), generation=writing)["bleu"]
        for model in (open_checkpoint(checkpoint), open_model(folder))
    )
    limit = profile.tolerance.metric_points
    return Check(
        f"BLEU on {len(examples):,} examples",
        f"{after:.2f} (checkpoint {before:.2f})",
        f"at most {limit:g} points below",
        before - after <= limit,
    )


def _beams(checkpoint: Any, profile: Profile) -> int:
    """What the file searches with where nobody says."""
    return 1 if profile.target == "tflite" else own_beams(checkpoint, profile)


def sources_of(examples: Sequence[dict]) -> list[str]:
    """The examples' sources; tfllm's own sentences where there are none."""
    found = [source_of(e) if "source" in e else str(e.get("text", "")) for e in examples]
    return [text for text in found if text.strip()][:SOURCES] or [s for s in SENTENCES if s.strip()]


def pairs_of(examples: Sequence[dict]) -> Pairs:
    """Sources with the targets that are told after them; our passages are told after themselves."""
    given = [(source_of(e), targets_of(e)[0]) for e in examples if "source" in e and "target" in e]
    if given := [(source, target) for source, target in given if source.strip()]:
        return {"the data": given}
    return {name: [(text, text) for text in texts] for name, texts in PASSAGES.items()}


def savedmodel(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str], told: Pairs
) -> Iterator[Check]:
    """All signatures in a fresh process."""
    from tfllm.export.savedmodel import signatures_of
    from tfllm.runtimes.opening import open_model

    batches = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
    few = texts[:ALONE]
    requests = [_request("serving_default", batch) for batch in batches]
    requests += [_request("serving_default", [text]) for text in few]
    requests += [_sampled(few), *(_sampled([text], seed) for seed, text in enumerate(few))]
    requests.append(_beam(few))
    warm = list(warmup.requests(signatures_of(folder), profile.warmup_batch_sizes))
    requests += [{"signature": w.signature, "inputs": encoder.as_lists(w.inputs)} for w in warm]
    result = encoder.in_fresh_process(folder, requests)
    yield encoder.only_tensorflow(result)
    outputs = iter(result["outputs"])

    found = _taken(outputs, len(batches))
    settings = writer.generation_config(
        num_beams=_beams(checkpoint, profile), num_return_sequences=1
    )
    wanted = writer.generate(texts, settings, truncate="right")
    names = f"{len(texts)} sources"
    yield _exactly(f"same texts of {names}", found["text"], [t.text for t in wanted], profile)
    scores = [
        t.score if t.score is not None else float(np.sum(t.log_probabilities)) for t in wanted
    ]
    same = [a == b.text for a, b in zip(found["text"], wanted, strict=True)]
    apart = np.abs(np.array(found["score"]) - scores)[same].max(initial=0.0)
    exact = profile.quantization == EXACT
    yield at_most("their scores differ by", float(apart), SCORES if exact else None)
    alone = _taken(outputs, len(few))["text"]
    yield _exactly("same texts alone and in a batch", alone, found["text"][: len(few)], profile)

    together, apart_ones = next(outputs)["text"], _taken(outputs, len(few))["text"]
    yield _exactly("same sampled texts alone and in a batch", together, apart_ones, profile)
    own = [
        writer.generate([text], _settings(writer, seed=seed, **SAMPLING), truncate="right")[0].text
        for seed, text in enumerate(few)
    ]
    yield _exactly("same sampled texts as the checkpoint", together, own, profile)
    beams = beams_of(checkpoint, profile)
    searched = [
        writer.generate(
            [text], _settings(writer, num_beams=beams, length_penalty=_penalty(row)),
            truncate="right",
        )[0].text
        for row, text in enumerate(few)
    ]  # fmt: skip
    yield _exactly(f"same texts of {beams} beams", next(outputs)["text"], searched, profile)
    yield at_least("warm-up records answered", len(list(outputs)), len(warm))
    predictor: Any = open_model(folder)
    yield from tells(checkpoint, writer, profile, predictor, told)


def lite(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str], told: Pairs
) -> Iterator[Check]:
    """A .tflite file in ai-edge-litert: given, greedy and sampled texts."""
    from tfllm.runtimes.opening import open_model

    predictor: Any = open_model(folder)
    file = predictor.generator
    if predictor.logits is not None:
        yield from tells(checkpoint, writer, profile, predictor, told)
    else:
        yield draws(checkpoint, writer, profile, file, told)
    longest = file.max_source_length
    most = file.engine.limits.max_sequence_length - 1  # a file of whole texts may hold fewer
    ids = [writer.tokenizer.encode(text, max_length=longest).ids for text in texts[:LITE_SOURCES]]
    for name, given in (("greedy", {}), ("sampled", {"seed": 11, **SAMPLING})):
        settings = file.generation_config(max_new_tokens=min(NEW_TOKENS, most), **given)
        found, wanted = (
            [text.text for text in one.generate_from_ids(ids, settings)] for one in (file, writer)
        )
        yield _exactly(f"same {name} texts of {len(ids)} sources", found, wanted, profile)


RUNTIMES = {"savedmodel": savedmodel, "tflite": lite}


def tells(
    checkpoint: Any, writer: Any, profile: Profile, predictor: Any, pairs: Pairs
) -> Iterator[Check]:
    """Perplexity, KL divergence and the likeliest next tokens of given targets, against the
    checkpoint's."""
    file, target = predictor.generator, writer.tokenizer.target
    start = checkpoint.task.with_start_id(checkpoint.decoder_start_token_id).start_id
    longest = min(TOLD_ROW, file.engine.limits.max_sequence_length - 1)
    tokens = divergence.Vocabulary(target, checkpoint.config.vocabulary_size)
    found = {name: divergence.Told() for name in pairs}
    for name, some in pairs.items():
        told = found[name]
        for source, text in some:
            left = (1 if len(pairs) > 1 else 2) * TOLD_TOKENS - told.tokens - told.unknown
            ids = target.encode_ids([text], add_special_tokens=False)[0][: min(left, longest)]
            if not ids:
                continue
            read = writer.tokenizer.encode(source, max_length=file.max_source_length).ids
            given = [start, *ids[:-1]]
            wanted, scores = _logits(checkpoint, read, given), predictor.logits(read, given)
            told.add(wanted, scores, ids, tokens)
    yield from divergence.checks(profile, found, checkpoint.config.vocabulary_size)


def draws(checkpoint: Any, writer: Any, profile: Profile, file: Any, pairs: Pairs) -> Check:
    """KL divergence by the texts that a file draws which gives no scores of given ones."""
    start = checkpoint.task.with_start_id(checkpoint.decoder_start_token_id).start_id
    most = min(DRAWN_NEW, file.engine.limits.max_sequence_length - 1)
    sources = [
        writer.tokenizer.encode(source, max_length=file.max_source_length).ids
        for some in pairs.values()
        for source, _ in some[:LITE_SOURCES]
    ]
    tokens = divergence.Vocabulary(writer.tokenizer.target, checkpoint.config.vocabulary_size)
    own, wanted = [], []
    for seed, source in enumerate(sources):
        settings = file.generation_config(
            max_new_tokens=most, num_beams=1, num_return_sequences=1, temperature=1.0, seed=seed
        )
        (text,) = file.engine.generate([[start]], settings, sources=[source])
        if text.ids:
            logits = _logits(checkpoint, source, [start, *text.ids[:-1]])
            logs = tokens.log_softmax(logits)
            wanted.append(logs[np.arange(len(text.ids)), text.ids])
            own.append(text.log_probabilities)
    return divergence.of_written(profile, own, wanted)


def _logits(checkpoint: Any, source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """Scores float32 [T, V] of the token after each of `target`, the start token first."""
    ids = {"source_ids": source, "token_ids": target}
    given = {name: np.array([row], np.int32) for name, row in ids.items()}
    given["source_padding_mask"] = np.ones_like(given["source_ids"])
    given["padding_mask"] = np.ones_like(given["token_ids"])
    model = checkpoint.model
    return np.asarray(model({name: given[name] for name in model.input}, training=False))[0]


def _settings(writer: Any, **given: Any) -> Any:
    return writer.generation_config(max_new_tokens=NEW_TOKENS, num_return_sequences=1, **given)


def _request(signature: str, prompts: Sequence[str], **settings: Any) -> dict[str, Any]:
    return {"signature": signature, "inputs": {"prompt": list(prompts), **settings}}


def _sampled(prompts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Row n has the seed `seed` + n."""
    rows = len(prompts)
    settings = {name: [value] * rows for name, value in SAMPLING.items()}
    seeds = [seed + row for row in range(rows)]
    return _request("generate", prompts, max_new_tokens=[NEW_TOKENS] * rows, seed=seeds, **settings)


def _beam(prompts: Sequence[str]) -> dict[str, Any]:
    penalties = [_penalty(row) for row in range(len(prompts))]
    new = [NEW_TOKENS] * len(prompts)
    return _request("beam", prompts, max_new_tokens=new, length_penalty=penalties)


def _penalty(row: int) -> float:
    """Every row its own."""
    return 0.5 * row


def _taken(outputs: Iterator[dict[str, list]], count: int) -> dict[str, list]:
    """The outputs of the next `count` requests, put together by name."""
    some = [next(outputs) for _ in range(count)]
    return {name: [value for one in some for value in one[name]] for name in some[0]}


def _exactly(name: str, found: Sequence[str], wanted: Sequence[str], profile: Profile) -> Check:
    """All must be the same in float32; a rounded model goes its own way once it differs."""
    share = float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))
    if profile.quantization == EXACT:
        return at_least(name, share, profile.least_agreement)
    return stated(name, f"{share:.4g}")
