"""A checkpoint into a GGUF file that llama.cpp computes rightly."""
