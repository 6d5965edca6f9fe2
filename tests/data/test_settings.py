"""Which examples train and which are held out."""

import pytest

from tfllm.data.settings import DataSettings, train_examples, validation_examples
from tfllm.errors import DataError, SettingError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.tsv"
    rows = [f"text {n % 300}\tpair {n}\t{n % 2}" for n in range(600)]
    path.write_text("\n".join(["text\ttext_pair\tlabel", *rows]) + "\n")
    return str(path)


def test_a_share_is_held_out_the_same_way_each_time(path):
    settings = DataSettings(train=path, validation_share=0.2)
    train, validation = train_examples(settings), validation_examples(settings)
    assert len(train) + len(validation) == 600
    assert 60 < len(validation) < 180
    assert not {e["text"] for e in train} & {e["text"] for e in validation}
    assert validation == validation_examples(settings)


def test_without_validation_everything_trains(path):
    settings = DataSettings(train=(path, path), limit=1000)
    assert len(train_examples(settings)) == 1000
    assert validation_examples(settings) == []


def test_pairs_in_both_orders(path, tmp_path):
    train = train_examples(DataSettings(train=path, both_orders=True, limit=2))
    texts = [(example["text"], example["text_pair"], example["label"]) for example in train]
    assert texts[2:] == [(pair, text, label) for text, pair, label in texts[:2]]
    single = tmp_path / "one.txt"
    single.write_text("only one\n")
    with pytest.raises(DataError, match="both_orders needs text and text_pair"):
        train_examples(DataSettings(train=str(single), both_orders=True))


def test_both_ways_to_validate_are_refused(path):
    with pytest.raises(SettingError, match="either validation or validation_share"):
        validation_examples(DataSettings(train=path, validation=path, validation_share=0.1))


def test_nothing_held_out(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("only one\n")
    with pytest.raises(DataError, match="held out"):
        for make in (train_examples, validation_examples):
            make(DataSettings(train=str(path), validation_share=0.5))


def test_the_tail_of_a_text_or_of_the_examples_is_held_out(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("abcdefghij\nklmnopqrs\n")
    book = DataSettings(train=str(path), format="document", validation_tail=0.25)
    assert train_examples(book)[0]["text"] == "abcdefghij\nklmn"
    assert validation_examples(book)[0]["text"] == "opqrs\n"
    lines = DataSettings(train=str(path), validation_tail=0.5)
    assert [e["text"] for e in train_examples(lines)] == ["abcdefghij"]
    assert [e["text"] for e in validation_examples(lines)] == ["klmnopqrs"]
    both = DataSettings(train=str(path), validation_tail=0.5, validation_share=0.5)
    with pytest.raises(SettingError, match="either validation_share or validation_tail"):
        validation_examples(both)
