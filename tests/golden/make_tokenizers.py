"""Writes tokenizers-<version>.json.gz: small tokenizers as a version of transformers saves them.

    python tests/golden/make_tokenizers.py

Run where transformers, tokenizers and sentencepiece are installed, once with version 4.57 and once
with 5.23. Vocabularies are learned from a few sentences here; each class of the supported families
reads them and saves its files. The result is one table: name -> file name -> text (base64 of a
binary file).
"""

import base64
import gzip
import io
import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The cat sat on the mat, and it's the cat's mat; we'll see what they've done in 1974.",
    "Once upon a time, there was a little girl named Lily. She loved to play outside.",
    "人之初，性本善。性相近，習相遠。你好，世界！ 東京タワー",
    "Über den Wolken muß die Freiheit wohl grenzenlos sein, 1974 und 2024.",
    "Привет, мир! Как дела? — Спасибо, хорошо. aa aaa mm mmm bb bbb",
    "emoji 🦜🦜 and accents é è ê ñ ü, numbers 12345 67 8; (a) [b] <c> don't can't",
] * 4  # fmt: skip
# A charsmap of a few lines with what the large ones do: white space, full width, ligatures,
# composition, removal, expansion, and rules that begin one another.
CHARSMAP = [
    ("\t", " "), ("\n", " "), ("\r", " "), ("\u00a0", " "), ("\u3000", " "), ("\u2003", " "),
    ("\u0001", ""), ("\u007f", ""), ("\u200b", " "), ("\ufeff", " "), ("\u00ad", ""), ("ａ", "a"),
    ("Ａ", "A"), ("，", ","), ("ﬁ", "fi"), ("½", "1⁄2"), ("…", "..."), ("Ⅳ", "IV"), ("™", "TM"),
    ("\u212b", "Å"), ("ﷺ", "صلى الله عليه وسلم"), ("e\u0301", "é"), ("E\u0301", "É"),
    ("a\u0308", "ä"), ("u\u0308", "ü"), ("u\u0308\u0304", "ǖ"), ("n\u0303", "ñ"),
    ("\u0340", "\u0300"), ("\u0344", "\u0308\u0301"), ("か\u3099", "が"), ("\uff76\uff9e", "ガ"),
    ("ｶ", "カ"), ("\u1100\u1161", "가"), ("가\u11a8", "각"), ("①", "1"), ("x\u0302\u0301", "y"),
]  # fmt: skip
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(size=380):
    """(vocabulary, merges) of byte-level BPE."""
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(rust.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def word_pieces():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(
        {letter for line in CORPUS for letter in line + line.lower() if letter.strip()}
    )
    words = [
        "the",
        "The",
        "cat",
        "Cat",
        "sat",
        "un",
        "##ing",
        "##ed",
        "##s",
        "want",
        "##want",
        "mat",
    ]
    return list(dict.fromkeys([*specials, *letters, *(f"##{one}" for one in letters), *words]))


def sentence_pieces(kind, **options):
    """A ModelProto's bytes."""
    written = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for source, target in CHARSMAP if kind == "unigram" else ():
            points = (" ".join(f"{ord(c):X}" for c in text) for text in (source, target))
            rules.write("\t".join(points) + "\n")
        rules.flush()
        given = {"normalization_rule_tsv": rules.name} if kind == "unigram" else {}
        sentencepiece.set_random_generator_seed(0)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS),
            model_writer=written,
            model_type=kind,
            vocab_size=430 if kind == "bpe" else 200,
            hard_vocab_limit=False,
            byte_fallback=kind == "bpe",
            num_threads=1,
            minloglevel=2,
            **given,
            **options,
        )
    return written.getvalue()


def write(folder, config=None, **files):
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def byte_pair_files(specials=(), end_of_word=False):
    vocabulary, merges = byte_level()
    table = {**vocabulary}
    for token in specials:
        table.setdefault(token, len(table))
    return {
        "vocab__json": json.dumps(table),
        "merges__txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
    }


def whole_file(pre_tokenizer, normalizer=None, specials=("<|endoftext|>",)):
    vocabulary, merges = byte_level()
    rust = Tokenizer(models.BPE(vocabulary, merges))
    rust.pre_tokenizer, rust.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        rust.normalizer = normalizer
    rust.add_special_tokens(list(specials))
    return {"tokenizer__json": rust.to_str()}


def bert(**config):
    return lambda: ({"vocab__txt": "\n".join(word_pieces()) + "\n"}, config)


def model_file(name, kind, **options):
    return lambda **config: lambda: ({name: sentence_pieces(kind, **options)}, config)


def marian():
    model = sentence_pieces("unigram")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(n) for n in range(processor.get_piece_size())]
    table = ["</s>", "<unk>", *(p for p in pieces if p not in ("<s>", "</s>", "<unk>")), "<pad>"]
    ids = json.dumps({token: number for number, token in enumerate(table)})
    files = {"source__spm": model, "target__spm": model, "vocab__json": ids}
    return files, {"source_lang": "en", "target_lang": "de"}


def llama3():
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return whole_file(split, specials=("<|begin_of_text|>", "<|end_of_text|>")), {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
    }  # fmt: skip


def neox():
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return whole_file(split, normalizers.NFC()), {"eos_token": "<|endoftext|>"}


fairseq = model_file("sentencepiece__bpe__model", "unigram")
t5 = model_file("spiece__model", "unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
albert = model_file(
    "spiece__model", "unigram", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
    control_symbols=["[CLS]", "[SEP]"], user_defined_symbols=["[MASK]"],
)  # fmt: skip
llama = model_file(
    "tokenizer__model", "bpe", normalization_rule_name="identity", remove_extra_whitespaces=False
)


def gemma():
    """Gemma's own model: real special tokens, no space before the text."""
    files, config = model_file(
        "tokenizer__model", "bpe", normalization_rule_name="identity", pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        add_dummy_prefix=False, remove_extra_whitespaces=False,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n\n", "\u2581\u2581"],
    )(add_bos_token=True)()  # fmt: skip
    return files, config


# Name -> class, files and settings.
TOKENIZERS = {
    "bert uncased": ("BertTokenizerFast", bert()),
    "bert cased": ("BertTokenizerFast", bert(do_lower_case=False)),
    "bert chinese": ("BertTokenizerFast", bert(do_lower_case=False, tokenize_chinese_chars=True)),
    "bert, accents kept": ("BertTokenizerFast", bert(strip_accents=False)),
    "bert, ideographs together": ("BertTokenizerFast", bert(tokenize_chinese_chars=False)),
    "distilbert": ("DistilBertTokenizerFast", bert()),
    "electra": ("ElectraTokenizerFast", bert()),
    "roberta": ("RobertaTokenizerFast", lambda: (byte_pair_files(ROBERTA), {})),
    "roberta, space": (
        "RobertaTokenizerFast", lambda: (byte_pair_files(ROBERTA), {"add_prefix_space": True})
    ),
    "bart": ("BartTokenizerFast", lambda: (byte_pair_files(ROBERTA), {})),
    "gpt2": ("GPT2TokenizerFast", lambda: (byte_pair_files(["<|endoftext|>"]), {})),
    "gpt2, space": (
        "GPT2TokenizerFast", lambda: (byte_pair_files(["<|endoftext|>"]),
        {"add_prefix_space": True})
    ),
    "qwen2": (
        "Qwen2TokenizerFast",
        lambda: (byte_pair_files(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), {}),
    ),
    "llama3": ("PreTrainedTokenizerFast", llama3),
    "gpt-neox": ("GPTNeoXTokenizerFast", neox),
    "xlm-roberta": ("XLMRobertaTokenizerFast", fairseq()),
    "mbart": ("MBartTokenizerFast", fairseq(src_lang="de_DE", tgt_lang="zh_CN")),
    "mbart50": ("MBart50TokenizerFast", fairseq(src_lang="de_DE", tgt_lang="zh_CN")),
    "t5": ("T5TokenizerFast", t5()),
    "t5, not legacy": ("T5TokenizerFast", t5(legacy=False)),
    "mt5": ("MT5TokenizerFast", t5(extra_ids=0)),
    "albert": ("AlbertTokenizerFast", albert()),
    "albert, as written": ("AlbertTokenizerFast", albert(do_lower_case=False, keep_accents=True)),
    "llama": ("LlamaTokenizerFast", llama()),
    "llama, not legacy": ("LlamaTokenizerFast", llama(legacy=False)),
    "llama, no space": ("LlamaTokenizerFast", llama(add_prefix_space=False)),
    "mistral": ("LlamaTokenizerFast", llama(legacy=False, add_eos_token=False)),
    "gemma": ("GemmaTokenizerFast", gemma),
    "llama slow": ("LlamaTokenizer", llama()),
    "t5 slow": ("T5Tokenizer", t5()),
    "xlm-roberta slow": ("XLMRobertaTokenizer", fairseq()),
    "marian": ("MarianTokenizer", marian),
    "clip": (
        "CLIPTokenizerFast", lambda: (byte_pair_files(["<|startoftext|>", "<|endoftext|>"]), {})
    ),
}  # fmt: skip
KEPT = (".json", ".txt", ".model", ".spm", ".jinja")


def saved(name, added=()):
    """What a class saves of one of TOKENIZERS: file name -> text."""
    kind, make = TOKENIZERS[name]
    cls = getattr(transformers, kind, None) or getattr(transformers, kind.removesuffix("Fast"))
    with tempfile.TemporaryDirectory() as place:
        given, out = Path(place) / "given", Path(place) / "out"
        given.mkdir()
        files, config = make()
        write(given, {"tokenizer_class": kind.removesuffix("Fast"), **config}, **files)
        tokenizer = cls.from_pretrained(given)
        if added:
            tokenizer.add_tokens(list(added))
        tokenizer.save_pretrained(out)
        found = {}
        for path in sorted(out.iterdir()):
            if path.suffix in KEPT:
                data = path.read_bytes()
                text = path.suffix not in (".model", ".spm")
                found[path.name] = data.decode() if text else base64.b64encode(data).decode()
        return found


def main():
    version = ".".join(transformers.__version__.split(".")[:2])
    table = {}
    for name in TOKENIZERS:
        for label, added in ((name, ()), (f"{name} + tokens", ("lily<x>", "Mat"))):
            if added and name not in (
                "bert cased",
                "roberta",
                "gpt2",
                "xlm-roberta",
                "t5",
                "llama",
            ):
                continue
            try:
                table[label] = saved(name, added)
            except Exception as error:
                print(f"{label}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    data = json.dumps(table, ensure_ascii=False, sort_keys=True).encode()
    path = Path(__file__).parent / f"tokenizers-{version}.json.gz"
    path.write_bytes(gzip.compress(data, 9, mtime=0))
    print(path.name, len(table), "tokenizers,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
