"""Systems at the same measured speed."""
