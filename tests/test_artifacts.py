"""`tfllm.open`: every artifact has the methods of the model that it was exported from."""

import json

import pytest

import tfllm
from tests.helpers import language_models, recipes, translators
from tests.helpers.encoders import make
from tfllm.errors import ArtifactError, CheckFailed, CheckpointError, SettingError

CLOSE = 1e-4  # of probabilities: float32 sums in another order
PROFILES = ("savedmodel", "tflite-float32", "litertlm")
TEXTS = ["the film was good", "who built it", "the lighthouse was bad"]
EXAMPLES = [{"text": text, "label": "good"} for text in TEXTS]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A language model's checkpoint and its artifacts, by profile."""
    folder = tmp_path_factory.mktemp("language")
    model = tfllm.Model(language_models.make(folder / "tokenizer", max_sequence_length=64))
    paths = {"checkpoint": model.save(folder / "model")}
    for name in PROFILES:
        if name == "litertlm":
            pytest.importorskip("litert_lm_builder")
        paths[name] = folder / name
        tfllm.export(paths["checkpoint"], name, paths[name], overrides=["prefill_lengths=[4]"])
    return paths


@pytest.mark.slow
def test_all_artifacts_generate_the_same_text(language):
    texts = {}
    for name, path in language.items():
        model = tfllm.open(path)
        assert isinstance(model, tfllm.Model) == (name == "checkpoint")
        texts[name] = (
            model.generate("The film", max_new_tokens=6),
            model.generate(["The film", "Who"], max_new_tokens=4),
            "".join(model.generate("The film", max_new_tokens=6, stream=True)),
            model.generate("The film", temperature=0.8, top_k=5, seed=3, max_new_tokens=5),
            model.generate("The film", max_new_tokens=6, details=True).token_count,
            model.predict("The film"),
        )
        assert model.tokenizer.vocabulary_size
        assert model.describe()["task"] == "causal_lm"
    for name in texts:
        assert texts[name] == texts["checkpoint"], name


@pytest.mark.slow
def test_all_artifacts_measure_the_same(language):
    text = [{"text": "The film was good."}]
    expected = tfllm.open(language["checkpoint"]).evaluate(text)["perplexity"]
    for name in PROFILES:
        measured = tfllm.open(language[name]).evaluate(text)["perplexity"]
        assert measured == pytest.approx(expected, rel=1e-3), name
    report = tfllm.evaluate(language["savedmodel"], text)
    assert report["metrics"]["perplexity"] == pytest.approx(expected, rel=1e-3)
    assert report["model"] == str(language["savedmodel"])
    assert set(report) == {"metrics", "examples", "seconds", "model", "data", "versions"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILES)
def test_what_an_artifact_cannot_do_is_said(language, name):
    model = tfllm.open(language[name])
    with pytest.raises(SettingError, match="Did you mean 'num_beams'"):
        model.generate("The film", num_beam=2)
    with pytest.raises(SettingError, match="precision bfloat16"):
        model.generate("The film", precision="bfloat16")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    model = tfllm.Model(make("classification"))
    model.export("savedmodel", folder / "savedmodel")
    model.export("tflite-float32", folder / "tflite")
    return model, folder


def test_classifiers_predict_and_evaluate_alike(classifier):
    model, folder = classifier
    expected = model.predict(TEXTS)
    accuracy = model.evaluate(EXAMPLES)["accuracy"]
    for path in (folder / "savedmodel", folder / "savedmodel" / "1", folder / "tflite",
                 folder / "tflite" / "model.tflite"):  # fmt: skip
        opened = tfllm.open(path)
        for prediction, answer in zip(opened.predict(TEXTS), expected, strict=True):
            assert prediction["label"] == answer["label"]
            assert prediction["scores"] == pytest.approx(answer["scores"], abs=CLOSE)
        assert opened.evaluate(EXAMPLES)["accuracy"] == accuracy
        assert isinstance(opened.predict("the film"), dict)
        with pytest.raises(SettingError, match="does not generate text"):
            opened.generate("the film")
        pipe = tfllm.pipeline("text-classification", model=opened)
        assert pipe(TEXTS[0])[0]["label"] == expected[0]["label"]


@pytest.mark.slow
def test_translators_generate_alike(tmp_path):
    model = tfllm.Model(translators.checkpoint())
    model.export("savedmodel", tmp_path / "exported")
    opened = tfllm.open(tmp_path / "exported")
    source = translators.SENTENCES[0]
    assert opened.generate(source, num_beams=3) == model.generate(source, num_beams=3)
    predicted = opened.predict({"source": source}, num_beams=3)
    expected = model.predict({"source": source}, num_beams=3)
    assert predicted["text"] == expected["text"]
    assert predicted["score"] == pytest.approx(expected["score"], abs=CLOSE)


def test_export_keeps_nothing_that_fails(tmp_path):
    checks = []
    with pytest.raises(CheckFailed):
        tfllm.export(
            tfllm.Model(make("classification")), "tflite-int8", tmp_path / "out",
            overrides=["tolerance.agreement=1.0", "tolerance.kl_divergence=1e-9"],
            on_check=checks.append,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    assert not all(check.passed for check in checks)


def test_paths_that_are_no_models():
    with pytest.raises(CheckpointError, match="There is no 'nowhere'"):
        tfllm.open("nowhere")
    with pytest.raises(ArtifactError, match="There is no file"):
        tfllm.open("nowhere.tflite")


def test_train_measures_and_exports(tmp_path):
    folder = recipes.write_data(tmp_path / "data")
    artifacts = []
    run = tfllm.train(
        recipes.settings(folder, export=["tflite-float32"]),
        output=tmp_path / "run",
        overrides=["train.epochs=1"],
        progress=False,
        on_export=artifacts.append,
    )
    assert "f1_macro" in run.summary["validation"]  # measures of evaluation are included
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 7
    assert [artifact.path for artifact in artifacts] == [tmp_path / "run/export/tflite-float32"]
    # The run's recipe says how files like its own are read.
    model = tfllm.load(tmp_path / "run")
    file = folder / "validation.tsv"
    expected = model.evaluate(file)["accuracy"]
    assert expected == pytest.approx(run.summary["validation"]["accuracy"])
    assert len(model.dataset(file, batch_size=8)) == 3
    assert tfllm.evaluate(artifacts[0].path, file)["metrics"]["accuracy"] == expected
    with pytest.raises(SettingError, match="no profile 'tflit'"):
        tfllm.train(recipes.settings(folder, export=["tflit"]), output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(SettingError, match="Did you mean"):
        tfllm.train(recipes.settings(folder), overrides=["train.epoch=1"])
