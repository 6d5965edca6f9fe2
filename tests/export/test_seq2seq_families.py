"""T5 and BART as every artifact, with all checks of an export. Marian: files beside this."""

import pytest

pytest.importorskip("ai_edge_litert")

from tests.helpers.translators import checkpoint
from tfllm.export import export, load_profile

pytestmark = pytest.mark.slow
EXPORTS = {
    "savedmodel": ("savedmodel", ["warmup_batch_sizes=[1]"]),
    "steps": ("tflite-float32", []),
    "loop": ("tflite-float32", ["prompt_length=72"]),
}


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("kind", EXPORTS)
def test_they_pass_their_checks(tmp_path, family, kind):
    seen = []
    source = checkpoint(family, profile="translate")
    export(source, load_profile(*EXPORTS[kind]), tmp_path / "out", on_check=seen.append)
    assert any("texts" in check.name for check in seen)
