"""What the same plan would give with other counts of experts."""
