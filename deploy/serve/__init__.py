"""One model behind OpenAI's completions protocol, on one machine: ``trimline serve``."""
