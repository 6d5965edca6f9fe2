"""Text generation: sampling, penalties, beam search, continuous batching, streaming.

`engine` and all below it know token ids only; `text_generator` and `seq2seq_generator` stand above
it and know prompts, stop strings and chats.
"""
