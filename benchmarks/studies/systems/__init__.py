"""Every system at the same sizes: the large table of docs/results.md, and README's six rows of it."""
