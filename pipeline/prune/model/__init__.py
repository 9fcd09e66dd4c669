"""The model while it is pruned: what is left of it, and what was changed."""
