"""Runs an artifact in the runtime that it is for, and compares it with its checkpoint.

SavedModel: a fresh process that imports only tensorflow and tensorflow_text, compilation by XLA
forbidden, loaded as TF Serving loads it. TFLite: ai-edge-litert. MediaPipe: its own package, where
that is installed.
"""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import CheckFailed
from tfllm.export import tflite, warmup
from tfllm.export.base import (
    Check,
    Profile,
    at_least,
    at_most,
    is_language_model,
    reads_sources,
    stated,
)
from tfllm.export.verify import divergence
from tfllm.export.verify.passages import examples as of_passages
from tfllm.export.verify.sentences import examples as own_examples
from tfllm.tasks.features import IGNORED

# Examples of the data file that raw outputs and answers are compared on; the metric takes all.
COMPARED = 64
ROWS = 16  # of one comparison batch
SAME_COSINE = 0.95  # embeddings nearer than this are the same answer
SECONDS = 600  # for a fresh process

Answer = Mapping[str, Any]
Inputs = dict[str, np.ndarray]


def checks(
    checkpoint: Any, profile: Profile, folder: Path, examples: Sequence[dict] = ()
) -> Iterator[Check]:
    """Every check that runs the artifact in `folder`."""
    if is_language_model(checkpoint):
        from tfllm.export.verify import decoder

        yield from decoder.checks(checkpoint, profile, folder, examples)
        return
    if reads_sources(checkpoint):
        from tfllm.export.verify import seq2seq

        yield from seq2seq.checks(checkpoint, profile, folder, examples)
        return
    from tfllm.runtimes.checkpoint import open_checkpoint

    reference = open_checkpoint(checkpoint)
    if profile.max_length:
        from dataclasses import replace

        task = checkpoint.task.model_copy(update={"max_length": profile.max_length})
        reference = replace(reference, task=task)
    texts = list(examples[:COMPARED]) or [
        *own_examples(checkpoint.task),
        *of_passages(checkpoint.task),
    ]
    yield from RUNTIMES[profile.target](reference, profile, folder, texts)
    if examples:
        yield metric(reference, profile, folder, examples)


def metric(reference: Any, profile: Profile, folder: Path, examples: Sequence[dict]) -> Check:
    """The task's metric on real examples against the checkpoint's, in points of 100."""
    from tfllm.evaluation.harness import evaluate, headline
    from tfllm.runtimes.opening import open_model

    name, before = headline(reference.task, evaluate(reference, list(examples)))
    after = evaluate(open_model(folder), list(examples)).get(name)
    if before is None or after is None:
        return Check(name, "undefined", "a number", False)
    limit = profile.tolerance.metric_points
    return Check(
        f"{name} on {len(examples):,} examples",
        f"{after:.4f} (checkpoint {before:.4f})",
        f"at most {limit:g} points below",
        100 * (before - after) <= limit,
    )


def savedmodel(
    reference: Any, profile: Profile, folder: Path, examples: Sequence[dict]
) -> Iterator[Check]:
    """Signatures with texts and with token ids, and the warm-up records, in a fresh process."""
    from tfllm.export.savedmodel import signatures_of

    signatures = signatures_of(folder)
    names = list(signatures["serving_default"].inputs)
    texts = {name: [_text(example, name) for example in examples] for name in names}
    rows, counted = zip(*_batches(reference, examples), strict=True)
    asked = list(signatures["tokens"].inputs)  # some families have no token types
    warm = list(warmup.requests(signatures, profile.warmup_batch_sizes))
    requests = [{"signature": "serving_default", "inputs": texts}]
    given = [as_lists({name: row[name] for name in asked}) for row in rows]
    requests += [{"signature": "tokens", "inputs": inputs} for inputs in given]
    requests += [{"signature": one.signature, "inputs": as_lists(one.inputs)} for one in warm]
    result = in_fresh_process(folder, requests)
    yield only_tensorflow(result)
    outputs = [_arrays(output) for output in result["outputs"]]
    answers = [
        reference.task.answer_from_signature(
            example, {name: value[place] for name, value in outputs[0].items()}
        )
        for place, example in enumerate(examples)
    ]
    expected = reference.predict(list(examples))
    yield from compared(expected, answers, profile)
    found = [next(iter(output.values())) for output in outputs[1 : 1 + len(rows)]]
    wanted = [reference.call(row) for row in rows]
    yield at_most("raw outputs differ by", _apart(wanted, found), profile.largest_difference)
    yield from divergence.of_answers(profile, reference.task, counted, wanted, found)
    yield at_least("warm-up records answered", len(outputs) - 1 - len(rows), len(warm))


def only_tensorflow(result: Mapping[str, Any], xla: bool = False) -> Check:
    """What a fresh process had to import."""
    return Check(
        "fresh process",
        f"tensorflow {result['versions']['tensorflow']}, loaded in {result['load_seconds']:.2f} s, "
        f"foreign: {', '.join(result['foreign']) or 'nothing'}",
        f"tensorflow and tensorflow_text only, XLA {'allowed' if xla else 'forbidden'}",
        not result["foreign"],
    )


def lite(
    reference: Any, profile: Profile, folder: Path, examples: Sequence[dict]
) -> Iterator[Check]:
    """The file in ai-edge-litert: the same rows of ids, or the texts that both read alike."""
    from tfllm.runtimes.opening import open_model

    predictor = open_model(folder)
    if profile.text:
        alike = _read_alike(reference, examples)
        yield from compared(reference.predict(alike), predictor.predict(alike), profile)
        rows, counted = zip(*(_batches(reference, [one])[0] for one in alike), strict=True)
        wanted = [reference.call(row) for row in rows]
        found = [predictor.scores(example)[None] for example in alike]  # type: ignore[attr-defined]
        yield from divergence.of_answers(profile, reference.task, counted, wanted, found)
        return
    rows, counted = zip(*_batches(reference, examples), strict=True)
    wanted = [reference.call(row) for row in rows]
    found = [predictor.call(row) for row in rows]  # type: ignore[attr-defined]
    if profile.target == "tflite":  # MediaPipe's files give probabilities
        yield at_most("raw outputs differ by", _apart(wanted, found), profile.largest_difference)
    yield from divergence.of_answers(profile, reference.task, counted, wanted, found)
    yield from compared(
        reference.predict(list(examples)), predictor.predict(list(examples)), profile
    )


def mediapipe(
    reference: Any, profile: Profile, folder: Path, examples: Sequence[dict]
) -> Iterator[Check]:
    """The file in ai-edge-litert, and in MediaPipe's own package where that is installed."""
    yield from lite(reference, profile, folder, examples)
    try:
        import mediapipe  # noqa: F401  (the package; this module's folder is tfllm.export)
    except ImportError:
        yield stated("mediapipe package", "not installed, not run: pip install mediapipe")
        return
    from tfllm.export.verify import mediapipe_package

    texts = [one["text"] for one in own_examples(reference.task, plain=True)]
    wanted = mediapipe_package.expected(reference, profile, texts)
    found = mediapipe_package.answers(folder / tflite.FILE, reference.task, texts)
    limit = None if profile.largest_difference is None else profile.largest_difference / 10
    yield at_most("mediapipe package on ASCII texts differs by", _apart([wanted], [found]), limit)


RUNTIMES = {"savedmodel": savedmodel, "tflite": lite, "mediapipe": mediapipe}


def compared(
    expected: Sequence[Answer], found: Sequence[Answer], profile: Profile
) -> Iterator[Check]:
    """Answers against answers: how many are the same, and how far their numbers lie apart."""
    pairs = list(zip(expected, found, strict=True))
    same = sum(same_answer(a, b) for a, b in pairs) / max(1, len(pairs))
    yield at_least(f"same answers of {len(pairs)}", same, profile.least_agreement)
    apart = max((difference(a, b) for a, b in pairs if same_answer(a, b)), default=math.nan)
    yield at_most("their scores differ by", apart, profile.largest_difference)


def same_answer(a: Any, b: Any) -> bool:
    """Whether two answers say the same, their scores aside. Vectors: a cosine near 1."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_answer(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        if a and b and isinstance(a[0], float):
            return _cosine(a, b) >= SAME_COSINE
        return len(a) == len(b) and all(map(same_answer, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isfinite(b)
    return bool(a == b)


def difference(a: Any, b: Any) -> float:
    """The largest difference between numbers at the same place of two answers."""
    if isinstance(a, Mapping):
        return max((difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list):
        return max(map(difference, a, b), default=0.0)
    return abs(a - b) if isinstance(a, float) else 0.0


def in_fresh_process(
    folder: Path,
    requests: Sequence[Mapping[str, Any]],
    python: str = sys.executable,
    xla: bool = False,
) -> dict[str, Any]:
    """What run_savedmodel.py answers. Raises CheckFailed with what the process said."""
    script = Path(__file__).parent / "run_savedmodel.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryDirectory(prefix="tfllm-") as place:
        asked, told = Path(place) / "requests.json", Path(place) / "answers.json"
        asked.write_text(json.dumps(list(requests)))
        # -P: the script's own folder is no place to import from.
        command = [python, "-P", str(script), str(folder), str(asked), str(told)]
        command += ["xla"] if xla else []
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False
        )
        if done.returncode or not told.exists():
            raise CheckFailed(
                f"A process with tensorflow and tensorflow_text alone cannot run '{folder}': "
                f"{_last_error(done.stderr)}"
            )
        return json.loads(told.read_text())


def _last_error(said: str) -> str:
    """The error at the end of what a process said: its first lines, on one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    start = max((n for n, line in enumerate(lines) if "Error:" in line), default=len(lines) - 1)
    return " ".join(lines[start : start + 6])[:600]


def _batches(reference: Any, examples: Sequence[dict]) -> list[tuple[Inputs, np.ndarray]]:
    """Rows of token ids of the examples in batches int32 [B, T], and which of their places count,
    boolean [B, T]: those of texts, or of hidden tokens where the model tells them."""
    task = reference.task
    hides = task.evaluated_on == "masked_tokens"
    if hides:
        task = task.model_copy(update={"packing": False})
        features = task.for_epoch(task.features(examples, reference.tokenizer))
    else:
        features = task.features(examples, reference.tokenizer, targets=False)
    found = []
    for start in range(0, len(features), ROWS):
        rows = range(start, min(start + ROWS, len(features)))
        if hides:
            inputs, targets = features.batch(rows)
            counted = targets != IGNORED
            del inputs["positions"]
        else:
            inputs = features.inputs(rows)
            counted = inputs["padding_mask"] > 0
        found.append((inputs, counted))
    return found


def _read_alike(reference: Any, examples: Sequence[dict]) -> list[dict]:
    """The examples of which every text gets the same ids from TensorFlow Text's tokenizer."""
    from tfllm.export.text_graph import read_alike

    kept = [True] * len(examples)
    for name in ("text", "text_pair"):
        texts = [str(example.get(name, "")) for example in examples]
        alike = read_alike(reference.tokenizer, texts)
        kept = [a and b for a, b in zip(kept, alike, strict=True)]
    return [example for example, keep in zip(examples, kept, strict=True) if keep]


def _apart(wanted: Sequence[np.ndarray], found: Sequence[Any]) -> float:
    """The largest difference of raw outputs; infinite where they are not of one shape."""
    largest = 0.0
    for a, b in zip(wanted, map(np.asarray, found), strict=True):
        if a.shape != b.shape or not np.isfinite(b).all():
            return math.inf
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
    return largest


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    x, y = np.asarray(a), np.asarray(b)
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / lengths if lengths else float(np.array_equal(x, y))


def _text(example: Mapping[str, Any], name: str) -> str:
    """A text input for one example; words are joined as the answers count them."""
    if name == "text" and "words" in example:
        return " ".join(example["words"])
    return example[name]


def as_lists(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays as JSON; bytes that are no text as TF Serving writes them, {"b64": ...}."""
    return {name: _plain(value.tolist()) for name, value in inputs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _arrays(output: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """JSON lists as the arrays that a SavedModel gives: texts are bytes."""
    arrays = {name: np.array(value) for name, value in output.items()}
    return {
        name: np.char.encode(array, "utf-8").astype(object) if array.dtype.kind == "U" else array
        for name, array in arrays.items()
    }
