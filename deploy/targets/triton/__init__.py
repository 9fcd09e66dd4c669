"""Triton Inference Server: a model repository with a text model, and step models for other backends."""
