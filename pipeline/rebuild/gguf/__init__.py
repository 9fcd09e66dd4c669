"""What a model does in llama.cpp's terms."""
