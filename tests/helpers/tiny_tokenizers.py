"""Small tokenizers of every kind that decoders use, learned or written on the spot."""

import functools
import io
import json

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tfllm.tokenizers import bytepair, characters
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.byte_level import bytes_to_unicode
from tfllm.tokenizers.bytepair import BytePair
from tfllm.tokenizers.graph.byte_level_pre_tokenizer import LLAMA3_PATTERN
from tfllm.tokenizers.sentencepiece import SentencePieceJson, from_proto
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

CORPUS = [
    "The cat sat on the mat, and it's the cat's mat; we'll see what they've done.",
    "    def main():\n        return [x for x in range(10)]\n\n\n",
    "Once upon a time, there was a little girl named Lily. She loved to play outside.",
    "人之初，性本善。性相近，習相遠。你好，世界！",
    "Über den Wolken muß die Freiheit wohl grenzenlos sein, 1974 und 2024.",
    "Привет, мир! Как дела? — Спасибо, хорошо.",
    "emoji 🦜🦜 and accents é è ê, numbers 12345 67 8.",
] * 4  # fmt: skip
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@functools.cache
def learned(size=400):
    """(vocabulary, merges) of a byte-level BPE over CORPUS."""
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.train_from_iterator(
        CORPUS,
        trainers_of(size, [], sorted(bytes_to_unicode())),
    )
    model = json.loads(rust.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def trainers_of(size, specials, alphabet):
    from tokenizers import trainers

    return trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )


def byte_level(pre_tokenizer, normalizer=None, added=(), model_options=None):
    """A BytePair over `learned()` with other parts around it."""
    vocabulary, merges = learned()
    rust = Tokenizer(models.BPE(vocabulary, merges, **(model_options or {})))
    rust.pre_tokenizer = pre_tokenizer
    rust.decoder = decoders.ByteLevel()
    rust.post_processor = processors.ByteLevel(trim_offsets=False)
    if normalizer:
        rust.normalizer = normalizer
    rust.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    rust.add_tokens([AddedToken(token, normalized=True, special=False) for token in added])
    return BytePair.from_definition(rust.to_str())


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def roberta():
    vocabulary, merges = learned()
    table = {**vocabulary, **{t: len(vocabulary) + n for n, t in enumerate(ROBERTA)}}
    return bytepair.from_vocabulary(table, merges)


def unreachable():
    """Two tokens that merges make of nothing, one of them given whole (`ignore_merges`)."""
    vocabulary, merges = learned()
    table = {**vocabulary, "zqzq": len(vocabulary), "Ġzq": len(vocabulary) + 1}
    rust = Tokenizer(models.BPE(table, merges, ignore_merges=True))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    return BytePair.from_definition(rust.to_str())


BYTE_LEVEL = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "neox": lambda: byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(), ["  ", "    "]
    ),
    "llama3": lambda: byte_level(split(LLAMA3_PATTERN.replace("NUMBERS", r"\p{N}{1,3}"))),
    "qwen2": lambda: byte_level(split(bytepair.QWEN_PATTERN), normalizers.NFC()),
    "smollm2": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ),
    "roberta": roberta,
    "roberta with a space": lambda: bytepair.from_vocabulary(
        {**learned()[0], **{t: 400 + n for n, t in enumerate(ROBERTA)}},
        learned()[1],
        TokenizerConfig({"add_prefix_space": True}),
    ),
    "tokens given whole": unreachable,
}


@functools.cache
def trained(kind, charsmap="nmt_nfkc", extra=True, pad_id=3):
    """A SentencePiece ModelProto learned from CORPUS."""
    written = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n") if line),
        model_writer=written,
        model_type=kind,
        vocab_size=440 if kind == "bpe" else 150,
        hard_vocab_limit=False,
        byte_fallback=kind == "bpe",
        normalization_rule_name=charsmap,
        remove_extra_whitespaces=extra,
        pad_id=pad_id,
        num_threads=1,
        minloglevel=2,
    )
    return proto.parse(written.getvalue(), kind)


def llama_json(prefix=None):
    """A Llama tokenizer.json as Hugging Face's converter writes it."""
    model = trained("bpe", "identity", False)
    vocabulary = {entry.piece: number for number, entry in enumerate(model.pieces)}
    merges = [
        (entry.score, entry.piece[:cut], entry.piece[cut:])
        for entry in model.pieces
        for cut in range(1, len(entry.piece))
        if entry.type == proto.NORMAL
        and entry.piece[:cut] in vocabulary
        and entry.piece[cut:] in vocabulary
    ]
    merges.sort(key=lambda merge: -merge[0])
    rust = Tokenizer(
        models.BPE(
            vocabulary,
            [merge[1:] for merge in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if prefix:
        rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    else:
        rust.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    rust.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    rust.add_special_tokens(["<unk>", "<s>", "</s>"])
    return SentencePieceJson.from_definition(rust.to_str())


def unigram_json():
    """An XLM-R or T5 tokenizer.json as Hugging Face's converter writes it."""
    model = trained("unigram")
    rust = Tokenizer(models.Unigram([(entry.piece, entry.score) for entry in model.pieces], 0))
    rust.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    rust.decoder = decoders.Metaspace(prepend_scheme="always")
    rust.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    rust.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return SentencePieceJson.from_definition(rust.to_str())


def of_class(name):
    return TokenizerConfig({"tokenizer_class": name}, {"tokenizer_class": name})


OTHERS = {
    "unigram": lambda: from_proto(trained("unigram")),
    "t5": lambda: from_proto(trained("unigram"), of_class("T5Tokenizer")),
    "xlm-r": lambda: from_proto(trained("unigram", pad_id=-1), of_class("XLMRobertaTokenizer")),
    "camembert": lambda: from_proto(trained("unigram", pad_id=-1), of_class("CamembertTokenizer")),
    "bpe": lambda: from_proto(trained("bpe", "identity", False)),
    "llama.json": llama_json,
    "llama.json, first": lambda: llama_json("first"),
    "llama.json, always": lambda: llama_json("always"),
    "unigram.json": unigram_json,
    "characters": lambda: characters.from_characters(sorted(set("".join(CORPUS)))),
    "characters, unknown": lambda: characters.from_characters(
        sorted(set("".join(CORPUS))), ["<unk>", "<|endoftext|>"]
    ),
}
MAKERS = {**BYTE_LEVEL, **OTHERS}


@functools.cache
def tokenizer(name):
    return MAKERS[name]()


@functools.cache
def graph(name):
    return tokenizer(name).graph()


TRICKY = [
    "",
    " ",
    "  ",
    "\n",
    " \n \n\n  x",
    "Hello  world",
    "it's don't  'll x''s 's's  's\n's\t's we'Ll WE'VE 'ſ 'S",
    "a\n\nb   ",
    "x 12345  6 a\u00a0b\u2003c \u3000d",
    "\x00\x00a b\x00",
    "..foo .foo \t.foo !a !!a\n\n\n b!\n\n \n c  \r\n  d 1234567 ½ ٣٤",
    "你好，世界 🦜🦜 é e\u0301 a\u0328\u0301",
    "<|endoftext|> <|endoftext|>x<s></s> <mask>  <mask>y <unk><pad><0x41>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "\u2581x \u2581\u2581 y",
    "zqzq zq zqzqz",
    "ﬁ Ⅳ ½ … 𝐀 Ａ \u200b\u200d\ufeff\u00ad",
    "\ufffd\ufffe\U0010ffff\ue000",
    "가각 नमस्ते किताब ไทย مرحبا",
    "e\u0301\u0323 \u1100\u1161\u11a8",
    "The cat sat on the mat. " * 20,
]
