"""Checks of an artifact, in its real runtime, against the checkpoint it was made from."""
