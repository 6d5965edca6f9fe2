"""The tokenizers as TensorFlow ops, equal to the Python tokenizers id by id."""
