"""Precisions and runtimes side by side."""
