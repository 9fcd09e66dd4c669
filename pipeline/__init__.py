"""The stages that turn a checkpoint into a smaller checkpoint, and what they share."""
