"""Chat templates as transformers renders them, and which tokens are the assistant's."""

import pytest

from tests.helpers.tiny_tokenizers import tokenizer
from tfllm.errors import DataError, TokenizerError
from tfllm.tokenizers import chat
from tfllm.tokenizers.bytepair import BytePair
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

CHATML = (
    "{% for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}: {% endif %}{% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat on the mat"},
    {"role": "user", "content": "é?"},
    {"role": "assistant", "content": "你好"},
]


def with_template(template, name="gpt2"):
    return BytePair.from_definition(
        tokenizer(name).definition, TokenizerConfig(chat_template=template)
    )


def test_chatml():
    text = chat.render(CHATML, MESSAGES[:1], add_generation_prompt=True)
    assert text == "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"
    python = with_template(CHATML)
    ids = python.apply_chat_template(MESSAGES[:1])
    assert python.decode(ids, skip_special_tokens=False) == text
    assert ids[0] == python.token_id("<|im_start|>")
    assert len(python.apply_chat_template(MESSAGES[:1], add_generation_prompt=False)) < len(ids)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["chatml", "marked"])
def test_answers(template):
    python = with_template(template)
    ids, spans = chat.assistant_spans(python, MESSAGES)
    said = [python.decode(ids[begin:end]).strip(": \n") for begin, end in spans]
    assert said == ["sat on the mat", "你好"]
    end = "<|im_end|>" if template == CHATML else "<|endoftext|>"
    assert all(python.token_id(end) in ids[begin:stop] for begin, stop in spans)


def test_what_templates_may_call():
    template = (
        "{{ messages | tojson }}{{ strftime_now('%Y') | length }}"
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}"
        "{% endfor %}"
        "{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}{{ dict(a=1).a }}"
    )
    text = chat.render(template, [{"role": "é", "content": "<a>"}] * 2, add_generation_prompt=False)
    assert text == '[{"role": "é", "content": "<a>"}, {"role": "é", "content": "<a>"}]4é31'


@pytest.mark.parametrize(
    ("template", "messages", "error", "said"),
    [
        ("{{ raise_exception('no system') }}", MESSAGES, DataError, "refuses .* no system"),
        ("{% if %}", MESSAGES, TokenizerError, "line 1"),
        ("{{ messages.__class__.__mro__ }}", MESSAGES, TokenizerError, "not allowed"),
        ("{{ messages.append(1) }}", MESSAGES, TokenizerError, "not allowed"),
        ("{{ messages[0]['content'] + 1 }}", MESSAGES, DataError, "fails on these"),
        (CHATML, ["hello"], DataError, "Message 1 is 'hello'"),
        (CHATML, [{"role": "user", "content": {1}}], DataError, "plain JSON"),
    ],
)
def test_what_goes_wrong_is_said(template, messages, error, said):
    with pytest.raises(error, match=said):
        chat.render(template, messages, add_generation_prompt=False)


def test_without_a_template():
    with pytest.raises(TokenizerError, match="no chat template"):
        tokenizer("gpt2").apply_chat_template(MESSAGES)


def test_a_template_that_rewrites_what_was_said():
    last_only = "{{ messages[-1].content }}"
    with pytest.raises(TokenizerError, match="generation"):
        chat.assistant_spans(with_template(last_only), MESSAGES)


@pytest.mark.parity
@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["chatml", "marked"])
def test_transformers_renders_the_same(template, tmp_path):
    transformers = pytest.importorskip("transformers")
    python = with_template(template)
    python.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for prompt in (True, False):
        assert theirs.apply_chat_template(
            MESSAGES, add_generation_prompt=prompt, tokenize=False
        ) == chat.render(
            template, MESSAGES, add_generation_prompt=prompt, **chat.special_tokens_map(python)
        )
    if template == MARKED:
        found = theirs.apply_chat_template(
            MESSAGES, return_assistant_tokens_mask=True, return_dict=True
        )
        ids, spans = chat.assistant_spans(python, MESSAGES)
        assert found["input_ids"] == ids
        mask = [int(any(a <= i < b for a, b in spans)) for i in range(len(ids))]
        assert found["assistant_masks"] == mask
