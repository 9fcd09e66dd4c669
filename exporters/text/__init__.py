"""What a tokenizer has to do before an export carries it along: ids that the model knows, a chat template that renders."""
