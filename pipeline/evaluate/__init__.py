"""Judging a model: perplexity, the comparison of logits that gates rest on, tasks of the lm-eval harness."""
