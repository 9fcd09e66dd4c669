"""Every system at the same sizes: README's large table."""
