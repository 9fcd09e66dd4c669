"""Training after pruning: adapters or every weight, on the text or towards the dense model, through transformers' Trainer."""
