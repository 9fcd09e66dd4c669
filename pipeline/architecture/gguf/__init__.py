"""What llama.cpp computes, architecture by architecture."""
