"""``trimline verify``: sums, shapes and gates of what was written before, once more."""
