"""`tfllm.load`, `open`, `train`, `evaluate`, `export` and `Model`, as users call them."""

import dataclasses
import inspect
import subprocess
import sys
import typing
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import tfllm
from tests.helpers import byte_models, translators
from tests.helpers.encoders import make
from tfllm.checkpoints import store
from tfllm.cli import main
from tfllm.data.corpora.read_stats import ReadStats
from tfllm.errors import ArtifactError, DataError, SettingError
from tfllm.evaluation.settings import EvaluationSettings
from tfllm.generation.config import GenerationConfig
from tfllm.model import EvaluationOptions, GenerationOptions
from tfllm.models import FAMILIES, build_config
from tfllm.runtimes import description

EXAMPLES = [
    {"text": "the film was good", "label": "good"},
    {"text": "the film was bad", "label": "bad"},
    {"text": "who built it", "label": "neither"},
    {"text": "it was the good lighthouse", "label": "good"},
] * 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier's checkpoint on the disk."""
    return tfllm.Model(make("classification")).save(tmp_path_factory.mktemp("saved") / "model")


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, tfllm\n"
        "assert set(tfllm.__all__) <= set(dir(tfllm))\n"
        "print([m for m in ('tensorflow', 'keras', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", ["load", "open", "train", "evaluate", "export"])
def test_functions_have_signatures_without_hidden_options(name):
    signature = inspect.signature(getattr(tfllm, name))
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_export_is_a_function_and_a_package():
    from tfllm.export.profile import Profile

    assert callable(tfllm.export)
    assert tfllm.export.profile.Profile is Profile


def test_options_of_generation_are_the_fields_of_generation_config():
    assert set(typing.get_type_hints(GenerationOptions)) == set(GenerationConfig.model_fields)
    assert set(typing.get_type_hints(EvaluationOptions)) == set(EvaluationSettings.model_fields)


def test_load_predict_evaluate_save(saved, tmp_path):
    model = tfllm.load(saved)
    assert isinstance(model.keras, keras.Model)
    assert model.task.labels == ("bad", "good", "neither")
    assert model.tokenizer.vocabulary_size == model.config.vocabulary_size
    one = model.predict("the film was good")
    assert one["label"] in model.task.labels
    first, _ = model.predict(["the film was good", {"text": "who built it"}])
    assert first["scores"] == pytest.approx(one["scores"], abs=1e-6)
    metrics = model.evaluate(EXAMPLES)
    assert 0 <= metrics["accuracy"] <= 1
    again = tfllm.load(model.save(tmp_path / "again"))
    assert again.predict("the film was good") == one
    for before, after in zip(model.keras.weights, again.keras.weights, strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_new_task_has_a_new_head(saved):
    model = tfllm.load(saved, task="classification", labels=["no", "yes"], seed=1)
    assert model.keras.output.shape[-1] == 2
    assert model.predict("it was")["label"] in ("no", "yes")
    tagger = tfllm.load(saved, task="token_classification", labels=["O", "B-X"], max_length=16)
    assert tagger.task.max_length == 16
    assert tfllm.load(saved, task="classification").task.labels == ("bad", "good", "neither")


def test_dtype_is_of_this_model_alone(saved):
    model = tfllm.load(saved, dtype="mixed_bfloat16")
    assert model.keras.layers[-1].compute_dtype in ("bfloat16", "float32")
    assert any(layer.compute_dtype == "bfloat16" for layer in model.keras.layers)
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(SettingError, match="mixed_bfloat16"):
        tfllm.load(saved, dtype="half")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: tfllm.load("x", lables=[]), "Did you mean 'labels'"),
        (lambda model: tfllm.open("x", preciion="x"), "open has no option 'preciion'"),
        (lambda model: model.dataset([], shufle=True), "Did you mean 'shuffle'"),
        (lambda model: model.compile(learning_rat=1), "Did you mean 'learning_rate'"),
        (lambda model: model.fit([], epoch=3), "Did you mean 'epochs'"),
        (lambda model: model.predict("x", num_beam=3), "Did you mean 'num_beams'"),
        (lambda model: model.generate("x", max_tokens=3), "generate has no option 'max_tokens'"),
        (lambda model: model.evaluate(EXAMPLES, colums={}), "Did you mean 'columns'"),
        (lambda model: model.export("savedmodel", "x", limits=3), "Did you mean 'limit'"),
        (lambda model: tfllm.export(model, "savedmodl", "x"), "Did you mean 'savedmodel'"),
        (lambda model: tfllm.train("recipe.yaml", epochs=3), "train has no option 'epochs'"),
        (lambda model: tfllm.evaluate(model, EXAMPLES, limt=3), "Did you mean 'limit'"),
        (lambda model: model.predict("x", num_beams=3), "write texts after sources"),
        (lambda model: model.generate("x"), "does not generate text"),
    ],
)
def test_unknown_options_are_errors_that_name_the_nearest(call, message):
    with pytest.raises(SettingError, match=message):
        call(tfllm.Model(make("classification")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GenerationConfig(num_beam=3), "unknown key 'num_beam'. Did you mean 'num_beams'?"),
        (lambda: GenerationConfig(top_p=2.0), "GenerationConfig: top_p: .* Found: 2.0"),
        (lambda: GenerationConfig(num_beams=2, temperature=1.0), "num_beams 2 searches"),
        (lambda: tfllm.Recipe(nme="x"), "Recipe: unknown key 'nme'. Did you mean 'name'?"),
        (lambda: tfllm.Recipe(name="x"), "Recipe: the key 'model' is missing"),
    ],
)
def test_settings_with_wrong_fields_are_setting_errors(call, message):
    with pytest.raises(SettingError, match=message):
        call()


def test_errors_name_the_argument_in_python_and_the_option_on_the_command_line(capsys):
    model = tfllm.Model(byte_models.checkpoint())
    with pytest.raises(SettingError, match="^num_beams: Input should be .* 64; it is 65") as error:
        model.generate("ab", num_beams=65)
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfllm.model, "open", lambda source: model)
        main(["generate", "m", "ab", "--num-beams", "65"])
    assert capsys.readouterr().err == f"tfllm: --num-beams{str(error.value)[len('num_beams') :]}\n"


@pytest.mark.parametrize(
    ("message", "in_python"),
    [
        ("Resume it with --resume, or give another --output.",
         "Resume it with resume=True, or give another output."),
        ("Cut its end off with --truncate right.", 'Cut its end off with truncate="right".'),
        ("Name its column: --set columns.text=NAME.", "Name its column: columns.text=NAME."),
        ("--set 'x': write it as key=value.", "overrides 'x': write it as key=value."),
        ("Make one with: tfllm prepare RECIPE --output DIR. Or leave --data out.",
         "Make one with: tfllm prepare RECIPE --output DIR. Or leave data out."),
        ("There is no '--output'.", "There is no '--output'."),
    ],
)  # fmt: skip
def test_options_have_names_in_python(message, in_python):
    assert str(SettingError(message)) == in_python
    assert SettingError(message).cli_message == message


@dataclasses.dataclass(frozen=True)
class NarrowConfig:
    """A family's Config whose own check names an option."""

    width: int = 1

    def __post_init__(self):
        if self.width > 1:
            raise SettingError("--max-width 1: it is too small. Raise --max-width.")


def test_an_error_inside_another_keeps_its_options(monkeypatch, tmp_path):
    monkeypatch.setitem(FAMILIES, "narrow", SimpleNamespace(Config=NarrowConfig))
    with pytest.raises(SettingError) as error:
        build_config("narrow", {"width": 2}, "recipe.yaml: model")
    assert error.value.cli_message == (
        "recipe.yaml: model: --max-width 1: it is too small. Raise --max-width."
    )
    assert str(error.value) == "recipe.yaml: model: max_width 1: it is too small. Raise max_width."

    def refuse(*arguments, **options):
        raise SettingError("task: --num-beams is unknown.")

    monkeypatch.setattr(description.tasks, "build", refuse)
    (tmp_path / "tfllm.json").write_text('{"task": {"kind": "embedding"}}')
    with pytest.raises(ArtifactError) as error:
        description.read_description(tmp_path / "tfllm.json")
    assert error.value.cli_message.startswith("task: --num-beams is unknown. Export again")
    assert str(error.value).startswith("task: num_beams is unknown. Export again")

    stats = ReadStats([], max_errors=1)
    stats.report(DataError("a.tsv:1: cut it with --truncate right."))
    with pytest.raises(DataError) as error:
        stats.report(DataError("a.tsv:2: cut it with --truncate right."))
    assert error.value.cli_message.startswith("a.tsv:2: cut it with --truncate right. That is bad")
    assert str(error.value).startswith('a.tsv:2: cut it with truncate="right". That is bad line 2')


def test_a_checkpoint_is_loaded_once(saved, monkeypatch):
    loaded = []
    load = store.load

    def count(source, **options):
        loaded.append(source)
        return load(source, **options)

    monkeypatch.setattr(store, "load", count)
    model = tfllm.open(saved)
    assert model.predict("the film was good")["label"] in model.task.labels
    model.evaluate(EXAMPLES)
    assert loaded == [saved]


def test_generate_returns_text_for_a_text_and_a_list_for_a_list():
    model = tfllm.Model(byte_models.checkpoint())
    one = model.generate("ab", max_new_tokens=5)
    assert isinstance(one, str)
    assert model.generate(["ab", "c"], max_new_tokens=5)[0] == one
    assert model.generate("ab", GenerationConfig(max_new_tokens=5)) == one
    assert model.generate({"prompt": "ab"}, max_new_tokens=5) == one
    several = model.generate("ab", num_return_sequences=2, temperature=0.8, max_new_tokens=5)
    assert [type(text) for text in several] == [str, str]
    assert len(model.generate(["ab", "c"], num_return_sequences=2, num_beams=2)[1]) == 2
    detailed = model.generate("ab", max_new_tokens=5, details=True)
    assert (detailed.text, detailed.token_count) == (one, 5)


def test_generate_takes_stop_strings_bad_words_and_conversations():
    model = tfllm.Model(byte_models.checkpoint())
    text = model.generate("ab", max_new_tokens=20)
    stop = text[3:5]
    assert model.generate("ab", max_new_tokens=20, stop_strings=stop) == text[: text.index(stop)]
    barred = model.generate("ab", max_new_tokens=20, bad_words=[text[:1]])
    assert text[:1] not in barred
    conversation = [{"role": "user", "content": "hi"}]
    assert isinstance(model.generate(conversation, max_new_tokens=3), str)
    assert len(model.generate([conversation, conversation], max_new_tokens=3)) == 2


def test_generate_streams():
    model = tfllm.Model(byte_models.checkpoint())
    stream = model.generate("ab", max_new_tokens=20, stream=True)
    assert not isinstance(stream, str)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate("ab", max_new_tokens=20)
    first = model.generate("ab", max_new_tokens=20, stream=True)
    assert next(first) == pieces[0]
    first.close()  # ends the generation
    with pytest.raises(SettingError, match="stream: give one prompt"):
        model.generate(["a", "b"], stream=True)
    with pytest.raises(SettingError, match="prompt"):
        list(model.generate("x" * 500, stream=True))


def test_sources_are_translated_by_predict_and_generate():
    model = tfllm.Model(translators.checkpoint())
    source = translators.SENTENCES[0]
    text = model.generate(source, num_beams=2, max_new_tokens=8)
    assert model.predict({"source": source}, num_beams=2, max_new_tokens=8)["text"] == text
    scores = [t.score for t in model.generate(source, num_return_sequences=3, details=True)]
    assert scores == sorted(scores, reverse=True)
    metrics = model.evaluate([{"source": source, "target": "a"}], num_beams=2, max_new_tokens=4)
    assert metrics["generation"]["num_beams"] == 2


def test_generation_uses_the_current_weights_and_leaves_them():
    model = tfllm.Model(byte_models.checkpoint())
    weights = [weight.numpy() for weight in model.keras.weights]
    before = model.generate("ab", max_new_tokens=8)
    assert isinstance(model.generate("ab", max_new_tokens=8, precision="bfloat16"), str)
    for weight, expected in zip(model.keras.weights, weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    draw = np.random.default_rng(0)
    try:
        model.keras.set_weights([draw.normal(0, 0.3, value.shape) for value in weights])
        after = model.generate("ab", max_new_tokens=8)
        assert after == tfllm.Model(model.checkpoint).generate("ab", max_new_tokens=8) != before
    finally:
        model.keras.set_weights(weights)
    assert model.generate("ab", max_new_tokens=8) == before
