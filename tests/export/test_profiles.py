"""Profiles: built in, from YAML, overridden, mistyped."""

from pathlib import Path

import pytest

from tfllm import config
from tfllm.errors import SettingError
from tfllm.export import TARGETS, load_profile, profile_names
from tfllm.export.artifact import at_least, at_most
from tfllm.export.profile import Profile

FOLDER = Path(__file__).parent.parent.parent / "export"


@pytest.mark.parametrize("name", profile_names())
def test_the_file_says_what_is_built_in(name):
    assert config.load(FOLDER / f"{name}.yaml", Profile) == load_profile(name)


def test_every_file_is_built_in():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(profile_names())


def test_every_profile_has_a_target_of_the_table_and_every_target_has_a_profile():
    assert {load_profile(name).target for name in profile_names()} == set(TARGETS)


def test_keys_are_overridden():
    changed = load_profile("tflite-int8", ["max_length=64", "tolerance.agreement=0.5"])
    assert (changed.max_length, changed.limits.agreement) == (64, 0.5)
    assert load_profile("tflite-int8").max_length is None


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("target: mediapipe\nmax_length: 32\n")
    assert load_profile(str(path), ["quantization=float16"]).quantization == "float16"


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
        ("savedmodel", ["target=savedmodl"], "Did you mean 'savedmodel'"),
    ],
)
def test_mistakes_are_named(name, overrides, message):
    with pytest.raises(SettingError, match=message):
        load_profile(name, overrides)


def test_not_a_number_never_passes():
    assert not at_most("x", float("nan"), 1.0).passed
    assert not at_most("x", float("nan"), None).passed
    assert not at_least("x", float("nan"), 0.0).passed
    assert at_most("x", 0.5, 0.5).passed and not at_most("x", 0.51, 0.5).passed
