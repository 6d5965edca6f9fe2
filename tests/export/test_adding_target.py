"""An export target is one file, one line in TARGETS and one profile: a toy one does all of it."""

import json

import numpy as np
import pytest

import tfllm
from tests.helpers.encoders import make
from tfllm import config
from tfllm.errors import CheckFailed, SettingError
from tfllm.export import TARGETS, artifact, export, load_profile
from tfllm.runtimes.checkpoint import open_checkpoint

PROFILE = "target: arrays\nmax_length: 16\ntolerance: {abs_difference: 1.0e-5}\n"


class Arrays:
    """The file of the toy target: all weights as one .npz, with the checkpoint's tokenizer."""

    rounding = np.float32

    def artifact_path(self, output):
        return output

    def validate(self, checkpoint, profile):
        if not checkpoint.task.pooled:
            raise SettingError(f"arrays: {checkpoint.task.kind} is not for this target.")

    def write(self, checkpoint, profile, directory):
        weights = [weight.numpy() for weight in checkpoint.model.weights]
        stored = {str(i): w.astype(self.rounding) for i, w in enumerate(weights)}
        np.savez(directory / "weights.npz", **stored)
        artifact.write_assets(checkpoint, directory)

    def check_files(self, checkpoint, profile, directory):
        count = len(np.load(directory / "weights.npz").files)
        expected = len(checkpoint.model.weights)
        return [artifact.Check("weights", str(count), str(expected), count == expected)]

    def check_outputs(self, checkpoint, profile, directory, examples):
        stored = np.load(directory / "weights.npz")
        differences = [
            np.abs(weight.numpy() - stored[str(i)]).max()
            for i, weight in enumerate(checkpoint.model.weights)
        ]
        limit = profile.limits.abs_difference
        yield artifact.at_most("largest difference", float(max(differences)), limit)

    def write_metadata(self, checkpoint, profile, directory, checks):
        artifact.save_metadata(checkpoint, profile, directory, checks)


def open_arrays(directory):
    """The runtime of the toy target: its weights in a model of the recorded shape and task."""
    metadata = json.loads((directory / "tfllm.json").read_text())
    checkpoint = make(metadata["task"]["kind"])
    stored = np.load(directory / "weights.npz")
    for i, weight in enumerate(checkpoint.model.weights):
        weight.assign(stored[str(i)])
    return open_checkpoint(checkpoint)


@pytest.fixture
def profile_file(tmp_path, monkeypatch):
    """The one line and the one YAML file."""
    monkeypatch.setitem(TARGETS, "arrays", Arrays())
    path = tmp_path / "arrays.yaml"
    path.write_text(PROFILE)
    return path


def test_a_toy_target_is_exported_verified_and_opened(profile_file, classifier, tmp_path):
    profile = load_profile(str(profile_file))
    assert (profile.target, profile.max_length) == ("arrays", 16)
    seen = []
    made = export(classifier, profile, tmp_path / "out", on_check=seen.append)
    assert [check.name for check in seen] == ["weights", "largest difference"]
    assert not made.failed and "weights.npz" in made.files
    recorded = json.loads((made.path / "tfllm.json").read_text())
    assert [check["name"] for check in recorded["checks"]] == ["weights", "largest difference"]
    examples = [{"text": "the film was good"}, {"text": "bad"}]
    expected = open_checkpoint(classifier).predict(examples)
    assert open_arrays(made.path).predict(examples) == expected


def test_a_failing_check_of_a_toy_target_leaves_nothing(
    profile_file, classifier, tmp_path, monkeypatch
):
    monkeypatch.setattr(Arrays, "rounding", np.float16)
    with pytest.raises(CheckFailed, match="largest difference"):
        export(classifier, load_profile(str(profile_file)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_toy_target_refuses_first(profile_file, tmp_path):
    with pytest.raises(SettingError, match="arrays: token_classification"):
        export(make("token_classification"), load_profile(str(profile_file)), tmp_path / "out")


def test_the_front_door_takes_it(profile_file, classifier, tmp_path):
    from tfllm.checkpoints import store

    store.save(classifier, tmp_path / "checkpoint")
    made = tfllm.export(str(tmp_path / "checkpoint"), str(profile_file), tmp_path / "out")
    assert (made.path / "weights.npz").is_file()


def test_a_profile_is_one_yaml_file_of_the_folder(tmp_path, monkeypatch):
    """Its name is known as soon as the file is there."""
    from tfllm.export import profile as profiles

    monkeypatch.setattr(profiles, "PROFILE_DIRECTORY", tmp_path)
    (tmp_path / "phone.yaml").write_text("target: tflite\nquantization: int8\nmax_length: 24\n")
    assert profiles.profile_names() == ["phone"]
    assert load_profile("phone").quantization == "int8"
    assert load_profile("phone", ["max_length=32"]).max_length == 32
    assert config.load(tmp_path / "phone.yaml", profiles.Profile) == load_profile("phone")
    with pytest.raises(SettingError, match="no profile 'fone'"):
        load_profile("fone")


def test_a_target_that_is_not_there_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("target: arrays\n")
    with pytest.raises(SettingError, match="no export target 'arrays'"):
        load_profile(str(tmp_path / "mine.yaml"))
