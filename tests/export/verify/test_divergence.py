"""What the export measures: KL divergence and perplexity, and that a damaged file is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from tests.export.files import changed
from tests.helpers.encoders import make as make_encoder
from tests.helpers.language_models import make
from tests.helpers.translators import checkpoint as make_pair
from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.cli import main
from tfllm.errors import CheckFailed
from tfllm.export import export, load_profile, tflite_converter, tflite_quantization
from tfllm.export.verify import divergence, sample_texts
from tfllm.tokenizers import characters

CONTEXT = 48
OPTIONS = [f"max_length={CONTEXT}", "prefill_lengths=[4]"]
SPOILT = 3.0  # what the scales of one matrix are multiplied by


def check_of(artifact, beginning):
    (found,) = [check for check in artifact.checks if check.name.startswith(beginning)]
    return found


def value_of(artifact, beginning):
    return float(check_of(artifact, beginning).value.split()[0])


# --- the numbers


def vocabulary(size, unk_token_id=None, tokens=None):
    texts = [f"token {number}" for number in range(tokens or size)]
    named = SimpleNamespace(vocabulary=texts, unk_token_id=unk_token_id)
    return divergence.Vocabulary(named, size)


def test_ids_without_a_token_are_left_out_of_both():
    """A file bars them; the checkpoint's likeliest id here is one of them."""
    draw = np.random.default_rng(3)
    wanted = draw.normal(0, 3, (40, 8)).astype("float32")
    wanted[:, 7] = 20.0
    barred = wanted.copy()
    barred[:, 6:] = -1e9
    told = divergence.TokenScores()
    told.add(wanted, barred, draw.integers(0, 6, 40), vocabulary(8, tokens=6))
    assert told.divergence == pytest.approx(0.0, abs=1e-9) and told.agreeing == 40
    assert told.artifact_log_probability == pytest.approx(told.log_probability)


def test_the_divergence_is_the_sum_of_its_definition():
    draw = np.random.default_rng(0)
    wanted, found = draw.normal(0, 3, (2, 40, 30))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (wanted, found))
    expected = (p * np.log(p / q)).sum(-1)
    logs = divergence.log_softmax(wanted), divergence.log_softmax(found)
    np.testing.assert_allclose(divergence.kl_divergence(*logs), expected, rtol=1e-9)
    np.testing.assert_allclose(divergence.kl_divergence(logs[0], logs[0]), 0.0, atol=1e-12)


def test_sums_are_the_same_whatever_is_held_at_once(monkeypatch):
    draw = np.random.default_rng(1)
    wanted, found = draw.normal(0, 3, (2, 40, 30)).astype("float32")
    targets = draw.integers(0, 30, 40)
    sums = []
    for at_once in (2**22, 90):
        monkeypatch.setattr(divergence, "CHUNK_VALUES", at_once)
        told = divergence.TokenScores()
        told.add(wanted, found, targets, vocabulary(30, unk_token_id=3))
        sums.append(told)
    left = targets != 3
    assert sums[0].tokens == sums[1].tokens == left.sum() and sums[0].unknown == (~left).sum()
    assert sums[0].divergence == pytest.approx(sums[1].divergence)
    logs = divergence.log_softmax(found)[np.arange(40), targets]
    assert sums[0].artifact_log_probability == pytest.approx(logs[left].sum())
    assert sums[0].perplexities[1] == pytest.approx(np.exp(-logs[left].mean()))


def test_drawn_tokens_estimate_the_same_number():
    """Tokens drawn by the file: what they tell is KL(file || checkpoint)."""
    draw = np.random.default_rng(2)
    file, checkpoint = divergence.log_softmax(draw.normal(0, 1, (2, 12)))
    drawn = draw.choice(12, 40_000, p=np.exp(file))
    check = divergence.check_sampled_tokens(
        load_profile("tflite-loop"), [file[drawn]], [checkpoint[drawn]]
    )
    exact = float(divergence.kl_divergence(file, checkpoint))
    assert float(check.value) == pytest.approx(exact, rel=0.03)  # 40,000 draws
    assert not check.passed
    same = divergence.check_sampled_tokens(
        load_profile("tflite-loop"), [file[drawn]], [file[drawn]]
    )
    assert same.passed and float(same.value) == 0.0


def test_not_a_number_does_not_pass():
    told = divergence.TokenScores()
    scores = np.zeros((3, 5), np.float32)
    told.add(scores, np.full_like(scores, np.nan), [1, 2, 3], vocabulary(5))
    settings = load_profile("tflite-int8")
    checks = {
        one.name: one.passed for one in divergence.check_token_scores(settings, {"a": told}, 5)
    }
    assert not checks["KL divergence (nats per token)"]
    assert not checks["perplexity on 3 tokens"]


def test_a_language_that_was_not_learned_does_not_count():
    scores = np.zeros((4, 5), np.float32)
    scores[:, 0] = 9.0  # the first token always
    other = scores + np.linspace(0, 1, 5, dtype=np.float32)
    known, foreign = divergence.TokenScores(), divergence.TokenScores()
    known.add(scores, scores, [0, 0, 0, 0], vocabulary(5))
    foreign.add(scores, -other, [1, 2, 3, 4], vocabulary(5))
    both = {"English": known, "Chinese": foreign}
    checks = list(divergence.check_token_scores(load_profile("tflite-int8"), both, 5))
    names = [check.name for check in checks]
    assert "perplexity on 4 tokens" in names and all(check.passed for check in checks)
    assert "not learned, not counted" in next(c.value for c in checks if "Chinese" in c.name)
    alone = list(
        divergence.check_token_scores(load_profile("tflite-int8"), {"Chinese": foreign}, 5)
    )
    assert not all(check.passed for check in alone)


def test_the_passages_are_long_enough_and_none_is_there_twice():
    texts = [text for some in sample_texts.PASSAGES.values() for text in some]
    assert len(set(texts)) == len(texts)
    words = sum(len(text.split()) for text in sample_texts.ENGLISH)
    characters = sum(len(text) for text in sample_texts.CHINESE)
    # A word is at least a token in every vocabulary, and two Chinese characters are.
    assert words + characters // 2 >= 1000


# --- files


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return make(folder, "llama", hidden_dim=64, max_sequence_length=64)


def with_damaged_scales(monkeypatch):
    """The scales of one matrix in every file that is written are wrong from now on."""
    written = tflite_quantization._quantize

    def damaged(weights, bits, vocabulary_size):
        matrix = written(weights, bits, vocabulary_size)
        if len(weights) != vocabulary_size:
            matrix.scales[:] *= np.asarray(SPOILT, matrix.scales.dtype)
        return matrix

    monkeypatch.setattr(tflite_quantization, "_quantize", damaged)


@pytest.mark.parametrize("name", ["tflite-int8", "tflite-int4"])
def test_damaged_scales_of_a_decoder_are_refused(name, llama, tmp_path, monkeypatch):
    with_damaged_scales(monkeypatch)
    with pytest.raises(CheckFailed, match="KL divergence"):
        export(llama, load_profile(name, OPTIONS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_exit_status_is_1_and_nothing_is_written(llama, tmp_path, monkeypatch, capsys):
    store.save(llama, tmp_path / "checkpoint")
    with_damaged_scales(monkeypatch)
    options = [part for option in OPTIONS for part in ("--set", option)]
    arguments = ["--to", "tflite-int8", "--output", str(tmp_path / "out"), *options]
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "checkpoint"), *arguments])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "KL divergence (nats per token)" in printed.out and "NO" in printed.out
    assert "Nothing was written" in printed.err
    assert not (tmp_path / "out").exists()


def test_a_whole_file_passes_and_tells_both_languages(llama, tmp_path):
    # Its weights are random: many tokens are nearly as likely as the likeliest.
    settings = load_profile("tflite-int8", [*OPTIONS, "tolerance.agreement=0.8"])
    artifact = export(llama, settings, tmp_path / "out")
    assert value_of(artifact, "KL divergence") < load_profile("tflite-int8").limits.kl_divergence
    english, chinese = (check_of(artifact, f"perplexity: {name}") for name in sample_texts.PASSAGES)
    tokens = [int(one.value.split()[0].replace(",", "")) for one in (english, chinese)]
    total = int(check_of(artifact, "perplexity on").name.split()[2].replace(",", ""))
    assert total in (*tokens, sum(tokens)) and min(tokens) > 100 and sum(tokens) >= 1000


@pytest.mark.slow
def test_texts_of_unknown_tokens_are_counted_and_left_out(tmp_path):
    letters = sorted({letter for text in sample_texts.ENGLISH for letter in text})
    made = characters.from_characters(letters, ["<unk>"])
    shape = {
        "vocabulary_size": made.vocabulary_size, "num_layers": 1, "num_heads": 4, "hidden_dim": 16,
        "max_sequence_length": 64,
    }  # fmt: skip
    task = tasks.build({"kind": "causal_lm", "max_length": 64})
    checkpoint = store.create("gpt2", shape, made, task, seed=3)
    artifact = export(checkpoint, load_profile("tflite-float32", OPTIONS), tmp_path / "out")
    english, chinese = (
        check_of(artifact, f"perplexity: {name}").value for name in sample_texts.PASSAGES
    )
    assert english.startswith("1,000 tokens, ") and "unknown" not in english
    assert chinese.startswith("0 tokens; ") and "unknown to the vocabulary" in chinese
    assert check_of(artifact, "perplexity on 1,000 tokens")


def with_other_scales(model):
    """The scales of every int8 matrix of a file, wrong."""
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            found = tensor.quantization
            if found is not None and found.scale is not None and len(found.scale):
                found.scale = np.asarray(found.scale, np.float32) * SPOILT


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
def test_damaged_scales_of_an_encoder_are_refused(kind, tmp_path, monkeypatch):
    checkpoint = make_encoder(kind)
    written = tflite_converter.convert
    monkeypatch.setattr(
        tflite_converter, "convert", lambda *a, **o: changed(written(*a, **o), with_other_scales)
    )
    with pytest.raises(CheckFailed, match="KL divergence"):
        export(checkpoint, load_profile("tflite-int8"), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["question_answering", "masked_lm", "embedding"])
def test_other_encoders_are_measured(kind, tmp_path):
    # Random weights have no clear answers.
    profile = load_profile("tflite-int8", ["tolerance.agreement=0.5"])
    artifact = export(make_encoder(kind), profile, tmp_path / kind)
    names = [check.name for check in artifact.checks]
    assert any(name.startswith("KL divergence") for name in names) == (kind != "embedding")


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["prompt_length=72"]], ids=["steps", "loop"])
@pytest.mark.parametrize("family", ["transformer", "t5"])
def test_damaged_scales_of_an_encoder_decoder_are_refused(family, overrides, tmp_path, monkeypatch):
    checkpoint = make_pair(family)
    monkeypatch.setattr(tflite_quantization, "MIN_WEIGHTS", 64)
    with_damaged_scales(monkeypatch)
    with pytest.raises(CheckFailed, match="KL divergence|same most likely next token"):
        export(checkpoint, load_profile("tflite-int8", overrides), tmp_path / "out")


@pytest.mark.slow
def test_a_damaged_file_of_whole_texts_is_refused(llama, tmp_path, monkeypatch):
    settings = load_profile("tflite-loop", ["quantization=int8", "prompt_length=24"])
    artifact = export(llama, settings, tmp_path / "whole")
    assert check_of(artifact, "KL divergence").passed
    with_damaged_scales(monkeypatch)
    with pytest.raises(CheckFailed, match="KL divergence"):
        export(llama, settings, tmp_path / "out")
