"""Text from language models, after prompts or sources: samplers, penalties, beam search, the
engine and its loop.

`engine` knows token ids only; `text` stands above it and knows prompts, stop strings and chats.
"""
