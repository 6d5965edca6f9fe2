"""Layers that Keras lacks, and the heads that end a model. They know `keras` only."""
