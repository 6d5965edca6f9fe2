"""Recipes: strict keys, strict values, errors that name the line and the next step."""

import typing

import pytest
import yaml
from pydantic import ConfigDict, model_validator

from tfllm import config
from tfllm.config import Settings
from tfllm.errors import SettingError


class Part(Settings):
    epochs: int = 1
    rate: float = 0.1
    betas: tuple[float, ...] = ()


class Whole(Settings):
    name: str
    train: Part = Part()


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_reads_nested_values(tmp_path):
    path = write(tmp_path, "name: a\ntrain:\n  epochs: 3\n  rate: 2e-5\n  betas: [0.9, 0.98]\n")
    assert config.load(path, Whole) == Whole(
        name="a", train=Part(epochs=3, rate=2e-5, betas=(0.9, 0.98))
    )


def test_overrides_in_order(tmp_path):
    path = write(tmp_path, "name: a\n")
    whole = config.load(path, Whole, ["train.epochs=3", "train.epochs=4", "name=b"])
    assert (whole.train.epochs, whole.name) == (4, "b")


def test_written_file_reads_back(tmp_path):
    whole = Whole(name="b", train=Part(epochs=2, betas=(0.5,)))
    assert config.load(write(tmp_path, config.dump(whole)), Whole) == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ntrain:\n  epoch: 3\n", "recipe.yaml:3: unknown key 'train.epoch'. "
         "Did you mean 'epochs'?"),
        ("name: a\ntrain: {epochs: '3'}\n", "recipe.yaml:2: train.epochs"),
        ("train: {}\n", "the key 'name' is missing"),
        ("name: a\nname: b\n", "recipe.yaml:2: 'name' appears twice"),
        ("name: [a\n", "not YAML"),
        ("", "empty"),
        ("- a\n", "expected a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path, text, said):
    with pytest.raises(SettingError) as error:
        config.load(write(tmp_path, text), Whole)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override", ["epochs", "=3", "name.first=3", "train.epochs=[", "trian.epochs=1"]
)
def test_a_bad_override_is_named(tmp_path, override):
    with pytest.raises(SettingError):
        config.load(write(tmp_path, "name: a\n"), Whole, [override])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{good: -1}", r"train\.class_weights\.good: Input should be greater than or equal to 0"),
        ("{good: -2.5}", r"train\.class_weights\.good: Input should be greater than or equal to 0"),
        ("[1, -1]", r"train\.class_weights\.1: Input should be greater than or equal to 0"),
        ("[1, .nan]", r"train\.class_weights\.1: Input should be a finite number"),
        ("{good: x}", r"train\.class_weights\.good: Input should be a valid number"),
        ("balance", r"train\.class_weights: Input should be 'balanced'. Found: 'balance'"),
    ],
)
def test_a_wrong_value_of_several_kinds_is_told_of_the_kind_that_it_is(tmp_path, value, said):
    from tfllm.training.recipe import Recipe

    path = write(
        tmp_path,
        "name: a\nmodel: {family: bert}\ntask: {kind: classification}\ndata: {train: x.tsv}\n"
        f"train:\n  class_weights: {value}\n",
    )
    with pytest.raises(SettingError, match=rf"recipe\.yaml:6: {said}"):
        config.load(path, Recipe)


def test_a_date_is_a_text(tmp_path):
    path = write(tmp_path, "name: 2026-01-31\n")
    assert config.load(path, Whole).name == "2026-01-31"
    assert config.load(path, Whole, ["name=2026-02-01"]).name == "2026-02-01"
    again = config.dump(Whole(name="2026-01-31"))
    assert config.load(write(tmp_path, again), Whole).name == "2026-01-31"
    assert config.load(write(tmp_path, "name: a\ntrain: {rate: 2e-5}\n"), Whole).train.rate == 2e-5


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingError, match="no file"):
        config.load(tmp_path / "none.yaml", Whole)


class Nullable(Settings):
    limit: float | None = 1.0
    note: str | None = None
    sizes: dict[str, int | None] = {}
    parts: tuple[Part, ...] = ()
    inner: Part | None = Part()


class Open(Settings):
    model_config = ConfigDict(extra="allow")


class Outer(Settings):
    one: Nullable = Nullable()
    shape: Open = Open()


@pytest.mark.parametrize(
    "whole",
    [
        Outer(),
        Outer(one=Nullable(limit=None)),
        Outer(one=Nullable(limit=None, note="x", sizes={"a": None, "b": 1}, inner=None)),
        Outer(one=Nullable(parts=(Part(epochs=2), Part()))),
        Outer(shape=Open(norm=None, size=3)),
    ],
)
def test_null_stays_null(tmp_path, whole):
    text = config.dump(whole)
    assert config.load(write(tmp_path, text), Outer) == whole
    assert "note: null" not in text


def every_nullable(kind, path=()):
    """(path, field) of every setting whose default is not null, and that may be null."""
    for name, field in kind.model_fields.items():
        inner = config._settings_class(field.annotation)
        if inner is not None:
            yield from every_nullable(inner, (*path, name))
        if type(None) in typing.get_args(field.annotation) and field.default is not None:
            yield (*path, name)


def test_every_recipe_key_that_may_be_null_stays_null():
    from tfllm.training.recipe import Recipe

    keys = list(every_nullable(Recipe))
    assert ("train", "clip_norm") in keys
    base = {
        "name": "a",
        "model": {"family": "bert"},
        "task": {"kind": "classification"},
        "data": {"train": "x.tsv"},
    }
    for key in keys:
        recipe = config.build(config.set_value(base, key, None, ""), Recipe)
        again = config.build(yaml.safe_load(config.dump(recipe)), Recipe)
        assert again == recipe, key


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.epochs=many"], "--set train.epochs=many: train.epochs: "),
        (["train.epoch=1"], "--set train.epoch=1: unknown key 'train.epoch'. "
         "Did you mean 'epochs'?"),
        (["trian.epochs=1"], "--set trian.epochs=1: unknown key 'trian'. Did you mean 'train'?"),
        (["name=b", "train.epochs=1.5", "train.rate=2"], "--set train.epochs=1.5: train.epochs"),
        (["train.epochs=2", "train.epochs=x"], "--set train.epochs=x: train.epochs"),
        (["train=3"], "--set train=3: train"),
        (["train={epoch: 1}"], "--set train={epoch: 1}: unknown key 'train.epoch'"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_told_as_one(tmp_path, overrides, said):
    path = write(tmp_path, "name: a\ntrain:\n  epochs: 3\n")
    with pytest.raises(SettingError) as error:
        config.load(path, Whole, overrides)
    assert error.value.cli_message.startswith(said), error.value
    assert "recipe.yaml" not in str(error.value) and "\n" not in str(error.value)


def test_a_fault_of_the_file_is_not_blamed_on_an_override(tmp_path):
    path = write(tmp_path, "name: a\ntrain:\n  epochs: x\n")
    with pytest.raises(SettingError, match=r"recipe\.yaml:3: train\.epochs"):
        config.load(path, Whole, ["train.rate=0.5", "name=b"])


class Range(Settings):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _in_order(self):
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Ranges(Settings):
    range: Range = Range()


def test_parts_that_do_not_fit_are_told_of_who_made_them_so(tmp_path):
    path = write(tmp_path, "range: {low: 0, high: 5}\n")
    with pytest.raises(SettingError, match="^range.low=7: range: low is above high"):
        config.load(path, Ranges, ["range.low=7"])
    path = write(tmp_path, "range: {low: 9, high: 5}\n")
    with pytest.raises(SettingError, match=r"recipe\.yaml:1: range: low is above high"):
        config.load(path, Ranges, ["range.low=7"])
