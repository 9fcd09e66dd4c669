"""A small mixture of experts, trained here, and what removing its experts by every method costs it."""
