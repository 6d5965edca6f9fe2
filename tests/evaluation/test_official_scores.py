"""The numbers that the official scripts print for damaged answers to real questions.

GOLDEN was printed by evaluate-v1.1.py, evaluate-v2.0.py (SQuAD) and cmrc2018_evaluate.py (CMRC; for
Python 3, NLTK's tokenizer replaced by LATIN_PIECE), over the same files and the same answers.
"""

import random

import pytest

from tfllm.data import sources
from tfllm.evaluation.span_answers import span_answers

SQUAD = "squad/squad_v1_train_17titles.json.gz"
# file, share of questions left without an answer -> exact match, F1 of the script, in percent
GOLDEN = {
    (SQUAD, 0.0): (44.6052297537446, 63.05457653176968),
    (SQUAD, 0.3): (36.53211474993653, 50.02203551064979),
    ("cmrc2018/cmrc2018_trial.squad.json.gz", 0.0): (19.461077844311376, 58.47593995327691),
    ("drcd/DRCD_dev.json.gz", 0.0): (16.543700340522133, 57.024583707417584),
}
EXACT = 1e-12


def damaged(text, context, chance):
    """An answer that is right, nearly right, or wrong in one of several ways."""
    join = " " if " " in context else ""
    words = text.split(" ") if join else list(text)
    start = chance.randrange(len(context))
    return chance.choice(
        [
            text, text.upper() + ".", join.join(words[1:]), join.join(words + words), "",
            context[start : start + chance.randrange(1, 40)],
            join.join(chance.sample(words, len(words))), f"the {text} -- a",
        ]
    )  # fmt: skip


def damaged_file(path, without_answer):
    """(examples, answers): some gold answers changed or removed, and answers to all."""
    chance = random.Random(0)
    examples, answers = [], []
    for example in sources.read(path):
        gold = example["answers"]["text"]
        if chance.random() < without_answer:
            gold = []
        if gold and chance.random() < 0.02:
            gold = ["the", *gold[1:]]
        examples.append({**example, "answers": {"text": gold}})
        right = gold[0] if gold else example["context"][:9]
        answers.append({"answer": damaged(right, example["context"], chance)})
    return examples, answers


@pytest.mark.parametrize(("name", "without_answer"), GOLDEN)
def test_as_the_official_scripts(data, name, without_answer):
    examples, answers = damaged_file(data / name, without_answer)
    result = span_answers(answers, examples)
    exact_match, f1 = GOLDEN[name, without_answer]
    assert 100 * result["exact_match"] == pytest.approx(exact_match, abs=100 * EXACT)
    assert 100 * result["f1"] == pytest.approx(f1, abs=100 * EXACT)
