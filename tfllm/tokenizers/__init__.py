"""Text to token ids and back, in Python and, exactly equal, as TensorFlow ops."""
