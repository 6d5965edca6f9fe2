"""Profiles: built in, from YAML, overridden, mistyped."""

from pathlib import Path

import pytest

from tfllm import config
from tfllm.errors import SettingError
from tfllm.export import TARGETS
from tfllm.export.base import PROFILES, Profile, at_least, at_most, profile

FOLDER = Path(__file__).parent.parent.parent / "export"


@pytest.mark.parametrize("name", PROFILES)
def test_the_file_says_what_is_built_in(name):
    assert config.load(FOLDER / f"{name}.yaml", Profile) == profile(name)


def test_every_file_is_built_in():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PROFILES)


def test_every_target_is_in_the_table():
    assert set(Profile.model_fields["target"].annotation.__args__) == set(TARGETS)


def test_keys_are_overridden():
    changed = profile("tflite-int8", ["max_length=64", "tolerance.agreement=0.5"])
    assert (changed.max_length, changed.least_agreement) == (64, 0.5)
    assert profile("tflite-int8").max_length is None


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("target: mediapipe\nmax_length: 32\n")
    assert profile(str(path), ["quantization=float16"]).quantization == "float16"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tflite-in8", [], "Did you mean 'tflite-int8'"),
        ("savedmodel", ["max_lenght=3"], "Did you mean 'max_length'"),
        ("savedmodel", ["max_length=2"], "max_length"),
        ("savedmodel", ["generation.temperature=-0.1"], "temperature"),
        ("savedmodel", ["generation.temperature=.inf"], "temperature"),
        ("savedmodel", ["generation.temperature=.nan"], "temperature"),
        ("savedmodel", ["generation.top_p=.nan"], "top_p"),
        ("savedmodel", ["generation.max_new_tokens=-1"], "max_new_tokens"),
        ("savedmodel", ["quantization=int5"], "quantization"),
        ("missing.yaml", [], "no file"),
    ],
)
def test_mistakes_are_named(name, overrides, message):
    with pytest.raises(SettingError, match=message):
        profile(name, overrides)


def test_not_a_number_never_passes():
    assert not at_most("x", float("nan"), 1.0).passed
    assert not at_most("x", float("nan"), None).passed
    assert not at_least("x", float("nan"), 0.0).passed
    assert at_most("x", 0.5, 0.5).passed and not at_most("x", 0.51, 0.5).passed
