"""Tasks of the lm-eval harness: local task files or tasks by name, on a model that the caller brings."""
