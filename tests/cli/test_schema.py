"""`tfllm schema`: what it prints, the committed files, and the YAML files that name them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tfllm.cli import schema
from tfllm.models import FAMILIES

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = ROOT / "docs" / "schemas"
FILES = sorted([*ROOT.glob("models/*/*.yaml"), *ROOT.glob("export/*.yaml")])
MARK = "# yaml-language-server: $schema="


def run(*arguments):
    command = [sys.executable, "-m", "tfllm", "schema", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_verb_prints_and_writes(tmp_path):
    printed = run("recipe")
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout)["title"] == "tfllm recipe"
    written = run("recipe", "--output", str(tmp_path / "deep" / "recipe.json"))
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "deep" / "recipe.json").read_text(encoding="utf-8") == printed.stdout


@pytest.mark.parametrize(
    "arguments, message", [(["recip"], "Did you mean 'recipe'?"), (["--output", "x"], "recipe, ")]
)
def test_a_wrong_name_is_one_line_and_status_2(arguments, message):
    failed = run(*arguments)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_the_list_names_all_schemas():
    assert [line.split()[0] for line in run("--list").stdout.splitlines()] == list(schema.SCHEMAS)


@pytest.mark.parametrize("name", schema.SCHEMAS)
def test_committed_schemas_are_up_to_date(name):
    committed = (SCHEMAS / f"{name}.json").read_text(encoding="utf-8")
    assert committed == schema.json_text(name), "run: make schemas"


def test_every_committed_schema_has_a_name():
    assert {path.stem for path in SCHEMAS.glob("*.json")} == set(schema.SCHEMAS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_files_name_their_schema_and_follow_it(path):
    jsonschema = pytest.importorskip("jsonschema")
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith(MARK)
    named = (path.parent / first.removeprefix(MARK)).resolve()
    assert named.parent == SCHEMAS
    expected = "profile" if path.parent.name == "export" else "recipe"
    assert named.stem == ("space" if path.stem.endswith("_space") else expected)
    checked = json.loads(named.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(checked)
    jsonschema.validate(yaml.safe_load(text), checked)


def test_an_unknown_key_of_a_model_is_refused():
    jsonschema = pytest.importorskip("jsonschema")
    recipe = {
        "name": "x", "model": {"family": "bert", "num_leyers": 2}, "task": {"kind": "masked_lm"},
        "data": {"train": "x.txt"},
    }  # fmt: skip
    with pytest.raises(jsonschema.ValidationError, match="num_leyers"):
        jsonschema.validate(recipe, schema.json_schema("recipe"))
    recipe["model"] = {"family": "bert", "num_layers": 2}
    jsonschema.validate(recipe, schema.json_schema("recipe"))


def test_fields_of_every_family_are_described():
    model = schema.json_schema("recipe")["$defs"]["ModelSettings"]["properties"]
    for family, module in FAMILIES.items():
        for name in schema.config_fields(module.Config):
            assert family in model[name]["description"]
    assert "four times `hidden_dim`" in model["intermediate_dim"]["description"]
