"""Turning a checkpoint into another format, and proving that it still computes the same."""
