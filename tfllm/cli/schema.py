"""tfllm schema: the JSON Schemas of recipes, profiles and corpus settings, for editors."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = """
Examples:

  tfllm schema --list

  tfllm schema recipe --output recipe.schema.json

An editor with a YAML language server then completes and checks a recipe that begins with

  # yaml-language-server: $schema=recipe.schema.json
"""

SCHEMAS = {
    "recipe": "What to train: a YAML file of models/, for tfllm train.",
    "profile": "What to export: a YAML file of export/, for tfllm export --to.",
    "corpus": "A recipe of which `data` and `tokenizer` are enough, for tfllm prepare.",
    "space": "What may change: the ranges of recipe keys, for tfllm tune --space.",
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(
    name: Annotated[
        str | None, typer.Argument(help=f"{', '.join(SCHEMAS)}.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write; standard output where unset.")
    ] = None,
    list_names: Annotated[
        bool, typer.Option("--list", help="Print the names of the schemas, one a line.")
    ] = False,
) -> None:
    """Write the JSON Schema of a kind of YAML file."""
    from tfllm.errors import SettingError, did_you_mean

    if list_names:
        width = max(map(len, SCHEMAS))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in SCHEMAS.items()))
        return
    if name is None:
        raise SettingError(f"name a schema: {', '.join(SCHEMAS)}. See tfllm schema --help.")
    if name not in SCHEMAS:
        raise SettingError(f"there is no schema '{name}'. {did_you_mean(name, SCHEMAS)}")
    text = json_text(name)
    if output is None:
        print(text, end="")
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        print(output)


def json_text(name: str) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n"


def json_schema(name: str) -> dict[str, Any]:
    """Build the JSON Schema (draft 2020-12) of one kind of YAML file.

    Args:
        name: A key of SCHEMAS.

    Returns:
        The schema as plain data, with the docstring of every key as its description.
    """
    from pydantic import TypeAdapter

    from tfllm.export.profile import Profile
    from tfllm.training.corpora import CorpusRecipe
    from tfllm.training.recipe import Recipe
    from tfllm.training.tuning.space import Space

    kinds: dict[str, Any] = {
        "recipe": Recipe, "profile": Profile, "corpus": CorpusRecipe, "space": Space,
    }  # fmt: skip
    schema = TypeAdapter(kinds[name]).json_schema()
    _tidy(schema)
    if model := schema.get("$defs", {}).get("ModelSettings"):
        _add_family_fields(model)
    return {"$schema": DIALECT, "title": f"tfllm {name}", "description": SCHEMAS[name]} | {
        key: value for key, value in schema.items() if key not in ("title", "description")
    }


def _tidy(node: Any) -> None:
    """Unwrap descriptions, remove titles made of field names, and use JSON Schema's own bounds."""
    if isinstance(node, dict):
        if "gt" in node:  # pydantic's own name, which stays where a bound is on a union
            node["exclusiveMinimum"] = node.pop("gt")
        for key, inner in node.items():
            if key == "properties":
                for field in inner.values():
                    field.pop("title", None)
            if key == "description" and isinstance(inner, str):
                node[key] = " ".join(inner.split())
            else:
                _tidy(inner)
    elif isinstance(node, list):
        for inner in node:
            _tidy(inner)


def _add_family_fields(model: dict[str, Any]) -> None:
    """Add every family's Config fields to the schema of `model`, where pydantic allows any key."""
    from tfllm.models import FAMILIES

    fields: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for family, module in FAMILIES.items():
        for name, field in config_fields(module.Config).items():
            fields.setdefault(name, []).append((family, field))
    for name, owners in fields.items():
        types = {json.dumps(_without_texts(field), sort_keys=True) for _, field in owners}
        kinds = [json.loads(text) for text in sorted(types)]
        texts = [
            f"{family}: {field['description']}"
            for family, field in owners
            if "description" in field
        ]
        families = ", ".join(family for family, _ in owners)
        model["properties"][name] = (kinds[0] if len(kinds) == 1 else {"anyOf": kinds}) | {
            "description": " ".join([f"With `family` {families}.", *texts])
        }
    model["properties"]["family"] = {
        "enum": [*FAMILIES, None], "default": None,
        "description": model["properties"]["family"]["description"],
    }  # fmt: skip
    model["additionalProperties"] = False


def config_fields(config: type) -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every field of a family's Config (a standard dataclass)."""
    from pydantic import TypeAdapter

    fields = TypeAdapter(config).json_schema()["properties"]
    for name, text in _attribute_docstrings(config).items():
        fields[name]["description"] = text
    _tidy({"properties": fields})
    return fields


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """Return the texts that stand under the fields of a class, from its source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: str(text.value.value)
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _without_texts(field: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in field.items() if key not in ("description", "default")}


COMMANDS = {"": schema}
