"""What OpenAI's protocol says, without a server: keys that are not served, our words for what is wrong, tokens as clients read them."""
