"""Tensors in files and maps: one at a time, computed into a mapped file, changed ones beside the checkpoint's."""
