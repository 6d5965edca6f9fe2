"""Runs an encoder-decoder's artifact, and compares what it writes with its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.export import verify, warmup
from tfllm.export.base import Check, Profile, at_least, at_most, beams_of, own_beams, stated
from tfllm.export.sentences import SENTENCES
from tfllm.tasks.seq2seq import source_of

SOURCES = 200  # real ones at most
LITE_SOURCES = 24
NEW_TOKENS = 24
ROWS = 16  # of one request
ALONE = 4  # sources that are also asked for one by one
SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
SCORES = 1e-3  # sums of some dozen float32 log-probabilities, over their number
EXACT = "float32"


def checks(
    checkpoint: Any, profile: Profile, folder: Path, examples: Sequence[dict]
) -> Iterator[Check]:
    """Every check that runs the artifact in `folder`."""
    from tfllm.generation.text_to_text import TextToText

    writer = TextToText(checkpoint)
    yield from RUNTIMES[profile.target](checkpoint, writer, profile, folder, sources_of(examples))
    if examples:
        yield bleu(checkpoint, profile, folder, examples)


def bleu(checkpoint: Any, profile: Profile, folder: Path, examples: Sequence[dict]) -> Check:
    """BLEU on real pairs against the checkpoint's, both as the file writes."""
    from tfllm.evaluation.checkpoint_model import open_checkpoint
    from tfllm.evaluation.harness import evaluate, open_model

    writing = {"num_beams": _beams(checkpoint, profile), "truncate": True}
    before, after = (
        evaluate(model, list(examples), writing=writing)["bleu"]
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


def savedmodel(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str]
) -> Iterator[Check]:
    """All signatures in a fresh process."""
    from tfllm.export.savedmodel import signatures_of

    batches = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
    few = texts[:ALONE]
    requests = [_request("serving_default", batch) for batch in batches]
    requests += [_request("serving_default", [text]) for text in few]
    requests += [_sampled(few), *(_sampled([text], seed) for seed, text in enumerate(few))]
    requests.append(_beam(few))
    warm = list(warmup.requests(signatures_of(folder), profile.warmup_batch_sizes))
    requests += [{"signature": w.signature, "inputs": verify.as_lists(w.inputs)} for w in warm]
    result = verify.in_fresh_process(folder, requests)
    yield verify.only_tensorflow(result)
    outputs = iter(result["outputs"])

    found = _taken(outputs, len(batches))
    settings = writer.defaults(num_beams=_beams(checkpoint, profile), num_return_sequences=1)
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


def lite(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str]
) -> Iterator[Check]:
    """A .tflite file in ai-edge-litert: greedy and sampled texts."""
    from tfllm.evaluation.harness import open_model

    predictor: Any = open_model(folder)
    file = predictor.generator
    longest = file.longest_source
    most = file.engine.decoder.max_sequence_length - 1  # a file of whole texts may hold fewer
    ids = [writer.tokenizer.encode(text, max_length=longest).ids for text in texts[:LITE_SOURCES]]
    for name, given in (("greedy", {}), ("sampled", {"seed": 11, **SAMPLING})):
        settings = file.defaults(max_new_tokens=min(NEW_TOKENS, most), **given)
        found, wanted = (
            [text.text for text in one.continued(ids, settings)] for one in (file, writer)
        )
        yield _exactly(f"same {name} texts of {len(ids)} sources", found, wanted, profile)


RUNTIMES = {"savedmodel": savedmodel, "tflite": lite}


def _settings(writer: Any, **given: Any) -> Any:
    return writer.defaults(max_new_tokens=NEW_TOKENS, num_return_sequences=1, **given)


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
