"""What llama.cpp computes, and what a model does in its terms."""
