"""Tasks from plain data and back."""

import json

import pytest

from tfllm import config, tasks
from tfllm.errors import SettingError


class Holder(config.Settings):
    task: tasks.AnyTask


@pytest.mark.parametrize("kind", tasks.TASKS)
def test_there_and_back(kind):
    task = tasks.build({"kind": kind})
    assert type(task) is tasks.TASKS[kind]
    assert tasks.build(json.loads(task.model_dump_json())) == task
    assert config.build({"task": {"kind": kind}}, Holder).task == task


def test_lists_fill_tuples():
    task = tasks.build({"kind": "classification", "labels": ["no", "yes"]})
    assert task.labels == ("no", "yes")


@pytest.mark.parametrize(
    "data, message",
    [
        ({"kind": "clasification"}, "unknown task 'clasification'. Did you mean 'classification'?"),
        ({"labels": []}, "the key 'kind' is missing"),
        ({"kind": "embedding", "poolling": "mean"}, "Did you mean 'pooling'?"),
        ({"kind": "embedding", "max_length": 1}, "max_length"),
        ("classification", "expected a mapping"),
    ],
)
def test_wrong_settings(data, message):
    with pytest.raises(SettingError, match=message):
        tasks.build(data)
    with pytest.raises(SettingError):
        config.build({"task": data}, Holder)
