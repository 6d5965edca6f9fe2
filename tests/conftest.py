"""What several tests share: quiet TensorFlow, and the folder of real data where there is one."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets (see CONTRIBUTING.md), or a skip that says how to have it."""
    folder = os.environ.get("TFLLM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real data: set TFLLM_DATA to the folder of data sets")
    return Path(folder)
