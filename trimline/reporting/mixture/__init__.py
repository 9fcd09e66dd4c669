"""What a report says of routed experts alone."""
