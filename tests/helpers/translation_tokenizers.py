"""Small tokenizers of translation models: two SentencePiece models, one table or two; mBART."""

import functools
import io
import json

import sentencepiece

from tests.helpers.tiny_tokenizers import CORPUS, trained
from tfllm.tokenizers import marian
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

ENGLISH = [CORPUS[0], CORPUS[2], CORPUS[6]] * 4
OTHERS = [CORPUS[3], CORPUS[4], CORPUS[5]] * 4
CODES = [">>deu<<", ">>zho<<"]


def learned(lines, size=90, kind="unigram"):
    """A ModelProto as OPUS-MT trains them."""
    written = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return proto.parse(written.getvalue(), "model")


def table_of(models, left_out=5):
    """Ids as Marian's: </s>, <unk>, pieces of all models by their text, codes, <pad> last.

    Some pieces are missing, as where a vocabulary was cut by frequency.
    """
    special = ("<unk>", "<s>", "</s>")
    pieces = {entry.piece for model in models for entry in model.pieces} - set(special)
    kept = sorted(pieces)[left_out:]
    return {token: number for number, token in enumerate(["</s>", "<unk>", *kept, *CODES, "<pad>"])}


@functools.cache
def pair():
    """(source, target) ModelProtos."""
    return learned(ENGLISH), learned(OTHERS)


@functools.cache
def tokenizer(name):
    """By name: "marian", or "marian apart" with a table for each side."""
    models = pair()
    if name == "marian":
        table = table_of(models)
        return marian.from_protos(models, (table, table), TokenizerConfig({"source_lang": "en"}))
    return marian.from_protos(models, [table_of([model], 3) for model in models])


@functools.cache
def graphs(name):
    """The same of sources and of targets."""
    return tokenizer(name).graph(), tokenizer(name).target.graph()


def write_mbart(folder, kind="MBartTokenizer", **config):
    """A directory with mBART's `sentencepiece.bpe.model`, which has XLM-R's form."""
    folder.mkdir(exist_ok=True)
    model = trained("unigram", pad_id=-1)
    (folder / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    settings = {"tokenizer_class": kind, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
