"""What watches the training: held-out loss, the best state, when to stop."""
