"""A graph as a language model that lm-eval asks."""
