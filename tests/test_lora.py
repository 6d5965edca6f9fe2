"""Adapters: few trained numbers, the same outputs when merged, saved and loaded alone."""

import keras
import numpy as np
import pytest

from tfllm import lora
from tfllm.errors import CheckpointError, SettingError
from tfllm.layers import heads
from tfllm.models import bert

CONFIG = bert.Config(
    vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=16, max_sequence_length=16
)


def classifier(seed=1):
    keras.utils.set_random_seed(seed)
    backbone = bert.backbone(CONFIG)
    return keras.Model(backbone.input, heads.classification_head(backbone.output, CONFIG, 3))


def batch(rows=4):
    ids = np.random.default_rng(0).integers(5, 50, (rows, 7), dtype=np.int32)
    return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}


def adapted(**options):
    model = classifier()
    paths = lora.enable(model, 2, **options)
    for variable in model.trainable_variables:  # B starts as zero: give it something to do
        variable.assign(keras.random.normal(variable.shape, stddev=0.3, seed=3))
    return model, paths


def test_only_adapters_and_heads_are_trained():
    model, paths = adapted()
    assert sorted(paths) == [
        f"layer_{i}/attention/{name}" for i in range(2) for name in ("query", "value")
    ]
    names = {variable.path for variable in model.trainable_variables}
    assert all("lora_kernel" in name or name.startswith(("pooler", "class")) for name in names)
    assert len(names) == 2 * 2 * 2 + 4
    before = classifier()
    frozen = {v.path: v.numpy() for v in before.variables}
    for variable in model.non_trainable_variables:
        if "seed" not in variable.path:
            assert np.array_equal(variable.numpy(), frozen[variable.path])


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 16.0}, {"targets": ("query", "key", "value", "up", "down")}]
)
def test_merged_weights_give_the_same_outputs(options):
    model, _ = adapted(**options)
    plain = classifier(seed=7)
    assert not np.allclose(plain(batch()), model(batch()), atol=1e-3)
    lora.merge(model, plain)
    np.testing.assert_allclose(plain(batch()), model(batch()), atol=1e-5)
    assert not any("lora" in variable.path for variable in plain.variables)


def test_saved_adapters_are_small_and_come_back(tmp_path):
    model, _ = adapted(alpha=4.0)
    path = lora.save(model, tmp_path / "adapter")
    assert sorted(file.name for file in path.iterdir()) == [lora.SETTINGS, lora.WEIGHTS]
    again = classifier()  # the frozen weights are the backbone's own
    lora.load(again, path)
    np.testing.assert_allclose(again(batch()), model(batch()), atol=1e-6)


def test_an_unknown_target_is_named():
    with pytest.raises(SettingError, match="Did you mean 'query'"):
        lora.enable(classifier(), 2, ("querry",))


def test_faults_of_an_adapter(tmp_path):
    with pytest.raises(CheckpointError, match="adapter.json: cannot be read"):
        lora.load(classifier(), tmp_path)
    path = lora.save(adapted()[0], tmp_path / "adapter")
    backbone = bert.backbone(CONFIG)
    other = keras.Model(backbone.input, heads.token_classification_head(backbone.output, CONFIG, 3))
    with pytest.raises(CheckpointError, match="another model"):
        lora.load(other, path)
