"""Recipes: strict keys, strict values, errors that name the line and the next step."""

import pytest

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
        ("name: a\nname: b\n", "recipe.yaml:2: 'name' stands twice"),
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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingError, match="no file"):
        config.load(tmp_path / "none.yaml", Whole)
