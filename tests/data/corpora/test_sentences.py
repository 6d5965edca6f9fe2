"""Sentences of several languages, and nothing lost where spaces are to be kept."""

import pytest

from tfllm.data.corpora.sentence_splitter import split_sentences

CASES = {
    "abbreviations": (
        "Mr. Smith went to Washington. He saw Dr. Jones, e.g. twice, in the U.S. Navy.",
        ["Mr. Smith went to Washington.", "He saw Dr. Jones, e.g. twice, in the U.S. Navy."],
    ),
    "initials": ("J. K. Rowling wrote it. I read it.", ["J. K. Rowling wrote it.", "I read it."]),
    "ambiguous": ("He works at Apple Inc. The company grew.",
                  ["He works at Apple Inc.", "The company grew."]),
    "numbers": ("It is 3.14 or no. 5. True!", ["It is 3.14 or no. 5.", "True!"]),
    "quotes": (
        'He said "Go!" and left. "Really?" She asked (twice). Yes.',
        ['He said "Go!" and left.', '"Really?"', "She asked (twice).", "Yes."],
    ),
    "runs": ("Wait... What?! No.", ["Wait...", "What?!", "No."]),
    "tokenised": ('It was " good . " The team won .', ['It was " good . "', "The team won ."]),
    "Chinese": (
        "他说：“你好。”我走了！真的吗？（是的。）好……吧。没有句号",
        ["他说：“你好。”", "我走了！", "真的吗？", "（是的。）", "好……吧。", "没有句号"],
    ),
    "Japanese": ("「行くよ。」彼は言った。終わり。", ["「行くよ。」", "彼は言った。", "終わり。"]),
    "Hausa": ("Na je kasuwa. Ya ce: “To.” Ba komai.",
              ["Na je kasuwa.", "Ya ce: “To.”", "Ba komai."]),
    "Hindi": ("यह है। वह था।", ["यह है।", "वह था।"]),
    "Arabic": ("ما هذا؟ نعم.", ["ما هذا؟", "نعم."]),
    "lines": ("A title\nTwo. Three\r\n\r\n four", ["A title", "Two.", "Three", "four"]),
    "nothing": (" \n ", []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sentences(name):
    text, expected = CASES[name]
    assert split_sentences(text) == expected
    kept = split_sentences(text, keep_spaces=True)
    assert "".join(kept) == (text if expected else "")
    assert [part.strip() for part in kept] == expected


def test_wrapped_lines_are_joined():
    assert split_sentences("One\ntwo. Three\nfour", join_lines=True) == ["One\ntwo.", "Three\nfour"]
