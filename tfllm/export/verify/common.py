"""Shared parts of the checks: artifacts in processes of their own, and comparisons of outputs."""

from __future__ import annotations

import base64
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfllm.errors import CheckFailed
from tfllm.export import warmup_requests
from tfllm.export.artifact import Check, at_least, report
from tfllm.export.profile import Profile

BATCH_SIZE = 16  # of requests and comparison batches
SINGLE_REQUESTS = 4  # prompts that are also sent one by one
NEW_TOKENS = 24  # of generated texts
SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
LITE_SAMPLING_SEED = 11
# Scored tokens of each language (or, doubled, of the data), in rows of at most SCORED_ROW tokens:
# ordinary vocabularies make about 700 tokens of the sample passages in either language.
SCORED_TOKENS, SCORED_ROW = 1000, 128
EXACT = "float32"  # the quantization in which generated texts must be equal
TIMEOUT_SECONDS = 600  # of a fresh process
ERROR_LINES, ERROR_CHARACTERS = 6, 600

Inputs = dict[str, np.ndarray]


def run_script(
    script: str,
    arguments: Sequence[str],
    request: object,
    *,
    python: str = sys.executable,
    options: Sequence[str] = (),
    timeout: float = TIMEOUT_SECONDS,
) -> Any:
    """Run a script of this package in a process of its own, which reads and writes JSON.

    Args:
        script: File name in this package; called as `script *arguments REQUEST ANSWER *options`.
        arguments: First arguments of the script.
        request: Written to REQUEST.
        python: The Python to run it with.
        options: Last arguments.
        timeout: Seconds.

    Returns:
        The contents of ANSWER.

    Raises:
        CheckFailed: The process failed; the message is the end of its error output.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    with tempfile.TemporaryDirectory(prefix="tfllm-") as directory:
        request_file, answer_file = (
            Path(directory) / "request.json",
            Path(directory) / "answer.json",
        )
        request_file.write_text(json.dumps(request))
        # -P: nothing is imported from the script's own directory.
        command = [python, "-P", str(Path(__file__).parent / script), *arguments]
        command += [str(request_file), str(answer_file), *options]
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout, check=False
        )
        if process.returncode or not answer_file.exists():
            raise CheckFailed(_last_error(process.stderr))
        return json.loads(answer_file.read_text())


def run_savedmodel(
    directory: Path,
    requests: Sequence[Mapping[str, object]],
    python: str = sys.executable,
    xla: bool = False,
) -> dict[str, Any]:
    """Run a SavedModel in a process with tensorflow and tensorflow_text alone.

    Args:
        directory: The version directory.
        requests: `{"signature": name, "inputs": {name: nested list}}` each.
        python: The Python to run it with.
        xla: Allow compilation by XLA.

    Returns:
        `outputs`, one dict of nested lists per request; `foreign`, `load_seconds`, `versions`; see
        run_savedmodel.py.

    Raises:
        CheckFailed: The process could not run it.
    """
    options = ["xla"] if xla else []
    try:
        return run_script(
            "run_savedmodel.py", [str(directory)], list(requests), python=python, options=options
        )
    except CheckFailed as error:
        raise CheckFailed(
            f"A process with tensorflow and tensorflow_text alone cannot run '{directory}': {error}"
        ) from None


def _last_error(stderr: str) -> str:
    """Return the first lines of the last error in a process's error output, on one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["no error output"]
    start = max((i for i, line in enumerate(lines) if "Error:" in line), default=len(lines) - 1)
    return " ".join(lines[start : start + ERROR_LINES])[:ERROR_CHARACTERS]


def check_imports(result: Mapping[str, Any], xla: bool = False) -> Check:
    """Check what the fresh process of `run_savedmodel` had to import."""
    return Check(
        "fresh process",
        f"tensorflow {result['versions']['tensorflow']}, loaded in {result['load_seconds']:.2f} s, "
        f"foreign: {', '.join(result['foreign']) or 'nothing'}",
        f"tensorflow and tensorflow_text only, XLA {'allowed' if xla else 'forbidden'}",
        not result["foreign"],
    )


def equal_or_reported(
    name: str, equal: Sequence[bool], profile: Profile, limit: float | None = None
) -> Check:
    """Check a fraction of equal results in float32, and report it in other formats.

    There one different token changes all that follow.

    Args:
        name: What is compared.
        equal: Whether each result is.
        profile: The profile.
        limit: The least fraction; None: the profile's agreement.
    """
    fraction = float(np.mean(equal)) if len(equal) else 0.0
    if profile.quantization == EXACT:
        return at_least(name, fraction, profile.limits.agreement if limit is None else limit)
    return report(name, f"{fraction:.4g}")


def compare_texts(
    name: str, actual: Sequence[object], expected: Sequence[object], profile: Profile
) -> Check:
    """Check that texts, or rows of token ids, are equal; see `equal_or_reported`."""
    return equal_or_reported(name, equal_items(actual, expected), profile)


def equal_items(a: Sequence[object], b: Sequence[object]) -> list[bool]:
    """Return whether the items at each position are equal; the lengths must be."""
    return [x == y for x, y in zip(a, b, strict=True)]


def generate_request(
    prompts: Sequence[str], sampled: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Return a request of the signature `generate`.

    Args:
        prompts: The prompts.
        sampled: Whether tokens are sampled, or greedy.
        seed: Of the first row; row n has `seed` + n.
    """
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


def warmup_as_json(
    signatures: warmup_requests.SignatureDefs, profile: Profile
) -> list[dict[str, Any]]:
    """Return the warm-up requests as `run_savedmodel` takes them."""
    requests = warmup_requests.build_requests(signatures, profile.warmup_batch_sizes)
    return [{"signature": r.signature, "inputs": as_json(r.inputs)} for r in requests]


def max_abs_difference(expected: Sequence[np.ndarray], actual: Sequence[ArrayLike]) -> float:
    """Return the largest difference of raw outputs; infinite where shapes differ or for NaN.

    Args:
        expected: Arrays of any shapes.
        actual: Arrays of the same shapes.
    """
    largest = 0.0
    for a, b in zip(expected, map(np.asarray, actual), strict=True):
        if a.shape != b.shape or not np.isfinite(b).all():
            return math.inf
        largest = max(largest, float(np.abs(a - b).max(initial=0.0)))
    return largest


def as_json(inputs: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Return arrays as nested lists; bytes as TF Serving's JSON has them, {"b64": ...}."""
    return {name: _as_json(value.tolist()) for name, value in inputs.items()}


def _as_json(value: object) -> object:
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def as_arrays(output: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """Return nested lists as the arrays that a SavedModel gives: texts are bytes."""
    arrays = {name: np.array(value) for name, value in output.items()}
    return {
        name: np.char.encode(array, "utf-8").astype(object) if array.dtype.kind == "U" else array
        for name, array in arrays.items()
    }
