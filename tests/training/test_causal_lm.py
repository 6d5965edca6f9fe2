"""Runs of a small decoder: exact resumption, answers only, adapters, a vocabulary of its own."""

import json
import os
import random
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training.test_run import At, same, weights
from tfllm import config
from tfllm.checkpoints import store
from tfllm.errors import SettingError
from tfllm.tasks import CausalLM
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.training import vocabulary
from tfllm.training.monitoring.logs import read_log
from tfllm.training.recipe import Recipe, TokenizerSettings
from tfllm.training.run import train

TEMPLATE = (
    "{% for m in messages %}{{ '<' ~ m.role[0] ~ '>' ~ m.content }}{% if m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
SPECIALS = ["<s>", "</s>", "<unk>", "<u>", "<a>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    dice = random.Random(1)
    words = "the cat sat on a mat and ran off to sea".split()
    lines = [" ".join(dice.choices(words, k=dice.randint(2, 9))) for _ in range(60)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    chats = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word[0]}]}
        for word in words * 4
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "template.jinja").write_text(TEMPLATE)
    return folder


def recipe(folder, **parts):
    data = {
        "name": "letters",
        "model": {"family": "gpt2", "num_layers": 2, "num_heads": 2, "hidden_dim": 16,
                  "max_sequence_length": 32, "initializer_range": 0.1},
        "task": {"kind": "causal_lm", "max_length": 16},
        "tokenizer": {"kind": "characters", "special_tokens": SPECIALS},
        "data": {"train": str(folder / "text.txt"), "validation_tail": 0.1},
        "train": {"steps": 12, "batch_size": 8, "learning_rate": 0.01, "warmup": 2,
                  "precision": "float32", "log_every": 2, "seed": 5, "schedule": "cosine",
                  "final_learning_rate": 0.001, "beta_2": 0.99, "weight_decay": 0.1},
    }  # fmt: skip
    for key, changes in parts.items():
        data[key] = {**data[key], **changes} if isinstance(changes, dict) else changes
    return config.build({key: value for key, value in data.items() if value is not None}, Recipe)


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    return train(recipe(folder), tmp_path_factory.mktemp("runs") / "run", progress=False)


def test_it_learns_and_leaves_a_checkpoint(straight):
    lines = [line for line in read_log(straight.directory / "metrics.jsonl") if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[0]["padding"] == 0
    assert lines[-1]["learning_rate"] == pytest.approx(0.001, rel=0.1)
    measured = straight.summary["validation"]
    assert measured["perplexity"] == pytest.approx(np.exp(measured["loss"]), rel=1e-3)
    checkpoint = store.load(straight.directory)
    assert checkpoint.tokenizer.kind == "characters"
    assert load_tokenizer(straight.directory / "tokenizer").bos_token_id == 0


@pytest.mark.parametrize("step", [9, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_bit_by_bit(straight, folder, tmp_path, step):
    """Also in an epoch whose windows are shifted: an epoch is 12 windows of 16, so 2 batches."""
    stop = At(step, lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = train(recipe(folder), tmp_path / "run", progress=False, callbacks=[stop])
    assert stopped.signal == signal.SIGINT
    train(recipe(folder), tmp_path / "run", resume=True, progress=False)
    same(weights(straight.directory), weights(tmp_path / "run"))
    assert straight.summary["epochs"] > 1


def test_answers_are_learned_and_adapters_merged(folder, tmp_path):
    chats = {
        "data": {"train": str(folder / "chats.jsonl"), "validation_tail": None},
        "tokenizer": {"chat_template": str(folder / "template.jinja")},
    }
    base = train(recipe(folder, **chats, train={"steps": 3}), tmp_path / "base", progress=False)
    settings = {"from": str(base.directory), "lora": {"rank": 2, "targets": ["query", "up"]}}
    tuned = recipe(folder, **chats, train={"steps": 3, "precision": "bfloat16", "accumulate": 2})
    data = json.loads(tuned.model_dump_json(exclude_none=True))
    data["model"] = settings
    del data["tokenizer"]
    run = train(config.build(data, Recipe), tmp_path / "lora", progress=False)
    before, merged = weights(base.directory), weights(tmp_path / "lora")
    changed = {name for name in before if not np.array_equal(before[name], merged[name])}
    assert changed == {
        f"layer_{i}/{part}/kernel" for i in range(2) for part in ("attention/query", "up")
    }
    adapter = load_file(tmp_path / "lora" / "adapter" / "adapter.safetensors")
    assert len(adapter) == 8 and run.summary["trainable_parameters"] < 2000
    checkpoint = store.load(tmp_path / "lora")
    assert checkpoint.tokenizer.chat_template == TEMPLATE
    features = checkpoint.task.features(
        [{"messages": [{"role": "user", "content": "cat"},
                       {"role": "assistant", "content": "c"}]}],
        checkpoint.tokenizer,
    )  # fmt: skip
    ids, targets = features.batch([0])
    learned = targets[targets >= 0].tolist()
    assert checkpoint.tokenizer.decode(learned, skip_special_tokens=False) == "c</s>"
    assert checkpoint.tokenizer.decode(ids["token_ids"][0].tolist(), skip_special_tokens=False) == (
        "<u>cat<a>c</s>"
    )


def test_byte_pairs_are_learned_from_conversations(folder):
    settings = TokenizerSettings(
        kind="bpe", vocabulary_size=270, special_tokens=("<s>", "</s>", "<u>", "<a>"),
        chat_template=str(folder / "template.jinja"),
    )  # fmt: skip
    chats = [json.loads(line) for line in (folder / "chats.jsonl").read_text().splitlines()]
    tokenizer = vocabulary.train_on_examples(settings, chats)
    assert tokenizer.vocabulary_size == 270 and tokenizer.kind == "bytepair"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    text = "The cat, 床前\n sat"
    assert tokenizer.decode(tokenizer.encode_ids([text])[0]) == text
    again = vocabulary.train_on_examples(settings, chats)
    assert again.vocabulary == tokenizer.vocabulary
    every = CausalLM(learn="all").features(chats[:1], tokenizer).batch([0])[1]
    answer = CausalLM().features(chats[:1], tokenizer).batch([0])[1]
    assert (every >= 0).sum() > (answer >= 0).sum() > 0


REFUSED = {
    "both": ({"path": "x", "kind": "characters"}, "either `path`"),
    "size": ({"kind": "bpe"}, "needs vocabulary_size"),
    "specials": ({"kind": None, "path": "x"}, "special_tokens goes with `kind`"),
    "too few": ({"vocabulary_size": 3}, "tokenizer.vocabulary_size is 3: give at least"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_tokenizers_are_refused(folder, tmp_path, case):
    changes, message = REFUSED[case]
    with pytest.raises(SettingError) as raised:
        train(recipe(folder, tokenizer=changes), tmp_path / "run", progress=False)
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()
