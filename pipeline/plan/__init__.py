"""The decision, in memory and on disk: which units stay, and the weights that were changed for it."""
