"""Runs a language model's artifact, and compares what it writes and tells with its checkpoint.

What it tells: given real texts, how likely each token is (perplexity), and which one the likeliest
is after each. What it writes: greedy texts token for token, and sampled ones with their seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.export import warmup
from tfllm.export.base import Check, Profile, at_least, at_most, context_of, stated
from tfllm.export.verify import divergence
from tfllm.export.verify.divergence import Told
from tfllm.export.verify.passages import PASSAGES
from tfllm.export.verify.sentences import CONTEXT, PLAIN, QUESTIONS, SENTENCES

PROMPTS = 100
NEW_TOKENS = 24
ROWS = 16  # of one request
ALONE = 4  # prompts that are also asked for one by one
# Tokens of each language (or of the data) whose probabilities are compared: ordinary vocabularies
# make some 700 of our passages in either; in rows of at most TOLD_ROW.
TOLD_TOKENS, TOLD_ROW = 1000, 128
DATA_TOKENS = 2 * TOLD_TOKENS
DRAWN_PROMPT = 8  # tokens of each passage, after which a file that only writes draws its own
SPEED_PROMPT, SPEED_NEW = 32, 32  # tokens
SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
EXACT = "float32"

Rows = list[list[int]]
Texts = Mapping[str, Sequence[str]]
"""By language, or all data under one name."""


def checks(
    checkpoint: Any, profile: Profile, folder: Path, examples: Sequence[dict]
) -> Iterator[Check]:
    """Every check that runs the artifact in `folder`."""
    from tfllm.generation.text_generator import TextGenerator

    writer = TextGenerator(checkpoint)
    given = texts_of(examples)
    told = {"the data": given} if given else PASSAGES
    texts = given or [" ".join(PLAIN), CONTEXT, *SENTENCES]
    yield from RUNTIMES[profile.target](checkpoint, writer, profile, folder, texts, told)


def savedmodel(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str], told: Texts
) -> Iterator[Check]:
    """All signatures in a fresh process, then what the file tells and how quick it is."""
    from tfllm.export.savedmodel import signatures_of
    from tfllm.export.verify import encoder
    from tfllm.runtimes.opening import open_model

    prompts = prompts_of(texts)
    few = [_request(prompts[:ALONE], sampled=True)]
    few += [_request([prompt], sampled=True, seed=n) for n, prompt in enumerate(prompts[:ALONE])]
    many = [_request(prompts[s : s + ROWS]) for s in range(0, len(prompts), ROWS)]
    warm = list(warmup.requests(signatures_of(folder), profile.warmup_batch_sizes))
    records = [{"signature": w.signature, "inputs": encoder.as_lists(w.inputs)} for w in warm]
    scored = [_within(checkpoint, profile, text) for text in texts[:ROWS]]
    score = {"signature": "score", "inputs": {"text": scored}}
    result = encoder.in_fresh_process(folder, [*many, *few, score, *records], xla=profile.xla)
    yield encoder.only_tensorflow(result, profile.xla)
    outputs = result["outputs"]

    found = [text for output in outputs[: len(many)] for text in output["text"]]
    wanted = _texts(writer, prompts)
    same = np.mean([a == b for a, b in zip(found, wanted, strict=True)])
    yield _exactly(f"same greedy texts of {len(prompts)} prompts", float(same), profile)
    together, *alone = outputs[len(many) : len(many) + len(few)]
    same = np.mean([a == b["text"][0] for a, b in zip(together["text"], alone, strict=True)])
    yield _exactly("same sampled texts alone and in a batch", float(same), profile)
    same = np.mean(
        [a == b for a, b in zip(together["text"], _sampled(writer, few[0]), strict=True)]
    )
    yield _exactly("same sampled texts as the checkpoint", float(same), profile)
    yield at_least("warm-up records answered", len(outputs) - len(many) - len(few) - 1, len(warm))

    predictor: Any = open_model(folder)
    yield from tells(checkpoint, profile, predictor, told)
    scores = outputs[len(many) + len(few)]
    yield _scores(checkpoint, profile, scored, scores["log_probability"], scores["token_count"])
    yield speed(predictor.generator.engine, (1, 8))


def _scores(
    checkpoint: Any,
    profile: Profile,
    texts: Sequence[str],
    sums: Sequence[float],
    counts: Sequence[int],
) -> Check:
    """The signature `score` against the checkpoint's own probabilities."""
    from tfllm.runtimes.token_log_probs import target_log_probs

    apart = 0.0
    for text, found, count in zip(texts, sums, counts, strict=True):
        ids = _started(checkpoint, text)
        if count != max(len(ids) - 1, 0):
            return Check("score", f"{count} tokens of '{text[:20]}'", f"{len(ids) - 1}", False)
        if count:
            given, following = np.array([ids[:-1]], np.int32), np.array([ids[1:]], np.int32)
            wanted = float(target_log_probs(_logits(checkpoint, given), following)[0].sum())
            apart = max(apart, abs(found - wanted) / count)
    return at_most("score differs per token by", apart, profile.largest_difference)


def _started(checkpoint: Any, text: str) -> list[int]:
    """A text's tokens, the start token first where there is one."""
    tokenizer = checkpoint.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*start, *tokenizer.encode_ids([text], add_special_tokens=False)[0]]


def _within(checkpoint: Any, profile: Profile, text: str) -> str:
    """The beginning of a text, of at least one token and no more than fit the context."""
    while len(_started(checkpoint, text)) > context_of(checkpoint, profile):
        text = text[: len(text) * 3 // 4]
    return text


def lite(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str], told: Texts
) -> Iterator[Check]:
    """A .tflite file, or the one inside a .litertlm bundle, in ai-edge-litert."""
    from tfllm.runtimes.opening import open_model

    predictor: Any = open_model(folder)
    engine = predictor.generator.engine
    if predictor.logits is not None:
        yield from tells(checkpoint, profile, predictor, told)
    else:
        yield draws(checkpoint, writer, profile, engine, told)
    rows = lengths_of(checkpoint, profile, texts)
    wanted = writer.engine.generate(rows, _settings(writer))
    found = engine.generate(rows, _settings(writer))
    room = context_of(checkpoint, profile)
    pairs = [
        (a.ids[: room - len(row)], b.ids) for a, b, row in zip(wanted, found, rows, strict=True)
    ]
    lengths = ", ".join(str(len(row)) for row in rows)
    same = float(np.mean([a == b for a, b in pairs]))
    yield _exactly(f"same greedy tokens after prompts of {lengths}", same, profile)
    seeded = _settings(writer, seed=11, **SAMPLING)
    wanted, found = (one.generate(rows[:2], seeded) for one in (writer.engine, engine))
    same = float(np.mean([a.ids == b.ids for a, b in zip(wanted, found, strict=True)]))
    yield _exactly("same sampled tokens", same, profile)
    yield speed(engine, (1,), min(SPEED_PROMPT, profile.prompt_length or SPEED_PROMPT))


def litertlm(
    checkpoint: Any, writer: Any, profile: Profile, folder: Path, texts: Sequence[str], told: Texts
) -> Iterator[Check]:
    """The model inside, and the bundle in the litert-lm package where that is installed."""
    from tfllm.export.verify import litertlm_package

    yield from lite(checkpoint, writer, profile, folder, texts, told)
    yield from litertlm_package.checks(checkpoint, writer, profile, folder, texts)


RUNTIMES = {"savedmodel": savedmodel, "tflite": lite, "litertlm": litertlm}


def tells(checkpoint: Any, profile: Profile, predictor: Any, texts: Texts) -> Iterator[Check]:
    """Perplexity on real texts, KL divergence and the likeliest next tokens, against the
    checkpoint's."""
    tokens = divergence.Vocabulary(checkpoint.tokenizer, checkpoint.config.vocabulary_size)
    found = {name: Told() for name in texts}
    for name, rows in told_rows(checkpoint, profile, texts).items():
        for ids in rows:
            given = np.array([ids[:-1]], np.int32)
            wanted, scores = _logits(checkpoint, given)[0], predictor.logits(given)[0]
            found[name].add(wanted, scores, ids[1:], tokens)
    yield from divergence.checks(profile, found, checkpoint.config.vocabulary_size)


def draws(checkpoint: Any, writer: Any, profile: Profile, engine: Any, texts: Texts) -> Check:
    """KL divergence by the texts that a file draws which gives no scores of given ones."""
    rows = beginnings(checkpoint, profile, texts)
    settings = [_settings(writer, temperature=1.0, seed=number) for number in range(len(rows))]
    tokens = divergence.Vocabulary(checkpoint.tokenizer, checkpoint.config.vocabulary_size)
    own, wanted = [], []
    for row, text in zip(rows, engine.generate(rows, settings), strict=True):
        if text.ids:
            logits = _logits(checkpoint, np.array([[*row, *text.ids[:-1]]], np.int32))[0]
            logs = tokens.log_softmax(logits[len(row) - 1 :])
            wanted.append(logs[np.arange(len(text.ids)), text.ids])
            own.append(text.log_probabilities)
    return divergence.of_written(profile, own, wanted)


def speed(engine: Any, batch_sizes: Sequence[int], length: int = SPEED_PROMPT) -> Check:
    """Tokens that a second writes on this machine, one prompt at a time and several."""
    from tfllm.runtimes.benchmark import measure_generation

    found = {size: measure_generation(engine, length, SPEED_NEW, size, 0.0) for size in batch_sizes}
    shown = ", ".join(
        f"{row['written_tokens_per_second']:,.0f} (batch {size})" for size, row in found.items()
    )
    return stated("tokens written a second, here", shown)


def texts_of(examples: Sequence[dict]) -> list[str]:
    """The examples' texts."""
    found = []
    for example in examples:
        if "messages" in example:
            found += [str(message["content"]) for message in example["messages"]]
        else:
            found.append(str(example.get("text", example.get("prompt", ""))))
    return [text for text in found if text.strip()]


def prompts_of(texts: Sequence[str]) -> list[str]:
    """PROMPTS different beginnings of texts, of 1 to 12 words; and the empty one."""
    found = dict.fromkeys([""])
    for words in range(12, 0, -1):
        for text in (*texts, *SENTENCES, *QUESTIONS):
            # The spaces stay as they are; Chinese has none.
            parts = text.split(" ")
            part = " ".join(parts[:words]) if len(parts) > 1 else text[: 2 * words]
            if len(found) < PROMPTS and part.strip():
                found[part] = None
    return list(found)


def told_rows(checkpoint: Any, profile: Profile, texts: Texts) -> dict[str, Rows]:
    """Token ids of real texts, start token first where there is one: rows of at least two."""
    tokenizer = checkpoint.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    width = min(TOLD_ROW, context_of(checkpoint, profile)) - len(start)
    found: dict[str, Rows] = {}
    for name, some in texts.items():
        rows, left = found.setdefault(name, []), TOLD_TOKENS if len(texts) > 1 else DATA_TOKENS
        for ids in tokenizer.encode_ids(list(some), add_special_tokens=False):
            for begin in range(0, len(ids), width):
                row = [*start, *ids[begin : begin + width]][: left + 1]
                if len(row) > 1 and left > 0:
                    rows.append(row)
                    left -= len(row) - 1
    return found


def beginnings(checkpoint: Any, profile: Profile, texts: Texts) -> Rows:
    """The beginnings of texts, DRAWN_PROMPT tokens of each or what a file of whole texts reads."""
    length = min(DRAWN_PROMPT, profile.prompt_length or DRAWN_PROMPT)
    rows = [row for some in told_rows(checkpoint, profile, texts).values() for row in some]
    return [row[:length] for row in rows]


def lengths_of(checkpoint: Any, profile: Profile, texts: Sequence[str]) -> Rows:
    """Prompts of several lengths: one token, over several prefill rows, near the context's end."""
    tokenizer = checkpoint.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    joined = " ".join([*texts[:50], *PLAIN, CONTEXT])
    context = context_of(checkpoint, profile)
    most = profile.prompt_length or context
    stream = tokenizer.encode_ids([joined], add_special_tokens=False)[0]
    stream = [*start, *stream * -(-most // max(1, len(stream)))]
    wanted = (2, 5, 23, 90, most - 3)
    return [stream[:length] for length in sorted({n for n in wanted if 1 <= n < most})]


def _logits(checkpoint: Any, ids: np.ndarray) -> np.ndarray:
    """float32 [1, T, V]."""
    model = checkpoint.model
    given = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return np.asarray(model({name: given[name] for name in model.input}, training=False))


def _request(prompts: Sequence[str], sampled: bool = False, seed: int = 0) -> dict[str, Any]:
    """A request of `generate`; row n of a sampled one has the seed `seed` + n."""
    rows = len(prompts)
    settings = SAMPLING if sampled else {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    return {
        "signature": "generate",
        "inputs": {
            "prompt": list(prompts),
            "max_new_tokens": [NEW_TOKENS] * rows,
            **{name: [value] * rows for name, value in settings.items()},
            "seed": [seed + row if sampled else 0 for row in range(rows)],
        },
    }


def _settings(writer: Any, **fields: Any) -> Any:
    from tfllm.generation.config import generation_config

    return writer.with_eos_token_id(generation_config(max_new_tokens=NEW_TOKENS, **fields))


def _texts(writer: Any, prompts: Sequence[str]) -> list[str]:
    """The checkpoint's own greedy texts. An empty prompt begins as the graph does it."""
    return [text.text for text in _continued(writer, prompts, _settings(writer))]


def _sampled(writer: Any, request: dict[str, Any]) -> list[str]:
    prompts = request["inputs"]["prompt"]
    return [
        _continued(writer, [prompt], _settings(writer, seed=seed, **SAMPLING))[0].text
        for prompt, seed in zip(prompts, request["inputs"]["seed"], strict=True)
    ]


def _continued(writer: Any, prompts: Sequence[str], settings: Any) -> list[Any]:
    first = writer.tokenizer.bos_token_id
    if first is None:
        first = (*writer.checkpoint.eos_token_id, 0)[0]
    ids = [ids or [first] for ids in writer.tokenizer.encode_ids(list(prompts))]
    return writer.generate_from_ids(ids, settings, prompts=list(prompts))


def _exactly(name: str, share: float, profile: Profile) -> Check:
    """All must be the same in float32; a quantized model goes its own way once it differs."""
    if profile.quantization == EXACT:
        return at_least(name, share, profile.least_agreement)
    return stated(name, f"{share:.4g}")
