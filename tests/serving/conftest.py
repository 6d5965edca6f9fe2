"""Servers that all tests of the folder ask."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("tensorflow_serving")

import httpx

from tests.helpers.servers import entries_of, serving
from tests.helpers.waiting import PATIENCE_SECONDS, wait_for
from tests.serving import savedmodels


@pytest.fixture(scope="session")
def models_root(tmp_path_factory) -> Path:
    """The folder of small SavedModels, with its models.config."""
    root = tmp_path_factory.mktemp("models")
    savedmodels.save_all(root)
    return root


@pytest.fixture(scope="session")
def running(models_root):
    """One server for all tests that only ask."""
    with serving(entries_of(models_root)) as running:
        toy = running.server.models.models["toy"]
        wait_for(lambda: toy.available() == [1, 2])
        yield running


@pytest.fixture(scope="session")
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="session", params=["tfllm", "tfserving"])
def contract(request):
    """(client, is_ours): our server, and a real TF Serving where TFSERVING_URL names one."""
    if request.param == "tfllm":
        yield request.getfixturevalue("client"), True
        return
    url = os.environ.get("TFSERVING_URL")
    if not url:
        pytest.skip("TFSERVING_URL is not set: see docs/serving.md")
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
        yield client, False
