"""What pruning costs in processor time, beside an earlier commit."""
