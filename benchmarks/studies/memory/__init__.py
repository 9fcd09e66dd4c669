"""What models larger than memory, LLM Surgeon and exports hold in memory."""
