"""Preparing a corpus: duplicates, sentences, vocabulary, token shards."""
