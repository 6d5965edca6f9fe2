"""Golden models as fixtures."""

import pytest

from tests.helpers.golden_models import VOCABULARY, write_golden


@pytest.fixture
def golden(tmp_path):
    """`golden("bert", "classification")`: directory, inputs, logits."""

    def make(family, head, name="source"):
        directory = tmp_path / name
        inputs, logits = write_golden(family, head, directory)
        return directory, inputs, logits

    return make


@pytest.fixture
def vocabulary_text():
    """The vocab.txt of the golden models."""
    return "\n".join(VOCABULARY) + "\n"
