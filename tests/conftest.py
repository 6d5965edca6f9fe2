"""What several tests share: quiet TensorFlow, real data where there is some, a tiny checkpoint."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# The same examples in each run: what turns red is the change's doing. TFLLM_RANDOM=1 looks further.
settings.register_profile("same examples", derandomize=not os.environ.get("TFLLM_RANDOM"))
settings.load_profile("same examples")

STARTED = time.monotonic()
SLOW_MARKS = ("slow", "parity", "edge")


def pytest_runtest_setup(item):
    """Skips the slow marks once the minutes in TFLLM_SLOW_MINUTES are over, saying so."""
    minutes = os.environ.get("TFLLM_SLOW_MINUTES")
    slow = [mark for mark in SLOW_MARKS if item.get_closest_marker(mark)]
    if minutes and slow and time.monotonic() - STARTED > 60 * float(minutes):
        pytest.skip(f"{slow[0]}: the {minutes} minutes of TFLLM_SLOW_MINUTES are over")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets (see CONTRIBUTING.md), or a skip that says how to have it."""
    folder = os.environ.get("TFLLM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set TFLLM_DATA to the folder of data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A directory with a random two-layer encoder whose tokenizer spells words letter by letter."""
    from tests.helpers.vocabularies import SPELLING
    from tfllm.checkpoints import store
    from tfllm.models.bert import Config
    from tfllm.tasks import Classification
    from tfllm.tokenizers.wordpiece import WordPiece

    config = Config(
        vocabulary_size=len(SPELLING), num_layers=2, num_heads=2, hidden_dim=16,
        max_sequence_length=128,
    )  # fmt: skip
    task = Classification(labels=("negative", "positive"))
    tokenizer = WordPiece.from_vocabulary(SPELLING, lowercase=True)
    checkpoint = store.create("bert", config, tokenizer, task)
    return store.save(checkpoint, tmp_path_factory.mktemp("tiny") / "checkpoint")
