"""Gemma 3 270M with its real weights: the same logits as transformers, in as little memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden.gemma_texts import TEXTS
from tests.helpers import real_gemma
from tfllm.checkpoints import store

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden" / "gemma.npz"
# Of logits up to 30: sums of 640 to 2,048 products in float32, in another order, in 18 layers.
TOLERANCE = 1e-3
# Of the size of the weights: they, tokenizer, graph and the tensor under way.
ALLOWED_SHARE = 1.2
ALLOWED_GGUF = 1.6  # the pages of the mapped file count as well

MEMORY = """
import resource, sys
import tensorflow, keras, tfllm
from tfllm.checkpoints import store
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = store.load(sys.argv[1]).model
print((peak() - before) / sum(4 * int(weight.shape.num_elements()) for weight in model.weights))
"""


@pytest.fixture(scope="module")
def path():
    return real_gemma.gguf_file()


@pytest.fixture(scope="module")
def checkpoint(path):
    return store.load(path)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_ids_and_logits_are_transformers(number, checkpoint):
    golden = np.load(GOLDEN)
    ids = golden[f"ids/{number}"]
    (found,) = checkpoint.tokenizer.encode_ids([TEXTS[number]])
    assert list(found) == list(ids)
    rows = ids[None]
    model = checkpoint.model
    logits = np.asarray(model({"token_ids": rows, "padding_mask": np.ones_like(rows)}))[0]
    top = np.take_along_axis(logits, golden[f"top_ids/{number}"], -1)
    np.testing.assert_allclose(top, golden[f"top_logits/{number}"], atol=TOLERANCE)
    largest = logits.max(-1)
    totals = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
    np.testing.assert_allclose(totals, golden[f"totals/{number}"], atol=TOLERANCE)


def share_of(source):
    """The peak of memory while loading in a new process, of the size of the weights."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, source], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_loading_takes_little_more_than_the_weights(path, checkpoint, tmp_path):
    assert share_of(path) < ALLOWED_GGUF
    store.save(checkpoint, tmp_path / "own")
    assert share_of(tmp_path / "own") < ALLOWED_SHARE
