"""How good generated texts are: BLEU, chrF and TER by sacrebleu, ROUGE; and perplexity of targets.

Source: Papineni et al. 2002 (BLEU), Popović 2015 (chrF), Snover et al. 2006 (TER), Post 2018
(sacrebleu and its signatures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tfllm.evaluation.language_model import perplexity
from tfllm.evaluation.rouge import is_chinese, rouge
from tfllm.tasks.base import Answer
from tfllm.tasks.features import Example
from tfllm.tasks.seq2seq import source_of, targets_of

Tokenize = Literal["auto", "13a", "zh", "char", "intl", "none"]

SAMPLES = 20  # texts that are shown beside their sources and targets


def text_to_text(
    answers: Sequence[Answer],
    examples: Sequence[Example],
    *,
    tokenize: Tokenize = "auto",
) -> dict[str, Any]:
    """Return BLEU, chrF, TER and ROUGE of generated texts, and perplexity of the targets.

    Args:
        answers: {"text": generated text}; or, of the first target's tokens, `log_probability`,
            `token_count` and `correct`; or both.
        examples: {"source", "target"}: a target is one text, or several that are all right.
        tokenize: sacrebleu's tokenizer for BLEU; "auto" is zh where the targets are Chinese, else
            13a.

    Returns:
        BLEU, chrF and TER as sacrebleu prints them, 0 to 100; ROUGE, 0 to 1; `length_ratio`, words
        generated per word of the references; SAMPLES `samples` of the texts at even distances; and
        `loss`, `perplexity` and `accuracy` where the targets' tokens are scored.
    """
    measured: dict[str, Any] = {}
    if "text" in answers[0]:
        texts = [answer["text"] for answer in answers]
        references = [targets_of(example) for example in examples]
        chinese = is_chinese([text for several in references for text in several])
        if tokenize == "auto":
            tokenize = "zh" if chinese else "13a"
        measured |= scores(texts, references, tokenize) | rouge(texts, references, chinese=chinese)
    if "log_probability" in answers[0]:
        measured |= likelihood(answers)
    if "text" in answers[0]:
        measured["samples"] = samples(answers, examples)
    return measured


def scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: str
) -> dict[str, Any]:
    """Return BLEU, chrF and TER of a corpus, each with sacrebleu's signature.

    Args:
        texts: The generated texts.
        references: One or more references of each.
        tokenize: sacrebleu's name of how BLEU divides texts.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    most_references = max(map(len, references))
    # sacrebleu's streams: the first references of all texts, the second ones, ...
    streams: Any = [
        [several[number] if number < len(several) else None for several in references]
        for number in range(most_references)
    ]
    bleu = BLEU(tokenize=tokenize)
    result = bleu.corpus_score(list(texts), streams)
    measured: dict[str, Any] = {"bleu": result.score}
    signatures = {"bleu": str(bleu.get_signature())}
    asian = tokenize in ("zh", "char")  # without spaces between words
    for name, metric in (("chrf", CHRF()), ("ter", TER(normalized=asian, asian_support=asian))):
        measured[name] = metric.corpus_score(list(texts), streams).score
        signatures[name] = str(metric.get_signature())
    measured["length_ratio"] = result.sys_len / max(1, result.ref_len)
    measured |= {f"{name}_signature": text for name, text in signatures.items()}
    return measured


def likelihood(answers: Sequence[Answer]) -> dict[str, float]:
    """Return loss, perplexity and accuracy over the tokens of all targets."""
    count = sum(answer["token_count"] for answer in answers)
    loss = -sum(answer["log_probability"] for answer in answers) / max(1, count)
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "accuracy": sum(answer["correct"] for answer in answers) / max(1, count),
    }


def samples(answers: Sequence[Answer], examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return some texts with their source and target, evenly from the whole file.

    Args:
        answers: {"text"} of each example.
        examples: {"source", "target"}.
    """
    count = min(SAMPLES, len(answers))
    positions = [len(answers) * number // count for number in range(count)]
    return [
        {
            "source": source_of(examples[position]),
            "target": examples[position]["target"],
            "text": answers[position]["text"],
        }
        for position in positions
    ]
