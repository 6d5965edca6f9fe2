"""Byte-level byte-pair encoding: GPT-2, GPT-NeoX, RoBERTa, Llama 3, Qwen, SmolLM.

Source: Sennrich et al. 2016, "Neural machine translation of rare words with subword units"; Radford
et al. 2019, "Language models are unsupervised multitask learners" (the alphabet of bytes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfllm.errors import TokenizerError
from tfllm.tokenizers import hf_classes
from tfllm.tokenizers.byte_level import token_bytes
from tfllm.tokenizers.hf_internals import translate_errors
from tfllm.tokenizers.hf_tokenizers import HFTokenizer, add_missing_tokens
from tfllm.tokenizers.tokenizer_config import TokenizerConfig, content, read_json, read_text

if TYPE_CHECKING:
    from tfllm.tokenizers.graph.bytepair import BytePairGraph

ENDOFTEXT = "<|endoftext|>"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class BytePair(HFTokenizer):
    """Byte-level BPE: every text has known tokens, and any ids decode to valid UTF-8."""

    kind = "bytepair"

    def token_bytes(self) -> list[bytes]:
        """Return the bytes that each token decodes to, in the order of ids."""
        return token_bytes(self.vocabulary)

    def graph(self, profile: str = "reference") -> BytePairGraph:
        """Build the same tokenizer as TensorFlow ops: see `base.Tokenizer`."""
        from tfllm.tokenizers.graph.bytepair import BytePairGraph

        return BytePairGraph(self, profile)

    def save(self, directory: str | Path) -> None:
        """Write what `HFTokenizer.save` writes, and vocab.json and merges.txt."""
        super().save(directory)
        model = self.parse_definition()["model"]
        folder = Path(directory)
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
        merges = [entry if isinstance(entry, str) else " ".join(entry) for entry in model["merges"]]
        (folder / "merges.txt").write_text(
            "".join(f"{line}\n" for line in ("#version: 0.2", *merges)), "utf-8", newline="\n"
        )


def from_vocabulary(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    settings: TokenizerConfig = TokenizerConfig(),
    source: str | Path = "vocab.json",
) -> BytePair:
    """Create GPT-2's, RoBERTa's or Qwen2's tokenizer from a vocabulary and merges.

    Args:
        vocabulary: Token -> id.
        merges: Pairs of tokens, by rank.
        settings: The files beside them.
        source: The vocabulary file, for messages.

    Raises:
        TokenizerError: The vocabulary lacks a token of a merge or a special token.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
    from tokenizers import pre_tokenizers as split

    for number, (first, second) in enumerate(merges, start=1):  # the package would abort
        for token in (first, second, first + second):
            if token not in vocabulary:
                raise TokenizerError(
                    f"{source}: merge {number} is of '{first}' and '{second}', and the vocabulary "
                    f"lacks '{token}'. Use the two files that belong together."
                )
    with translate_errors(source=source):
        backend = Tokenizer(models.BPE(dict(vocabulary), list(merges)))
    kind = settings.tokenizer_class
    if not kind and {"<s>", "</s>", "<mask>"} <= vocabulary.keys():
        settings = settings.of_class(hf_classes.ROBERTA[0])
        kind = settings.tokenizer_class
    if kind:
        settings = hf_classes.with_class_defaults(settings, "bytepair", Path(source), False)
    prefix = bool(settings.config.get("add_prefix_space", False))
    backend.pre_tokenizer = split.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if kind in ("Qwen2Tokenizer", "GPTNeoXTokenizer"):
        backend.normalizer = normalizers.NFC()
    if kind == "Qwen2Tokenizer":
        backend.pre_tokenizer = split.Sequence(
            [
                split.Split(Regex(QWEN_PATTERN), "isolated"),
                split.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        )
    if kind in hf_classes.ROBERTA:
        added = {token.content for token in settings.added_tokens.values()}
        ends = [content(settings.named[key]) for key in ("cls_token", "sep_token")]
        missing = [token for token in ends if token not in vocabulary and token not in added]
        if missing:
            raise TokenizerError(f"{source}: the vocabulary lacks {', '.join(missing)}.")
    elif not kind and ENDOFTEXT in vocabulary:
        entry = AddedToken(ENDOFTEXT, special=True, normalized=False)
        backend.add_special_tokens([entry])
    if kind and kind not in hf_classes.ROBERTA:
        add_missing_tokens(backend, settings, source)
        hf_classes.set_bos_eos(backend, settings)
    return BytePair.from_definition(backend.to_str(), settings, source, of_class=True)


def read(vocabulary: Path, merges: Path, settings: TokenizerConfig) -> BytePair:
    """Load a tokenizer from vocab.json and merges.txt.

    Args:
        vocabulary: The vocab.json.
        merges: The merges.txt.
        settings: The files beside them.

    Raises:
        TokenizerError: Names the file and line of what is wrong.
    """
    table = read_json(vocabulary)
    if not all(isinstance(token_id, int) for token_id in table.values()):
        raise TokenizerError(f"{vocabulary}: expected a table of tokens with their ids.")
    if any(token.endswith("</w>") for token in table):
        raise TokenizerError(
            f"{vocabulary}: tokens end in '</w>': BPE over characters (GPT-1, CLIP), not over "
            "bytes. Use a checkpoint with byte-level BPE."
        )
    pairs = []
    for number, line in enumerate(read_text(merges).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or number == 1 and line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise TokenizerError(f"{merges}:{number}: a merge is two tokens and a space between.")
        pairs.append((pair[0], pair[1]))
    return from_vocabulary(table, pairs, settings, vocabulary)
