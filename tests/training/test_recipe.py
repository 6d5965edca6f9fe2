"""Every key of a recipe is described, as its JSON Schema shows it to editors."""

import pytest

from tfllm.training.recipe import Recipe

SCHEMA = Recipe.model_json_schema()
CLASSES = {"Recipe": SCHEMA, **SCHEMA["$defs"]}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_key_has_a_description(name):
    properties = CLASSES[name].get("properties", {})
    missing = [
        key
        for key, field in properties.items()
        if not field.get("description") and "const" not in field  # a task's kind says itself
    ]
    assert missing == []


def test_the_classes_of_a_recipe_are_described():
    for name, schema in CLASSES.items():
        if schema.get("properties"):
            assert schema.get("description"), name
