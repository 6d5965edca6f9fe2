"""Checks that run an artifact in the runtime it is for, and compare it with its checkpoint."""
