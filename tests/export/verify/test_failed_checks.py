"""A check that fails leaves no artifact, and the artifact from before as it was."""

import pytest

from tests.export.files import changed, with_copies, without_weights
from tests.helpers.encoders import make
from tfllm.errors import CheckFailed, SettingError, StorageError
from tfllm.export import export, load_profile, savedmodel, tflite, tflite_converter
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.export.verify import common, encoder


def test_damaged_weights_are_found_and_the_old_file_stays(classifier, tmp_path, monkeypatch):
    output = tmp_path / "lite"
    first = export(classifier, load_profile("tflite-float32"), output)
    before = (output / TFLITE_FILE).read_bytes()
    with monkeypatch.context() as patched:
        _damage(patched)
        with pytest.raises(CheckFailed, match="difference"):
            export(classifier, load_profile("tflite-float32"), output)
    assert (output / TFLITE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["lite"]
    assert first.failed == []
    export(classifier, load_profile("tflite-float32"), output)  # and a good one replaces it


def _damage(patched):
    written = tflite_converter.convert

    def damaged(*arguments, **options):
        return changed(written(*arguments, **options), without_the_largest)

    patched.setattr(tflite_converter, "convert", damaged)


def without_the_largest(model):
    largest = max((b for b in model.buffers if b.data is not None), key=lambda b: len(b.data))
    largest.data = [0] * len(largest.data)


def test_a_file_without_weights_is_found(classifier, tmp_path, monkeypatch):
    """As TensorFlow's converter writes it of a Keras 3 model whose variables it does not see."""
    written = tflite_converter.convert
    without = lambda *given, **options: changed(written(*given, **options), without_weights)  # noqa: E731
    monkeypatch.setattr(tflite_converter, "convert", without)
    with pytest.raises(CheckFailed, match=r"weights stored once: 0\.0\d MB"):
        export(classifier, load_profile("tflite-float32"), tmp_path / "lite")
    assert not (tmp_path / "lite").exists()


def test_weights_that_stand_twice_are_found(classifier, tmp_path, monkeypatch):
    written = tflite_converter.convert
    doubled = lambda *given, **options: changed(written(*given, **options), with_copies)  # noqa: E731
    monkeypatch.setattr(tflite_converter, "convert", doubled)
    with pytest.raises(CheckFailed, match="weights stored once"):
        export(classifier, load_profile("tflite-float32"), tmp_path / "lite")
    assert not (tmp_path / "lite").exists()


def test_a_fallen_metric_is_found(classifier, tmp_path):
    """int8 weights flip answers of this model; labels are what the checkpoint says."""
    from tfllm.runtimes.checkpoint import open_checkpoint

    texts = [{"text": text} for text in ("the film was good", "bad", "who built it?")]
    answers = open_checkpoint(classifier).predict(texts)
    right = [{**one, "label": a["label"]} for one, a in zip(texts, answers, strict=True)]
    reference = open_checkpoint(classifier)
    export(classifier, load_profile("tflite-float32"), tmp_path / "lite", right)
    other = make("classification", {"initializer_range": 0.9})
    export(other, load_profile("tflite-float32"), tmp_path / "other")
    check = encoder.check_metric(
        reference, load_profile("tflite-float32"), tmp_path / "lite", right
    )
    assert check.passed and "1.0000" in check.value
    (tmp_path / "other" / "tfllm.json").write_bytes((tmp_path / "lite/tfllm.json").read_bytes())
    wrong = encoder.check_metric(
        reference, load_profile("tflite-float32"), tmp_path / "other", right
    )
    assert not wrong.passed


@pytest.mark.slow
def test_a_savedmodel_with_other_weights_is_found(classifier, exported):
    other = make("classification", {"initializer_range": 0.9})
    found = list(
        savedmodel.check_outputs(other, load_profile("savedmodel"), exported("savedmodel").path, ())
    )
    assert [check.name for check in found if not check.passed]


@pytest.mark.slow
def test_a_damaged_savedmodel_is_named(exported, tmp_path):
    import shutil

    folder = tmp_path / "1"
    shutil.copytree(exported("savedmodel").path, folder)
    data = folder / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(CheckFailed, match="cannot run"):
        common.run_savedmodel(folder, [])


def test_a_full_disk_leaves_nothing(classifier, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tflite, "write_assets", full)
    with pytest.raises(StorageError, match="disk is full"):
        export(classifier, load_profile("tflite-float32"), tmp_path / "lite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "overrides", "message"),
    [
        ("classification", "tflite-float32", ["max_length=65"], "64 positions"),
        ("classification", "tflite-float32", ["batch_sizes=[]"], "batch_sizes"),
        ("classification", "tflite-int8-full", ["extra_lengths=[16]"], "one shape"),
        ("question_answering", "tflite-text", [], "offsets"),
        ("token_classification", "mediapipe", [], "text tasks"),
        ("classification", "mediapipe", ["batch_sizes=[2]"], "one row"),
    ],
)
def test_what_cannot_be_written_is_refused_first(kind, name, overrides, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        export(make(kind), load_profile(name, overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_somebody_elses_folder_is_left_alone(classifier, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="exists already"):
        export(classifier, load_profile("tflite-float32"), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
