"""GenerationConfig, the table of its fields, and what derives from both."""

import pytest

from tfllm import config
from tfllm.errors import SettingError
from tfllm.generation.config import (
    FIELDS,
    ID_ROWS,
    BatchedConfig,
    GenerationConfig,
    GenerationOverrides,
    batch_configs,
    batched_config_specs,
    description_of,
    fields_in,
    signature_fields,
)


def test_the_table_names_every_field_once():
    assert set(FIELDS) == set(GenerationConfig.model_fields)
    per_row = {name for name, use in FIELDS.items() if use.per_row}
    assert set(BatchedConfig._fields) == per_row | {"sequence_index", "max_length"}
    assert all(description_of(name).endswith(".") for name in FIELDS)


def test_signatures_and_groups_keep_their_order():
    assert list(signature_fields("generate")) == [
        "max_new_tokens", "temperature", "top_k", "top_p", "seed",
    ]  # fmt: skip
    assert {name: dtype.name for name, dtype in signature_fields("beam").items()} == {
        "max_new_tokens": "int32",
        "length_penalty": "float32",
    }
    assert fields_in("sampling") == ("temperature", "top_k", "top_p", "min_p", "seed")


def test_a_batch_has_the_types_and_ranks_of_its_specs():
    batch = batch_configs([GenerationConfig(bad_words_ids=((1, 2),)), GenerationConfig()], [9, 8])
    for values, spec in zip(batch, batched_config_specs(), strict=True):
        assert values.dtype == spec.dtype.as_numpy_dtype
        assert values.ndim == spec.shape.rank == ID_ROWS.get(spec.name, 1)
        assert len(values) == 2


def test_overrides_have_every_field_and_its_limits():
    assert set(GenerationOverrides.model_fields) == set(FIELDS)
    overrides = config.build({"num_beams": 3, "temperature": None}, GenerationOverrides)
    assert overrides.set_fields() == {"num_beams": 3}
    for wrong in ({"num_beams": 0}, {"top_p": 1.5}, {"temperature": float("inf")}, {"seed": -1}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            config.build(wrong, GenerationOverrides)


def test_overrides_become_keys_of_generation_config_json():
    overrides = GenerationOverrides(temperature=0.7, seed=3)
    assert overrides.to_huggingface() == {"temperature": 0.7, "do_sample": True}
