"""Self-supervised objectives: how training rows are made from plain text."""
