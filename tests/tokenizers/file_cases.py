"""Directories of tokenizer files, one for each setting that such files can hold.

The vocabularies are written by hand, so that they are the same everywhere. What transformers makes
of the directories stands in tests/golden/tokenizer_files.json (make_tokenizer_files.py).
"""

import json
from pathlib import Path

from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.byte_level import bytes_to_unicode

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CAPITALS = LETTERS.upper()
WORDS = ("hello", "world", "the", "cat", "new", "tok", "user", "cafe", "café")
TEXTS = (
    "hello world",
    " hello",
    "  hello  world ",
    "Hello CAT café",
    "the cat</s>cat </s> the",
    "a<|im_start|>user hello<|im_end|> the",
    "newtok xnewtokx NEWTOK new tok newtok.",
    "Newtok café",
    "the <mask>cat[MASK] [SEP] hello",
    "<ent> cat<ent>the",
    "the <extra_id_0> cat<extra_id_1>",
    "中文 x y",
    "",
)
PAIR = ("hello", "the cat")


def letters_and_joins(words, space=""):
    """(letters in `words`, joins that spell each word from its left), each once."""
    letters = sorted({letter for word in words for letter in space + word})
    joins = dict.fromkeys(
        ((space + word)[:end], (space + word)[end])
        for word in words
        for end in range(1, len(space + word))
    )
    return letters, list(joins)


def wordpiece():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    signs = [*LETTERS, *CAPITALS, *".<>/|_[]é中文"]
    return [*specials, *signs, *(f"##{s}" for s in signs), *WORDS, "Hello", "CAT", "##tok"]


def byte_pairs():
    """(vocabulary, merges) of a byte-level BPE."""
    joins = [*letters_and_joins(WORDS[:7])[1], *letters_and_joins(WORDS[:7], "Ġ")[1]]
    tokens = dict.fromkeys([*bytes_to_unicode(), *(a + b for a, b in joins)])
    return {token: number for number, token in enumerate(tokens)}, joins


def llama_model():
    """SentencePiece's BPE with byte fallback, as Llama 2 has it."""
    pieces = [
        ("<unk>", 0.0, proto.UNKNOWN),
        ("<s>", 0.0, proto.CONTROL),
    ]
    pieces += [("</s>", 0.0, proto.CONTROL)]
    pieces += [(token, 0.0, proto.BYTE) for token in proto.BYTES]
    _, plain = letters_and_joins(WORDS[:7])
    _, spaced = letters_and_joins(WORDS[:7], proto.SPACE)
    joined = dict.fromkeys([proto.SPACE * 2, *(a + b for a, b in [*plain, *spaced])])
    pieces += [(token, -float(n), proto.NORMAL) for n, token in enumerate(joined)]
    single = [proto.SPACE, *LETTERS, *CAPITALS, *".<>/|_[]é"]
    pieces += [(letter, -1000.0, proto.NORMAL) for letter in single]
    model = proto.build(pieces, proto.BPE, byte_fallback=True)
    model.trainer_spec.bos_id, model.trainer_spec.eos_id = 1, 2
    return model


def unigram_model(specials, unknown="<unk>", space=True):
    """A unigram model that begins with `specials`."""
    pieces = [
        (
            token,
            0.0,
            proto.UNKNOWN if token == unknown else proto.CONTROL,
        )
        for token in specials
    ]
    words = [*(proto.SPACE + word for word in WORDS[:7]), *WORDS[:7]]
    pieces += [(word, -2.0 - 0.01 * n, proto.NORMAL) for n, word in enumerate(words)]
    single = [proto.SPACE, *LETTERS, *CAPITALS, *".<>/|_[]é"]
    pieces += [(letter, -9.0 - 0.01 * n, proto.NORMAL) for n, letter in enumerate(single)]
    model = proto.build(pieces, proto.UNIGRAM, remove_extra_spaces=True)
    for role in ("bos", "eos", "pad"):
        spelled = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}[role]
        if spelled in specials:
            setattr(model.trainer_spec, f"{role}_id", specials.index(spelled))
    return model


def token(content, special=True, **flags):
    """An added token as transformers writes it."""
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": not special}
    return {"content": content, **plain, "special": special, **flags}


def json_of(kind, **changes):
    """A tokenizer.json of one of the vocabularies above."""
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

    added = changes.pop("added", ())
    if kind == "wordpiece":
        table = {entry: number for number, entry in enumerate(wordpiece())}
        rust = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
        rust.normalizer = normalizers.BertNormalizer(lowercase=changes.get("lowercase", True))
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rust.decoder = decoders.WordPiece()
        rust.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        rust.add_special_tokens(wordpiece()[:5])
    elif kind in ("bytepair", "roberta"):
        table, merges = byte_pairs()
        if kind == "roberta":
            table = with_tokens(table, ROBERTA)
        rust = Tokenizer(models.BPE(table, merges))
        prefix = changes.get("prefix", False)
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        rust.decoder = decoders.ByteLevel()
        rust.post_processor = processors.ByteLevel(trim_offsets=False)
        if kind == "roberta":
            ends = [(name, table[name]) for name in ("</s>", "<s>")]
            rust.post_processor = processors.RobertaProcessing(*ends, True, prefix)
            mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
            rust.add_special_tokens([*ROBERTA[:4], mask])
        else:
            rust.add_special_tokens(["<|endoftext|>"])
    elif kind == "llama":
        model = llama_model()
        table = {entry.piece: number for number, entry in enumerate(model.pieces)}
        joins = [
            join for space in ("", proto.SPACE) for join in letters_and_joins(WORDS[:7], space)[1]
        ]
        merges = [(proto.SPACE, proto.SPACE), *joins]
        options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        rust = Tokenizer(models.BPE(table, merges, **options))
        if changes.get("metaspace"):
            rust.pre_tokenizer = pre_tokenizers.Metaspace(
                prepend_scheme=changes["metaspace"], split=False
            )
        else:
            rust.normalizer = normalizers.Sequence(
                [
                    normalizers.Prepend(proto.SPACE),
                    normalizers.Replace(" ", proto.SPACE),
                ]
            )
        fallback = [
            decoders.Replace(proto.SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
        rust.decoder = decoders.Sequence([*fallback, decoders.Strip(content=" ", left=1)])
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
        )
        rust.add_special_tokens(["<unk>", "<s>", "</s>"])
    else:
        model = unigram_model(XLMR)
        vocabulary = [(entry.piece, entry.score) for entry in model.pieces]
        vocabulary.append(("<mask>", 0.0))
        rust = Tokenizer(models.Unigram(vocabulary, 3))
        rust.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
        rust.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        rust.decoder = decoders.Metaspace()
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[("<s>", 0), ("</s>", 2)],
        )
        mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
        rust.add_special_tokens([*XLMR, mask])
    for entry in added:
        flags = dict(entry)
        text = flags.pop("content")
        (rust.add_special_tokens if flags["special"] else rust.add_tokens)(
            [AddedToken(text, **flags)]
        )
    return json.loads(rust.to_str())


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
XLMR = ("<s>", "<pad>", "</s>", "<unk>")


def with_tokens(table, tokens):
    return {**table, **{entry: len(table) + n for n, entry in enumerate(tokens)}}


def write(folder, files):
    """The files: text, JSON values, or a ModelProto, by their names."""
    folder = Path(folder)
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if hasattr(value, "SerializeToString"):
            path.write_bytes(value.SerializeToString())
        elif isinstance(value, str):
            path.write_text(value, encoding="utf-8", newline="\n")
        else:
            path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return folder


CONFIG, SPECIALS, ADDED = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


def bert(files=None, **config):
    config = {"tokenizer_class": "BertTokenizer", **config}
    return {"vocab.txt": "\n".join(wordpiece()) + "\n", CONFIG: config, **(files or {})}


def bert_json(files=None, added=(), lowercase=True, **config):
    config = {"tokenizer_class": "BertTokenizer", **config}
    made = json_of("wordpiece", added=added, lowercase=lowercase)
    return {"tokenizer.json": made, CONFIG: config, **(files or {})}


def gpt2(files=None, tokens=("<|endoftext|>",), **config):
    table, merges = byte_pairs()
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    config = {"tokenizer_class": "GPT2Tokenizer", **config}
    return {
        "vocab.json": with_tokens(table, tokens), "merges.txt": "\n".join(lines) + "\n",
        CONFIG: config, **(files or {}),
    }  # fmt: skip


def gpt2_json(files=None, added=(), prefix=False, kind="bytepair", **config):
    config = {"tokenizer_class": "GPT2Tokenizer", **config}
    made = json_of(kind, added=added, prefix=prefix)
    return {"tokenizer.json": made, CONFIG: config, **(files or {})}


def roberta(files=None, **config):
    return gpt2(files, ROBERTA, **{"tokenizer_class": "RobertaTokenizer", **config})


def roberta_json(files=None, **config):
    config = {"tokenizer_class": "RobertaTokenizer", **config}
    return gpt2_json(files, kind="roberta", **config)


def llama(files=None, **config):
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **config}
    return {"tokenizer.model": llama_model(), CONFIG: config, **(files or {})}


def llama_json(files=None, added=(), metaspace=None, **config):
    config = {"tokenizer_class": "LlamaTokenizer", **config}
    made = json_of("llama", added=added, metaspace=metaspace)
    return {"tokenizer.json": made, CONFIG: config, **(files or {})}


def t5(files=None, **config):
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 3, **config}
    model = unigram_model(("<pad>", "</s>", "<unk>"))
    return {"spiece.model": model, CONFIG: config, **(files or {})}


def xlmr(files=None, kind="XLMRobertaTokenizer", **config):
    model = unigram_model(("<unk>", "<s>", "</s>"))
    config = {"tokenizer_class": kind, **config}
    return {"sentencepiece.bpe.model": model, CONFIG: config, **(files or {})}


def xlmr_json(files=None, added=(), kind="XLMRobertaTokenizer", **config):
    config = {"tokenizer_class": kind, **config}
    made = json_of("unigram", added=added)
    return {"tokenizer.json": made, CONFIG: config, **(files or {})}


def own_tokens(files):
    """`added_tokens_decoder` of what the vocabulary files themselves hold."""
    entries = files.get("tokenizer.json", {}).get("added_tokens", ())
    found = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in entries}
    if "spiece.model" in files:
        size = len(files["spiece.model"].pieces)
        found |= {str(size + n): token(f"<extra_id_{2 - n}>") for n in range(3)}
    return found


def size_of(files):
    """Tokens of the vocabulary files."""
    if "vocab.txt" in files:
        return len(files["vocab.txt"].split("\n")) - 1
    if "vocab.json" in files:
        return len(files["vocab.json"])
    if "tokenizer.model" in files:
        return len(files["tokenizer.model"].pieces)
    if "spiece.model" in files:
        return len(files["spiece.model"].pieces) + 3
    if "sentencepiece.bpe.model" in files:
        return len(files["sentencepiece.bpe.model"].pieces) + 2
    data = files["tokenizer.json"]
    numbers = [entry["id"] for entry in data["added_tokens"]]
    vocabulary = data["model"]["vocab"]
    last = len(vocabulary) - 1 if isinstance(vocabulary, list) else max(vocabulary.values())
    return 1 + max([last, *numbers])


IM = ("<|im_start|>", "<|im_end|>")
MAKERS = {
    "bert": bert, "bert.json": bert_json, "gpt2": gpt2, "gpt2.json": gpt2_json, "llama": llama,
    "roberta": roberta, "roberta.json": roberta_json, "llama.json": llama_json, "t5": t5,
    "xlm-r": xlmr, "xlm-r.json": xlmr_json,
}  # fmt: skip


def _added(maker):
    """Settings about added tokens, for every kind of vocabulary."""
    files = MAKERS[maker]()
    size = size_of(files)

    def ids_of(*tokens, size):
        return {**own_tokens(files), **{str(size + n): one for n, one in enumerate(tokens)}}

    new, ent = token("newtok", special=False), token("<ent>")
    start, end = (token(content) for content in IM)
    plain = {"newtok": size, "<ent>": size + 1}
    chat = {IM[0]: size, IM[1]: size + 1}
    backwards = {IM[1]: size, IM[0]: size + 1}
    return {
        "added_tokens.json": {ADDED: plain},
        "added_tokens.json, special": {ADDED: chat, "additional_special_tokens": [*IM[::-1]]},
        "added_tokens.json, other order": {ADDED: backwards, "eos_token": IM[1]},
        "added_tokens.json, map": {ADDED: chat, SPECIALS: {"additional_special_tokens": [*IM]}},
        "added_tokens_decoder": {"added_tokens_decoder": ids_of(start, end, size=size)},
        "added_tokens_decoder, backwards": {
            "added_tokens_decoder": ids_of(end, start, size=size),
            "additional_special_tokens": [*IM], "eos_token": IM[1],
        },
        "added_tokens_decoder, unsorted": {
            "added_tokens_decoder": {
                str(size + 1): end, **ids_of(start, size=size), str(size + 2): new,
            },
        },
        "added_tokens_decoder and added_tokens.json": {
            "added_tokens_decoder": ids_of(start, end, size=size), ADDED: plain,
        },
        "normalized": {"added_tokens_decoder": ids_of(new, ent, size=size)},
        "capital": {
            "added_tokens_decoder": ids_of(token("Newtok", special=False), size=size),
        },
        "not normalized, not special": {
            "added_tokens_decoder": ids_of(
                token("newtok", special=False, normalized=False), size=size
            ),
        },
        "lstrip": {"added_tokens_decoder": ids_of(token("<ent>", lstrip=True), size=size)},
        "rstrip": {"added_tokens_decoder": ids_of(token("<ent>", rstrip=True), size=size)},
        "single_word": {
            "added_tokens_decoder": ids_of(
                token("newtok", special=False, single_word=True), size=size
            ),
        },
        "special and normalized": {
            "added_tokens_decoder": ids_of(token("<ent>", normalized=True), size=size),
        },
        "a gap": {
            "added_tokens_decoder": {**ids_of(start, size=size), str(size + 5): end},
        },
        "special_tokens_map beside a decoder": {
            "added_tokens_decoder": ids_of(start, end, size=size),
            "eos_token": IM[0], SPECIALS: {"eos_token": IM[1]},
        },
        "special_tokens_map alone": {
            "eos_token": IM[0], SPECIALS: {"eos_token": IM[1], "pad_token": IM[0]},
        },
        "additional_special_tokens": {"additional_special_tokens": [*IM]},
        "additional_special_tokens as tables": {
            "additional_special_tokens": [{"__type": "AddedToken", **token(IM[0])}, IM[1]],
        },
        "extra_special_tokens, list": {"extra_special_tokens": [*IM]},
        "extra_special_tokens, dict": {"extra_special_tokens": {"image_token": IM[0]}},
        "a token of its own name": {"image_token": IM[0]},
        "split_special_tokens": {
            "split_special_tokens": True, "added_tokens_decoder": ids_of(start, end, size=size),
        },
        "both added and extra": {
            "added_tokens_decoder": ids_of(start, size=size),
            "extra_special_tokens": [IM[1]],
        },
    }  # fmt: skip


def _settings():
    """Settings that are not about added tokens."""
    return {
        "plain": {},
        "no class": {"tokenizer_class": None},
        "PreTrainedTokenizerFast": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "TokenizersBackend": {"tokenizer_class": "TokenizersBackend"},
        "unknown class": {"tokenizer_class": "MyTokenizer"},
        "add_prefix_space": {"add_prefix_space": True},
        "no add_prefix_space": {"add_prefix_space": False},
        "add_prefix_space, fast": {
            "add_prefix_space": True, "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "clean_up_tokenization_spaces": {"clean_up_tokenization_spaces": True},
        "do_lower_case": {"do_lower_case": True},
        "no do_lower_case": {"do_lower_case": False},
        "do_lower_case, fast": {
            "do_lower_case": True, "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "strip_accents": {"strip_accents": True},
        "no strip_accents": {"strip_accents": False},
        "no tokenize_chinese_chars": {"tokenize_chinese_chars": False},
        "legacy": {"legacy": True},
        "not legacy": {"legacy": False},
        "add_bos_token": {"add_bos_token": True},
        "add_eos_token": {"add_eos_token": True},
        "no add_bos_token": {"add_bos_token": False},
        "both ends": {"add_bos_token": True, "add_eos_token": True},
        "sides": {"truncation_side": "right", "padding_side": "left", "model_max_length": 512},
        "sp_model_kwargs": {"sp_model_kwargs": {}},
        "sp_model_kwargs, sampling": {
            "sp_model_kwargs": {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1},
        },
        "unk_token": {"unk_token": "cat"},
        "eos_token": {"eos_token": "the"},
        "mask_token": {"mask_token": "cat"},
        "pad_token": {"pad_token": "the"},
        "a new pad_token": {"pad_token": "<new pad>"},
        "errors": {"errors": "ignore"},
        "from_slow": {"from_slow": True},
        "do_basic_tokenize": {"do_basic_tokenize": False},
        "never_split": {"never_split": ["newtok"]},
        "spaces_between_special_tokens": {"spaces_between_special_tokens": True},
        "trim_offsets": {"trim_offsets": False},
        "extra_ids": {"extra_ids": 2},
        "keep_accents": {"keep_accents": True},
        "auto_map": {"auto_map": {"AutoTokenizer": ["tok.MyTokenizer", None]}},
        "use_fast": {"use_fast": False},
        "src_lang": {"src_lang": "de_DE"},
    }  # fmt: skip


CLASSES = {
    "bert": ["DistilBertTokenizer", "ElectraTokenizer", "BertTokenizerFast", "ConvBertTokenizer",
             "MobileBertTokenizer", "BertJapaneseTokenizer", "MPNetTokenizer", "GPT2Tokenizer",
             "SplinterTokenizer"],
    "gpt2": ["Qwen2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer", "CLIPTokenizer",
             "DebertaTokenizer", "WhisperTokenizer", "BertTokenizer"],
    "llama": ["CodeLlamaTokenizer", "CamembertTokenizer", "ReformerTokenizer", "XGLMTokenizer",
              "Qwen2Tokenizer"],
    "t5": ["LlamaTokenizer", "PegasusTokenizer", "XLNetTokenizer"],
    "xlm-r": ["CamembertTokenizer", "NllbTokenizer", "LlamaTokenizer"],
}  # fmt: skip
CLASSES |= {f"{name}.json": CLASSES[name] for name in list(CLASSES) if name != "t5"}
CLASSES["roberta"] = CLASSES["roberta.json"] = ["BartTokenizer", "LongformerTokenizer"]
# Settings that say nothing sensible of a vocabulary, so that there is no right answer.
SENSELESS = {
    "gpt2.json": ("class BertTokenizer",),
    "llama": ("added_tokens_decoder, backwards",),  # the end token renamed, </s> not listed
    "t5": ("unk_token", "added_tokens_decoder, backwards"),
    "xlm-r": ("unk_token",),
}


def _models(maker):
    """The class as a model's config.json implies it, or contradicts it."""
    types = {
        "bert.json": "bert",
        "bert": "electra",
        "gpt2": "gpt2",
        "llama.json": "mistral",
        "roberta.json": "roberta",
        "roberta": "bart",
        "t5": "t5",
        "xlm-r": "xlm-roberta",
    }
    if maker not in types:
        return {}
    config = {"config.json": {"model_type": types[maker]}}
    given = {"tokenizer_class": None} if maker != "llama.json" else {}
    return {f"{types[maker]}'s config.json": {**config, **given}}


def cases():
    """name -> files of a directory."""
    made = {}
    for maker in MAKERS:
        changes = {**_settings(), **_added(maker)}
        changes |= {f"class {name}": {"tokenizer_class": name} for name in CLASSES[maker]}
        changes |= _models(maker)
        for name, change in changes.items():
            if name in SENSELESS.get(maker, ()):
                continue
            files = {key: value for key, value in change.items() if key.endswith(".json")}
            config = {key: value for key, value in change.items() if key not in files}
            found = MAKERS[maker](files, **config)
            found[CONFIG] = {k: v for k, v in found[CONFIG].items() if k != "tokenizer_class" or v}
            made[f"{maker}: {name}"] = found
    return made
