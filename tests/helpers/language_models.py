"""Tiny random decoders with a byte-level BPE, for every way out of a language model."""

from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.export.verify.sample_texts import ASCII_SENTENCES, CONTEXT, QUESTIONS
from tfllm.tokenizers.loading import load_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
SHAPES = {
    "gpt2": {"num_heads": 4, "max_sequence_length": 128, "initializer_range": 0.3},
    "llama": {
        "num_heads": 4, "num_key_value_heads": 2, "intermediate_dim": 64,
        "max_sequence_length": 128, "initializer_range": 0.3,
    },
}  # fmt: skip


def tokenizer(folder, vocabulary_size=400, chat=True):
    """A byte-level BPE learned from tfllm's own sentences, with GPT-2's end token."""
    from tokenizers import ByteLevelBPETokenizer

    learned = ByteLevelBPETokenizer()
    texts = [*ASCII_SENTENCES, CONTEXT, *QUESTIONS] * 4
    learned.train_from_iterator(texts, vocabulary_size, 2, False, SPECIALS)
    folder.mkdir(parents=True, exist_ok=True)
    learned.save(str(folder / "tokenizer.json"))
    settings = '"eos_token": "<|endoftext|>"'
    (folder / "tokenizer_config.json").write_text(f"{{{settings}}}")
    if chat:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return load_tokenizer(folder)


def make(folder, family="gpt2", chat=True, **shape):
    """A checkpoint of two layers, 32 wide, with fixed random weights."""
    made = tokenizer(folder, chat=chat)
    sizes = {"vocabulary_size": made.vocabulary_size, "num_layers": 2, "hidden_dim": 32}
    config = {**sizes, **SHAPES[family], **shape}
    task = tasks.build({"kind": "causal_lm", "max_length": config["max_sequence_length"]})
    return store.create(family, config, made, task, seed=3)
