"""The private parts of TensorFlow Text, sentencepiece and tokenizers that tfllm uses are as tested.

A failure names the library and the range that setup.cfg pins: read the new version's source, run
the slow and parity tests of tests/tokenizers, and only then widen the range, there and in the
internals file.
"""

import configparser
import importlib.metadata
import inspect
from pathlib import Path

import pytest
import tensorflow as tf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tokenizers import Regex, pre_tokenizers

from tfllm.errors import TokenizerError
from tfllm.tokenizers import hf_internals, sentencepiece_internals
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph import tf_text_internals
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel

ROOT = Path(__file__).parent.parent.parent
RANGES = {
    "tensorflow-text": tf_text_internals.TENSORFLOW_TEXT,
    "sentencepiece": sentencepiece_internals.SENTENCEPIECE,
    "tokenizers": hf_internals.TOKENIZERS,
}
# Private operation of TensorFlow Text -> the names of its first arguments.
OPERATIONS = {
    "sentencepiece_op": ["model", "container", "shared_name"],
    "sentencepiece_tokenize_op": [
        "sp_handle", "input", "nbest_size", "alpha", "add_bos", "add_eos", "reverse", "out_type",
    ],
    "sentencepiece_tokenize_with_offsets_op": [
        "sp_handle", "input", "nbest_size", "alpha", "add_bos", "add_eos", "reverse", "out_type",
    ],
    "sentencepiece_detokenize_op": [
        "sp_handle", "input_values", "input_splits", "add_bos", "add_eos", "reverse",
    ],
}  # fmt: skip
PIECES = [("<unk>", 0.0, proto.UNKNOWN), ("▁a", -1.0, proto.NORMAL), ("b", -2.0, proto.NORMAL)]
# What only the internals files may name.
PRIVATE = {
    "tensorflow_text.python": "tf_text_internals.py",
    "gen_sentencepiece": "tf_text_internals.py",
    "sentencepiece_model_pb2": "sentencepiece_internals.py",
    "immutable_proto": "sentencepiece_internals.py",
    "except BaseException": "hf_internals.py",
}


def changed(name, part):
    """What a failure says."""
    version, (first, below) = importlib.metadata.version(name), RANGES[name]
    return (
        f"{name} {version} has changed {part}; setup.cfg pins {name}>={first},<{below}, which is "
        "what was tested"
    )


@pytest.mark.parametrize("name", RANGES)
def test_the_installed_version_is_in_the_range_of_setup_cfg(name):
    first, below = RANGES[name]
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["options"]["install_requires"].splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    (pinned,) = [each for each in wanted if each.name == name]
    assert pinned.specifier == SpecifierSet(f">={first},<{below}")
    assert importlib.metadata.version(name) in pinned.specifier, changed(name, "its version")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_of_tensorflow_text(operation):
    function = getattr(tf_text_internals._operations(), operation, None)
    assert function is not None, changed("tensorflow-text", operation)
    arguments = list(inspect.signature(function).parameters)[: len(OPERATIONS[operation])]
    assert arguments == OPERATIONS[operation], changed("tensorflow-text", operation)


def test_two_models_of_one_process_have_resources_of_their_own():
    first = SentencePieceKernel(proto.build(PIECES, proto.UNIGRAM).SerializeToString())
    second = SentencePieceKernel(proto.build(PIECES[::-1], proto.UNIGRAM).SerializeToString())
    texts, part = tf.constant(["ab"]), "its SentencePiece operations"
    assert first.tokenize(texts).to_list() == [[1, 2]], changed("tensorflow-text", part)
    assert second.tokenize(texts).to_list() == [[1, 0]], changed("tensorflow-text", part)
    assert [values.to_list() for values in first.tokenize_with_offsets(texts)] == [
        [[1, 2]], [[0, 1]], [[1, 2]],
    ], changed("tensorflow-text", part)  # fmt: skip
    assert first.detokenize(tf.ragged.constant([[1, 2]])).numpy().tolist() == [b"ab"]


def test_the_model_message_of_sentencepiece():
    model = sentencepiece_internals.new_model_proto()
    types = model.SentencePiece
    assert [getattr(types, name) for name in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED")] == [
        proto.NORMAL, proto.UNKNOWN, proto.CONTROL, proto.USER_DEFINED,
    ], changed("sentencepiece", "the types of pieces")  # fmt: skip
    assert (types.UNUSED, types.BYTE) == (proto.UNUSED, proto.BYTE)
    trainer = model.trainer_spec
    assert (trainer.UNIGRAM, trainer.BPE) == (proto.UNIGRAM, proto.BPE)
    messages = {
        sentencepiece_internals.TrainerSpec: trainer,
        sentencepiece_internals.NormalizerSpec: model.normalizer_spec,
        sentencepiece_internals.PieceProto: types(),
    }
    for protocol, message in messages.items():
        for field in inspect.get_annotations(protocol):
            assert hasattr(message, field), changed("sentencepiece", field)


def test_offsets_of_sentencepiece():
    from sentencepiece import SentencePieceProcessor

    model = proto.build(PIECES, proto.UNIGRAM).SerializeToString()
    spans = sentencepiece_internals.encode_with_offsets(
        SentencePieceProcessor(model_proto=model), "ab b"
    )
    assert [tuple(span) for span in spans] == [
        ("▁a", 1, 0, 1), ("b", 2, 1, 2), ("▁", 0, 2, 3), ("b", 2, 3, 4),
    ], changed("sentencepiece", "offsets")  # fmt: skip


def test_a_panic_of_tokenizers_is_a_base_exception():
    split = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")  # backtracks without an end
    text = "a" * 100 + "b"
    with pytest.raises(BaseException, match="retry-limit") as failure:
        split.pre_tokenize_str(text)
    assert not isinstance(failure.value, Exception), changed("tokenizers", "its panics")
    with pytest.raises(TokenizerError, match="text of 101 characters"):
        with hf_internals.translate_errors([text]):
            split.pre_tokenize_str(text)


def test_no_other_file_touches_them():
    for path in (ROOT / "tfllm").rglob("*.py"):
        text = path.read_text()
        for part, home in PRIVATE.items():
            if part == "except BaseException" and path.parent.name != "tokenizers":
                continue
            assert path.name == home or part not in text, f"{path}: {part} belongs into {home}"
