"""What stands beside a vocabulary, in Python and in the graph: flags of added tokens, the space
before a text, chat templates, classes without a vocabulary, and the Rust package's panics."""

import json
from pathlib import Path

import pytest
import tensorflow as tf

from tests.helpers.tiny_tokenizers import tokenizer
from tests.tokenizers.file_cases import CONFIG, TEXTS, bert, bert_json, cases, gpt2, write
from tfllm.errors import TokenizerError
from tfllm.tokenizers.hf_classes import with_class_defaults
from tfllm.tokenizers.hf_tokenizers import HFTokenizer
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

CASES = cases()
MORE = (
    "  <ent>  <ent> x <ent>",
    "<|im_start|> <|im_start|>",
    " </s>  hello</s>",
    "hello  newtok ",
)
QUICK = (
    "bert: lstrip", "bert: added_tokens_decoder", "gpt2: added_tokens.json", "llama: legacy",
    "llama: not legacy", "llama: lstrip", "llama.json: not legacy",
)  # fmt: skip
SLOW = (
    "bert: rstrip", "bert: added_tokens.json, special", "gpt2.json: add_prefix_space",
    "gpt2.json: rstrip", "roberta: add_prefix_space", "llama: no add_prefix_space",
    "llama: added_tokens_decoder", "llama: rstrip", "llama: both ends", "llama.json: legacy",
    "llama.json: added_tokens.json", "t5: added_tokens_decoder", "t5: lstrip",
    "xlm-r: added_tokens.json, special", "xlm-r: not normalized, not special",
    "xlm-r.json: added_tokens_decoder", "xlm-r.json: normalized",
)  # fmt: skip
REFUSED = {
    "bert: normalized": "'newtok' has normalized set",
    "bert: split_special_tokens": "'split_special_tokens' is not known in the graph",
    "gpt2: single_word": "'newtok' has single_word set",
    "gpt2: split_special_tokens": "'split_special_tokens' is not known in the graph",
    "llama: split_special_tokens": "'split_special_tokens' is not known in the graph",
}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_graph_gives_the_same(name, tmp_path):
    python = load_tokenizer(write(tmp_path, CASES[name]))
    graph = python.graph()
    texts = [*TEXTS, *MORE]
    rows = python.encode_batch(texts, add_special_tokens=False)
    ids, starts, ends = graph.tokenize_with_offsets(tf.constant(texts))
    assert ids.to_list() == [row.ids for row in rows]
    assert graph.encode(tf.constant(texts)).to_list() == python.encode_ids(texts)
    found = [
        list(zip(start, end, strict=True))
        for start, end in zip(starts.to_list(), ends.to_list(), strict=True)
    ]
    assert found == [row.offsets for row in rows]
    if python.kind != "wordpiece":
        told = [text.decode() for text in graph.detokenize(ids).numpy()]
        assert told == [python.decode(row.ids) for row in rows]


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_graph_does_not_know_works_in_python(name, tmp_path):
    python = load_tokenizer(write(tmp_path, CASES[name]))
    assert python.encode("hello").ids
    with pytest.raises(TokenizerError, match=REFUSED[name]):
        python.graph()


def test_a_fine_tuned_berts_new_words(tmp_path):
    """As `add_tokens` leaves them: found after normalisation, and no special tokens."""
    tokens = {"content": "Newtok", "special": False, "normalized": True, "lstrip": False,
              "rstrip": False, "single_word": False}  # fmt: skip
    python = load_tokenizer(write(tmp_path, bert_json(added=[tokens])))
    number = python.token_id("Newtok")
    assert number == python.vocabulary_size - 1 and number not in python.all_special_ids
    assert python.encode("a newtok, NEWTOK", add_special_tokens=False).ids.count(number) == 2
    assert python.decode([number]) == "newtok"  # the package keeps its normalised form


DEFAULT = {"name": "default", "template": "plain {{ messages[0].content }}"}
TOOLS = {"name": "tool_use", "template": "tools {{ messages[0].content }}"}
USER = [{"role": "user", "content": "cat"}]


def test_of_several_templates_the_default_counts(tmp_path):
    folder = write(tmp_path, gpt2(chat_template=[TOOLS, DEFAULT]))
    python = load_tokenizer(folder)
    assert python.decode(python.apply_chat_template(USER)) == "plain cat"
    from tfllm.tokenizers import chat

    given = chat.encode(python, USER, tools=[{"name": "f"}])
    assert python.decode(given) == "tools cat"


@pytest.mark.parametrize(
    "contents",
    [
        gpt2(chat_template=[TOOLS, {"name": "rag", "template": "x"}]),
        gpt2({"additional_chat_templates/rag.jinja": "x"}),
        gpt2({"additional_chat_templates/rag.jinja": "x"}, chat_template="mine"),
        gpt2(chat_template=[{"template": "x"}]),
    ],
)
def test_templates_without_a_default_are_refused(contents, tmp_path):
    with pytest.raises(TokenizerError, match="none is called 'default'"):
        load_tokenizer(write(tmp_path, contents))


def test_a_file_wins_over_the_settings(tmp_path):
    beside = {"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "x"}
    python = load_tokenizer(write(tmp_path, gpt2(beside, chat_template=[DEFAULT])))
    assert python.chat_template == "file"


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({CONFIG: {"tokenizer_class": "ByT5Tokenizer"}}, "ByT5Tokenizer has no vocabulary file"),
        ({"config.json": {"model_type": "canine"}}, "CanineTokenizer has no vocabulary file"),
        (bert(tokenizer_class="BertJapaneseTokenizer"), "BertJapaneseTokenizer is not known"),
        (bert({"added_tokens.json": {"a b": "c"}}), "expected added tokens with their ids"),
        (bert({"added_tokens.json": ["x"]}), "expected a JSON object"),
        (bert(added_tokens_decoder={"1": 5}), "expected added tokens with their ids"),
        (bert(added_tokens_decoder={"143": {"content": ""}}), "a token is empty"),
        (bert(added_tokens_decoder={"7": {"content": "[CLS]"}}), r"'\[CLS\]' has the id 2"),
        (bert(mask_token=5), "'mask_token' is 5"),
    ],
)
def test_wrong_settings_are_named(contents, said, tmp_path):
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(write(tmp_path, contents))


def test_rows_that_lose_their_beginning_are_refused_and_prompts_are_not(tmp_path):
    left = {"truncation_side": "left"}
    python = load_tokenizer(write(tmp_path / "gpt2", gpt2(**left)))
    assert python.encode_ids(["hello"]) == [python.encode("hello").ids]
    for call in (python.encode, python.encode_words):
        with pytest.raises(TokenizerError, match="'truncation_side' left is not known"):
            call(["hello"] if call == python.encode_words else "hello", max_length=4)
    with pytest.raises(TokenizerError, match="'truncation_side' left"):
        load_tokenizer(write(tmp_path / "bert", bert(**left)))


def test_the_space_before_a_text_survives_saving(tmp_path):
    """A `.model` without a class: the model itself says, which Llama's class would overrule."""
    python = tokenizer("bpe")
    python.save(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["tfllm_prefix"] == "model"
    again = load_tokenizer(tmp_path)
    assert again.prefix == python.prefix == "model"
    text = " the</s>cat"
    assert again.encode(text) == python.encode(text)


def test_a_panic_of_the_rust_package_is_an_error_of_ours():
    class Panic(BaseException):
        """As pyo3's, which `except Exception` lets pass."""

    class Broken:
        def encode_batch(self, *arguments, **named):
            raise Panic("retry-limit-in-match over\nwith a backtrace")

        encode_batch_fast = decode = encode_batch

    python = tokenizer("llama3")
    broken = object.__new__(type(python))
    vars(broken).update(vars(python), _backend=Broken())
    assert isinstance(broken, HFTokenizer)
    for call in (broken.encode, lambda text: broken.encode_ids([text])):
        with pytest.raises(TokenizerError, match="text of 4 characters: retry-limit-in-match over"):
            call("text")
    with pytest.raises(TokenizerError, match="retry-limit"):
        broken.decode([1])


@pytest.mark.slow
def test_ten_million_spaces():
    with pytest.raises(TokenizerError, match="failed on a text of 10,000,000 characters"):
        tokenizer("llama3").encode(" " * 10_000_000)


def test_a_class_that_only_the_model_s_type_names_gives_way_to_the_file(tmp_path):
    """A Chinese GPT-2 has BERT's vocabulary; a class that a file names is another matter."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert load_tokenizer(tmp_path).kind == "wordpiece"
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(TokenizerError, match="is for byte-level BPE"):
        load_tokenizer(tmp_path)


def test_opts_rows_begin_with_its_end_token(tmp_path):
    """Its files name GPT-2's class, or none, and `</s>` for every role."""
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    files = gpt2(tokens=("<s>", "<pad>", "</s>"), pad_token="<pad>", add_bos_token=True, **roles)
    files[CONFIG] = {**files[CONFIG], "tokenizer_class": None}
    write(tmp_path, {**files, "config.json": {"model_type": "opt"}})
    made = load_tokenizer(tmp_path)
    ids = made.encode("hello").ids
    assert ids[0] == made.eos_token_id == made.bos_token_id != made.pad_token_id
    assert list(ids[1:]) == list(made.encode_ids(["hello"], add_special_tokens=False)[0])


@pytest.mark.parametrize("model_type", ["mistral", "phi3", "llama"])
def test_files_of_some_models_are_used_unchanged(model_type):
    """transformers knows that their files name a wrong class."""
    named = {"tokenizer_class": "LlamaTokenizerFast"}
    settings = TokenizerConfig(named, named, model_type=model_type)
    settings = with_class_defaults(settings, "sentencepiece", Path("tokenizer.json"), True)
    unchanged = settings.tokenizer_class == "PreTrainedTokenizerFast"
    assert unchanged == (model_type != "llama")
