"""Every block of docs/migration.md runs, with tiny random models by the names that stand there."""

import functools
import re
from pathlib import Path

import pytest

import tfllm
from tests.helpers import byte_models, translators
from tests.helpers.encoders import make

PAGE = Path(__file__).parent.parent.parent / "docs" / "migration.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
MODELS = {
    "models/opus-mt-en-de": translators.checkpoint,
    "runs/headlines": translators.checkpoint,
    "runs/stories": byte_models.checkpoint,
    "runs/sst2": lambda: make("classification"),
    "runs/squad": lambda: make("question_answering"),
    "runs/conll": lambda: make("token_classification"),
}


@functools.cache
def loaded(name):
    return MODELS[name]()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number, monkeypatch, capsys):
    made = tfllm.pipeline
    monkeypatch.setattr(
        tfllm, "pipeline", lambda task, model, **options: made(task, loaded(model), **options)
    )
    monkeypatch.setattr(tfllm, "load", lambda name: tfllm.Model(loaded(name)))
    exec(compile(BLOCKS[number], f"{PAGE.name} {number}", "exec"), {"tfllm": tfllm})
    assert capsys.readouterr().out.strip()
