"""trimline."""
