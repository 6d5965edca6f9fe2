"""The reference pages: recipe and profile keys of the JSON Schemas, the commands of typer, modules.

Nothing here is written by hand twice: every text is a docstring, an attribute docstring or a help
text of the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parent.parent.parent
PACKAGES = (
    "tasks", "models", "layers", "tokenizers", "data", "checkpoints", "generation", "runtimes",
    "training", "evaluation", "export", "serving", "pipelines",
)  # fmt: skip
BASE = ("config", "errors", "lora", "saving")
YAML = {
    "recipe": "# Recipe keys\n\nA recipe is the YAML file that `tfllm train` reads: see "
    "[Training](../training.md). `--set train.epochs=1` overrides any key; an unknown key is an "
    "error that names the nearest known one and its line. The same as JSON Schema, for editors: "
    "[recipe.json](../schemas/recipe.json) (`tfllm schema recipe`).\n",
    "profile": "# Profile keys\n\nA profile is the YAML file that `tfllm export --to` reads: see "
    "[Export](../export.md). As JSON Schema, for editors: [profile.json](../schemas/profile.json) "
    "(`tfllm schema profile`).\n",
    "space": "# Tuning space\n\nThe file that `tfllm tune --space` reads has a dotted recipe key "
    "and one of these a line: see [Tuning](../training.md#tuning). As JSON Schema: "
    "[space.json](../schemas/space.json) (`tfllm schema space`).\n",
}


def pages() -> dict[str, str]:
    """Return path in the site -> markdown of every generated page."""
    result = {f"reference/{name}.md": _yaml_page(name) for name in YAML}
    result["reference/families.md"] = _families_page()
    result["reference/cli.md"] = _cli_page()
    for package in PACKAGES:
        result[f"reference/python/{package}.md"] = _package_page(package)
    result["reference/python/tfllm.md"] = _front_door_page()
    result["reference/python/base.md"] = "# Errors and settings\n\n" + "\n".join(
        f"::: tfllm.{name}\n" for name in BASE if importlib.util.find_spec(f"tfllm.{name}")
    )
    return result


def _yaml_page(name: str) -> str:
    from tfllm.cli.schema import json_schema

    schema = json_schema(name)
    definitions = schema.get("$defs", {})
    parts = [YAML[name]]
    if "properties" in schema:
        parts.append(_table(schema))
    for key in _in_order(schema, definitions):
        title = definitions[key].get("title", key)
        parts.append(f"## {title}\n\n{definitions[key].get('description', '')}\n")
        if "properties" in definitions[key]:
            parts.append(_table(definitions[key]))
    return "\n".join(parts)


def _in_order(schema: Any, definitions: dict[str, Any]) -> list[str]:
    """Return the names of the definitions in the order in which the schema leads to them."""
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.append(name)
                walk(definitions[name])
            for key, inner in node.items():
                if key != "$defs":
                    walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(schema)
    return found


def _table(schema: dict[str, Any]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        default = "" if key not in schema.get("required", ()) else "required"
        if not isinstance(field.get("default"), dict | None):  # a part's defaults are in its table
            default = f"`{json.dumps(field['default'], ensure_ascii=False)}`"
        cells = (f"`{key}`", _type(field), default, field.get("description", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _type(field: dict[str, Any]) -> str:
    """Say what a value may be, in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in field:
            texts = dict.fromkeys(_type(inner) for inner in field[union])
            texts.pop("null", None)
            return " or ".join(texts)
    if "enum" in field or "const" in field:
        values = [value for value in field.get("enum", [field.get("const")]) if value is not None]
        return ", ".join(f"`{value}`" for value in values)
    kind = field.get("type")
    if kind == "array":
        inner = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_type(inner)}" if inner else "list"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {_type(inner)}" if isinstance(inner, dict) else "mapping"
    names = {"integer": "whole number", "boolean": "true, false", "string": "text"}
    return names.get(str(kind), str(kind or "any")) + _bounds(field)


def _bounds(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {field[name]:g}" for name, sign in signs.items() if name in field)


def _families_page() -> str:
    from tfllm.cli.schema import config_fields
    from tfllm.models import FAMILIES

    parts = [
        "# Model families\n\nThe keys of `model:` in a recipe that trains from scratch: `family` "
        "and the fields of its Config. Papers and variants: [Models](../models.md).\n"
    ]
    for family, module in FAMILIES.items():
        parts.append(f"## {family}\n\n{(module.__doc__ or '').strip()}\n")
        parts.append(_table({"properties": config_fields(module.Config)}))
    return "\n".join(parts)


def _cli_page() -> str:
    import typer

    from tfllm.cli import VERBS

    parts = [
        "# Command line\n\n`tfllm COMMAND --help` prints the same. Results go to standard output, "
        "progress and errors to standard error. Exit status: 0 done; 2 wrong input or setting; "
        "1 a fault of tfllm, or a check that failed.\n",
        "| command | does |\n|---|---|",
        *(f"| [`tfllm {verb}`](#tfllm-{verb}) | {text} |" for verb, text in VERBS.items()),
        "",
    ]
    for verb, text in VERBS.items():
        module = importlib.import_module(f"tfllm.cli.{verb}")
        parts.append(f"## tfllm {verb}\n\n{text}\n")
        for name, function in module.COMMANDS.items():
            application = typer.Typer(add_completion=False)
            application.command(name or verb)(function)
            command = typer.main.get_command(application)
            if name:
                parts.append(f"### tfllm {verb} {name}\n")
            parts.append(_command(f"tfllm {verb} {name}".strip(), command))
        examples = [line.strip() for line in module.EXAMPLES.splitlines()]
        lines = [line for line in examples if line.startswith("tfllm ")]
        parts.append("```\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def _command(title: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([title, *(_argument(each) for each in arguments), "[OPTIONS]"])
    parts = [f"```\n{usage}\n```\n", f"{command.help or ''}\n", "| | default | |", "|---|---|---|"]
    for each in arguments:
        parts.append(_row(_argument(each), "", getattr(each, "help", "") or ""))
    for each in options:
        if each.name != "help":
            default = each.default if isinstance(each.default, str | int | float) else ""
            shown = "" if isinstance(default, bool) else str(default)
            parts.append(_row(" ".join([*each.opts, *each.secondary_opts]), shown, each.help or ""))
    return "\n".join(parts) + "\n"


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name).upper().strip("[].")
    name = f"{name}…" if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _row(*cells: str) -> str:
    name, default, text = (cell.replace("|", "\\|") for cell in cells)
    return f"| `{name}` | {f'`{default}`' if default else ''} | {text} |"


def _front_door_page() -> str:
    """Return the page of the names in `tfllm.__all__`, each from the module that defines it."""
    import tfllm

    order = ["load", "open", "train", "evaluate", "export", "Model", "InferenceModel"]
    blocks = "\n".join(f"::: {tfllm.MODULES[name]}.{name}\n" for name in order)
    elsewhere = "\n".join(
        f"- [`tfllm.{name}`][{module}.{name}]"
        for name, module in tfllm.MODULES.items()
        if name not in order
    )
    return (
        "# The front door\n\n`import tfllm` is quick: TensorFlow is loaded when a name is first "
        f"used. All of these are names of `tfllm`; so are\n\n{elsewhere}\n\n{blocks}"
    )


def _package_page(package: str) -> str:
    """Return a page with every module of a package that has public parts."""
    module = importlib.util.find_spec(f"tfllm.{package}")
    assert module is not None and module.submodule_search_locations
    names = [f"tfllm.{package}"] + [
        found.name
        for found in pkgutil.walk_packages(module.submodule_search_locations, f"tfllm.{package}.")
    ]
    return f"# {package.capitalize()}\n\n" + "\n".join(f"::: {name}\n" for name in names)
