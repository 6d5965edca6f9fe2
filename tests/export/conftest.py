"""A tiny random classifier, exported once to each profile for all tests of a session."""

import pytest

from tests.helpers.encoders import make
from tfllm.export import export, load_profile


@pytest.fixture(scope="session")
def classifier():
    return make("classification")


@pytest.fixture(scope="session")
def exported(classifier, tmp_path_factory):
    """`exported("tflite-int8")`: the classifier's artifact, made once."""
    made = {}

    def artifact(name):
        if name not in made:
            output = tmp_path_factory.mktemp("exported") / name
            made[name] = export(classifier, load_profile(name), output)
        return made[name]

    return artifact
