"""Texts of our own that every exported model has to read like its checkpoint: many ways to write.

They stand in for data where none is given: to calibrate, to warm up, and to compare.
"""

from __future__ import annotations

from typing import Any

PLAIN = (
    "A warm, funny film that never talks down to its audience.",
    "The plot falls apart in the last half hour.",
    "I would not recommend this restaurant to anyone.",
    "Great value for the price, and it arrived two days early.",
    "The battery died after three weeks.",
    "Two hours long and it felt like four!",
    "Not bad at all; I have seen far worse.",
    "It's fine. Nothing more, nothing less.",
    "Where can I buy a ticket to the airport?",
    "The committee will meet on 3 March 2024 at 10:30 a.m.",
    "She said: \"Don't wait for me, I'll be late.\"",
    "Prices rose by 4.75% to $1,299.00 last quarter.",
    "def main(argv): return sum(int(x) for x in argv[1:])",
    "See https://example.org/a/b?c=d&e=f#g or write to info@example.org",
    "ALL CAPITAL LETTERS, then none at all",
    "What a strange, slow, beautiful piece of music",
    "The quick brown fox jumps over the lazy dog",
    "Unbelievably over-complicated antidisestablishmentarianism",
    "yes",
    "!!! ??? ...",
    "The service was slow but the food made up for it, and the view over the harbour at night is "
    "worth every minute of the drive from town, even when it rains.",
    "My grandmother's recipe needs two eggs, a cup of flour, sugar, a pinch of salt and patience.",
    "The new phone is lighter than the old one but the screen scratches easily.",
    "He scored twice in the first half and was sent off in the second.",
)
VARIED = (
    "这家餐厅的服务态度很好，菜也很好吃。",
    "手机电池用了三个星期就坏了，太失望了！",
    "電影的最後半小時讓人非常感動。",
    "Café, naïve, résumé, Zürich, Ångström, São Paulo",
    "İstanbul'da güzel bir gün; straße und Fußgänger",
    "Привет, как дела? Ещё не поздно.",
    "こんにちは、世界。カタカナとひらがな",
    "한국어 문장도 읽을 수 있어야 합니다.",
    "مرحبا بالعالم، كيف حالك؟",
    "Καλημέρα κόσμε",
    "emoji 😀 👩‍👩‍👧 and symbols ½ ﬁ Ⅳ № ™ €",
    "tabs\tand  several   spaces and a line\nbreak",
    "zero\u200bwidth, soft\u00adhyphen, full\u3000width space",
    "[MASK] and [SEP] written in the text",
    "",
)
SENTENCES = PLAIN + VARIED

CONTEXT = (
    "The lighthouse on the northern cape was built in 1871 by the engineer Anna Holm. It stands 34 "
    "metres high and its light can be seen from 19 nautical miles. Since 1988 it works without a "
    "keeper, and in summer visitors may climb its 162 steps."
)
QUESTIONS = (
    "Who built the lighthouse?",
    "When was the lighthouse built?",
    "How high is it?",
    "Since when does it work without a keeper?",
    "How many steps are there?",
    "What is the capital of France?",
)


def examples(task: Any, plain: bool = False) -> list[dict[str, Any]]:
    """Examples for a task; `plain`: ASCII texts only."""
    sentences = PLAIN if plain else SENTENCES
    if task.required_fields[0] == ("question", "context"):
        return [{"question": question, "context": CONTEXT} for question in QUESTIONS]
    if task.required_fields[0] == ("words",):
        return [{"words": text.split()} for text in sentences if text.split()]
    pairs = sentences[1:] + sentences[:1]
    if task.takes_pair:
        return [{"text": a, "text_pair": b} for a, b in zip(sentences, pairs, strict=True)]
    return [{"text": text} for text in sentences]
