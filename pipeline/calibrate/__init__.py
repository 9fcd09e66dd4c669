"""Statistics of a model's activations, collected in one sweep over its blocks."""
